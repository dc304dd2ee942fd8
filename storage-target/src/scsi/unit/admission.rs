//! Whether a command may go on, and what it is answered if it may not or fails on the medium.
//!
//! Called by every worker for each access: in the good case one load, no lock. Changes nothing but which unit attention has been told.

use std::sync::atomic::Ordering;

use avio_proto::scsi::sense::{
    ABORTED_COMMAND, DATA_PROTECT, HARDWARE_ERROR, ILLEGAL_REQUEST, MEDIUM_ERROR, MISCOMPARE, NOT_READY,
    Sense,
};
use rustix::io::Errno;

use super::{LogicalUnit, OWED_BIT};
use crate::backing::{Access, IoError};
use crate::scsi::inquiry::TRANSFER_LEN_MAX;
use crate::scsi::{AccessKind, MediumOp, Nexus, Reply};

impl LogicalUnit {
    /// Whether an access may go on: one load in the good case.
    ///
    /// # Errors
    /// The answer to the command: a unit attention (which is thereby reported), not ready, or a reservation conflict.
    #[inline]
    pub fn admit(&self, nexus: &Nexus, kind: AccessKind) -> Result<(), Box<Reply>> {
        if self.is_plain(nexus) {
            return Ok(());
        }
        self.admit_slowly(nexus, kind)
    }

    /// Whether nothing at all stands in the way of an access: what [`LogicalUnit::admit`] looks at first. Reports nothing.
    #[inline]
    #[must_use]
    pub fn is_plain(&self, nexus: &Nexus) -> bool {
        match self.word.load(Ordering::Acquire) {
            0 => true,
            // Somebody: it may be another initiator.
            OWED_BIT => !nexus.is_owed(),
            _ => false,
        }
    }

    #[cold]
    fn admit_slowly(&self, nexus: &Nexus, kind: AccessKind) -> Result<(), Box<Reply>> {
        let state = self.lock();
        if let Some(sense) = nexus.take() {
            self.update_word(&state);
            return Err(Box::new(state.check(sense)));
        }
        if state.reservations.conflicts(nexus.name(), kind) {
            return Err(Box::new(Reply::conflict()));
        }
        match state.not_ready() {
            Some(sense) => Err(Box::new(state.check(sense))),
            None => Ok(()),
        }
    }

    /// Whether a READ or WRITE is in range and allowed by the medium.
    ///
    /// # Errors
    /// The answer to the command.
    #[inline]
    pub fn check(&self, op: &MediumOp, readonly: bool) -> Result<(), Box<Reply>> {
        if self.allows(op, readonly) {
            return Ok(());
        }
        let (in_range, refused) = (self.covers(op), self.refuses(op, readonly));
        let sense = match (in_range, refused) {
            (false, _) => out_of_range(op.range()),
            (true, true) => Sense::new(DATA_PROTECT, 0x27, 0x00),
            (true, false) => Sense::new(ILLEGAL_REQUEST, 0x24, 0x00),
        };
        Err(Box::new(self.lock().check(sense)))
    }

    /// Whether [`LogicalUnit::check`] would let it pass. Reports nothing.
    #[inline]
    #[must_use]
    pub fn allows(&self, op: &MediumOp, readonly: bool) -> bool {
        self.covers(op) && !self.refuses(op, readonly) && !self.is_too_long(op)
    }

    #[inline]
    fn covers(&self, op: &MediumOp) -> bool {
        op.range().is_none_or(|(lba, blocks)| self.has(lba, blocks))
    }

    #[inline]
    fn refuses(&self, op: &MediumOp, readonly: bool) -> bool {
        op.kind() == AccessKind::Write && (readonly || self.profile.readonly)
    }

    /// Whether the medium has these blocks.
    #[inline]
    pub(in crate::scsi) fn has(&self, lba: u64, blocks: u64) -> bool {
        lba.checked_add(blocks).is_some_and(|end| end <= self.blocks())
    }

    /// Whether a transfer is longer than VPD B0h allows (SBC-4 6.6.4, MAXIMUM TRANSFER LENGTH).
    #[inline]
    pub(in crate::scsi) fn is_too_long(&self, op: &MediumOp) -> bool {
        match *op {
            MediumOp::Read { blocks, .. }
            | MediumOp::Write { blocks, .. }
            | MediumOp::WriteAndVerify { blocks, .. } => {
                u64::from(blocks) * u64::from(self.block_size) > u64::from(TRANSFER_LEN_MAX)
            }
            _ => false,
        }
    }

    /// NOT READY: there is nothing behind the LUN.
    #[must_use]
    pub fn not_ready(&self) -> Reply {
        let state = self.lock();
        let sense = state.not_ready().unwrap_or(Sense::new(NOT_READY, 0x04, 0x03));
        state.check(sense)
    }

    /// The answer to a command whose access failed (SEMANTICS 2.2).
    #[must_use]
    pub fn failed(&self, access: Access, error: IoError) -> Reply {
        let read = matches!(access, Access::Read);
        let sense = match error {
            IoError::Os(Errno::NOSPC | Errno::DQUOT) => Sense::new(DATA_PROTECT, 0x27, 0x07),
            IoError::Os(Errno::ROFS | Errno::PERM | Errno::ACCESS) => Sense::new(DATA_PROTECT, 0x27, 0x00),
            IoError::Os(Errno::INVAL) => Sense::new(ILLEGAL_REQUEST, 0x24, 0x00),
            IoError::Os(Errno::IO | Errno::ILSEQ | Errno::NODATA) if read => {
                Sense::new(MEDIUM_ERROR, 0x11, 0x00)
            }
            IoError::Os(Errno::IO | Errno::ILSEQ | Errno::NODATA) => Sense::new(MEDIUM_ERROR, 0x0c, 0x00),
            IoError::Os(_) => Sense::new(HARDWARE_ERROR, 0x44, 0x00),
            // LOGICAL UNIT COMMUNICATION TIME-OUT: the initiator tries again.
            IoError::TimedOut => Sense::new(ABORTED_COMMAND, 0x08, 0x01),
            IoError::Gone => Sense::new(NOT_READY, 0x04, 0x03),
        };
        self.lock().check(sense)
    }

    /// The answer to a command whose effect could not be made durable: INTERNAL TARGET FAILURE. It holds, but not longer than
    /// this process; what is promised with GOOD would be more.
    #[must_use]
    pub fn not_saved(&self) -> Reply {
        self.lock().check(Sense::new(HARDWARE_ERROR, 0x44, 0x00))
    }

    /// The answer to a comparison that found another byte, so many bytes in.
    #[must_use]
    pub fn miscompare(&self, at: u64) -> Reply {
        self.lock().check(Sense::new(MISCOMPARE, 0x1d, 0x00).at(at))
    }
}

/// LOGICAL BLOCK ADDRESS OUT OF RANGE, with the first block asked for.
pub(in crate::scsi) fn out_of_range(range: Option<(u64, u64)>) -> Sense {
    let sense = Sense::new(ILLEGAL_REQUEST, 0x21, 0x00);
    range.map_or(sense, |(lba, _)| sense.at(lba))
}
