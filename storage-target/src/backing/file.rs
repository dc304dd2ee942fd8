//! Files and block devices: what is known of an open one.

use std::io::IoSliceMut;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::uring::AlignedBuf;

/// FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE (fallocate(2)): reads as zeroes, space is given back.
pub(super) const PUNCH_HOLE: i32 = 0x01 | 0x02;
/// FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE: reads as zeroes, space is kept where that is possible.
pub(super) const ZERO_RANGE: i32 = 0x01 | 0x10;

/// An open file or block device.
#[derive(Debug)]
pub struct FileMedium {
    pub(super) fd: Arc<OwnedFd>,
    /// Device and inode, or number of a block device.
    pub(super) identity: (u64, u64),
    /// Writes are durable when they complete: opened with O_DSYNC.
    pub(super) writes_through: bool,
    /// Whether each access is done by a thread of the kernel's: see [`wants_threads`].
    pub(super) by_threads: bool,
}

/// Whether io_uring gives each access to a thread of its own: it does where the file cannot say that an access would have to wait (no
/// FMODE_NOWAIT), as with block devices whose driver takes bios itself and has no BLK_FEAT_NOWAIT, zram for one. RWF_NOWAIT is refused
/// for the same reason (preadv2(2)). May read a block.
pub(super) fn wants_threads(file: BorrowedFd<'_>) -> bool {
    let mut block = AlignedBuf::zeroed(4096);
    let result = preadv2(file, &mut [IoSliceMut::new(&mut block)], 0, ReadWriteFlags::NOWAIT);
    result == Err(Errno::OPNOTSUPP)
}

impl FileMedium {
    /// How large it is now, in bytes. The place of the descriptor is nobody's: all accesses name theirs.
    pub(super) fn size_bytes(&self) -> Result<u64, Errno> {
        seek(&self.fd, SeekFrom::End(0))
    }
}
