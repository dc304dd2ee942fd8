//! What control and a worker say to each other.
//!
//! Commands go through the worker's inbox and are taken up at its quiescent points; events come back through one channel
//! that control is woken for. Events are few, and each is bounded by something that control or a ring's size bounds, so the
//! channel is not.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use avio_host::worker::ControlWaker;
use avio_proto::ring::{DeviceRing, Inflight, RingError};
use avio_proto::virtio::scsi;
use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::adapter::{AdapterId, AdapterView};
use crate::lun::{LunId, QueueStats};
use crate::scsi::{Effect, SavedState};

/// What a ring is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Requests of a virtio-blk disk.
    BlkRequest,
    /// Task management of a virtio-scsi adapter.
    ScsiControl,
    /// Buffers for a virtio-scsi adapter's events.
    ScsiEvent,
    /// Commands of a virtio-scsi adapter.
    ScsiRequest,
}

/// A ring that a worker is to serve.
#[derive(Debug)]
pub struct QueueSpec {
    /// Its adapter, which the worker has been given before.
    pub adapter: AdapterId,
    /// Its number in the adapter.
    pub index: u16,
    /// What it is for.
    pub role: Role,
    /// The ring.
    pub ring: DeviceRing,
    /// Its entries.
    pub size: u16,
    /// What the guest writes to notify; `None`: it does not, the ring is polled.
    pub kick: Option<OwnedFd>,
    /// What notifies the guest; `None`: it polls.
    pub call: Option<OwnedFd>,
    /// Its part of the in-flight region, if the front-end has one.
    pub inflight: Option<Inflight>,
    /// Its driver has no way to flush, so what it writes must be durable when it is answered (virtio 1.3 §5.2.6.2).
    pub durable: bool,
    /// Events were lost while the adapter had no event queue: what this ring is for, if it is one, begins with saying so.
    pub events_missed: bool,
    /// Its guest's memory stays in place (`pin_memory`): it may be registered with the kernel.
    pub pin: bool,
    /// Its numbers.
    pub stats: Arc<QueueStats>,
}

/// Which requests something concerns. What is `None` does not restrict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Those of a logical unit, whoever sent them.
    pub lun: Option<LunId>,
    /// Those of an adapter.
    pub adapter: Option<AdapterId>,
    /// Those to one target of it.
    pub target: Option<u8>,
    /// The one with this tag.
    pub tag: Option<u64>,
    /// Those that share a byte with this offset and length.
    pub range: Option<(u64, u64)>,
}

/// What is to become of the requests in a [`Scope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They end in their own time.
    Wait,
    /// They end as soon as the kernel lets go of them, with this response (`VIRTIO_SCSI_S_ABORTED`, `_RESET`).
    Abort(u8),
    /// Nothing: they are counted, and nobody waits for them.
    Look,
}

/// Names one quiescing. Unique among all that wait: workers and control count in ranges of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

impl Ticket {
    /// The `n`th ticket of worker number `worker`; control is worker `u16::MAX`.
    #[must_use]
    pub fn new(worker: usize, n: u64) -> Self {
        Self((worker as u64) << 48 | n & ((1 << 48) - 1))
    }

    /// The worker whose ticket it is.
    #[must_use]
    pub fn worker(self) -> usize {
        (self.0 >> 48) as usize
    }
}

/// Something to tell a guest through its event queue (virtio 1.3 §5.6.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A LUN is there that was not.
    Added(u8),
    /// A LUN is gone.
    Removed(u8),
    /// Something about a LUN has changed: additional sense code and qualifier.
    Changed(u8, u8, u8),
    /// The medium of a drive was changed.
    Medium(u8),
}

impl Notice {
    /// As the guest reads it.
    #[must_use]
    pub fn event(self) -> scsi::Event {
        let (event, target, reason) = match self {
            Self::Added(target) => (scsi::T_TRANSPORT_RESET, target, scsi::RESET_RESCAN),
            Self::Removed(target) => (scsi::T_TRANSPORT_RESET, target, scsi::RESET_REMOVED),
            Self::Changed(target, asc, ascq) => {
                (scsi::T_PARAM_CHANGE, target, u32::from(asc) | u32::from(ascq) << 8)
            }
            Self::Medium(target) => (scsi::T_ASYNC_NOTIFY, target, scsi::AN_MEDIA_CHANGE),
        };
        scsi::Event { event, lun: scsi::Lun::target(target).encode(), reason }
    }
}

