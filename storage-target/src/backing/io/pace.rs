//! How long accesses take, as it seems from those before: whether to go on polling, to let threads of the kernel's have the core, and how many
//! requests to begin together.
//!
//! Owned by [`Io`](super::Io), on its worker. Reads no clock itself: who calls has just read it.

use std::time::{Duration, Instant};

/// How long reads alone may take before the kernel is thought to need a thread of its own for one: interrupts complete them
/// almost always, and a look whether any thread wants the core delays that by microseconds.
const READ_PATIENCE: Duration = Duration::from_micros(100);

/// How long a guest that polls may take for the next of several requests, each an answer to one of ours.
const DRIBBLE: Duration = Duration::from_micros(5);
/// A wait counts as at most this long: a disk that has stood still must be believed to be fast again within a dozen accesses.
const WAIT_CEILING: Duration = Duration::from_micros(200);

/// Requests that are begun together when the kernel completes them at once: half of the usual depth of 32, so that the guest has the
/// other half ready in time, and enough that what a turn costs is little for each.
const AT_ONCE_MAX: usize = 16;

/// See the module.
pub(super) struct Pace {
    /// When something last began or completed.
    progress: Instant,
    /// When that was last looked at, or a batch begun.
    looked: Instant,
    /// Something was looked for in vain since.
    in_vain: bool,
    /// Running mean of the time that it took until something completed, when nothing had at first.
    mean_wait: Duration,
    /// Most of what the kernel was given last was complete when it returned.
    completes_at_once: bool,
}

impl Pace {
    /// Nothing is known yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            progress: now,
            looked: now,
            in_vain: false,
            mean_wait: Duration::ZERO,
            completes_at_once: false,
        }
    }

    /// When accesses were last looked for, or a batch of them begun.
    #[inline]
    pub(super) fn looked(&self) -> Instant {
        self.looked
    }

    /// A batch is about to be begun.
    #[inline]
    pub(super) fn at(&mut self, now: Instant) {
        self.looked = now;
    }

    /// An access begins. Returns when.
    #[inline]
    pub(super) fn begins(&mut self) -> Instant {
        self.progress = self.looked;
        self.looked
    }

    /// The kernel was `given` so many operations, and so many were complete when it returned.
    #[inline]
    pub(super) fn submitted(&mut self, given: usize, completed: usize) {
        if given > 0 {
            self.completes_at_once = completed * 2 > given;
        }
    }

    /// Completions were looked for, and some found or none.
    #[inline]
    pub(super) fn reaped(&mut self, now: Instant, found_some: bool) {
        self.looked = now;
        if !found_some {
            self.in_vain = true;
            return;
        }
        if std::mem::take(&mut self.in_vain) {
            let wait = now.saturating_duration_since(self.progress).min(WAIT_CEILING);
            self.mean_wait = self.mean_wait - self.mean_wait / 8 + wait / 8;
        }
        self.progress = now;
    }

    /// Whether nothing has begun or completed for a moment, and nothing will for longer than `cost`.
    #[inline]
    pub(super) fn is_long_wait(&self, cost: Duration) -> bool {
        self.mean_wait > cost && self.looked.saturating_duration_since(self.progress) > DRIBBLE
    }

    /// Whether even a read takes long enough that a thread of the kernel's may be at it.
    #[inline]
    pub(super) fn is_slow_read(&self) -> bool {
        self.looked.saturating_duration_since(self.progress) > READ_PATIENCE
    }

    /// How many requests to begin together at most, of `budget`.
    #[inline]
    pub(super) fn batch_max(&self, budget: usize) -> usize {
        if self.completes_at_once { budget.min(AT_ONCE_MAX) } else { budget }
    }
}
