//! Uplinks as control has them: which devices each vswitch's wire is made of, opened, lost and found again.
//!
//! Owns the devices, the ports' entries for the next table, and the watch over the host's interfaces. `Uplinks::turn` is called once per turn of the
//! control loop and says whether the table has to be published anew. Devices are opened by helper threads. What a *distribution* is made of when a device has
//! more than one member is for the aggregate to say (`Uplink::distribution`).

mod aggregate;
mod aggregate_report;
mod check;
mod closing;
mod device;
pub mod guardian;
mod hosts;
mod owner;
mod traffic;
mod watchdog;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use avio_host::blocking::{Helpers, Mailbox, answered};
use avio_host::links::{Link, Links};
use avio_proto::config::{Config, MacAddr, UplinkAccess, UplinkConfig};
use avio_proto::control::{AggregateReport, UplinkMember, UplinkReport};

use self::aggregate::Bundle;
use self::check::Asker;
use self::closing::Closings;
use self::device::{Device, Negotiated, Request};
use self::guardian::Guardian;
use self::hosts::{HostAddresses, host_macs_on};
use self::traffic::{Sum, Traffic};
pub(super) use self::wire::Half;
use self::wire::{Member, OpenMember, State, Uplink, close, tell_link};
use super::fabric::Fabric;
use crate::aggregate::Aggregate;
use crate::port::guest::Snapshot;
use crate::port::uplink::Hold;
use crate::port::wire::{IntakeStopped, Lane, WireSource};
use crate::table::{PortIndex, PortSpec, PortState, TableBuilder};
use rustix::event::epoll;

/// A device that could not be opened is tried again: another program may have let go of it.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// A device that is opened anew, after workers have let go of it: they do that between two batches.
const REOPEN_AFTER: Duration = Duration::from_millis(50);
/// Sources of one member are numbered from its number times this.
const SOURCES_MAX: u16 = 256;

/// Which kernel facilities may be used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    pub xdp: bool,
    pub zero_copy: bool,
    pub busy_poll: bool,
    pub burst: bool,
    pub vlan_tags: bool,
    /// What comes in on the wrong member of an aggregate for the host.
    pub siblings: bool,
}

impl Allowed {
    /// Where the ladder begins for a device that is to be opened like that.
    fn best(&self, configured: UplinkAccess) -> UplinkAccess {
        if self.xdp { configured } else { UplinkAccess::Packet }
    }
}

/// What a helper sends back.
pub(super) enum Answer {
    /// A device was opened, or not.
    Opened(Opened),
    /// A device is closed.
    Closed { name: String, port: PortIndex },
    /// Memory for what an aggregate holds.
    Hold { port: PortIndex, hold: io::Result<Hold> },
}

/// See [`Answer::Opened`].
pub(super) struct Opened {
    port: PortIndex,
    member: usize,
    /// Which attempt it was.
    attempt: u64,
    device: Result<Device, String>,
}

/// See the module.
pub(super) struct Uplinks {
    links: Links,
    helpers: Helpers,
    mailbox: Mailbox<Answer>,
    guardian: Arc<Mutex<Guardian>>,
    allowed: Allowed,
    workers: usize,
    /// By vswitch.
    uplinks: BTreeMap<String, Uplink>,
    /// Devices that are being closed.
    closing: Closings,
    /// The interfaces may have changed.
    stale: bool,
    /// When the rings are looked at next; `None`: there are none.
    watch_at: Option<Instant>,
    /// Readable when some member's control socket is.
    control_frames: OwnedFd,
    /// Vswitches whose guests are to be announced.
    announce: Vec<String>,
}

impl Uplinks {
    pub(super) fn new(
        links: Links,
        helpers: Helpers,
        mailbox: Mailbox<Answer>,
        allowed: Allowed,
        workers: usize,
    ) -> io::Result<Self> {
        Ok(Self {
            control_frames: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            announce: Vec::new(),
            links,
            helpers,
            mailbox,
            guardian: Arc::default(),
            allowed,
            workers,
            uplinks: BTreeMap::new(),
            closing: Closings::default(),
            stale: true,
            watch_at: None,
        })
    }

