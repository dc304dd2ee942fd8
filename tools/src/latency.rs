//! The clock that frames and requests are stamped with, and latency histograms: `avio-pktgen`, `avio-iogen`, `avio demo`.
//!
//! Owns what is shown of a distribution. Senders stamp with [`now_ns`], receivers record the difference; both sides must
//! run on one machine, the clock is the same in all its processes.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies above this are recorded as this: 10 s.
const NS_MAX: u64 = 10_000_000_000;

/// Monotonic time in nanoseconds, the same in every process of this machine.
#[inline]
#[must_use]
pub fn now_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// A histogram of nanoseconds with two significant digits.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

/// What is printed of a distribution, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LatencySummary {
    /// Samples.
    pub count: u64,
    /// Smallest.
    pub min_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Largest.
    pub max_us: f64,
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

impl Latency {
    /// An empty one. Takes about 40 KiB.
    ///
    /// # Panics
    /// Never: the bounds are constants that the histogram accepts.
    #[must_use]
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, NS_MAX, 2).expect("constant bounds"))
    }

    /// Records one latency.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        // Same bounds by construction, so nothing can be out of range.
        let _ = self.0.add(&other.0);
    }

    /// All of it, in nanoseconds.
    #[must_use]
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// Percentiles.
    #[must_use]
    pub fn summary(&self) -> LatencySummary {
        if self.0.is_empty() {
            return LatencySummary::default();
        }
        let us = |ns: u64| (ns as f64) / 1000.0;
        let at = |q| us(self.0.value_at_quantile(q));
        LatencySummary {
            count: self.0.len(),
            min_us: us(self.0.min()),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: us(self.0.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_known_distribution() {
        let mut l = Latency::new();
        for us in 1..=1000 {
            l.record(us * 1000);
        }
        let s = l.summary();
        assert_eq!(s.count, 1000);
        assert!((s.p50_us - 500.0).abs() < 10.0, "{s:?}");
        assert!((s.p99_us - 990.0).abs() < 20.0, "{s:?}");
        assert_eq!(Latency::new().summary(), LatencySummary::default());
    }
}
