//! The steps of a request on its medium: begin, and what comes after each access of it.
//!
//! Called by the engine when a request was read, when an access has completed, and when what a job waited for is there.
//! It knows bytes and ranges; which answer an [`Ending`] becomes is the device's (`blk`, `scsi`).

use avio_host::wait::Token;
use avio_proto::mem::GuestPieces;
use avio_proto::ring::{HeldId, Side};

use super::engine::Serving;
use super::job::{Expected, Job, JobId, Place, Stage, Work};
use super::message::{Action, Event, Scope, Ticket};
use crate::backing::{Access, AlignedBuf, Completion, IoError, Memory, Started};
use crate::scsi::Reply;

/// Mark of a COMPARE AND WRITE in the in-flight region: the comparison has held, the write may have been done.
const COMPARED: u8 = 1;
/// Bytes of one access of ours when a command needs several: what a disk does well at once.
const PART_LEN: u64 = 1 << 20;

/// How a request ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// Done; data for the guest are where they belong.
    Good,
    /// The backing failed an access.
    Failed(Access, IoError),
    /// The medium holds something else, this many bytes in.
    Miscompare(u64),
    /// With this answer.
    Reply(Box<Reply>),
    /// Ended from outside with this response.
    Aborted(u8),
}

impl Serving {
    /// Lists a job and begins it.
    pub(super) fn add_job(&mut self, job: Job) {
        job.target.stats.cell(self.worker).began();
        let id = self.jobs.add(job);
        self.begin(id);
    }

    /// Begins a job, unless its limit says not yet.
    pub(super) fn begin(&mut self, id: JobId) {
        let now_ns = self.now_ns;
        let Some(job) = self.jobs.get(id) else { return };
        if let Err(until_ns) = job.target.qos.admit(now_ns, job.bytes) {
            job.stage = Stage::Delayed;
            self.delayed.push((until_ns, id));
            return;
        }
        self.pass_fences(id);
    }

    /// Begins a job that its limit lets through, unless a fence is in the way.
    fn pass_fences(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(id) else { return };
        let fenced = match (&job.work, job.range()) {
            (Work::Ranges { ranges, .. }, _) => {
                ranges.iter().any(|&(offset, len)| job.target.lun.overlap.is_fenced(offset, len))
            }
            (_, Some((offset, len))) => job.target.lun.overlap.is_fenced(offset, len),
            (_, None) => false,
        };
        if fenced {
            job.stage = Stage::Fenced;
            self.fenced.push(id);
            return;
        }
        self.run(id);
    }

    /// The first step.
    fn run(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(id) else { return };
        job.stage = Stage::Begun;
        match &job.work {
            &Work::Access { access, offset, len, place } => self.access(id, access, offset, len, place),
            Work::Ranges { .. } => self.next_range(id, 0),
            &Work::Verify { .. } => self.next_read(id, 0),
            &Work::WriteAndVerify { offset, len, skip, .. } => {
                job.stage = Stage::Writing;
                let place = Some(Place { side: Side::Readable, skip });
                self.access(id, Access::Write { durable: true }, offset, len, place);
            }
            Work::Fill { .. } => self.next_fill(id, 0),
            Work::CompareAndWrite { .. } => self.raise_fence(id),
        }
    }

    /// One access between the request's memory and the medium.
    fn access(&mut self, id: JobId, access: Access, offset: u64, len: u64, place: Option<Place>) {
        let memory = match place {
            None => Memory::None,
            Some(place) => {
                let mut pieces = self.spare_pieces.pop().unwrap_or_default();
                let held = self.jobs.get(id).map(|job| (job.queue, job.held));
                if let Some((queue, held)) = held
                    && let Some(queue) = self.queue(queue)
                {
                    queue.held.data(held, place.side, place.skip, len as usize, &mut pieces);
                }
                Memory::Guest(pieces)
            }
        };
        self.start(id, access, offset, len, memory);
    }

