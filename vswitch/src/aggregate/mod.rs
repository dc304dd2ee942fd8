//! Aggregates: several network devices as one uplink (SEMANTICS 4; the original's APA).
//!
//! Everything here is pure: link events, frames of the control protocols and the time go in, [`Action`]s and a table of buckets come
//! out. Control (`control::uplink`) owns the sockets and the clock and publishes the table to the workers, who see nothing of
//! all this. `lacp` is IEEE 802.1AX, `standby` chooses one member at a time, `spread` deals buckets to members and moves them
//! without reordering a flow, `announce` tells the switches where guests are after a failover.

mod announce;
mod lacp;
mod member;
mod monitor;
mod spread;
mod standby;
#[cfg(test)]
mod tests;

pub use lacp::{Churn, Group, Lacp, LacpSettings, Mux, PortSettings, Receive};
pub use member::{Link, Member, MemberCounters, MemberState};
pub use spread::{BUCKETS, Place, Spread};

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use avio_proto::aggregation::{MarkerKind, MarkerPdu, PollingFrame, SlowFrame, SystemId};
use avio_proto::config::{AggregateConfig, AggregateMode, LacpTimeout, MEMBERS_MAX, MacAddr, MonitorPolicy};

use announce::Announcer;
use monitor::Monitor;
use spread::Manner;
use standby::{Candidate, Rank, Standby};

/// A member's place in its aggregate, the same for as long as it is a member; below [`MEMBERS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u8);

const _: () = assert!(MEMBERS_MAX < u8::MAX as usize, "a slot fits a byte, and one value is left");

/// What control is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a frame of a control protocol through a member.
    Send(Slot, Vec<u8>),
    /// The places of buckets have changed: publish them, then say [`Aggregate::published`].
    Publish,
    /// Broadcast in the name of each guest, so that switches find them at the new member.
    Announce,
    /// One line for the operator.
    Note(String),
}

/// See the module.
#[derive(Debug)]
pub struct Aggregate {
    config: AggregateConfig,
    members: BTreeMap<Slot, Member>,
    lacp: Lacp,
    standby: Standby,
    monitor: Monitor,
    spread: Spread,
    announcer: Announcer,
    /// The one member that carries everything, when it was last looked at.
    carried_by: Option<Slot>,
    /// Whether it was up when it was last looked at.
    was_up: bool,
    /// The address that a member lent it, for as long as it is up: the member may leave meanwhile, and the partner must not hear of another system. No frame
    /// has it as its source (LACPDUs have their member's), so that whoever has that device next shares the wire with it.
    lent: Option<MacAddr>,
    actions: Vec<Action>,
}

