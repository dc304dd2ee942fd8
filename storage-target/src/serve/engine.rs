//! The engine of one worker of `avio-stord`: its rings, its jobs, its end of the kernel's queues.
//!
//! What a request means is in `blk` and `scsi`, the steps on the medium in `medium`, task management in `task`. This file
//! takes commands, polls rings, and publishes answers once a turn.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_host::inject;
use avio_host::wait::{Sources, Token, wake_cost};
use avio_host::worker::{self, Polled};
use avio_proto::mem::GuestPieces;
use avio_proto::ring::{ChainArena, HeldId, RingError};
use avio_proto::scsi::sense::MISCOMPARE;

use super::at_once::Moment;
use super::job::{Job, JobId, Jobs, Stage, Waiting};
use super::medium::Ending;
use super::message::{Action, Command, Event, Events, QueueSpec, Role, Scope};
use super::queue::Queue;
use crate::adapter::{AdapterId, AdapterKind, AdapterView};
use crate::backing::{Completion, Io, Pin, Pinned, Unpinned};
use crate::lun::{Class, LunId};

/// Lists of pieces that are kept for the next request: more are only out together under a deep load.
const SPARE_PIECES: usize = 1024;
/// Completions taken up at once.
const COMPLETIONS_MAX: usize = 256;

/// Everything that serving a request touches.
pub(super) struct Serving {
    /// Number of this worker: its cell in every LUN's numbers.
    pub worker: usize,
    /// How many workers there are.
    pub workers: usize,
    pub events: Events,
    pub io: Io,
    pub jobs: Jobs,
    /// By the index of their tokens.
    queues: Vec<Option<Queue>>,
    /// Rings that have no source any more, being drained or broken, and whose index another ring has by now.
    displaced: Vec<Queue>,
    /// Rings with answers to publish.
    staged: Vec<Token>,
    pub adapters: BTreeMap<AdapterId, Arc<AdapterView>>,
    /// Jobs that wait for a fence to go.
    pub fenced: Vec<JobId>,
    /// Jobs that wait for their limit, with the time when they may go.
    pub delayed: Vec<(u64, JobId)>,
    /// Who waits for jobs to end.
    pub waiting: Vec<Waiting>,
    pub look_at_waiting: bool,
    pub tickets: u64,
    pub spare_pieces: Vec<GuestPieces>,
    /// Time of this turn, ns since the daemon started: limits are shared by all workers.
    pub now_ns: u64,
    start: Instant,
}

/// The engine of one worker.
pub struct Engine {
    serving: Serving,
    arena: ChainArena,
    ids: Vec<HeldId>,
    completions: Vec<Completion>,
    /// What it costs to be woken.
    wake_cost: Duration,
}

impl Engine {
    /// The engine of worker number `worker` of `workers`, which does its I/O through `io`. `start` is the same for all.
    #[must_use]
    pub fn new(worker: usize, workers: usize, events: Events, io: Io, start: Instant) -> Self {
        Self {
            serving: Serving {
                worker,
                workers,
                events,
                io,
                jobs: Jobs::default(),
                queues: Vec::new(),
                displaced: Vec::new(),
                staged: Vec::new(),
                adapters: BTreeMap::new(),
                fenced: Vec::new(),
                delayed: Vec::new(),
                waiting: Vec::new(),
                look_at_waiting: false,
                tickets: 0,
                spare_pieces: Vec::with_capacity(SPARE_PIECES),
                now_ns: 0,
                start,
            },
            arena: ChainArena::new(),
            ids: Vec::with_capacity(avio_proto::ring::CHAINS_MAX),
            completions: Vec::with_capacity(COMPLETIONS_MAX),
            wake_cost: wake_cost(),
        }
    }

