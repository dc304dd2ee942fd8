//! AVIO's vendor commands and log pages: how a guest's administrator reaches the storage target through a stock driver.
//!
//! Owns their wire format, both directions: the CDB here, parameter data in the modules below. `avio-stord` decodes what
//! `gvsdmgr` in the guest encodes, and the other way round; `docs/vendor-commands.md` is the description for others. It never
//! does I/O, never decides whether a command is allowed, and never panics on a byte of its input.

mod adapter;
mod replacement;
mod statistics;
mod text;

pub use adapter::{AdapterInformation, TARGETS_MAX, TargetState};
pub use replacement::{Approval, NONCE_NONE, ReplacementState, StoreIdentity};
pub use statistics::{
    IoStatistics, LOG_PAGE_ADAPTER, LOG_PAGE_LUN, LOG_PAGE_SUPPORTED, LOG_PAGES, Latency, RingStatistics,
    SENSE_KEYS, Statistics, log_sense, supported_log_pages,
};
pub use text::TextTooLong;

/// Operation code of every vendor command of AVIO: vendor specific in SPC-5 table 33, 16 bytes long.
pub const OPCODE: u8 = 0xc1;
/// Bytes 2 to 5 of the CDB. The opcode alone could be anyone's.
pub const SIGNATURE: [u8; 4] = *b"AVIO";
/// Length of the CDB in bytes.
pub const CDB_LEN: usize = 16;
/// What byte 4 of all parameter data says: the format described here. A later one only appends.
pub const FORMAT: u8 = 1;

/// Whose statistics CLEAR STATISTICS clears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of the logical unit that the command went to.
    Lun,
    /// Those of the adapter and of all its logical units.
    Adapter,
}

/// A vendor command. Lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VendorCommand {
    /// Service action 00h, data-in: [`ReplacementState`] of this logical unit.
    GetReplacementState {
        /// Most bytes that the initiator takes.
        allocation_length: u32,
    },
    /// Service action 01h, data-out: [`Approval`] of this logical unit's new store.
    ApproveReplacement {
        /// Bytes that the initiator sends.
        parameter_list_length: u32,
    },
    /// Service action 02h, no data.
    ClearStatistics {
        /// What is cleared.
        scope: Scope,
    },
    /// Service action 03h, data-in: [`AdapterInformation`]; any logical unit of the adapter answers.
    GetAdapterInformation {
        /// Most bytes that the initiator takes.
        allocation_length: u32,
    },
}

/// Why a CDB with [`OPCODE`] is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CdbError {
    /// Not AVIO's signature: CHECK CONDITION, 05/20/00, as for an opcode that is not there.
    #[error("the CDB does not carry AVIO's signature")]
    Signature,
    /// A service action or scope that does not exist, or a reserved bit: CHECK CONDITION, 05/24/00.
    #[error("byte {byte} of the CDB has a value that is not defined")]
    Field {
        /// Which byte, for the sense key specific field pointer.
        byte: u16,
    },
}

/// Why parameter data is refused. In a target: CHECK CONDITION, 05/1A/00 for `Short`, 05/26/00 for `Format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// Fewer bytes than the structure has.
    #[error("{have} bytes where {need} are needed")]
    Short {
        /// Bytes that are there.
        have: usize,
        /// Bytes of the structure.
        need: usize,
    },
    /// Another format, or a value that is not defined.
    #[error("byte {byte} has a value that is not defined")]
    Format {
        /// Which byte.
        byte: usize,
    },
}

impl VendorCommand {
    /// Reads a CDB; `None` when its operation code is not ours.
    ///
    /// # Errors
    /// When it is malformed, with what the target answers.
    pub fn from_cdb(cdb: &[u8; CDB_LEN]) -> Option<Result<VendorCommand, CdbError>> {
        (cdb[0] == OPCODE).then(|| Self::decode(cdb))
    }

    fn decode(cdb: &[u8; CDB_LEN]) -> Result<VendorCommand, CdbError> {
        if cdb[2..6] != SIGNATURE {
            return Err(CdbError::Signature);
        }
        // Reserved bytes, and NACA with the rest of CONTROL, which no AVIO logical unit supports (SAM-5 section 5.2).
        for byte in [7, 8, 9, 14, 15] {
            if cdb[usize::from(byte)] != 0 {
                return Err(CdbError::Field { byte });
            }
        }
        let length = u32::from_be_bytes([cdb[10], cdb[11], cdb[12], cdb[13]]);
        let command = match (cdb[1], cdb[6]) {
            (0, 0) => VendorCommand::GetReplacementState { allocation_length: length },
            (1, 0) => VendorCommand::ApproveReplacement { parameter_list_length: length },
            (2, 0) => VendorCommand::ClearStatistics { scope: Scope::Lun },
            (2, 1) => VendorCommand::ClearStatistics { scope: Scope::Adapter },
            (3, 0) => VendorCommand::GetAdapterInformation { allocation_length: length },
            (0..=3, _) => return Err(CdbError::Field { byte: 6 }),
            _ => return Err(CdbError::Field { byte: 1 }),
        };
        match command {
            VendorCommand::ClearStatistics { .. } if length != 0 => Err(CdbError::Field { byte: 10 }),
            _ => Ok(command),
        }
    }