impl Aggregate {
    /// One whose members are added by [`Self::set_member`]. `group`: a random number, which tells its polling frames from others'.
    #[must_use]
    pub fn new(config: AggregateConfig, group: u64) -> Self {
        let lacp = Lacp::new(lacp_settings(&config, MacAddr::default()));
        Aggregate {
            config,
            members: BTreeMap::new(),
            lacp,
            standby: Standby::default(),
            monitor: Monitor::new(group),
            spread: Spread::default(),
            announcer: Announcer::default(),
            carried_by: None,
            was_up: false,
            lent: None,
            actions: Vec::new(),
        }
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &AggregateConfig {
        &self.config
    }

    /// Takes over a changed configuration. Members that it no longer has are removed; new ones are to be set by
    /// [`Self::set_member`]. A changed mode starts the protocol over.
    pub fn configure(&mut self, config: AggregateConfig, now: Instant) {
        if config.mode != self.config.mode {
            self.lacp = Lacp::new(lacp_settings(&config, self.mac()));
            self.standby = Standby::default();
        }
        self.config = config;
        let gone: Vec<Slot> = self
            .members
            .iter()
            .filter(|(_, member)| !self.config.members.contains(&member.name))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in gone {
            if let Some(member) = self.members.remove(&slot)
                && self.config.mac.is_none()
                && self.lent == Some(member.mac)
            {
                let name = &self.config.name;
                let line = format!(
                    "{name}: keeps the address {} of {}, which is no member any more; `avio apa reset {name}` takes another's",
                    member.mac, member.name
                );
                self.actions.push(Action::Note(line));
            }
            self.lacp.remove_port(slot, now);
            self.monitor.forget(slot);
        }
        let slots: Vec<Slot> = self.members.keys().copied().collect();
        slots.into_iter().for_each(|slot| self.set_port(slot, now));
        self.run(now);
    }

    /// Adds a device, or tells its permanent address anew. Returns its slot; `None` if the configuration does not name it.
    pub fn set_member(&mut self, name: &str, mac: MacAddr, now: Instant) -> Option<Slot> {
        let wanted = self.config.members.iter().position(|member| member == name)?;
        let slot = match self.slot_of(name) {
            Some(slot) => slot,
            // Its place in the file if that is free: what is shown then has the file's order.
            None => {
                let places = [wanted].into_iter().chain(0..MEMBERS_MAX).map(|place| Slot(place as u8));
                places.into_iter().find(|slot| !self.members.contains_key(slot))?
            }
        };
        let member = self.members.entry(slot).or_insert_with(|| Member::new(name, mac, now));
        member.mac = mac;
        self.set_port(slot, now);
        self.run(now);
        Some(slot)
    }

    fn set_port(&mut self, slot: Slot, now: Instant) {
        let mac = self.mac();
        let Some(member) = self.members.get(&slot) else { return };
        if self.config.mode != AggregateMode::LacpAuto {
            return;
        }
        self.lacp.set(lacp_settings(&self.config, mac), now);
        let particular = self.config.member(&member.name);
        let settings = PortSettings {
            number: u16::from(slot.0) + 1,
            priority: particular.priority,
            key: particular.key.unwrap_or_else(|| self.config.lacp_key()),
        };
        self.lacp.set_port(slot, settings, now);
        self.lacp.link(slot, member.link.can_carry(), now);
    }

    /// What is known about a member's link.
    pub fn set_link(&mut self, slot: Slot, link: Link, now: Instant) {
        let Some(member) = self.members.get_mut(&slot) else { return };
        if member.link == link {
            return;
        }
        if member.link.up != link.up {
            let state = if link.up { "up" } else { "down" };
            let line = format!("{}: member {} is {state}", self.config.name, member.name);
            self.actions.push(Action::Note(line));
        }
        member.set_link(link, now);
        if !link.up {
            self.monitor.forget(slot);
        }
        if self.config.mode == AggregateMode::LacpAuto {
            self.lacp.link(slot, link.can_carry(), now);
        }
        self.run(now);
    }

    /// A frame has arrived on a member's control socket.
    pub fn receive(&mut self, slot: Slot, frame: &[u8], now: Instant) {
        let name = self.config.name.as_str();
        let Some(member) = self.members.get_mut(&slot) else { return };
        match SlowFrame::parse(frame) {
            Some(SlowFrame::Lacp(pdu)) if self.config.mode == AggregateMode::LacpAuto => {
                member.counters.lacpdus_in += 1;
                self.lacp.receive(slot, &pdu, now);
            }
            // The responder (§6.5.4.2) answers in every mode: whoever asks has frames to move.
            Some(SlowFrame::Marker(marker)) if marker.kind == MarkerKind::Marker => {
                member.counters.markers_in += 1;
                if !member.may_answer(now) {
                    return;
                }
                member.counters.marker_responses_out += 1;
                let frame = SlowFrame::Marker(marker.response()).to_frame(member.mac).to_vec();
                self.actions.push(Action::Send(slot, frame));
            }
            Some(SlowFrame::Marker(response)) => {
                member.counters.marker_responses_in += 1;
                if response.requester_port == u16::from(slot.0) + 1 {
                    self.spread.marker_response(slot, response.transaction);
                }
            }
            Some(SlowFrame::Lacp(_)) => {}
            None => match PollingFrame::parse(frame) {
                Some(poll) if self.config.mode == AggregateMode::LanMonitor => {
                    if poll.destination == member.mac && self.monitor.heard(slot, &poll, now) {
                        member.counters.polls_in += 1;
                    }
                }
                _ => {
                    member.counters.unreadable += 1;
                    tracing::debug!("{name}: unreadable control frame on {}", member.name);
                }
            },
        }
        self.run(now);
    }

    /// Deals the buckets anew.
    pub fn rebalance(&mut self, now: Instant) {
        self.spread.rebalance();
        self.run(now);
    }

    /// Starts the protocol over, as if all links had been down for a moment, and clears the numbers.
    pub fn reset(&mut self, now: Instant) {
        let links: Vec<(Slot, Link)> =
            self.members.iter().map(|(slot, member)| (*slot, member.link)).collect();
        for (slot, link) in &links {
            self.set_link(*slot, Link { up: false, ..*link }, now);
        }
        for (slot, link) in links {
            self.set_link(slot, link, now);
        }
        self.members.values_mut().for_each(|member| member.counters = MemberCounters::default());
    }

    /// Takes over `address` as the one that a member lent, and tells the ports if that makes another system of it.
    fn lend(&mut self, address: Option<MacAddr>, now: Instant) {
        let before = self.mac();
        self.lent = address;
        if self.mac() != before {
            let slots: Vec<Slot> = self.members.keys().copied().collect();
            slots.into_iter().for_each(|slot| self.set_port(slot, now));
        }
    }

    /// All workers use what was last published.
    pub fn published(&mut self, now: Instant) {
        self.spread.published(now);
        self.run(now);
    }

    /// Runs whatever is due at `now`.
    pub fn run(&mut self, now: Instant) {
        let active = match self.config.mode {
            AggregateMode::LacpAuto => self.run_lacp(now),
            AggregateMode::LanMonitor => self.run_monitor(now),
            _ if self.config.is_one_at_a_time() => {
                let candidates = self.candidates(|_| true);
                self.run_standby(&candidates, now)
            }
            _ => self.carriers().map(|(slot, _)| slot).collect(),
        };
        let enough = active.len() >= (self.config.min_links as usize).max(1);
        // In the other modes a member that does not carry, or is no more to, may all the same finish what it has.
        let finishes: Vec<Slot> = match self.config.mode {
            AggregateMode::LacpAuto => Vec::new(),
            _ => self.carriers().map(|(slot, _)| slot).collect(),
        };
        self.spread.set_active(if enough { &active } else { &[] }, &finishes);
        if enough != self.was_up {
            self.was_up = enough;
            let state = if enough { "up" } else { "down" };
            let count = active.len();
            let line =
                format!("{}: aggregate is {state}, {count} members can carry traffic", self.config.name);
            self.actions.push(Action::Note(line));
            self.lend(
                enough.then(|| self.mac()).filter(|_| self.config.mode != AggregateMode::LanMonitor),
                now,
            );
        }
        self.spread.run(self.manner(), now);
        let mac = self.mac();
        for (slot, transaction) in self.spread.take_markers() {
            let marker = MarkerPdu {
                kind: MarkerKind::Marker,
                requester_port: u16::from(slot.0) + 1,
                requester_system: mac,
                transaction,
            };
            let Some(member) = self.members.get_mut(&slot) else { continue };
            member.counters.markers_out += 1;
            self.actions.push(Action::Send(slot, SlowFrame::Marker(marker).to_frame(member.mac).to_vec()));
        }
        if self.spread.take_changed() {
            self.actions.push(Action::Publish);
        }
        if self.announcer.is_due(now) {
            self.actions.push(Action::Announce);
        }
    }

    fn manner(&self) -> Manner {
        match self.config.mode {
            AggregateMode::LacpAuto => Manner::Marked,
            _ if self.config.is_one_at_a_time() => Manner::Whole,
            _ => Manner::Quiet,
        }
    }

    fn run_lacp(&mut self, now: Instant) -> Vec<Slot> {
        self.lacp.run(now);
        for (slot, pdu) in self.lacp.take_sent() {
            let Some(member) = self.members.get_mut(&slot) else { continue };
            member.counters.lacpdus_out += 1;
            self.actions.push(Action::Send(slot, SlowFrame::Lacp(pdu).to_frame(member.mac).to_vec()));
        }
        self.lacp.distributing()
    }

    fn run_monitor(&mut self, now: Instant) -> Vec<Slot> {
        let dead = self.dead_after();
        let interval = Duration::from_millis(self.config.poll_interval_ms.into());
        let up: Vec<(Slot, MacAddr, Instant)> =
            self.carriers().map(|(slot, member)| (slot, member.mac, member.up_since)).collect();
        for poll in self.monitor.polls(&up, interval, now) {
            let (slot, poll) = poll;
            if let Some(member) = self.members.get_mut(&slot) {
                member.counters.polls_out += 1;
            }
            self.actions.push(Action::Send(slot, poll.to_frame().to_vec()));
        }
        for (slot, heard) in self.monitor.changes(&up, dead, now) {
            let Some(member) = self.members.get(&slot) else { continue };
            let (aggregate, member) = (&self.config.name, &member.name);
            self.actions.push(Action::Note(if heard {
                format!("{aggregate}: member {member} hears the others again")
            } else {
                let count = self.config.dead_count;
                format!(
                    "{aggregate}: member {member} has missed {count} polling frames of every other member"
                )
            }));
        }
        let candidates = self.candidates(|slot| !self.monitor.is_isolated(slot, &up, dead, now));
        self.run_standby(&candidates, now)
    }

    fn run_standby(&mut self, candidates: &[Candidate], now: Instant) -> Vec<Slot> {
        let delay = Duration::from_secs(self.config.failback_delay_s.into());
        self.standby.run(candidates, delay, now);
        let active = self.standby.active();
        if active != self.carried_by {
            if let Some(member) = active.and_then(|slot| self.members.get(&slot)) {
                let line = format!("{}: member {} carries the traffic", self.config.name, member.name);
                self.actions.push(Action::Note(line));
                let rapid = self.config.rapid_arp.then(|| {
                    let interval = Duration::from_secs(self.config.rapid_arp_interval_s.into());
                    (interval, self.config.rapid_arp_count)
                });
                self.announcer.start(rapid, now);
            }
            self.carried_by = active;
        }
        active.into_iter().collect()
    }

    /// Time without a polling frame after which a member is not ready: the dead count, and half an interval for jitter.
    fn dead_after(&self) -> Duration {
        let ms = u64::from(self.config.poll_interval_ms);
        Duration::from_millis(ms * u64::from(self.config.dead_count) + ms / 2)
    }

    /// Members whose link is up.
    fn carriers(&self) -> impl Iterator<Item = (Slot, &Member)> {
        self.members
            .iter()
            .filter(|(_, member)| member.link.can_carry())
            .map(|(slot, member)| (*slot, member))
    }

    fn candidates(&self, wanted: impl Fn(Slot) -> bool) -> Vec<Candidate> {
        let candidate = |(slot, member): (Slot, &Member)| {
            let particular = self.config.member(&member.name);
            let rank = match (self.config.mode, self.config.policy, particular.cost) {
                (AggregateMode::LanMonitor, MonitorPolicy::CostBased, Some(cost)) => {
                    Rank::by_cost(cost, member.link.speed_mbps, particular.priority)
                }
                _ => Rank::by_priority(particular.priority),
            };
            Candidate { slot, rank, usable_since: member.up_since }
        };
        self.carriers().filter(|(slot, _)| wanted(*slot)).map(candidate).collect()
    }

    /// What control is to do since the last call, in this order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// When [`Self::run`] is due even if nothing happens.
    #[must_use]
    pub fn next_at(&self) -> Option<Instant> {
        let protocol = match self.config.mode {
            AggregateMode::LacpAuto => self.lacp.next_at(),
            AggregateMode::LanMonitor => {
                [self.standby.next_at(), self.monitor.next_at()].into_iter().flatten().min()
            }
            _ => self.standby.next_at(),
        };
        [protocol, self.spread.next_at(), self.announcer.next_at()].into_iter().flatten().min()
    }

    /// The members by slot.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<Slot, Member> {
        &self.members
    }

