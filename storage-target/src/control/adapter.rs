//! One adapter of a guest: its definition, its LUNs, its rings.
//!
//! Owns what lasts as long as the definition. It turns LUNs into the view that workers get; it opens nothing and waits for
//! nothing.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use avio_host::session::EndpointId;
use avio_proto::config::{DEFAULT_TIMEOUT_S, LunConfig, StorageAdaptor, StorageConfig};
use avio_proto::virtio::blk::SERIAL_LEN;

use super::device;
use super::lun::EMPTY_DRIVE;
use super::served::FrontEnd;
use super::storage::Absent;
use crate::adapter::{AdapterId, AdapterKind, AdapterView, TARGETS_MAX, Target};
use crate::backing::{Backing, Limits};
use crate::lun::{Lun, LunStats, Numbers, Qos, QueueStats};
use crate::scsi::NexusName;

/// A LUN as its adapter has it.
pub(super) struct AdapterLun {
    /// The definition, defaults filled in; its `backing` is what is there now.
    pub config: LunConfig,
    /// The backing as the definition names it: in a drive there may be another medium.
    pub defined: String,
    pub lun: Arc<Lun>,
    /// `None`: offline, or no medium.
    pub backing: Option<Arc<Backing>>,
    pub stats: LunStats,
    pub cleared: Arc<Mutex<Numbers>>,
    pub qos: Arc<Qos>,
    /// Serial number that the guest sees.
    pub serial: String,
    /// The backing is not there and is looked for.
    pub absent: Option<Absent>,
}

impl AdapterLun {
    /// Changes its limits, from the next request on; 0: none.
    pub fn set_limits(&self, iops: u64, bytes_per_s: u64) {
        self.qos.set(iops, bytes_per_s);
        self.stats.set_limited(iops != 0 || bytes_per_s != 0);
    }

    /// What its backing can do, or is taken for.
    pub fn limits(&self) -> Limits {
        match (&self.backing, &self.absent) {
            (Some(backing), _) => *backing.limits(),
            (None, Some(absent)) => absent.limits,
            (None, None) => EMPTY_DRIVE,
        }
    }

    /// Its numbers start over.
    pub fn clear(&self) {
        self.stats.clear_depth_max();
        *self.cleared.lock().unwrap_or_else(PoisonError::into_inner) = self.stats.numbers();
    }

    /// Its numbers since they were cleared.
    pub fn numbers(&self) -> Numbers {
        self.stats.numbers().since(&self.cleared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A ring that a worker has.
pub(super) struct Ring {
    pub worker: usize,
    /// Tells the guest's VMM that the ring is broken (SET_VRING_ERR).
    pub err: Option<OwnedFd>,
}

/// See the module.
pub(super) struct Adapter {
    pub id: AdapterId,
    pub nexus: NexusName,
    pub storage: StorageConfig,
    pub endpoint: Option<EndpointId>,
    pub connected: bool,
    /// The guest's VMM: connected, or it was with the daemon before this one and has not come back.
    pub front_end: Option<FrontEnd>,
    /// Its guest's memory stays in place: as its definition said when the guest connected.
    pub pin_memory: bool,
    /// It has been said that this does not help.
    pub pin_failed: bool,
    /// A guest has been here since the daemon started.
    pub seen: bool,
    /// Something that its guest was to be told had no event queue to go to.
    pub events_missed: bool,
    pub luns: BTreeMap<u8, AdapterLun>,
    pub rings: BTreeMap<u16, Ring>,
    pub queues: Vec<Arc<QueueStats>>,
}

impl Adapter {
    /// Where its socket is: `RUN/guests/NAME/stor-BUS-DEVICE.sock`, unless the definition names another.
    pub fn socket_path(&self, run_dir: &Path) -> PathBuf {
        match &self.storage.socket {
            Some(path) => path.into(),
            None => run_dir.join("guests").join(&self.nexus.guest).join(self.storage.socket_file_name()),
        }
    }

    pub fn new(id: AdapterId, nexus: NexusName, storage: StorageConfig) -> Self {
        let queues = (0..device::ring_count(&storage)).map(|_| Arc::default()).collect();
        Self {
            id,
            nexus,
            storage,
            endpoint: None,
            connected: false,
            front_end: None,
            pin_memory: false,
            pin_failed: false,
            seen: false,
            events_missed: false,
            luns: BTreeMap::new(),
            rings: BTreeMap::new(),
            queues,
        }
    }

    /// For log lines.
    pub fn name(&self) -> String {
        format!("{} stor-{}-{}", self.nexus.guest, self.nexus.bus, self.nexus.device)
    }

    /// Whether a guest is there that knows its LUNs, connected or about to come back.
    pub fn has_guest(&self) -> bool {
        self.connected || self.front_end.is_some_and(FrontEnd::is_there)
    }

    /// Whether it waits for a predecessor's requests, its socket closed.
    pub fn is_waiting(&self) -> bool {
        self.luns.values().filter_map(|entry| entry.absent.as_ref()).any(|absent| absent.until.is_some())
    }

    pub fn is_blk(&self) -> bool {
        self.storage.adaptor == StorageAdaptor::AvioBlk
    }

    /// What workers get.
    pub fn view(&self) -> Arc<AdapterView> {
        let mut targets: Vec<Option<Arc<Target>>> = vec![None; TARGETS_MAX];
        for (&number, entry) in &self.luns {
            // An avio_blk has its disk at 0, whatever number its definition gives it.
            let place = if self.is_blk() { 0 } else { number };
            targets[usize::from(place)] = Some(Arc::new(self.target(place, entry)));
        }
        Arc::new(AdapterView {
            id: self.id,
            name: self.name(),
            kind: if self.is_blk() { AdapterKind::Blk } else { AdapterKind::Scsi },
            nexus: self.nexus.clone(),
            queues: self.queues.clone(),
            targets: targets.into_boxed_slice(),
        })
    }

    fn target(&self, number: u8, entry: &AdapterLun) -> Target {
        let mut serial = [0; SERIAL_LEN];
        for (to, from) in serial.iter_mut().zip(entry.serial.bytes()) {
            *to = from;
        }
        let readonly = entry.backing.as_ref().is_some_and(|backing| backing.limits().readonly);
        Target {
            number,
            lun: Arc::clone(&entry.lun),
            backing: entry.backing.clone(),
            nexus: entry.lun.unit.attach(&self.nexus),
            readonly: readonly || entry.config.readonly,
            at_once: entry.backing.as_ref().and_then(|backing| backing.at_once()),
            stats: entry.stats.clone(),
            cleared: Arc::clone(&entry.cleared),
            qos: Arc::clone(&entry.qos),
            timeout: Duration::from_secs(entry.config.timeout_s.unwrap_or(DEFAULT_TIMEOUT_S).into()),
            serial,
        }
    }
}