    /// Readable when a control protocol of an aggregate has something; call [`Self::turn`] then.
    pub(super) fn control_frames_fd(&self) -> RawFd {
        self.control_frames.as_raw_fd()
    }

    /// The vswitches whose guests are to be announced on the wire, since the last call.
    pub(super) fn take_announce(&mut self) -> Vec<String> {
        std::mem::take(&mut self.announce)
    }

    /// All workers have been sent a new table.
    pub(super) fn published(&mut self, fabric: &Fabric) {
        for bundle in self.uplinks.values_mut().filter_map(|uplink| uplink.bundle.as_mut()) {
            bundle.published(|| fabric.workers().barrier());
        }
    }

    /// The aggregates that are uplinks, for the operator.
    pub(super) fn aggregates(&self) -> Vec<AggregateReport> {
        let now = Instant::now();
        let of = |uplink: &Uplink| {
            let bundle = uplink.bundle.as_ref()?;
            let through = |name: &str| {
                let member = uplink.members.iter().find(|member| member.name == name);
                member.map_or([Sum::default(); 2], |member| [member.inwards.sum(), member.outwards.sum()])
            };
            let held = uplink.held.sum();
            Some(aggregate_report::report(&uplink.vswitch, bundle.aggregate(), held, through, now))
        };
        self.uplinks.values().filter_map(of).collect()
    }

    /// The aggregate called `name`.
    pub(super) fn aggregate_mut(&mut self, name: &str) -> Option<&mut Aggregate> {
        let uplink = self.uplinks.values_mut().find(|uplink| uplink.name == name)?;
        uplink.bundle.as_mut().map(Bundle::aggregate_mut)
    }

    /// The number of the host's interface called `name`.
    pub(super) fn index_of(&self, name: &str) -> Option<u32> {
        self.links.named(name).map(|link| link.index)
    }

    /// The vswitches whose wire is down, where guests are to see that.
    pub(super) fn lost_to_guests(&self) -> BTreeSet<String> {
        let lost = self.uplinks.values().filter(|uplink| uplink.config.link_status && !uplink.is_up());
        lost.map(|uplink| uplink.vswitch.clone()).collect()
    }

    /// Readable when the host's interfaces change; call [`Self::on_links`] then.
    pub(super) fn links_fd(&self) -> RawFd {
        self.links.as_raw_fd()
    }

    /// The host's interfaces have changed. Returns whether anything that we know of them has.
    pub(super) fn on_links(&mut self) -> bool {
        let changed = self.links.refresh();
        self.stale |= changed;
        changed
    }

    /// Addresses of the host's interfaces, which no guest may have.
    pub(super) fn host_macs(&self) -> Vec<MacAddr> {
        self.links.macs().into_iter().map(|(_, mac)| mac).collect()
    }

    /// Whether the devices that `config` names are there and may be uplinks: what is wrong, a line each.
    pub(super) fn check(&mut self, config: &Config) -> Vec<String> {
        self.on_links();
        let knows = |member: &str| self.knows(member) || self.closing.has(member);
        check::check(config, &self.links, Asker::Daemon { knows: &knows })
    }

    fn knows(&self, member: &str) -> bool {
        self.uplinks.values().flat_map(|uplink| &uplink.members).any(|known| known.name == member)
    }