    /// The CDB that carries this command.
    #[must_use]
    pub fn to_cdb(self) -> [u8; CDB_LEN] {
        let (action, scope, length) = match self {
            VendorCommand::GetReplacementState { allocation_length } => (0, 0, allocation_length),
            VendorCommand::ApproveReplacement { parameter_list_length } => (1, 0, parameter_list_length),
            VendorCommand::ClearStatistics { scope: Scope::Lun } => (2, 0, 0),
            VendorCommand::ClearStatistics { scope: Scope::Adapter } => (2, 1, 0),
            VendorCommand::GetAdapterInformation { allocation_length } => (3, 0, allocation_length),
        };
        let mut cdb = [0; CDB_LEN];
        cdb[0] = OPCODE;
        cdb[1] = action;
        cdb[2..6].copy_from_slice(&SIGNATURE);
        cdb[6] = scope;
        cdb[10..14].copy_from_slice(&length.to_be_bytes());
        cdb
    }
}

/// Length in bytes of what precedes the fields of all parameter data: additional length (4), format, state, two more.
const HEADER_LEN: usize = 8;

/// The header of parameter data of `len` bytes: additional length as everywhere in SPC, the number of bytes that follow it.
fn header(data: &mut [u8]) {
    let additional = u32::try_from(data.len() - 4).expect("parameter data is some hundred bytes");
    data[..4].copy_from_slice(&additional.to_be_bytes());
    data[4] = FORMAT;
}

/// Checks that `data` holds a structure of `LEN` bytes in our format; bytes that a later format appended are ignored.
fn body<const LEN: usize>(data: &[u8]) -> Result<&[u8; LEN], DataError> {
    let short = |have| DataError::Short { have, need: LEN };
    let body = data.first_chunk::<LEN>().ok_or(short(data.len()))?;
    let promised = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
    let promised = usize::try_from(promised).unwrap_or(usize::MAX).saturating_add(4);
    if promised < LEN {
        return Err(short(promised));
    }
    if body[4] < FORMAT { Err(DataError::Format { byte: 4 }) } else { Ok(body) }
}

/// The big-endian number at `at`, in bytes from the start of the structure.
fn number(data: &[u8], at: usize) -> u64 {
    data[at..at + 8].iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each command with the bytes that docs/vendor-commands.md gives it.
    const VECTORS: [(VendorCommand, [u8; CDB_LEN]); 5] = [
        (
            VendorCommand::GetReplacementState { allocation_length: 0x220 },
            [0xc1, 0, 0x41, 0x56, 0x49, 0x4f, 0, 0, 0, 0, 0, 0, 2, 0x20, 0, 0],
        ),
        (
            VendorCommand::ApproveReplacement { parameter_list_length: 80 },
            [0xc1, 1, 0x41, 0x56, 0x49, 0x4f, 0, 0, 0, 0, 0, 0, 0, 80, 0, 0],
        ),
        (
            VendorCommand::ClearStatistics { scope: Scope::Lun },
            [0xc1, 2, 0x41, 0x56, 0x49, 0x4f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            VendorCommand::ClearStatistics { scope: Scope::Adapter },
            [0xc1, 2, 0x41, 0x56, 0x49, 0x4f, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            VendorCommand::GetAdapterInformation { allocation_length: 0x0102_0304 },
            [0xc1, 3, 0x41, 0x56, 0x49, 0x4f, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0],
        ),
    ];

    #[test]
    fn cdbs_have_the_documented_bytes() {
        for (command, cdb) in VECTORS {
            assert_eq!(command.to_cdb(), cdb);
            assert_eq!(VendorCommand::from_cdb(&cdb), Some(Ok(command)));
        }
    }

    #[test]
    fn another_opcode_is_not_ours_and_another_signature_is_nobodys() {
        let mut cdb = VECTORS[0].1;
        cdb[0] = 0xc0;
        assert_eq!(VendorCommand::from_cdb(&cdb), None);
        for byte in 2..6 {
            let mut cdb = VECTORS[0].1;
            cdb[byte] ^= 0x20;
            assert_eq!(VendorCommand::from_cdb(&cdb), Some(Err(CdbError::Signature)));
        }
    }

    #[test]
    fn what_is_not_defined_is_refused_with_its_byte() {
        let with = |byte: usize, value: u8| {
            let mut cdb = VECTORS[2].1;
            cdb[byte] = value;
            VendorCommand::from_cdb(&cdb)
        };
        assert_eq!(with(1, 4), Some(Err(CdbError::Field { byte: 1 })));
        assert_eq!(
            with(1, 0x22),
            Some(Err(CdbError::Field { byte: 1 })),
            "the three upper bits are reserved"
        );
        assert_eq!(with(6, 2), Some(Err(CdbError::Field { byte: 6 })));
        assert_eq!(with(13, 1), Some(Err(CdbError::Field { byte: 10 })), "no data with CLEAR STATISTICS");
        for byte in [7, 8, 9, 14, 15] {
            let wanted = CdbError::Field { byte: u16::try_from(byte).unwrap() };
            assert_eq!(with(byte, 1), Some(Err(wanted)));
        }
        let mut cdb = VECTORS[0].1;
        cdb[6] = 1;
        assert_eq!(
            VendorCommand::from_cdb(&cdb),
            Some(Err(CdbError::Field { byte: 6 })),
            "scope is for clearing"
        );
    }
}
