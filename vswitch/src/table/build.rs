//! Builds tables: control's side of them.
//!
//! Everything that a look-up would otherwise have to search is resolved here: domains get numbers, member lists are
//! written out, receive rings are counted, limits become times.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use avio_proto::config::{MacAddr, VlanId};

use super::mac::{DOMAINS_MAX, MacTable, NewEntry, Origin, key};
use super::{
    Domain, DomainIndex, EnabledPair, LEARNED_MAX, Learner, NO_DOMAIN, PORTS_MAX, Port, PortIndex, PortSpec,
    PortState, Table,
};
use crate::port::PortKind;
use crate::port::guest::PAIRS_MAX;
use crate::port::uplink::{NO_LANE, UplinkPort};

/// The next table's id.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);
/// Length of an Ethernet header without tag, in bytes.
const ETHERNET_HEADER_LEN: usize = 14;

/// Why a port cannot be in the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Its index is [`PORTS_MAX`] or above.
    #[error("port index {0} is above the {PORTS_MAX} ports that the daemon can have")]
    IndexTooLarge(u32),
    /// The index is taken.
    #[error("port index {0} is given to two ports")]
    IndexTaken(u32),
    /// Another port of the same vswitch and VLAN has the address.
    #[error("`{mac}` is the address of both {first} and {second} in one VLAN")]
    DuplicateMac {
        /// The address.
        mac: MacAddr,
        /// Guest that came first.
        first: String,
        /// Guest that was refused.
        second: String,
    },
    /// Too many VLANs over all vswitches.
    #[error("more than {DOMAINS_MAX} VLANs over all vswitches")]
    TooManyDomains,
}

/// Collects what a table holds. A port that is refused leaves the builder as it was.
#[derive(Debug)]
pub struct TableBuilder {
    epoch: Instant,
    ports: Vec<Option<Port>>,
    domains: Vec<Domain>,
    numbers: HashMap<(u32, u16), DomainIndex>,
    addresses: BTreeMap<u64, PortIndex>,
    learned: Vec<NewEntry>,
    protected: BTreeSet<u64>,
    rx_slots: u32,
    uplinks: Vec<(u32, PortIndex)>,
    holding: Vec<PortIndex>,
    /// By vswitch: VLAN of untagged frames on its wire.
    natives: HashMap<u32, u16>,
}

