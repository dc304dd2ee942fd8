//! What split and packed rings have in common on the device side: the parts that a ring needs whatever its layout, and
//! the trait that the two layouts fill in.
//!
//! `DeviceRing` picks the layout once per call and runs the loops of this file monomorphised for it.

use super::arena::{Batch, ChainArena, ChainId, Segments, Shape, Stop};
use super::{CHAINS_MAX, RingError, RingSetup};
use crate::mem::{GuestSlice, MemoryTable, RegionHint};
use crate::virtio::features::{IN_ORDER, NET_MRG_RXBUF};
use crate::virtio::net::header_len;
use std::sync::Arc;

/// A used element that waits for publication.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Staged {
    /// Its number, and how far it moves the used position: 1 or, in order, the chains of a batch (split); descriptors
    /// (packed).
    pub chain: ChainId,
    /// Bytes written by the device.
    pub len: u32,
}

/// One ring layout, device side.
pub(super) trait Queue {
    /// Where the next available chain is looked for; what a rollback restores.
    type Position: Copy;

    fn position(&self) -> Self::Position;
    fn rewind(&mut self, to: Self::Position);
    /// Looks for available chains with one acquiring load where the layout has an index; returns at most `max_count`, and no
    /// fewer than are there. Starts fetching what the walk will read.
    fn refresh(&mut self, memory: &MemoryTable, max_count: usize) -> Result<usize, RingError>;
    /// Takes the next available chain, appends its pieces to `out` and describes it in `shape`; false = there is none.
    /// Leaves the position alone unless it took one.
    fn next(
        &mut self,
        memory: &MemoryTable,
        hint: &mut RegionHint,
        out: &mut Segments,
        shape: &mut Shape,
    ) -> Result<bool, Stop>;
    /// Takes the next available chain if it is the usual one: a single descriptor for the device to write (or, without
    /// `WRITABLE`, to read) of at least `least` bytes, more than 0, all in one region. Anything else, a broken rule included,
    /// is left to `next`.
    fn next_single<'m, const WRITABLE: bool>(
        &mut self,
        memory: &'m MemoryTable,
        hint: &mut RegionHint,
        least: usize,
    ) -> Option<(ChainId, GuestSlice<'m>)>;
    /// Fetches the first `lines` cache lines of the buffer that is `ahead` chains behind the next one, for writing. May do
    /// nothing.
    fn prefetch_ahead(&self, memory: &MemoryTable, hint: &mut RegionHint, ahead: u16, lines: usize);
    /// Fetches what `publish` of `count` chains will write, for writing. May do nothing.
    fn prefetch_used(&self, count: usize);
    /// Publishes used elements at once; true = the driver wants a notification.
    fn publish(&mut self, memory: &MemoryTable, staged: &[Staged]) -> bool;
    /// Fetches what the next `refresh` and the walk of the chains behind it read first.
    fn fetch(&self);
    fn has_work(&self) -> bool;
    fn enable_notifications(&mut self, memory: &MemoryTable) -> bool;
    fn disable_notifications(&mut self, memory: &MemoryTable);
    fn base(&self) -> u32;
}

/// The layout-independent part of a device ring.
pub(super) struct Core {
    /// Keeps everything mapped that the ring's areas and segments point at.
    pub memory: Arc<MemoryTable>,
    pub hint: RegionHint,
    /// Set once the driver broke a rule; from then on nothing is taken.
    pub broken: Option<RingError>,
    pub in_order: bool,
    pub mergeable: bool,
    /// Bytes of the virtio-net header in front of each frame.
    pub header_len: usize,
    /// Pieces of the frame being delivered.
    pub frame: Segments,
    pub staging: Staging,
    /// Chains of the last `take`.
    taken: [ChainId; CHAINS_MAX],
    taken_count: usize,
}

/// What is used and not yet published.
pub(super) struct Staging {
    /// One place per ring entry: a ring never has more chains out than that.
    staged: Box<[Staged]>,
    staged_count: usize,
    /// Chains that the staged elements stand for.
    staged_chains: usize,
    /// Chains taken or reserved and not yet published as used.
    pub pending_count: usize,
}

impl Staging {
    /// Stages one element that stands for `chains` chains.
    #[inline(always)]
    pub fn stage(&mut self, element: Staged, chains: usize) {
        // A driver cannot make it overflow, only a caller that completes a chain twice: that one is not published.
        debug_assert!(self.staged_count < self.staged.len(), "a chain was completed twice");
        if let Some(place) = self.staged.get_mut(self.staged_count) {
            *place = element;
            self.staged_count += 1;
            self.staged_chains += chains;
        }
    }

    /// Stages each of `chains` as used with nothing written.
    #[inline]
    fn stage_all(&mut self, chains: &[ChainId]) {
        let places = self.staged.get_mut(self.staged_count..).unwrap_or_default();
        debug_assert!(places.len() >= chains.len(), "a chain was completed twice");
        let count = places.len().min(chains.len());
        for (place, &chain) in places.iter_mut().zip(chains) {
            *place = Staged { chain, len: 0 };
        }
        self.staged_count += count;
        self.staged_chains += count;
    }

