//! A guest that rewrites what it has sent while it is being forwarded gains nothing: what arrives satisfies the guard.
//!
//! Each test runs a second thread that flips one thing between a permitted and a forbidden value as fast as it can. The
//! frames that arrive must all be permitted ones, and both kinds must have been met. Whether such a race would hit a second read
//! is chance; `rewriting` leaves nothing to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use avio_proto::mem::RegionHint;
use avio_proto::virtio::features as f;
use avio_proto::virtio::net::{F_NEEDS_CSUM, GSO_TCPV4, HEADER_LEN, NetHeader};
use etherparse::PacketBuilder;

use super::rig::{Arrived, Attach, MODERN, Rig};
use crate::table::PortSpec;
use crate::table::tests::mac;

/// How long each race is run at least, and until both outcomes were met, or at most.
const LEAST: Duration = Duration::from_millis(150);
const MOST: Duration = Duration::from_secs(20);

/// Ends the other thread however the test ends: one that fails would wait for it for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is flipped: an offset into header and frame together, and the two values; the first is permitted.
struct Flip {
    at: usize,
    good: Vec<u8>,
    bad: Vec<u8>,
}

/// Sends `frame` over and over while `flips` go back and forth. Calls `judge` with each frame that arrives. Returns how many
/// arrived and how many were refused.
fn race(
    change: impl FnOnce(&mut PortSpec),
    features: u64,
    header: NetHeader,
    frame: &[u8],
    flips: &[Flip],
    mut judge: impl FnMut(&Arrived),
) -> (u64, u64) {
    let mut attach = [Attach::new("a", mac(0)), Attach::new("b", mac(1))];
    change(&mut attach[0].spec);
    attach[0].features |= features;
    attach[1].features |= f::NET_GUEST_CSUM | f::NET_GUEST_TSO4;
    let mut rig = Rig::new(attach);
    // All 64 buffers hold the frame, so the other thread need not know which are in use.
    let addresses: Vec<u64> = (0..64).map(|i| rig.guests[0].tx[0].address(i)).collect();
    let memory = std::sync::Arc::clone(rig.guests[0].tx[0].driver.memory());
    let stop = AtomicBool::new(false);
    let (mut arrived, mut sent) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let slices: Vec<_> = addresses
                .iter()
                .map(|&at| memory.slice(&mut RegionHint::default(), at, HEADER_LEN + frame.len()).unwrap())
                .collect();
            let mut bad = true;
            while !stop.load(Ordering::Relaxed) {
                for slice in &slices {
                    for flip in flips {
                        let bytes = if bad { &flip.bad } else { &flip.good };
                        slice.sub(flip.at, bytes.len()).copy_from(bytes);
                    }
                }
                bad = !bad;
            }
        });
        let _stop = Stop(&stop);
        let start = Instant::now();
        loop {
            for _ in 0..32 {
                if rig.guests[0].tx[0].put(&header, frame, &[]).is_some() {
                    sent += 1;
                }
            }
            rig.guests[0].tx[0].driver.publish();
            rig.run();
            for one in rig.received(1) {
                judge(&one);
                arrived += 1;
            }
            let took = start.elapsed();
            let both = arrived > 0 && arrived < sent;
            if took > LEAST && both || took > MOST {
                break;
            }
        }
    });
    (arrived, sent - arrived)
}

fn udp(len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(mac(0).0, mac(1).0)
        .ipv4([192, 0, 2, 7], [192, 0, 2, 1], 64)
        .udp(1000, 2000)
        .write(&mut bytes, &vec![7; len])
        .unwrap();
    bytes
}

/// Both outcomes must have been met, else the race did not take place.
fn both((arrived, refused): (u64, u64)) {
    assert!(arrived > 0 && refused > 0, "{arrived} arrived, {refused} were refused");
}

#[test]
fn source_address() {
    let flip = Flip { at: HEADER_LEN + 6, good: mac(0).0.to_vec(), bad: mac(9).0.to_vec() };
    both(race(
        |_| (),
        0,
        NetHeader::default(),
        &udp(30),
        &[flip],
        |got| assert_eq!(got.frame[6..12], mac(0).0),
    ));
}

#[test]
fn source_address_of_a_long_frame() {
    let flip = Flip { at: HEADER_LEN + 6, good: mac(0).0.to_vec(), bad: mac(9).0.to_vec() };
    both(race(
        |_| (),
        0,
        NetHeader::default(),
        &udp(1400),
        &[flip],
        |got| {
            assert_eq!(got.frame[6..12], mac(0).0);
            assert_eq!(got.frame.len(), 1442);
        },
    ));
}

#[test]
fn vlan_tag() {
    let flip = Flip { at: HEADER_LEN + 12, good: vec![8, 0], bad: vec![0x81, 0] };
    both(race(
        |_| (),
        0,
        NetHeader::default(),
        &udp(30),
        &[flip],
        |got| assert_eq!(got.frame[12..14], [8, 0]),
    ));
}

