//! Bringing what runs in line with the definitions, in two steps: what is missing is opened on a helper thread, then
//! everything is changed at once. If anything cannot be opened, nothing changes.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_host::blocking::answered;
use avio_host::session::{Access, EndpointSpec, Role, gid_of, uid_of};
use avio_proto::config::{BackingSpec, Config, Guest, LunDevice, SocketRole, StorageConfig};

use super::absent::Absent;
use super::adapter::{Adapter, AdapterLun};
use super::device;
use super::lun::{self, EMPTY_DRIVE, LunKey, Opened, Wanted};
use super::storage::{Done, Drained, Journal, Storage};
use crate::adapter::AdapterId;
use crate::lun::{Lun, LunId, LunStats};
use crate::scsi::{Media, NexusName, Replacement, SavedState};
use crate::serve::{Command, Notice, Ticket};

/// How often files and devices are asked for their size.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A configuration whose LUNs are being opened.
pub(super) struct Pending {
    pub config: Config,
}

/// The initiator of an adapter.
pub(super) fn nexus_of(guest: &Guest, storage: &StorageConfig) -> NexusName {
    NexusName { guest: guest.name.clone(), bus: storage.bus, device: storage.device }
}

/// Every LUN that a configuration wants, defaults filled in.
///
/// # Errors
/// Two LUNs that have the same backing and do not both say `share = true`.
pub(super) fn wanted(config: &Config) -> Result<BTreeMap<LunKey, Wanted>, Vec<String>> {
    let mut all = BTreeMap::new();
    let mut errors = Vec::new();
    let mut seen: BTreeMap<String, (LunKey, bool)> = BTreeMap::new();
    for (guest, storage) in config.adapters() {
        for lun in &storage.lun {
            let key = LunKey { nexus: nexus_of(guest, storage), target: lun.target };
            let lun = config.storage.defaults.applied(lun);
            // The checks of the files have parsed it before.
            let Ok(spec) = BackingSpec::parse(&lun.backing) else { continue };
            if let Some(path) = spec.path() {
                let place = path.display().to_string();
                match seen.get(&place) {
                    Some((first, shared)) if !(*shared && lun.share) => errors.push(format!(
                        "{}: {place} is the backing of {} already; set share = true on both, or name another",
                        key.name(),
                        first.name()
                    )),
                    _ => {
                        seen.insert(place, (key.clone(), lun.share));
                    }
                }
            }
            all.insert(key.clone(), Wanted { key, config: lun, spec, inserted: false });
        }
    }
    if errors.is_empty() { Ok(all) } else { Err(errors) }
}

impl Storage {
    /// Begins to follow a changed configuration; [`Storage::on_helper`] ends it.
    pub fn reconcile(&mut self, config: Config) -> Result<(), Vec<String>> {
        let wanted = wanted(&config)?;
        let errors = self.joins(&wanted);
        if !errors.is_empty() {
            return Err(errors);
        }
        let missing = self.missing(&wanted);
        self.unsaved = Some(Vec::new());
        self.pending = Some(Pending { config });
        let (state_dir, boot) = (self.state_dir.clone(), self.boot.clone());
        let reply = self.mailbox.reply();
        self.helpers.run(move || {
            let open = |w| answered(|| lun::open(w, &state_dir, &boot).map_err(|refused| refused.line));
            let opened = missing.iter().map(open).collect();
            reply.send(Done::Opened(opened));
        });
        Ok(())
    }

    /// LUNs to be opened: new ones, and those with another backing. One open backing serves all that share it.
    pub fn missing(&self, wanted: &BTreeMap<LunKey, Wanted>) -> Vec<Wanted> {
        let mut shared = BTreeSet::new();
        for entry in self.adapters.values().flat_map(|adapter| adapter.luns.values()) {
            if entry.config.share {
                shared.insert(entry.defined.clone());
            }
        }
        let is_missing = |w: &&Wanted| match self.current(&w.key) {
            Some(entry) => entry.defined != w.config.backing,
            None => true,
        };
        let mut missing: Vec<Wanted> = wanted.values().filter(is_missing).cloned().collect();
        missing.retain(|w| !w.config.share || shared.insert(w.config.backing.clone()));
        missing
    }

