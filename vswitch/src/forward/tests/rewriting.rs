//! What a guest rewrites after the snapshot changes nothing that was decided on it.
//!
//! The forwarder calls [`after_snapshot`] in test builds right after it copied a frame's header and first bytes. The tests
//! there overwrite everything that the guest could: the header, the first bytes, the descriptors and indirect tables. A
//! second read of any of them, in whatever step, would deliver or count something else.

use std::cell::RefCell;
use std::sync::Arc;

use avio_guest::GUEST_BASE;
use avio_proto::mem::RegionHint;
use avio_proto::ring::DriverLayout;
use avio_proto::virtio::features as f;
use avio_proto::virtio::net::{F_NEEDS_CSUM, GSO_TCPV4, HEADER_LEN, NetHeader};
use etherparse::PacketBuilder;

use super::rig::{Attach, MODERN, Rig};
use crate::table::tests::mac;

thread_local! {
    static HOOK: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// Runs what a test of this thread wants to happen between snapshot and everything after it.
pub(crate) fn after_snapshot() {
    HOOK.with_borrow_mut(|hook| hook.iter_mut().for_each(|hook| hook()));
}

/// Sends `frame` from a guest under `features`, overwrites all that it consists of as soon as its first bytes are copied, and
/// returns what arrived at a receiver under `receiver`.
fn rewritten(
    ips: bool,
    features: u64,
    receiver: u64,
    header: NetHeader,
    frame: &[u8],
    cuts: &[usize],
) -> Vec<super::rig::Arrived> {
    let mut attach = [Attach::new("a", mac(0)), Attach::new("b", mac(1))];
    attach[0].features |= features;
    attach[1].features |= receiver;
    if ips {
        attach[0].spec.ips = vec!["192.0.2.7".parse().unwrap()];
    }
    let features = attach[0].features;
    let mut rig = Rig::new(attach);
    let buffer = rig.guests[0].tx[0].put(&header, frame, cuts).unwrap();
    rig.guests[0].tx[0].driver.publish();
    let at = rig.guests[0].tx[0].address(buffer);
    let memory = Arc::clone(rig.guests[0].tx[0].driver.memory());
    let layout = DriverLayout::at(GUEST_BASE, 256, features);
    let looked_at = if ips { 256 } else { 192 };
    let front_len = HEADER_LEN + frame.len().min(looked_at);
    HOOK.set(Some(Box::new(move || {
        let mut hint = RegionHint::default();
        memory.slice(&mut hint, at, front_len).unwrap().copy_from(&vec![0xff; front_len]);
        memory.slice(&mut hint, layout.desc, 4096).unwrap().copy_from(&[0xff; 4096]);
        if let Some(tables) = layout.indirect {
            memory.slice(&mut hint, tables, 64 * 2048).unwrap().copy_from(&vec![0xff; 64 * 2048]);
        }
    })));
    let taken = rig.forwarder.forward(&mut rig.guests[0].queues[0], 64);
    HOOK.set(None);
    assert_eq!(taken.unwrap().0, 1);
    assert!(rig.stats(0).is_consistent());
    assert_eq!(rig.stats(0).counters.outbound_discards, 0);
    rig.received(1)
}

const CUTS: [&[usize]; 3] = [&[], &[12], &[5, 30, 100, 300]];
const LAYOUTS: [u64; 3] = [0, f::RING_INDIRECT_DESC, f::RING_PACKED];

#[test]
fn plain_frames_arrive_as_they_were_judged() {
    for layout in LAYOUTS {
        for (cuts, len, ips) in
            CUTS.iter().flat_map(|cuts| [(cuts, 22, false), (cuts, 900, false), (cuts, 900, true)])
        {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2(mac(0).0, mac(1).0)
                .ipv4([192, 0, 2, 7], [192, 0, 2, 1], 64)
                .udp(1000, 2000)
                .write(&mut frame, &vec![7; len])
                .unwrap();
            let got = rewritten(ips, layout, 0, NetHeader::default(), &frame, cuts);
            assert_eq!(got.len(), 1);
            assert!(got[0].frame == frame, "{cuts:?}, {len} bytes, layout {layout:#x}");
            assert_eq!((got[0].header.flags, got[0].header.gso_type), (0, 0));
        }
    }
}

#[test]
fn offloaded_frames_arrive_as_they_were_judged() {
    let payload: Vec<u8> = (0..4000u32).map(|i| i as u8).collect();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(0).0, mac(1).0)
        .ipv4([192, 0, 2, 7], [192, 0, 2, 1], 64)
        .tcp(1000, 2000, 7, 4000)
        .write(&mut frame, &payload)
        .unwrap();
    let header = NetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    for layout in LAYOUTS {
        for cuts in CUTS {
            let features = layout | MODERN | f::NET_CSUM | f::NET_HOST_TSO4;
            let whole =
                rewritten(false, features, f::NET_GUEST_CSUM | f::NET_GUEST_TSO4, header, &frame, cuts);
            assert_eq!(whole.len(), 1);
            assert!(whole[0].frame == frame);
            let h = whole[0].header;
            assert_eq!((h.gso_type, h.gso_size, h.csum_start, h.hdr_len), (GSO_TCPV4, 1000, 34, 54));
            let cut = rewritten(false, features, 0, header, &frame, cuts);
            assert_eq!(cut.len(), 4);
            let joined: Vec<u8> = cut.iter().flat_map(|one| one.frame[54..].to_vec()).collect();
            assert!(joined == payload && cut.iter().all(|one| one.frame[..14] == frame[..14]));
            assert!(cut.iter().all(|one| one.frame[26..38] == frame[26..38]), "addresses and ports");
        }
    }
}
