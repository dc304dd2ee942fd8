//! Mode pages (SPC-5 7.5, SBC-4 6.5): sensed and selected.

use avio_proto::scsi::opcode::{MODE_SELECT_6, MODE_SENSE_6};
use avio_proto::scsi::sense::{ILLEGAL_REQUEST, Sense};

use super::{DeviceKind, LogicalUnit, Nexus};

const INVALID_FIELD: Sense = Sense::new(ILLEGAL_REQUEST, 0x24, 0x00);
const INVALID_PARAMETER: Sense = Sense::new(ILLEGAL_REQUEST, 0x26, 0x00);
const LENGTH_ERROR: Sense = Sense::new(ILLEGAL_REQUEST, 0x1a, 0x00);
const SAVING: Sense = Sense::new(ILLEGAL_REQUEST, 0x39, 0x00);

/// Control mode page, D_SENSE (SPC-5 7.5.13).
const D_SENSE: u8 = 0x04;
/// Caching mode page, WCE (SBC-4 6.5.6).
const WCE: u8 = 0x04;

impl LogicalUnit {
    /// The page `code`: its current values, or with `changeable` the bits that MODE SELECT may change.
    fn page(&self, code: u8, descriptor_sense: bool, changeable: bool) -> Option<Vec<u8>> {
        let disk = self.profile.kind == DeviceKind::Disk;
        let mut page = match code {
            0x01 => vec![0; 10],
            0x08 if disk => vec![0; 18],
            0x0a => vec![0; 10],
            0x1c => vec![0; 10],
            0x2a if !disk => vec![0; 22],
            _ => return None,
        };
        match code {
            // AWRE, ARRE are the host's affair; nothing is set.
            0x08 if !changeable && self.profile.volatile_cache => page[0] = WCE,
            0x0a if changeable => page[0] = D_SENSE,
            0x0a => {
                page[0] = if descriptor_sense { D_SENSE } else { 0 };
                // QUEUE ALGORITHM MODIFIER: unrestricted reordering.
                page[1] = 0x10;
                // BUSY TIMEOUT PERIOD: unlimited.
                page[6..8].copy_from_slice(&[0xff, 0xff]);
            }
            // DVD-ROM, DVD-R and CD-R read; audio is not; lock, eject, tray.
            0x2a if !changeable => {
                page[0] = 0x19;
                page[4] = 0x29;
                page[6..8].copy_from_slice(&0x2b40u16.to_be_bytes());
                page[12..14].copy_from_slice(&0x2b40u16.to_be_bytes());
            }
            _ => {}
        }
        let mut whole = vec![code, page.len() as u8];
        whole.extend(page);
        Some(whole)
    }

    /// MODE SENSE (6) and (10).
    pub(super) fn mode_sense(&self, cdb: &[u8; 32], readonly: bool) -> Result<Vec<u8>, Sense> {
        let (short, no_blocks) = (cdb[0] == MODE_SENSE_6, cdb[1] & 0x08 != 0);
        let (control, code, subpage) = (cdb[2] >> 6, cdb[2] & 0x3f, cdb[3]);
        if control == 3 {
            return Err(SAVING);
        }
        let descriptor_sense = control == 0 && self.lock().descriptor_sense;
        let mut pages = Vec::new();
        match (code, subpage) {
            (0x3f, 0 | 0xff) => {
                for code in [0x01, 0x08, 0x0a, 0x1c, 0x2a] {
                    pages.extend(self.page(code, descriptor_sense, control == 1).unwrap_or_default());
                }
            }
            (_, 0) => pages = self.page(code, descriptor_sense, control == 1).ok_or(INVALID_FIELD)?,
            _ => return Err(INVALID_FIELD),
        }
        let disk = self.profile.kind == DeviceKind::Disk;
        let mut blocks = Vec::new();
        if disk && !no_blocks {
            let count = u32::try_from(self.blocks()).unwrap_or(u32::MAX);
            blocks.extend(count.to_be_bytes());
            blocks.extend(self.profile.block_size.to_be_bytes());
        }
        // WP; DPOFUA.
        let device = match self.profile.kind {
            DeviceKind::Disk => 0x10 | if readonly || self.profile.readonly { 0x80 } else { 0 },
            DeviceKind::Dvd => 0,
        };
        let rest = blocks.len() + pages.len();
        let mut data = if short {
            vec![(rest + 3) as u8, 0, device, blocks.len() as u8]
        } else {
            let mut head = ((rest + 6) as u16).to_be_bytes().to_vec();
            head.extend([0, device, 0, 0, 0, blocks.len() as u8]);
            head
        };
        data.extend(blocks);
        data.extend(pages);
        Ok(data)
    }

    /// MODE SELECT (6) and (10). Only D_SENSE can be changed; everything else must be as it is. Returns the version of the
    /// state that has the change, if there is one.
    pub(super) fn mode_select(
        &self,
        cdb: &[u8; 32],
        list: &[u8],
        nexus: &Nexus,
    ) -> Result<Option<u64>, Sense> {
        let short = cdb[0] == MODE_SELECT_6;
        // SP asks for saving, of which there is none. All pages are the standards', whatever PF says.
        if cdb[1] & 1 != 0 {
            return Err(INVALID_FIELD);
        }
        let wanted =
            if short { usize::from(cdb[4]) } else { usize::from(u16::from_be_bytes([cdb[7], cdb[8]])) };
        if wanted == 0 {
            return Ok(None);
        }
        let head = if short { 4 } else { 8 };
        if list.len() < head {
            return Err(LENGTH_ERROR);
        }
        let descriptors =
            if short { usize::from(list[3]) } else { usize::from(u16::from_be_bytes([list[6], list[7]])) };
        let Some(mut pages) = list.get(head + descriptors..) else { return Err(LENGTH_ERROR) };
        let mut selected = None;
        while !pages.is_empty() {
            let &[code, len, ..] = pages else { return Err(LENGTH_ERROR) };
            let (code, len) = (code & 0x7f, usize::from(len) + 2);
            let Some(page) = pages.get(..len) else { return Err(LENGTH_ERROR) };
            let current = self.lock().descriptor_sense;
            let now = self.page(code, current, false).ok_or(INVALID_PARAMETER)?;
            let mask = self.page(code, current, true).ok_or(INVALID_PARAMETER)?;
            if now.len() != len {
                return Err(INVALID_PARAMETER);
            }
            let changed = (2..len).any(|i| (page[i] ^ now[i]) & !mask[i] != 0);
            if changed {
                return Err(INVALID_PARAMETER);
            }
            if code == 0x0a {
                selected = Some(page[2] & D_SENSE != 0);
            }
            pages = &pages[len..];
        }
        let Some(descriptor_sense) = selected else { return Ok(None) };
        let version = {
            let mut state = self.lock();
            if state.descriptor_sense == descriptor_sense {
                return Ok(None);
            }
            state.descriptor_sense = descriptor_sense;
            state.version += 1;
            state.version
        };
        self.owe_others(nexus.name(), 0x2a, 0x01);
        Ok(Some(version))
    }
}
