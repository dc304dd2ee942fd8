//! Opening a backing: what it is, whether it may be used, what it can do.
//!
//! Helper threads only: everything here may block. A refusal is one line: what, and what would be right. Nothing is left
//! behind by one.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use avio_proto::config::BackingSpec;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, StatxFlags, fstat, ioctl_blkpbszget, ioctl_blksszget, open, statx,
};
use rustix::io::Errno;

use super::file::wants_threads;
use super::{Backing, Faults, FileMedium, Limits, Medium, MemoryStore};
use crate::uring::{ClaimError, claim};

/// Smallest disk, in bytes (SEMANTICS 1.1).
const DISK_MIN: u64 = 512;
/// Smallest DVD, in bytes.
const DVD_MIN: u64 = 2048;

/// Writes are durable when they complete, with what is needed to read them back. rustix's `OFlags::DSYNC` is `O_SYNC` on Linux (1.1.6):
/// that has the times of the file durable as well, with a commit of the file system's journal for each tick of the clock.
const DSYNC: OFlags = OFlags::from_bits_retain(libc::O_DSYNC as u32);

/// How to open a backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Never write; others may read.
    pub readonly: bool,
    /// Logical block, in bytes; `None`: what the backing has.
    pub block_size: Option<u32>,
    /// Writes are durable before they succeed; `None`: as the kind of backing makes right.
    pub writes_through: Option<bool>,
    /// It is a DVD: 2,048-byte blocks, read only.
    pub dvd: bool,
}

/// Why a backing was not opened; a line for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}")]
pub struct OpenError {
    line: String,
    taken: bool,
}

impl OpenError {
    /// Whether another process has it, or requests of one that is gone are under way: that may end by itself.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.taken
    }
}

fn refuse<T>(spec: &BackingSpec, what: impl std::fmt::Display) -> Result<T, OpenError> {
    Err(OpenError { line: format!("{spec}: {what}"), taken: false })
}

fn taken<T>(spec: &BackingSpec, what: impl std::fmt::Display) -> Result<T, OpenError> {
    Err(OpenError { line: format!("{spec}: {what}"), taken: true })
}

impl Backing {
    /// Opens what `spec` names. Helper threads.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(spec: &BackingSpec, options: &OpenOptions) -> Result<Arc<Self>, OpenError> {
        let (rules, inner) = match spec {
            BackingSpec::Fault(rules, inner) => (Some(*rules), &**inner),
            spec => (None, spec),
        };
        let writes_through = options.writes_through.unwrap_or(inner.writes_through());
        let (medium, limits, size) = match inner {
            BackingSpec::Null(size) => (Medium::Null, plain(options), *size),
            BackingSpec::Memory(size) => match MemoryStore::new(*size) {
                Ok(store) => (Medium::Memory(store), plain(options), *size),
                Err(why) => return refuse(spec, why),
            },
            BackingSpec::File(path) => open_file(inner, path, options, writes_through)?,
            BackingSpec::Disk(path) | BackingSpec::Lv(path) => {
                open_device(inner, path, options, writes_through)?
            }
            BackingSpec::Empty => return refuse(spec, "there is no medium to open"),
            BackingSpec::Fault(..) => return refuse(spec, "one fault: is enough"),
        };
        let least = if options.dvd { DVD_MIN } else { DISK_MIN }.max(u64::from(limits.block_size));
        if size < least {
            return refuse(spec, format_args!("{size} bytes are too small; {least} is the least"));
        }
        let size = size / u64::from(limits.block_size) * u64::from(limits.block_size);
        Ok(Arc::new(Self {
            spec: spec.clone(),
            medium,
            limits,
            size_bytes: AtomicU64::new(size),
            faults: rules.map(Faults::new).map(Box::new),
            stuck: AtomicU32::new(0),
        }))
    }
}

/// Limits of what is no file.
fn plain(options: &OpenOptions) -> Limits {
    let block_size = if options.dvd { 2048 } else { options.block_size.unwrap_or(512) };
    Limits {
        block_size,
        physical_block_size: block_size,
        memory_align: 1,
        readonly: options.readonly || options.dvd,
        volatile_cache: false,
        rotational: false,
        discards: true,
        discards_read_zeroes: true,
    }
}

