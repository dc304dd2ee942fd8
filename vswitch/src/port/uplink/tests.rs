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
    let port = UplinkPort::new(&[lanes(1), lanes(2)], &distribution, Balance::LbMac);
    assert_eq!(port.lanes.len(), 3);
    assert_eq!(port.by_bucket[..6], [0, NO_LANE, NO_LANE, 1, 2, 1]);
}

#[test]
fn a_member_without_lanes_carries_nothing() {
    let port = UplinkPort::new(&[lanes(0), lanes(1)], &Distribution::all_to(0), Balance::LbMac);
    assert!(port.by_bucket.iter().all(|&lane| lane == NO_LANE));
}

#[test]
fn lb_mac_takes_the_last_byte_of_the_destination() {
    let head = [0x1e, 0, 0, 0, 0, 0x5a, 2, 0, 0, 0, 0, 1, 8, 0];
    assert_eq!(bucket_of(Balance::LbMac, &head, 60), 0x5a);
}
