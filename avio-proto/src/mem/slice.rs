//! A piece of guest memory, and copies out of it, into it and between two of them.
//!
//! All access is by raw copies: the guest may write the same bytes at the same time, so no Rust reference to them is ever
//! made, and what was copied is the only thing that anyone may reason about.

#![expect(unsafe_code, reason = "raw copies from and to guest memory (DESIGN section 6)")]

use super::copy;
use std::marker::PhantomData;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Eight bytes at any alignment, loaded whole.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned64(u64);

/// `len` bytes of guest memory, valid for as long as the table it came from. Laid out as `struct iovec`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct GuestSlice<'m> {
    ptr: *mut u8,
    len: usize,
    table: PhantomData<&'m super::MemoryTable>,
}

impl<'m> GuestSlice<'m> {
    /// # Safety
    /// `ptr..ptr+len` must be mapped readable and writable for `'m`.
    #[inline]
    pub(crate) unsafe fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len, table: PhantomData }
    }

    /// A slice of no bytes, to fill arrays with.
    pub(crate) const NONE: GuestSlice<'static> =
        GuestSlice { ptr: std::ptr::dangling_mut(), len: 0, table: PhantomData };

    /// Length in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no byte.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First byte; only ring code may look through it.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// The part from `offset` on, at most `len` bytes; empty when `offset` is past the end.
    #[inline]
    #[must_use]
    pub fn sub(&self, offset: usize, len: usize) -> GuestSlice<'m> {
        let offset = offset.min(self.len);
        // SAFETY: `offset <= self.len`, and the new length stays inside the old one.
        unsafe { GuestSlice::new(self.ptr.add(offset), len.min(self.len - offset)) }
    }

    /// `N` bytes at `offset`; `None` if it ends before. The length is known when compiling: a load or two.
    #[inline]
    #[must_use]
    pub fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset.checked_add(N)? > self.len {
            return None;
        }
        let mut bytes = [0; N];
        // SAFETY: `offset + N` bytes are mapped at `self.ptr`, `N` bytes are ours.
        unsafe { copy::copy(self.ptr.add(offset), bytes.as_mut_ptr(), N) };
        Some(bytes)
    }

    /// Two little-endian words of eight bytes at `offset`, each loaded once and whole; `None` if it ends before. For descriptors: what is
    /// decided on a field is what is used of it.
    #[inline(always)]
    pub(crate) fn words(&self, offset: usize) -> Option<(u64, u64)> {
        if offset.checked_add(16)? > self.len {
            return None;
        }
        // SAFETY: 16 bytes are mapped at `offset`; the packed type assumes no alignment.
        let [low, high] = unsafe { self.ptr.add(offset).cast::<[Unaligned64; 2]>().read_volatile() };
        Some((u64::from_le(low.0), u64::from_le(high.0)))
    }

    /// Stores `N` bytes at `offset`; false, and nothing stored, if it ends before.
    #[inline]
    pub fn write<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> bool {
        if offset.checked_add(N).is_none_or(|end| end > self.len) {
            return false;
        }
        // SAFETY: as in `read`.
        unsafe { copy::copy(bytes.as_ptr(), self.ptr.add(offset), N) };
        true
    }

    /// Copies the first bytes out into `to`; returns how many: the shorter of the two lengths.
    #[inline]
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let n = self.len.min(to.len());
        // SAFETY: `n` bytes are mapped at `self.ptr` and `to` is ours; they cannot overlap.
        unsafe { copy::copy(self.ptr, to.as_mut_ptr(), n) };
        n
    }

    /// Copies the first bytes of `from` in; returns how many: the shorter of the two lengths.
    #[inline]
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let n = self.len.min(from.len());
        // SAFETY: as in `copy_to`.
        unsafe { copy::copy(from.as_ptr(), self.ptr, n) };
        n
    }

    /// Copies as much as fits from `from`; returns how many bytes. The two may overlap.
    #[inline]
    pub fn copy_from_guest(&self, from: &GuestSlice<'_>) -> usize {
        let n = self.len.min(from.len);
        // SAFETY: both sides are mapped for `n` bytes; `copy` allows overlap.
        unsafe { copy::copy(from.ptr, self.ptr, n) };
        n
    }

    /// As [`copy_from_guest`](Self::copy_from_guest), for what is not read again soon: long copies go past the caches.
    #[inline]
    pub fn store_from_guest(&self, from: &GuestSlice<'_>) -> usize {
        let n = self.len.min(from.len);
        // SAFETY: both sides are mapped for `n` bytes; the copy allows overlap.
        unsafe { copy::copy_past_caches(from.ptr, self.ptr, n) };
        n
    }

    /// Copies as much as fits from `from` and returns the one's-complement sum of what was copied, in the machine's byte
    /// order, as if it began at an even offset.
    #[inline]
    pub(crate) fn copy_summed_from(&self, from: &GuestSlice<'_>) -> u16 {
        let n = self.len.min(from.len);
        // SAFETY: both sides are mapped for `n` bytes.
        unsafe { copy::copy_summed(from.ptr, self.ptr, n) }
    }

    /// The one's-complement sum of its bytes, in the machine's byte order, as if it began at an even offset.
    #[inline]
    fn summed(&self) -> u16 {
        // SAFETY: `self.len` bytes are mapped.
        unsafe { copy::summed(self.ptr, self.len) }
    }

    /// Asks the processor to fetch the first line for reading.
    #[inline]
    pub fn prefetch_read(&self) {
        prefetch(self.ptr);
    }

    /// Asks the processor to fetch the second line for reading, if there is one or not.
    #[inline(always)]
    pub(crate) fn prefetch_second(&self) {
        prefetch(self.ptr.wrapping_add(LINE));
    }

    /// Whether the two begin in the same cache line.
    #[inline]
    #[must_use]
    pub fn shares_line(&self, other: &GuestSlice<'_>) -> bool {
        self.ptr as usize / LINE == other.ptr as usize / LINE
    }

    /// Asks the processor to fetch the first line for writing.
    #[inline]
    pub fn prefetch_write(&self) {
        prefetch_for_write(self.ptr);
    }

    /// Asks the processor to fetch the first `count` lines for reading, as far as the slice goes.
    #[inline]
    pub fn prefetch_read_lines(&self, count: usize) {
        let mut at = 0;
        let end = self.len.min(count * LINE);
        while at < end {
            prefetch(self.ptr.wrapping_add(at));
            at += LINE;
        }
    }

    /// Asks the processor to fetch the first `count` lines for writing, as far as the slice goes.
    #[inline(always)]
    pub(crate) fn prefetch_write_lines(&self, count: usize) {
        let mut at = 0;
        let end = self.len.min(count * LINE);
        while at < end {
            prefetch_for_write(self.ptr.wrapping_add(at));
            at += LINE;
        }
    }

    /// Hands the first line over to whoever reads it next on another core.
    #[inline(always)]
    pub(crate) fn demote_first(&self) {
        demote(self.ptr);
    }

    /// The same bytes with the lifetime forgotten.
    ///
    /// # Safety
    /// The caller must hand the result on only under a lifetime for which the table is kept alive.
    #[inline]
    pub(crate) unsafe fn detach(self) -> GuestSlice<'static> {
        GuestSlice { ptr: self.ptr, len: self.len, table: PhantomData }
    }
}

