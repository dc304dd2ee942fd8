//! The wire of one vswitch as control has it: its devices and where each of them is.
//!
//! Owned by [`Uplinks`](super::Uplinks), on the control thread; opens nothing itself.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use avio_host::links::Link;
use avio_proto::config::{AggregateConfig, Balance, MacAddr, UplinkAccess, UplinkConfig};

use super::aggregate::{self, Bundle};
use super::closing::Closings;
use super::device::Device;
use super::offloads::Fights;
use super::traffic::Traffic;
use super::trouble::Trouble;
use super::{Allowed, SOURCES_MAX, watchdog};
use crate::control::fabric::Fabric;
use crate::port::guest::Snapshot;
use crate::port::uplink::{Distribution, UplinkPort};
use crate::port::wire::Lane;
use crate::port::xdp::interface_speed_mbps;
use crate::table::{PortIndex, PortSpec, PortState};

/// Where a device is.
pub(super) enum State {
    /// Not in this namespace, not set up, or not to be opened before that time.
    Closed { retry: Option<Instant> },
    /// A helper is at it.
    Opening,
    /// Its lanes, its sources with their workers, and what keeps it.
    Open(Box<OpenMember>),
}

/// What there is of a device that is open.
pub(super) struct OpenMember {
    pub(super) lanes: Vec<Arc<Lane>>,
    /// Worker and number of each source.
    pub(super) sources: Vec<(usize, u16)>,
    /// Sources that have not come back yet; the device is kept until they have.
    pub(super) device: Device,
    pub(super) link: Link,
}

/// One device of an uplink.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) attempt: u64,
    /// Found in the namespace now.
    pub(super) link: Option<Link>,
    /// Asked for when the link came up; 0: the device does not say.
    pub(super) speed_mbps: Option<u32>,
    /// Why it is closed.
    pub(super) trouble: Trouble,
    /// Where the ladder begins: lower after the watchdog stepped down.
    pub(super) access: UplinkAccess,
    /// Why that is lower than configured.
    pub(super) stepped_down: Option<String>,
    /// Who else switches its offloads.
    pub(super) fights: Fights,
    /// What came in through it.
    pub(super) inwards: Traffic,
    /// What went out through it.
    pub(super) outwards: Traffic,
}

impl Member {
    pub(super) fn new(name: &str, access: UplinkAccess) -> Self {
        Self {
            name: name.to_owned(),
            state: State::Closed { retry: None },
            attempt: 0,
            link: None,
            speed_mbps: None,
            trouble: Trouble::default(),
            access,
            stepped_down: None,
            fights: Fights::default(),
            inwards: Traffic::default(),
            outwards: Traffic::default(),
        }
    }

    /// Its device is gone. Its place stays, for sources are numbered by it; the next new member takes it. Attempts go on being
    /// counted: a helper may still bring the device of the last one, which is not to be taken for the next member's.
    fn vacate(&mut self) {
        let gone = Self::new("", self.access);
        self.occupy(gone);
    }

    /// `member` takes its place.
    fn occupy(&mut self, member: Member) {
        *self = Member { attempt: self.attempt, ..member };
    }

    /// Its device, if it is open, with AF_XDP, and its link: what the watchdog looks at.
    pub(super) fn watched(&mut self) -> Option<(&mut OpenMember, bool)> {
        let has_carrier = self.link.as_ref().is_some_and(|link| link.has_carrier);
        match &mut self.state {
            State::Open(open) if !open.device.watchdogs.is_empty() => Some((open, has_carrier)),
            _ => None,
        }
    }

    /// Looks at the rings of its device. A ring that is stuck: its line for the log, and the device is to be opened anew, a step lower.
    pub(super) fn look_at_rings(&mut self) -> Option<String> {
        let (open, has_carrier) = self.watched()?;
        let mut stuck = None;
        for (queue, watchdog) in open.device.watchdogs.iter_mut().enumerate() {
            if has_carrier {
                stuck = watchdog.look().map(|ring| (queue, ring)).or(stuck);
            } else {
                watchdog.rest();
            }
        }
        let (queue, ring) = stuck?;
        let access = open.device.negotiated.access;
        self.access = watchdog::below(access)?;
        let what = format!("the {} ring of queue {queue} was stuck", ring.name());
        self.stepped_down = Some(format!("stepped down from {access}: {what}"));
        Some(format!("{what}; opened anew, a step down from {access}"))
    }

    /// Frames can go out through it.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Open(_)) && self.link.as_ref().is_some_and(|link| link.has_carrier)
    }
}

