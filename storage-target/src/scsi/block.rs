//! Commands on blocks (SBC-4 5): from a CDB to what the medium is asked for.

use avio_proto::scsi::opcode::*;
use avio_proto::scsi::sense::{ILLEGAL_REQUEST, Sense};

use super::MediumOp;
use super::table::NACA;

/// Most blocks of one COMPARE AND WRITE (VPD B0h says so).
pub(super) const COMPARE_AND_WRITE_MAX: u8 = 64;
/// Most ranges of one UNMAP.
pub(super) const UNMAP_RANGES_MAX: u32 = 256;
/// Most blocks of one WRITE SAME: what takes a disk well under its timeout.
pub(super) const WRITE_SAME_MAX: u64 = 1 << 22;

const INVALID_FIELD: Sense = Sense::new(ILLEGAL_REQUEST, 0x24, 0x00);
const INVALID_PARAMETER: Sense = Sense::new(ILLEGAL_REQUEST, 0x26, 0x00);
const LENGTH_ERROR: Sense = Sense::new(ILLEGAL_REQUEST, 0x1a, 0x00);

fn be16(b: &[u8]) -> u16 {
    u16::from_be_bytes([b[0], b[1]])
}

fn be32(b: &[u8]) -> u32 {
    u32::from_be_bytes([b[0], b[1], b[2], b[3]])
}

fn be64(b: &[u8]) -> u64 {
    u64::from(be32(b)) << 32 | u64::from(be32(&b[4..]))
}

/// First block and number of blocks of a CDB of the usual shape.
fn range(cdb: &[u8]) -> (u64, u32) {
    match cdb_len(cdb[0]) {
        // Zero means 256 in the short form (SBC-4 5.13).
        6 => {
            let lba = be32(cdb) & 0x1f_ffff;
            (lba.into(), if cdb[4] == 0 { 256 } else { cdb[4].into() })
        }
        10 => (be32(&cdb[2..]).into(), be16(&cdb[7..]).into()),
        12 => (be32(&cdb[2..]).into(), be32(&cdb[6..])),
        _ => (be64(&cdb[2..]), be32(&cdb[10..])),
    }
}

/// READ and WRITE, which are nearly all commands there are. `None`: anything else, what has a field that is not supported,
/// and no blocks at all, which is no error (SBC-4 5.14) and nothing for the medium.
#[inline]
#[must_use]
pub fn fast(cdb: &[u8; 32]) -> Option<MediumOp> {
    read_or_write(cdb).filter(|op| op.range().is_some_and(|(_, blocks)| blocks > 0))
}

#[inline]
fn read_or_write(cdb: &[u8; 32]) -> Option<MediumOp> {
    let write = match cdb[0] {
        READ_6 | READ_10 | READ_12 | READ_16 => false,
        WRITE_6 | WRITE_10 | WRITE_12 | WRITE_16 => true,
        _ => return None,
    };
    let short = matches!(cdb[0], READ_6 | WRITE_6);
    // Protection information is not there (RDPROTECT, WRPROTECT), nor is ACA (NACA in CONTROL).
    if !short && cdb[1] & 0xe0 != 0 || cdb[cdb_len(cdb[0]) - 1] & NACA != 0 {
        return None;
    }
    let (lba, blocks) = range(cdb);
    let fua = !short && cdb[1] & 0x08 != 0;
    Some(if write { MediumOp::Write { lba, blocks, fua } } else { MediumOp::Read { lba, blocks } })
}

