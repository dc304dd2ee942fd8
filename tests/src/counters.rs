//! The numbers of `avio net -S NAME -A --json`, read strictly as INTERFACE names them, and the identities that they must
//! keep. Inbound is delivered to the guest, outbound is taken from it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::failure::ensure;
use crate::{Failure, Result};

/// One vswitch.
#[derive(Debug, Deserialize)]
pub struct Vswitch {
    /// Its name.
    pub name: String,
    /// `Up` or `Down`.
    pub state: String,
    /// How many ports are defined.
    pub configured_ports: u32,
    /// The host's own address on the uplink.
    #[serde(default)]
    pub uplink_ip: Option<String>,
    /// The ports, by number.
    pub ports: Vec<PortStatus>,
    /// Its uplink, if it has one.
    #[serde(default)]
    pub wire: Option<Wire>,
    /// The host's own port, if it has one.
    #[serde(default)]
    pub host_port: Option<HostPort>,
}

/// A host port.
#[derive(Debug, Deserialize)]
pub struct HostPort {
    /// Its network device.
    pub device: String,
    /// `Active` while that is there.
    pub state: String,
    /// The eleven counters; inbound is delivered to the host.
    pub counters: Counters,
    /// Dropped frames by reason; reasons that never came up are left out.
    #[serde(default, deserialize_with = "not_zero")]
    pub discards: BTreeMap<String, u64>,
}

/// An uplink.
#[derive(Debug, Deserialize)]
pub struct Wire {
    /// Dropped frames by reason; reasons that never came up are left out.
    #[serde(default, deserialize_with = "not_zero")]
    pub discards: BTreeMap<String, u64>,
}

/// One port.
#[derive(Debug, Deserialize)]
pub struct PortStatus {
    /// Its number on the vswitch.
    pub number: u32,
    /// `Active` while a guest's driver is there, else `Reserved` or `Down`.
    pub state: String,
    /// The guest that drives it.
    pub active_vm: Option<String>,
    /// `avio_lan` or `lan`.
    pub adaptor: String,
    /// Its access VLAN.
    pub untagged_vlanid: Option<u16>,
    /// The eleven counters; absent on a port that has never been active.
    #[serde(default)]
    pub counters: Counters,
    /// Dropped frames by reason; reasons that never came up are left out.
    #[serde(default, deserialize_with = "not_zero")]
    pub discards: BTreeMap<String, u64>,
    /// What the guest sees of its wire: `Up` or `Down`, if its VMM can be told.
    #[serde(default)]
    pub link_status: Option<String>,
}

/// The eleven counters of a port.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are INTERFACE's and say it")]
pub struct Counters {
    pub inbound_octets: u64,
    pub inbound_unicast_wire: u64,
    pub inbound_unicast_local: u64,
    pub inbound_nonunicast_wire: u64,
    pub inbound_nonunicast_local: u64,
    pub inbound_discards: u64,
    pub outbound_octets: u64,
    pub outbound_unicast_wire: u64,
    pub outbound_unicast_local: u64,
    pub outbound_nonunicast: u64,
    pub outbound_discards: u64,
}

fn not_zero<'de, D: serde::Deserializer<'de>>(
    input: D,
) -> std::result::Result<BTreeMap<String, u64>, D::Error> {
    let mut discards = BTreeMap::<String, u64>::deserialize(input)?;
    discards.retain(|_, count| *count != 0);
    Ok(discards)
}

impl Counters {
    /// Frames delivered to the guest.
    pub fn delivered(&self) -> u64 {
        self.inbound_unicast_wire
            + self.inbound_unicast_local
            + self.inbound_nonunicast_wire
            + self.inbound_nonunicast_local
    }

    /// Frames of the guest that went on to someone.
    pub fn passed(&self) -> u64 {
        self.outbound_unicast_wire + self.outbound_unicast_local + self.outbound_nonunicast
    }

    /// Frames taken from the guest, dropped ones included.
    pub fn taken(&self) -> u64 {
        self.passed() + self.outbound_discards
    }
}

impl PortStatus {
    /// How many frames were dropped for `reason`.
    pub fn discarded(&self, reason: &str) -> u64 {
        self.discards.get(reason).copied().unwrap_or(0)
    }
}

impl Vswitch {
    /// Frames that had a receiver, a guest or the wire, and no room there.
    pub fn without_room(&self) -> u64 {
        self.ports.iter().map(|port| of_room(&port.discards)).sum::<u64>() + self.wire_without_room()
    }

    /// Those of them that were to go to the wire.
    pub fn wire_without_room(&self) -> u64 {
        self.wire.iter().map(|wire| of_room(&wire.discards)).sum()
    }

    /// Port `number`.
    ///
    /// # Errors
    /// When there is none.
    pub fn port(&self, number: u32) -> Result<&PortStatus> {
        let port = self.ports.iter().find(|port| port.number == number);
        port.ok_or_else(|| Failure::new(format!("vswitch {} shows no port {number}", self.name)))
    }

    /// Checks on every port that the discards by reason add up, and over the vswitch that every unicast frame taken from
    /// a guest for another guest was delivered or dropped there. True once traffic has stopped.
    ///
    /// # Errors
    /// When a sum is off.
    pub fn ensure_exact(&self) -> Result {
        for port in &self.ports {
            let by_reason: u64 = port.discards.values().sum();
            let total = port.counters.inbound_discards + port.counters.outbound_discards;
            ensure(by_reason == total, || {
                format!("port {}: discards {total} but by reason {by_reason}: {port:?}", port.number)
            })?;
        }
        let sum = |of: fn(&Counters) -> u64| self.ports.iter().map(|port| of(&port.counters)).sum::<u64>();
        let sent = sum(|c| c.outbound_unicast_local);
        let arrived = sum(|c| c.inbound_unicast_local);
        let dropped = sum(|c| c.inbound_discards);
        ensure(arrived <= sent && sent <= arrived + dropped, || {
            format!("{sent} unicast frames taken, {arrived} delivered, {dropped} dropped on delivery")
        })
    }
}

/// Discards for want of room at a receiver.
pub(crate) fn of_room(discards: &BTreeMap<String, u64>) -> u64 {
    ["no_buffer", "receiver_down"].iter().filter_map(|reason| discards.get(*reason)).sum()
}
