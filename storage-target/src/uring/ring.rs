//! One io_uring and the operations that it has.
//!
//! Owned by a worker; made on its thread, because the kernel then lets nobody else submit. Operations are staged, go to the
//! kernel together, and come back with their memory.

#![expect(
    unsafe_code,
    reason = "the kernel reads and writes memory that operations own (DESIGN section 6: uring)"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use avio_proto::mem::{GuestPieces, MemoryTable};
use io_uring::{IoUring, opcode, squeue, types};

use super::fixed::{FixedTable, SLOTS};
use super::{AlignedBuf, Capabilities, Pin, PinError, Pinned, Unpinned};

/// Entries of the submission queue; what does not fit waits in a list. Two full batches of a worker.
const ENTRIES: u32 = 256;
/// Entries of the completion queue: more operations than that are possible, the kernel then keeps the rest (NODROP).
const COMPLETIONS: u32 = 2048;
/// Places for registered files.
const FILES: u32 = 1024;
/// Most pieces of one vectored operation (IOV_MAX); the rest is transferred by the next one.
const PIECES_MAX: usize = 1024;
/// Mark of the operation that watches the epoll set; no operation has this index.
const WATCH: u64 = u64::MAX;
/// Mark of cancellations, whose own completions say nothing.
const CANCEL: u64 = u64::MAX - 1;

/// Memory of one access; the operation's until it completes.
#[derive(Debug)]
pub enum Memory {
    /// None: flushes, discards.
    None,
    /// The guest's.
    Guest(GuestPieces),
    /// Ours.
    Own(AlignedBuf),
}

