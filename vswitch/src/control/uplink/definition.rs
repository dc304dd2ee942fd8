//! What the configuration files want of uplinks, and what of it runs: uplinks come, go and change.
//!
//! Called by the control thread when a configuration has been loaded. Opens and closes no device itself: what is new is opened by the next turn
//! (`upkeep`), what is gone is asked back from the workers.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use avio_proto::config::{Config, NumberedVswitch, UplinkConfig};

use super::aggregate::Bundle;
use super::traffic::Traffic;
use super::wire::{Member, Uplink, close};
use super::{Answer, Uplinks};
use crate::control::fabric::Fabric;
use crate::port::guest::Snapshot;
use crate::port::uplink::Hold;
use crate::port::wire::Lane;
use crate::table::{PortIndex, PortSpec, PortState};

impl Uplinks {
    /// Takes over a configuration that was checked. Returns what changed, a line each.
    pub(in crate::control) fn reconcile(&mut self, config: &Config, fabric: &mut Fabric) -> Vec<String> {
        let wanted: BTreeMap<String, UplinkConfig> = wanted(config).into_iter().collect();
        let mut changes = Vec::new();
        let gone: Vec<String> = self
            .uplinks
            .iter()
            .filter(|(vswitch, uplink)| {
                let members = members_of(config, &uplink.name);
                // An aggregate's devices come and go one by one.
                let stays =
                    uplink.bundle.is_some() && config.aggregates.iter().any(|a| a.name == uplink.name);
                wanted.get(*vswitch).is_none_or(|new| {
                    new.name != uplink.name
                        || new.access != uplink.config.access
                        || (!stays && !uplink.members.iter().map(|member| &member.name).eq(&members))
                })
            })
            .map(|(vswitch, _)| vswitch.clone())
            .collect();
        for vswitch in gone {
            if let Some(mut uplink) = self.uplinks.remove(&vswitch) {
                for member in &mut uplink.members {
                    close(member, uplink.index, fabric, &mut self.closing);
                }
                fabric.give_index(uplink.index);
                changes.push(format!("{vswitch}: uplink {} removed", uplink.name));
            }
        }
        for (vswitch, new) in wanted {
            if let Some(uplink) = self.uplinks.get_mut(&vswitch) {
                uplink.config = new;
                if let Some(aggregate) = config.aggregates.iter().find(|a| a.name == uplink.name) {
                    changes.extend(uplink.configure(aggregate, &self.allowed, fabric, &mut self.closing));
                }
                uplink.respecify();
                continue;
            }
            let Some(index) = fabric.take_index() else {
                changes.push(format!("{vswitch}: no uplink: all port indices are taken"));
                continue;
            };
            let access = self.allowed.best(new.access);
            let members = members_of(config, &new.name);
            let aggregate = config.aggregates.iter().find(|a| a.name == new.name);
            let balance = aggregate.map(|a| a.balance);
            let mut uplink = Uplink {
                name: new.name.clone(),
                vswitch: vswitch.clone(),
                index,
                spec: Arc::new(PortSpec::none()),
                state: Arc::new(PortState::new(self.workers, 1)),
                baseline: Snapshot::default(),
                members: members.iter().map(|name| Member::new(name, access)).collect(),
                config: new,
                balance: balance.unwrap_or_default(),
                bundle: aggregate.cloned().map(Bundle::new),
                hold: None,
                held: Traffic::default(),
                uneven_mtus: String::new(),
            };
            if uplink.bundle.is_some() {
                let (reply, port) = (self.mailbox.reply(), index);
                self.helpers.run(move || reply.send(Answer::Hold { port, hold: Hold::new() }));
            }
            uplink.respecify();
            changes.push(format!("{vswitch}: uplink {}", uplink.name));
            self.uplinks.insert(vswitch, uplink);
        }
        self.stale = true;
        fabric.touch();
        changes
    }

    /// A helper has made the memory for what an aggregate holds, or could not.
    pub(super) fn on_hold(&mut self, port: PortIndex, hold: io::Result<Hold>) {
        let Some(uplink) = self.uplinks.values_mut().find(|uplink| uplink.index == port) else { return };
        match hold {
            Ok(hold) => {
                let lane = Lane::holding(hold);
                uplink.held.add(Arc::clone(lane.counters()));
                uplink.hold = Some(lane);
            }
            Err(error) => {
                let name = &uplink.name;
                tracing::error!("{name}: no memory to hold frames: flows that move lose some: {error}");
            }
        }
    }
}

/// The vswitches that have an uplink, with how it is used.
pub(super) fn wanted(config: &Config) -> Vec<(String, UplinkConfig)> {
    let of = |vswitch: &NumberedVswitch| {
        let settings = &vswitch.settings;
        settings.uplink.as_ref().map(|name| (settings.name.clone(), config.uplink(name)))
    };
    config.vswitches.iter().filter_map(of).collect()
}

/// The devices that the uplink `name` is made of.
pub(super) fn members_of(config: &Config, name: &str) -> Vec<String> {
    let aggregate = config.aggregates.iter().find(|aggregate| aggregate.name == name);
    aggregate.map_or_else(|| vec![name.to_owned()], |aggregate| aggregate.members.clone())
}
