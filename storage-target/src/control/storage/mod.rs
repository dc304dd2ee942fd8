//! Everything that the control thread of `avio-stord` looks after: sessions, adapters, logical units, workers.
//!
//! Owns them and moves between them: a session's rings go to workers (`sessions`), workers' events come back (`events`), a changed definition
//! becomes new views (`reconcile`, `replace`, `drive`, `size`, `absent`), and what was promised is on disk first (`saving`). It never blocks: what may
//! goes to helper threads and comes back through [`Storage::on_helper`].

mod absent;
mod drive;
mod events;
mod reconcile;
mod replace;
mod saving;
mod sessions;
mod size;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_host::blocking::{Helpers, Mailbox};
use avio_host::ratelimit::RateLimit;
use avio_host::session::Sessions;
use avio_host::worker::Workers;
use avio_proto::config::{Config, WorkersConfig};
use avio_proto::virtio::scsi::EVENT_QUEUE;
use crossbeam_channel::{Receiver, bounded};

pub(super) use self::absent::Absent;
use self::reconcile::Pending;
pub(super) use self::reconcile::wanted;
use self::replace::Drained;
use self::saving::Journal;
use super::adapter::{Adapter, AdapterLun};
use super::journal;
use super::lun::{LunKey, Opened};
use super::served::Served;
use crate::adapter::AdapterId;
use crate::backing::Backing;
use crate::lun::LunId;
use crate::scsi::NexusName;
use crate::serve::{Action, Command, Event, Notice, Relay, Scope, Ticket};

/// How long a stop waits for the state folder: it is to be over within a second.
const LAST_WRITES: Duration = Duration::from_millis(400);

/// What a helper thread brings back.
pub(super) enum Done {
    /// LUNs that a new configuration wants.
    Opened(Vec<Result<Opened, String>>),
    /// All that a reconciliation has changed is on disk, or what was asked for before could not be put there.
    Durable(Result<Vec<String>, Vec<String>>),
    /// A medium for a drive, and whether an operator waits for it.
    Inserted(LunKey, Box<Result<Opened, String>>, bool),
    /// What an operator has done to a LUN is on disk, or was refused.
    Settled(LunKey, Result<(), String>),
    /// A logical unit's state is durable, or could not be made so.
    Written { lun: LunId, version: u64, worker: Option<usize>, result: Result<(), String> },
    /// What is served is written down, or could not be.
    Noted(Result<(), String>),
    /// Backings that were not there, and whether they are now.
    LookedFor(Vec<(LunKey, Result<Opened, String>)>),
    /// These backings have another size now.
    Resized(Vec<(Arc<Backing>, u64)>),
}

/// See the module.
pub(super) struct Storage {
    pub run_dir: PathBuf,
    state_dir: PathBuf,
    /// Which start of the host this is.
    boot: String,
    pub config: Config,
    pub started_with: WorkersConfig,
    pub sessions: Sessions,
    workers: Workers<Command>,
    events: Receiver<Event>,
    relay: Relay,
    helpers: Helpers,
    /// One thread: what is written later must not be overtaken.
    journal: Helpers,
    mailbox: Mailbox<Done>,
    pub adapters: BTreeMap<AdapterId, Adapter>,
    /// Adapters that have no definition any more and whose rings are not all back.
    leaving: BTreeMap<AdapterId, Adapter>,
    journals: BTreeMap<LunId, Journal>,
    draining: Vec<(Ticket, Drained)>,
    /// Configuration that waits for its LUNs to be opened.
    pending: Option<Pending>,
    /// During a reconciliation: states that could not be made durable, so that the change holds only while this process
    /// lives.
    unsaved: Option<Vec<String>>,
    /// What became of operators' changes of a LUN, for who asked.
    pub settled: VecDeque<(LunKey, Result<(), String>)>,
    /// Logical units whose last state could not be written, and why.
    not_saved: BTreeMap<LunId, String>,
    next_adapter: u32,
    next_lun: u32,
    next_worker: usize,
    looking: bool,
    next_look: Instant,
    looking_for_absent: bool,
    next_look_for_absent: Instant,
    /// What was written down last of what is served.
    noted: Option<Served>,
    /// It is being written.
    noting: bool,
    /// Something may have changed since.
    note_again: bool,
    limit: RateLimit<String>,
}

/// What [`Storage`] is made of.
pub(super) struct Parts {
    pub run_dir: PathBuf,
    pub state_dir: PathBuf,
    pub started_with: WorkersConfig,
    pub sessions: Sessions,
    pub workers: Workers<Command>,
    pub events: Receiver<Event>,
    pub helpers: Helpers,
    pub journal: Helpers,
    pub mailbox: Mailbox<Done>,
}

impl Storage {
    pub fn new(parts: Parts) -> Self {
        let Parts { run_dir, state_dir, started_with, sessions, workers, events, helpers, journal, mailbox } =
            parts;
        Self {
            run_dir,
            state_dir,
            boot: journal::boot_id(),
            config: Config::default(),
            started_with,
            sessions,
            workers,
            events,
            relay: Relay::default(),
            helpers,
            journal,
            mailbox,
            adapters: BTreeMap::new(),
            leaving: BTreeMap::new(),
            journals: BTreeMap::new(),
            draining: Vec::new(),
            pending: None,
            unsaved: None,
            settled: VecDeque::new(),
            not_saved: BTreeMap::new(),
            next_adapter: 0,
            next_lun: 0,
            next_worker: 0,
            looking: false,
            next_look: Instant::now(),
            looking_for_absent: false,
            next_look_for_absent: Instant::now(),
            noted: None,
            noting: false,
            note_again: false,
            limit: RateLimit::default(),
        }
    }

