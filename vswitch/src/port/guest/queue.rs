//! The rings of a guest port as workers hold them.
//!
//! A transmit ring ([`TxQueue`]) belongs to one worker. A receive ring ([`RxQueue`]) is shared by all: each worker locks
//! it for one delivery with `try_lock`, never waits for it, and never holds two.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use avio_host::wait::Notifier;
use avio_proto::ring::DeviceRing;
use avio_proto::virtio::net::header_len;

use crate::table::PortIndex;

/// Most queue pairs of a port; the configuration allows no more.
pub const PAIRS_MAX: usize = avio_proto::config::QUEUE_PAIRS_MAX as usize;

/// A guest's transmit ring with what forwarding needs to know about it. Made by control, owned by one worker.
pub struct TxQueue {
    pub(crate) ring: DeviceRing,
    pub(crate) port: PortIndex,
    pub(crate) pair: u16,
    pub(crate) features: u64,
    pub(crate) header_len: usize,
    pub(crate) kick: Option<OwnedFd>,
    pub(crate) notifier: Notifier,
    /// Set by its worker: it is not polled any more.
    pub(crate) broken: bool,
    /// Where the last frame went: most follow it.
    pub(crate) last: LastDestination,
    /// Octets written per frame of late, a guess for how many frames are worth one batch.
    pub(crate) cost_len: u64,
    /// When something was last reported to control on behalf of this ring, and how often in that second.
    pub(crate) reports: Reports,
}

/// A one-entry cache of the address table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastDestination {
    /// The table it was found in.
    pub table: u64,
    pub key: u64,
    pub port: PortIndex,
}

impl LastDestination {
    /// No address has this key.
    pub(crate) const NOTHING: Self = Self { table: 0, key: u64::MAX, port: PortIndex(0) };
}

/// How much one ring may report to control: the guest decides how often there is something.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reports {
    pub window: Option<Instant>,
    pub learned_count: u32,
    pub refused_count: u32,
    /// The source that was reported last.
    pub learned_key: u64,
}

impl TxQueue {
    /// `features`: the acked virtio bits. `kick` is what the worker waits for; without one the ring is polled for ever.
    #[must_use]
    pub fn new(
        ring: DeviceRing,
        port: PortIndex,
        pair: u16,
        features: u64,
        kick: Option<OwnedFd>,
        call: Option<OwnedFd>,
    ) -> Self {
        Self {
            ring,
            port,
            pair,
            features,
            header_len: header_len(features),
            kick,
            notifier: Notifier::new(call),
            broken: false,
            last: LastDestination::NOTHING,
            cost_len: 0,
            reports: Reports::default(),
        }
    }
}

/// The answer to stopping a transmit ring.
#[derive(Debug)]
pub struct TxStopped {
    /// Its port.
    pub port: PortIndex,
    /// Its pair number.
    pub pair: u16,
    /// What GET_VRING_BASE answers; `None`: the worker has no such ring (it never started, or its kick was refused).
    pub base: Option<u32>,
}

/// What the lock of a receive ring protects.
pub(crate) struct RxRing {
    pub(crate) ring: DeviceRing,
    /// Set while indices are being published: a panic in between leaves the ring half-published, and it must stop.
    pub(crate) publishing: bool,
    /// Nothing is delivered any more.
    pub(crate) broken: bool,
    /// It was full, and was waited for in vain: not again before all frames of a batch have found room at once.
    pub(crate) in_vain: bool,
}

/// A guest's receive ring, shared by all workers through the table.
pub struct RxQueue {
    pub(crate) ring: Mutex<RxRing>,
    pub(crate) features: u64,
    pub(crate) notifier: Notifier,
}

impl RxQueue {
    /// `features`: the acked virtio bits. Switches the driver's kicks off: nobody waits for receive buffers.
    #[must_use]
    pub fn new(mut ring: DeviceRing, features: u64, call: Option<OwnedFd>) -> Arc<Self> {
        ring.disable_notifications();
        Arc::new(Self {
            ring: Mutex::new(RxRing { ring, publishing: false, broken: false, in_vain: false }),
            features,
            notifier: Notifier::new(call),
        })
    }

    /// What GET_VRING_BASE answers. Control thread, only after every worker has passed a table without this ring: no
    /// worker can hold the lock then.
    #[must_use]
    pub fn base(&self) -> u32 {
        match self.ring.lock() {
            Ok(ring) => ring.ring.base(),
            Err(poisoned) => poisoned.into_inner().ring.base(),
        }
    }
}

impl fmt::Debug for TxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxQueue(port {}, pair {})", self.port.0, self.pair)
    }
}

impl fmt::Debug for RxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RxQueue(features {:#x})", self.features)
    }
}
