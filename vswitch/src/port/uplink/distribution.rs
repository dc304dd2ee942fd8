//! Which member of an uplink a frame goes out through: a hash to one of 256 buckets, and a table from bucket to member (SEMANTICS 4.2).
//!
//! Control changes the table, workers hash. A bucket's frames stay in order because they stay on one member.

use std::net::IpAddr;

use avio_proto::config::Balance;

use crate::packet::{Ethernet, Ip};

/// Number of buckets (the original's hash table).
pub const BUCKETS: usize = 256;

const NOBODY: u8 = u8::MAX;
const HELD: u8 = u8::MAX - 1;

/// Bucket to member number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution(Box<[u8; BUCKETS]>);

impl Distribution {
    /// Nothing goes out.
    #[must_use]
    pub fn nobody() -> Self {
        Self(Box::new([NOBODY; BUCKETS]))
    }

    /// Everything goes to `member`.
    #[must_use]
    pub fn all_to(member: u8) -> Self {
        Self(Box::new([member; BUCKETS]))
    }

    /// Whether nothing goes out, and nothing waits to.
    #[must_use]
    pub fn is_nobody(&self) -> bool {
        self.0.iter().all(|&member| member == NOBODY)
    }

    /// The member of `bucket`; `None`: nobody can carry its frames, or they are held.
    #[must_use]
    pub fn member(&self, bucket: u8) -> Option<u8> {
        Some(self.0[usize::from(bucket)]).filter(|&member| member < HELD)
    }

    /// Whether the frames of `bucket` wait.
    #[must_use]
    pub fn is_held(&self, bucket: u8) -> bool {
        self.0[usize::from(bucket)] == HELD
    }

    /// The frames of `bucket` wait until a later distribution gives it to a member.
    pub fn hold(&mut self, bucket: u8) {
        self.0[usize::from(bucket)] = HELD;
    }

    /// Gives `bucket` to `member` (below 254), or to nobody.
    pub fn set(&mut self, bucket: u8, member: Option<u8>) {
        self.0[usize::from(bucket)] = member.unwrap_or(NOBODY);
    }
}

/// The bucket of a frame of `frame_len` bytes that begins with `head`, without a VLAN tag.
///
/// As the original (SEMANTICS 4.2): `LB_MAC` takes the last byte of the destination address, `LB_IP` the last bytes of both IP addresses,
/// `LB_PORT` those of both ports; what has no ports falls back to `LB_IP`, what is no IP to `LB_MAC`. `LB_FLOW` is ours: addresses,
/// protocol and ports. `LB_HOT_STANDBY` has one member at a time, so any will do.
#[must_use]
pub fn bucket_of(balance: Balance, head: &[u8], frame_len: usize) -> u8 {
    let by_mac = head.get(5).copied().unwrap_or(0);
    if matches!(balance, Balance::LbMac | Balance::LbHotStandby) {
        return by_mac;
    }
    let Some(l2) = Ethernet::parse(head) else { return by_mac };
    let Ok(ip) = Ip::parse(head, frame_len, &l2) else { return by_mac };
    let Some((source, destination)) = ip.addresses(head) else { return by_mac };
    match (balance, ip.ports(head)) {
        (Balance::LbPort, Some((a, b))) => a.wrapping_add(b) as u8,
        (Balance::LbFlow, ports) => {
            let (a, b) = ports.unwrap_or_default();
            // Sums of odd multiples near the golden ratio's (Weyl sequences): neighbouring addresses and ports, which flows mostly
            // have, come out more evenly than a random hash would spread them.
            let hash = fold(source)
                .wrapping_mul(0x9e37_79b1)
                .wrapping_add(fold(destination).wrapping_mul(0x85eb_ca77))
                .wrapping_add(u32::from(a).wrapping_mul(0xc2b2_ae3d))
                .wrapping_add(u32::from(b).wrapping_mul(0x27d4_eb2f))
                .wrapping_add(u32::from(ip.protocol).wrapping_mul(0x1656_67b1));
            (hash >> 24) as u8
        }
        _ => (fold(source) as u8).wrapping_add(fold(destination) as u8),
    }
}

/// An address in 32 bits; the last byte of the one is the last byte of the other where the upper part does not change.
fn fold(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            (bits as u32) ^ ((bits >> 32) as u32) ^ ((bits >> 64) as u32) ^ ((bits >> 96) as u32)
        }
    }
}
