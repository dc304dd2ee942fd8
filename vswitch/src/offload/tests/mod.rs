//! Frames for the offload tests, built and verified by `etherparse`, which shares no code with what is tested.

mod checksum;
mod coalesce;
mod header;
mod segment;

use super::{Validated, validate};
use crate::packet::Ethernet;
use avio_proto::mem::TailSum;
use avio_proto::virtio::net::NetHeader;
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader, NetSlice,
    PacketBuilder, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice, VlanId,
};

/// Every feature of the sender.
pub const ALL: u64 = u64::MAX;
/// A snapshot of a port without address guard, in bytes.
pub const SNAPSHOT_LEN: usize = 192;
/// Start value that wraps within a few segments.
pub const FIRST_ID: u16 = 0xfffe;
/// As above.
pub const FIRST_SEQUENCE: u32 = 0xffff_f000;

/// What a test frame looks like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    pub v6: bool,
    pub udp: bool,
    pub tagged: bool,
    /// IPv4 options, or an IPv6 hop-by-hop header.
    pub ip_options: bool,
    pub tcp_options: bool,
    pub cwr: bool,
    pub fin: bool,
}

/// A frame of this shape, complete and right.
pub fn build(shape: Shape, payload: &[u8]) -> Vec<u8> {
    let l2 = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = if shape.v6 {
        let header = Ipv6Header {
            source: [0xfd, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
            destination: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
            hop_limit: 64,
            ..Ipv6Header::default()
        };
        let extensions = Ipv6Extensions {
            hop_by_hop_options: shape
                .ip_options
                .then(|| Ipv6RawExtHeader::new_raw(IpNumber(0), &[1, 4, 0, 0, 0, 0]).expect("six bytes fit")),
            ..Ipv6Extensions::default()
        };
        IpHeaders::Ipv6(header, extensions)
    } else {
        let mut header =
            Ipv4Header::new(0, 64, IpNumber(0), [10, 1, 2, 3], [10, 4, 5, 6]).expect("an empty payload fits");
        header.identification = FIRST_ID;
        if shape.ip_options {
            header.options = Ipv4Options::from([1u8, 1, 1, 1, 7, 3, 4, 0]);
        }
        IpHeaders::Ipv4(header, Default::default())
    };
    let mut frame = Vec::new();
    let step = if shape.tagged {
        l2.single_vlan(VlanId::try_new(120).expect("a VLAN id")).ip(ip)
    } else {
        l2.ip(ip)
    };
    if shape.udp {
        step.udp(4433, 4434).write(&mut frame, payload).expect("a Vec takes all");
    } else {
        let mut tcp = TcpHeader::new(5201, 40000, FIRST_SEQUENCE, 512);
        (tcp.ack, tcp.psh, tcp.fin, tcp.cwr) = (true, true, shape.fin, shape.cwr);
        if shape.tcp_options {
            let stamps = [TcpOptionElement::Noop, TcpOptionElement::Timestamp(1, 2)];
            tcp.set_options(&stamps).expect("two options fit");
        }
        step.tcp_header(tcp).write(&mut frame, payload).expect("a Vec takes all");
    }
    frame
}

/// Where the transport header of `frame` starts.
pub fn l4_offset(frame: &[u8]) -> usize {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a whole frame");
    frame.len()
        - match sliced.transport {
            Some(TransportSlice::Tcp(t)) => t.slice().len(),
            Some(TransportSlice::Udp(u)) => u.slice().len(),
            other => panic!("no TCP or UDP: {other:?}"),
        }
}

/// The header that an honest guest puts in front of `frame` for a partial checksum, or for segmentation at `gso_size` if not 0.
pub fn honest(shape: Shape, frame: &[u8], gso_size: u16) -> NetHeader {
    let gso_type = match (gso_size, shape.udp, shape.v6) {
        (0, ..) => 0,
        (_, true, _) => 5,
        (_, false, false) => 1,
        (_, false, true) => 4,
    };
    NetHeader {
        flags: 1,
        gso_type: gso_type | if shape.cwr && gso_size != 0 { 0x80 } else { 0 },
        hdr_len: 0,
        gso_size,
        csum_start: l4_offset(frame) as u16,
        csum_offset: if shape.udp { 6 } else { 16 },
        num_buffers: 0,
    }
}

/// [`validate`] with the first [`SNAPSHOT_LEN`] bytes as the snapshot.
pub fn check(header: &NetHeader, frame: &[u8], acked: u64) -> Result<Validated, super::BadHeader> {
    let l2 = Ethernet::parse(frame).expect("an Ethernet header");
    validate(header, head_of(frame), frame.len(), &l2, acked)
}

/// The snapshot of a frame.
pub fn head_of(frame: &[u8]) -> &[u8] {
    &frame[..frame.len().min(SNAPSHOT_LEN)]
}

/// One's complement sum by the book, one word at a time.
pub fn slow_sum(bytes: &[u8]) -> TailSum {
    let mut sum = 0u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | word.get(1).map_or(0, |&b| u32::from(b));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    TailSum(sum as u16)
}

/// Panics unless every length and checksum of the frame is right; returns the transport payload.
pub fn verified(frame: &[u8]) -> Vec<u8> {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a whole frame");
    let transport = sliced.transport.expect("a transport header");
    match sliced.net.expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let h = ip.header().to_header();
            assert_eq!(h.header_checksum, h.calc_header_checksum(), "IPv4 header checksum");
            let l3_len = usize::from(h.total_len);
            assert!(frame.ends_with(&frame[frame.len() - l3_len..]) && l3_len <= frame.len() - 14);
            match transport {
                TransportSlice::Tcp(t) => {
                    assert_eq!(t.checksum(), t.calc_checksum_ipv4(h.source, h.destination).unwrap());
                    t.payload().to_vec()
                }
                TransportSlice::Udp(u) => {
                    let want = u.to_header().calc_checksum_ipv4(&h, u.payload()).unwrap();
                    assert_eq!((u.checksum(), usize::from(u.length())), (want, u.slice().len()));
                    u.payload().to_vec()
                }
                other => panic!("neither TCP nor UDP: {other:?}"),
            }
        }
        NetSlice::Ipv6(ip) => {
            let h = ip.header().to_header();
            match transport {
                TransportSlice::Tcp(t) => {
                    assert_eq!(t.checksum(), t.calc_checksum_ipv6(h.source, h.destination).unwrap());
                    t.payload().to_vec()
                }
                TransportSlice::Udp(u) => {
                    let want = u.to_header().calc_checksum_ipv6(&h, u.payload()).unwrap();
                    assert_eq!((u.checksum(), usize::from(u.length())), (want, u.slice().len()));
                    u.payload().to_vec()
                }
                other => panic!("neither TCP nor UDP: {other:?}"),
            }
        }
        NetSlice::Arp(_) => panic!("not IP"),
    }
}

/// What a receiver's own stack does with a partial checksum (§5.1.6.4): sums from `csum_start` to the end, field included.
pub fn complete_as_receiver(header: &NetHeader, frame: &mut [u8]) {
    assert_eq!(header.flags, 1);
    let start = usize::from(header.csum_start);
    let field = start + usize::from(header.csum_offset);
    let sum = match !slow_sum(&frame[start..]).0 {
        0 if header.csum_offset == 6 => 0xffff,
        sum => sum,
    };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}
