//! How workers and helpers tell the control thread that something waits for it.
//!
//! Control registers the fd in its mio loop (level-triggered use is fine), calls [`drain`](ControlWaker::drain) when it is
//! readable, then looks at its reply channels and barriers. Any thread wakes; nobody blocks.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crate::wait::EventFd;
use crate::wait::sync::{AtomicBool, Ordering};

/// Wakes the control thread. Clones wake the same thread.
#[derive(Debug, Clone)]
pub struct ControlWaker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    event: EventFd,
    /// The eventfd has been written since the last drain: no need to write it again.
    pending: AtomicBool,
}

impl ControlWaker {
    /// A waker; fails when the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Inner { event: EventFd::new()?, pending: AtomicBool::new(false) })))
    }

    /// Wakes control, after the reply has been sent. One system call at most, none while an earlier wake is not drained.
    pub fn wake(&self) {
        // Both sides swap, so the drain that a skipped write relies on acquires what was published here.
        if !self.0.pending.swap(true, Ordering::AcqRel) {
            self.0.event.signal();
        }
    }

    /// Control: to be called *before* looking at what there is. Returns whether anybody had woken us.
    pub fn drain(&self) -> bool {
        self.0.event.drain();
        self.0.pending.swap(false, Ordering::AcqRel)
    }
}

impl AsRawFd for ControlWaker {
    fn as_raw_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn mio_sees_one_wake_for_many() {
        let waker = ControlWaker::new().unwrap();
        let mut poll = mio::Poll::new().unwrap();
        let fd = waker.as_raw_fd();
        poll.registry()
            .register(&mut mio::unix::SourceFd(&fd), mio::Token(7), mio::Interest::READABLE)
            .unwrap();
        let mut events = mio::Events::with_capacity(8);
        for _ in 0..2 {
            let other = waker.clone();
            std::thread::spawn(move || (0..100).for_each(|_| other.wake())).join().unwrap();
            poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
            assert_eq!(events.iter().filter(|event| event.token() == mio::Token(7)).count(), 1);
            assert!(waker.drain());
            assert!(!waker.drain());
        }
    }
}
