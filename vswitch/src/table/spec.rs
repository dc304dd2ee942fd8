//! What a port's definition says, in the form forwarding needs.
//!
//! Control makes one from the configuration for each port; nothing here changes while frames flow.

use std::net::IpAddr;

use avio_proto::config::{MacAddr, NetworkConfig, VlanId};

/// A port's definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// The guest that has the port.
    pub guest: String,
    /// Port number on its vswitch.
    pub number: u32,
    /// Its own address.
    pub mac: MacAddr,
    /// VLAN of its untagged frames; `None`: the vswitch's untagged network.
    pub vlan: Option<VlanId>,
    /// VLANs that it may tag itself.
    pub trunk: Vec<VlanId>,
    /// Addresses that it may send from; empty: any.
    pub ips: Vec<IpAddr>,
    /// May send from any address that is not protected; these are learned.
    pub trusted: bool,
    /// Must send from `mac`, unless trusted.
    pub strict: bool,
    /// No traffic with other isolated ports.
    pub isolated: bool,
    /// Gets unicast frames that nobody has.
    pub flood: bool,
    /// Most addresses learned here.
    pub mac_limit: u32,
    /// Largest payload, in bytes.
    pub mtu: u16,
    /// Most that it may send, in 10^6 bits a second; 0: no limit.
    pub rate_mbps: u32,
    /// Most broadcast, multicast and unknown unicast frames that it may send a second; 0: no limit.
    pub storm_pps: u32,
}

impl PortSpec {
    /// Nobody's: what an uplink is before its device was looked at.
    #[must_use]
    pub fn none() -> Self {
        Self {
            guest: String::new(),
            number: 0,
            mac: MacAddr([0; 6]),
            vlan: None,
            trunk: Vec::new(),
            ips: Vec::new(),
            trusted: false,
            strict: false,
            isolated: false,
            flood: true,
            mac_limit: 0,
            mtu: 1500,
            rate_mbps: 0,
            storm_pps: 0,
        }
    }

    /// The definition of `guest`'s interface `network`.
    #[must_use]
    pub fn from_config(guest: &str, network: &NetworkConfig) -> Self {
        Self {
            guest: guest.to_owned(),
            number: network.port,
            mac: network.mac_of(guest),
            vlan: network.vlan,
            trunk: network.trunk.clone(),
            ips: network.ips.clone(),
            trusted: network.trusted,
            strict: network.strict,
            isolated: network.isolated,
            flood: network.flood,
            mac_limit: network.mac_limit,
            mtu: network.mtu,
            rate_mbps: network.rate_mbps,
            storm_pps: network.storm_pps,
        }
    }
}
