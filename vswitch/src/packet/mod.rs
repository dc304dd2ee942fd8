//! What a frame's headers say: fixed-offset reading of the snapshot, in two depths.
//!
//! Owns the reading of Ethernet, one 802.1Q tag, IPv4, IPv6 with its extension headers, the transport header's length, ARP
//! and neighbour discovery, and the flow hash. Workers call it through the forwarding engine and the offload code with the
//! *snapshot* of a frame (the first 192 or 256 bytes, copied once), never with guest memory. It judges nothing: whether a
//! guest may send what is found here is the guard's business. It never allocates and never panics on any bytes.
//!
//! [`Ethernet::parse`] is the cheap depth, done for each frame. [`Ip::parse`] is the deep one, done only where an offload, an
//! address guard or a flow hash asks for it.

mod ethernet;
mod flow;
mod ip;
pub mod neighbour;
#[cfg(test)]
mod tests;
pub mod vlan;

pub use ethernet::{ETHERNET_LEN, Ethernet, TAG_LEN, ethertype, is_tag_type};
pub use flow::flow_hash;
pub use ip::{Fragment, Ip, IpVersion, MAX_EXTENSION_HEADERS, protocol};

/// Why a header cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The frame ends inside a header.
    #[error("the frame ends inside a header")]
    Short,
    /// The frame is long enough, but the header lies (partly) behind the snapshot.
    #[error("a header reaches behind the first bytes that are looked at")]
    BeyondSnapshot,
    /// A length or version field contradicts itself, or there are more extension headers than [`MAX_EXTENSION_HEADERS`].
    #[error("a header contradicts itself")]
    Malformed,
    /// The frame is of another protocol.
    #[error("the frame is of another protocol")]
    OtherProtocol,
}

/// The `N` bytes of `head` at `at`. If they are not all there, says whether the frame or only the snapshot is too short.
#[inline]
fn bytes_at<const N: usize>(head: &[u8], frame_len: usize, at: usize) -> Result<&[u8; N], ParseError> {
    match head.get(at..).and_then(<[u8]>::first_chunk) {
        Some(bytes) => Ok(bytes),
        None if at + N > frame_len => Err(ParseError::Short),
        None => Err(ParseError::BeyondSnapshot),
    }
}
