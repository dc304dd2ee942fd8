//! The front-end's side of a session: what QEMU is to the daemon, as a state machine.
//!
//! Owns the order of the opening handshake and the queue of replies that are still to come. `avio-guest` sends what
//! [`Frontend::next_outgoing`] yields and feeds received messages to [`Frontend::receive`]. It never touches a socket, and
//! it never decides which virtio features a guest wants: the caller says so.

mod replies;
#[cfg(test)]
mod tests;

use super::features;
use super::message::{FLAG_NEED_REPLY, Message, Outgoing, Request};
use super::payload::{Config, InflightArea, LogArea, MemoryRegion, VringAddr, VringFd, VringState};
use crate::virtio::features::VHOST_USER_PROTOCOL_FEATURES;
use replies::Expected;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// What the guest would like; the session's features are those of it that the back-end offers.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Virtio feature bits, without those that only vhost-user uses.
    pub features: u64,
    /// Protocol feature bits; those outside [`features::IMPLEMENTED`] are ignored.
    pub protocol_features: u64,
    /// Send the final SET_FEATURES without VHOST_USER_PROTOCOL_FEATURES as User-Mode Linux does: rings then start enabled.
    pub rings_start_enabled: bool,
}

/// What the caller learns.
#[derive(Debug)]
pub enum Event {
    /// The handshake is over, features are acked. Memory and rings may now be set.
    Ready(Negotiated),
    /// A request was acknowledged; `ok` is false if the back-end refused it.
    Acked {
        /// Which request.
        request: Request,
        /// Whether the back-end carried it out.
        ok: bool,
    },
    /// Answer to [`Frontend::get_vring_base`]; the ring has stopped.
    Base {
        /// Ring index.
        index: u32,
        /// Where to go on, in SET_VRING_BASE's encoding.
        base: u32,
    },
    /// Answer to [`Frontend::get_config`]; empty if refused.
    Config(Vec<u8>),
    /// Answer to [`Frontend::get_inflight`].
    Inflight(InflightArea, OwnedFd),
    /// Answer to [`Frontend::get_status`].
    Status(u8),
    /// Answer to SET_LOG_BASE: the back-end now writes the dirty log.
    LogSet,
}

/// Outcome of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Virtio features of the session (without VHOST_USER_PROTOCOL_FEATURES).
    pub features: u64,
    /// Protocol features of the session.
    pub protocol_features: u64,
    /// Answer to GET_QUEUE_NUM; 1 without MQ.
    pub queue_max: u64,
    /// Answer to GET_MAX_MEM_SLOTS; 8 without CONFIGURE_MEM_SLOTS.
    pub slots_max: u64,
}

/// What the back-end did wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrontendError {
    /// A reply that nothing was asked for, or to another request than the oldest open one.
    #[error("unexpected reply to {0}")]
    Unexpected(Request),
    /// A reply whose payload or descriptors do not fit its request.
    #[error("malformed reply to {0}")]
    Malformed(Request),
}

/// All of a ring's setup, sent in QEMU's order by [`Frontend::start_ring`].
#[derive(Debug)]
pub struct RingStart {
    /// Size in entries, base, and addresses.
    pub size: u16,
    /// SET_VRING_BASE's encoding.
    pub base: u32,
    /// Addresses; `addr.index` is the ring.
    pub addr: VringAddr,
    /// `None`: the back-end polls.
    pub kick: Option<OwnedFd>,
    /// `None`: the guest polls.
    pub call: Option<OwnedFd>,
    /// Where the back-end reports a broken ring.
    pub err: Option<OwnedFd>,
}

/// One session, front-end side.
#[derive(Debug)]
pub struct Frontend {
    wanted: Wanted,
    negotiated: Negotiated,
    offered: u64,
    outgoing: VecDeque<Outgoing>,
    expected: VecDeque<Expected>,
    events: VecDeque<Event>,
}