    /// Takes over a configuration that was checked. Returns what changed, a line each.
    pub(super) fn reconcile(&mut self, config: &Config, fabric: &mut Fabric) -> Vec<String> {
        let wanted: BTreeMap<String, UplinkConfig> = wanted(config).into_iter().collect();
        let mut changes = Vec::new();
        let gone: Vec<String> = self
            .uplinks
            .iter()
            .filter(|(vswitch, uplink)| {
                let members = members(config, &uplink.name);
                // An aggregate's devices come and go one by one.
                let stays =
                    uplink.bundle.is_some() && config.aggregates.iter().any(|a| a.name == uplink.name);
                wanted.get(*vswitch).is_none_or(|new| {
                    new.name != uplink.name
                        || new.access != uplink.config.access
                        || (!stays && !uplink.members.iter().map(|member| &member.name).eq(&members))
                })
            })
            .map(|(vswitch, _)| vswitch.clone())
            .collect();
        for vswitch in gone {
            if let Some(mut uplink) = self.uplinks.remove(&vswitch) {
                for member in &mut uplink.members {
                    close(member, uplink.index, fabric, &mut self.closing);
                }
                fabric.give_index(uplink.index);
                changes.push(format!("{vswitch}: uplink {} removed", uplink.name));
            }
        }
        for (vswitch, new) in wanted {
            if let Some(uplink) = self.uplinks.get_mut(&vswitch) {
                uplink.config = new;
                if let Some(aggregate) = config.aggregates.iter().find(|a| a.name == uplink.name) {
                    changes.extend(uplink.configure(aggregate, &self.allowed, fabric, &mut self.closing));
                }
                uplink.respecify();
                continue;
            }
            let Some(index) = fabric.take_index() else {
                changes.push(format!("{vswitch}: no uplink: all port indices are taken"));
                continue;
            };
            let access = self.allowed.best(new.access);
            let members = members(config, &new.name);
            let aggregate = config.aggregates.iter().find(|a| a.name == new.name);
            let balance = aggregate.map(|a| a.balance);
            let mut uplink = Uplink {
                name: new.name.clone(),
                vswitch: vswitch.clone(),
                index,
                spec: Arc::new(PortSpec::none()),
                state: Arc::new(PortState::new(self.workers, 1)),
                baseline: Snapshot::default(),
                members: members.iter().map(|name| Member::new(name, access)).collect(),
                config: new,
                balance: balance.unwrap_or_default(),
                bundle: aggregate.cloned().map(Bundle::new),
                hold: None,
                held: Traffic::default(),
            };
            if uplink.bundle.is_some() {
                let (reply, port) = (self.mailbox.reply(), index);
                self.helpers.run(move || reply.send(Answer::Hold { port, hold: Hold::new() }));
            }
            uplink.respecify();
            changes.push(format!("{vswitch}: uplink {}", uplink.name));
            self.uplinks.insert(vswitch, uplink);
        }
        self.stale = true;
        fabric.touch();
        changes
    }

    /// Puts the uplinks into the next table; before the ports of their vswitches.
    pub(super) fn fill(&self, config: &Config, builder: &mut TableBuilder) {
        for (vswitch, uplink) in &self.uplinks {
            let Some(vswitch) = config.vswitch(vswitch).filter(|vswitch| vswitch.settings.enabled) else {
                continue;
            };
            let (spec, state) = (Arc::clone(&uplink.spec), Arc::clone(&uplink.state));
            if let Err(error) = builder.uplink(uplink.index, vswitch.number, spec, state, uplink.port()) {
                tracing::error!("uplink {}: not on the switch: {error}", uplink.name);
            }
        }
    }

    /// Opens what is to be opened, closes what is gone, takes up what helpers have opened. Returns whether the table has changed.
    pub(super) fn turn(&mut self, now: Instant, fabric: &mut Fabric) -> bool {
        let mut changed = false;
        self.closing.turn(&self.helpers, &self.mailbox.reply());
        while let Some(answer) = self.mailbox.take() {
            match answer {
                Answer::Opened(opened) => self.on_opened(opened, now, fabric),
                Answer::Closed { name, port } => self.closing.closed(&name, port),
                Answer::Hold { port, hold } => self.on_hold(port, hold),
            }
            changed = true;
        }
        changed |= self.watch(now, fabric);
        let due = self.retry_at().is_some_and(|at| at <= now);
        if std::mem::take(&mut self.stale) || due {
            changed |= self.look(now, fabric);
        }
        for uplink in self.uplinks.values_mut() {
            let Some(bundle) = &mut uplink.bundle else { continue };
            let wishes = bundle.turn(now);
            changed |= wishes.publish;
            if wishes.announce {
                self.announce.push(uplink.vswitch.clone());
            }
            if wishes.publish {
                uplink.respecify();
            }
        }
        changed
    }

    /// When [`Self::turn`] is due even if nothing happens.
    pub(super) fn next_at(&self) -> Option<Instant> {
        [self.retry_at(), self.watch_at].into_iter().flatten().min()
    }

    /// When a device is to be opened.
    fn retry_at(&self) -> Option<Instant> {
        let members = self.uplinks.values().flat_map(|uplink| &uplink.members);
        let retries = members
            .filter_map(|member| if let State::Closed { retry } = member.state { retry } else { None });
        retries.min()
    }