    /// LUNs that are to go over to a store that another guest has: that one's must not be fenced, and this one's must be.
    fn joins(&self, wanted: &BTreeMap<LunKey, Wanted>) -> Vec<String> {
        let joins = |w: &&Wanted| {
            let other = self.current(&w.key).is_some_and(|entry| entry.defined != w.config.backing);
            other && w.config.share && self.shared(&w.config.backing).is_some()
        };
        let line = |w: &Wanted| {
            format!(
                "{}: {} is shared with a guest that has it already; remove this LUN, reload, and define it again",
                w.key.name(),
                w.config.backing
            )
        };
        wanted.values().filter(joins).map(line).collect()
    }

    fn current(&self, key: &LunKey) -> Option<&AdapterLun> {
        self.adapters.values().find(|adapter| adapter.nexus == key.nexus)?.luns.get(&key.target)
    }

    /// Everything that was missing is open, or not: changes all, or nothing. Returns lines about what changed.
    pub fn take_over(&mut self, opened: Vec<Result<Opened, String>>) -> Result<Vec<String>, Vec<String>> {
        let Some(Pending { config }) = self.pending.take() else { return Ok(Vec::new()) };
        let errors: Vec<String> = opened.iter().filter_map(|o| o.as_ref().err().cloned()).collect();
        if !errors.is_empty() {
            return Err(errors);
        }
        let wanted = wanted(&config)?;
        let mut opened: BTreeMap<LunKey, Opened> =
            opened.into_iter().flatten().map(|opened| (opened.key.clone(), opened)).collect();
        let mut changes = Vec::new();
        self.remove_what_is_gone(&config, &wanted, &mut changes);
        for (guest, storage) in config.adapters() {
            self.adapter_defined(guest, storage, &mut changes)?;
        }
        for key in wanted.keys() {
            self.lun_defined(key, &wanted, &mut opened, &mut changes);
        }
        self.config = config;
        let ids: Vec<AdapterId> = self.adapters.keys().copied().collect();
        for id in ids {
            self.publish(id);
            self.open_socket(id).map_err(|e| vec![e])?;
        }
        Ok(changes)
    }

    fn remove_what_is_gone(
        &mut self,
        config: &Config,
        wanted: &BTreeMap<LunKey, Wanted>,
        changes: &mut Vec<String>,
    ) {
        let kept: BTreeSet<NexusName> = config.adapters().map(|(g, s)| nexus_of(g, s)).collect();
        let ids: Vec<AdapterId> = self.adapters.keys().copied().collect();
        for id in ids {
            let Some(adapter) = self.adapters.get_mut(&id) else { continue };
            let gone: Vec<u8> = adapter
                .luns
                .keys()
                .copied()
                .filter(|&target| !wanted.contains_key(&LunKey { nexus: adapter.nexus.clone(), target }))
                .collect();
            let nexus = adapter.nexus.clone();
            let mut removed = Vec::new();
            for target in gone {
                if let Some(entry) = adapter.luns.remove(&target) {
                    changes.push(format!("{}: removed", LunKey { nexus: nexus.clone(), target }.name()));
                    entry.lun.unit.detach(&nexus);
                    removed.push((target, entry.lun));
                }
            }
            if !removed.is_empty() {
                self.publish(id);
            }
            for (target, lun) in removed {
                self.drain(lun.id, Some(id), Drained::Removed { adapter: id, target });
                // Others that share it keep it, without what the one that is gone had reserved.
                self.save(lun.id, lun.unit.version(), lun.unit.save(), None);
                self.forget(lun.id);
            }
            if !kept.contains(&nexus)
                && let Some(adapter) = self.adapters.remove(&id)
            {
                changes.push(format!("{}: adapter removed", adapter.name()));
                let (endpoint, connected) = (adapter.endpoint, adapter.connected);
                if connected {
                    // Its rings come back one by one, then it is gone.
                    self.leaving.insert(id, adapter);
                } else {
                    self.broadcast(|| Command::RemoveAdapter(id));
                }
                if let Some(endpoint) = endpoint {
                    self.sessions.remove(endpoint);
                }
            }
        }
    }

    fn adapter_defined(
        &mut self,
        guest: &Guest,
        storage: &StorageConfig,
        changes: &mut Vec<String>,
    ) -> Result<(), Vec<String>> {
        let nexus = nexus_of(guest, storage);
        if let Some(adapter) = self.adapter_of(&nexus) {
            if adapter.storage.queues != storage.queues || adapter.storage.adaptor != storage.adaptor {
                changes.push(format!(
                    "{}: queues and adaptor change when the daemon starts again",
                    adapter.name()
                ));
            }
            if adapter.connected && adapter.pin_memory != guest.pin_memory {
                changes.push(format!(
                    "{}: pin_memory takes effect when the guest connects again",
                    adapter.name()
                ));
            }
            return Ok(());
        }
        let id = self.new_adapter_id();
        let adapter = Adapter::new(id, nexus, storage.clone());
        changes.push(format!("{}: adapter added", adapter.name()));
        self.adapters.insert(id, adapter);
        Ok(())
    }

