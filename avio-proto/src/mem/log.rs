//! The dirty log of a guest that is being migrated (vhost-user "Migration", LOG_SHMFD).
//!
//! Owns the bitmap shared with the front-end: one bit per 4 KiB page of guest address space. Workers set bits after each
//! write into guest memory; nothing here ever clears one, that is the front-end's.

#![expect(
    unsafe_code,
    reason = "the bitmap is memory shared with another process (DESIGN section 6: guest memory)"
)]

use super::table::Mapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering, fence};

/// Bytes of guest memory that one bit stands for (VHOST_LOG_PAGE).
const PAGE_LEN: u64 = 4096;

/// A shared bitmap, one bit per page, bit `page % 8` of byte `page / 8`.
#[derive(Clone)]
pub struct DirtyLog {
    mapping: Arc<dyn Mapping>,
}

impl DirtyLog {
    /// Uses the whole of `mapping` as the bitmap.
    #[must_use]
    pub fn new(mapping: Arc<dyn Mapping>) -> Self {
        Self { mapping }
    }

    /// Marks every page that `len` bytes at guest address `addr` touch. Pages past the bitmap's end are ignored: the
    /// front-end sized it for all of its memory. Any thread.
    #[cold]
    pub fn mark(&self, addr: u64, len: u64) {
        if len == 0 {
            return;
        }
        // The bytes must be visible before the bit is looked at: the front-end clears a bit first and copies the page then,
        // so a bit that is seen set after this fence belongs to a copy that has not begun.
        fence(Ordering::SeqCst);
        let first = addr / PAGE_LEN;
        let last = addr.saturating_add(len - 1) / PAGE_LEN;
        let pages = (self.mapping.len() as u64).saturating_mul(8);
        for page in first..=last.min(pages.saturating_sub(1)) {
            let byte = (page / 8) as usize;
            if byte >= self.mapping.len() {
                return;
            }
            // SAFETY: `byte` is inside the mapping, which `self` keeps alive; an `AtomicU8` has no alignment to break
            // and the front-end clears bits with atomic operations too.
            let cell = unsafe { AtomicU8::from_ptr(self.mapping.base().add(byte)) };
            let bit = 1 << (page % 8);
            // A set bit is not set again: the line then stays shared between workers.
            if cell.load(Ordering::Relaxed) & bit == 0 {
                cell.fetch_or(bit, Ordering::Release);
            }
        }
    }
}

impl std::fmt::Debug for DirtyLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DirtyLog({} bytes)", self.mapping.len())
    }
}
