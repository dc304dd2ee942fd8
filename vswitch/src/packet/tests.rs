//! Parsing against bytes built by hand from the RFCs, and against `etherparse` as an independent reader.

use super::neighbour::{Arp, Discovery, DiscoveryKind};
use super::*;
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice, VlanId};
use proptest::prelude::*;

const A: [u8; 6] = [0x02, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [0x02, 0, 0, 0, 0, 0xb];

fn l2(frame: &[u8]) -> Ethernet {
    Ethernet::parse(frame).expect("an Ethernet header")
}

/// An Ethernet frame of this type with this payload.
fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&B[..], &A, &ethertype.to_be_bytes(), payload].concat()
}

/// An IPv6 frame: `next` and `rest` are the first next-header value and everything behind the fixed header.
fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0];
    p.extend((rest.len() as u16).to_be_bytes());
    p.extend([next, 255]);
    p.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    p.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2]);
    p.extend(rest);
    frame(ethertype::IPV6, &p)
}

/// An IPv4 frame with these options, flags-and-fragment word, protocol and payload.
fn ipv4(options: &[u8], fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut p = vec![0x40 | (header_len / 4) as u8, 0];
    p.extend(((header_len + payload.len()) as u16).to_be_bytes());
    p.extend([0, 7]);
    p.extend(fragment.to_be_bytes());
    p.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    p.extend(options);
    p.extend(payload);
    frame(ethertype::IPV4, &p)
}

fn ip(f: &[u8]) -> Result<Ip, ParseError> {
    Ip::parse(f, f.len(), &l2(f))
}

#[test]
fn ethernet_header_with_and_without_tags() {
    let plain = frame(ethertype::ARP, &[]);
    let e = l2(&plain);
    assert_eq!((e.destination, e.source, e.ethertype, e.tag), (B, A, 0x0806, None));
    assert_eq!((e.header_len(), e.is_tagged(), e.hides_inner_tag()), (14, false, false));

    let tagged = frame(0x8100, &[0x60, 0x78, 0x08, 0x00]);
    let e = l2(&tagged);
    assert_eq!((e.tag, e.vlan_id(), e.ethertype), (Some(0x6078), Some(0x78), 0x0800));
    assert_eq!((e.header_len(), e.is_tagged(), e.hides_inner_tag()), (18, true, false));

    let double = frame(0x8100, &[0, 1, 0x81, 0, 0, 2, 8, 0]);
    assert!(l2(&double).is_tagged() && l2(&double).hides_inner_tag());
    let service = frame(0x88a8, &[0, 1, 8, 0]);
    assert!(l2(&service).is_tagged() && l2(&service).tag.is_none());

    assert_eq!(Ethernet::parse(&plain[..13]), None);
    assert_eq!(Ethernet::parse(&tagged[..17]), None, "the frame ends inside its tag");
}

#[test]
fn ipv4_options_move_the_transport_header() {
    let f = ipv4(&[1, 1, 1, 0], 0, protocol::UDP, &[0, 1, 0, 2, 0, 8, 0, 0]);
    let p = ip(&f).unwrap();
    assert_eq!((p.l3_offset, p.l4_offset, p.end, p.protocol), (14, 38, 46, 17));
    assert_eq!(p.header_len(&f, f.len()), Ok(46));
    assert_eq!(p.ports(&f), Some((1, 2)));
    assert!(!p.has_routing);
    let routed = ipv4(&[1, 131, 7, 4, 10, 9, 9, 9], 0, protocol::UDP, &[0; 8]);
    assert!(ip(&routed).unwrap().has_routing);
    let record_route = ipv4(&[7, 7, 4, 0, 0, 0, 0, 0], 0, protocol::UDP, &[0; 8]);
    assert!(!ip(&record_route).unwrap().has_routing);
    let unreadable = ipv4(&[7, 9, 0, 0], 0, protocol::UDP, &[0; 8]);
    assert!(ip(&unreadable).unwrap().has_routing, "options that cannot be read may hide one");
}

