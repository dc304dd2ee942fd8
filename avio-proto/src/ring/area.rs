//! The few words of a ring that two processes share, seen through atomics.
//!
//! Resolved once when a ring is made; from then on every access is a load or store at an offset that was checked against
//! the area's length. Used by both layouts, on both sides.

#![expect(unsafe_code, reason = "ring words live in guest memory (DESIGN section 6: rings)")]

use super::RingError;
use crate::mem::{GuestSlice, MemoryTable, prefetch, prefetch_for_write};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Eight bytes at any alignment, stored whole.
#[repr(C, packed)]
struct Unaligned64(u64);

/// One of a ring's three areas. Valid as long as the memory table that it came from: its owner keeps that.
pub(super) struct Area {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: an area is an address and a length; all access goes through atomics or raw stores that tolerate other writers.
unsafe impl Send for Area {}
// SAFETY: as above; nothing is written through `&Area` except shared-memory words.
unsafe impl Sync for Area {}

impl Area {
    /// `len` bytes at the front-end's address `addr`, aligned to `align`.
    pub fn from_user(memory: &MemoryTable, addr: u64, len: usize, align: usize) -> Result<Self, RingError> {
        Self::new(memory.user_slice(addr, len), addr, align)
    }

    /// `len` bytes at guest address `addr`, aligned to `align`.
    pub fn from_guest(memory: &MemoryTable, addr: u64, len: usize, align: usize) -> Result<Self, RingError> {
        Self::new(memory.slice(&mut Default::default(), addr, len), addr, align)
    }

    fn new(slice: Option<GuestSlice<'_>>, addr: u64, align: usize) -> Result<Self, RingError> {
        let slice = slice.ok_or(RingError::BadAddress)?;
        // The mapping decides what the processor sees, the address what the standard asks for: both must be aligned.
        if !addr.is_multiple_of(align as u64) || !(slice.as_ptr() as usize).is_multiple_of(align) {
            return Err(RingError::BadAddress);
        }
        Ok(Self { ptr: slice.as_ptr(), len: slice.len() })
    }

    /// Its bytes, for copies that check their bounds.
    #[inline(always)]
    pub fn slice(&self) -> GuestSlice<'_> {
        // SAFETY: the whole area is mapped, readable and writable, as long as its owner keeps the memory table.
        unsafe { GuestSlice::new(self.ptr, self.len) }
    }

    /// Sets all bytes to 0. For a driver that makes a new ring.
    pub fn clear(&self) {
        // SAFETY: the whole area is mapped and writable.
        unsafe { self.ptr.write_bytes(0, self.len) };
    }

    /// The 16-bit word at byte `offset`.
    ///
    /// # Safety
    /// `offset` must be even and `offset + 2` inside the area.
    #[inline(always)]
    pub unsafe fn u16(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset.is_multiple_of(2) && offset + 2 <= self.len);
        // SAFETY: inside the area and aligned, as the caller promises; the area is at least 2-aligned.
        unsafe { AtomicU16::from_ptr(self.ptr.add(offset).cast()) }
    }

    /// The 32-bit word at byte `offset`.
    ///
    /// # Safety
    /// The area must have been made 4-aligned, `offset` a multiple of 4 and `offset + 4` inside the area.
    #[inline(always)]
    pub unsafe fn u32(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(4) && offset + 4 <= self.len);
        // SAFETY: as the caller promises.
        unsafe { AtomicU32::from_ptr(self.ptr.add(offset).cast()) }
    }

    /// The 64-bit word at byte `offset`.
    ///
    /// # Safety
    /// The area must have been made 8-aligned, `offset` a multiple of 8 and `offset + 8` inside the area.
    #[inline(always)]
    pub unsafe fn u64(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8) && offset + 8 <= self.len);
        // SAFETY: as the caller promises.
        unsafe { AtomicU64::from_ptr(self.ptr.add(offset).cast()) }
    }

    /// Stores eight bytes, little-endian, at a byte `offset` of any alignment, before anything that is released later.
    ///
    /// # Safety
    /// `offset + 8` must be inside the area.
    #[inline(always)]
    pub unsafe fn store_unaligned(&self, offset: usize, value: u64) {
        debug_assert!(offset + 8 <= self.len);
        // SAFETY: inside the area as the caller promises; the packed type assumes no alignment.
        unsafe { self.ptr.add(offset).cast::<Unaligned64>().write_volatile(Unaligned64(value.to_le())) }
    }

    /// Fetches the line at byte `offset`, wherever that is.
    #[inline(always)]
    pub fn prefetch(&self, offset: usize) {
        prefetch(self.ptr.wrapping_add(offset));
    }

    /// The same as our own, for writing.
    #[inline(always)]
    pub fn prefetch_for_write(&self, offset: usize) {
        prefetch_for_write(self.ptr.wrapping_add(offset));
    }

    /// Copies the 16-byte descriptor `index` out, once.
    ///
    /// # Safety
    /// The area must be 16-aligned and hold more than `index` descriptors.
    #[inline(always)]
    pub unsafe fn descriptor(&self, index: usize, order: Ordering) -> (u64, u64) {
        // SAFETY: as the caller promises. The second word holds the packed ring's flags, so it is loaded first.
        unsafe {
            let high = self.u64(index * 16 + 8).load(order);
            let low = self.u64(index * 16).load(Ordering::Relaxed);
            (u64::from_le(low), u64::from_le(high))
        }
    }
}
