//! One request queue at work: what it asks for next, what came back, whether that was right.
//!
//! Owns a turn: take back, check, ask again. [`super::run`] calls it in a loop; it never waits, allocates nothing, and a read
//! costs one cache line each way: chains stay in the ring, only the head changes.

use super::content::{self, Generations};
use super::device::{Address, DiskInfo};
use super::load::JobSpec;
use crate::latency::{Latency, now_ns};
use avio_guest::storage::{Done, RequestQueue, Transfer};
use avio_proto::ring::RingError;
use avio_proto::virtio::blk::{self, RequestHeader, SECTOR_LEN};
use avio_proto::virtio::scsi::{CDB_LEN, CommandRequest, CommandResponse, Lun};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Completions taken back in one turn.
const BURST: usize = 64;

/// After so many requests the device sees them. Linux's and SPDK's drivers show it each one.
const PART: usize = 8;

/// Reads, writes, flushes.
pub const KINDS: usize = 3;

/// What a request does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Reads a block.
    #[default]
    Read,
    /// Writes a block.
    Write,
    /// Flushes the disk's cache.
    Flush,
}

/// Counters that others read while a lane runs. Single writer, relaxed, on lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Live {
    /// Requests that have ended, by [`Op`].
    pub done: [AtomicU64; KINDS],
    /// Written by the director: go on asking.
    pub asking: AtomicBool,
    /// Requests in flight.
    pub in_flight: AtomicU64,
    /// When the last request of the window ended, ns; 0: it goes on.
    pub finished_ns: AtomicU64,
    /// Nothing more will be asked for, and what was to be read back has been.
    pub settled: AtomicBool,
    /// Blocks that were read back.
    pub read_back: AtomicU64,
    /// Turns.
    pub polls: AtomicU64,
    /// Turns that found nothing.
    pub empty_polls: AtomicU64,
    /// Kicks sent.
    pub kicks: AtomicU64,
    /// Signals received.
    pub signals: AtomicU64,
}

/// What a lane brings back beside its live counters.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By [`Op`], of the window.
    pub latency: [Latency; KINDS],
    /// Requests that did not end well.
    pub errors: u64,
    /// Blocks whose content was checked.
    pub verified: u64,
    /// Blocks that were wrong.
    pub corrupt: u64,
    /// What the first error was.
    pub complaint: Option<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flight {
    start_ns: u64,
    op: Op,
    disk: u32,
    block: u64,
    generation: u32,
}

/// One disk as this lane uses it.
#[derive(Debug)]
struct Place {
    address: Address,
    /// For messages and for blocks that name themselves.
    tag: u32,
    block_size: u32,
    /// First byte.
    base: u64,
    /// Blocks of the job's size.
    blocks: u64,
    /// The next one of a sequential pattern.
    next: u64,
    generations: Option<Generations>,
    writes: u32,
    flush_due: bool,
}

/// What one lane asks for.
#[derive(Debug)]
pub struct Load {
    block: u32,
    random: bool,
    read_percent: u32,
    fsync: u32,
    verify: bool,
    writes: bool,
    places: Vec<Place>,
    turn: usize,
    state: u64,
    /// Requests that are left; `u64::MAX`: no end but time.
    left: u64,
    /// Reads back what was written instead.
    reading_back: bool,
    read_back_count: u64,
    /// Most requests in flight.
    depth: usize,
    /// By slot.
    flights: Vec<Flight>,
    done: Box<[Done; BURST]>,
    counts: [u64; KINDS],
    polls: u64,
    empty_polls: u64,
    buffer: Vec<u8>,
    /// What it found.
    pub tally: Tally,
}

