//! The frames that are sent: headers, stamps, payload, and the checks of what arrives.
//!
//! Owns the layout of a stamp and the payload pattern. The sender writes templates once and stamps per frame; the receiver
//! reads stamps and checks whole frames on a sample. Nothing here knows rings.

use avio_proto::virtio::net::{F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, NetHeader};
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, TcpHeader, UdpHeader};

/// Length of a stamp in bytes: magic 2, source 1, seed 1, flow 2, sequence number 4, send time 8.
pub const STAMP_LEN: usize = 18;
/// Where the stamp stands in a UDP frame. With the virtio-net header in front, everything up to the sequence number lies
/// in the buffer's first cache line, so a receiver that checks only that touches one line.
pub const UDP_STAMP_AT: usize = 14 + 20 + 8;
/// Where the first stamp stands in a TCP frame.
pub const TCP_STAMP_AT: usize = 14 + 20 + 20;
/// Shortest frame in bytes without FCS: headers and a stamp; also Ethernet's own minimum.
pub const LEN_MIN: usize = UDP_STAMP_AT + STAMP_LEN;
/// Longest frame in bytes: an IPv4 packet is at most 65,535.
pub const LEN_MAX: usize = 14 + 65_535;
/// Where the UDP or TCP source port stands: flows differ in it.
pub const SOURCE_PORT_AT: usize = 34;
/// First source port; flow 0 has it.
const SOURCE_PORT_BASE: u16 = 1024;
/// Where a partial checksum starts.
const CSUM_START: u16 = 34;
const MAGIC: u16 = 0xa710;
/// Distinct payloads; neighbouring slots of a ring differ, so bytes of two frames mixed up are seen.
pub const SEED_COUNT: u8 = 8;

/// What a frame carries about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Which port of the generator sent it.
    pub source: u8,
    /// Which payload follows.
    pub seed: u8,
    /// Flow number; order is kept and checked inside a flow.
    pub flow: u16,
    /// Sequence number inside (source, flow), wrapping.
    pub seq: u32,
    /// When it was sent, [`crate::latency::now_ns`]; 0: not stamped.
    pub time_ns: u64,
}

impl Stamp {
    /// Wire form.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> [u8; STAMP_LEN] {
        let mut b = [0; STAMP_LEN];
        let (head, rest) = self.to_words();
        b[0..8].copy_from_slice(&head);
        b[8..10].copy_from_slice(&rest);
        b[10..18].copy_from_slice(&self.time_ns.to_be_bytes());
        b
    }

    /// Wire form of everything but the time, in two words: what lies in a buffer's first cache line. Words, not bytes: bytes put
    /// together in memory and read back as words wait for every store in front of them, those to lines of another core included.
    #[inline(always)]
    #[must_use]
    pub fn to_words(self) -> ([u8; 8], [u8; 2]) {
        let head = u64::from(MAGIC) << 48
            | u64::from(self.source) << 40
            | u64::from(self.seed) << 32
            | u64::from(self.flow) << 16
            | u64::from(self.seq >> 16);
        (head.to_be_bytes(), (self.seq as u16).to_be_bytes())
    }

    /// Reads everything but the time; `None` if it is no stamp.
    #[inline]
    #[must_use]
    pub fn from_words(head: [u8; 8], rest: [u8; 2]) -> Option<Self> {
        let head = u64::from_be_bytes(head);
        if head >> 48 != u64::from(MAGIC) {
            return None;
        }
        Some(Self {
            source: (head >> 40) as u8,
            seed: (head >> 32) as u8,
            flow: (head >> 16) as u16,
            seq: (head as u32) << 16 | u32::from(u16::from_be_bytes(rest)),
            time_ns: 0,
        })
    }

    /// Reads a whole stamp at the start of `b`.
    #[must_use]
    pub fn from_bytes(b: &[u8]) -> Option<Self> {
        let mut stamp = Self::from_words(*b.first_chunk()?, *b.get(8..)?.first_chunk()?)?;
        stamp.time_ns = u64::from_be_bytes(b.get(10..STAMP_LEN)?.try_into().ok()?);
        Some(stamp)
    }
}

/// Whether the frame with this sequence number carries its time where only a sample is timed: one in 16, because the time lies
/// in the frame's second cache line.
#[inline(always)]
#[must_use]
pub fn is_timed(seq: u32) -> bool {
    seq.is_multiple_of(16)
}

