//! An uplink's aggregate as control has it: the machines of `crate::aggregate` with their sockets, their clock, and the workers behind.
//!
//! Owned by [`super::Uplinks`]. Everything here runs on the control thread and blocks on nothing; workers see only the [`Distribution`].

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use avio_host::ratelimit::RateLimit;
use avio_host::worker::Barrier;
use avio_proto::aggregation::{POLLING_ETHERTYPE, SLOW_PROTOCOLS_ETHERTYPE};
use avio_proto::config::{AggregateConfig, AggregateMode, MacAddr};
use rustix::event::epoll;

use crate::aggregate::{Action, Aggregate, Link, Place, Slot};
use crate::port::uplink::Distribution;
use crate::port::xdp::ControlSocket;

/// Frames of control protocols that are read from one member per turn. A partner sends a few a second; one that floods waits.
const FRAMES_PER_TURN: usize = 64;

/// What the rest of control is to do for an aggregate.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wishes {
    /// The distribution has changed.
    pub publish: bool,
    /// Announce the guests of the vswitch.
    pub announce: bool,
}

/// A device's link in the machines' terms. Devices that do not say how fast they are, virtual ones, are taken as they are.
pub(super) fn link(has_carrier: bool, speed_mbps: Option<u32>) -> Link {
    Link { up: has_carrier, half_duplex: false, speed_mbps: speed_mbps.unwrap_or(0) }
}

/// A member's sockets, one per ethertype that its aggregate speaks.
#[derive(Debug)]
struct Sockets {
    ifindex: u32,
    sockets: Vec<ControlSocket>,
}

/// See the module.
pub(super) struct Bundle {
    aggregate: Aggregate,
    sockets: BTreeMap<Slot, Sockets>,
    /// Done when all workers use what was published last.
    barrier: Option<Barrier>,
    /// A table with the places as they are now has yet to be published.
    unpublished: bool,
    limit: RateLimit<&'static str>,
}

impl Bundle {
    pub(super) fn new(config: AggregateConfig) -> Self {
        // Unguessable by guests; that it differs from other hosts' is all that the polling needs.
        let group = RandomState::new().hash_one(&config.name);
        Bundle {
            aggregate: Aggregate::new(config, group),
            sockets: BTreeMap::new(),
            barrier: None,
            unpublished: false,
            limit: RateLimit::default(),
        }
    }

    /// Its machines, for who shows them.
    pub(super) fn aggregate(&self) -> &Aggregate {
        &self.aggregate
    }

    /// As [`Self::aggregate`], to be changed by an operator's command.
    pub(super) fn aggregate_mut(&mut self) -> &mut Aggregate {
        &mut self.aggregate
    }

    /// Takes over a changed configuration.
    pub(super) fn configure(&mut self, config: AggregateConfig, now: Instant) {
        if config != *self.aggregate.config() {
            if config.mode != self.aggregate.config().mode {
                // Another protocol has other ethertypes.
                self.sockets.clear();
            }
            self.aggregate.configure(config, now);
            self.sockets.retain(|slot, _| self.aggregate.members().contains_key(slot));
        }
    }

    /// A device as it is now: its number, its permanent address and its link; `None`: there is no such device, or it is not open.
    pub(super) fn set_device(
        &mut self,
        name: &str,
        device: Option<(u32, MacAddr, Link)>,
        epoll: &OwnedFd,
        now: Instant,
    ) {
        let Some((ifindex, mac, link)) = device else {
            if let Some(slot) = self.aggregate.slot_of(name) {
                self.sockets.remove(&slot);
                self.aggregate.set_link(slot, Link::default(), now);
            }
            return;
        };
        let known = self
            .aggregate
            .slot_of(name)
            .filter(|slot| self.aggregate.members().get(slot).is_some_and(|member| member.mac == mac));
        let Some(slot) = known.or_else(|| self.aggregate.set_member(name, mac, now)) else { return };
        if self.sockets.get(&slot).is_none_or(|sockets| sockets.ifindex != ifindex) {
            match self.open(ifindex, epoll) {
                Ok(sockets) => {
                    self.sockets.insert(slot, Sockets { ifindex, sockets });
                }
                Err(error) => {
                    if self.limit.check("socket", now).is_some() {
                        tracing::error!("{name}: no control socket: {error}");
                    }
                    self.aggregate.set_link(slot, Link::default(), now);
                    return;
                }
            }
        }
        self.aggregate.set_link(slot, link, now);
    }

    fn open(&self, ifindex: u32, epoll: &OwnedFd) -> std::io::Result<Vec<ControlSocket>> {
        let polls = self.aggregate.config().mode == AggregateMode::LanMonitor;
        // Markers are answered in every mode.
        let ethertypes = [Some(SLOW_PROTOCOLS_ETHERTYPE), polls.then_some(POLLING_ETHERTYPE)];
        let mut sockets = Vec::new();
        for ethertype in ethertypes.into_iter().flatten() {
            let socket = ControlSocket::new(ifindex, ethertype)?;
            // Which one is readable is found out by reading: there are few.
            epoll::add(epoll, socket.as_fd(), epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
            sockets.push(socket);
        }
        Ok(sockets)
    }

    /// Reads what has arrived, runs what is due, sends what is to be sent.
    pub(super) fn turn(&mut self, now: Instant) -> Wishes {
        if !self.unpublished && self.barrier.as_ref().is_some_and(Barrier::is_done) {
            self.barrier = None;
            self.aggregate.published(now);
        }
        for (slot, sockets) in &self.sockets {
            for socket in &sockets.sockets {
                for _ in 0..FRAMES_PER_TURN {
                    let Ok(Some(frame)) = socket.receive() else { break };
                    self.aggregate.receive(*slot, &frame, now);
                }
            }
        }
        self.aggregate.run(now);
        let mut wishes = Wishes::default();
        loop {
            let actions = self.aggregate.take_actions();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                match action {
                    Action::Send(slot, frame) => {
                        if let Some(socket) =
                            self.sockets.get(&slot).and_then(|sockets| sockets.sockets.first())
                            && let Err(error) = socket.send(&frame)
                            && self.limit.check("send", now).is_some()
                        {
                            let name = &self.aggregate.config().name;
                            tracing::warn!("{name}: member {}: control frame not sent: {error}", slot.0);
                        }
                    }
                    Action::Publish => {
                        wishes.publish = true;
                        self.unpublished = true;
                    }
                    Action::Announce => wishes.announce = true,
                    Action::Note(line) => tracing::info!("{line}"),
                }
            }
        }
        for (what, count) in self.limit.settle(now) {
            tracing::warn!("{what}: {count} more lines suppressed");
        }
        wishes
    }

    /// A table with the places as they are was sent to all workers; `barrier` is made after that.
    pub(super) fn published(&mut self, barrier: impl FnOnce() -> Barrier) {
        if std::mem::take(&mut self.unpublished) {
            self.barrier = Some(barrier());
        }
    }

    /// When [`Self::turn`] is due even if nothing happens.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.aggregate.next_at()
    }

    /// What workers are to see. `member`: the number that the uplink gives a slot's device.
    pub(super) fn distribution(&self, member: impl Fn(&str) -> Option<u8>) -> Distribution {
        let mut distribution = Distribution::nobody();
        for (bucket, place) in self.aggregate.spread().places().iter().enumerate() {
            match place {
                Place::Nobody => {}
                Place::Member(slot) => {
                    let known = self.aggregate.members().get(slot);
                    distribution.set(bucket as u8, known.and_then(|known| member(&known.name)));
                }
                Place::Held(_) => distribution.hold(bucket as u8),
            }
        }
        distribution
    }
}
