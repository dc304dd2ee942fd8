//! A guest's vhost-user session: hand-shake, memory, rings, whatever the device is.
//!
//! Owns the socket and the front-end state machine of `avio-proto`. Devices ([`crate::net`], storage later) say which
//! features they want and where their rings lie. Blocking, for control steps only: no data path comes through here.

use crate::eventfd::EventFd;
use crate::memory::{GuestMemory, MemoryError};
use crate::rings::RingPlace;
use crate::socket::{Endpoint, Socket};
use avio_proto::vhost_user::features as protocol;
use avio_proto::vhost_user::frontend::{Event, Frontend, FrontendError, Negotiated, RingStart, Wanted};
use avio_proto::vhost_user::message::Request;
use avio_proto::vhost_user::payload::{InflightArea, MemoryRegion, VringAddr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

/// Protocol features a guest of ours asks for unless told otherwise.
pub const PROTOCOL_FEATURES: u64 =
    protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::NET_MTU | protocol::STATUS;

/// Device status up to negotiated features: ACKNOWLEDGE, DRIVER, FEATURES_OK (virtio 1.3 §2.1).
const STATUS_FEATURES_OK: u8 = 1 | 2 | 8;
/// Device status: DRIVER_OK.
const STATUS_DRIVER_OK: u8 = 4;

/// How to open a session.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Virtio feature bits to ask for; the session has those that the back-end offers as well.
    pub features: u64,
    /// Protocol features to ask for; [`PROTOCOL_FEATURES`] unless a test wants others.
    pub protocol_features: u64,
    /// Rings start enabled, as User-Mode Linux leaves them.
    pub rings_start_enabled: bool,
    /// How long to wait for the socket to appear.
    pub connect_timeout: Duration,
    /// How long to wait for a reply.
    pub reply_timeout: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            features: 0,
            protocol_features: PROTOCOL_FEATURES,
            rings_start_enabled: false,
            connect_timeout: Duration::from_secs(5),
            reply_timeout: Duration::from_secs(5),
        }
    }
}

/// Why a session could not be opened or go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Nobody there.
    #[error("{}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke, or a reply did not come in time.
    #[error("{}: vhost-user connection: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The back-end does not follow the protocol.
    #[error("{}: {source}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What it did.
        source: FrontendError,
    },
    /// The back-end said no.
    #[error("{}: the back-end refused {request}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        request: Request,
    },
    /// A feature that this guest cannot do without is not offered.
    #[error("{}: the back-end does not offer {what}", path.display())]
    Missing {
        /// The socket.
        path: PathBuf,
        /// Name of the feature.
        what: &'static str,
    },
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// An open session.
#[derive(Debug)]
pub struct Session {
    endpoint: Endpoint,
    options: SessionOptions,
    socket: Socket,
    frontend: Frontend,
    negotiated: Negotiated,
}

impl Session {
    /// Waits for the back-end and goes through the hand-shake up to acked features.
    ///
    /// # Errors
    /// [`SessionError`], naming the socket.
    pub fn open(endpoint: Endpoint, options: SessionOptions) -> Result<Self, SessionError> {
        let (socket, frontend) = Self::begin(&endpoint, &options)?;
        let negotiated = frontend.negotiated();
        let mut session = Self { endpoint, options, socket, frontend, negotiated };
        session.handshake()?;
        Ok(session)
    }

    /// Opens the same socket anew after the back-end went away, for rings that are made for `features`. Memory and rings must be set
    /// again.
    ///
    /// # Errors
    /// As [`Session::open`]; [`SessionError::Missing`] when the back-end now offers other features.
    pub fn reopen(&mut self, features: u64) -> Result<(), SessionError> {
        (self.socket, self.frontend) = Self::begin(&self.endpoint, &self.options)?;
        self.handshake()?;
        if self.negotiated.features == features {
            return Ok(());
        }
        Err(SessionError::Missing { path: self.path().to_owned(), what: "the features it offered before" })
    }

    fn begin(endpoint: &Endpoint, options: &SessionOptions) -> Result<(Socket, Frontend), SessionError> {
        let connect = |source| SessionError::Connect { path: endpoint.path().to_owned(), source };
        let stream = endpoint.open(options.connect_timeout).map_err(connect)?;
        let socket = Socket::new(stream, options.reply_timeout).map_err(connect)?;
        let wanted = Wanted {
            features: options.features,
            protocol_features: options.protocol_features,
            rings_start_enabled: options.rings_start_enabled,
        };
        Ok((socket, Frontend::new(wanted)))
    }

    fn handshake(&mut self) -> Result<(), SessionError> {
        for event in self.settle()? {
            if let Event::Ready(negotiated) = event {
                self.negotiated = negotiated;
            }
        }
        self.set_status(STATUS_FEATURES_OK)
    }

    /// Tells the back-end that the driver is ready, after memory and rings. One that negotiated STATUS need not serve any
    /// ring before (DPDK does not).
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn driver_ok(&mut self) -> Result<(), SessionError> {
        self.set_status(STATUS_FEATURES_OK | STATUS_DRIVER_OK)
    }

    fn set_status(&mut self, status: u8) -> Result<(), SessionError> {
        if self.negotiated.protocol_features & protocol::STATUS == 0 {
            return Ok(());
        }
        self.frontend.set_status(status);
        self.settle().map(drop)
    }