    /// When an aggregate has something to do even if nothing happens.
    pub(super) fn next_of_aggregates(&self) -> Option<Instant> {
        self.uplinks.values().filter_map(|uplink| uplink.bundle.as_ref()?.next_at()).min()
    }

    /// Looks at the rings of all devices, if it is time. One that is stuck has its device opened anew, a step down the ladder.
    fn watch(&mut self, now: Instant, fabric: &mut Fabric) -> bool {
        if self.watch_at.is_none_or(|at| now < at) {
            return false;
        }
        let mut changed = false;
        self.watch_at = None;
        for uplink in self.uplinks.values_mut() {
            for member in &mut uplink.members {
                if let Some(line) = member.look_at_rings() {
                    tracing::warn!("uplink {}: {}: {line}", uplink.name, member.name);
                    close(member, uplink.index, fabric, &mut self.closing);
                    member.state = State::Closed { retry: Some(now + REOPEN_AFTER) };
                    changed = true;
                }
                if member.watched().is_some() {
                    self.watch_at = Some(now + watchdog::LOOK_EVERY);
                }
            }
            if changed {
                uplink.tell_aggregate(&self.control_frames, now);
                uplink.respecify();
            }
        }
        changed
    }

    /// Brings every member in line with the interfaces as they are.
    fn look(&mut self, now: Instant, fabric: &mut Fabric) -> bool {
        let mut changed = false;
        let macs = host_macs_on(&self.links);
        for uplink in self.uplinks.values_mut() {
            let named = uplink.members.iter().filter_map(|member| self.links.named(&member.name));
            let devices: Vec<u32> = named.map(|link| link.index).collect();
            for (number, member) in uplink.members.iter_mut().enumerate() {
                let link = self.links.named(&member.name).cloned();
                let has_carrier = |link: &Option<Link>| link.as_ref().is_some_and(|link| link.has_carrier);
                // What was handed to the device and did not get out any more would leave it when the link is back: long after what followed it
                // through another member.
                let is_overtaken =
                    uplink.bundle.is_some() && has_carrier(&member.link) && !has_carrier(&link);
                if member.link != link {
                    changed = true;
                    let renamed = member.link.as_ref().and_then(|was| self.links.numbered(was.index));
                    tell_link(&uplink.name, member, link.as_ref(), renamed);
                }
                let is_new = match (&member.link, &link) {
                    (Some(was), Some(link)) => was.index != link.index || !was.is_up && link.is_up,
                    (None, link) => link.is_some(),
                    (Some(_), None) => false,
                };
                // Another device, or one that the operator has set up anew: what was stuck may not be so any more.
                let begins_anew = is_new && member.stepped_down.take().is_some();
                if is_new {
                    member.access = self.allowed.best(uplink.config.access);
                }
                member.link = link;
                let lost = match (&member.state, &member.link) {
                    (State::Open(open), Some(link)) => {
                        is_overtaken
                            || begins_anew
                            || open.link.index != link.index
                            || open.link.mtu != link.mtu
                    }
                    (State::Open(_), None) => true,
                    _ => false,
                };
                if lost {
                    close(member, uplink.index, fabric, &mut self.closing);
                    member.state = State::Closed { retry: Some(now + REOPEN_AFTER) };
                    changed = true;
                }
                let Some(link) = member.link.clone().filter(|link| link.is_up) else { continue };
                let hosts = HostAddresses::new(&macs, &uplink.config.host_macs, &devices, link.index);
                match &mut member.state {
                    State::Closed { .. } if self.closing.has(&member.name) => {
                        // Its queues and its program are still taken, by us.
                        member.state = State::Closed { retry: Some(now + REOPEN_AFTER) };
                    }
                    State::Closed { retry } if retry.is_none_or(|at| at <= now) => {
                        member.attempt += 1;
                        member.state = State::Opening;
                        let request = Request {
                            link,
                            hosts,
                            access: member.access,
                            zero_copy: self.allowed.zero_copy,
                            busy_poll: self.allowed.busy_poll,
                            burst: self.allowed.burst,
                            vlan_tags: self.allowed.vlan_tags,
                            siblings: self.allowed.siblings && uplink.bundle.is_some(),
                        };
                        let (port, attempt) = (uplink.index, member.attempt);
                        let (reply, guardian) = (self.mailbox.reply(), Arc::clone(&self.guardian));
                        self.helpers.run(move || {
                            let device = answered(|| device::open(&request, &guardian));
                            reply.send(Answer::Opened(Opened { port, member: number, attempt, device }));
                        });
                    }
                    State::Open(open) => {
                        open.device.leave(&hosts, &member.name);
                    }
                    _ => {}
                }
            }
            uplink.tell_aggregate(&self.control_frames, now);
            uplink.respecify();
        }
        changed
    }

