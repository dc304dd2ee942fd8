//! Addresses learned on trusted ports: control's half.
//!
//! Workers report sources they do not find; control keeps the list, with a limit per port and one for the daemon, and
//! publishes it with the next table. Ageing reads back when a worker last saw each address. It never overrides a
//! definition: the builder leaves out what is static or protected.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use avio_proto::config::{MacAddr, VlanId};

use super::{PortIndex, Table};

/// Most learned addresses in the daemon: together with 4,096 definitions the table stays within 1 MiB.
pub const LEARNED_MAX: usize = 8192;
/// An address that was not seen as a source for so long is forgotten (IEEE 802.1Q table 8-6, recommended value).
const AGE_MAX_S: u32 = 300;
/// Least time between two tables published because of learning: a guest that invents addresses costs control no more.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// One learned address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Learned {
    pub port: PortIndex,
    /// VLAN by which the port's trunk tagged it; `None`: untagged.
    pub vlan: Option<VlanId>,
    pub mac: MacAddr,
    pub seen_s: u32,
}

/// The learned addresses. Owned by the control thread.
#[derive(Debug, Default)]
pub struct Learner {
    entries: HashMap<(PortIndex, Option<VlanId>, MacAddr), Learned>,
    counts: HashMap<PortIndex, u32>,
    changed: bool,
    published: Option<Instant>,
}

impl Learner {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A worker saw `mac` as a source on `port` (an [`Event::Learn`](crate::forward::Event)). Whether it is taken
    /// up depends on the port's `mac_limit` and on [`LEARNED_MAX`]; an address that moved to another port of the same
    /// vswitch is forgotten where it was. `table` is the current one.
    pub fn learn(
        &mut self,
        table: &Table,
        port: PortIndex,
        vlan: Option<VlanId>,
        mac: MacAddr,
        now: Instant,
    ) {
        let Some(here) = table.port(port) else { return };
        if !(here.spec.trusted || here.is_uplink())
            || mac.is_multicast()
            || mac.is_zero()
            || table.macs.is_protected(mac.to_u64())
        {
            return;
        }
        let Some(domain) = table.domain_of(here, vlan) else { return };
        let before: Vec<_> = self
            .entries
            .keys()
            .filter(|(p, v, m)| {
                *m == mac && table.port(*p).and_then(|p| table.domain_of(p, *v)) == Some(domain)
            })
            .copied()
            .collect();
        if before.contains(&(port, vlan, mac)) {
            return;
        }
        if here.is_uplink() {
            // All that is nowhere else is on the wire: what moved there is forgotten where it was, and nothing has to be remembered.
            before.iter().for_each(|key| self.forget(key));
            return;
        }
        let held = self.count_of(port);
        if held >= here.spec.mac_limit || self.entries.len() >= LEARNED_MAX {
            return;
        }
        before.iter().for_each(|key| self.forget(key));
        *self.counts.entry(port).or_default() += 1;
        self.entries.insert((port, vlan, mac), Learned { port, vlan, mac, seen_s: table.coarse_s(now) });
        self.changed = true;
    }

    /// Forgets what was learned on `port`: its guest went away, or it is no longer trusted.
    pub fn forget_port(&mut self, port: PortIndex) {
        let gone: Vec<_> = self.entries.keys().filter(|(p, ..)| *p == port).copied().collect();
        gone.iter().for_each(|key| self.forget(key));
    }

    /// Forgets addresses that no frame came from for 300 s. `table` is the current one; call it every few seconds.
    pub fn age(&mut self, table: &Table, now: Instant) {
        let now_s = table.coarse_s(now);
        for learned in self.entries.values_mut() {
            if let Some(seen_s) = table.learned_seen_s(learned.port, learned.vlan, learned.mac) {
                learned.seen_s = learned.seen_s.max(seen_s);
            }
        }
        let old: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, learned)| now_s.saturating_sub(learned.seen_s) > AGE_MAX_S)
            .map(|(key, _)| *key)
            .collect();
        old.iter().for_each(|key| self.forget(key));
    }

    /// Whether a table should be published because of what was learned or forgotten, and when at the earliest.
    #[must_use]
    pub fn publish_at(&self) -> Option<Instant> {
        self.changed.then(|| self.published.map_or_else(Instant::now, |last| last + PUBLISH_EVERY))
    }

    /// A table with the current list was published.
    pub fn published(&mut self, now: Instant) {
        self.changed = false;
        self.published = Some(now);
    }

    /// Number of addresses.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is learned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of addresses learned on `port`.
    pub(crate) fn count_of(&self, port: PortIndex) -> u32 {
        self.counts.get(&port).copied().unwrap_or(0)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Learned> {
        self.entries.values()
    }

    fn forget(&mut self, key: &(PortIndex, Option<VlanId>, MacAddr)) {
        if self.entries.remove(key).is_some() {
            self.changed = true;
            if let Some(count) = self.counts.get_mut(&key.0) {
                *count -= 1;
            }
        }
    }
}
