//! The worker's thread: turn after turn of commands, polling, looking, sleeping.
//!
//! Started by `handle`. It calls the engine and moves sources between active and armed. It makes no system call per packet:
//! the clock is read, and the epoll set looked at, per amount of work done.

use std::any::Any;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::ratelimit::RateLimit;
use crate::wait::{IdlePolicy, Sources, Token};
use crate::worker::clock::Clock;
use crate::worker::handle::{Message, Shared};
use crate::worker::{ControlWaker, Engine, Polled, WorkerOptions};

/// Polls plus items between two readings of the clock (25 ns): under 1 % of the 128 x 20..60 ns that they take, and still some
/// microseconds' resolution.
const CLOCK_EVERY: usize = 128;
/// Time between two looks at the epoll set (0.3 us of system call) by a worker that is busy: 1 % of it, and what an armed source's
/// first frame waits behind a busy one. With the batch in progress that stays well under the 100 us allowed.
const LOOK_EVERY_NS: u64 = 30_000;
/// First sleep of a worker whose only active sources have no kick fd; doubled while they stay empty.
const KICKLESS_SLEEP_MIN: Duration = Duration::from_micros(50);
/// Longest such sleep: 2,000 wake-ups a second of about 3 us keep the worker under 1 % of a core.
const KICKLESS_SLEEP_MAX: Duration = Duration::from_micros(500);

/// One worker's loop with all it owns.
pub(crate) struct Turns<E: Engine> {
    engine: E,
    sources: Sources,
    policy: IdlePolicy,
    budget_items: usize,
    inbox: Receiver<Message<E::Command>>,
    shared: Arc<Shared>,
    control: ControlWaker,
    /// Announcement taken up last.
    seen: u64,
    /// Where this turn's scan begins, so that no source is always first.
    rotation: usize,
    /// Sources that leave the active list after this scan; room for all is made when they are added.
    leaving: Vec<(Token, Leave)>,
    clock: Clock,
    tick: Option<Duration>,
    next_tick_ns: u64,
    next_look_ns: u64,
    kickless_sleep: Duration,
    panic_lines: RateLimit<()>,
}

/// What a scan over the active sources came to.
struct Scan {
    /// Sources looked at, and what they had.
    polls: usize,
    items: usize,
    /// Some source worked.
    worked: bool,
    /// Every source has been empty for its spin budget.
    all_idle: bool,
}

/// Where a source goes after a scan.
#[derive(Clone, Copy)]
enum Leave {
    /// Empty for long enough: to be armed.
    Arm,
    /// Broken.
    Park,
}

impl<E: Engine> Turns<E> {
    pub(crate) fn new(
        engine: E,
        sources: Sources,
        policy: IdlePolicy,
        options: &WorkerOptions,
        inbox: Receiver<Message<E::Command>>,
        shared: Arc<Shared>,
        control: ControlWaker,
    ) -> Self {
        Self {
            engine,
            sources,
            policy,
            budget_items: options.budget_items.max(1),
            inbox,
            shared,
            control,
            seen: 0,
            rotation: 0,
            leaving: Vec::new(),
            clock: Clock::new(),
            tick: options.tick,
            next_tick_ns: 0,
            next_look_ns: 0,
            kickless_sleep: KICKLESS_SLEEP_MIN,
            panic_lines: RateLimit::default(),
        }
    }

