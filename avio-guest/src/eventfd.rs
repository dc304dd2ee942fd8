//! Kick and call: eventfds between the guest and the back-end.
//!
//! Owns one descriptor each. Rings signal or wait through it; nothing here knows which ring it belongs to.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A counter that one side raises and the other waits for (vhost-user: SET_VRING_KICK, SET_VRING_CALL).
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one, at zero.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Raises it; wakes whoever waits. Any thread. A full counter means that the other side was told already.
    pub fn signal(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Sets it back to zero; true if it was raised. Does not wait.
    pub fn clear(&self) -> bool {
        self.take() > 0
    }

    /// Sets it back to zero; returns how often it was raised. Does not wait.
    pub fn take(&self) -> u64 {
        let mut count = [0u8; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `fds` is readable or `timeout` is over; true if one is. An interrupted wait counts as over.
///
/// # Panics
/// Never: timeouts beyond what the kernel can express are cut.
pub fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Duration) -> bool {
    let mut polls: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    poll(&mut polls, Some(&timeout)).is_ok_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_wakes_and_is_cleared() {
        let e = EventFd::new().unwrap();
        assert!(!wait_readable(&[e.as_fd()], Duration::ZERO));
        e.signal();
        e.signal();
        assert!(wait_readable(&[e.as_fd()], Duration::from_secs(5)));
        assert!(e.clear());
        assert!(!e.clear());
    }
}
