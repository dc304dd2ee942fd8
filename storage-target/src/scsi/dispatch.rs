//! A command's way through the logical unit (SPC-5 4.2, SAM-5 5): its row in the table, what stands in its way, and what does it.
//!
//! Called by workers for everything but the plain READ and WRITE. Touches no medium: an [`Outcome`] says what is to be done there.

use avio_proto::scsi::opcode::*;
use avio_proto::scsi::sense::{DATA_PROTECT, ILLEGAL_REQUEST, Sense, UNIT_ATTENTION};
use avio_proto::scsi::vendor::{self, Approval, Scope, VendorCommand};

use super::reservation::{OUT_LEN, Refusal};
use super::table::{Does, Gate, NACA, Row, parameter_len, rows};
use super::unit::{Media, out_of_range};
use super::{
    AccessKind, DeviceKind, Effect, Env, LogicalUnit, MediumOp, Nexus, Outcome, Reply, block, report,
};

const INVALID_OPCODE: Sense = Sense::new(ILLEGAL_REQUEST, 0x20, 0x00);
const INVALID_FIELD: Sense = Sense::new(ILLEGAL_REQUEST, 0x24, 0x00);
const INVALID_PARAMETER: Sense = Sense::new(ILLEGAL_REQUEST, 0x26, 0x00);
const LENGTH_ERROR: Sense = Sense::new(ILLEGAL_REQUEST, 0x1a, 0x00);

impl LogicalUnit {
    /// What a command comes to. Any worker; takes the logical unit's lock for a moment.
    #[must_use]
    pub fn execute(&self, nexus: &Nexus, cdb: &[u8; 32], parameters: &[u8], env: &Env<'_>) -> Outcome {
        match self.try_execute(nexus, cdb, parameters, env) {
            Ok(outcome) => outcome,
            Err(Refused::Sense(sense)) => Outcome::Reply(self.lock().check(sense)),
            Err(Refused::Reply(reply)) => Outcome::Reply(*reply),
        }
    }

    fn try_execute(
        &self,
        nexus: &Nexus,
        cdb: &[u8; 32],
        parameters: &[u8],
        env: &Env<'_>,
    ) -> Result<Outcome, Refused> {
        let mut known = false;
        let row = rows(&self.profile).find(|row| {
            known |= row.opcode == cdb[0];
            row.opcode == cdb[0] && row.service_action.is_none_or(|action| action == cdb[1] & 0x1f)
        });
        let Some(row) = row else {
            // Of a known code with another service action, the field is wrong.
            return Err(if known { INVALID_FIELD } else { INVALID_OPCODE }.into());
        };
        // NORMACA in the INQUIRY data is zero.
        if cdb[cdb_len(row.opcode) - 1] & NACA != 0 {
            return Err(INVALID_FIELD.into());
        }
        self.pass(nexus, row)?;
        self.perform(row.does, nexus, cdb, parameters, env)
    }

    fn pass(&self, nexus: &Nexus, row: &Row) -> Result<(), Refused> {
        let attention = || match nexus.take() {
            Some(sense) => {
                let state = self.lock();
                self.update_word(&state);
                Err(Refused::Reply(Box::new(state.check(sense))))
            }
            None => Ok(()),
        };
        match row.gate {
            Gate::Always => Ok(()),
            Gate::Attention => {
                attention()?;
                let state = self.lock();
                match state.not_ready() {
                    Some(sense) if state.media == Media::Replaced => Err(sense.into()),
                    _ => Ok(()),
                }
            }
            Gate::Ready => {
                attention()?;
                self.lock().not_ready().map_or(Ok(()), |sense| Err(sense.into()))
            }
            Gate::Read => self.admit(nexus, AccessKind::Read).map_err(Refused::Reply),
            Gate::Write => self.admit(nexus, AccessKind::Write).map_err(Refused::Reply),
        }
    }

