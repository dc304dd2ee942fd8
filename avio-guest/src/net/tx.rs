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
    free: Fifo,
    /// Slot of the chain that the ring knows by this number.
    slot_of: Vec<u16>,
    /// A frame never takes more than one descriptor: each slot then keeps its own, `chain_of`.
    single: bool,
    /// Chain of each slot once it was used, else [`NO_CHAIN`].
    chain_of: Vec<u16>,
    used: Vec<Used>,
    tags: Vec<u32>,
    piece_len: usize,
    completed: u64,
    kicks: u64,
}

/// No chain has this number: a ring has at most 32,768.
const NO_CHAIN: u16 = u16::MAX;

/// Numbers in the order in which they came.
#[derive(Debug)]
struct Fifo {
    /// A power of two.
    places: Box<[u16]>,
    first: usize,
    count: usize,
}

impl Fifo {
    fn new(count_max: usize) -> Self {
        let places = vec![0; count_max.next_power_of_two()].into_boxed_slice();
        Self { places, first: 0, count: 0 }
    }

    fn fill(&mut self, numbers: std::ops::Range<u16>) {
        (self.first, self.count) = (0, 0);
        numbers.for_each(|number| self.push(number));
    }

    #[inline(always)]
    fn push(&mut self, number: u16) {
        let mask = self.places.len() - 1;
        self.places[(self.first + self.count) & mask] = number;
        self.count += 1;
    }

    #[inline(always)]
    fn front(&self) -> Option<u16> {
        (self.count > 0).then(|| self.places[self.first & (self.places.len() - 1)])
    }

    /// Takes the front away; there must be one.
    #[inline(always)]
    fn pop(&mut self) {
        self.first = (self.first + 1) & (self.places.len() - 1);
        self.count -= 1;
    }
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

