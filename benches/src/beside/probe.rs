//! How far apart the two cores are just now: a cache line that two threads throw at each other.
//!
//! The hypervisor moves virtual processors; a throughput without this number means nothing. Called while every target is
//! stopped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{GUEST_CORE, TARGET_CORE};

/// Round trips per sample.
const TRIPS: u64 = 1_000;
/// Samples; the median counts.
const SAMPLES: usize = 15;
/// Closer than this is near, in nanoseconds for one crossing: near was seen at 25 to 31, far at 155 to 200.
const NEAR_NS: f64 = 80.0;
/// Beyond this another load is on the machine, in nanoseconds.
const FAR_NS: f64 = 500.0;

/// Where the cores were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Distance {
    /// One cache between them.
    Near,
    /// Several.
    Far,
}

impl Distance {
    /// Both.
    pub const ALL: [Distance; 2] = [Distance::Near, Distance::Far];

    /// `near` or `far`.
    pub fn name(self) -> &'static str {
        match self {
            Distance::Near => "near",
            Distance::Far => "far",
        }
    }

    /// What a crossing of `ns` means; `None`: another load.
    pub fn of(ns: f64) -> Option<Self> {
        match ns {
            ns if ns < NEAR_NS => Some(Distance::Near),
            ns if ns <= FAR_NS => Some(Distance::Far),
            _ => None,
        }
    }
}

#[repr(align(128))]
struct Line(AtomicU64);

/// Median time of one crossing in nanoseconds.
pub fn crossing_ns() -> f64 {
    let line = &Line(AtomicU64::new(0));
    let last = TRIPS * SAMPLES as u64 * 2;
    let pin = |id| core_affinity::set_for_current(core_affinity::CoreId { id });
    // Each side waits for its parity and adds one.
    let play = |parity: u64, from: u64, to: u64| {
        let mut next = from + parity;
        while next < to {
            while line.0.load(Ordering::Acquire) != next {
                std::hint::spin_loop();
            }
            line.0.store(next + 1, Ordering::Release);
            next += 2;
        }
    };
    let mut samples = std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(TARGET_CORE);
            play(1, 0, last);
        });
        let here = scope.spawn(|| {
            pin(GUEST_CORE);
            let mut samples = Vec::with_capacity(SAMPLES);
            for sample in 0..SAMPLES as u64 {
                let start = Instant::now();
                play(0, sample * TRIPS * 2, (sample + 1) * TRIPS * 2);
                samples.push(start.elapsed().as_nanos() as f64 / (TRIPS * 2) as f64);
            }
            samples
        });
        here.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    samples.sort_by(f64::total_cmp);
    samples[SAMPLES / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crossing_takes_time_but_not_for_ever() {
        let ns = crossing_ns();
        assert!(ns > 1.0 && ns < 10_000_000.0, "{ns}");
    }

    #[test]
    fn another_load_is_no_distance() {
        assert_eq!(Distance::of(28.0), Some(Distance::Near));
        assert_eq!(Distance::of(180.0), Some(Distance::Far));
        assert_eq!(Distance::of(900.0), None);
    }
}