impl Frontend {
    /// Starts a session: the first message of the handshake waits in [`Self::next_outgoing`].
    #[must_use]
    pub fn new(wanted: Wanted) -> Self {
        let negotiated = Negotiated { features: 0, protocol_features: 0, queue_max: 1, slots_max: 8 };
        let (outgoing, expected, events) = Default::default();
        let mut frontend = Self { wanted, negotiated, offered: 0, outgoing, expected, events };
        frontend.tell(Request::SET_OWNER, &[], Vec::new());
        frontend.ask(Request::GET_FEATURES, &[], Vec::new());
        frontend
    }

    /// The next message to send, in order.
    pub fn next_outgoing(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    /// The next thing learnt, in order.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether no reply is outstanding and nothing waits to be sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.expected.is_empty() && self.outgoing.is_empty()
    }

    /// Outcome of the handshake so far.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// Replaces all memory. One descriptor per region, in order.
    pub fn set_mem_table(&mut self, regions: &[MemoryRegion], fds: Vec<OwnedFd>) {
        debug_assert_eq!(regions.len(), fds.len());
        self.tell(Request::SET_MEM_TABLE, &MemoryRegion::encode_table(regions), fds);
    }

    /// Adds one region (CONFIGURE_MEM_SLOTS).
    pub fn add_region(&mut self, region: &MemoryRegion, fd: OwnedFd) {
        self.tell(Request::ADD_MEM_REG, &region.encode_single(), vec![fd]);
    }

    /// Takes one region away (CONFIGURE_MEM_SLOTS).
    pub fn remove_region(&mut self, region: &MemoryRegion) {
        self.tell(Request::REM_MEM_REG, &region.encode_single(), Vec::new());
    }

    /// Acks virtio features anew, as at the start of a second driver or for F_LOG_ALL. `features` is sent as it is, except
    /// that VHOST_USER_PROTOCOL_FEATURES is added unless [`Wanted::rings_start_enabled`].
    pub fn set_features(&mut self, features: u64) {
        let mut acked = features;
        if self.offered & VHOST_USER_PROTOCOL_FEATURES != 0 && !self.wanted.rings_start_enabled {
            acked |= VHOST_USER_PROTOCOL_FEATURES;
        }
        self.negotiated.features = features;
        self.tell(Request::SET_FEATURES, &acked.to_ne_bytes(), Vec::new());
    }

    /// Size, base, addresses, call, err and kick of one ring. It still needs [`Self::enable_ring`].
    pub fn start_ring(&mut self, ring: RingStart) {
        let index = ring.addr.index;
        self.set_vring_num(index, ring.size);
        self.set_vring_base(index, ring.base);
        self.set_vring_addr(&ring.addr);
        self.set_vring_call(index, ring.call);
        if ring.err.is_some() {
            self.set_vring_err(index, ring.err);
        }
        self.set_vring_kick(index, ring.kick);
    }

    /// SET_VRING_NUM.
    pub fn set_vring_num(&mut self, index: u32, size: u16) {
        self.vring(Request::SET_VRING_NUM, index, u32::from(size));
    }

    /// SET_VRING_BASE.
    pub fn set_vring_base(&mut self, index: u32, base: u32) {
        self.vring(Request::SET_VRING_BASE, index, base);
    }

    /// SET_VRING_ADDR.
    pub fn set_vring_addr(&mut self, addr: &VringAddr) {
        self.tell(Request::SET_VRING_ADDR, &addr.encode(), Vec::new());
    }

    /// SET_VRING_KICK: starts the ring; `None` asks the back-end to poll.
    pub fn set_vring_kick(&mut self, index: u32, fd: Option<OwnedFd>) {
        self.vring_fd(Request::SET_VRING_KICK, index, fd);
    }

    /// SET_VRING_CALL.
    pub fn set_vring_call(&mut self, index: u32, fd: Option<OwnedFd>) {
        self.vring_fd(Request::SET_VRING_CALL, index, fd);
    }

    /// SET_VRING_ERR.
    pub fn set_vring_err(&mut self, index: u32, fd: Option<OwnedFd>) {
        self.vring_fd(Request::SET_VRING_ERR, index, fd);
    }

    /// SET_VRING_ENABLE.
    pub fn enable_ring(&mut self, index: u32, enable: bool) {
        self.vring(Request::SET_VRING_ENABLE, index, u32::from(enable));
    }

