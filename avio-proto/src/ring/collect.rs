//! Batches of frames that came from no ring: from a network device's receive ring, a packet socket, a TAP.
//!
//! A port's receiving half fills a worker's arena through a [`Collector`], so that forwarding sees the same [`Batch`] whatever a frame came
//! from. The frames lie in memory of our own that is described by a [`MemoryTable`]; nothing here reads it.

use super::ChainArena;
use super::arena::{Batch, Buffer, ChainId};
use crate::mem::{MemoryTable, RegionHint};

/// Takes frames up into an arena.
pub struct Collector<'a> {
    arena: &'a mut ChainArena,
    memory: &'a MemoryTable,
    hint: RegionHint,
}

impl<'a> Collector<'a> {
    /// Forgets the arena's former batch; the frames to come lie in `memory`.
    #[inline]
    #[must_use]
    pub fn new(arena: &'a mut ChainArena, memory: &'a MemoryTable) -> Self {
        arena.clear(memory);
        Self { arena, memory, hint: RegionHint::default() }
    }

    /// Takes up one frame: its pieces as address in the table and length in bytes, in order, and the tag control information of an 802.1Q
    /// tag that the kernel took out of it. False, and nothing taken up: there are [`super::CHAINS_MAX`] frames already, or a piece is not
    /// in the table.
    #[inline]
    pub fn push(&mut self, pieces: impl IntoIterator<Item = (u64, u32)>, tag: Option<u16>) -> bool {
        if self.arena.count() >= super::CHAINS_MAX {
            return false;
        }
        let (segments, shape) = self.arena.next();
        let before = segments.count();
        segments.begin(shape);
        shape.id = ChainId::of_collected(tag);
        for (addr, len) in pieces {
            let buffer = Buffer { addr, len, writable: false, index: 0 };
            if segments.push(shape, self.memory, &mut self.hint, buffer).is_err() {
                segments.truncate(before);
                return false;
            }
        }
        self.arena.add();
        true
    }

    /// The frames taken up.
    #[inline]
    #[must_use]
    pub fn finish(self) -> Batch<'a> {
        Batch::new(self.arena)
    }
}