impl Load {
    /// The load of job number `number` of `spec.count` on `disks`, through a queue with `slots` slots.
    ///
    /// # Errors
    /// Which option asks for more than the disk has.
    pub fn new(spec: &JobSpec, disks: &[DiskInfo], number: u16, slots: u16) -> Result<Self, String> {
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
            block: spec.block as u32,
            random: spec.pattern.random,
            read_percent: spec.pattern.read_percent,
            fsync: spec.fsync,
            verify: spec.verify,
            writes: spec.writes(),
            places,
            turn: 0,
            // Jobs differ, runs do not: fio's randrepeat.
            state: 0x9e37_79b9_7f4a_7c15 ^ u64::from(number).wrapping_mul(0xd6e8_feb8_6659_fd93),
            left: if spec.time_based { u64::MAX } else { total },
            reading_back: false,
            read_back_count: 0,
            depth: usize::from(spec.iodepth),
            flights: vec![Flight::default(); usize::from(slots.max(spec.iodepth))],
            done: Box::new([Done::default(); BURST]),
            counts: [0; KINDS],
            polls: 0,
            empty_polls: 0,
            buffer: vec![0; if spec.verify { spec.block as usize } else { 0 }],
            tally: Tally::default(),
        })
    }

    /// Forgets latencies: the window begins.
    pub fn clear_latency(&mut self) {
        self.tally.latency.iter_mut().for_each(Latency::clear);
    }

    /// From now on reads every block back that was written; false: there is nothing to read back.
    pub fn read_back(&mut self) -> bool {
        if !self.verify || !self.writes {
            return false;
        }
        self.places.iter_mut().for_each(|place| place.next = 0);
        self.turn = 0;
        self.left = u64::MAX;
        self.reading_back = true;
        true
    }

    #[inline(always)]
    fn random(&mut self) -> u64 {
        // xorshift64*: two nanoseconds.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// What comes next; `None`: nothing, or not now.
    #[inline(always)]
    fn next(&mut self) -> Option<Flight> {
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

    /// Writes the request into `slot` and submits it.
    #[inline(always)]
    fn ask(&mut self, queue: &mut RequestQueue, slot: u16, flight: Flight) {
        let place = &self.places[flight.disk as usize];
        let offset = place.base + flight.block * u64::from(self.block);
        let transfer = match flight.op {
            Op::Read => Transfer::In(self.block),
            Op::Write => Transfer::Out(self.block),
            Op::Flush => Transfer::None,
        };
        if flight.op == Op::Write && self.verify {
            content::fill(&mut self.buffer, place.tag, offset, flight.generation);
            queue.data(slot).copy_from(&self.buffer);
        }
        self.flights[usize::from(slot)] = flight;
        let submitted = match place.address {
            Address::Blk => {
                let kind = match flight.op {
                    Op::Read => blk::T_IN,
                    Op::Write => blk::T_OUT,
                    Op::Flush => blk::T_FLUSH,
                };
                let sector = if flight.op == Op::Flush { 0 } else { offset / SECTOR_LEN };
                queue.head(slot).copy_from(&RequestHeader { kind, sector }.to_bytes());
                queue.submit(slot, RequestHeader::LEN as u32, 1, transfer)
            }
            Address::Scsi(target) => {
                let block = u64::from(place.block_size);
                let cdb = cdb(flight.op, offset / block, self.block / place.block_size);
                let lun = Lun::target(target).encode();
                let request = CommandRequest { lun, id: u64::from(slot), cdb, ..CommandRequest::default() };
                queue.head(slot).copy_from(&request.to_bytes());
                queue.submit(slot, CommandRequest::LEN as u32, CommandResponse::LEN as u32, transfer)
            }
        };
        // Slots and ring were made for this depth and block.
        debug_assert!(submitted, "a slot that is free has room in the ring");
    }

    /// Looks at an answer.
    #[inline(always)]
    fn answered(&mut self, queue: &RequestQueue, slot: u16, now_ns: u64) {
        let flight = self.flights[usize::from(slot)];
        let place = &self.places[flight.disk as usize];
        let status = match place.address {
            Address::Blk => u32::from(queue.response(slot).read::<1>(0).map_or(0xff, |b| b[0])),
            Address::Scsi(_) => {
                let head = queue.response(slot).read::<{ CommandResponse::HEAD_LEN }>(0);
                // Residual, status and response are all zero when all is well (virtio 1.3 §5.6.6.1).
                head.map_or(0xff, |b| {
                    u32::from(b[10])
                        | u32::from(b[11]) << 8
                        | u32::from_le_bytes([b[4], b[5], b[6], b[7]]).min(1) << 16
                })
            }
        };
        if self.reading_back {
            self.read_back_count += 1;
        } else {
            self.counts[flight.op as usize] += 1;
            self.tally.latency[flight.op as usize].record(now_ns.saturating_sub(flight.start_ns));
        }
        if status != 0 {
            self.failed(flight, status);
        } else if self.verify && flight.op == Op::Read {
            self.check(queue, slot, flight);
        }
        if self.verify
            && flight.op != Op::Flush
            && let Some(generations) = &mut self.places[flight.disk as usize].generations
        {
            generations.done(flight.block as usize);
        }
    }

    #[cold]
    fn failed(&mut self, flight: Flight, status: u32) {
        self.tally.errors += 1;
        let place = &self.places[flight.disk as usize];
        let offset = place.base + flight.block * u64::from(self.block);
        let text = match place.address {
            Address::Blk => format!("status {status}"),
            Address::Scsi(_) => {
                format!(
                    "status {:#x}, response {}, residual {}",
                    status & 0xff,
                    status >> 8 & 0xff,
                    status >> 16
                )
            }
        };
        let line = || format!("{:?} of byte {offset} of target {}: {text}", flight.op, place.tag);
        self.tally.complaint.get_or_insert_with(line);
    }

    fn check(&mut self, queue: &RequestQueue, slot: u16, flight: Flight) {
        let place = &self.places[flight.disk as usize];
        // What an earlier run left there is not this run's to judge while it writes.
        if self.writes && flight.generation == 0 {
            return;
        }
        let offset = place.base + flight.block * u64::from(self.block);
        queue.data(slot).copy_to(&mut self.buffer);
        self.tally.verified += 1;
        if let Err(wrong) = content::check(&self.buffer, place.tag, offset, flight.generation) {
            self.tally.corrupt += 1;
            let line = || format!("block at byte {offset} of target {} {wrong}", place.tag);
            self.tally.complaint.get_or_insert_with(line);
        }
    }
}

fn cdb(op: Op, lba: u64, blocks: u32) -> [u8; CDB_LEN] {
    let mut cdb = [0; CDB_LEN];
    match (op, u32::try_from(lba)) {
        (Op::Flush, _) => cdb[0] = 0x35,
        // What Linux's sd uses as long as it can: READ (10), WRITE (10) (SBC-4 5.12, 5.40).
        (_, Ok(lba)) if blocks <= 0xffff => {
            cdb[0] = if op == Op::Read { 0x28 } else { 0x2a };
            cdb[2..6].copy_from_slice(&lba.to_be_bytes());
            cdb[7..9].copy_from_slice(&(blocks as u16).to_be_bytes());
        }
        _ => {
            cdb[0] = if op == Op::Read { 0x88 } else { 0x8a };
            cdb[2..10].copy_from_slice(&lba.to_be_bytes());
            cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
        }
    }
    cdb
}

/// A queue, its load, and what others may see of it.
#[derive(Debug)]
pub struct Lane<'a> {
    /// The ring.
    pub queue: &'a mut RequestQueue,
    /// What it is asked for.
    pub load: &'a mut Load,
    /// What others read.
    pub live: &'a Live,
}