    fn add_queue(&mut self, sources: &mut Sources, mut spec: QueueSpec) {
        let (adapter, index) = (spec.adapter, spec.index);
        match sources.add(spec.kick.take()) {
            Ok(token) => {
                let serving = &mut self.serving;
                serving.jobs.reserve(usize::from(spec.size));
                let view = serving.adapters.get(&adapter).cloned();
                let pin = spec.pin.then(|| serving.pin(&spec));
                if serving.queues.len() <= token.index() {
                    serving.queues.resize_with(token.index() + 1, || None);
                    serving.staged.reserve(token.index() + 1);
                }
                let queue = Queue::new(spec, token, view, pin);
                // The index of a ring that is being drained is free, because it has no source any more; the ring is still here.
                serving.displaced.extend(serving.queues[token.index()].replace(queue));
                self.recover(token);
            }
            Err(error) => {
                let reason = error.to_string();
                self.serving.events.send(Event::NotStarted { adapter, index, reason });
            }
        }
    }

    /// Does again what a predecessor had begun.
    fn recover(&mut self, token: Token) {
        let Some(queue) = self.serving.queue(token) else { return };
        let recovered = queue.recover(&mut self.arena, &mut self.ids);
        queue.recovering = true;
        self.serve(token);
        if let Some(queue) = self.serving.queue(token) {
            queue.recovering = false;
        }
        if let Err(error) = recovered {
            self.serving.broken(token, Some(error));
        }
    }

    /// Takes a ring's source away; what was taken from it goes on.
    fn remove_queue(&mut self, sources: &mut Sources, adapter: AdapterId, index: u16) {
        let serving = &mut self.serving;
        let found = serving
            .all_queues()
            .find(|queue| queue.adapter == adapter && queue.index == index && !queue.stopping);
        let Some(queue) = found else {
            return serving.events.send(Event::QueueStopped { adapter, index, base: None });
        };
        queue.stopping = true;
        sources.remove(queue.token);
        // A limit must not hold up the front-end.
        serving.retry_delayed(true);
    }

    /// Reads what a ring brings.
    fn take(&mut self, token: Token, budget: usize) -> Result<usize, RingError> {
        let moment = self.serving.moment();
        let Some(queue) = self.serving.queue(token) else { return Ok(0) };
        let first = !queue.staged;
        let count = queue.take(&mut self.arena, budget, &mut self.ids, moment)?;
        if first && queue.staged {
            self.serving.staged.push(token);
        }
        inject::point("storage-taken");
        if !self.ids.is_empty() {
            self.serve(token);
        }
        Ok(count)
    }

    /// Serves the requests in `ids`.
    fn serve(&mut self, token: Token) {
        let Some(role) = self.serving.queue(token).map(|queue| queue.role) else { return };
        for i in 0..self.ids.len() {
            let id = self.ids[i];
            match role {
                Role::BlkRequest => self.serving.blk_request(token, id),
                Role::ScsiRequest => self.serving.scsi_request(token, id),
                Role::ScsiControl => return self.serve_control(token),
                Role::ScsiEvent => {}
            }
        }
    }

    /// Serves requests of a control queue. What the driver made available on its request rings before comes first: task
    /// management means those commands, too, and once it has been answered none that it aborted may be done.
    fn serve_control(&mut self, token: Token) {
        let ids = std::mem::take(&mut self.ids);
        let adapter = self.serving.queue(token).map(|queue| queue.adapter);
        self.take_requests(&Scope { adapter, ..Scope::default() });
        ids.iter().for_each(|&id| self.serving.control_request(token, id));
        // Who asked how many there were still wants to know.
        self.ids = ids;
    }

    /// Takes everything that is available on the request rings that `scope` concerns: at most as much as a ring holds.
    fn take_requests(&mut self, scope: &Scope) {
        for (token, size) in self.serving.request_rings(scope) {
            let mut left = usize::from(size);
            while left > 0 {
                match self.take(token, left) {
                    Ok(0) => break,
                    Ok(count) => left = left.saturating_sub(count),
                    Err(error) => {
                        self.serving.broken(token, Some(error));
                        break;
                    }
                }
            }
        }
    }
}

impl Serving {
    /// A ring that is served, or was and is being drained.
    #[inline]
    pub fn queue(&mut self, token: Token) -> Option<&mut Queue> {
        match self.queues.get_mut(token.index())? {
            Some(queue) if queue.token == token => Some(queue),
            _ => self.displaced.iter_mut().find(|queue| queue.token == token),
        }
    }