    fn perform(
        &self,
        does: Does,
        nexus: &Nexus,
        cdb: &[u8; 32],
        parameters: &[u8],
        env: &Env<'_>,
    ) -> Result<Outcome, Refused> {
        let short = usize::from(cdb[4]);
        let medium = usize::from(u16::from_be_bytes([cdb[7], cdb[8]]));
        let long = u32::from_be_bytes([cdb[6], cdb[7], cdb[8], cdb[9]]) as usize;
        let longest = u32::from_be_bytes([cdb[10], cdb[11], cdb[12], cdb[13]]) as usize;
        let reply = |data: Vec<u8>, allocation: usize| Ok(Outcome::Reply(Reply::data(data, allocation)));
        match does {
            Does::Inquiry => reply(self.inquiry(cdb)?, usize::from(u16::from_be_bytes([cdb[3], cdb[4]]))),
            Does::RequestSense => reply(self.request_sense(nexus, cdb[1] & 1 != 0), short),
            Does::ReportLuns => reply(report::luns(cdb)?, long),
            Does::TestUnitReady => Ok(Outcome::Reply(Reply::good())),
            Does::ModeSense => {
                let allocation = if cdb[0] == MODE_SENSE_6 { short } else { medium };
                reply(self.mode_sense(cdb, env.readonly)?, allocation)
            }
            Does::ModeSelect => match self.mode_select(cdb, parameters, nexus)? {
                Some(version) => Ok(Outcome::Persist { reply: Reply::good(), version }),
                None => Ok(Outcome::Reply(Reply::good())),
            },
            Does::StartStop => self.start_stop(nexus, cdb),
            Does::Prevent => {
                nexus.set_prevents(cdb[4] & 1 != 0);
                Ok(Outcome::Reply(Reply::good()))
            }
            Does::Capacity10 => reply(self.capacity_10(), 8),
            Does::Capacity16 => reply(self.capacity_16(), longest),
            Does::LbaStatus => reply(self.lba_status(cdb)?, longest),
            Does::LogSense => reply(self.log_sense(cdb, env)?, medium),
            Does::ReportOpcodes => reply(report::opcodes(&self.profile, cdb)?, long),
            Does::ReportTmfs => reply(report::tmfs(cdb), long),
            Does::Reserve => self.reserve(nexus, cdb, true),
            Does::Release => self.reserve(nexus, cdb, false),
            Does::PersistentIn => {
                let state = self.lock();
                if state.reservations.is_reserved() {
                    return Ok(Outcome::Reply(Reply::conflict()));
                }
                let data = state.reservations.persistent_in(cdb[1] & 0x1f).ok_or(INVALID_FIELD)?;
                reply(data, medium)
            }
            Does::PersistentOut => self.persistent_out(nexus, cdb, parameters),
            Does::Medium => self.medium(cdb, parameters, env),
            Does::Vendor => self.vendor(cdb, parameters, env),
            Does::Toc => reply(self.read_toc(cdb)?, medium),
            Does::Configuration => reply(self.configuration(cdb)?, medium),
            Does::EventStatus => reply(self.event_status(cdb)?, medium),
            Does::DiscInformation => reply(Self::disc_information(cdb)?, medium),
            Does::Mechanism => reply(vec![0; 8], usize::from(u16::from_be_bytes([cdb[8], cdb[9]]))),
        }
    }

    /// REQUEST SENSE (SPC-5 6.39): a unit attention, or why it is not ready, in the data.
    fn request_sense(&self, nexus: &Nexus, descriptor: bool) -> Vec<u8> {
        let attention = nexus.take();
        let state = self.lock();
        self.update_word(&state);
        let sense = attention.or_else(|| state.not_ready()).unwrap_or_default();
        drop(state);
        if descriptor { sense.descriptor() } else { sense.fixed().to_vec() }
    }

    fn start_stop(&self, nexus: &Nexus, cdb: &[u8; 32]) -> Result<Outcome, Refused> {
        let (eject, start) = (cdb[4] & 2 != 0, cdb[4] & 1 != 0);
        // POWER CONDITION: none but start and stop.
        if cdb[4] & 0xf0 != 0 {
            return Err(INVALID_FIELD.into());
        }
        // To stop it is to take it from whoever has reserved it.
        if !start && self.lock().reservations.conflicts(nexus.name(), AccessKind::Write) {
            return Ok(Outcome::Reply(Reply::conflict()));
        }
        match (self.profile.kind, eject) {
            (DeviceKind::Disk, true) => Err(INVALID_FIELD.into()),
            (DeviceKind::Disk, false) => {
                let mut state = self.lock();
                let stops = state.media == Media::Ready && !start;
                match (state.media, start) {
                    (Media::Ready, false) => state.media = Media::Stopped,
                    (Media::Stopped, true) => state.media = Media::Ready,
                    _ => {}
                }
                self.update_word(&state);
                // What is in the cache is on the medium before it stops, unless NO_FLUSH (SBC-3 5.25).
                match stops && cdb[4] & 4 == 0 {
                    true => Ok(Outcome::Medium(MediumOp::Flush { lba: 0, blocks: 0 })),
                    false => Ok(Outcome::Reply(Reply::good())),
                }
            }
            // MEDIUM REMOVAL PREVENTED.
            (DeviceKind::Dvd, true) if !start && self.is_locked_in() => {
                Err(Sense::new(ILLEGAL_REQUEST, 0x53, 0x02).into())
            }
            (DeviceKind::Dvd, true) if !start => Ok(Outcome::Event(Effect::Eject, Reply::good())),
            (DeviceKind::Dvd, true) => Ok(Outcome::Event(Effect::Load, Reply::good())),
            (DeviceKind::Dvd, false) => Ok(Outcome::Reply(Reply::good())),
        }
    }

    /// RESERVE and RELEASE (SPC-2 7.21 to 7.24).
    fn reserve(&self, nexus: &Nexus, cdb: &[u8; 32], reserve: bool) -> Result<Outcome, Refused> {
        // For a third party (3RDPTY, LONGID), or of a part (EXTENT): neither is offered.
        let long = matches!(cdb[0], RESERVE_10 | RELEASE_10);
        if cdb[1] & if long { 0x13 } else { 0x11 } != 0 {
            return Err(INVALID_FIELD.into());
        }
        let mut state = self.lock();
        let name = nexus.name();
        let good = if reserve { state.reservations.reserve(name) } else { state.reservations.release(name) };
        self.update_word(&state);
        if !good {
            return Ok(Outcome::Reply(Reply::conflict()));
        }
        state.version += 1;
        Ok(Outcome::Persist { reply: Reply::good(), version: state.version })
    }

