//! How often a line that a guest can provoke is logged: a few per second and key, then "N suppressed".
//!
//! Owned by whoever logs (an engine, a session); no lock, no thread. It decides, it does not log.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Lines per key and second: enough to see what is going on, too few to fill a disk (1,000 keys: 2 MB a minute at worst).
const LINES_PER_SECOND: u32 = 5;
/// The window in which they are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// Keys remembered. A guest that can invent keys shares what is beyond, so memory stays bounded (about 100 KiB).
const KEYS_MAX: usize = 1_024;

/// Lines like one that may be logged that were suppressed since the last one; shown, what is said of them behind the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suppressed(pub u64);

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} lines suppressed)"),
        }
    }
}

/// Bounded memory of what was logged lately, per key (a port, a session, a kind of error).
#[derive(Debug)]
pub struct RateLimit<K> {
    windows: HashMap<K, Window>,
    /// The window of all keys that found no place.
    overflow: Window,
}

#[derive(Debug, Default)]
struct Window {
    start: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Window {
    fn over(&self, now: Instant) -> bool {
        self.start.is_none_or(|start| now.saturating_duration_since(start) >= WINDOW)
    }

    fn check(&mut self, now: Instant) -> Option<Suppressed> {
        if self.over(now) {
            (self.start, self.lines) = (Some(now), 0);
        }
        if self.lines == LINES_PER_SECOND {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(Suppressed(std::mem::take(&mut self.suppressed)))
    }
}

impl<K> Default for RateLimit<K> {
    fn default() -> Self {
        Self { windows: HashMap::new(), overflow: Window::default() }
    }
}

impl<K: Eq + Hash> RateLimit<K> {
    /// Whether a line for `key` may be logged now. `Some`: yes, and at its end is to be said how many like it were suppressed since the
    /// last one. `None`: no.
    pub fn check(&mut self, key: K, now: Instant) -> Option<Suppressed> {
        if let Some(window) = self.windows.get_mut(&key) {
            return window.check(now);
        }
        if self.windows.len() >= KEYS_MAX {
            self.windows.retain(|_, window| !window.over(now) || window.suppressed > 0);
        }
        if self.windows.len() >= KEYS_MAX {
            return self.overflow.check(now);
        }
        self.windows.entry(key).or_default().check(now)
    }

    /// The keys that have been quiet for a second after lines were suppressed, with their number: to be logged from a tick, so
    /// that the last burst is not left untold. Forgets keys with nothing to tell.
    pub fn settle(&mut self, now: Instant) -> Vec<(K, u64)> {
        let done = self.windows.extract_if(|_, window| window.over(now));
        done.filter(|(_, window)| window.suppressed > 0)
            .map(|(key, window)| (key, window.suppressed))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_cut_and_counted_in_the_next_line() {
        let mut limit = RateLimit::default();
        let now = Instant::now();
        let allowed = (0..100).filter(|_| limit.check("port 1", now).is_some()).count();
        assert_eq!(allowed, LINES_PER_SECOND as usize);
        assert_eq!(limit.check("port 2", now), Some(Suppressed(0)), "another key has its own count");
        assert_eq!(limit.check("port 1", now + WINDOW), Some(Suppressed(95)));
        assert_eq!(limit.check("port 1", now + WINDOW), Some(Suppressed(0)));
    }

    #[test]
    fn a_burst_that_ends_is_told_once() {
        let mut limit = RateLimit::default();
        let now = Instant::now();
        let allowed = (0..7).filter(|_| limit.check(1, now).is_some()).count();
        assert_eq!(allowed, 5);
        assert_eq!(limit.settle(now), [], "it may go on");
        assert_eq!(limit.settle(now + WINDOW), [(1, 2)]);
        assert_eq!(limit.settle(now + WINDOW), []);
    }

    #[test]
    fn invented_keys_do_not_grow_it() {
        let mut limit = RateLimit::default();
        let now = Instant::now();
        let allowed = (0..100_000).filter(|&key| limit.check(key, now).is_some()).count();
        assert_eq!(allowed, KEYS_MAX + LINES_PER_SECOND as usize);
        assert_eq!(limit.windows.len(), KEYS_MAX);
        assert!(limit.check(200_000, now + WINDOW).is_some(), "and they make room when their second is over");
    }
}
