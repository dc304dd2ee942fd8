//! The counter itself, its padding, and a histogram of counters.
//!
//! Written by data-path threads, read by control. Never locked, never reset.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

/// A value on cache lines of its own. 128 bytes: x86 prefetches lines in pairs, so 64 would still share.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CacheLine<T>(pub T);

impl<T> Deref for CacheLine<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A counter with one writer at a time (a thread, or whoever holds the lock that goes with it) and any number of readers.
/// It wraps at 2^64.
#[derive(Debug, Default)]
pub struct Cell64(AtomicU64);

impl Cell64 {
    /// A counter at 0.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `count`. Writer only: two threads that add at the same time lose one of the additions.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Makes it another value: of a figure that rises and falls. Writer only, or whoever may lose against the writer.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now; any thread.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts by magnitude: bucket 0 counts the value 0, bucket `n` the values `2^(n-1) .. 2^n`, the last one all above too.
#[derive(Debug)]
pub struct Log2Histogram<const BUCKETS: usize>([Cell64; BUCKETS]);

impl<const BUCKETS: usize> Default for Log2Histogram<BUCKETS> {
    fn default() -> Self {
        Self([const { Cell64::new() }; BUCKETS])
    }
}

impl<const BUCKETS: usize> Log2Histogram<BUCKETS> {
    /// Counts `value`. Writer only.
    #[inline]
    pub fn record(&self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.0[bucket.min(BUCKETS - 1)].add(1);
    }

    /// The counts now; any thread.
    pub fn get(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|bucket| self.0[bucket].get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_the_bucket_of_their_magnitude() {
        let histogram = Log2Histogram::<4>::default();
        for value in [0, 1, 2, 3, 4, 7, 8, u64::MAX] {
            histogram.record(value);
        }
        assert_eq!(histogram.get(), [1, 1, 2, 4]);
    }

    #[test]
    fn neighbours_do_not_share_a_prefetched_pair_of_lines() {
        let pair: [CacheLine<Cell64>; 2] = Default::default();
        let address = |cell: &Cell64| std::ptr::from_ref(cell).addr();
        assert!(address(&pair[1]) - address(&pair[0]) >= 128);
        pair[0].add(3);
        assert_eq!((pair[0].get(), pair[1].get()), (3, 0));
    }
}