    fn lun_defined(
        &mut self,
        key: &LunKey,
        all: &BTreeMap<LunKey, Wanted>,
        opened: &mut BTreeMap<LunKey, Opened>,
        changes: &mut Vec<String>,
    ) {
        let Some(wanted) = all.get(key) else { return };
        let Some(id) = self.adapter_of(&key.nexus).map(|adapter| adapter.id) else { return };
        let found = opened.remove(key);
        if let Some(entry) = self.adapters.get_mut(&id).and_then(|adapter| adapter.luns.get_mut(&key.target))
        {
            let config = &wanted.config;
            // The files are the truth, whatever the operator has set meanwhile.
            let limits = (config.iops, config.bytes_per_s());
            if entry.qos.limits() != limits {
                entry.set_limits(limits.0, limits.1);
                changes.push(format!("{}: limits changed", key.name()));
            }
            changes.extend(lun::follow(&key.name(), entry, config, found.is_some()));
            entry.defined.clone_from(&config.backing);
            if let Some(found) = found {
                changes.push(format!("{}: backing replaced by {}", key.name(), config.backing));
                if config.device == LunDevice::Dvd {
                    self.swap_medium(id, key.target, found);
                } else {
                    self.replace(id, key.target, found, all);
                }
            }
            return;
        }
        let mut config = wanted.config.clone();
        let defined = config.backing.clone();
        if let Some(found) = &found {
            config.backing.clone_from(&found.config.backing);
        }
        let absent = found.as_ref().and_then(|found| found.absent.clone());
        let (lun, backing, absent) = match (found, self.shared(&defined)) {
            (None, Some(shared)) if config.share => shared,
            (Some(found), _) => {
                let (lun, backing) = self.make(key, found);
                (lun, backing, absent)
            }
            (None, _) => return,
        };
        let entry = AdapterLun {
            serial: lun.unit.profile().serial.clone(),
            stats: LunStats::new(self.workers.len()),
            cleared: Arc::default(),
            qos: Arc::default(),
            config,
            defined,
            lun,
            backing,
            absent,
        };
        entry.set_limits(entry.config.iops, entry.config.bytes_per_s());
        changes.push(format!("{}: {} added", key.name(), entry.config.backing));
        if let Some(adapter) = self.adapters.get_mut(&id) {
            adapter.luns.insert(key.target, entry);
        }
        self.publish(id);
        self.notify(id, Notice::Added(key.target));
    }

    /// The logical unit and backing that others share under this name.
    #[expect(clippy::type_complexity, reason = "the three parts of an entry, for one caller")]
    fn shared(
        &self,
        backing: &str,
    ) -> Option<(Arc<Lun>, Option<Arc<crate::backing::Backing>>, Option<Absent>)> {
        self.adapters
            .values()
            .flat_map(|adapter| adapter.luns.values())
            .find(|entry| entry.config.share && entry.defined == backing)
            .map(|entry| (Arc::clone(&entry.lun), entry.backing.clone(), entry.absent.clone()))
    }

    pub fn make(&mut self, key: &LunKey, opened: Opened) -> (Arc<Lun>, Option<Arc<crate::backing::Backing>>) {
        let id = self.new_lun_id();
        let Opened { config, spec, defined, mut backing, saved, journal, absent, .. } = opened;
        let (saved, unreadable) = match saved {
            Ok(saved) => (saved, None),
            Err(why) => (SavedState::default(), Some(why)),
        };
        let serial = lun::serial(key, &config, saved.generation);
        let (limits, size) = match (&backing, &absent) {
            (Some(backing), _) => (*backing.limits(), backing.size_bytes()),
            (None, Some(absent)) => (absent.limits, absent.size_bytes),
            (None, None) => (EMPTY_DRIVE, 0),
        };
        let unit = lun::unit(&config, &serial, &limits, size, saved);
        unit.set_backing(&defined);
        if let Some(why) = unreadable {
            tracing::error!("{}: {why}", key.name());
            unit.set_media(Media::Offline);
            backing = None;
        } else if spec == BackingSpec::Empty || absent.is_some() && config.device == LunDevice::Dvd {
            unit.set_media(Media::Empty);
        } else if absent.is_some() {
            unit.set_media(Media::Offline);
        }
        self.journals.insert(id, Journal { path: journal });
        let lun = Lun { id, name: spec.to_string(), unit, overlap: crate::lun::Overlap::default() };
        (Arc::new(lun), backing)
    }

