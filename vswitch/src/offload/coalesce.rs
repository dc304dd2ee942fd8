//! Puts frames of one TCP flow that came from the wire together into one segmentation frame (what Linux calls GRO): the inverse of
//! [`Segmenter`](super::Segmenter).
//!
//! Owns the judgement which frames belong together and the headers of what they become. Called by the forwarding engine once for each list of frames of
//! a batch that go to one receive ring; it keeps nothing from one batch to the next. Two frames are put together only if cutting the result gives exactly
//! them back: same addresses, ports, acknowledgement, window, options, TTL, class and fragment bits; next sequence number and IPv4 identification; checksums verified.
//! A flow is never reordered: what cannot be put together ends what was begun of its flow, and what cannot be read ends everything.
//! It never touches payload: the caller sums what lies behind a frame's head.

use super::checksum::{self, add, at_offset};
use super::header::{Kind, Validated};
use super::{MAX_SEGMENTS, MIN_TCP_SEGMENT_SIZE};
use crate::packet::{ETHERNET_LEN, Ethernet, Fragment, Ip, IpVersion, ethertype, protocol};
use avio_proto::mem::TailSum;
use avio_proto::virtio::features::{NET_GUEST_CSUM, NET_GUEST_TSO4, NET_GUEST_TSO6, NET_MRG_RXBUF};

/// Flows that are open at the same time: as many as a batch has frames.
const TRAINS_MAX: usize = 64;
/// Longest packet that a receiver has to expect, IP header included (virtio 1.3 §5.1.6.3.1).
const IP_LEN_MAX: usize = 65_535;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_ECE: u8 = 0x40;
const TCP_ACK: u8 = 0x10;
const TCP_PSH: u8 = 0x08;
const TCP_FIN: u8 = 0x01;
/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Pieces of memory that one merged frame may consist of: 45 segments of 1,448 bytes have one each, jumbo frames three.
pub const PIECES_MAX: usize = 96;

/// Whether a receiver with these acked features takes merged frames of any kind.
#[inline]
#[must_use]
pub fn takes_merged(acked: u64) -> bool {
    let both = NET_GUEST_CSUM | NET_MRG_RXBUF;
    acked & both == both && acked & (NET_GUEST_TSO4 | NET_GUEST_TSO6) != 0
}

/// One frame, as the caller has it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its first bytes, without a tag.
    pub head: &'a [u8],
    /// Its length in bytes, without a tag.
    pub len: usize,
    /// Which network it is of; only frames of the same one belong together.
    pub domain: u16,
    /// Pieces of memory that it consists of.
    pub pieces: usize,
    /// Nothing is left to do for it.
    pub plain: bool,
}

/// What the caller knows of the frames of its batch, by their numbers.
pub trait Frames {
    /// Frame `i`.
    fn candidate(&self, i: u8) -> Candidate<'_>;

    /// The sum of the bytes of frame `i` behind its head.
    fn tail_sum(&self, i: u8) -> TailSum;
}

/// Frames that became one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// Number of the first frame; its head is to be patched ([`Merged::patch`]).
    pub first: u8,
    /// Length in bytes of the whole.
    pub len: usize,
    /// What it is to its receivers.
    pub offload: Validated,
    /// PSH and FIN of the last frame.
    flags: u8,
}

impl Merged {
    /// Makes the first frame's head that of the whole: lengths, IPv4 checksum, flags, and the pseudo header's sum as partial checksum
    /// (virtio 1.3 §5.1.6.4).
    pub fn patch(&self, head: &mut [u8]) {
        let (l3, l4) = (usize::from(self.offload.l3_offset), usize::from(self.offload.l4_offset));
        match self.offload.version {
            IpVersion::V4 => {
                write_u16(head, l3 + 2, (self.len - l3) as u16);
                write_u16(head, l3 + 10, 0);
                let sum = !checksum::sum(&head[l3..l4]);
                write_u16(head, l3 + 10, sum);
            }
            IpVersion::V6 => write_u16(head, l3 + 4, (self.len - l3 - IPV6_LEN) as u16),
        }
        head[l4 + 13] |= self.flags;
        let pseudo = self.offload.pseudo(head, protocol::TCP, (self.len - l4) as u16);
        write_u16(head, l4 + TCP_CHECKSUM, pseudo);
    }
}