/// The wire of one vswitch.
pub(super) struct Uplink {
    pub(super) name: String,
    pub(super) vswitch: String,
    pub(super) index: PortIndex,
    pub(super) spec: Arc<PortSpec>,
    pub(super) state: Arc<PortState>,
    pub(super) baseline: Snapshot,
    pub(super) members: Vec<Member>,
    pub(super) config: UplinkConfig,
    pub(super) balance: Balance,
    /// The machines of an aggregate; `None`: a single device.
    pub(super) bundle: Option<Bundle>,
    /// Where frames of moving flows wait, in an aggregate; `None`: it is being made.
    pub(super) hold: Option<Arc<Lane>>,
    /// What waited there.
    pub(super) held: Traffic,
    /// What was said of its devices' MTUs.
    pub(super) uneven_mtus: String,
}

/// What of a port broke, by its number there.
#[derive(Debug, Clone, Copy)]
pub(in crate::control) enum Half {
    /// A source.
    Source(u16),
    /// A lane.
    Lane(u16),
}

impl Uplink {
    /// The member that a source or lane belongs to, if that can be told.
    pub(super) fn member_of(&self, half: Half) -> Option<usize> {
        match half {
            Half::Source(number) => Some(usize::from(number / SOURCES_MAX)),
            Half::Lane(number) => {
                let mut first = 0;
                self.members.iter().position(|member| {
                    let State::Open(open) = &member.state else { return false };
                    first += open.lanes.len();
                    usize::from(number) < first
                })
            }
        }
    }

    /// Which member each bucket goes out through. One device has all of them; an aggregate decides.
    pub(super) fn distribution(&self) -> Distribution {
        if let Some(bundle) = &self.bundle {
            let number = |name: &str| self.members.iter().position(|member| member.name == name);
            return bundle.distribution(|name| number(name).map(|number| number as u8));
        }
        let first = self.members.iter().position(Member::is_up);
        first.map_or_else(Distribution::nobody, |member| Distribution::all_to(member as u8))
    }

    /// Whether frames can go out, or could if a device were not just being opened anew.
    pub(super) fn is_up(&self) -> bool {
        match &self.bundle {
            Some(_) => !self.distribution().is_nobody(),
            None => {
                self.members.iter().any(|member| member.link.as_ref().is_some_and(|link| link.has_carrier))
            }
        }
    }

    /// Tells the aggregate how its devices are.
    pub(super) fn tell_aggregate(&mut self, control_frames: &OwnedFd, now: Instant) {
        let Some(bundle) = &mut self.bundle else { return };
        for member in &mut self.members {
            let has_carrier = member.link.as_ref().is_some_and(|link| link.has_carrier);
            // Asking the driver waits for whoever changes an interface: only when the link comes up, never when it is lost.
            if !has_carrier {
                member.speed_mbps = None;
            } else if member.speed_mbps.is_none() {
                member.speed_mbps = Some(interface_speed_mbps(&member.name).unwrap_or(0));
            }
            let up = has_carrier && matches!(member.state, State::Open(_));
            let device = member.link.as_ref().filter(|link| link.is_up).and_then(|link| {
                let mac = link.permanent_mac.or(link.mac)?;
                let link_now = aggregate::link(up, member.speed_mbps);
                Some((link.index, mac, link_now))
            });
            bundle.set_device(&member.name, device, control_frames, now);
        }
    }

    /// Takes over a changed `[[aggregate]]`: devices come and go, those that stay go on. Returns what changed, a line each.
    pub(super) fn configure(
        &mut self,
        config: &AggregateConfig,
        allowed: &Allowed,
        fabric: &mut Fabric,
        closing: &mut Closings,
    ) -> Vec<String> {
        let mut changes = Vec::new();
        for member in &mut self.members {
            if !member.name.is_empty() && !config.members.contains(&member.name) {
                close(member, self.index, fabric, closing);
                changes.push(format!("{}: member {} removed", self.name, member.name));
                member.vacate();
            }
        }
        for name in &config.members {
            if self.members.iter().any(|member| member.name == *name) {
                continue;
            }
            let new = Member::new(name, allowed.best(self.config.access));
            match self.members.iter_mut().find(|member| member.name.is_empty()) {
                Some(free) => free.occupy(new),
                None => self.members.push(new),
            }
            changes.push(format!("{}: member {name} added", self.name));
        }
        self.balance = config.balance;
        if let Some(bundle) = &mut self.bundle {
            if bundle.aggregate().config() != config && changes.is_empty() {
                changes.push(format!("{}: changed", self.name));
            }
            bundle.configure(config.clone(), Instant::now());
        }
        changes
    }

    /// What went through the members counts from here.
    pub(super) fn clear_traffic(&mut self) {
        self.held.clear();
        for member in &mut self.members {
            member.inwards.clear();
            member.outwards.clear();
        }
    }

