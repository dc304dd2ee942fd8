//! Requests that are being worked on, and where each of them stands.
//!
//! A job is made when a request cannot be answered at once and ends with exactly one answer. The table is a worker's own;
//! it grows when rings are added, not when requests come.

use std::sync::Arc;

use avio_host::wait::Token;
use avio_proto::ring::{HeldId, Side};

use super::message::{Scope, Ticket};
use crate::adapter::{AdapterId, Target};
use crate::backing::{Access, AlignedBuf};
use crate::lun::{Class, Fence};
use crate::scsi::Reply;

/// Names a job until it has ended; goes to the kernel and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JobId {
    index: u32,
    generation: u32,
}

impl JobId {
    /// As the number that an I/O carries.
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// Of the number that an I/O carries.
    pub fn from_u64(token: u64) -> Self {
        Self { index: token as u32, generation: (token >> 32) as u32 }
    }
}

/// Where an access finds its memory in the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub side: Side,
    /// Bytes in front of the data.
    pub skip: usize,
}

/// What a request asks of the medium, in bytes.
#[derive(Debug)]
pub(super) enum Work {
    /// One access; `place` is where its data are in the request.
    Access { access: Access, offset: u64, len: u64, place: Option<Place> },
    /// The same access for each range.
    Ranges { access: Access, ranges: Vec<(u64, u64)> },
    /// Reads, and compares with the data that the request brought, if `expected` says where they are.
    Verify { offset: u64, len: u64, expected: Option<Expected> },
    /// Writes, then verifies.
    WriteAndVerify { offset: u64, len: u64, skip: usize, compare: bool },
    /// Writes the same bytes over and over; `pattern` divides `len`.
    Fill { offset: u64, len: u64, pattern: Vec<u8>, durable: bool },
    /// Writes the second half of the data if the medium holds the first half, with nobody in between.
    CompareAndWrite { offset: u64, len: u64, skip: usize, durable: bool },
}

/// What a verification compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// Bytes of the request in front of it.
    pub skip: usize,
    /// Length after which it repeats, in bytes: the whole, or one block.
    pub period: u64,
}

/// Where a job stands.
#[derive(Debug)]
pub(super) enum Stage {
    /// Not begun, or its memory is with the kernel: see `io_live`.
    Begun,
    /// A fence is in the way.
    Fenced,
    /// A limit says not yet.
    Delayed,
    /// Has a fence and waits for those that began before.
    Clearing,
    /// Reading what is to be compared.
    Reading,
    /// Writing.
    Writing,
    /// One of several ranges, or parts, is under way.
    Part {
        /// How many are done, or bytes of them.
        done: u64,
    },
    /// The answer may go out when the state is durable, and when so many questions about commands that it ended are answered
    /// (PREEMPT AND ABORT).
    Journal { version: u64, durable: bool, aborting: u32, reply: Box<Reply> },
}

/// One request under way.
#[derive(Debug)]
pub(super) struct Job {
    pub queue: Token,
    pub held: HeldId,
    pub adapter: AdapterId,
    /// The driver's name for the command (virtio-scsi), 0 for virtio-blk.
    pub tag: u64,
    /// Has a backing, unless it is a command that touches none.
    pub target: Arc<Target>,
    /// Jobs are numbered as they begin.
    pub serial: u64,
    pub class: Class,
    /// Data of the request, for the numbers.
    pub bytes: u64,
    pub started_ns: u64,
    pub work: Work,
    pub stage: Stage,
    /// The kernel, or a timer, has an access of it.
    pub io_live: bool,
    /// It ends with this response as soon as nobody holds its memory.
    pub abort: Option<u8>,
    pub fence: Option<Fence>,
    /// Memory of ours between two steps.
    pub buffer: Option<AlignedBuf>,
}

impl Job {
    /// The bytes of the medium that it touches; `None`: all of them (a flush orders nothing and touches none).
    pub fn range(&self) -> Option<(u64, u64)> {
        match &self.work {
            Work::Access { access: Access::Flush, .. } | Work::Ranges { .. } => None,
            Work::Access { offset, len, .. }
            | Work::Verify { offset, len, .. }
            | Work::WriteAndVerify { offset, len, .. }
            | Work::Fill { offset, len, .. }
            | Work::CompareAndWrite { offset, len, .. } => Some((*offset, *len)),
        }
    }

