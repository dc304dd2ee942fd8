//! The announcement of a guest that has moved here: the bytes, who gets it, and what it may not claim.

use avio_proto::config::{MacAddr, VlanId};
use avio_proto::control::DiscardReason as Reason;

use super::rig::{Attach, Rig};
use crate::forward::Event;
use crate::table::PortIndex;
use crate::table::tests::mac;

/// Guests 0 and 1 in VLAN 10, guest 2 in VLAN 20, guest 3 on a trunk of both.
fn rig() -> Rig {
    Rig::new((0..4).map(|i| {
        let mut attach = Attach::new(&format!("guest{i}"), mac(i));
        let vlans = [10, 20].map(|vid| VlanId::new(vid).unwrap());
        match i {
            0 | 1 => attach.spec.vlan = Some(vlans[0]),
            2 => attach.spec.vlan = Some(vlans[1]),
            _ => attach.spec.trunk = vlans.to_vec(),
        }
        attach
    }))
}

#[test]
fn an_announcement_is_broadcast_in_the_ports_vlan() {
    let mut rig = rig();
    rig.forwarder.announce(PortIndex(0), mac(0));
    let MacAddr([a, b, c, d, e, f]) = mac(0);
    // RFC 903 in Ethernet: broadcast from the guest, type 0x8035; hardware 1, protocol 0x0800, lengths 6 and 4, operation 3.
    let mut want = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, a, b, c, d, e, f, 0x80, 0x35];
    want.extend([0, 1, 8, 0, 6, 4, 0, 3, a, b, c, d, e, f, 0, 0, 0, 0, a, b, c, d, e, f, 0, 0, 0, 0]);
    want.resize(60, 0);
    let got = rig.received(1);
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].frame, want);
    want.splice(12..12, [0x81, 0, 0, 10]);
    assert_eq!(rig.received(3)[0].frame, want);
    assert_eq!(rig.counts(), [0, 0, 0, 0], "neither its own guest nor VLAN 20");
    let stats = rig.stats(0);
    assert_eq!((stats.taken, stats.counters.outbound_nonunicast, stats.counters.outbound_octets), (1, 1, 60));
}

#[test]
fn an_announcement_of_an_address_that_the_port_may_not_use_is_dropped_and_told() {
    let mut rig = rig();
    let group = MacAddr([3, 0, 0, 0, 0, 1]);
    for (mac, reason) in [
        (mac(1), Reason::SpoofedSource),
        (mac(77), Reason::SpoofedSource),
        (group, Reason::MulticastSource),
        (MacAddr([0; 6]), Reason::ZeroSource),
    ] {
        let before = rig.stats(0);
        rig.forwarder.announce(PortIndex(0), mac);
        let after = rig.stats(0);
        assert_eq!(rig.counts(), [0, 0, 0, 0], "{mac}");
        assert_eq!(after.discards[reason], before.discards[reason] + 1, "{mac}");
        assert_eq!(after.taken, before.taken + 1);
        let told = rig.events.try_iter().any(|event| matches!(event, Event::Refused(_)));
        assert!(told, "{mac}");
    }
    // With less strictness: anybody's who is not protected.
    rig.guests[0].attach.spec.strict = false;
    rig.publish();
    rig.forwarder.announce(PortIndex(0), mac(77));
    assert_eq!(rig.counts(), [0, 1, 0, 1]);
    rig.forwarder.announce(PortIndex(0), mac(1));
    assert_eq!(rig.stats(0).discards[Reason::ProtectedMac], 1);
    rig.forwarder.announce(PortIndex(9), mac(0));
}

#[test]
fn a_port_with_addresses_may_announce_itself() {
    let mut rig = rig();
    rig.guests[0].attach.spec.ips = vec!["192.0.2.7".parse().unwrap()];
    rig.publish();
    rig.forwarder.announce(PortIndex(0), mac(0));
    assert_eq!(rig.counts(), [0, 1, 0, 1]);
}
