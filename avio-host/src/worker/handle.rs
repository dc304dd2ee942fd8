//! The control thread's end of the workers: start, command, barrier, statistics, stop.
//!
//! Called by control (and by helpers that hold a [`Worker`] by reference). Nothing here waits for a worker except
//! [`Worker::stop`], which lasts as long as the batch in progress.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use avio_proto::config::PollMode;
use crossbeam_channel::{Receiver, Sender};

use crate::stats::WorkerStats;
use crate::wait::{EventFd, Handoff, IdlePolicy, Sources};
use crate::worker::turn::Turns;
use crate::worker::{ControlWaker, Engine};

/// Items per source and turn unless the daemon says otherwise: enough to amortise the turn, little enough that 16 busy
/// sources take turns within about 60 us of 64-byte frames (DESIGN section 3).
const BUDGET_ITEMS: usize = 64;

/// How a worker is to run.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Thread name, at most 15 bytes of it are shown by the kernel.
    pub name: String,
    /// Core to be pinned to; `None`: not pinned.
    pub core: Option<usize>,
    /// When to poll and when to sleep.
    pub poll: PollMode,
    /// Longest spin on an empty source before it is armed, us.
    pub spin_us: u32,
    /// Items per source and turn.
    pub budget_items: usize,
    /// Period of [`Engine::tick`].
    pub tick: Option<Duration>,
}

impl Default for WorkerOptions {
    /// Not pinned, adaptive, 50 us of spinning, batches of 64, no tick.
    fn default() -> Self {
        Self {
            name: "avio-worker".into(),
            core: None,
            poll: PollMode::Adaptive,
            spin_us: 50,
            budget_items: BUDGET_ITEMS,
            tick: None,
        }
    }
}

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The configured core is none that this process may run on.
    #[error("workers.cores: core {core} is not available; this process may use {available:?}")]
    NoSuchCore {
        /// What was asked for.
        core: usize,
        /// What there is.
        available: Vec<usize>,
    },
    /// No thread, eventfd or epoll set to be had.
    #[error("cannot start a worker: {0}")]
    Io(#[from] std::io::Error),
}

/// The worker has ended (it was stopped).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker has ended")]
pub struct WorkerGone;

/// What is in the channel.
pub(crate) enum Message<C> {
    /// For the engine.
    Command(C),
    /// End the thread at this quiescent point.
    Stop,
}

/// What both sides hold.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) handoff: Handoff,
    pub(crate) event: EventFd,
    pub(crate) stats: Arc<WorkerStats>,
}

/// A running worker. Dropping it stops the worker as [`stop`](Self::stop) does.
#[derive(Debug)]
pub struct Worker<C: Send + 'static> {
    shared: Arc<Shared>,
    inbox: Sender<Message<C>>,
    thread: Option<JoinHandle<()>>,
}

