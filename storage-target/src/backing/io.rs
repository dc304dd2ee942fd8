//! A worker's way to all backings: what completes at once, what goes to the kernel, and what is in between.
//!
//! Owned by one worker's engine. Turns an access into operations of the kernel's: copies through memory of ours where the
//! guest's is not aligned, goes on after short transfers, zeroes by writing where the file system knows no better, holds
//! back what a `fault:` delays, and gives up what takes too long.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use avio_proto::mem::MemoryTable;
use rustix::io::Errno;

use super::file::{PUNCH_HOLE, ZERO_RANGE};
use super::{Access, Backing, FileMedium, IoError, Medium, Memory, Woken};
use crate::uring::{AlignedBuf, Call, Capabilities, Done, Pin, Pinned, Ring, Unpinned};

/// Bytes written at once where zeroes have to be written.
const ZEROES_LEN: u64 = 1 << 20;
/// How often deadlines are looked at: timeouts are whole seconds.
const DEADLINE_LOOK: Duration = Duration::from_millis(250);

/// How long reads alone may take before the kernel is thought to need a thread of its own for one: interrupts complete them
/// almost always, and a look whether any thread wants the core delays that by microseconds.
const READ_PATIENCE: Duration = Duration::from_micros(100);

/// How long a guest that polls may take for the next of several requests, each an answer to one of ours.
const DRIBBLE: Duration = Duration::from_micros(5);
/// A wait counts as at most this long: a disk that has stood still must be believed to be fast again within a dozen accesses.
const WAIT_CEILING: Duration = Duration::from_micros(200);

/// Requests that are begun together when the kernel completes them at once: half of the usual depth of 32, so that the guest has the
/// other half ready in time, and enough that what a turn costs is little for each.
const AT_ONCE_MAX: usize = 16;

/// An access that has completed.
#[derive(Debug)]
pub struct Completion {
    /// As it was started.
    pub token: u64,
    /// What it was.
    pub access: Access,
    /// How it ended.
    pub result: Result<(), IoError>,
    /// Its memory.
    pub memory: Memory,
}

/// What became of an access when it was started.
#[derive(Debug)]
pub enum Started {
    /// It is complete.
    Done(Result<(), IoError>, Memory),
    /// Its [`Completion`] will come.
    Pending,
}

/// What an access is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// To be begun then.
    Held(Instant),
    /// The kernel reads or writes.
    Transfer,
    /// The kernel changes what a range holds without data.
    Range,
    /// The kernel writes zeroes.
    Zeroes,
    /// The kernel makes it durable.
    Sync,
}

/// An access under way.
struct Running {
    token: u64,
    backing: Arc<Backing>,
    access: Access,
    offset: u64,
    len: u64,
    /// Bytes that are done.
    done: u64,
    step: Step,
    /// Held back, or not begun: here. With the kernel: there.
    memory: Memory,
    /// The guest's memory while memory of ours is with the kernel.
    bounced: Option<Memory>,
    deadline: Instant,
    /// Its completion was given out without its memory; the kernel still has it.
    given_up: bool,
    /// It is a read that was cancelled for its lateness and that the kernel still has.
    late: bool,
    /// The kernel had no use for the registered buffer: it goes without.
    plain: bool,
}

impl Running {
    /// Whether the kernel may do it, or complete it, on a thread: all but reads, and reads where it always does.
    #[inline]
    fn may_need_thread(&self) -> bool {
        !matches!(self.access, Access::Read)
            || matches!(self.backing.medium, Medium::File(FileMedium { by_threads: true, .. }))
    }
}

/// A worker's access to backings.
pub struct Io {
    capabilities: Capabilities,
    /// Made on the worker's thread when it is first needed.
    ring: Option<Ring>,
    running: Vec<Option<Running>>,
    free: Vec<u32>,
    /// Accesses that are held back.
    held_count: usize,
    done: Vec<Done>,
    completions: Vec<Completion>,
    next_look: Instant,
    /// Accesses under way that a thread of the kernel's may have to do.
    threaded: usize,
    /// When something last began or completed, and when that was last looked at, or a batch begun.
    progress: Instant,
    looked: Instant,
    /// Something was looked for in vain since.
    in_vain: bool,
    /// Running mean of the time that it took until something completed, when nothing had at first.
    mean_wait: Duration,
    /// Most of what the kernel was given last was complete when it returned.
    completes_at_once: bool,
}

