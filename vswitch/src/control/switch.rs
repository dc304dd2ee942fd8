//! The running switch as control sees it: interfaces, their sockets, and the fabric behind them.
//!
//! Owns what `reconcile` brings in line with the files and what session events change. One turn of the control loop calls
//! [`Switch::turn`]; nothing here blocks.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use avio_host::ratelimit::RateLimit;
use avio_host::session::{EndpointId, Event as SessionEvent, RingStart, Sessions};
use avio_proto::config::{Config, MacAddr, NetworkAdaptor, WorkersConfig};
use avio_proto::ring::RingError;
use crossbeam_channel::Receiver;

use super::fabric::{Fabric, Released};
use super::interface::{Interface, InterfaceKey, StopRing};
use super::link_status::LinkStatus;
use super::show::Interfaces;
use super::taps::Taps;
use super::uplink::{Half, Uplinks};
use crate::forward::Event as WorkerEvent;
use crate::table::{PortIndex, TableBuilder};

/// Session events handled per turn: a thousand starting guests need some turns more, a hostile one delays nobody by more
/// than some milliseconds.
const SESSION_EVENTS_PER_TURN: usize = 256;
/// Worker events handled per turn, so that a guest that causes many does not keep the control thread.
const WORKER_EVENTS_PER_TURN: usize = 1024;
/// How often learned addresses are looked through for old ones, and the host's interfaces for new ones.
const AGE_EVERY: Duration = Duration::from_secs(10);
/// Domains of ports of a halted vswitch start here: each is alone in its own, so it reaches nobody.
const HALTED: u32 = 1 << 31;

/// A change in which descriptors the control loop watches.
pub(super) enum Watch {
    /// Tell [`Switch::on_control_kick`] when it is readable.
    Add(RawFd, EndpointId),
    /// No longer; then close it.
    Remove(OwnedFd),
}

/// See the module.
pub(super) struct Switch {
    pub(super) config: Config,
    pub(super) interfaces: Interfaces,
    pub(super) run_dir: PathBuf,
    pub(super) sessions: Sessions,
    pub(super) fabric: Fabric,
    /// Ports that are no vhost-user device.
    pub(super) taps: Taps,
    pub(super) uplinks: Uplinks,
    pub(super) link_status: LinkStatus,
    /// Which interface an endpoint belongs to. An interface whose definition is gone stays here until its session has ended.
    pub(super) owners: HashMap<EndpointId, Owner>,
    pub(super) host_macs: Vec<MacAddr>,
    pub(super) watches: Vec<Watch>,
    /// Control queues that have more to do than one turn may take.
    kicked: Vec<EndpointId>,
    /// The workers' settings, which hold until the daemon ends.
    pub(super) started_with: WorkersConfig,
    events: Receiver<WorkerEvent>,
    limit: RateLimit<String>,
    /// Announcements that are passed on.
    announced: RateLimit<EndpointId>,
    aged: Instant,
}

/// What holds until the daemon ends.
pub(super) struct Start {
    /// Where the sockets are.
    pub run_dir: PathBuf,
    /// The workers' settings.
    pub workers: WorkersConfig,
}

/// What an endpoint belongs to.
pub(super) enum Owner {
    /// A defined interface.
    Interface(InterfaceKey),
    /// One whose definition or socket is gone; it ends with its session.
    Leaving(Box<Interface>),
}

impl Switch {
    pub(super) fn new(
        start: Start,
        sessions: Sessions,
        fabric: Fabric,
        taps: Taps,
        uplinks: Uplinks,
        link_status: LinkStatus,
        events: Receiver<WorkerEvent>,
    ) -> Self {
        let Start { run_dir, workers: started_with } = start;
        Self {
            config: Config::default(),
            interfaces: BTreeMap::new(),
            run_dir,
            sessions,
            fabric,
            taps,
            uplinks,
            link_status,
            owners: HashMap::new(),
            host_macs: Vec::new(),
            watches: Vec::new(),
            kicked: Vec::new(),
            started_with,
            events,
            limit: RateLimit::default(),
            announced: RateLimit::default(),
            aged: Instant::now(),
        }
    }

