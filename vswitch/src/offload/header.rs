//! Judges the virtio-net header in front of a frame that a guest transmits (virtio 1.3 §5.1.6.2).
//!
//! Owns the rules and the verdict. Called once per frame by the forwarding engine. What it accepts is described by [`Validated`]
//! in terms of the packet in the snapshot, and only that description reaches any receiver: the guest's header itself is never passed on.
//!
//! Why the rules are strict about *where* a checksum may go: the field is written after the guard has judged the addresses, by us or
//! by the receiver. A field that lay on an address would rewrite it behind the guard's back. So a checksum is accepted only in an
//! unfragmented IP packet, behind all headers that the guard reads, and at its proper place for protocols that have one.
//!
//! Flag bits other than NEEDS_CSUM are ignored, as §5.1.6.2.2 demands; DATA_VALID among them, because a guest's word is no verification.

use super::checksum::{self, Completion};
use crate::packet::{Ethernet, Fragment, Ip, IpVersion, ParseError, protocol};
use avio_proto::control::DiscardReason;
use avio_proto::virtio::features::{NET_CSUM, NET_HOST_ECN, NET_HOST_TSO4, NET_HOST_TSO6, NET_HOST_USO};
use avio_proto::virtio::net::{F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NetHeader};

/// At most this many segments in one frame. Each costs as much as a frame, so without a bound a guest buys 65,000 deliveries with
/// one descriptor. 64 KiB at the smallest segment size that any IP network makes necessary (IPv4's 576-byte datagrams: 536) is 123;
/// Linux sends at most 128 datagrams in one UDP frame. Twice that leaves room for odd path MTUs.
pub const MAX_SEGMENTS: usize = 256;
/// Smallest payload bytes per TCP segment: 48 as in Linux since CVE-2019-11479 (`tcp_min_snd_mss`), which no honest peer undercuts.
/// UDP has no such floor: an application may send datagrams of any size.
pub const MIN_TCP_SEGMENT_SIZE: u16 = 48;

const TCP_FLAGS_OFFSET: usize = 13;
const TCP_CWR: u8 = 0x80;

/// Why a header was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// NEEDS_CSUM although CSUM was not negotiated.
    #[error("asks for a checksum without having negotiated it")]
    ChecksumNotNegotiated,
    /// The checksum's start or field lies outside the frame.
    #[error("the checksum lies outside the frame")]
    ChecksumOutside,
    /// The checksum's start or field does not fit the packet, or the packet is none that has a partial checksum.
    #[error("the checksum is not where the packet has one")]
    ChecksumPlace,
    /// `gso_type` is none that AVIO knows.
    #[error("unknown segmentation type")]
    GsoUnknown,
    /// `gso_type` is known, but its feature was not negotiated.
    #[error("asks for a segmentation without having negotiated it")]
    GsoNotNegotiated,
    /// Segmentation without NEEDS_CSUM (§5.1.6.2.1 requires both).
    #[error("asks for segmentation without a checksum")]
    GsoWithoutChecksum,
    /// The packet is not of the protocol that `gso_type` names.
    #[error("the segmentation type is not that of the packet")]
    GsoDisagrees,
    /// `gso_size` is 0, or below [`MIN_TCP_SEGMENT_SIZE`].
    #[error("segment size too small")]
    GsoSize,
    /// More than [`MAX_SEGMENTS`] segments.
    #[error("too many segments")]
    TooManySegments,
    /// ECN with UDP, or without having negotiated it.
    #[error("asks for ECN segmentation that cannot be")]
    Ecn,
    /// The packet's own length fields do not agree with the frame's length.
    #[error("the packet's length is not that of the frame")]
    LengthDisagrees,
    /// The packet's headers cannot be read.
    #[error("malformed packet headers")]
    Malformed,
    /// A needed header byte lies behind the snapshot. Has its own counter: it is a limit of ours, not the guest's fault.
    #[error("headers longer than AVIO looks at")]
    HeaderTooLong,
}

impl BadHeader {
    /// The counter that the refused frame adds to.
    #[inline]
    #[must_use]
    pub fn reason(self) -> DiscardReason {
        match self {
            Self::HeaderTooLong => DiscardReason::HeaderTooLong,
            _ => DiscardReason::BadHeader,
        }
    }
}

