//! The memory that a TAP port's rings and buffers lie in.
//!
//! Owns one anonymous mapping and says where the kernel finds a part of it. Made by [`super::make_rings`]; shared by the rings
//! of workers and pump and by I/O that the kernel has not finished. Nobody outside this process sees it.

#![expect(unsafe_code, reason = "an anonymous mapping (DESIGN section 6, docs/decisions/0008)")]

use std::io;
use std::ptr;
use std::sync::Arc;

use avio_proto::mem::{Mapping, MemoryTable, Region};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// "Guest" address of the first byte: not 0, so that an address which was never set is noticed.
const BASE: u64 = 0x1000_0000;

/// Anonymous pages, unmapped when dropped.
struct Pages {
    base: *mut u8,
    len: usize,
}

// SAFETY: the pointer names memory that lives as long as the value; all access through it is by raw copies, or by the kernel.
unsafe impl Send for Pages {}
// SAFETY: as above; the fields never change.
unsafe impl Sync for Pages {}

// SAFETY: `TapMemory::new` mapped `len` bytes readable and writable; they stay where they are until the value is dropped.
unsafe impl Mapping for Pages {
    fn base(&self) -> *mut u8 {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `TapMemory::new` with this length, and nobody holds a pointer past the value's life.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// One mapping, and the table through which rings translate.
pub(super) struct TapMemory {
    table: Arc<MemoryTable>,
    pages: Arc<Pages>,
    used_len: u64,
}

impl TapMemory {
    /// `len` bytes, all zero; pages come with their first use.
    ///
    /// # Errors
    /// What mmap says.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that anyone uses.
        let base =
            unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        let pages = Arc::new(Pages { base: base.cast(), len });
        let region = Region {
            guest_base: BASE,
            user_base: base as u64,
            len: len as u64,
            mapping: pages.clone(),
            mapping_offset: 0,
        };
        let table = MemoryTable::new(vec![region], None).map_err(io::Error::other)?;
        Ok(Self { table: Arc::new(table), pages, used_len: 0 })
    }

    /// Sets aside `len` bytes on pages of their own; returns the address of the first.
    ///
    /// # Errors
    /// There are not so many: a mistake in [`super::make_rings`].
    pub(super) fn take(&mut self, len: u64) -> io::Result<u64> {
        let start = self.used_len.next_multiple_of(4096);
        if start + len > self.pages.len as u64 {
            return Err(io::Error::other("the memory of a TAP port is too small for its rings"));
        }
        self.used_len = start + len;
        Ok(BASE + start)
    }

    /// The table.
    pub(super) fn table(&self) -> &Arc<MemoryTable> {
        &self.table
    }

    /// The process's own address of `addr`, as vhost-user names rings.
    pub(super) fn user_addr(&self, addr: u64) -> u64 {
        addr - BASE + self.pages.base as u64
    }

    /// Where the kernel finds the `len` bytes at `addr`; `None` if they are not all inside.
    pub(super) fn place(&self, addr: u64, len: usize) -> Option<*mut u8> {
        let at = usize::try_from(addr.checked_sub(BASE)?).ok()?;
        // SAFETY: inside the mapping, by the comparison in front.
        (at.checked_add(len)? <= self.pages.len).then(|| unsafe { self.pages.base.add(at) })
    }
}
