//! Ethernet addresses as operators write them and as the switch compares them.
//!
//! Used by the configuration, the control interface and the data path. Does not know which addresses are allowed where:
//! that is the loader's and the guard's business.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 48-bit Ethernet address in transmission order.
///
/// Read from `aa:bb:cc:00:11:22`, `aa-bb-cc-00-11-22` and `0xaabbcc001122` (any case; the last two are the forms of
/// Integrity VM), always printed in lower case with colons.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

/// Why a text is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a MAC address; write six hexadecimal pairs, such as 1e:29:8c:88:a5:eb")]
pub struct MacError(String);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// Whether the group bit (IEEE 802.3 clause 3.2.3, bit 0 of the first octet) is set: multicast and broadcast.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether this is the broadcast address.
    #[must_use]
    pub const fn is_broadcast(self) -> bool {
        matches!(self.0, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
    }

    /// Whether all octets are zero, which no station may use.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// Whether the local bit (bit 1 of the first octet) is set: not assigned by a manufacturer.
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.0[0] & 2 != 0
    }

    /// Whether this is one of 01-80-C2-00-00-00 to 0F, which a bridge never forwards (IEEE 802.1Q table 8-1).
    #[must_use]
    pub const fn is_link_local_destination(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0, 0, low] if low & 0xf0 == 0)
    }

    /// The address as a number, first octet most significant: a key for tables.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The stable address of an interface whose definition names none: local, unicast, made from the guest's name and
    /// the interface's bus and device (FNV-1a), so it survives restarts and moves between hosts. Two guests can in
    /// principle collide (46 bits); the loader then reports the duplicate like any other.
    #[must_use]
    pub fn derived(guest: &str, bus: u8, device: u8) -> MacAddr {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let mut hash = OFFSET;
        for byte in guest.bytes().chain([0, bus, device]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        let folded = hash ^ (hash >> 48);
        let [_, _, a, b, c, d, e, f] = folded.to_be_bytes();
        MacAddr([(a & 0xfc) | 0x02, b, c, d, e, f])
    }

    /// The form of Integrity VM's tables: `0x` and twelve lower-case digits.
    #[must_use]
    pub fn to_hp(self) -> String {
        format!("0x{:012x}", self.to_u64())
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let bad = || MacError(text.chars().take(40).collect());
        let digits: String = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => digits.to_owned(),
            None => {
                let separator = if text.contains('-') { '-' } else { ':' };
                let pairs: Vec<&str> = text.split(separator).collect();
                if pairs.len() != 6 || pairs.iter().any(|pair| pair.len() != 2) {
                    return Err(bad());
                }
                pairs.concat()
            }
        };
        if digits.len() != 12 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let number = u64::from_str_radix(&digits, 16).map_err(|_| bad())?;
        let [_, _, a, b, c, d, e, f] = number.to_be_bytes();
        Ok(MacAddr([a, b, c, d, e, f]))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_spellings_one_address() {
        let wanted = MacAddr([0xaa, 0xbb, 0xcc, 0x00, 0x11, 0x22]);
        for text in ["aa:bb:cc:00:11:22", "AA-BB-CC-00-11-22", "0xaabbcc001122", "0XAABBCC001122"] {
            assert_eq!(text.parse::<MacAddr>(), Ok(wanted), "{text}");
        }
        assert_eq!(wanted.to_string(), "aa:bb:cc:00:11:22");
        assert_eq!(wanted.to_hp(), "0xaabbcc001122");
        assert_eq!(wanted.to_u64(), 0xaabb_cc00_1122);
    }

    #[test]
    fn wrong_spellings_are_named() {
        for text in [
            "",
            "aa:bb:cc:00:11",
            "aa:bb:cc:00:11:2g",
            "aa:bb-cc:00:11:22",
            "0xaabbcc0011",
            "+a:bb:cc:00:11:22",
        ] {
            let error = text.parse::<MacAddr>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("1e:29:8c:88:a5:eb"), "{error}");
        }
    }

    #[test]
    fn kinds_of_address() {
        assert!(MacAddr::BROADCAST.is_broadcast() && MacAddr::BROADCAST.is_multicast());
        assert!(MacAddr([0x33, 0x33, 0, 0, 0, 1]).is_multicast());
        assert!(MacAddr([0; 6]).is_zero() && !MacAddr([0, 0, 0, 0, 0, 1]).is_zero());
        assert!(
            MacAddr([0x1e, 0, 0, 0, 0, 1]).is_local() && !MacAddr([0x00, 0x16, 0x3e, 0, 0, 1]).is_local()
        );
        assert!(MacAddr([1, 0x80, 0xc2, 0, 0, 2]).is_link_local_destination());
        assert!(!MacAddr([1, 0x80, 0xc2, 0, 0, 0x21]).is_link_local_destination());
    }

    #[test]
    fn derived_addresses_are_stable_local_unicast_and_differ() {
        let mac = MacAddr::derived("guest1", 0, 5);
        assert_eq!(mac, MacAddr::derived("guest1", 0, 5));
        assert!(mac.is_local() && !mac.is_multicast());
        assert_ne!(mac, MacAddr::derived("guest1", 0, 6));
        assert_ne!(mac, MacAddr::derived("guest2", 0, 5));
        assert_ne!(mac, MacAddr::derived("guest1", 5, 0));
    }
}
