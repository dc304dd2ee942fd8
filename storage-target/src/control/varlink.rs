//! `io.avio.stord`: what the control socket answers (`avio-proto/varlink/io.avio.stord.varlink`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_host::config::{Capabilities, load, surroundings};
use avio_host::control::{Interface, Peer, Reloads, VarlinkError, parameters};
use avio_host::daemon::{self, Watches};
use avio_host::service::Service;
use avio_host::session::Sessions;
use avio_proto::config::{BackingSpec, LunDevice};
use avio_proto::control::{
    EjectParams, InsertParams, LimitsParams, NO_SUCH_LUN, Place, PlaceParams, RefusedParams, ReloadReply,
    STORD_INTERFACE, STORD_INTERFACE_DESCRIPTION, ShowStorageParams, StorageReply, error,
    stord_method as method,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::adapter::AdapterLun;
use super::lun::{LunKey, Wanted};
use super::show;
use super::storage::Storage;
use crate::adapter::AdapterId;
use crate::scsi::{Media, NexusName};

/// Longest time between two turns: sizes of files are looked at then.
const TURN: Duration = Duration::from_millis(1000);
/// The same while an adapter waits for requests of a daemon that was killed.
const WAITING_TURN: Duration = Duration::from_millis(50);

/// What this release can do; the switch's part of the files is only checked for its form.
pub(super) const CAPABILITIES: Capabilities = Capabilities { uplinks: true, tap_ports: true };

/// The storage with what only the control socket and signals need.
pub(super) struct Daemon {
    pub storage: Storage,
    service: Service,
    config_dir: PathBuf,
    reloads: Reloads,
    /// Changes of a LUN whose answers wait until they are durable; `None`: under way.
    changing: BTreeMap<LunKey, Option<Result<(), String>>>,
}

impl Daemon {
    pub fn new(storage: Storage, service: Service, config_dir: PathBuf) -> Self {
        Self { storage, service, config_dir, reloads: Reloads::default(), changing: BTreeMap::new() }
    }

    fn warnings(&self) -> Vec<String> {
        let changed = self.storage.config.storage.workers != self.storage.started_with;
        let line = "[workers] has changed: takes effect when the daemon starts the next time";
        changed.then(|| line.to_owned()).into_iter().collect()
    }

    fn show(&self, wanted: &ShowStorageParams) -> StorageReply {
        let mut adapters: Vec<_> = self
            .storage
            .adapters
            .values()
            .filter(|adapter| wanted.guest.as_ref().is_none_or(|guest| *guest == adapter.nexus.guest))
            .map(|adapter| {
                show::adapter(adapter, adapter.socket_path(&self.storage.run_dir).display().to_string())
            })
            .collect();
        adapters.sort_by(|a, b| (&a.guest, a.bus, a.device).cmp(&(&b.guest, b.bus, b.device)));
        StorageReply { adapters }
    }

    fn clear(&mut self, wanted: &ShowStorageParams) {
        for adapter in self.storage.adapters.values() {
            if wanted.guest.as_ref().is_none_or(|guest| *guest == adapter.nexus.guest) {
                adapter.luns.values().for_each(|entry| entry.clear());
                adapter.queues.iter().for_each(|ring| ring.clear());
            }
        }
    }

    /// The LUN that an operator names.
    fn lun(&self, place: &Place) -> Result<(AdapterId, LunKey, &AdapterLun), VarlinkError> {
        let key = key_of(place);
        let found = self.storage.find(&key).and_then(|id| Some((id, self.storage.entry(id, key.target)?)));
        match found {
            Some((id, entry)) => Ok((id, key, entry)),
            None => Err(VarlinkError::own(NO_SUCH_LUN, &PlaceParams { place: place.clone() })),
        }
    }

    /// A call that changes a LUN and is answered when that is durable: what to say now, or `None` for one that is to begin.
    fn waits(&mut self, place: &Place, again: bool) -> Option<Result<Value, VarlinkError>> {
        while let Some((key, outcome)) = self.storage.settled.pop_front() {
            self.changing.insert(key, Some(outcome));
        }
        let key = key_of(place);
        match (self.changing.get(&key), again) {
            (Some(None), true) => Some(Err(VarlinkError::NotYet)),
            (Some(None), false) => {
                Some(Err(refuse(format!("{}: another change of it is under way; try again", key.name()))))
            }
            (None, true) => Some(Ok(json!({}))),
            (Some(Some(_)), true) => {
                let outcome = self.changing.remove(&key).flatten().unwrap_or(Ok(()));
                Some(outcome.map(|()| json!({})).map_err(refuse))
            }
            (_, false) => None,
        }
    }

    /// It has been done, or is being done: the answer comes when it is durable.
    fn begun(&mut self, key: LunKey) -> Result<Value, VarlinkError> {
        self.changing.insert(key, None);
        Err(VarlinkError::NotYet)
    }

    fn eject(&mut self, wanted: &EjectParams, again: bool) -> Result<Value, VarlinkError> {
        if let Some(answer) = self.waits(&wanted.place, again) {
            return answer;
        }
        let (id, key, entry) = self.lun(&wanted.place)?;
        if entry.config.device != LunDevice::Dvd {
            return Err(refuse(format!("{}: it is a disk; only a dvd has a medium", key.name())));
        }
        if entry.lun.unit.media() == Media::Empty {
            return Err(refuse(format!("{}: the drive is empty; there is nothing to eject", key.name())));
        }
        if entry.lun.unit.is_locked_in() && !wanted.force {
            return Err(refuse(format!(
                "{}: the guest has locked the medium; unmount it there, or give --force",
                key.name()
            )));
        }
        self.storage.eject(id, key.target, false);
        self.storage.settle(key.clone(), Ok(()));
        self.begun(key)
    }

    fn insert(&mut self, wanted: &InsertParams, again: bool) -> Result<Value, VarlinkError> {
        if let Some(answer) = self.waits(&wanted.place, again) {
            return answer;
        }
        let (_, key, entry) = self.lun(&wanted.place)?;
        if entry.config.device != LunDevice::Dvd || entry.lun.unit.media() != Media::Empty {
            return Err(refuse(format!(
                "{}: it is no empty dvd drive; eject what is in it first",
                key.name()
            )));
        }
        let mut config = entry.config.clone();
        config.backing = format!("file:{}", wanted.path);
        let spec = BackingSpec::parse(&config.backing).map_err(|e| refuse(e.to_string()))?;
        self.storage.open_medium(Wanted { key: key.clone(), config, spec, inserted: true }, true);
        self.begun(key)
    }

    fn set_limits(&mut self, wanted: &LimitsParams) -> Result<Value, VarlinkError> {
        let (_, _, entry) = self.lun(&wanted.place)?;
        entry.set_limits(wanted.iops, wanted.bytes_per_s);
        Ok(json!({}))
    }

    fn approve(&mut self, wanted: &PlaceParams, again: bool) -> Result<Value, VarlinkError> {
        if let Some(answer) = self.waits(&wanted.place, again) {
            return answer;
        }
        let (_, key, entry) = self.lun(&wanted.place)?;
        let lun = Arc::clone(&entry.lun);
        let Some(replacement) = lun.unit.replacement() else {
            return Err(refuse(format!(
                "{}: its backing was not replaced; there is nothing to approve",
                key.name()
            )));
        };
        if let Some(version) = lun.unit.approve(replacement.nonce, &replacement.new.0) {
            self.storage.save(lun.id, version, lun.unit.save(), None);
        }
        self.storage.settle(key.clone(), Ok(()));
        self.begun(key)
    }
}

fn key_of(place: &Place) -> LunKey {
    let nexus = NexusName { guest: place.guest.clone(), bus: place.bus, device: place.device };
    LunKey { nexus, target: place.target }
}

impl Interface for Daemon {
    fn name(&self) -> &'static str {
        STORD_INTERFACE
    }

    fn description(&self) -> &'static str {
        STORD_INTERFACE_DESCRIPTION
    }

    fn product(&self) -> (&'static str, &'static str) {
        ("avio-stord", env!("CARGO_PKG_VERSION"))
    }

    fn call(&mut self, method: &str, params: Value, peer: &Peer) -> Result<Value, VarlinkError> {
        match method {
            method::SHOW => reply(&self.show(&parameters(params)?)),
            method::CLEAR_STATISTICS => {
                self.clear(&parameters(params)?);
                Ok(json!({}))
            }
            method::RELOAD => daemon::Daemon::reload(self, peer.again),
            method::EJECT => self.eject(&parameters(params)?, peer.again),
            method::INSERT => self.insert(&parameters(params)?, peer.again),
            method::SET_LIMITS => self.set_limits(&parameters(params)?),
            method::APPROVE => self.approve(&parameters(params)?, peer.again),
            _ => Err(VarlinkError::MethodNotFound),
        }
    }
}

