//! The guest's memory: an anonymous shared file, mapped once, that the back-end maps too.
//!
//! Owns the file descriptor and the mapping; [`crate::GuestMemory`] decides what lies where. It never looks at the
//! contents, and nothing outside this file maps anything.

#![expect(unsafe_code, reason = "mmap of the guest's memory (DESIGN section 6: avio-guest's mappings)")]

use avio_proto::mem::Mapping;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;

/// Bytes of a huge page.
const HUGE_PAGE_LEN: usize = 2 << 20;

/// A memfd of fixed length, mapped shared, readable and writable; unmapped when dropped.
#[derive(Debug)]
pub struct MemfdMapping {
    fd: OwnedFd,
    base: *mut u8,
    len: usize,
}

// SAFETY: the pointer names memory that lives as long as the value; all access through it is by raw copies that are
// defined for memory that others change meanwhile.
unsafe impl Send for MemfdMapping {}
// SAFETY: as above; the fields never change.
unsafe impl Sync for MemfdMapping {}

impl MemfdMapping {
    /// Creates and maps `len` bytes (more than 0, rounded up by the kernel to whole pages), all zero.
    ///
    /// # Errors
    /// What memfd_create, ftruncate or mmap say.
    pub fn new(name: &str, len: usize) -> io::Result<Self> {
        Self::with_flags(name, len, MemfdFlags::CLOEXEC)
    }

    /// The same in pages of 2 MiB, of which the system must have set enough aside (`/proc/sys/vm/nr_hugepages`); `len` is rounded up
    /// to whole ones.
    ///
    /// # Errors
    /// As [`MemfdMapping::new`]; mmap says ENOMEM when there are too few.
    pub fn huge(name: &str, len: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        Self::with_flags(name, len.next_multiple_of(HUGE_PAGE_LEN), flags)
    }

    fn with_flags(name: &str, len: usize, flags: MemfdFlags) -> io::Result<Self> {
        let fd = memfd_create(name, flags)?;
        ftruncate(&fd, len as u64)?;
        // POPULATE: page faults belong before the traffic, not into the first lap of a ring.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that anyone uses.
        let base = unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags, &fd, 0)? };
        Ok(Self { fd, base: base.cast(), len })
    }

    /// The file, to be passed to the back-end with the memory table.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for MemfdMapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody holds a pointer past the value's life. An error would mean
        // that the arguments are wrong; there is nothing to do about it here.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

// SAFETY: `new` mapped `len` bytes readable and writable; they stay where they are until the value is dropped.
unsafe impl Mapping for MemfdMapping {
    fn base(&self) -> *mut u8 {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }
}
