//! Telling a guest that its ring has news: the eventfds of vhost-user SET_VRING_CALL and SET_VRING_ERR.
//!
//! Engines call [`CallFd::call`] at most once per batch, after the ring's index is published and if the ring said so. The session
//! passes descriptors through [`signal_fd`] first. No ring is read here.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;

use crate::stats::Cell64;
use crate::wait::tell;

/// Checks a descriptor that a front-end sent to be notified by, and makes it non-blocking. Control thread.
///
/// An eventfd is what QEMU and DPDK send; what User-Mode Linux calls a pipe is one end of a socket pair. Writing to or waiting
/// for anything else may block the worker, at the pleasure of the file system behind it. `Err` says what it was.
pub fn signal_fd(fd: OwnedFd) -> io::Result<OwnedFd> {
    let kind = kind(&fd);
    if !is_eventfd(&fd) && !kind.starts_with("pipe:[") && !kind.starts_with("socket:[") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{kind} instead of an eventfd or pipe"),
        ));
    }
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    Ok(fd)
}

/// Checks a descriptor that a front-end sent to kick a ring with. Only an eventfd: it is listened to by its edges and never
/// read, which a pipe that fills up would not bear.
pub fn kick_fd(fd: OwnedFd) -> io::Result<OwnedFd> {
    if is_eventfd(&fd) {
        return Ok(fd);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not an eventfd"))
}

fn is_eventfd(fd: &OwnedFd) -> bool {
    kind(fd) == "anon_inode:[eventfd]"
}

/// What the kernel calls the file. Not fstat: that asks the file system, and the front-end may be the file system (FUSE).
fn kind(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.map_or_else(|e| format!("an unreadable descriptor ({e})"), |link| link.display().to_string())
}

/// The notification of one ring, with its counters. One caller at a time (the worker that owns the ring, or who holds its lock).
#[derive(Debug, Default)]
pub struct CallFd {
    fd: Option<OwnedFd>,
    sent: Cell64,
    suppressed: Cell64,
}

impl CallFd {
    /// `fd` has been through [`signal_fd`]; `None` (VHOST_USER_VRING_NOFD): the guest polls and is never notified.
    pub fn new(fd: Option<OwnedFd>) -> Self {
        Self { fd, sent: Cell64::new(), suppressed: Cell64::new() }
    }

    /// After a batch was published: notifies if `wanted` (what the ring's publication returned), counts either way. One system call
    /// at most; a guest that does not read its notifications loses none (the count or pipe is non-empty). `false`: the
    /// front-end held the writer ([`tell`]); its session is to be ended.
    #[inline]
    #[must_use = "a front-end that holds its notifier does it again"]
    pub fn call(&self, wanted: bool) -> bool {
        match &self.fd {
            Some(fd) if wanted => {
                self.sent.add(1);
                tell(fd)
            }
            _ => {
                self.suppressed.add(1);
                true
            }
        }
    }

    /// Notifications written; any thread.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Batches that needed none; any thread.
    pub fn suppressed(&self) -> u64 {
        self.suppressed.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::EventFd;

    #[test]
    fn one_write_per_wanted_call() {
        let event = EventFd::new().unwrap();
        let call = CallFd::new(Some(signal_fd(event.try_clone().unwrap()).unwrap()));
        assert!(call.call(false));
        assert!(!event.drain());
        assert!(call.call(true));
        assert!(event.drain());
        assert_eq!((call.sent(), call.suppressed()), (1, 1));
        let none = CallFd::new(None);
        assert!(none.call(true));
        assert_eq!((none.sent(), none.suppressed()), (0, 1));
    }

    #[test]
    fn a_reader_that_sleeps_does_not_block_the_writer() {
        let full = EventFd::new().unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert!(CallFd::new(Some(signal_fd(full.try_clone().unwrap()).unwrap())).call(true));
        // A pipe as User-Mode Linux sends it, blocking when it comes.
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let call = CallFd::new(Some(signal_fd(writer).unwrap()));
        (0..100_000).for_each(|_| assert!(call.call(true)));
        assert_eq!(call.sent(), 100_000);
    }

    #[test]
    fn what_could_block_is_refused() {
        for path in ["/proc/self/exe", "/dev/null", "/"] {
            let error = signal_fd(std::fs::File::open(path).unwrap().into()).unwrap_err();
            assert!(error.to_string().contains("instead of an eventfd"), "{path}: {error}");
        }
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        assert!(signal_fd(epoll).is_err());
        // User-Mode Linux's "pipe"; one whose other end is gone is an error of write, not a signal.
        let (socket, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let call = CallFd::new(Some(signal_fd(socket.into()).unwrap()));
        assert!(call.call(true));
        drop(other);
        assert!(call.call(true));
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(kick_fd(reader).is_err());
        assert!(kick_fd(EventFd::new().unwrap().try_clone().unwrap()).is_ok());
    }
}