    fn on_opened(&mut self, opened: Opened, now: Instant, fabric: &mut Fabric) {
        let Opened { port, member: number, attempt, device } = opened;
        let uplink = self.uplinks.values_mut().find(|uplink| uplink.index == port);
        let Some(uplink) = uplink else { return };
        let Some(member) = uplink.members.get_mut(number).filter(|member| member.attempt == attempt) else {
            return;
        };
        let mut device = match device {
            Ok(device) => device,
            Err(why) => {
                tracing::error!("uplink {}: {why}; next try in {RETRY_AFTER:?}", uplink.name);
                member.trouble = Some(why);
                member.state = State::Closed { retry: Some(now + RETRY_AFTER) };
                return;
            }
        };
        let Some(link) = member.link.clone() else {
            member.state = State::Closed { retry: None };
            return;
        };
        let Negotiated { access, queues, remarks, .. } = &device.negotiated;
        if *access == "packet" && !remarks.is_empty() {
            tracing::warn!(
                "uplink {}: {}: no XDP, so a packet socket, which is slower (`access = \"packet\"` says that it is meant): {}",
                uplink.name,
                member.name,
                remarks.join("; ")
            );
        } else {
            for remark in remarks {
                tracing::warn!("uplink {}: {}: not {remark}", uplink.name, member.name);
            }
        }
        tracing::info!("uplink {}: {}: open, {access}, {queues} queues", uplink.name, member.name);
        device.negotiated.remarks.extend(member.stepped_down.clone());
        let first = number as u16 * SOURCES_MAX;
        let sources = device.sources.drain(..).zip(first..).map(|(source, lane)| {
            let (header_len, features) = (source.header_len, source.features);
            let source = WireSource::of_uplink(source.intake, port, lane, header_len, features);
            member.inwards.add(Arc::clone(source.counters()));
            (fabric.start_intake(source), lane)
        });
        let sources = sources.collect();
        device.lanes.iter().for_each(|lane| member.outwards.add(Arc::clone(lane.counters())));
        member.trouble = None;
        self.watch_at.get_or_insert(now + watchdog::LOOK_EVERY);
        member.state = State::Open(Box::new(OpenMember {
            lanes: std::mem::take(&mut device.lanes),
            sources,
            device,
            link,
        }));
        self.stale = true;
    }

    fn on_hold(&mut self, port: PortIndex, hold: io::Result<Hold>) {
        let Some(uplink) = self.uplinks.values_mut().find(|uplink| uplink.index == port) else { return };
        match hold {
            Ok(hold) => {
                let lane = Lane::holding(hold);
                uplink.held.add(Arc::clone(lane.counters()));
                uplink.hold = Some(lane);
            }
            Err(error) => {
                let name = &uplink.name;
                tracing::error!("{name}: no memory to hold frames: flows that move lose some: {error}");
            }
        }
    }

    /// A source has come back from its worker.
    pub(super) fn on_stopped(&mut self, stopped: IntakeStopped) {
        self.closing.source(stopped);
    }

    /// A lane has come back from the workers.
    pub(super) fn on_lane(&mut self, lane: Arc<Lane>) {
        self.closing.lane(lane);
    }

