//! What this host has that a configuration is checked against: its interfaces' addresses and its cores.

use std::fs;
use std::path::Path;

use avio_proto::config::{Capabilities, MacAddr, Surroundings};

/// Where the kernel lists its network devices.
const SYS_CLASS_NET: &str = "/sys/class/net";

/// This host, for a daemon that can do `capabilities`.
#[must_use]
pub fn surroundings(capabilities: Capabilities) -> Surroundings {
    let cores = core_affinity::get_core_ids()
        .map(|ids| ids.into_iter().filter_map(|core| u32::try_from(core.id).ok()).collect());
    Surroundings { host_macs: host_macs(Path::new(SYS_CLASS_NET)), cores, capabilities }
}

/// Interfaces and their addresses, sorted by name. One that vanishes meanwhile or has no Ethernet address is left out.
pub(super) fn host_macs(sys_class_net: &Path) -> Vec<(String, MacAddr)> {
    let Ok(entries) = fs::read_dir(sys_class_net) else { return Vec::new() };
    let mut macs: Vec<(String, MacAddr)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let mac: MacAddr = fs::read_to_string(entry.path().join("address")).ok()?.trim().parse().ok()?;
            (!mac.is_zero()).then(|| (entry.file_name().to_string_lossy().into_owned(), mac))
        })
        .collect();
    macs.sort();
    macs
}
