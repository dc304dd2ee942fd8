//! What a guest may not send: each rule on its own, with the reason it is counted under and the line it leaves.

use std::net::IpAddr;

use avio_proto::config::{MacAddr, VlanId};
use avio_proto::control::DiscardReason as Reason;
use etherparse::{EtherType, PacketBuilder};

use super::rig::{Attach, Rig, frame, tagged};
use crate::forward::Event;
use crate::table::PortSpec;
use crate::table::tests::mac;

const IPV4: u16 = 0x0800;

/// Three guests, the first with a changed definition; 00:16:3e:00:00:01 is a host's.
fn rig(change: impl FnOnce(&mut PortSpec)) -> Rig {
    let mut attach: Vec<Attach> = (0..3).map(|i| Attach::new(&format!("guest{i}"), mac(i))).collect();
    change(&mut attach[0].spec);
    let mut rig = Rig::new(attach);
    rig.protected.push(HOST);
    rig.publish();
    rig
}

const HOST: MacAddr = MacAddr([0, 0x16, 0x3e, 0, 0, 1]);

/// The frame must be refused for this reason and reach nobody.
fn refused(rig: &mut Rig, frame: &[u8], reason: Reason) {
    let before = rig.stats(0).discards[reason];
    rig.send(0, frame);
    assert_eq!(rig.counts(), [0, 0, 0], "{reason}");
    assert_eq!(rig.stats(0).discards[reason], before + 1, "{reason}: {:?}", rig.stats(0).discards);
}

fn passes(rig: &mut Rig, frame: &[u8]) {
    rig.send(0, frame);
    assert!(rig.counts()[1] == 1, "{:?}", rig.stats(0).discards);
}

#[test]
fn a_strict_port_sends_from_its_own_address_only() {
    let mut rig = rig(|_| ());
    passes(&mut rig, &frame(mac(1), mac(0), IPV4, 60));
    for source in [mac(2), mac(50), HOST] {
        refused(&mut rig, &frame(mac(1), source, IPV4, 60), Reason::SpoofedSource);
    }
    refused(&mut rig, &frame(MacAddr::BROADCAST, mac(2), 0x0806, 60), Reason::SpoofedSource);
    refused(&mut rig, &frame(mac(1), MacAddr([0; 6]), IPV4, 60), Reason::ZeroSource);
    refused(&mut rig, &frame(mac(1), MacAddr([1, 0, 0x5e, 0, 0, 1]), IPV4, 60), Reason::MulticastSource);
}

#[test]
fn a_lax_port_never_sends_from_a_protected_address() {
    for change in [|spec: &mut PortSpec| spec.strict = false, |spec: &mut PortSpec| spec.trusted = true] {
        let mut rig = rig(change);
        passes(&mut rig, &frame(mac(1), mac(50), IPV4, 60));
        for source in [mac(2), HOST] {
            refused(&mut rig, &frame(mac(1), source, IPV4, 60), Reason::ProtectedMac);
        }
        refused(&mut rig, &frame(mac(1), MacAddr([0; 6]), IPV4, 60), Reason::ZeroSource);
        refused(&mut rig, &frame(mac(1), MacAddr::BROADCAST, IPV4, 60), Reason::MulticastSource);
    }
}

#[test]
fn control_protocols_do_not_come_from_guests() {
    let mut rig = rig(|spec| spec.trunk = vec![VlanId::new(10).unwrap()]);
    for ethertype in [0x8808, 0x8809, 0x888e, 0x88cc, 0x88f5, 0x88f6] {
        refused(&mut rig, &frame(mac(1), mac(0), ethertype, 60), Reason::ControlEthertype);
        refused(&mut rig, &tagged(mac(1), mac(0), 10, ethertype, 60), Reason::ControlEthertype);
    }
    for last in [0, 2, 3, 0xe, 0xf] {
        let to = MacAddr([1, 0x80, 0xc2, 0, 0, last]);
        refused(&mut rig, &frame(to, mac(0), IPV4, 60), Reason::LinkLocalDestination);
        // Spanning tree: a length instead of a type.
        refused(&mut rig, &frame(to, mac(0), 38, 60), Reason::LinkLocalDestination);
    }
    rig.send(0, &frame(MacAddr([1, 0x80, 0xc2, 0, 0, 0x10]), mac(0), 0x88b5, 60));
    assert_eq!(rig.counts(), [0, 1, 1], "beyond the sixteen it is an ordinary group");
}

