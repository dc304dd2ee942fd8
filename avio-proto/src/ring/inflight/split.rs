//! The log of a split ring (vhost-user, "Inflight I/O tracking", split virtqueue).
//!
//! ```text
//!   0  le64 features = 0   8 le16 version = 1   10 le16 desc_num   12 le16 last_batch_head   14 le16 used_idx
//!  16  per descriptor: u8 inflight, 5 bytes padding, le16 next, le64 counter
//! ```
//! The first byte of padding is ours: a mark that the device leaves for its successor. Others write zeroes there.
//! A chain is known by its head. The heads of the last batch of used elements are linked by `next`, so that a successor can
//! tell which of them the driver had been given when the process died between publication and clearing the marks.

use super::region::Region;
use super::{InflightError, VERSION};

const HEAD_LEN: usize = 16;
const ENTRY_LEN: usize = 16;
const VERSION_AT: usize = 8;
const SIZE_AT: usize = 10;
const LAST_HEAD_AT: usize = 12;
const USED_AT: usize = 14;
const MARK: usize = 1;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// Bytes that a ring of `size` entries needs.
pub(super) fn len(size: u16) -> u64 {
    (HEAD_LEN + ENTRY_LEN * usize::from(size)) as u64
}

pub(super) struct SplitLog {
    region: Region,
    size: u16,
    /// Number of the next chain taken.
    counter: u64,
    /// Entries that are marked as in flight.
    marked: usize,
    /// Completed since the last publication; their entries are marked.
    batch: Vec<u16>,
    /// Answered since the last publication, and never marked.
    answered: Vec<u16>,
    recovered: Vec<u16>,
}

impl SplitLog {
    pub fn open(region: Region, size: u16) -> Result<Self, InflightError> {
        match (region.u16(VERSION_AT), region.u16(SIZE_AT)) {
            (0, _) => {
                region.write(SIZE_AT, size.to_le_bytes());
                region.write(VERSION_AT, VERSION.to_le_bytes());
            }
            (VERSION, found) if found == size => {}
            (version, found) => {
                return Err(InflightError::Foreign { version, size: found, expected: size });
            }
        }
        let batch = Vec::with_capacity(usize::from(size));
        let answered = batch.clone();
        Ok(Self { region, size, counter: 0, marked: 0, batch, answered, recovered: Vec::new() })
    }

    fn at(head: u16) -> usize {
        HEAD_LEN + ENTRY_LEN * usize::from(head)
    }

    /// Finishes what a predecessor left, `used_idx` being the guest's used index; returns how many chains are in flight.
    pub fn recover(&mut self, used_idx: u16) -> usize {
        let missing = used_idx.wrapping_sub(self.region.u16(USED_AT));
        // Published and not cleared: never more than a ring has.
        if missing <= self.size {
            let mut head = self.region.u16(LAST_HEAD_AT);
            for _ in 0..missing {
                if head >= self.size {
                    break;
                }
                self.region.write(Self::at(head), [0u8]);
                head = self.region.u16(Self::at(head) + NEXT);
            }
        }
        self.region.write(USED_AT, used_idx.to_le_bytes());
        let mut found: Vec<(u64, u16)> = (0..self.size)
            .filter(|&head| self.region.read::<1>(Self::at(head)) == [1])
            .map(|head| (self.region.u64(Self::at(head) + COUNTER), head))
            .collect();
        found.sort_unstable();
        self.counter = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        self.recovered = found.into_iter().map(|(_, head)| head).collect();
        self.marked = self.recovered.len();
        self.marked
    }

    /// Head of the `i`th chain that was in flight; out of the ring if there is none.
    pub fn recovered(&self, i: usize) -> u16 {
        self.recovered.get(i).copied().unwrap_or(u16::MAX)
    }

    #[inline]
    pub fn taken(&mut self, head: u16) {
        if !self.answered.is_empty() {
            self.mark_answered();
        }
        self.mark_taken(head);
    }

    #[inline]
    fn mark_taken(&mut self, head: u16) {
        if head < self.size {
            self.region.write(Self::at(head) + COUNTER, self.counter.to_le_bytes());
            self.counter = self.counter.wrapping_add(1);
            // In flight, and no mark.
            self.region.write(Self::at(head), [1u8, 0]);
            self.marked += 1;
        }
    }

    /// Chains that were answered as soon as they were taken; the publication is to come. They need no entry: a successor that finds
    /// them neither marked nor used takes them again, right behind what is in flight.
    #[inline]
    pub fn answered(&mut self, heads: impl Iterator<Item = u16>) {
        self.answered.extend(heads);
    }

    /// A chain that is marked moves the place where a successor goes on. What was taken before it has to be marked by then.
    #[cold]
    fn mark_answered(&mut self) {
        for i in 0..self.answered.len() {
            let head = self.answered[i];
            self.mark_taken(head);
            self.completed(head);
        }
        self.answered.clear();
    }

    pub fn mark(&mut self, head: u16, mark: u8) {
        if head < self.size {
            self.region.write(Self::at(head) + MARK, [mark]);
        }
    }

    pub fn mark_of(&self, head: u16) -> u8 {
        if head < self.size { self.region.read::<1>(Self::at(head) + MARK)[0] } else { 0 }
    }

    pub fn number_of(&self, head: u16) -> u64 {
        if head < self.size { self.region.u64(Self::at(head) + COUNTER) } else { 0 }
    }

    #[inline]
    pub fn completed(&mut self, head: u16) {
        if head < self.size {
            self.batch.push(head);
        }
    }

    /// Links the heads of the batch, so that they can be found if the process dies right after the publication: until then nobody
    /// follows the links. If no entry is marked, there is none that a successor could take for published, or fail to.
    #[inline]
    pub fn publishing(&mut self) {
        if self.marked == 0 {
            return;
        }
        let mut last: [u8; 2] = self.region.read(LAST_HEAD_AT);
        for &head in self.batch.iter().chain(self.answered.iter().filter(|&&head| head < self.size)) {
            self.region.write(Self::at(head) + NEXT, last);
            last = head.to_le_bytes();
        }
        self.region.write(LAST_HEAD_AT, last);
    }

    #[inline]
    pub fn published(&mut self, used_idx: u16) {
        self.answered.clear();
        self.marked = self.marked.saturating_sub(self.batch.len());
        for head in self.batch.drain(..) {
            self.region.write(Self::at(head), [0u8]);
        }
        self.region.write(USED_AT, used_idx.to_le_bytes());
    }
}
