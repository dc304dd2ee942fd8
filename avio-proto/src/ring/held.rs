//! Chains that are kept after their batch, until an answer to them is ready: storage requests.
//!
//! A worker has one store per request ring. Holding a chain copies the list of its pieces, not the bytes; the store holds
//! the memory table, so what it lists stays mapped until it is dropped. It knows nothing of devices.

#![expect(
    unsafe_code,
    reason = "keeps slices together with the table that keeps them mapped (DESIGN section 6)"
)]

use super::arena::{Batch, Chain, ChainId};
use super::device::DeviceRing;
use crate::mem::{GuestPieces, GuestSlice, MemoryTable};
use std::sync::Arc;

/// Pieces that a place keeps room for when its chain is released: a 1 MiB request of 4 KiB pages fits.
const ROOM_KEPT: usize = 272;

/// Names a held chain in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeldId(u16);

impl HeldId {
    /// A small number, below the store's size: an index into the device's own table.
    #[inline]
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The place numbered `index`; naming a place is no claim that a chain is in it.
    #[inline]
    #[must_use]
    pub fn from_index(index: u16) -> Self {
        Self(index)
    }
}

/// Which part of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What the driver wrote.
    Readable,
    /// What the device writes.
    Writable,
}

#[derive(Default)]
struct Place {
    id: ChainId,
    held: bool,
    pieces: Vec<GuestSlice<'static>>,
    readable_count: usize,
    readable_len: usize,
    writable_len: usize,
}

/// The held chains of one ring.
pub struct HeldChains {
    memory: Arc<MemoryTable>,
    places: Box<[Place]>,
    free: Vec<u16>,
}

// SAFETY: the pieces are addresses inside mappings that `memory` keeps; access to them is by raw copies only.
unsafe impl Send for HeldChains {}

impl HeldChains {
    /// Room for `count` chains (at most 32,768) of `ring`. Control thread.
    #[must_use]
    pub fn new(ring: &DeviceRing, count: u16) -> Self {
        Self {
            memory: Arc::clone(ring.memory()),
            places: (0..count).map(|_| Place::default()).collect(),
            free: (0..count).rev().collect(),
        }
    }

    /// Keeps the `i`th chain of `batch`. `None` when there is no room left (never with as many places as the ring has
    /// entries) or the batch is of another guest's ring.
    ///
    /// # Panics
    /// If `i >= batch.len()`.
    #[inline]
    pub fn hold(&mut self, batch: &Batch<'_>, i: usize) -> Option<HeldId> {
        if !std::ptr::eq(batch.table(), Arc::as_ptr(&self.memory)) {
            return None;
        }
        let index = self.free.pop()?;
        let chain = batch.chain(i);
        let place = &mut self.places[usize::from(index)];
        place.id = chain.id;
        place.held = true;
        place.readable_count = chain.readable.len();
        place.readable_len = chain.readable_len;
        place.writable_len = chain.writable_len;
        place.pieces.clear();
        let pieces = chain.readable.iter().chain(chain.writable);
        // SAFETY: the pieces lie in the table that `self.memory` keeps (compared above), and `chain` hands them out under
        // the store's borrow only.
        place.pieces.extend(pieces.map(|piece| unsafe { piece.detach() }));
        Some(HeldId(index))
    }

    /// A held chain.
    ///
    /// # Panics
    /// If `id` names a place outside the store.
    #[inline]
    #[must_use]
    pub fn chain(&self, id: HeldId) -> Chain<'_> {
        let place = &self.places[id.index()];
        let (readable, writable) = place.pieces.split_at(place.readable_count);
        Chain {
            id: place.id,
            readable,
            writable,
            readable_len: place.readable_len,
            writable_len: place.writable_len,
        }
    }

    /// Lists `len` bytes of one side, `skip` bytes in, for the kernel. `to` keeps the guest's memory mapped from then on.
    pub fn data(&self, id: HeldId, side: Side, skip: usize, len: usize, to: &mut GuestPieces) {
        let chain = self.chain(id);
        let pieces = match side {
            Side::Readable => chain.readable,
            Side::Writable => chain.writable,
        };
        to.fill(&self.memory, pieces, skip, len);
    }

    /// Lets go of a chain; returns what [`DeviceRing::complete`] wants. `None` if none is held there.
    #[inline]
    pub fn release(&mut self, id: HeldId) -> Option<ChainId> {
        let place = self.places.get_mut(id.index()).filter(|place| place.held)?;
        place.held = false;
        place.pieces.clear();
        place.pieces.shrink_to(ROOM_KEPT);
        let chain = place.id;
        self.free.push(id.0);
        Some(chain)
    }

    /// How many chains are held.
    #[inline]
    #[must_use]
    pub fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The table that the held chains lie in.
    #[must_use]
    pub fn memory(&self) -> &Arc<MemoryTable> {
        &self.memory
    }
}

impl std::fmt::Debug for HeldChains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeldChains({} of {})", self.count(), self.places.len())
    }
}
