//! What workers know about the switch: vswitches, ports, addresses and receive rings, as one immutable value.
//!
//! Control builds a new [`Table`] for each change with a [`TableBuilder`] and sends an `Arc` of it to every worker; when all
//! of them have passed it, nothing of the former one is in use. Only relaxed atomics inside change (an entry's last use,
//! steering, token buckets). Nothing here touches a frame.
//!
//! vswitches are isolated from each other because no two of them share a `DomainIndex`: a domain is one VLAN of one
//! vswitch, or its untagged network, and every look-up names one.

mod build;
mod learn;
mod mac;
mod spec;
mod state;

pub use build::{BuildError, TableBuilder};
pub use learn::{LEARNED_MAX, Learner};
pub use spec::PortSpec;
pub use state::PortState;

pub(crate) use mac::{Found, MacNumber, key};

use std::sync::Arc;
use std::time::Instant;

use avio_proto::config::{MacAddr, VlanId};

use crate::port::PortKind;
use crate::port::uplink::BUCKETS;
#[cfg(doc)]
use crate::port::uplink::NO_LANE;
use mac::MacTable;

/// Names a port for as long as it is configured, on every table: an index chosen by control, small because workers index
/// arrays with it. Used again only after every worker has passed a table without the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortIndex(pub u32);

/// Most port indices, over all vswitches: 16 vswitches of 4,096 ports.
pub const PORTS_MAX: usize = 65_536;

/// One VLAN of one vswitch, or its untagged network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DomainIndex(pub u16);

/// No domain is numbered so.
pub(crate) const NO_DOMAIN: DomainIndex = DomainIndex(u16::MAX);

/// A broadcast domain.
#[derive(Debug, Default)]
pub(crate) struct Domain {
    /// The VLAN; 0: untagged.
    pub vid: u16,
    /// Ports with a receive ring, for broadcast and multicast.
    pub members: Vec<PortIndex>,
    /// Those of them that want unicast frames which nobody has.
    pub flood: Vec<PortIndex>,
    /// The uplink of the domain's vswitch.
    pub uplink: Option<PortIndex>,
}

impl Domain {
    /// Where a frame goes whose destination nobody has, if that is one port: the uplink, unless other ports asked for such frames too.
    #[inline]
    pub(crate) fn beyond(&self) -> Option<PortIndex> {
        self.uplink.filter(|uplink| self.flood.iter().all(|port| port == uplink))
    }
}

/// A receive ring that is enabled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EnabledPair {
    pub pair: u16,
    /// Number of the ring among all receive rings of this table.
    pub slot: u32,
}

/// A port as workers see it.
#[derive(Debug)]
pub struct Port {
    pub(crate) spec: Arc<PortSpec>,
    pub(crate) state: Arc<PortState>,
    pub(crate) kind: PortKind,
    pub(crate) mac: MacNumber,
    /// Source MAC is the only thing to check: strict, not trusted, no trunk, no addresses, no limits.
    pub(crate) plain: bool,
    /// Domain of its untagged frames.
    pub(crate) domain: DomainIndex,
    /// The domain whose frames it gets without a tag: the same, or [`NO_DOMAIN`] if the trunk has it, as where a trunk names the native VLAN.
    pub(crate) untagged: DomainIndex,
    /// Domains of its tagged frames by VLAN, ascending.
    pub(crate) trunk: Box<[(u16, DomainIndex)]>,
    /// Longest untagged frame that is not a segmentation frame, in bytes.
    pub(crate) frame_len_max: usize,
    /// Receive rings (or lanes) in use, by pair (or lane).
    pub(crate) enabled: Box<[EnabledPair]>,
    /// Uplinks that spread their frames, or hold some of them: which of `enabled` a bucket goes to; [`NO_LANE`]: to none.
    pub(crate) buckets: Option<Box<[u16; BUCKETS]>>,
    /// `rate_mbps` as nanoseconds per 1,024 bytes; 0: no limit.
    pub(crate) ns_per_kib: u64,
    /// `storm_pps` as nanoseconds per frame; 0: no limit.
    pub(crate) ns_per_storm_frame: u64,
    /// No further address can be learned here.
    pub(crate) is_full: bool,
}

impl Port {
    /// Which of its pairs a flow belongs to when the guest has sent nothing of it.
    #[inline]
    pub(crate) fn pair_by_hash(&self, hash: u32) -> Option<&EnabledPair> {
        // The product's upper half is the hash scaled to the number of pairs: no division.
        self.enabled.get(((u64::from(hash) * self.enabled.len() as u64) >> 32) as usize)
    }

