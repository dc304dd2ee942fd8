//! TAP ports as control sees them: emulated NICs (`adaptor = "lan"`) and host ports.
//!
//! Brings them in line with the configuration and keeps them there: opens devices on helper threads, hands rings to the fabric and
//! ducts to the pump, takes both back when a device is lost or no longer defined, and tries again every second until it is
//! there. Called by the switch in its turns; nothing here blocks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_host::blocking::{Helpers, Mailbox, answered};
use avio_host::worker::ControlWaker;
use avio_proto::config::{Config, MacAddr, NetworkAdaptor, NetworkConfig, VlanId};
use avio_proto::control::Discards;

use super::fabric::{Fabric, Released};
use super::interface::InterfaceKey;
use crate::port::PortKind;
use crate::port::guest::{GuestPort, RxQueue, Snapshot};
use crate::port::tap::{self, Opened, Pump, PumpEvent, Side, TapSpec};
use crate::table::{PortIndex, PortSpec, PortState};

/// How often a device that is not there is looked for, and one that is there is looked after.
const EVERY: Duration = Duration::from_secs(1);
/// MTU that a host port begins with; the administrator may raise it, as on any interface.
const HOST_MTU: u16 = avio_proto::config::DEFAULT_MTU;

/// Names a TAP port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TapKey {
    /// An emulated NIC.
    Lan(InterfaceKey),
    /// The host port of a vswitch.
    Host(String),
}

impl std::fmt::Display for TapKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TapKey::Lan(key) => key.fmt(f),
            TapKey::Host(vswitch) => write!(f, "host port of {vswitch}"),
        }
    }
}

/// What a TAP port is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Definition {
    vswitch: String,
    spec: PortSpec,
    device: TapSpec,
}

enum Phase {
    /// To be opened at this time.
    Waiting(Instant),
    /// A helper thread is at it.
    Opening,
    /// On the switch.
    Running { device: u32, worker: usize, rx: Arc<RxQueue>, checked: Instant },
    /// Taken away; who has not let go yet.
    Stopping { rx: bool, tx: bool, duct: bool },
}

/// One TAP port.
pub(super) struct Tap {
    definition: Definition,
    pub(super) index: PortIndex,
    pub(super) spec: Arc<PortSpec>,
    pub(super) state: Arc<PortState>,
    phase: Phase,
    /// The numbers when they were last cleared.
    baseline: Snapshot,
    /// What was logged last: a device that stays away is told once.
    said: String,
    /// Its definition is gone: the index, and what was made of the device, go when nobody has it any more.
    leaving: bool,
}

impl Tap {
    /// The numbers since they were last cleared.
    pub(super) fn numbers(&self) -> Snapshot {
        self.state.stats.snapshot().since(&self.baseline)
    }
}

/// A host port as it is shown.
pub(super) struct HostShown<'a> {
    pub(super) device: &'a str,
    pub(super) mac: MacAddr,
    /// Its device is there and on the switch.
    pub(super) is_there: bool,
    pub(super) numbers: Snapshot,
}

/// See the module.
pub(super) struct Taps {
    taps: BTreeMap<TapKey, Tap>,
    /// Not before there is a TAP port.
    pump: Option<Pump>,
    control: ControlWaker,
    helpers: Helpers,
    opened: Mailbox<(PortIndex, Result<Opened, String>)>,
}

impl Taps {
    /// None yet. Helpers' answers arrive through `opened`.
    pub(super) fn new(
        control: ControlWaker,
        helpers: Helpers,
        opened: Mailbox<(PortIndex, Result<Opened, String>)>,
    ) -> Self {
        Self { taps: BTreeMap::new(), pump: None, control, helpers, opened }
    }

