//! The switch as operators see it: vswitches, their ports, states and counters (SEMANTICS 1.3).
//!
//! Pure views over the configuration and the interfaces; called for the control interface, changes nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use avio_host::stats::WorkerTotals;
use avio_proto::config::{NetworkAdaptor, NetworkConfig, NumberedVswitch};
use avio_proto::control::{
    Direction, DiscardEntry, DiscardReason, Discards, HostPort, Port, PortState, StatisticsBucket,
    UplinkReport, Vswitch, VswitchState, WorkerReport,
};

use super::interface::{Interface, InterfaceKey};
use super::sockets::socket_path;
use super::switch::Switch;
use super::taps::Taps;

/// All interfaces by name.
pub(super) type Interfaces = BTreeMap<InterfaceKey, Interface>;

/// One vswitch with its ports.
pub(super) fn vswitch(
    numbered: &NumberedVswitch,
    switch: &Switch,
    wire: Option<UplinkReport>,
    ip: Option<Ipv4Addr>,
) -> Vswitch {
    let settings = &numbered.settings;
    let mut reservations: BTreeMap<u32, Vec<(&str, &NetworkConfig)>> = BTreeMap::new();
    for (guest, network) in switch.config.networks().filter(|(_, network)| network.vswitch == settings.name) {
        reservations.entry(network.port).or_default().push((guest, network));
    }
    let ports: Vec<Port> = reservations
        .into_iter()
        .map(|(number, reserved)| port(number, &reserved, settings.enabled, switch))
        .collect();
    Vswitch {
        name: settings.name.clone(),
        number: numbered.number,
        state: if settings.enabled { VswitchState::Up } else { VswitchState::Down },
        max_ports: settings.max_ports,
        configured_ports: ports.len() as u32,
        uplink: settings.uplink.clone(),
        uplink_mac: wire.as_ref().and_then(|wire| wire.mac),
        uplink_ip: ip.map(|ip| ip.to_string()),
        ports,
        wire,
        host_port: host_port(&settings.name, settings.enabled, &switch.taps),
    }
}

/// The host's own port of a vswitch.
fn host_port(vswitch: &str, enabled: bool, taps: &Taps) -> Option<HostPort> {
    let shown = taps.host_port(vswitch)?;
    let numbers = shown.numbers;
    Some(HostPort {
        device: shown.device.to_owned(),
        state: match (enabled, shown.is_there) {
            (false, _) => PortState::Down,
            (true, true) => PortState::Active,
            (true, false) => PortState::Reserved,
        },
        mac: shown.mac,
        counters: numbers.counters,
        discards: numbers.discards,
    })
}

/// One port. Its numbers are those of all interfaces that reserve it: they follow each other in using it.
fn port(number: u32, reserved: &[(&str, &NetworkConfig)], enabled: bool, switch: &Switch) -> Port {
    let key = |guest: &str, network: &NetworkConfig| InterfaceKey {
        guest: guest.to_owned(),
        bus: network.bus,
        device: network.device,
    };
    let find = |guest: &str, network: &NetworkConfig| switch.interfaces.get(&key(guest, network));
    let active = reserved.iter().find_map(|(guest, network)| {
        find(guest, network).filter(|i| i.is_connected()).map(|i| (*guest, *network, i))
    });
    // An emulated NIC: its VMM has the TAP open. It has no counters (SEMANTICS 1.3).
    let plugged = reserved.iter().copied().find(|(guest, network)| {
        network.adaptor == NetworkAdaptor::Lan && switch.taps.is_plugged(&key(guest, network))
    });
    let shown = active.map(|(guest, network, _)| (guest, network)).or(plugged);
    let active_vm = shown.map(|(guest, _)| guest.to_owned());
    let (shown_guest, shown) = shown.unwrap_or(reserved[0]);
    let mut port = Port {
        number,
        state: match (enabled, active_vm.is_some()) {
            (false, _) => PortState::Down,
            (true, true) => PortState::Active,
            (true, false) => PortState::Reserved,
        },
        active_vm: active_vm.filter(|_| enabled),
        untagged_vlanid: shown.vlan,
        reserved_vms: reserved.iter().map(|(guest, _)| (*guest).to_owned()).collect(),
        adaptor: shown.adaptor,
        mac: Some(active.map_or_else(|| shown.mac_of(shown_guest), |(_, _, i)| i.spec.mac)),
        counters: Default::default(),
        discards: Discards::default(),
        trunk: shown.trunk.clone(),
        mtu: active.map_or(shown.mtu, |(_, _, i)| i.spec.mtu),
        queue_pairs: active.map_or(0, |(_, _, i)| i.enabled_pairs()),
        features: active.and_then(|(_, _, i)| i.features).map(|bits| format!("{bits:#018x}")),
        socket: (shown.adaptor == NetworkAdaptor::AvioLan)
            .then(|| socket_path(&switch.run_dir, shown_guest, shown).display().to_string()),
        link_status: switch.link_status.shown(&key(shown_guest, shown)),
    };
    for interface in reserved.iter().filter_map(|(guest, network)| find(guest, network)) {
        let numbers = interface.numbers();
        port.counters.add(&numbers.counters);
        port.discards.add(&numbers.discards);
    }
    // Of an emulated NIC only what was discarded is shown, as an addition: it has no counters.
    for discards in reserved.iter().filter_map(|(guest, network)| switch.taps.discards(&key(guest, network)))
    {
        port.discards.add(&discards);
    }
    port
}

/// The catalogue of discard reasons with the sums over all interfaces and TAP ports.
pub(super) fn discards(interfaces: &Interfaces, taps: &Taps) -> Vec<DiscardEntry> {
    let mut sum = Discards::default();
    for interface in interfaces.values() {
        sum.add(&interface.numbers().discards);
    }
    for (_, _, tap) in taps.ports() {
        sum.add(&tap.numbers().discards);
    }
    let entry = |(reason, count): (DiscardReason, u64)| DiscardEntry {
        name: reason.name().to_owned(),
        direction: match reason.direction() {
            Direction::Inbound => "inbound".to_owned(),
            Direction::Outbound => "outbound".to_owned(),
        },
        description: reason.description().to_owned(),
        count,
    };
    sum.iter().map(entry).collect()
}

/// What worker number `index` did.
pub(super) fn worker(index: usize, core: Option<u32>, totals: &WorkerTotals) -> WorkerReport {
    let bucket = |(magnitude, &count): (usize, &u64)| StatisticsBucket {
        // Bucket 0 counts 0, bucket n up to 2^n - 1, the last one everything above too.
        up_to: if magnitude + 1 == totals.batch_items.len() { u64::MAX } else { (1 << magnitude) - 1 },
        count,
    };
    WorkerReport {
        index: index as u32,
        core,
        polls: totals.polls,
        empty_polls: totals.empty_polls,
        frames: totals.items,
        batches: totals.batch_items.iter().enumerate().map(bucket).collect(),
        busy_ns: totals.busy_ns,
        sleep_ns: totals.asleep_ns,
        sleeps: totals.sleeps,
        wakeups: totals.wakeups,
        looks: totals.looks,
        armings: totals.armings,
        armings_in_vain: totals.armings_in_vain,
        lock_waits: totals.lock_waits,
        panics: totals.panics,
        broken_rings: totals.broken,
    }
}
