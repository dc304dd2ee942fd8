//! A logical unit: what it is, its medium, its initiators, and the state that they share.
//!
//! Shared by all workers and the control thread. The state is behind a mutex that workers hold for the length of one command; what every access must know
//! is summed up in one word beside it (`admission` reads it). Touches no backing.

mod admission;
mod replacement;
mod saved;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avio_proto::scsi::sense::{NOT_READY, Sense};
use serde::{Deserialize, Serialize};

pub(super) use self::admission::out_of_range;
pub use self::replacement::Replacement;
pub use self::saved::{Answered, SAVED_FORMAT, SavedState};
use super::nexus::{Owed, owe};
use super::reservation::Reservations;
use super::{DeviceKind, Nexus, NexusName, Reply, ResetKind};

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

/// What initiators share: whoever changes it calls [`LogicalUnit::update_word`] before it lets go of the lock.
#[derive(Debug, Default)]
pub(super) struct State {
    pub media: Media,
    pub replacement: Option<Replacement>,
    pub reservations: Reservations,
    pub nexuses: Vec<Arc<Nexus>>,
    /// Owed to initiators that have not come yet.
    pub owed: Vec<Owed>,
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

    /// The state, for the length of one command.
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

    /// All initiators but one are owed a unit attention.
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
}

impl State {
    /// Remembers what an initiator is owed that has not come yet, once.
    pub fn owe_absent(&mut self, name: &NexusName, attention: (u8, u8)) {
        owe(&mut self.owed, name, attention);
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