/// What the kernel is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Read into the memory. `skip` bytes of memory of ours are done already; guest pieces are advanced instead.
    Read {
        /// Place in the file, bytes.
        offset: u64,
        /// Bytes.
        len: usize,
        /// Bytes of our memory in front.
        skip: usize,
    },
    /// Write the memory.
    Write {
        /// Place in the file, bytes.
        offset: u64,
        /// Bytes.
        len: usize,
        /// Bytes of our memory in front.
        skip: usize,
        /// Complete when it is durable (RWF_DSYNC).
        durable: bool,
    },
    /// fdatasync(2).
    Sync,
    /// fallocate(2).
    Allocate {
        /// FALLOC_FL_*.
        mode: i32,
        /// Place in the file, bytes.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// An operation that has come back.
#[derive(Debug)]
pub struct Done {
    /// As it was submitted.
    pub token: u64,
    /// As the system call would have returned: bytes, or a negative errno.
    pub result: i32,
    /// Its memory.
    pub memory: Memory,
    /// It used a registered buffer.
    pub fixed: bool,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// The epoll set has something.
    pub kicked: bool,
    /// Operations have completed.
    pub completed: bool,
}

struct Operation {
    token: u64,
    memory: Memory,
    fixed: bool,
}

/// A file in the table of registered ones.
struct Registered {
    file: Weak<OwnedFd>,
}

/// Memory in a registered buffer.
#[derive(Clone, Copy)]
struct Fixed {
    start: *mut u8,
    len: u32,
    slot: u16,
}

/// The submission queue entry of `$call` on `$file`, a registered file or a descriptor: the library has a sealed trait for the
/// two, so this is no function.
macro_rules! entry {
    ($file:expr, $call:expr, $memory:expr, $fixed:expr) => {
        match ($call, $memory, $fixed) {
            // The one piece of `pieces`, which stay with the operation; the kernel checks that it lies in the buffer.
            (Call::Read { offset, .. }, Memory::Guest(_), Some(Fixed { start, len, slot })) => {
                opcode::ReadFixed::new($file, start, len, slot).offset(offset).build()
            }
            (Call::Write { offset, durable, .. }, Memory::Guest(_), Some(Fixed { start, len, slot })) => {
                let write = opcode::WriteFixed::new($file, start, len, slot);
                write.offset(offset).rw_flags(write_flags(durable)).build()
            }
            // A slice of guest memory is laid out as `struct iovec`. The kernel copies the list when it takes the entry; until
            // then, and for the bytes until the completion, `pieces` stay with the operation.
            (Call::Read { offset, .. }, Memory::Guest(pieces), None) => {
                // One piece needs no list, which the kernel would have to copy and to keep.
                if let Some((start, len)) = only_piece(pieces) {
                    opcode::Read::new($file, start, len).offset(offset).build()
                } else {
                    let slices = pieces.slices();
                    let count = slices.len().min(PIECES_MAX) as u32;
                    opcode::Readv::new($file, slices.as_ptr().cast(), count).offset(offset).build()
                }
            }
            (Call::Write { offset, durable, .. }, Memory::Guest(pieces), None) => {
                if let Some((start, len)) = only_piece(pieces) {
                    let write = opcode::Write::new($file, start, len);
                    write.offset(offset).rw_flags(write_flags(durable)).build()
                } else {
                    let slices = pieces.slices();
                    let count = slices.len().min(PIECES_MAX) as u32;
                    let writev = opcode::Writev::new($file, slices.as_ptr().cast(), count);
                    writev.offset(offset).rw_flags(write_flags(durable)).build()
                }
            }
            (Call::Read { offset, len, skip }, Memory::Own(buffer), _) => {
                let part = &mut buffer[skip..skip + len];
                opcode::Read::new($file, part.as_mut_ptr(), len as u32).offset(offset).build()
            }
            (Call::Write { offset, len, skip, durable }, Memory::Own(buffer), _) => {
                let part = &buffer[skip..skip + len];
                let write = opcode::Write::new($file, part.as_ptr(), len as u32);
                write.offset(offset).rw_flags(write_flags(durable)).build()
            }
            (Call::Sync, ..) => opcode::Fsync::new($file).flags(types::FsyncFlags::DATASYNC).build(),
            (Call::Allocate { mode, offset, len }, ..) => {
                opcode::Fallocate::new($file, len).offset(offset).mode(mode).build()
            }
            // Without memory there is nothing to transfer.
            (Call::Read { .. } | Call::Write { .. }, Memory::None, _) => opcode::Nop::new().build(),
        }
    };
}

/// First byte and length of guest memory that is one piece.
#[inline]
fn only_piece(pieces: &GuestPieces) -> Option<(*mut u8, u32)> {
    let [piece] = pieces.slices() else { return None };
    // SAFETY: a slice of guest memory is laid out as `struct iovec`; it is only looked at.
    let iovec = unsafe { &*std::ptr::from_ref(piece).cast::<libc::iovec>() };
    Some((iovec.iov_base.cast(), u32::try_from(iovec.iov_len).ok()?))
}

fn write_flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

/// A worker's ring.
pub struct Ring {
    uring: IoUring,
    operations: Vec<Option<Operation>>,
    free: Vec<u32>,
    /// Entries for which the submission queue had no room, oldest first.
    backlog: VecDeque<squeue::Entry>,
    files: Option<Vec<Registered>>,
    /// Whether memory can be registered, and whether the kernel has a table for it.
    fixed_buffers: bool,
    has_table: bool,
    fixed: FixedTable,
    /// Operations that the kernel has, or will have.
    in_flight: usize,
    watching: bool,
    done: Vec<Done>,
    kicked: bool,
}

// SAFETY: the submission queue entries in `backlog` point at memory that `operations` own; both move together, and the memory
// itself stays in place. With a single issuer the kernel refuses other threads; a ring is made where it is used.
unsafe impl Send for Ring {}

impl Ring {
    /// A ring, made on the thread that will use it.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn new(capabilities: Capabilities) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).setup_submit_all();
        if capabilities.defer_taskrun {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        } else {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        let uring: IoUring = builder.build(ENTRIES)?;
        let mut files = None;
        if capabilities.registered_files {
            uring.submitter().register_files_sparse(FILES)?;
            files = Some(Vec::new());
        }
        Ok(Self {
            uring,
            operations: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            files,
            fixed_buffers: capabilities.fixed_buffers,
            has_table: false,
            fixed: FixedTable::default(),
            in_flight: 0,
            watching: false,
            done: Vec::new(),
            kicked: false,
        })
    }

    /// Operations that have been submitted and not been taken by [`reap`](Self::reap).
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.in_flight + self.done.len()
    }

    /// Stages an operation; [`flush`](Self::flush) gives it to the kernel. `plain`: registered buffers are not used. The caller keeps
    /// `file` open until the operation has come back: until the kernel has taken it, only a number stands for the file.
    pub fn submit(&mut self, file: &Arc<OwnedFd>, call: Call, mut memory: Memory, token: u64, plain: bool) {
        let place = if plain { None } else { self.fixed_place(&memory) };
        let entry = match self.descriptor(file) {
            Ok(fixed) => entry!(fixed, call, &mut memory, place),
            Err(fd) => entry!(fd, call, &mut memory, place),
        };
        let operation = Operation { token, memory, fixed: place.is_some() };
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
        self.in_flight += 1;
        self.stage(entry.user_data(u64::from(index)));
    }

    /// Where `memory` is registered: if it is the guest's, one piece, and lies in one buffer.
    #[inline]
    fn fixed_place(&mut self, memory: &Memory) -> Option<Fixed> {
        let Memory::Guest(pieces) = memory else { return None };
        let (start, len) = only_piece(pieces)?;
        let slot = self.fixed.find(start as usize, len as usize)?;
        Some(Fixed { start, len, slot })
    }

    /// Registers the memory of a guest that has promised to keep it in place, for one of its rings: operations on one piece of
    /// it cost the kernel less then. What cannot be registered is served without. Faults in and pins all of the memory, which
    /// takes the kernel up to a few hundred milliseconds for each GiB.
    pub fn pin(&mut self, memory: &MemoryTable) -> Pinned {
        if !self.fixed_buffers {
            return Pinned { error: Some(PinError::Facility), ..Pinned::default() };
        }
        if !self.has_table {
            if let Err(error) = self.uring.submitter().register_buffers_sparse(SLOTS as u32) {
                return Pinned { error: Some(PinError::Limit(error)), ..Pinned::default() };
            }
            self.has_table = true;
        }
        let submitter = self.uring.submitter();
        self.fixed.pin(memory, |slot, start, len| {
            let buffer = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: len };
            // SAFETY: the addresses lie in a mapping that the table keeps as long as they are registered.
            unsafe { submitter.register_buffers_update(slot.into(), &[buffer], None) }
        })
    }

    /// Gives back what [`pin`](Self::pin) gave. Of operations that are still in flight the kernel keeps the pages.
    pub fn unpin(&mut self, pin: Pin) -> Unpinned {
        // What is staged finds its buffer.
        self.flush();
        let submitter = self.uring.submitter();
        self.fixed.unpin(pin, |slot| {
            let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            // SAFETY: no memory is named: the place is emptied.
            unsafe { submitter.register_buffers_update(slot.into(), &[none], None) }
        })
    }

    /// Empties the kernel's table behind our back.
    #[cfg(test)]
    pub fn forget_buffers(&self) {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: as in `unpin`.
        unsafe { self.uring.submitter().register_buffers_update(0, &[none], None) }.unwrap();
    }

    /// Where `file` is in the table, or its descriptor.
    fn descriptor(&mut self, file: &Arc<OwnedFd>) -> Result<types::Fixed, types::Fd> {
        let plain = types::Fd(file.as_raw_fd());
        let Some(files) = &mut self.files else { return Err(plain) };
        let wanted = Arc::as_ptr(file);
        let found = files.iter().position(|place| std::ptr::eq(place.file.as_ptr(), wanted));
        if let Some(index) = found {
            return Ok(types::Fixed(index as u32));
        }
        // Seldom: the first operation of a file on this worker. A place is used again once its file is closed.
        let index = files.iter().position(|place| place.file.strong_count() == 0).unwrap_or(files.len());
        if index >= FILES as usize {
            return Err(plain);
        }
        let registered = Registered { file: Arc::downgrade(file) };
        if self.uring.submitter().register_files_update(index as u32, &[file.as_raw_fd()]).is_err() {
            return Err(plain);
        }
        if index == files.len() {
            files.push(registered)
        } else {
            files[index] = registered
        }
        Ok(types::Fixed(index as u32))
    }

    /// Lets go of files that nobody else has any more: until then they count as open. Worker, now and then.
    pub fn release_files(&mut self) {
        let Some(files) = &mut self.files else { return };
        for (index, place) in files.iter_mut().enumerate() {
            if place.file.strong_count() == 0
                && !std::ptr::eq(place.file.as_ptr(), Weak::<OwnedFd>::new().as_ptr())
            {
                let _ = self.uring.submitter().register_files_update(index as u32, &[-1]);
                place.file = Weak::new();
            }
        }
    }

    fn stage(&mut self, entry: squeue::Entry) {
        // SAFETY: what the entry points at belongs to the operation in `operations`, which stays until its completion has been
        // seen; `Drop` waits for all of them.
        if !self.backlog.is_empty() || unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    /// Gives everything staged to the kernel: one call, none if there is nothing. Returns how many operations it was given, and
    /// how many completed before it returned.
    pub fn flush(&mut self) -> (usize, usize) {
        let before = self.uring.completion().len();
        let mut given = 0;
        loop {
            // What did not fit goes first: others may have emptied the queue meanwhile.
            while let Some(entry) = self.backlog.front() {
                // SAFETY: as in `stage`.
                if unsafe { self.uring.submission().push(entry) }.is_err() {
                    break;
                }
                self.backlog.pop_front();
            }
            if self.uring.submission().is_empty() {
                let completed =
                    if given > 0 { self.uring.completion().len().saturating_sub(before) } else { 0 };
                return (given, completed);
            }
            match self.uring.submit() {
                Ok(count) => given += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The completion queue is full: what was staged stays, `reap` makes room.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {
                    return (0, 0);
                }
                Err(error) => panic!("io_uring_enter: {error}"),
            }
        }
    }

    /// Moves what has completed into `to`. A call to the kernel only if it says that one is needed.
    pub fn reap(&mut self, to: &mut Vec<Done>) {
        let needs_call = {
            let submission = self.uring.submission();
            submission.taskrun() || submission.cq_overflow()
        };
        if needs_call {
            // With the flag seen, this asks for the deferred work to be done.
            let _ = self.uring.submit();
        }
        self.drain();
        to.append(&mut self.done);
    }

    fn drain(&mut self) {
        // Moved out first: the queue borrows the ring.
        for entry in self.uring.completion() {
            match entry.user_data() {
                WATCH => {
                    self.watching = false;
                    self.kicked = true;
                }
                CANCEL => {}
                index => {
                    let place = self.operations.get_mut(index as usize);
                    if let Some(operation) = place.and_then(Option::take) {
                        self.free.push(index as u32);
                        self.in_flight -= 1;
                        let Operation { token, memory, fixed, .. } = operation;
                        self.done.push(Done { token, result: entry.result(), memory, fixed });
                    }
                }
            }
        }
    }

    /// Asks the kernel to give an operation back early. It comes back in any case, cancelled or not.
    pub fn cancel(&mut self, token: u64) {
        let found =
            self.operations.iter().position(|place| place.as_ref().is_some_and(|op| op.token == token));
        if let Some(index) = found {
            self.stage(opcode::AsyncCancel::new(index as u64).build().user_data(CANCEL));
        }
    }

    /// Sleeps until an operation completes, `set` (the worker's epoll set) has something, or `timeout` is over. One call,
    /// which also submits what is staged.
    pub fn wait(&mut self, set: BorrowedFd<'_>, timeout: Option<Duration>) -> Woken {
        if !self.watching {
            self.watching = true;
            let watch = opcode::PollAdd::new(types::Fd(set.as_raw_fd()), libc::POLLIN as u32);
            self.stage(watch.build().user_data(WATCH));
        }
        if self.done.is_empty() {
            let limit = timeout.map(types::Timespec::from);
            let mut arguments = types::SubmitArgs::new();
            if let Some(limit) = &limit {
                arguments = arguments.timespec(limit);
            }
            match self.uring.submitter().submit_with_args(1, &arguments) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                    _ => panic!("io_uring_enter: {error}"),
                },
            }
            self.drain();
        }
        Woken { kicked: std::mem::take(&mut self.kicked), completed: !self.done.is_empty() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still write into memory that operations own.
        while self.in_flight > 0 {
            self.flush();
            let _ = self.uring.submit_and_wait(1);
            self.drain();
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({} in flight)", self.in_flight)
    }
}
