//! Distributions become lanes.

use super::*;
use crate::port::wire::{OutFrame, Outlet};
use avio_proto::ring::Undelivered;

struct Nowhere;

impl Outlet for Nowhere {
    fn reserve(&mut self, _len: usize) -> Result<OutFrame<'_>, Undelivered> {
        Err(Undelivered::NoBuffer)
    }

    fn commit(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn rollback(&mut self) {}
}

fn lanes(count: usize) -> Vec<Arc<Lane>> {
    (0..count).map(|_| Lane::new(Box::new(Nowhere), 0, 0)).collect()
}

#[test]
fn buckets_are_dealt_to_the_lanes_of_their_member() {
    let mut distribution = Distribution::all_to(1);
    distribution.set(0, Some(0));
    distribution.set(1, None);
    distribution.set(2, Some(7));
    let port = UplinkPort::new(&[lanes(1), lanes(2)], &distribution, Balance::LbMac, None);
    assert_eq!(port.lanes.len(), 3);
    assert_eq!(port.by_bucket[..3], [0, NO_LANE, NO_LANE]);
    let count = |lane| port.by_bucket.iter().filter(|&&of| of == lane).count();
    assert_eq!(count(1) + count(2), 253);
    assert!((115..=140).contains(&count(1)), "{}", count(1));
    // Also where a member has every second bucket; and a bucket's lane is the same then.
    let mut half = Distribution::nobody();
    (3..=255).step_by(2).for_each(|bucket| half.set(bucket, Some(1)));
    let halved = UplinkPort::new(&[lanes(1), lanes(2)], &half, Balance::LbMac, None);
    let first = halved.by_bucket.iter().filter(|&&lane| lane == 1).count();
    assert!((50..=77).contains(&first), "{first}");
    assert!(halved.by_bucket.iter().zip(port.by_bucket.iter()).all(|(a, b)| *a == NO_LANE || a == b));
}

#[test]
fn a_member_without_lanes_carries_nothing() {
    let port = UplinkPort::new(&[lanes(0), lanes(1)], &Distribution::all_to(0), Balance::LbMac, None);
    assert!(port.by_bucket.iter().all(|&lane| lane == NO_LANE));
}

#[test]
fn lb_mac_takes_the_last_byte_of_the_destination() {
    let head = [0x1e, 0, 0, 0, 0, 0x5a, 2, 0, 0, 0, 0, 1, 8, 0];
    assert_eq!(bucket_of(Balance::LbMac, &head, 60), 0x5a);
}

/// A frame from and to these addresses and ports.
fn frame(addresses: [u32; 2], ports: [u16; 2], protocol: u8) -> Vec<u8> {
    let mut frame = vec![0x1e, 0, 0, 0, 0, 0x5a, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, protocol, 0, 0]);
    addresses.iter().for_each(|address| frame.extend(address.to_be_bytes()));
    ports.iter().for_each(|port| frame.extend(port.to_be_bytes()));
    frame.resize(60, 0);
    frame
}

#[test]
fn each_balance_takes_its_bytes_and_falls_back() {
    let of = |balance, frame: &[u8]| bucket_of(balance, frame, 60);
    let udp = frame([0x0a00_0005, 0x0a00_0107], [1000, 53], 17);
    assert_eq!(of(Balance::LbMac, &udp), 0x5a);
    assert_eq!(of(Balance::LbIp, &udp), 12);
    assert_eq!(of(Balance::LbPort, &udp), (1053 & 0xff) as u8);
    let icmp = frame([0x0a00_0005, 0x0a00_0107], [1000, 53], 1);
    assert_eq!(of(Balance::LbPort, &icmp), 12, "no ports: by addresses");
    let mut fragment = udp.clone();
    fragment[20] = 0x20;
    assert_eq!(of(Balance::LbPort, &fragment), 12, "the later ones have no ports");
    assert_eq!(
        of(Balance::LbFlow, &fragment),
        of(Balance::LbFlow, &frame([0x0a00_0005, 0x0a00_0107], [0, 0], 17))
    );
    let mut arp = udp;
    arp[13] = 6;
    for balance in [Balance::LbIp, Balance::LbPort, Balance::LbFlow] {
        assert_eq!(of(balance, &arp), 0x5a, "no IP: by address");
        assert_eq!(of(balance, &arp[..10]), 0x5a);
    }
}

#[test]
fn a_thousand_flows_are_even_within_a_tenth_over_two_and_four() {
    let flows: [fn(u32) -> Vec<u8>; 5] = [
        |n| frame([0x0a00_0001, 0x0a00_0002], [10_000 + n as u16, 80], 6),
        |n| frame([0x0a00_0001, 0x0a00_0002], [4000, 1 + n as u16], 17),
        |n| frame([0x0a00_0001, 0x0a00_0002], [10_000 + n as u16, 20_000 + n as u16], 17),
        |n| frame([0x0a00_0001 + n, 0x0a01_0001], [4000, 80], 6),
        |n| frame([0x0a00_0001, 0x0a01_0001 + n], [4000, 80], 6),
    ];
    for (kind, flow) in flows.iter().enumerate() {
        for members in [2_usize, 4] {
            let mut counts = vec![0; members];
            for n in 0..1000 {
                counts[usize::from(bucket_of(Balance::LbFlow, &flow(n), 60)) % members] += 1;
            }
            let even = 1000 / members;
            assert!(
                counts.iter().all(|count| even * 9 <= count * 10 && count * 10 <= even * 11),
                "{kind}: {counts:?}"
            );
        }
    }
}