    /// Handles everything that sessions and workers have to say, then publishes what has changed.
    pub(super) fn turn(&mut self, now: Instant) {
        for endpoint in std::mem::take(&mut self.kicked) {
            self.on_control_kick(endpoint, now);
        }
        // Bounded: some stops are answered at once, the session then reads on, and what it reads may be the next stop. A
        // front-end that writes fast enough would keep the control thread here for ever.
        for _ in 0..SESSION_EVENTS_PER_TURN {
            self.take_released();
            let Some((endpoint, event)) = self.sessions.next_event() else { break };
            self.on_session_event(endpoint, event, now);
            self.end_if_held(endpoint);
        }
        for event in self.events.try_iter().take(WORKER_EVENTS_PER_TURN).collect::<Vec<_>>() {
            self.on_worker_event(event, now);
        }
        if now.saturating_duration_since(self.aged) >= AGE_EVERY {
            self.aged = now;
            let table = self.fabric.table_arc();
            self.fabric.learner.age(&table, now);
            self.on_links();
        }
        let uplinks_changed = self.uplinks.turn(now, &mut self.fabric);
        if uplinks_changed {
            self.fabric.touch();
            self.link_status.touch();
        }
        for vswitch in self.uplinks.take_announce() {
            self.announce_guests(&vswitch);
        }
        for (what, count) in self.limit.settle(now) {
            tracing::warn!("{what}: {count} more lines suppressed");
        }
        for (endpoint, count) in self.announced.settle(now) {
            tracing::warn!("endpoint {}: {count} announcements too many, not passed on", endpoint.0);
        }
        if self.taps.turn(&mut self.fabric, now) {
            let changes = self.taps.reconcile(&self.config, &mut self.fabric, now);
            changes.iter().for_each(|line| tracing::info!("{line}"));
        }
        if self.fabric.is_changed(now) {
            self.publish(now);
        }
        if self.link_status.is_due(now) {
            self.tell_guests(now);
        }
    }

    /// Guests see whether their wire is up, as far as their VMMs can be told.
    fn tell_guests(&mut self, now: Instant) {
        let connected = self.interfaces.values().filter(|interface| interface.is_connected());
        let connected = connected.map(|interface| (interface.key.clone(), interface.network.vswitch.clone()));
        let emulated = self.config.networks().filter(|(_, network)| network.adaptor == NetworkAdaptor::Lan);
        let emulated = emulated.filter_map(|(guest, network)| {
            let key = InterfaceKey { guest: guest.to_owned(), bus: network.bus, device: network.device };
            self.taps.is_plugged(&key).then(|| (key, network.vswitch.clone()))
        });
        let guests = connected.chain(emulated).collect();
        self.link_status.turn(&self.uplinks.lost_to_guests(), &guests, now);
    }

    /// The host's interfaces may have changed (rtnetlink): uplinks follow, and their addresses are protected from now on.
    pub(super) fn on_links(&mut self) {
        self.uplinks.on_links();
        self.link_status.touch();
        self.look_at_host();
    }

    /// Protects the addresses that the host's interfaces have now.
    pub(super) fn look_at_host(&mut self) {
        let host_macs = self.uplinks.host_macs();
        if host_macs != self.host_macs {
            self.host_macs = host_macs;
            self.fabric.touch();
        }
    }

    /// Broadcasts in the name of every connected guest of a vswitch: its wire has moved, and switches out there are to find it. The new
    /// table must be with the workers first.
    fn announce_guests(&mut self, vswitch: &str) {
        if self.fabric.is_changed(Instant::now()) {
            self.publish(Instant::now());
        }
        let guests = self
            .interfaces
            .values()
            .filter(|interface| interface.is_connected() && interface.network.vswitch == vswitch);
        let guests: Vec<(PortIndex, MacAddr)> =
            guests.map(|interface| (interface.index, interface.spec.mac)).collect();
        for (port, mac) in guests {
            self.fabric.announce(port, mac);
        }
    }

    /// When [`Self::turn`] is due again even if nothing happens.
    pub(super) fn next_turn(&self, now: Instant) -> Duration {
        if !self.kicked.is_empty() || self.sessions.has_events() {
            return Duration::ZERO;
        }
        let publish = self.fabric.learner.publish_at().map(|at| at.saturating_duration_since(now));
        let age = (self.aged + AGE_EVERY).saturating_duration_since(now);
        let retry = self.uplinks.next_at().map(|at| at.saturating_duration_since(now));
        let aggregates = self.uplinks.next_of_aggregates().map(|at| at.saturating_duration_since(now));
        let taps = self.taps.next_turn(now);
        let link_status = self.link_status.next_turn().map(|at| at.saturating_duration_since(now));
        [publish, retry, aggregates, link_status].into_iter().flatten().chain(taps).fold(age, Duration::min)
    }

