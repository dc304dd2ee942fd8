//! What ethtool tells of a device, and the receive offloads that have to be off for an uplink.
//!
//! By ioctl: the legacy flags know neither GRO-HW nor service tags, so features go by the kernel's names for them. A device whose features are changed is
//! named by its number, for it may be renamed meanwhile. Decides nothing.

use std::io;

use super::sys::{ethtool, interface_name, put};

/// What ethtool says about the driver of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DriverInfo {
    /// The driver's name.
    pub driver: String,
    /// Receive queues in use now (combined or receive channels); 0: not told.
    pub queues: u32,
}

/// Asks for the driver and the number of queues.
///
/// # Errors
/// There is no such interface.
pub fn driver_info(name: &str) -> io::Result<DriverInfo> {
    const GDRVINFO: u32 = 3;
    const GCHANNELS: u32 = 0x3c;
    // `struct ethtool_drvinfo`: command, then the driver in 32 bytes.
    let mut command = [0u8; 256];
    put(&mut command, 0, GDRVINFO.to_ne_bytes());
    ethtool(name, &mut command)?;
    let driver = &command[4..36];
    let end = driver.iter().position(|&b| b == 0).unwrap_or(driver.len());
    let driver = String::from_utf8_lossy(&driver[..end]).into_owned();
    // `struct ethtool_channels`: command, four maxima, then receive, transmit, other, combined.
    let mut channels = [0u8; 64];
    put(&mut channels, 0, GCHANNELS.to_ne_bytes());
    let queues = match ethtool(name, &mut channels) {
        Ok(()) => {
            let word = |at: usize| {
                u32::from_ne_bytes([channels[at], channels[at + 1], channels[at + 2], channels[at + 3]])
            };
            word(20) + word(32)
        }
        Err(_) => 0,
    };
    Ok(DriverInfo { driver, queues })
}

/// A set of the hardware's receive offloads that change frames on their way to us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkFeatures(u8);

/// The kernel's names for them, in the order of the bits, and what a device with one does.
const FEATURES: [(&str, &str); 4] = [
    ("rx-vlan-hw-parse", "takes VLAN tags out (rx-vlan-offload)"),
    ("rx-vlan-stag-hw-parse", "takes service tags out (rx-vlan-stag-hw-parse)"),
    ("rx-lro", "merges segments beyond recognition (large-receive-offload)"),
    ("rx-gro-hw", "merges segments (rx-gro-hw)"),
];

impl LinkFeatures {
    /// None.
    pub const NONE: Self = Self(0);
    /// VLAN tags are taken out.
    pub const RX_VLAN: Self = Self(1);
    /// Segments are merged, and what they were is lost.
    pub const LRO: Self = Self(1 << 2);

    /// As a number, and back.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// See [`bits`](Self::bits); what no feature has is dropped.
    #[must_use]
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & ((1 << FEATURES.len()) - 1))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Whether some of `other` are among them.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// These and `other`.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These without `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The kernel's names for them.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        let named = FEATURES.iter().enumerate().filter(|(bit, _)| self.0 & 1 << bit != 0);
        named.map(|(_, (name, _))| (*name).to_owned()).collect()
    }

    /// What the hardware does with the first of them.
    #[must_use]
    pub fn describe(self) -> &'static str {
        let first = FEATURES.iter().enumerate().find(|(bit, _)| self.0 & 1 << bit != 0);
        first.map_or("does nothing to frames", |(_, (_, does))| does)
    }
}

/// How these offloads are on a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeatureState {
    /// In force.
    pub active: LinkFeatures,
    /// Asked for by the operator, or from the start; those that can be changed.
    pub requested: LinkFeatures,
    /// In force for good.
    pub fixed: LinkFeatures,
}

const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const SFEATURES: u32 = 0x3b;
/// `ETH_SS_FEATURES`.
const SET_FEATURES: u32 = 4;
/// Length of a name (`ETH_GSTRING_LEN`).
const NAME_LEN: usize = 32;
/// Most features that are looked through; there are some sixty.
const NAMES_MAX: usize = 256;

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.first_chunk()).map_or(0, |four| u32::from_ne_bytes(*four))
}

/// Where each of [`FEATURES`] is in the kernel's masks, and how many words those have.
fn positions(name: &str) -> io::Result<([Option<usize>; FEATURES.len()], usize)> {
    // `struct ethtool_sset_info`: command, reserved, mask of sets, then the length of each.
    let mut info = [0u8; 24];
    put(&mut info, 0, GSSET_INFO.to_ne_bytes());
    put(&mut info, 8, (1u64 << SET_FEATURES).to_ne_bytes());
    ethtool(name, &mut info)?;
    let count = (word(&info, 16) as usize).min(NAMES_MAX);
    // `struct ethtool_gstrings`: command, set, length, then the names.
    let mut strings = vec![0u8; 12 + NAMES_MAX * NAME_LEN];
    put(&mut strings, 0, GSTRINGS.to_ne_bytes());
    put(&mut strings, 4, SET_FEATURES.to_ne_bytes());
    put(&mut strings, 8, (count as u32).to_ne_bytes());
    ethtool(name, &mut strings)?;
    let is = |at: usize, wanted: &str| {
        let name = &strings[12 + at * NAME_LEN..12 + (at + 1) * NAME_LEN];
        name.split(|&byte| byte == 0).next() == Some(wanted.as_bytes())
    };
    let found = FEATURES.map(|(wanted, _)| (0..count).find(|&at| is(at, wanted)));
    Ok((found, count.div_ceil(32)))
}

