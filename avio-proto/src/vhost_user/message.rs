//! Request numbers, message headers and whole messages (specification: "Message Specification", "Front-end message types").
//!
//! Owns the 12 bytes in front of every payload. Used by the frame reader and both state machines; interprets no payload.

use std::fmt;
use std::os::fd::OwnedFd;

/// Length of a message header in bytes: request, flags, payload size, each 32 bits in the machine's byte order.
pub const HEADER_LEN: usize = 12;
/// Bits of the flags field that hold the protocol version.
pub const FLAG_VERSION_MASK: u32 = 0x3;
/// The only protocol version there is.
pub const FLAG_VERSION: u32 = 0x1;
/// Set in every reply.
pub const FLAG_REPLY: u32 = 0x4;
/// The front-end wants an acknowledgement (protocol feature REPLY_ACK).
pub const FLAG_NEED_REPLY: u32 = 0x8;

/// What the front-end asks of the back-end. Numbers that this version does not know survive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request(pub u32);

macro_rules! requests {
    ($type:ident { $($(#[$doc:meta])* $name:ident = $number:expr,)* }) => {
        impl $type {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// Every request this version knows.
            pub const KNOWN: &'static [Self] = &[$(Self::$name),*];

            /// The specification's name without its prefix; `None` for a number this version does not know.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "request {}", self.0),
                }
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

requests!(Request {
    /// Reply: u64, the virtio features offered.
    GET_FEATURES = 1,
    /// u64, the virtio features acked.
    SET_FEATURES = 2,
    /// No payload; the first message that makes the front-end the owner.
    SET_OWNER = 3,
    /// Deprecated; disables all rings.
    RESET_OWNER = 4,
    /// Memory regions, one descriptor each; replaces all of them.
    SET_MEM_TABLE = 5,
    /// Dirty log: size, offset, one descriptor. Has a reply of its own.
    SET_LOG_BASE = 6,
    /// Event descriptor to signal log writes.
    SET_LOG_FD = 7,
    /// Vring state: ring size in entries.
    SET_VRING_NUM = 8,
    /// Vring addresses.
    SET_VRING_ADDR = 9,
    /// Vring state: where to go on.
    SET_VRING_BASE = 10,
    /// Vring state; stops the ring; reply: vring state with the base.
    GET_VRING_BASE = 11,
    /// Vring descriptor: guest to device; starts the ring.
    SET_VRING_KICK = 12,
    /// Vring descriptor: device to guest.
    SET_VRING_CALL = 13,
    /// Vring descriptor: the ring is broken.
    SET_VRING_ERR = 14,
    /// Reply: u64, the protocol features offered.
    GET_PROTOCOL_FEATURES = 15,
    /// u64, the protocol features acked.
    SET_PROTOCOL_FEATURES = 16,
    /// Reply: u64, the number of rings.
    GET_QUEUE_NUM = 17,
    /// Vring state: 1 enables, 0 disables.
    SET_VRING_ENABLE = 18,
    /// u64 holding a MAC address: announce it, the guest has moved here.
    SEND_RARP = 19,
    /// u64, the MTU.
    NET_SET_MTU = 20,
    /// One descriptor: the socket for requests of the back-end.
    SET_BACKEND_REQ_FD = 21,
    /// IOTLB message; never offered.
    IOTLB_MSG = 22,
    /// Cross-endian rings; never offered.
    SET_VRING_ENDIAN = 23,
    /// Device configuration space; reply of the same shape.
    GET_CONFIG = 24,
    /// Write into configuration space.
    SET_CONFIG = 25,
    /// Crypto; never offered.
    CREATE_CRYPTO_SESSION = 26,
    /// Crypto; never offered.
    CLOSE_CRYPTO_SESSION = 27,
    /// Postcopy; never offered.
    POSTCOPY_ADVISE = 28,
    /// Postcopy; never offered.
    POSTCOPY_LISTEN = 29,
    /// Postcopy; never offered.
    POSTCOPY_END = 30,
    /// In-flight description; reply with a descriptor for the region.
    GET_INFLIGHT_FD = 31,
    /// In-flight description with the descriptor.
    SET_INFLIGHT_FD = 32,
    /// GPU; never offered.
    GPU_SET_SOCKET = 33,
    /// Back to the initial state.
    RESET_DEVICE = 34,
    /// Kick inside the socket; never offered.
    VRING_KICK = 35,
    /// Reply: u64, the number of memory slots.
    GET_MAX_MEM_SLOTS = 36,
    /// One memory region and its descriptor.
    ADD_MEM_REG = 37,
    /// One memory region.
    REM_MEM_REG = 38,
    /// u64, virtio device status.
    SET_STATUS = 39,
    /// Reply: u64, virtio device status.
    GET_STATUS = 40,
});

/// What the back-end asks of the front-end on the channel that SET_BACKEND_REQ_FD opened.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChannelRequest(pub u32);

requests!(ChannelRequest {
    /// IOTLB; never sent.
    IOTLB_MSG = 1,
    /// The configuration space has changed.
    CONFIG_CHANGE_MSG = 2,
    /// A ring's doorbell; never sent.
    VRING_HOST_NOTIFIER_MSG = 3,
});

/// The header of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Request number; meaning depends on the direction.
    pub request: u32,
    /// `FLAG_*` bits.
    pub flags: u32,
    /// Length of the payload in bytes.
    pub size: u32,
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let word = |i: usize| u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        Self { request: word(0), flags: word(4), size: word(8) }
    }

    /// Writes a header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }
}

/// A message as it was received, with the descriptors that came with it. Dropping it closes them.
#[derive(Debug)]
pub struct Message {
    /// Request number; meaning depends on the direction.
    pub request: Request,
    /// `FLAG_*` bits.
    pub flags: u32,
    /// As many bytes as the header said.
    pub payload: Vec<u8>,
    /// Descriptors in the order they were sent.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// Whether it answers an earlier request.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }

    /// Whether the sender asks for an acknowledgement.
    #[must_use]
    pub fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }
}

/// A message to send: all of `bytes`, with `fds` attached to the first byte.
#[derive(Debug)]
pub struct Outgoing {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// Descriptors to attach.
    pub fds: Vec<OwnedFd>,
}

impl Outgoing {
    /// Puts a header in front of `payload`. `flags` without the version, which is added.
    #[must_use]
    pub fn new(request: u32, flags: u32, payload: &[u8], fds: Vec<OwnedFd>) -> Self {
        let header = Header { request, flags: flags | FLAG_VERSION, size: payload.len() as u32 };
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(payload);
        Self { bytes, fds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte vectors for a little-endian machine, from the specification's "Header" figure.
    #[test]
    #[cfg(target_endian = "little")]
    fn header_bytes() {
        let header = Header { request: 15, flags: 0x5, size: 8 };
        let bytes = [0x0f, 0, 0, 0, 0x05, 0, 0, 0, 0x08, 0, 0, 0];
        assert_eq!(header.encode(), bytes);
        assert_eq!(Header::decode(&bytes), header);
    }

    #[test]
    fn unknown_requests_survive() {
        let header = Header { request: 0xdead_beef, flags: 1, size: 0 };
        let back = Header::decode(&header.encode());
        assert_eq!(Request(back.request).name(), None);
        assert_eq!(Request(back.request).to_string(), "request 3735928559");
        assert_eq!(Request::SET_STATUS.to_string(), "SET_STATUS");
    }

    #[test]
    fn request_numbers_are_the_specifications() {
        assert_eq!(Request::KNOWN.len(), 40);
        for (i, request) in Request::KNOWN.iter().enumerate() {
            assert_eq!(request.0 as usize, i + 1, "{request}");
        }
    }
}