    /// Forgets what was learned on a vswitch and publishes it anew.
    pub(super) fn restart(&mut self, vswitch: &str) {
        for interface in self.interfaces.values().filter(|interface| interface.network.vswitch == vswitch) {
            self.fabric.learner.forget_port(interface.index);
        }
        self.fabric.touch();
    }

    /// Ends the workers. The sockets close with their sessions.
    pub(super) fn stop(self) {
        self.fabric.stop();
    }

    /// The kick of a control queue was readable.
    pub(super) fn on_control_kick(&mut self, endpoint: EndpointId, now: Instant) {
        let Some(interface) = self.interface_of(endpoint) else { return };
        let name = interface.key.to_string();
        match interface.serve_control() {
            Ok(false) => {}
            Ok(true) => self.kicked.push(endpoint),
            Err(error) => self.log(now, &name, &format!("control queue stopped: {error}")),
        }
        self.end_if_held(endpoint);
    }

    /// Ends the session whose front-end made a notification of ours block.
    fn end_if_held(&mut self, endpoint: EndpointId) {
        if self.interface_of(endpoint).is_some_and(Interface::take_held) {
            self.sessions.hold(endpoint);
        }
    }

    fn on_session_event(&mut self, endpoint: EndpointId, event: SessionEvent, now: Instant) {
        match event {
            SessionEvent::Connected => self.on_connected(endpoint, now),
            SessionEvent::Features(features) => {
                if let Some(interface) = self.interface_of(endpoint) {
                    interface.features = Some(features);
                }
            }
            SessionEvent::Mtu(mtu) => {
                if let Some(interface) = self.interface_of(endpoint) {
                    let name = interface.key.to_string();
                    self.note(now, &name, &format!("the guest's MTU is {mtu}"));
                }
            }
            SessionEvent::Announce(mac) => self.on_announce(endpoint, MacAddr(mac), now),
            SessionEvent::RingStart(start) => self.on_ring_start(endpoint, *start, now),
            SessionEvent::RingStop { index } => self.on_ring_stop(endpoint, index, now),
            SessionEvent::Disconnected => self.on_disconnected(endpoint, now),
        }
    }

    fn on_connected(&mut self, endpoint: EndpointId, now: Instant) {
        let Some(Owner::Interface(key)) = self.owners.get(&endpoint) else { return };
        let key = key.clone();
        let Some(interface) = self.interfaces.get(&key) else { return };
        let (vswitch, port) = (&interface.network.vswitch, interface.network.port);
        let rival = self.interfaces.values().find(|other| {
            other.key != key
                && other.is_connected()
                && other.network.vswitch == *vswitch
                && other.network.port == port
        });
        if let Some(rival) = rival {
            let line = format!(
                "port {port} of vswitch {vswitch} is in use by {}; one guest at a time can be active on it",
                rival.key
            );
            self.log(now, &key.to_string(), &line);
            self.sessions.disconnect(endpoint);
            return;
        }
        if let Some(interface) = self.interfaces.get_mut(&key) {
            interface.connect();
            let line = format!(
                "front-end connected, port {} of {}",
                interface.network.port, interface.network.vswitch
            );
            self.fabric.touch();
            self.note(now, &key.to_string(), &line);
        }
    }

    fn on_disconnected(&mut self, endpoint: EndpointId, now: Instant) {
        match self.owners.get(&endpoint) {
            Some(Owner::Interface(key)) => {
                if let Some(interface) = self.interfaces.get_mut(key)
                    && interface.is_connected()
                {
                    interface.disconnect();
                    self.link_status.touch();
                    self.fabric.learner.forget_port(interface.index);
                    self.fabric.touch();
                    let name = key.to_string();
                    self.note(now, &name, "front-end disconnected");
                    self.reopen_sockets();
                }
            }
            Some(Owner::Leaving(interface)) => {
                self.fabric.give_index(interface.index);
                self.owners.remove(&endpoint);
            }
            None => {}
        }
    }

    fn on_ring_start(&mut self, endpoint: EndpointId, start: RingStart, now: Instant) {
        let index = start.index;
        if index == 0
            && let Some(Owner::Interface(key)) = self.owners.get(&endpoint)
        {
            self.link_status.started(key);
        }
        let Some((interface, fabric)) = self.interface_and_fabric(endpoint) else { return };
        match interface.start_ring(start, fabric) {
            Ok(Some(kick)) => self.watches.push(Watch::Add(kick, endpoint)),
            Ok(None) => {}
            Err(error) => {
                let name = interface.key.to_string();
                self.log(now, &name, &format!("ring {index} cannot start: {error}"));
            }
        }
    }

