//! When to announce the guests' addresses after a failover: once, then a rapid series, then every five seconds until a
//! minute has passed (SEMANTICS 4.4).

use std::time::{Duration, Instant};

/// Time between the announcements that follow the rapid series.
const SLOW: Duration = Duration::from_secs(5);
/// When they end.
const END: Duration = Duration::from_secs(60);

/// The series that is under way.
#[derive(Debug, Default)]
pub struct Announcer {
    due: Option<Instant>,
    end: Option<Instant>,
    rapid_left: u32,
    interval: Duration,
}

impl Announcer {
    /// Traffic goes another way since `now`. `rapid`: interval and count of the rapid series, if there is one.
    pub fn start(&mut self, rapid: Option<(Duration, u32)>, now: Instant) {
        let (interval, count) = rapid.unwrap_or((SLOW, 0));
        *self = Announcer { due: Some(now), end: Some(now + END), rapid_left: count, interval };
    }

    /// When [`Self::is_due`] is to be asked.
    #[must_use]
    pub fn next_at(&self) -> Option<Instant> {
        self.due
    }

    /// Whether to announce now.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let Some(due) = self.due.filter(|due| *due <= now) else { return false };
        let step = if self.rapid_left > 0 {
            self.rapid_left -= 1;
            self.interval
        } else {
            SLOW
        };
        let next = if due + step > now { due + step } else { now + step };
        self.due = Some(next).filter(|next| self.end.is_some_and(|end| *next <= end));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(rapid: Option<(Duration, u32)>) -> Vec<u64> {
        let start = Instant::now();
        let mut announcer = Announcer::default();
        announcer.start(rapid, start);
        let mut times = Vec::new();
        while let Some(at) = announcer.next_at() {
            assert!(announcer.is_due(at));
            times.push((at - start).as_secs());
        }
        times
    }

    #[test]
    fn once_then_rapidly_then_every_five_seconds_for_a_minute() {
        let wanted = [0, 1, 2, 3, 4, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60];
        assert_eq!(times(Some((Duration::from_secs(1), 5))), wanted);
        assert_eq!(times(None), (0..=60).step_by(5).collect::<Vec<u64>>());
        assert_eq!(times(Some((Duration::from_secs(4), 15))).last(), Some(&60));
    }

    #[test]
    fn one_that_was_missed_is_not_made_up_for() {
        let start = Instant::now();
        let mut announcer = Announcer::default();
        announcer.start(Some((Duration::from_secs(1), 60)), start);
        let late = start + Duration::from_secs(30);
        assert!(announcer.is_due(late) && !announcer.is_due(late));
    }
}
