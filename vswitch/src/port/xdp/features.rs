//! The receive offloads that have to be off for an uplink: how they are, set, and watched (ethtool's generic netlink family, Linux 5.8).
//!
//! Features go by the kernel's names for them. A device is named by its number, for it may be renamed meanwhile. Reading and setting wait for whoever changes
//! a network device just now: helper threads. The monitor never waits. Decides nothing.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use avio_host::genetlink::{Attributes, Family, notifications, number, put, put_nested, text, value};
use rustix::net::{RecvFlags, recv};

use super::sys::set_option;

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
    /// All of them.
    pub const ALL: Self = Self((1 << FEATURES.len()) - 1);
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
        Self(bits & Self::ALL.0)
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

    /// Those of them that are in `other`.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The one that the kernel calls `name`; none if that is another one.
    #[must_use]
    fn named(name: &str) -> Self {
        let bit = FEATURES.iter().position(|(known, _)| *known == name);
        bit.map_or(Self::NONE, |bit| Self(1 << bit))
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

/// `enum` of messages to the kernel, and from it.
const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
const FEATURES_NTF: u8 = 13;
/// Each message begins with it.
const HEADER: u16 = 1;
const HEADER_DEV_INDEX: u16 = 1;
const HEADER_FLAGS: u16 = 3;
/// `ETHTOOL_FLAG_OMIT_REPLY`: whether it worked is enough.
const OMIT_REPLY: u32 = 1 << 1;
/// Bitsets of an answer: what can be changed, was asked for, is in force, can never be changed. The second one is a request's, too.
const HW: u16 = 2;
const WANTED: u16 = 3;
const ACTIVE: u16 = 4;
const NOCHANGE: u16 = 5;
const BITSET_BITS: u16 = 3;
const BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// Which device a message is about.
fn header(index: u32, flags: u32) -> Vec<u8> {
    let (mut inner, mut header) = (Vec::new(), Vec::new());
    put(&mut inner, HEADER_DEV_INDEX, &index.to_ne_bytes());
    put(&mut inner, HEADER_FLAGS, &flags.to_ne_bytes());
    put_nested(&mut header, HEADER, &inner);
    header
}

fn family() -> io::Result<Family> {
    Family::open("ethtool").map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::other("this kernel has no ethtool netlink (CONFIG_ETHTOOL_NETLINK)")
        }
        _ => error,
    })
}

/// How the receive offloads of interface number `index` are.
///
/// # Errors
/// There is no such interface, or the kernel has no ethtool netlink.
pub fn features(index: u32) -> io::Result<FeatureState> {
    features_by(&family()?, index)
}

fn features_by(family: &Family, index: u32) -> io::Result<FeatureState> {
    Ok(parse(&family.ask(FEATURES_GET, &header(index, 0))?))
}

/// What an answer says. A list names the features that are in it, and no others.
fn parse(answer: &[u8]) -> FeatureState {
    let set = |which: u16| {
        let bits = value(answer, which).and_then(|set| value(set, BITSET_BITS)).unwrap_or(&[]);
        let names = Attributes(bits).filter_map(|(_, bit)| value(bit, BIT_NAME)).map(text);
        names.fold(LinkFeatures::NONE, |set, name| set.and(LinkFeatures::named(&name)))
    };
    let (active, can_change) = (set(ACTIVE), set(HW).without(set(NOCHANGE)));
    FeatureState { active, requested: set(WANTED).within(can_change), fixed: active.without(can_change) }
}

/// Asks for exactly `wanted` of the receive offloads, as far as they can be changed; returns what is in force then.
///
/// # Errors
/// What the system says.
pub fn set_features(index: u32, wanted: LinkFeatures) -> io::Result<LinkFeatures> {
    let family = family()?;
    let fixed = features_by(&family, index)?.fixed;
    // What cannot be changed is left out: naming it is an error to some kernels. What became of the rest is what counts.
    family.tell(FEATURES_SET, &request(index, wanted, fixed))?;
    Ok(features_by(&family, index)?.active)
}

fn request(index: u32, wanted: LinkFeatures, fixed: LinkFeatures) -> Vec<u8> {
    let (mut bits, mut set) = (Vec::new(), Vec::new());
    for (number, (name, _)) in FEATURES.iter().enumerate() {
        let feature = LinkFeatures(1 << number);
        if fixed.has(feature) {
            continue;
        }
        let mut bit = Vec::new();
        put(&mut bit, BIT_NAME, &[name.as_bytes(), &[0]].concat());
        if wanted.has(feature) {
            put(&mut bit, BIT_VALUE, &[]);
        }
        put_nested(&mut bits, BITS_BIT, &bit);
    }
    put_nested(&mut set, BITSET_BITS, &bits);
    let mut request = header(index, OMIT_REPLY);
    put_nested(&mut request, WANTED, &set);
    request
}

/// Hears of devices whose features change, whoever changes them.
#[derive(Debug)]
pub struct FeatureMonitor {
    family: Family,
    buffer: Vec<u8>,
}

/// Devices whose features have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// These, by their numbers.
    These(BTreeSet<u32>),
    /// Any: notifications were lost.
    Any,
}

impl Changed {
    /// Whether interface number `index` may be among them.
    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        match self {
            Changed::These(devices) => devices.contains(&index),
            Changed::Any => true,
        }
    }
}

