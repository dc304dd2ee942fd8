//! Control's hold on the workers: the published table, rings on their way in and out, and what waits for quiescence.
//!
//! Owns the workers, the current [`Table`], the learned addresses and the queue of releases. The rest of control says what
//! changed and calls [`Fabric::flush`] once per turn of its loop; nothing here knows sessions or files.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use avio_host::worker::{Barrier, Workers};
use avio_proto::config::MacAddr;
use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::forward::Command;
use crate::port::guest::{RxQueue, TxQueue, TxStopped};
use crate::port::wire::{IntakeStopped, Lane, WireSource};
use crate::table::{Learner, PORTS_MAX, PortIndex, Table, TableBuilder};

/// Something that no worker uses any more.
pub(super) enum Released {
    /// A receive ring; control is its only owner.
    Rx {
        /// Its port.
        port: PortIndex,
        /// Its pair number.
        pair: u16,
        /// What GET_VRING_BASE answers.
        base: u32,
    },
    /// A transmit ring.
    Tx(TxStopped),
    /// An intake; what drops it closes its socket.
    Intake(IntakeStopped),
    /// A lane; no worker sends through it any more. What drops it last closes its socket.
    Lane(Arc<Lane>),
}

/// What has been taken out of the next table.
enum Leaving {
    Rx(PortIndex, u16, Arc<RxQueue>),
    Lane(Arc<Lane>),
    Index(PortIndex),
}

/// See the module.
pub(super) struct Fabric {
    workers: Workers<Command>,
    /// Transmit rings served by each worker.
    load: Vec<usize>,
    table: Arc<Table>,
    epoch: Instant,
    pub(super) learner: Learner,
    stopped: (Sender<TxStopped>, Receiver<TxStopped>),
    stopped_intakes: (Sender<IntakeStopped>, Receiver<IntakeStopped>),
    changed: bool,
    starting: Vec<(usize, Command)>,
    leaving: Vec<Leaving>,
    waiting: Vec<(Barrier, Vec<Leaving>)>,
    free: BTreeSet<u32>,
    next_index: u32,
}

impl Fabric {
    /// With workers that have the empty table.
    pub(super) fn new(workers: Workers<Command>) -> Self {
        Self {
            load: vec![0; workers.len()],
            workers,
            table: Arc::new(Table::empty()),
            epoch: Instant::now(),
            learner: Learner::new(),
            stopped: unbounded(),
            stopped_intakes: unbounded(),
            changed: false,
            starting: Vec::new(),
            leaving: Vec::new(),
            waiting: Vec::new(),
            free: BTreeSet::new(),
            next_index: 0,
        }
    }

    /// The workers, for their numbers.
    pub(super) fn workers(&self) -> &Workers<Command> {
        &self.workers
    }

    /// The current table.
    pub(super) fn table_arc(&self) -> Arc<Table> {
        Arc::clone(&self.table)
    }

    /// An index for a new port; `None` when all of them are taken.
    pub(super) fn take_index(&mut self) -> Option<PortIndex> {
        if let Some(index) = self.free.pop_first() {
            return Some(PortIndex(index));
        }
        if self.next_index as usize >= PORTS_MAX {
            return None;
        }
        self.next_index += 1;
        Some(PortIndex(self.next_index - 1))
    }

    /// The port is gone from the next table; its index is free once every worker has passed that.
    pub(super) fn give_index(&mut self, index: PortIndex) {
        self.learner.forget_port(index);
        self.leaving.push(Leaving::Index(index));
        self.changed = true;
    }

    /// What the table is built from has changed.
    pub(super) fn touch(&mut self) {
        self.changed = true;
    }

    /// Starts a transmit ring on the worker with the fewest, after the next publication. Returns the worker's number.
    pub(super) fn start_tx(&mut self, queue: TxQueue) -> usize {
        self.start(Command::StartTx(Box::new(queue)))
    }

    /// Starts an intake on the worker with the fewest sources, after the next publication. Returns the worker's number.
    pub(super) fn start_intake(&mut self, source: WireSource) -> usize {
        self.start(Command::StartIntake(Box::new(source)))
    }

    fn start(&mut self, command: Command) -> usize {
        let worker = (0..self.load.len()).min_by_key(|&w| self.load[w]).unwrap_or(0);
        self.load[worker] += 1;
        self.starting.push((worker, command));
        self.changed = true;
        worker
    }

