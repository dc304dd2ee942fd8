//! Everything that the control thread of `avio-stord` looks after: sessions, adapters, logical units, workers.
//!
//! Owns them and moves between them: a session's rings go to workers, workers' events come back, a changed definition
//! becomes new views. It never blocks: what may goes to helper threads and comes back through [`Storage::on_helper`].

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_host::blocking::{Helpers, Mailbox};
use avio_host::ratelimit::RateLimit;
use avio_host::session::{EndpointId, Event as SessionEvent, RingStart, Sessions};
use avio_host::wait::tell;
use avio_host::worker::Workers;
use avio_proto::config::{Config, WorkersConfig};
use avio_proto::ring::{DeviceRing, Inflight};
use avio_proto::virtio::blk::F_FLUSH;
use avio_proto::virtio::scsi::EVENT_QUEUE;
use crossbeam_channel::{Receiver, bounded};

use super::adapter::{Adapter, Ring};
use super::device;
use super::journal;
use super::lun::{self, LunKey, Opened, Wanted};
use super::served::Served;
use crate::adapter::AdapterId;
use crate::backing::Backing;
use crate::lun::LunId;
use crate::scsi::{Effect, NexusName, SavedState};
use crate::serve::{Action, Command, Event, Notice, QueueSpec, Relay, Role, Scope, Ticket};

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

/// What is waited for before a backing is let go.
pub(super) enum Drained {
    /// A LUN was removed: its guest may be told.
    Removed { adapter: AdapterId, target: u8 },
    /// A LUN's backing is to be replaced by what was opened.
    Replaced { adapter: AdapterId, target: u8, opened: Box<Opened> },
    /// A LUN that parted from a shared store may have its new backing.
    Parted { adapter: AdapterId, target: u8, lun: LunId, backing: Option<Arc<Backing>> },
    /// A drive's medium is out.
    Ejected,
}

/// A logical unit's journal.
pub(super) struct Journal {
    pub path: PathBuf,
}

/// See the module.
pub(super) struct Storage {
    pub run_dir: PathBuf,
    pub state_dir: PathBuf,
    /// Which start of the host this is.
    pub boot: String,
    pub config: Config,
    pub started_with: WorkersConfig,
    pub sessions: Sessions,
    pub workers: Workers<Command>,
    pub events: Receiver<Event>,
    pub relay: Relay,
    pub helpers: Helpers,
    /// One thread: what is written later must not be overtaken.
    pub journal: Helpers,
    pub mailbox: Mailbox<Done>,
    pub adapters: BTreeMap<AdapterId, Adapter>,
    /// Adapters that have no definition any more and whose rings are not all back.
    pub leaving: BTreeMap<AdapterId, Adapter>,
    pub journals: BTreeMap<LunId, Journal>,
    pub draining: Vec<(Ticket, Drained)>,
    /// Configuration that waits for its LUNs to be opened.
    pub pending: Option<super::reconcile::Pending>,
    /// During a reconciliation: states that could not be made durable, so that the change holds only while this process
    /// lives.
    pub unsaved: Option<Vec<String>>,
    /// What became of operators' changes of a LUN, for who asked.
    pub settled: VecDeque<(LunKey, Result<(), String>)>,
    /// Logical units whose last state could not be written, and why.
    not_saved: BTreeMap<LunId, String>,
    next_adapter: u32,
    next_lun: u32,
    next_worker: usize,
    pub looking: bool,
    pub next_look: Instant,
    pub looking_for_absent: bool,
    pub next_look_for_absent: Instant,
    /// What was written down last of what is served.
    pub noted: Option<Served>,
    /// It is being written.
    pub noting: bool,
    /// Something may have changed since.
    pub note_again: bool,
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
    pub fn drain(&mut self, lun: LunId, adapter: Option<AdapterId>, then: Drained) {
        let scope = Scope { lun: Some(lun), adapter, ..Scope::default() };
        let ticket = self.relay.ask(&self.workers, scope, Action::Wait);
        self.draining.push((ticket, then));
    }

    /// Writes a logical unit's state on a helper thread.
    pub fn save(&self, lun: LunId, version: u64, state: SavedState, worker: Option<usize>) {
        let Some(journal) = self.journals.get(&lun) else { return };
        self.save_at(journal.path.clone(), lun, version, state, worker);
    }

