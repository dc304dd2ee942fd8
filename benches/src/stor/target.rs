//! What is compared: programs that serve a disk, in the modes that matter.

use serde::{Deserialize, Serialize};

/// One target of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Target {
    /// `avio_blk`, `poll = "always"`.
    Blk,
    /// `avio_blk` as shipped, `poll = "adaptive"`.
    BlkAdaptive,
    /// The same, the guest sleeping on its eventfd.
    BlkAdaptiveSleeping,
    /// `avio_blk` with `cache = "writethrough"`, `poll = "always"`.
    BlkThrough,
    /// `avio_blk` of a guest with `pin_memory = true`, `poll = "always"`.
    BlkPinned,
    /// `avio_blk` of another build.
    BlkOther,
    /// The same, `poll = "adaptive"`.
    BlkAdaptiveOther,
    /// `avio_stor`, one LUN, `poll = "always"`.
    Stor,
    /// `avio_stor`, 128 LUNs, I/O on one of them.
    Stor128One,
    /// `avio_stor`, 128 LUNs, I/O on all of them in turn.
    Stor128All,
    /// qemu-storage-daemon with an iothread.
    Qsd,
    /// The same, the guest sleeping on its eventfd.
    QsdSleeping,
    /// fio, io_uring, on the bare backing.
    Fio,
    /// The same while the other core is taken, as it is by a guest that polls.
    FioCrowded,
    /// The same with fixed buffers and files.
    FioFixed,
    /// The same with `sync=dsync`.
    FioDsync,
    /// The same twice at a time, on both cores: what the disk gives to who asks for more.
    FioTwice,
    /// The same with four times as many requests in flight: likewise.
    FioDeep,
}

impl Target {
    /// As `--targets` names it.
    pub fn family(self) -> &'static str {
        match self {
            Target::Qsd | Target::QsdSleeping => "qsd",
            Target::Fio
            | Target::FioCrowded
            | Target::FioFixed
            | Target::FioDsync
            | Target::FioTwice
            | Target::FioDeep => "fio",
            _ => "avio",
        }
    }

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Target::Blk => "avio_blk",
            Target::BlkAdaptive => "avio_blk, adaptive",
            Target::BlkAdaptiveSleeping => "avio_blk, adaptive, guest sleeps",
            Target::BlkThrough => "avio_blk, writethrough",
            Target::BlkPinned => "avio_blk, pin_memory",
            Target::BlkOther => "the other build",
            Target::BlkAdaptiveOther => "the other build, adaptive",
            Target::Stor => "avio_stor",
            Target::Stor128One => "avio_stor, 128 LUNs, one busy",
            Target::Stor128All => "avio_stor, 128 LUNs, all busy",
            Target::Qsd => "qemu-storage-daemon",
            Target::QsdSleeping => "qemu-storage-daemon, guest sleeps",
            Target::Fio => "fio io_uring",
            Target::FioCrowded => "fio io_uring, other core taken",
            Target::FioFixed => "fio io_uring, fixed",
            Target::FioDsync => "fio io_uring, dsync",
            Target::FioTwice => "fio io_uring, two jobs",
            Target::FioDeep => "fio io_uring, four times the depth",
        }
    }

    /// Whether it says what the disk gives, and is no peer.
    pub fn is_limit(self) -> bool {
        matches!(self, Target::FioTwice | Target::FioDeep)
    }

    /// Whether the guest sleeps on its eventfd.
    pub fn guest_sleeps(self) -> bool {
        matches!(self, Target::BlkAdaptiveSleeping | Target::QsdSleeping)
    }
}
