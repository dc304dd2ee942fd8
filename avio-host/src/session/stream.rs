//! One end of a vhost-user connection: bytes and descriptors in and out of a Unix socket, never waiting.
//!
//! Owns the socket, the half-received message and what has not been sent yet. Used by sessions on the control thread; it
//! does not know what a message means.

use avio_proto::vhost_user::backend::SessionError;
use avio_proto::vhost_user::frame::{FDS_MAX, PAYLOAD_MAX};
use avio_proto::vhost_user::{FrameReader, Message, Outgoing};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Control buffer for one receive: room for one descriptor more than allowed, so that too many are seen and not only
/// truncated by the kernel.
const CONTROL_LEN: usize = rustix::cmsg_space!(ScmRights(FDS_MAX + 1));

/// What a receive came to.
#[derive(Debug)]
pub(super) enum Received {
    Message(Message),
    /// Nothing more until the socket is readable again.
    Later,
    /// The peer has gone; true: in the middle of a message.
    Gone {
        midway: bool,
    },
}

/// Why a receive failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
    #[error("more descriptors with one message than {FDS_MAX}, or none left in this process")]
    ControlTruncated,
}

#[derive(Debug)]
pub(super) struct Stream {
    socket: UnixStream,
    reader: FrameReader,
    unsent: VecDeque<Outgoing>,
    /// Bytes of the first unsent message that have been sent.
    sent_len: usize,
}

impl Stream {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, reader: FrameReader::new(), unsent: VecDeque::new(), sent_len: 0 })
    }

    /// Receives until a message is whole or the socket is empty.
    pub(super) fn receive(&mut self) -> Result<Received, StreamError> {
        let mut bytes = [0; PAYLOAD_MAX];
        loop {
            let wanted = self.reader.wanted();
            let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut iov = [IoSliceMut::new(&mut bytes[..wanted])];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let got = match recvmsg(&self.socket, &mut iov, &mut control, flags) {
                Ok(got) => got,
                Err(rustix::io::Errno::AGAIN) => return Ok(Received::Later),
                Err(rustix::io::Errno::INTR) => continue,
                // A reset by a peer that died with unread replies is an end like any other.
                Err(rustix::io::Errno::CONNRESET) => {
                    return Ok(Received::Gone { midway: !self.reader.at_border() });
                }
                Err(error) => return Err(StreamError::Socket(error.into())),
            };
            let mut fds: Vec<OwnedFd> = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            if got.flags.contains(ReturnFlags::CTRUNC) {
                return Err(StreamError::ControlTruncated);
            }
            if got.bytes == 0 {
                return Ok(Received::Gone { midway: !self.reader.at_border() });
            }
            if let Some(message) = self.reader.push(&bytes[..got.bytes], fds).map_err(SessionError::from)? {
                return Ok(Received::Message(message));
            }
        }
    }

    /// The process that connected, or that listens (SO_PEERCRED, unix(7)).
    pub(super) fn peer_pid(&self) -> Option<i32> {
        let peer = rustix::net::sockopt::socket_peercred(&self.socket).ok()?;
        Some(peer.pid.as_raw_nonzero().get())
    }

    #[cfg(test)]
    pub(super) fn socket_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn queue(&mut self, message: Outgoing) {
        self.unsent.push_back(message);
    }

    /// Sends what it can; true if nothing is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while let Some(message) = self.unsent.front() {
            let fds: &[OwnedFd] = if self.sent_len == 0 { &message.fds } else { &[] };
            match send(self.socket.as_fd(), &message.bytes[self.sent_len..], fds) {
                Ok(n) => self.sent_len += n,
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.sent_len == message.bytes.len() {
                self.unsent.pop_front();
                self.sent_len = 0;
            }
        }
        Ok(true)
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// One send that never waits; for the back-end's channel too, whose messages may be lost.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> rustix::io::Result<usize> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(rustix::io::Errno::TOOMANYREFS);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}
