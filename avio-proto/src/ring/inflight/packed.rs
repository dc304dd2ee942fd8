//! The log of a packed ring (vhost-user, "Inflight I/O tracking", packed virtqueue).
//!
//! ```text
//!   0 le64 features = 0   8 le16 version = 1   10 le16 desc_num   12 le16 free_head      14 le16 old_free_head
//!  16 le16 used_idx      18 le16 old_used_idx  20 u8 used_wrap    21 u8 old_used_wrap    22 padding
//!  32 per descriptor: u8 inflight, u8 padding, le16 next, le16 last, le16 num, le64 counter,
//!                     le16 id, le16 flags, le32 len, le64 addr
//! ```
//! The ring itself forgets: a used descriptor overwrites what the driver wrote there. So the descriptors of each chain are
//! copied, into entries that are linked by `next`; the list of free ones starts at `free_head`. The `old_` fields hold what
//! the others were at the last publication that was wholly noted.

use super::region::Region;
use super::{InflightError, VERSION};
use crate::mem::{MemoryTable, RegionHint};
use crate::ring::RingError;
use crate::ring::arena::{ChainId, Segments, Shape, Stop};
use crate::ring::descriptor::{Descriptor, F_INDIRECT, F_NEXT, walk_packed_table};
use crate::ring::packed::PackedQueue;
use crate::ring::packed::position::Position;

const HEAD_LEN: usize = 32;
const ENTRY_LEN: usize = 32;
const VERSION_AT: usize = 8;
const SIZE_AT: usize = 10;
const FREE_AT: usize = 12;
const OLD_FREE_AT: usize = 14;
const USED_AT: usize = 16;
const OLD_USED_AT: usize = 18;
const USED_WRAP_AT: usize = 20;
const OLD_USED_WRAP_AT: usize = 21;
/// The byte of padding is ours: a mark that the device leaves for its successor. Others write zeroes there.
const MARK: usize = 1;
const NEXT: usize = 2;
const LAST: usize = 4;
const NUM: usize = 6;
const COUNTER: usize = 8;
const DESCRIPTOR: usize = 16;

/// Bytes that a ring of `size` entries needs.
pub(super) fn len(size: u16) -> u64 {
    (HEAD_LEN + ENTRY_LEN * usize::from(size)) as u64
}

/// A chain in flight: its first entry, and what the driver calls it.
#[derive(Clone, Copy)]
struct Noted {
    entry: u16,
    chain: ChainId,
}

pub(super) struct PackedLog {
    region: Region,
    size: u16,
    /// Number of the next chain taken.
    counter: u64,
    /// Where the ring's next chain to be taken begins.
    avail: Position,
    /// Where the next used element goes.
    used: Position,
    /// First free entry; `size`: there is none.
    free: u16,
    in_flight: Vec<Noted>,
    /// Completed since the last publication.
    batch: Vec<Noted>,
    /// First entries of what was in flight.
    recovered: Vec<u16>,
}

impl PackedLog {
    pub fn open(region: Region, size: u16) -> Result<Self, InflightError> {
        match (region.u16(VERSION_AT), region.u16(SIZE_AT)) {
            (0, _) => {
                region.write(SIZE_AT, size.to_le_bytes());
                // The positions of a new ring (virtio 1.3 §2.8.1).
                region.write(USED_WRAP_AT, [1u8, 1]);
                region.write(VERSION_AT, VERSION.to_le_bytes());
            }
            (VERSION, found) if found == size => {}
            (version, found) => {
                return Err(InflightError::Foreign { version, size: found, expected: size });
            }
        }
        let room = usize::from(size);
        Ok(Self {
            region,
            size,
            counter: 0,
            avail: Position::START,
            used: Position::START,
            free: 0,
            in_flight: Vec::with_capacity(room),
            batch: Vec::with_capacity(room),
            recovered: Vec::new(),
        })
    }

    fn at(entry: u16) -> usize {
        HEAD_LEN + ENTRY_LEN * usize::from(entry)
    }

    fn next(&self, entry: u16) -> u16 {
        self.region.u16(Self::at(entry) + NEXT)
    }

    fn position(&self, index_at: usize, wrap_at: usize) -> Option<Position> {
        let index = self.region.u16(index_at);
        let wrap = self.region.read::<1>(wrap_at) != [0];
        (index < self.size).then(|| Position::from_bits(index | u16::from(wrap) << 15))
    }

