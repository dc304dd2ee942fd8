//! A LUN's backing is replaced by another while guests run (SEMANTICS 2.4): fences, approvals, and who waits for whose requests.
//!
//! Called on the control thread when a definition names another backing, or one that was away has come back changed. Nothing more reaches the old
//! backing from then on; it is let go when no worker has a request at it. Opens nothing: what replaces is open already.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use super::Storage;
use crate::adapter::AdapterId;
use crate::backing::Backing;
use crate::control::adapter::{Adapter, AdapterLun};
use crate::control::lun::{self, LunKey, Opened, Wanted};
use crate::lun::{Lun, LunId};
use crate::scsi::{Replacement, SavedState};
use crate::serve::{Command, Notice, Ticket};

/// What is waited for before a backing is let go.
pub(super) enum Drained {
    /// A LUN was removed: its guest may be told.
    Removed { adapter: AdapterId, target: u8 },
    /// A LUN's backing is to be replaced by what was opened.
    Replaced { adapter: AdapterId, target: u8, opened: Box<Opened> },
    /// A LUN that parted from a shared store may have its new backing.
    Parted { adapter: AdapterId, target: u8, lun: LunId, backing: Option<Arc<Backing>> },
    /// A drive's medium is out.
    Ejected,
}

impl Storage {
    /// The host has replaced a LUN's backing (SEMANTICS 2.4): nothing more reaches the old one, and the new one waits for
    /// the guest's approval, unless no guest is there.
    pub fn replace(&mut self, id: AdapterId, target: u8, opened: Opened, wanted: &BTreeMap<LunKey, Wanted>) {
        let Some(adapter) = self.adapters.get(&id) else { return };
        let Some(entry) = adapter.luns.get(&target) else { return };
        let lun = Arc::clone(&entry.lun);
        let (with, without) = self.who_moves(&lun, &opened.defined, wanted);
        let is_known = with.iter().any(|(id, _)| self.adapters.get(id).is_some_and(Adapter::has_guest))
            || lun.unit.replacement().is_some();
        let key = LunKey { nexus: adapter.nexus.clone(), target };
        let generation = lun.unit.generation() + 1;
        let size = opened.backing.as_ref().map_or(0, |backing| backing.size_bytes());
        let replacement = is_known.then(|| Replacement {
            nonce: nonce(),
            old: (entry.serial.clone(), entry.config.backing.clone(), lun.unit.capacity_bytes()),
            new: (lun::serial(&key, &opened.config, generation), opened.config.backing.clone(), size),
        });
        if without {
            return self.part(&lun, &with, opened, replacement);
        }
        if let Some(replacement) = replacement {
            lun.unit.set_replaced(replacement);
            // Should the daemon die now, its successor opens the new store, and must not let the guest have it either.
            self.save(lun.id, lun.unit.version(), lun.unit.save(), None);
            if self.journals.get(&lun.id).is_none_or(|journal| journal.path != opened.journal) {
                // A store that is shared has its state under its own name: that is what the successor reads.
                let state = SavedState { backing: opened.defined.clone(), ..lun.unit.save() };
                self.save_at(opened.journal.clone(), lun.id, lun.unit.version(), state, None);
            }
        }
        self.drain(lun.id, None, Drained::Replaced { adapter: id, target, opened: Box::new(opened) });
    }

    /// Of those that have a logical unit: who is to have the backing `defined` in its place, and whether anybody is to have
    /// another one.
    fn who_moves(
        &self,
        lun: &Lun,
        defined: &str,
        wanted: &BTreeMap<LunKey, Wanted>,
    ) -> (Vec<(AdapterId, u8)>, bool) {
        let (mut with, mut without) = (Vec::new(), false);
        for adapter in self.adapters.values() {
            for (&target, _) in adapter.luns.iter().filter(|(_, entry)| entry.lun.id == lun.id) {
                match wanted.get(&LunKey { nexus: adapter.nexus.clone(), target }) {
                    Some(wanted) if wanted.config.backing == defined => with.push((adapter.id, target)),
                    _ => without = true,
                }
            }
        }
        (with, without)
    }