impl TableBuilder {
    /// An empty one. `epoch` is where the coarse times of learned addresses count from: the same for all tables of the
    /// daemon.
    #[must_use]
    pub fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            ports: Vec::new(),
            domains: Vec::new(),
            numbers: HashMap::new(),
            addresses: BTreeMap::new(),
            learned: Vec::new(),
            protected: BTreeSet::new(),
            rx_slots: 0,
            uplinks: Vec::new(),
            holding: Vec::new(),
            natives: HashMap::new(),
        }
    }

    /// No guest may send from `mac`: a host interface's, or that of a guest without an active port. The addresses of the
    /// ports themselves are protected without saying.
    pub fn protect(&mut self, mac: MacAddr) -> &mut Self {
        self.protected.insert(mac.to_u64());
        self
    }

    /// Adds a port of vswitch number `vswitch`.
    ///
    /// # Errors
    /// [`BuildError`]; the table is then built without this port.
    pub fn port(
        &mut self,
        index: PortIndex,
        vswitch: u32,
        spec: Arc<PortSpec>,
        state: Arc<PortState>,
        kind: PortKind,
    ) -> Result<&mut Self, BuildError> {
        let at = self.check_index(index)?;
        let vids: BTreeSet<u16> = spec.trunk.iter().map(|vid| vid.get()).collect();
        if self.domains.len() + vids.len() + 1 > DOMAINS_MAX {
            return Err(BuildError::TooManyDomains);
        }
        let domain = self.domain(vswitch, spec.vlan.map_or(0, VlanId::get));
        let trunk: Box<[(u16, DomainIndex)]> =
            vids.into_iter().map(|vid| (vid, self.domain(vswitch, vid))).collect();
        let mac = spec.mac.to_u64();
        let keys: BTreeSet<u64> =
            trunk.iter().map(|&(_, d)| d).chain([domain]).map(|d| key(d, mac)).collect();
        if let Some(first) = keys.iter().find_map(|k| self.addresses.get(k)) {
            let first = self.ports[first.0 as usize].as_ref().map_or(String::new(), |p| p.spec.guest.clone());
            return Err(BuildError::DuplicateMac { mac: spec.mac, first, second: spec.guest.clone() });
        }
        self.addresses.extend(keys.into_iter().map(|k| (k, index)));
        self.protected.insert(mac);
        let enabled = match &kind {
            PortKind::Guest(guest) => {
                let in_use = guest.rx.iter().take(PAIRS_MAX).enumerate().filter(|(_, rx)| rx.is_some());
                self.number_rings(in_use.map(|(pair, _)| pair as u16))
            }
            PortKind::Lan(lane) => self.number_rings(lane.iter().map(|_| 0)),
            PortKind::Uplink(_) => Box::default(),
        };
        let port = Port {
            mac,
            plain: spec.strict
                && !spec.trusted
                && spec.trunk.is_empty()
                && spec.ips.is_empty()
                && spec.rate_mbps == 0
                && spec.storm_pps == 0,
            domain,
            untagged: if trunk.iter().any(|&(_, tagged)| tagged == domain) { NO_DOMAIN } else { domain },
            trunk,
            frame_len_max: usize::from(spec.mtu) + ETHERNET_HEADER_LEN,
            enabled,
            buckets: None,
            // 1,024 bytes are 8,192 bits; at 1 Mbit/s they take 8,192,000 ns.
            ns_per_kib: if spec.rate_mbps == 0 {
                0
            } else {
                8_192_000 / u64::from(spec.rate_mbps).min(8_192_000)
            },
            ns_per_storm_frame: if spec.storm_pps == 0 {
                0
            } else {
                (1_000_000_000 / u64::from(spec.storm_pps)).max(1)
            },
            is_full: false,
            spec,
            state,
            kind,
        };
        if !port.enabled.is_empty() {
            self.join(index, &port);
        }
        self.put(at, port);
        Ok(self)
    }

    /// Adds the uplink of vswitch number `vswitch`, which has none yet. Call it before the vswitch's ports: with `spec.vlan`, the native VLAN,
    /// its untagged network and that VLAN are one. It is a member of every VLAN that the ports name; its address is protected, and frames
    /// to it are the host's, so it is in no look-up.
    ///
    /// # Errors
    /// [`BuildError`]; the table is then built without the uplink.
    pub fn uplink(
        &mut self,
        index: PortIndex,
        vswitch: u32,
        spec: Arc<PortSpec>,
        state: Arc<PortState>,
        uplink: UplinkPort,
    ) -> Result<&mut Self, BuildError> {
        let at = self.check_index(index)?;
        if self.domains.len() + 1 > DOMAINS_MAX {
            return Err(BuildError::TooManyDomains);
        }
        if let Some(native) = spec.vlan {
            self.natives.insert(vswitch, native.get());
        }
        let domain = self.domain(vswitch, 0);
        self.protected.insert(spec.mac.to_u64());
        self.uplinks.push((vswitch, index));
        self.holding.extend(uplink.hold.as_ref().map(|_| index));
        let enabled = self.number_rings(uplink.by_bucket.iter().copied().filter(|&lane| lane != NO_LANE));
        let place = |lane: u16| enabled.iter().position(|e| e.pair == lane).map_or(NO_LANE, |at| at as u16);
        let buckets = uplink.by_bucket.iter().map(|&lane| place(lane)).collect::<Vec<_>>();
        let buckets = (!buckets.iter().all(|&lane| lane == 0)).then(|| buckets.try_into().ok()).flatten();
        let port = Port {
            mac: spec.mac.to_u64(),
            plain: false,
            domain,
            untagged: domain,
            trunk: Box::default(),
            frame_len_max: usize::from(spec.mtu) + ETHERNET_HEADER_LEN,
            enabled,
            buckets,
            ns_per_kib: 0,
            ns_per_storm_frame: 0,
            is_full: false,
            spec,
            state,
            kind: PortKind::Uplink(uplink),
        };
        self.put(at, port);
        Ok(self)
    }

    fn check_index(&self, index: PortIndex) -> Result<usize, BuildError> {
        let at = index.0 as usize;
        if at >= PORTS_MAX {
            return Err(BuildError::IndexTooLarge(index.0));
        }
        if self.ports.get(at).is_some_and(Option::is_some) {
            return Err(BuildError::IndexTaken(index.0));
        }
        Ok(at)
    }

    fn put(&mut self, at: usize, port: Port) {
        if self.ports.len() <= at {
            self.ports.resize_with(at + 1, || None);
        }
        self.ports[at] = Some(port);
    }

    /// Makes uplinks members of all domains of their vswitches.
    fn join_uplinks(&mut self) {
        for (vswitch, index) in std::mem::take(&mut self.uplinks) {
            let Some(Some(port)) = self.ports.get_mut(index.0 as usize) else { continue };
            let mut trunk: Vec<(u16, DomainIndex)> = Vec::new();
            for (&(_, vid), &domain) in self.numbers.iter().filter(|((of, _), _)| *of == vswitch) {
                if domain != port.domain {
                    trunk.push((vid, domain));
                }
                let domain = &mut self.domains[usize::from(domain.0)];
                domain.uplink = Some(index);
                if !port.enabled.is_empty() {
                    domain.members.push(index);
                    domain.flood.push(index);
                }
            }
            trunk.sort_unstable_by_key(|&(vid, _)| vid);
            port.trunk = trunk.into_boxed_slice();
        }
    }

    /// Adds what was learned. Call it after all ports: static and protected addresses win over learned ones.
    ///
    /// Each port gets `mac_limit` addresses at most, whatever the learner holds: a definition that was changed may allow
    /// less than was learned under it. (Between two tables a trusted port may *send* from addresses that are in neither;
    /// nothing is delivered to one before it is in a table.)
    pub fn learned(&mut self, learner: &Learner) -> &mut Self {
        let mut held: HashMap<PortIndex, u32> = HashMap::new();
        for learned in learner.entries() {
            let Some(Some(port)) = self.ports.get(learned.port.0 as usize) else { continue };
            let domain = match learned.vlan {
                Some(vid) => port.trunk_domain(vid.get()),
                None => Some(port.domain),
            };
            let Some(domain) = domain else { continue };
            let mac = learned.mac.to_u64();
            let key = key(domain, mac);
            let taken = self.addresses.contains_key(&key) || self.protected.contains(&mac);
            let held = held.entry(learned.port).or_default();
            if port.spec.trusted && !taken && *held < port.spec.mac_limit {
                *held += 1;
                self.addresses.insert(key, learned.port);
                self.learned.push(NewEntry {
                    key,
                    port: learned.port,
                    origin: Origin::Learned,
                    seen_s: learned.seen_s,
                });
            }
        }
        let all_full = learner.len() >= LEARNED_MAX;
        for (at, port) in self.ports.iter_mut().enumerate() {
            if let Some(port) = port {
                port.is_full = all_full || learner.count_of(PortIndex(at as u32)) >= port.spec.mac_limit;
            }
        }
        self
    }

    /// The finished table.
    #[must_use]
    pub fn build(mut self) -> Table {
        let has_uplinks = !self.uplinks.is_empty();
        self.join_uplinks();
        let mut entries = self.learned;
        let learned: BTreeSet<u64> = entries.iter().map(|entry| entry.key).collect();
        entries.extend(
            self.addresses
                .into_iter()
                .filter(|(key, _)| !learned.contains(key))
                .map(|(key, port)| NewEntry { key, port, origin: Origin::Static, seen_s: 0 }),
        );
        let protected: Vec<u64> = self.protected.into_iter().collect();
        let has_pairs = self.ports.iter().flatten().any(|port| port.enabled.len() > 1 && !port.is_uplink());
        Table {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            ports: self.ports.into_boxed_slice(),
            domains: self.domains.into_boxed_slice(),
            macs: MacTable::new(&entries, &protected),
            rx_slots: self.rx_slots,
            epoch: self.epoch,
            has_pairs,
            has_uplinks,
            holding: self.holding.into_boxed_slice(),
        }
    }

    /// The number of the domain, which it gets when it is first named.
    fn domain(&mut self, vswitch: u32, vid: u16) -> DomainIndex {
        let vid = if vid == 0 { self.natives.get(&vswitch).copied().unwrap_or(0) } else { vid };
        let domains = &mut self.domains;
        *self.numbers.entry((vswitch, vid)).or_insert_with(|| {
            domains.push(Domain { vid, ..Domain::default() });
            DomainIndex((domains.len() - 1) as u16)
        })
    }

    /// Numbers the receive rings or lanes that are in use.
    fn number_rings(&mut self, in_use: impl Iterator<Item = u16>) -> Box<[EnabledPair]> {
        let in_use: BTreeSet<u16> = in_use.collect();
        in_use
            .into_iter()
            .map(|pair| {
                self.rx_slots += 1;
                EnabledPair { pair, slot: self.rx_slots - 1 }
            })
            .collect()
    }

    /// Makes the port a member of its domains.
    fn join(&mut self, index: PortIndex, port: &Port) {
        let domains: BTreeSet<DomainIndex> =
            port.trunk.iter().map(|&(_, domain)| domain).chain([port.domain]).collect();
        for domain in domains {
            let domain = &mut self.domains[usize::from(domain.0)];
            domain.members.push(index);
            if port.spec.flood {
                domain.flood.push(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::guest::GuestPort;
    use crate::table::tests::{mac, spec};

    fn add(b: &mut TableBuilder, index: u32, vswitch: u32, spec: PortSpec) -> Result<(), BuildError> {
        let state = Arc::new(PortState::new(1, 1));
        let kind = PortKind::Guest(GuestPort::default());
        b.port(PortIndex(index), vswitch, Arc::new(spec), state, kind).map(|_| ())
    }

    #[test]
    fn one_address_may_stand_on_two_vswitches_but_not_twice_in_a_vlan() {
        let mut b = TableBuilder::new(Instant::now());
        add(&mut b, 0, 0, spec("a", mac(1))).unwrap();
        add(&mut b, 1, 1, spec("b", mac(1))).unwrap();
        add(&mut b, 2, 0, PortSpec { vlan: VlanId::new(7), ..spec("c", mac(1)) }).unwrap();
        let refused =
            add(&mut b, 3, 0, PortSpec { trunk: vec![VlanId::new(7).unwrap()], ..spec("d", mac(1)) });
        let BuildError::DuplicateMac { second, .. } = refused.unwrap_err() else { panic!("another error") };
        assert_eq!(second, "d");
        assert_eq!(add(&mut b, 2, 0, spec("e", mac(9))), Err(BuildError::IndexTaken(2)));
        assert_eq!(add(&mut b, 65_536, 0, spec("e", mac(9))), Err(BuildError::IndexTooLarge(65_536)));
        let table = b.build();
        let domains: Vec<_> = (0..3).map(|i| table.port(PortIndex(i)).unwrap().domain).collect();
        assert!(domains[0] != domains[1] && domains[0] != domains[2] && domains[1] != domains[2]);
        assert!(table.port(PortIndex(3)).is_none() && table.macs.is_protected(mac(1).to_u64()));
        assert_eq!(table.macs.find(key(domains[1], mac(1).to_u64())).unwrap().port(), PortIndex(1));
    }

    #[test]
    fn a_port_without_guest_is_no_member_and_is_found_all_the_same() {
        let mut b = TableBuilder::new(Instant::now());
        add(&mut b, 0, 0, PortSpec { flood: true, ..spec("a", mac(1)) }).unwrap();
        let table = b.build();
        assert!(table.domains[0].members.is_empty() && table.domains[0].flood.is_empty());
        assert!(table.macs.find(key(DomainIndex(0), mac(1).to_u64())).is_some());
    }

    #[test]
    fn limits_become_times() {
        let mut b = TableBuilder::new(Instant::now());
        add(&mut b, 0, 0, PortSpec { rate_mbps: 8, storm_pps: 1000, ..spec("a", mac(1)) }).unwrap();
        let table = b.build();
        let port = table.port(PortIndex(0)).unwrap();
        assert_eq!((port.ns_per_kib, port.ns_per_storm_frame, port.plain), (1_024_000, 1_000_000, false));
    }
}
