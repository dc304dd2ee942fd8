//! The words between the control thread and one worker: "there is something for you", "I have passed it", "I sleep".
//!
//! Control announces after it has published (a command in the channel, a table in an `Arc`); the worker looks at one
//! word per turn. This file never touches the channel or the eventfd: the caller wakes when told to. Proven, sleep
//! included, by `loom_tests`.

use crate::stats::CacheLine;
use crate::wait::arm::{Arm, arm_with, full_fence, must_kick};
use crate::wait::sync::{AtomicBool, AtomicU64, Ordering};

/// Generation that a worker which has ended has passed: every one.
const EVERY_GENERATION: u64 = u64::MAX;

/// One worker's hand-off words. Written on two sides, hence two cache lines.
#[derive(Debug)]
pub struct Handoff {
    /// Number of announcements made. Control writes.
    announced: CacheLine<AtomicU64>,
    /// What the worker writes.
    worker: CacheLine<WorkerWords>,
}

#[derive(Debug)]
struct WorkerWords {
    /// The announcement up to which everything has been taken up.
    passed: AtomicU64,
    /// The worker sleeps, or is about to.
    sleeping: AtomicBool,
}

/// What [`Handoff::announce`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// The number of this announcement; [`Handoff::has_passed`] takes it.
    pub generation: u64,
    /// The worker sleeps: write its eventfd.
    pub must_wake: bool,
}

impl Handoff {
    /// A worker that is awake and to whom nothing has been announced.
    #[expect(
        clippy::new_without_default,
        reason = "loom's atomics have no const or default construction to offer"
    )]
    pub fn new() -> Self {
        Self {
            announced: CacheLine(AtomicU64::new(0)),
            worker: CacheLine(WorkerWords { passed: AtomicU64::new(0), sleeping: AtomicBool::new(false) }),
        }
    }

    /// Control: says that something was published for the worker. Call it *after* publishing.
    pub fn announce(&self) -> Announced {
        self.announce_with(full_fence)
    }

    pub(crate) fn announce_with(&self, fence: impl FnOnce()) -> Announced {
        let generation = self.announced.0.fetch_add(1, Ordering::Release) + 1;
        let must_wake = must_kick(|| self.worker.0.sleeping.load(Ordering::Relaxed), fence);
        Announced { generation, must_wake }
    }

    /// Control: whether the worker has been at a quiescent point since announcement `generation`, and has taken up
    /// everything that was published before it.
    pub fn has_passed(&self, generation: u64) -> bool {
        self.worker.0.passed.load(Ordering::Acquire) >= generation
    }

    /// Worker: the latest announcement if it is newer than `seen`. Everything published before it is now visible.
    #[inline]
    pub fn newer_than(&self, seen: u64) -> Option<u64> {
        let announced = self.announced.0.load(Ordering::Acquire);
        (announced != seen).then_some(announced)
    }

    /// Worker, at a quiescent point: everything up to `generation` has been taken up.
    pub fn pass(&self, generation: u64) {
        self.worker.0.passed.store(generation, Ordering::Release);
    }

    /// Worker: it ends; nobody needs to wait for it any more.
    pub fn pass_for_ever(&self) {
        self.pass(EVERY_GENERATION);
    }

    /// Worker: about to sleep, having taken up announcement `seen`. `false`: there is a newer one, stay awake.
    #[must_use = "an announcement made meanwhile did not write the eventfd"]
    pub fn fall_asleep(&self, seen: u64) -> bool {
        self.fall_asleep_with(seen, full_fence)
    }

    pub(crate) fn fall_asleep_with(&self, seen: u64, fence: impl FnOnce()) -> bool {
        let asleep = !arm_with(&mut Sleeper { handoff: self, seen }, fence);
        if !asleep {
            self.wake_up();
        }
        asleep
    }

    /// Worker: awake again; announcements need not write the eventfd.
    pub fn wake_up(&self) {
        self.worker.0.sleeping.store(false, Ordering::Relaxed);
    }
}

/// A worker about to sleep, as something that can be armed.
struct Sleeper<'h> {
    handoff: &'h Handoff,
    seen: u64,
}

impl Arm for Sleeper<'_> {
    fn enable(&mut self) {
        self.handoff.worker.0.sleeping.store(true, Ordering::Relaxed);
    }

    fn has_work(&mut self) -> bool {
        self.handoff.newer_than(self.seen).is_some()
    }
}