impl Lane<'_> {
    /// One turn; returns how many requests ended.
    ///
    /// # Errors
    /// When the device broke the ring.
    #[inline]
    pub fn turn(&mut self) -> Result<usize, RingError> {
        let asking = self.live.asking.load(Ordering::Relaxed) || self.load.reading_back;
        let Self { queue, load, .. } = self;
        let count = queue.poll(&mut load.done[..])?;
        load.polls += 1;
        if count == 0 {
            load.empty_polls += 1;
        }
        let mut now = 0;
        if count > 0 {
            now = now_ns();
            for i in 0..count {
                let slot = load.done[i].slot;
                load.answered(queue, slot, now);
                match if asking { load.next() } else { None } {
                    Some(mut flight) => {
                        flight.start_ns = now;
                        load.ask(queue, slot, flight);
                    }
                    None => queue.give(slot),
                }
                if (i + 1) % PART == 0 {
                    queue.expose();
                }
            }
        }
        let mut asked = count > 0;
        while asking
            && queue.in_flight() < load.depth
            && let Some(slot) = queue.take()
        {
            let Some(mut flight) = load.next() else {
                queue.give(slot);
                break;
            };
            flight.start_ns = if now == 0 { now_ns() } else { now };
            load.ask(queue, slot, flight);
            asked = true;
        }
        if asked {
            queue.flush();
            self.publish();
        }
        if self.queue.in_flight() == 0 && (self.load.left == 0 || !asking) {
            self.rest();
        }
        Ok(count)
    }

    /// Nothing is in flight and nothing is asked for: the window is over, then what was written is read back.
    #[cold]
    fn rest(&mut self) {
        self.publish();
        if self.live.finished_ns.load(Ordering::Relaxed) == 0 {
            self.live.finished_ns.store(now_ns(), Ordering::Release);
        }
        if self.load.reading_back || !self.load.read_back() {
            self.live.settled.store(true, Ordering::Release);
        }
    }

    fn publish(&self) {
        let set = |cell: &AtomicU64, value| cell.store(value, Ordering::Relaxed);
        for (cell, &count) in self.live.done.iter().zip(&self.load.counts) {
            set(cell, count);
        }
        set(&self.live.in_flight, self.queue.in_flight() as u64);
        set(&self.live.read_back, self.load.read_back_count);
        set(&self.live.polls, self.load.polls);
        set(&self.live.empty_polls, self.load.empty_polls);
        set(&self.live.kicks, self.queue.kicks());
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
        let mut load = Load::new(&spec, &[disk(1 << 20), disk(1 << 20)], 0, 1).unwrap();
        let mut seen: Vec<(u32, u64)> =
            std::iter::from_fn(|| load.next()).map(|f| (f.disk, f.block)).collect();
        seen.sort_unstable();
        let want: Vec<(u32, u64)> = (0..2).flat_map(|d| (0..8).map(move |b| (d, b))).collect();
        assert_eq!(seen, want);
    }

    #[test]
    fn the_mix_is_what_was_asked_for() {
        let mut spec = JobSpec { time_based: true, ..JobSpec::default() };
        spec.set_rw("randrw", 70).unwrap();
        let mut load = Load::new(&spec, &[disk(1 << 30)], 0, 1).unwrap();
        let reads = (0..10_000).filter(|_| load.next().unwrap().op == Op::Read).count();
        assert!((6800..7200).contains(&reads), "{reads}");
    }

    #[test]
    fn jobs_that_verify_write_blocks_of_their_own() {
        let mut spec = JobSpec { verify: true, count: 2, time_based: true, ..JobSpec::default() };
        spec.set_rw("randwrite", 0).unwrap();
        let loads: Vec<Load> = (0..2).map(|n| Load::new(&spec, &[disk(1 << 20)], n, 1).unwrap()).collect();
        assert_eq!((loads[0].places[0].base, loads[1].places[0].base), (0, 1 << 19));
        assert_eq!(loads[1].places[0].blocks, 128);
    }

    /// A queue hands out all of its slots in turn, however few requests the job has in flight.
    #[test]
    fn every_slot_of_the_queue_has_a_place() {
        let spec = JobSpec { iodepth: 32, ..JobSpec::default() };
        let load = Load::new(&spec, &[disk(1 << 20)], 0, 128).unwrap();
        assert_eq!((load.depth, load.flights.len()), (32, 128));
    }

    #[test]
    fn what_the_disk_does_not_have_is_refused() {
        let spec = JobSpec { size: Some(2 << 20), ..JobSpec::default() };
        assert!(Load::new(&spec, &[disk(1 << 20)], 0, 1).unwrap_err().contains("size"));
        let native = DiskInfo { block: 4096, ..disk(1 << 20) };
        let spec = JobSpec { block: 512, ..JobSpec::default() };
        assert!(Load::new(&spec, &[native], 0, 1).unwrap_err().contains("bs"));
    }

    #[test]
    fn long_disks_take_long_commands() {
        assert_eq!(cdb(Op::Read, 7, 8)[..10], [0x28, 0, 0, 0, 0, 7, 0, 0, 8, 0]);
        assert_eq!(cdb(Op::Write, 1 << 32, 8)[..16], [0x8a, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0]);
    }
}
