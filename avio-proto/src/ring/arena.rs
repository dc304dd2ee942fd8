//! Where the chains of one batch are put: translated, checked, in the order in which they were made available.
//!
//! A worker owns one arena and lends it to each source ring in turn; a receive ring has a small one of its own for the
//! buffers of the frame being written. Nothing here reads guest memory except to prefetch it.

#![expect(unsafe_code, reason = "keeps slices between two calls without their lifetime (DESIGN section 6)")]

use super::RingError;
use crate::mem::{GuestSlice, MemoryTable, RegionHint, prefetch};

/// Most chains in one batch. DESIGN section 3 works in batches of up to 64: enough to spread the cost of one publication,
/// few enough to stay in the first-level cache and to keep the wait of the next ring short.
pub const CHAINS_MAX: usize = 64;

/// Most pieces of guest memory in one batch. A chain of 1,024 descriptors (the longest that QEMU's devices take, so the
/// longest that drivers are used to) fits twice over even if half of its buffers straddle two regions. When the next chain does
/// not fit behind others, the batch ends before it; a chain that alone does not fit is refused as too long.
pub const SEGMENTS_MAX: usize = 2048;

/// Most pieces that one frame may take in a receive ring. 64 KiB in buffers of 128 bytes, below which no driver goes.
const DELIVERY_SEGMENTS_MAX: usize = 512;

/// Most descriptors in one indirect table. The standard allows as many as the ring has entries, Linux makes more when
/// the ring is small, and QEMU's devices take up to 1,024 whatever the ring's size: so do we.
pub(super) const INDIRECT_MAX: usize = 1024;

/// Names a taken chain until it is completed.
///
/// One word, not two fields: written as two halves and copied as one, it would wait for the store buffer each time.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ChainId(u32);

impl ChainId {
    /// `number` is the head descriptor (split) or the buffer ID (packed); `slots` the entries that the chain takes in
    /// the ring: 1 in a split ring's available ring, its descriptors in a packed one.
    #[inline(always)]
    pub(super) fn new(number: u16, slots: u16) -> Self {
        Self(u32::from(number) | u32::from(slots) << 16)
    }

    /// The number under which the driver knows the chain: head descriptor index (split, below the ring size) or buffer
    /// ID (packed, any value the driver chose).
    #[inline]
    #[must_use]
    pub fn number(&self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    pub(super) fn slots(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

impl std::fmt::Debug for ChainId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChainId({}, {} slots)", self.number(), self.slots())
    }
}

impl ChainId {
    /// `slots` of a collected frame without a tag, and of one with: more than any ring has.
    const UNTAGGED: u16 = 0xfffe;
    const TAGGED: u16 = 0xffff;

    /// Of a frame that no ring has to be told of ([`super::Collector`]).
    #[inline(always)]
    pub(super) fn of_collected(tag: Option<u16>) -> Self {
        tag.map_or(Self::new(0, Self::UNTAGGED), |tci| Self::new(tci, Self::TAGGED))
    }

    /// The tag control information that the frame was collected with.
    #[inline]
    #[must_use]
    pub fn collected_tag(self) -> Option<u16> {
        (self.slots() == Self::TAGGED).then(|| self.number())
    }
}

/// One chain: what the device may read, then what it may write. Descriptors of length 0 leave no slice; a buffer that
/// spans neighbouring regions leaves several.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a> {
    /// For [`super::DeviceRing::complete`].
    pub id: ChainId,
    /// Written by the driver, in order.
    pub readable: &'a [GuestSlice<'a>],
    /// To be written by the device, in order.
    pub writable: &'a [GuestSlice<'a>],
    /// Sum of the readable lengths in bytes.
    pub readable_len: usize,
    /// Sum of the writable lengths in bytes.
    pub writable_len: usize,
}

/// Why a walk ended before its chain did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// No room for another piece.
    Full,
    /// The driver broke a rule.
    Bad(RingError),
}

impl Stop {
    /// For a walk that has the whole arena for itself.
    pub fn error(self) -> RingError {
        match self {
            Stop::Full => RingError::ChainTooLong,
            Stop::Bad(error) => error,
        }
    }
}

