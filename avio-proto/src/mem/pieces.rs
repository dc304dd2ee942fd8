//! Pieces of guest memory that outlive the batch they were found in: what the kernel reads or writes for a storage
//! request.
//!
//! Owns a reference to the table, so the pieces stay mapped as long as anybody can reach them. Filled by
//! [`crate::ring::HeldChains`], used by the storage target's I/O path on a worker's thread. It never touches guest memory
//! on its own.

#![expect(
    unsafe_code,
    reason = "keeps slices together with the table that keeps them mapped (DESIGN section 6)"
)]

use super::{GuestSlice, MemoryTable};
use std::sync::Arc;

/// A list of pieces, in order, and the table they lie in. Reused: clearing keeps the room.
#[derive(Default)]
pub struct GuestPieces {
    memory: Option<Arc<MemoryTable>>,
    pieces: Vec<GuestSlice<'static>>,
    len: usize,
}

// SAFETY: the pieces are addresses inside mappings that `memory` keeps; all access to them is by raw copies that are
// defined whoever else writes there, on whatever thread.
unsafe impl Send for GuestPieces {}
// SAFETY: as above.
unsafe impl Sync for GuestPieces {}

impl GuestPieces {
    /// No pieces.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the pieces and lets go of the table.
    #[inline]
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.memory = None;
        self.len = 0;
    }

    /// Takes over the `len` bytes of `pieces` that start `skip` bytes in, or fewer if there are no more. All pieces lie in
    /// `memory`; the caller is this crate's ring code, which found them there.
    pub(crate) fn fill(
        &mut self,
        memory: &Arc<MemoryTable>,
        pieces: &[GuestSlice<'_>],
        skip: usize,
        len: usize,
    ) {
        self.clear();
        self.memory = Some(Arc::clone(memory));
        let (mut skip, mut left) = (skip, len);
        for piece in pieces {
            if left == 0 {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let part = piece.sub(skip, left);
            skip = 0;
            left -= part.len();
            self.len += part.len();
            // SAFETY: `self.memory` keeps the table, hence the mapping, and `slices` hands them out under its borrow.
            self.pieces.push(unsafe { part.detach() });
        }
    }

    /// A region of `memory` as one list of pieces: for stores that are memory themselves. Empty if it is not all mapped.
    #[must_use]
    pub fn of_table(memory: &Arc<MemoryTable>, addr: u64, len: usize) -> Self {
        let mut list = Self::new();
        if let Some(piece) = memory.slice(&mut super::RegionHint::default(), addr, len) {
            list.fill(memory, &[piece], 0, len);
        }
        list
    }

    /// The pieces in order. Their layout is that of `struct iovec` (readv(2)): address, then length.
    #[inline]
    #[must_use]
    pub fn slices(&self) -> &[GuestSlice<'_>] {
        &self.pieces
    }

    /// Sum of the lengths, in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not a byte.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops the first `count` bytes: they have been transferred.
    pub fn advance(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len -= left;
        let mut whole = 0;
        for piece in &mut self.pieces {
            if left < piece.len() {
                *piece = piece.sub(left, usize::MAX);
                break;
            }
            left -= piece.len();
            whole += 1;
        }
        self.pieces.drain(..whole);
    }

    /// Whether each piece begins at a multiple of `align` (a power of two) and has a length that is one.
    #[inline]
    #[must_use]
    pub fn is_aligned(&self, align: usize) -> bool {
        let mask = align - 1;
        self.pieces.iter().all(|piece| (piece.as_ptr() as usize | piece.len()) & mask == 0)
    }

    /// Copies all bytes out into `to`, as far as it goes; returns how many.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in &self.pieces {
            done += piece.copy_to(&mut to[done..]);
        }
        done
    }

    /// Copies `from` into the pieces, as far as they go; returns how many bytes. Marks nothing in the dirty log.
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let mut done = 0;
        for piece in &self.pieces {
            done += piece.copy_from(&from[done..]);
        }
        done
    }

    /// Marks the first `len` bytes as written, if the guest is being migrated.
    #[inline]
    pub fn log_written(&self, len: usize) {
        let Some(memory) = self.memory.as_ref().filter(|memory| memory.log().is_some()) else { return };
        let mut left = len;
        for piece in &self.pieces {
            let part = left.min(piece.len());
            memory.log_slice(piece, part);
            left -= part;
        }
    }
}

impl std::fmt::Debug for GuestPieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GuestPieces({} bytes in {})", self.len, self.pieces.len())
    }
}