impl From<ParseError> for BadHeader {
    fn from(e: ParseError) -> Self {
        match e {
            ParseError::BeyondSnapshot => Self::HeaderTooLong,
            ParseError::Short | ParseError::Malformed => Self::Malformed,
            ParseError::OtherProtocol => Self::ChecksumPlace,
        }
    }
}

/// What a frame asks of the receiver's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing: complete as it is.
    Plain,
    /// The transport checksum is still to be completed.
    Partial,
    /// TCP segmentation.
    Tcp,
    /// UDP segmentation.
    Udp,
}

/// A frame's offloads, checked against the snapshot. Offsets are in bytes from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validated {
    pub(super) kind: Kind,
    pub(super) version: IpVersion,
    /// Transport protocol if the checksum is its own (then the pseudo header is recomputed), else `None`: the checksum of
    /// something inside, whose pseudo header only the guest knows.
    pub(super) transport: Option<u8>,
    /// CWR is set in a TCP segmentation frame.
    pub(super) ecn: bool,
    pub(super) l3_offset: u16,
    pub(super) l4_offset: u16,
    /// All headers; 0 unless `kind` is a segmentation.
    pub(super) header_len: u16,
    pub(super) gso_size: u16,
    pub(super) csum_start: u16,
    pub(super) csum_offset: u16,
}

impl Validated {
    /// A frame that is complete as it is.
    pub const PLAIN: Self = Self {
        kind: Kind::Plain,
        version: IpVersion::V4,
        transport: None,
        ecn: false,
        l3_offset: 0,
        l4_offset: 0,
        header_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Whether nothing is left to do for any receiver.
    #[inline]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.kind == Kind::Plain
    }

    /// Whether the frame stands for several on a wire.
    #[inline]
    #[must_use]
    pub fn is_segmented(&self) -> bool {
        matches!(self.kind, Kind::Tcp | Kind::Udp)
    }

    /// Length in bytes of all headers of a segmentation frame; 0 for any other.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(self.header_len)
    }

    /// Into how many frames segmentation would cut a frame of `frame_len` bytes, 1..=[`MAX_SEGMENTS`]; workers count these against
    /// their budget.
    #[inline]
    #[must_use]
    pub fn segment_count(&self, frame_len: usize) -> usize {
        if !self.is_segmented() {
            return 1;
        }
        frame_len.saturating_sub(usize::from(self.header_len)).div_ceil(usize::from(self.gso_size))
    }

    /// Length in bytes of the longest frame that this one of `frame_len` bytes is on a wire, Ethernet header and tag included, FCS
    /// not. Callers compare it with the MTU.
    #[inline]
    #[must_use]
    pub fn wire_len(&self, frame_len: usize) -> usize {
        if self.is_segmented() {
            frame_len.min(usize::from(self.header_len) + usize::from(self.gso_size))
        } else {
            frame_len
        }
    }

    /// The same offloads after an 802.1Q tag was inserted into the frame (`packet::vlan::insert_tag`).
    #[inline]
    #[must_use]
    pub fn tag_inserted(self) -> Self {
        self.moved(|offset| offset + crate::packet::TAG_LEN as u16)
    }

    /// The same offloads after the 802.1Q tag was taken out of the frame (`packet::vlan::strip_tag`). Only for frames that had one.
    #[inline]
    #[must_use]
    pub fn tag_stripped(self) -> Self {
        self.moved(|offset| offset.saturating_sub(crate::packet::TAG_LEN as u16))
    }

    #[inline]
    fn moved(mut self, to: impl Fn(u16) -> u16) -> Self {
        if self.kind != Kind::Plain {
            self.l3_offset = to(self.l3_offset);
            self.l4_offset = to(self.l4_offset);
            self.csum_start = to(self.csum_start);
            if self.header_len != 0 {
                self.header_len = to(self.header_len);
            }
        }
        self
    }

    /// How to complete the checksum of the whole frame, for [`super::Mode::CompleteChecksum`]. `head` is the snapshot that was
    /// validated (tag moves included).
    ///
    /// For TCP and UDP the pseudo header is summed anew from the headers, because those are the bytes that are delivered: the
    /// result is a checksum over them, whatever the guest left in the field (some drivers leave the length out of it).
    #[inline]
    #[must_use]
    pub fn completion(&self, head: &[u8]) -> Completion {
        let field = self.csum_start + self.csum_offset;
        let (initial, zero_is_none) = match self.transport {
            Some(protocol) => {
                let len = l4_len(head, self.version, self.l3_offset, self.l4_offset);
                (self.pseudo(head, protocol, len), protocol == protocol::UDP)
            }
            // Zero may mean "no checksum" to whatever protocol this is; 0xffff is the same number to all.
            None => (read_u16(head, field), true),
        };
        Completion { start: self.csum_start, field, initial, zero_is_none }
    }

    /// Sum of the pseudo header of a packet with these addresses and `len` bytes of transport header and payload.
    #[inline]
    pub(super) fn pseudo(&self, head: &[u8], protocol: u8, len: u16) -> u16 {
        let l3 = usize::from(self.l3_offset);
        match self.version {
            IpVersion::V4 if protocol == protocol::ICMP => 0,
            IpVersion::V4 => match head.get(l3 + 12..).and_then(<[u8]>::first_chunk) {
                Some(addresses) => checksum::pseudo_v4(addresses, protocol, len),
                None => 0,
            },
            IpVersion::V6 => match head.get(l3 + 8..).and_then(<[u8]>::first_chunk) {
                Some(addresses) => checksum::pseudo_v6(addresses, protocol, len),
                None => 0,
            },
        }
    }
}

