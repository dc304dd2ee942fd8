//! The back-end's side of a session: what the daemon is to a VMM, as a state machine.
//!
//! Owns everything one front-end has set up: features, memory, rings, log. `avio_host::session` feeds it messages and the
//! outcome of what it asked for, and carries out its [`Action`]s in order. It handles one message at a time: while memory
//! is being mapped or rings are stopping, [`Backend::wants_message`] is false and the socket is left alone, so a slow step
//! delays only its own session. A device sees nothing of this but [`Event`]s.
//!
//! Every message becomes a job of three steps: map what it brings, stop the rings it concerns, apply it. Then each ring
//! that has all it needs is started. So a device never meets a change under a running ring.

mod apply;
mod error;
mod memory;
mod requests;
#[cfg(test)]
mod tests;
mod vring;

pub use error::SessionError;

use super::features::{IMPLEMENTED, LOG_SHMFD, REPLY_ACK};
use super::message::{ChannelRequest, FLAG_REPLY, Outgoing, Request};
use crate::mem::{Mapping, MemoryTable};
use crate::ring::RingSetup;
use crate::virtio::features::{VHOST_LOG_ALL, VHOST_USER_PROTOCOL_FEATURES};
use apply::Reply;
use memory::Memory;
use requests::{Halt, Job};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vring::{Run, Vring};

/// Most rings of a device: vhost-user's ring index has 8 bits in SET_VRING_KICK.
pub const QUEUES_MAX: u16 = 256;

/// What a device is, as far as vhost-user is concerned.
#[derive(Clone, Debug, Default)]
pub struct DeviceSpec {
    /// Virtio feature bits offered. The session adds F_PROTOCOL_FEATURES, and F_LOG_ALL if LOG_SHMFD is offered.
    pub features: u64,
    /// Virtio feature bits that a front-end may ack although they are not offered (QEMU's scsi acks F_CHANGE).
    pub features_tolerated: u64,
    /// Protocol feature bits offered, a subset of `features::IMPLEMENTED` (anything else is left out).
    pub protocol_features: u64,
    /// Number of rings, 1..=[`QUEUES_MAX`]; also the answer to GET_QUEUE_NUM.
    pub queue_max: u16,
    /// Configuration space; reads beyond its end give zeros.
    pub config: Vec<u8>,
    /// Largest MTU that NET_SET_MTU may set, in bytes; 0 refuses any.
    pub mtu_max: u16,
}

impl DeviceSpec {
    /// The answer to GET_FEATURES.
    #[must_use]
    pub fn offered(&self) -> u64 {
        let log = if self.protocol_features & LOG_SHMFD != 0 { VHOST_LOG_ALL } else { 0 };
        self.features | VHOST_USER_PROTOCOL_FEATURES | log
    }

    /// The answer to GET_PROTOCOL_FEATURES.
    #[must_use]
    pub fn protocol_offered(&self) -> u64 {
        self.protocol_features & IMPLEMENTED
    }
}

/// A ring to run from now on.
#[derive(Debug)]
pub struct RingStart {
    /// Ring index, below the device's `queue_max`.
    pub index: u16,
    /// Size, addresses (checked to lie in `memory`), base, acked features.
    pub setup: RingSetup,
    /// The guest's memory; dropped by the device before it answers `ring_stopped`.
    pub memory: Arc<MemoryTable>,
    /// Readable when the guest has made buffers available; `None`: the device must poll.
    pub kick: Option<OwnedFd>,
    /// To be written to notify the guest; `None`: the guest polls.
    pub call: Option<OwnedFd>,
    /// To be written when the ring turns out to be broken.
    pub err: Option<OwnedFd>,
    /// Acked virtio features (the same as in `setup`).
    pub features: u64,
    /// This ring's part of the in-flight region, if the front-end set one.
    pub inflight: Option<InflightRing>,
}

/// One ring's part of the in-flight region (specification: "Inflight I/O tracking").
#[derive(Clone)]
pub struct InflightRing {
    /// The whole region.
    pub mapping: Arc<dyn Mapping>,
    /// Where this ring's part starts, in bytes.
    pub offset: u64,
    /// Length of this ring's part in bytes.
    pub len: u64,
}

