//! One logical unit, spoken to: AVIO's vendor commands and log pages (docs/vendor-commands.md), resets, and what the guest's
//! kernel must be told after an approval.
//!
//! Owns the open node. Every refusal becomes one line that names the device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use avio_proto::scsi::vendor::{
    AdapterInformation, Approval, ReplacementState, Scope, Statistics, VendorCommand, log_sense,
};

use crate::Failure;
use crate::sg::{self, Data, Ended, Reset};
use crate::tree::Lun;

/// How long a command may take: none of ours waits for a disk.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Sense key of a unit attention: it says what has happened, and the command was not done.
const UNIT_ATTENTION: u8 = 6;
/// Most unit attentions in a row: the target queues few for each initiator.
const ATTENTIONS_MAX: u32 = 16;

/// An open logical unit.
pub struct Device {
    lun: Lun,
    node: File,
}

impl Device {
    /// Opens the node that commands go to. Does not wait for a medium or for others.
    pub fn open(lun: &Lun) -> Result<Self, Failure> {
        let open =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(&lun.node);
        let node = open.map_err(|e| {
            let hint = if e.kind() == io::ErrorKind::PermissionDenied { "; run gvsdmgr as root" } else { "" };
            Failure::Refused(format!("{}: {e}{hint}", lun.node.display()))
        })?;
        Ok(Self { lun: lun.clone(), node })
    }

    /// The logical unit as the guest has it.
    pub fn lun(&self) -> &Lun {
        &self.lun
    }

    /// What the adapter is.
    pub fn adapter(&self) -> Result<AdapterInformation, Failure> {
        let mut data = [0; AdapterInformation::LEN];
        let command = VendorCommand::GetAdapterInformation { allocation_length: data.len() as u32 };
        let len = self.data_in("GET ADAPTER INFORMATION", &command.to_cdb(), &mut data)?;
        AdapterInformation::from_bytes(&data[..len]).map_err(|e| self.unreadable(&e))
    }

    /// Whether its store was replaced, and by which.
    pub fn replacement(&self) -> Result<ReplacementState, Failure> {
        let mut data = [0; ReplacementState::LEN];
        let command = VendorCommand::GetReplacementState { allocation_length: data.len() as u32 };
        let len = self.data_in("GET REPLACEMENT STATE", &command.to_cdb(), &mut data)?;
        ReplacementState::from_bytes(&data[..len]).map_err(|e| self.unreadable(&e))
    }

    /// The statistics in log page `page`.
    pub fn statistics(&self, page: u8) -> Result<Statistics, Failure> {
        let mut data = [0; Statistics::LEN_MAX];
        let len = self.data_in("LOG SENSE", &log_sense(page, data.len() as u16), &mut data)?;
        Statistics::from_page(page, &data[..len]).map_err(|e| self.unreadable(&e))
    }

    /// Statistics start over.
    pub fn clear(&self, scope: Scope) -> Result<(), Failure> {
        let cdb = VendorCommand::ClearStatistics { scope }.to_cdb();
        self.command("CLEAR STATISTICS", &cdb, || Data::None).map(drop)
    }

    /// The store that `state` shows is the right one.
    pub fn approve(&self, state: &ReplacementState) -> Result<(), Failure> {
        let approval = Approval { nonce: state.nonce, serial: state.new.serial.clone() };
        let data = approval.to_bytes().map_err(|e| self.refused(&e.to_string()))?;
        let cdb = VendorCommand::ApproveReplacement { parameter_list_length: data.len() as u32 }.to_cdb();
        self.command("APPROVE REPLACEMENT", &cdb, || Data::Out(&data)).map(drop)
    }

    /// Resets it, or its target. A driver without a reset for targets (virtio_scsi) resets this logical unit, and an AVIO
    /// target has no other.
    pub fn reset(&self, what: Reset) -> Result<(), Failure> {
        let done = match sg::reset(&self.node, what) {
            Err(error) if what == Reset::Target && error.kind() != io::ErrorKind::PermissionDenied => {
                sg::reset(&self.node, Reset::Lun)
            }
            done => done,
        };
        done.map_err(|e| self.refused(&format!("reset: {e}{}", root_hint(&e))))
    }