impl Io {
    /// Access by rings made as `capabilities` says.
    #[must_use]
    pub fn new(capabilities: Capabilities) -> Self {
        let now = Instant::now();
        Self {
            capabilities,
            ring: None,
            running: Vec::new(),
            free: Vec::new(),
            held_count: 0,
            done: Vec::new(),
            completions: Vec::new(),
            next_look: now,
            threaded: 0,
            progress: now,
            looked: now,
            in_vain: false,
            mean_wait: Duration::ZERO,
            completes_at_once: false,
        }
    }

    /// Whether nothing has begun or completed for a moment, and nothing will complete for longer than `cost`, as it seems from what
    /// was waited for before.
    #[inline]
    #[must_use]
    pub fn is_long_wait(&self, cost: Duration) -> bool {
        self.in_flight() > 0
            && self.mean_wait > cost
            && self.looked.saturating_duration_since(self.progress) > DRIBBLE
    }

    /// Whether threads of the kernel's may be waiting for this core to go on with what is under way: those of io_uring, which
    /// takes up there what it cannot begin without waiting, which is everything on some devices, and those that complete writes of a file
    /// system. Meant for
    /// who has just found nothing with [`reap`](Self::reap), and would go on looking.
    #[inline]
    #[must_use]
    pub fn may_need_core(&self) -> bool {
        self.in_flight() > 0
            && (self.threaded > 0 || self.looked.saturating_duration_since(self.progress) > READ_PATIENCE)
    }