/// What a chain amounts to; its pieces lie in [`Segments`] from `first` on, readable ones before writable ones.
///
/// Filled in place: passed by value it is stored in small pieces and loaded again in large ones at once, which the
/// processor's store buffer cannot forward, and that cost a third of the whole walk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    pub id: ChainId,
    pub first: u32,
    pub readable_count: u32,
    pub writable_count: u32,
    pub readable_len: usize,
    pub writable_len: usize,
}

const _: () = assert!(size_of::<Shape>() == 32, "two chains a cache line");

/// A bounded list of translated pieces of guest memory.
pub(super) struct Segments {
    slots: Box<[GuestSlice<'static>]>,
    count: usize,
    /// Descriptors of length 0 since it was cleared. They leave no piece, but cost the walk as much as one.
    empty_count: usize,
}

// SAFETY: the slices are only handed out under a lifetime for which their table is held; until then they are just
// addresses, which any thread may keep.
unsafe impl Send for Segments {}
// SAFETY: as above.
unsafe impl Sync for Segments {}

impl Segments {
    fn new(count_max: usize) -> Self {
        Self { slots: vec![GuestSlice::NONE; count_max].into_boxed_slice(), count: 0, empty_count: 0 }
    }

    /// The list that a receive ring needs for one frame.
    pub fn for_delivery() -> Self {
        Self::new(DELIVERY_SEGMENTS_MAX)
    }

    #[inline]
    pub fn clear(&mut self) {
        self.count = 0;
        self.empty_count = 0;
    }

    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Forgets the pieces behind the first `count`.
    #[inline]
    pub fn truncate(&mut self, count: usize) {
        self.count = count;
    }

    /// Fetches the start of piece `index`, if there is one: its first two lines, since a 64-byte frame behind its header
    /// reaches into the second.
    #[inline(always)]
    pub fn prefetch(&self, index: usize) {
        if index < self.count {
            let piece = &self.slots[index];
            prefetch(piece.as_ptr());
            // The header of a disk's request does not: the line behind it is another request's, which its driver's core has.
            if piece.len() > 64 - piece.as_ptr() as usize % 64 {
                prefetch(piece.as_ptr().wrapping_add(64));
            }
        }
    }

    /// `count` pieces from number `from` on.
    #[inline]
    pub fn get(&self, from: usize, count: usize) -> &[GuestSlice<'_>] {
        &self.slots[from..from + count]
    }

    /// Starts a chain behind what is there.
    #[inline(always)]
    pub fn begin(&self, shape: &mut Shape) {
        // Far below 2^32: `count` is at most `SEGMENTS_MAX`.
        shape.first = self.count as u32;
        shape.readable_count = 0;
        shape.writable_count = 0;
        shape.readable_len = 0;
        shape.writable_len = 0;
    }

    /// Whether another piece fits.
    #[inline(always)]
    pub fn has_room(&self) -> bool {
        self.count < self.slots.len()
    }

    /// Puts down a chain of one readable piece. There must be room.
    #[inline(always)]
    pub fn push_readable(&mut self, shape: &mut Shape, id: ChainId, piece: GuestSlice<'_>) {
        // SAFETY: as in `push`.
        self.slots[self.count] = unsafe { piece.detach() };
        *shape = Shape {
            id,
            first: self.count as u32,
            readable_count: 1,
            writable_count: 0,
            readable_len: piece.len(),
            writable_len: 0,
        };
        self.count += 1;
    }

    /// Translates one buffer and appends it to the chain `shape`. `index` names the descriptor in errors.
    #[inline(always)]
    pub fn push(
        &mut self,
        shape: &mut Shape,
        memory: &MemoryTable,
        hint: &mut RegionHint,
        buffer: Buffer,
    ) -> Result<(), Stop> {
        let len = buffer.len as usize;
        if buffer.writable {
            shape.writable_len += len;
        } else {
            // Readable buffers come first (virtio 1.3 §2.7.4.2 and §2.8.17).
            if shape.writable_len != 0 {
                return Err(Stop::Bad(RingError::BadDescriptor(buffer.index)));
            }
            shape.readable_len += len;
        }
        if len == 0 {
            return self.pass_empty();
        }
        let piece = memory.prefix(hint, buffer.addr, len).ok_or(Stop::Bad(RingError::BadBuffer))?;
        let slot = self.slots.get_mut(self.count).ok_or(Stop::Full)?;
        // SAFETY: `get` ties the slice to the arena's borrow, and every caller keeps the table alive that long: a batch
        // borrows its ring, which holds it in an `Arc`; a delivery does the same.
        *slot = unsafe { piece.detach() };
        self.count += 1;
        let mut pieces: u32 = 1;
        if piece.len() != len {
            pieces += self.push_rest(memory, hint, buffer, piece.len())?;
        }
        if buffer.writable {
            shape.writable_count += pieces;
        } else {
            shape.readable_count += pieces;
        }
        Ok(())
    }

