//! Why a device cannot be opened, and how often that is said: it is tried again every few seconds, maybe for days.
//!
//! One for each device of an uplink, on the control thread. Decides what is worth a line; logs nothing itself.

use std::time::{Duration, Instant};

/// After so long the same reason is said once more, with how often it was.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    why: Option<String>,
    /// The last one that had a line, and when.
    said: Option<(String, Instant)>,
    /// How often it was so since.
    again: u32,
}

impl Trouble {
    /// Why the device is closed, for the operator.
    pub(super) fn why(&self) -> Option<&String> {
        self.why.as_ref()
    }

    /// It could not be opened. What is to be added to the line for the log; `None`: it was said.
    pub(super) fn another(&mut self, why: &str, now: Instant) -> Option<String> {
        self.why = Some(why.to_owned());
        let is_said = self.said.as_ref().filter(|(said, _)| said == why).map(|(_, at)| *at);
        self.again += 1;
        if is_said.is_some_and(|at| now.saturating_duration_since(at) < AGAIN_AFTER) {
            return None;
        }
        self.said = Some((why.to_owned(), now));
        let tries = std::mem::take(&mut self.again);
        Some(if is_said.is_some() {
            format!(" (tried {tries} times since that was said)")
        } else {
            String::new()
        })
    }

    /// It is open.
    pub(super) fn over(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once_and_then_by_the_hour() {
        let (mut trouble, start) = (Trouble::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(trouble.another("a", at(0)), Some(String::new()));
        assert!((1..720).all(|n| trouble.another("a", at(5 * n)).is_none()));
        assert_eq!(trouble.another("a", at(3600)), Some(" (tried 720 times since that was said)".to_owned()));
        assert_eq!(trouble.another("a", at(3605)), None);
        // Another one; and the first one again.
        assert_eq!(trouble.another("b", at(3610)), Some(String::new()));
        assert_eq!(trouble.another("a", at(3615)), Some(String::new()));
        assert_eq!(trouble.why().map(String::as_str), Some("a"));
        trouble.over();
        assert_eq!(trouble.why(), None);
        assert_eq!(trouble.another("a", at(3620)), Some(String::new()));
    }
}