#[test]
fn tags_come_only_from_trunks_that_have_them() {
    let mut access = rig(|spec| spec.vlan = None);
    for tci in [0, 10, 0xe000] {
        refused(&mut access, &tagged(mac(1), mac(0), tci, IPV4, 60), Reason::GuestTagged);
    }
    for kind in [0x88a8, 0x9100] {
        refused(&mut access, &frame(mac(1), mac(0), kind, 60), Reason::GuestTagged);
    }
    let mut trunk = rig(|spec| spec.trunk = vec![VlanId::new(10).unwrap()]);
    refused(&mut trunk, &tagged(mac(1), mac(0), 11, IPV4, 60), Reason::GuestTagged);
    refused(&mut trunk, &tagged(mac(1), mac(0), 0, IPV4, 60), Reason::GuestTagged);
    for inner in [0x8100, 0x88a8, 0x9100] {
        refused(&mut trunk, &tagged(mac(1), mac(0), 10, inner, 60), Reason::GuestTagged);
    }
    // Ends inside the tag.
    refused(&mut trunk, &tagged(mac(1), mac(0), 10, IPV4, 60)[..16], Reason::TooShort);
}

#[test]
fn a_refusal_is_told_once_a_second_with_who_and_what() {
    let mut rig = rig(|_| ());
    for _ in 0..10 {
        rig.send(0, &frame(mac(1), HOST, IPV4, 60));
    }
    let lines: Vec<String> = rig
        .events
        .try_iter()
        .filter_map(
            |event| if let Event::Refused(refusal) = event { Some(refusal.to_string()) } else { None },
        )
        .collect();
    assert!((1..=2).contains(&lines.len()), "{lines:?}");
    assert_eq!(lines[0], "guest0 port 1 sends as 00:16:3e:00:00:01, its definition says 1e:00:00:00:00:00");
}

/// A port with 192.0.2.7 and 2001:db8::7.
fn addressed() -> Rig {
    rig(|spec| {
        spec.ips = ["192.0.2.7", "2001:db8::7"].iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect();
    })
}

fn udp4(source: [u8; 4], to: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac(0).0, mac(1).0)
        .ipv4(source, to, 64)
        .udp(ports.0, ports.1)
        .write(&mut bytes, &[7; 40])
        .unwrap();
    bytes
}

fn arp(sender_mac: MacAddr, sender_ip: [u8; 4]) -> Vec<u8> {
    let mut bytes = frame(MacAddr::BROADCAST, mac(0), 0x0806, 14);
    bytes.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    bytes.extend(sender_mac.0);
    bytes.extend(sender_ip);
    bytes.extend([0; 6]);
    bytes.extend([192, 0, 2, 1]);
    bytes
}

#[test]
fn an_addressed_port_sends_from_its_ipv4_addresses_only() {
    let mut rig = addressed();
    passes(&mut rig, &udp4([192, 0, 2, 7], [192, 0, 2, 1], (1000, 2000)));
    refused(&mut rig, &udp4([192, 0, 2, 8], [192, 0, 2, 1], (1000, 2000)), Reason::IpGuard);
    // DHCP before there is an address, and nothing else like it.
    passes(&mut rig, &udp4([0; 4], [255; 4], (68, 67)));
    refused(&mut rig, &udp4([0; 4], [255; 4], (1000, 67)), Reason::IpGuard);
    refused(&mut rig, &udp4([0; 4], [192, 0, 2, 1], (68, 67)), Reason::IpGuard);
    refused(&mut rig, &udp4([192, 0, 2, 7], [192, 0, 2, 1], (1, 2))[..30], Reason::IpGuard);
    // IP in SNAP.
    let mut snap = frame(mac(1), mac(0), 60, 14);
    snap.extend([0xaa, 0xaa, 3, 0, 0, 0, 8, 0]);
    snap.extend(&udp4([192, 0, 2, 8], [192, 0, 2, 1], (1, 2))[14..]);
    refused(&mut rig, &snap, Reason::IpGuard);
    passes(&mut rig, &frame(mac(1), mac(0), 0x88b5, 60));
}

#[test]
fn an_addressed_port_says_by_arp_only_what_is_so() {
    let mut rig = addressed();
    passes(&mut rig, &arp(mac(0), [192, 0, 2, 7]));
    passes(&mut rig, &arp(mac(0), [0; 4]));
    refused(&mut rig, &arp(mac(0), [192, 0, 2, 1]), Reason::ArpGuard);
    refused(&mut rig, &arp(mac(2), [192, 0, 2, 7]), Reason::ArpGuard);
    refused(&mut rig, &arp(mac(0), [192, 0, 2, 7])[..40], Reason::ArpGuard);
    let mut odd = arp(mac(0), [192, 0, 2, 7]);
    odd[18] = 8;
    refused(&mut rig, &odd, Reason::ArpGuard);
}

const OWN: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const OTHER: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// An IPv6 packet with this next header and payload.
fn ipv6(source: [u8; 16], to: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(mac(1), mac(0), EtherType::IPV6.0, 14);
    bytes.extend([0x60, 0, 0, 0]);
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next, 255]);
    bytes.extend(source);
    bytes.extend(to);
    bytes.extend(payload);
    bytes
}