    /// Accesses that are pending, those included that were given up and that the kernel still has, and those whose completion
    /// waits to be taken by [`reap`](Self::reap).
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.running.len() - self.free.len() + self.completions.len()
    }

    /// The time of a batch whose accesses are about to be started: reading the clock for each costs as much as an access's lists.
    #[inline]
    pub fn set_now(&mut self, now: Instant) {
        self.looked = now;
    }

    /// When [`reap`](Self::reap) looked last.
    #[inline]
    #[must_use]
    pub fn looked(&self) -> Instant {
        self.looked
    }

    /// Begins an access of `len` bytes at `offset`. The caller has checked the range against the size.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one property of the access, and there is one caller"
    )]
    pub fn start(
        &mut self,
        backing: &Arc<Backing>,
        access: Access,
        offset: u64,
        len: u64,
        mut memory: Memory,
        token: u64,
        timeout: Duration,
    ) -> Started {
        if backing.is_stuck() {
            return Started::Done(Err(IoError::TimedOut), memory);
        }
        let mut delay = Duration::ZERO;
        if let Some(faults) = &backing.faults {
            if let Some(error) = faults.error(access, offset, len) {
                return Started::Done(Err(error), memory);
            }
            delay = faults.delay(access);
        }
        if delay.is_zero() {
            match &backing.medium {
                Medium::Null => return null(access, memory),
                Medium::Memory(store) => {
                    let good = in_memory(store, access, offset, len, &mut memory);
                    return Started::Done(if good { Ok(()) } else { Err(IoError::Gone) }, memory);
                }
                Medium::File(_) => {}
            }
        }
        let now = self.looked;
        self.progress = now;
        let running = Running {
            token,
            backing: Arc::clone(backing),
            access,
            offset,
            len,
            done: 0,
            step: if delay.is_zero() { Step::Transfer } else { Step::Held(Instant::now() + delay) },
            memory,
            bounced: None,
            deadline: now + timeout,
            given_up: false,
            late: false,
            plain: false,
        };
        let index = self.add(running);
        if delay.is_zero() {
            self.begin(index);
        } else {
            self.held_count += 1;
        }
        Started::Pending
    }

    /// Gives the kernel everything that was begun: one call a batch.
    #[inline]
    pub fn flush_submissions(&mut self) {
        if let Some(ring) = &mut self.ring {
            let (given, completed) = ring.flush();
            if given > 0 {
                self.completes_at_once = completed * 2 > given;
            }
        }
    }

    /// How many requests to begin together at most, of `budget`. Where the kernel does all of an access while it is given to it, as
    /// with disks of memory, a long batch would keep its answers from a guest that could be asking for more meanwhile: the two would
    /// wait for one another in turn.
    #[inline]
    #[must_use]
    pub fn batch_max(&self, budget: usize) -> usize {
        if self.completes_at_once { budget.min(AT_ONCE_MAX) } else { budget }
    }

    /// Moves accesses that have completed into `sink`.
    pub fn reap(&mut self, sink: &mut Vec<Completion>) {
        if let Some(ring) = &mut self.ring {
            ring.reap(&mut self.done);
        }
        if !self.done.is_empty() {
            let mut done = std::mem::take(&mut self.done);
            done.drain(..).for_each(|done| self.stepped(done));
            self.done = done;
        }
        if self.held_count > 0 {
            self.begin_due();
        }
        let now = Instant::now();
        self.looked = now;
        if self.completions.is_empty() {
            self.in_vain = true;
        } else {
            if std::mem::take(&mut self.in_vain) {
                let wait = now.saturating_duration_since(self.progress).min(WAIT_CEILING);
                self.mean_wait = self.mean_wait - self.mean_wait / 8 + wait / 8;
            }
            self.progress = now;
        }
        if now >= self.next_look {
            self.next_look = now + DEADLINE_LOOK;
            self.give_up_late(now);
        }
        self.flush_submissions();
        sink.append(&mut self.completions);
    }

    /// Takes an access back, if that is possible: one that is held back at once, one that the kernel has when the kernel
    /// lets go of it. The completion comes in any case.
    pub fn cancel(&mut self, token: u64) {
        let found = self.running.iter().position(|r| r.as_ref().is_some_and(|r| r.token == token));
        let Some(index) = found else { return };
        match self.running[index].as_ref().map(|r| r.step) {
            Some(Step::Held(_)) => self.finish(index as u32, Err(IoError::Os(Errno::CANCELED))),
            _ => {
                if let Some(ring) = &mut self.ring {
                    ring.cancel(index as u64);
                    ring.flush();
                }
            }
        }
    }

    /// Sleeps until an access completes, the epoll set `set` has something, or `timeout` is over.
    pub fn wait(&mut self, set: BorrowedFd<'_>, timeout: Option<Duration>) -> Woken {
        if !self.completions.is_empty() {
            // What was taken back is complete without the kernel.
            return Woken { kicked: false, completed: true };
        }
        let now = Instant::now();
        let due = self.running.iter().flatten().filter_map(|r| match r.step {
            Step::Held(at) => Some(at.saturating_duration_since(now)),
            _ => None,
        });
        let due = if self.held_count > 0 { due.min() } else { None };
        // Deadlines must be looked at while nothing comes.
        let timeout = due.into_iter().chain(timeout).fold(DEADLINE_LOOK, Duration::min);
        self.ring().wait(set, Some(timeout))
    }

    /// Lets go of files that no LUN has any more.
    pub fn release_files(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.release_files();
        }
    }

    /// Registers a guest's memory for one of its rings: see [`Ring::pin`]. The worker's thread.
    pub fn pin(&mut self, memory: &MemoryTable) -> Pinned {
        self.ring().pin(memory)
    }

    /// Gives back what [`pin`](Self::pin) gave, when none of the ring's accesses is pending.
    pub fn unpin(&mut self, pin: Pin) -> Unpinned {
        self.ring().unpin(pin)
    }

    /// See [`Ring::forget_buffers`].
    #[cfg(test)]
    pub fn forget_buffers(&mut self) {
        self.ring().forget_buffers();
    }

    fn ring(&mut self) -> &mut Ring {
        let capabilities = self.capabilities;
        self.ring.get_or_insert_with(|| match Ring::new(capabilities) {
            Ok(ring) => ring,
            // The same was possible when the daemon started; without it no request can be served.
            Err(error) => panic!("io_uring: {error}"),
        })
    }

    fn add(&mut self, running: Running) -> u32 {
        self.threaded += usize::from(running.may_need_thread());
        match self.free.pop() {
            Some(index) => {
                self.running[index as usize] = Some(running);
                index
            }
            None => {
                self.running.push(Some(running));
                self.running.len() as u32 - 1
            }
        }
    }

    fn begin_due(&mut self) {
        let now = Instant::now();
        for index in 0..self.running.len() {
            let due =
                matches!(&self.running[index], Some(Running { step: Step::Held(at), .. }) if *at <= now);
            if due {
                self.held_count -= 1;
                self.begin(index as u32);
            }
        }
    }

    /// The first step of an access whose time has come.
    fn begin(&mut self, index: u32) {
        let Some(running) = &mut self.running[index as usize] else { return };
        let mut memory = std::mem::replace(&mut running.memory, Memory::None);
        let step = match running.access {
            Access::Read | Access::Write { .. } => Step::Transfer,
            Access::Discard | Access::WriteZeroes { .. } => Step::Range,
            Access::Flush => Step::Sync,
        };
        running.step = step;
        if matches!(running.backing.medium, Medium::File(_)) {
            let memory = if step == Step::Transfer { bounce(running, memory) } else { memory };
            return self.submit(index, memory);
        }
        // Seldom: what needs no kernel was held back for a while.
        let backing = Arc::clone(&running.backing);
        match &backing.medium {
            Medium::File(_) => {}
            Medium::Null => {
                let Started::Done(result, memory) = null(running.access, memory) else { return };
                running.memory = memory;
                self.finish(index, result);
            }
            Medium::Memory(store) => {
                let good = in_memory(store, running.access, running.offset, running.len, &mut memory);
                running.memory = memory;
                self.finish(index, if good { Ok(()) } else { Err(IoError::Gone) });
            }
        }
    }

    /// The next operation of an access.
    fn submit(&mut self, index: u32, memory: Memory) {
        self.ring();
        let Self { running, ring: Some(ring), .. } = self else { return };
        let Some(running) = &running[index as usize] else { return };
        let Medium::File(file) = &running.backing.medium else { return };
        let (offset, left) = (running.offset + running.done, running.len - running.done);
        let skip = running.done as usize;
        let call = match (running.step, running.access) {
            (Step::Transfer, Access::Read) => Call::Read { offset, len: left as usize, skip },
            (Step::Transfer, Access::Write { durable }) => {
                Call::Write { offset, len: left as usize, skip, durable: durable && !file.writes_through }
            }
            (Step::Range, Access::WriteZeroes { unmap: false }) => {
                Call::Allocate { mode: ZERO_RANGE, offset, len: left }
            }
            (Step::Range, _) => Call::Allocate { mode: PUNCH_HOLE, offset, len: left },
            (Step::Zeroes, _) => {
                let len = left.min(ZEROES_LEN) as usize;
                Call::Write { offset, len, skip: 0, durable: false }
            }
            _ => Call::Sync,
        };
        // `running.backing` keeps the file open until the operation is back.
        ring.submit(&file.fd, call, memory, u64::from(index), running.plain);
    }

    /// What comes after an operation.
    fn stepped(&mut self, done: Done) {
        let Done { token, result, memory, fixed } = done;
        let index = token as u32;
        let Some(running) = self.running.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if running.given_up {
            // It came back after all: the backing lives.
            running.backing.stuck.fetch_sub(1, Ordering::Relaxed);
            self.threaded -= usize::from(running.may_need_thread());
            self.running[index as usize] = None;
            self.free.push(index);
            return;
        }
        let Medium::File(FileMedium { writes_through, .. }) = running.backing.medium else { return };
        let error = (result < 0).then(|| Errno::from_raw_os_error(-result));
        match (running.step, error) {
            (_, Some(Errno::INTR | Errno::AGAIN)) => self.submit(index, memory),
            // If it was the buffer, it is none of the guest's business.
            (Step::Transfer, Some(Errno::FAULT | Errno::INVAL | Errno::OPNOTSUPP)) if fixed => {
                running.plain = true;
                self.submit(index, memory);
            }
            (Step::Transfer, None) => self.transferred(index, result as u64, memory),
            (Step::Zeroes, None) => self.zeroed(index, result as u64, memory),
            (Step::Range, None) => {
                running.memory = memory;
                self.sync_after(index, writes_through);
            }
            // The file system or device has no such operation. A discard is a hint; zeroes are not.
            (Step::Range, Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)) => match running.access {
                Access::WriteZeroes { .. } => {
                    running.step = Step::Zeroes;
                    let buffer = AlignedBuf::zeroed(running.len.min(ZEROES_LEN) as usize);
                    self.submit(index, Memory::Own(buffer));
                }
                _ => self.finish(index, Ok(())),
            },
            (_, Some(error)) => {
                running.memory = memory;
                let gone = matches!(error, Errno::NODEV | Errno::NXIO | Errno::BADF | Errno::NOMEDIUM);
                self.finish(
                    index,
                    Err(match error {
                        // Only we cancel, and only what is late or aborted.
                        Errno::CANCELED => IoError::TimedOut,
                        _ if gone => IoError::Gone,
                        error => IoError::Os(error),
                    }),
                );
            }
            (_, None) => {
                running.memory = memory;
                self.finish(index, Ok(()));
            }
        }
    }

    fn transferred(&mut self, index: u32, count: u64, mut memory: Memory) {
        let Some(running) = &mut self.running[index as usize] else { return };
        running.done += count;
        if count == 0 {
            // The file ends before the disk does: somebody has cut it.
            running.memory = memory;
            return self.finish(index, Err(IoError::Gone));
        }
        if running.done < running.len {
            if let Memory::Guest(pieces) = &mut memory {
                if matches!(running.access, Access::Read) {
                    pieces.log_written(count as usize);
                }
                pieces.advance(count as usize);
            }
            return self.submit(index, memory);
        }
        running.memory = memory;
        self.finish(index, Ok(()));
    }

    fn zeroed(&mut self, index: u32, count: u64, memory: Memory) {
        let Some(running) = &mut self.running[index as usize] else { return };
        running.done += count;
        if count == 0 {
            return self.finish(index, Err(IoError::Gone));
        }
        if running.done < running.len {
            return self.submit(index, memory);
        }
        self.finish(index, Ok(()));
    }

    /// Allocation is no write: O_DSYNC does not make it durable.
    fn sync_after(&mut self, index: u32, writes_through: bool) {
        let Some(running) = &mut self.running[index as usize] else { return };
        if !writes_through {
            return self.finish(index, Ok(()));
        }
        running.step = Step::Sync;
        self.submit(index, Memory::None);
    }

    fn finish(&mut self, index: u32, result: Result<(), IoError>) {
        let Some(mut running) = self.running[index as usize].take() else { return };
        self.free.push(index);
        self.threaded -= usize::from(running.may_need_thread());
        if matches!(running.step, Step::Held(_)) {
            self.held_count -= 1;
        }
        if running.late {
            running.backing.stuck.fetch_sub(1, Ordering::Relaxed);
        }
        let mut memory = std::mem::replace(&mut running.memory, Memory::None);
        if let Some(guest) = running.bounced.take() {
            if let (Memory::Own(own), Memory::Guest(pieces), Access::Read, Ok(())) =
                (&memory, &guest, running.access, result)
            {
                pieces.copy_from(&own[..running.len as usize]);
            }
            memory = guest;
        }
        let Running { token, access, .. } = running;
        self.completions.push(Completion { token, access, result, memory });
    }

    /// Gives up what takes too long. The kernel keeps the memory of a write until it lets go of it, and the guest is told
    /// now. A read is cancelled and waited for: the kernel may still write into memory that the guest would use for
    /// something else.
    fn give_up_late(&mut self, now: Instant) {
        for index in 0..self.running.len() {
            let Some(running) = &mut self.running[index] else { continue };
            if running.given_up || running.deadline > now {
                continue;
            }
            match (running.step, running.access) {
                (Step::Held(_), _) => self.finish(index as u32, Err(IoError::TimedOut)),
                (_, Access::Read) if running.bounced.is_none() => {
                    running.deadline = now + Duration::from_secs(1);
                    if !std::mem::replace(&mut running.late, true) {
                        // Until it is back, whatever else is asked of the backing fails at once.
                        running.backing.stuck.fetch_add(1, Ordering::Relaxed);
                    }
                    if let Some(ring) = &mut self.ring {
                        ring.cancel(index as u64);
                    }
                }
                _ => {
                    running.given_up = true;
                    running.backing.stuck.fetch_add(1, Ordering::Relaxed);
                    let (token, access) = (running.token, running.access);
                    let memory = running.bounced.take().unwrap_or(Memory::None);
                    let result = Err(IoError::TimedOut);
                    self.completions.push(Completion { token, access, result, memory });
                }
            }
        }
    }
}

