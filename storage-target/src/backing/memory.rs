//! `memory:SIZE`: anonymous memory shared by all workers.
//!
//! It is mapped like a guest's memory and touched by the same raw copies: guests may race on it as they may on a disk.

use std::sync::Arc;

use avio_host::session::SharedMapping;
use avio_proto::mem::{GuestPieces, GuestSlice, MemoryTable, Region, RegionHint};

/// Lines that are fetched for the next request while one is copied: 2 KiB. Until those are copied, the processor has seen where it goes on.
const PREFETCH_LINES: usize = 32;
/// Of those, lines that are fetched one request earlier: from them the processor sees what comes, and fetches on its own.
const EARLY_LINES: usize = 4;
/// Bytes of a cache line.
const LINE: usize = 64;

/// The store.
#[derive(Debug)]
pub struct MemoryStore(Arc<MemoryTable>);

impl MemoryStore {
    /// `size` zeroes. Pages are taken when they are first written, 2 MiB at a time where the kernel has such pages.
    ///
    /// # Errors
    /// When the address space does not hold them: what the kernel said.
    pub fn new(size: u64) -> Result<Self, String> {
        let mapping = Arc::new(SharedMapping::anonymous(size)?);
        let region = Region { guest_base: 0, user_base: 0, len: size, mapping, mapping_offset: 0 };
        let table = MemoryTable::new(vec![region], None).map_err(|e| e.to_string())?;
        Ok(Self(Arc::new(table)))
    }

    fn range(&self, offset: u64, len: usize) -> Option<GuestSlice<'_>> {
        self.0.slice(&mut RegionHint::default(), offset, len)
    }

    /// Copies from the store to a guest; `false` if the range is not all there.
    pub(super) fn read(&self, offset: u64, to: &GuestPieces) -> bool {
        let Some(range) = self.range(offset, to.len()) else { return false };
        let mut at = 0;
        for piece in to.slices() {
            at += piece.copy_from_guest(&range.sub(at, piece.len()));
        }
        true
    }

    /// Copies from a guest to the store.
    pub(super) fn write(&self, offset: u64, from: &GuestPieces) -> bool {
        let Some(range) = self.range(offset, from.len()) else { return false };
        let mut at = 0;
        for piece in from.slices() {
            at += range.sub(at, piece.len()).store_from_guest(piece);
        }
        true
    }

    /// Copies the `len` bytes of `pieces` that start `skip` bytes in to the store (`write`) or from it; `false` if the range is
    /// not all there.
    #[inline]
    pub(super) fn transfer(
        &self,
        write: bool,
        offset: u64,
        pieces: &[GuestSlice<'_>],
        mut skip: usize,
        len: usize,
    ) -> bool {
        let Some(range) = self.range(offset, len) else { return false };
        let mut at = 0;
        for piece in pieces {
            if at == len {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let part = piece.sub(skip, len - at);
            let own = range.sub(at, part.len());
            skip = 0;
            at += if write { own.store_from_guest(&part) } else { part.copy_from_guest(&own) };
        }
        at == len
    }

    /// Fetches the first bytes of a range that is read next (`turns` is 1) or later. Whoever asks for a range later asks for it as the
    /// next one, too.
    #[inline]
    pub(super) fn prefetch(&self, offset: u64, len: usize, turns: usize) {
        let Some(range) = self.range(offset, len) else { return };
        if turns > 1 {
            range.prefetch_read_lines(EARLY_LINES);
        } else {
            range.sub(EARLY_LINES * LINE, len).prefetch_read_lines(PREFETCH_LINES - EARLY_LINES);
        }
    }

    /// As [`read`](Self::read), to memory of ours.
    pub(super) fn read_own(&self, offset: u64, to: &mut [u8]) -> bool {
        self.range(offset, to.len()).is_some_and(|range| range.copy_to(to) == to.len())
    }

    /// As [`write`](Self::write), from memory of ours.
    pub(super) fn write_own(&self, offset: u64, from: &[u8]) -> bool {
        self.range(offset, from.len()).is_some_and(|range| range.copy_from(from) == from.len())
    }

    /// Zeroes a range.
    pub(super) fn zero(&self, offset: u64, len: u64) -> bool {
        static ZEROES: [u8; 65536] = [0; 65536];
        let Some(range) = usize::try_from(len).ok().and_then(|len| self.range(offset, len)) else {
            return false;
        };
        let mut at = 0;
        while at < range.len() {
            at += range.sub(at, ZEROES.len()).copy_from(&ZEROES);
        }
        true
    }
}