    fn store_position(&self, index_at: usize, wrap_at: usize, position: Position) {
        self.region.write(index_at, position.index().to_le_bytes());
        self.region.write(wrap_at, [u8::from(position.wrap())]);
    }

    /// Finishes what a predecessor left; returns how many chains are in flight. `queue` goes on where the log says, unless
    /// nothing was ever used in it: then it is a new ring and the log is of an older one.
    pub fn recover(&mut self, queue: &mut PackedQueue) -> usize {
        let (avail, used) = queue.positions();
        (self.avail, self.used) = (avail, used);
        let mut heads = self.marked();
        if heads.is_empty() && !queue.was_ever_used() {
            self.region.write(FREE_AT, [0u8; 4]);
        } else if let (Some(new), Some(old)) =
            (self.position(USED_AT, USED_WRAP_AT), self.position(OLD_USED_AT, OLD_USED_WRAP_AT))
        {
            self.used = old;
            if new != old && queue.is_used_at(old) {
                self.clear_published();
                self.used = new;
                heads = self.marked();
            }
            self.avail = self.used;
            let mut slots = 0;
            heads.retain(|&(_, head)| {
                let count = self.region.u16(Self::at(head) + NUM);
                // More descriptors than the ring has cannot be out.
                let fits = count > 0 && count <= self.size - slots && self.entries(head, count).is_some();
                slots += if fits { count } else { 0 };
                fits
            });
            self.avail.advance(slots, self.size);
            queue.resume(self.used, slots);
        }
        self.counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        self.recovered = heads.into_iter().map(|(_, head)| head).collect();
        self.rebuild();
        self.recovered.len()
    }

    /// First entries that are marked in flight, oldest first.
    fn marked(&self) -> Vec<(u64, u16)> {
        let mut found: Vec<(u64, u16)> = (0..self.size)
            .filter(|&entry| self.region.read::<1>(Self::at(entry)) == [1])
            .map(|entry| (self.region.u64(Self::at(entry) + COUNTER), entry))
            .collect();
        found.sort_unstable();
        found
    }

    /// The `count` entries of a chain; `None` if the links leave the region.
    fn entries(&self, head: u16, count: u16) -> Option<Vec<u16>> {
        let mut entries = Vec::with_capacity(usize::from(count));
        let mut entry = head;
        for _ in 0..count {
            if entry >= self.size {
                return None;
            }
            entries.push(entry);
            entry = self.next(entry);
        }
        Some(entries)
    }

    /// The driver had been given a batch when the process died: its chains are those that were freed for it.
    fn clear_published(&self) {
        let (mut entry, old) = (self.region.u16(FREE_AT), self.region.u16(OLD_FREE_AT));
        for _ in 0..self.size {
            if entry == old || entry >= self.size {
                return;
            }
            self.region.write(Self::at(entry), [0u8]);
            entry = self.next(entry);
        }
    }

    /// Links every entry that no chain in flight has into a new list of free ones.
    fn rebuild(&mut self) {
        let mut taken = vec![false; usize::from(self.size)];
        self.in_flight.clear();
        for &head in &self.recovered {
            let count = self.region.u16(Self::at(head) + NUM);
            for entry in self.entries(head, count).unwrap_or_default() {
                taken[usize::from(entry)] = true;
            }
        }
        let mut free = self.size;
        for entry in (0..self.size).rev().filter(|&entry| !taken[usize::from(entry)]) {
            self.region.write(Self::at(entry), [0u8]);
            self.region.write(Self::at(entry) + NEXT, free.to_le_bytes());
            free = entry;
        }
        self.free = free;
        self.note();
    }

    /// From now on this is what holds.
    fn note(&self) {
        self.region.write(FREE_AT, self.free.to_le_bytes());
        self.store_position(USED_AT, USED_WRAP_AT, self.used);
        self.region.write(OLD_FREE_AT, self.free.to_le_bytes());
        self.store_position(OLD_USED_AT, OLD_USED_WRAP_AT, self.used);
    }