/// What control asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// An adapter and its LUNs, new or changed. Sent to every worker.
    SetAdapter(Arc<AdapterView>),
    /// An adapter that has no rings any more.
    RemoveAdapter(AdapterId),
    /// Serve this ring.
    AddQueue(Box<QueueSpec>),
    /// Stop serving a ring. Answered by [`Event::QueueStopped`] once all that was taken from it is complete.
    RemoveQueue {
        /// The adapter.
        adapter: AdapterId,
        /// The ring.
        index: u16,
    },
    /// Answer with [`Event::Quiesced`] once no request in `scope` that was there before is left.
    Quiesce {
        /// To be given back.
        ticket: Ticket,
        /// Which requests.
        scope: Scope,
        /// What becomes of them.
        action: Action,
    },
    /// All other workers have answered this worker's [`Event::Quiesce`].
    Quiesced {
        /// As it was asked.
        ticket: Ticket,
        /// Requests that were in scope, in all other workers.
        matched: u32,
    },
    /// The state of a logical unit up to `version` is durable, or could not be made so: answers that wait for it may go out.
    Journalled {
        /// The logical unit.
        lun: LunId,
        /// What [`Event::Save`] said.
        version: u64,
        /// Whether it is durable.
        saved: bool,
    },
    /// A backing was closed: let go of its file.
    ReleaseFiles,
    /// A fence of a logical unit has gone in another worker.
    FenceLowered(LunId),
    /// Tell the guest, if this worker has the adapter's event queue.
    Notify {
        /// The adapter.
        adapter: AdapterId,
        /// What.
        notice: Notice,
    },
}

/// What a worker tells control.
#[derive(Debug)]
pub enum Event {
    /// The answer to [`Command::RemoveQueue`].
    QueueStopped {
        /// The adapter.
        adapter: AdapterId,
        /// The ring.
        index: u16,
        /// What GET_VRING_BASE answers; `None`: this worker has no such ring.
        base: Option<u32>,
    },
    /// A ring is broken and no longer polled. Control signals the guest (vhost-user SET_VRING_ERR) and logs a line.
    RingBroken {
        /// The adapter.
        adapter: AdapterId,
        /// The ring.
        index: u16,
        /// What was wrong with it; `None`: a panic in our code, which the worker has logged.
        error: Option<RingError>,
    },
    /// A VMM made a notification block the worker. Control ends its session.
    Held(AdapterId),
    /// The answer to [`Command::Quiesce`].
    Quiesced {
        /// As it was given.
        ticket: Ticket,
        /// Who answers.
        worker: usize,
        /// Requests that were in scope.
        matched: u32,
    },
    /// Ask every other worker to quiesce and answer with [`Command::Quiesced`] when they have; see `relay`.
    Quiesce {
        /// To be given back.
        ticket: Ticket,
        /// Which requests.
        scope: Scope,
        /// What becomes of them.
        action: Action,
    },
    /// A fence of a logical unit has gone: every other worker looks again.
    FenceLowered {
        /// Who says so.
        worker: usize,
        /// The logical unit.
        lun: LunId,
    },
    /// State that must outlive the process has changed; answer with [`Command::Journalled`] when it is durable.
    Save {
        /// The logical unit.
        lun: LunId,
        /// Which state; later ones contain earlier ones.
        version: u64,
        /// The state.
        state: Box<SavedState>,
        /// Who waits.
        worker: usize,
    },
    /// A command had an effect outside its logical unit.
    Effect {
        /// The adapter through which it came.
        adapter: AdapterId,
        /// The target.
        target: u8,
        /// The logical unit.
        lun: LunId,
        /// What is to be done.
        effect: Effect,
    },
    /// What came of registering a guest's memory for a ring ([`QueueSpec::pin`]); not sent where all of it was before.
    Pinned {
        /// The adapter.
        adapter: AdapterId,
        /// Who says so.
        worker: usize,
        /// Regions that are registered now.
        regions: usize,
        /// Bytes of them.
        bytes: u64,
        /// Why some are not: what was wrong, what would be right.
        error: Option<String>,
    },
    /// Memory that was registered is not any more: the last ring that had it is back.
    Unpinned {
        /// The adapter.
        adapter: AdapterId,
        /// Who says so.
        worker: usize,
        /// Regions.
        regions: usize,
        /// Operations of the kernel's that used them.
        used: u64,
    },
    /// A ring could not be served (its kick descriptor cannot be waited for). Control treats it as broken.
    NotStarted {
        /// The adapter.
        adapter: AdapterId,
        /// The ring.
        index: u16,
        /// Why, for the log.
        reason: String,
    },
}

/// A worker's end of the channel.
#[derive(Clone, Debug)]
pub struct Events {
    sender: Sender<Event>,
    control: ControlWaker,
}

impl Events {
    /// A channel to the control thread that `control` wakes; clone it for each worker.
    #[must_use]
    pub fn new(control: ControlWaker) -> (Self, Receiver<Event>) {
        let (sender, receiver) = unbounded();
        (Self { sender, control }, receiver)
    }

    /// Sends without waiting and wakes control.
    pub fn send(&self, event: Event) {
        // Nobody listens any more when the daemon stops.
        let _ = self.sender.send(event);
        self.control.wake();
    }
}