    /// Hands an access to the backing.
    fn start(&mut self, id: JobId, access: Access, offset: u64, len: u64, memory: Memory) {
        let Some(job) = self.jobs.get(id) else { return };
        let timeout = job.target.timeout;
        let Some(backing) = &job.target.backing else {
            return self.end(id, Ending::Failed(access, IoError::Gone));
        };
        match self.io.start(backing, access, offset, len, memory, id.to_u64(), timeout) {
            Started::Pending => job.io_live = true,
            Started::Done(result, memory) => self.stepped(id, access, result, memory),
        }
    }

    /// An access has completed.
    pub(super) fn completed(&mut self, completion: Completion) {
        let Completion { token, access, result, memory } = completion;
        self.stepped(JobId::from_u64(token), access, result, memory);
    }

    /// What comes after an access.
    fn stepped(&mut self, id: JobId, access: Access, result: Result<(), IoError>, memory: Memory) {
        let buffer = self.give_back(access, result.is_ok(), memory);
        let Some(job) = self.jobs.get(id) else { return };
        job.io_live = false;
        if let Some(response) = job.abort {
            return self.end(id, Ending::Aborted(response));
        }
        if let Err(error) = result {
            return self.end(id, Ending::Failed(access, error));
        }
        match (&job.work, &job.stage) {
            (Work::Access { .. }, _) => self.end(id, Ending::Good),
            (Work::Ranges { .. }, &Stage::Part { done }) => self.next_range(id, done + 1),
            (Work::WriteAndVerify { .. }, Stage::Writing) => self.next_read(id, 0),
            (Work::Verify { .. } | Work::WriteAndVerify { .. }, &Stage::Part { done }) => {
                self.verify_part(id, done, buffer);
            }
            (Work::Fill { .. }, &Stage::Part { done }) => {
                job.buffer = buffer;
                self.next_fill(id, done);
            }
            (Work::CompareAndWrite { .. }, Stage::Reading) => self.compare_then_write(id, buffer),
            _ => self.end(id, Ending::Good),
        }
    }

    /// Takes an access's memory back: the guest's pages are marked as written, our own buffer is returned.
    fn give_back(&mut self, access: Access, good: bool, memory: Memory) -> Option<AlignedBuf> {
        match memory {
            Memory::Guest(mut pieces) => {
                if matches!(access, Access::Read) {
                    // What an access that failed may have written counts too.
                    let _ = good;
                    pieces.log_written(usize::MAX);
                }
                pieces.clear();
                self.keep_pieces(pieces);
                None
            }
            Memory::Own(buffer) => Some(buffer),
            Memory::None => None,
        }
    }

    /// Keeps a list for the next access.
    fn keep_pieces(&mut self, pieces: GuestPieces) {
        if self.spare_pieces.len() < self.spare_pieces.capacity() {
            self.spare_pieces.push(pieces);
        }
    }

    fn next_range(&mut self, id: JobId, next: u64) {
        let Some(job) = self.jobs.get(id) else { return };
        let Work::Ranges { access, ranges } = &job.work else { return };
        let Some(&(offset, len)) = ranges.get(next as usize) else { return self.end(id, Ending::Good) };
        let access = *access;
        job.stage = Stage::Part { done: next };
        self.start(id, access, offset, len, Memory::None);
    }

    /// Reads the next part of what is to be verified; `done` bytes have been.
    fn next_read(&mut self, id: JobId, done: u64) {
        let Some(job) = self.jobs.get(id) else { return };
        let (Work::Verify { offset, len, .. } | Work::WriteAndVerify { offset, len, .. }) = job.work else {
            return;
        };
        if done >= len {
            return self.end(id, Ending::Good);
        }
        let part = PART_LEN.min(len - done);
        job.stage = Stage::Part { done };
        let buffer = buffer_of(job.buffer.take(), part);
        self.start(id, Access::Read, offset + done, part, Memory::Own(buffer));
    }

