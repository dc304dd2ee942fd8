//! Reads and writes of many TAPs' frames with one system call.
//!
//! Owns the pump's io_uring and whatever the kernel may still touch: an operation keeps its file and memory until its
//! completion has been seen. Used by the pump's thread only. Knows no frames.

#![expect(
    unsafe_code,
    reason = "memory that the kernel reads and writes (DESIGN section 6, docs/decisions/0008)"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use super::memory::TapMemory;

/// Entries of the submission queue: a full turn of one port. With more ports a turn takes a call each.
const ENTRIES: u32 = 256;
/// Entries of the completion queue: completions are taken after each submission; what does not fit the kernel keeps (NODROP).
const COMPLETIONS: u32 = 8192;

/// Mark of cancellations, whose own completions say nothing; no operation has this index.
const CANCEL: u64 = u64::MAX;

/// What a completion is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    /// As it was staged.
    pub token: u64,
    /// As the system call would have returned it: bytes or events, or a negative errno.
    pub result: i32,
}

/// What the kernel may touch until the completion.
struct Operation {
    token: u64,
    _file: Arc<OwnedFd>,
    memory: Option<Arc<TapMemory>>,
}

/// See the module.
pub(super) struct Uring {
    ring: IoUring,
    operations: Vec<Option<Operation>>,
    free: Vec<u32>,
    /// Reads and writes that have not completed; polls do not count.
    transfers: usize,
    done: Vec<Done>,
}

// SAFETY: the entries in the submission queue point at memory that `operations` keeps; both move together and the memory
// itself stays in place.
unsafe impl Send for Uring {}

impl Uring {
    /// # Errors
    /// The kernel has no memory for it, or an administrator switched io_uring off.
    pub(super) fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).setup_submit_all();
        Ok(Self {
            ring: builder.build(ENTRIES)?,
            operations: Vec::new(),
            free: Vec::new(),
            transfers: 0,
            done: Vec::new(),
        })
    }

    /// Makes room for a chain of `count` reads: the kernel takes a chain whole or not as one.
    pub(super) fn reserve(&mut self, count: usize) {
        let submission = self.ring.submission();
        let room = submission.capacity() - submission.len();
        drop(submission);
        if room < count {
            self.enter(0);
        }
    }

    /// Stages a read of one frame into the `len` bytes at `addr`. `linked`: the next read that is staged begins when this one has
    /// completed, whatever it came to; so reads complete in order, and one of them waits in the kernel. `false`: there is no
    /// such place.
    pub(super) fn read(
        &mut self,
        file: &Arc<OwnedFd>,
        memory: &Arc<TapMemory>,
        (addr, len): (u64, usize),
        linked: bool,
        token: u64,
    ) -> bool {
        let Some(place) = memory.place(addr, len) else { return false };
        let flags = if linked { squeue::Flags::IO_HARDLINK } else { squeue::Flags::empty() };
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), place, len as u32).build().flags(flags);
        self.stage(entry, token, file, Some(memory));
        true
    }

    /// Stages a write of the frame in the `len` bytes at `addr`. `false`: there is no such place.
    pub(super) fn write(
        &mut self,
        file: &Arc<OwnedFd>,
        memory: &Arc<TapMemory>,
        addr: u64,
        len: usize,
        token: u64,
    ) -> bool {
        let Some(place) = memory.place(addr, len) else { return false };
        let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), place, len as u32).build();
        self.stage(entry, token, file, Some(memory));
        true
    }

    /// Stages a wait for `file` to become readable.
    pub(super) fn poll(&mut self, file: &Arc<OwnedFd>, token: u64) {
        let entry = opcode::PollAdd::new(types::Fd(file.as_raw_fd()), libc::POLLIN as u32).build();
        self.stage(entry, token, file, None);
    }

    /// Ends the operation on `file` that waits, if one does; it completes with an error, after the next submission. The next of
    /// its chain then waits.
    pub(super) fn cancel(&mut self, file: &Arc<OwnedFd>) {
        let which = types::CancelBuilder::fd(types::Fd(file.as_raw_fd())).all();
        self.push(&opcode::AsyncCancel2::new(which).build().user_data(CANCEL));
    }

    fn stage(
        &mut self,
        entry: squeue::Entry,
        token: u64,
        file: &Arc<OwnedFd>,
        memory: Option<&Arc<TapMemory>>,
    ) {
        self.transfers += usize::from(memory.is_some());
        let operation = Operation { token, _file: Arc::clone(file), memory: memory.cloned() };
        let index = match self.free.pop() {
            Some(index) => {
                self.operations[index as usize] = Some(operation);
                index
            }
            None => {
                self.operations.push(Some(operation));
                self.operations.len() as u32 - 1
            }
        };
        self.push(&entry.user_data(u64::from(index)));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry points at belongs to its operation, which stays until its completion has been seen.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.enter(0);
        }
    }

    /// Whether something is staged.
    pub(super) fn has_staged(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Gives everything staged to the kernel and waits for `want` completions (none: does not wait).
    pub(super) fn enter(&mut self, want: usize) {
        // An interrupted or busy call leaves what it did not take in the queue; the next one takes it. Nothing else can fail.
        let _ = self.ring.submit_and_wait(want);
        for entry in self.ring.completion() {
            let index = entry.user_data() as usize;
            if let Some(operation) = self.operations.get_mut(index).and_then(Option::take) {
                self.free.push(index as u32);
                self.transfers -= usize::from(operation.memory.is_some());
                self.done.push(Done { token: operation.token, result: entry.result() });
            }
        }
    }

    /// Moves what has completed to the end of `to`, in the order in which it did.
    pub(super) fn take_done(&mut self, to: &mut Vec<Done>) {
        to.append(&mut self.done);
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel may still write into the memory. Each round ends what waits of each chain.
        while self.transfers > 0 {
            let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build();
            self.push(&entry.user_data(CANCEL));
            self.enter(1);
        }
    }
}
