//! One window that counts: repeated while somebody waited for a processor or the cores moved.

use avio_tests::Result;

use super::machine::Machine;
use super::probe::{self, Distance};

/// A window in which somebody was ready but did not run for a larger share is worth nothing.
const WAITED_SHARE_MAX: f64 = 0.05;

/// A window and where the cores were.
#[derive(Clone, Copy, Debug)]
pub struct Taken<R> {
    /// Crossing between the cores in nanoseconds, mean of before and after.
    pub crossing_ns: f64,
    /// Where the cores were; `None`: disturbed each time it was tried, the least disturbed one is kept.
    pub distance: Option<Distance>,
    /// What was measured.
    pub reading: R,
    /// Windows that were thrown away before.
    pub discarded: u32,
}

/// Takes a window with `measure`, which also says for which share of it somebody was ready but did not run; at most
/// `repeat_max` more while it is disturbed. `crossing` is the last known one, before and after.
///
/// # Errors
/// As `measure`, or when the run was stopped.
pub fn undisturbed<R: Copy>(
    machine: &Machine,
    repeat_max: u32,
    crossing: &mut f64,
    mut measure: impl FnMut() -> Result<(R, f64)>,
) -> Result<Taken<R>> {
    let mut discarded = 0;
    let mut best: Option<(Taken<R>, f64)> = None;
    loop {
        machine.ensure_wanted()?;
        let (reading, waited_share) = measure()?;
        let (before, after) = (*crossing, probe::crossing_ns());
        *crossing = after;
        let same = Distance::of(before).filter(|&d| Distance::of(after) == Some(d));
        let distance = same.filter(|_| waited_share <= WAITED_SHARE_MAX);
        let taken = Taken { crossing_ns: (before + after) / 2.0, distance, reading, discarded };
        if distance.is_some() {
            return Ok(taken);
        }
        discarded += 1;
        if best.as_ref().is_none_or(|(_, least)| waited_share < *least) {
            best = Some((taken, waited_share));
        }
        if discarded > repeat_max
            && let Some((taken, _)) = best
        {
            return Ok(Taken { discarded, ..taken });
        }
    }
}