    pub fn new_adapter_id(&mut self) -> AdapterId {
        self.next_adapter += 1;
        AdapterId(self.next_adapter)
    }

    pub fn new_lun_id(&mut self) -> LunId {
        self.next_lun += 1;
        LunId(self.next_lun)
    }

    /// The adapter of an initiator.
    pub fn adapter_of(&mut self, nexus: &NexusName) -> Option<&mut Adapter> {
        self.adapters.values_mut().find(|adapter| adapter.nexus == *nexus)
    }

    /// Tells every worker.
    pub fn broadcast(&self, mut command: impl FnMut() -> Command) {
        for worker in self.workers.iter() {
            // A worker that has ended has ended because the daemon stops.
            let _ = worker.send(command());
        }
    }

    /// Gives every worker an adapter as it is now.
    pub fn publish(&self, id: AdapterId) {
        let Some(adapter) = self.adapters.get(&id) else { return };
        let view = adapter.view();
        self.broadcast(|| Command::SetAdapter(Arc::clone(&view)));
    }

    /// Tells an adapter's guest; one that has no event queue now, when it has one again.
    pub fn notify(&mut self, adapter: AdapterId, notice: Notice) {
        if let Some(of) = self.adapters.get_mut(&adapter)
            && !of.rings.contains_key(&(EVENT_QUEUE as u16))
        {
            of.events_missed = of.seen && !of.is_blk();
            return;
        }
        self.broadcast(|| Command::Notify { adapter, notice });
    }

    /// Asks all workers to have no request of a logical unit left (of one adapter, if given), then does what is next.
    fn drain(&mut self, lun: LunId, adapter: Option<AdapterId>, then: Drained) {
        let scope = Scope { lun: Some(lun), adapter, ..Scope::default() };
        let ticket = self.relay.ask(&self.workers, scope, Action::Wait);
        self.draining.push((ticket, then));
    }

    /// Everything that has happened, until nothing is left.
    pub fn turn(&mut self, now: Instant) {
        loop {
            while let Some((endpoint, event)) = self.sessions.next_event() {
                self.on_session_event(endpoint, event);
            }
            while let Ok(event) = self.events.try_recv() {
                if let Some(event) = self.relay.on_event(&self.workers, event) {
                    self.on_worker_event(event);
                }
            }
            while let Some(ticket) = self.relay.next_done() {
                self.on_drained(ticket);
            }
            if !self.sessions.has_events() && self.events.is_empty() {
                break;
            }
        }
        self.look_at_sizes(now);
        self.look_for_absent(now);
    }

    /// What a helper thread has brought back. Returns whether a reconciliation has come to its end.
    pub fn on_helper(&mut self) -> Option<Result<Vec<String>, Vec<String>>> {
        let mut ended = None;
        while let Some(done) = self.mailbox.take() {
            match done {
                Done::Opened(opened) => {
                    let outcome = self.take_over(opened);
                    self.note();
                    self.after_journal(outcome);
                }
                Done::Durable(outcome) => {
                    let unsaved = self.unsaved.take().unwrap_or_default();
                    ended = Some(if unsaved.is_empty() { outcome } else { Err(unsaved) });
                }
                Done::Inserted(key, result, asked) => {
                    let outcome = self.inserted(*result);
                    if let Err(error) = &outcome {
                        tracing::warn!("{error}");
                    }
                    if asked {
                        self.settle(key, outcome);
                    }
                }
                Done::Settled(key, outcome) => {
                    let outcome = outcome.and_then(|()| self.was_saved(&key));
                    self.settled.push_back((key, outcome));
                }
                Done::Written { lun, version, worker, result } => {
                    self.written(lun, &result);
                    if let Some(worker) = worker {
                        let saved = result.is_ok();
                        let _ = self.workers[worker].send(Command::Journalled { lun, version, saved });
                    }
                }
                Done::Noted(result) => self.was_noted(result),
                Done::LookedFor(found) => self.looked_for(found),
                Done::Resized(resized) => {
                    self.looking = false;
                    self.resized(&resized);
                }
            }
        }
        ended
    }

    /// A LUN of an adapter.
    pub fn entry(&self, id: AdapterId, target: u8) -> Option<&AdapterLun> {
        self.adapters.get(&id)?.luns.get(&target)
    }

    /// As [`Storage::entry`], to be changed.
    fn entry_mut(&mut self, id: AdapterId, target: u8) -> Option<&mut AdapterLun> {
        self.adapters.get_mut(&id)?.luns.get_mut(&target)
    }

    /// Which LUN that is, by what operators call it.
    pub fn find(&self, key: &LunKey) -> Option<AdapterId> {
        let adapter = self.adapters.values().find(|adapter| adapter.nexus == key.nexus)?;
        adapter.luns.contains_key(&key.target).then_some(adapter.id)
    }

    /// One line about something that a guest can cause, not more than a few a second.
    pub fn log(&mut self, name: &str, line: &str) {
        if let Some(suppressed) = self.limit.check(name.to_owned(), Instant::now()) {
            tracing::warn!("{name}: {line}{suppressed}");
        }
    }

    /// Ends the workers; requests under way are finished first, and what is to be written down is.
    pub fn stop(mut self) {
        if std::mem::take(&mut self.note_again) {
            self.noting = false;
            self.note();
        }
        self.workers.stop();
        let (done, written) = bounded(1);
        self.journal.run(move || {
            let _ = done.send(());
        });
        if written.recv_timeout(LAST_WRITES).is_err() {
            tracing::warn!("{}: does not take the last writes in time", self.state_dir.display());
        }
    }
}
