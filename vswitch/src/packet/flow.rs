//! The flow hash: which of a receiver's queue pairs a frame goes to when steering knows nothing better.
//!
//! Owns the hash function. Called by the forwarding engine, only for receivers with more than one enabled pair.
//!
//! The hash is *symmetric*: both directions of a flow have the same value. Automatic receive steering needs that, for it
//! records, under the hash of what a guest transmits, the pair it transmitted on, and looks the replies up under theirs.
//! It is not seeded: a guest that makes its flows collide only crowds the pairs that its own traffic goes to, and a
//! value that is the same in every worker needs no agreement.

use super::{Ethernet, Ip};
use std::net::IpAddr;

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX_AGAIN: u64 = 0xd6e8_feb8_6659_fd93;

/// The hash of the flow that a frame belongs to: over both IP addresses, protocol and ports where they can be read,
/// over the addresses and protocol alone for fragments, over MAC addresses and type for anything that is not IP.
#[inline]
#[must_use]
pub fn flow_hash(head: &[u8], frame_len: usize, l2: &Ethernet) -> u32 {
    if let Ok(ip) = Ip::parse(head, frame_len, l2)
        && let Some((source, destination)) = ip.addresses(head)
    {
        let (source_port, destination_port) = ip.ports(head).unwrap_or((0, 0));
        let ends = endpoint(source, source_port).wrapping_add(endpoint(destination, destination_port));
        return finish(ends, u64::from(ip.protocol));
    }
    let ends = mix(mac(l2.source), MIX).wrapping_add(mix(mac(l2.destination), MIX));
    finish(ends, u64::from(l2.ethertype) << 8)
}

#[inline]
fn endpoint(address: IpAddr, port: u16) -> u64 {
    match address {
        IpAddr::V4(a) => mix(u64::from(a.to_bits()) << 16 | u64::from(port), MIX),
        IpAddr::V6(a) => {
            let bits = a.to_bits();
            mix((bits >> 64) as u64, MIX_AGAIN) ^ mix(bits as u64 ^ u64::from(port) << 48, MIX)
        }
    }
}

#[inline]
fn mac(m: [u8; 6]) -> u64 {
    u64::from_be_bytes([0, 0, m[0], m[1], m[2], m[3], m[4], m[5]])
}

/// Both halves of a full product, folded: every input bit reaches every output bit.
#[inline]
fn mix(value: u64, by: u64) -> u64 {
    let product = u128::from(value ^ MIX_AGAIN) * u128::from(by);
    (product >> 64) as u64 ^ product as u64
}

#[inline]
fn finish(ends: u64, kind: u64) -> u32 {
    let h = mix(ends ^ kind.wrapping_mul(MIX), MIX_AGAIN);
    (h >> 32) as u32 ^ h as u32
}