    fn on_ring_stop(&mut self, endpoint: EndpointId, index: u16, now: Instant) {
        // A ring that was to start in this very turn must have started before it can be asked back.
        if self.fabric.is_changed(now) {
            self.publish(now);
        }
        let Some((interface, fabric)) = self.interface_and_fabric(endpoint) else {
            // The session ended before it was let in: no ring of it ever ran.
            self.sessions.ring_stopped(endpoint, index, 0);
            return;
        };
        match interface.stop_ring(index, fabric) {
            StopRing::Later => {}
            StopRing::Stopped { base, unwatch } => {
                self.watches.extend(unwatch.map(Watch::Remove));
                self.sessions.ring_stopped(endpoint, index, base);
            }
        }
    }

    /// The guest has moved here (SEND_RARP). Its address is static in every table, so this switch has nothing to learn; who
    /// is behind a trusted port or a bridge in a guest has, so it is broadcast. VMMs say it a few times; one that says it for
    /// ever gets as many out as a log takes lines.
    fn on_announce(&mut self, endpoint: EndpointId, mac: MacAddr, now: Instant) {
        if self.announced.check(endpoint, now).is_none() {
            return;
        }
        let Some((interface, fabric)) = self.interface_and_fabric(endpoint) else { return };
        fabric.announce(interface.index, mac);
        let name = interface.key.to_string();
        self.note(now, &name, &format!("announced itself as {mac}"));
    }

    fn take_released(&mut self) {
        for released in self.fabric.released() {
            if self.taps.released(&released) {
                continue;
            }
            let (port, index, base) = match released {
                Released::Rx { port, pair, base } => (port, 2 * pair, Some(base)),
                Released::Tx(stopped) => (stopped.port, 2 * stopped.pair + 1, stopped.base),
                Released::Intake(stopped) => {
                    self.uplinks.on_stopped(stopped);
                    continue;
                }
                Released::Lane(lane) => {
                    self.uplinks.on_lane(lane);
                    continue;
                }
            };
            let Some(endpoint) = self.endpoint_of(port) else { continue };
            let Some(interface) = self.interface_of(endpoint) else { continue };
            let base = interface.ring_released(index, base);
            self.sessions.ring_stopped(endpoint, index, base);
        }
    }

    fn on_worker_event(&mut self, event: WorkerEvent, now: Instant) {
        match event {
            WorkerEvent::Learn { port, vlan, mac } => {
                let table = self.fabric.table_arc();
                self.fabric.learner.learn(&table, port, vlan, mac, now);
            }
            WorkerEvent::Refused(refusal) => {
                let name = format!("{} port {}", refusal.spec.guest, refusal.spec.number);
                self.log_as_is(now, &name, &refusal.to_string());
            }
            WorkerEvent::TxBroken { port, pair, error } => {
                self.on_ring_broken(port, 2 * pair + 1, error, now)
            }
            WorkerEvent::RxBroken { port, pair, error } => self.on_ring_broken(port, 2 * pair, error, now),
            WorkerEvent::IntakeBroken { port, lane, error } => {
                let why = error.map_or_else(|| "an internal error".to_owned(), |error| error.to_string());
                self.on_wire_broken(port, Half::Source(lane), &format!("source {lane}: {why}"), now);
            }
            WorkerEvent::LaneBroken { port, lane, error } => {
                self.on_wire_broken(port, Half::Lane(lane), &format!("lane {lane}: {error}"), now);
            }
            WorkerEvent::Held { port } => {
                if let Some(endpoint) = self.endpoint_of(port) {
                    self.sessions.hold(endpoint);
                }
            }
        }
    }

    fn on_wire_broken(&mut self, port: PortIndex, half: Half, why: &str, now: Instant) {
        if let Some(line) = self.uplinks.on_broken(port, half, why, now, &mut self.fabric) {
            self.log_as_is(now, &format!("port index {}", port.0), &line);
        }
    }

    fn on_ring_broken(&mut self, port: PortIndex, index: u16, error: Option<RingError>, now: Instant) {
        let why = error.map_or_else(|| "an internal error".to_owned(), |error| error.to_string());
        if self.taps.ring_broken(port, &why, &mut self.fabric, now) {
            return;
        }
        let Some(endpoint) = self.endpoint_of(port) else { return };
        let Some(interface) = self.interface_of(endpoint) else { return };
        interface.ring_broken(index);
        let name = interface.key.to_string();
        self.log(now, &name, &format!("ring {index} stopped: {why}"));
        self.end_if_held(endpoint);
    }

