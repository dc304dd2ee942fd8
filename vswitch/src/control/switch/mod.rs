//! The running switch as control sees it: interfaces, their sockets, and the fabric behind them.
//!
//! Owns what `reconcile` brings in line with the files, what happens at sessions (`sessions`) and what workers report (`events`). One turn of the control
//! loop calls [`Switch::turn`]; nothing here blocks.

mod events;
mod reconcile;
mod sessions;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use avio_host::ratelimit::RateLimit;
use avio_host::session::{EndpointId, Sessions};
use avio_proto::config::{Config, MacAddr, NetworkAdaptor, WorkersConfig};
use crossbeam_channel::Receiver;

use super::fabric::Fabric;
use super::interface::{Interface, InterfaceKey};
use super::link_status::LinkStatus;
use super::show::Interfaces;
use super::taps::Taps;
use super::uplink::Uplinks;
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
            tracing::warn!("{line}{suppressed}");
        }
    }
}
