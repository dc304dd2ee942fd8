//! A guest's storage: a vhost-user-blk disk or a vhost-user-scsi host adapter, driver side.
//!
//! Owns the session, guest memory and which ring is which; the request queues that it hands out belong to whoever drives
//! them, on any thread. [`Disk`] and [`Adapter`] are synchronous helpers over one queue, for tests and control steps. The
//! queues themselves ([`RequestQueue`]) are what generators drive: nothing is allocated per request.

mod adapter;
mod disk;
mod options;
mod queue;

pub use adapter::{Adapter, Outcome};
pub use disk::Disk;
pub use options::{Kind, StorageOptions};
pub use queue::{Done, RequestQueue, Transfer};

use crate::memory::{GuestMemory, MemoryError};
use crate::session::{Session, SessionError, SessionOptions};
use crate::socket::Endpoint;
use avio_proto::ring::RingError;
use avio_proto::vhost_user::payload::InflightArea;
use avio_proto::virtio::features::RING_PACKED;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Why storage could not be connected, or a request was not answered as it should be.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The socket or what was said on it.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Memory for rings and buffers.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The back-end did to a ring what no device may.
    #[error("ring: {0}")]
    Ring(#[from] RingError),
    /// No eventfd left.
    #[error("eventfd: {0}")]
    EventFd(#[from] io::Error),
    /// The back-end serves fewer rings than asked for.
    #[error("the back-end serves {served} rings, {wanted} are needed")]
    Queues {
        /// Served, those that are no request queues included.
        served: u64,
        /// Needed.
        wanted: u64,
    },
    /// A block request came back with another status than OK.
    #[error("the disk answered with status {0}")]
    Status(u8),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Longer than a slot's data buffer, or no slot is free.
    #[error("no room for a request with {0} data bytes")]
    NoRoom(usize),
}

/// A connected guest. Its queues live apart: for a host adapter the first two are the control and the event queue.
#[derive(Debug)]
pub struct StorageGuest {
    session: Session,
    memory: GuestMemory,
    features: u64,
    config: Vec<u8>,
    inflight: Option<(InflightArea, OwnedFd)>,
}

impl StorageGuest {
    /// Connects, negotiates, reads the configuration space, lays out rings and buffers, starts and enables all rings. Blocks
    /// for up to the options' timeouts. Returns all rings in ring order.
    ///
    /// # Errors
    /// [`StorageError`], naming the socket.
    pub fn connect(
        endpoint: Endpoint,
        options: &StorageOptions,
    ) -> Result<(Self, Vec<RequestQueue>), StorageError> {
        let mut session = Session::open(
            endpoint,
            SessionOptions {
                features: options.wanted_features(),
                protocol_features: options.wanted_protocol_features(),
                connect_timeout: options.connect_timeout,
                reply_timeout: options.reply_timeout,
                rings_start_enabled: false,
            },
        )?;
        let negotiated = session.negotiated();
        let features = negotiated.features;
        if options.packed && features & RING_PACKED == 0 {
            let path = session.path().to_owned();
            return Err(SessionError::Missing { path, what: "packed rings" }.into());
        }
        let first = options.kind.first_request_queue();
        let wanted = u64::from(first) + u64::from(options.queues);
        if wanted > 1 && negotiated.queue_max < wanted {
            return Err(StorageError::Queues { served: negotiated.queue_max, wanted });
        }
        let config = session.config(options.kind.config_len())?.unwrap_or_default();
        let mut memory = GuestMemory::new("avio-guest", options.memory_len(features))?;
        let mut queues = Vec::new();
        for index in 0..wanted as u32 {
            let (depth, data_len) = options.shape(index);
            queues.push(RequestQueue::new(&mut memory, options, features, depth, data_len)?);
        }
        let inflight = match options.inflight {
            true => Some(session.inflight(wanted as u16, options.ring_size(features))?),
            false => None,
        };
        let mut guest = Self { session, memory, features, config, inflight };
        guest.start(&mut queues)?;
        Ok((guest, queues))
    }

    /// After the back-end went away: connects anew with the same memory, rings and in-flight region, so that the new
    /// back-end completes what was in flight. Without an in-flight region that is lost to both sides. Packed rings: take back
    /// ([`RequestQueue::poll`]) all that the old back-end had published first, the new one goes on behind it.
    ///
    /// # Errors
    /// As [`StorageGuest::connect`]; also when the back-end now offers other features.
    pub fn reconnect(&mut self, queues: &mut [RequestQueue]) -> Result<(), StorageError> {
        self.session.reopen(self.features)?;
        self.start(queues)
    }

    fn start(&mut self, queues: &mut [RequestQueue]) -> Result<(), StorageError> {
        if let Some((area, fd)) = &self.inflight {
            self.session.set_inflight(area, fd.as_fd())?;
        }
        self.session.set_memory(&self.memory)?;
        for (index, queue) in queues.iter_mut().enumerate() {
            queue.start(&mut self.session, index as u32)?;
        }
        for index in 0..queues.len() as u32 {
            self.session.enable_ring(index, true)?;
        }
        self.session.driver_ok()?;
        for queue in queues {
            queue.kick_now();
        }
        Ok(())
    }

    /// Virtio features agreed on.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The configuration space as it was when connecting; empty if the back-end refused it.
    #[must_use]
    pub fn config(&self) -> &[u8] {
        &self.config
    }

    /// Whether the back-end is still connected; does not wait, one system call.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.session.is_open()
    }

    /// The session's socket.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        self.session.path()
    }

    /// The session, for control steps beside the usual ones.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }
}
