//! A transmit ring and its buffers.
//!
//! Owns the slots that frames are written into; one slot, one frame in flight. Whoever drives the queue asks for room,
//! writes slots and flushes once per batch. A slot keeps its bytes from one use to the next, so that a generator need only
//! write what changes.

use super::buffers::{Layout, PIECES_MAX};
use super::{GuestError, QueueError};
use crate::eventfd::EventFd;
use crate::memory::GuestMemory;
use crate::rings::RingPlace;
use crate::session::{Session, SessionError};
use avio_proto::mem::{GuestSlice, MemoryTable, RegionHint};
use avio_proto::ring::{DriverRing, Used};
use avio_proto::virtio::net::{HEADER_LEN, NetHeader};
use std::collections::VecDeque;
use std::sync::Arc;

/// Guest to switch.
pub struct TxQueue {
    ring: DriverRing,
    place: RingPlace,
    features: u64,
    kick: EventFd,
    call: EventFd,
    pool: Pool,
    /// Free slots, first in, first out as the ring's own entries: a slot then meets the same descriptor again, which need
    /// not be rewritten.
    free: VecDeque<u16>,
    /// Slot of the chain that the ring knows by this number.
    slot_of: Vec<u16>,
    used: Vec<Used>,
    tags: Vec<u32>,
    piece_len: usize,
    completed: u64,
    kicks: u64,
}

/// Where slots are.
#[derive(Debug)]
struct Pool {
    table: Arc<MemoryTable>,
    hint: RegionHint,
    base: u64,
    stride: usize,
    len: usize,
}

impl Pool {
    #[inline]
    fn slot(&mut self, index: u16) -> GuestSlice<'_> {
        let addr = self.addr(index);
        // The pool was allocated in one region, so this always finds it; an empty slice takes no bytes.
        self.table
            .prefix(&mut self.hint, addr, self.len)
            .unwrap_or_else(|| unreachable!("transmit slots lie in guest memory"))
    }

    #[inline]
    fn addr(&self, index: u16) -> u64 {
        self.base + u64::from(index) * self.stride as u64
    }
}

impl TxQueue {
    pub(super) fn new(
        memory: &mut GuestMemory,
        place: RingPlace,
        features: u64,
        layout: &Layout,
    ) -> Result<Self, GuestError> {
        let base = memory.alloc((layout.tx_stride * layout.tx_count) as u64, 4096)?;
        let pool = Pool {
            table: memory.table().clone(),
            hint: RegionHint::default(),
            base,
            stride: layout.tx_stride,
            len: layout.tx_len,
        };
        Ok(Self {
            ring: Self::fresh(&pool.table, &place, features)?,
            place,
            features,
            kick: EventFd::new()?,
            call: EventFd::new()?,
            pool,
            free: (0..layout.tx_count as u16).collect(),
            slot_of: vec![0; usize::from(place.layout.size)],
            used: vec![Used::default(); usize::from(place.layout.size)],
            tags: vec![0; layout.tx_count],
            piece_len: layout.tx_piece_len,
            completed: 0,
            kicks: 0,
        })
    }

    fn fresh(table: &Arc<MemoryTable>, place: &RingPlace, features: u64) -> Result<DriverRing, QueueError> {
        let mut ring = DriverRing::new(table.clone(), &place.layout, features)?;
        ring.disable_interrupts();
        Ok(ring)
    }

    /// Forgets everything in flight and starts at the ring's beginning.
    pub(super) fn reset(&mut self) -> Result<(), QueueError> {
        self.ring = Self::fresh(&self.pool.table, &self.place, self.features)?;
        self.free.clear();
        self.free.extend(0..self.tags.len() as u16);
        Ok(())
    }

    pub(super) fn start(&self, session: &mut Session, index: u32, base: u32) -> Result<(), SessionError> {
        session.start_ring(index, &self.place, base, &self.kick, &self.call)
    }

    /// How many frames may be pushed now. Takes back what the switch is done with if fewer than `want` slots are free.
    ///
    /// # Errors
    /// [`QueueError`] if the back-end broke the ring.
    #[inline]
    pub fn room(&mut self, want: usize) -> Result<usize, QueueError> {
        if self.free.len() < want {
            self.reclaim()?;
        }
        Ok(self.free.len())
    }

    /// Takes back what the switch is done with; returns how many frames that were.
    ///
    /// # Errors
    /// [`QueueError`] if the back-end broke the ring.
    pub fn reclaim(&mut self) -> Result<usize, QueueError> {
        let count = self.ring.poll_used(&mut self.used);
        for used in &self.used[..count] {
            let slot = self.slot_of[usize::from(used.token)];
            self.free.push_back(slot);
            // The switch has read them last; what is written next is mostly in the first two lines.
            let lines = self.pool.slot(slot);
            lines.prefetch_write();
            lines.sub(64, 1).prefetch_write();
        }
        self.completed += count as u64;
        match self.ring.error() {
            Some(error) => Err(error.into()),
            None => Ok(count),
        }
    }

