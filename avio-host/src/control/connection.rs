//! One client: bytes in, calls answered in order, bytes out.

use std::io::{self, ErrorKind, Read, Write};

use super::Peer;
use super::dispatch::{Answer, Interface, answer};

/// Longest call, in bytes without its NUL: names and a few numbers.
pub(super) const CALL_LEN_MAX: usize = 64 << 10;

/// Whether a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waits for the next readiness.
    Waits,
    /// The client is gone, broke the protocol, or had its last word.
    Ends,
}

/// A client's stream and what is half-way in it.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    peer: Peer,
    /// Received and not yet answered; at most a call and one read more.
    input: Vec<u8>,
    /// The reply that is being sent: there is one at a time, and no call is answered before it is gone, so a client
    /// that does not read costs one reply.
    output: Vec<u8>,
    sent: usize,
    /// The first call in `input` has no answer yet; it is made again by [`Self::resume`] only.
    holds: bool,
}

impl<S: Read + Write> Connection<S> {
    pub(super) fn new(stream: S, peer: Peer) -> Self {
        Connection { stream, peer, input: Vec::new(), output: Vec::new(), sent: 0, holds: false }
    }

    pub(super) fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Makes a call again that had no answer yet, and goes on from there.
    pub(super) fn resume(&mut self, interface: &mut dyn Interface) -> Fate {
        if !std::mem::take(&mut self.holds) {
            return Fate::Waits;
        }
        self.peer.again = true;
        self.drive(interface)
    }

    /// Does all that can be done now. Called on every readiness, because mio reports each once. A client whose call is held
    /// is not read from: what it did meanwhile is seen when the call has been answered.
    pub(super) fn drive(&mut self, interface: &mut dyn Interface) -> Fate {
        while !self.holds {
            match self.flush() {
                Ok(true) => {}
                Ok(false) => return Fate::Waits,
                Err(_) => return Fate::Ends,
            }
            if let Some(end) = self.input.iter().position(|&byte| byte == 0) {
                let reply = answer(&self.input[..end], interface, &self.peer);
                self.peer.again = false;
                self.holds = reply == Answer::Hold;
                if self.holds {
                    return Fate::Waits;
                }
                self.input.drain(..=end);
                match reply {
                    Answer::Nothing | Answer::Hold => {}
                    Answer::Close => return Fate::Ends,
                    Answer::Reply(reply) => match serde_json::to_vec(&reply) {
                        Ok(bytes) => {
                            self.output = bytes;
                            self.output.push(0);
                            self.sent = 0;
                        }
                        Err(_) => return Fate::Ends,
                    },
                }
                continue;
            }
            if self.input.len() > CALL_LEN_MAX {
                return Fate::Ends;
            }
            let mut piece = [0_u8; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return Fate::Ends,
                Ok(count) => self.input.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Fate::Waits,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Fate::Ends,
            }
        }
        Fate::Waits
    }

    /// Sends what it can; true once nothing is left.
    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // A large reply's memory is given back; the next one is probably small.
        self.output = Vec::new();
        self.sent = 0;
        Ok(true)
    }
}
