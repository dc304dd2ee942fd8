//! A guest's network device: negotiated features, queue pairs, buffers.
//!
//! Owns the session and decides what lies in guest memory; the queues that it hands out belong to whoever drives them, on
//! any thread. Rings 2n and 2n+1 are the receive and transmit ring of pair n (virtio 1.3 §5.1.2).

mod buffers;
mod options;
mod rx;
mod tx;

pub use options::{NetOptions, Offloads};
pub use rx::{RxFrame, RxQueue};
pub use tx::{TxQueue, TxSlot};

use crate::memory::{GuestMemory, MemoryError};
use crate::rings::RingPlace;
use crate::session::{Session, SessionError, SessionOptions};
use crate::socket::Endpoint;
use avio_proto::ring::{DriverLayout, RingError};
use avio_proto::virtio::features as f;
use buffers::Layout;
use std::io;

/// Why a guest could not be connected or go on.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The socket or what was said on it.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A ring.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Memory for rings and buffers.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No eventfd left.
    #[error("eventfd: {0}")]
    EventFd(#[from] io::Error),
    /// The back-end serves fewer queue pairs than asked for.
    #[error("the back-end serves {served} queue pairs, {wanted} were asked for")]
    QueuePairs {
        /// Served.
        served: u64,
        /// Asked for.
        wanted: u16,
    },
}

/// The back-end did to a ring what no device may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The ring itself.
    #[error("ring: {0}")]
    Ring(#[from] RingError),
    /// A frame longer than the buffers that hold it, or with an impossible number of buffers.
    #[error("the back-end used {buffers} buffers for a frame, {len} bytes in the first")]
    Frame {
        /// `num_buffers` of its header.
        buffers: u16,
        /// Bytes it wrote into the first buffer.
        len: u32,
    },
}

/// A connected guest. Its queues live apart.
#[derive(Debug)]
pub struct NetGuest {
    session: Session,
    memory: GuestMemory,
    features: u64,
}

/// One queue pair; `tx` and `rx` may go to different threads.
#[derive(Debug)]
pub struct NetQueue {
    /// Guest to switch.
    pub tx: TxQueue,
    /// Switch to guest.
    pub rx: RxQueue,
}

impl NetGuest {
    /// Connects, negotiates, lays out rings and buffers, starts and enables all rings, posts all receive buffers. Blocks for
    /// up to the options' timeouts.
    ///
    /// # Errors
    /// [`GuestError`], naming the socket.
    pub fn connect(endpoint: Endpoint, options: &NetOptions) -> Result<(Self, Vec<NetQueue>), GuestError> {
        let session = Session::open(
            endpoint,
            SessionOptions {
                features: options.wanted_features(),
                protocol_features: options.protocol_features,
                connect_timeout: options.connect_timeout,
                reply_timeout: options.reply_timeout,
                rings_start_enabled: false,
            },
        )?;
        let negotiated = session.negotiated();
        let features = negotiated.features;
        options.check(features, &session)?;
        // Back-ends count pairs or rings (FRONTENDS quirk 9); one that serves fewer pairs than asked says less than both.
        if options.queue_pairs > 1 && negotiated.queue_max < u64::from(options.queue_pairs) {
            return Err(GuestError::QueuePairs { served: negotiated.queue_max, wanted: options.queue_pairs });
        }
        let layout = Layout::new(options, features);
        let ring_len = DriverLayout::bytes_needed(options.ring_size, features) as usize;
        let memory_len = layout.memory_len(ring_len) * usize::from(options.queue_pairs);
        let mut memory = if options.huge_pages {
            GuestMemory::huge("avio-guest", memory_len)?
        } else {
            GuestMemory::new("avio-guest", memory_len)?
        };
        let mut queues = Vec::new();
        for _ in 0..options.queue_pairs {
            // Receive buffers are single descriptors: a table each would only add a read.
            let rx_place =
                RingPlace::alloc(&mut memory, options.ring_size, features & !f::RING_INDIRECT_DESC)?;
            let tx_place = RingPlace::alloc(&mut memory, options.ring_size, features)?;
            let rx = RxQueue::new(&mut memory, rx_place, features, &layout)?;
            let tx = TxQueue::new(&mut memory, tx_place, features, &layout)?;
            queues.push(NetQueue { tx, rx });
        }
        let mut guest = Self { session, memory, features };
        guest.start(&mut queues)?;
        Ok((guest, queues))
    }

    /// After the back-end went away: connects anew and starts all rings from the beginning, as a driver does that resets its
    /// device. What was in flight is lost.
    ///
    /// # Errors
    /// As [`NetGuest::connect`]; also when the back-end now offers other features.
    pub fn reconnect(&mut self, queues: &mut [NetQueue]) -> Result<(), GuestError> {
        self.session.reopen(self.features)?;
        for queue in queues.iter_mut() {
            queue.rx.reset()?;
            queue.tx.reset()?;
        }
        self.start(queues)
    }

    /// Stops all rings and starts them again where they were, as a guest does around a migration.
    ///
    /// # Errors
    /// [`GuestError::Session`].
    pub fn pause_and_resume(&mut self, queues: &[NetQueue]) -> Result<(), GuestError> {
        for (i, queue) in queues.iter().enumerate() {
            let index = 2 * i as u32;
            let rx = self.session.stop_ring(index)?;
            let tx = self.session.stop_ring(index + 1)?;
            queue.rx.start(&mut self.session, index, rx)?;
            queue.tx.start(&mut self.session, index + 1, tx)?;
            self.session.enable_ring(index, true)?;
            self.session.enable_ring(index + 1, true)?;
        }
        Ok(())
    }

    fn start(&mut self, queues: &mut [NetQueue]) -> Result<(), GuestError> {
        self.session.set_memory(&self.memory)?;
        let base = if self.features & f::RING_PACKED != 0 { PACKED_BASE } else { 0 };
        for (i, queue) in queues.iter().enumerate() {
            queue.rx.start(&mut self.session, 2 * i as u32, base)?;
            queue.tx.start(&mut self.session, 2 * i as u32 + 1, base)?;
        }
        for i in 0..2 * queues.len() as u32 {
            self.session.enable_ring(i, true)?;
        }
        self.session.driver_ok()?;
        for queue in queues {
            queue.rx.fill();
        }
        Ok(())
    }

    /// Virtio features agreed on.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether the back-end is still connected; does not wait, one system call.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.session.is_open()
    }

    /// The session, for control steps beside the usual ones.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

/// A fresh packed ring: both positions 0, both wrap counters 1 (vhost-user "SET_VRING_BASE", virtio 1.3 §2.8.1).
const PACKED_BASE: u32 = 0x8000_8000;
