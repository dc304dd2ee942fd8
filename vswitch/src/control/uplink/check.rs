//! Whether the network devices that a configuration names may be uplinks, and whether the names of host ports are free: at start, at a reload, and for `--check`. Changes nothing.
//!
//! Each refusal is one line that names the device and the way out; an aggregate with one bad member is refused whole.

use std::io;

use avio_host::inject;
use avio_host::links::{Link, Links};
use avio_proto::config::{Config, UplinkAccess, UplinkConfig};

use super::Uplinks;
use super::definition::{members_of, wanted};
use super::owner::Owned;
use crate::port::xdp::{
    LinkFeatures, driver_info, features, interface_capable_of_less_mbps, interface_speed_mbps,
};

/// Slowest device that is an uplink without being asked for, in Mbit/s (SEMANTICS 3.4: no 100 Mbit/s cards).
const SPEED_MIN: u32 = 1000;
/// What is wrong with cards that are never fast enough.
const SLOW_CARD: &str = "its cards have 100 Mbit/s or less, use a faster one";
/// Drivers whose devices cannot be an uplink, and what to do instead.
const DENIED: &[(&str, &str)] = &[
    ("bonding", "name its members in an [[aggregate]]"),
    ("team", "name its members in an [[aggregate]]"),
    ("bridge", "name the device behind the bridge"),
    ("openvswitch", "name the device behind the switch"),
    ("802.1Q VLAN Support", "name the device that it sits on, and give ports a `vlan`"),
    ("8139too", SLOW_CARD),
    ("8139cp", SLOW_CARD),
    ("e100", SLOW_CARD),
    // Of these the kernel tells no link modes, or the wrong ones.
    ("ne2k-pci", SLOW_CARD),
    ("pcnet32", SLOW_CARD),
    ("tulip", SLOW_CARD),
];
/// Kind of a device that a host port can be.
const TAP: &str = "tun";
/// Kinds of devices that take the frames of their members for themselves.
const MASTERS: &[&str] = &["bond", "team", "bridge", "openvswitch"];

/// Who asks.
#[derive(Clone, Copy)]
enum Asker<'a> {
    /// The daemon, which has or waits for some devices already.
    Daemon { knows: &'a dyn Fn(&str) -> bool },
    /// `--check`: a daemon that runs may have them.
    Check,
}

impl Uplinks {
    /// Whether the devices that `config` names are there and may be uplinks: what is wrong, a line each.
    pub(in crate::control) fn check(&mut self, config: &Config) -> Vec<String> {
        self.on_links();
        let knows = |member: &str| self.knows(member) || self.closing.has(member);
        check(config, &self.links, Asker::Daemon { knows: &knows })
    }

    fn knows(&self, member: &str) -> bool {
        self.uplinks.values().flat_map(|uplink| &uplink.members).any(|known| known.name == member)
    }
}

/// What is wrong with the devices that `config` names, a line each: for `--check`, beside a daemon that may run.
///
/// # Errors
/// The interfaces cannot be asked for.
pub(in crate::control) fn check_devices(config: &Config) -> io::Result<Vec<String>> {
    Ok(check(config, &Links::new()?, Asker::Check))
}

/// What is wrong with the devices of `config`, a line each.
fn check(config: &Config, links: &Links, asker: Asker<'_>) -> Vec<String> {
    let mut errors = Vec::new();
    for (vswitch, uplink) in wanted(config) {
        for member in members_of(config, &uplink.name) {
            let is_known = matches!(asker, Asker::Daemon { knows } if knows(&member));
            let outcome = match links.named(&member) {
                // A device that was lost is waited for; a new one must be there.
                None if is_known => Ok(()),
                None => {
                    Err(format!("there is no network device `{member}`; `ip link` lists those there are"))
                }
                Some(link) => able(link, &uplink)
                    .and_then(|()| if is_known { Ok(()) } else { free(link, links, &uplink, asker) }),
            };
            if let Err(why) = outcome {
                let whole = if member == uplink.name {
                    String::new()
                } else {
                    format!("aggregate `{}`: ", uplink.name)
                };
                errors.push(format!("vswitches.toml: vswitch `{vswitch}`: uplink: {whole}{why}"));
            }
        }
    }
    for vswitch in config.vswitches.iter().filter(|vswitch| vswitch.settings.host_port) {
        let name = &vswitch.settings.name;
        let other = links.named(name).filter(|link| link.kind.as_deref() != Some(TAP));
        if other.is_some() {
            errors.push(format!(
                "vswitches.toml: vswitch `{name}`: host_port: the host port is called like the vswitch, and there is another network device `{name}`; rename one of them"
            ));
        }
    }
    errors
}

