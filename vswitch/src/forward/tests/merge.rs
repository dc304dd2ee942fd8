//! Frames of a TCP flow from the wire, as guests of all kinds get them: through batches, groups, tags and receive rings.

use avio_proto::config::{Balance, VlanId};
use avio_proto::control::DiscardReason;
use avio_proto::virtio::features::{NET_GUEST_CSUM, NET_GUEST_TSO4, NET_GUEST_TSO6};
use avio_proto::virtio::net::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6};
use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder, TcpHeader};

use super::offload::check;
use super::rig::{Attach, MODERN};
use super::wire::{Wired, guest};
use crate::port::uplink::Distribution;
use crate::table::tests::mac;

/// What Linux acks.
const TAKES: u64 = MODERN | NET_GUEST_CSUM | NET_GUEST_TSO4 | NET_GUEST_TSO6;
const MSS: usize = 1400;

fn taker(n: u16) -> Attach {
    let mut attach = guest(n);
    attach.features = TAKES;
    attach
}

/// `count` segments of a stream to guest `to` that begins at byte `from`, and their payload.
fn stream(to: u16, v6: bool, from: usize, count: usize, len: usize) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut frames = Vec::new();
    let all: Vec<u8> = (0..count * len).map(|i| ((from + i) * 7 + i / 251) as u8).collect();
    for (i, payload) in all.chunks(len).enumerate() {
        let mut tcp = TcpHeader::new(1000, 2000, (from + i * len) as u32, 4000);
        (tcp.ack, tcp.psh) = (true, i + 1 == count);
        let ip = if v6 {
            let ends = ([1; 16], [2; 16]);
            let header =
                Ipv6Header { source: ends.0, destination: ends.1, hop_limit: 64, ..Ipv6Header::default() };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        } else {
            let mut header = Ipv4Header::new(0, 64, IpNumber(0), [192, 0, 2, 1], [192, 0, 2, 2]).unwrap();
            header.identification = (from / len + i) as u16;
            IpHeaders::Ipv4(header, Default::default())
        };
        let mut frame = Vec::new();
        let step = PacketBuilder::ethernet2(mac(77).0, mac(to).0).ip(ip);
        step.tcp_header(tcp).write(&mut frame, payload).unwrap();
        frames.push(frame);
    }
    (frames, all)
}

fn untagged(frames: Vec<Vec<u8>>) -> impl Iterator<Item = (Vec<u8>, Option<u16>)> {
    frames.into_iter().map(|frame| (frame, None))
}

#[test]
fn a_batch_of_a_flow_is_one_frame_with_a_header_that_says_so() {
    for (v6, gso_type, l3_len) in [(false, GSO_TCPV4, 20), (true, GSO_TCPV6, 40)] {
        let mut wired = Wired::new([taker(1)], 1);
        let (frames, payload) = stream(1, v6, 0, 40, MSS);
        wired.arrive_all(untagged(frames));
        let got = wired.rig.received(0);
        assert_eq!(got.len(), 1);
        let header = got[0].header;
        assert_eq!((header.flags, header.gso_type), (F_NEEDS_CSUM, gso_type));
        assert_eq!((header.gso_size, header.hdr_len), (MSS as u16, 14 + l3_len + 20));
        assert_eq!((header.csum_start, header.csum_offset), (14 + l3_len, 16));
        assert_eq!(usize::from(header.num_buffers), (got[0].frame.len() + 12).div_ceil(2048));
        assert!(check(&got[0], "tcp merged") == payload);
        let counters = wired.rig.stats(0).counters;
        assert_eq!((counters.inbound_unicast_wire, counters.inbound_octets), (1, got[0].frame.len() as u64));
        wired.consistent();
    }
}

#[test]
fn flows_of_several_guests_in_one_batch_keep_their_order() {
    let mut wired = Wired::new([taker(1), guest(2), taker(3)], 1);
    let streams: Vec<_> = (1..4).map(|to| stream(to, to == 3, usize::from(to) * 70_000, 20, MSS)).collect();
    let mixed = (0..20).flat_map(|i| streams.iter().map(move |(frames, _)| (frames[i].clone(), None)));
    wired.arrive_all(mixed);
    for (i, want) in [1, 20, 1].into_iter().enumerate() {
        let got = wired.rig.received(i);
        assert_eq!(got.len(), want, "guest {i}");
        let payload: Vec<u8> = got.iter().flat_map(|frame| check(frame, "tcp mixed")).collect();
        assert!(payload == streams[i].1, "guest {i}");
    }
    wired.consistent();
}

#[test]
fn nobody_gets_merged_frames_who_did_not_ask() {
    for missing in [NET_GUEST_CSUM, NET_GUEST_TSO4, avio_proto::virtio::features::NET_MRG_RXBUF] {
        let mut attach = taker(1);
        attach.features &= !missing;
        let mut wired = Wired::new([attach], 1);
        wired.arrive_all(untagged(stream(1, false, 0, 10, MSS).0));
        assert_eq!(wired.rig.received(0).len(), 10, "{missing:#x}");
    }
    let mut wired = Wired::new([taker(1)], 1);
    wired.gro = false;
    wired.publish(&Distribution::all_to(0), Balance::LbMac);
    let (frames, _) = stream(1, false, 0, 10, MSS);
    wired.arrive_all(untagged(frames.clone()));
    let got: Vec<Vec<u8>> = wired.rig.received(0).into_iter().map(|arrived| arrived.frame).collect();
    assert!(got == frames);
    wired.consistent();
}

#[test]
fn tags_are_taken_out_before_and_put_in_after() {
    let mut access = taker(1);
    access.spec.vlan = VlanId::new(10);
    let mut trunk = taker(2);
    trunk.spec.trunk = [10].into_iter().filter_map(VlanId::new).collect();
    // The tag in the frame, or taken out of it by the kernel.
    for in_frame in [true, false] {
        let mut wired = Wired::new([access.clone(), trunk.clone()], 1);
        for (to, want_tag) in [(1, false), (2, true)] {
            let (frames, payload) = stream(to, false, 0, 30, MSS);
            wired.arrive_all(frames.into_iter().map(|mut frame| {
                if in_frame {
                    frame.splice(12..12, [0x81, 0, 0, 10]);
                }
                (frame, (!in_frame).then_some(10))
            }));
            let mut got = wired.rig.received(usize::from(to) - 1);
            assert_eq!(got.len(), 1, "guest {to}");
            let super::rig::Arrived { frame, header } = &mut got[0];
            if want_tag {
                assert_eq!(frame[12..16], [0x81, 0, 0, 10]);
                assert_eq!((header.hdr_len, header.csum_start), (58, 38));
                frame.drain(12..16);
                (header.hdr_len, header.csum_start) = (54, 34);
            }
            assert!(check(&got[0], "tcp tagged") == payload);
        }
        wired.consistent();
    }
}

#[test]
fn a_guest_with_few_buffers_gets_what_fits() {
    let mut attach = taker(1);
    attach.rx_count = 8;
    let mut wired = Wired::new([attach], 1);
    let (frames, payload) = stream(1, false, 0, 40, MSS);
    wired.arrive_all(untagged(frames));
    let got = wired.rig.received(0);
    assert_eq!(got.len(), 8);
    let part: Vec<u8> = got.iter().flat_map(|frame| check(frame, "tcp few")).collect();
    assert!(part[..] == payload[..8 * MSS]);
    assert!(got.iter().all(|frame| frame.header.gso_type == 0));
    assert_eq!(wired.rig.stats(0).discards[DiscardReason::NoBuffer], 32);
    wired.consistent();
}
