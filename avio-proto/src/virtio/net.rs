//! The virtio-net header that precedes each frame in a ring (virtio 1.3 §5.1.6).
//!
//! Owns the layout; whether a header is believable is decided by the switch.

use crate::virtio::features::{NET_MRG_RXBUF, VERSION_1};

/// Length in bytes of the header of a modern device, or of one that merges receive buffers.
pub const HEADER_LEN: usize = 12;
/// Length in bytes of the header of a legacy device without merged buffers (no `num_buffers`).
pub const LEGACY_HEADER_LEN: usize = 10;
/// Where `num_buffers` stands in the header, in bytes.
pub const NUM_BUFFERS_OFFSET: usize = 10;

/// `flags`: `csum_start` and `csum_offset` are valid, the checksum is partial.
pub const F_NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum has been verified.
pub const F_DATA_VALID: u8 = 2;
/// `gso_type`: not a segmentation frame.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: UDP fragmentation (obsolete, never offered by AVIO).
pub const GSO_UDP: u8 = 3;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP segmentation (one datagram per segment).
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type` flag: the TCP header has ECN bits that segmentation must treat (CWR only in the first segment).
pub const GSO_ECN: u8 = 0x80;

/// One virtio-net header in host form. Fields are little-endian on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of the headers in bytes, a hint by the driver; AVIO recomputes it.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where checksumming starts, in bytes from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum goes, in bytes from `csum_start`.
    pub csum_offset: u16,
    /// Receive only: how many buffers the frame takes.
    pub num_buffers: u16,
}

impl NetHeader {
    /// Reads a header from its first ten or twelve bytes; `num_buffers` of a ten-byte one is 0.
    #[inline]
    #[must_use]
    pub fn from_bytes(b: &[u8; HEADER_LEN]) -> Self {
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16::from_le_bytes([b[2], b[3]]),
            gso_size: u16::from_le_bytes([b[4], b[5]]),
            csum_start: u16::from_le_bytes([b[6], b[7]]),
            csum_offset: u16::from_le_bytes([b[8], b[9]]),
            num_buffers: u16::from_le_bytes([b[10], b[11]]),
        }
    }

    /// The twelve wire bytes; a legacy receiver takes the first ten.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let h = self.hdr_len.to_le_bytes();
        let g = self.gso_size.to_le_bytes();
        let s = self.csum_start.to_le_bytes();
        let o = self.csum_offset.to_le_bytes();
        let n = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h[0], h[1], g[0], g[1], s[0], s[1], o[0], o[1], n[0], n[1]]
    }
}

/// Length in bytes of the header in front of each frame under these acked features (§5.1.6.1).
#[inline]
#[must_use]
pub fn header_len(features: u64) -> usize {
    if features & (VERSION_1 | NET_MRG_RXBUF) != 0 { HEADER_LEN } else { LEGACY_HEADER_LEN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_bytes_are_those_of_the_standard() {
        // flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers: §5.1.6, all little-endian.
        let bytes = [1, 0x81, 54, 0, 0xb4, 0x05, 34, 0, 16, 0, 2, 0];
        let h = NetHeader::from_bytes(&bytes);
        let want = NetHeader {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            hdr_len: 54,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 2,
        };
        assert_eq!(h, want);
        assert_eq!(h.to_bytes(), bytes);
    }

    #[test]
    fn legacy_header_is_ten_bytes_only_without_version_1_and_merging() {
        assert_eq!(header_len(0), 10);
        assert_eq!(header_len(NET_MRG_RXBUF), 12);
        assert_eq!(header_len(VERSION_1), 12);
    }
}
