//! Who gets a frame, and as what: unicast, groups, unknown destinations, VLANs, isolation, and receivers that cannot.

use avio_proto::config::{MacAddr, VlanId};
use avio_proto::control::DiscardReason as Reason;
use avio_proto::virtio::features::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, VERSION_1};
use avio_proto::virtio::net::NetHeader;

use super::rig::{Attach, MODERN, Rig, frame, tagged};
use crate::table::PortSpec;
use crate::table::tests::mac;

const IPV4: u16 = 0x0800;

fn vid(id: u16) -> Option<VlanId> {
    VlanId::new(id)
}

fn guests(count: u16) -> Vec<Attach> {
    (0..count).map(|i| Attach::new(&format!("guest{i}"), mac(i))).collect()
}

fn with(i: u16, change: impl FnOnce(&mut PortSpec)) -> Attach {
    let mut attach = Attach::new(&format!("guest{i}"), mac(i));
    change(&mut attach.spec);
    attach
}

#[test]
fn unicast_reaches_its_receiver_alone_and_unchanged_in_every_layout() {
    let layouts = [
        0,
        VERSION_1,
        MODERN,
        MODERN | RING_EVENT_IDX | RING_INDIRECT_DESC,
        MODERN | RING_PACKED,
        MODERN | RING_PACKED | IN_ORDER,
        MODERN | IN_ORDER,
    ];
    for from in layouts {
        for to in layouts {
            let mut attach = guests(3);
            (attach[0].features, attach[1].features) = (from, to);
            let mut rig = Rig::new(attach);
            for len in [14, 60, 191, 192, 193, 255, 1514] {
                let bytes = frame(mac(1), mac(0), IPV4, len);
                rig.send(0, &bytes);
                let got = rig.received(1);
                assert_eq!(got.len(), 1, "{len} bytes, {from:#x} to {to:#x}");
                assert_eq!(got[0].frame, bytes);
                let header = NetHeader { num_buffers: got[0].header.num_buffers, ..NetHeader::default() };
                assert_eq!(got[0].header, header);
            }
            assert_eq!(rig.counts(), [0, 0, 0]);
            assert_eq!(rig.stats(1).counters.inbound_octets, 14 + 60 + 191 + 192 + 193 + 255 + 1514);
        }
    }
}

#[test]
fn a_frame_in_any_pieces_is_the_same_frame() {
    let mut rig = Rig::new(guests(2));
    let bytes = frame(mac(1), mac(0), IPV4, 700);
    for cuts in [&[1][..], &[5, 12], &[12], &[13, 20, 26], &[12 + 14], &[203, 204, 205], &[300, 700], &[711]]
    {
        rig.guests[0].tx[0].put(&NetHeader::default(), &bytes, cuts).unwrap();
        rig.guests[0].tx[0].driver.publish();
        rig.run();
        let got = rig.received(1);
        assert_eq!(got.len(), 1, "{cuts:?}");
        assert_eq!(got[0].frame, bytes, "{cuts:?}");
    }
}

#[test]
fn broadcast_and_multicast_make_one_copy_for_each_but_the_sender() {
    let mut rig = Rig::new(guests(5));
    for to in [MacAddr::BROADCAST, MacAddr([0x33, 0x33, 0, 0, 0, 1])] {
        rig.send(2, &frame(to, mac(2), IPV4, 60));
        assert_eq!(rig.counts(), [1, 1, 0, 1, 1]);
    }
    let sender = rig.stats(2).counters;
    assert_eq!((sender.outbound_nonunicast, sender.outbound_unicast_local), (2, 0));
    assert_eq!(sender.outbound_octets, 120, "a frame counts once, however many copies it makes");
    assert_eq!(rig.stats(0).counters.inbound_nonunicast_local, 2);
}

#[test]
fn many_receivers_in_one_batch_get_their_frames_in_order() {
    let mut rig = Rig::new(guests(17));
    for i in 0..64u16 {
        let mut bytes = frame(mac(1 + i % 16), mac(0), IPV4, 60);
        bytes[14] = i as u8;
        rig.guests[0].tx[0].put(&NetHeader::default(), &bytes, &[]).unwrap();
    }
    rig.guests[0].tx[0].driver.publish();
    assert_eq!(rig.run(), 64);
    for guest in 1..17 {
        let got: Vec<u8> = rig.received(guest).iter().map(|arrived| arrived.frame[14]).collect();
        let want: Vec<u8> = (0..4).map(|i| i * 16 + guest as u8 - 1).collect();
        assert_eq!(got, want);
    }
}