/// How a frame's checksum is left to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP without checksum (0 means "none" in IPv4), which costs a generator nothing.
    Udp,
    /// UDP with a partial checksum that the device completes (CSUM offload).
    UdpPartial,
    /// TCP, partial checksum, segments of `mss` payload bytes: one frame that stands for many.
    TcpSegments {
        /// Payload bytes per segment.
        mss: u16,
    },
}

/// What a template is made from.
#[derive(Clone, Copy, Debug)]
pub struct FrameSpec {
    /// Destination MAC address.
    pub to: [u8; 6],
    /// Source MAC address.
    pub from: [u8; 6],
    /// Frame length in bytes without FCS, [`LEN_MIN`]..=[`LEN_MAX`].
    pub len: usize,
    /// Transport header and offload.
    pub transport: Transport,
    /// Port number of the sender, also in its IP address.
    pub source: u8,
    /// Which payload.
    pub seed: u8,
}

/// A frame ready to be copied into a slot once and stamped per use.
#[derive(Clone, Debug)]
pub struct Template {
    /// The frame, stamps zero.
    pub bytes: Vec<u8>,
    /// Its virtio-net header.
    pub header: NetHeader,
    /// Where the first stamp goes.
    pub stamp_at: usize,
    /// Bytes from one stamp to the next.
    pub chunk_len: usize,
    /// Stamps, each with a sequence number of its own: segments of a TCP frame, else 1.
    pub chunk_count: u32,
    /// Which payload.
    pub seed: u8,
}

impl Template {
    /// Builds headers, checksums and payload.
    ///
    /// # Panics
    /// If `spec.len` is out of range; options are checked before.
    #[must_use]
    pub fn new(spec: &FrameSpec) -> Self {
        assert!((LEN_MIN..=LEN_MAX).contains(&spec.len), "frame length {}", spec.len);
        let stamp_at = stamp_offset(spec.transport);
        let payload_len = spec.len - stamp_at;
        let chunk_len = match spec.transport {
            Transport::TcpSegments { mss } => usize::from(mss).max(STAMP_LEN),
            _ => payload_len,
        };
        let mut bytes = headers(spec, payload_len);
        let mut header = NetHeader::default();
        if spec.transport != Transport::Udp {
            let offset = if stamp_at == UDP_STAMP_AT { 6 } else { 16 };
            let sum = pseudo_sum(&bytes).to_be_bytes();
            let at = usize::from(CSUM_START) + offset;
            bytes[at..at + 2].copy_from_slice(&sum);
            header.flags = F_NEEDS_CSUM;
            header.csum_start = CSUM_START;
            header.csum_offset = offset as u16;
        }
        if let Transport::TcpSegments { mss } = spec.transport
            && payload_len > usize::from(mss)
        {
            header.gso_type = GSO_TCPV4;
            header.gso_size = mss;
            header.hdr_len = stamp_at as u16;
        }
        // A last segment too short for a stamp has none.
        let chunk_count = if payload_len <= chunk_len {
            1
        } else {
            (payload_len / chunk_len + usize::from(payload_len % chunk_len >= STAMP_LEN)) as u32
        };
        let mut left = payload_len;
        while left > 0 {
            let n = left.min(chunk_len);
            bytes.extend_from_slice(&pattern(spec.seed)[..n]);
            left -= n;
        }
        Self { bytes, header, stamp_at, chunk_len, chunk_count, seed: spec.seed }
    }
}

/// Bytes of headers in front of the first stamp.
#[must_use]
pub fn stamp_offset(transport: Transport) -> usize {
    match transport {
        Transport::Udp | Transport::UdpPartial => UDP_STAMP_AT,
        Transport::TcpSegments { .. } => TCP_STAMP_AT,
    }
}

/// Source port of a flow, as it stands in the frame.
#[inline]
#[must_use]
pub fn source_port(flow: u16) -> [u8; 2] {
    (SOURCE_PORT_BASE.wrapping_add(flow)).to_be_bytes()
}

