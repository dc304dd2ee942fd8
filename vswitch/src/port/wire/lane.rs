//! The sending half: what takes frames of a port to the kernel, and the lock that workers share it by.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use avio_host::stats::Cell64;
use avio_proto::mem::GuestSlice;
use avio_proto::ring::Undelivered;

use crate::port::uplink::Hold;

/// Most pieces of one outgoing frame: a jumbo frame of 9,216 bytes in chunks of 4 KiB takes three.
pub const OUT_PIECES_MAX: usize = 4;

/// Where to write one outgoing frame: its pieces in order, together as long as was asked for; what is left over is empty.
pub type OutFrame<'a> = [GuestSlice<'a>; OUT_PIECES_MAX];

/// Sends frames. Called under its lane's lock, on any worker's thread: per batch some [`reserve`](Self::reserve)s, then one
/// [`commit`](Self::commit) or [`rollback`](Self::rollback).
pub trait Outlet: Send {
    /// Room for a frame of `len` bytes, a header of `header_len` bytes in front included.
    ///
    /// # Errors
    /// `NoBuffer`: no room until the kernel has sent something. `TooLong`: never.
    fn reserve(&mut self, len: usize) -> Result<OutFrame<'_>, Undelivered>;

    /// Reserves room for the frame `frame` and writes it, where that is cheaper together. False: nothing was done.
    fn put(&mut self, _frame: &[u8]) -> bool {
        false
    }

    /// The checksum of the last frame that was reserved (and has been written) is still to be filled in: from `start` on, `offset` bytes behind that. Only of
    /// outlets whose lane takes such frames (`NET_GUEST_CSUM`) without a header that says so.
    fn sum(&mut self, _start: u16, _offset: u16) {}

    /// Hands all that was reserved (and has been written) to the kernel, with one system call at most.
    ///
    /// # Errors
    /// The device is gone or the socket broken: nothing is sent through it any more, and control hears of it. A full or busy device is no
    /// error.
    fn commit(&mut self) -> io::Result<()>;

    /// Takes back what was reserved since the last commit.
    fn rollback(&mut self);

    /// What the kernel would not take of the frames to `target` since this was last asked. Called after each commit; none where it does not say.
    fn refused(&mut self, _target: Option<Target>) -> Refused {
        Refused::default()
    }

    /// Where its frames go, if the outlet of another lane can take them along with its own.
    fn target(&self) -> Option<Target> {
        None
    }

    /// What is reserved from now on goes to `target`, that of a lane. Only of outlets that have one.
    fn aim(&mut self, _target: Target) {}

    /// The queue, if frames only wait here.
    fn hold(&mut self) -> Option<&mut Hold> {
        None
    }
}

/// A transmit queue of a device, for outlets that can send to any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The device's interface number.
    pub ifindex: u32,
    /// The packet hash by which the kernel chooses the queue; 0: it has only one.
    pub hash: u32,
}

/// Frames that were handed over and not taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused {
    /// To one address.
    pub unicast: u64,
    /// To a group.
    pub grouped: u64,
    /// Octets of both.
    pub octets: u64,
}

impl Refused {
    /// One more, of `len` octets.
    pub fn add(&mut self, len: usize, is_grouped: bool) {
        *if is_grouped { &mut self.grouped } else { &mut self.unicast } += 1;
        self.octets += len as u64;
    }

    /// How many.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.unicast + self.grouped
    }
}

/// What went through a lane or a source. Written under the lane's lock, or by the source's worker; read anywhere.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames.
    pub frames: Cell64,
    /// Their octets, without virtio-net headers.
    pub octets: Cell64,
    /// Frames for which there was no room; a source has none.
    pub no_buffer: Cell64,
}

/// What the lock of a lane protects.
pub(crate) struct LaneState {
    pub(crate) outlet: Box<dyn Outlet>,
    /// Nothing is sent any more.
    pub(crate) broken: bool,
}

/// One outlet, shared by all workers through the table; they `try_lock` it as they do receive rings.
pub struct Lane {
    pub(crate) state: Mutex<LaneState>,
    pub(crate) features: u64,
    pub(crate) header_len: usize,
    /// Frames only wait here: what becomes of them is counted when they leave.
    pub(crate) holds: bool,
    /// Its outlet's.
    pub(crate) target: Option<Target>,
    pub(crate) counters: Arc<Counters>,
}

impl Lane {
    /// `features`: virtio feature bits (`NET_GUEST_*`) that say which offloads the other side does by itself; 0: frames go out complete.
    /// `header_len`: length in bytes of the virtio-net header that it wants in front of each frame: 0, 10 or 12.
    #[must_use]
    pub fn new(outlet: Box<dyn Outlet>, header_len: usize, features: u64) -> Arc<Self> {
        Self::with(outlet, header_len, features, false)
    }

    /// A lane that leads nowhere: frames wait in `hold` until a worker takes up a table by which they need not.
    #[must_use]
    pub fn holding(hold: Hold) -> Arc<Self> {
        Self::with(Box::new(hold), 0, 0, true)
    }

    fn with(outlet: Box<dyn Outlet>, header_len: usize, features: u64, holds: bool) -> Arc<Self> {
        let target = outlet.target();
        let state = Mutex::new(LaneState { outlet, broken: false });
        Arc::new(Self { state, features, header_len, holds, target, counters: Arc::default() })
    }

    /// What went into it.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lane(header {}, features {:#x})", self.header_len, self.features)
    }
}
