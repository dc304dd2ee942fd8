//! The bytes of one ring's part of the region.
//!
//! Reads and writes little words at offsets that were checked against the length. It knows no layout.

use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::mem::{Mapping, MemoryTable, Region as MemoryRegion};
use crate::ring::area::Area;

pub(super) struct Region {
    area: Area,
    /// Keeps the area mapped.
    _memory: MemoryTable,
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
        let area = Area::from_guest(&memory, 0, usize::try_from(len).ok()?, 1).ok()?;
        Some(Self { area, _memory: memory })
    }

    pub fn len(&self) -> usize {
        self.area.slice().len()
    }

    /// `N` bytes at `offset`; zeroes past the end, which callers never ask for.
    #[inline]
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.area.slice().read(offset).unwrap_or([0; N])
    }

    /// Stores `N` bytes. In program order among all stores of this thread: what a process had stored when it was killed is
    /// what its successor finds, so only the compiler has to be kept from moving them.
    #[inline]
    pub fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
        compiler_fence(Ordering::SeqCst);
        self.area.slice().write(offset, &bytes);
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