    /// Goes on with the chain `shape`, buffer after buffer, what changes kept in registers.
    #[inline(always)]
    pub fn run(&mut self, shape: &Shape) -> Run<'_> {
        let Self { slots, count, .. } = self;
        Run { slots, first: *count, at: *count, count, len: 0, writable: shape.writable_len != 0 }
    }

    /// A descriptor of length 0: no piece, but as many are walked as there could be pieces, and no more. Else 64 heads that
    /// name one chain of 32,768 of them keep a worker for tens of milliseconds.
    #[cold]
    fn pass_empty(&mut self) -> Result<(), Stop> {
        self.empty_count += 1;
        if self.empty_count > self.slots.len() { Err(Stop::Full) } else { Ok(()) }
    }

    /// The part of a buffer that lies in the regions behind its first one; returns how many pieces that took.
    #[cold]
    fn push_rest(
        &mut self,
        memory: &MemoryTable,
        hint: &mut RegionHint,
        buffer: Buffer,
        mut done: usize,
    ) -> Result<u32, Stop> {
        let mut pieces = 0;
        while done < buffer.len as usize {
            let addr = buffer.addr.checked_add(done as u64).ok_or(Stop::Bad(RingError::BadBuffer))?;
            let piece = memory
                .prefix(hint, addr, buffer.len as usize - done)
                .ok_or(Stop::Bad(RingError::BadBuffer))?;
            let slot = self.slots.get_mut(self.count).ok_or(Stop::Full)?;
            // SAFETY: as in `push`.
            *slot = unsafe { piece.detach() };
            self.count += 1;
            done += piece.len();
            pieces += 1;
        }
        Ok(pieces)
    }
}

/// Ordinary buffers of one chain being put down: those that came last and go in the same direction. They count with [`Run::end`].
pub(super) struct Run<'a> {
    slots: &'a mut [GuestSlice<'static>],
    first: usize,
    at: usize,
    count: &'a mut usize,
    len: usize,
    writable: bool,
}

impl Run<'_> {
    /// Appends a buffer that is one piece; false, and nothing happened, if [`Segments::push`] has to say what is wrong with it.
    #[inline(always)]
    pub fn push(&mut self, shape: &mut Shape, piece: GuestSlice<'_>, writable: bool) -> bool {
        if piece.is_empty() {
            return false;
        }
        if writable != self.writable {
            // Readable buffers come first (virtio 1.3 §2.7.4.2 and §2.8.17).
            if self.writable {
                return false;
            }
            self.settle(shape);
            (self.first, self.len, self.writable) = (self.at, 0, true);
        }
        let Some(slot) = self.slots.get_mut(self.at) else { return false };
        // SAFETY: as in `Segments::push`.
        *slot = unsafe { piece.detach() };
        self.at += 1;
        self.len += piece.len();
        true
    }

    #[inline(always)]
    fn settle(&self, shape: &mut Shape) {
        let count = (self.at - self.first) as u32;
        if self.writable {
            shape.writable_count += count;
            shape.writable_len += self.len;
        } else {
            shape.readable_count += count;
            shape.readable_len += self.len;
        }
    }

    /// What was appended is part of the chain.
    #[inline(always)]
    pub fn end(self, shape: &mut Shape) {
        self.settle(shape);
        *self.count = self.at;
    }
}

