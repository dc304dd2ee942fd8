//! Limits of a LUN: requests and bytes a second, with a burst.
//!
//! Two virtual clocks that run ahead of real time by what was let through (the generic cell rate algorithm). Shared by all
//! workers, changed live by control, never locked. Without a limit it is two loads.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far ahead of its rate a LUN may get after a pause, ns: what accumulates while nothing is asked for.
const BURST_NS: u64 = 100_000_000;
const SECOND_NS: u128 = 1_000_000_000;

#[derive(Debug, Default)]
struct Clock {
    /// Units a second; 0: no limit.
    rate: AtomicU64,
    /// When everything that was let through would be done at that rate.
    ahead_ns: AtomicU64,
}

impl Clock {
    /// Takes `units`, or says when to ask again.
    #[inline]
    fn take(&self, now_ns: u64, units: u64) -> Result<(), u64> {
        match self.rate.load(Ordering::Relaxed) {
            0 => Ok(()),
            rate => self.take_at(rate, now_ns, units),
        }
    }

    #[inline(never)]
    fn take_at(&self, rate: u64, now_ns: u64, units: u64) -> Result<(), u64> {
        let cost_ns = (u128::from(units) * SECOND_NS / u128::from(rate)) as u64;
        let mut ahead_ns = self.ahead_ns.load(Ordering::Relaxed);
        loop {
            // What was let through before counts; this request itself may be larger than the burst.
            if ahead_ns > now_ns.saturating_add(BURST_NS) {
                return Err(ahead_ns - BURST_NS);
            }
            let next = ahead_ns.max(now_ns).saturating_add(cost_ns);
            match self.ahead_ns.compare_exchange_weak(ahead_ns, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => ahead_ns = seen,
            }
        }
    }

    /// When `take` would let something through: now, or the time.
    #[inline]
    fn due(&self, now_ns: u64) -> Result<(), u64> {
        if self.rate.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let ahead_ns = self.ahead_ns.load(Ordering::Relaxed);
        if ahead_ns > now_ns.saturating_add(BURST_NS) { Err(ahead_ns - BURST_NS) } else { Ok(()) }
    }

    fn set(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
        self.ahead_ns.store(0, Ordering::Relaxed);
    }
}

/// The limits of one LUN of one adapter, in one line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Qos {
    requests: Clock,
    bytes: Clock,
}

impl Qos {
    #[cfg(test)]
    fn new(iops: u64, bytes_per_s: u64) -> Self {
        let qos = Self::default();
        qos.set(iops, bytes_per_s);
        qos
    }

    /// At most `iops` requests and `bytes_per_s` bytes a second, 0: no limit; from the next request on. Control.
    pub fn set(&self, iops: u64, bytes_per_s: u64) {
        self.requests.set(iops);
        self.bytes.set(bytes_per_s);
    }

    /// Both, as set.
    #[must_use]
    pub fn limits(&self) -> (u64, u64) {
        (self.requests.rate.load(Ordering::Relaxed), self.bytes.rate.load(Ordering::Relaxed))
    }

    /// Lets a request of so many bytes through, or says when to ask again, on the same clock as `now_ns`. Workers.
    ///
    /// # Errors
    /// The time, ns.
    #[inline]
    pub fn admit(&self, now_ns: u64, bytes: u64) -> Result<(), u64> {
        // Who has to wait for bytes is not charged for a request each time it asks.
        self.bytes.due(now_ns)?;
        self.requests.take(now_ns, 1)?;
        self.bytes.take(now_ns, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_no_limit_and_a_limit_holds_after_its_burst() {
        let qos = Qos::new(0, 0);
        assert!((0..1_000_000).all(|_| qos.admit(0, 1 << 30).is_ok()));
        qos.set(1000, 0);
        let (mut now_ns, mut done) = (0, 0);
        while now_ns < 2_000_000_000 {
            match qos.admit(now_ns, 4096) {
                Ok(()) => done += 1,
                Err(until_ns) => now_ns = until_ns,
            }
        }
        assert!((2000..=2110).contains(&done), "{done} in two seconds at 1,000 a second");
    }

    #[test]
    fn who_waits_for_bytes_is_not_charged_for_requests() {
        // 16 MiB/s are 256 requests of 64 KiB: fewer than 300.
        let qos = Qos::new(300, 16 << 20);
        let (mut now_ns, mut done) = (0, 0u64);
        while now_ns < 2_000_000_000 {
            // Thirty-two wait, and all ask again when the first may go.
            let until: Vec<u64> = (0..32).filter_map(|_| qos.admit(now_ns, 65536).err()).collect();
            done += 32 - until.len() as u64;
            if let Some(first) = until.iter().min() {
                now_ns = *first;
            }
        }
        assert!((512..=550).contains(&done), "{done} in two seconds");
    }

    #[test]
    fn bytes_count() {
        let qos = Qos::new(0, 1 << 20);
        let (mut now_ns, mut done) = (0, 0u64);
        while now_ns < 4_000_000_000 {
            match qos.admit(now_ns, 65536) {
                Ok(()) => done += 65536,
                Err(until_ns) => now_ns = until_ns,
            }
        }
        assert!((4 << 20..=(4 << 20) + (300 << 10)).contains(&done), "{done} bytes");
    }
}
