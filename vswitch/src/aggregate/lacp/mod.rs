//! LACP for one aggregate: selection over its ports, and what they have to say (IEEE 802.1AX-2014 §6.4).
//!
//! Pure: link events, PDUs and the time go in, PDUs and "who distributes" come out. The machines of one port are in `port`. Control
//! owns one of these per aggregate of mode `LACP_AUTO` and sends what [`Lacp::take_sent`] gives.

mod port;

use std::collections::BTreeMap;
use std::time::Instant;

use avio_proto::aggregation::{LacpPdu, PortInfo, SystemId};

use super::Slot;
pub use port::{Churn, LacpPort, Mux, PortSettings, Receive};

/// What holds for all ports of an aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LacpSettings {
    /// This system.
    pub system: SystemId,
    /// Ask the partner for a PDU each second instead of each 30 s.
    pub fast: bool,
    /// Only speak to who speaks first.
    pub passive: bool,
}

/// Ports that could be one link: same key here, same partner and key there (§6.3.6, Link Aggregation Group Identifier).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// The partner.
    pub partner: SystemId,
    /// Its key.
    pub partner_key: u16,
    /// Our key.
    pub key: u16,
}

/// See the module.
#[derive(Debug)]
pub struct Lacp {
    settings: LacpSettings,
    ports: BTreeMap<Slot, LacpPort>,
    /// The group that this aggregate is made of now.
    chosen: Option<Group>,
    sent: Vec<(Slot, LacpPdu)>,
}

impl Lacp {
    /// One without ports.
    #[must_use]
    pub fn new(settings: LacpSettings) -> Self {
        Lacp { settings, ports: BTreeMap::new(), chosen: None, sent: Vec::new() }
    }

    /// Takes over changed settings, and tells the partner of each port at once. Ports go on; a changed system makes the partner select anew by itself.
    pub fn set(&mut self, settings: LacpSettings, now: Instant) {
        if settings != self.settings {
            let slower = self.settings.fast && !settings.fast;
            self.settings = settings;
            for port in self.ports.values_mut() {
                port.need_to_transmit();
                if slower {
                    port.wait_longer(now);
                }
            }
            self.run(now);
        }
    }

    /// Adds a port whose link is down, or changes the settings of one that there is.
    pub fn set_port(&mut self, slot: Slot, settings: PortSettings, now: Instant) {
        self.ports.entry(slot).or_insert_with(|| LacpPort::new(settings)).set(settings);
        self.run(now);
    }

    /// Removes a port. Its partner finds out by the silence.
    pub fn remove_port(&mut self, slot: Slot, now: Instant) {
        self.ports.remove(&slot);
        self.run(now);
    }

    /// The link of a port came up or went down. `up`: full duplex and usable.
    pub fn link(&mut self, slot: Slot, up: bool, now: Instant) {
        if let Some(port) = self.ports.get_mut(&slot) {
            port.link(up, now);
        }
        self.run(now);
    }

    /// A PDU has arrived on a port.
    pub fn receive(&mut self, slot: Slot, pdu: &LacpPdu, now: Instant) {
        if let Some(port) = self.ports.get_mut(&slot) {
            port.receive(&self.settings, pdu, now);
        }
        self.run(now);
    }

    /// Runs whatever is due at `now`.
    pub fn run(&mut self, now: Instant) {
        for port in self.ports.values_mut() {
            port.run_timers(&self.settings, now);
        }
        self.select();
        // Ready (§6.4.14.1): all that wait have waited long enough, so links that come up together are attached together.
        let ready = self.ports.values().all(|port| port.has_waited(now));
        for (slot, port) in &mut self.ports {
            port.run_mux(ready, now);
            if let Some(pdu) = port.transmit(&self.settings, now) {
                self.sent.push((*slot, pdu));
            }
        }
    }

    /// The selection logic (§6.4.14): the group with the most ports, and among equals the one there is, makes up the aggregate;
    /// other ports stay detached.
    fn select(&mut self) {
        let mut sizes: BTreeMap<Group, usize> = BTreeMap::new();
        for group in self.ports.values().filter_map(|port| port.group(&self.settings)) {
            *sizes.entry(group).or_default() += 1;
        }
        let best = sizes.iter().map(|(group, size)| (*size, Some(*group) == self.chosen, *group));
        // The smallest identifier among equals: it does not depend on who came up first.
        let best = best.max_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(b.2.cmp(&a.2)));
        self.chosen = best.map(|(_, _, group)| group);
        for port in self.ports.values_mut() {
            let wanted = port.group(&self.settings).is_some_and(|group| Some(group) == self.chosen);
            port.select(wanted);
        }
    }

    /// What is to be sent since the last call.
    pub fn take_sent(&mut self) -> Vec<(Slot, LacpPdu)> {
        std::mem::take(&mut self.sent)
    }

    /// When [`Self::run`] is due even if nothing happens.
    #[must_use]
    pub fn next_at(&self) -> Option<Instant> {
        // They are attached when the last of them has waited long enough.
        let waits = self.ports.values().filter_map(LacpPort::waits_until).max();
        self.ports.values().filter_map(|port| port.next_at(&self.settings)).chain(waits).min()
    }

    /// The ports that take and send frames, ascending.
    #[must_use]
    pub fn distributing(&self) -> Vec<Slot> {
        self.ports.iter().filter(|(_, port)| port.mux == Mux::Distributing).map(|(slot, _)| *slot).collect()
    }

    /// The group that the aggregate is made of.
    #[must_use]
    pub fn group(&self) -> Option<Group> {
        self.chosen
    }

    /// A port.
    #[must_use]
    pub fn port(&self, slot: Slot) -> Option<&LacpPort> {
        self.ports.get(&slot)
    }

    /// What this end says of a port.
    #[must_use]
    pub fn actor(&self, slot: Slot) -> Option<PortInfo> {
        self.ports.get(&slot).map(|port| port.actor(&self.settings))
    }
}
