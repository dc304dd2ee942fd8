//! The forwarding engine of one worker: its sources, the table it uses, and what the worker loop asks of it.
//!
//! What happens to the frames of a batch is in `batch`; this file takes commands, finds the ring, and deals with rings that
//! break.

use std::io;
use std::sync::Arc;

use avio_host::wait::{SourceError, Sources, Token};
use avio_host::worker::{self, ControlWaker, Polled};
use avio_proto::config::MacAddr;
use avio_proto::ring::RingError;
use crossbeam_channel::Sender;

use super::{Event, Events, Forwarder};
use crate::port::guest::{TxQueue, TxStopped};
use crate::port::wire::{IntakeStopped, WireSource};
use crate::table::{PortIndex, Table};

/// What control asks of an engine.
#[derive(Debug)]
pub enum Command {
    /// Use this table from now on. Sent to every worker.
    Publish(Arc<Table>),
    /// Serve this transmit ring. Its port must be in a table published before.
    StartTx(Box<TxQueue>),
    /// Serve this intake. Its port must be in a table published before.
    StartIntake(Box<WireSource>),
    /// Stop serving an intake and give it back, then wake control.
    StopIntake {
        /// Its port.
        port: PortIndex,
        /// Its number.
        lane: u16,
        /// Needs room for the answer: it is dropped rather than waited for.
        answer: Sender<IntakeStopped>,
    },
    /// Broadcast in the name of a port that this address is there ([`Forwarder::announce`]).
    Announce {
        /// The port.
        port: PortIndex,
        /// The address of the guest behind it.
        mac: MacAddr,
    },
    /// Stop serving a transmit ring and drop it. The answer is sent, then control is woken.
    StopTx {
        /// Its port.
        port: PortIndex,
        /// Its pair number.
        pair: u16,
        /// Needs room for the answer: it is dropped rather than waited for.
        answer: Sender<TxStopped>,
    },
}

/// Forwards what the sources of one worker bring.
pub struct Engine {
    control: ControlWaker,
    forwarder: Forwarder,
    /// By token.
    sources: Vec<Option<(Token, Source)>>,
}

/// What a worker takes frames from.
enum Source {
    Ring(Box<TxQueue>),
    Intake(Box<WireSource>),
}

impl Source {
    /// Marks it broken, and what to tell control.
    fn broken(&mut self, error: Option<Broken>) -> Event {
        match self {
            Self::Ring(queue) => {
                queue.broken = true;
                let error = error.and_then(|error| if let Broken::Ring(e) = error { Some(e) } else { None });
                Event::TxBroken { port: queue.port, pair: queue.pair, error }
            }
            Self::Intake(wire) => {
                wire.broken = true;
                let error = error.and_then(|error| if let Broken::Io(e) = error { Some(e) } else { None });
                Event::IntakeBroken { port: wire.port, lane: wire.lane, error }
            }
        }
    }
}

/// Why a source cannot go on.
enum Broken {
    Ring(RingError),
    Io(io::ErrorKind),
}

impl Engine {
    /// The engine of worker number `worker` (its cell in every port's numbers), with an empty table and no rings.
    #[must_use]
    pub fn new(worker: usize, events: Events, control: ControlWaker) -> Self {
        Self { control, forwarder: Forwarder::new(worker, events), sources: Vec::new() }
    }

    fn start(&mut self, sources: &mut Sources, mut source: Source) {
        let wait = match &mut source {
            Source::Ring(queue) => Ok(queue.kick.take()),
            Source::Intake(wire) => wire.intake.wait_fd().map(Some),
        };
        match wait.map_err(SourceError::Kick).and_then(|wait| sources.add(wait)) {
            Ok(token) => {
                if self.sources.len() <= token.index() {
                    self.sources.resize_with(token.index() + 1, || None);
                }
                self.sources[token.index()] = Some((token, source));
            }
            Err(error) => {
                let event = source.broken(None);
                tracing::error!("{event:?}: not started: {error}");
                self.forwarder.events().send(event);
            }
        }
    }

