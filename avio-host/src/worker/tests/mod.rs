//! Workers with real threads, eventfds and epoll over rings that are counters.
//!
//! Here: the ring, the engine and the waiting that the tests share. `running` tests what a worker does, `timing` what it costs.

mod running;
mod timing;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use avio_proto::config::PollMode;
use crossbeam_channel::Sender;

use crate::inject;
use crate::wait::arm::{Arm, arm};
use crate::wait::{EventFd, Sources, Token};
use crate::worker::{ControlWaker, Engine, Polled, Worker, WorkerOptions};

/// Longer than anything may take on a machine that is busy building; only failures last that long.
const PATIENCE: Duration = Duration::from_secs(10);

/// A ring without entries: how many items the driver has published and the device has taken.
struct FakeRing {
    published: AtomicU64,
    taken: AtomicU64,
    wants_kicks: AtomicBool,
    kick: EventFd,
    /// When the latest item was published, ns since `start`, and how long the device took to take it.
    start: Instant,
    published_ns: AtomicU64,
    latency_ns: AtomicU64,
    /// There is always more.
    endless: bool,
    /// Injection point at the start of each poll, and at each arming.
    step: Option<&'static str>,
    arm_step: Option<&'static str>,
    /// The next poll finds the ring broken.
    broken: AtomicBool,
    /// Iterations that arming is held up before and after notifications are switched on, to widen what a driver can hit.
    arm_pause: AtomicU64,
    polls: AtomicU64,
}

impl FakeRing {
    fn new() -> Self {
        Self {
            published: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            wants_kicks: AtomicBool::new(true),
            kick: EventFd::new().unwrap(),
            start: Instant::now(),
            published_ns: AtomicU64::new(0),
            latency_ns: AtomicU64::new(0),
            endless: false,
            step: None,
            arm_step: None,
            broken: AtomicBool::new(false),
            arm_pause: AtomicU64::new(0),
            polls: AtomicU64::new(0),
        }
    }

    fn endless() -> Self {
        Self { endless: true, ..Self::new() }
    }

    /// The driver's side: one more item, and a kick if the device asked for it. Returns whether it kicked.
    fn publish(&self) -> bool {
        self.published_ns.store(self.start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.published.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        let kicks = self.wants_kicks.load(Ordering::Relaxed);
        if kicks {
            self.kick.signal();
        }
        kicks
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    fn is_drained(&self) -> bool {
        self.taken() == self.published.load(Ordering::Relaxed)
    }
}

/// The device's side while arming.
struct Arming<'r>(&'r FakeRing);

impl Arm for Arming<'_> {
    fn enable(&mut self) {
        let pause = self.0.arm_pause.load(Ordering::Relaxed);
        (0..pause).for_each(|_| std::hint::spin_loop());
        self.0.wants_kicks.store(true, Ordering::Relaxed);
        (0..pause).for_each(|_| std::hint::spin_loop());
    }

    fn has_work(&mut self) -> bool {
        self.0.published.load(Ordering::Acquire) != self.0.taken.load(Ordering::Relaxed)
    }
}

enum Command {
    Add(Arc<FakeRing>, Option<OwnedFd>, Sender<Token>),
    Remove(Token),
    /// CPU time of the worker's thread.
    CpuTime(Sender<Duration>),
    /// What the engine has been told of, and how often.
    Told(Sender<Told>),
    Panic,
}

#[derive(Debug, Clone, Default)]
struct Told {
    panicked: Vec<Token>,
    turn_ends: u64,
    ticks: u64,
    disarmed: u64,
    /// Indices in the order of the first polls since the latest source was added.
    order: Vec<usize>,
}

/// Polls remembered in [`Told::order`].
const ORDER_MAX: usize = 300;

#[derive(Default)]
struct FakeEngine {
    rings: Vec<Option<Arc<FakeRing>>>,
    told: Told,
}