/// Whether `link` can be an uplink at all.
fn able(link: &Link, config: &UplinkConfig) -> Result<(), String> {
    let name = &link.name;
    if !link.is_ethernet {
        return Err(format!("`{name}` is no Ethernet device; name one that is"));
    }
    let driver = driver_info(name).map(|info| info.driver).unwrap_or_default();
    if let Some((_, instead)) = DENIED.iter().find(|(denied, _)| *denied == driver) {
        return Err(format!("`{name}` has driver {driver} and cannot be an uplink; {instead}"));
    }
    if driver == "tun" && !config.allow_slow {
        return Err(format!(
            "`{name}` is a TAP; guests with one get a port of adaptor lan, and as a wire it needs `allow_slow = true` in its [[uplink]]"
        ));
    }
    let speed = interface_speed_mbps(name).or_else(|| interface_capable_of_less_mbps(name));
    if let Some(speed) = speed.filter(|&speed| speed < SPEED_MIN && !config.allow_slow) {
        return Err(format!(
            "`{name}` has {speed} Mbit/s, an uplink needs {SPEED_MIN}; use a faster one, or set `allow_slow = true` in its [[uplink]]"
        ));
    }
    let mut fixed = features(link.index).map(|state| state.fixed).unwrap_or_default();
    for (what, feature) in
        [("uplink::vlan_fixed", LinkFeatures::RX_VLAN), ("uplink::lro_fixed", LinkFeatures::LRO)]
    {
        if inject::happens(what) {
            fixed = fixed.and(feature);
        }
    }
    match refusal(fixed, config.access) {
        Some(why) => Err(format!("`{name}`: {why}")),
        None => Ok(()),
    }
}

/// Why a device that does `on` to frames for good cannot be opened like that. With a packet socket the kernel tells of the tag that was taken out, and of what
/// was merged; what LRO merged it cannot tell.
pub(super) fn refusal(on: LinkFeatures, access: UplinkAccess) -> Option<String> {
    let does = on.describe();
    if on.has(LinkFeatures::LRO) {
        let does = LinkFeatures::LRO.describe();
        return Some(format!("its hardware {does} and that cannot be switched off; use another device"));
    }
    let is_refused = !on.is_none() && access != UplinkAccess::Packet;
    is_refused.then(|| {
        format!(
            "its hardware {does} and that cannot be switched off; use another device, or set `access = \"packet\"` in its [[uplink]]"
        )
    })
}

/// Whether nobody else has `link`.
fn free(link: &Link, links: &Links, config: &UplinkConfig, asker: Asker<'_>) -> Result<(), String> {
    let name = &link.name;
    let master = link.master.and_then(|index| links.numbered(index));
    let taker = master.filter(|master| master.kind.as_deref().is_some_and(|kind| MASTERS.contains(&kind)));
    if let Some(master) = taker {
        let how = match master.kind.as_deref() {
            Some("openvswitch") => format!("ovs-vsctl del-port {name}"),
            _ => format!("ip link set dev {name} nomaster"),
        };
        let master = &master.name;
        return Err(format!("`{name}` belongs to `{master}`; take it out (`{how}`), or name another device"));
    }
    if let Err(why) = Owned::take(link.index, name) {
        // The daemon that runs with these files, most likely; so is its program.
        return if matches!(asker, Asker::Check) { Ok(()) } else { Err(why) };
    }
    match link.xdp_program {
        Some(id) if config.access != UplinkAccess::Packet => Err(format!(
            "`{name}` has an XDP program of somebody else, number {id}; end what attached it, detach it (`ip link set dev {name} xdp off`), or set `access = \"packet\"` in its [[uplink]]"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_of_slow_cards_and_of_what_has_members_are_denied() {
        // All but 8139too are met in a guest (tests/uplink_drivers): QEMU has no card that it takes.
        for driver in ["8139too", "8139cp", "e100", "bonding", "team", "bridge", "openvswitch"] {
            assert!(
                DENIED.iter().any(|(denied, instead)| *denied == driver && !instead.is_empty()),
                "{driver}"
            );
        }
    }

    #[test]
    fn what_is_fixed_on_is_refused_with_the_way_out() {
        let of = |on, access| refusal(on, access);
        assert_eq!(of(LinkFeatures::NONE, UplinkAccess::Auto), None);
        let vlan = of(LinkFeatures::RX_VLAN, UplinkAccess::Generic).unwrap();
        assert!(vlan.contains("rx-vlan-offload") && vlan.contains("access = \"packet\""), "{vlan}");
        assert_eq!(of(LinkFeatures::RX_VLAN, UplinkAccess::Packet), None);
        let lro = of(LinkFeatures::LRO.and(LinkFeatures::RX_VLAN), UplinkAccess::Packet).unwrap();
        assert!(lro.contains("large-receive-offload") && !lro.contains("packet"), "{lro}");
    }
}