#[test]
fn vswitches_and_vlans_are_isolated() {
    let mut attach = guests(6);
    attach[1].vswitch = 7;
    attach[2].spec.vlan = vid(120);
    attach[3].spec.vlan = vid(120);
    attach[4].spec.vlan = vid(121);
    let mut rig = Rig::new(attach);
    rig.send(2, &frame(MacAddr::BROADCAST, mac(2), IPV4, 60));
    assert_eq!(rig.counts(), [0, 0, 0, 1, 0, 0]);
    rig.send(0, &frame(MacAddr::BROADCAST, mac(0), IPV4, 60));
    assert_eq!(rig.counts(), [0, 0, 0, 0, 0, 1]);
    for to in [0, 1, 4, 5] {
        rig.send(2, &frame(mac(to), mac(2), IPV4, 60));
    }
    assert_eq!(rig.counts(), [0; 6]);
    assert_eq!(rig.stats(2).discards[Reason::NoDestination], 4);
    rig.send(2, &frame(mac(3), mac(2), IPV4, 60));
    assert_eq!(rig.received(3)[0].frame, frame(mac(3), mac(2), IPV4, 60), "no tag is ever seen");
}

#[test]
fn trunks_tag_and_access_ports_do_not_see_it() {
    let mut rig = Rig::new([
        with(0, |spec| spec.trunk = vec![vid(10).unwrap(), vid(20).unwrap()]),
        with(1, |spec| spec.vlan = vid(10)),
        with(2, |spec| spec.vlan = vid(20)),
        with(3, |spec| spec.trunk = vec![vid(10).unwrap()]),
        with(4, |_| ()),
    ]);
    // Trunk to access: stripped; the priority bits go with the tag.
    rig.send(0, &tagged(mac(1), mac(0), 0xe00a, IPV4, 300));
    assert_eq!(rig.received(1)[0].frame, frame(mac(1), mac(0), IPV4, 300));
    // Access to trunk: inserted.
    rig.send(2, &frame(mac(0), mac(2), IPV4, 300));
    assert_eq!(rig.received(0)[0].frame, tagged(mac(0), mac(2), 20, IPV4, 300));
    // Broadcast of one VLAN: to its access port plain, to the other trunk tagged, to nobody else.
    rig.send(0, &tagged(MacAddr::BROADCAST, mac(0), 10, IPV4, 60));
    assert_eq!(rig.received(3)[0].frame, tagged(MacAddr::BROADCAST, mac(0), 10, IPV4, 60));
    assert_eq!(rig.counts(), [0, 1, 0, 0, 0]);
    // Untagged on a trunk is the untagged network.
    rig.send(0, &frame(mac(4), mac(0), IPV4, 60));
    assert_eq!(rig.counts(), [0, 0, 0, 0, 1]);
    // The longest frame of the trunk keeps its four bytes.
    rig.send(0, &tagged(mac(1), mac(0), 10, IPV4, 1514));
    assert_eq!(rig.received(1)[0].frame.len(), 1514);
    let octets = rig.stats(0).counters.outbound_octets;
    assert_eq!(octets, 304 + 64 + 60 + 1518, "what left the guest, tags included");
}

#[test]
fn unknown_unicast_goes_only_where_it_is_wanted() {
    let mut rig =
        Rig::new([with(0, |_| ()), with(1, |_| ()), with(2, |spec| spec.flood = true), with(3, |_| ())]);
    rig.send(0, &frame(mac(99), mac(0), IPV4, 60));
    assert_eq!(rig.counts(), [0, 0, 1, 0]);
    let sender = rig.stats(0);
    assert_eq!((sender.counters.outbound_unicast_local, sender.counters.outbound_discards), (1, 0));
    assert_eq!(rig.stats(2).counters.inbound_unicast_local, 1);
    // The only port that wants it is the sender.
    rig.send(2, &frame(mac(99), mac(2), IPV4, 60));
    assert_eq!(rig.counts(), [0; 4]);
    assert_eq!(rig.stats(2).discards[Reason::NoDestination], 1);
}