    /// What workers send through, in the next table.
    pub(super) fn port(&self) -> UplinkPort {
        let lanes: Vec<Vec<Arc<Lane>>> = self
            .members
            .iter()
            .map(|member| match &member.state {
                State::Open(open) => open.lanes.clone(),
                _ => Vec::new(),
            })
            .collect();
        UplinkPort::new(&lanes, &self.distribution(), self.balance, self.hold.clone())
            .with_gro(self.config.gro)
    }

    /// The MTUs of its devices that are there, if they are not all the same; a line about it each time that changes. The least is the uplink's: which device a
    /// frame leaves through is its flow's affair, and no flow may be cut off where others are not.
    fn look_at_mtus(&mut self) -> Option<u32> {
        let of = |member: &Member| Some((member.name.clone(), member.link.as_ref()?.mtu));
        let mtus: Vec<(String, u32)> = self.members.iter().filter_map(of).collect();
        let least = mtus.iter().map(|(_, mtu)| *mtu).min();
        let is_even = mtus.iter().all(|(_, mtu)| Some(*mtu) == least);
        let all: Vec<String> = mtus.iter().map(|(name, mtu)| format!("{name} {mtu}")).collect();
        let uneven = if is_even { String::new() } else { all.join(", ") };
        if self.uneven_mtus != uneven {
            let (name, least) = (&self.name, least.unwrap_or_default());
            if is_even {
                tracing::info!("uplink {name}: its devices have the same MTU, {least}");
            } else {
                tracing::warn!(
                    "uplink {name}: its devices have different MTUs ({uneven}); it has the least, {least}: give them the same (`ip link set DEVICE mtu N`)"
                );
            }
            self.uneven_mtus = uneven;
        }
        least
    }

    /// What the port is in the next table: its address is that of its first member that is there.
    pub(super) fn respecify(&mut self) {
        let mtu = self.look_at_mtus().map_or(1500, |mtu| mtu.min(u32::from(u16::MAX)) as u16);
        let link = self.members.iter().find_map(|member| member.link.as_ref());
        let of_aggregate =
            self.bundle.as_ref().map(|bundle| bundle.aggregate().mac()).filter(|mac| !mac.is_zero());
        let mac = of_aggregate.or_else(|| link.and_then(|link| link.mac)).unwrap_or(MacAddr([0; 6]));
        let spec = PortSpec {
            guest: format!("uplink {}", self.name),
            mac,
            vlan: self.config.native_vlan,
            mtu,
            ..PortSpec::none()
        };
        if *self.spec != spec {
            self.spec = Arc::new(spec);
        }
    }
}

/// Says what has become of a member's interface. `same`: the interface that it was, as it is now.
pub(super) fn tell_link(uplink: &str, member: &Member, now: Option<&Link>, same: Option<&Link>) {
    let name = &member.name;
    let was_up = member.link.as_ref().is_some_and(|link| link.has_carrier);
    match (member.link.as_ref(), now) {
        (Some(_), None) => match same {
            Some(same) => {
                let called = &same.name;
                tracing::warn!(
                    "uplink {uplink}: {name} is called {called} now; waiting until a device is called {name}"
                );
            }
            None => tracing::warn!("uplink {uplink}: {name} is gone; waiting until it comes back"),
        },
        (Some(was), Some(link)) if was.index != link.index => {
            tracing::warn!("uplink {uplink}: {name} is another device now, interface {}", link.index);
        }
        (None, Some(link)) => tracing::info!("uplink {uplink}: {name} is there, interface {}", link.index),
        (Some(_), Some(link)) if was_up && !link.has_carrier => {
            tracing::warn!("uplink {uplink}: {name}: link down")
        }
        (Some(_), Some(link)) if !was_up && link.has_carrier => {
            tracing::info!("uplink {uplink}: {name}: link up")
        }
        _ => {}
    }
}

/// Takes a member's device away from the workers; it closes when they have let go.
pub(super) fn close(member: &mut Member, port: PortIndex, fabric: &mut Fabric, closing: &mut Closings) {
    // What a helper brings later is nobody's.
    member.attempt += 1;
    let State::Open(open) = std::mem::replace(&mut member.state, State::Closed { retry: None }) else {
        return;
    };
    let OpenMember { lanes, sources, device, .. } = *open;
    closing.add(&member.name, port, sources.iter().map(|&(_, number)| number).collect(), &lanes, device);
    for lane in lanes {
        fabric.retire_lane(lane);
    }
    for (worker, number) in sources {
        fabric.stop_intake(worker, port, number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_does_not_take_what_was_opened_for_its_last_member() {
        let mut place = Member::new("eth1", UplinkAccess::Packet);
        // It is being opened when it is removed: what `close` counts, and then the place is free.
        place.attempt = 1;
        place.attempt += 1;
        place.vacate();
        place.occupy(Member::new("eth2", UplinkAccess::Packet));
        // What opens eth2.
        place.attempt += 1;
        assert_eq!((place.name.as_str(), place.attempt), ("eth2", 3));
    }
}