impl<C: Send + 'static> Worker<C> {
    /// Starts a thread that runs `engine`. `control` is woken whenever the worker has taken up commands.
    ///
    /// When it returns the thread exists and is pinned. The first call of a process also measures the wake-up cost (about a
    /// millisecond).
    pub fn spawn<E>(engine: E, options: WorkerOptions, control: ControlWaker) -> Result<Self, SpawnError>
    where
        E: Engine<Command = C>,
    {
        let core = options.core.map(available_core).transpose()?;
        let shared = Arc::new(Shared {
            handoff: Handoff::new(),
            event: EventFd::new()?,
            stats: Arc::new(WorkerStats::default()),
        });
        let sources = Sources::new(&shared.event, Arc::clone(&shared.stats))?;
        let policy = IdlePolicy::new(options.poll, options.spin_us);
        let (sender, receiver): (_, Receiver<Message<C>>) = crossbeam_channel::unbounded();
        let name = options.name.clone();
        let turns = Turns::new(engine, sources, policy, &options, receiver, Arc::clone(&shared), control);
        let (pinned_tx, pinned_rx) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            let pinned = core.is_none_or(core_affinity::set_for_current);
            let _ = pinned_tx.send(pinned);
            turns.run_or_abort(&name);
        })?;
        if !pinned_rx.recv().unwrap_or(false) {
            tracing::warn!(
                "worker {}: the kernel refused to pin it to core {:?}",
                options.name,
                options.core
            );
        }
        Ok(Self { shared, inbox: sender, thread: Some(thread) })
    }

    /// Sends a command; it is taken up at the worker's next quiescent point, after those sent before. Wakes a sleeping worker.
    /// Returns the generation by which it has been taken up (see [`has_passed`](Self::has_passed)).
    pub fn send(&self, command: C) -> Result<u64, WorkerGone> {
        self.inbox.send(Message::Command(command)).map_err(|_| WorkerGone)?;
        Ok(self.announce())
    }

    /// Asks for a quiescent point; returns the generation that the worker passes then.
    pub fn announce(&self) -> u64 {
        let announced = self.shared.handoff.announce();
        if announced.must_wake {
            self.shared.event.signal();
        }
        announced.generation
    }

    /// Whether the worker has passed `generation`: it has been at a quiescent point since, and every command sent before has
    /// been taken up. A worker that has ended has passed everything.
    pub fn has_passed(&self, generation: u64) -> bool {
        self.shared.handoff.has_passed(generation)
    }

    /// The worker's counters.
    pub fn stats(&self) -> &Arc<WorkerStats> {
        &self.shared.stats
    }

    /// Lets the worker take up what was sent, ends its thread and waits for it: at most one turn. The engine is dropped on the
    /// worker's thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.inbox.send(Message::Stop);
            self.announce();
            // A panic outside a batch does not return here: it has ended the process.
            let _ = thread.join();
        }
    }
}

impl<C: Send + 'static> Drop for Worker<C> {
    fn drop(&mut self) {
        self.end();
    }
}

/// The `core_affinity` id of `core`, if this process may run there.
fn available_core(core: usize) -> Result<core_affinity::CoreId, SpawnError> {
    let available = core_affinity::get_core_ids().unwrap_or_default();
    available
        .iter()
        .find(|id| id.id == core)
        .copied()
        .ok_or_else(|| SpawnError::NoSuchCore { core, available: available.iter().map(|id| id.id).collect() })
}

/// All workers of a daemon.
#[derive(Debug)]
pub struct Workers<C: Send + 'static>(Vec<Worker<C>>);

impl<C: Send + 'static> Workers<C> {
    /// The set of `workers`.
    pub fn new(workers: Vec<Worker<C>>) -> Self {
        Self(workers)
    }

    /// Asks every worker for a quiescent point, sleeping ones included. Publish the change (send the table without the ring)
    /// *before*; take the ring or memory away once [`Barrier::is_done`]. Control is woken as workers pass.
    pub fn barrier(&self) -> Barrier {
        Barrier(self.0.iter().map(|worker| (Arc::clone(&worker.shared), worker.announce())).collect())
    }

    /// Ends all workers: told first, then waited for.
    pub fn stop(mut self) {
        for worker in &self.0 {
            let _ = worker.inbox.send(Message::Stop);
            worker.announce();
        }
        self.0.iter_mut().for_each(Worker::end);
    }
}

impl<C: Send + 'static> std::ops::Deref for Workers<C> {
    type Target = [Worker<C>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// A point in time that every worker passes. Looked at by control when it was woken; nobody waits on it.
#[derive(Debug)]
pub struct Barrier(Vec<(Arc<Shared>, u64)>);

impl Barrier {
    /// Whether every worker has been at a quiescent point since the barrier was made, with all commands sent before
    /// taken up. Once true it stays true.
    pub fn is_done(&self) -> bool {
        self.0.iter().all(|(shared, generation)| shared.handoff.has_passed(*generation))
    }
}