    /// Runs until told to stop. A panic outside a batch leaves the engine in a state nobody knows: the process ends, and the
    /// service manager's restart applies (DESIGN section 6).
    pub(crate) fn run_or_abort(mut self, name: &str) {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            self.run();
            // The engine goes before the hand-off says that nobody needs to wait: control may unmap right after.
            let Self { engine, sources, shared, control, .. } = self;
            drop((engine, sources));
            shared.handoff.pass_for_ever();
            control.wake();
        }));
        if let Err(cause) = ended {
            tracing::error!(
                "worker {name} panicked outside a batch, ending the process: {}",
                panic_text(&*cause)
            );
            std::process::abort();
        }
    }

    fn run(&mut self) {
        self.engine.started(&mut self.sources);
        loop {
            // The quiescent point: no poll is running and nothing of a former table is held.
            if let Some(announced) = self.shared.handoff.newer_than(self.seen)
                && self.take_up(announced).is_break()
            {
                return;
            }
            self.disarm_roused();
            let reaped = self.engine.poll_kernel(&mut self.sources);
            let scan = self.scan();
            let worked = scan.worked || reaped > 0;
            self.clock.turn(scan.polls, scan.items + reaped, worked);
            if worked {
                self.engine.turn_end(&mut self.sources);
                self.kickless_sleep = KICKLESS_SLEEP_MIN;
            } else {
                self.engine.turn_in_vain();
            }
            self.move_leaving();
            if self.clock.units() >= CLOCK_EVERY {
                self.read_clock();
            }
            if !self.policy.sleeps() {
                continue;
            }
            if self.sources.active().is_empty() {
                self.sleep(None);
            } else if scan.all_idle && self.sources.only_kickless_active() {
                self.sleep(Some(self.kickless_sleep));
                self.kickless_sleep = (self.kickless_sleep * 2).min(KICKLESS_SLEEP_MAX);
            } else if self.clock.now_ns() >= self.next_look_ns {
                self.look();
            }
        }
    }

    /// Takes up everything announced until `announced`. `Break`: told to stop.
    fn take_up(&mut self, announced: u64) -> ControlFlow<()> {
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Message::Command(command) => self.engine.command(&mut self.sources, command),
                Message::Stop => return ControlFlow::Break(()),
            }
        }
        self.leaving.reserve(self.sources.active().len() + self.sources.armed());
        self.seen = announced;
        self.shared.handoff.pass(announced);
        self.control.wake();
        ControlFlow::Continue(())
    }

    /// Switches the notifications of newly active sources off.
    fn disarm_roused(&mut self) {
        while let Some(token) = self.sources.next_roused() {
            if self.contain(token, |engine| engine.disarm(token)).is_none() {
                self.sources.park(token);
            }
        }
    }

    /// One batch of every active source.
    fn scan(&mut self) -> Scan {
        let now_ns = self.clock.now_ns();
        let budget_items = self.budget_items;
        let count = self.sources.active().len();
        let mut scan = Scan { polls: count, items: 0, worked: false, all_idle: true };
        let mut useful_polls = 0;
        self.rotation = if self.rotation + 1 < count { self.rotation + 1 } else { 0 };
        let mut at = self.rotation;
        for _ in 0..count {
            let token = self.sources.active()[at];
            at = if at + 1 < count { at + 1 } else { 0 };
            if count > 1 {
                self.engine.expect(self.sources.active()[at]);
            }
            match self.contain(token, |engine| engine.poll(token, budget_items)) {
                Some(empty @ (Polled::Idle | Polled::Waiting)) => {
                    let spun = self.sources.idle(token).found_empty(&self.policy, now_ns);
                    let used_up = spun || (empty == Polled::Waiting && self.policy.sleeps());
                    scan.all_idle &= used_up;
                    if used_up && self.sources.has_kick(token) {
                        self.leaving.push((token, Leave::Arm));
                    }
                }
                Some(Polled::Worked { items, more }) => {
                    (scan.worked, scan.all_idle) = (true, false);
                    scan.items += items;
                    useful_polls += 1;
                    self.shared.stats.batch_items.record(items as u64);
                    self.sources.idle(token).worked(&self.policy, now_ns);
                    if !more && self.policy.arms_at_once() && self.sources.has_kick(token) {
                        self.leaving.push((token, Leave::Arm));
                    }
                }
                Some(Polled::Broken) => {
                    self.shared.stats.broken.add(1);
                    self.leaving.push((token, Leave::Park));
                }
                None => self.leaving.push((token, Leave::Park)),
            }
        }
        let polls = count as u64;
        self.shared.stats.polls.add(polls);
        self.shared.stats.empty_polls.add(polls - useful_polls);
        self.shared.stats.items.add(scan.items as u64);
        scan
    }

    /// Arms what has been empty for long enough, parks what is broken.
    fn move_leaving(&mut self) {
        while let Some((token, leave)) = self.leaving.pop() {
            match leave {
                Leave::Arm => self.demote(token),
                Leave::Park => self.sources.park(token),
            }
        }
    }

    /// Arms one source, unless work arrived while it was being armed.
    fn demote(&mut self, token: Token) {
        self.shared.stats.armings.add(1);
        match self.contain(token, |engine| engine.arm(token)) {
            Some(false) => self.sources.set_armed(token),
            Some(true) => {
                self.shared.stats.armings_in_vain.add(1);
                self.sources.idle(token).activated(self.clock.now_ns());
                if self.contain(token, |engine| engine.disarm(token)).is_none() {
                    self.sources.park(token);
                }
            }
            None => self.sources.park(token),
        }
    }

    /// Runs one source's part of the engine. `None`: it panicked; the engine has been told, the caller takes the source out.
    #[inline]
    fn contain<T>(&mut self, token: Token, part: impl FnOnce(&mut E) -> T) -> Option<T> {
        // Unwind safety: guards inside the engine release what they hold, and the source that was being changed is not used again.
        match catch_unwind(AssertUnwindSafe(|| part(&mut self.engine))) {
            Ok(result) => Some(result),
            Err(cause) => {
                self.panicked(token, &*cause);
                None
            }
        }
    }

    #[cold]
    fn panicked(&mut self, token: Token, cause: &(dyn Any + Send)) {
        self.shared.stats.panics.add(1);
        if let Some(suppressed) = self.panic_lines.check((), Instant::now()) {
            let source = token.index();
            tracing::error!(
                source,
                suppressed = suppressed.0,
                "a batch panicked, its ring stops: {}",
                panic_text(cause)
            );
        }
        self.engine.source_panicked(token);
        self.control.wake();
    }

    /// Reads the clock; ticks when it is time.
    fn read_clock(&mut self) {
        self.shared.stats.busy_ns.add(self.clock.read());
        let now_ns = self.clock.now_ns();
        self.sources.set_now(now_ns);
        if let Some(tick) = self.tick
            && now_ns >= self.next_tick_ns
        {
            self.next_tick_ns = now_ns.saturating_add(nanoseconds(tick));
            self.engine.tick(self.clock.now(), &mut self.sources);
        }
    }

    /// Looks at the epoll set without waiting, if anybody's kick could be in it.
    fn look(&mut self) {
        self.next_look_ns = self.clock.now_ns() + LOOK_EVERY_NS;
        if self.sources.armed() > 0 {
            self.shared.stats.looks.add(1);
            self.sources.wait(Some(Duration::ZERO));
            self.sources.take_kicks();
        }
    }

    /// Sleeps until a kick, an announcement, the next tick or for `limit`.
    fn sleep(&mut self, limit: Option<Duration>) {
        self.read_clock();
        // The tick may just have made a source active.
        if !self.sources.only_kickless_active() {
            return;
        }
        let to_tick =
            self.tick.map(|_| Duration::from_nanos(self.next_tick_ns.saturating_sub(self.clock.now_ns())));
        let timeout = limit.into_iter().chain(to_tick).min();
        if !self.shared.handoff.fall_asleep(self.seen) {
            return;
        }
        let events = self.engine.wait(&mut self.sources, timeout);
        self.shared.handoff.wake_up();
        let asleep_from_ns = self.clock.now_ns();
        self.clock.read();
        self.sources.set_now(self.clock.now_ns());
        self.sources.take_kicks();
        let stats = &self.shared.stats;
        stats.asleep_ns.add(self.clock.now_ns() - asleep_from_ns);
        stats.sleeps.add(1);
        stats.wakeups.add(u64::from(events > 0));
        self.next_look_ns = self.clock.now_ns() + LOOK_EVERY_NS;
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What a panic said, as far as it said it in words.
fn panic_text(cause: &(dyn Any + Send)) -> &str {
    cause
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| cause.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