    /// Publishes a table of everything as it is now.
    fn publish(&mut self, now: Instant) {
        let (config, interfaces, host_macs) = (&self.config, &self.interfaces, &self.host_macs);
        let uplinks = &self.uplinks;
        let leaving = self.owners.values().filter_map(|owner| match owner {
            Owner::Leaving(interface) => Some(&**interface),
            Owner::Interface(_) => None,
        });
        let leaving: Vec<&Interface> = leaving.filter(|interface| interface.is_connected()).collect();
        let taps: Vec<_> = self.taps.ports().collect();
        let mut refused = Vec::new();
        self.fabric.flush(now, |builder: &mut TableBuilder| {
            for mac in host_macs {
                builder.protect(*mac);
            }
            uplinks.fill(config, builder);
            // Who is connected comes first: where two claim one address in one VLAN, because a definition changed under a
            // guest that keeps its old address until it reconnects, the running guest goes on.
            let (connected, others): (Vec<_>, Vec<_>) =
                interfaces.values().partition(|interface| interface.is_connected());
            for interface in connected.into_iter().chain(others) {
                // A port that is reserved by several guests has one address in the table: the active guest's. The
                // others' addresses are protected.
                let number = config.vswitch(&interface.network.vswitch).filter(|v| v.settings.enabled);
                let number = number.map_or(HALTED | interface.index.0, |vswitch| vswitch.number);
                let (spec, state) = (interface.spec.clone(), interface.state.clone());
                if let Err(error) = builder.port(interface.index, number, spec, state, interface.port_kind())
                {
                    refused.push((interface.key.to_string(), error));
                }
            }
            for (key, vswitch, tap) in taps {
                let number = config.vswitch(vswitch).filter(|v| v.settings.enabled);
                let number = number.map_or(HALTED | tap.index.0, |vswitch| vswitch.number);
                let (spec, state) = (tap.spec.clone(), tap.state.clone());
                if let Err(error) = builder.port(tap.index, number, spec, state, tap.port_kind()) {
                    refused.push((key.to_string(), error));
                }
            }
            for interface in leaving {
                let (spec, state) = (interface.spec.clone(), interface.state.clone());
                let alone = HALTED | interface.index.0;
                if let Err(error) = builder.port(interface.index, alone, spec, state, interface.port_kind()) {
                    refused.push((interface.key.to_string(), error));
                }
            }
        });
        self.uplinks.published(&self.fabric);
        for (name, error) in refused {
            self.log(now, &name, &format!("not on the switch: {error}"));
        }
    }

    /// The endpoint whose session runs the rings of `port`. As many steps as there are ports; asked when a ring stops.
    fn endpoint_of(&self, port: PortIndex) -> Option<EndpointId> {
        let leaving = self.owners.values().filter_map(|owner| match owner {
            Owner::Leaving(interface) => Some(&**interface),
            Owner::Interface(_) => None,
        });
        self.interfaces.values().chain(leaving).find(|interface| interface.index == port)?.endpoint
    }

    fn interface_of(&mut self, endpoint: EndpointId) -> Option<&mut Interface> {
        self.interface_and_fabric(endpoint).map(|(interface, _)| interface)
    }

    fn interface_and_fabric(&mut self, endpoint: EndpointId) -> Option<(&mut Interface, &mut Fabric)> {
        let interface = match self.owners.get_mut(&endpoint)? {
            Owner::Interface(key) => self.interfaces.get_mut(key)?,
            Owner::Leaving(interface) => interface,
        };
        interface.is_connected().then_some((interface, &mut self.fabric))
    }

    /// One line about a guest, at most a few a second each.
    fn log(&mut self, now: Instant, name: &str, line: &str) {
        self.log_as_is(now, name, &format!("{name}: {line}"));
    }

    /// As [`Self::log`], for what is in order: a front-end decides how often it happens.
    fn note(&mut self, now: Instant, name: &str, line: &str) {
        if self.limit.check(name.to_owned(), now).is_some() {
            tracing::info!("{name}: {line}");
        }
    }

    fn log_as_is(&mut self, now: Instant, name: &str, line: &str) {
        if let Some(suppressed) = self.limit.check(name.to_owned(), now) {
            let more =
                if suppressed > 0 { format!(" ({suppressed} lines suppressed)") } else { String::new() };
            tracing::warn!("{line}{more}");
        }
    }
}