    /// A worker cannot go on with a source, or through a lane: the device is opened anew. Returns its line for the log.
    pub(super) fn on_broken(
        &mut self,
        port: PortIndex,
        half: Half,
        why: &str,
        now: Instant,
        fabric: &mut Fabric,
    ) -> Option<String> {
        let uplink = self.uplinks.values_mut().find(|uplink| uplink.index == port)?;
        let broken = uplink.member_of(half);
        for (number, member) in uplink.members.iter_mut().enumerate() {
            // The other members of an aggregate go on.
            if broken.is_none_or(|broken| broken == number) && matches!(member.state, State::Open(_)) {
                close(member, port, fabric, &mut self.closing);
                member.state = State::Closed { retry: Some(now + Duration::from_millis(200)) };
            }
        }
        self.stale = true;
        self.links.refresh();
        Some(format!("uplink {}: stopped: {why}", uplink.name))
    }

    /// What went through the members of the aggregate `name` counts from here.
    pub(super) fn clear_traffic(&mut self, name: &str) {
        self.uplinks.values_mut().filter(|uplink| uplink.name == name).for_each(Uplink::clear_traffic);
    }

    /// Counts from here.
    pub(super) fn clear_numbers(&mut self, vswitch: Option<&str>) {
        for uplink in self.uplinks.values_mut().filter(|u| vswitch.is_none_or(|name| name == u.vswitch)) {
            uplink.baseline = uplink.state.stats.snapshot();
            uplink.clear_traffic();
        }
    }

    /// What the operator sees of a vswitch's uplink.
    pub(super) fn report(&self, vswitch: &str) -> Option<UplinkReport> {
        let uplink = self.uplinks.get(vswitch)?;
        let numbers = uplink.state.stats.snapshot().since(&uplink.baseline);
        let member = |member: &Member| {
            let open = if let State::Open(open) = &member.state { Some(open) } else { None };
            let link = member.link.as_ref();
            let negotiated = open.map(|open| &open.device.negotiated);
            let state = match (&member.state, link) {
                (_, None) => "Missing",
                (State::Open(_), Some(link)) if link.has_carrier => "Up",
                (State::Opening, _) => "Opening",
                _ => "Down",
            };
            UplinkMember {
                name: member.name.clone(),
                state: state.to_owned(),
                mac: link.and_then(|link| link.mac),
                mtu: link.map_or(0, |link| link.mtu),
                access: negotiated.map(|n| n.access.to_owned()),
                queues: negotiated.map_or(0, |n| n.queues as u32),
                multi_buffer: negotiated.is_some_and(|n| n.multi_buffer),
                busy_poll: negotiated.is_some_and(|n| n.busy_poll),
                remarks: negotiated
                    .map_or_else(|| member.trouble.iter().cloned().collect(), |n| n.remarks.clone()),
                need_wakeup: negotiated.is_some_and(|n| n.need_wakeup),
                ring_size: negotiated.map_or(0, |n| n.ring_size),
                vlan_metadata: negotiated.is_some_and(|n| n.vlan_metadata),
                sent_by: negotiated.map(|n| n.sent_by),
                segments_by: negotiated.map(|n| n.segments_by),
                checksums_by: negotiated.map(|n| n.checksums_by),
                switched_off: negotiated.map_or_else(Vec::new, |n| n.switched_off.names()),
            }
        };
        Some(UplinkReport {
            mac: Some(uplink.spec.mac).filter(|mac| !mac.is_zero()),
            native_vlan: uplink.config.native_vlan,
            members: uplink.members.iter().map(member).collect(),
            counters: numbers.counters,
            discards: numbers.discards,
        })
    }
}

/// What is wrong with the devices that `config` names, a line each: for `--check`, beside a daemon that may run.
///
/// # Errors
/// The interfaces cannot be asked for.
pub(super) fn check_devices(config: &Config) -> io::Result<Vec<String>> {
    Ok(check::check(config, &Links::new()?, Asker::Check))
}

/// The vswitches that have an uplink, with how it is used.
fn wanted(config: &Config) -> Vec<(String, UplinkConfig)> {
    let of = |vswitch: &avio_proto::config::NumberedVswitch| {
        let settings = &vswitch.settings;
        settings.uplink.as_ref().map(|name| (settings.name.clone(), config.uplink(name)))
    };
    config.vswitches.iter().filter_map(of).collect()
}

/// The devices that the uplink `name` is made of.
fn members(config: &Config, name: &str) -> Vec<String> {
    let aggregate = config.aggregates.iter().find(|aggregate| aggregate.name == name);
    aggregate.map_or_else(|| vec![name.to_owned()], |aggregate| aggregate.members.clone())
}
