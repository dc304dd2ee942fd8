//! One's complement sums (RFC 1071) and the finishing of checksums over a head and a tail.
//!
//! Owns the arithmetic. Called by the offload code for heads; the ring sums tails while it copies them ([`TailSum`]).
//! A sum here is the value of 16-bit big-endian words, folded to 16 bits and not inverted. It never touches guest memory.

use crate::packet::protocol;
use avio_proto::mem::TailSum;

/// Sum of `bytes`, which start at an even offset of what is summed; an odd last byte counts as the high half of a word.
#[inline]
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    // Words of any width may be added as long as carries come back in at the bottom, and byte order may be swapped at the very
    // end (RFC 1071 §2). Halves of eight bytes are added into 64 bits: no carry is lost below 2^32 additions.
    let mut total: u64 = 0;
    let (lanes, rest) = bytes.as_chunks::<8>();
    for lane in lanes {
        let lane = u64::from_ne_bytes(*lane);
        total += (lane & 0xffff_ffff) + (lane >> 32);
    }
    // The rest word by word: a copy of so few bytes into a padded lane would cost a call.
    let (words, odd) = rest.as_chunks::<2>();
    for word in words {
        total += u64::from(u16::from_ne_bytes(*word));
    }
    if let [last] = *odd {
        total += u64::from(u16::from_ne_bytes([last, 0]));
    }
    u16::from_be(fold(total))
}

/// Folds a wide sum to 16 bits, carries added back in.
#[inline]
#[must_use]
pub fn fold(mut total: u64) -> u16 {
    total = (total & 0xffff_ffff) + (total >> 32);
    total = (total & 0xffff_ffff) + (total >> 32);
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    total as u16
}

/// Sum of two sums.
#[inline]
#[must_use]
pub fn add(a: u16, b: u16) -> u16 {
    let (total, carry) = a.overflowing_add(b);
    total + u16::from(carry)
}

/// The sum that `part` contributes when its bytes start `offset` bytes into what is summed: at an odd offset each byte falls
/// into the other half of a word (RFC 1071 §2, byte order independence).
#[inline]
#[must_use]
pub fn at_offset(part: u16, offset: usize) -> u16 {
    if offset % 2 == 1 { part.swap_bytes() } else { part }
}

/// Sum of the pseudo header over IPv4 (RFC 9293 §3.1, RFC 768): `addresses` are source and destination as in the IP
/// header, `len` is the length in bytes of transport header and payload.
#[inline]
#[must_use]
pub fn pseudo_v4(addresses: &[u8; 8], protocol: u8, len: u16) -> u16 {
    add(add(sum(addresses), u16::from(protocol)), len)
}

/// Sum of the pseudo header over IPv6 (RFC 8200 §8.1).
#[inline]
#[must_use]
pub fn pseudo_v6(addresses: &[u8; 32], protocol: u8, len: u16) -> u16 {
    add(add(sum(addresses), u16::from(protocol)), len)
}

/// Where a transport checksum starts, where it goes, and what it starts from: everything needed to finish it once the tail has been summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// First summed byte, from the start of the frame.
    pub start: u16,
    /// The checksum field, from the start of the frame; in the head, at or behind `start`.
    pub field: u16,
    /// What is summed beside the bytes: the pseudo header.
    pub initial: u16,
    /// A result of 0 is written as 0xffff, because 0 means "no checksum" (UDP, RFC 768).
    pub zero_is_none: bool,
}

impl Completion {
    /// Writes the checksum into `head`, given the sum of the bytes that follow `head` in the frame. This is the `finish`
    /// closure of `Delivery::push_summed`. `head` must reach behind the field; a shorter one is left as it is.
    #[inline]
    pub fn apply(&self, head: &mut [u8], tail: TailSum) {
        let (start, field) = (usize::from(self.start), usize::from(self.field));
        if start > field || head.len() < field + 2 {
            debug_assert!(false, "head of {} bytes, checksum at {start}, {field}", head.len());
            return;
        }
        head[field..field + 2].fill(0);
        let total = add(sum(&head[start..]), at_offset(tail.0, head.len() - start));
        let checksum = match !add(total, self.initial) {
            0 if self.zero_is_none => 0xffff,
            checksum => checksum,
        };
        head[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Offset in bytes of the checksum field in this transport's header, for those whose field is known.
#[inline]
#[must_use]
pub fn field_offset(protocol: u8) -> Option<u16> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        protocol::ICMP | protocol::ICMPV6 => Some(2),
        _ => None,
    }
}