    /// Asks `worker` for an intake back; [`Self::released`] tells when it came.
    pub(super) fn stop_intake(&mut self, worker: usize, port: PortIndex, lane: u16) {
        self.load[worker] = self.load[worker].saturating_sub(1);
        let is = |command: &Command| matches!(command, Command::StartIntake(s) if s.port == port && s.lane == lane);
        if let Some(at) = self.starting.iter().position(|(_, command)| is(command)) {
            // It never got there.
            if let (_, Command::StartIntake(source)) = self.starting.remove(at) {
                let _ = self.stopped_intakes.0.send(IntakeStopped { port, lane, source: Some(source) });
            }
            return;
        }
        let answer = self.stopped_intakes.0.clone();
        if self.workers[worker].send(Command::StopIntake { port, lane, answer }).is_err() {
            let _ = self.stopped_intakes.0.send(IntakeStopped { port, lane, source: None });
        }
    }

    /// A lane has been taken out of what the next table is built from; it is released when no worker can reach it.
    pub(super) fn retire_lane(&mut self, lane: Arc<Lane>) {
        self.leaving.push(Leaving::Lane(lane));
        self.changed = true;
    }

    /// Has a worker broadcast on behalf of `port` that `mac` is there. Any worker can: receive rings are shared.
    pub(super) fn announce(&mut self, port: PortIndex, mac: MacAddr) {
        if let Some(worker) = self.workers.iter().next() {
            // A worker that has ended has nobody left to tell.
            let _ = worker.send(Command::Announce { port, mac });
        }
    }

    /// Asks `worker` for a transmit ring back; [`Self::released`] tells when it came. Call [`Self::flush`] before, if the ring
    /// may not have been sent yet.
    pub(super) fn stop_tx(&mut self, worker: usize, port: PortIndex, pair: u16) {
        self.load[worker] = self.load[worker].saturating_sub(1);
        let answer = self.stopped.0.clone();
        // A worker that has ended serves no ring: the answer is ours then.
        if self.workers[worker].send(Command::StopTx { port, pair, answer }).is_err() {
            let _ = self.stopped.0.send(TxStopped { port, pair, base: None });
        }
    }

    /// A receive ring has been taken out of what the next table is built from.
    pub(super) fn stop_rx(&mut self, port: PortIndex, pair: u16, queue: Arc<RxQueue>) {
        self.leaving.push(Leaving::Rx(port, pair, queue));
        self.changed = true;
    }

    /// Whether there is something to [`flush`](Self::flush).
    pub(super) fn is_changed(&self, now: Instant) -> bool {
        self.changed || self.learner.publish_at().is_some_and(|at| at <= now)
    }

    /// Publishes the table that `fill` builds, then starts what was to start. What has left is released when every worker
    /// has taken the new table.
    pub(super) fn flush(&mut self, now: Instant, fill: impl FnOnce(&mut TableBuilder)) {
        let mut builder = TableBuilder::new(self.epoch);
        fill(&mut builder);
        builder.learned(&self.learner);
        self.table = Arc::new(builder.build());
        for worker in self.workers.iter() {
            // A worker that has ended needs no table.
            let _ = worker.send(Command::Publish(Arc::clone(&self.table)));
        }
        self.learner.published(now);
        self.changed = false;
        for (worker, command) in self.starting.drain(..) {
            let _ = self.workers[worker].send(command);
        }
        if !self.leaving.is_empty() {
            self.waiting.push((self.workers.barrier(), std::mem::take(&mut self.leaving)));
        }
    }

    /// What workers have let go of since the last call. Call it after each wake-up by a worker.
    pub(super) fn released(&mut self) -> Vec<Released> {
        let mut released: Vec<Released> = self.stopped.1.try_iter().map(Released::Tx).collect();
        released.extend(self.stopped_intakes.1.try_iter().map(Released::Intake));
        let (done, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|(b, _)| b.is_done());
        self.waiting = waiting;
        let done: Vec<(Barrier, Vec<Leaving>)> = done;
        for leaving in done.into_iter().flat_map(|(_, leaving)| leaving) {
            match leaving {
                Leaving::Rx(port, pair, queue) => {
                    released.push(Released::Rx { port, pair, base: queue.base() })
                }
                Leaving::Lane(lane) => released.push(Released::Lane(lane)),
                Leaving::Index(index) => {
                    self.free.insert(index.0);
                }
            }
        }
        released
    }

    /// Ends all workers; rings and table go with them.
    pub(super) fn stop(self) {
        self.workers.stop();
    }
}
