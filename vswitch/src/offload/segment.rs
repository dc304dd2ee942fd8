//! Cuts a TCP or UDP segmentation frame into the frames that it stands for.
//!
//! Owns the per-segment headers: lengths, IPv4 identification and header checksum, TCP sequence numbers and flags, UDP lengths.
//! Called by the forwarding engine for receivers that cannot take the whole frame. Headers come from the snapshot only; payload
//! behind the snapshot is named by offset and length and never touched here.

use super::checksum::{self, Completion, add};
use super::delivery::Mode;
use super::header::{Kind, Validated};
use crate::packet::{IpVersion, TAG_LEN, protocol};
use avio_proto::virtio::net::NetHeader;

/// Room in bytes for the head of any segment: the longest snapshot and an inserted tag.
pub const HEAD_CAPACITY: usize = 256 + TAG_LEN;

const TCP_SEQUENCE_OFFSET: usize = 4;
const TCP_FLAGS_OFFSET: usize = 13;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// One segment: `head_len` bytes in the caller's scratch, then `tail_len` bytes of the frame's tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Bytes written to the scratch: headers, and payload that was in the snapshot.
    pub head_len: usize,
    /// Where its part of the tail starts, in bytes from the start of the tail (`Tail::sub`).
    pub tail_offset: usize,
    /// Length in bytes of its part of the tail; 0 when its payload was all in the snapshot.
    pub tail_len: usize,
    /// The virtio-net header of this segment.
    pub header: NetHeader,
    /// How to complete its checksum once its tail is summed; `None` when it stays partial.
    pub completion: Option<Completion>,
}

/// Produces the segments of one frame, in order.
#[derive(Clone, Debug)]
pub struct Segmenter<'a> {
    offload: Validated,
    /// Headers, then the payload that is in the snapshot.
    head: &'a [u8],
    protocol: u8,
    payload_len: usize,
    mode: Mode,
    /// Payload bytes already given out.
    done: usize,
    /// Segments already given out.
    index: u16,
    /// Sum of the pseudo header without the length.
    pseudo: u16,
    /// Sum of the IPv4 header without total length, identification and checksum.
    ipv4_sum: u16,
}

impl<'a> Segmenter<'a> {
    /// Prepares to cut a frame of `frame_len` bytes. `offload` is the verdict over the same `head` (tag moves included); `mode` is
    /// [`Mode::SegmentPartial`] or [`Mode::SegmentComplete`]. A frame that is no segmentation has no segments.
    #[must_use]
    pub fn new(offload: &Validated, head: &'a [u8], frame_len: usize, mode: Mode) -> Self {
        let header_len = usize::from(offload.header_len);
        let is_cut = offload.is_segmented() && header_len <= head.len() && head.len() <= HEAD_CAPACITY;
        debug_assert!(is_cut, "{offload:?} over {} bytes", head.len());
        let protocol = if offload.kind == Kind::Udp { protocol::UDP } else { protocol::TCP };
        let (l3, l4) = (usize::from(offload.l3_offset), usize::from(offload.l4_offset));
        let mut ipv4_sum = 0;
        if is_cut && offload.version == IpVersion::V4 {
            // Leaves out the words at 2 (length), 4 (identification) and 10 (checksum).
            ipv4_sum = add(checksum::sum(&head[l3..l3 + 2]), checksum::sum(&head[l3 + 6..l3 + 10]));
            ipv4_sum = add(ipv4_sum, checksum::sum(&head[l3 + 12..l4]));
        }
        Self {
            offload: *offload,
            head,
            protocol,
            payload_len: if is_cut { frame_len.saturating_sub(header_len) } else { 0 },
            mode,
            done: 0,
            index: 0,
            pseudo: offload.pseudo(head, protocol, 0),
            ipv4_sum,
        }
    }

