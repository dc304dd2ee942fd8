//! The highest rate without loss, after RFC 2544 section 26.1.
//!
//! Owns the order of rates. [`super::generate`] runs one measurement per rate it asks for. No clock, no ring.

use super::report::{SearchReport, Trial};

/// Most trials: a bisection to one per mille needs ten, a noisy machine a few more.
const TRIALS_MAX: usize = 40;
/// The first trial after the unlimited one offers a little less than what arrived then.
const FIRST_SHARE: f64 = 0.98;

/// A search in progress. Rates are in frames per second.
#[derive(Debug)]
pub struct Search {
    low: f64,
    high: f64,
    lost_ratio_max: f64,
    resolution: f64,
    report: SearchReport,
    offered: Option<f64>,
}

impl Search {
    /// Accepts trials that lose up to `lost_ratio_max`; ends when the interval is narrower than `resolution` of its end.
    #[must_use]
    pub fn new(lost_ratio_max: f64, resolution: f64) -> Self {
        let report = SearchReport::default();
        let resolution = resolution.max(1e-4);
        Self { low: 0.0, high: f64::INFINITY, lost_ratio_max, resolution, report, offered: None }
    }

    /// The rate of the trial to run now; `None`: as fast as possible.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        self.offered
    }

    /// Takes a trial's outcome; false when the search is over.
    pub fn take(&mut self, received_pps: f64, lost_ratio: f64) -> bool {
        self.report.trials.push(Trial {
            offered_mpps: self.offered.unwrap_or(0.0) / 1e6,
            mpps: received_pps / 1e6,
            lost_ratio,
        });
        let passed = lost_ratio <= self.lost_ratio_max;
        match self.offered {
            // Without a rate, loss depends on who is slower: a sender held back by its own ring loses nothing.
            None if passed => {
                self.low = received_pps;
                self.high = received_pps;
            }
            None => self.high = received_pps,
            Some(rate) if passed => self.low = self.low.max(rate),
            Some(rate) => self.high = self.high.min(rate),
        }
        self.report.no_loss_mpps = self.low / 1e6;
        let next = if self.low == 0.0 && self.offered.is_none() {
            self.high * FIRST_SHARE
        } else {
            (self.low + self.high) / 2.0
        };
        self.offered = Some(next);
        self.high - self.low > self.resolution * self.high
            && self.report.trials.len() < TRIALS_MAX
            && next > 1.0
    }

    /// Trials and result.
    #[must_use]
    pub fn into_report(self) -> SearchReport {
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A switch that forwards `capacity` frames per second and loses the rest.
    fn search(capacity: f64, offered_max: f64) -> SearchReport {
        let mut s = Search::new(0.0, 0.01);
        loop {
            let offered = s.rate().unwrap_or(offered_max);
            let received = offered.min(capacity);
            if !s.take(received, (offered - received) / offered) {
                return s.into_report();
            }
        }
    }

    #[test]
    fn it_ends_just_below_the_capacity() {
        for capacity in [1e3, 7.7e6, 2e7] {
            let found = search(capacity, 3e7);
            let share = found.no_loss_mpps * 1e6 / capacity;
            assert!((0.97..=1.0).contains(&share), "{capacity}: {found:?}");
            assert!(found.trials.len() < 20, "{found:?}");
        }
    }

    #[test]
    fn nothing_lost_at_full_speed_needs_one_trial() {
        let found = search(5e7, 3e7);
        assert_eq!((found.no_loss_mpps, found.trials.len()), (30.0, 1));
    }

    #[test]
    fn a_switch_that_loses_everything_ends_too() {
        let mut s = Search::new(0.0, 0.01);
        let mut trials = 0;
        while s.take(1000.0, 0.5) {
            trials += 1;
            assert!(trials <= TRIALS_MAX);
        }
    }
}
