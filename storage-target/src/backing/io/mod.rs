//! A worker's way to all backings: what completes at once, what goes to the kernel, and what is in between.
//!
//! Owned by one worker's engine. Has the accesses under way, each of which goes its steps (`steps`); media without a kernel are done on the spot
//! (`at_once`). Holds back what a `fault:` delays, and gives up what takes too long. Never blocks but in [`Io::wait`].

mod at_once;
mod pace;
mod steps;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use avio_proto::mem::MemoryTable;
use rustix::io::Errno;

use self::at_once::{in_memory, null};
use self::pace::Pace;
use self::steps::{Running, Step};
use super::{Access, Backing, IoError, Medium, Memory, Woken};
use crate::uring::{Capabilities, Done, Pin, Pinned, Ring, Unpinned};

/// How often deadlines are looked at: timeouts are whole seconds.
const DEADLINE_LOOK: Duration = Duration::from_millis(250);

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
    pace: Pace,
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
            pace: Pace::new(now),
        }
    }

    /// Whether nothing has begun or completed for a moment, and nothing will complete for longer than `cost`, as it seems from what
    /// was waited for before.
    #[inline]
    #[must_use]
    pub fn is_long_wait(&self, cost: Duration) -> bool {
        self.in_flight() > 0 && self.pace.is_long_wait(cost)
    }

    /// Whether threads of the kernel's may be waiting for this core to go on with what is under way: those of io_uring, which
    /// takes up there what it cannot begin without waiting, which is everything on some devices, and those that complete writes of a file
    /// system. Meant for
    /// who has just found nothing with [`reap`](Self::reap), and would go on looking.
    #[inline]
    #[must_use]
    pub fn may_need_core(&self) -> bool {
        self.in_flight() > 0 && (self.threaded > 0 || self.pace.is_slow_read())
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
        self.pace.at(now);
    }

    /// When [`reap`](Self::reap) looked last.
    #[inline]
    #[must_use]
    pub fn looked(&self) -> Instant {
        self.pace.looked()
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
        let now = self.pace.begins();
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
            self.pace.submitted(given, completed);
        }
    }

    /// How many requests to begin together at most, of `budget`. Where the kernel does all of an access while it is given to it, as
    /// with disks of memory, a long batch would keep its answers from a guest that could be asking for more meanwhile: the two would
    /// wait for one another in turn.
    #[inline]
    #[must_use]
    pub fn batch_max(&self, budget: usize) -> usize {
        self.pace.batch_max(budget)
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
        self.pace.reaped(now, !self.completions.is_empty());
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

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Io({} in flight)", self.in_flight())
    }
}
