//! What verified blocks hold, and which generation of each block the disk should hold.
//!
//! Every block names itself: a mark, its place on the disk, its generation, and words that follow from these. So a block that
//! was lost, stale, swapped or torn is noticed. Owned by one lane; lanes never share blocks that they write.

/// First word of a block.
const MARK: u64 = u64::from_le_bytes(*b"AVIOGEN1");
/// Words of eight bytes that say what a block is.
const HEAD_WORDS: usize = 3;

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// No mark: nobody wrote it.
    Unwritten,
    /// It belongs somewhere else: disk and byte.
    Misplaced(u32, u64),
    /// Another generation than the last one written; which.
    Stale(u32),
    /// Right at the front, wrong at this byte.
    Torn(usize),
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wrong::Unwritten => write!(f, "was not written by avio-iogen"),
            Wrong::Misplaced(disk, at) => write!(f, "holds the block of byte {at} of target {disk}"),
            Wrong::Stale(generation) => write!(f, "holds generation {generation}, not the last one written"),
            Wrong::Torn(at) => write!(f, "differs from byte {at} of the block on"),
        }
    }
}

/// Word `index` behind the head of a block.
#[inline(always)]
fn word(seed: u64, index: usize) -> u64 {
    // Odd multiplier and a shift: neighbouring words and blocks have nothing in common, at a nanosecond a word.
    let x = (seed ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

fn seed(disk: u32, offset: u64, generation: u32) -> u64 {
    offset.rotate_left(17) ^ u64::from(disk) << 56 ^ u64::from(generation).wrapping_mul(0xff51_afd7_ed55_8ccd)
}

/// Fills `block`, a multiple of eight bytes, for byte `offset` of disk `disk` (its SCSI target; 0 for a single disk).
pub fn fill(block: &mut [u8], disk: u32, offset: u64, generation: u32) {
    let seed = seed(disk, offset, generation);
    for (index, place) in block.chunks_exact_mut(8).enumerate() {
        let value = match index {
            0 => MARK,
            1 => offset,
            2 => u64::from(generation) | u64::from(disk) << 32,
            _ => word(seed, index),
        };
        place.copy_from_slice(&value.to_le_bytes());
    }
}

/// Checks `block`, read from byte `offset` of disk `disk`; `generation` 0: any, written in an earlier run.
///
/// # Errors
/// What is wrong.
pub fn check(block: &[u8], disk: u32, offset: u64, generation: u32) -> Result<(), Wrong> {
    let (words, _) = block.as_chunks::<8>();
    let at = |index: usize| words.get(index).map_or(0, |word| u64::from_le_bytes(*word));
    if at(0) != MARK {
        return Err(Wrong::Unwritten);
    }
    let (found, of) = (at(2) as u32, (at(2) >> 32) as u32);
    if (of, at(1)) != (disk, offset) {
        return Err(Wrong::Misplaced(of, at(1)));
    }
    if generation != 0 && found != generation {
        return Err(Wrong::Stale(found));
    }
    let seed = seed(disk, offset, found);
    match (HEAD_WORDS..words.len()).find(|&index| at(index) != word(seed, index)) {
        Some(index) => Err(Wrong::Torn(index * 8)),
        None => Ok(()),
    }
}

/// The blocks of one disk that a lane writes.
#[derive(Clone, Debug)]
pub struct Generations {
    /// By block: the last generation written, 0 none.
    written: Vec<u32>,
    /// By block: a request for it is in flight.
    busy: Vec<bool>,
}

impl Generations {
    /// `count` blocks, none written.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self { written: vec![0; count], busy: vec![false; count] }
    }

    /// Takes block `wanted`, or the next one that nothing is in flight for: what two requests at once leave behind nobody
    /// could tell. There are more blocks than requests in flight, or the caller waits (`None`).
    pub fn take(&mut self, wanted: usize) -> Option<usize> {
        let count = self.busy.len();
        let found = (0..count).map(|i| (wanted + i) % count).find(|&block| !self.busy[block])?;
        self.busy[found] = true;
        Some(found)
    }

    /// The generation that a write of this block makes.
    pub fn next(&mut self, block: usize) -> u32 {
        self.written[block] = self.written[block].wrapping_add(1).max(1);
        self.written[block]
    }

    /// The last generation written; 0: none.
    #[must_use]
    pub fn last(&self, block: usize) -> u32 {
        self.written[block]
    }

    /// A request for the block has ended.
    pub fn done(&mut self, block: usize) {
        self.busy[block] = false;
    }

    /// The first block from `from` on that was written.
    #[must_use]
    pub fn next_written(&self, from: usize) -> Option<usize> {
        (from..self.written.len()).find(|&block| self.written[block] != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_damage_is_told_apart() {
        let mut block = vec![0; 4096];
        assert_eq!(check(&block, 1, 8192, 1), Err(Wrong::Unwritten));
        fill(&mut block, 1, 8192, 3);
        assert_eq!(check(&block, 1, 8192, 3), Ok(()));
        assert_eq!(check(&block, 1, 8192, 0), Ok(()));
        assert_eq!(check(&block, 1, 8192, 4), Err(Wrong::Stale(3)));
        assert_eq!(check(&block, 1, 4096, 3), Err(Wrong::Misplaced(1, 8192)));
        assert_eq!(check(&block, 2, 8192, 3), Err(Wrong::Misplaced(1, 8192)));
        block[2048] ^= 1;
        assert_eq!(check(&block, 1, 8192, 3), Err(Wrong::Torn(2048)));
        // Half of an older generation.
        fill(&mut block, 1, 8192, 2);
        let mut newer = vec![0; 4096];
        fill(&mut newer, 1, 8192, 3);
        block[..2048].copy_from_slice(&newer[..2048]);
        assert_eq!(check(&block, 1, 8192, 3), Err(Wrong::Torn(2048)));
    }

    #[test]
    fn a_block_is_taken_once() {
        let mut blocks = Generations::new(3);
        assert_eq!(
            (blocks.take(2), blocks.take(2), blocks.take(2), blocks.take(2)),
            (Some(2), Some(0), Some(1), None)
        );
        blocks.done(0);
        assert_eq!(blocks.take(2), Some(0));
        assert_eq!(
            (blocks.next(1), blocks.next(1), blocks.last(1), blocks.next_written(0)),
            (1, 2, 2, Some(1))
        );
    }
}