#[test]
fn ipv4_that_contradicts_itself_is_malformed() {
    let good = ipv4(&[], 0, protocol::UDP, &[0; 8]);
    let broken = |at: usize, value: u8| {
        let mut f = good.clone();
        f[at] = value;
        ip(&f)
    };
    assert!(ip(&good).is_ok());
    assert_eq!(broken(14, 0x65), Err(ParseError::Malformed), "version 6 behind type IPv4");
    assert_eq!(broken(14, 0x44), Err(ParseError::Malformed), "header shorter than 20");
    assert_eq!(broken(17, 19), Err(ParseError::Malformed), "packet shorter than its header");
    assert_eq!(broken(14, 0x4f), Err(ParseError::Malformed), "header longer than the packet");
    let cut = &good[..30];
    assert_eq!(Ip::parse(cut, cut.len(), &l2(cut)), Err(ParseError::Short));
    assert_eq!(Ip::parse(cut, good.len(), &l2(cut)), Err(ParseError::BeyondSnapshot));
    let options = ipv4(&[1; 40], 0, protocol::UDP, &[0; 8]);
    assert_eq!(Ip::parse(&options[..50], options.len(), &l2(&options)), Err(ParseError::BeyondSnapshot));
    assert_eq!(Ip::parse(&options[..50], 50, &l2(&options)), Err(ParseError::Short));
}

#[test]
fn fragments_are_told_apart_and_have_no_ports() {
    for (bits, want) in [
        (0x0000, Fragment::Whole),
        (0x4000, Fragment::Whole),
        (0x2000, Fragment::First),
        (0x2010, Fragment::Later),
        (0x0010, Fragment::Later),
    ] {
        let f = ipv4(&[], bits, protocol::UDP, &[0, 1, 0, 2, 0, 8, 0, 0]);
        let p = ip(&f).unwrap();
        assert_eq!(p.fragment, want, "{bits:#x}");
        assert_eq!(p.ports(&f).is_some(), want == Fragment::Whole, "{bits:#x}");
    }
    let later = ipv4(&[], 0x0010, protocol::TCP, &[0; 4]);
    assert_eq!(ip(&later).unwrap().header_len(&later, later.len()), Ok(34), "payload is no header");
}

#[test]
fn ipv6_extension_headers_are_stepped_over() {
    // Hop-by-hop (8), routing (24), fragment at offset 0 (8), authentication (4 * (4 + 2) = 24), destination options (16), UDP.
    let mut rest = vec![43, 0, 1, 4, 0, 0, 0, 0];
    rest.extend([44, 2, 4, 0]);
    rest.extend([0; 20]);
    rest.extend([51, 0, 0, 0, 0, 0, 0, 9]);
    rest.extend([60, 4]);
    rest.extend([0; 22]);
    rest.extend([17, 1]);
    rest.extend([0; 14]);
    let headers_len = rest.len();
    rest.extend([0, 1, 0, 2, 0, 8, 0, 0]);
    let f = ipv6(0, &rest);
    let p = ip(&f).unwrap();
    assert_eq!((p.protocol, p.l4_offset, p.end), (17, 54 + headers_len, f.len()));
    assert_eq!(headers_len, 8 + 24 + 8 + 24 + 16);
    assert_eq!((p.fragment, p.has_routing), (Fragment::First, true));
    assert_eq!(p.header_len(&f, f.len()), Ok(f.len()));

    // What follows a later fragment's header is payload, whatever the header calls it.
    let later = ipv6(44, &[60, 0, 0, 8, 0, 0, 0, 9, 0xff, 0xff, 0, 0, 0, 0, 0, 0]);
    let p = ip(&later).unwrap();
    assert_eq!((p.fragment, p.protocol, p.l4_offset), (Fragment::Later, 60, 62));
}

