//! The vhost-user socket, front-end end: whole messages with their descriptors, out and in.
//!
//! Owns the stream and the half-received message. [`crate::Session`] decides what is said; nothing here reads a payload.

use avio_proto::vhost_user::frame::{FDS_MAX, FrameReader};
use avio_proto::vhost_user::message::{Message, Outgoing};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Pause between attempts to connect to a socket that is not there yet.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Where the session's socket comes from.
#[derive(Debug)]
pub enum Endpoint {
    /// The back-end listens at this path, the guest connects.
    Connect(PathBuf),
    /// The guest listens, the back-end connects (`socket_role = "client"`, DPDK `client=1`).
    Listen(UnixListener, PathBuf),
}

impl Endpoint {
    /// The guest will connect to `path`.
    #[must_use]
    pub fn connect(path: impl Into<PathBuf>) -> Self {
        Self::Connect(path.into())
    }

    /// The guest listens at `path`, at once. A socket that a previous process left there is replaced.
    ///
    /// # Errors
    /// What unlink, bind or listen say.
    pub fn listen(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self::Listen(listener, path))
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Connect(path) | Self::Listen(_, path) => path,
        }
    }

    /// Waits up to `timeout` for the back-end.
    ///
    /// # Errors
    /// The last error when the time is over: not found or refused when connecting, timed out when listening.
    pub fn open(&self, timeout: Duration) -> io::Result<UnixStream> {
        let deadline = Instant::now() + timeout;
        loop {
            let attempt = match self {
                Self::Connect(path) => UnixStream::connect(path),
                Self::Listen(listener, _) => listener.accept().map(|(stream, _)| stream),
            };
            match attempt {
                Ok(stream) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(e) if Instant::now() >= deadline => {
                    return Err(if e.kind() == io::ErrorKind::WouldBlock {
                        io::ErrorKind::TimedOut.into()
                    } else {
                        e
                    });
                }
                Err(_) => std::thread::sleep(RETRY_PAUSE),
            }
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Self::Listen(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: UnixStream,
    reader: FrameReader,
}

impl Socket {
    /// Blocking from here on; a reply that takes longer than `reply_timeout` is an error.
    pub(crate) fn new(stream: UnixStream, reply_timeout: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(reply_timeout))?;
        stream.set_write_timeout(Some(reply_timeout))?;
        Ok(Self { stream, reader: FrameReader::new() })
    }

    /// Sends all of it; the descriptors go with the first byte and are closed here afterwards.
    pub(crate) fn send(&self, out: &Outgoing) -> io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = out.fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let mut sent =
            sendmsg(&self.stream, &[IoSlice::new(&out.bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        while sent < out.bytes.len() {
            let rest = [IoSlice::new(&out.bytes[sent..])];
            sent += sendmsg(&self.stream, &rest, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    /// Waits for one whole message.
    pub(crate) fn receive(&mut self) -> io::Result<Message> {
        loop {
            let mut bytes = vec![0; self.reader.wanted()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let got = match recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                other => other?.bytes,
            };
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut fds: Vec<OwnedFd> = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            if let Some(message) = self.reader.push(&bytes[..got], fds).map_err(io::Error::other)? {
                return Ok(message);
            }
        }
    }

    /// Whether the other end is still there, without waiting. Unread replies do not count as an end.
    pub(crate) fn is_open(&self) -> bool {
        let mut byte = [0u8; 1];
        match rustix::net::recv(&self.stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((n, _)) => n > 0,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
            Err(_) => false,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
