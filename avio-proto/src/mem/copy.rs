//! The copies that move a frame: short ones inline, long ones by `memmove`, and one that sums while it copies.
//!
//! Called by guest slices and by deliveries into receive rings. Works on raw pointers only; that they are mapped is the
//! caller's promise. Never decides anything from the bytes it moves.

#![expect(unsafe_code, reason = "raw copies from and to guest memory (DESIGN section 6)")]

use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

/// Longest copy in bytes that is done inline. A call to `memmove` costs about 5 ns before the first byte moves, as much as
/// sixteen 16-byte moves; from here on its wider loads win.
const INLINE_MAX: usize = 256;

/// Sixteen bytes that may stand anywhere: one unaligned vector load or store on x86-64 (SSE2 is in its baseline).
#[cfg(target_arch = "x86_64")]
type Vector = std::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
type Vector = [u64; 2];

/// Eight bytes that may stand anywhere, loaded and stored whole.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned64(u64);

#[inline(always)]
unsafe fn move_as<T>(from: *const u8, to: *mut u8) {
    // SAFETY: the caller vouches for `size_of::<T>()` bytes on both sides; no alignment is assumed.
    unsafe { to.cast::<T>().write_unaligned(from.cast::<T>().read_unaligned()) }
}

/// Copies `len` bytes. Where the two overlap, the result is some mix of old and new bytes, as with any guest that writes
/// while it is read.
///
/// # Safety
/// `from` must be readable and `to` writable for `len` bytes.
#[inline(always)]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: every access below lies in `0..len` of both sides.
    unsafe {
        if len > INLINE_MAX {
            ptr::copy(from, to, len);
        } else if len >= 16 {
            let mut at = 0;
            // Four at a time: a frame of 64 bytes is one round.
            while at + 64 <= len {
                for vector in 0..4 {
                    move_as::<Vector>(from.add(at + vector * 16), to.add(at + vector * 16));
                }
                at += 64;
            }
            while at + 16 <= len {
                move_as::<Vector>(from.add(at), to.add(at));
                at += 16;
            }
            // The rest overlaps itself or what went before instead of ending in single bytes, in pieces no wider than need be: a
            // store that straddles two cache lines waits for both.
            if len - at >= 8 {
                move_as::<u64>(from.add(at), to.add(at));
                move_as::<u64>(from.add(len - 8), to.add(len - 8));
            } else if len > at {
                move_as::<u64>(from.add(len - 8), to.add(len - 8));
            }
        } else if len >= 8 {
            let last = from.add(len - 8).cast::<u64>().read_unaligned();
            move_as::<u64>(from, to);
            to.add(len - 8).cast::<u64>().write_unaligned(last);
        } else if len >= 4 {
            let last = from.add(len - 4).cast::<u32>().read_unaligned();
            move_as::<u32>(from, to);
            to.add(len - 4).cast::<u32>().write_unaligned(last);
        } else {
            for at in 0..len {
                move_as::<u8>(from.add(at), to.add(at));
            }
        }
    }
    // Without this the compiler may look through a copy and read the guest's memory a second time where the copy was meant
    // ("memcpy forwarding"); a decision and the bytes it was taken on would then part. Costs no instruction.
    compiler_fence(Ordering::SeqCst);
}

/// From this length on a copy may go past the caches, in bytes.
const PAST_CACHES_MIN: usize = 2048;

/// As [`copy`]; long copies to whole lines go past the caches: the processor neither fetches the lines that are written over, nor
/// drops others for them. What was stored is visible to others before anything that is stored later.
///
/// # Safety
/// As [`copy`].
#[inline]
pub(crate) unsafe fn copy_past_caches(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len >= PAST_CACHES_MIN && (to as usize).is_multiple_of(64) {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        let lines = len & !63;
        // SAFETY: every access lies in `0..lines` of both sides, the stores at multiples of 16. The fence orders these stores, which
        // are not ordered by themselves, before all later ones.
        unsafe {
            for at in (0..lines).step_by(64) {
                let (from, to) = (from.add(at).cast::<__m128i>(), to.add(at).cast::<__m128i>());
                let line = [0, 1, 2, 3].map(|i| _mm_loadu_si128(from.add(i)));
                for (i, vector) in line.into_iter().enumerate() {
                    _mm_stream_si128(to.add(i), vector);
                }
            }
            _mm_sfence();
            return copy(from.add(lines), to.add(lines), len - lines);
        }
    }
    // SAFETY: the caller's promise.
    unsafe { copy(from, to, len) }
}

