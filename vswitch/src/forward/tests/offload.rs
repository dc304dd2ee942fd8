//! Every kind of offloaded frame to every kind of receiver: what arrives is the same stream, and correct.

use avio_proto::config::VlanId;
use avio_proto::control::DiscardReason as Reason;
use avio_proto::virtio::features as f;
use avio_proto::virtio::net::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NetHeader};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::rig::{Arrived, Attach, MODERN, Rig};
use crate::table::tests::mac;

pub(super) const SENDER: u64 = f::NET_CSUM | f::NET_HOST_TSO4 | f::NET_HOST_TSO6 | f::NET_HOST_USO;

/// A frame of the sender with its header.
pub(super) struct Sent {
    pub name: &'static str,
    pub header: NetHeader,
    pub frame: Vec<u8>,
    pub payload: Vec<u8>,
    /// Receiver features with which it passes as one.
    whole: u64,
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// TCP or UDP over IPv4 or IPv6, with the checksum left to others; `gso_size` 0: not to be cut.
fn sent(name: &'static str, v6: bool, tcp: bool, len: usize, gso_size: u16) -> Sent {
    let payload = payload(len);
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2(mac(0).0, mac(1).0);
    let ip = if v6 {
        ethernet.ipv6([1; 16], [2; 16], 64)
    } else {
        ethernet.ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
    };
    if tcp {
        ip.tcp(1000, 2000, 77, 4000).psh().write(&mut frame, &payload).unwrap();
    } else {
        ip.udp(1000, 2000).write(&mut frame, &payload).unwrap();
    }
    let l4 = 14 + if v6 { 40 } else { 20 };
    let offset = if tcp { 16 } else { 6 };
    // What a driver leaves in the field is the sum of the pseudo header; AVIO must not depend on it.
    frame[l4 + offset..l4 + offset + 2].copy_from_slice(&[0x12, 0x34]);
    let (gso_type, whole) = match (gso_size, tcp, v6) {
        (0, ..) => (0, f::NET_GUEST_CSUM),
        (_, true, false) => (GSO_TCPV4, f::NET_GUEST_CSUM | f::NET_GUEST_TSO4),
        (_, true, true) => (GSO_TCPV6, f::NET_GUEST_CSUM | f::NET_GUEST_TSO6),
        (_, false, false) => (GSO_UDP_L4, f::NET_GUEST_CSUM | f::NET_GUEST_USO4),
        (_, false, true) => (GSO_UDP_L4, f::NET_GUEST_CSUM | f::NET_GUEST_USO6),
    };
    let header = NetHeader {
        flags: F_NEEDS_CSUM,
        gso_type,
        hdr_len: 9999,
        gso_size,
        csum_start: l4 as u16,
        csum_offset: offset as u16,
        num_buffers: 77,
    };
    Sent { name, header, frame, payload, whole }
}

pub(super) fn all_kinds() -> Vec<Sent> {
    vec![
        sent("csum tcp4", false, true, 100, 0),
        sent("csum udp6", true, false, 1301, 0),
        sent("tso4", false, true, 30_001, 1448),
        sent("tso4 max", false, true, 65_535 - 40, 1460),
        sent("tso6", true, true, 20_000, 1428),
        sent("uso4", false, false, 9_001, 1001),
        sent("uso6", true, false, 5_000, 1200),
    ]
}

/// Payload of one arrived frame, whose checksum must be right unless it is declared partial.
pub(super) fn check(arrived: &Arrived, name: &str) -> Vec<u8> {
    let packet = SlicedPacket::from_ethernet(&arrived.frame).unwrap();
    let net = packet.net.unwrap();
    let partial = arrived.header.flags & F_NEEDS_CSUM != 0;
    if let NetSlice::Ipv4(ip) = &net {
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum(), "{name}");
    }
    let (payload, want, have) = match packet.transport.unwrap() {
        TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            let sum = match &net {
                NetSlice::Ipv4(ip) => header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()),
                NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload()),
                _ => panic!("{name}: neither"),
            };
            (tcp.payload().to_vec(), sum.unwrap(), header.checksum)
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            let sum = match &net {
                NetSlice::Ipv4(ip) => header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()),
                NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
                _ => panic!("{name}: neither"),
            };
            (udp.payload().to_vec(), sum.unwrap(), header.checksum)
        }
        other => panic!("{name}: {other:?}"),
    };
    if partial {
        assert_eq!(
            arrived.header.csum_offset,
            if name.contains("tcp") || name.contains("tso") { 16 } else { 6 }
        );
    } else {
        assert_eq!(have, want, "{name}: checksum");
    }
    payload
}

