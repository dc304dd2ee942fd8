//! One request queue at work: asking for what comes next, taking back, whether that was right.
//!
//! Owns a turn: take back, check, ask again. [`super::run`] calls it in a loop; it never waits, allocates nothing, and a read
//! costs one cache line each way: chains stay in the ring, only the head changes.

use super::command::{KINDS, Op, complaint, status, submit};
use super::content;
use super::device::DiskInfo;
use super::load::JobSpec;
use super::sequence::{Flight, Place, Sequence};
use crate::latency::{Latency, now_ns};
use avio_guest::storage::{Done, RequestQueue};
use avio_proto::ring::RingError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Completions taken back in one turn.
const BURST: usize = 64;

/// After so many requests the device sees them. Linux's and SPDK's drivers show it each one.
const PART: usize = 8;

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

/// What one lane asks for.
#[derive(Debug)]
pub struct Load {
    block: u32,
    verify: bool,
    writes: bool,
    sequence: Sequence,
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
        Ok(Self {
            block: spec.block as u32,
            verify: spec.verify,
            writes: spec.writes(),
            sequence: Sequence::new(spec, disks, number)?,
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
        self.sequence.read_back();
        true
    }

    /// Where a request goes: its disk, and the first byte there.
    #[inline(always)]
    fn place(&self, flight: Flight) -> (&Place, u64) {
        let place = &self.sequence.places[flight.disk as usize];
        (place, place.base + flight.block * u64::from(self.block))
    }

    /// Writes the request into `slot` and submits it.
    #[inline(always)]
    fn ask(&mut self, queue: &mut RequestQueue, slot: u16, flight: Flight) {
        let (place, offset) = self.place(flight);
        let (tag, disk) = (place.tag, (place.address, place.block_size));
        if flight.op == Op::Write && self.verify {
            content::fill(&mut self.buffer, tag, offset, flight.generation);
            queue.data(slot).copy_from(&self.buffer);
        }
        self.flights[usize::from(slot)] = flight;
        let submitted = submit(queue, slot, disk, flight.op, (offset, self.block));
        // Slots and ring were made for this depth and block.
        debug_assert!(submitted, "a slot that is free has room in the ring");
    }

    /// Looks at an answer.
    #[inline(always)]
    fn answered(&mut self, queue: &RequestQueue, slot: u16, now_ns: u64) {
        let flight = self.flights[usize::from(slot)];
        let status = status(queue, slot, self.place(flight).0.address);
        if self.sequence.is_reading_back() {
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
            && let Some(generations) = &mut self.sequence.places[flight.disk as usize].generations
        {
            generations.done(flight.block as usize);
        }
    }

    #[cold]
    fn failed(&mut self, flight: Flight, status: u32) {
        self.tally.errors += 1;
        let (place, offset) = self.place(flight);
        let (tag, text) = (place.tag, complaint(status, place.address));
        let line = || format!("{:?} of byte {offset} of target {tag}: {text}", flight.op);
        self.tally.complaint.get_or_insert_with(line);
    }

    fn check(&mut self, queue: &RequestQueue, slot: u16, flight: Flight) {
        // What an earlier run left there is not this run's to judge while it writes.
        if self.writes && flight.generation == 0 {
            return;
        }
        let (place, offset) = self.place(flight);
        let tag = place.tag;
        queue.data(slot).copy_to(&mut self.buffer);
        self.tally.verified += 1;
        if let Err(wrong) = content::check(&self.buffer, tag, offset, flight.generation) {
            self.tally.corrupt += 1;
            let line = || format!("block at byte {offset} of target {tag} {wrong}");
            self.tally.complaint.get_or_insert_with(line);
        }
    }
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
        let asking = self.live.asking.load(Ordering::Relaxed) || self.load.sequence.is_reading_back();
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
                match if asking { load.sequence.draw() } else { None } {
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
            let Some(mut flight) = load.sequence.draw() else {
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
        if self.queue.in_flight() == 0 && (self.load.sequence.is_over() || !asking) {
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
        if self.load.sequence.is_reading_back() || !self.load.read_back() {
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
    use crate::iogen::device::Address;

    /// A queue hands out all of its slots in turn, however few requests the job has in flight.
    #[test]
    fn every_slot_of_the_queue_has_a_place() {
        let spec = JobSpec { iodepth: 32, ..JobSpec::default() };
        let disk = DiskInfo { address: Address::Blk, bytes: 1 << 20, block: 512 };
        let load = Load::new(&spec, &[disk], 0, 128).unwrap();
        assert_eq!((load.depth, load.flights.len()), (32, 128));
    }
}