    /// What is staged now, for [`Staging::unstage`].
    #[inline]
    pub fn mark(&self) -> (usize, usize) {
        (self.staged_count, self.staged_chains)
    }

    /// Drops what was staged after `mark`; its chains are no longer pending.
    #[inline]
    pub fn unstage(&mut self, mark: (usize, usize)) {
        self.pending_count = self.pending_count.saturating_sub(self.staged_chains - mark.1);
        (self.staged_count, self.staged_chains) = mark;
    }
}

impl Core {
    pub fn new(memory: Arc<MemoryTable>, setup: &RingSetup) -> Self {
        Self {
            memory,
            hint: RegionHint::default(),
            broken: None,
            in_order: setup.features & IN_ORDER != 0,
            mergeable: setup.features & NET_MRG_RXBUF != 0,
            header_len: header_len(setup.features),
            frame: Segments::for_delivery(),
            staging: Staging {
                staged: vec![Staged::default(); usize::from(setup.size)].into_boxed_slice(),
                staged_count: 0,
                staged_chains: 0,
                pending_count: 0,
            },
            taken: [ChainId::default(); CHAINS_MAX],
            taken_count: 0,
        }
    }

    pub fn take<'a>(
        &'a mut self,
        queue: &mut impl Queue,
        arena: &'a mut ChainArena,
        max_count: usize,
    ) -> Result<Batch<'a>, RingError> {
        arena.clear(&self.memory);
        self.taken_count = 0;
        if let Some(error) = self.broken {
            return Err(error);
        }
        let count =
            queue.refresh(&self.memory, max_count.min(CHAINS_MAX)).map_err(|error| self.fail(error))?;
        queue.prefetch_used(count);
        for _ in 0..count {
            let (segments, shape) = arena.next();
            if segments.has_room()
                && let Some((id, piece)) = queue.next_single::<false>(&self.memory, &mut self.hint, 1)
            {
                // Its first two lines: a 64-byte frame behind its header reaches into the second.
                piece.prefetch_read();
                piece.prefetch_second();
                segments.push_readable(shape, id, piece);
                let at = arena.count();
                self.taken[at] = id;
                arena.add();
                continue;
            }
            match self.take_one(queue, arena) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Err(error),
            }
        }
        self.taken_count = arena.count();
        self.staging.pending_count += arena.count();
        Ok(Batch::new(arena))
    }

    /// Takes a chain of any kind; false = the batch ends before it.
    #[inline(never)]
    fn take_one(&mut self, queue: &mut impl Queue, arena: &mut ChainArena) -> Result<bool, RingError> {
        let (segments, shape) = arena.next();
        let filled = segments.count();
        match queue.next(&self.memory, &mut self.hint, segments, shape) {
            Ok(true) => {
                segments.prefetch(filled);
                let count = arena.count();
                self.taken[count] = arena.add();
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(stop) => {
                arena.segments.truncate(filled);
                match stop {
                    Stop::Full if arena.count() > 0 => {}
                    Stop::Full => return Err(self.fail(RingError::ChainTooLong)),
                    Stop::Bad(error) if arena.count() == 0 => return Err(self.fail(error)),
                    Stop::Bad(error) => self.broken = Some(error),
                }
                Ok(false)
            }
        }
    }

    fn fail(&mut self, error: RingError) -> RingError {
        self.broken = Some(error);
        error
    }

    pub fn complete_taken(&mut self) {
        let taken = &self.taken[..std::mem::take(&mut self.taken_count)];
        let Some(last) = taken.last() else { return };
        if self.in_order {
            // One element with the last chain's number stands for the batch; the device then skips forward by the batch
            // (virtio 1.3 §2.7.9, §2.8.9).
            let slots = taken.iter().map(|chain| chain.slots()).sum();
            self.staging.stage(Staged { chain: ChainId::new(last.number(), slots), len: 0 }, taken.len());
            return;
        }
        self.staging.stage_all(taken);
    }

    #[inline]
    pub fn complete(&mut self, chain: ChainId, written: u32) {
        self.staging.stage(Staged { chain, len: written }, 1);
    }

    #[inline]
    pub fn complete_all(&mut self, chains: &[(ChainId, u32)]) {
        let staging = &mut self.staging;
        let places = staging.staged.get_mut(staging.staged_count..).unwrap_or_default();
        debug_assert!(places.len() >= chains.len(), "a chain was completed twice");
        let count = places.len().min(chains.len());
        for (place, &(chain, len)) in places.iter_mut().zip(chains) {
            *place = Staged { chain, len };
        }
        staging.staged_count += count;
        staging.staged_chains += count;
    }

    #[inline]
    pub fn publish(&mut self, queue: &mut impl Queue) -> bool {
        let staging = &mut self.staging;
        if staging.staged_count == 0 {
            return false;
        }
        let notify = queue.publish(&self.memory, &staging.staged[..staging.staged_count]);
        staging.pending_count = staging.pending_count.saturating_sub(staging.staged_chains);
        staging.staged_count = 0;
        staging.staged_chains = 0;
        notify
    }
}
