//! Which block is asked for next, and for what: a job's pattern over its disks, and reading back what it wrote.
//!
//! Owns where each disk's part of the job lies and what is known of its blocks. [`super::lane`] draws from it; it allocates nothing once made.

use super::command::Op;
use super::content::Generations;
use super::device::{Address, DiskInfo};
use super::load::JobSpec;

/// A request that was drawn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flight {
    /// When it was asked for, ns.
    pub start_ns: u64,
    /// What it does.
    pub op: Op,
    /// Which of the job's disks.
    pub disk: u32,
    /// Number of the block there, in blocks of the job's size.
    pub block: u64,
    /// How often that block has been written, with this request.
    pub generation: u32,
}

/// One disk as this job uses it.
#[derive(Debug)]
pub struct Place {
    /// How requests name it.
    pub address: Address,
    /// For messages and for blocks that name themselves.
    pub tag: u32,
    /// Of the disk, in bytes.
    pub block_size: u32,
    /// First byte.
    pub base: u64,
    /// Blocks of the job's size.
    blocks: u64,
    /// The next one of a sequential pattern.
    next: u64,
    /// Where blocks are verified that the job writes.
    pub generations: Option<Generations>,
    writes: u32,
    flush_due: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Sequence {
    random: bool,
    read_percent: u32,
    fsync: u32,
    /// The job's disks.
    pub places: Vec<Place>,
    turn: usize,
    state: u64,
    /// Requests that are left; `u64::MAX`: no end but time.
    left: u64,
    reading_back: bool,
}

impl Sequence {
    /// That of job number `number` of `spec.count` on `disks`.
    ///
    /// # Errors
    /// Which option asks for more than the disk has.
    pub fn new(spec: &JobSpec, disks: &[DiskInfo], number: u16) -> Result<Self, String> {
        let mut places = Vec::new();
        for disk in disks {
            let tag = match disk.address {
                Address::Blk => 0,
                Address::Scsi(target) => u32::from(target),
            };
            if !spec.block.is_multiple_of(u64::from(disk.block))
                || !spec.offset.is_multiple_of(u64::from(disk.block))
            {
                return Err(format!("bs, offset: multiples of the disk's block, {} bytes", disk.block));
            }
            let room = disk.bytes.saturating_sub(spec.offset);
            let (mut base, mut len) = (spec.offset, spec.size.unwrap_or(room));
            if len > room {
                return Err(format!("size: target {tag} has {} bytes, from offset on {room}", disk.bytes));
            }
            // Jobs that verify must not write each other's blocks.
            if spec.verify && spec.writes() {
                len = len / u64::from(spec.count) / spec.block * spec.block;
                base += len * u64::from(number);
            }
            let blocks = len / spec.block;
            if blocks == 0 {
                return Err(format!("size: not one block of {} bytes for each job", spec.block));
            }
            let generations = match spec.verify && spec.writes() {
                true => {
                    Some(Generations::new(usize::try_from(blocks).map_err(|_| "size: too large to verify")?))
                }
                false => None,
            };
            places.push(Place {
                address: disk.address,
                tag,
                block_size: disk.block,
                base,
                blocks,
                next: 0,
                generations,
                writes: 0,
                flush_due: false,
            });
        }
        let total: u64 = places.iter().map(|p| p.blocks).sum();
        Ok(Self {
            random: spec.pattern.random,
            read_percent: spec.pattern.read_percent,
            fsync: spec.fsync,
            places,
            turn: 0,
            // Jobs differ, runs do not: fio's randrepeat.
            state: 0x9e37_79b9_7f4a_7c15 ^ u64::from(number).wrapping_mul(0xd6e8_feb8_6659_fd93),
            left: if spec.time_based { u64::MAX } else { total },
            reading_back: false,
        })
    }

    /// From now on it gives every block that was written, to be read back.
    pub fn read_back(&mut self) {
        self.places.iter_mut().for_each(|place| place.next = 0);
        self.turn = 0;
        self.left = u64::MAX;
        self.reading_back = true;
    }

    /// Whether it does.
    #[inline(always)]
    pub fn is_reading_back(&self) -> bool {
        self.reading_back
    }

