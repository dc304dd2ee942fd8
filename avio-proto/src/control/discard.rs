//! Why a frame did not arrive: one name and one counter per reason.
//!
//! The data path counts by [`DiscardReason::index`] into an array of [`DiscardReason::COUNT`] cells; the control interface
//! reports [`Discards`]. Each discarded frame is counted once, under one reason, at one port: with the eleven counters
//! that makes "taken = delivered + discarded by reason" an identity.

use std::fmt;
use std::ops::{Index, IndexMut};

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Which of a port's two discard counters a reason adds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards the guest: charged to the receiving port.
    Inbound,
    /// From the guest: charged to the sending port.
    Outbound,
}

/// Declares the reasons once: variant, name in JSON, direction, description.
macro_rules! discard_reasons {
    ($($variant:ident, $name:literal, $direction:ident, $about:literal;)*) => {
        /// Why a frame did not arrive.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DiscardReason {
            $(#[doc = $about] $variant,)*
        }

        impl DiscardReason {
            /// Every reason, in the order of [`DiscardReason::index`].
            pub const ALL: [DiscardReason; Self::COUNT] = [$(DiscardReason::$variant,)*];
            /// How many reasons there are: the length of an array of counters.
            pub const COUNT: usize = [$($name,)*].len();

            /// The name in JSON and tables.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(DiscardReason::$variant => $name,)* }
            }

            /// Which of the port's discard counters it adds to.
            #[must_use]
            pub const fn direction(self) -> Direction {
                match self { $(DiscardReason::$variant => Direction::$direction,)* }
            }

            /// One line for operators.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(DiscardReason::$variant => $about,)* }
            }
        }
    };
}

discard_reasons! {
    SpoofedSource, "spoofed_source", Outbound, "Source MAC is not the port's own (strict).";
    ProtectedMac, "protected_mac", Outbound, "Source MAC belongs to a host interface or another guest.";
    MulticastSource, "multicast_source", Outbound, "Source MAC is a group address.";
    ZeroSource, "zero_source", Outbound, "Source MAC is all zero.";
    ControlEthertype, "control_ethertype", Outbound, "Ethertype is reserved for switches (LACP and its kin).";
    LinkLocalDestination, "link_local_destination", Outbound, "Destination is one of 01-80-c2-00-00-00 to 0f.";
    GuestTagged, "guest_tagged", Outbound, "Guest sent a VLAN tag that its port does not allow.";
    IpGuard, "ip_guard", Outbound, "IP source is not one of the port's addresses.";
    ArpGuard, "arp_guard", Outbound, "ARP sender is not the port's MAC and one of its addresses.";
    NdGuard, "nd_guard", Outbound, "Neighbour discovery names an address that is not the port's.";
    BadHeader, "bad_header", Outbound, "virtio-net header is inconsistent with the frame or was not negotiated.";
    HeaderTooLong, "header_too_long", Outbound, "A header that has to be checked ends beyond the inspected bytes.";
    TooShort, "too_short", Outbound, "Frame is shorter than an Ethernet header.";
    TooLong, "too_long", Outbound, "Frame is longer than the port's MTU allows.";
    MalformedChain, "malformed_chain", Outbound, "Descriptor chain cannot hold a frame; the ring stops.";
    NoDestination, "no_destination", Outbound, "No port has the destination, and none asked for unknown frames.";
    Reflected, "reflected", Outbound, "The wire sent a frame back whose source is a guest here.";
    WrongVlan, "wrong_vlan", Outbound, "Frame from the wire has a VLAN that no port is in, or two tags.";
    Isolated, "isolated", Outbound, "Both ports are isolated.";
    RateLimited, "rate_limited", Outbound, "Port sends more than rate_mbps.";
    Storm, "storm", Outbound, "Port sends more broadcast and multicast than storm_pps.";
    MacLimit, "mac_limit", Outbound, "Source MAC cannot be learned: mac_limit reached or table full.";
    NoBuffer, "no_buffer", Inbound, "Guest offered no receive buffer, or the wire's transmit ring is full.";
    ReceiverDown, "receiver_down", Inbound, "Guest's receive ring is stopped or broken.";
    ReceiverMtu, "receiver_mtu", Inbound, "Frame is longer than the receiving port's MTU allows.";
    CannotSegment, "cannot_segment", Inbound, "Receiver lacks an offload that software cannot stand in for.";
}

impl DiscardReason {
    /// Its place in an array of [`DiscardReason::COUNT`] counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The reason that JSON calls `name`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<DiscardReason> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

impl fmt::Display for DiscardReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One count per reason. In JSON an object with every reason's name; when read, missing reasons are 0 and unknown ones
/// (of a newer daemon) are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discards(pub [u64; DiscardReason::COUNT]);

impl Default for Discards {
    fn default() -> Self {
        Discards([0; DiscardReason::COUNT])
    }
}

impl Discards {
    /// Reasons and counts, in order.
    pub fn iter(&self) -> impl Iterator<Item = (DiscardReason, u64)> + '_ {
        DiscardReason::ALL.into_iter().zip(self.0)
    }

    /// Adds `other` reason by reason; counts wrap at 2^64.
    pub fn add(&mut self, other: &Discards) {
        for (to, count) in self.0.iter_mut().zip(other.0) {
            *to = to.wrapping_add(count);
        }
    }

    /// Sum over the reasons of one direction: what the port's discard counter of that direction says.
    #[must_use]
    pub fn total(&self, direction: Direction) -> u64 {
        self.iter().filter(|(reason, _)| reason.direction() == direction).map(|(_, count)| count).sum()
    }
}

impl Index<DiscardReason> for Discards {
    type Output = u64;

    fn index(&self, reason: DiscardReason) -> &u64 {
        &self.0[reason.index()]
    }
}

impl IndexMut<DiscardReason> for Discards {
    fn index_mut(&mut self, reason: DiscardReason) -> &mut u64 {
        &mut self.0[reason.index()]
    }
}

impl Serialize for Discards {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(DiscardReason::COUNT))?;
        for (reason, count) in self.iter() {
            map.serialize_entry(reason.name(), &count)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Discards {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByName;
        impl<'de> Visitor<'de> for ByName {
            type Value = Discards;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of counts by discard reason")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Discards, A::Error> {
                let mut discards = Discards::default();
                while let Some((name, count)) = map.next_entry::<String, u64>()? {
                    if let Some(reason) = DiscardReason::by_name(&name) {
                        discards[reason] = count;
                    }
                }
                Ok(discards)
            }
        }
        deserializer.deserialize_map(ByName)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_follows_the_order_and_names_are_unique() {
        for (position, reason) in DiscardReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), position);
            assert_eq!(DiscardReason::by_name(reason.name()), Some(reason));
        }
    }

    #[test]
    fn json_has_every_reason_and_survives_strangers() {
        let mut discards = Discards::default();
        discards[DiscardReason::NoBuffer] = 3;
        discards[DiscardReason::SpoofedSource] = 2;
        let json = serde_json::to_value(discards).unwrap();
        assert_eq!(json.as_object().unwrap().len(), DiscardReason::COUNT);
        assert_eq!((json["no_buffer"].as_u64(), json["storm"].as_u64()), (Some(3), Some(0)));
        assert_eq!(serde_json::from_value::<Discards>(json).unwrap(), discards);
        let other: Discards =
            serde_json::from_str(r#"{"no_buffer":3,"spoofed_source":2,"of_tomorrow":9}"#).unwrap();
        assert_eq!(other, discards);
        assert_eq!((discards.total(Direction::Inbound), discards.total(Direction::Outbound)), (3, 2));
    }
}