    /// Which of its pairs a flow goes to: where the guest last sent it from, while that pair is enabled (virtio 1.3
    /// §5.1.6.5.5, automatic receive steering).
    pub(crate) fn pair_for(&self, hash: u32) -> Option<&EnabledPair> {
        let steered = self.state.pair_of_flow(hash);
        steered
            .and_then(|pair| self.enabled.iter().find(|enabled| enabled.pair == pair))
            .or_else(|| self.pair_by_hash(hash))
    }

    /// Which of its lanes the frames of a bucket go to.
    #[inline]
    pub(crate) fn lane_for(&self, bucket: u8) -> Option<&EnabledPair> {
        match &self.buckets {
            Some(buckets) => self.enabled.get(usize::from(buckets[usize::from(bucket)])),
            None => self.enabled.first(),
        }
    }

    /// Whether the wire is behind it.
    #[inline]
    pub(crate) fn is_uplink(&self) -> bool {
        matches!(self.kind, PortKind::Uplink(_))
    }

    /// Domain of frames that the guest tags with `vid`, if its trunk has it.
    #[inline]
    pub(crate) fn trunk_domain(&self, vid: u16) -> Option<DomainIndex> {
        let at = self.trunk.binary_search_by_key(&vid, |&(v, _)| v).ok()?;
        Some(self.trunk[at].1)
    }
}

/// The switch at one moment.
#[derive(Debug)]
pub struct Table {
    /// No two tables of the process have the same, and none has 0.
    pub(crate) id: u64,
    ports: Box<[Option<Port>]>,
    pub(crate) domains: Box<[Domain]>,
    pub(crate) macs: MacTable,
    /// Number of receive rings; their slots are below it.
    pub(crate) rx_slots: u32,
    /// Coarse times count from here.
    epoch: Instant,
    /// Some port has several pairs, so frames for whole domains need a flow hash.
    pub(crate) has_pairs: bool,
    /// Some port is an uplink.
    pub(crate) has_uplinks: bool,
    /// Uplinks where frames can wait.
    pub(crate) holding: Box<[PortIndex]>,
}

impl Table {
    /// A switch without ports: what a worker starts with.
    #[must_use]
    pub fn empty() -> Self {
        TableBuilder::new(Instant::now()).build()
    }

    /// The port `index`, if there is one.
    #[inline]
    #[must_use]
    pub fn port(&self, index: PortIndex) -> Option<&Port> {
        self.ports.get(index.0 as usize)?.as_ref()
    }

    /// Number of addresses, protected ones included.
    #[must_use]
    pub fn addresses_count(&self) -> usize {
        self.macs.len()
    }

    /// Coarse time of the last frame from a learned address, s since the epoch. Control thread, for ageing.
    #[must_use]
    pub fn learned_seen_s(&self, port: PortIndex, vlan: Option<VlanId>, mac: MacAddr) -> Option<u32> {
        let domain = self.domain_of(self.port(port)?, vlan)?;
        self.macs.find(key(domain, mac.to_u64())).filter(|found| found.is_learned()).map(Found::seen_s)
    }

    /// Domain of the port's frames tagged with `vlan`, or untagged.
    pub(crate) fn domain_of(&self, port: &Port, vlan: Option<VlanId>) -> Option<DomainIndex> {
        vlan.map_or(Some(port.domain), |vid| port.trunk_domain(vid.get()))
    }

    /// `now` in seconds since the epoch.
    #[inline]
    #[must_use]
    pub fn coarse_s(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.epoch).as_secs()).unwrap_or(u32::MAX)
    }

    /// `now` in nanoseconds since the epoch.
    #[inline]
    pub(crate) fn ns(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    //! Definitions for the tests of this crate.

    use super::*;

    /// A local unicast address that ends in `n`.
    pub(crate) fn mac(n: u16) -> MacAddr {
        let [a, b] = n.to_be_bytes();
        MacAddr([0x1e, 0, 0, 0, a, b])
    }

    /// A definition with every default of the configuration.
    pub(crate) fn spec(guest: &str, mac: MacAddr) -> PortSpec {
        PortSpec {
            guest: guest.to_owned(),
            number: 1,
            mac,
            vlan: None,
            trunk: Vec::new(),
            ips: Vec::new(),
            trusted: false,
            strict: true,
            isolated: false,
            flood: false,
            mac_limit: 16,
            mtu: 1500,
            rate_mbps: 0,
            storm_pps: 0,
        }
    }
}
