//! What lies where in the guest's memory: rings first, then buffers, handed out once and never given back.
//!
//! Owns the table of regions. Set up before traffic by [`crate::net`]; data paths only translate through it.

use crate::mapping::MemfdMapping;
use avio_proto::mem::{Mapping, MemoryTable, Region};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Guest address of the first byte. Not 0, so that an address which was never set is noticed, and not the front-end's own
/// address, so that a back-end which mixes up the two kinds is noticed too.
pub const GUEST_BASE: u64 = 0x4000_0000;

/// One guest's memory and how much of it is in use.
#[derive(Debug)]
pub struct GuestMemory {
    mapping: Arc<MemfdMapping>,
    table: Arc<MemoryTable>,
    used_len: u64,
}

/// Why memory could not be made or is not enough.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel refused.
    #[error("guest memory of {len} bytes: {source}")]
    Map {
        /// Length asked for in bytes.
        len: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has no huge pages for it.
    #[error(
        "guest memory of {len} bytes in pages of 2 MiB: {source}: free ones are set aside with /proc/sys/vm/nr_hugepages"
    )]
    Huge {
        /// Length asked for in bytes.
        len: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The region table refused; cannot happen with one region.
    #[error("guest memory: {0}")]
    Table(#[from] avio_proto::mem::TableError),
    /// Rings and buffers need more than the guest has.
    #[error("guest memory is full: {wanted} more bytes do not fit into {len}")]
    Full {
        /// Bytes that did not fit.
        wanted: u64,
        /// Bytes the guest has.
        len: u64,
    },
}

impl GuestMemory {
    /// A guest with `len` bytes of memory.
    ///
    /// # Errors
    /// [`MemoryError::Map`] if the kernel has no memory or descriptor left.
    pub fn new(name: &str, len: usize) -> Result<Self, MemoryError> {
        Self::in_mapping(MemfdMapping::new(name, len).map_err(|source| MemoryError::Map { len, source })?)
    }

    /// The same in pages of 2 MiB, as VMMs with `hugetlb=on` give their guests; at least `len` bytes.
    ///
    /// # Errors
    /// [`MemoryError::Huge`] if the system has too few of those pages.
    pub fn huge(name: &str, len: usize) -> Result<Self, MemoryError> {
        Self::in_mapping(MemfdMapping::huge(name, len).map_err(|source| MemoryError::Huge { len, source })?)
    }

    fn in_mapping(mapping: MemfdMapping) -> Result<Self, MemoryError> {
        let mapping = Arc::new(mapping);
        let len = mapping.len();
        let region = Region {
            guest_base: GUEST_BASE,
            user_base: mapping.base() as u64,
            len: len as u64,
            mapping: mapping.clone(),
            mapping_offset: 0,
        };
        let table = Arc::new(MemoryTable::new(vec![region], None)?);
        Ok(Self { mapping, table, used_len: 0 })
    }

    /// Sets aside `len` bytes, the first at a multiple of `align` (a power of two); returns their guest address.
    ///
    /// # Errors
    /// [`MemoryError::Full`].
    pub fn alloc(&mut self, len: u64, align: u64) -> Result<u64, MemoryError> {
        let start = self.used_len.next_multiple_of(align);
        let total = self.mapping.len() as u64;
        match start.checked_add(len) {
            Some(end) if end <= total => {
                self.used_len = end;
                Ok(GUEST_BASE + start)
            }
            _ => Err(MemoryError::Full { wanted: len, len: total }),
        }
    }

    /// The table that rings translate through; the same for the life of the guest.
    #[must_use]
    pub fn table(&self) -> &Arc<MemoryTable> {
        &self.table
    }

    /// The file behind the only region.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.mapping.fd()
    }

    /// The front-end's own address of guest address `addr`: how vhost-user names rings.
    #[must_use]
    pub fn user_addr(&self, addr: u64) -> u64 {
        addr - GUEST_BASE + self.mapping.base() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use avio_proto::mem::RegionHint;

    #[test]
    fn allocations_do_not_overlap_and_end_with_the_memory() {
        let mut m = GuestMemory::new("test", 8192).unwrap();
        let a = m.alloc(100, 64).unwrap();
        let b = m.alloc(4096, 4096).unwrap();
        assert_eq!((a, b), (GUEST_BASE, GUEST_BASE + 4096));
        assert!(matches!(m.alloc(1, 1), Err(MemoryError::Full { wanted: 1, len: 8192 })));
    }

    #[test]
    fn guest_and_front_end_addresses_name_the_same_byte() {
        let mut m = GuestMemory::new("test", 8192).unwrap();
        let a = m.alloc(16, 64).unwrap();
        let t = m.table();
        t.slice(&mut RegionHint::default(), a, 16).unwrap().copy_from(&[7; 16]);
        let mut got = [0; 16];
        t.user_slice(m.user_addr(a), 16).unwrap().copy_to(&mut got);
        assert_eq!(got, [7; 16]);
        assert_eq!(t.user_to_guest(m.user_addr(a)), Some(a));
    }
}
