//! Mapping what a front-end shares: guest memory, dirty log, in-flight region.
//!
//! Owns one mapping each, page-size safe (hugetlbfs wants offsets and lengths in its own pages), watched for SIGBUS from
//! its first to its last moment. Made on helper threads; unmapped on a helper thread, because tearing down a large guest's
//! page tables takes milliseconds.

#![expect(unsafe_code, reason = "mmap and munmap of memory that another process shares (DESIGN section 6)")]

use super::sigbus::{self, Watch};
use crate::blocking::Helpers;
use avio_proto::mem::Mapping;
use avio_proto::vhost_user::backend::MapRequest;
use rustix::fs::FileType;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::ptr;

/// Smallest page on x86-64.
const PAGE_LEN_MIN: u64 = 4096;
/// Largest page on x86-64 (hugetlbfs with 1 GiB pages).
const PAGE_LEN_MAX: u64 = 1 << 30;

/// What a huge page is on x86-64 that the kernel gives without being asked for its number.
const HUGE_LEN: usize = 2 << 20;

/// Memory mapped shared, readable and writable: exactly the bytes that were asked for, although more is mapped around them.
#[derive(Debug)]
pub struct SharedMapping {
    base: *mut u8,
    len: usize,
    mapped: Mapped,
}

/// The whole pages behind a [`SharedMapping`]. The watch ends before the pages go.
#[derive(Debug)]
struct Mapped {
    start: usize,
    len: usize,
    watch: Option<Watch>,
    helpers: Option<Helpers>,
}

// SAFETY: the pointer is to memory that any thread may reach; all access through it is by `avio_proto::mem`.
unsafe impl Send for SharedMapping {}
// SAFETY: as above; nothing in it changes after it was made.
unsafe impl Sync for SharedMapping {}

// SAFETY: mapped readable and writable in `map`, never moved, unmapped only when `mapped` is dropped; a truncated file is
// replaced in place by the SIGBUS handler.
unsafe impl Mapping for SharedMapping {
    fn base(&self) -> *mut u8 {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl SharedMapping {
    /// Maps what `request` describes. May block: helper threads only.
    ///
    /// # Errors
    /// What is wrong with the file, or what the system says, for the session's log line.
    pub fn map(request: &MapRequest, helpers: Option<Helpers>) -> Result<Self, String> {
        let (offset, len) = (request.offset, request.len);
        let stat = rustix::fs::fstat(&request.fd).map_err(|e| format!("fstat: {e}"))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if (stat.st_size as u64) < offset.saturating_add(len) => {
                return Err(format!(
                    "{len} bytes at offset {offset} lie beyond the end of the shared file ({} bytes)",
                    stat.st_size
                ));
            }
            FileType::RegularFile | FileType::CharacterDevice => {}
            other => return Err(format!("{other:?} instead of a file that can be shared as memory")),
        }
        // hugetlbfs reports its page size here; mmap wants offsets, munmap lengths, in multiples of it.
        let page = u64::try_from(stat.st_blksize).unwrap_or(PAGE_LEN_MIN);
        let page = if page.is_power_of_two() { page.clamp(PAGE_LEN_MIN, PAGE_LEN_MAX) } else { PAGE_LEN_MIN };
        let skip = offset % page;
        let whole = (skip + len).checked_next_multiple_of(page).ok_or("length overflows")? as usize;
        // SAFETY: a new mapping at an address that the kernel chooses changes no memory of ours.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                whole,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &request.fd,
                offset - skip,
            )
        }
        .map_err(|e| format!("mapping {len} bytes at offset {offset}: {e}"))?;
        let mut mapped = Mapped { start: start as usize, len: whole, watch: None, helpers };
        mapped.watch = Some(sigbus::watch(mapped.start, whole, page as usize)?);
        // A guest's memory does not belong in our core dumps. Only a courtesy: it may fail.
        // SAFETY: the range is the mapping made above, and this advice does not change its content.
        let _ = unsafe { rustix::mm::madvise(start, whole, Advice::LinuxDontDump) };
        // SAFETY: `skip + len <= whole`, so the result is inside the mapping.
        let base = unsafe { start.cast::<u8>().add(skip as usize) };
        Ok(Self { base, len: len as usize, mapped })
    }

    /// `len` zeroes (rounded up to whole pages) that no other process shares, in huge pages where the kernel has some: a guest that
    /// goes to and fro in them would otherwise wait for a page table walk at each access. Pages are taken when they are first
    /// written. For memory that serves as a medium; does not block.
    ///
    /// # Errors
    /// What the system says when the address space does not hold it.
    pub fn anonymous(len: u64) -> Result<Self, String> {
        let fail = |e: &dyn std::fmt::Display| format!("{len} bytes of memory: {e}");
        let bytes = usize::try_from(len).map_err(|e| fail(&e))?;
        // Begins at a huge page, so that no part of it is in small ones for that reason; what is in front stays unused.
        let whole = bytes
            .checked_next_multiple_of(PAGE_LEN_MIN as usize)
            .and_then(|whole| whole.checked_add(HUGE_LEN))
            .ok_or_else(|| fail(&"too many"))?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses changes no memory of ours.
        let start = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), whole, ProtFlags::READ | ProtFlags::WRITE, flags)
        }
        .map_err(|e| fail(&e))?;
        let mapped = Mapped { start: start as usize, len: whole, watch: None, helpers: None };
        for advice in [Advice::LinuxHugepage, Advice::LinuxDontDump] {
            // SAFETY: the range is the mapping made above; the advice does not change its content, and may be refused.
            let _ = unsafe { rustix::mm::madvise(start, whole, advice) };
        }
        let skip = mapped.start.next_multiple_of(HUGE_LEN) - mapped.start;
        // SAFETY: `skip` is less than the huge page that was added to the length.
        let base = unsafe { start.cast::<u8>().add(skip) };
        Ok(Self { base, len: bytes, mapped })
    }

    /// Whether the file behind it was truncated while in use: the guest's memory is then partly zeros of our own.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.mapped.watch.as_ref().is_some_and(Watch::has_failed)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let (start, len, watch) = (self.start, self.len, self.watch.take());
        let unmap = move || {
            drop(watch);
            // SAFETY: this is the mapping that `map` made, whole; its owner is being dropped, so nothing points into it.
            if let Err(error) = unsafe { rustix::mm::munmap(start as *mut c_void, len) } {
                tracing::error!("unmapping {len} bytes of guest memory: {error}");
            }
        };
        match self.helpers.take() {
            Some(helpers) => helpers.run(unmap),
            None => unmap(),
        }
    }
}