    /// The slot of a device.
    #[must_use]
    pub fn slot_of(&self, name: &str) -> Option<Slot> {
        self.members.iter().find(|(_, member)| member.name == name).map(|(slot, _)| *slot)
    }

    /// What a member does.
    #[must_use]
    pub fn state(&self, slot: Slot, now: Instant) -> MemberState {
        let Some(member) = self.members.get(&slot) else { return MemberState::Down };
        let carries = match self.config.mode {
            AggregateMode::LacpAuto => self.lacp.distributing().contains(&slot),
            _ if self.config.is_one_at_a_time() => self.standby.active() == Some(slot),
            _ => member.link.can_carry(),
        };
        if !member.link.up {
            MemberState::Down
        } else if carries && self.is_up() {
            MemberState::Active
        } else if self.config.mode == AggregateMode::LacpAuto && !carries
            || self.config.mode == AggregateMode::LanMonitor
                && self.monitor.is_deaf(slot, member.up_since, self.dead_after(), now)
            || !member.link.can_carry()
        {
            MemberState::NotReady
        } else {
            MemberState::Ready
        }
    }

    /// Failover group: whether `slot` hears the member that carries the traffic.
    #[must_use]
    pub fn hears_active(&self, slot: Slot, now: Instant) -> bool {
        self.standby.active().is_some_and(|active| self.monitor.hears(slot, active, self.dead_after(), now))
    }