impl std::fmt::Debug for InflightRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InflightRing {{ offset {:#x}, len {:#x} }}", self.offset, self.len)
    }
}

/// Everything a device sees of vhost-user.
#[derive(Debug)]
pub enum Event {
    /// A front-end has connected. First event of a session.
    Connected,
    /// The driver's features; rings that start later carry them too.
    Features(u64),
    /// The guest's MTU in bytes, 68..=`mtu_max`.
    Mtu(u16),
    /// Announce this MAC address on the wire: the guest has moved here (SEND_RARP).
    Announce([u8; 6]),
    /// Run this ring.
    RingStart(Box<RingStart>),
    /// Stop this ring: take no more from it, finish what was taken, drop its memory and descriptors, then answer
    /// `ring_stopped`.
    RingStop {
        /// Ring index.
        index: u16,
    },
    /// The session is over and all its rings have stopped. Last event of a session.
    Disconnected,
}

/// What memory is for; decides nothing here, but limits differ and errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapPurpose {
    /// Guest memory.
    Guest,
    /// The dirty log.
    Log,
    /// The in-flight region.
    Inflight,
}

/// Memory to map shared, readable and writable.
#[derive(Debug)]
pub struct MapRequest {
    /// To be given back with the answer.
    pub ticket: u64,
    /// What is mapped; may be closed once it is.
    pub fd: OwnedFd,
    /// First byte, any alignment.
    pub offset: u64,
    /// Length in bytes, more than 0; `offset + len` does not overflow. The answer's mapping has exactly this length.
    pub len: u64,
    /// For the log line.
    pub purpose: MapPurpose,
}

