//! A backing that the host has replaced, until the guest has approved it (SEMANTICS 2.4).
//!
//! The control thread begins one, the guest's tool ends it through a worker; until then the medium is not ready.

use avio_proto::scsi::vendor::{NONCE_NONE, ReplacementState, StoreIdentity, TargetState};
use serde::{Deserialize, Serialize};

use super::{LogicalUnit, Media};
use crate::scsi::inquiry;

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

impl LogicalUnit {
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
    pub(in crate::scsi) fn replacement_state(&self) -> ReplacementState {
        let state = self.lock();
        let store = |(serial, backing, size): &(String, String, u64)| StoreIdentity {
            size_bytes: *size,
            serial: serial.clone(),
            // A store's identity is made of its serial number.
            identity: format!("naa.{:016x}", inquiry::naa(serial)),
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
                ReplacementState { state: target, nonce: NONCE_NONE, new: now.clone(), old: now }
            }
        }
    }
}