    /// Whether enough members carry traffic.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.was_up
    }

    /// LACP's view, in mode `LACP_AUTO`.
    #[must_use]
    pub fn lacp(&self) -> Option<&Lacp> {
        (self.config.mode == AggregateMode::LacpAuto).then_some(&self.lacp)
    }

    /// Where each bucket's frames go.
    #[must_use]
    pub fn spread(&self) -> &Spread {
        &self.spread
    }

    /// The aggregate's own address: the configured one; in a failover group, whose members do not share one, the active member's;
    /// else that of its first member when it came up.
    #[must_use]
    pub fn mac(&self) -> MacAddr {
        let active = self.standby.active().filter(|_| self.config.mode == AggregateMode::LanMonitor);
        let member = active.and_then(|slot| self.members.get(&slot)).or_else(|| self.members.values().next());
        let lent = self.lent.filter(|_| self.config.mode != AggregateMode::LanMonitor);
        let own = || lent.or(member.map(|member| member.mac)).unwrap_or_default();
        self.config.mac.unwrap_or_else(own)
    }
}

fn lacp_settings(config: &AggregateConfig, mac: MacAddr) -> LacpSettings {
    LacpSettings {
        system: SystemId { priority: config.system_priority, mac },
        fast: config.timeout == LacpTimeout::Fast,
        passive: config.passive,
    }
}
