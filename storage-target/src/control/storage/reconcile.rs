//! Bringing what runs in line with the definitions, in two steps: what is missing is opened on a helper thread, then
//! everything is changed at once. If anything cannot be opened, nothing changes. Called on the control thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use avio_host::blocking::answered;
use avio_proto::config::{BackingSpec, Config, Guest, LunDevice, StorageConfig};

use super::absent::Absent;
use super::{Done, Drained, Journal, Storage};
use crate::adapter::AdapterId;
use crate::backing::Backing;
use crate::control::adapter::{Adapter, AdapterLun};
use crate::control::lun::{self, EMPTY_DRIVE, LunKey, Opened, Wanted};
use crate::lun::{Lun, LunStats, Overlap};
use crate::scsi::{Media, NexusName, SavedState};
use crate::serve::{Command, Notice};

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
pub(in crate::control) fn wanted(config: &Config) -> Result<BTreeMap<LunKey, Wanted>, Vec<String>> {
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
        if let Some(entry) = self.entry_mut(id, key.target) {
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
    fn shared(&self, backing: &str) -> Option<(Arc<Lun>, Option<Arc<Backing>>, Option<Absent>)> {
        self.adapters
            .values()
            .flat_map(|adapter| adapter.luns.values())
            .find(|entry| entry.config.share && entry.defined == backing)
            .map(|entry| (Arc::clone(&entry.lun), entry.backing.clone(), entry.absent.clone()))
    }

    /// The logical unit of an opened LUN as `key`, and its backing unless its state is unreadable: it stays offline then.
    pub fn make(&mut self, key: &LunKey, opened: Opened) -> (Arc<Lun>, Option<Arc<Backing>>) {
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
        let lun = Lun { id, name: spec.to_string(), unit, overlap: Overlap::default() };
        (Arc::new(lun), backing)
    }
}
