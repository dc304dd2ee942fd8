//! Backings that are not there when the daemon starts: what a start does about them, and how they come back.
//!
//! A LUN that was served before stays a LUN: it is offline, everybody else is served, and its backing is looked for until it
//! is there (`docs/decisions/0011`). A backing that requests of a daemon that was killed still hold is waited for with its
//! adapter's socket closed, so that the guest sees a pause and no error. Called by the control thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_host::blocking::answered;
use avio_proto::config::{BackingCache, Config, LunDevice};

use super::reconcile::{Pending, wanted};
use super::replace::nonce;
use super::{Done, Storage};
use crate::adapter::AdapterId;
use crate::backing::Limits;
use crate::control::adapter::{Adapter, AdapterLun};
use crate::control::lun::{self, LunKey, Opened, Wanted};
use crate::control::served::{Before, FrontEnd, Served, ServedAdapter, Store};
use crate::control::{device, journal};
use crate::scsi::{Replacement, SavedState};
use crate::serve::Notice;

/// How long a start as a whole waits for a predecessor's requests before it serves the others: most end at once.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long an adapter waits for them: longer than a disk takes to answer or fail.
const PREDECESSOR: Duration = Duration::from_secs(20);
/// Between two tries to claim what a predecessor still has.
const CLAIM_AGAIN: Duration = Duration::from_millis(50);
/// Between two looks for a backing that is gone.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A LUN's backing that is not there.
#[derive(Clone)]
pub(in crate::control) struct Absent {
    /// What is looked for.
    pub wanted: Wanted,
    /// What it is taken for meanwhile.
    pub limits: Limits,
    pub size_bytes: u64,
    /// A predecessor's requests hold it, and until then the adapter waits for them.
    pub until: Option<Instant>,
}