    fn all_queues(&mut self) -> impl Iterator<Item = &mut Queue> {
        self.queues.iter_mut().flatten().chain(&mut self.displaced)
    }

    /// The request rings of SCSI adapters that may have commands in `scope`, and their sizes.
    fn request_rings(&self, scope: &Scope) -> Vec<(Token, u16)> {
        let has = |queue: &&Queue| match (scope.adapter, scope.lun) {
            (Some(adapter), _) => queue.adapter == adapter,
            (None, Some(lun)) => queue
                .view
                .as_ref()
                .is_some_and(|view| view.targets.iter().flatten().any(|target| target.lun.id == lun)),
            (None, None) => false,
        };
        self.queues
            .iter()
            .flatten()
            .filter(|queue| queue.role == Role::ScsiRequest && !queue.stopping && !queue.broken)
            .filter(has)
            .map(|queue| (queue.token, queue.size))
            .collect()
    }

    /// The ring of an adapter with this role.
    pub fn queue_of(&mut self, adapter: AdapterId, role: Role) -> Option<&mut Queue> {
        self.queues
            .iter_mut()
            .flatten()
            .find(|queue| queue.adapter == adapter && queue.role == role && !queue.stopping && !queue.broken)
    }

    /// Remembers that a ring has answers to publish.
    pub fn complete(&mut self, token: Token, id: HeldId, written: u32) {
        let Some(queue) = self.queue(token) else { return };
        let first = !queue.staged;
        queue.complete(id, written);
        if first && queue.staged {
            self.staged.push(token);
        }
    }

    /// The answer to a job's request.
    pub fn answer(&mut self, job: &Job, ending: Ending) {
        self.count(job, &ending);
        match self.adapters.get(&job.adapter).map(|view| view.kind) {
            Some(AdapterKind::Blk) => self.blk_answer(job, ending),
            // An adapter goes after its rings, so this is one that is there.
            _ => self.scsi_answer(job, ending),
        }
    }

    /// Counts a request that has ended.
    fn count(&self, job: &Job, ending: &Ending) {
        let cell = job.target.stats.cell(self.worker);
        match ending {
            Ending::Good => cell.good(job.class, job.bytes, self.now_ns.saturating_sub(job.started_ns)),
            Ending::Failed(access, error) => {
                cell.failed(job.target.lun.unit.failed(*access, *error).sense.map_or(0, |sense| sense.key));
            }
            Ending::Miscompare(_) => cell.failed(MISCOMPARE),
            Ending::Reply(_) => cell.good(Class::Other, 0, 0),
            Ending::Aborted(_) => cell.aborted(),
        }
    }

    /// A ring is broken: it is not polled any more, and control is told.
    fn broken(&mut self, token: Token, error: Option<RingError>) {
        let Some(queue) = self.queue(token) else { return };
        queue.broken = true;
        let (adapter, index) = (queue.adapter, queue.index);
        self.events.send(Event::RingBroken { adapter, index, error });
    }

    /// Everything that is left to do before the worker may sleep.
    fn settle(&mut self) {
        if !self.fenced.is_empty() {
            self.retry_fenced();
        }
        if !self.delayed.is_empty() {
            self.retry_delayed(false);
        }
        self.io.flush_submissions();
        inject::point("storage-publish");
        self.publish();
        // Who waits for commands to be gone learns of it when their answers are out, in this worker or another.
        while self.look_at_waiting {
            self.check_waiting();
            self.io.flush_submissions();
            self.publish();
        }
        self.give_queues_back();
    }

    /// Publishes all answers.
    fn publish(&mut self) {
        while let Some(token) = self.staged.pop() {
            let Some(queue) = self.queue(token) else { continue };
            let told = queue.publish();
            let adapter = queue.adapter;
            if !told {
                self.events.send(Event::Held(adapter));
            }
        }
    }

    /// A guest that gets answers has requests next, as a rule: rings with answers to publish are polled again, and need no kick.
    fn rouse(&mut self, sources: &mut Sources) {
        for i in 0..self.staged.len() {
            let token = self.staged[i];
            if sources.activate(token)
                && let Some(queue) = self.queue(token)
            {
                // Before the answers are out: who sees them must not kick any more.
                queue.ring.disable_notifications();
                queue.roused = true;
            }
        }
    }