/// Every command that touches the medium; `parameters` are its data as far as [`super::parameter_len`] asked for.
pub(super) fn parse(cdb: &[u8; 32], parameters: &[u8], block_size: u32) -> Result<MediumOp, Sense> {
    let protected = cdb[1] & 0xe0 != 0;
    let (lba, blocks) = range(cdb);
    let fua = cdb[1] & 0x08 != 0;
    match cdb[0] {
        READ_10 | READ_12 | READ_16 | WRITE_10 | WRITE_12 | WRITE_16 if protected => Err(INVALID_FIELD),
        WRITE_AND_VERIFY_10 | WRITE_AND_VERIFY_12 | WRITE_AND_VERIFY_16 => match cdb[1] >> 1 & 3 {
            _ if protected => Err(INVALID_FIELD),
            check @ (0 | 1) => Ok(MediumOp::WriteAndVerify { lba, blocks, compare: check == 1 }),
            _ => Err(INVALID_FIELD),
        },
        VERIFY_10 | VERIFY_12 | VERIFY_16 => match cdb[1] >> 1 & 3 {
            _ if protected => Err(INVALID_FIELD),
            0 => Ok(MediumOp::Verify { lba, blocks, period: 0 }),
            1 => Ok(MediumOp::Verify { lba, blocks, period: blocks }),
            3 => Ok(MediumOp::Verify { lba, blocks, period: blocks.min(1) }),
            _ => Err(INVALID_FIELD),
        },
        SYNCHRONIZE_CACHE_10 | SYNCHRONIZE_CACHE_16 => Ok(MediumOp::Flush { lba, blocks }),
        UNMAP => unmap(cdb, parameters),
        WRITE_SAME_10 | WRITE_SAME_16 => write_same(cdb, parameters, block_size),
        COMPARE_AND_WRITE => {
            let count = cdb[13];
            if protected || count > COMPARE_AND_WRITE_MAX {
                return Err(INVALID_FIELD);
            }
            Ok(MediumOp::CompareAndWrite { lba: be64(&cdb[2..]), blocks: count.into(), fua })
        }
        _ => read_or_write(cdb).ok_or(INVALID_FIELD),
    }
}

/// UNMAP's parameter list (SBC-4 5.35.2): a header of eight bytes, then sixteen for each range.
fn unmap(cdb: &[u8; 32], list: &[u8]) -> Result<MediumOp, Sense> {
    // ANCHOR: there are no anchored blocks.
    if cdb[1] & 1 != 0 {
        return Err(INVALID_FIELD);
    }
    if be16(&cdb[7..]) == 0 {
        return Ok(MediumOp::Unmap(Vec::new()));
    }
    if list.len() < 8 {
        return Err(LENGTH_ERROR);
    }
    // A partial last descriptor is ignored, as the standard says.
    let count = (usize::from(be16(&list[2..])).min(list.len() - 8)) / 16;
    if count > UNMAP_RANGES_MAX as usize {
        return Err(INVALID_PARAMETER);
    }
    let ranges = list[8..].chunks_exact(16).take(count).map(|d| (be64(d), be32(&d[8..])));
    Ok(MediumOp::Unmap(ranges.filter(|(_, blocks)| *blocks > 0).collect()))
}

/// WRITE SAME (SBC-4 5.49, 5.50).
fn write_same(cdb: &[u8; 32], data: &[u8], block_size: u32) -> Result<MediumOp, Sense> {
    let (lba, blocks) = range(cdb);
    let (anchor, unmap) = (cdb[1] & 0x10 != 0, cdb[1] & 0x08 != 0);
    // NDOB, no data-out buffer, is the long form's only.
    let no_data = cdb[0] == WRITE_SAME_16 && cdb[1] & 1 != 0;
    // 0 blocks would mean to the end of the medium; WSNZ in VPD B0h says that it does not.
    if cdb[1] & 0xe0 != 0 || anchor || blocks == 0 || u64::from(blocks) > WRITE_SAME_MAX {
        return Err(INVALID_FIELD);
    }
    let pattern = if no_data {
        vec![0; block_size as usize]
    } else if data.len() >= block_size as usize {
        data[..block_size as usize].to_vec()
    } else {
        return Err(LENGTH_ERROR);
    };
    Ok(MediumOp::WriteSame { lba, blocks: blocks.into(), pattern, unmap })
}