    /// Compares what was read, `done` bytes in.
    fn verify_part(&mut self, id: JobId, done: u64, buffer: Option<AlignedBuf>) {
        let Some(job) = self.jobs.get(id) else { return };
        let (len, expected) = match job.work {
            Work::Verify { len, expected, .. } => (len, expected),
            Work::WriteAndVerify { len, skip, compare, .. } => {
                (len, compare.then_some(Expected { skip, period: len }))
            }
            _ => return,
        };
        let part = PART_LEN.min(len - done);
        let (queue, held) = (job.queue, job.held);
        let Some(buffer) = buffer else { return self.end(id, Ending::Failed(Access::Read, IoError::Gone)) };
        if let Some(expected) = expected
            && let Some(at) = self.differs(queue, held, expected, done, &buffer[..part as usize])
        {
            return self.end(id, Ending::Miscompare(done + at));
        }
        if let Some(job) = self.jobs.get(id) {
            job.buffer = Some(buffer);
        }
        self.next_read(id, done + part);
    }

    /// Where `medium`, read `done` bytes into the range, differs from the request's data.
    fn differs(
        &mut self,
        queue: Token,
        held: HeldId,
        expected: Expected,
        done: u64,
        medium: &[u8],
    ) -> Option<u64> {
        let mut pieces = self.spare_pieces.pop().unwrap_or_default();
        let mut brought = vec![0; medium.len().min(expected.period as usize)];
        let mut at = 0;
        while at < medium.len() {
            // A part never straddles a period: one is a multiple of the other, or there is only one period.
            let from = ((done + at as u64) % expected.period) as usize;
            let want = (medium.len() - at).min(expected.period as usize - from);
            if let Some(queue) = self.queue(queue) {
                queue.held.data(held, Side::Readable, expected.skip + from, want, &mut pieces);
            }
            let got = pieces.copy_to(&mut brought[..want]);
            let (a, b) = (&medium[at..at + want], &brought[..got]);
            if a != b {
                let first = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(got);
                pieces.clear();
                self.keep_pieces(pieces);
                return Some((at + first) as u64);
            }
            at += want;
        }
        pieces.clear();
        self.keep_pieces(pieces);
        None
    }

    /// Writes the pattern for the next part; `done` bytes have it.
    fn next_fill(&mut self, id: JobId, done: u64) {
        let Some(job) = self.jobs.get(id) else { return };
        let Work::Fill { offset, len, pattern, durable } = &job.work else { return };
        if done >= *len {
            return self.end(id, Ending::Good);
        }
        let (offset, durable) = (offset + done, *durable);
        let part = PART_LEN.min(len - done);
        let buffer = match job.buffer.take() {
            Some(buffer) => buffer,
            None => {
                let mut buffer = buffer_of(None, part);
                for place in buffer.chunks_mut(pattern.len()) {
                    place.copy_from_slice(&pattern[..place.len()]);
                }
                buffer
            }
        };
        job.stage = Stage::Part { done: done + part };
        self.start(id, Access::Write { durable }, offset, part, Memory::Own(buffer));
    }

    /// COMPARE AND WRITE: first the range must be ours alone.
    fn raise_fence(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(id) else { return };
        let Work::CompareAndWrite { offset, len, .. } = job.work else { return };
        let lun = job.target.lun.id;
        let Some(fence) = job.target.lun.overlap.raise(offset, len) else {
            job.stage = Stage::Fenced;
            self.fenced.push(id);
            return;
        };
        job.fence = Some(fence);
        job.stage = Stage::Clearing;
        let scope = Scope { lun: Some(lun), range: Some((offset, len)), ..Scope::default() };
        self.wait_for_fence(id, scope);
    }

    /// COMPARE AND WRITE: the range is ours alone.
    pub(super) fn fence_is_clear(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(id) else { return };
        let Work::CompareAndWrite { offset, len, .. } = job.work else { return };
        if let Some(response) = job.abort {
            return self.end(id, Ending::Aborted(response));
        }
        job.stage = Stage::Reading;
        self.start(id, Access::Read, offset, len, Memory::Own(buffer_of(None, len)));
    }

