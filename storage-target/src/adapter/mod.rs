//! Adapters as workers see them: which logical unit is which target of which guest's adapter.
//!
//! Control builds an [`AdapterView`] whenever something about an adapter changes and sends it to every worker; none is ever
//! changed in place. Nothing here does I/O.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use avio_proto::scsi::vendor::{AdapterInformation, RingStatistics, TargetState};
use avio_proto::virtio::blk::SERIAL_LEN;
use avio_proto::virtio::scsi::REQUEST_QUEUE;

use crate::backing::{AtOnce, Backing};
use crate::lun::{Lun, LunStats, Numbers, Qos, QueueStats};
use crate::scsi::{Media, Nexus, NexusName, TRANSFER_LEN_MAX};

/// Targets of an adapter: virtio-scsi has a byte for them.
pub const TARGETS_MAX: usize = 256;

/// Names an adapter as long as the daemon runs; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId(pub u32);

/// What the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterKind {
    /// One virtio-blk disk, its only LUN.
    Blk,
    /// A virtio-scsi host bus adapter: LUN device *n* is target *n*, LUN 0.
    Scsi,
}

/// An adapter and its LUNs at one moment.
#[derive(Debug)]
pub struct AdapterView {
    /// Which adapter.
    pub id: AdapterId,
    /// Guest, bus and device, for log lines: `guest1 0/4`.
    pub name: String,
    /// What the guest sees.
    pub kind: AdapterKind,
    /// Who its guest is to logical units.
    pub nexus: NexusName,
    /// Its rings' numbers: one for each that its guest may have.
    pub queues: Vec<Arc<QueueStats>>,
    /// By target number; exactly [`TARGETS_MAX`]. An `avio_blk` has its disk at 0.
    pub targets: Box<[Option<Arc<Target>>]>,
}

impl AdapterView {
    /// The LUN at target `number`, if there is one.
    #[inline]
    #[must_use]
    pub fn target(&self, number: u8) -> Option<&Arc<Target>> {
        self.targets.get(usize::from(number))?.as_ref()
    }

    /// The sum of its rings' numbers.
    #[must_use]
    pub fn ring_statistics(&self) -> RingStatistics {
        self.queues.iter().map(|queue| queue.statistics()).fold(RingStatistics::default(), |sum, one| {
            RingStatistics {
                kicks: sum.kicks + one.kicks,
                notifications_sent: sum.notifications_sent + one.notifications_sent,
                notifications_suppressed: sum.notifications_suppressed + one.notifications_suppressed,
            }
        })
    }

    /// What GET ADAPTER INFORMATION answers.
    #[must_use]
    pub fn information(&self) -> AdapterInformation {
        let mut targets = [None; TARGETS_MAX];
        for (state, target) in targets.iter_mut().zip(&self.targets) {
            *state = target.as_ref().map(|target| match target.lun.unit.media() {
                Media::Ready | Media::Stopped => TargetState::Online,
                Media::Empty => TargetState::NoMedia,
                Media::Replaced => TargetState::Replaced,
                Media::Offline => TargetState::Offline,
            });
        }
        // Control and event queue are not for requests.
        let (kind, others) = match self.kind {
            AdapterKind::Blk => ("avio_blk", 0),
            AdapterKind::Scsi => ("avio_stor", REQUEST_QUEUE as usize),
        };
        AdapterInformation {
            bus: self.nexus.bus,
            device: self.nexus.device,
            max_io_bytes: TRANSFER_LEN_MAX,
            queues: self.queues.len().saturating_sub(others) as u16,
            adapter: format!("{kind} {}:{}", self.nexus.bus, self.nexus.device),
            guest: self.nexus.guest.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            targets,
        }
    }
}

/// One LUN as one adapter has it. What every read and write looks at stands in the first line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Target {
    /// The logical unit, shared with every other adapter that has it.
    pub lun: Arc<Lun>,
    /// Where its data are; `None`: nowhere (offline, or a drive without a medium).
    pub backing: Option<Arc<Backing>>,
    /// What the logical unit remembers of this initiator.
    pub nexus: Arc<Nexus>,
    /// Writes are refused here, whatever others may do.
    pub readonly: bool,
    /// What [`Backing::at_once`] says: the backing itself is one line more.
    pub at_once: Option<AtOnce>,
    /// Target number.
    pub number: u8,
    /// Numbers of this adapter's I/O.
    pub stats: LunStats,
    /// Limits of this adapter's I/O.
    pub qos: Arc<Qos>,
    /// What its numbers were when they were last cleared. Locked for the length of a copy, never on the way of a read or write.
    pub cleared: Arc<Mutex<Numbers>>,
    /// A backing that does not answer for so long has failed.
    pub timeout: Duration,
    /// What VIRTIO_BLK_T_GET_ID answers, padded with zeroes.
    pub serial: [u8; SERIAL_LEN],
}

impl Target {
    /// Numbers before those that count now.
    #[must_use]
    pub fn baseline(&self) -> Numbers {
        self.cleared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Numbers start over.
    pub fn clear(&self) {
        *self.cleared.lock().unwrap_or_else(PoisonError::into_inner) = self.stats.numbers();
    }
}