/// Replaces the guest's memory by memory of ours where the disk could not use it.
fn bounce(running: &mut Running, memory: Memory) -> Memory {
    let align = running.backing.limits.memory_align as usize;
    match memory {
        Memory::Guest(pieces) if !pieces.is_aligned(align) => {
            let mut own = AlignedBuf::zeroed(running.len as usize);
            if matches!(running.access, Access::Write { .. }) {
                pieces.copy_to(&mut own);
            }
            running.bounced = Some(Memory::Guest(pieces));
            Memory::Own(own)
        }
        memory => memory,
    }
}

/// Reads zeroes, forgets the rest.
fn null(access: Access, mut memory: Memory) -> Started {
    if matches!(access, Access::Read) {
        match &mut memory {
            // What a guest reads from nothing is nothing: its buffer is not touched.
            Memory::Guest(_) | Memory::None => {}
            Memory::Own(own) => own.fill(0),
        }
    }
    Started::Done(Ok(()), memory)
}

fn in_memory(store: &super::MemoryStore, access: Access, offset: u64, len: u64, memory: &mut Memory) -> bool {
    match (access, memory) {
        (Access::Read, Memory::Own(own)) => store.read_own(offset, &mut own[..len as usize]),
        (Access::Read, Memory::Guest(pieces)) => store.read(offset, pieces),
        (Access::Write { .. }, Memory::Guest(pieces)) => store.write(offset, pieces),
        (Access::Write { .. }, Memory::Own(own)) => store.write_own(offset, &own[..len as usize]),
        (Access::Discard | Access::WriteZeroes { .. }, _) => store.zero(offset, len),
        _ => true,
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Io({} in flight)", self.in_flight())
    }
}
