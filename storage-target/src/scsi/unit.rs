//! The state of a logical unit, and who may do what in it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avio_proto::scsi::sense::{
    ABORTED_COMMAND, DATA_PROTECT, HARDWARE_ERROR, ILLEGAL_REQUEST, MEDIUM_ERROR, MISCOMPARE, NOT_READY,
    Sense,
};
use avio_proto::scsi::vendor::{ReplacementState, StoreIdentity, TargetState};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::inquiry::TRANSFER_LEN_MAX;
use super::reservation::{Reservations, SavedReservations};
use super::{AccessKind, DeviceKind, MediumOp, Nexus, NexusName, Reply, ResetKind};
use crate::backing::{Access, IoError};

/// Nothing but INQUIRY and its like is answered: replaced, failed, stopped or empty.
const NOT_READY_BIT: u32 = 1;
/// Somebody has reserved it.
const RESERVED_BIT: u32 = 2;
/// Some initiator is owed a unit attention.
const OWED_BIT: u32 = 4;

/// What a logical unit is; fixed while it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Disk or drive.
    pub kind: DeviceKind,
    /// Unit serial number (VPD 80h), printable ASCII.
    pub serial: String,
    /// What the NAA designator is made of: stable over restarts, other after a replacement.
    pub identity: String,
    /// Logical block, in bytes.
    pub block_size: u32,
    /// Physical block, in bytes.
    pub physical_block_size: u32,
    /// Writes are refused for everybody.
    pub readonly: bool,
    /// A write may be lost in a power failure until it is flushed (WCE).
    pub volatile_cache: bool,
    /// It spins.
    pub rotational: bool,
    /// UNMAP gives space back.
    pub unmaps: bool,
    /// Unmapped blocks read as zeroes (LBPRZ).
    pub unmapped_is_zero: bool,
}

/// Whether the medium can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Media {
    /// It can.
    #[default]
    Ready,
    /// START STOP UNIT stopped it.
    Stopped,
    /// Nothing is in the drive.
    Empty,
    /// The host has replaced the backing, and the guest has not approved it.
    Replaced,
    /// The backing has failed, or its state could not be read.
    Offline,
}

/// A replacement that waits for approval (SEMANTICS 2.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    /// Names this replacement: an approval must repeat it.
    pub nonce: u64,
    /// Serial number and backing of the store before.
    pub old: (String, String, u64),
    /// Of the store now.
    pub new: (String, String, u64),
}

/// A command that must not be done twice and was done: its effect and this stand in the same journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Who sent it.
    pub nexus: NexusName,
    /// Through which ring.
    pub queue: u16,
    /// Its number in the in-flight region.
    pub number: u64,
    /// The driver's name for it.
    pub tag: u64,
}

/// Commands that are remembered as done: as many as can be between their journal entry and their answer at once.
const ANSWERED_MAX: usize = 256;

/// What must outlive the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedState {
    /// Format: 2. Those of format 1 had no number, and not the fields below `generation`.
    pub format: u32,
    /// Reservations and registrations.
    pub reservations: SavedReservations,
    /// Unit attentions that initiators have not been told.
    pub attentions: Vec<(NexusName, Vec<(u8, u8)>)>,
    /// A replacement that is not approved.
    pub replacement: Option<Replacement>,
    /// D_SENSE of the control mode page.
    pub descriptor_sense: bool,
    /// The backing that this state belongs to, as its definition names it; empty: not known.
    pub backing: String,
    /// How often the backing was replaced: part of the identity.
    pub generation: u64,
    /// What is in a drive, if somebody has changed it since the definition was read: a backing, or `none`.
    pub tray: Option<String>,
    /// Commands that were done and may not have been answered.
    pub answered: Vec<Answered>,
    /// Of which start of the host this is; empty: not known.
    pub boot: String,
    /// The daemon follows one that ran since the host started: initiators that are not listed are no strangers either, and
    /// were told of the power-on by it.
    #[serde(skip)]
    pub succeeds: bool,
}

/// The format of [`SavedState`].
pub const SAVED_FORMAT: u32 = 2;

impl SavedState {
    /// Initiators are owed a unit attention: these, each once.
    pub fn owe(&mut self, names: &[NexusName], attention: (u8, u8)) {
        for name in names {
            match self.attentions.iter_mut().find(|(of, _)| of == name) {
                Some((_, list)) if list.contains(&attention) => {}
                Some((_, list)) => list.push(attention),
                None => self.attentions.push((name.clone(), vec![attention])),
            }
        }
    }