    /// Whether it has come to its end.
    #[inline(always)]
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    #[inline(always)]
    fn random(&mut self) -> u64 {
        // xorshift64*: two nanoseconds.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// What to ask for now; `None`: nothing, or not now.
    #[inline(always)]
    pub fn draw(&mut self) -> Option<Flight> {
        if self.reading_back {
            return self.next_to_read_back();
        }
        if self.left == 0 {
            return None;
        }
        let disk = self.turn;
        self.turn = if disk + 1 < self.places.len() { disk + 1 } else { 0 };
        if self.places[disk].flush_due {
            self.places[disk].flush_due = false;
            return Some(Flight { op: Op::Flush, disk: disk as u32, ..Flight::default() });
        }
        let op = match self.read_percent {
            100 => Op::Read,
            0 => Op::Write,
            percent => {
                let of_hundred = ((self.random() >> 32) * 100) >> 32;
                if of_hundred < u64::from(percent) { Op::Read } else { Op::Write }
            }
        };
        let mut block = if self.random {
            let random = u128::from(self.random());
            ((random * u128::from(self.places[disk].blocks)) >> 64) as u64
        } else {
            let place = &mut self.places[disk];
            let block = place.next;
            place.next = if block + 1 < place.blocks { block + 1 } else { 0 };
            block
        };
        let place = &mut self.places[disk];
        let mut generation = 0;
        if let Some(generations) = &mut place.generations {
            block = generations.take(block as usize)? as u64;
            generation = match op {
                Op::Write => generations.next(block as usize),
                _ => generations.last(block as usize),
            };
        }
        if op == Op::Write && self.fsync > 0 {
            place.writes += 1;
            place.flush_due = place.writes.is_multiple_of(self.fsync);
        }
        if self.left != u64::MAX {
            self.left -= 1;
        }
        Some(Flight { start_ns: 0, op, disk: disk as u32, block, generation })
    }

    #[cold]
    fn next_to_read_back(&mut self) -> Option<Flight> {
        while let Some(place) = self.places.get_mut(self.turn) {
            let generations = place.generations.as_mut()?;
            if let Some(block) = generations.next_written(place.next as usize) {
                place.next = block as u64 + 1;
                generations.take(block)?;
                let generation = generations.last(block);
                let disk = self.turn as u32;
                return Some(Flight { op: Op::Read, disk, block: block as u64, generation, start_ns: 0 });
            }
            self.turn += 1;
        }
        self.left = 0;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(bytes: u64) -> DiskInfo {
        DiskInfo { address: Address::Blk, bytes, block: 512 }
    }

    #[test]
    fn sequential_requests_cover_each_disk_once() {
        let spec = JobSpec { size: Some(32768), ..JobSpec::default() };
        let mut load = Sequence::new(&spec, &[disk(1 << 20), disk(1 << 20)], 0).unwrap();
        let mut seen: Vec<(u32, u64)> =
            std::iter::from_fn(|| load.draw()).map(|f| (f.disk, f.block)).collect();
        seen.sort_unstable();
        let want: Vec<(u32, u64)> = (0..2).flat_map(|d| (0..8).map(move |b| (d, b))).collect();
        assert_eq!(seen, want);
    }

    #[test]
    fn the_mix_is_what_was_asked_for() {
        let mut spec = JobSpec { time_based: true, ..JobSpec::default() };
        spec.set_rw("randrw", 70).unwrap();
        let mut load = Sequence::new(&spec, &[disk(1 << 30)], 0).unwrap();
        let reads = (0..10_000).filter(|_| load.draw().unwrap().op == Op::Read).count();
        assert!((6800..7200).contains(&reads), "{reads}");
    }

    #[test]
    fn jobs_that_verify_write_blocks_of_their_own() {
        let mut spec = JobSpec { verify: true, count: 2, time_based: true, ..JobSpec::default() };
        spec.set_rw("randwrite", 0).unwrap();
        let loads: Vec<Sequence> =
            (0..2).map(|n| Sequence::new(&spec, &[disk(1 << 20)], n).unwrap()).collect();
        assert_eq!((loads[0].places[0].base, loads[1].places[0].base), (0, 1 << 19));
        assert_eq!(loads[1].places[0].blocks, 128);
    }

    #[test]
    fn what_the_disk_does_not_have_is_refused() {
        let spec = JobSpec { size: Some(2 << 20), ..JobSpec::default() };
        assert!(Sequence::new(&spec, &[disk(1 << 20)], 0).unwrap_err().contains("size"));
        let native = DiskInfo { block: 4096, ..disk(1 << 20) };
        let spec = JobSpec { block: 512, ..JobSpec::default() };
        assert!(Sequence::new(&spec, &[native], 0).unwrap_err().contains("bs"));
    }
}