    /// Writes the head of the next segment to `scratch` and says which part of the tail follows it; `None` after the last.
    pub fn next_into(&mut self, scratch: &mut [u8; HEAD_CAPACITY]) -> Option<Segment> {
        if self.done >= self.payload_len {
            return None;
        }
        let header_len = usize::from(self.offload.header_len);
        let len = usize::from(self.offload.gso_size).min(self.payload_len - self.done);
        let is_last = self.done + len == self.payload_len;

        // The part of the payload that the snapshot holds, then the part that the tail holds.
        let in_snapshot = &self.head[header_len..];
        let from = self.done.min(in_snapshot.len());
        let to = (self.done + len).min(in_snapshot.len());
        let head_len = header_len + (to - from);
        scratch[..header_len].copy_from_slice(&self.head[..header_len]);
        scratch[header_len..head_len].copy_from_slice(&in_snapshot[from..to]);

        // Transport header and payload; the frame as a whole was checked to be an IP packet, so this fits 16 bits.
        let l4_len = (header_len - usize::from(self.offload.l4_offset) + len) as u16;
        self.patch_network(scratch, l4_len);
        match self.offload.kind {
            Kind::Udp => self.patch_udp(scratch, l4_len),
            _ => self.patch_tcp(scratch, is_last),
        }
        let completion = self.patch_checksum(scratch, l4_len);

        let segment = Segment {
            head_len,
            tail_offset: (self.done + (to - from)).saturating_sub(in_snapshot.len()),
            tail_len: len - (to - from),
            header: self.offload.header_for(self.mode),
            completion,
        };
        self.done += len;
        self.index = self.index.wrapping_add(1);
        Some(segment)
    }

    /// Lengths in the IP header; for IPv4 also identification (one more per segment, RFC 6864 lets receivers expect it to differ)
    /// and header checksum.
    fn patch_network(&self, scratch: &mut [u8], l4_len: u16) {
        let (l3, l4) = (usize::from(self.offload.l3_offset), usize::from(self.offload.l4_offset));
        match self.offload.version {
            IpVersion::V4 => {
                let total_len = l4_len + (l4 - l3) as u16;
                let id = read_u16(self.head, l3 + 4).wrapping_add(self.index);
                let header_checksum = !add(add(self.ipv4_sum, total_len), id);
                write_u16(scratch, l3 + 2, total_len);
                write_u16(scratch, l3 + 4, id);
                write_u16(scratch, l3 + 10, header_checksum);
            }
            IpVersion::V6 => write_u16(scratch, l3 + 4, l4_len + (l4 - l3 - 40) as u16),
        }
    }

    /// Sequence number; FIN and PSH only in the last segment, CWR only in the first (RFC 3168 §6.1.2: it answers once).
    fn patch_tcp(&self, scratch: &mut [u8], is_last: bool) {
        let l4 = usize::from(self.offload.l4_offset);
        let at = l4 + TCP_SEQUENCE_OFFSET;
        if let Some(sequence) = scratch[at..].first_chunk_mut::<4>() {
            // `done` is below 65,536.
            *sequence = u32::from_be_bytes(*sequence).wrapping_add(self.done as u32).to_be_bytes();
        }
        let mut cleared = 0;
        if !is_last {
            cleared |= TCP_FIN | TCP_PSH;
        }
        if self.index != 0 {
            cleared |= TCP_CWR;
        }
        scratch[l4 + TCP_FLAGS_OFFSET] &= !cleared;
    }

    fn patch_udp(&self, scratch: &mut [u8], l4_len: u16) {
        write_u16(scratch, usize::from(self.offload.l4_offset) + 4, l4_len);
    }

    /// The checksum field: the pseudo header's sum where it stays partial (§5.1.6.2.1), else to be completed by the caller.
    fn patch_checksum(&self, scratch: &mut [u8], l4_len: u16) -> Option<Completion> {
        let start = self.offload.csum_start;
        let field = start + self.offload.csum_offset;
        let initial = add(self.pseudo, l4_len);
        if self.mode == Mode::SegmentPartial {
            write_u16(scratch, usize::from(field), initial);
            return None;
        }
        Some(Completion { start, field, initial, zero_is_none: self.protocol == protocol::UDP })
    }
}

#[inline]
fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