    fn compare_then_write(&mut self, id: JobId, buffer: Option<AlignedBuf>) {
        let Some(job) = self.jobs.get(id) else { return };
        let Work::CompareAndWrite { offset, len, skip, durable } = job.work else { return };
        let (queue, held) = (job.queue, job.held);
        let block = job.target.lun.unit.block_size() as usize;
        job.stage = Stage::Writing;
        let Some(buffer) = buffer else { return self.end(id, Ending::Failed(Access::Read, IoError::Gone)) };
        let medium = &buffer[..len as usize];
        let matched = self.queue(queue).is_some_and(|queue| queue.marked(held) == COMPARED);
        if matched {
            // A predecessor has compared and was about to write: see `is_between`.
            if !self.is_between(queue, held, skip, medium, block) {
                return self.end(id, Ending::Good);
            }
        } else {
            let expected = Expected { skip, period: len };
            if let Some(at) = self.differs(queue, held, expected, 0, medium) {
                return self.end(id, Ending::Miscompare(at));
            }
            if let Some(queue) = self.queue(queue) {
                queue.mark(held, COMPARED);
            }
        }
        let place = Some(Place { side: Side::Readable, skip: skip + len as usize });
        self.access(id, Access::Write { durable }, offset, len, place);
    }

    /// Whether each block of `medium` is one of the two that a COMPARE AND WRITE brought for it: what was there before its
    /// write, or what the write left. Then the write is done (again). Anything else was written by somebody who came after
    /// it, for it had the range for itself: the write is done, and must not be done again.
    fn is_between(&mut self, queue: Token, held: HeldId, skip: usize, medium: &[u8], block: usize) -> bool {
        let mut brought = vec![0; skip + 2 * medium.len()];
        let Some(queue) = self.queue(queue) else { return false };
        if queue.read_front(held, &mut brought) < brought.len() {
            return false;
        }
        let (old, new) = brought[skip..].split_at(medium.len());
        let halves = old.chunks(block).zip(new.chunks(block));
        medium.chunks(block).zip(halves).all(|(now, (old, new))| now == old || now == new)
    }

    /// A job is over: its fence goes, who waited for it looks again, its request is answered.
    pub(super) fn end(&mut self, id: JobId, ending: Ending) {
        let Some(mut job) = self.jobs.remove(id) else { return };
        if let Some(fence) = job.fence.take() {
            job.target.lun.overlap.lower(fence);
            if self.workers > 1 {
                self.events.send(Event::FenceLowered { worker: self.worker, lun: job.target.lun.id });
            }
        }
        self.answer(&job, ending);
        if !self.waiting.is_empty() {
            self.look_at_waiting = true;
        }
    }

    /// Begins again what a fence stopped, if any fence has gone since.
    pub(super) fn retry_fenced(&mut self) {
        for id in std::mem::take(&mut self.fenced) {
            self.pass_fences(id);
        }
    }

    /// Begins what a limit stopped, as far as it is time; `all`: whatever the limits say.
    pub(super) fn retry_delayed(&mut self, all: bool) {
        let now_ns = self.now_ns;
        let mut i = 0;
        while i < self.delayed.len() {
            let (until_ns, id) = self.delayed[i];
            if until_ns > now_ns && !all {
                i += 1;
                continue;
            }
            self.delayed.remove(i);
            if all { self.pass_fences(id) } else { self.begin(id) }
        }
    }

    /// A ticket of this worker.
    pub(super) fn new_ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket::new(self.worker, self.tickets)
    }

    /// Ends a job from outside, as soon as nobody holds its memory.
    pub(super) fn abort(&mut self, id: JobId, response: u8) {
        let Some(job) = self.jobs.get(id) else { return };
        job.abort = Some(response);
        let waits_for_others = matches!(job.stage, Stage::Clearing);
        if job.io_live {
            self.io.cancel(id.to_u64());
        } else if !waits_for_others {
            self.fenced.retain(|&other| other != id);
            self.delayed.retain(|&(_, other)| other != id);
            self.end(id, Ending::Aborted(response));
        }
    }

    /// Applies `action` to a job that is in scope.
    pub(super) fn act(&mut self, id: JobId, action: Action) {
        match action {
            Action::Wait | Action::Look => {}
            Action::Abort(response) => self.abort(id, response),
        }
    }
}

/// A buffer of at least `len` bytes.
fn buffer_of(kept: Option<AlignedBuf>, len: u64) -> AlignedBuf {
    kept.filter(|buffer| buffer.len() as u64 >= len).unwrap_or_else(|| AlignedBuf::zeroed(len as usize))
}
