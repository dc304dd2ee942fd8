//! `-M`: one line per thing, fields separated by colons, for scripts without a JSON reader.

use std::fmt::Write as _;

use avio_proto::control::{Vswitch, VswitchState};

/// The lines; `avio net --help` says which field is which. MAC addresses are in the `0x` form, which has no colons.
#[must_use]
pub fn render(vswitches: &[Vswitch], ports: bool, statistics: bool) -> String {
    let mut text = String::new();
    for vswitch in vswitches {
        let name = &vswitch.name;
        let state = match vswitch.state {
            VswitchState::Up => "Up",
            VswitchState::Down => "Down",
        };
        let _ = writeln!(
            text,
            "vswitch:{name}:{}:{state}:Shared:{}:{}:{}:{}:{}",
            vswitch.number,
            vswitch.uplink.as_deref().unwrap_or(""),
            vswitch.uplink_mac.map_or_else(String::new, |mac| mac.to_hp()),
            vswitch.uplink_ip.as_deref().unwrap_or(""),
            vswitch.max_ports,
            vswitch.configured_ports,
        );
        for port in vswitch.ports.iter().filter(|_| ports) {
            let _ = writeln!(
                text,
                "port:{name}:{}:{}:{}:{}:{}:{}:{}",
                port.number,
                port.state.name(),
                port.adaptor.name(),
                port.untagged_vlanid.map_or_else(|| "none".to_owned(), |id| id.to_string()),
                port.reserved_vms.join(","),
                port.active_vm.as_deref().unwrap_or(""),
                port.mac.map_or_else(String::new, |mac| mac.to_hp()),
            );
            if statistics {
                let counts: Vec<String> =
                    port.counters.named().iter().map(|(_, value)| value.to_string()).collect();
                let _ = writeln!(text, "counters:{name}:{}:{}", port.number, counts.join(":"));
            }
        }
    }
    text
}