    /// Takes the source away that `is` names.
    fn stop(&mut self, sources: &mut Sources, is: impl Fn(&Source) -> bool) -> Option<Source> {
        let place = self.sources.iter_mut().find(|place| place.as_ref().is_some_and(|(_, s)| is(s)))?;
        let (token, source) = place.take()?;
        sources.remove(token);
        Some(source)
    }

    fn source(&mut self, token: Token) -> Option<&mut Source> {
        match self.sources.get_mut(token.index())? {
            Some((of, source)) if *of == token => Some(source),
            _ => None,
        }
    }
}

impl worker::Engine for Engine {
    type Command = Command;

    fn started(&mut self, sources: &mut Sources) {
        self.forwarder.set_stats(Arc::clone(sources.stats()));
    }

    fn command(&mut self, sources: &mut Sources, command: Command) {
        match command {
            Command::Publish(table) => {
                self.forwarder.publish(table);
            }
            Command::StartTx(queue) => self.start(sources, Source::Ring(queue)),
            Command::StartIntake(wire) => self.start(sources, Source::Intake(wire)),
            Command::Announce { port, mac } => self.forwarder.announce(port, mac),
            Command::StopTx { port, pair, answer } => {
                let is = |s: &Source| matches!(s, Source::Ring(q) if q.port == port && q.pair == pair);
                let base = match self.stop(sources, is) {
                    Some(Source::Ring(queue)) => Some(queue.ring.base()),
                    _ => None,
                };
                let _ = answer.try_send(TxStopped { port, pair, base });
                self.control.wake();
            }
            Command::StopIntake { port, lane, answer } => {
                let is = |s: &Source| matches!(s, Source::Intake(w) if w.port == port && w.lane == lane);
                let source = match self.stop(sources, is) {
                    Some(Source::Intake(wire)) => Some(wire),
                    _ => None,
                };
                let _ = answer.try_send(IntakeStopped { port, lane, source });
                self.control.wake();
            }
        }
    }

    fn poll(&mut self, token: Token, budget: usize) -> Polled {
        let Some(Some((of, source))) = self.sources.get_mut(token.index()) else { return Polled::Idle };
        if *of != token {
            return Polled::Broken;
        }
        let outcome = match source {
            Source::Ring(queue) if queue.broken => return Polled::Broken,
            Source::Ring(queue) => self.forwarder.forward(queue, budget).map_err(Broken::Ring),
            Source::Intake(wire) if wire.broken => return Polled::Broken,
            Source::Intake(wire) => {
                if wire.intake.is_empty() {
                    return Polled::Idle;
                }
                self.forwarder.forward_intake(wire, budget).map_err(|e| Broken::Io(e.kind()))
            }
        };
        match outcome {
            Ok((0, _)) => Polled::Idle,
            Ok((items, more)) => Polled::Worked { items, more },
            Err(error) => {
                let event = source.broken(Some(error));
                self.forwarder.events().send(event);
                Polled::Broken
            }
        }
    }

    #[inline]
    fn expect(&mut self, token: Token) {
        if let Some(Some((_, Source::Ring(queue)))) = self.sources.get(token.index()) {
            queue.ring.fetch();
        }
    }

    fn arm(&mut self, token: Token) -> bool {
        match self.source(token) {
            Some(Source::Ring(queue)) => queue.ring.enable_notifications(),
            Some(Source::Intake(wire)) => wire.intake.arm(),
            None => false,
        }
    }

    fn disarm(&mut self, token: Token) {
        match self.source(token) {
            Some(Source::Ring(queue)) => queue.ring.disable_notifications(),
            Some(Source::Intake(wire)) => wire.intake.disarm(),
            None => {}
        }
    }

    fn source_panicked(&mut self, token: Token) {
        if let Some(source) = self.source(token) {
            let event = source.broken(None);
            self.forwarder.events().send(event);
        }
    }
}