#[test]
fn vlan_of_a_trunk() {
    let ids = [10, 20].map(|id| avio_proto::config::VlanId::new(id).unwrap());
    let mut frame = udp(30);
    frame.splice(12..12, [0x81, 0, 0, 10]);
    // Both VLANs are the sender's; the receiver is in neither, so nothing may arrive at all.
    let flip = Flip { at: HEADER_LEN + 14, good: vec![0, 10], bad: vec![0, 20] };
    let outcome = race(
        |spec| spec.trunk = ids.to_vec(),
        0,
        NetHeader::default(),
        &frame,
        &[flip],
        |got| panic!("{got:?}"),
    );
    assert_eq!(outcome.0, 0);
}

#[test]
fn ip_source() {
    let own = |spec: &mut PortSpec| spec.ips = vec!["192.0.2.7".parse().unwrap()];
    let flip = Flip { at: HEADER_LEN + 26, good: vec![192, 0, 2, 7], bad: vec![192, 0, 2, 8] };
    both(race(own, 0, NetHeader::default(), &udp(400), &[flip], |got| {
        assert_eq!(got.frame[26..30], [192, 0, 2, 7]);
    }));
}

#[test]
fn tcp_header_length_and_virtio_header() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(0).0, mac(1).0)
        .ipv4([192, 0, 2, 7], [192, 0, 2, 1], 64)
        .tcp(1000, 2000, 7, 4000)
        .write(&mut frame, &[7; 4000])
        .unwrap();
    let header = NetHeader {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        gso_size: 168,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    let flips = [
        // gso_size below the floor. One byte differs, so a torn write is either value and not a third that is good, too.
        Flip { at: 4, good: 168u16.to_le_bytes().to_vec(), bad: 3u16.to_le_bytes().to_vec() },
        // The checksum onto the source address.
        Flip { at: 6, good: 34u16.to_le_bytes().to_vec(), bad: 6u16.to_le_bytes().to_vec() },
        // TCP data offset: no header is that short.
        Flip { at: HEADER_LEN + 34 + 12, good: vec![0x50], bad: vec![0x10] },
    ];
    both(race(
        |_| (),
        MODERN | f::NET_CSUM | f::NET_HOST_TSO4,
        header,
        &frame,
        &flips,
        |got| {
            let h = got.header;
            assert_eq!((h.gso_type, h.csum_start, h.csum_offset), (GSO_TCPV4, 34, 16));
            assert_eq!((h.gso_size, h.hdr_len), (168, 54), "the header belongs to the bytes behind it");
            assert_eq!(got.frame[46] >> 4, 5);
            assert_eq!(got.frame.len(), 4054);
        },
    ));
}

#[test]
fn descriptors_and_indirect_tables() {
    for features in [MODERN, MODERN | f::RING_INDIRECT_DESC, MODERN | f::RING_PACKED] {
        descriptors_under(features);
    }
}

/// Another thread rewrites lengths in the descriptor area, indirect tables included, while frames are forwarded: what arrives
/// still has the sender's address, whatever its length, and a ring that is found broken stops alone.
fn descriptors_under(features: u64) {
    let start = Instant::now();
    let mut arrived = 0;
    while start.elapsed() < LEAST || arrived == 0 {
        let mut attach: Vec<Attach> = (0..3).map(|i| Attach::new(&format!("guest{i}"), mac(i))).collect();
        attach[0].features = features;
        let mut rig = Rig::new(attach);
        let first = rig.guests[0].tx[0].address(0);
        let memory = std::sync::Arc::clone(rig.guests[0].tx[0].driver.memory());
        let layout = avio_proto::ring::DriverLayout::at(avio_guest::GUEST_BASE, 256, features);
        let stop = AtomicBool::new(false);
        let frame = udp(300);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut hint = RegionHint::default();
                let mut areas = vec![memory.slice(&mut hint, layout.desc, 16 * 256).unwrap()];
                if let Some(tables) = layout.indirect {
                    areas.push(memory.slice(&mut hint, tables, 64 * 2048).unwrap());
                }
                let mut step = 0usize;
                while !stop.load(Ordering::Relaxed) {
                    for area in &areas {
                        for entry in 0..64 {
                            // Length (bytes 8 to 12), and now and then the address, within the buffers or not.
                            let value = [60u32, 354, 12, 70_000, 0, 200][step % 6];
                            area.sub(entry * 16 + 8, 4).copy_from(&value.to_le_bytes());
                            step += 1;
                            if step.is_multiple_of(97) {
                                area.sub(entry * 16, 8).copy_from(&(first + 4).to_le_bytes());
                            }
                        }
                    }
                }
            });
            let _stop = Stop(&stop);
            for _ in 0..50 {
                let tx = &mut rig.guests[0].tx[0];
                for _ in 0..8 {
                    tx.put(&NetHeader::default(), &frame, &[100, 200]);
                }
                tx.driver.publish();
                if rig.forwarder.forward(&mut rig.guests[0].queues[0], 64).is_err() {
                    break;
                }
                rig.guests[0].tx[0].reclaim();
                for got in rig.received(1) {
                    assert_eq!(got.frame[6..12], mac(0).0);
                    assert_eq!(got.frame[..6], mac(1).0);
                    arrived += 1;
                }
            }
        });
        rig.send(2, &super::rig::frame(mac(1), mac(2), 0x0800, 60));
        assert!(rig.received(1).iter().any(|got| got.frame[6..12] == mac(2).0), "the others go on");
        assert!(rig.stats(0).is_consistent() && rig.stats(1).is_consistent());
    }
}