/// What the caller of the machine must do, in order.
#[derive(Debug)]
pub enum Action {
    /// Send on the session's socket.
    Send(Outgoing),
    /// Keep this socket for requests of the back-end, in place of an earlier one.
    OpenChannel(OwnedFd),
    /// Send on that socket; may be dropped if the front-end does not read it.
    SendChannel(Outgoing),
    /// Map memory and answer with [`Backend::mapped`].
    Map(MapRequest),
    /// Create a zeroed memory file and answer with [`Backend::created`].
    Create {
        /// To be given back with the answer.
        ticket: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Tell the device.
    Event(Event),
    /// A request was refused, the session goes on: worth one rate-limited log line.
    Refused(SessionError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// No more messages; waits for rings to stop.
    Closing,
    Closed,
}

/// One session, back-end side.
pub struct Backend {
    spec: DeviceSpec,
    /// Acked by the last SET_FEATURES; rings cannot start before there was one.
    features: Option<u64>,
    protocol_features: u64,
    status: u8,
    rings: Vec<Vring>,
    memory: Memory,
    inflight: Option<(InflightRing, u16)>,
    log_fd: Option<OwnedFd>,
    has_channel: bool,
    job: Option<Job>,
    tickets: u64,
    actions: VecDeque<Action>,
    phase: Phase,
}

impl Backend {
    /// Starts a session; [`Event::Connected`] waits in [`Self::next_action`].
    #[must_use]
    pub fn new(spec: DeviceSpec) -> Self {
        let queues = spec.queue_max.clamp(1, QUEUES_MAX);
        Self {
            spec,
            features: None,
            protocol_features: 0,
            status: 0,
            rings: (0..queues).map(|_| Vring::default()).collect(),
            memory: Memory::default(),
            inflight: None,
            log_fd: None,
            has_channel: false,
            job: None,
            tickets: 0,
            actions: VecDeque::from([Action::Event(Event::Connected)]),
            phase: Phase::Open,
        }
    }

    /// Whether the next message may be given to [`Self::receive`].
    #[must_use]
    pub fn wants_message(&self) -> bool {
        self.job.is_none() && self.phase == Phase::Open
    }

    /// Whether the session is over, [`Event::Disconnected`] included.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// The next thing to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The answer to [`Action::Map`]. Unknown tickets (of a session that has ended meanwhile) are dropped.
    ///
    /// # Errors
    /// [`SessionError`]; the caller must [`Self::close`].
    pub fn mapped(
        &mut self,
        ticket: u64,
        outcome: Result<Arc<dyn Mapping>, String>,
    ) -> Result<(), SessionError> {
        let Some(job) = self.job.as_mut() else { return Ok(()) };
        if job.take_mapping(ticket, outcome) { self.advance() } else { Ok(()) }
    }

    /// The answer to [`Action::Create`].
    ///
    /// # Errors
    /// [`SessionError`]; the caller must [`Self::close`].
    pub fn created(&mut self, ticket: u64, outcome: Result<OwnedFd, String>) -> Result<(), SessionError> {
        let Some(job) = self.job.as_mut() else { return Ok(()) };
        if job.take_file(ticket, outcome) { self.advance() } else { Ok(()) }
    }

    /// The device's answer to [`Event::RingStop`]; `base` in GET_VRING_BASE's encoding. An answer that nobody waits for is
    /// ignored.
    ///
    /// # Errors
    /// [`SessionError`]; the caller must [`Self::close`].
    pub fn ring_stopped(&mut self, index: u16, base: u32) -> Result<(), SessionError> {
        let Some(ring) = self.rings.get_mut(usize::from(index)) else { return Ok(()) };
        if ring.run != Run::Stopping {
            return Ok(());
        }
        ring.stopped(base);
        if self.phase == Phase::Closing {
            self.finish_close();
            return Ok(());
        }
        self.advance()
    }

    /// Replaces the configuration space and tells the front-end, if it can be told. True if it could.
    pub fn set_config(&mut self, config: Vec<u8>) -> bool {
        self.spec.config = config;
        if !self.has_channel || self.phase != Phase::Open {
            return false;
        }
        let message = Outgoing::new(ChannelRequest::CONFIG_CHANGE_MSG.0, 0, &[], Vec::new());
        self.actions.push_back(Action::SendChannel(message));
        true
    }

    /// Ends the session: the front-end has gone, has misbehaved, or its memory has failed. All rings are stopped,
    /// [`Event::Disconnected`] comes when they have.
    pub fn close(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        self.phase = Phase::Closing;
        self.job = None;
        self.halt(Halt::All);
        self.finish_close();
    }

    fn finish_close(&mut self) {
        if self.rings.iter().any(|r| r.run != Run::Stopped) {
            return;
        }
        self.phase = Phase::Closed;
        // Dropped only now: no worker holds a pointer into the memory any more.
        self.memory = Memory::default();
        self.inflight = None;
        self.rings.clear();
        self.actions.push_back(Action::Event(Event::Disconnected));
    }

    /// Moves the job on as far as it goes without waiting.
    fn advance(&mut self) -> Result<(), SessionError> {
        let Some(job) = self.job.as_mut() else { return Ok(()) };
        if job.waits_for_files() {
            return Ok(());
        }
        let halt = if job.failed() { Halt::None } else { job.halt };
        self.halt(halt);
        if self.rings.iter().any(|r| r.run == Run::Stopping) {
            return Ok(());
        }
        let Some(job) = self.job.take() else { return Ok(()) };
        let (request, ack) = (job.request, job.ack);
        let outcome = self.apply(job);
        self.start_rings()?;
        match outcome {
            Ok(Reply::Ack) if ack => self.reply(request, &0u64.to_ne_bytes(), Vec::new()),
            Ok(Reply::Ack) => {}
            Ok(Reply::Own(payload, fds)) => self.reply(request, &payload, fds),
            Err(error) => return self.refuse(request, ack, error),
        }
        Ok(())
    }

    /// A request that could not be carried out: the front-end is told if it asked to be, else the session ends, since it
    /// would go on from a state that we are not in.
    fn refuse(&mut self, request: Request, ack: bool, error: SessionError) -> Result<(), SessionError> {
        if !ack {
            return Err(error);
        }
        self.reply(request, &1u64.to_ne_bytes(), Vec::new());
        self.actions.push_back(Action::Refused(error));
        Ok(())
    }

    fn halt(&mut self, halt: Halt) {
        for (index, ring) in self.rings.iter_mut().enumerate() {
            if ring.run == Run::Running && halt.concerns(index) {
                ring.run = Run::Stopping;
                self.actions.push_back(Action::Event(Event::RingStop { index: index as u16 }));
            }
        }
    }

    /// Starts every ring that has all it needs. Runs after each message, so it does not matter in which order the pieces
    /// came.
    fn start_rings(&mut self) -> Result<(), SessionError> {
        let (Some(features), Some(table)) = (self.features, self.memory.table()) else { return Ok(()) };
        for (index, ring) in self.rings.iter_mut().enumerate() {
            let Some(setup) = ring.runnable(features, table) else { continue };
            let (kick, call, err) = ring.fds().map_err(SessionError::Descriptors)?;
            let inflight = self.inflight.as_ref().and_then(|(region, queues)| {
                let offset = region.len.checked_mul(index as u64)?;
                (index < usize::from(*queues)).then(|| InflightRing { offset, ..region.clone() })
            });
            ring.run = Run::Running;
            self.actions.push_back(Action::Event(Event::RingStart(Box::new(RingStart {
                index: index as u16,
                setup,
                memory: Arc::clone(table),
                kick,
                call,
                err,
                features,
                inflight,
            }))));
        }
        Ok(())
    }

    fn reply(&mut self, request: Request, payload: &[u8], fds: Vec<OwnedFd>) {
        self.actions.push_back(Action::Send(Outgoing::new(request.0, FLAG_REPLY, payload, fds)));
    }

    fn acks(&self, needs_reply: bool) -> bool {
        needs_reply && self.protocol_features & REPLY_ACK != 0
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let running = self.rings.iter().filter(|r| r.run == Run::Running).count();
        write!(f, "Backend {{ {:?}, features {:x?}, {running} rings running }}", self.phase, self.features)
    }
}