/// What is to be known of a TCP segment.
#[derive(Debug, Clone, Copy)]
struct Segment {
    version: IpVersion,
    hash: u32,
    l4: usize,
    header_len: usize,
    payload_len: usize,
    sequence: u32,
    /// IPv4 identification.
    id: u16,
    flags: u8,
    /// Has nothing about it that a merged frame cannot say.
    fits: bool,
}

enum Reading {
    /// Of no flow that is put together.
    Other,
    /// May be of any flow.
    Unclear,
    Tcp(Segment),
}

/// Frames of one flow that follow each other.
#[derive(Debug, Clone, Copy)]
struct Train {
    segment: Segment,
    first: u8,
    last: u8,
    count: u16,
    pieces: usize,
    domain: u16,
    len: usize,
    next_sequence: u32,
    next_id: u16,
    /// The first frame's checksums are right.
    verified: bool,
    flags: u8,
    /// May go on.
    open: bool,
}

/// See the module. About 6 KiB; one per worker.
#[derive(Debug, Default)]
pub struct Coalescer {
    trains: Vec<Train>,
    v4: bool,
    v6: bool,
}

impl Coalescer {
    /// With room for a batch, so that nothing is allocated later.
    #[must_use]
    pub fn new() -> Self {
        Self { trains: Vec::with_capacity(TRAINS_MAX), v4: false, v6: false }
    }

    /// A list for a receiver with these acked features.
    pub fn begin(&mut self, acked: u64) {
        self.trains.clear();
        self.v4 = acked & NET_GUEST_TSO4 != 0;
        self.v6 = acked & NET_GUEST_TSO6 != 0;
    }

    /// The next frame of the list. Some: its payload follows that of this earlier frame, and it goes where that one goes; `None`: it stands
    /// where it is.
    #[inline]
    pub fn offer(&mut self, i: u8, frames: &impl Frames) -> Option<u8> {
        let frame = frames.candidate(i);
        match read(&frame) {
            Reading::Other => None,
            Reading::Unclear => {
                self.trains.iter_mut().for_each(|train| train.open = false);
                None
            }
            Reading::Tcp(segment) => self.offer_tcp(i, &frame, segment, frames),
        }
    }

    fn offer_tcp(
        &mut self,
        i: u8,
        frame: &Candidate<'_>,
        segment: Segment,
        frames: &impl Frames,
    ) -> Option<u8> {
        let is_of = |train: &&mut Train| {
            train.open
                && train.segment.hash == segment.hash
                && same_flow(&train.segment, frames.candidate(train.first).head, &segment, frame.head)
        };
        if let Some(train) = self.trains.iter_mut().find(is_of) {
            if train.follows(frame, &segment, frames) && train.verify(i, frame, &segment, frames) {
                let behind = std::mem::replace(&mut train.last, i);
                train.append(frame, &segment);
                return Some(behind);
            }
            train.open = false;
        }
        let wanted = match segment.version {
            IpVersion::V4 => self.v4,
            IpVersion::V6 => self.v6,
        };
        let starts = segment.fits
            && segment.flags & (TCP_PSH | TCP_FIN) == 0
            && segment.payload_len >= usize::from(MIN_TCP_SEGMENT_SIZE);
        if wanted && starts && self.trains.len() < TRAINS_MAX {
            self.trains.push(Train {
                segment,
                first: i,
                last: i,
                count: 1,
                pieces: frame.pieces,
                domain: frame.domain,
                len: frame.len,
                next_sequence: segment.sequence.wrapping_add(segment.payload_len as u32),
                next_id: segment.id.wrapping_add(1),
                verified: false,
                flags: 0,
                open: true,
            });
        }
        None
    }