    /// What is left of it after the host was off (SAM-5 6.3.5, SPC-5 5.14.4): persistent reservations only where APTPL asked
    /// for that. What the host's administrator has done stays.
    #[must_use]
    pub fn after_power_loss(self) -> Self {
        Self {
            reservations: self.reservations.after_power_loss(),
            attentions: Vec::new(),
            descriptor_sense: false,
            tray: None,
            answered: Vec::new(),
            ..self
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub media: Media,
    pub replacement: Option<Replacement>,
    pub reservations: Reservations,
    pub nexuses: Vec<Arc<Nexus>>,
    /// Owed to initiators that have not come yet.
    pub owed: Vec<(NexusName, Vec<(u8, u8)>)>,
    pub descriptor_sense: bool,
    pub generation: u64,
    pub backing: String,
    pub tray: Option<String>,
    pub answered: VecDeque<Answered>,
    /// New initiators are told of the power-on.
    pub powered_on: bool,
    /// The state that was saved last has unit attentions that had not been told.
    pub saved_attentions: bool,
    /// Goes up with each change that must be durable.
    pub version: u64,
}

/// A logical unit. Shared by all adapters that have it, and by all workers.
#[derive(Debug)]
#[repr(C)]
pub struct LogicalUnit {
    /// 0: every access of everybody is allowed. In one line with the next two: see [`Lun`](crate::lun::Lun).
    word: AtomicU32,
    /// As in the profile.
    block_size: u32,
    blocks: AtomicU64,
    pub(super) profile: Profile,
    state: Mutex<State>,
}

impl LogicalUnit {
    /// A logical unit of `blocks` blocks, in the state that a predecessor left.
    #[must_use]
    pub fn new(profile: Profile, blocks: u64, saved: SavedState) -> Self {
        let state = State {
            media: if saved.replacement.is_some() { Media::Replaced } else { Media::Ready },
            replacement: saved.replacement,
            reservations: Reservations::restore(saved.reservations),
            nexuses: Vec::new(),
            owed: saved.attentions,
            descriptor_sense: saved.descriptor_sense,
            generation: saved.generation,
            backing: saved.backing,
            tray: saved.tray,
            answered: saved.answered.into(),
            powered_on: !saved.succeeds,
            saved_attentions: false,
            version: 0,
        };
        let unit = Self {
            word: AtomicU32::new(0),
            block_size: profile.block_size,
            blocks: AtomicU64::new(blocks),
            profile,
            state: Mutex::new(state),
        };
        unit.update_word(&unit.lock());
        unit
    }

    /// Logical block, in bytes.
    #[inline]
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Logical blocks now.
    #[inline]
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Size now, in bytes.
    #[inline]
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.blocks() * u64::from(self.block_size)
    }

    /// What it is.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After every change of what it sums up, and of what a nexus is owed; a unit attention that was taken without the lock may stand in
    /// it for a moment longer, which costs its initiator a look.
    pub(super) fn update_word(&self, state: &State) {
        let mut word = 0;
        if state.media != Media::Ready {
            word |= NOT_READY_BIT;
        }
        if !state.reservations.is_free() {
            word |= RESERVED_BIT;
        }
        if state.nexuses.iter().any(|nexus| nexus.is_owed()) {
            word |= OWED_BIT;
        }
        self.word.store(word, Ordering::Release);
    }

    /// The initiator `name` as this logical unit knows it. A new one is told of the power-on (29h/00h).
    #[must_use]
    pub fn attach(&self, name: &NexusName) -> Arc<Nexus> {
        let mut state = self.lock();
        if let Some(nexus) = state.nexuses.iter().find(|nexus| nexus.name() == name) {
            return Arc::clone(nexus);
        }
        let owed = state.owed.iter().position(|(of, _)| of == name).map(|i| state.owed.swap_remove(i).1);
        let unknown = || if state.powered_on { vec![(0x29, 0x00)] } else { Vec::new() };
        let nexus = Arc::new(Nexus::new(name.clone(), &owed.unwrap_or_else(unknown)));
        state.nexuses.push(Arc::clone(&nexus));
        self.update_word(&state);
        nexus
    }

    /// Forgets an initiator whose definition is gone.
    pub fn detach(&self, name: &NexusName) {
        let mut state = self.lock();
        state.nexuses.retain(|nexus| nexus.name() != name);
        state.reservations.release_all_of(name);
        self.update_word(&state);
    }

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
    pub(super) fn has(&self, lba: u64, blocks: u64) -> bool {
        lba.checked_add(blocks).is_some_and(|end| end <= self.blocks())
    }

    /// Whether a transfer is longer than VPD B0h allows (SBC-4 6.6.4, MAXIMUM TRANSFER LENGTH).
    #[inline]
    pub(super) fn is_too_long(&self, op: &MediumOp) -> bool {
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

    /// Resets it. The caller ends the commands.
    pub fn reset(&self, kind: ResetKind, by: Option<&Nexus>) {
        let mut state = self.lock();
        match kind {
            ResetKind::LogicalUnit => {
                state.reservations.reset();
                state.descriptor_sense = false;
                if state.media == Media::Stopped {
                    state.media = Media::Ready;
                }
                for nexus in &state.nexuses {
                    nexus.set_prevents(false);
                    // BUS DEVICE RESET FUNCTION OCCURRED, to the one that asked for it as well (SAM-5 6.3.3).
                    nexus.owe(0x29, 0x03);
                }
            }
            ResetKind::NexusLoss => {
                if let Some(nexus) = by {
                    state.reservations.nexus_lost(nexus.name());
                    nexus.set_prevents(false);
                    nexus.owe(0x29, 0x07);
                }
            }
        }
        self.update_word(&state);
    }

    /// CLEAR TASK SET: the others are told that their commands are gone (SAM-5 7.4).
    pub fn task_set_cleared(&self, by: &Nexus) {
        self.owe_others(by.name(), 0x2f, 0x00);
    }

    pub(super) fn owe_others(&self, by: &NexusName, asc: u8, ascq: u8) {
        let state = self.lock();
        state.nexuses.iter().filter(|nexus| nexus.name() != by).for_each(|nexus| nexus.owe(asc, ascq));
        self.update_word(&state);
    }

    /// The medium has another size now: everybody is told (CAPACITY DATA HAS CHANGED). Of a drive that is being filled
    /// nobody is: the change of the medium says it all (MMC-6 4.2.1).
    pub fn set_blocks(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Relaxed);
        let state = self.lock();
        if state.media != Media::Empty {
            state.nexuses.iter().for_each(|nexus| nexus.owe(0x2a, 0x09));
            self.update_word(&state);
        }
    }

    /// What can be done with the medium from now on. `Ready` after something else is told as a change of the medium.
    pub fn set_media(&self, media: Media) {
        let mut state = self.lock();
        // What waits for approval goes on waiting.
        if state.replacement.is_some() {
            return;
        }
        if media == Media::Ready && state.media == Media::Empty {
            state.nexuses.iter().for_each(|nexus| nexus.owe(0x28, 0x00));
        }
        state.media = media;
        self.update_word(&state);
    }

    /// Whether the medium can be used.
    #[must_use]
    pub fn media(&self) -> Media {
        self.lock().media
    }

    /// Whether some initiator has locked the medium in.
    #[must_use]
    pub fn is_locked_in(&self) -> bool {
        self.lock().nexuses.iter().any(|nexus| nexus.prevents())
    }

    /// The host has replaced the backing: nothing is read or written until [`approve`](Self::approve).
    pub fn set_replaced(&self, replacement: Replacement) {
        let mut state = self.lock();
        state.generation += 1;
        state.replacement = Some(replacement);
        state.media = Media::Replaced;
        state.version += 1;
        // DEVICE IDENTIFIER CHANGED.
        state.nexuses.iter().for_each(|nexus| nexus.owe(0x3f, 0x05));
        self.update_word(&state);
    }

    /// The replacement that waits, if one does.
    #[must_use]
    pub fn replacement(&self) -> Option<Replacement> {
        self.lock().replacement.clone()
    }

    /// Ends a replacement; the version of the state that says so. `None` if none waits with this nonce and serial number.
    pub fn approve(&self, nonce: u64, serial: &str) -> Option<u64> {
        let mut state = self.lock();
        let fits = state.replacement.as_ref().is_some_and(|r| r.nonce == nonce && r.new.0 == serial);
        if !fits {
            return None;
        }
        state.replacement = None;
        state.media = Media::Ready;
        state.version += 1;
        state.nexuses.iter().for_each(|nexus| nexus.owe(0x2a, 0x09));
        self.update_word(&state);
        Some(state.version)
    }

    /// How often the backing was replaced.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// What GET REPLACEMENT STATE answers.
    pub(super) fn replacement_state(&self) -> ReplacementState {
        let state = self.lock();
        let store = |(serial, backing, size): &(String, String, u64)| StoreIdentity {
            size_bytes: *size,
            serial: serial.clone(),
            // A store's identity is made of its serial number.
            identity: format!("naa.{:016x}", super::inquiry::naa(serial)),
            backing: backing.clone(),
        };
        match &state.replacement {
            Some(r) => ReplacementState {
                state: TargetState::Replaced,
                nonce: r.nonce,
                new: store(&r.new),
                old: store(&r.old),
            },
            None => {
                let now = store(&(self.profile.serial.clone(), state.backing.clone(), self.capacity_bytes()));
                let target = match state.media {
                    Media::Ready | Media::Stopped | Media::Replaced => TargetState::Online,
                    Media::Empty => TargetState::NoMedia,
                    Media::Offline => TargetState::Offline,
                };
                let nonce = avio_proto::scsi::vendor::NONCE_NONE;
                ReplacementState { state: target, nonce, new: now.clone(), old: now }
            }
        }
    }

    /// What must outlive the process, as of now.
    #[must_use]
    pub fn save(&self) -> SavedState {
        let mut state = self.lock();
        let mut attentions = state.owed.clone();
        attentions.extend(state.nexuses.iter().map(|nexus| (nexus.name().clone(), nexus.owed())));
        state.saved_attentions = attentions.iter().any(|(_, owed)| !owed.is_empty());
        SavedState {
            reservations: state.reservations.save(),
            attentions,
            replacement: state.replacement.clone(),
            descriptor_sense: state.descriptor_sense,
            backing: state.backing.clone(),
            generation: state.generation,
            format: SAVED_FORMAT,
            tray: state.tray.clone(),
            answered: state.answered.iter().cloned().collect(),
            // Who writes it down knows.
            boot: String::new(),
            succeeds: false,
        }
    }

    /// Whether a unit attention that was just told may stand in the saved state as not told: then it is to be saved again, or a
    /// successor tells it once more.
    #[must_use]
    pub fn has_saved_attentions(&self) -> bool {
        self.lock().saved_attentions
    }

    /// Remembers a command as done. Before the state that has its effect is saved.
    pub fn remember(&self, answered: Answered) {
        let mut state = self.lock();
        while state.answered.len() >= ANSWERED_MAX {
            state.answered.pop_front();
        }
        state.answered.push_back(answered);
    }

    /// Whether a command that comes again was done by a predecessor.
    #[must_use]
    pub fn was_done(&self, command: &Answered) -> bool {
        self.lock().answered.contains(command)
    }

    /// What is in the drive from now on, for the next process; the version of the state that says so.
    pub fn set_tray(&self, tray: Option<String>) -> u64 {
        let mut state = self.lock();
        state.tray = tray;
        state.version += 1;
        state.version
    }

    /// The backing that the state belongs to, as its definition names it.
    pub fn set_backing(&self, backing: &str) {
        backing.clone_into(&mut self.lock().backing);
    }

    /// Version of the state that [`save`](Self::save) gives.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.lock().version
    }
}

