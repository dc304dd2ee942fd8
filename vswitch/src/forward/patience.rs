//! How long a worker waits for guests whose receive rings are full of frames from the wire.
//!
//! A device keeps frames for some milliseconds and hands on at once what came while the worker was kept from its core; a guest's ring of 256 is full
//! before the guest has seen any of it. So such frames wait for buffers, a little, while all else of the batch is done. What guests can cost
//! each other by it is bounded: per batch, and in the long run to a share of the worker's time.

use std::time::{Duration, Instant};

/// Longest wait of one batch: about what a driver takes between two looks at a busy ring.
const BATCH_MAX: Duration = Duration::from_micros(60);
/// Of all time, one part in so many may be waited.
const SHARE: u32 = 16;
/// What can be waited after a time without: a receive ring of 2,048 frames, handed on as fast as guests take them.
const SAVED_MAX: Duration = Duration::from_millis(2);
/// The least that a look counts for.
const LOOK_MIN: Duration = Duration::from_micros(1);
/// Pauses of the processor between two looks (about 50 ns each where they are long): the guest is about to write the line that is looked at.
const SPINS: u32 = 10;

/// What a worker has left to wait.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
    /// When `left` was that.
    as_of: Option<Instant>,
    /// End of this batch's wait, once it has begun.
    until: Option<Instant>,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { left: SAVED_MAX, as_of: None, until: None }
    }

    /// The next batch has not waited yet.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.until = None;
    }

    /// Lets a moment pass. False: this batch has waited for as long as it may.
    #[cold]
    pub(super) fn wait(&mut self) -> bool {
        let now = Instant::now();
        let passed = self.as_of.map_or(Duration::ZERO, |then| now.saturating_duration_since(then));
        self.as_of = Some(now);
        let until = match self.until {
            Some(until) => {
                self.left = self.left.saturating_sub(passed.max(LOOK_MIN));
                until
            }
            None => {
                self.left = (self.left + passed / SHARE).min(SAVED_MAX).saturating_sub(LOOK_MIN);
                *self.until.insert(now + self.left.min(BATCH_MAX))
            }
        };
        if now >= until {
            return false;
        }
        #[cfg(test)]
        super::tests::full::while_waiting();
        for _ in 0..SPINS {
            std::hint::spin_loop();
        }
        true
    }
}