fn flags(options: &OpenOptions, writes_through: bool, direct: bool, exclusive: bool) -> OFlags {
    let mut flags = OFlags::CLOEXEC;
    flags |= if options.readonly || options.dvd { OFlags::RDONLY } else { OFlags::RDWR };
    flags.set(DSYNC, writes_through && !options.readonly && !options.dvd);
    flags.set(OFlags::DIRECT, direct);
    flags.set(OFlags::EXCL, exclusive);
    flags
}

fn open_path(spec: &BackingSpec, path: &Path, flags: OFlags) -> Result<OwnedFd, OpenError> {
    open(path, flags, Mode::empty()).or_else(|errno| match errno {
        Errno::NOENT => refuse(spec, "there is no such file; create it, or correct the path"),
        Errno::ISDIR => refuse(spec, "it is a folder; name an image file in it"),
        Errno::BUSY => taken(spec, "it is mounted or in use; unmount it, or end what uses it"),
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            refuse(spec, format_args!("{errno}; give the daemon the right to it, or set readonly = true"))
        }
        errno => refuse(spec, errno),
    })
}

fn open_file(
    spec: &BackingSpec,
    path: &Path,
    options: &OpenOptions,
    writes_through: bool,
) -> Result<(Medium, Limits, u64), OpenError> {
    // A device would be opened without the checks that it needs.
    let plain = open_path(spec, path, flags(options, writes_through, false, false) | OFlags::NONBLOCK)?;
    let stat = fstat(&plain).or_else(|e| refuse(spec, e))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::BlockDevice => return refuse(spec, "it is a block device; write disk: or lv: instead"),
        FileType::Directory => return refuse(spec, "it is a folder; name an image file in it"),
        _ => return refuse(spec, "it is no regular file; name an image file"),
    }
    let writes = !(options.readonly || options.dvd);
    if writes && let Some(device) = loop_device_of((stat.st_dev, stat.st_ino)) {
        return refuse(
            spec,
            format_args!(
                "the host uses it through loop device {device}; unmount and detach that, or name it instead"
            ),
        );
    }
    take(spec, plain.as_fd(), !(options.readonly || options.dvd))?;
    let block_size = if options.dvd { 2048 } else { options.block_size.unwrap_or(512) };
    // What the file system asks of direct I/O; zeroes: it has none.
    let found = statx(&plain, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let (memory, offset) = found.map_or((0, 0), |x| (x.stx_dio_mem_align, x.stx_dio_offset_align));
    let direct = offset > 0 && offset <= block_size;
    if !direct {
        tracing::info!(
            "{spec}: through the page cache: its file system has no direct I/O of {block_size} bytes"
        );
    }
    let fd = if direct {
        // The same file again: the claim belongs to the open file, so it has to be taken on this one.
        let fd = open_path(spec, path, flags(options, writes_through, true, false))?;
        drop(plain);
        take(spec, fd.as_fd(), !(options.readonly || options.dvd))?;
        fd
    } else {
        plain
    };
    let identity = (stat.st_dev, stat.st_ino);
    let by_threads = wants_threads(fd.as_fd());
    let medium = FileMedium { fd: Arc::new(fd), identity, writes_through, by_threads };
    let size = medium.size_bytes().or_else(|e| refuse(spec, e))?;
    let limits = Limits {
        block_size,
        physical_block_size: block_size.max(4096),
        memory_align: if direct { memory.max(1) } else { 1 },
        readonly: options.readonly || options.dvd,
        volatile_cache: !writes_through,
        rotational: false,
        discards: true,
        discards_read_zeroes: true,
    };
    Ok((Medium::File(medium), limits, size))
}

/// The loop device that the host has made of a file. Such a device takes no lock on it, so nothing else would tell.
fn loop_device_of(identity: (u64, u64)) -> Option<String> {
    let devices = fs::read_dir("/sys/block").ok()?;
    devices.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).find(|name| {
        name.starts_with("loop")
            && fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"))
                .ok()
                .and_then(|path| rustix::fs::stat(path.trim_end()).ok())
                .is_some_and(|stat| (stat.st_dev, stat.st_ino) == identity)
    })
}

/// Claims a file.
fn take(spec: &BackingSpec, file: BorrowedFd<'_>, write: bool) -> Result<(), OpenError> {
    claim(file, write).or_else(|error| {
        let line = format_args!("{error}; end it, or set readonly = true on both sides");
        match &error {
            ClaimError::Taken => taken(spec, line),
            ClaimError::Io(_) => refuse(spec, line),
        }
    })
}