    /// As [`Storage::save`], to where the state will be looked for.
    pub fn save_at(
        &self,
        path: PathBuf,
        lun: LunId,
        version: u64,
        mut state: SavedState,
        worker: Option<usize>,
    ) {
        state.boot.clone_from(&self.boot);
        let reply = self.mailbox.reply();
        self.journal.run(move || {
            let result = journal::write(&path, &state).map_err(|e| format!("{}: {e}", path.display()));
            reply.send(Done::Written { lun, version, worker, result });
        });
    }

    /// Ends a reconciliation once what it had written down is durable: whoever is told that a backing is replaced may rely
    /// on it, even if the daemon dies in the next moment.
    fn after_journal(&self, outcome: Result<Vec<String>, Vec<String>>) {
        let reply = self.mailbox.reply();
        // The journal's one thread works in order, so everything before this has been written.
        self.journal.run(move || reply.send(Done::Durable(outcome)));
    }

    /// Forgets a logical unit that no adapter has any more, and what was written down of it.
    pub fn forget(&mut self, lun: LunId) {
        let has = |adapter: &Adapter| adapter.luns.values().any(|entry| entry.lun.id == lun);
        if self.adapters.values().any(has) {
            return;
        }
        let Some(Journal { path }) = self.journals.remove(&lun) else { return };
        self.journal.run(move || {
            if let Err(error) = journal::remove(&path) {
                tracing::error!("{}: {error}", path.display());
            }
        });
    }