    /// Takes over a configuration; returns what changes, a line each.
    pub(super) fn reconcile(&mut self, config: &Config, fabric: &mut Fabric, now: Instant) -> Vec<String> {
        let wanted = wanted(config);
        let mut changes = Vec::new();
        for (key, tap) in &mut self.taps {
            match wanted.get(key) {
                Some(definition) if !tap.leaving => {
                    if tap.definition == *definition {
                        continue;
                    }
                    if matches!(key, TapKey::Lan(_)) {
                        changes.push(format!("{key}: changed"));
                    }
                    if tap.definition.device.name != definition.device.name {
                        tap.leaving = true;
                    }
                    if tap.definition.device != definition.device {
                        tap.stop(fabric, self.pump.as_ref(), now);
                    }
                    if tap.leaving {
                        continue;
                    }
                    tap.definition = definition.clone();
                    tap.spec = Arc::new(definition.spec.clone());
                    fabric.touch();
                }
                // One that comes back before it has gone is made anew by the next reconciliation, which `turn` asks for.
                _ if tap.leaving => {}
                _ => {
                    changes.push(format!("{key}: removed"));
                    tap.leaving = true;
                    tap.stop(fabric, self.pump.as_ref(), now);
                }
            }
        }
        for (key, definition) in wanted {
            if self.taps.contains_key(&key) {
                continue;
            }
            let Some(index) = fabric.take_index() else {
                changes.push(format!("{key}: left out: the daemon has no more port indices"));
                continue;
            };
            changes.push(format!("{key}: added, network device {}", definition.device.name));
            let tap = Tap {
                index,
                spec: Arc::new(definition.spec.clone()),
                definition,
                state: Arc::new(PortState::new(fabric.workers().len(), 1)),
                phase: Phase::Waiting(now),
                baseline: Snapshot::default(),
                said: String::new(),
                leaving: false,
            };
            self.taps.insert(key, tap);
        }
        changes
    }

    /// Handles what helpers and the pump have to say, and what is due. Returns whether a port has gone whose key may be defined
    /// anew.
    pub(super) fn turn(&mut self, fabric: &mut Fabric, now: Instant) -> bool {
        while let Some((index, result)) = self.opened.take() {
            self.on_opened(index, result, fabric, now);
        }
        while let Some(event) = self.pump.as_ref().and_then(Pump::event) {
            match event {
                PumpEvent::Lost(index, why) => {
                    if let Some((key, tap)) = self.taps.iter_mut().find(|(_, tap)| tap.index == index) {
                        tap.say(key, &why);
                        tap.stop(fabric, self.pump.as_ref(), now);
                    }
                }
                PumpEvent::Removed(index) => {
                    if let Some(tap) = self.taps.values_mut().find(|tap| tap.index == index)
                        && let Phase::Stopping { duct, .. } = &mut tap.phase
                    {
                        *duct = false;
                    }
                }
            }
        }
        let mut gone = Vec::new();
        for (key, tap) in &mut self.taps {
            tap.look_after(key, &self.helpers, &self.opened, self.pump.as_ref(), fabric, now);
            if tap.leaving && matches!(tap.phase, Phase::Waiting(_)) {
                gone.push(key.clone());
            }
        }
        for key in &gone {
            if let Some(tap) = self.taps.remove(key) {
                fabric.give_index(tap.index);
                forget_device(&self.helpers, tap.definition.device);
            }
        }
        !gone.is_empty()
    }

    /// When [`turn`](Self::turn) is due again by itself; `None`: never.
    pub(super) fn next_turn(&self, now: Instant) -> Option<Duration> {
        let due = |tap: &Tap| match tap.phase {
            Phase::Waiting(at) => Some(at),
            Phase::Running { checked, .. } => Some(checked + EVERY),
            Phase::Opening | Phase::Stopping { .. } => None,
        };
        self.taps.values().filter_map(due).min().map(|at| at.saturating_duration_since(now))
    }

    /// A ring has come back from the fabric. Returns whether it was a TAP port's.
    pub(super) fn released(&mut self, released: &Released) -> bool {
        let (port, is_rx) = match released {
            Released::Rx { port, .. } => (*port, true),
            Released::Tx(stopped) => (stopped.port, false),
            Released::Intake(_) | Released::Lane(_) => return false,
        };
        let Some(tap) = self.taps.values_mut().find(|tap| tap.index == port) else { return false };
        if let Phase::Stopping { rx, tx, .. } = &mut tap.phase {
            *(if is_rx { rx } else { tx }) = false;
        }
        true
    }

    /// A worker found a ring of the port broken. Returns whether it is a TAP port.
    pub(super) fn ring_broken(
        &mut self,
        port: PortIndex,
        why: &str,
        fabric: &mut Fabric,
        now: Instant,
    ) -> bool {
        let Some((key, tap)) = self.taps.iter_mut().find(|(_, tap)| tap.index == port) else { return false };
        tap.say(key, &format!("a ring broke ({why}), the port starts anew"));
        tap.stop(fabric, self.pump.as_ref(), now);
        true
    }

