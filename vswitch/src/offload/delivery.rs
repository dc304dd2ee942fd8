//! How one receiver gets a frame: as it is, with its checksum completed, or cut into segments; and the header it sees.
//!
//! Owns that decision and the receive-side header (virtio 1.3 §5.1.6.4). Called by the forwarding engine per frame and group of receivers with
//! equal features. It never looks at packet bytes.
//!
//! DATA_VALID is never set: it says that somebody verified the checksum, and for a frame from a guest nobody has. The receiver
//! verifies complete checksums itself.

use super::header::{Kind, Validated};
use crate::packet::IpVersion;
use avio_proto::virtio::features::{
    NET_GUEST_CSUM, NET_GUEST_ECN, NET_GUEST_TSO4, NET_GUEST_TSO6, NET_GUEST_USO4, NET_GUEST_USO6,
};
use avio_proto::virtio::net::{F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NetHeader};

/// How a frame goes to a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The snapshot's bytes and the tail, unchanged.
    PassThrough,
    /// One frame, its transport checksum completed in software.
    CompleteChecksum,
    /// Several frames, their checksums left partial.
    SegmentPartial,
    /// Several frames with complete checksums.
    SegmentComplete,
}

impl Validated {
    /// How a receiver with these acked features gets the frame; 0 for one without any offload (a wire).
    #[inline]
    #[must_use]
    pub fn mode_for(&self, acked: u64) -> Mode {
        if self.kind == Kind::Plain {
            return Mode::PassThrough;
        }
        let takes_partial = acked & NET_GUEST_CSUM != 0;
        let wants = match (self.kind, self.version) {
            (Kind::Plain | Kind::Partial, _) => 0,
            (Kind::Tcp, IpVersion::V4) => NET_GUEST_TSO4,
            (Kind::Tcp, IpVersion::V6) => NET_GUEST_TSO6,
            (Kind::Udp, IpVersion::V4) => NET_GUEST_USO4,
            (Kind::Udp, IpVersion::V6) => NET_GUEST_USO6,
        } | if self.ecn { NET_GUEST_ECN } else { 0 };
        match (takes_partial, acked & wants == wants, self.is_segmented()) {
            // Segmentation features depend on GUEST_CSUM (§5.1.3.1), so a receiver without it gets none of them.
            (true, true, _) => Mode::PassThrough,
            (true, false, _) => Mode::SegmentPartial,
            (false, _, false) => Mode::CompleteChecksum,
            (false, _, true) => Mode::SegmentComplete,
        }
    }

    /// The header that a receiver sees in front of what `mode` gives it; `num_buffers` is the ring's to fill in.
    ///
    /// Every field comes from the validated packet. `hdr_len` is the real header length for segmentation frames and 0 otherwise,
    /// as Linux's own devices do.
    #[inline]
    #[must_use]
    pub fn header_for(&self, mode: Mode) -> NetHeader {
        if self.kind == Kind::Plain || matches!(mode, Mode::CompleteChecksum | Mode::SegmentComplete) {
            return NetHeader::default();
        }
        let partial = NetHeader {
            flags: F_NEEDS_CSUM,
            csum_start: self.csum_start,
            csum_offset: self.csum_offset,
            ..NetHeader::default()
        };
        if mode == Mode::SegmentPartial || !self.is_segmented() {
            return partial;
        }
        let gso_type = match (self.kind, self.version) {
            (Kind::Plain | Kind::Partial, _) => GSO_NONE,
            (Kind::Tcp, IpVersion::V4) => GSO_TCPV4,
            (Kind::Tcp, IpVersion::V6) => GSO_TCPV6,
            (Kind::Udp, _) => GSO_UDP_L4,
        };
        NetHeader {
            gso_type: if self.ecn { gso_type | GSO_ECN } else { gso_type },
            gso_size: self.gso_size,
            hdr_len: self.header_len,
            ..partial
        }
    }
}
