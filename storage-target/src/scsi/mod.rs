//! The logical unit: what a SCSI command means, without doing any of it (SPC-5, SBC-4, SAM-5).
//!
//! A worker gives a command with its parameter data to [`LogicalUnit::execute`] and gets an [`Outcome`]: an answer, or what
//! is to be done on the medium. READ and WRITE take a shorter way ([`fast`], [`LogicalUnit::admit`]). State that several
//! initiators share is behind a mutex that workers hold for the length of one command, and control never.

mod block;
mod dispatch;
mod inquiry;
mod mode;
mod nexus;
mod report;
mod reservation;
mod table;
#[cfg(test)]
mod tests;
mod unit;
#[cfg(test)]
mod vectors;

use avio_proto::scsi::sense::{Sense, UNIT_ATTENTION};

pub use block::fast;
pub use inquiry::TRANSFER_LEN_MAX;
pub use nexus::{Nexus, NexusName, Owed};
pub use report::no_unit;
pub use reservation::SavedReservations;
pub use table::parameter_len;
pub use unit::{Answered, LogicalUnit, Media, Profile, Replacement, SAVED_FORMAT, SavedState};

/// SAM-5 5.3.1: status codes.
pub(crate) mod status {
    /// Done.
    pub const GOOD: u8 = 0x00;
    /// See the sense data.
    pub const CHECK_CONDITION: u8 = 0x02;
    /// A reservation of another initiator forbids it.
    pub const RESERVATION_CONFLICT: u8 = 0x18;
}

/// What kind of device a logical unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A disk (SBC).
    Disk,
    /// A DVD drive (MMC), read only.
    Dvd,
}

/// What a command does to the medium, as far as reservations care (SPC-5 table 67, SBC-4 table 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// Reads it.
    Read,
    /// Changes it, or makes changes durable.
    Write,
}

/// How a logical unit is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// LOGICAL UNIT RESET: for everybody (SAM-5 6.3.3).
    LogicalUnit,
    /// I_T NEXUS RESET, or the initiator is gone (SAM-5 6.3.4).
    NexusLoss,
}

/// The logical unit's answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// SAM status.
    pub status: u8,
    /// Why, with CHECK CONDITION.
    pub sense: Option<Sense>,
    /// Sense data go out in descriptor format.
    pub descriptor: bool,
    /// For the data-in buffer.
    pub data: Vec<u8>,
}

impl Reply {
    /// GOOD with data, at most `allocation` bytes of them.
    #[must_use]
    pub fn data(mut data: Vec<u8>, allocation: usize) -> Self {
        data.truncate(allocation);
        Self { status: status::GOOD, sense: None, descriptor: false, data }
    }

    /// GOOD without data.
    #[must_use]
    pub fn good() -> Self {
        Self::data(Vec::new(), 0)
    }

    /// CHECK CONDITION.
    #[must_use]
    pub fn check(sense: Sense) -> Self {
        Self { status: status::CHECK_CONDITION, sense: Some(sense), descriptor: false, data: Vec::new() }
    }

    /// RESERVATION CONFLICT.
    #[must_use]
    pub fn conflict() -> Self {
        Self { status: status::RESERVATION_CONFLICT, ..Self::good() }
    }

    /// Whether it reports a unit attention, which it thereby clears.
    #[must_use]
    pub fn is_unit_attention(&self) -> bool {
        self.sense.is_some_and(|sense| sense.key == UNIT_ATTENTION)
    }

    /// The sense data as bytes; none without sense.
    #[must_use]
    pub fn sense_bytes(&self) -> Vec<u8> {
        match &self.sense {
            None => Vec::new(),
            Some(sense) if self.descriptor => sense.descriptor(),
            Some(sense) => sense.fixed().to_vec(),
        }
    }
}

/// What a command asks of the medium, in logical blocks. Ranges have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MediumOp {
    /// READ.
    Read {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
    },
    /// WRITE.
    Write {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Durable before it succeeds (FUA).
        fua: bool,
    },
    /// WRITE AND VERIFY; `compare`: byte by byte.
    WriteAndVerify {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Whether to compare.
        compare: bool,
    },
    /// VERIFY.
    Verify {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Blocks of data that the medium is compared with, over and over; 0: only read.
        period: u32,
    },
    /// SYNCHRONIZE CACHE; all of it, whatever range was named.
    Flush {
        /// First block.
        lba: u64,
        /// Blocks; 0: to the end.
        blocks: u32,
    },
    /// UNMAP.
    Unmap(Vec<(u64, u32)>),
    /// WRITE SAME.
    WriteSame {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u64,
        /// One block.
        pattern: Vec<u8>,
        /// The space may be given back if that leaves the pattern.
        unmap: bool,
    },
    /// COMPARE AND WRITE.
    CompareAndWrite {
        /// First block.
        lba: u64,
        /// Blocks.
        blocks: u32,
        /// Durable before it succeeds.
        fua: bool,
    },
}

impl MediumOp {
    /// What it does to the medium.
    #[inline]
    #[must_use]
    pub fn kind(&self) -> AccessKind {
        match self {
            Self::Read { .. } | Self::Verify { .. } => AccessKind::Read,
            _ => AccessKind::Write,
        }
    }

    /// First block and blocks, of those that have one range.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        match *self {
            Self::Read { lba, blocks }
            | Self::Write { lba, blocks, .. }
            | Self::WriteAndVerify { lba, blocks, .. }
            | Self::Verify { lba, blocks, .. }
            | Self::CompareAndWrite { lba, blocks, .. } => Some((lba, blocks.into())),
            Self::WriteSame { lba, blocks, .. } => Some((lba, blocks)),
            Self::Flush { .. } | Self::Unmap(_) => None,
        }
    }
}

/// What a command changes outside its logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The guest's administrator has approved the replaced backing.
    Approved,
    /// The guest wants the medium out.
    Eject,
    /// The guest wants the medium in again that it had ejected.
    Load,
    /// The guest wants its statistics to start over: of this LUN, or of the whole adapter.
    ClearStatistics {
        /// The whole adapter.
        adapter: bool,
    },
}

/// What a command comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer.
    Reply(Reply),
    /// Something on the medium first.
    Medium(MediumOp),
    /// The answer, once the logical unit's state `version` is durable.
    Persist {
        /// The answer.
        reply: Reply,
        /// The state.
        version: u64,
    },
    /// As `Persist`, and the commands of these initiators are to be aborted first (PREEMPT AND ABORT).
    PersistAndAbort {
        /// The answer.
        reply: Reply,
        /// The state.
        version: u64,
        /// Whose commands.
        others: Vec<NexusName>,
    },
    /// An answer, and something for control.
    Event(Effect, Reply),
}

/// What a command needs to know of its surroundings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Env<'a> {
    /// Writes are refused through this adapter.
    pub readonly: bool,
    /// Answers the vendor's log pages.
    pub statistics: Option<&'a dyn Statistics>,
}

/// Numbers for the vendor's log pages and adapter information.
pub trait Statistics: std::fmt::Debug {
    /// The LUN's, or the adapter's.
    fn numbers(&self, adapter: bool) -> avio_proto::scsi::vendor::Statistics;
    /// What GET ADAPTER INFORMATION answers.
    fn adapter(&self) -> avio_proto::scsi::vendor::AdapterInformation;
}
