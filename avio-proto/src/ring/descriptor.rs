//! Descriptors as bytes: fields, flags, and indirect tables.
//!
//! Both layouts have the address in the first eight bytes and the length in the next four; they differ in the last two
//! fields. Owns no ring state.

use super::RingError;
use super::arena::{Buffer, INDIRECT_MAX, Segments, Shape, Stop};
use crate::mem::{GuestSlice, MemoryTable, RegionHint};

/// Bytes of one descriptor in either layout.
pub(super) const DESCRIPTOR_LEN: usize = 16;
/// The chain goes on (virtio 1.3 §2.7.5, §2.8.1).
pub(super) const F_NEXT: u16 = 1;
/// The buffer is for the device to write.
pub(super) const F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const F_INDIRECT: u16 = 4;

/// A descriptor, copied out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    /// Split: index of the next descriptor. Packed: buffer ID.
    pub other: u16,
}

impl Descriptor {
    /// From the two words of a split descriptor: address; length, flags, next.
    #[inline(always)]
    pub fn split((low, high): (u64, u64)) -> Self {
        Self { addr: low, len: high as u32, flags: (high >> 32) as u16, other: (high >> 48) as u16 }
    }

    /// From the two words of a packed descriptor: address; length, buffer ID, flags.
    #[inline(always)]
    pub fn packed((low, high): (u64, u64)) -> Self {
        Self { addr: low, len: high as u32, other: (high >> 32) as u16, flags: (high >> 48) as u16 }
    }

    /// The buffer it names, if it is alone in its chain, for the device to write (or, without `WRITABLE`, to read), at least
    /// `least` bytes long and all in one region.
    #[inline(always)]
    pub fn single<'m, const WRITABLE: bool>(
        &self,
        memory: &'m MemoryTable,
        hint: &mut RegionHint,
        least: usize,
    ) -> Option<GuestSlice<'m>> {
        let wanted = if WRITABLE { F_WRITE } else { 0 };
        if self.flags & (F_NEXT | F_INDIRECT | F_WRITE) != wanted || (self.len as usize) < least {
            return None;
        }
        memory.slice(hint, self.addr, self.len as usize)
    }

    /// Fetches the first `lines` lines of what it names, for writing, whatever that is.
    #[inline(always)]
    pub fn prefetch_for_write(&self, memory: &MemoryTable, hint: &mut RegionHint, lines: usize) {
        if let Some(piece) = memory.prefix(hint, self.addr, self.len as usize) {
            piece.prefetch_write_lines(lines);
        }
    }

    /// The buffer it names, blamed on ring descriptor `index`.
    #[inline(always)]
    pub fn buffer(&self, index: u16) -> Buffer {
        Buffer { addr: self.addr, len: self.len, writable: self.flags & F_WRITE != 0, index }
    }
}

/// Where a walk is.
pub(super) struct Step {
    /// Descriptor that comes next.
    pub at: usize,
    /// Most descriptors that may come.
    pub left: usize,
}

/// Walks ordinary descriptors: no table, not empty, all of it in the region that `hint` names, in its place. True: the chain is over.
/// Else what is at `step` is left to who can tell what it is, and is read by him once more: nothing was taken from it here.
///
/// `read` gives the words of a descriptor; in a split ring and its tables (`LINKED`) the next one is where NEXT says, else all of them
/// come in order.
#[inline(always)]
pub(super) fn walk_ordinary<const LINKED: bool>(
    read: impl Fn(usize) -> Option<(u64, u64)>,
    step: &mut Step,
    memory: &MemoryTable,
    hint: &RegionHint,
    out: &mut Segments,
    shape: &mut Shape,
) -> bool {
    let Some(window) = memory.window(hint) else { return false };
    let Step { mut at, mut left } = *step;
    let mut run = out.run(shape);
    let over = loop {
        if left == 0 {
            break !LINKED;
        }
        let Some(words) = read(at) else { break false };
        let descriptor = if LINKED { Descriptor::split(words) } else { Descriptor::packed(words) };
        if descriptor.flags & F_INDIRECT != 0 {
            break false;
        }
        let Some(piece) = window.slice(descriptor.addr, descriptor.len) else { break false };
        if !run.push(shape, piece, descriptor.flags & F_WRITE != 0) {
            break false;
        }
        left -= 1;
        if LINKED && descriptor.flags & F_NEXT == 0 {
            break true;
        }
        at = if LINKED { usize::from(descriptor.other) } else { at + 1 };
    };
    run.end(shape);
    *step = Step { at, left };
    over
}

/// Walks an indirect table of a split ring: its descriptors are chained by `next` (§2.7.5.3).
#[inline(always)]
pub(super) fn walk_split_table(
    table: Descriptor,
    index: u16,
    memory: &MemoryTable,
    hint: &mut RegionHint,
    out: &mut Segments,
    shape: &mut Shape,
) -> Result<(), Stop> {
    let table = Table::new(table, index, memory, hint)?;
    // A table with a loop in it runs into this bound: no valid chain is longer than its table.
    let mut step = Step { at: 0, left: table.count.min(INDIRECT_MAX) };
    if walk_ordinary::<true>(|at| table.words(at), &mut step, memory, hint, out, shape) {
        return Ok(());
    }
    walk_rest_of_split_table(table, step, memory, hint, out, shape)
}