#[test]
fn ipv6_chains_are_bounded() {
    let chain = |count: usize| {
        let mut rest = Vec::new();
        for i in 0..count {
            rest.extend([if i + 1 == count { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        rest.extend([0; 8]);
        ipv6(60, &rest)
    };
    let longest = chain(MAX_EXTENSION_HEADERS);
    assert_eq!(ip(&longest).unwrap().protocol, 17);
    assert_eq!(ip(&chain(MAX_EXTENSION_HEADERS + 1)), Err(ParseError::Malformed));
    // An extension header that claims to be longer than the packet, the frame, or the snapshot.
    assert_eq!(ip(&ipv6(60, &[17, 1, 0, 0, 0, 0, 0, 0])), Err(ParseError::Malformed));
    let long = ipv6(60, &[[17, 20].as_slice(), &[0; 200]].concat());
    assert_eq!(Ip::parse(&long[..192], long.len(), &l2(&long)), Err(ParseError::BeyondSnapshot));
    assert_eq!(Ip::parse(&long[..192], 192, &l2(&long)), Err(ParseError::Short));
}

#[test]
fn tcp_header_length_is_its_data_offset() {
    let mut tcp = [0; 60];
    tcp[12] = 0xf0;
    let f = ipv4(&[], 0, protocol::TCP, &tcp);
    assert_eq!(ip(&f).unwrap().header_len(&f, f.len()), Ok(94));
    assert_eq!(ip(&f).unwrap().header_len(&f[..93], f.len()), Err(ParseError::BeyondSnapshot));
    assert_eq!(ip(&f).unwrap().header_len(&f[..93], 93), Err(ParseError::Short));
    let mut short = f.clone();
    short[46] = 0x40;
    assert_eq!(ip(&short).unwrap().header_len(&short, f.len()), Err(ParseError::Malformed));
}

#[test]
fn arp_fields_are_those_of_rfc_826() {
    let mut p = vec![0, 1, 8, 0, 6, 4, 0, 2];
    p.extend([A.as_slice(), &[192, 0, 2, 7], &B, &[192, 0, 2, 9]].concat());
    let f = frame(ethertype::ARP, &p);
    let arp = Arp::parse(&f, f.len(), &l2(&f)).unwrap();
    assert_eq!((arp.operation, arp.sender_mac, arp.target_mac), (2, A, B));
    assert_eq!(arp.sender_ip.octets(), [192, 0, 2, 7]);
    assert_eq!(arp.target_ip.octets(), [192, 0, 2, 9]);
    for at in 0..6 {
        let mut other = f.clone();
        other[14 + at] ^= 1;
        assert_eq!(Arp::parse(&other, f.len(), &l2(&f)), Err(ParseError::Malformed), "byte {at}");
    }
    assert_eq!(Arp::parse(&f[..41], 41, &l2(&f)), Err(ParseError::Short));
    let not_arp = frame(ethertype::IPV4, &p);
    assert_eq!(Arp::parse(&not_arp, f.len(), &l2(&not_arp)), Err(ParseError::OtherProtocol));
}

fn discovery(f: &[u8]) -> Result<Discovery, ParseError> {
    Discovery::parse(f, f.len(), &ip(f).unwrap())
}

/// A neighbour solicitation or advertisement for target fe80::2 with these options.
fn neighbour(icmp_type: u8, options: &[u8]) -> Vec<u8> {
    let mut m = vec![icmp_type, 0, 0, 0, 0, 0, 0, 0];
    m.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    m.extend(options);
    m
}

const SOURCE_OPTION: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 0xa];
const TARGET_OPTION: [u8; 8] = [2, 1, 2, 0, 0, 0, 0, 0xb];

#[test]
fn discovery_messages_and_their_options() {
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let f = ipv6(58, &neighbour(135, &[nonce, SOURCE_OPTION].concat()));
    let d = discovery(&f).unwrap();
    assert_eq!(d.kind, DiscoveryKind::NeighbourSolicitation);
    assert_eq!(d.source, "fe80::1".parse::<std::net::Ipv6Addr>().unwrap());
    assert_eq!(d.target, Some("fe80::2".parse().unwrap()));
    assert_eq!((d.source_mac, d.target_mac), (Some(A), None));

    let d = discovery(&ipv6(58, &neighbour(136, &TARGET_OPTION))).unwrap();
    assert_eq!((d.kind, d.target_mac), (DiscoveryKind::NeighbourAdvertisement, Some(B)));

    let mut m = vec![133, 0, 0, 0, 0, 0, 0, 0];
    m.extend(SOURCE_OPTION);
    let d = discovery(&ipv6(58, &m)).unwrap();
    assert_eq!((d.kind, d.target, d.source_mac), (DiscoveryKind::RouterSolicitation, None, Some(A)));

    let mut m = vec![134; 16];
    m.extend(SOURCE_OPTION);
    let d = discovery(&ipv6(58, &m)).unwrap();
    assert_eq!((d.kind, d.source_mac), (DiscoveryKind::RouterAdvertisement, Some(A)));

    let mut m = neighbour(137, &[0; 16]);
    m.extend(TARGET_OPTION);
    let d = discovery(&ipv6(58, &m)).unwrap();
    assert_eq!((d.kind, d.target_mac), (DiscoveryKind::Redirect, Some(B)));
    assert_eq!(discovery(&ipv6(58, &[128; 24])), Err(ParseError::OtherProtocol), "an echo request");
    assert_eq!(discovery(&ipv6(17, &[135; 24])), Err(ParseError::OtherProtocol), "UDP");
}

#[test]
fn discovery_that_could_fool_a_guard_is_malformed() {
    let bad = |options: &[u8]| discovery(&ipv6(58, &neighbour(135, options)));
    assert!(bad(&SOURCE_OPTION).is_ok());
    assert_eq!(bad(&[SOURCE_OPTION, SOURCE_OPTION].concat()), Err(ParseError::Malformed), "two");
    assert_eq!(bad(&[1, 0, 0, 0, 0, 0, 0, 0]), Err(ParseError::Malformed), "length 0");
    assert_eq!(bad(&[14, 0, 0, 0, 0, 0, 0, 0]), Err(ParseError::Malformed), "would never end");
    assert_eq!(bad(&[1, 2, 0, 0, 0, 0, 0, 0]), Err(ParseError::Malformed), "behind the end");
    assert_eq!(bad(&[[1, 2].as_slice(), &[0; 14]].concat()), Err(ParseError::Malformed), "16 bytes");
    // Behind a fragment header, as the first part of several or as the only one.
    for more in [0, 1] {
        let m = [[58, 0, 0, more, 0, 0, 0, 9].as_slice(), &neighbour(135, &[])].concat();
        assert_eq!(discovery(&ipv6(44, &m)), Err(ParseError::Malformed));
    }
    // A message or an option that ends behind the snapshot cannot be judged.
    let long = ipv6(58, &neighbour(135, &[[14, 20].as_slice(), &[0; 158], &SOURCE_OPTION].concat()));
    let p = Ip::parse(&long[..192], long.len(), &l2(&long)).unwrap();
    assert_eq!(Discovery::parse(&long[..192], long.len(), &p), Err(ParseError::BeyondSnapshot));
    assert_eq!(discovery(&long).unwrap().source_mac, Some(A));
    let truncated = ipv6(58, &[135, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(discovery(&truncated), Err(ParseError::Malformed));
    // A first fragment that ends before the message, then padding that looks like an echo request.
    let mut padded = ipv6(44, &[58, 0, 0, 1, 0, 0, 0, 9]);
    padded.extend([128; 24]);
    assert_eq!(discovery(&padded), Err(ParseError::Malformed));
}

#[test]
fn a_tag_goes_in_and_comes_out_again() {
    let original = frame(ethertype::IPV4, &[0x45, 1, 2, 3]);
    let mut buffer = [&[0; TAG_LEN], original.as_slice()].concat();
    assert_eq!(vlan::insert_tag(&mut buffer, TAG_LEN, 0x6078), Some(0));
    let e = l2(&buffer);
    assert_eq!((e.destination, e.source, e.tag, e.ethertype), (B, A, Some(0x6078), 0x0800));
    assert_eq!(buffer[18..], [0x45, 1, 2, 3]);
    assert_eq!(vlan::strip_tag(&mut buffer, 0), Some(TAG_LEN));
    assert_eq!(buffer[TAG_LEN..], original);

    let before = buffer.clone();
    assert_eq!(vlan::strip_tag(&mut buffer, TAG_LEN), None, "no tag there");
    assert_eq!(vlan::insert_tag(&mut buffer, TAG_LEN - 1, 1), None, "no room in front");
    assert_eq!(vlan::insert_tag(&mut buffer[..10], TAG_LEN, 1), None, "no addresses");
    assert_eq!(vlan::strip_tag(&mut buffer, 1000), None);
    assert_eq!(buffer, before);
}

fn udp_frame(from: [u8; 4], to: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
    let mut f = Vec::new();
    PacketBuilder::ethernet2(A, B).ipv4(from, to, 64).udp(ports.0, ports.1).write(&mut f, &[0; 10]).unwrap();
    f
}

fn hash(f: &[u8]) -> u32 {
    flow_hash(f, f.len(), &l2(f))
}

#[test]
fn both_directions_of_a_flow_have_one_hash_and_flows_spread() {
    let there = udp_frame([10, 0, 0, 1], [10, 0, 0, 2], (1000, 53));
    let back = udp_frame([10, 0, 0, 2], [10, 0, 0, 1], (53, 1000));
    assert_eq!(hash(&there), hash(&back));
    assert_ne!(hash(&there), hash(&udp_frame([10, 0, 0, 1], [10, 0, 0, 2], (1001, 53))));
    assert_ne!(
        hash(&there),
        hash(&udp_frame([10, 0, 0, 1], [10, 0, 0, 2], (53, 1000))),
        "ports belong to their addresses"
    );
    let mut queues = [0; 4];
    for port in 0..4000 {
        queues[hash(&udp_frame([10, 0, 0, 1], [10, 0, 0, 2], (1024 + port, 5201))) as usize % 4] += 1;
    }
    assert!(queues.iter().all(|&n| (850..1150).contains(&n)), "{queues:?}");
}

#[test]
fn all_fragments_of_a_datagram_have_one_hash() {
    let first = ipv4(&[], 0x2000, protocol::UDP, &[0, 1, 0, 2, 0, 8, 0, 0]);
    let later = ipv4(&[], 0x0001, protocol::UDP, &[9, 9, 9, 9, 9, 9, 9, 9]);
    assert_eq!(hash(&first), hash(&later));
    // Anything else: by addresses, either way round.
    let one = frame(0x88b5, &[1, 2, 3]);
    let mut other = one.clone();
    other[..12].rotate_left(6);
    assert_eq!(hash(&one), hash(&other));
}

proptest! {
    /// Any bytes, with a type that leads into the parsers, at any cut between snapshot and frame.
    #[test]
    fn no_bytes_make_it_panic(
        mut f in proptest::collection::vec(any::<u8>(), 0..300),
        kind in prop::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x8100, 0x8035]),
        first in prop::sample::select(vec![0x45u8, 0x4f, 0x60, 0x00]),
        next in prop::sample::select(vec![0u8, 6, 17, 43, 44, 51, 58, 60, 135]),
        more in 0usize..1000,
    ) {
        if f.len() > 24 {
            f[12..14].copy_from_slice(&kind.to_be_bytes());
            f[14] = first;
            f[20] = next;
        }
        let frame_len = f.len() + more;
        let Some(e) = Ethernet::parse(&f) else { return Ok(()) };
        let _ = flow_hash(&f, frame_len, &e);
        let _ = Arp::parse(&f, frame_len, &e);
        if let Ok(p) = Ip::parse(&f, frame_len, &e) {
            prop_assert!(p.l4_offset <= f.len() && p.l4_offset <= p.end);
            let _ = (p.ports(&f), p.addresses(&f));
            let _ = Discovery::parse(&f, frame_len, &p);
            if let Ok(header_len) = p.header_len(&f, frame_len) {
                prop_assert!(header_len <= f.len());
            }
        }
    }

    /// Offsets agree with an independent parser.
    #[test]
    fn offsets_are_those_etherparse_finds(
        v6 in any::<bool>(), tcp in any::<bool>(), tag in prop::option::of(0u16..4096),
        source in any::<[u8; 16]>(), ports in any::<(u16, u16)>(),
        payload in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut f = Vec::new();
        let b = PacketBuilder::ethernet2(A, B);
        let v4 = [source[0], source[1], source[2], source[3]];
        let b = match (tag, v6) {
            (Some(id), true) => b.single_vlan(VlanId::try_new(id).unwrap()).ipv6(source, [1; 16], 9),
            (Some(id), false) => b.single_vlan(VlanId::try_new(id).unwrap()).ipv4(v4, [1; 4], 9),
            (None, true) => b.ipv6(source, [1; 16], 9),
            (None, false) => b.ipv4(v4, [1; 4], 9),
        };
        if tcp {
            b.tcp(ports.0, ports.1, 1, 2).write(&mut f, &payload).unwrap();
        } else {
            b.udp(ports.0, ports.1).write(&mut f, &payload).unwrap();
        }
        let theirs = SlicedPacket::from_ethernet(&f).unwrap();
        let p = ip(&f).unwrap();
        prop_assert_eq!(l2(&f).vlan_id(), tag);
        prop_assert_eq!(p.end, f.len());
        prop_assert_eq!(p.ports(&f), Some(ports));
        let transport_len = match theirs.transport {
            Some(TransportSlice::Tcp(t)) => t.slice().len(),
            Some(TransportSlice::Udp(u)) => u.slice().len(),
            _ => unreachable!("built as TCP or UDP"),
        };
        prop_assert_eq!(p.l4_offset, f.len() - transport_len);
        prop_assert_eq!(p.header_len(&f, f.len()), Ok(f.len() - payload.len()));
        let (found, _) = p.addresses(&f).unwrap();
        let want: std::net::IpAddr = if v6 { source.into() } else { v4.into() };
        prop_assert_eq!(found, want);
    }
}
