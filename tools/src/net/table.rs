//! The tables of SEMANTICS 1.3, byte for byte, and the statistics of the seed's Figure 3 in its order.

use std::fmt::Write as _;

use avio_proto::config::NetworkAdaptor;
use avio_proto::control::{
    Counters, Discards, HostPort, OffloadedTo, Port, PortState, SentBy, UplinkReport, Vswitch, VswitchState,
};

/// Width of a label in the statistics: that of the longest, `Inbound Non-Unicast Pkts (local)`.
const LABEL_WIDTH: usize = 32;

/// One row; the last cell is not padded and trailing blanks are cut, as in the original's tables.
fn row(text: &mut String, cells: &[(&str, usize, bool)]) {
    let mut line = String::new();
    for (position, (cell, width, right)) in cells.iter().enumerate() {
        if position > 0 {
            line.push(' ');
        }
        let _ = if *right { write!(line, "{cell:>width$}") } else { write!(line, "{cell:<width$}") };
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// The table of vswitches. A column grows only for a value that does not fit.
#[must_use]
pub fn summary(vswitches: &[Vswitch]) -> String {
    let rows: Vec<[String; 7]> = vswitches
        .iter()
        .map(|vswitch| {
            let state = match vswitch.state {
                VswitchState::Up => "Up",
                VswitchState::Down => "Down",
            };
            [
                vswitch.name.clone(),
                vswitch.number.to_string(),
                state.into(),
                "Shared".into(),
                vswitch.uplink.clone().unwrap_or_default(),
                vswitch.uplink_mac.map_or("N/A".into(), |mac| mac.to_hp()),
                vswitch.uplink_ip.clone().unwrap_or("N/A".into()),
            ]
        })
        .collect();
    let heads = ["Name", "Number", "State", "Mode", "NamePPA", "MAC Address", "IP Address"];
    let mut widths = [8, 6, 7, 9, 8, 14, 15];
    for cells in &rows {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    let mut line = |cells: [&str; 7], numbers_right: bool| {
        let cells: Vec<_> = cells
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(at, (cell, width))| (*cell, width, numbers_right && at == 1))
            .collect();
        row(&mut text, &cells);
    };
    line(heads, false);
    let rules: Vec<String> = widths.iter().map(|width| "=".repeat(*width)).collect();
    line(std::array::from_fn(|at| rules[at].as_str()), false);
    for cells in &rows {
        line(std::array::from_fn(|at| cells[at].as_str()), true);
    }
    text
}

/// The VLAN of untagged frames, or `none`.
fn vlan(port: &Port) -> String {
    port.untagged_vlanid.map_or_else(|| "none".to_owned(), |id| id.to_string())
}

/// `[Port Configuration Details]` of a vswitch.
#[must_use]
pub fn ports(vswitch: &Vswitch) -> String {
    const WIDTHS: [usize; 6] = [7, 12, 8, 8, 12, 12];
    let mut text = String::from("[Port Configuration Details]\n");
    let mut line = |cells: [&str; 6]| {
        let cells: Vec<_> = cells.iter().zip(WIDTHS).map(|(cell, width)| (*cell, width, false)).collect();
        row(&mut text, &cells);
    };
    line(["Port", "Port", "Port", "Untagged", "Number of", "Active VM"]);
    line(["Number", "State", "Adaptor", "VLANID", "Reserved VMs", ""]);
    let rules = WIDTHS.map(|width| "=".repeat(width));
    line(std::array::from_fn(|at| rules[at].as_str()));
    for port in &vswitch.ports {
        line([
            &port.number.to_string(),
            port.state.name(),
            port.adaptor.name(),
            &vlan(port),
            &port.reserved_vms.len().to_string(),
            port.active_vm.as_deref().unwrap_or(""),
        ]);
    }
    text
}

/// Figure 3: a block of labelled lines for each vswitch and port. `verbose` adds what the original did not have.
#[must_use]
pub fn details(vswitches: &[Vswitch], statistics: bool, verbose: bool) -> String {
    let mut text = String::new();
    for (position, vswitch) in vswitches.iter().enumerate() {
        if position > 0 {
            text.push('\n');
        }
        labelled(&mut text, "Vswitch Name", &vswitch.name);
        labelled(&mut text, "Max Number of Ports", &vswitch.max_ports);
        labelled(&mut text, "Configured Ports", &vswitch.configured_ports);
        if verbose && let Some(wire) = &vswitch.wire {
            wire_details(&mut text, vswitch.uplink.as_deref().unwrap_or(""), wire, statistics);
        }
        if verbose && let Some(host) = &vswitch.host_port {
            host_details(&mut text, host, statistics);
        }
        for port in &vswitch.ports {
            text.push('\n');
            port_details(&mut text, port, statistics, verbose);
        }
    }
    text
}

fn labelled(text: &mut String, label: &str, value: &dyn std::fmt::Display) {
    let line = format!("{label:<LABEL_WIDTH$} : {value}");
    text.push_str(line.trim_end());
    text.push('\n');
}

/// The wire: what was negotiated with each device, and, with statistics, what became of frames (inbound: sent to the wire).
fn wire_details(text: &mut String, name: &str, wire: &UplinkReport, statistics: bool) {
    text.push('\n');
    labelled(text, "Uplink", &name);
    labelled(text, "Mac Address", &wire.mac.map_or("none".to_owned(), |mac| mac.to_string()));
    labelled(text, "Uplink MTU", &wire.mtu);
    labelled(text, "Native VlanId", &wire.native_vlan.map_or("none".to_owned(), |vlan| vlan.to_string()));
    for member in &wire.members {
        labelled(text, "Device", &member.name);
        labelled(text, "Device State", &member.state);
        labelled(text, "MTU", &member.mtu);
        let access = match member.access.as_deref() {
            Some("packet") => "packet socket",
            Some("generic") => "AF_XDP, generic",
            Some("copy") => "AF_XDP, native, copy",
            Some(_) => "AF_XDP, native, zero-copy",
            None => "none",
        };
        labelled(text, "Access", &access);
        labelled(text, "Queues", &member.queues);
        labelled(
            text,
            "Ring Size",
            &if member.ring_size == 0 { "none".to_owned() } else { member.ring_size.to_string() },
        );
        for (label, has) in [
            ("Multi-Buffer", member.multi_buffer),
            ("Need Wakeup", member.need_wakeup),
            ("Busy Polling", member.busy_poll),
            ("VLAN Metadata", member.vlan_metadata),
        ] {
            labelled(text, label, &if has { "yes" } else { "no" });
        }
        let sent_by = match member.sent_by {
            Some(SentBy::Burst) if member.xdp_frames => {
                "bursts of a program, as XDP frames where the other end takes them"
            }
            Some(SentBy::Burst) => "bursts of a program",
            Some(SentBy::Ring) => "AF_XDP ring",
            Some(SentBy::Socket) => "packet socket",
            None => "none",
        };
        labelled(text, "Frames Sent By", &sent_by);
        let by = |who: Option<OffloadedTo>| match who {
            Some(OffloadedTo::Switch) => "switch",
            Some(OffloadedTo::Kernel) => "kernel",
            Some(OffloadedTo::Device) => "device",
            None => "none",
        };
        labelled(text, "Segments Cut By", &by(member.segments_by));
        labelled(text, "Checksums Filled In By", &by(member.checksums_by));
        // For receiving the kernel has none (Linux 6.18).
        let transmit = member.checksums_by == Some(OffloadedTo::Device);
        labelled(text, "Checksum Metadata", &if transmit { "transmit" } else { "none" });
        let off = &member.switched_off;
        labelled(text, "Switched Off", &if off.is_empty() { "none".to_owned() } else { off.join(" ") });
        for remark in &member.remarks {
            labelled(text, "Remark", remark);
        }
    }
    if statistics {
        counter_details(text, &wire.counters);
        discard_details(text, &wire.discards);
    }
}

fn counter_details(text: &mut String, counters: &Counters) {
    for ((_, value), label) in counters.named().into_iter().zip(COUNTER_LABELS) {
        labelled(text, label, &value);
    }
}

fn discard_details(text: &mut String, discards: &Discards) {
    for (reason, count) in discards.iter() {
        labelled(text, &format!("Discards {}", reason.name()), &count);
    }
}

/// The host's own port (inbound: delivered to the host).
fn host_details(text: &mut String, host: &HostPort, statistics: bool) {
    text.push('\n');
    labelled(text, "Host Port", &host.device);
    labelled(text, "Port State", &host.state.name());
    labelled(text, "Mac Address", &host.mac);
    if statistics {
        counter_details(text, &host.counters);
        discard_details(text, &host.discards);
    }
}

fn port_details(text: &mut String, port: &Port, statistics: bool, verbose: bool) {
    labelled(text, "Port Number", &port.number);
    labelled(text, "Port State", &port.state.name());
    labelled(text, "Active VM", &port.active_vm.as_deref().unwrap_or(""));
    labelled(text, "Untagged VlanId", &vlan(port));
    labelled(text, "Reserved VMs", &port.reserved_vms.join(" "));
    labelled(text, "Adaptor", &port.adaptor.name());
    // As in the figure: a port that is not an active AVIO port has no statistics.
    let counted = port.adaptor == NetworkAdaptor::AvioLan && port.state == PortState::Active;
    if statistics && counted {
        counter_details(text, &port.counters);
    }
    if verbose {
        let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(",") };
        labelled(text, "Mac Address", &port.mac.map_or("none".to_owned(), |mac| mac.to_string()));
        labelled(text, "Tagged VlanIds", &list(port.trunk.iter().map(ToString::to_string).collect()));
        labelled(text, "MTU", &port.mtu);
        labelled(text, "Queue Pairs", &port.queue_pairs);
        labelled(text, "Features", &port.features.as_deref().unwrap_or("none"));
        labelled(text, "Link Status", &port.link_status.map_or("not available", |link| link.name()));
        labelled(text, "Socket", &port.socket.as_deref().unwrap_or("none"));
    }
    // Of an emulated NIC the figure has nothing; why its frames were discarded is an addition.
    if verbose && statistics && (counted || port.adaptor == NetworkAdaptor::Lan) {
        discard_details(text, &port.discards);
    }
}

/// Figure 3's names of the eleven counters, in the order of `Counters::named`.
const COUNTER_LABELS: [&str; 11] = [
    "Inbound Octets",
    "Inbound Unicast Pkts (wire)",
    "Inbound Unicast Pkts (local)",
    "Inbound Non-Unicast Pkts (wire)",
    "Inbound Non-Unicast Pkts (local)",
    "Inbound Discards",
    "Outbound Octets",
    "Outbound Unicast Pkts (wire)",
    "Outbound Unicast Pkts (local)",
    "Outbound Non-Unicast Pkts",
    "Outbound Discards",
];