/// One buffer as a descriptor names it.
#[derive(Clone, Copy)]
pub(super) struct Buffer {
    pub addr: u64,
    pub len: u32,
    pub writable: bool,
    /// Ring descriptor to blame when it is bad.
    pub index: u16,
}

/// Scratch space of one worker for the chains of one batch; allocated once.
pub struct ChainArena {
    pub(super) segments: Segments,
    chains: Box<[Shape]>,
    count: usize,
    /// The table of the ring that was last taken from: only compared, never followed.
    table: *const MemoryTable,
}

// SAFETY: `table` is never followed, and `segments` may move.
unsafe impl Send for ChainArena {}
// SAFETY: as above.
unsafe impl Sync for ChainArena {}

impl Default for ChainArena {
    fn default() -> Self {
        Self::new()
    }
}

impl ChainArena {
    /// An empty arena with room for [`CHAINS_MAX`] chains and [`SEGMENTS_MAX`] pieces (about 37 KiB).
    #[must_use]
    pub fn new() -> Self {
        Self {
            segments: Segments::new(SEGMENTS_MAX),
            chains: vec![Shape::default(); CHAINS_MAX].into_boxed_slice(),
            count: 0,
            table: std::ptr::null(),
        }
    }

    /// Forgets the last batch; the next one is of a ring in `table`.
    #[inline]
    pub(super) fn clear(&mut self, table: &MemoryTable) {
        self.segments.clear();
        self.count = 0;
        self.table = table;
    }

    /// A batch without chains, for a delivery of bytes that came from no ring.
    pub fn take_nothing(&mut self) -> Batch<'_> {
        self.segments.clear();
        self.count = 0;
        self.table = std::ptr::null();
        Batch::new(self)
    }

    /// The list of pieces, and the place for the chain that comes next; it counts once `add` is called. Callers stay below
    /// [`CHAINS_MAX`].
    #[inline(always)]
    pub(super) fn next(&mut self) -> (&mut Segments, &mut Shape) {
        (&mut self.segments, &mut self.chains[self.count])
    }

    /// Counts the chain that was put in the place given by `next`; returns its number.
    #[inline(always)]
    pub(super) fn add(&mut self) -> ChainId {
        self.count += 1;
        self.chains[self.count - 1].id
    }

    #[inline]
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

/// Chains taken from a source ring in one go, in the order in which they were made available.
pub struct Batch<'a> {
    arena: &'a ChainArena,
}

impl<'a> Batch<'a> {
    #[inline]
    pub(super) fn new(arena: &'a ChainArena) -> Self {
        Self { arena }
    }

    /// How many chains; at most [`CHAINS_MAX`].
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.arena.count
    }

    /// Whether nothing was available.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The table that the chains lie in, to compare with.
    #[inline]
    pub(super) fn table(&self) -> *const MemoryTable {
        self.arena.table
    }

    /// The `i`th chain.
    ///
    /// # Panics
    /// If `i >= len()`.
    #[inline]
    #[must_use]
    pub fn chain(&self, i: usize) -> Chain<'a> {
        let shape = &self.arena.chains[..self.arena.count][i];
        let (readable_count, writable_count) = (shape.readable_count as usize, shape.writable_count as usize);
        let all = self.arena.segments.get(shape.first as usize, readable_count + writable_count);
        let (readable, writable) = all.split_at(readable_count);
        Chain {
            id: shape.id,
            readable,
            writable,
            readable_len: shape.readable_len,
            writable_len: shape.writable_len,
        }
    }

    /// The `i`th chain's first readable piece (an empty one if there is none) and all its readable bytes: what most frames
    /// are made of.
    ///
    /// # Panics
    /// If `i >= len()`.
    #[inline(always)]
    #[must_use]
    pub fn front(&self, i: usize) -> (GuestSlice<'a>, usize) {
        let shape = &self.arena.chains[..self.arena.count][i];
        let first = match self.arena.segments.slots.get(shape.first as usize) {
            Some(&first) if shape.readable_count > 0 => first,
            _ => GuestSlice::NONE,
        };
        (first, shape.readable_len)
    }

    /// All chains in order.
    pub fn iter(&self) -> impl Iterator<Item = Chain<'a>> + use<'a, '_> {
        (0..self.len()).map(|i| self.chain(i))
    }
}