    /// A free slot, to be filled and pushed; given back untouched if it is dropped.
    ///
    /// # Panics
    /// If [`TxQueue::room`] said 0.
    #[inline]
    pub fn slot(&mut self) -> TxSlot<'_> {
        let index = *self.free.front().expect("room() is asked before slot()");
        TxSlot { queue: self, index }
    }

    /// Copies one frame into a slot and pushes it; false if there is no room or the frame is too long.
    pub fn push(&mut self, header: &NetHeader, frame: &[u8]) -> bool {
        if self.free.is_empty() || frame.len() > self.frame_len_max() {
            return false;
        }
        let mut slot = self.slot();
        slot.set_header(header);
        slot.write(0, frame);
        slot.set_tag(0);
        slot.push(frame.len());
        true
    }

    /// Publishes what was pushed and kicks the switch if it wants that.
    #[inline]
    pub fn flush(&mut self) {
        if self.ring.publish() {
            self.kicks += 1;
            self.kick.signal();
        }
    }

    /// Longest frame in bytes.
    #[must_use]
    pub fn frame_len_max(&self) -> usize {
        self.pool.len - HEADER_LEN
    }

    /// Slots altogether: the most frames in flight.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.tags.len()
    }

    /// Frames that the switch has taken so far.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// Kicks sent so far.
    #[must_use]
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// Frames pushed and not yet taken back.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.tags.len() - self.free.len()
    }

    /// The ring, for tests that break its rules.
    pub fn ring(&mut self) -> &mut DriverRing {
        &mut self.ring
    }

    /// What the switch signals when it has taken frames and was asked to say so.
    #[must_use]
    pub fn call(&self) -> &EventFd {
        &self.call
    }
}

impl std::fmt::Debug for TxQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TxQueue")
            .field("place", &self.place)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// One slot of a [`TxQueue`].
#[derive(Debug)]
pub struct TxSlot<'q> {
    queue: &'q mut TxQueue,
    index: u16,
}

impl TxSlot<'_> {
    /// Its number; stable, below the number of slots.
    #[inline]
    #[must_use]
    pub fn index(&self) -> u32 {
        u32::from(self.index)
    }

    /// What the user noted about the bytes in this slot; 0 at first.
    #[inline]
    #[must_use]
    pub fn tag(&self) -> u32 {
        self.queue.tags[usize::from(self.index)]
    }

    /// Notes something about the bytes in this slot, kept until its next use.
    #[inline]
    pub fn set_tag(&mut self, tag: u32) {
        self.queue.tags[usize::from(self.index)] = tag;
    }

    /// Writes the virtio-net header.
    #[inline]
    pub fn set_header(&mut self, header: &NetHeader) {
        self.queue.pool.slot(self.index).write(0, &header.to_bytes());
    }

    /// Writes frame bytes at `offset`; what does not fit is cut.
    #[inline]
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.queue.pool.slot(self.index).sub(HEADER_LEN + offset, bytes.len()).copy_from(bytes);
    }

    /// Writes `N` frame bytes at `offset`; nothing if they do not fit. For short pieces: the length is known when compiling.
    #[inline]
    pub fn write_array<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) {
        self.queue.pool.slot(self.index).write(HEADER_LEN + offset, bytes);
    }

    /// Makes the first `frame_len` bytes available to the switch, with the next [`TxQueue::flush`].
    ///
    /// # Panics
    /// In debug builds, if the frame is longer than a slot.
    #[inline]
    pub fn push(self, frame_len: usize) {
        let TxSlot { queue, index } = self;
        let len = HEADER_LEN + frame_len;
        debug_assert!(len <= queue.pool.len);
        let addr = queue.pool.addr(index);
        let added = if len <= queue.piece_len {
            queue.ring.add(&[(addr, len as u32)], &[])
        } else {
            let mut pieces = [(0, 0); PIECES_MAX];
            let mut count = 0;
            let mut at = 0;
            while at < len && count < PIECES_MAX {
                let n = queue.piece_len.min(len - at);
                pieces[count] = (addr + at as u64, n as u32);
                (at, count) = (at + n, count + 1);
            }
            queue.ring.add(&pieces[..count], &[])
        };
        debug_assert!(added.is_some(), "there are no more slots than the ring has room for");
        if let Some(token) = added {
            queue.slot_of[usize::from(token)] = index;
            queue.free.pop_front();
        }
    }
}