/// Asks the processor to fetch the line at `ptr`; any address will do.
#[inline(always)]
pub(crate) fn prefetch(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect on memory and never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(ptr.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// Asks the processor to fetch the line at `ptr` as its own; any address will do.
#[inline(always)]
pub(crate) fn prefetch_for_write(ptr: *const u8) {
    // The compiler turns its own hint for writing into one for reading unless the processor's model is known; every
    // x86-64 processor takes this instruction, those that do not know it as a no-op.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect on memory and never faults.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) ptr, options(readonly, nostack, preserves_flags))
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// Asks the processor to move the line at `ptr` from this core's caches to the one that all cores share, where another core
/// finds it sooner than here; any address will do. Cores that share no cache, and processors that do not know the
/// instruction, take it as a no-op.
#[inline(always)]
pub(crate) fn demote(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint has no effect on memory and never faults; its encoding is one of the reserved no-ops (Intel SDM,
    // CLDEMOTE).
    unsafe {
        std::arch::asm!("cldemote [{}]", in(reg) ptr, options(readonly, nostack, preserves_flags))
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

impl std::fmt::Debug for GuestSlice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GuestSlice({} bytes)", self.len)
    }
}

/// The part of a frame behind its snapshot: still in the sender's memory, read exactly once per receiver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tail<'a> {
    /// Pieces in order.
    pub slices: &'a [GuestSlice<'a>],
    /// Bytes at the start of the pieces that do not belong to the tail (they are in the snapshot).
    pub skip: usize,
    /// Length in bytes.
    pub len: usize,
}

impl<'a> Tail<'a> {
    /// The `len` bytes of this tail that start `offset` bytes into it; used to cut segments. Clamped to the tail.
    #[inline]
    #[must_use]
    pub fn sub(&self, offset: usize, len: usize) -> Tail<'a> {
        let offset = offset.min(self.len);
        Tail { slices: self.slices, skip: self.skip + offset, len: len.min(self.len - offset) }
    }

    /// The sum of its bytes without copying them. A guest may change them afterwards: only for memory that no guest writes to (what
    /// came from a network device).
    #[must_use]
    pub fn sum(&self) -> TailSum {
        let (mut skip, mut left, mut sum, mut odd) = (self.skip, self.len, 0, false);
        for slice in self.slices {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let part = slice.sub(skip, left);
            // As in the copy that sums: a piece that begins at an odd offset has its bytes in the other halves of their words.
            let words = part.summed();
            sum = copy::add_carry(sum, u64::from(if odd { words.swap_bytes() } else { words }));
            odd ^= part.len() % 2 != 0;
            skip = 0;
            left -= part.len();
            if left == 0 {
                break;
            }
        }
        TailSum(u16::from_be(copy::fold(sum)))
    }
}

/// The one's-complement sum of a tail's bytes as they were copied, as if it started at an even offset: 16-bit big-endian
/// words, folded to 16 bits, not inverted (RFC 1071).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TailSum(pub u16);
