//! INQUIRY: what the logical unit is (SPC-5 6.6, 7.7).

use avio_proto::scsi::sense::{ILLEGAL_REQUEST, Sense};

use super::block::{COMPARE_AND_WRITE_MAX, UNMAP_RANGES_MAX, WRITE_SAME_MAX};
use super::{DeviceKind, LogicalUnit};

/// T10 vendor identification.
const VENDOR: &[u8; 8] = b"AVIO    ";
/// Product revision.
const REVISION: &[u8; 4] = b"0001";
/// Most bytes of one transfer: the original's limit (SEMANTICS 2.1).
pub const TRANSFER_LEN_MAX: u32 = 1 << 20;

impl LogicalUnit {
    fn product(&self) -> &'static [u8; 16] {
        match self.profile.kind {
            DeviceKind::Disk => b"AVIO DISK       ",
            DeviceKind::Dvd => b"AVIO DVD-ROM    ",
        }
    }

    fn device_type(&self) -> u8 {
        match self.profile.kind {
            DeviceKind::Disk => 0x00,
            DeviceKind::Dvd => 0x05,
        }
    }

    /// Standard data or a vital product data page.
    pub(super) fn inquiry(&self, cdb: &[u8; 32]) -> Result<Vec<u8>, Sense> {
        match (cdb[1] & 1 != 0, cdb[2]) {
            (false, 0) => Ok(self.standard()),
            (true, page) => self.vital(page).ok_or(Sense::new(ILLEGAL_REQUEST, 0x24, 0x00)),
            (false, _) => Err(Sense::new(ILLEGAL_REQUEST, 0x24, 0x00)),
        }
    }

    /// Standard INQUIRY data (SPC-5 6.6.2).
    fn standard(&self) -> Vec<u8> {
        let removable = if self.profile.kind == DeviceKind::Dvd { 0x80 } else { 0 };
        // Version SPC-4; HISUP, response data format 2; CMDQUE.
        let mut data = vec![self.device_type(), removable, 0x06, 0x12, 0, 0, 0, 0x02];
        data.extend(VENDOR);
        data.extend(self.product());
        data.extend(REVISION);
        data.resize(58, 0);
        // Version descriptors: SAM-5, SPC-4, SBC-3 or MMC-6.
        let command_set = if self.profile.kind == DeviceKind::Dvd { 0x04e0u16 } else { 0x04c0 };
        for version in [0x00a0, 0x0460, command_set] {
            data.extend(u16::to_be_bytes(version));
        }
        data.resize(96, 0);
        data[4] = data.len() as u8 - 5;
        data
    }

    fn vital(&self, page: u8) -> Option<Vec<u8>> {
        let disk = self.profile.kind == DeviceKind::Disk;
        let body = match page {
            0x00 if disk => vec![0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2],
            0x00 => vec![0x00, 0x80, 0x83],
            0x80 => self.profile.serial.clone().into_bytes(),
            0x83 => self.designators(),
            0xb0 if disk => self.block_limits(),
            0xb1 if disk => {
                // Rotation rate: 1 is a medium that does not rotate; 0 is not said.
                let rate = if self.profile.rotational { 0u16 } else { 1 };
                let mut body = vec![0; 60];
                body[..2].copy_from_slice(&rate.to_be_bytes());
                body
            }
            0xb2 if disk => self.provisioning(),
            _ => return None,
        };
        let mut data = vec![self.device_type(), page];
        data.extend((body.len() as u16).to_be_bytes());
        data.extend(body);
        Some(data)
    }

    /// Device identification (SPC-5 7.7.6): NAA locally assigned, and vendor, product and serial number.
    fn designators(&self) -> Vec<u8> {
        let mut body = vec![0x01, 0x03, 0, 8];
        body.extend(naa(&self.profile.identity).to_be_bytes());
        let mut text = VENDOR.to_vec();
        text.extend(self.product());
        text.extend(self.profile.identity.bytes().take(96));
        body.extend([0x02, 0x01, 0, text.len() as u8]);
        body.extend(text);
        body
    }

    /// Block limits (SBC-4 6.6.4).
    fn block_limits(&self) -> Vec<u8> {
        let block = self.profile.block_size;
        let granularity = (self.profile.physical_block_size / block).max(1);
        let mut body = vec![0; 60];
        // `at` as the standard counts, from the start of the page.
        let mut put32 = |at: usize, value: u32| body[at - 4..at].copy_from_slice(&value.to_be_bytes());
        put32(8, TRANSFER_LEN_MAX / block);
        put32(12, TRANSFER_LEN_MAX / block);
        if self.profile.unmaps {
            put32(20, u32::MAX);
            put32(24, UNMAP_RANGES_MAX);
            put32(28, granularity);
        }
        body[36 - 4..44 - 4].copy_from_slice(&WRITE_SAME_MAX.to_be_bytes());
        // WSNZ: WRITE SAME of 0 blocks is refused; MAXIMUM COMPARE AND WRITE LENGTH.
        body[0] = 1;
        body[1] = COMPARE_AND_WRITE_MAX;
        body[2..4].copy_from_slice(&(granularity.min(0xffff) as u16).to_be_bytes());
        body
    }

    /// Logical block provisioning (SBC-4 6.6.6).
    fn provisioning(&self) -> Vec<u8> {
        let unmaps = self.profile.unmaps;
        // LBPU, LBPWS, LBPWS10; LBPRZ.
        let mut flags = if unmaps { 0xe0 } else { 0 };
        if unmaps && self.profile.unmapped_is_zero {
            flags |= 0x04;
        }
        // Thin: 2, resource: 1, full: 0.
        vec![0, flags, if unmaps { 2 } else { 0 }, 0]
    }
}

/// The designator of an identity: NAA 3h, locally assigned (SPC-5 7.7.6.6.4).
pub(super) fn naa(identity: &str) -> u64 {
    3 << 60 | hash(identity) >> 4
}

/// FNV-1a: the same name always gives the same number.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
