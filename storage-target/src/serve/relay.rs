//! What concerns all workers: control asks each of them and answers when all have answered.
//!
//! Owned by control. A worker asks the others through it (a reset of a logical unit that several adapters share, a fence),
//! and control itself does (before a backing is taken away). It never waits.

use std::collections::HashMap;

use avio_host::worker::{WorkerGone, Workers};

use super::message::{Action, Command, Event, Scope, Ticket};

/// Number of control among the owners of tickets.
const CONTROL: usize = u16::MAX as usize;

#[derive(Debug)]
struct Asked {
    /// Workers that have not answered.
    left: usize,
    matched: u32,
}

/// Everything that is being asked of all workers.
#[derive(Debug, Default)]
pub struct Relay {
    asked: HashMap<Ticket, Asked>,
    tickets: u64,
    done: Vec<Ticket>,
}

impl Relay {
    /// Asks every worker to have no request in `scope` left. [`Relay::next_done`] says when.
    pub fn ask(&mut self, workers: &Workers<Command>, scope: Scope, action: Action) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket::new(CONTROL, self.tickets);
        self.send(workers, None, ticket, scope, action);
        ticket
    }

    /// Takes up what a worker said, if it is for the others; else gives it back.
    pub fn on_event(&mut self, workers: &Workers<Command>, event: Event) -> Option<Event> {
        match event {
            Event::Quiesce { ticket, scope, action } => {
                self.send(workers, Some(ticket.worker()), ticket, scope, action);
            }
            Event::Quiesced { ticket, matched, .. } => {
                if let Some(asked) = self.asked.get_mut(&ticket) {
                    asked.matched += matched;
                    asked.left = asked.left.saturating_sub(1);
                    self.finish(workers, ticket);
                }
            }
            Event::FenceLowered { worker, lun } => {
                for (_, other) in workers.iter().enumerate().filter(|(number, _)| *number != worker) {
                    let _: Result<u64, WorkerGone> = other.send(Command::FenceLowered(lun));
                }
            }
            other => return Some(other),
        }
        None
    }

    /// The next question of control's own that all workers have answered.
    pub fn next_done(&mut self) -> Option<Ticket> {
        self.done.pop()
    }

    fn send(
        &mut self,
        workers: &Workers<Command>,
        except: Option<usize>,
        ticket: Ticket,
        scope: Scope,
        action: Action,
    ) {
        let sent = workers
            .iter()
            .enumerate()
            .filter(|(number, _)| Some(*number) != except)
            .filter(|(_, worker)| worker.send(Command::Quiesce { ticket, scope, action }).is_ok())
            .count();
        self.asked.insert(ticket, Asked { left: sent, matched: 0 });
        self.finish(workers, ticket);
    }

    fn finish(&mut self, workers: &Workers<Command>, ticket: Ticket) {
        let Some(asked) = self.asked.get(&ticket).filter(|asked| asked.left == 0) else { return };
        let matched = asked.matched;
        self.asked.remove(&ticket);
        match workers.get(ticket.worker()) {
            Some(worker) => {
                let _: Result<u64, WorkerGone> = worker.send(Command::Quiesced { ticket, matched });
            }
            None => self.done.push(ticket),
        }
    }
}