    /// Stops a ring; [`Event::Base`] follows when it has stopped.
    pub fn get_vring_base(&mut self, index: u32) {
        self.ask(Request::GET_VRING_BASE, &VringState { index, num: 0 }.encode(), Vec::new());
    }

    /// Reads `size` bytes of configuration space; [`Event::Config`] follows.
    pub fn get_config(&mut self, offset: u32, size: u32) {
        let bytes = vec![0; size as usize];
        self.ask(Request::GET_CONFIG, &Config { offset, size, flags: 0, bytes }.encode(), Vec::new());
    }

    /// Starts dirty logging into `fd`; [`Event::LogSet`] follows. F_LOG_ALL must be acked as well.
    pub fn set_log_base(&mut self, area: LogArea, fd: OwnedFd) {
        self.ask(Request::SET_LOG_BASE, &area.encode(), vec![fd]);
    }

    /// Asks for an in-flight region; [`Event::Inflight`] follows.
    pub fn get_inflight(&mut self, queues: u16, queue_size: u16) {
        let area = InflightArea { len: 0, mmap_offset: 0, queues, queue_size };
        self.ask(Request::GET_INFLIGHT_FD, &area.encode(), Vec::new());
    }

    /// Hands an in-flight region to the back-end, before the rings start.
    pub fn set_inflight(&mut self, area: &InflightArea, fd: OwnedFd) {
        self.tell(Request::SET_INFLIGHT_FD, &area.encode(), vec![fd]);
    }

    /// Gives the back-end the socket for its own requests.
    pub fn set_backend_channel(&mut self, fd: OwnedFd) {
        self.tell(Request::SET_BACKEND_REQ_FD, &[], vec![fd]);
    }

    /// NET_SET_MTU, in bytes.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.tell(Request::NET_SET_MTU, &u64::from(mtu).to_ne_bytes(), Vec::new());
    }

    /// SEND_RARP: announce this MAC address, the guest has moved to this host.
    pub fn send_rarp(&mut self, mac: [u8; 6]) {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(&mac);
        self.tell(Request::SEND_RARP, &bytes, Vec::new());
    }

    /// SET_STATUS; 0 resets the device.
    pub fn set_status(&mut self, status: u8) {
        self.tell(Request::SET_STATUS, &u64::from(status).to_ne_bytes(), Vec::new());
    }

    /// GET_STATUS; [`Event::Status`] follows.
    pub fn get_status(&mut self) {
        self.ask(Request::GET_STATUS, &[], Vec::new());
    }

    /// RESET_DEVICE.
    pub fn reset_device(&mut self) {
        self.tell(Request::RESET_DEVICE, &[], Vec::new());
    }

    fn vring(&mut self, request: Request, index: u32, num: u32) {
        self.tell(request, &VringState { index, num }.encode(), Vec::new());
    }

    fn vring_fd(&mut self, request: Request, index: u32, fd: Option<OwnedFd>) {
        let payload = VringFd { index, has_fd: fd.is_some() }.encode();
        self.tell(request, &payload, fd.into_iter().collect());
    }

    /// A request without a reply of its own; acknowledged if REPLY_ACK is negotiated.
    fn tell(&mut self, request: Request, payload: &[u8], fds: Vec<OwnedFd>) {
        let acked = self.negotiated.protocol_features & features::REPLY_ACK != 0;
        let flags = if acked { FLAG_NEED_REPLY } else { 0 };
        if acked {
            self.expected.push_back(Expected { request, ack: true });
        }
        self.outgoing.push_back(Outgoing::new(request.0, flags, payload, fds));
    }

    /// A request that has a reply.
    fn ask(&mut self, request: Request, payload: &[u8], fds: Vec<OwnedFd>) {
        self.expected.push_back(Expected { request, ack: false });
        self.outgoing.push_back(Outgoing::new(request.0, 0, payload, fds));
    }

    /// Takes one received message.
    ///
    /// # Errors
    /// [`FrontendError`]; the session cannot go on.
    pub fn receive(&mut self, message: Message) -> Result<(), FrontendError> {
        self.take_reply(message)
    }
}