    /// Some of those that share a store get another: they part from its logical unit at once and have a new one, without
    /// its backing until they have no request left at the old one. The others notice nothing.
    fn part(
        &mut self,
        old: &Arc<Lun>,
        movers: &[(AdapterId, u8)],
        opened: Opened,
        replacement: Option<Replacement>,
    ) {
        let Some(&(first, target)) = movers.first() else { return };
        let Some(nexus) = self.adapters.get(&first).map(|adapter| adapter.nexus.clone()) else { return };
        let mut saved = SavedState { generation: old.unit.generation() + 1, ..SavedState::default() };
        if replacement.is_some() {
            // DEVICE IDENTIFIER CHANGED.
            let nexuses = movers.iter().filter_map(|(id, _)| self.adapters.get(id)).map(|a| a.nexus.clone());
            saved.attentions = nexuses.map(|nexus| (nexus, vec![(0x3f, 0x05)])).collect();
        }
        saved.replacement = replacement;
        let config = opened.config.clone();
        let (lun, backing) = self.make(&LunKey { nexus, target }, Opened { saved: Ok(saved), ..opened });
        self.save(lun.id, lun.unit.version(), lun.unit.save(), None);
        for &(id, target) in movers {
            let Some(adapter) = self.adapters.get_mut(&id) else { continue };
            let nexus = adapter.nexus.clone();
            let Some(entry) = adapter.luns.get_mut(&target) else { continue };
            entry.lun = Arc::clone(&lun);
            (entry.backing, entry.absent) = (None, None);
            entry.serial = lun.unit.profile().serial.clone();
            entry.config.backing.clone_from(&config.backing);
            self.publish(id);
            old.unit.detach(&nexus);
            let lun = lun.id;
            self.drain(
                old.id,
                Some(id),
                Drained::Parted { adapter: id, target, lun, backing: backing.clone() },
            );
        }
        // Without what those that part had reserved.
        self.save(old.id, old.unit.version(), old.unit.save(), None);
    }

    /// Who parted from a shared store has no request left there.
    fn parted(&mut self, id: AdapterId, target: u8, lun: LunId, backing: Option<Arc<Backing>>) {
        let entry = self.entry_mut(id, target);
        // It may have been replaced again, or removed.
        let Some(entry) = entry.filter(|entry| entry.lun.id == lun) else { return };
        entry.backing = backing;
        self.publish(id);
        self.notify(id, Notice::Changed(target, 0x2a, 0x09));
        self.tell_capacity(id, target);
    }

    /// All workers have let go of what was asked for.
    pub fn on_drained(&mut self, ticket: Ticket) {
        let Some(at) = self.draining.iter().position(|(of, _)| *of == ticket) else { return };
        match self.draining.swap_remove(at).1 {
            Drained::Removed { adapter, target } => self.notify(adapter, Notice::Removed(target)),
            Drained::Replaced { adapter, target, opened } => self.replaced(adapter, target, *opened),
            Drained::Parted { adapter, target, lun, backing } => self.parted(adapter, target, lun, backing),
            Drained::Ejected => {}
        }
        self.note();
        self.broadcast(|| Command::ReleaseFiles);
    }

    fn replaced(&mut self, id: AdapterId, target: u8, opened: Opened) {
        let Some(adapter) = self.adapters.get(&id) else { return };
        let key = LunKey { nexus: adapter.nexus.clone(), target };
        let Some(old) = adapter.luns.get(&target).map(|entry| Arc::clone(&entry.lun)) else { return };
        let before = old.unit.capacity_bytes();
        let mut saved = old.unit.save();
        if saved.replacement.is_none() {
            // No guest was there: it starts with what it finds.
            saved = SavedState { generation: saved.generation + 1, ..SavedState::default() };
        }
        let config = opened.config.clone();
        let (lun, backing) = self.make(&key, Opened { saved: Ok(saved), ..opened });
        let (lun_id, state, version) = (lun.id, lun.unit.save(), lun.unit.version());
        let after = lun.unit.capacity_bytes();
        let sharing: Vec<AdapterId> = self
            .adapters
            .values()
            .filter(|adapter| adapter.luns.values().any(|entry| entry.lun.id == old.id))
            .map(|adapter| adapter.id)
            .collect();
        for id in sharing {
            let Some(adapter) = self.adapters.get_mut(&id) else { continue };
            // Who shared the old store and is defined with it still keeps it.
            let of = |entry: &&mut AdapterLun| entry.lun.id == old.id && entry.defined == config.backing;
            let mut changed = Vec::new();
            for (number, entry) in &mut adapter.luns {
                if let Some(entry) = Some(entry).filter(of) {
                    entry.lun = Arc::clone(&lun);
                    (entry.backing, entry.absent) = (backing.clone(), None);
                    entry.serial = lun.unit.profile().serial.clone();
                    entry.config.backing = config.backing.clone();
                    changed.push(*number);
                }
            }
            self.publish(id);
            for target in changed {
                self.notify(id, Notice::Changed(target, 0x2a, 0x09));
                if before != after {
                    self.tell_capacity(id, target);
                }
            }
        }
        let is_kept = |adapter: &Adapter| adapter.luns.values().any(|entry| entry.lun.id == old.id);
        if !self.adapters.values().any(is_kept) {
            self.journals.remove(&old.id);
        }
        self.save(lun_id, version, state, None);
    }
}

/// A number that an approval cannot guess or repeat.
pub(super) fn nonce() -> u64 {
    // Keys of hash maps are made to be unpredictable.
    RandomState::new().hash_one(Instant::now()) | 1
}