/// Checks the header that a guest put in front of a frame of `frame_len` bytes (without that header) whose first bytes are `head`.
/// `acked` are the features that *this sender* acked.
///
/// Plain frames longer than the MTU are the caller's to refuse ([`Validated::wire_len`]).
#[inline]
pub fn validate(
    header: &NetHeader,
    head: &[u8],
    frame_len: usize,
    l2: &Ethernet,
    acked: u64,
) -> Result<Validated, BadHeader> {
    if header.flags & F_NEEDS_CSUM == 0 && header.gso_type == GSO_NONE {
        return Ok(Validated::PLAIN);
    }
    validate_offload(header, head, frame_len, l2, acked)
}

fn validate_offload(
    header: &NetHeader,
    head: &[u8],
    frame_len: usize,
    l2: &Ethernet,
    acked: u64,
) -> Result<Validated, BadHeader> {
    // What is asked for, and whether it may be asked for at all.
    let gso = Gso::of(header, acked)?;
    if header.flags & F_NEEDS_CSUM == 0 {
        return Err(BadHeader::GsoWithoutChecksum);
    }
    if acked & NET_CSUM == 0 {
        return Err(BadHeader::ChecksumNotNegotiated);
    }
    let csum_start = usize::from(header.csum_start);
    let field_end = csum_start + usize::from(header.csum_offset) + 2;
    if field_end > frame_len {
        return Err(BadHeader::ChecksumOutside);
    }
    if field_end > head.len() {
        return Err(BadHeader::HeaderTooLong);
    }

    // Whether the packet is one that has it.
    let ip = Ip::parse(head, frame_len, l2)?;
    if ip.end > frame_len {
        return Err(BadHeader::LengthDisagrees);
    }
    let mut offload = partial_checksum(header, &ip)?;
    if let Some(gso) = gso {
        gso.check(header, head, frame_len, &ip, &mut offload)?;
    }
    Ok(offload)
}

/// The rules for the place of the checksum; `Kind::Partial` when they hold.
#[inline(always)]
fn partial_checksum(header: &NetHeader, ip: &Ip) -> Result<Validated, BadHeader> {
    let csum_start = usize::from(header.csum_start);
    if ip.fragment != Fragment::Whole || csum_start < ip.l4_offset {
        return Err(BadHeader::ChecksumPlace);
    }
    let known = checksum::field_offset(ip.protocol);
    let is_own = csum_start == ip.l4_offset;
    let transport = match (known, is_own) {
        (Some(offset), true) if offset == header.csum_offset => Some(ip.protocol),
        // UDP carries tunnels (VXLAN, Geneve), whose inner packet has the partial checksum.
        (Some(_), false) if ip.protocol == protocol::UDP => None,
        (Some(_), _) => return Err(BadHeader::ChecksumPlace),
        // SCTP's checksum is no one's complement sum.
        (None, true) if ip.protocol == protocol::SCTP => return Err(BadHeader::ChecksumPlace),
        (None, _) => None,
    };
    Ok(Validated {
        kind: Kind::Partial,
        version: ip.version,
        // With a routing header or source route the pseudo header has the final destination, which is not in the IP header.
        transport: transport.filter(|_| !ip.has_routing),
        ecn: false,
        l3_offset: narrow(ip.l3_offset)?,
        l4_offset: narrow(ip.l4_offset)?,
        header_len: 0,
        gso_size: 0,
        csum_start: header.csum_start,
        csum_offset: header.csum_offset,
    })
}

