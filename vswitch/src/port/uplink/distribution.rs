//! Which member of an uplink a frame goes out through: a hash to one of 256 buckets, and a table from bucket to member (SEMANTICS 4.2).
//!
//! Control changes the table, workers hash. A bucket's frames stay in order because they stay on one member.

use std::net::IpAddr;

use avio_proto::config::Balance;

use crate::packet::{Ethernet, Ip, protocol};

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
#[inline]
#[must_use]
pub fn bucket_of(balance: Balance, head: &[u8], frame_len: usize) -> u8 {
    if balance == Balance::LbFlow
        && let Some(bucket) = usual_flow(head)
    {
        return bucket;
    }
    parsed_bucket(balance, head, frame_len)
}

/// The same of any frame.
#[inline(never)]
fn parsed_bucket(balance: Balance, head: &[u8], frame_len: usize) -> u8 {
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
            flow_bucket(fold(source), fold(destination), a, b, ip.protocol)
        }
        _ => (fold(source) as u8).wrapping_add(fold(destination) as u8),
    }
}

/// The bucket by `LB_FLOW` of the usual frame, without parsing it: TCP or UDP over IPv4 without options, whole (RFC 791 section 3.1). `None`: not so.
#[inline]
fn usual_flow(head: &[u8]) -> Option<u8> {
    // Words at multiples of four, also of what begins between two: the bytes were just copied in pieces of 16 or 32, from either end, and a word that spans two
    // of those waits until both are in the cache.
    let head: &[u8; 40] = head.first_chunk()?;
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let between = |at: usize| word(at) << 16 | word(at + 4) >> 16;
    let (type_and_version, total_len) = (word(12) >> 8, word(16) >> 16);
    let (fragment, protocol) = (word(20) >> 16, word(20) as u8);
    let is_usual = type_and_version == 0x0008_0045
        && total_len >= 20
        && fragment & 0x3fff == 0
        && matches!(protocol, protocol::TCP | protocol::UDP);
    let ports = between(32);
    is_usual.then(|| flow_bucket(between(24), between(28), (ports >> 16) as u16, ports as u16, protocol))
}

/// Sums of odd multiples near the golden ratio's (Weyl sequences): neighbouring addresses and ports, which flows mostly have, come out more
/// evenly than a random hash would spread them.
#[inline]
fn flow_bucket(source: u32, destination: u32, a: u16, b: u16, protocol: u8) -> u8 {
    let hash = source
        .wrapping_mul(0x9e37_79b1)
        .wrapping_add(destination.wrapping_mul(0x85eb_ca77))
        .wrapping_add(u32::from(a).wrapping_mul(0xc2b2_ae3d))
        .wrapping_add(u32::from(b).wrapping_mul(0x27d4_eb2f))
        .wrapping_add(u32::from(protocol).wrapping_mul(0x1656_67b1));
    (hash >> 24) as u8
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_flow_has_the_bucket_that_parsing_gives_it() {
        let mut frame =
            vec![0x1e, 0, 0, 0, 0, 0x5a, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17];
        frame.extend([0x26, 0xbd, 10, 0, 0, 1, 10, 0, 0, 2, 0x10, 0, 0x10, 1, 0, 26, 0, 0]);
        let (mut random, mut usual) = (0x1234_5678_9abc_def0u64, 0);
        for _ in 0..200_000 {
            // One byte in sixteen of those that decide is any byte; addresses and ports always.
            let mut head = frame.clone();
            for (i, byte) in head.iter_mut().enumerate().skip(12) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if (26..38).contains(&i) || random & 0xf == 0 {
                    *byte = (random >> 32) as u8;
                }
            }
            head.truncate(30 + (random >> 40) as usize % 13);
            let want = parsed_bucket(Balance::LbFlow, &head, head.len().max(60));
            usual += usize::from(usual_flow(&head).is_some());
            assert_eq!(usual_flow(&head).unwrap_or(want), want, "{head:?}");
        }
        assert!(usual > 10_000, "{usual}");
    }
}