/// Copies `len` bytes and returns their one's-complement sum in the machine's byte order, folded to 16 bits, as if the
/// first byte stood at an even offset. Each word is loaded once: what is summed is what was stored.
///
/// # Safety
/// As [`copy`].
#[inline]
pub(crate) unsafe fn copy_summed(from: *const u8, to: *mut u8, len: usize) -> u16 {
    // One's-complement addition is associative in any word width that 16 divides (RFC 1071 section 2), so 64-bit words are
    // added with their carries; four chains keep the adders busy.
    let mut sums = [0u64; 4];
    let mut at = 0;
    // SAFETY: `at + 32 <= len`, `at + 8 <= len`, `at < len` respectively.
    unsafe {
        while at + 32 <= len {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = add_carry(*sum, move_word(from.add(at + lane * 8), to.add(at + lane * 8)));
            }
            at += 32;
        }
        while at + 8 <= len {
            sums[0] = add_carry(sums[0], move_word(from.add(at), to.add(at)));
            at += 8;
        }
        let mut rest = [0u8; 8];
        for (i, byte) in rest.iter_mut().enumerate().take(len - at) {
            *byte = from.add(at + i).read_volatile();
            to.add(at + i).write(*byte);
        }
        sums[1] = add_carry(sums[1], u64::from_ne_bytes(rest));
    }
    compiler_fence(Ordering::SeqCst);
    fold(add_carry(add_carry(sums[0], sums[1]), add_carry(sums[2], sums[3])))
}

/// As [`copy_summed`] without the copy.
///
/// # Safety
/// `from` must be readable for `len` bytes.
#[inline]
pub(crate) unsafe fn summed(from: *const u8, len: usize) -> u16 {
    let mut sums = [0u64; 4];
    let mut at = 0;
    // SAFETY: `at + 32 <= len`, `at + 8 <= len`, `at < len` respectively; the packed type assumes no alignment.
    unsafe {
        while at + 32 <= len {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = add_carry(*sum, from.add(at + lane * 8).cast::<Unaligned64>().read_volatile().0);
            }
            at += 32;
        }
        while at + 8 <= len {
            sums[0] = add_carry(sums[0], from.add(at).cast::<Unaligned64>().read_volatile().0);
            at += 8;
        }
        let mut rest = [0u8; 8];
        for (i, byte) in rest.iter_mut().enumerate().take(len - at) {
            *byte = from.add(at + i).read_volatile();
        }
        sums[1] = add_carry(sums[1], u64::from_ne_bytes(rest));
    }
    fold(add_carry(add_carry(sums[0], sums[1]), add_carry(sums[2], sums[3])))
}

#[inline(always)]
unsafe fn move_word(from: *const u8, to: *mut u8) -> u64 {
    // SAFETY: the caller vouches for eight bytes on both sides; the packed type assumes no alignment. Volatile, so that the
    // word that is added is the word that is stored.
    unsafe {
        let word = from.cast::<Unaligned64>().read_volatile();
        to.cast::<Unaligned64>().write(word);
        word.0
    }
}

/// One's-complement addition of 64-bit words.
#[inline(always)]
pub(crate) fn add_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// Folds a 64-bit one's-complement sum to 16 bits.
#[inline]
pub(crate) fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 as written: 16-bit big-endian words, odd byte padded with zero.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 151 + (i >> 7) * 13 + 7) as u8).collect()
    }

    #[test]
    fn every_length_is_copied_exactly_and_nothing_beside_it() {
        for len in (0..300).chain([511, 512, 4096, 9018]) {
            let from = pattern(len);
            let mut to = vec![0xee; len + 32];
            // SAFETY: both vectors hold at least `len` bytes past the offset.
            unsafe { copy(from.as_ptr(), to.as_mut_ptr().add(16), len) };
            assert_eq!(&to[16..16 + len], &from[..]);
            assert!(to[..16].iter().chain(&to[16 + len..]).all(|&b| b == 0xee), "len {len} wrote outside");
        }
    }

    #[test]
    fn a_copy_past_the_caches_is_a_copy() {
        for (len, start) in
            [(100, 0), (2048, 0), (2048, 8), (4096, 0), (4096, 64), (4099, 0), (9018, 0), (9018, 1)]
        {
            let from = pattern(len);
            let mut to = vec![0xee; len + 256];
            let at = (64 - to.as_ptr() as usize % 64) % 64 + start;
            // SAFETY: both vectors hold at least `len` bytes past the offset.
            unsafe { copy_past_caches(from.as_ptr(), to.as_mut_ptr().add(at), len) };
            assert_eq!(&to[at..at + len], &from[..]);
            assert!(to[..at].iter().chain(&to[at + len..]).all(|&b| b == 0xee), "len {len} wrote outside");
        }
    }

    #[test]
    fn the_sum_is_that_of_rfc_1071_at_every_length_and_alignment() {
        let source = pattern(2000);
        for start in 0..9 {
            for len in (0..200).chain([1460, 1461, 1990]) {
                let from = &source[start..(start + len).min(source.len())];
                let mut to = vec![0u8; from.len()];
                // SAFETY: `to` is as long as `from`.
                let sum = unsafe { copy_summed(from.as_ptr(), to.as_mut_ptr(), from.len()) };
                assert_eq!(to, from);
                assert_eq!(u16::from_be(sum), reference(from), "start {start} len {len}");
                // SAFETY: `from` is a slice.
                assert_eq!(unsafe { summed(from.as_ptr(), from.len()) }, sum);
            }
        }
    }

    #[test]
    fn all_ones_fold_without_losing_a_carry() {
        let from = [0xffu8; 4096];
        let mut to = [0u8; 4096];
        // SAFETY: both are 4096 bytes.
        let sum = unsafe { copy_summed(from.as_ptr(), to.as_mut_ptr(), from.len()) };
        assert_eq!(sum, 0xffff);
        assert_eq!(fold(u64::MAX), 0xffff);
    }
}
