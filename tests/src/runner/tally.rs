//! Counts tests from the lines that test programs print as they run (libtest's form, which [`crate::case`] and `scripts/lint`
//! print too). Reads text only.

use std::collections::BTreeMap;

/// How the tests of a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed, by name; also parts that ended without saying how.
    pub failed: Vec<String>,
    /// Tests left out, by name.
    pub skipped: Vec<String>,
}

/// What one line of output means.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A test ended: its name and how.
    Ended(&'a str, Ending),
    /// Anything else.
    Other,
}

/// How one test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It was left out.
    Skipped,
}

/// Reads one line of a test program's output: `test NAME ... ok`, with anything after the verdict.
pub fn read(line: &str) -> Line<'_> {
    let Some((name, verdict)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) else {
        return Line::Other;
    };
    // `should_panic` tests carry a note after the name.
    let name = name.split(" - should panic").next().unwrap_or(name);
    let ending = match verdict.split([' ', ',']).next() {
        Some("ok") => Ending::Passed,
        Some("FAILED") => Ending::Failed,
        Some("ignored") => Ending::Skipped,
        _ => return Line::Other,
    };
    Line::Ended(name, ending)
}

impl Tally {
    /// Counts a test.
    pub fn count(&mut self, name: &str, ending: Ending) {
        match ending {
            Ending::Passed => self.passed += 1,
            Ending::Failed => self.failed.push(name.to_owned()),
            Ending::Skipped => self.skipped.push(name.to_owned()),
        }
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// Turns every skip that `allowed` does not name into a failure. A name there may be a test's last part.
    pub fn judge_skips(&mut self, allowed: &BTreeMap<String, String>) {
        let is_allowed =
            |name: &String| allowed.keys().any(|a| name == a || name.ends_with(&format!("::{a}")));
        let (fine, wrong): (Vec<_>, Vec<_>) = self.skipped.drain(..).partition(is_allowed);
        self.skipped = fine;
        self.failed.extend(
            wrong.into_iter().map(|name| format!("{name} (skipped, and not in tests/allowed-skips)")),
        );
    }

    /// The closing line, in the form that CI reads.
    pub fn closing_line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_in_every_form_that_is_printed() {
        assert_eq!(read("test ring::wraps ... ok"), Line::Ended("ring::wraps", Ending::Passed));
        assert_eq!(read("test a - should panic ... ok"), Line::Ended("a", Ending::Passed));
        assert_eq!(read("test lint::fmt ... FAILED (1.2 s)"), Line::Ended("lint::fmt", Ending::Failed));
        assert_eq!(read("test b ... ignored, needs a disk"), Line::Ended("b", Ending::Skipped));
        assert_eq!(
            read("test src/lib.rs - x (line 3) ... ok"),
            Line::Ended("src/lib.rs - x (line 3)", Ending::Passed)
        );
        assert_eq!(read("test b has been running for over 60 seconds"), Line::Other);
        assert_eq!(read("test result: ok. 3 passed; 0 failed"), Line::Other);
    }

    #[test]
    fn a_skip_nobody_allowed_is_a_failure() {
        let mut tally = Tally::default();
        tally.count("ok", Ending::Passed);
        tally.count("mod::known", Ending::Skipped);
        tally.count("unknown", Ending::Skipped);
        tally.judge_skips(&BTreeMap::from([("known".to_owned(), "why".to_owned())]));
        assert_eq!(tally.closing_line(), "1 passed, 1 failed, 1 skipped");
    }
}
