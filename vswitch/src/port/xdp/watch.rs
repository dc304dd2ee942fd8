//! An AF_XDP socket as control's watchdog sees it: how far its rings are and what the kernel complains of, beside the worker that uses them.
//!
//! Takes no lock and costs the data path nothing: the indices are in memory that is mapped once more. It judges nothing; that is
//! `control/uplink/watchdog`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::rings::{Gauge, Indices};
use super::socket::{ENTRIES, SOL_XDP};
use super::sys;
use crate::port::wire::OUT_PIECES_MAX;

const XDP_STATISTICS: i32 = 7;
/// `struct xdp_statistics` of Linux 5.9: six counters of eight bytes.
const STATISTICS_LEN: usize = 48;
/// `rx_fill_ring_empty_descs` in it.
const FILL_EMPTY: usize = 32;

/// With so many chunks at the kernel, no frame may go out until some come back.
pub const CHUNKS_OUT_MAX: u32 = ENTRIES - OUT_PIECES_MAX as u32;

/// How far the rings of a socket are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Frames that came in.
    pub received: u32,
    /// Frames to be sent.
    pub transmit: Indices,
    /// Chunks to receive into.
    pub fill: Indices,
    /// Chunks that were sent.
    pub completion: Indices,
    /// The kernel wants to be told of chunks to receive into.
    pub fill_wakeup: bool,
    /// Frames that the kernel dropped because it found no chunk to receive into.
    pub no_chunk: u64,
}

/// See the module. Keeps the socket open: to be dropped with its halves.
#[derive(Debug)]
pub struct XskWatch {
    fd: OwnedFd,
    /// Receive, transmit, fill and completion ring.
    rings: [Gauge; 4],
}

impl XskWatch {
    pub(super) fn new(fd: OwnedFd, rings: [Gauge; 4]) -> Self {
        Self { fd, rings }
    }

    /// The rings as they are now.
    #[must_use]
    pub fn read(&self) -> Reading {
        let [receive, transmit, fill, completion] = &self.rings;
        let mut statistics = [0; STATISTICS_LEN];
        // A kernel that does not say has no complaint.
        let _ = sys::get_option(self.fd.as_fd(), SOL_XDP, XDP_STATISTICS, &mut statistics);
        let mut no_chunk = [0; 8];
        no_chunk.copy_from_slice(&statistics[FILL_EMPTY..FILL_EMPTY + 8]);
        Reading {
            received: receive.indices().producer,
            transmit: transmit.indices(),
            fill: fill.indices(),
            completion: completion.indices(),
            fill_wakeup: fill.needs_wakeup(),
            no_chunk: u64::from_ne_bytes(no_chunk),
        }
    }

    /// Has the kernel look at the rings, as the worker does that uses them. Never waits for the device.
    pub fn kick(&self) {
        // What is in the way of sending is what the watchdog is there to find out.
        let _ = sys::kick_send(self.fd.as_fd());
        sys::kick_receive(self.fd.as_fd());
    }
}

impl AsFd for XskWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