    /// Registers the memory of a ring with the kernel.
    fn pin(&mut self, spec: &QueueSpec) -> Pin {
        let Pinned { pin, regions, bytes, error } = self.io.pin(spec.ring.memory());
        if regions > 0 || error.is_some() {
            let (adapter, worker, error) = (spec.adapter, self.worker, error.map(|e| e.to_string()));
            self.events.send(Event::Pinned { adapter, worker, regions, bytes, error });
        }
        pin
    }

    /// Returns rings that control wants back and that nothing is out of.
    fn give_queues_back(&mut self) {
        for place in 0..self.queues.len() {
            let is_over = |queue: &mut Queue| queue.stopping && queue.is_quiet();
            if let Some(queue) = self.queues[place].take_if(is_over) {
                self.give_queue_back(queue);
            }
        }
        while let Some(place) = self.displaced.iter().position(|queue| queue.stopping && queue.is_quiet()) {
            let queue = self.displaced.swap_remove(place);
            self.give_queue_back(queue);
        }
    }

    fn give_queue_back(&mut self, queue: Queue) {
        let (adapter, worker) = (queue.adapter, self.worker);
        if let Some(pin) = queue.pin {
            let Unpinned { regions, used } = self.io.unpin(pin);
            if regions > 0 {
                self.events.send(Event::Unpinned { adapter, worker, regions, used });
            }
        }
        self.jobs.release(usize::from(queue.size));
        let base = Some(queue.ring.base());
        self.events.send(Event::QueueStopped { adapter, index: queue.index, base });
    }

    fn set_adapter(&mut self, view: &Arc<AdapterView>) {
        self.adapters.insert(view.id, Arc::clone(view));
        for queue in self.all_queues().filter(|queue| queue.adapter == view.id) {
            queue.view = Some(Arc::clone(view));
        }
    }

    fn journalled(&mut self, lun: LunId, version: u64, saved: bool) {
        let done: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.target.lun.id == lun)
            .filter(|(_, job)| matches!(job.stage, Stage::Journal { version: of, .. } if of <= version))
            .map(|(id, _)| id)
            .collect();
        for id in done {
            let Some(job) = self.jobs.get(id) else { continue };
            let unit = Arc::clone(&job.target.lun);
            if let Stage::Journal { durable, reply, .. } = &mut job.stage {
                *durable = true;
                if !saved {
                    **reply = unit.unit.not_saved();
                }
                self.end_journalled(id);
            }
        }
    }

    /// The commands of one initiator are gone that the PREEMPT AND ABORT `id` has ended.
    pub(super) fn preempted(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(id) else { return };
        if let Stage::Journal { aborting, .. } = &mut job.stage {
            *aborting = aborting.saturating_sub(1);
            self.end_journalled(id);
        }
    }

    /// Answers a command whose state is durable, unless it waits for others to end.
    fn end_journalled(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(id) else { return };
        if !matches!(job.stage, Stage::Journal { durable: true, aborting: 0, .. }) {
            return;
        }
        if let Stage::Journal { reply, .. } = std::mem::replace(&mut job.stage, Stage::Begun) {
            self.end(id, Ending::Reply(reply));
        }
    }

    pub fn moment(&self) -> Moment {
        Moment { worker: self.worker, now_ns: self.now_ns }
    }

    fn read_clock(&mut self) {
        self.set_now(Instant::now());
    }

    fn set_now(&mut self, now: Instant) {
        self.now_ns = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        self.io.set_now(now);
    }
}

impl worker::Engine for Engine {
    type Command = Command;