    /// What both sides agreed on.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// The state machine, for messages that this file has no method for; [`Session::settle`] sends them.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Sends everything that waits and takes replies until none is outstanding; returns what was learnt beside
    /// acknowledgements.
    ///
    /// # Errors
    /// [`SessionError::Refused`] for a negative acknowledgement, else what broke.
    pub fn settle(&mut self) -> Result<Vec<Event>, SessionError> {
        let io = |path: &std::path::Path, source| SessionError::Io { path: path.to_owned(), source };
        let mut learnt = Vec::new();
        loop {
            while let Some(out) = self.frontend.next_outgoing() {
                self.socket.send(&out).map_err(|e| io(self.endpoint.path(), e))?;
            }
            while let Some(event) = self.frontend.next_event() {
                match event {
                    Event::Acked { ok: true, .. } => {}
                    Event::Acked { request, ok: false } => {
                        return Err(SessionError::Refused { path: self.endpoint.path().to_owned(), request });
                    }
                    event => learnt.push(event),
                }
            }
            if self.frontend.is_idle() {
                return Ok(learnt);
            }
            let message = self.socket.receive().map_err(|e| io(self.endpoint.path(), e))?;
            self.frontend
                .receive(message)
                .map_err(|source| SessionError::Protocol { path: self.endpoint.path().to_owned(), source })?;
        }
    }

    /// Tells the back-end where the guest's memory is.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn set_memory(&mut self, memory: &GuestMemory) -> Result<(), SessionError> {
        let mut regions = Vec::new();
        let mut fds = Vec::new();
        for r in memory.table().regions() {
            regions.push(MemoryRegion {
                guest_base: r.guest_base,
                len: r.len,
                user_base: r.user_base,
                mmap_offset: r.mapping_offset,
            });
            fds.push(self.duplicate(memory.fd())?);
        }
        self.frontend.set_mem_table(&regions, fds);
        self.settle().map(drop)
    }

    /// Starts and enables one ring. `base` is in SET_VRING_BASE's encoding; `call` is left out by a guest that only polls.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn start_ring(
        &mut self,
        index: u32,
        place: &RingPlace,
        base: u32,
        kick: &EventFd,
        call: &EventFd,
    ) -> Result<(), SessionError> {
        let start = RingStart {
            size: place.layout.size,
            base,
            addr: VringAddr {
                index,
                flags: 0,
                desc: place.desc_user,
                used: place.device_user,
                avail: place.driver_user,
                log: 0,
            },
            kick: Some(self.duplicate(kick.as_fd())?),
            call: Some(self.duplicate(call.as_fd())?),
            err: None,
        };
        self.frontend.start_ring(start);
        self.settle().map(drop)
    }

    /// Enables or disables a ring. Without protocol features rings start enabled and the message does not exist.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn enable_ring(&mut self, index: u32, enable: bool) -> Result<(), SessionError> {
        if self.negotiated.protocol_features == 0 || self.options.rings_start_enabled {
            return Ok(());
        }
        self.frontend.enable_ring(index, enable);
        self.settle().map(drop)
    }

    /// Stops a ring; returns its base in SET_VRING_BASE's encoding. The back-end does not touch it any more.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn stop_ring(&mut self, index: u32) -> Result<u32, SessionError> {
        self.frontend.get_vring_base(index);
        let found = self.settle()?.into_iter().find_map(|event| match event {
            Event::Base { index: i, base } if i == index => Some(base),
            _ => None,
        });
        found.ok_or_else(|| SessionError::Refused {
            path: self.endpoint.path().to_owned(),
            request: Request::GET_VRING_BASE,
        })
    }

    /// Reads the first `len` bytes of configuration space; `None` if the back-end refused.
    ///
    /// # Errors
    /// [`SessionError::Missing`] without protocol feature CONFIG.
    pub fn config(&mut self, len: u32) -> Result<Option<Vec<u8>>, SessionError> {
        self.need(protocol::CONFIG, "configuration space (protocol feature CONFIG)")?;
        self.frontend.get_config(0, len);
        let found = self.settle()?.into_iter().find_map(|event| match event {
            Event::Config(bytes) => Some(bytes),
            _ => None,
        });
        Ok(found.filter(|bytes| !bytes.is_empty()))
    }

    /// Asks for an in-flight region for `queues` rings of `queue_size` entries.
    ///
    /// # Errors
    /// [`SessionError::Missing`] without protocol feature INFLIGHT_SHMFD.
    pub fn inflight(
        &mut self,
        queues: u16,
        queue_size: u16,
    ) -> Result<(InflightArea, OwnedFd), SessionError> {
        self.need(protocol::INFLIGHT_SHMFD, "in-flight tracking (protocol feature INFLIGHT_SHMFD)")?;
        self.frontend.get_inflight(queues, queue_size);
        let found = self.settle()?.into_iter().find_map(|event| match event {
            Event::Inflight(area, fd) => Some((area, fd)),
            _ => None,
        });
        found.ok_or_else(|| SessionError::Refused {
            path: self.endpoint.path().to_owned(),
            request: Request::GET_INFLIGHT_FD,
        })
    }

    /// Hands the in-flight region over, before the rings start.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn set_inflight(&mut self, area: &InflightArea, fd: BorrowedFd<'_>) -> Result<(), SessionError> {
        let fd = self.duplicate(fd)?;
        self.frontend.set_inflight(area, fd);
        self.settle().map(drop)
    }

    fn need(&self, feature: u64, what: &'static str) -> Result<(), SessionError> {
        if self.negotiated.protocol_features & feature == 0 {
            return Err(SessionError::Missing { path: self.endpoint.path().to_owned(), what });
        }
        Ok(())
    }

    /// Whether the back-end is still connected; does not wait.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.socket.is_open()
    }

    /// The session's socket path.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        self.endpoint.path()
    }

    fn duplicate(&self, fd: BorrowedFd<'_>) -> Result<OwnedFd, SessionError> {
        fd.try_clone_to_owned()
            .map_err(|source| SessionError::Io { path: self.endpoint.path().to_owned(), source })
    }
}
