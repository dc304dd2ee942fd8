//! Telling a guest that its ring has news: the eventfds of vhost-user SET_VRING_CALL and SET_VRING_ERR.
//!
//! Engines call [`CallFd::call`] at most once per batch, after the ring's index is published and if the ring said so. The session
//! passes descriptors through [`signal_fd`] first. No ring is read here.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags};

use crate::stats::Cell64;

/// Checks a descriptor that a front-end sent to be notified by, and makes it non-blocking. Control thread.
///
/// An eventfd is what QEMU and DPDK send, User-Mode Linux sends a pipe. Writing to or waiting for anything else may
/// block the worker, at the pleasure of the file system behind it. `Err` says what it was.
///
/// Limit: the flag belongs to the open file, which the front-end holds too. One that clears it *and* keeps its own
/// eventfd at the ceiling can still hold a worker in `write`; Linux has no per-call way to refuse that.
pub fn signal_fd(fd: OwnedFd) -> io::Result<OwnedFd> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    let allowed = match kind {
        FileType::Fifo | FileType::Socket => true,
        // Anonymous inodes have no type of their own in older kernels; their name tells them apart.
        _ => is_eventfd(&fd),
    };
    if !allowed {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{kind:?} instead of an eventfd or pipe"),
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
    use std::os::fd::AsRawFd;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]")
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
    /// at most; it never blocks, and a guest that does not read its notifications loses none (the count or pipe is
    /// non-empty).
    #[inline]
    pub fn call(&self, wanted: bool) {
        match &self.fd {
            Some(fd) if wanted => {
                let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
                self.sent.add(1);
            }
            _ => self.suppressed.add(1),
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
        call.call(false);
        assert!(!event.drain());
        call.call(true);
        assert!(event.drain());
        assert_eq!((call.sent(), call.suppressed()), (1, 1));
        let none = CallFd::new(None);
        none.call(true);
        assert_eq!((none.sent(), none.suppressed()), (0, 1));
    }

    #[test]
    fn a_reader_that_sleeps_does_not_block_the_writer() {
        let full = EventFd::new().unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        CallFd::new(Some(signal_fd(full.try_clone().unwrap()).unwrap())).call(true);
        // A pipe as User-Mode Linux sends it, blocking when it comes.
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let call = CallFd::new(Some(signal_fd(writer).unwrap()));
        (0..100_000).for_each(|_| call.call(true));
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
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(kick_fd(reader).is_err());
        assert!(kick_fd(EventFd::new().unwrap().try_clone().unwrap()).is_ok());
    }
}