    /// Those that the next table has, with the names of their vswitches.
    pub(super) fn ports(&self) -> impl Iterator<Item = (&TapKey, &str, &Tap)> {
        self.taps.iter().filter(|(_, tap)| !tap.leaving).map(|(key, tap)| {
            let vswitch = tap.definition.vswitch.as_str();
            (key, vswitch, tap)
        })
    }

    /// The host port of this vswitch.
    pub(super) fn host_port(&self, vswitch: &str) -> Option<HostShown<'_>> {
        let tap = self.taps.get(&TapKey::Host(vswitch.to_owned())).filter(|tap| !tap.leaving)?;
        Some(HostShown {
            device: &tap.definition.device.name,
            mac: tap.spec.mac,
            is_there: matches!(tap.phase, Phase::Running { .. }),
            numbers: tap.numbers(),
        })
    }

    /// What an emulated NIC's port discarded.
    pub(super) fn discards(&self, key: &InterfaceKey) -> Option<Discards> {
        self.taps.get(&TapKey::Lan(key.clone())).map(|tap| tap.numbers().discards)
    }

    /// Counts from here, at this vswitch or everywhere.
    pub(super) fn clear_numbers(&mut self, vswitch: Option<&str>) {
        let is_meant = |tap: &&mut Tap| vswitch.is_none_or(|name| name == tap.definition.vswitch);
        for tap in self.taps.values_mut().filter(is_meant) {
            tap.baseline = tap.state.stats.snapshot();
        }
    }

    /// Whether an emulated NIC is plugged in: its VMM has the TAP open. Reads a small file of sysfs.
    pub(super) fn is_plugged(&self, key: &InterfaceKey) -> bool {
        self.taps.get(&TapKey::Lan(key.clone())).is_some_and(|tap| {
            matches!(tap.phase, Phase::Running { .. }) && tap::carrier(&tap.definition.device.name)
        })
    }

    fn on_opened(
        &mut self,
        index: PortIndex,
        result: Result<Opened, String>,
        fabric: &mut Fabric,
        now: Instant,
    ) {
        let Some((key, tap)) = self.taps.iter_mut().find(|(_, tap)| tap.index == index) else { return };
        let made = result.and_then(|opened| {
            if tap.leaving {
                return Err("no longer defined".to_owned());
            }
            if self.pump.is_none() {
                let pump = Pump::start(self.control.clone()).map_err(|e| {
                    format!("the thread of TAP ports cannot start: {e}; is io_uring switched off?")
                })?;
                self.pump = Some(pump);
            }
            let pump = self.pump.as_ref().ok_or_else(String::new)?;
            let device = opened.device;
            let (duct, rings) = tap::make_rings(opened, index, pump.wake()).map_err(|e| e.to_string())?;
            pump.add(index, duct);
            Ok((device, rings))
        });
        match made {
            Ok((device, rings)) => {
                let worker = fabric.start_tx(rings.tx);
                tap.phase = Phase::Running { device, worker, rx: rings.rx, checked: now };
                tap.said.clear();
                let Definition { device, vswitch, .. } = &tap.definition;
                tracing::info!("{key}: network device {} is on {vswitch}", device.name);
            }
            Err(why) => {
                tap.say(key, &why);
                tap.phase = Phase::Waiting(now + EVERY);
            }
        }
    }
}

impl Tap {
    /// The port for the next table.
    pub(super) fn port_kind(&self) -> PortKind {
        let rx = match &self.phase {
            Phase::Running { rx, .. } => vec![Some(Arc::clone(rx))],
            _ => Vec::new(),
        };
        PortKind::Guest(GuestPort { rx })
    }

    fn say(&mut self, key: &TapKey, why: &str) {
        if self.said != why && !self.leaving {
            tracing::warn!("{key}: {why}");
            self.said = why.to_owned();
        }
    }

    /// Takes its rings off the switch; it waits to be opened again once everybody has let go.
    fn stop(&mut self, fabric: &mut Fabric, pump: Option<&Pump>, now: Instant) {
        match std::mem::replace(&mut self.phase, Phase::Waiting(now + EVERY)) {
            Phase::Running { worker, rx, .. } => {
                fabric.stop_rx(self.index, 0, rx);
                fabric.stop_tx(worker, self.index, 0);
                let duct = pump.inspect(|pump| pump.remove(self.index)).is_some();
                self.phase = Phase::Stopping { rx: true, tx: true, duct };
            }
            Phase::Waiting(_) => {}
            // What is under way is waited for.
            under_way => self.phase = under_way,
        }
    }