#[test]
fn a_frame_to_its_own_port_goes_nowhere() {
    let mut rig = Rig::new(guests(2));
    rig.send(0, &frame(mac(0), mac(0), IPV4, 60));
    assert_eq!(rig.counts(), [0, 0]);
    assert_eq!(rig.stats(0).discards[Reason::NoDestination], 1);
}

#[test]
fn isolated_ports_reach_only_others() {
    let mut rig = Rig::new([
        with(0, |spec| spec.isolated = true),
        with(1, |spec| (spec.isolated, spec.flood) = (true, true)),
        with(2, |_| ()),
    ]);
    rig.send(0, &frame(mac(1), mac(0), IPV4, 60));
    rig.send(0, &frame(mac(77), mac(0), IPV4, 60));
    assert_eq!(rig.counts(), [0, 0, 0]);
    rig.send(0, &frame(MacAddr::BROADCAST, mac(0), IPV4, 60));
    assert_eq!(rig.counts(), [0, 0, 1]);
    rig.send(2, &frame(mac(1), mac(2), IPV4, 60));
    rig.send(1, &frame(mac(2), mac(1), IPV4, 60));
    assert_eq!(rig.counts(), [0, 1, 1]);
    let discards = rig.stats(0).discards;
    assert_eq!((discards[Reason::Isolated], discards[Reason::NoDestination]), (1, 1));
}

#[test]
fn a_receiver_without_buffers_blocks_nobody() {
    let mut attach = guests(3);
    attach[1].rx_count = 3;
    let mut rig = Rig::new(attach);
    for i in 0..10 {
        rig.guests[0].tx[0]
            .put(&NetHeader::default(), &frame(mac(1 + i % 2), mac(0), IPV4, 60), &[])
            .unwrap();
    }
    rig.guests[0].tx[0].driver.publish();
    rig.run();
    assert_eq!(rig.guests[1].rx[0].receive(true).len(), 3);
    assert_eq!(rig.received(2).len(), 5);
    let receiver = rig.stats(1);
    assert_eq!((receiver.offered, receiver.discards[Reason::NoBuffer]), (5, 2));
    assert_eq!(rig.stats(0).counters.outbound_unicast_local, 10, "they were sent; the receiver lost them");
}

#[test]
fn a_frame_too_long_for_the_buffers_left_lets_shorter_ones_pass() {
    let mut attach = guests(2);
    (attach[1].features, attach[1].rx_len) = (VERSION_1, 600);
    let mut rig = Rig::new(attach);
    for len in [500, 1000, 64] {
        rig.guests[0].tx[0].put(&NetHeader::default(), &frame(mac(1), mac(0), IPV4, len), &[]).unwrap();
    }
    rig.guests[0].tx[0].driver.publish();
    rig.run();
    let lens: Vec<usize> = rig.received(1).iter().map(|arrived| arrived.frame.len()).collect();
    assert_eq!(lens, [500, 64]);
    assert_eq!(rig.stats(1).discards[Reason::NoBuffer], 1);
}

#[test]
fn a_receiver_without_rings_is_down() {
    let mut attach = guests(3);
    attach[1].up = false;
    let mut rig = Rig::new(attach);
    rig.send(0, &frame(mac(1), mac(0), IPV4, 60));
    rig.send(0, &frame(MacAddr::BROADCAST, mac(0), IPV4, 60));
    assert_eq!(rig.counts(), [0, 0, 1]);
    let receiver = rig.stats(1);
    assert_eq!((receiver.offered, receiver.discards[Reason::ReceiverDown]), (1, 1));
}