/// What a known and negotiated `gso_type` stands for.
struct Gso {
    kind: Kind,
    protocol: u8,
    /// `None`: either.
    version: Option<IpVersion>,
}

impl Gso {
    /// `None` when the header asks for no segmentation.
    #[inline(always)]
    fn of(header: &NetHeader, acked: u64) -> Result<Option<Self>, BadHeader> {
        let (kind, protocol, version, feature) = match header.gso_type & !GSO_ECN {
            GSO_NONE if header.gso_type == GSO_NONE => return Ok(None),
            GSO_TCPV4 => (Kind::Tcp, protocol::TCP, Some(IpVersion::V4), NET_HOST_TSO4),
            GSO_TCPV6 => (Kind::Tcp, protocol::TCP, Some(IpVersion::V6), NET_HOST_TSO6),
            GSO_UDP_L4 => (Kind::Udp, protocol::UDP, None, NET_HOST_USO),
            _ => return Err(BadHeader::GsoUnknown),
        };
        if acked & feature == 0 {
            return Err(BadHeader::GsoNotNegotiated);
        }
        if header.gso_type & GSO_ECN != 0 && (kind != Kind::Tcp || acked & NET_HOST_ECN == 0) {
            return Err(BadHeader::Ecn);
        }
        Ok(Some(Self { kind, protocol, version }))
    }

    /// The rules for segmentation; completes `offload` when they hold.
    #[inline(always)]
    fn check(
        &self,
        header: &NetHeader,
        head: &[u8],
        frame_len: usize,
        ip: &Ip,
        offload: &mut Validated,
    ) -> Result<(), BadHeader> {
        if offload.transport != Some(self.protocol)
            || self.version.is_some_and(|version| version != ip.version)
        {
            return Err(BadHeader::GsoDisagrees);
        }
        // Each segment's lengths are computed from the frame's; a packet that says otherwise about itself is not one packet.
        if ip.end != frame_len {
            return Err(BadHeader::LengthDisagrees);
        }
        let header_len = ip.header_len(head, frame_len)?;
        if header.gso_size == 0 || self.kind == Kind::Tcp && header.gso_size < MIN_TCP_SEGMENT_SIZE {
            return Err(BadHeader::GsoSize);
        }
        let payload_len = frame_len - header_len;
        let gso_size = usize::from(header.gso_size);
        if payload_len > MAX_SEGMENTS * gso_size {
            return Err(BadHeader::TooManySegments);
        }
        if payload_len <= gso_size {
            // One segment: an ordinary frame with a partial checksum. Receivers never see a segmentation that is none; Linux
            // refuses those, and gives the size 0xffff a meaning of its own.
            return Ok(());
        }
        offload.kind = self.kind;
        offload.header_len = narrow(header_len)?;
        offload.gso_size = header.gso_size;
        offload.ecn = self.kind == Kind::Tcp && head[ip.l4_offset + TCP_FLAGS_OFFSET] & TCP_CWR != 0;
        Ok(())
    }
}

/// Length in bytes of transport header and payload by the IP header's own account.
#[inline]
fn l4_len(head: &[u8], version: IpVersion, l3_offset: u16, l4_offset: u16) -> u16 {
    match version {
        IpVersion::V4 => read_u16(head, l3_offset + 2).wrapping_sub(l4_offset - l3_offset),
        IpVersion::V6 => read_u16(head, l3_offset + 4).wrapping_sub(l4_offset - l3_offset - 40),
    }
}

/// The big-endian word at `at`; 0 behind the end, where no validated offset points.
#[inline]
fn read_u16(head: &[u8], at: u16) -> u16 {
    head.get(usize::from(at)..).and_then(<[u8]>::first_chunk).map_or(0, |b| u16::from_be_bytes(*b))
}

/// Offsets inside a snapshot are far below 65,536; anything else was not in it.
#[inline]
fn narrow(offset: usize) -> Result<u16, BadHeader> {
    u16::try_from(offset).map_err(|_| BadHeader::HeaderTooLong)
}
