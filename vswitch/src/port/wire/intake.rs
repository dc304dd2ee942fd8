//! The receiving half: frames that the kernel has for a port.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use avio_proto::ring::{Batch, ChainArena};

use super::Counters;
use crate::port::guest::{LastDestination, Reports};
use crate::table::PortIndex;

/// Receives frames. Owned by one worker; called on its thread, once a batch.
pub trait Intake: Send {
    /// Takes up to `max` frames that are there now; none is no error. They stay where they are until [`done`](Self::done). No system call
    /// unless the kernel has to be asked for frames (then one a batch).
    ///
    /// # Errors
    /// The device is gone or the socket broken: it is not polled again, and control hears of it.
    fn take<'a>(&'a mut self, arena: &'a mut ChainArena, max: usize) -> io::Result<Batch<'a>>;

    /// Whether nothing is there that [`take`](Self::take) would find: a look of a few loads, for most looks of a worker that sends find nothing, and an uplink
    /// has two intakes for each of its devices. False where only `take` can tell.
    fn is_empty(&mut self) -> bool {
        false
    }

    /// The frames of the last [`take`](Self::take) are done with: their buffers go back to the kernel. Not called after a batch
    /// that panicked: the source is then broken, and control makes another.
    fn done(&mut self);

    /// A descriptor that becomes readable (as an edge) when frames arrive; the worker sleeps on it. Called once, when the source starts.
    ///
    /// # Errors
    /// What the system says; the source then does not start.
    fn wait_fd(&self) -> io::Result<OwnedFd>;

    /// The worker wants to sleep: makes sure that [`wait_fd`](Self::wait_fd) tells, fences, looks again. True: frames are there already.
    fn arm(&mut self) -> bool;

    /// The worker polls from now on.
    fn disarm(&mut self) {}
}

/// Whose rules the frames of a source are judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A guest's: source address and all other rules of its port.
    Guest,
    /// The wire's: anybody may be there but our own guests.
    Wire,
}

/// An intake with what forwarding needs to know about it. Made by control, owned by one worker.
pub struct WireSource {
    pub(crate) intake: Box<dyn Intake>,
    pub(crate) port: PortIndex,
    /// Number among the sources of its port.
    pub(crate) lane: u16,
    /// virtio feature bits that the kernel's header in front of each frame may use, as a guest's driver acks them.
    pub(crate) features: u64,
    /// Length of that header in bytes: 0, 10 or 12.
    pub(crate) header_len: usize,
    pub(crate) origin: Origin,
    /// Set by its worker: it is not polled any more.
    pub(crate) broken: bool,
    pub(crate) last: LastDestination,
    pub(crate) cost_len: u64,
    pub(crate) reports: Reports,
    pub(crate) counters: Arc<Counters>,
}

impl WireSource {
    /// Source number `lane` of an uplink: its frames come from the wire. `header_len` is 0 (bare Ethernet frames), 10 or 12 (each behind a
    /// virtio-net header, as PACKET_VNET_HDR gives it, whose offloads are `features`).
    #[must_use]
    pub fn of_uplink(
        intake: Box<dyn Intake>,
        port: PortIndex,
        lane: u16,
        header_len: usize,
        features: u64,
    ) -> Self {
        Self::new(intake, port, lane, header_len, features, Origin::Wire)
    }

    /// The source of a `lan` port: its frames are judged by the port's definition. `header_len` is 10 or 12 (IFF_VNET_HDR).
    #[must_use]
    pub fn of_guest(intake: Box<dyn Intake>, port: PortIndex, header_len: usize, features: u64) -> Self {
        Self::new(intake, port, 0, header_len, features, Origin::Guest)
    }

    fn new(
        intake: Box<dyn Intake>,
        port: PortIndex,
        lane: u16,
        header_len: usize,
        features: u64,
        origin: Origin,
    ) -> Self {
        Self {
            intake,
            port,
            lane,
            features,
            header_len,
            origin,
            broken: false,
            last: LastDestination::NOTHING,
            cost_len: 0,
            reports: Reports::default(),
            counters: Arc::default(),
        }
    }

    /// What came in through it.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
}

impl fmt::Debug for WireSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WireSource(port {}, lane {})", self.port.0, self.lane)
    }
}

/// The answer to stopping an intake: it comes back to be closed by control, off the data path.
#[derive(Debug)]
pub struct IntakeStopped {
    /// Its port.
    pub port: PortIndex,
    /// Its number.
    pub lane: u16,
    /// The source; `None`: the worker has none such (it never started).
    pub source: Option<Box<WireSource>>,
}
