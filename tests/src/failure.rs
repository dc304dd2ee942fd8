//! Why a system test failed, in one sentence. Made by everything in this crate; printed by the case runner. It is not meant
//! to be matched on.

use std::fmt;
use std::time::{Duration, Instant};

/// A reason in words. Any error converts into it, so `?` works on everything.
pub struct Failure(String);

/// What fallible functions of this crate return.
pub type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure that says `reason`.
    pub fn new(reason: impl Into<String>) -> Self {
        Failure(reason.into())
    }

    /// The same failure, telling first what was being done.
    #[must_use]
    pub fn while_doing(self, what: &str) -> Self {
        Failure(format!("{what}: {}", self.0))
    }
}

/// Fails with `reason` unless `holds`.
///
/// # Errors
/// The reason, as a [`Failure`].
pub fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Result {
    if holds { Ok(()) } else { Err(Failure(reason())) }
}

/// Waits until `holds`, for `seconds` at most, and looks twenty times a second.
///
/// # Errors
/// `what` has not come.
pub fn eventually(what: &str, seconds: u64, mut holds: impl FnMut() -> bool) -> Result {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        ensure(Instant::now() < deadline, || format!("{what}: not after {seconds} s"))?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
