//! How a device was that the operator named for an emulated NIC, before the switch took it over; and putting it back.
//!
//! Kept as the alias of the macvtap on it, which lives exactly as long as the switch has the device: through restarts and deaths of the daemon. Used by `open`,
//! on a helper thread. Knows nothing of devices that are made here: those go with their definition.

use std::fs;
use std::io;

use super::link;

/// What stands in front of it. An alias has less than 256 bytes (`IFALIASZ`).
const MARK: &str = "avio-vswitchd, before:";

/// Files below /proc/sys/net with a setting of the device each, and its name.
const SETTINGS: [(&str, &str); 3] = [
    ("addr_gen_mode", "ipv6/conf/{}/addr_gen_mode"),
    ("disable_ipv6", "ipv6/conf/{}/disable_ipv6"),
    ("rp_filter", "ipv4/conf/{}/rp_filter"),
];

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Former {
    up: bool,
    arp: bool,
    /// As [`SETTINGS`] has them; `None`: the kernel has no such setting.
    settings: [Option<i32>; 3],
}

impl Former {
    /// The device `name` as it is now.
    ///
    /// # Errors
    /// It is gone.
    pub(super) fn of(name: &str) -> io::Result<Self> {
        let (up, arp) = link::up_and_arp(name).ok_or(io::ErrorKind::NotFound)?;
        let read = |(_, file): (&str, &str)| fs::read_to_string(path(file, name)).ok()?.trim().parse().ok();
        Ok(Self { up, arp, settings: SETTINGS.map(read) })
    }

    /// As an alias.
    pub(super) fn to_alias(&self) -> String {
        let mut text = format!("{MARK} up={} arp={}", u8::from(self.up), u8::from(self.arp));
        for ((name, _), value) in SETTINGS.iter().zip(self.settings) {
            if let Some(value) = value {
                text += &format!(" {name}={value}");
            }
        }
        text
    }

    /// Out of the alias of a macvtap; `None`: it tells of nothing.
    pub(super) fn from_alias(alias: &str) -> Option<Self> {
        let fields = alias.strip_prefix(MARK)?;
        let value = |wanted: &str| {
            let mut fields = fields.split_whitespace().filter_map(|field| field.split_once('='));
            fields.find(|(name, _)| *name == wanted)?.1.parse::<i32>().ok()
        };
        let settings = SETTINGS.map(|(name, _)| value(name));
        Some(Self { up: value("up")? != 0, arp: value("arp")? != 0, settings })
    }

    /// Makes the device `name` what it was. What was changed meanwhile by others is lost.
    ///
    /// # Errors
    /// The first thing that the kernel refuses; the rest is done.
    pub(super) fn put_back(&self, name: &str) -> io::Result<()> {
        let mut outcome = Ok(());
        for ((_, file), value) in SETTINGS.iter().zip(self.settings) {
            if let Some(value) = value {
                outcome = outcome.and(fs::write(path(file, name), value.to_string()));
            }
        }
        let index = link::index_of(name).ok_or(io::ErrorKind::NotFound)?;
        outcome.and(link::set_up_and_arp(index, self.up, self.arp))
    }
}

fn path(file: &str, name: &str) -> String {
    format!("/proc/sys/net/{}", file.replace("{}", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_tells_what_was() {
        for former in [
            Former { up: true, arp: true, settings: [Some(0), Some(0), Some(2)] },
            Former { up: false, arp: false, settings: [None, None, Some(1)] },
        ] {
            let alias = former.to_alias();
            assert!(alias.len() < 256, "{alias}");
            assert_eq!(Former::from_alias(&alias), Some(former));
        }
        for other in ["", "avio-vswitchd", "avio-vswitchd, before: up=1", "uplink of somebody"] {
            assert_eq!(Former::from_alias(other), None, "{other}");
        }
    }
}
