//! Cutting a byte stream with attached descriptors into messages.
//!
//! Owns the half-received message. The session's socket reader calls it with what `recvmsg` returned. It tells how many
//! bytes may be read next, so that one read never spans two messages: then descriptors belong to exactly one message.

use super::message::{FLAG_VERSION, FLAG_VERSION_MASK, HEADER_LEN, Header, Message, Request};
use std::os::fd::OwnedFd;

/// Largest payload accepted, in bytes. The largest real one is SET_MEM_TABLE with 32 regions (1,032 bytes); a page leaves
/// room for front-ends that send more than they need.
pub const PAYLOAD_MAX: usize = 4096;
/// Most descriptors accepted with one message. The specification allows 8; libvhost-user takes 32 regions.
pub const FDS_MAX: usize = 32;

/// Why a byte stream is not vhost-user.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The version bits are not 1.
    #[error("{request} has protocol version {version}, only 1 exists")]
    Version {
        /// Which request.
        request: Request,
        /// Version bits of the flags field.
        version: u32,
    },
    /// Payload longer than [`PAYLOAD_MAX`].
    #[error("{request} announces {size} bytes of payload, at most {PAYLOAD_MAX} are accepted")]
    TooLong {
        /// Which request.
        request: Request,
        /// Size field of the header in bytes.
        size: u32,
    },
    /// More descriptors than [`FDS_MAX`].
    #[error("more than {FDS_MAX} descriptors with one message")]
    TooManyFds,
}

/// Collects one message at a time.
#[derive(Debug, Default)]
pub struct FrameReader {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    header: Option<Header>,
}

impl FrameReader {
    /// A reader at a message border.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes to read next, 1..=[`PAYLOAD_MAX`]; reading more would run into the next message.
    #[must_use]
    pub fn wanted(&self) -> usize {
        match &self.header {
            None => HEADER_LEN - self.bytes.len(),
            Some(header) => header.size as usize - self.bytes.len(),
        }
    }

    /// Whether no byte of a message has been received yet.
    #[must_use]
    pub fn at_border(&self) -> bool {
        self.header.is_none() && self.bytes.is_empty()
    }

    /// Takes up to [`Self::wanted`] bytes and the descriptors received with them; returns the message once it is whole.
    ///
    /// # Errors
    /// [`FrameError`]; the stream cannot be used any more, descriptors received so far are closed on drop.
    pub fn push(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<Option<Message>, FrameError> {
        debug_assert!(bytes.len() <= self.wanted());
        self.bytes.extend_from_slice(bytes);
        self.fds.extend(fds);
        if self.fds.len() > FDS_MAX {
            return Err(FrameError::TooManyFds);
        }
        if self.header.is_none() {
            let Ok(raw) = <&[u8; HEADER_LEN]>::try_from(self.bytes.as_slice()) else {
                return Ok(None);
            };
            let header = Header::decode(raw);
            let request = Request(header.request);
            let version = header.flags & FLAG_VERSION_MASK;
            if version != FLAG_VERSION {
                return Err(FrameError::Version { request, version });
            }
            if header.size as usize > PAYLOAD_MAX {
                return Err(FrameError::TooLong { request, size: header.size });
            }
            self.header = Some(header);
            self.bytes.clear();
        }
        match self.header {
            Some(header) if self.bytes.len() >= header.size as usize => {
                self.header = None;
                Ok(Some(Message {
                    request: Request(header.request),
                    flags: header.flags,
                    payload: std::mem::take(&mut self.bytes),
                    fds: std::mem::take(&mut self.fds),
                }))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost_user::message::Outgoing;

    #[test]
    fn one_byte_at_a_time() {
        let sent = Outgoing::new(2, 0, &7u64.to_ne_bytes(), Vec::new()).bytes;
        let mut reader = FrameReader::new();
        for (i, byte) in sent.iter().enumerate() {
            let got = reader.push(&[*byte], Vec::new()).unwrap();
            assert_eq!(got.is_some(), i + 1 == sent.len());
            if let Some(message) = got {
                assert_eq!(
                    (message.request, message.payload),
                    (Request::SET_FEATURES, 7u64.to_ne_bytes().to_vec())
                );
            }
        }
        assert!(reader.at_border());
        assert_eq!(reader.wanted(), HEADER_LEN);
    }

    #[test]
    fn empty_payload_is_whole_with_its_header() {
        let mut reader = FrameReader::new();
        let got = reader.push(&Outgoing::new(3, 0, &[], Vec::new()).bytes, Vec::new()).unwrap().unwrap();
        assert_eq!(got.request, Request::SET_OWNER);
    }

    #[test]
    fn wrong_version_and_size_are_refused() {
        let header = Header { request: 1, flags: 2, size: 0 };
        let err = FrameReader::new().push(&header.encode(), Vec::new()).unwrap_err();
        assert_eq!(err, FrameError::Version { request: Request(1), version: 2 });
        let header = Header { request: 5, flags: 1, size: 4097 };
        let err = FrameReader::new().push(&header.encode(), Vec::new()).unwrap_err();
        assert_eq!(err, FrameError::TooLong { request: Request(5), size: 4097 });
    }
}