    /// What came of the list.
    pub fn merged(&self) -> impl Iterator<Item = Merged> + '_ {
        self.trains.iter().filter(|train| train.count > 1).map(|train| Merged {
            first: train.first,
            len: train.len,
            offload: Validated {
                kind: Kind::Tcp,
                version: train.segment.version,
                transport: Some(protocol::TCP),
                ecn: false,
                l3_offset: ETHERNET_LEN as u16,
                l4_offset: train.segment.l4 as u16,
                header_len: train.segment.header_len as u16,
                gso_size: train.segment.payload_len as u16,
                csum_start: train.segment.l4 as u16,
                csum_offset: TCP_CHECKSUM as u16,
            },
            flags: train.flags,
        })
    }
}

impl Train {
    /// Whether `next` would be the next segment if this train were cut.
    fn follows(&self, frame: &Candidate<'_>, next: &Segment, frames: &impl Frames) -> bool {
        let first = &self.segment;
        next.fits
            && next.sequence == self.next_sequence
            && (first.version == IpVersion::V6 || next.id == self.next_id)
            && (1..=first.payload_len).contains(&next.payload_len)
            && next.header_len == first.header_len
            && frame.domain == self.domain
            && self.len + next.payload_len <= ETHERNET_LEN + IP_LEN_MAX
            && self.pieces + frame.pieces <= PIECES_MAX
            && usize::from(self.count) < MAX_SEGMENTS
            && same_headers(first, frames.candidate(self.first).head, frame.head)
    }

    /// Whether the checksums of `next` are right, and those of the first frame, which are looked at only now.
    fn verify(&mut self, i: u8, frame: &Candidate<'_>, next: &Segment, frames: &impl Frames) -> bool {
        if !self.verified {
            let first = frames.candidate(self.first);
            self.verified = is_right(&self.segment, &first, frames.tail_sum(self.first));
        }
        self.verified && is_right(next, frame, frames.tail_sum(i))
    }

    fn append(&mut self, frame: &Candidate<'_>, next: &Segment) {
        self.count += 1;
        self.len += next.payload_len;
        self.pieces += frame.pieces;
        self.next_sequence = next.sequence.wrapping_add(next.payload_len as u32);
        self.next_id = next.id.wrapping_add(1);
        self.flags = next.flags & (TCP_PSH | TCP_FIN);
        // Only the last segment is shorter, pushes or ends.
        self.open = self.flags == 0 && next.payload_len == self.segment.payload_len;
    }
}