/// A neighbour solicitation (135) or advertisement (136) with one link-layer address option.
fn discovery(kind: u8, target: [u8; 16], option: u8, link: MacAddr) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend(target);
    bytes.extend([option, 1]);
    bytes.extend(link.0);
    bytes
}

#[test]
fn an_addressed_port_sends_from_its_ipv6_addresses_only() {
    let mut rig = addressed();
    // fe80:: with the address 1e:00:00:00:00:00 in EUI-64 form.
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x1c, 0, 0, 0xff, 0xfe, 0, 0, 0];
    for source in [OWN, link_local] {
        passes(&mut rig, &ipv6(source, OTHER, 17, &[0; 40]));
    }
    refused(&mut rig, &ipv6(OTHER, OWN, 17, &[0; 40]), Reason::IpGuard);
    refused(&mut rig, &ipv6([0; 16], ALL_NODES, 17, &[0; 40]), Reason::IpGuard);
    refused(&mut rig, &ipv6([0; 16], OTHER, 58, &[128; 40]), Reason::IpGuard);
}

/// A router advertisement (RFC 4861 §4.2) without options, and a redirect (§4.5) to `target`.
fn router(kind: u8, target: [u8; 16]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    if kind == 137 {
        bytes[4..8].fill(0);
        bytes.truncate(8);
        bytes.extend(target);
        bytes.extend(OTHER);
    }
    bytes
}

#[test]
fn an_addressed_port_is_no_router_unless_it_is_trusted() {
    let mut rig = addressed();
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x1c, 0, 0, 0xff, 0xfe, 0, 0, 0];
    let frames = [134, 137].map(|kind| ipv6(link_local, ALL_NODES, 58, &router(kind, OWN)));
    // A solicitation is what every host sends.
    passes(&mut rig, &ipv6(link_local, ALL_NODES, 58, &[133, 0, 0, 0, 0, 0, 0, 0]));
    for frame in &frames {
        refused(&mut rig, frame, Reason::NdGuard);
    }
    rig.guests[0].attach.spec.trusted = true;
    rig.publish();
    for frame in &frames {
        passes(&mut rig, frame);
    }
}

#[test]
fn an_addressed_port_says_by_discovery_only_what_is_so() {
    let mut rig = addressed();
    let own = discovery(136, OWN, 2, mac(0));
    passes(&mut rig, &ipv6(OWN, ALL_NODES, 58, &own));
    refused(&mut rig, &ipv6(OWN, ALL_NODES, 58, &discovery(136, OTHER, 2, mac(0))), Reason::NdGuard);
    refused(&mut rig, &ipv6(OWN, ALL_NODES, 58, &discovery(136, OWN, 2, mac(2))), Reason::NdGuard);
    passes(&mut rig, &ipv6(OWN, ALL_NODES, 58, &discovery(135, OTHER, 1, mac(0))));
    refused(&mut rig, &ipv6(OWN, ALL_NODES, 58, &discovery(135, OTHER, 1, mac(2))), Reason::NdGuard);
    // Duplicate address detection: claims what it asks for.
    passes(&mut rig, &ipv6([0; 16], ALL_NODES, 58, &discovery(135, OWN, 14, mac(0))));
    refused(&mut rig, &ipv6([0; 16], ALL_NODES, 58, &discovery(135, OTHER, 14, mac(0))), Reason::NdGuard);
    // Behind an extension header, and in a fragment.
    let mut hidden = vec![58, 0, 0, 0, 0, 0, 0, 0];
    hidden.extend(discovery(136, OTHER, 2, mac(0)));
    refused(&mut rig, &ipv6(OWN, ALL_NODES, 60, &hidden), Reason::NdGuard);
    let mut fragment = vec![58, 0, 0, 1, 0, 0, 0, 1];
    fragment.extend(&own);
    refused(&mut rig, &ipv6(OWN, ALL_NODES, 44, &fragment), Reason::NdGuard);
    // A first fragment that ends before the message: its padding is no echo.
    let mut before = ipv6(OWN, ALL_NODES, 44, &[60, 0, 0, 1, 0, 0, 0, 1, 58, 0, 1, 4, 0, 0, 0, 0]);
    before.extend([128; 8]);
    refused(&mut rig, &before, Reason::NdGuard);
    // A header that ends behind what is looked at.
    let mut deep = vec![58, 30, 0, 0, 0, 0, 0, 0];
    deep.resize(31 * 8, 0);
    deep.extend(&own);
    refused(&mut rig, &ipv6(OWN, ALL_NODES, 60, &deep), Reason::HeaderTooLong);
}