/// Notifications read in one go: a flood of changes does not keep the control thread.
const READS_MAX: usize = 64;
/// The kernel makes no longer one; its beginning says which device it is about.
const NOTIFICATION_LEN: usize = 32 * 1024;

impl FeatureMonitor {
    /// Listens from now on.
    ///
    /// # Errors
    /// What the system says, or the kernel has no ethtool netlink.
    pub fn new() -> io::Result<Self> {
        const SOL_NETLINK: i32 = 270;
        const ADD_MEMBERSHIP: i32 = 1;
        let family = family()?;
        let group = family.group("monitor").ok_or(io::ErrorKind::NotFound)?;
        set_option(family.as_fd(), SOL_NETLINK, ADD_MEMBERSHIP, &group.to_ne_bytes())?;
        Ok(Self { family, buffer: vec![0; NOTIFICATION_LEN] })
    }

    /// What has changed since the last call. Never blocks.
    pub fn changed(&mut self) -> Changed {
        let mut devices = BTreeSet::new();
        for _ in 0..READS_MAX {
            match recv(&self.family, self.buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((_, len)) => devices.extend(told(&self.buffer[..len.min(NOTIFICATION_LEN)])),
                Err(rustix::io::Errno::AGAIN) => return Changed::These(devices),
                Err(rustix::io::Errno::INTR) => {}
                // Some were lost (ENOBUFS).
                Err(_) => return Changed::Any,
            }
        }
        Changed::Any
    }
}

impl AsRawFd for FeatureMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.family.as_fd().as_raw_fd()
    }
}

/// The devices whose features a datagram tells of.
fn told(datagram: &[u8]) -> impl Iterator<Item = u32> {
    let of_features = notifications(datagram).filter(|(command, _)| *command == FEATURES_NTF);
    of_features.filter_map(|(_, body)| Some(number(value(body, HEADER)?, HEADER_DEV_INDEX)? as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loopback device: every kernel has it.
    const LOOPBACK: u32 = 1;

    #[test]
    fn loopback_does_nothing_to_frames() {
        let state = features(LOOPBACK).unwrap();
        assert!(state.active.is_none() && state.requested.is_none() && state.fixed.is_none(), "{state:?}");
        assert!(features(u32::MAX).is_err());
        assert_eq!(FeatureMonitor::new().unwrap().changed(), Changed::These(BTreeSet::new()));
    }

    /// What `ethtool -K e1 rxvlan off` (6.1) sends behind its header, from strace.
    #[test]
    fn the_kernel_is_asked_as_ethtool_asks_it() {
        let mut wanted = vec![0x24, 0, 3, 0x80, 0x20, 0, 3, 0x80, 0x1c, 0, 1, 0x80, 0x15, 0, 2, 0];
        wanted.extend(b"rx-vlan-hw-parse\0\0\0\0");
        let others = LinkFeatures::from_bits(0xff).without(LinkFeatures::RX_VLAN);
        let request = request(7, LinkFeatures::NONE, others);
        assert_eq!(request[..16], [20, 0, 1, 0x80, 8, 0, 1, 0, 7, 0, 0, 0, 8, 0, 3, 0]);
        assert_eq!(request[20..], wanted);
    }

    /// As the kernel answers and notifies: bitsets without a mask, with numbers and names of what is set.
    #[test]
    fn an_answer_is_read_and_a_broken_one_ends_quietly() {
        let set = |which: u16, names: &[&str]| {
            let (mut bits, mut set, mut attribute) = (Vec::new(), Vec::new(), Vec::new());
            for name in names {
                let mut bit = vec![8, 0, 1, 0, 8, 0, 0, 0];
                put(&mut bit, BIT_NAME, &[name.as_bytes(), &[0]].concat());
                put_nested(&mut bits, BITS_BIT, &bit);
            }
            put(&mut set, 1, &[]);
            put(&mut set, 2, &64u32.to_ne_bytes());
            put_nested(&mut set, BITSET_BITS, &bits);
            put_nested(&mut attribute, which, &set);
            attribute
        };
        let answer = [
            header(7, 0),
            set(HW, &["rx-vlan-hw-parse", "rx-gro-hw", "rx-gro"]),
            set(WANTED, &["rx-vlan-hw-parse", "rx-lro"]),
            set(ACTIVE, &["rx-vlan-hw-parse", "rx-lro", "tx-scatter-gather"]),
            set(NOCHANGE, &["netns-local"]),
        ]
        .concat();
        let state = FeatureState {
            active: LinkFeatures::RX_VLAN.and(LinkFeatures::LRO),
            requested: LinkFeatures::RX_VLAN,
            fixed: LinkFeatures::LRO,
        };
        assert_eq!(parse(&answer), state);
        let length = (20 + answer.len() as u32).to_ne_bytes();
        let mut datagram = [&length[..], &[0x15, 0], &[0; 10], &[FEATURES_NTF, 1, 0, 0], &answer].concat();
        assert_eq!(told(&datagram).collect::<Vec<_>>(), [7]);
        for cut in 0..datagram.len() {
            let _ = (parse(&answer[..cut.min(answer.len())]), told(&datagram[..cut]).count());
        }
        datagram[16] = FEATURES_NTF + 1;
        assert_eq!(told(&datagram).count(), 0);
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
