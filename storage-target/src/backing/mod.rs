//! Where the data of a LUN are: kinds of backings, and byte-level access to them.
//!
//! Control opens a [`Backing`] on a helper thread ([`Backing::open`]); workers read and write it through their [`Io`]. It
//! knows bytes, not blocks or commands.

mod fault;
mod file;
mod io;
mod limits;
mod memory;
mod open;
#[cfg(test)]
mod tests;

use avio_proto::mem::GuestSlice;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use avio_proto::config::BackingSpec;
use rustix::io::Errno;

pub use crate::uring::{AlignedBuf, Memory, Pin, Pinned, Unpinned, Woken};
pub use fault::Faults;
pub use file::FileMedium;
pub use io::{Completion, Io, Started};
pub use limits::Limits;
pub use memory::MemoryStore;
pub use open::{OpenError, OpenOptions};

/// What is done to a range of a backing. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads.
    Read,
    /// Writes; `durable`: completes when a power failure cannot undo it.
    Write {
        /// Whether it must be durable although the backing's cache is volatile.
        durable: bool,
    },
    /// Makes durable what was written before.
    Flush,
    /// The data are not needed any more; what they read as then is up to the backing.
    Discard,
    /// The data read as zeroes from now on; `unmap`: the space may be given back.
    WriteZeroes {
        /// Whether it may be.
        unmap: bool,
    },
}

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The kernel said so.
    #[error("{0}")]
    Os(Errno),
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// There is nothing behind the LUN any more, or less than there was.
    #[error("the backing is gone")]
    Gone,
}

/// Where bytes come from and go to.
#[derive(Debug)]
pub enum Medium {
    /// No data: see [`BackingSpec::Null`].
    Null,
    /// Memory of the daemon.
    Memory(MemoryStore),
    /// A file or block device.
    File(FileMedium),
}

/// What accesses to a medium are that needs no waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtOnce {
    /// They do nothing.
    Nothing,
    /// They copy.
    Copies,
}

/// One open backing. Shared by control and all workers. What an access looks at stands in the first line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Backing {
    /// Accesses that were given up and that the kernel still has.
    stuck: AtomicU32,
    faults: Option<Box<Faults>>,
    medium: Medium,
    size_bytes: AtomicU64,
    spec: BackingSpec,
    limits: Limits,
}

impl Backing {
    /// How its definition names it.
    #[must_use]
    pub fn spec(&self) -> &BackingSpec {
        &self.spec
    }

    /// What it can do.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Its size, in bytes: a multiple of the logical block.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// What tells it from others: device and inode of a file, number of a block device. `None`: nobody else can have it.
    #[must_use]
    pub fn identity(&self) -> Option<(u64, u64)> {
        match &self.medium {
            Medium::File(file) => Some(file.identity),
            Medium::Null | Medium::Memory(_) => None,
        }
    }

    /// Looks how large it is now; returns the size if it has changed. May block: helper threads.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn refresh_size(&self) -> Result<Option<u64>, Errno> {
        let Medium::File(file) = &self.medium else { return Ok(None) };
        let size = file.size_bytes()? / u64::from(self.limits.block_size) * u64::from(self.limits.block_size);
        let before = self.size_bytes.swap(size, Ordering::Relaxed);
        Ok((before != size).then_some(size))
    }

    /// Moves the `len` bytes of `pieces` that start `skip` bytes in, at `offset`; `false`: nothing has happened, ask [`Io`]. Workers, where
    /// [`Backing::at_once`] says [`AtOnce::Copies`]. The caller has checked the range, and marks what a read wrote.
    #[inline]
    #[must_use]
    pub fn copy_now(
        &self,
        write: bool,
        offset: u64,
        pieces: &[GuestSlice<'_>],
        skip: usize,
        len: usize,
    ) -> bool {
        match &self.medium {
            Medium::Memory(store) => store.transfer(write, offset, pieces, skip, len),
            Medium::Null | Medium::File(_) => false,
        }
    }

    /// Fetches what a read will copy, if it copies at all, `turns` reads before it does; any range will do. Workers.
    #[inline]
    pub fn prefetch(&self, offset: u64, len: usize, turns: usize) {
        if let Medium::Memory(store) = &self.medium {
            store.prefetch(offset, len, turns);
        }
    }

    /// What plain reads and writes are that are answered while their batch is taken; `None`: those go through [`Io`]. Never changes: what is
    /// answered at once is never given up, so [`Backing::is_stuck`] is no matter here.
    #[must_use]
    pub fn at_once(&self) -> Option<AtOnce> {
        match &self.medium {
            _ if self.faults.is_some() => None,
            Medium::Null => Some(AtOnce::Nothing),
            Medium::Memory(_) => Some(AtOnce::Copies),
            Medium::File(_) => None,
        }
    }

    /// Whether accesses were given up that the kernel has not given back: then new ones fail at once.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed) != 0
    }
}