    fn command(&mut self, sources: &mut Sources, command: Command) {
        self.serving.read_clock();
        match command {
            Command::SetAdapter(view) => {
                self.serving.set_adapter(&view);
                self.serving.io.release_files();
            }
            Command::RemoveAdapter(id) => {
                self.serving.adapters.remove(&id);
                self.serving.io.release_files();
            }
            Command::ReleaseFiles => self.serving.io.release_files(),
            Command::AddQueue(spec) => self.add_queue(sources, *spec),
            Command::RemoveQueue { adapter, index } => self.remove_queue(sources, adapter, index),
            Command::Quiesce { ticket, scope, action } => {
                // Task management of an adapter that has its control queue elsewhere: see `serve_control`.
                if action != Action::Wait {
                    self.take_requests(&scope);
                }
                self.serving.quiesce(ticket, scope, action);
            }
            Command::Quiesced { ticket, matched } => self.serving.others_quiesced(ticket, matched),
            Command::Journalled { lun, version, saved } => {
                // Outside a batch: who panics here is a process that dies between journal and answer.
                inject::point("storage-journalled");
                self.serving.journalled(lun, version, saved);
            }
            Command::FenceLowered(_) => self.serving.retry_fenced(),
            Command::Notify { adapter, notice } => {
                self.serving.notify_guest(&mut self.arena, adapter, notice)
            }
        }
        self.serving.settle();
    }

    fn poll_kernel(&mut self, sources: &mut Sources) -> usize {
        let serving = &mut self.serving;
        if serving.io.in_flight() == 0 && serving.delayed.is_empty() {
            return 0;
        }
        serving.io.reap(&mut self.completions);
        let count = self.completions.len();
        serving.set_now(serving.io.looked());
        for completion in self.completions.drain(..) {
            serving.completed(completion);
        }
        serving.rouse(sources);
        if count > 0 || !serving.delayed.is_empty() {
            serving.settle();
        }
        count
    }

    fn turn_in_vain(&mut self) {
        // Behind a worker that spins they would wait for the end of its time slice, milliseconds.
        if self.serving.io.may_need_core() {
            std::thread::yield_now();
        }
    }

    fn wait(&mut self, sources: &mut Sources, timeout: Option<Duration>) -> usize {
        let serving = &mut self.serving;
        let due = serving.delayed.iter().map(|(until_ns, _)| *until_ns).min();
        let timeout = due
            .map(|due| {
                serving.read_clock();
                Duration::from_nanos(due.saturating_sub(serving.now_ns))
            })
            .into_iter()
            .chain(timeout)
            .min();
        if serving.io.in_flight() == 0 {
            return sources.wait(timeout);
        }
        let woken = serving.io.wait(sources.as_fd(), timeout);
        if woken.kicked { sources.wait(Some(Duration::ZERO)) } else { usize::from(woken.completed) }
    }

    fn poll(&mut self, token: Token, budget: usize) -> Polled {
        let Some(queue) = self.serving.queue(token) else { return Polled::Idle };
        if queue.broken {
            return Polled::Broken;
        }
        if !queue.ring.has_work() {
            let waits = queue.held.count() > 0 && self.serving.io.is_long_wait(self.wake_cost);
            return if waits { Polled::Waiting } else { Polled::Idle };
        }
        if queue.role == Role::ScsiEvent {
            // Buffers for events stay where they are until there is an event.
            let told = queue.events_missed && self.serving.tell_missed(&mut self.arena, token);
            return if told { Polled::Worked { items: 1, more: false } } else { Polled::Idle };
        }
        self.serving.read_clock();
        let budget = self.serving.io.batch_max(budget);
        match self.take(token, budget) {
            Ok(0) => Polled::Idle,
            Ok(items) => Polled::Worked { items, more: items >= budget },
            Err(error) => {
                self.serving.broken(token, Some(error));
                Polled::Broken
            }
        }
    }

    fn arm(&mut self, token: Token) -> bool {
        match self.serving.queue(token) {
            // Nobody needs to be told of event buffers, unless one was missing.
            Some(queue) if queue.role == Role::ScsiEvent && !queue.events_missed => false,
            Some(queue) => queue.ring.enable_notifications(),
            None => false,
        }
    }

    fn disarm(&mut self, token: Token) {
        if let Some(queue) = self.serving.queue(token) {
            if !std::mem::take(&mut queue.roused) {
                queue.stats.kicked();
            }
            queue.ring.disable_notifications();
        }
    }

    fn turn_end(&mut self, _: &mut Sources) {
        self.serving.settle();
    }

    fn source_panicked(&mut self, token: Token) {
        self.serving.broken(token, None);
    }
}
