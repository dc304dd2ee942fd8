//! What is there and what can be asked for: capacities, LUNs, commands, log pages, and the drive's own reports.

use avio_proto::scsi::opcode::{INQUIRY, REPORT_LUNS, REQUEST_SENSE, cdb_len};
use avio_proto::scsi::sense::{ILLEGAL_REQUEST, Sense};
use avio_proto::scsi::vendor::{
    LOG_PAGE_ADAPTER, LOG_PAGE_LUN, LOG_PAGE_SUPPORTED, LOG_PAGES, supported_log_pages,
};

use super::table::{NACA, Row, rows};
use super::unit::Media;
use super::{Env, LogicalUnit, Profile, Reply};

const INVALID_FIELD: Sense = Sense::new(ILLEGAL_REQUEST, 0x24, 0x00);
/// PAGE CONTROL of LOG SENSE: current cumulative values (SPC-5 table 200).
const CUMULATIVE: u8 = 1;
/// Bytes before a log page's parameters.
const LOG_PAGE_HEADER: usize = 4;

/// REPORT LUNS (SPC-5 6.33): each target has LUN 0 and no other.
pub(super) fn luns(cdb: &[u8; 32]) -> Result<Vec<u8>, Sense> {
    match cdb[2] {
        // Without, or with, well-known ones: there are none.
        0x00 | 0x02 => Ok([&8u32.to_be_bytes()[..], &[0; 12]].concat()),
        0x01 => Ok(vec![0; 8]),
        _ => Err(INVALID_FIELD),
    }
}

/// What a target answers for a logical unit that it does not have (SPC-5 4.6.4, 6.6.2): who asks what it is learns that it is
/// not there, and which ones are; everything else is LOGICAL UNIT NOT SUPPORTED.
#[must_use]
pub fn no_unit(cdb: &[u8; 32]) -> Reply {
    const NOT_SUPPORTED: Sense = Sense::new(ILLEGAL_REQUEST, 0x25, 0x00);
    match cdb[0] {
        INQUIRY if cdb[1] & 1 == 0 && cdb[2] == 0 => {
            // Peripheral qualifier 011b, device type 1Fh.
            let mut data = vec![0x7f, 0, 0x06, 0x02];
            data.resize(36, 0);
            data[4] = data.len() as u8 - 5;
            Reply::data(data, usize::from(u16::from_be_bytes([cdb[3], cdb[4]])))
        }
        REPORT_LUNS => match luns(cdb) {
            Ok(data) => Reply::data(data, u32::from_be_bytes([cdb[6], cdb[7], cdb[8], cdb[9]]) as usize),
            Err(sense) => Reply::check(sense),
        },
        REQUEST_SENSE => {
            let data =
                if cdb[1] & 1 != 0 { NOT_SUPPORTED.descriptor() } else { NOT_SUPPORTED.fixed().to_vec() };
            Reply::data(data, cdb[4].into())
        }
        _ => Reply::check(NOT_SUPPORTED),
    }
}

/// REPORT SUPPORTED OPERATION CODES (SPC-5 6.35).
pub(super) fn opcodes(profile: &Profile, cdb: &[u8; 32]) -> Result<Vec<u8>, Sense> {
    let (timeouts, options) = (cdb[2] & 0x80 != 0, cdb[2] & 7);
    let (opcode, action) = (cdb[3], u16::from_be_bytes([cdb[4], cdb[5]]));
    // Nominal and recommended timeouts: none is specified.
    let descriptor = if timeouts { vec![0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] } else { Vec::new() };
    if options == 0 {
        let mut list = Vec::new();
        for row in rows(profile) {
            let flags = u8::from(row.service_action.is_some()) | if timeouts { 2 } else { 0 };
            list.extend([row.opcode, 0, 0, row.service_action.unwrap_or(0), 0, flags]);
            list.extend((length(row) as u16).to_be_bytes());
            list.extend(&descriptor);
        }
        return Ok([(list.len() as u32).to_be_bytes().to_vec(), list].concat());
    }
    let with_code: Vec<&Row> = rows(profile).filter(|row| row.opcode == opcode).collect();
    let has_actions = with_code.iter().any(|row| row.service_action.is_some());
    // The form must fit the command (SPC-5 table 249).
    if options == 1 && has_actions || options == 2 && !has_actions && !with_code.is_empty() || options > 3 {
        return Err(INVALID_FIELD);
    }
    // Without service actions only 0 is one that it has; the field counts where the form names it.
    let wanted = if options == 1 { 0 } else { action };
    let found = with_code.iter().find(|row| u16::from(row.service_action.unwrap_or(0)) == wanted);
    let Some(row) = found else { return Ok(vec![0, 1, 0, 0]) };
    let mut data = vec![0, 3 | if timeouts { 0x80 } else { 0 }];
    data.extend((length(row) as u16).to_be_bytes());
    data.extend(usage(row));
    data.extend(descriptor);
    Ok(data)
}