    /// Opens a medium for a drive on a helper thread; `asked`: an operator waits for it.
    pub fn open_medium(&self, wanted: Wanted, asked: bool) {
        let (state_dir, boot) = (self.state_dir.clone(), self.boot.clone());
        let reply = self.mailbox.reply();
        self.helpers.run(move || {
            let opened = lun::open(&wanted, &state_dir, &boot).map_err(|refused| refused.line);
            reply.send(Done::Inserted(wanted.key, Box::new(opened), asked));
        });
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

    fn by_endpoint(&mut self, endpoint: EndpointId) -> Option<&mut Adapter> {
        self.adapters
            .values_mut()
            .chain(self.leaving.values_mut())
            .find(|adapter| adapter.endpoint == Some(endpoint))
    }

    fn on_session_event(&mut self, endpoint: EndpointId, event: SessionEvent) {
        match event {
            SessionEvent::Connected => {
                let guest = self.by_endpoint(endpoint).map(|adapter| adapter.nexus.guest.clone());
                let pin_memory =
                    guest.and_then(|guest| self.config.guests.get(&guest)).is_some_and(|g| g.pin_memory);
                if let Some(adapter) = self.by_endpoint(endpoint) {
                    (adapter.pin_memory, adapter.pin_failed) = (pin_memory, false);
                    adapter.connected = true;
                    adapter.seen = true;
                    tracing::info!("{}: front-end connected", adapter.name());
                    let id = adapter.id;
                    self.arrived(id);
                }
            }
            SessionEvent::Disconnected => {
                if let Some(adapter) = self.by_endpoint(endpoint) {
                    adapter.connected = false;
                    adapter.front_end = None;
                    adapter.rings.clear();
                    tracing::info!("{}: front-end gone", adapter.name());
                    let id = adapter.id;
                    if self.leaving.remove(&id).is_some() {
                        self.broadcast(|| Command::RemoveAdapter(id));
                    }
                    self.note();
                }
            }
            SessionEvent::RingStart(start) => self.on_ring_start(endpoint, *start),
            SessionEvent::RingStop { index } => self.on_ring_stop(endpoint, index),
            _ => {}
        }
    }

    fn on_ring_start(&mut self, endpoint: EndpointId, start: RingStart) {
        let worker = self.next_worker % self.workers.len().max(1);
        let Some(adapter) = self.by_endpoint(endpoint) else { return };
        let (id, name, index) = (adapter.id, adapter.name(), start.index);
        let role = device::role(adapter.storage.adaptor, index);
        let made = DeviceRing::new(Arc::clone(&start.memory), &start.setup).map_err(|e| e.to_string());
        let inflight = start.inflight.as_ref().map(|region| {
            Inflight::new(&region.mapping, region.offset, region.len, &start.setup).map_err(|e| e.to_string())
        });
        let stats = adapter.queues.get(usize::from(index)).cloned();
        let (ring, inflight, stats) = match (made, inflight.transpose(), stats) {
            (Ok(ring), Ok(inflight), Some(stats)) => (ring, inflight, stats),
            (Err(error), ..) | (_, Err(error), _) => {
                // Nothing runs; the front-end's stop is answered at once, because no ring is listed.
                return self.log(&name, &format!("ring {index} not started: {error}"));
            }
            (_, _, None) => return self.log(&name, &format!("ring {index}: the adapter has no such ring")),
        };
        adapter.rings.insert(index, Ring { worker, err: start.err });
        let events_missed = role == Role::ScsiEvent && std::mem::take(&mut adapter.events_missed);
        let pin = adapter.pin_memory && matches!(role, Role::BlkRequest | Role::ScsiRequest);
        self.next_worker += 1;
        let spec = QueueSpec {
            adapter: id,
            index,
            role,
            ring,
            size: start.setup.size,
            kick: start.kick,
            call: start.call,
            inflight,
            // Without flushes there is no volatile cache (§5.2.6.2).
            durable: role == Role::BlkRequest && start.setup.features & F_FLUSH == 0,
            events_missed,
            pin,
            stats,
        };
        let _ = self.workers[worker].send(Command::AddQueue(Box::new(spec)));
    }

    fn on_ring_stop(&mut self, endpoint: EndpointId, index: u16) {
        let Some(adapter) = self.by_endpoint(endpoint) else { return };
        let id = adapter.id;
        match adapter.rings.get(&index) {
            Some(ring) => {
                let worker = ring.worker;
                let _ = self.workers[worker].send(Command::RemoveQueue { adapter: id, index });
            }
            None => self.sessions.ring_stopped(endpoint, index, 0),
        }
    }

    fn on_worker_event(&mut self, event: Event) {
        match event {
            Event::QueueStopped { adapter, index, base } => {
                let adapter = match self.adapters.get_mut(&adapter) {
                    Some(adapter) => adapter,
                    None => match self.leaving.get_mut(&adapter) {
                        Some(adapter) => adapter,
                        None => return,
                    },
                };
                adapter.rings.remove(&index);
                if let Some(endpoint) = adapter.endpoint {
                    self.sessions.ring_stopped(endpoint, index, base.unwrap_or(0));
                }
            }
            Event::RingBroken { adapter, index, error } => {
                let Some(adapter) = self.adapters.get(&adapter) else { return };
                if let Some(err) = adapter.rings.get(&index).and_then(|ring| ring.err.as_ref()) {
                    // Said once; a VMM that holds even this has no ring to lose.
                    let _ = tell(err);
                }
                let why = error.map_or("a fault of ours".to_owned(), |error| error.to_string());
                let name = adapter.name();
                self.log(&name, &format!("ring {index} is broken and stopped: {why}"));
            }
            Event::NotStarted { adapter, index, reason } => {
                let Some(name) = self.adapters.get(&adapter).map(Adapter::name) else { return };
                self.log(&name, &format!("ring {index} not started: {reason}"));
            }
            Event::Pinned { adapter, worker, regions, bytes, error } => {
                self.pinned(adapter, worker, (regions, bytes), error);
            }
            Event::Unpinned { adapter, worker, regions, used } => {
                let line = format!(
                    "fixed buffers: {} let go by worker {worker}; {used} operations used them",
                    counted(regions)
                );
                self.tell_of_pins(adapter, &line);
            }
            Event::Held(adapter) => {
                if let Some(endpoint) = self.adapters.get(&adapter).and_then(|adapter| adapter.endpoint) {
                    self.sessions.hold(endpoint);
                }
            }
            Event::Save { lun, version, state, worker } => self.save(lun, version, *state, Some(worker)),
            Event::Effect { adapter, target, effect, .. } => self.on_effect(adapter, target, &effect),
            Event::Quiesced { .. } | Event::Quiesce { .. } | Event::FenceLowered { .. } => {}
        }
    }

    /// What a worker has done with the memory of a guest that keeps it in place.
    fn pinned(
        &mut self,
        adapter: AdapterId,
        worker: usize,
        (regions, bytes): (usize, u64),
        error: Option<String>,
    ) {
        if regions > 0 {
            let line =
                format!("fixed buffers: {}, {} MiB, on worker {worker}", counted(regions), bytes >> 20);
            self.tell_of_pins(adapter, &line);
        }
        let Some(error) = error else { return };
        let Some(adapter) = self.adapters.get_mut(&adapter) else { return };
        // The rings of a guest all fare the same.
        if std::mem::replace(&mut adapter.pin_failed, true) {
            return;
        }
        let name = format!("{}: pin_memory", adapter.name());
        self.log(&name, &format!("plain buffers serve where memory cannot be registered: {error}"));
    }

    /// As [`Storage::log`], of something that is well.
    fn tell_of_pins(&mut self, adapter: AdapterId, line: &str) {
        let found = self.adapters.get(&adapter).or_else(|| self.leaving.get(&adapter));
        let Some(name) = found.map(Adapter::name) else { return };
        if let Some(suppressed) = self.limit.check(format!("{name} fixed buffers"), Instant::now()) {
            let more =
                if suppressed > 0 { format!(" ({suppressed} lines suppressed)") } else { String::new() };
            tracing::info!("{name}: {line}{more}");
        }
    }

    fn on_effect(&mut self, adapter: AdapterId, target: u8, effect: &Effect) {
        match effect {
            Effect::Eject => self.eject(adapter, target, true),
            Effect::Load => self.load(adapter, target),
            Effect::ClearStatistics { adapter: all } => {
                let Some(adapter) = self.adapters.get(&adapter) else { return };
                let chosen = adapter.luns.iter().filter(|(number, _)| *all || **number == target);
                chosen.for_each(|(_, entry)| entry.clear());
                // A virtio-blk disk has the rings to itself.
                if *all || adapter.is_blk() {
                    adapter.queues.iter().for_each(|ring| ring.clear());
                }
            }
            Effect::Approved => {}
        }
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

    /// Remembers whether a logical unit's last state is on disk.
    fn written(&mut self, lun: LunId, result: &Result<(), String>) {
        let Err(error) = result else {
            self.not_saved.remove(&lun);
            return;
        };
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.push(format!("state of a LUN is not saved: {error}"));
        }
        // A guest can have it said as often as it likes.
        self.log("state of a LUN is not saved", error);
        self.not_saved.insert(lun, error.clone());
    }

    /// Tells who waits what became of an operator's change of a LUN, once what it had written down is durable.
    pub fn settle(&self, key: LunKey, outcome: Result<(), String>) {
        let reply = self.mailbox.reply();
        self.journal.run(move || reply.send(Done::Settled(key, outcome)));
    }

    fn was_saved(&self, key: &LunKey) -> Result<(), String> {
        let entry = self.find(key).and_then(|id| self.adapters.get(&id)?.luns.get(&key.target));
        match entry.and_then(|entry| self.not_saved.get(&entry.lun.id)) {
            Some(error) => Err(format!(
                "{}: done, but not saved: {error}; the daemon's next start undoes it, unless the state folder can be \
                 written and it is done again",
                key.name()
            )),
            None => Ok(()),
        }
    }

    /// Which LUN that is, by what operators call it.
    pub fn find(&self, key: &LunKey) -> Option<AdapterId> {
        let adapter = self.adapters.values().find(|adapter| adapter.nexus == key.nexus)?;
        adapter.luns.contains_key(&key.target).then_some(adapter.id)
    }

    /// One line about something that a guest can cause, not more than a few a second.
    pub fn log(&mut self, name: &str, line: &str) {
        if let Some(suppressed) = self.limit.check(name.to_owned(), Instant::now()) {
            let more =
                if suppressed > 0 { format!(" ({suppressed} lines suppressed)") } else { String::new() };
            tracing::warn!("{name}: {line}{more}");
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

/// Regions, for a line.
fn counted(regions: usize) -> String {
    if regions == 1 { "1 region".to_owned() } else { format!("{regions} regions") }
}
