//! What a port keeps across tables: its numbers, its flow steering, its token buckets.
//!
//! Control makes one [`PortState`] per configured port and hands the same to each builder. Workers write its atomics,
//! relaxed: each is right on its own, and none orders anything else.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::port::guest::PortStats;

/// Flows remembered per port with several queue pairs. One byte each; two flows in one place share a queue, no more.
const FLOWS: usize = 4096;

/// A port's lasting state.
#[derive(Debug)]
pub struct PortState {
    /// Its numbers.
    pub stats: PortStats,
    /// `rate_mbps`.
    pub(crate) rate: Bucket,
    /// `storm_pps`.
    pub(crate) storm: Bucket,
    flows: Box<[AtomicU8]>,
}

impl PortState {
    /// State of a port with up to `queue_pairs` pairs in a daemon with `workers` workers.
    #[must_use]
    pub fn new(workers: usize, queue_pairs: u16) -> Self {
        let flows = if queue_pairs > 1 { FLOWS } else { 0 };
        Self {
            stats: PortStats::new(workers),
            rate: Bucket::default(),
            storm: Bucket::default(),
            flows: (0..flows).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// The guest sent a frame of the flow on `pair`.
    #[inline]
    pub(crate) fn saw_flow(&self, hash: u32, pair: u16) {
        if let Some(place) = self.flows.get(hash as usize % FLOWS) {
            let value = pair as u8 + 1;
            // An unchanged line stays shared between workers.
            if place.load(Ordering::Relaxed) != value {
                place.store(value, Ordering::Relaxed);
            }
        }
    }

    /// Where the guest last sent a frame of the flow.
    #[inline]
    pub(crate) fn pair_of_flow(&self, hash: u32) -> Option<u16> {
        self.flows
            .get(hash as usize % FLOWS)
            .and_then(|place| place.load(Ordering::Relaxed).checked_sub(1))
            .map(u16::from)
    }
}

/// A token bucket as one number: the time at which all that was let through is paid for (GCRA, ITU-T I.371). Shared by
/// the workers that serve the port's queues.
#[derive(Debug, Default)]
pub(crate) struct Bucket(AtomicU64);

impl Bucket {
    /// Takes `cost_ns` at `now_ns` unless the bucket is more than `burst_ns` ahead of the clock.
    pub(crate) fn take(&self, now_ns: u64, cost_ns: u64, burst_ns: u64) -> bool {
        let limit = now_ns.saturating_add(burst_ns);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_until| {
                let start = paid_until.max(now_ns);
                (start <= limit).then(|| start.saturating_add(cost_ns))
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_its_rate_through_after_its_burst() {
        let bucket = Bucket::default();
        // 1,000 ns per frame, a burst of 10: frames come each 100 ns for a while.
        let passed = (0..1_000u64).filter(|i| bucket.take(1_000_000 + i * 100, 1_000, 10_000)).count();
        assert!((109..=112).contains(&passed), "{passed} in 100 us");
    }

    #[test]
    fn flows_stay_where_they_were_sent() {
        let state = PortState::new(1, 4);
        assert_eq!(state.pair_of_flow(77), None);
        state.saw_flow(77, 3);
        assert_eq!((state.pair_of_flow(77), state.pair_of_flow(78)), (Some(3), None));
        let single = PortState::new(1, 1);
        single.saw_flow(77, 0);
        assert_eq!(single.pair_of_flow(77), None);
    }
}
