//! What of a logical unit outlives the process.
//!
//! Workers and the control thread take it with [`LogicalUnit::save`] after a change; control writes it down and reads it at the next start. Does no I/O.

use serde::{Deserialize, Serialize};

use super::{LogicalUnit, Replacement};
use crate::scsi::NexusName;
use crate::scsi::nexus::{Owed, owe};
use crate::scsi::reservation::SavedReservations;

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
    pub attentions: Vec<Owed>,
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
            owe(&mut self.attentions, name, attention);
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

impl LogicalUnit {
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
