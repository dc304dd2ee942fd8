//! Several queue pairs: where flows go, and that they stay in order there.

use std::collections::HashMap;

use avio_proto::config::MacAddr;
use avio_proto::virtio::net::NetHeader;
use etherparse::PacketBuilder;

use super::rig::{Attach, Rig};
use crate::table::tests::mac;

/// UDP from `from` to `to` in flow `flow`, carrying `number`. The reply of a flow has its ports the other way round.
fn udp(from: u16, to: MacAddr, flow: u16, is_reply: bool, number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (a, b) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let (source, destination) = if is_reply { (b, a) } else { (a, b) };
    let (from_port, to_port) = if is_reply { (5000, 10_000 + flow) } else { (10_000 + flow, 5000) };
    PacketBuilder::ethernet2(mac(from).0, to.0)
        .ipv4(source, destination, 64)
        .udp(from_port, to_port)
        .write(&mut bytes, &number.to_be_bytes())
        .unwrap();
    bytes
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(*frame.last_chunk().unwrap())
}

fn flow(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]]) - 10_000
}

/// One guest with one pair, one with four.
fn rig() -> Rig {
    let mut attach = [Attach::new("one", mac(0)), Attach::new("four", mac(1))];
    attach[1].pairs = 4;
    Rig::new(attach)
}

fn send(rig: &mut Rig, guest: usize, pair: usize, frame: &[u8]) {
    rig.guests[guest].tx[pair].send(frame);
    rig.run();
}

fn per_pair(rig: &mut Rig, guest: usize) -> Vec<Vec<Vec<u8>>> {
    let pairs = rig.guests[guest].rx.iter_mut();
    pairs.map(|rx| rx.receive(false).into_iter().map(|arrived| arrived.frame).collect()).collect()
}

#[test]
fn flows_spread_over_the_pairs_and_keep_to_theirs_in_order() {
    let mut rig = rig();
    let mut pair_of: HashMap<u16, usize> = HashMap::new();
    let mut next: HashMap<u16, u32> = HashMap::new();
    for round in 0..30 {
        for one in 0..32u16 {
            let bytes = udp(0, mac(1), (one * 7) % 32, false, round);
            rig.guests[0].tx[0].put(&NetHeader::default(), &bytes, &[]).unwrap();
        }
        rig.guests[0].tx[0].driver.publish();
        rig.run();
        for (pair, frames) in per_pair(&mut rig, 1).into_iter().enumerate() {
            for frame in frames {
                assert_eq!(*pair_of.entry(flow(&frame)).or_insert(pair), pair, "a flow changed its pair");
                let want = next.entry(flow(&frame)).or_default();
                assert_eq!(number(&frame), *want, "reordered");
                *want += 1;
            }
        }
    }
    assert_eq!(next.values().copied().collect::<Vec<_>>(), vec![30; 32]);
    let mut load = [0; 4];
    pair_of.values().for_each(|&pair| load[pair] += 1);
    assert!(load.iter().all(|&count| count >= 2), "{load:?}");
}

#[test]
fn a_reply_comes_where_the_guest_sent_from() {
    let mut rig = rig();
    for flow in 0..40u16 {
        let pair = usize::from(flow * 3 % 4);
        send(&mut rig, 1, pair, &udp(1, mac(0), flow, true, 0));
        send(&mut rig, 0, 0, &udp(0, mac(1), flow, false, 1));
        let got = per_pair(&mut rig, 1);
        assert_eq!(got[pair].len(), 1, "flow {flow}: {:?}", got.iter().map(Vec::len).collect::<Vec<_>>());
    }
}

#[test]
fn disabled_pairs_get_nothing() {
    let mut rig = rig();
    send(&mut rig, 1, 2, &udp(1, mac(0), 1, true, 0));
    let disabled = rig.guests[1].port.rx[2].take();
    rig.publish();
    for flow in 0..40 {
        send(&mut rig, 0, 0, &udp(0, mac(1), flow, false, 1));
    }
    let counts: Vec<usize> = per_pair(&mut rig, 1).iter().map(Vec::len).collect();
    assert_eq!((counts[2], counts.iter().sum::<usize>()), (0, 40), "{counts:?}");
    // Enabled again: the guest's own choice holds again.
    rig.guests[1].port.rx[2] = disabled;
    rig.publish();
    send(&mut rig, 0, 0, &udp(0, mac(1), 1, false, 1));
    assert_eq!(per_pair(&mut rig, 1)[2].len(), 1);
}

#[test]
fn a_broadcast_comes_once_whatever_the_number_of_pairs() {
    let mut rig = rig();
    for flow in 0..40 {
        send(&mut rig, 0, 0, &udp(0, MacAddr::BROADCAST, flow, false, 1));
    }
    let counts: Vec<usize> = per_pair(&mut rig, 1).iter().map(Vec::len).collect();
    assert_eq!(counts.iter().sum::<usize>(), 40);
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
    assert_eq!(rig.stats(1).counters.inbound_nonunicast_local, 40);
}