impl Storage {
    /// At start-up: opens everything on this thread.
    ///
    /// # Errors
    /// A line for each LUN whose backing cannot be opened and never was.
    pub fn start(&mut self, config: Config) -> Result<(), Vec<String>> {
        let wanted = wanted(&config)?;
        let before = Before::read(&self.state_dir, &self.boot);
        let end = Instant::now() + AT_ONCE;
        let (mut opened, mut errors) = (Vec::new(), Vec::new());
        for wanted in self.missing(&wanted) {
            match self.open_at_start(&wanted, &before, end) {
                Ok(one) => opened.push(one),
                Err(line) => errors.push(line),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        for one in &mut opened {
            self.fence_at_start(one, &wanted, &before);
        }
        self.pending = Some(Pending { config });
        self.take_over(opened.into_iter().map(Ok).collect())?;
        for adapter in self.adapters.values_mut() {
            adapter.front_end = before.guest(&adapter.nexus);
        }
        let served = self.served();
        let path = Served::path(&self.state_dir);
        if let Err(error) = served.write(&path) {
            tracing::warn!("{}: {error}; guests may be told of a power-on after a restart", path.display());
        }
        self.noted = Some(served);
        Ok(())
    }

    fn open_at_start(&self, wanted: &Wanted, before: &Before, end: Instant) -> Result<Opened, String> {
        let known = before.had(&wanted.key, &wanted.config.backing);
        let refused = loop {
            match lun::open(wanted, &self.state_dir, &self.boot) {
                Ok(mut opened) => {
                    if let Ok(saved) = &mut opened.saved {
                        saved.succeeds = before.follows;
                    }
                    return Ok(opened);
                }
                Err(refused) if known && refused.is_taken && Instant::now() < end => sleep(CLAIM_AGAIN),
                Err(refused) if known => break refused,
                Err(refused) => return Err(refused.line),
            }
        };
        let mut opened = lun::prepare(wanted, &self.state_dir, &self.boot);
        match &mut opened.saved {
            Ok(saved) => saved.succeeds = before.follows,
            // It is offline for that already.
            Err(_) => return Ok(opened),
        }
        if refused.is_taken {
            tracing::info!("{}; its adapter waits for requests of another process to end", refused.line);
        } else {
            tracing::error!("{}; the LUN is offline until then", refused.line);
        }
        let store = before.store(&wanted.key).cloned().unwrap_or_default();
        opened.absent = Some(Absent {
            wanted: wanted.clone(),
            limits: taken_for(wanted, &store),
            size_bytes: store.size_bytes,
            until: refused.is_taken.then(|| Instant::now() + PREDECESSOR),
        });
        Ok(opened)
    }

    /// The definition names another store than the daemon before this one served: a guest that was there meanwhile must not
    /// have it unasked (SEMANTICS 2.4); without one it is a new disk.
    fn fence_at_start(&self, opened: &mut Opened, wanted: &BTreeMap<LunKey, Wanted>, before: &Before) {
        let Opened { key, config, defined, saved: Ok(saved), .. } = opened else { return };
        if config.device == LunDevice::Dvd {
            return;
        }
        let shares =
            |w: &&Wanted| w.key == *key || config.share && w.config.share && w.config.backing == *defined;
        let mut replaced = None;
        let (mut guest_is_there, mut nexuses) = (saved.replacement.is_some(), Vec::new());
        for sharer in wanted.values().filter(shares) {
            nexuses.push(sharer.key.nexus.clone());
            let mut store = before.store(&sharer.key).cloned().unwrap_or_default();
            // What a LUN's own state says is the newer, if it does.
            if !config.share && !saved.backing.is_empty() && saved.backing != store.backing {
                let serial = lun::serial(key, config, saved.generation);
                store = Store { backing: saved.backing.clone(), serial, ..Store::default() };
            }
            if store.backing.is_empty() {
                continue;
            }
            if store.backing != *defined {
                guest_is_there |= before.guest(&sharer.key.nexus).is_some();
                replaced.get_or_insert(store);
            }
        }
        let Some(old) = replaced else { return };
        if saved.replacement.as_ref().is_some_and(|pending| pending.new.1 == *defined) {
            // The daemon was told of it, and died before it had noted that it serves it.
            return;
        }
        let name = key.name();
        if guest_is_there {
            saved.generation += 1;
            saved.replacement = Some(Replacement {
                nonce: nonce(),
                old: (old.serial, old.backing, old.size_bytes),
                new: (
                    lun::serial(key, config, saved.generation),
                    defined.clone(),
                    opened.backing.as_ref().map_or(0, |backing| backing.size_bytes()),
                ),
            });
            // DEVICE IDENTIFIER CHANGED.
            saved.owe(&nexuses, (0x3f, 0x05));
            tracing::warn!(
                "{name}: its backing was replaced by {defined} while the daemon was down: the guest has to approve it"
            );
        } else if config.share {
            // Its state is the store's own.
            return;
        } else {
            *saved = SavedState { generation: saved.generation + 1, ..SavedState::default() };
            tracing::info!(
                "{name}: its backing was replaced by {defined} while the daemon was down and no guest there"
            );
        }
        saved.backing.clone_from(defined);
        saved.boot.clone_from(&self.boot);
        if let Err(error) = journal::write(&opened.journal, saved) {
            tracing::error!("state of a LUN is not saved: {}: {error}", opened.journal.display());
        }
    }

    /// What is served now.
    fn served(&self) -> Served {
        let store = |entry: &AdapterLun| Store {
            backing: entry.defined.clone(),
            serial: entry.serial.clone(),
            size_bytes: entry.lun.unit.capacity_bytes(),
            block_size: entry.lun.unit.block_size(),
        };
        let adapters = self.adapters.values().map(|adapter| ServedAdapter {
            nexus: adapter.nexus.clone(),
            front_end: adapter.front_end,
            luns: adapter.luns.iter().map(|(&target, entry)| (target, store(entry))).collect(),
        });
        Served::new(&self.boot, adapters.collect())
    }

    /// Writes down what is served, if that has changed. One write at a time: front-ends may come and go faster than a disk
    /// takes it.
    pub fn note(&mut self) {
        if self.noting {
            self.note_again = true;
            return;
        }
        let served = self.served();
        if self.noted.as_ref() == Some(&served) {
            return;
        }
        self.noting = true;
        let path = Served::path(&self.state_dir);
        self.noted = Some(served.clone());
        let reply = self.mailbox.reply();
        self.journal.run(move || {
            let result = served.write(&path).map_err(|error| format!("{}: {error}", path.display()));
            reply.send(Done::Noted(result));
        });
    }

    /// It is written down, or is to be tried again.
    pub fn was_noted(&mut self, result: Result<(), String>) {
        self.noting = false;
        if let Err(error) = result {
            self.noted = None;
            self.log("what is served is not noted", &error);
        }
        if std::mem::take(&mut self.note_again) {
            self.note();
        }
    }

    /// A front-end has come: the guest's VMM.
    pub fn arrived(&mut self, id: AdapterId) {
        let endpoint = self.adapters.get(&id).and_then(|adapter| adapter.endpoint);
        let pid = endpoint.and_then(|endpoint| self.sessions.peer_pid(endpoint));
        if let Some(adapter) = self.adapters.get_mut(&id) {
            adapter.front_end = Some(FrontEnd::of(pid));
        }
        self.note();
    }

    /// Whether an adapter waits for a predecessor's requests.
    pub fn is_waiting(&self) -> bool {
        self.adapters.values().any(|adapter| adapter.is_waiting())
    }

    /// Looks for backings that are not there, now and then, on a helper thread.
    pub fn look_for_absent(&mut self, now: Instant) {
        if self.looking_for_absent || now < self.next_look_for_absent {
            return;
        }
        let mut units = BTreeSet::new();
        let entries = self.adapters.values().flat_map(|adapter| adapter.luns.values());
        let absent: Vec<Wanted> = entries
            .filter_map(|entry| Some((entry.absent.as_ref()?, entry.lun.id)))
            .filter(|(_, lun)| units.insert(*lun))
            .map(|(absent, _)| absent.wanted.clone())
            .collect();
        if absent.is_empty() {
            return;
        }
        self.next_look_for_absent = now + if self.is_waiting() { CLAIM_AGAIN } else { LOOK_AGAIN };
        self.looking_for_absent = true;
        let (state_dir, boot) = (self.state_dir.clone(), self.boot.clone());
        let reply = self.mailbox.reply();
        self.helpers.run(move || {
            let look = |wanted: Wanted| {
                let found =
                    answered(|| lun::open(&wanted, &state_dir, &boot).map_err(|refused| refused.line));
                (wanted.key, found)
            };
            reply.send(Done::LookedFor(absent.into_iter().map(look).collect()));
        });
    }

    /// Backings that were looked for are there, or not.
    pub fn looked_for(&mut self, found: Vec<(LunKey, Result<Opened, String>)>) {
        self.looking_for_absent = false;
        for (key, result) in found {
            let Some(id) = self.find(&key) else { continue };
            let Some(entry) = self.entry(id, key.target) else {
                continue;
            };
            let Some(absent) = &entry.absent else { continue };
            match result {
                // Its definition has changed meanwhile, or an operator has put something else in.
                Ok(opened) if opened.defined != entry.defined => {}
                Ok(opened) => self.returned(id, opened),
                Err(line) if absent.until.is_some_and(|until| until <= Instant::now()) => {
                    tracing::error!("{line}; the LUN is offline until then");
                    self.each_sharer(id, key.target, |entry| {
                        if let Some(absent) = &mut entry.absent {
                            absent.until = None;
                        }
                    });
                }
                Err(_) => {}
            }
        }
    }

    /// Changes all entries that have the logical unit of one of them, and opens sockets that waited for that.
    fn each_sharer(&mut self, id: AdapterId, target: u8, mut change: impl FnMut(&mut AdapterLun)) {
        let Some(lun) = self.entry(id, target) else { return };
        let lun = lun.lun.id;
        let mut changed = Vec::new();
        for adapter in self.adapters.values_mut() {
            for (&target, entry) in adapter.luns.iter_mut().filter(|(_, entry)| entry.lun.id == lun) {
                change(entry);
                changed.push((adapter.id, target));
            }
        }
        for (id, target) in changed {
            self.publish(id);
            if let Err(line) = self.open_socket(id) {
                tracing::error!("{line}");
            }
            self.notify(id, Notice::Changed(target, 0x2a, 0x09));
            self.tell_capacity(id, target);
        }
    }

    /// A backing that was not there is.
    fn returned(&mut self, id: AdapterId, opened: Opened) {
        let (key, target) = (opened.key.clone(), opened.key.target);
        let Some(entry) = self.entry_mut(id, target) else {
            return;
        };
        tracing::info!("{}: {} is there", key.name(), opened.config.backing);
        if entry.config.device == LunDevice::Dvd && !entry.config.share {
            entry.absent = None;
            // It has just been opened.
            let _ = self.inserted(Ok(opened));
            return self.each_sharer(id, target, |_| {});
        }
        let old = Arc::clone(&entry.lun);
        let saved = match &opened.saved {
            Err(why) => Err(why.clone()),
            Ok(_) => {
                let mut saved = old.unit.save();
                saved.succeeds = true;
                let has = |adapter: &&Adapter| {
                    adapter.seen && adapter.luns.values().any(|entry| entry.lun.id == old.id)
                };
                let told: Vec<_> = self.adapters.values().filter(has).map(|a| a.nexus.clone()).collect();
                // NOT READY TO READY CHANGE.
                saved.owe(&told, (0x28, 0x00));
                Ok(saved)
            }
        };
        let (lun, backing) = self.make(&key, Opened { saved, ..opened });
        self.save(lun.id, lun.unit.version(), lun.unit.save(), None);
        self.each_sharer(id, target, |entry| {
            entry.lun = Arc::clone(&lun);
            entry.backing = backing.clone();
            entry.serial = lun.unit.profile().serial.clone();
            entry.absent = None;
        });
        self.journals.remove(&old.id);
        self.note();
    }
}

/// What a backing that is not there is taken for: as large as it was, and able to do what its kind can.
fn taken_for(wanted: &Wanted, store: &Store) -> Limits {
    let dvd = wanted.config.device == LunDevice::Dvd;
    let known = Some(store.block_size).filter(|size| *size != 0);
    let block_size =
        if dvd { 2048 } else { wanted.config.block_size.or(known).unwrap_or(device::SECTOR_LEN) };
    let through = wanted.config.cache.map(|cache| cache == BackingCache::Writethrough);
    Limits {
        block_size,
        physical_block_size: block_size.max(4096),
        memory_align: 1,
        readonly: wanted.config.readonly || dvd,
        volatile_cache: !through.unwrap_or(wanted.spec.writes_through()),
        rotational: false,
        discards: true,
        discards_read_zeroes: true,
    }
}