fn open_device(
    spec: &BackingSpec,
    path: &Path,
    options: &OpenOptions,
    writes_through: bool,
) -> Result<(Medium, Limits, u64), OpenError> {
    let look = open_path(spec, path, OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NONBLOCK)?;
    let stat = fstat(&look).or_else(|e| refuse(spec, e))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => {}
        FileType::RegularFile => return refuse(spec, "it is a file; write file: instead"),
        FileType::CharacterDevice => {
            return refuse(
                spec,
                "it is a character device; tapes and changers are not supported, whole disks are",
            );
        }
        _ => return refuse(spec, "it is no block device; name a whole disk"),
    }
    drop(look);
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let sys = format!("/sys/dev/block/{major}:{minor}");
    if Path::new(&sys).join("partition").exists() {
        return refuse(
            spec,
            "it is a partition, which is not supported; name the whole disk, or a logical volume",
        );
    }
    let is_mapped = Path::new(&sys).join("dm").exists();
    // A loop device is a volume that somebody made of a file: near enough for those who have no volume group.
    let is_loop = Path::new(&sys).join("loop").exists()
        || fs::canonicalize(path)
            .is_ok_and(|p| p.starts_with("/dev/loop") || p.to_string_lossy().starts_with("/dev/loop"));
    if matches!(spec, BackingSpec::Lv(_)) && !is_mapped && !is_loop {
        return refuse(spec, "it is no logical volume; write disk: instead");
    }
    let queue = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("{sys}/queue/{name}")).ok()?.trim().parse().ok()
    };
    // Whoever waits for a predecessor to let go does not wait for these.
    if let Some(user) = user_of(&sys, (major, minor)) {
        return refuse(
            spec,
            format_args!("it is mounted or in use: {user}; unmount it, or end what uses it"),
        );
    }
    let readonly = options.readonly || options.dvd;
    if !readonly && fs::read_to_string(format!("{sys}/ro")).is_ok_and(|ro| ro.trim() == "1") {
        return refuse(spec, "the device is read-only; set readonly = true");
    }
    let fd = open_path(spec, path, flags(options, writes_through, true, true))?;
    let logical = ioctl_blksszget(&fd).or_else(|e| refuse(spec, e))?;
    let physical = ioctl_blkpbszget(&fd).unwrap_or(logical);
    let block_size = if options.dvd { 2048 } else { options.block_size.unwrap_or(logical) };
    if block_size < logical {
        return refuse(
            spec,
            format_args!(
                "the device has blocks of {logical} bytes; set block_size = {logical}, or leave it out"
            ),
        );
    }
    let identity = (0, stat.st_rdev);
    let by_threads = wants_threads(fd.as_fd());
    let medium = FileMedium { fd: Arc::new(fd), identity, writes_through, by_threads };
    let size = medium.size_bytes().or_else(|e| refuse(spec, e))?;
    let limits = Limits {
        block_size,
        physical_block_size: physical.max(block_size),
        memory_align: queue("dma_alignment").map_or(512, |mask| mask as u32 + 1),
        readonly,
        volatile_cache: !writes_through,
        rotational: queue("rotational") == Some(1),
        discards: queue("discard_max_bytes").is_some_and(|most| most > 0),
        // Holes are punched in a device only where it zeroes by itself; elsewhere a discard is no more than a hint.
        discards_read_zeroes: queue("write_zeroes_max_bytes").is_some_and(|most| most > 0),
    };
    Ok((Medium::File(medium), limits, size))
}

/// What uses a block device or one of its partitions, for the operator: where it is mounted, or what is built on it.
fn user_of(sys: &str, device: (u32, u32)) -> Option<String> {
    let mut numbers = vec![format!("{}:{}", device.0, device.1)];
    for entry in fs::read_dir(sys).ok()?.flatten() {
        if entry.path().join("partition").exists()
            && let Ok(number) = fs::read_to_string(entry.path().join("dev"))
        {
            numbers.push(number.trim().to_owned());
        }
    }
    // proc_pid_mountinfo(5): the third field is the device, the fifth where it is mounted.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').take(5).collect();
        (fields.len() == 5 && numbers.iter().any(|number| number == fields[2])).then(|| fields[4].to_owned())
    });
    let holder = || {
        let mut holders = fs::read_dir(format!("{sys}/holders")).ok()?.flatten();
        holders.next().map(|entry| format!("by {}", entry.file_name().to_string_lossy()))
    };
    mounted.map(|place| format!("at {place}")).or_else(holder)
}