#[test]
fn mtus_of_sender_and_receiver_hold() {
    let mut rig =
        Rig::new([with(0, |spec| spec.mtu = 9000), with(1, |_| ()), with(2, |spec| spec.mtu = 9000)]);
    rig.send(0, &frame(mac(2), mac(0), IPV4, 9014));
    rig.send(0, &frame(mac(2), mac(0), IPV4, 9015));
    rig.send(0, &frame(mac(1), mac(0), IPV4, 1514));
    rig.send(0, &frame(mac(1), mac(0), IPV4, 1515));
    rig.send(1, &frame(mac(0), mac(1), IPV4, 1515));
    assert_eq!(rig.counts(), [0, 1, 1]);
    assert_eq!(rig.stats(0).discards[Reason::TooLong], 1);
    assert_eq!(rig.stats(1).discards[Reason::TooLong], 1);
    assert_eq!(rig.stats(1).discards[Reason::ReceiverMtu], 1);
}

#[test]
fn runts_are_refused_and_the_ring_goes_on() {
    let mut rig = Rig::new(guests(2));
    for len in [0, 1, 13] {
        rig.send(0, &frame(mac(1), mac(0), IPV4, 60)[..len]);
    }
    rig.send(0, &frame(mac(1), mac(0), IPV4, 60));
    assert_eq!(rig.received(1).len(), 1);
    assert_eq!((rig.stats(0).discards[Reason::TooShort], rig.stats(0).taken), (3, 4));
}

#[test]
fn limits_let_their_rate_through() {
    let mut rig =
        Rig::new([with(0, |spec| spec.storm_pps = 10), with(1, |_| ()), with(2, |spec| spec.rate_mbps = 1)]);
    for _ in 0..60 {
        rig.guests[0].tx[0].put(&NetHeader::default(), &frame(MacAddr::BROADCAST, mac(0), IPV4, 60), &[]);
        rig.guests[2].tx[0].put(&NetHeader::default(), &frame(mac(1), mac(2), IPV4, 1514), &[]);
    }
    rig.guests[0].tx[0].driver.publish();
    rig.guests[2].tx[0].driver.publish();
    rig.run();
    // 10 a second with 100 ms of burst: one or two. 1 Mbit/s with 10 ms of burst: 12 ms a frame, one or two.
    let storm = rig.stats(0);
    assert!((57..=59).contains(&storm.discards[Reason::Storm]), "{storm:?}");
    let rate = rig.stats(2);
    assert!((57..=59).contains(&rate.discards[Reason::RateLimited]), "{rate:?}");
    // Unicast is no storm.
    rig.send(0, &frame(mac(1), mac(0), IPV4, 60));
    assert_eq!(rig.stats(0).counters.outbound_unicast_local, 1);
}

#[test]
fn a_bad_chain_stops_its_ring_alone() {
    let mut rig = Rig::new(guests(3));
    let bytes = frame(mac(2), mac(0), IPV4, 60);
    rig.guests[0].tx[0].send(&bytes);
    rig.guests[0].tx[0].driver.add(&[(1 << 40, 64)], &[]).unwrap();
    rig.guests[0].tx[0].driver.publish();
    assert_eq!(rig.forwarder.forward(&mut rig.guests[0].queues[0], 64).unwrap().0, 1);
    assert!(rig.forwarder.forward(&mut rig.guests[0].queues[0], 64).is_err());
    let sender = rig.stats(0);
    assert_eq!((sender.taken, sender.discards[Reason::MalformedChain]), (2, 1));
    rig.send(1, &frame(mac(2), mac(1), IPV4, 60));
    assert_eq!(rig.received(2).len(), 2);
}

#[test]
fn a_bad_receive_ring_is_down_for_everybody_and_said_once() {
    let mut attach = guests(3);
    attach[1].rx_count = 0;
    let mut rig = Rig::new(attach);
    // A receive buffer that the device may only read.
    rig.guests[1].rx[0].driver.add(&[(0x4000_0000, 64)], &[]).unwrap();
    rig.guests[1].rx[0].driver.publish();
    for from in [0, 2, 0] {
        rig.send(from, &frame(mac(1), mac(from as u16), IPV4, 60));
    }
    let receiver = rig.stats(1);
    assert_eq!((receiver.offered, receiver.discards[Reason::ReceiverDown]), (3, 3));
    let broken =
        rig.events.try_iter().filter(|event| matches!(event, crate::forward::Event::RxBroken { .. }));
    assert_eq!(broken.count(), 1);
    rig.send(0, &frame(mac(2), mac(0), IPV4, 60));
    assert_eq!(rig.received(2).len(), 1);
}
