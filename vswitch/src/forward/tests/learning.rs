//! Addresses behind trusted ports: learned, bounded, aged, and never instead of a definition.

use std::time::{Duration, Instant};

use avio_proto::config::MacAddr;
use avio_proto::control::DiscardReason as Reason;

use super::rig::{Attach, Rig, frame};
use crate::forward::Event;
use crate::table::tests::mac;
use crate::table::{LEARNED_MAX, PortIndex};

const IPV4: u16 = 0x0800;

/// Two trusted guests and one that is not; `limit` addresses each.
fn rig(limit: u32) -> Rig {
    Rig::new((0..3).map(|i| {
        let mut attach = Attach::new(&format!("guest{i}"), mac(i));
        (attach.spec.trusted, attach.spec.mac_limit) = (i < 2, limit);
        attach
    }))
}

/// What control does with the events, then a new table.
fn take_up(rig: &mut Rig, now: Instant) {
    let table = rig.table();
    for event in rig.events.try_iter() {
        if let Event::Learn { port, vlan, mac } = event {
            rig.learner.learn(&table, port, vlan, mac, now);
        }
    }
    rig.publish();
}

#[test]
fn an_address_behind_a_trusted_port_is_found_after_its_first_frame() {
    let mut rig = rig(16);
    rig.send(2, &frame(mac(50), mac(2), IPV4, 60));
    assert_eq!(rig.stats(2).discards[Reason::NoDestination], 1);
    rig.send(0, &frame(mac(2), mac(50), IPV4, 60));
    take_up(&mut rig, Instant::now());
    assert!(rig.learner.publish_at().is_some());
    rig.counts();
    rig.send(2, &frame(mac(50), mac(2), IPV4, 60));
    assert_eq!(rig.counts(), [1, 0, 0]);
    // It moves.
    rig.send(1, &frame(mac(2), mac(50), IPV4, 60));
    take_up(&mut rig, Instant::now());
    rig.counts();
    rig.send(2, &frame(mac(50), mac(2), IPV4, 60));
    assert_eq!((rig.counts(), rig.learner.len()), (vec![0, 1, 0], 1));
}

#[test]
fn definitions_and_protected_addresses_are_never_learned() {
    let mut rig = rig(16);
    let host = MacAddr([0, 0x16, 0x3e, 0, 0, 1]);
    rig.protected.push(host);
    rig.publish();
    let table = rig.table();
    for address in [mac(1), mac(2), host, MacAddr::BROADCAST, MacAddr([0; 6])] {
        rig.send(0, &frame(mac(2), address, IPV4, 60));
        rig.learner.learn(&table, PortIndex(0), None, address, Instant::now());
    }
    rig.learner.learn(&table, PortIndex(2), None, mac(60), Instant::now());
    assert!(rig.learner.is_empty());
    assert_eq!(rig.events.try_iter().filter(|event| matches!(event, Event::Learn { .. })).count(), 0);
    // Learned first, defined later: the definition wins.
    rig.learner.learn(&table, PortIndex(0), None, mac(70), Instant::now());
    rig.guests[2].attach.spec.mac = mac(70);
    rig.publish();
    rig.counts();
    rig.send(1, &frame(mac(70), mac(1), IPV4, 60));
    assert_eq!(rig.counts(), [0, 0, 1]);
}

#[test]
fn a_port_learns_up_to_its_limit_and_no_further() {
    let mut rig = rig(3);
    for i in 0..10 {
        rig.send(0, &frame(mac(2), mac(100 + i), IPV4, 60));
    }
    take_up(&mut rig, Instant::now());
    assert_eq!(rig.learner.len(), 3);
    for i in 0..10 {
        rig.send(0, &frame(mac(2), mac(100 + i), IPV4, 60));
    }
    assert_eq!(rig.stats(0).discards[Reason::MacLimit], 7);
    rig.send(0, &frame(mac(2), mac(0), IPV4, 60));
    assert_eq!(rig.stats(0).discards[Reason::MacLimit], 7, "its own address needs no place");
    rig.learner.forget_port(PortIndex(0));
    assert!(rig.learner.is_empty());
}

#[test]
fn a_guest_that_invents_addresses_costs_control_little() {
    let mut rig = rig(8192);
    for i in 0..2000u16 {
        rig.send(0, &frame(mac(2), mac(1000 + i), IPV4, 60));
        rig.counts();
    }
    let reported = rig.events.try_iter().filter(|event| matches!(event, Event::Learn { .. })).count();
    // 256 a second; the loop may cross a few seconds on a busy machine.
    assert!((256..1500).contains(&reported), "{reported} reports");
    let table = rig.table();
    for i in 0..20_000u32 {
        let [_, a, b, c] = i.to_be_bytes();
        rig.learner.learn(&table, PortIndex(i % 2), None, MacAddr([2, 9, 9, a, b, c]), Instant::now());
    }
    assert_eq!(rig.learner.len(), LEARNED_MAX);
}

#[test]
fn addresses_age_unless_they_are_used() {
    let mut rig = rig(16);
    let start = rig.epoch;
    let table = rig.table();
    rig.learner.learn(&table, PortIndex(0), None, mac(50), start);
    rig.learner.learn(&table, PortIndex(0), None, mac(51), start);
    rig.publish();
    let at = |s| start + Duration::from_secs(s);
    let table = rig.table();
    rig.learner.age(&table, at(299));
    assert_eq!(rig.learner.len(), 2);
    // A worker saw the second one.
    let key = crate::table::key(table.port(PortIndex(0)).unwrap().domain, mac(51).to_u64());
    table.macs.find(key).unwrap().touch(290);
    rig.learner.age(&table, at(301));
    assert_eq!(rig.learner.len(), 1);
    rig.publish();
    rig.send(2, &frame(mac(50), mac(2), IPV4, 60));
    rig.send(2, &frame(mac(51), mac(2), IPV4, 60));
    assert_eq!(rig.counts(), [1, 0, 0]);
    rig.learner.age(&rig.table(), at(591));
    assert!(rig.learner.is_empty());
}

#[test]
fn a_frame_from_a_learned_address_touches_its_entry() {
    let mut rig = rig(16);
    rig.epoch -= Duration::from_secs(100);
    let start = rig.epoch;
    let table = rig.table();
    rig.learner.learn(&table, PortIndex(0), None, mac(50), start);
    let table = rig.table();
    rig.forwarder.publish(std::sync::Arc::clone(&table));
    assert_eq!(table.learned_seen_s(PortIndex(0), None, mac(50)), Some(0));
    rig.send(0, &frame(mac(2), mac(50), IPV4, 60));
    assert!(table.learned_seen_s(PortIndex(0), None, mac(50)).unwrap() >= 100);
}

/// A definition that allows less than was learned under it holds in the very next table.
#[test]
fn no_table_has_more_than_the_limit() {
    let mut rig = rig(8);
    let defined = rig.table().addresses_count();
    for i in 0..8 {
        rig.send(0, &frame(mac(2), mac(50 + i), IPV4, 60));
        rig.learner.learn(&rig.table(), PortIndex(0), None, mac(50 + i), Instant::now());
    }
    assert_eq!((rig.learner.len(), rig.table().addresses_count()), (8, defined + 8));
    rig.guests[0].attach.spec.mac_limit = 2;
    assert_eq!(rig.table().addresses_count(), defined + 2);
    rig.guests[0].attach.spec.mac_limit = 0;
    assert_eq!(rig.table().addresses_count(), defined);
}