    /// Whether any of its bytes are among those.
    pub fn touches(&self, range: (u64, u64)) -> bool {
        match &self.work {
            Work::Ranges { ranges, .. } => ranges.iter().any(|&r| crate::lun::overlaps(r, range)),
            _ => self.range().is_some_and(|r| crate::lun::overlaps(r, range)),
        }
    }

    /// Whether its steps have begun: it looked for fences and found none.
    pub fn has_begun(&self) -> bool {
        !matches!(self.stage, Stage::Fenced | Stage::Delayed | Stage::Journal { .. })
    }

    /// Whether `scope` means it.
    pub fn is_in(&self, scope: &Scope) -> bool {
        scope.lun.is_none_or(|lun| lun == self.target.lun.id)
            && scope.adapter.is_none_or(|adapter| adapter == self.adapter)
            && scope.target.is_none_or(|target| target == self.target.number)
            && scope.tag.is_none_or(|tag| tag == self.tag)
            && scope.range.is_none_or(|range| self.touches(range))
    }
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    job: Option<Job>,
}

/// All jobs of a worker.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    slots: Vec<Slot>,
    free: Vec<u32>,
    serial: u64,
    /// Entries of all rings: so many jobs there can be.
    wanted: usize,
}

impl Jobs {
    /// A ring of `count` entries has come: makes room, so that requests do not.
    pub fn reserve(&mut self, count: usize) {
        self.wanted += count;
        self.grow(self.wanted.saturating_sub(self.slots.len()));
    }

    /// A ring of `count` entries has gone. Its room is the next one's.
    pub fn release(&mut self, count: usize) {
        self.wanted = self.wanted.saturating_sub(count);
    }

    fn grow(&mut self, count: usize) {
        let at = self.slots.len();
        self.slots.resize_with(at + count, Slot::default);
        self.free.reserve(self.slots.len());
        self.free.extend((at..at + count).rev().map(|i| i as u32));
    }

    /// The number of the next job.
    pub fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The number of the last job.
    pub fn last_serial(&self) -> u64 {
        self.serial
    }

    pub fn add(&mut self, job: Job) -> JobId {
        if self.free.is_empty() {
            self.grow(64);
        }
        let index = self.free.pop().unwrap_or_default();
        let slot = &mut self.slots[index as usize];
        slot.job = Some(job);
        JobId { index, generation: slot.generation }
    }

    pub fn get(&mut self, id: JobId) -> Option<&mut Job> {
        self.slots
            .get_mut(id.index as usize)
            .filter(|slot| slot.generation == id.generation)
            .and_then(|slot| slot.job.as_mut())
    }

    pub fn remove(&mut self, id: JobId) -> Option<Job> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        let job = slot.job.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(job)
    }

    /// All jobs. Long: for rare commands only.
    pub fn iter(&self) -> impl Iterator<Item = (JobId, &Job)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let id = JobId { index: index as u32, generation: slot.generation };
            slot.job.as_ref().map(|job| (id, job))
        })
    }
}

/// Somebody who waits until requests are gone.
#[derive(Debug)]
pub(super) struct Waiting {
    pub ticket: Ticket,
    pub scope: Scope,
    /// Only jobs up to this serial number are meant.
    pub serial: u64,
    /// A job that does not count: the one that waits.
    pub except: Option<JobId>,
    pub matched: u32,
    pub who: Waiter,
}

impl Waiting {
    /// Whether this job is one that must be gone first. Who waits for a range does not wait for those that the fence around
    /// it stops: they look at the fence when they begin.
    pub fn still_waits_for(&self, id: JobId, job: &Job) -> bool {
        job.serial <= self.serial
            && Some(id) != self.except
            && job.is_in(&self.scope)
            && (self.scope.range.is_none() || job.has_begun())
    }
}

impl Waiter {
    /// What says whether other workers have not all answered; control asks each of them itself.
    pub fn remote(&mut self) -> Option<&mut bool> {
        match self {
            Self::Control => None,
            Self::Task { remote, .. }
            | Self::Fence { remote, .. }
            | Self::Query { remote, .. }
            | Self::Preempt { remote, .. } => Some(remote),
        }
    }
}

/// Who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// Control: it gets an event.
    Control,
    /// A task management function; `remote`: other workers have not all answered.
    Task { queue: Token, held: HeldId, response: u8, remote: bool },
    /// A COMPARE AND WRITE.
    Fence { job: JobId, remote: bool },
    /// QUERY TASK and QUERY TASK SET: whether there was anything.
    Query { queue: Token, held: HeldId, remote: bool },
    /// A PREEMPT AND ABORT, for the commands of one initiator.
    Preempt { job: JobId, remote: bool },
}