fn length(row: &Row) -> usize {
    cdb_len(row.opcode)
}

/// CDB USAGE DATA: operation code and service action, and which bits of the rest are looked at.
fn usage(row: &Row) -> Vec<u8> {
    let mut map = [&[row.opcode], row.usage, &[NACA]].concat();
    map[1] |= row.service_action.unwrap_or(0);
    map
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-5 6.36): abort task, abort task set, clear task set, logical unit reset,
/// query task; query task set, I_T nexus reset.
pub(super) fn tmfs(cdb: &[u8; 32]) -> Vec<u8> {
    let head = [0b1101_1100, 0b0000_0011, 0];
    if cdb[2] & 0x80 == 0 {
        return [&head[..], &[0]].concat();
    }
    [&head[..], &[12], &[0; 12]].concat()
}

impl LogicalUnit {
    /// READ CAPACITY (10) (SBC-4 5.20).
    pub(super) fn capacity_10(&self) -> Vec<u8> {
        let last = u32::try_from(self.blocks().saturating_sub(1)).unwrap_or(u32::MAX);
        [last.to_be_bytes(), self.profile.block_size.to_be_bytes()].concat()
    }

    /// READ CAPACITY (16) (SBC-4 5.21).
    pub(super) fn capacity_16(&self) -> Vec<u8> {
        let mut data = self.blocks().saturating_sub(1).to_be_bytes().to_vec();
        data.extend(self.profile.block_size.to_be_bytes());
        data.resize(32, 0);
        // Logical blocks per physical block, as a power of two.
        data[13] = (self.profile.physical_block_size / self.profile.block_size).max(1).trailing_zeros() as u8;
        if self.profile.unmaps {
            // LBPME; LBPRZ.
            data[14] = 0x80 | if self.profile.unmapped_is_zero { 0x40 } else { 0 };
        }
        data
    }