    /// Walks the `i`th chain that was in flight, from the copies of its descriptors.
    pub fn walk_recovered(
        &mut self,
        i: usize,
        memory: &MemoryTable,
        hint: &mut RegionHint,
        out: &mut Segments,
        shape: &mut Shape,
    ) -> Result<(), Stop> {
        out.begin(shape);
        let head = *self.recovered.get(i).ok_or(Stop::Bad(RingError::BadIndex))?;
        let count = self.region.u16(Self::at(head) + NUM);
        let entries = self.entries(head, count).ok_or(Stop::Bad(RingError::BadIndex))?;
        for (at, entry) in entries.iter().enumerate() {
            let descriptor = self.descriptor(*entry);
            shape.id = ChainId::new(descriptor.other, count);
            if descriptor.flags & F_INDIRECT != 0 {
                walk_packed_table(descriptor, *entry, memory, hint, out, shape)?;
            } else {
                out.push(shape, memory, hint, descriptor.buffer(*entry))?;
            }
            if (descriptor.flags & F_NEXT == 0) != (at + 1 == entries.len()) {
                return Err(Stop::Bad(RingError::BadDescriptor(*entry)));
            }
        }
        self.in_flight.push(Noted { entry: head, chain: shape.id });
        Ok(())
    }

    fn descriptor(&self, entry: u16) -> Descriptor {
        let at = Self::at(entry) + DESCRIPTOR;
        Descriptor {
            other: self.region.u16(at),
            flags: self.region.u16(at + 2),
            len: u32::from_le_bytes(self.region.read(at + 4)),
            addr: self.region.u64(at + 8),
        }
    }

    /// Copies the descriptors of chains that were just taken. What the driver has changed in them meanwhile is its own loss.
    pub fn taken(&mut self, queue: &PackedQueue, chains: impl Iterator<Item = ChainId>) {
        for chain in chains {
            let head = self.free;
            let mut last = head;
            for _ in 0..chain.slots() {
                if self.free >= self.size {
                    // More descriptors out than the ring has: the ring would have refused the chain.
                    return;
                }
                last = self.free;
                let at = Self::at(last) + DESCRIPTOR;
                let descriptor = queue.descriptor_at(self.avail);
                self.region.write(at, descriptor.other.to_le_bytes());
                self.region.write(at + 2, descriptor.flags.to_le_bytes());
                self.region.write(at + 4, descriptor.len.to_le_bytes());
                self.region.write(at + 8, descriptor.addr.to_le_bytes());
                self.free = self.next(last);
                self.avail.advance(1, self.size);
            }
            self.region.write(Self::at(head) + LAST, last.to_le_bytes());
            self.region.write(Self::at(head) + NUM, chain.slots().to_le_bytes());
            self.region.write(Self::at(head) + COUNTER, self.counter.to_le_bytes());
            self.counter = self.counter.wrapping_add(1);
            // In flight, and no mark.
            self.region.write(Self::at(head), [1u8, 0]);
            self.in_flight.push(Noted { entry: head, chain });
        }
        self.region.write(FREE_AT, self.free.to_le_bytes());
        self.region.write(OLD_FREE_AT, self.free.to_le_bytes());
    }

    fn entry_of(&self, chain: ChainId) -> Option<u16> {
        self.in_flight.iter().find(|noted| noted.chain == chain).map(|noted| noted.entry)
    }

    pub fn mark(&mut self, chain: ChainId, mark: u8) {
        if let Some(entry) = self.entry_of(chain) {
            self.region.write(Self::at(entry) + MARK, [mark]);
        }
    }

    pub fn mark_of(&self, chain: ChainId) -> u8 {
        self.entry_of(chain).map_or(0, |entry| self.region.read::<1>(Self::at(entry) + MARK)[0])
    }

    pub fn number_of(&self, chain: ChainId) -> u64 {
        self.entry_of(chain).map_or(0, |entry| self.region.u64(Self::at(entry) + COUNTER))
    }

    #[inline]
    pub fn completed(&mut self, chain: ChainId) {
        if let Some(i) = self.in_flight.iter().position(|noted| noted.chain == chain) {
            let noted = self.in_flight.swap_remove(i);
            self.batch.push(noted);
        }
    }

    /// Says which entries become free and how far the ring will be: counts only once the driver was given the batch.
    pub fn publishing(&mut self) {
        for noted in &self.batch {
            let last = self.region.u16(Self::at(noted.entry) + LAST);
            if last < self.size {
                self.region.write(Self::at(last) + NEXT, self.free.to_le_bytes());
                self.free = noted.entry;
            }
            self.used.advance(noted.chain.slots(), self.size);
        }
        self.region.write(FREE_AT, self.free.to_le_bytes());
        self.store_position(USED_AT, USED_WRAP_AT, self.used);
    }

    pub fn published(&mut self) {
        for noted in self.batch.drain(..) {
            self.region.write(Self::at(noted.entry), [0u8]);
        }
        self.note();
    }
}