    fn look_after(
        &mut self,
        key: &TapKey,
        helpers: &Helpers,
        opened: &Mailbox<(PortIndex, Result<Opened, String>)>,
        pump: Option<&Pump>,
        fabric: &mut Fabric,
        now: Instant,
    ) {
        match &mut self.phase {
            Phase::Waiting(at) if *at <= now && !self.leaving => {
                self.phase = Phase::Opening;
                let (reply, index) = (opened.reply(), self.index);
                let device = self.definition.device.clone();
                helpers.run(move || reply.send((index, answered(|| tap::open(&device)))));
            }
            Phase::Running { device, checked, .. } if *checked + EVERY <= now => {
                *checked = now;
                let name = &self.definition.device.name;
                if !tap::exists(name, *device) {
                    let why = format!("network device {name} is gone");
                    self.say(key, &why);
                    self.stop(fabric, pump, now);
                }
            }
            Phase::Stopping { rx: false, tx: false, duct: false } => self.phase = Phase::Waiting(now + EVERY),
            _ => {}
        }
    }
}

/// Removes what was made for a definition that is gone.
fn forget_device(helpers: &Helpers, device: TapSpec) {
    helpers.run(move || {
        if let Err(why) = tap::forget(&device) {
            tracing::warn!("{why}");
        }
    });
}

/// The TAP ports of a configuration.
fn wanted(config: &Config) -> BTreeMap<TapKey, Definition> {
    let mut wanted = BTreeMap::new();
    for (guest, network) in config.networks().filter(|(_, n)| n.adaptor == NetworkAdaptor::Lan) {
        let key = InterfaceKey { guest: guest.to_owned(), bus: network.bus, device: network.device };
        let definition = Definition {
            vswitch: network.vswitch.clone(),
            spec: PortSpec::from_config(guest, network),
            device: lan_device(guest, network),
        };
        wanted.insert(TapKey::Lan(key), definition);
    }
    for vswitch in config.vswitches.iter().map(|v| &v.settings).filter(|v| v.host_port) {
        let native = vswitch.uplink.as_ref().and_then(|uplink| config.uplink(uplink).native_vlan);
        let spec = host_spec(config, &vswitch.name, native);
        let device =
            TapSpec { name: vswitch.name.clone(), side: Side::Host(spec.mac), mtu: HOST_MTU, offloads: true };
        let definition = Definition { vswitch: vswitch.name.clone(), spec, device };
        wanted.insert(TapKey::Host(vswitch.name.clone()), definition);
    }
    wanted
}

fn lan_device(guest: &str, network: &NetworkConfig) -> TapSpec {
    TapSpec {
        name: network.tap_name(guest),
        side: Side::Guest { owner: network.socket_owner.clone(), group: network.socket_group.clone() },
        mtu: network.mtu,
        offloads: network.offloads,
    }
}

/// The host on its vswitch: in the untagged network, which the native VLAN is, and in every other VLAN that a port has, by VLAN interfaces on the TAP. It may have
/// bridges and containers behind it, so it is trusted; the addresses of guests stay protected from it all the same.
fn host_spec(config: &Config, vswitch: &str, native: Option<VlanId>) -> PortSpec {
    let ports = || config.networks().filter(|(_, network)| network.vswitch == vswitch);
    let mut trunk: Vec<VlanId> = ports()
        .flat_map(|(_, network)| network.vlan.into_iter().chain(network.trunk.iter().copied()))
        .filter(|vlan| Some(*vlan) != native)
        .collect();
    trunk.sort_unstable_by_key(|vlan| vlan.get());
    trunk.dedup();
    PortSpec {
        guest: format!("host port of {vswitch}"),
        number: 0,
        mac: MacAddr::derived(&format!("host port of {vswitch}"), 0, 0),
        vlan: None,
        trunk,
        ips: Vec::new(),
        trusted: true,
        strict: true,
        isolated: false,
        flood: false,
        mac_limit: avio_proto::config::MAC_LIMIT_MAX,
        mtu: avio_proto::config::MTU_MAX,
        rate_mbps: 0,
        storm_pps: 0,
    }
}