/// What the headers say. Everything that is not plainly another protocol's is either a TCP segment or unclear.
#[inline]
fn read(frame: &Candidate<'_>) -> Reading {
    let Some(l2) = Ethernet::parse(frame.head) else { return Reading::Other };
    let head = frame.head;
    // The usual other ones at once: their headers are not worth a closer look.
    let others = [protocol::UDP, protocol::ICMP, protocol::ICMPV6];
    match (l2.ethertype, head.get(20), head.get(23)) {
        (ethertype::IPV4, _, Some(kind)) if others.contains(kind) => return Reading::Other,
        (ethertype::IPV6, Some(kind), _) if others.contains(kind) => return Reading::Other,
        (ethertype::IPV4 | ethertype::IPV6, ..) => {}
        _ => return Reading::Other,
    }
    let Ok(ip) = Ip::parse(head, frame.len, &l2) else { return Reading::Unclear };
    let ip_len = match ip.version {
        IpVersion::V4 => IPV4_LEN,
        IpVersion::V6 => IPV6_LEN,
    };
    let is_simple =
        ip.fragment == Fragment::Whole && ip.l4_offset == ETHERNET_LEN + ip_len && l2.tag.is_none();
    if !is_simple || ip.protocol != protocol::TCP {
        return Reading::Unclear;
    }
    let Ok(header_len) = ip.header_len(head, frame.len) else { return Reading::Unclear };
    let l4 = ip.l4_offset;
    let flags = head[l4 + 13];
    let is_ordinary = flags & !(TCP_ECE | TCP_PSH | TCP_FIN) == TCP_ACK;
    let word = |at: usize| head.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_be_bytes(*b));
    let addresses = if ip.version == IpVersion::V4 { 26..34 } else { 22..54 };
    let hash = addresses
        .step_by(4)
        .fold(word(l4), |hash, at| hash.rotate_left(5).wrapping_mul(0x9e37_79b1) ^ word(at));
    Reading::Tcp(Segment {
        version: ip.version,
        hash,
        l4,
        header_len,
        payload_len: frame.len - header_len,
        sequence: word(l4 + 4),
        id: (word(ETHERNET_LEN + 4) >> 16) as u16,
        flags,
        // A frame with padding behind the packet, or a packet that is cut short, has lengths that would be lost.
        fits: frame.plain && is_ordinary && ip.end == frame.len,
    })
}

/// Whether the two are of one flow: addresses and ports.
#[inline]
fn same_flow(a: &Segment, a_head: &[u8], b: &Segment, b_head: &[u8]) -> bool {
    let addresses = match a.version {
        IpVersion::V4 => 26..34,
        IpVersion::V6 => 22..54,
    };
    a.version == b.version
        && a_head[addresses.clone()] == b_head[addresses]
        && a_head[a.l4..a.l4 + 4] == b_head[a.l4..a.l4 + 4]
}

/// Whether all else is the same that is the same in every segment of one frame. Both are of one flow and have headers of one length.
fn same_headers(first: &Segment, a: &[u8], b: &[u8]) -> bool {
    let same = |from: usize, to: usize| a[from..to] == b[from..to];
    let l4 = first.l4;
    // Type of service, fragment bits, TTL; or class, flow label, hop limit.
    let network = match first.version {
        IpVersion::V4 => same(14, 16) && same(20, 24),
        IpVersion::V6 => same(14, 18) && same(20, 22),
    };
    let flags = TCP_PSH | TCP_FIN;
    network
        && same(0, ETHERNET_LEN)
        && same(l4 + 8, l4 + 13)
        && (a[l4 + 13] ^ b[l4 + 13]) & !flags == 0
        && same(l4 + 14, l4 + TCP_CHECKSUM)
        && same(l4 + 18, first.header_len)
}

/// Whether both checksums are what cutting would compute: right, and 0 rather than its other form 0xffff.
fn is_right(segment: &Segment, frame: &Candidate<'_>, tail: TailSum) -> bool {
    let (head, l4) = (frame.head, segment.l4);
    let network = match segment.version {
        IpVersion::V4 => {
            head[ETHERNET_LEN + 10..ETHERNET_LEN + 12] != [0xff; 2]
                && checksum::sum(&head[ETHERNET_LEN..l4]) == 0xffff
        }
        IpVersion::V6 => true,
    };
    let l4_len = (frame.len - l4) as u16;
    let pseudo = match segment.version {
        IpVersion::V4 => {
            head[26..].first_chunk().map_or(0, |a| checksum::pseudo_v4(a, protocol::TCP, l4_len))
        }
        IpVersion::V6 => {
            head[22..].first_chunk().map_or(0, |a| checksum::pseudo_v6(a, protocol::TCP, l4_len))
        }
    };
    let total = add(add(checksum::sum(&head[l4..]), at_offset(tail.0, head.len() - l4)), pseudo);
    network && head[l4 + TCP_CHECKSUM..l4 + TCP_CHECKSUM + 2] != [0xff; 2] && total == 0xffff
}

#[inline]
fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