    /// Whether the guest uses its block device: mounted, part of a volume, or held otherwise.
    pub fn is_in_use(&self) -> bool {
        let Some(block) = &self.lun.block else { return false };
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC);
        options.open(block).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
    }

    /// Drops what the guest has cached of its block device. While the store waits for approval nothing can be written to it,
    /// so nothing of the old one gets into the new one.
    pub fn drop_buffers(&self) -> Result<(), Failure> {
        let Some(block) = &self.lun.block else { return Ok(()) };
        let node = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(block);
        node.and_then(|node| sg::flush_buffers(&node))
            .map_err(|e| Failure::Refused(format!("{}: its buffers cannot be dropped: {e}", block.display())))
    }

    /// Has the guest's kernel look at the device anew, and udev at its links.
    pub fn rescan(&self) -> Result<(), Failure> {
        let tell = |file: &str, word: &str| {
            let path = self.lun.folder.join(file);
            fs::write(&path, word).map_err(|e| Failure::Refused(format!("{}: {e}", path.display())))
        };
        tell("rescan", "1")?;
        match self.lun.block.as_ref().and_then(|block| block.file_name()) {
            Some(name) => tell(&format!("block/{}/uevent", name.display()), "change"),
            None => Ok(()),
        }
    }

    fn data_in(&self, name: &str, cdb: &[u8], data: &mut [u8]) -> Result<usize, Failure> {
        let mut attentions = 0;
        loop {
            let ended = sg::command(&self.node, cdb, Data::In(data), TIMEOUT);
            if let Some(len) = self.judge(name, ended, &mut attentions)? {
                return Ok(len);
            }
        }
    }

    fn command<'a>(&self, name: &str, cdb: &[u8], data: impl Fn() -> Data<'a>) -> Result<usize, Failure> {
        let mut attentions = 0;
        loop {
            let ended = sg::command(&self.node, cdb, data(), TIMEOUT);
            if let Some(len) = self.judge(name, ended, &mut attentions)? {
                return Ok(len);
            }
        }
    }

    /// How many bytes came; `None`: it was a unit attention, so once more.
    fn judge(
        &self,
        name: &str,
        ended: io::Result<Ended>,
        attentions: &mut u32,
    ) -> Result<Option<usize>, Failure> {
        match ended {
            Ok(Ended::Good(len)) => Ok(Some(len)),
            Ok(Ended::Check(UNIT_ATTENTION, ..)) if *attentions < ATTENTIONS_MAX => {
                *attentions += 1;
                Ok(None)
            }
            Ok(Ended::Check(key, asc, ascq)) => {
                let why = meaning(key, asc, ascq);
                Err(self.refused(&format!("{name} was refused with {key:02x}/{asc:02x}/{ascq:02x}{why}")))
            }
            Ok(Ended::Other(status, host)) => {
                Err(self.refused(&format!("{name} ended with status {status:02x}h, host status {host:02x}h")))
            }
            Err(e) => Err(self.refused(&format!("{name}: {e}{}", root_hint(&e)))),
        }
    }

    fn refused(&self, why: &str) -> Failure {
        Failure::Refused(format!("{}: {why}", self.lun.dsf().display()))
    }

    fn unreadable(&self, error: &impl std::fmt::Display) -> Failure {
        self.refused(&format!("the target's answer cannot be read: {error}; is it of another version?"))
    }
}

fn root_hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { " (it takes root: CAP_SYS_RAWIO)" } else { "" }
}

/// What the refusals of docs/vendor-commands.md mean for the administrator.
fn meaning(key: u8, asc: u8, ascq: u8) -> &'static str {
    match (key, asc, ascq) {
        (5, 0x20, 0) => ": it is no AVIO logical unit",
        (5, 0x26, 0) => ": the store was replaced once more; look at it again",
        (5, 0x2c, 0) => ": no replacement waits for approval",
        _ => "",
    }
}
