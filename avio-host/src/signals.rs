//! SIGTERM, SIGINT and SIGHUP as something the control thread's mio loop can wait for.
//!
//! Installed once by a daemon's `main`. The handler sets a flag and writes one byte; what the signal means is done by control.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// What the operator or the service manager asks for by signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Requested {
    /// SIGTERM or SIGINT: stop cleanly.
    pub stop: bool,
    /// SIGHUP: read the configuration again.
    pub reload: bool,
}

/// The installed signals. Register its fd for reading; when it is readable call [`take`](Self::take).
#[derive(Debug)]
pub struct Signals {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    readable: UnixStream,
}

impl Signals {
    /// Installs the handlers, for the life of the process.
    pub fn install() -> io::Result<Self> {
        let (readable, writable) = UnixStream::pair()?;
        readable.set_nonblocking(true)?;
        let (stop, reload) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for (signal, flag) in [(SIGTERM, &stop), (SIGINT, &stop), (SIGHUP, &reload)] {
            // Actions run in the order registered: the flag is set before the byte wakes anybody.
            signal_hook::flag::register(signal, Arc::clone(flag))?;
            signal_hook::low_level::pipe::register(signal, writable.try_clone()?)?;
        }
        Ok(Self { stop, reload, readable })
    }

    /// What was asked for since the last call. Never blocks.
    pub fn take(&mut self) -> Requested {
        let mut bytes = [0; 64];
        while self.readable.read(&mut bytes).is_ok_and(|len| len > 0) {}
        Requested {
            stop: self.stop.swap(false, Ordering::Relaxed),
            reload: self.reload.swap(false, Ordering::Relaxed),
        }
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.readable.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn signals_arrive_through_mio() {
        let mut signals = Signals::install().unwrap();
        let mut poll = mio::Poll::new().unwrap();
        let fd = signals.as_raw_fd();
        poll.registry()
            .register(&mut mio::unix::SourceFd(&fd), mio::Token(1), mio::Interest::READABLE)
            .unwrap();
        let mut events = mio::Events::with_capacity(8);
        assert_eq!(signals.take(), Requested::default());
        for (signal, expected) in [
            (SIGHUP, Requested { reload: true, ..Default::default() }),
            (SIGTERM, Requested { stop: true, ..Default::default() }),
            (SIGINT, Requested { stop: true, ..Default::default() }),
        ] {
            signal_hook::low_level::raise(signal).unwrap();
            poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
            assert!(!events.is_empty());
            assert_eq!(signals.take(), expected);
        }
        assert_eq!(signals.take(), Requested::default());
    }
}
