//! The claim on an image file: an open-file-description write lock over the whole of it (fcntl(2), F_OFD_SETLK).
//!
//! It belongs to the open file, which requests in flight hold as well. So a daemon that was killed keeps the claim until
//! the kernel has finished what it had begun, and its successor waits for it (DESIGN section 7). QEMU locks its images in
//! the same way, so neither opens what the other has.

#![expect(unsafe_code, reason = "fcntl has no safe form for this lock (DESIGN section 6: uring)")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Why a file could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another process has it, or requests of one that is gone are under way.
    #[error("another program has it open for writing")]
    Taken,
    /// The kernel said no.
    #[error("it cannot be locked: {0}")]
    Io(#[from] io::Error),
}

/// Claims an open file, for writing or for reading beside other readers. Never waits.
///
/// # Errors
/// [`ClaimError`].
pub fn claim(file: BorrowedFd<'_>, write: bool) -> Result<(), ClaimError> {
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // Length 0: to the end, however far that is.
    // SAFETY: the descriptor is open, and the structure is ours for the length of the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Err(ClaimError::Taken),
        error => Err(ClaimError::Io(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn one_writer_or_many_readers() {
        let path = std::env::temp_dir().join(format!("avio-claim-{}", std::process::id()));
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let (one, two) = (open(), open());
        claim(one.as_fd(), true).unwrap();
        assert!(matches!(claim(two.as_fd(), true), Err(ClaimError::Taken)));
        assert!(matches!(claim(two.as_fd(), false), Err(ClaimError::Taken)));
        drop(one);
        claim(two.as_fd(), false).unwrap();
        claim(open().as_fd(), false).unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
