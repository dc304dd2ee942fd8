//! An access on its way: which operations of the kernel's it is made of, one after another, and how it ends.
//!
//! Called by [`Io`], on its worker. Copies through memory of ours where the guest's is not aligned, goes on after short transfers, zeroes by writing where
//! the file system knows no better. Waits for nothing and looks at no clock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::io::Errno;

use super::at_once::{in_memory, null};
use super::{Completion, Io, Started};
use crate::backing::file::{PUNCH_HOLE, ZERO_RANGE};
use crate::backing::{Access, Backing, FileMedium, IoError, Medium, Memory};
use crate::uring::{AlignedBuf, Call, Done};

/// Bytes written at once where zeroes have to be written.
const ZEROES_LEN: u64 = 1 << 20;

/// What an access is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
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
pub(super) struct Running {
    pub(super) token: u64,
    pub(super) backing: Arc<Backing>,
    pub(super) access: Access,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Bytes that are done.
    pub(super) done: u64,
    pub(super) step: Step,
    /// Held back, or not begun: here. With the kernel: there.
    pub(super) memory: Memory,
    /// The guest's memory while memory of ours is with the kernel.
    pub(super) bounced: Option<Memory>,
    pub(super) deadline: Instant,
    /// Its completion was given out without its memory; the kernel still has it.
    pub(super) given_up: bool,
    /// It is a read that was cancelled for its lateness and that the kernel still has.
    pub(super) late: bool,
    /// The kernel had no use for the registered buffer: it goes without.
    pub(super) plain: bool,
}

impl Running {
    /// Whether the kernel may do it, or complete it, on a thread: all but reads, and reads where it always does.
    #[inline]
    pub(super) fn may_need_thread(&self) -> bool {
        !matches!(self.access, Access::Read)
            || matches!(self.backing.medium, Medium::File(FileMedium { by_threads: true, .. }))
    }
}

impl Io {
    /// The first step of an access whose time has come.
    pub(super) fn begin(&mut self, index: u32) {
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
    pub(super) fn stepped(&mut self, done: Done) {
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

    /// The kernel has read or written `count` bytes: the rest follows, if there is one.
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

    /// The kernel has written `count` zeroes: the rest follows, if there is one.
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

    /// An access has ended: its completion is given out, and its memory, with the guest's bytes where it read into ours.
    pub(super) fn finish(&mut self, index: u32, result: Result<(), IoError>) {
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