impl FakeEngine {
    fn ring(&self, token: Token) -> &FakeRing {
        self.rings[token.index()].as_deref().expect("polled although removed")
    }
}

impl Engine for FakeEngine {
    type Command = Command;

    fn command(&mut self, sources: &mut Sources, command: Command) {
        match command {
            Command::Add(ring, kick, reply) => {
                let token = sources.add(kick).unwrap();
                self.rings.resize_with(self.rings.len().max(token.index() + 1), || None);
                self.rings[token.index()] = Some(ring);
                self.told.order.clear();
                reply.send(token).unwrap();
            }
            Command::Remove(token) => {
                sources.remove(token);
                self.rings[token.index()] = None;
            }
            Command::CpuTime(reply) => {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                reply.send(time.try_into().unwrap()).unwrap();
            }
            Command::Told(reply) => reply.send(self.told.clone()).unwrap(),
            Command::Panic => panic!("outside a batch"),
        }
    }

    fn poll(&mut self, token: Token, budget: usize) -> Polled {
        if self.told.order.len() < ORDER_MAX {
            self.told.order.push(token.index());
        }
        let ring = self.ring(token);
        ring.polls.fetch_add(1, Ordering::Relaxed);
        if let Some(step) = ring.step {
            inject::point(step);
        }
        if ring.broken.load(Ordering::Relaxed) {
            return Polled::Broken;
        }
        let taken = ring.taken.load(Ordering::Relaxed);
        let there = match ring.endless {
            true => u64::MAX,
            false => ring.published.load(Ordering::Acquire) - taken,
        };
        if there == 0 {
            return Polled::Idle;
        }
        let items = there.min(budget as u64);
        let latency_ns = ring.start.elapsed().as_nanos() as u64 - ring.published_ns.load(Ordering::Relaxed);
        ring.latency_ns.store(latency_ns, Ordering::Relaxed);
        ring.taken.store(taken + items, Ordering::Release);
        Polled::Worked { items: items as usize, more: there > items }
    }

    fn arm(&mut self, token: Token) -> bool {
        let ring = self.ring(token);
        if let Some(step) = ring.arm_step {
            inject::point(step);
        }
        arm(&mut Arming(ring))
    }

    fn disarm(&mut self, token: Token) {
        self.told.disarmed += 1;
        self.ring(token).wants_kicks.store(false, Ordering::Relaxed);
    }

    fn turn_end(&mut self, _sources: &mut Sources) {
        self.told.turn_ends += 1;
    }

    fn tick(&mut self, _now: Instant, _sources: &mut Sources) {
        self.told.ticks += 1;
    }

    fn source_panicked(&mut self, token: Token) {
        self.told.panicked.push(token);
    }
}

fn options(poll: PollMode, spin_us: u32) -> WorkerOptions {
    WorkerOptions { poll, spin_us, ..WorkerOptions::default() }
}

fn worker(options: WorkerOptions) -> Worker<Command> {
    Worker::spawn(FakeEngine::default(), options, ControlWaker::new().unwrap()).unwrap()
}

/// Asks the engine and waits for its answer.
fn ask<T>(worker: &Worker<Command>, question: impl FnOnce(Sender<T>) -> Command) -> T {
    let (reply, answer) = crossbeam_channel::bounded(1);
    worker.send(question(reply)).unwrap();
    answer.recv_timeout(PATIENCE).expect("the worker answers")
}

fn add(worker: &Worker<Command>, ring: &Arc<FakeRing>) -> Token {
    let kick = ring.kick.try_clone().unwrap();
    ask(worker, |reply| Command::Add(Arc::clone(ring), Some(kick), reply))
}

fn add_kickless(worker: &Worker<Command>, ring: &Arc<FakeRing>) -> Token {
    ask(worker, |reply| Command::Add(Arc::clone(ring), None, reply))
}

/// Waits until `done`; fails after [`PATIENCE`].
#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: still not so after {PATIENCE:?}");
        std::thread::yield_now();
    }
}
