//! The LACPDU (IEEE 802.1AX-2014 §6.4.2).

use std::fmt;

use super::{SUBTYPE_LACP, VERSION, bytes_at, number_at};
use crate::config::MacAddr;

/// Where the TLVs of a version 1 LACPDU stand behind the Ethernet header, with type and length (§6.4.2.3).
const ACTOR: (usize, u8, u8) = (2, 1, 20);
const PARTNER: (usize, u8, u8) = (22, 2, 20);
const COLLECTOR: (usize, u8, u8) = (42, 3, 16);

/// Names a system: priority (lower is better), then address (§6.3.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId {
    /// System priority.
    pub priority: u16,
    /// System address.
    pub mac: MacAddr,
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x},{}", self.priority, self.mac)
    }
}

/// The state octet of actor or partner (§6.4.2.3, figure 6-8).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PortStateBits(pub u8);

impl PortStateBits {
    /// LACP_Activity: sends without being asked.
    pub const ACTIVE: PortStateBits = PortStateBits(1);
    /// LACP_Timeout: wants a PDU each second (short timeout).
    pub const SHORT_TIMEOUT: PortStateBits = PortStateBits(1 << 1);
    /// Aggregation: may be aggregated; else individual.
    pub const AGGREGATION: PortStateBits = PortStateBits(1 << 2);
    /// Synchronization: attached to the right aggregator.
    pub const SYNCHRONIZATION: PortStateBits = PortStateBits(1 << 3);
    /// Collecting: takes frames.
    pub const COLLECTING: PortStateBits = PortStateBits(1 << 4);
    /// Distributing: sends frames.
    pub const DISTRIBUTING: PortStateBits = PortStateBits(1 << 5);
    /// Defaulted: knows nothing of the partner.
    pub const DEFAULTED: PortStateBits = PortStateBits(1 << 6);
    /// Expired: has not heard from the partner in time.
    pub const EXPIRED: PortStateBits = PortStateBits(1 << 7);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn has(self, other: PortStateBits) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets or clears the bits of `other`.
    pub fn set(&mut self, other: PortStateBits, on: bool) {
        if on {
            self.0 |= other.0;
        } else {
            self.0 &= !other.0;
        }
    }

    /// With the bits of `other`, too.
    #[must_use]
    pub const fn with(self, other: PortStateBits) -> PortStateBits {
        PortStateBits(self.0 | other.0)
    }
}

impl fmt::Display for PortStateBits {
    /// The letters of the set bits, as switches print them: `ASGNCD` and so on.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bit = |bits, letter: char| if self.has(bits) { letter } else { '-' };
        let letters = [
            bit(Self::ACTIVE, 'A'),
            bit(Self::SHORT_TIMEOUT, 'T'),
            bit(Self::AGGREGATION, 'G'),
            bit(Self::SYNCHRONIZATION, 'S'),
            bit(Self::COLLECTING, 'C'),
            bit(Self::DISTRIBUTING, 'D'),
            bit(Self::DEFAULTED, 'F'),
            bit(Self::EXPIRED, 'E'),
        ];
        f.pad(&letters.iter().collect::<String>())
    }
}

impl fmt::Debug for PortStateBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What one end says of a port: the Actor or Partner Information TLV.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortInfo {
    /// The system that the port belongs to.
    pub system: SystemId,
    /// Ports with the same key can be aggregated (§6.3.5).
    pub key: u16,
    /// Port priority, lower is better.
    pub port_priority: u16,
    /// Port number, not 0 for a port that exists.
    pub port: u16,
    /// The state octet.
    pub state: PortStateBits,
}

impl PortInfo {
    fn parse(payload: &[u8], (at, kind, len): (usize, u8, u8)) -> Option<PortInfo> {
        if bytes_at(payload, at)? != [kind, len] {
            return None;
        }
        Some(PortInfo {
            system: SystemId {
                priority: number_at(payload, at + 2)?,
                mac: MacAddr(bytes_at(payload, at + 4)?),
            },
            key: number_at(payload, at + 10)?,
            port_priority: number_at(payload, at + 12)?,
            port: number_at(payload, at + 14)?,
            state: PortStateBits(*payload.get(at + 16)?),
        })
    }

    fn write(&self, payload: &mut [u8], (at, kind, len): (usize, u8, u8)) {
        payload[at..at + 2].copy_from_slice(&[kind, len]);
        payload[at + 2..at + 4].copy_from_slice(&self.system.priority.to_be_bytes());
        payload[at + 4..at + 10].copy_from_slice(&self.system.mac.0);
        payload[at + 10..at + 12].copy_from_slice(&self.key.to_be_bytes());
        payload[at + 12..at + 14].copy_from_slice(&self.port_priority.to_be_bytes());
        payload[at + 14..at + 16].copy_from_slice(&self.port.to_be_bytes());
        payload[at + 16] = self.state.0;
    }
}

/// A LACPDU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LacpPdu {
    /// What the sender says of its own port.
    pub actor: PortInfo,
    /// What the sender knows of the receiver's port.
    pub partner: PortInfo,
    /// Longest time for which the sender's collector may hold a frame, in tens of microseconds.
    pub collector_max_delay: u16,
}

impl LacpPdu {
    /// Reads what follows the Ethernet header. Later versions have the TLVs of version 1 in the same places (§6.4.2.3, Version
    /// Number), so any version but 0 is read; reserved fields are ignored. A PDU without the collector's TLV is not.
    pub(super) fn parse(payload: &[u8]) -> Option<LacpPdu> {
        let [subtype, version] = bytes_at(payload, 0)?;
        let (at, kind, len) = COLLECTOR;
        if subtype != SUBTYPE_LACP || version == 0 || bytes_at(payload, at)? != [kind, len] {
            return None;
        }
        Some(LacpPdu {
            actor: PortInfo::parse(payload, ACTOR)?,
            partner: PortInfo::parse(payload, PARTNER)?,
            collector_max_delay: number_at(payload, at + 2)?,
        })
    }

    /// Writes it over `payload`, which is all zero: the terminator and the reserved fields are.
    pub(super) fn write(&self, payload: &mut [u8]) {
        payload[..2].copy_from_slice(&[SUBTYPE_LACP, VERSION]);
        self.actor.write(payload, ACTOR);
        self.partner.write(payload, PARTNER);
        let (at, kind, len) = COLLECTOR;
        payload[at..at + 2].copy_from_slice(&[kind, len]);
        payload[at + 2..at + 4].copy_from_slice(&self.collector_max_delay.to_be_bytes());
    }
}