impl State {
    /// Remembers what an initiator is owed that has not come yet, once.
    pub fn owe_absent(&mut self, name: &NexusName, attention: (u8, u8)) {
        match self.owed.iter_mut().find(|(of, _)| of == name) {
            Some((_, list)) if list.contains(&attention) => {}
            // There are few kinds, so the list is short.
            Some((_, list)) => list.push(attention),
            None => self.owed.push((name.clone(), vec![attention])),
        }
    }

    /// CHECK CONDITION in the format that was asked for.
    pub fn check(&self, sense: Sense) -> Reply {
        Reply { descriptor: self.descriptor_sense, ..Reply::check(sense) }
    }

    /// Why the medium cannot be used.
    pub fn not_ready(&self) -> Option<Sense> {
        match self.media {
            Media::Ready => None,
            // INITIALIZING COMMAND REQUIRED.
            Media::Stopped => Some(Sense::new(NOT_READY, 0x04, 0x02)),
            Media::Empty => Some(Sense::new(NOT_READY, 0x3a, 0x00)),
            // MANUAL INTERVENTION REQUIRED: Linux fails it at once instead of trying again.
            Media::Replaced | Media::Offline => Some(Sense::new(NOT_READY, 0x04, 0x03)),
        }
    }
}

/// LOGICAL BLOCK ADDRESS OUT OF RANGE, with the first block asked for.
pub(super) fn out_of_range(range: Option<(u64, u64)>) -> Sense {
    let sense = Sense::new(ILLEGAL_REQUEST, 0x21, 0x00);
    range.map_or(sense, |(lba, _)| sense.at(lba))
}