fn headers(spec: &FrameSpec, payload_len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(spec.len);
    let eth = Ethernet2Header { source: spec.from, destination: spec.to, ether_type: EtherType::IPV4 };
    bytes.extend_from_slice(&eth.to_bytes());
    let tcp = matches!(spec.transport, Transport::TcpSegments { .. });
    let (protocol, l4_len) = if tcp { (IpNumber::TCP, 20) } else { (IpNumber::UDP, 8) };
    let mut ip = Ipv4Header {
        total_len: (20 + l4_len + payload_len) as u16,
        time_to_live: 64,
        protocol,
        source: [10, 0, spec.source, 1],
        destination: [10, 0, spec.source ^ 1, 1],
        ..Ipv4Header::default()
    };
    ip.header_checksum = ip.calc_header_checksum();
    bytes.extend_from_slice(&ip.to_bytes());
    if tcp {
        let mut header = TcpHeader::new(SOURCE_PORT_BASE, 5001, 1, 65_535);
        header.ack = true;
        bytes.extend_from_slice(&header.to_bytes());
    } else {
        let header = UdpHeader {
            source_port: SOURCE_PORT_BASE,
            destination_port: 9,
            length: (8 + payload_len) as u16,
            checksum: 0,
        };
        bytes.extend_from_slice(&header.to_bytes());
    }
    bytes
}

/// One's-complement sum of big-endian 16-bit words, folded, added to `start`.
fn ones_sum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = u64::from(start);
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sum of the pseudo header of an IPv4 frame, not inverted: what a partial checksum starts with.
fn pseudo_sum(frame: &[u8]) -> u16 {
    let total = u16::from_be_bytes([frame[16], frame[17]]);
    ones_sum(u32::from(frame[23]) + u32::from(total - 20), &frame[26..34])
}

/// Longest run of pattern: a whole frame, wherever its seed starts.
const PATTERN_LEN: usize = LEN_MAX + SEED_COUNT as usize * 31;

/// The payload bytes of a seed. Two seeds differ in nearly every byte, and no frame repeats with a short period.
#[must_use]
pub fn pattern(seed: u8) -> &'static [u8] {
    static PATTERN: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let all = PATTERN.get_or_init(|| {
        // 97 is odd, so neighbours within 256 bytes differ; the second term breaks the period of 256.
        (0..PATTERN_LEN).map(|i| (i.wrapping_mul(97) + (i >> 8).wrapping_mul(13)) as u8).collect()
    });
    &all[usize::from(seed % SEED_COUNT) * 31..]
}

/// What is wrong with a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// IP total length and frame length disagree, or an IP header checksum is wrong.
    Header,
    /// UDP or TCP checksum is wrong although the device says nothing is left to do.
    Checksum,
    /// A payload byte differs, or a stamp is missing or out of line.
    Payload,
}