impl daemon::Daemon for Daemon {
    fn service(&mut self) -> &mut Service {
        &mut self.service
    }

    fn sessions(&mut self) -> &mut Sessions {
        &mut self.storage.sessions
    }

    fn reloads(&mut self) -> &mut Reloads {
        &mut self.reloads
    }

    fn begin_reload(&mut self) {
        // A few small files on a local disk; they were read in the same way at the start.
        let begun = load(&self.config_dir, &surroundings(CAPABILITIES))
            .map_err(|errors| errors.0.iter().map(ToString::to_string).collect::<Vec<_>>())
            .and_then(|config| self.storage.reconcile(config));
        if let Err(reasons) = begun {
            self.reloaded(Err(reasons));
        }
    }

    fn summary(&self) -> String {
        let config = &self.storage.config;
        let luns: usize = config.adapters().map(|(_, storage)| storage.lun.len()).sum();
        format!("{} storage adapters, {luns} LUNs", config.adapters().count())
    }

    fn on_helpers(&mut self) {
        if let Some(outcome) = self.storage.on_helper() {
            let warnings = self.warnings();
            self.reloaded(outcome.map(|changes| ReloadReply { changes, warnings }));
        }
    }

    fn on_own(&mut self, _: usize) {}

    fn next_turn(&self, _: Instant) -> Duration {
        if self.storage.is_waiting() { WAITING_TURN } else { TURN }
    }

    fn turn(&mut self, now: Instant, _: &Watches<'_>) {
        self.storage.turn(now);
    }
}

fn reply(value: &impl Serialize) -> Result<Value, VarlinkError> {
    // Our own types always are JSON.
    Ok(serde_json::to_value(value).unwrap_or_else(|_| json!({})))
}

fn refuse(reason: String) -> VarlinkError {
    refused(vec![reason])
}

fn refused(reasons: Vec<String>) -> VarlinkError {
    VarlinkError::own(error::REFUSED, &RefusedParams { reasons })
}