    /// The host has replaced a LUN's backing (SEMANTICS 2.4): nothing more reaches the old one, and the new one waits for
    /// the guest's approval, unless no guest is there.
    fn replace(&mut self, id: AdapterId, target: u8, opened: Opened, wanted: &BTreeMap<LunKey, Wanted>) {
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
    fn parted(
        &mut self,
        id: AdapterId,
        target: u8,
        lun: LunId,
        backing: Option<Arc<crate::backing::Backing>>,
    ) {
        let entry = self.adapters.get_mut(&id).and_then(|adapter| adapter.luns.get_mut(&target));
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

    /// Takes a drive's medium out; `by_guest`: it lies in the open tray, and the guest may load it again.
    pub fn eject(&mut self, id: AdapterId, target: u8, by_guest: bool) {
        let Some(entry) = self.adapters.get_mut(&id).and_then(|adapter| adapter.luns.get_mut(&target)) else {
            return;
        };
        entry.lun.unit.set_media(Media::Empty);
        (entry.backing, entry.absent) = (None, None);
        if !by_guest {
            entry.config.backing = BackingSpec::Empty.to_string();
        }
        let lun = Arc::clone(&entry.lun);
        let version = lun.unit.set_tray(Some(BackingSpec::Empty.to_string()));
        self.save(lun.id, version, lun.unit.save(), None);
        self.publish(id);
        self.drain(lun.id, Some(id), Drained::Ejected);
        self.notify(id, Notice::Medium(target));
    }

    /// Puts the medium in again that the guest has ejected.
    pub fn load(&mut self, id: AdapterId, target: u8) {
        let Some(adapter) = self.adapters.get(&id) else { return };
        let Some(entry) = adapter.luns.get(&target) else { return };
        let config = entry.config.clone();
        match BackingSpec::parse(&config.backing) {
            Ok(spec) if spec != BackingSpec::Empty && entry.lun.unit.media() == Media::Empty => {
                let key = LunKey { nexus: adapter.nexus.clone(), target };
                self.open_medium(Wanted { key, config, spec, inserted: true }, false);
            }
            _ => {}
        }
    }

    /// The definition of a drive names another medium.
    fn swap_medium(&mut self, id: AdapterId, target: u8, opened: Opened) {
        self.eject(id, target, false);
        // It has just been opened.
        let _ = self.inserted(Ok(opened));
    }

    /// A medium for a drive has been opened, or not.
    ///
    /// # Errors
    /// One line.
    pub fn inserted(&mut self, opened: Result<Opened, String>) -> Result<(), String> {
        let opened = opened?;
        let gone = || format!("{}: the LUN has been removed", opened.key.name());
        let id = self.find(&opened.key).ok_or_else(gone)?;
        let target = opened.key.target;
        let Some(entry) = self.adapters.get_mut(&id).and_then(|adapter| adapter.luns.get_mut(&target)) else {
            return Err(gone());
        };
        let tray = (opened.config.backing != entry.defined).then(|| opened.config.backing.clone());
        if opened.spec == BackingSpec::Empty {
            // Emptied by its definition.
            entry.lun.unit.set_backing(&entry.defined);
            let version = entry.lun.unit.set_tray(None);
            let lun = Arc::clone(&entry.lun);
            self.save(lun.id, version, lun.unit.save(), None);
            return Ok(());
        }
        let size = opened.backing.as_ref().map_or(0, |backing| backing.size_bytes());
        entry.lun.unit.set_blocks(size / u64::from(entry.lun.unit.block_size()));
        (entry.backing, entry.absent) = (opened.backing, None);
        entry.config.backing = opened.config.backing;
        let lun = Arc::clone(&entry.lun);
        lun.unit.set_backing(&entry.defined);
        let version = lun.unit.set_tray(tray);
        self.save(lun.id, version, lun.unit.save(), None);
        self.publish(id);
        lun.unit.set_media(Media::Ready);
        self.notify(id, Notice::Medium(target));
        Ok(())
    }

    /// Asks files and devices for their size, now and then, on a helper thread.
    pub fn look_at_sizes(&mut self, now: Instant) {
        if self.looking || now < self.next_look {
            return;
        }
        self.next_look = now + LOOK_EVERY;
        if self.noted.is_none() {
            self.note();
        }
        let backings: Vec<_> = self
            .adapters
            .values()
            .flat_map(|adapter| adapter.luns.values())
            .filter_map(|entry| entry.backing.clone())
            .filter(|backing| backing.identity().is_some())
            .collect();
        if backings.is_empty() {
            return;
        }
        self.looking = true;
        let reply = self.mailbox.reply();
        self.helpers.run(move || {
            let changed = backings
                .into_iter()
                .filter_map(|backing| {
                    let size = backing.refresh_size().ok().flatten()?;
                    Some((backing, size))
                })
                .collect();
            reply.send(Done::Resized(changed));
        });
    }

    /// Backings have another size: logical units and guests are told.
    pub fn resized(&mut self, resized: &[(Arc<crate::backing::Backing>, u64)]) {
        let mut told = Vec::new();
        for (backing, size) in resized {
            for adapter in self.adapters.values() {
                let of =
                    |entry: &&AdapterLun| entry.backing.as_ref().is_some_and(|own| Arc::ptr_eq(own, backing));
                for (target, entry) in adapter.luns.iter().filter(|(_, entry)| of(entry)) {
                    let blocks = size / u64::from(entry.lun.unit.block_size());
                    if entry.lun.unit.blocks() != blocks {
                        tracing::info!("{} target {target}: now {size} bytes", adapter.name());
                        entry.lun.unit.set_blocks(blocks);
                    }
                    told.push((adapter.id, *target));
                }
            }
        }
        for (id, target) in told {
            self.notify(id, Notice::Changed(target, 0x2a, 0x09));
            self.tell_capacity(id, target);
        }
    }

    /// A virtio-blk disk has its size in the configuration space.
    pub fn tell_capacity(&mut self, id: AdapterId, target: u8) {
        let Some(adapter) = self.adapters.get(&id).filter(|adapter| adapter.is_blk()) else { return };
        let Some(entry) = adapter.luns.get(&target) else { return };
        let (Some(endpoint), Some(backing)) = (adapter.endpoint, &entry.backing) else { return };
        let size = entry.lun.unit.capacity_bytes();
        let readonly = entry.config.readonly || backing.limits().readonly;
        let device = device::blk_spec(&adapter.storage, size, backing.limits(), readonly);
        let config = device.config.clone();
        // A store that was replaced, or was not there, may be able to do other things; the next session is told.
        self.sessions.set_device(endpoint, device);
        self.sessions.set_config(endpoint, config);
    }

    /// Opens an adapter's socket, if it has none and waits for nothing.
    pub fn open_socket(&mut self, id: AdapterId) -> Result<(), String> {
        let closed = |adapter: &&Adapter| adapter.endpoint.is_none() && !adapter.is_waiting();
        let Some(adapter) = self.adapters.get(&id).filter(closed) else { return Ok(()) };
        let storage = &adapter.storage;
        let path: std::path::PathBuf = match &storage.socket {
            Some(path) => path.into(),
            None => {
                let folder = self.run_dir.join("guests").join(&adapter.nexus.guest);
                std::fs::create_dir_all(&folder)
                    .map_err(|e| format!("--run-dir: {}: cannot be made: {e}", folder.display()))?;
                folder.join(storage.socket_file_name())
            }
        };
        let account = |e: avio_host::session::UnknownAccount| format!("{}: {e}", adapter.name());
        let role = match storage.socket_role {
            SocketRole::Client => Role::Client,
            SocketRole::Server => Role::Server(Access {
                uid: storage.socket_owner.as_deref().map(uid_of).transpose().map_err(account)?,
                gid: storage.socket_group.as_deref().map(gid_of).transpose().map_err(account)?,
                perm: storage.socket_perm.map(|perm| perm.mode()),
            }),
        };
        let device = match adapter.luns.values().next().filter(|_| adapter.is_blk()) {
            Some(entry) => {
                let limits = entry.limits();
                let readonly = entry.config.readonly || limits.readonly;
                device::blk_spec(storage, entry.lun.unit.capacity_bytes(), &limits, readonly)
            }
            None => device::scsi_spec(storage),
        };
        let spec = EndpointSpec { name: adapter.name(), path, role, device };
        let endpoint = self.sessions.add(spec).map_err(|e| e.to_string())?;
        if let Some(adapter) = self.adapters.get_mut(&id) {
            adapter.endpoint = Some(endpoint);
        }
        Ok(())
    }
}

/// A number that an approval cannot guess or repeat.
pub(super) fn nonce() -> u64 {
    // Keys of hash maps are made to be unpredictable.
    RandomState::new().hash_one(Instant::now()) | 1
}