    /// All of them, for writing many.
    #[inline]
    fn whole(&self, count: usize) -> GuestSlice<'_> {
        self.table
            .prefix(&mut RegionHint::default(), self.base, self.stride * count)
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
        let mut free = Fifo::new(layout.tx_count);
        free.fill(0..layout.tx_count as u16);
        Ok(Self {
            ring: Self::fresh(&pool.table, &place, features)?,
            place,
            features,
            kick: EventFd::new()?,
            call: EventFd::new()?,
            pool,
            free,
            slot_of: vec![0; usize::from(place.layout.size)],
            single: layout.tx_len <= layout.tx_piece_len,
            chain_of: vec![NO_CHAIN; layout.tx_count],
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
        self.free.fill(0..self.tags.len() as u16);
        self.chain_of.fill(NO_CHAIN);
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
        if self.free.count < want {
            self.reclaim()?;
        }
        Ok(self.free.count)
    }

    /// Takes back what the switch is done with; returns how many frames that were.
    ///
    /// # Errors
    /// [`QueueError`] if the back-end broke the ring.
    pub fn reclaim(&mut self) -> Result<usize, QueueError> {
        let count = if self.single {
            self.ring.take_used(&mut self.used)
        } else {
            self.ring.poll_used(&mut self.used)
        };
        let whole = self.pool.whole(self.tags.len());
        for used in &self.used[..count] {
            let slot = self.slot_of[usize::from(used.token)];
            self.free.push(slot);
            // The switch has read it last; what is written next is mostly in the first line.
            whole.sub(usize::from(slot) * self.pool.stride, 1).prefetch_write();
        }
        self.completed += count as u64;
        match self.ring.error() {
            Some(error) => Err(error.into()),
            None => Ok(count),
        }
    }

    /// Fills and pushes `count` free slots: `fill` writes each frame and returns its length in bytes. The switch sees them with
    /// the next [`TxQueue::flush`].
    ///
    /// # Panics
    /// If [`TxQueue::room`] said less, or (in debug builds) if a frame is longer than a slot.
    #[inline(always)]
    pub fn push_burst(&mut self, count: usize, mut fill: impl FnMut(&mut TxSlot<'_>) -> usize) {
        if !self.single {
            for _ in 0..count {
                let index = self.free.front().expect("room() is asked before push_burst()");
                let (memory, tag) = (self.pool.slot(index), &mut self.tags[usize::from(index)]);
                let frame_len = fill(&mut TxSlot { memory, tag, index });
                self.push_pieces(index, frame_len);
            }
            return;
        }
        let Self { ring, pool, free, slot_of, chain_of, tags, .. } = self;
        let whole = pool.whole(tags.len());
        for _ in 0..count {
            let index = free.front().expect("room() is asked before push_burst()");
            let at = usize::from(index);
            let memory = whole.sub(at * pool.stride, pool.len);
            let frame_len = fill(&mut TxSlot { memory, tag: &mut tags[at], index });
            debug_assert!(HEADER_LEN + frame_len <= pool.len);
            let buffer = (pool.addr(index), (HEADER_LEN + frame_len) as u32);
            let chain = match chain_of[at] {
                NO_CHAIN => ring.add(&[buffer], &[]),
                chain => ring.again(chain, buffer, false),
            };
            debug_assert!(chain.is_some(), "there are no more slots than the ring has room for");
            if let Some(chain) = chain {
                slot_of[usize::from(chain)] = index;
                chain_of[at] = chain;
                free.pop();
            }
        }
    }

    /// Copies one frame into a slot and pushes it; false if there is no room or the frame is too long.
    pub fn push(&mut self, header: &NetHeader, frame: &[u8]) -> bool {
        if self.free.count == 0 || frame.len() > self.frame_len_max() {
            return false;
        }
        self.push_burst(1, |slot| {
            slot.set_header(header);
            slot.write(0, frame);
            slot.set_tag(0);
            frame.len()
        });
        true
    }

    /// Pushes slot `index` in as many descriptors as its frame takes.
    fn push_pieces(&mut self, index: u16, frame_len: usize) {
        let (addr, len) = (self.pool.addr(index), HEADER_LEN + frame_len);
        debug_assert!(len <= self.pool.len);
        let mut pieces = [(0, 0); PIECES_MAX];
        let mut count = 0;
        let mut at = 0;
        while at < len && count < PIECES_MAX {
            let n = self.piece_len.min(len - at);
            pieces[count] = (addr + at as u64, n as u32);
            (at, count) = (at + n, count + 1);
        }
        let added = self.ring.add(&pieces[..count], &[]);
        debug_assert!(added.is_some(), "there are no more slots than the ring has room for");
        if let Some(token) = added {
            self.slot_of[usize::from(token)] = index;
            self.free.pop();
        }
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
        self.tags.len() - self.free.count
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

/// One slot of a [`TxQueue::push_burst`].
#[derive(Debug)]
pub struct TxSlot<'q> {
    memory: GuestSlice<'q>,
    tag: &'q mut u32,
    index: u16,
}

impl TxSlot<'_> {
    /// Its number; stable, below the number of slots.
    #[inline(always)]
    #[must_use]
    pub fn index(&self) -> u32 {
        u32::from(self.index)
    }

    /// What the user noted about the bytes in this slot; 0 at first.
    #[inline(always)]
    #[must_use]
    pub fn tag(&self) -> u32 {
        *self.tag
    }

    /// Notes something about the bytes in this slot, kept until its next use.
    #[inline(always)]
    pub fn set_tag(&mut self, tag: u32) {
        *self.tag = tag;
    }

    /// Writes the virtio-net header.
    #[inline]
    pub fn set_header(&mut self, header: &NetHeader) {
        self.memory.write(0, &header.to_bytes());
    }

    /// Writes frame bytes at `offset`; what does not fit is cut.
    #[inline]
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.memory.sub(HEADER_LEN + offset, bytes.len()).copy_from(bytes);
    }

    /// Writes `N` frame bytes at `offset`; nothing if they do not fit. For short pieces: the length is known when compiling.
    #[inline(always)]
    pub fn write_array<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) {
        self.memory.write(HEADER_LEN + offset, bytes);
    }
}