/// How the receive offloads of interface number `index` are.
///
/// # Errors
/// There is no such interface.
pub fn features(index: u32) -> io::Result<FeatureState> {
    let name = interface_name(index)?;
    let (positions, words) = positions(&name)?;
    // `struct ethtool_gfeatures`: command, words; for each word what is available, requested, active, never changed.
    let mut command = vec![0u8; 8 + NAMES_MAX / 32 * 16];
    put(&mut command, 0, GFEATURES.to_ne_bytes());
    put(&mut command, 4, (words as u32).to_ne_bytes());
    ethtool(&name, &mut command)?;
    let mut state = FeatureState::default();
    for (bit, at) in positions.into_iter().enumerate() {
        let Some(at) = at else { continue };
        let is = |which: usize| word(&command, 8 + at / 32 * 16 + which * 4) & 1 << (at % 32) != 0;
        let (available, requested, active, never) = (is(0), is(1), is(2), is(3));
        let can_change = available && !never;
        let feature = LinkFeatures(1 << bit);
        if active {
            state.active = state.active.and(feature);
        }
        if active && !can_change {
            state.fixed = state.fixed.and(feature);
        }
        if requested && can_change {
            state.requested = state.requested.and(feature);
        }
    }
    Ok(state)
}

/// Asks for exactly `wanted` of the receive offloads, as far as they can be changed; returns what is in force then.
///
/// # Errors
/// What the system says.
pub fn set_features(index: u32, wanted: LinkFeatures) -> io::Result<LinkFeatures> {
    let name = interface_name(index)?;
    let (positions, words) = positions(&name)?;
    // `struct ethtool_sfeatures`: command, words; for each word which bits count, and how they are to be.
    let mut command = vec![0u8; 8 + NAMES_MAX / 32 * 8];
    put(&mut command, 0, SFEATURES.to_ne_bytes());
    put(&mut command, 4, (words as u32).to_ne_bytes());
    let fixed = features(index)?.fixed;
    for (bit, at) in positions.into_iter().enumerate() {
        let Some(at) = at.filter(|_| !fixed.has(LinkFeatures(1 << bit))) else { continue };
        for (which, set) in [(0, true), (1, wanted.has(LinkFeatures(1 << bit)))] {
            let at_word = 8 + at / 32 * 8 + which * 4;
            let value = word(&command, at_word) | u32::from(set) << (at % 32);
            put(&mut command, at_word, value.to_ne_bytes());
        }
    }
    // What cannot be changed is told by the answer, not by an error; what became of it is what counts.
    ethtool(&name, &mut command)?;
    Ok(features(index)?.active)
}

/// Speed of the link in Mbit/s (`ETHTOOL_GLINKSETTINGS`); `None`: not told (a link that is down, or a device without a speed).
#[must_use]
pub fn interface_speed_mbps(name: &str) -> Option<u32> {
    const GLINKSETTINGS: u32 = 0x4c;
    /// `link_mode_masks_nwords`; below zero in an answer that only says how many.
    const MASK_WORDS: usize = 15;
    // `struct ethtool_link_settings`, 48 bytes, then three masks; the first call asks how long those are.
    let mut command = [0u8; 48 + 3 * 4 * 127];
    put(&mut command, 0, GLINKSETTINGS.to_ne_bytes());
    ethtool(name, &mut command).ok()?;
    let words = (command[MASK_WORDS] as i8).checked_neg().filter(|&words| words > 0)?;
    command[..].fill(0);
    put(&mut command, 0, GLINKSETTINGS.to_ne_bytes());
    command[MASK_WORDS] = words as u8;
    ethtool(name, &mut command).ok()?;
    let speed = u32::from_ne_bytes([command[4], command[5], command[6], command[7]]);
    (speed != 0 && speed != u32::MAX).then_some(speed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loopback device: every kernel has it, and the same names for all devices.
    const LOOPBACK: u32 = 1;

    #[test]
    fn the_kernel_knows_every_feature_by_its_name() {
        let name = interface_name(LOOPBACK).unwrap();
        let (positions, words) = positions(&name).unwrap();
        assert!(positions.iter().all(Option::is_some), "{positions:?}");
        assert!(words >= 2);
        assert!(features(LOOPBACK).unwrap().active.is_none());
        assert!(features(u32::MAX).is_err());
    }

    #[test]
    fn a_set_goes_through_a_number() {
        let both = LinkFeatures::RX_VLAN.and(LinkFeatures::LRO);
        assert_eq!(LinkFeatures::from_bits(both.bits()), both);
        assert_eq!(LinkFeatures::from_bits(0xf0), LinkFeatures::NONE);
        assert!(both.has(LinkFeatures::LRO) && !LinkFeatures::RX_VLAN.has(LinkFeatures::LRO));
        assert!(LinkFeatures::LRO.describe().contains("large-receive-offload"));
    }
}