#[test]
fn every_receiver_gets_the_payload_with_checksums_that_hold() {
    let receivers = [
        0,
        f::NET_GUEST_CSUM,
        f::NET_GUEST_CSUM | f::NET_GUEST_TSO4,
        f::NET_GUEST_CSUM | f::NET_GUEST_TSO4 | f::NET_GUEST_TSO6,
        f::NET_GUEST_CSUM | f::NET_GUEST_TSO4 | f::NET_GUEST_TSO6 | f::NET_GUEST_USO4 | f::NET_GUEST_USO6,
    ];
    for features in receivers {
        for one in all_kinds() {
            for cuts in [&[][..], &[12], &[40, 12 + 14 + 20 + 33, 300, 1000]] {
                let mut attach = [Attach::new("a", mac(0)), Attach::new("b", mac(1))];
                attach[0].features |= SENDER;
                attach[1].features |= features;
                let mut rig = Rig::new(attach);
                rig.guests[0].tx[0].put(&one.header, &one.frame, cuts).unwrap();
                rig.guests[0].tx[0].driver.publish();
                rig.run();
                let got = rig.received(1);
                let name = one.name;
                let whole = features & one.whole == one.whole;
                let segments = if whole || one.header.gso_size == 0 {
                    1
                } else {
                    one.payload.len().div_ceil(usize::from(one.header.gso_size))
                };
                assert_eq!(got.len(), segments, "{name} to {features:#x}: {:?}", rig.stats(0).discards);
                let mut payload = Vec::new();
                for arrived in &got {
                    let h = arrived.header;
                    assert_eq!(h.flags & F_NEEDS_CSUM != 0, features & f::NET_GUEST_CSUM != 0, "{name}");
                    assert_eq!(
                        h.gso_type,
                        if whole { one.header.gso_type } else { 0 },
                        "{name} {features:#x}"
                    );
                    assert_ne!(h.hdr_len, 9999, "the guest's own header is never passed on");
                    payload.extend(check(arrived, name));
                }
                assert!(payload == one.payload, "{name} to {features:#x}: payload differs");
                let (sender, receiver) = (rig.stats(0), rig.stats(1));
                assert_eq!(sender.counters.outbound_unicast_local, 1, "one frame is what it is on its port");
                assert_eq!(receiver.counters.inbound_unicast_local, segments as u64);
                assert!(sender.is_consistent() && receiver.is_consistent());
            }
        }
    }
}

#[test]
fn tags_and_offloads_go_together() {
    for features in [0, f::NET_GUEST_CSUM, f::NET_GUEST_CSUM | f::NET_GUEST_TSO4] {
        let mut attach = [Attach::new("a", mac(0)), Attach::new("b", mac(1))];
        attach[0].features |= SENDER;
        attach[0].spec.vlan = VlanId::new(10);
        attach[1].features |= features;
        attach[1].spec.trunk = vec![VlanId::new(10).unwrap()];
        let mut rig = Rig::new(attach);
        let one = sent("tso4", false, true, 10_000, 1448);
        rig.guests[0].tx[0].put(&one.header, &one.frame, &[]).unwrap();
        rig.guests[0].tx[0].driver.publish();
        rig.run();
        let mut payload = Vec::new();
        for mut arrived in rig.received(1) {
            assert_eq!(arrived.frame[12..16], [0x81, 0, 0, 10]);
            if features != 0 {
                assert_eq!(arrived.header.csum_start, 14 + 4 + 20);
            }
            if features & f::NET_GUEST_TSO4 == 0 {
                assert!(arrived.frame.len() <= 1518);
            }
            arrived.frame.drain(12..16);
            payload.extend(check(&arrived, "tso4"));
        }
        assert!(payload == one.payload);
    }
}

#[test]
fn a_broadcast_with_a_partial_checksum_is_completed_for_those_who_need_it() {
    let mut attach: Vec<_> = (0..4).map(|i| Attach::new(&format!("guest{i}"), mac(i))).collect();
    attach[0].features |= SENDER;
    attach[2].features |= f::NET_GUEST_CSUM;
    let mut rig = Rig::new(attach);
    let mut one = sent("csum udp4", false, false, 500, 0);
    one.frame[..6].copy_from_slice(&[0xff; 6]);
    rig.guests[0].tx[0].put(&one.header, &one.frame, &[]).unwrap();
    rig.guests[0].tx[0].driver.publish();
    rig.run();
    for guest in 1..4 {
        let got = rig.received(guest);
        assert_eq!(got[0].header.flags & F_NEEDS_CSUM != 0, guest == 2);
        assert!(check(&got[0], "csum udp4") == one.payload);
    }
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let one = sent("tso4", false, true, 10_000, 1448);
    for features in [0, f::NET_CSUM, f::NET_CSUM | f::NET_HOST_TSO6] {
        let mut attach = [Attach::new("a", mac(0)), Attach::new("b", mac(1))];
        attach[0].features |= features;
        attach[1].features = MODERN | f::NET_GUEST_CSUM | f::NET_GUEST_TSO4;
        let mut rig = Rig::new(attach);
        rig.guests[0].tx[0].put(&one.header, &one.frame, &[]).unwrap();
        rig.guests[0].tx[0].driver.publish();
        rig.run();
        assert_eq!((rig.received(1).len(), rig.stats(0).discards[Reason::BadHeader]), (0, 1));
    }
}