/// The part of a table in which something is not ordinary.
#[cold]
fn walk_rest_of_split_table(
    table: Table<'_>,
    step: Step,
    memory: &MemoryTable,
    hint: &mut RegionHint,
    out: &mut Segments,
    shape: &mut Shape,
) -> Result<(), Stop> {
    let (index, mut at) = (table.index, step.at);
    for _ in 0..step.left {
        if at >= table.count {
            return Err(Stop::Bad(RingError::BadDescriptor(index)));
        }
        let descriptor = Descriptor::split(table.read(at, memory, hint)?);
        if descriptor.flags & F_INDIRECT != 0 {
            return Err(Stop::Bad(RingError::BadDescriptor(index)));
        }
        out.push(shape, memory, hint, descriptor.buffer(index))?;
        if descriptor.flags & F_NEXT == 0 {
            return Ok(());
        }
        at = usize::from(descriptor.other);
    }
    let error = if at < table.count { RingError::ChainTooLong } else { RingError::BadDescriptor(index) };
    Err(Stop::Bad(error))
}

/// Walks an indirect table of a packed ring: all of its descriptors in order, NEXT has no meaning (§2.8.8).
pub(super) fn walk_packed_table(
    table: Descriptor,
    index: u16,
    memory: &MemoryTable,
    hint: &mut RegionHint,
    out: &mut Segments,
    shape: &mut Shape,
) -> Result<(), Stop> {
    let table = Table::new(table, index, memory, hint)?;
    if table.count > INDIRECT_MAX {
        return Err(Stop::Bad(RingError::ChainTooLong));
    }
    let mut step = Step { at: 0, left: table.count };
    if walk_ordinary::<false>(|at| table.words(at), &mut step, memory, hint, out, shape) {
        return Ok(());
    }
    for at in step.at..table.count {
        let descriptor = Descriptor::packed(table.read(at, memory, hint)?);
        if descriptor.flags & F_INDIRECT != 0 {
            return Err(Stop::Bad(RingError::BadDescriptor(index)));
        }
        out.push(shape, memory, hint, descriptor.buffer(index))?;
    }
    Ok(())
}

/// An indirect table in guest memory. Each descriptor is copied out once, when the walk gets to it.
struct Table<'m> {
    addr: u64,
    count: usize,
    index: u16,
    /// As much of it as lies in its first region: nearly always all.
    start: GuestSlice<'m>,
}

impl<'m> Table<'m> {
    #[inline(always)]
    fn new(
        table: Descriptor,
        index: u16,
        memory: &'m MemoryTable,
        hint: &mut RegionHint,
    ) -> Result<Self, Stop> {
        let len = table.len as usize;
        // INDIRECT and NEXT exclude each other (§2.7.5.3.1, §2.8.20); WRITE is to be ignored here (§2.7.5.3.2).
        if len == 0 || !len.is_multiple_of(DESCRIPTOR_LEN) || table.flags & F_NEXT != 0 {
            return Err(Stop::Bad(RingError::BadDescriptor(index)));
        }
        let start = memory.prefix(hint, table.addr, len).ok_or(Stop::Bad(RingError::BadBuffer))?;
        Ok(Self { addr: table.addr, count: len / DESCRIPTOR_LEN, index, start })
    }

    /// A descriptor of those that lie in the table's first region.
    #[inline(always)]
    fn words(&self, at: usize) -> Option<(u64, u64)> {
        self.start.words(at.wrapping_mul(DESCRIPTOR_LEN))
    }

    fn read(&self, at: usize, memory: &MemoryTable, hint: &mut RegionHint) -> Result<(u64, u64), Stop> {
        let bytes = match self.start.read(at * DESCRIPTOR_LEN) {
            Some(bytes) => bytes,
            None => self.read_behind(at, memory, hint)?,
        };
        let word = u128::from_le_bytes(bytes);
        Ok((word as u64, (word >> 64) as u64))
    }

    /// A descriptor behind the end of the first region. A table is 16-aligned in any driver, so no descriptor straddles two.
    #[cold]
    fn read_behind(
        &self,
        at: usize,
        memory: &MemoryTable,
        hint: &mut RegionHint,
    ) -> Result<[u8; DESCRIPTOR_LEN], Stop> {
        let addr = self.addr.checked_add((at * DESCRIPTOR_LEN) as u64);
        let addr = addr.ok_or(Stop::Bad(RingError::BadBuffer))?;
        let piece = memory.slice(hint, addr, DESCRIPTOR_LEN);
        piece.and_then(|piece| piece.read(0)).ok_or(Stop::Bad(RingError::BadDescriptor(self.index)))
    }
}
