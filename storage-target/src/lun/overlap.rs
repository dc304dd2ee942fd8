//! Ranges that COMPARE AND WRITE has for itself (SBC-4 5.3; DESIGN section 4, "LUN state").
//!
//! One table per logical unit, seen by every worker and adapter. Whoever starts an access looks here first: an overlapping
//! one waits until the fence is gone. Whoever raises a fence then waits for the overlapping accesses that had started
//! before. The good case, no fence at all, is one load.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A range of bytes that belongs to one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    id: u64,
    offset: u64,
    len: u64,
}

/// The fences of one logical unit.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Overlap {
    /// Locked by workers for the length of a look at a few ranges, never by control.
    fences: Mutex<Vec<Fence>>,
    next_id: AtomicU64,
    /// How many fences there are; a hint that is never too low for who must see it. Last: see [`Lun`](super::Lun).
    count: AtomicU32,
}

/// Whether two ranges share a byte. A range of no bytes shares none.
#[must_use]
pub fn overlaps(a: (u64, u64), b: (u64, u64)) -> bool {
    a.1 > 0 && b.1 > 0 && a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

impl Overlap {
    /// Raises a fence around `len` bytes at `offset`; `None` if another one is in the way. An access that another worker
    /// starts from now on sees it at the latest after that worker's next quiescent point.
    pub fn raise(&self, offset: u64, len: u64) -> Option<Fence> {
        let mut fences = self.lock();
        if fences.iter().any(|other| overlaps((other.offset, other.len), (offset, len))) {
            return None;
        }
        let fence = Fence { id: self.next_id.fetch_add(1, Ordering::Relaxed), offset, len };
        fences.push(fence);
        self.count.store(fences.len() as u32, Ordering::SeqCst);
        Some(fence)
    }

    /// Takes a fence away.
    pub fn lower(&self, fence: Fence) {
        let mut fences = self.lock();
        fences.retain(|other| other.id != fence.id);
        self.count.store(fences.len() as u32, Ordering::SeqCst);
    }

    /// Whether an access to `len` bytes at `offset` has to wait.
    #[inline]
    #[must_use]
    pub fn is_fenced(&self, offset: u64, len: u64) -> bool {
        self.count.load(Ordering::SeqCst) != 0 && self.is_fenced_slowly(offset, len)
    }

    #[cold]
    fn is_fenced_slowly(&self, offset: u64, len: u64) -> bool {
        self.lock().iter().any(|fence| overlaps((fence.offset, fence.len), (offset, len)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Fence>> {
        self.fences.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_stops_what_it_overlaps_and_nothing_else() {
        let overlap = Overlap::default();
        let fence = overlap.raise(1024, 512).unwrap();
        assert!(overlap.is_fenced(1535, 1) && overlap.is_fenced(0, 1025) && overlap.is_fenced(0, u64::MAX));
        assert!(!overlap.is_fenced(1536, 512) && !overlap.is_fenced(0, 1024) && !overlap.is_fenced(1100, 0));
        assert!(overlap.raise(1535, 10).is_none(), "one at a time");
        let other = overlap.raise(1536, 10).unwrap();
        overlap.lower(fence);
        assert!(!overlap.is_fenced(1024, 512) && overlap.is_fenced(1540, 1));
        overlap.lower(other);
        assert!(!overlap.is_fenced(0, u64::MAX));
    }

    #[test]
    fn ranges_at_the_end_of_the_address_space_do_not_wrap() {
        assert!(overlaps((u64::MAX - 1, 5), (u64::MAX - 3, 4)));
        assert!(!overlaps((0, 10), (u64::MAX, 5)));
    }
}