    /// GET LBA STATUS (SBC-4 5.6): provisioning status 0h, "mapped or unknown", for all of it. A file could be asked for its holes
    /// (SEEK_HOLE), but that may block, is stale at once, and block devices have no such question.
    pub(super) fn lba_status(&self, cdb: &[u8; 32]) -> Result<Vec<u8>, Sense> {
        let lba = u64::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5], cdb[6], cdb[7], cdb[8], cdb[9]]);
        if lba >= self.blocks() {
            return Err(super::unit::out_of_range(Some((lba, 0))));
        }
        let blocks = u32::try_from(self.blocks() - lba).unwrap_or(u32::MAX);
        let mut data = 20u32.to_be_bytes().to_vec();
        data.extend([0; 4]);
        data.extend(lba.to_be_bytes());
        data.extend(blocks.to_be_bytes());
        data.extend([0; 4]);
        Ok(data)
    }

    /// LOG SENSE (SPC-5 6.8): the vendor's pages, in cumulative values; there are no thresholds, and nothing is saved.
    pub(super) fn log_sense(&self, cdb: &[u8; 32], env: &Env<'_>) -> Result<Vec<u8>, Sense> {
        let (page, subpage) = (cdb[2] & 0x3f, cdb[3]);
        let (control, from) = (cdb[2] >> 6, u16::from_be_bytes([cdb[5], cdb[6]]));
        // SP.
        if subpage != 0 || cdb[1] & 1 != 0 {
            return Err(INVALID_FIELD);
        }
        match (page, env.statistics) {
            (LOG_PAGE_SUPPORTED, None) => Ok(supported_log_pages(&LOG_PAGES[..1])),
            (LOG_PAGE_SUPPORTED, Some(_)) => Ok(supported_log_pages(&LOG_PAGES)),
            (LOG_PAGE_LUN | LOG_PAGE_ADAPTER, Some(statistics)) if control == CUMULATIVE => {
                let data = statistics.numbers(page == LOG_PAGE_ADAPTER).to_page(page, from);
                // A pointer behind the last parameter is wrong (SPC-5 6.8.1).
                if data.len() > LOG_PAGE_HEADER { Ok(data) } else { Err(INVALID_FIELD) }
            }
            _ => Err(INVALID_FIELD),
        }
    }

    /// READ TOC/PMA/ATIP (MMC-6 6.25): one session, one data track.
    pub(super) fn read_toc(&self, cdb: &[u8; 32]) -> Result<Vec<u8>, Sense> {
        let (msf, format, from) = (cdb[1] & 2 != 0, cdb[2] & 0xf, cdb[6]);
        let place = |lba: u32| -> [u8; 4] {
            if !msf {
                return lba.to_be_bytes();
            }
            let frames = lba.saturating_add(150);
            let minutes = (frames / (75 * 60)).min(255) as u8;
            [0, minutes, (frames / 75 % 60) as u8, (frames % 75) as u8]
        };
        let end = u32::try_from(self.blocks()).unwrap_or(u32::MAX);
        let mut body = vec![1, 1];
        match format {
            // There is track 1, and the lead-out, AAh.
            0 if from > 1 && from != 0xaa => return Err(INVALID_FIELD),
            0 => {
                // Data, copy prohibited or not.
                if from <= 1 {
                    body.extend([0, 0x14, 1, 0]);
                    body.extend(place(0));
                }
                body.extend([0, 0x14, 0xaa, 0]);
                body.extend(place(end));
            }
            1 => {
                body.extend([0, 0x14, 1, 0]);
                body.extend(place(0));
            }
            _ => return Err(INVALID_FIELD),
        }
        Ok([(body.len() as u16).to_be_bytes().to_vec(), body].concat())
    }

    /// GET CONFIGURATION (MMC-6 6.6): a DVD-ROM drive.
    pub(super) fn configuration(&self, cdb: &[u8; 32]) -> Result<Vec<u8>, Sense> {
        let (wanted, from) = (cdb[1] & 3, u16::from_be_bytes([cdb[2], cdb[3]]));
        if wanted == 3 {
            return Err(INVALID_FIELD);
        }
        let current = self.media() == Media::Ready;
        let now = u8::from(current);
        let features: [&[u8]; 5] = [
            // Profile list: DVD-ROM, CD-ROM.
            &[0, 0, 3, 8, 0, 0x10, now, 0, 0, 8, 0, 0],
            // Core: physical interface SCSI.
            &[0, 1, 0x0b, 8, 0, 0, 0, 1, 0, 0, 0, 0],
            // Removable medium: tray, eject, lock.
            &[0, 3, 0x03, 4, 0x29, 0, 0, 0],
            // Random readable: 2,048-byte blocks.
            &[0, 0x10, now, 8, 0, 0, 8, 0, 0, 1, 0, 0],
            // DVD read.
            &[0, 0x1f, now, 4, 0, 0, 0, 0],
        ];
        let mut body = vec![0, 0, 0, if current { 0x10 } else { 0 }];
        for feature in features {
            let code = u16::from_be_bytes([feature[0], feature[1]]);
            // RT (table 223): all, those that are current, or the one.
            let chosen = match wanted {
                0 => code >= from,
                1 => code >= from && feature[2] & 1 != 0,
                _ => code == from,
            };
            if chosen {
                body.extend(feature);
            }
        }
        Ok([(body.len() as u32).to_be_bytes().to_vec(), body].concat())
    }

    /// GET EVENT STATUS NOTIFICATION (MMC-6 6.7), polled: the media class.
    pub(super) fn event_status(&self, cdb: &[u8; 32]) -> Result<Vec<u8>, Sense> {
        // Not polled would mean to wait.
        if cdb[1] & 1 == 0 {
            return Err(INVALID_FIELD);
        }
        if cdb[4] & 0x10 == 0 {
            // NEA: none of the classes asked for.
            return Ok(vec![0, 2, 0x80, 0x10]);
        }
        let present = if self.media() == Media::Ready { 2 } else { 0 };
        Ok(vec![0, 6, 0x04, 0x10, 0, present, 0, 0])
    }

    /// READ DISC INFORMATION (MMC-6 6.22): one complete session, finalized.
    pub(super) fn disc_information(cdb: &[u8; 32]) -> Result<Vec<u8>, Sense> {
        // DATA TYPE: the standard information only.
        if cdb[1] & 7 != 0 {
            return Err(INVALID_FIELD);
        }
        let mut data = vec![0; 34];
        data[1] = 32;
        data[2] = 0x0e;
        data[3..7].copy_from_slice(&[1, 1, 1, 1]);
        Ok(data)
    }
}
