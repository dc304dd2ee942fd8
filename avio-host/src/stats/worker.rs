//! What a worker counts about itself.
//!
//! Written by the worker's thread (its loop, and its engine for `lock_waits`), read by control for `avio top` and the
//! metrics.

use serde::Serialize;

use crate::stats::{Cell64, Log2Histogram};

/// Buckets of the batch-size histogram: 0, 1, 2..3, 4..7, 8..15, 16..31, 32..63, 64 and above.
const BATCH_BUCKETS: usize = 8;

/// Live counters of one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerStats {
    /// Calls of the engine's `poll`.
    pub polls: Cell64,
    /// Those that found nothing.
    pub empty_polls: Cell64,
    /// Items (frames, requests) that polls reported.
    pub items: Cell64,
    /// Items per poll that found something.
    pub batch_items: Log2Histogram<BATCH_BUCKETS>,
    /// Sleeps in epoll.
    pub sleeps: Cell64,
    /// Sleeps that ended by an event, not by their timeout.
    pub wakeups: Cell64,
    /// Looks at the epoll set without sleeping.
    pub looks: Cell64,
    /// Sources armed after their spin budget.
    pub armings: Cell64,
    /// Armings that found work in the re-check.
    pub armings_in_vain: Cell64,
    /// Time spent in turns that found something, ns: all but what turns that found nothing have been learned to take.
    pub busy_ns: Cell64,
    /// Time asleep, ns. What is neither busy nor asleep was spent looking.
    pub asleep_ns: Cell64,
    /// Batches that found a lock shared between workers taken; counted by the engine.
    pub lock_waits: Cell64,
    /// Batches that panicked.
    pub panics: Cell64,
    /// Sources that reported themselves broken.
    pub broken: Cell64,
}

/// A copy of [`WorkerStats`] at one moment. Fields as there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[expect(missing_docs, reason = "the fields are those of WorkerStats, which says what they are")]
pub struct WorkerTotals {
    pub polls: u64,
    pub empty_polls: u64,
    pub items: u64,
    pub batch_items: [u64; BATCH_BUCKETS],
    pub sleeps: u64,
    pub wakeups: u64,
    pub looks: u64,
    pub armings: u64,
    pub armings_in_vain: u64,
    pub busy_ns: u64,
    pub asleep_ns: u64,
    pub lock_waits: u64,
    pub panics: u64,
    pub broken: u64,
}

impl WorkerStats {
    /// All values now. Each is exact; they are not read at the same instant.
    pub fn totals(&self) -> WorkerTotals {
        WorkerTotals {
            polls: self.polls.get(),
            empty_polls: self.empty_polls.get(),
            items: self.items.get(),
            batch_items: self.batch_items.get(),
            sleeps: self.sleeps.get(),
            wakeups: self.wakeups.get(),
            looks: self.looks.get(),
            armings: self.armings.get(),
            armings_in_vain: self.armings_in_vain.get(),
            busy_ns: self.busy_ns.get(),
            asleep_ns: self.asleep_ns.get(),
            lock_waits: self.lock_waits.get(),
            panics: self.panics.get(),
            broken: self.broken.get(),
        }
    }
}

impl WorkerTotals {
    /// What was counted since `baseline`, which is how counters are cleared.
    #[must_use]
    pub fn since(&self, baseline: &Self) -> Self {
        Self {
            polls: self.polls.wrapping_sub(baseline.polls),
            empty_polls: self.empty_polls.wrapping_sub(baseline.empty_polls),
            items: self.items.wrapping_sub(baseline.items),
            batch_items: std::array::from_fn(|i| self.batch_items[i].wrapping_sub(baseline.batch_items[i])),
            sleeps: self.sleeps.wrapping_sub(baseline.sleeps),
            wakeups: self.wakeups.wrapping_sub(baseline.wakeups),
            looks: self.looks.wrapping_sub(baseline.looks),
            armings: self.armings.wrapping_sub(baseline.armings),
            armings_in_vain: self.armings_in_vain.wrapping_sub(baseline.armings_in_vain),
            busy_ns: self.busy_ns.wrapping_sub(baseline.busy_ns),
            asleep_ns: self.asleep_ns.wrapping_sub(baseline.asleep_ns),
            lock_waits: self.lock_waits.wrapping_sub(baseline.lock_waits),
            panics: self.panics.wrapping_sub(baseline.panics),
            broken: self.broken.wrapping_sub(baseline.broken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clearing_is_a_baseline() {
        let stats = WorkerStats::default();
        stats.items.add(10);
        stats.batch_items.record(10);
        let baseline = stats.totals();
        stats.items.add(7);
        stats.batch_items.record(7);
        let since = stats.totals().since(&baseline);
        assert_eq!((since.items, since.batch_items), (7, [0, 0, 0, 1, 0, 0, 0, 0]));
        assert_eq!(since.polls, 0);
    }
}