/// Checks a whole received frame of ours: headers, checksums, every stamp and every payload byte. `header` is its
/// virtio-net header, `mss` the segment length that the sender stamped by (0 for UDP).
///
/// # Errors
/// The first [`Damage`] found.
pub fn check(frame: &[u8], header: &NetHeader, mss: u16) -> Result<(), Damage> {
    if frame.len() < LEN_MIN || frame[12..14] != [8, 0] || frame[14] != 0x45 {
        return Err(Damage::Header);
    }
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    // Short frames may be padded to Ethernet's minimum; ours never need it.
    if total + 14 != frame.len() || ones_sum(0, &frame[14..34]) != 0xffff {
        return Err(Damage::Header);
    }
    let tcp = frame[23] == 6;
    let stamp_at = if tcp { TCP_STAMP_AT } else { UDP_STAMP_AT };
    if frame.len() < stamp_at + STAMP_LEN {
        return Err(Damage::Header);
    }
    let no_checksum = !tcp && frame[40..42] == [0, 0];
    if header.flags & F_NEEDS_CSUM != 0 {
        let at = if tcp { 50 } else { 40 };
        if frame[at..at + 2] != pseudo_sum(frame).to_be_bytes() {
            return Err(Damage::Checksum);
        }
    } else if header.gso_type == GSO_NONE && !no_checksum {
        let sum = ones_sum(u32::from(pseudo_sum(frame)), &frame[34..]);
        if sum != 0xffff {
            return Err(Damage::Checksum);
        }
    }
    let chunk_len = if tcp && mss > 0 { usize::from(mss).max(STAMP_LEN) } else { frame.len() };
    let first = Stamp::from_bytes(&frame[stamp_at..]).ok_or(Damage::Payload)?;
    let want = pattern(first.seed);
    for (i, chunk) in frame[stamp_at..].chunks(chunk_len).enumerate() {
        if chunk.len() < STAMP_LEN {
            if chunk != &want[..chunk.len()] {
                return Err(Damage::Payload);
            }
            continue;
        }
        let stamp = Stamp::from_bytes(chunk).ok_or(Damage::Payload)?;
        let in_line = (stamp.source, stamp.seed, stamp.flow) == (first.source, first.seed, first.flow)
            && stamp.seq == first.seq.wrapping_add(i as u32);
        if !in_line || chunk[STAMP_LEN..] != want[STAMP_LEN..chunk.len()] {
            return Err(Damage::Payload);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(len: usize, transport: Transport) -> FrameSpec {
        FrameSpec { to: [2, 0, 0, 0, 0, 2], from: [2, 0, 0, 0, 0, 1], len, transport, source: 0, seed: 3 }
    }

    fn stamped(t: &Template) -> Vec<u8> {
        let mut frame = t.bytes.clone();
        for i in 0..t.chunk_count {
            let at = t.stamp_at + i as usize * t.chunk_len;
            let s = Stamp { seed: t.seed, flow: 5, seq: 100 + i, time_ns: 9, ..Stamp::default() };
            frame[at..at + STAMP_LEN].copy_from_slice(&s.to_bytes());
        }
        frame
    }

    #[test]
    fn every_kind_of_frame_passes_its_own_check() {
        for len in [60, 64, 65, 1518, 9000] {
            for transport in [Transport::Udp, Transport::UdpPartial] {
                let t = Template::new(&spec(len, transport));
                assert_eq!(t.bytes.len(), len);
                assert_eq!(check(&stamped(&t), &t.header, 0), Ok(()), "{len} {transport:?}");
            }
        }
        for len in [1514, 9000, 65_214, 65_220, 65_232] {
            let t = Template::new(&spec(len, Transport::TcpSegments { mss: 1448 }));
            assert_eq!(check(&stamped(&t), &t.header, 1448), Ok(()), "{len}");
        }
    }

    #[test]
    fn a_changed_byte_anywhere_behind_the_addresses_is_seen() {
        let t = Template::new(&spec(200, Transport::UdpPartial));
        let good = stamped(&t);
        // Ports, the checksum itself, stamp time and flow of a single-stamp frame are covered by nothing here.
        let uncovered = |i: usize| (34..38).contains(&i) || (38..40).contains(&i) || (44..60).contains(&i);
        for i in (12..200).filter(|i| !uncovered(*i)) {
            let mut bad = good.clone();
            bad[i] ^= 0x10;
            assert!(check(&bad, &t.header, 0).is_err(), "byte {i}");
        }
    }

    #[test]
    fn a_finished_checksum_must_be_right() {
        let t = Template::new(&spec(200, Transport::UdpPartial));
        let mut frame = stamped(&t);
        // What a device does: one's-complement sum from csum_start to the end, inverted, into the field (virtio 1.3 §5.1.6.2).
        let sum = !ones_sum(0, &frame[34..]);
        frame[40..42].copy_from_slice(&sum.to_be_bytes());
        let done = NetHeader::default();
        assert_eq!(check(&frame, &done, 0), Ok(()));
        frame[41] ^= 1;
        assert_eq!(check(&frame, &done, 0), Err(Damage::Checksum));
    }

    #[test]
    fn bytes_of_two_frames_mixed_are_seen() {
        let a = stamped(&Template::new(&spec(500, Transport::Udp)));
        let b = stamped(&Template::new(&FrameSpec { seed: 4, ..spec(500, Transport::Udp) }));
        let mut mixed = a.clone();
        mixed[300..].copy_from_slice(&b[300..]);
        assert_eq!(check(&mixed, &NetHeader::default(), 0), Err(Damage::Payload));
    }

    #[test]
    fn tso_frames_are_what_the_offload_header_says() {
        let t = Template::new(&spec(65_214, Transport::TcpSegments { mss: 1448 }));
        assert_eq!((t.header.gso_type, t.header.gso_size, t.header.hdr_len), (GSO_TCPV4, 1448, 54));
        assert_eq!(t.chunk_count, 45);
        assert_eq!((t.header.csum_start, t.header.csum_offset), (34, 16));
    }
}
