//! A worker's clock, and what it spends its time on.
//!
//! Owned by the worker's loop, which reads it once per amount of work: 25 ns for each batch would be felt. It tells work from looking all the same, by what it
//! has learned a look to cost that finds nothing.

use std::time::{Duration, Instant};

/// The coarse clock of one worker.
pub(super) struct Clock {
    start: Instant,
    now_ns: u64,
    /// Work since the last reading: polls and items.
    units: usize,
    spent: Spent,
}

/// What the turns since the last reading of the clock were.
struct Spent {
    /// Some turn found something.
    worked: bool,
    /// Polls of the turns that did not.
    idle_polls: u64,
    /// What one of those takes, in 1/1024 ns; 0: not known yet.
    idle_poll: u64,
}

impl Clock {
    pub(super) fn new() -> Self {
        let spent = Spent { worked: false, idle_polls: 0, idle_poll: 0 };
        Self { start: Instant::now(), now_ns: 0, units: 0, spent }
    }

    /// Time since the beginning as of the last reading, ns.
    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// The last reading.
    pub(super) fn now(&self) -> Instant {
        self.start + Duration::from_nanos(self.now_ns)
    }

    /// Work since the last reading: polls and items.
    pub(super) fn units(&self) -> usize {
        self.units
    }

    /// A turn of that many polls is over, and came to that many items.
    #[inline]
    pub(super) fn turn(&mut self, polls: usize, items: usize, worked: bool) {
        self.units += 1 + polls + items;
        if worked {
            self.spent.worked = true;
        } else {
            self.spent.idle_polls += polls as u64;
        }
    }

    /// Reads the time; returns how much of it since the last reading was work, ns.
    pub(super) fn read(&mut self) -> u64 {
        let now_ns = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let elapsed_ns = now_ns.saturating_sub(self.now_ns);
        (self.now_ns, self.units) = (now_ns, 0);
        self.spent.work_of(elapsed_ns)
    }
}

impl Spent {
    /// How much of the time since the last reading was work: all but the turns that found nothing. What those take is learned between readings without work.
    fn work_of(&mut self, elapsed_ns: u64) -> u64 {
        let polls = std::mem::take(&mut self.idle_polls);
        if std::mem::take(&mut self.worked) {
            return elapsed_ns.saturating_sub(polls.saturating_mul(self.idle_poll) >> 10);
        }
        if let Some(each) = elapsed_ns.saturating_mul(1024).checked_div(polls) {
            // Somebody else had the core in the longest of them: each counts for little.
            let known = if self.idle_poll == 0 { each } else { self.idle_poll };
            self.idle_poll = (15 * known + each.min(known + known / 4)) / 16;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(idle_polls: u64, worked: bool, idle_poll: u64) -> Spent {
        Spent { worked, idle_polls, idle_poll }
    }

    #[test]
    fn what_is_not_looking_in_vain_is_work() {
        let mut all = spent(0, true, 50 << 10);
        assert_eq!(all.work_of(4_000), 4_000);
        let mut some = spent(40, true, 50 << 10);
        assert_eq!(some.work_of(5_500), 3_500);
        let mut none = spent(128, false, 50 << 10);
        assert_eq!(none.work_of(6_400), 0);
        // Nothing was active, or a sleep is over.
        assert_eq!(spent(0, false, 50 << 10).work_of(1_000_000), 0);
        // More looks than time.
        assert_eq!(spent(100, true, 50 << 10).work_of(4_000), 0);
    }

    #[test]
    fn what_a_look_costs_is_learned_where_no_turn_worked() {
        let mut spent = spent(0, false, 0);
        let mut idle = |each_ns: u64| {
            spent.idle_polls = 100;
            assert_eq!(spent.work_of(each_ns * 100), 0);
            spent.idle_poll >> 10
        };
        assert_eq!(idle(40), 40);
        // The core was somebody else's for a time slice.
        assert!(idle(40_000) <= 41);
        // Twice as dear from now on.
        for _ in 0..100 {
            idle(80);
        }
        assert!((78..=80).contains(&idle(80)));
    }
}
