//! An initiator as a logical unit knows it: the I_T nexus (SAM-5 4.6.4).
//!
//! Named by guest, bus and device, never by connection: what it is owed survives a reconnect.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use avio_proto::scsi::sense::{Sense, UNIT_ATTENTION};
use serde::{Deserialize, Serialize};

/// Unit attentions kept for one initiator; when there are more the oldest stay, as SAM-5 5.14.1 allows.
const ATTENTIONS_MAX: usize = 16;

/// Guest, bus and device: who an initiator is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NexusName {
    /// The guest.
    pub guest: String,
    /// Its adapter's bus.
    pub bus: u8,
    /// Its adapter's device.
    pub device: u8,
}

impl NexusName {
    /// The initiator port's name, for TransportIDs (SPC-5 7.6.4.6, iSCSI format: the one for names without a bus of their own).
    #[must_use]
    pub fn port(&self) -> String {
        format!("iqn.2026-11.avio:{}.{}.{}", self.guest, self.bus, self.device)
    }
}

/// What an initiator that is not there is owed: unit attentions, as additional sense codes and their qualifiers.
pub type Owed = (NexusName, Vec<(u8, u8)>);

/// Adds to what an initiator is owed, once: there are few kinds, so its list stays short.
pub(super) fn owe(all: &mut Vec<Owed>, name: &NexusName, attention: (u8, u8)) {
    match all.iter_mut().find(|(of, _)| of == name) {
        Some((_, list)) if list.contains(&attention) => {}
        Some((_, list)) => list.push(attention),
        None => all.push((name.clone(), vec![attention])),
    }
}

/// What a logical unit owes one initiator.
#[derive(Debug)]
pub struct Nexus {
    name: NexusName,
    pending: AtomicBool,
    attentions: Mutex<VecDeque<(u8, u8)>>,
    /// The initiator has asked that the medium stays in (PREVENT ALLOW MEDIUM REMOVAL).
    prevents: AtomicBool,
}

impl Nexus {
    pub(super) fn new(name: NexusName, owed: &[(u8, u8)]) -> Self {
        Self {
            name,
            pending: AtomicBool::new(!owed.is_empty()),
            attentions: Mutex::new(owed.iter().copied().take(ATTENTIONS_MAX).collect()),
            prevents: AtomicBool::new(false),
        }
    }

    /// Who it is.
    #[must_use]
    pub fn name(&self) -> &NexusName {
        &self.name
    }

    /// Whether a unit attention waits.
    #[inline]
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Establishes a unit attention condition, once.
    pub(super) fn owe(&self, asc: u8, ascq: u8) {
        let mut attentions = self.lock();
        // A reset makes everything before it pointless (SPC-5 table 50).
        if asc == 0x29 {
            attentions.clear();
        }
        if attentions.len() < ATTENTIONS_MAX && !attentions.contains(&(asc, ascq)) {
            attentions.push_back((asc, ascq));
        }
        self.pending.store(!attentions.is_empty(), Ordering::Release);
    }

    /// The oldest unit attention, which is thereby reported.
    pub(super) fn take(&self) -> Option<Sense> {
        let mut attentions = self.lock();
        let (asc, ascq) = attentions.pop_front()?;
        self.pending.store(!attentions.is_empty(), Ordering::Release);
        Some(Sense::new(UNIT_ATTENTION, asc, ascq))
    }

    /// Everything that is owed, for the journal.
    pub(super) fn owed(&self) -> Vec<(u8, u8)> {
        self.lock().iter().copied().collect()
    }

    /// Whether the medium is to stay in.
    #[must_use]
    pub fn prevents(&self) -> bool {
        self.prevents.load(Ordering::Relaxed)
    }

    pub(super) fn set_prevents(&self, prevents: bool) {
        self.prevents.store(prevents, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u8, u8)>> {
        self.attentions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
