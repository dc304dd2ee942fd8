//! The bytes of one ring's part of the region.
//!
//! Reads and writes little words at offsets that were checked against the length. It knows no layout.

use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::mem::{GuestSlice, Mapping, MemoryTable, Region as MemoryRegion, RegionHint};

pub(super) struct Region {
    memory: MemoryTable,
    len: usize,
}

impl Region {
    /// `len` bytes at `offset` of `mapping`; `None` if they are not all in it.
    pub fn new(mapping: &Arc<dyn Mapping>, offset: u64, len: u64) -> Option<Self> {
        let region = MemoryRegion {
            guest_base: 0,
            user_base: 0,
            len,
            mapping: Arc::clone(mapping),
            mapping_offset: offset,
        };
        let memory = MemoryTable::new(vec![region], None).ok()?;
        Some(Self { memory, len: usize::try_from(len).ok()? })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn bytes(&self) -> GuestSlice<'_> {
        self.memory.slice(&mut RegionHint::default(), 0, self.len).unwrap_or(GuestSlice::NONE)
    }

    /// `N` bytes at `offset`; zeroes past the end, which callers never ask for.
    #[inline]
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.bytes().read(offset).unwrap_or([0; N])
    }

    /// Stores `N` bytes. In program order among all stores of this thread: what a process had stored when it was killed is
    /// what its successor finds, so only the compiler has to be kept from moving them.
    #[inline]
    pub fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
        compiler_fence(Ordering::SeqCst);
        self.bytes().write(offset, &bytes);
        compiler_fence(Ordering::SeqCst);
    }

    #[inline]
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    #[inline]
    pub fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.read(offset))
    }
}