    fn persistent_out(&self, nexus: &Nexus, cdb: &[u8; 32], parameters: &[u8]) -> Result<Outcome, Refused> {
        // The list has one length (SPC-5 6.17.1), apart from REGISTER AND MOVE's, which is not offered.
        if parameter_len(cdb) != OUT_LEN || parameters.len() < OUT_LEN {
            return Err(LENGTH_ERROR.into());
        }
        let mut list = [0; OUT_LEN];
        list.copy_from_slice(&parameters[..OUT_LEN]);
        let mut state = self.lock();
        let done = state.reservations.persistent_out(nexus.name(), cdb[1] & 0x1f, cdb[2], &list);
        self.update_word(&state);
        let done = match done {
            Ok(done) => done,
            Err(Refusal::Conflict) => return Ok(Outcome::Reply(Reply::conflict())),
            Err(Refusal::Check(sense)) => return Ok(Outcome::Reply(state.check(sense))),
        };
        for (name, ascq) in &done.attentions {
            match state.nexuses.iter().find(|nexus| nexus.name() == name) {
                Some(nexus) => nexus.owe(0x2a, *ascq),
                None => state.owe_absent(name, (0x2a, *ascq)),
            }
        }
        self.update_word(&state);
        state.version += 1;
        let reply = Reply::good();
        if done.aborts.is_empty() {
            return Ok(Outcome::Persist { reply, version: state.version });
        }
        Ok(Outcome::PersistAndAbort { reply, version: state.version, others: done.aborts })
    }

    fn medium(&self, cdb: &[u8; 32], parameters: &[u8], env: &Env<'_>) -> Result<Outcome, Refused> {
        let op = block::parse(cdb, parameters, self.profile.block_size)?;
        let flushes = matches!(op, MediumOp::Flush { .. });
        if op.kind() == AccessKind::Write && (env.readonly || self.profile.readonly) && !flushes {
            return Err(Sense::new(DATA_PROTECT, 0x27, 0x00).into());
        }
        let in_range = match &op {
            MediumOp::Unmap(ranges) => ranges.iter().all(|&(lba, blocks)| self.has(lba, blocks.into())),
            &MediumOp::Flush { lba, blocks } => self.has(lba, blocks.into()),
            op => op.range().is_none_or(|(lba, blocks)| self.has(lba, blocks)),
        };
        if !in_range {
            return Err(out_of_range(op.range()).into());
        }
        if self.is_too_long(&op) {
            return Err(INVALID_FIELD.into());
        }
        // LBPWS and LBPWS10 in VPD B2h say so (SBC-4 5.49).
        if matches!(op, MediumOp::WriteSame { unmap: true, .. }) && !self.profile.unmaps {
            return Err(INVALID_FIELD.into());
        }
        match op.range() {
            // Nothing to do is done.
            Some((_, 0)) => Ok(Outcome::Reply(Reply::good())),
            _ => Ok(Outcome::Medium(op)),
        }
    }

    /// The vendor's commands (docs/vendor-commands.md).
    fn vendor(&self, cdb: &[u8; 32], parameters: &[u8], env: &Env<'_>) -> Result<Outcome, Refused> {
        let mut head = [0; vendor::CDB_LEN];
        head.copy_from_slice(&cdb[..vendor::CDB_LEN]);
        let command = match VendorCommand::from_cdb(&head) {
            None => return Err(INVALID_OPCODE.into()),
            Some(Err(_)) => return Err(INVALID_FIELD.into()),
            Some(Ok(command)) => command,
        };
        match command {
            VendorCommand::GetReplacementState { allocation_length } => {
                let data = self.replacement_state().to_bytes().to_vec();
                Ok(Outcome::Reply(Reply::data(data, allocation_length as usize)))
            }
            VendorCommand::ApproveReplacement { .. } => {
                let approval = Approval::from_bytes(parameters).map_err(|_| INVALID_PARAMETER)?;
                let version = self.approve(approval.nonce, &approval.serial).ok_or(INVALID_PARAMETER)?;
                Ok(Outcome::Persist { reply: Reply::good(), version })
            }
            VendorCommand::ClearStatistics { scope } => {
                let adapter = scope == Scope::Adapter;
                Ok(Outcome::Event(Effect::ClearStatistics { adapter }, Reply::good()))
            }
            VendorCommand::GetAdapterInformation { allocation_length } => {
                let statistics = env.statistics.ok_or(INVALID_FIELD)?;
                let data = statistics.adapter().to_bytes().to_vec();
                Ok(Outcome::Reply(Reply::data(data, allocation_length as usize)))
            }
        }
    }
}

/// A command that is not done.
enum Refused {
    Sense(Sense),
    Reply(Box<Reply>),
}

impl From<Sense> for Refused {
    fn from(sense: Sense) -> Self {
        debug_assert_ne!(sense.key, UNIT_ATTENTION);
        Self::Sense(sense)
    }
}
