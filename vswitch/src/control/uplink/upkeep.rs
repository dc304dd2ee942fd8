//! The devices of all uplinks: opened, taken into service, lost, stuck, and opened anew.
//!
//! Called by [`Uplinks::turn`] on the control thread, and when a worker says that a device is broken. Whatever may wait (opening, closing) is a
//! helper's. Decides nothing about where frames go: that is for `wire` and the aggregate.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use avio_host::blocking::answered;
use avio_host::links::Link;

use super::device::{self, Device, Negotiated, Request};
use super::hosts::{HostAddresses, host_macs_on};
use super::inspection::Inspection;
use super::wire::{Half, Member, OpenMember, State, close, tell_link};
use super::{Answer, REOPEN_AFTER, SOURCES_MAX, Uplinks, watchdog};
use crate::control::fabric::Fabric;
use crate::port::wire::{IntakeStopped, Lane, WireSource};
use crate::table::PortIndex;

/// A device that could not be opened is tried again: another program may have let go of it.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// See [`Answer::Opened`].
pub(in crate::control) struct Opened {
    name: String,
    port: PortIndex,
    member: usize,
    /// Which attempt it was.
    attempt: u64,
    device: Result<Device, String>,
}

/// A device that is not as it was: where, and in words.
pub(in crate::control) struct Found {
    port: PortIndex,
    attempt: u64,
    why: String,
}

impl Uplinks {
    /// Has a helper look at what may have become of the devices that are open, and of the guardian.
    pub(super) fn inspect(&mut self) {
        if self.inspecting {
            self.inspect_again = true;
            return;
        }
        let mut inspections = Vec::new();
        for uplink in self.uplinks.values() {
            for member in &uplink.members {
                if let State::Open(open) = &member.state {
                    inspections.push((uplink.index, member.attempt, open.device.inspection()));
                }
            }
        }
        if inspections.is_empty() {
            return;
        }
        self.inspecting = true;
        let (reply, guardian) = (self.mailbox.reply(), Arc::clone(&self.guardian));
        self.helpers.run(move || {
            let found = answered(|| {
                guardian.lock().unwrap_or_else(PoisonError::into_inner).look_after();
                let found = |(port, attempt, inspection): (PortIndex, u64, Inspection)| {
                    inspection.run().map(|why| Found { port, attempt, why })
                };
                Ok(inspections.into_iter().filter_map(found).collect())
            });
            reply.send(Answer::Inspected(found.unwrap_or_default()));
        });
    }

    /// Devices that are not as they were are opened anew, as they are now. Returns whether there are some.
    pub(super) fn on_inspected(&mut self, found: Vec<Found>, now: Instant, fabric: &mut Fabric) -> bool {
        self.inspecting = false;
        let mut changed = false;
        for Found { port, attempt, why } in found {
            let Some(uplink) = self.uplinks.values_mut().find(|uplink| uplink.index == port) else {
                continue;
            };
            let is_it =
                |member: &&mut Member| member.attempt == attempt && matches!(member.state, State::Open(_));
            let Some(member) = uplink.members.iter_mut().find(is_it) else { continue };
            tracing::warn!("uplink {}: {}: {why}; opened anew", uplink.name, member.name);
            close(member, port, fabric, &mut self.closing);
            member.state = State::Closed { retry: Some(now + REOPEN_AFTER) };
            uplink.tell_aggregate(&self.control_frames, now);
            uplink.respecify();
            changed = true;
        }
        if std::mem::take(&mut self.inspect_again) {
            self.inspect();
        }
        changed
    }

    /// When a device is to be opened.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        let members = self.uplinks.values().flat_map(|uplink| &uplink.members);
        let retries = members
            .filter_map(|member| if let State::Closed { retry } = member.state { retry } else { None });
        retries.min()
    }

    /// Looks at the rings of all devices, if it is time. One that is stuck has its device opened anew, a step down the ladder.
    pub(super) fn watch(&mut self, now: Instant, fabric: &mut Fabric) -> bool {
        if self.watch_at.is_none_or(|at| now < at) {
            return false;
        }
        let mut changed = false;
        self.watch_at = None;
        self.inspect();
        for uplink in self.uplinks.values_mut() {
            for member in &mut uplink.members {
                if let Some(line) = member.look_at_rings() {
                    tracing::warn!("uplink {}: {}: {line}", uplink.name, member.name);
                    close(member, uplink.index, fabric, &mut self.closing);
                    member.state = State::Closed { retry: Some(now + REOPEN_AFTER) };
                    changed = true;
                }
                if matches!(member.state, State::Open(_)) {
                    self.watch_at = Some(now + watchdog::LOOK_EVERY);
                }
            }
            if changed {
                uplink.tell_aggregate(&self.control_frames, now);
                uplink.respecify();
            }
        }
        changed
    }

    /// Brings every member in line with the interfaces as they are.
    pub(super) fn look(&mut self, now: Instant, fabric: &mut Fabric) -> bool {
        let mut changed = false;
        let macs = host_macs_on(&self.links);
        for uplink in self.uplinks.values_mut() {
            let named = uplink.members.iter().filter_map(|member| self.links.named(&member.name));
            let devices: Vec<u32> = named.map(|link| link.index).collect();
            for (number, member) in uplink.members.iter_mut().enumerate() {
                let link = self.links.named(&member.name).cloned();
                let has_carrier = |link: &Option<Link>| link.as_ref().is_some_and(|link| link.has_carrier);
                // What was handed to the device and did not get out any more would leave it when the link is back: long after what followed it
                // through another member.
                let is_overtaken =
                    uplink.bundle.is_some() && has_carrier(&member.link) && !has_carrier(&link);
                if member.link != link {
                    changed = true;
                    let renamed = member.link.as_ref().and_then(|was| self.links.numbered(was.index));
                    tell_link(&uplink.name, member, link.as_ref(), renamed);
                }
                let is_new = match (&member.link, &link) {
                    (Some(was), Some(link)) => was.index != link.index || !was.is_up && link.is_up,
                    (None, link) => link.is_some(),
                    (Some(_), None) => false,
                };
                // Another device, or one that the operator has set up anew: what was stuck may not be so any more.
                let begins_anew = is_new && member.stepped_down.take().is_some();
                if is_new {
                    member.access = self.allowed.best(uplink.config.access);
                }
                member.link = link;
                let lost = match (&member.state, &member.link) {
                    (State::Open(open), Some(link)) => {
                        is_overtaken
                            || begins_anew
                            || open.link.index != link.index
                            || open.link.mtu != link.mtu
                    }
                    (State::Open(_), None) => true,
                    _ => false,
                };
                if lost {
                    close(member, uplink.index, fabric, &mut self.closing);
                    member.state = State::Closed { retry: Some(now + REOPEN_AFTER) };
                    changed = true;
                }
                let Some(link) = member.link.clone().filter(|link| link.is_up) else { continue };
                let hosts = HostAddresses::new(&macs, &uplink.config.host_macs, &devices, link.index);
                match &mut member.state {
                    State::Closed { .. }
                        if self.closing.has(&member.name) || self.opening.contains(&member.name) =>
                    {
                        // Its queues and its program are still taken, by us: maybe for a configuration that is gone.
                        member.state = State::Closed { retry: Some(now + REOPEN_AFTER) };
                    }
                    State::Closed { retry } if retry.is_none_or(|at| at <= now) => {
                        self.attempts += 1;
                        member.attempt = self.attempts;
                        member.state = State::Opening;
                        self.opening.insert(member.name.clone());
                        let index = link.index;
                        let request = Request {
                            link,
                            hosts,
                            access: member.access,
                            zero_copy: self.allowed.zero_copy,
                            busy_poll: self.allowed.busy_poll,
                            burst: self.allowed.burst,
                            // Members of an aggregate are sent to together, by one run of a program (decision 0013).
                            redirect: self.allowed.redirect && uplink.bundle.is_none(),
                            egress_is_free: Arc::new(AtomicBool::new(self.links.egress_is_free(index))),
                            vlan_tags: self.allowed.vlan_tags,
                            siblings: self.allowed.siblings && uplink.bundle.is_some(),
                        };
                        let (name, port, attempt) = (member.name.clone(), uplink.index, member.attempt);
                        let (reply, guardian) = (self.mailbox.reply(), Arc::clone(&self.guardian));
                        self.helpers.run(move || {
                            let device = answered(|| device::open(&request, &guardian));
                            let member = number;
                            let opened = Opened { name, port, member, attempt, device };
                            reply.send(Answer::Opened(Box::new(opened)));
                        });
                    }
                    State::Open(open) => {
                        open.device.leave(&hosts, &member.name);
                        open.device.set_egress(self.links.egress_is_free(open.link.index));
                    }
                    _ => {}
                }
            }
            uplink.tell_aggregate(&self.control_frames, now);
            uplink.respecify();
        }
        changed
    }

    /// A helper has opened a device, or could not: its sources and lanes go to the workers.
    pub(super) fn on_opened(&mut self, opened: Opened, now: Instant, fabric: &mut Fabric) {
        let Opened { name, port, member: number, attempt, device } = opened;
        self.opening.remove(&name);
        let uplink = self.uplinks.values_mut().find(|uplink| uplink.index == port);
        let of_attempt = |member: &&mut Member| member.attempt == attempt;
        let wanted = uplink.and_then(|uplink| {
            let member = uplink.members.get_mut(number).filter(of_attempt)?;
            Some((&uplink.name, member))
        });
        let Some((uplink_name, member)) = wanted else {
            if let Ok(device) = device {
                self.closing.unwanted(&name, port, device);
            }
            return;
        };
        let mut device = match device {
            Ok(device) => device,
            Err(why) => {
                if let Some(more) = member.trouble.another(&why, now) {
                    tracing::error!("uplink {uplink_name}: {why}; tried again every {RETRY_AFTER:?}{more}");
                }
                member.state = State::Closed { retry: Some(now + RETRY_AFTER) };
                return;
            }
        };
        let Some(link) = member.link.clone() else {
            member.state = State::Closed { retry: None };
            self.closing.unwanted(&name, port, device);
            return;
        };
        let Negotiated { access, queues, remarks, .. } = &device.negotiated;
        if *access == "packet" && !remarks.is_empty() {
            tracing::warn!(
                "uplink {uplink_name}: {name}: no XDP, so a packet socket, which is slower (`access = \"packet\"` says that it is meant): {}",
                remarks.join("; ")
            );
        } else {
            for remark in remarks {
                tracing::warn!("uplink {uplink_name}: {name}: not {remark}");
            }
        }
        tracing::info!("uplink {uplink_name}: {name}: open, {access}, {queues} queues");
        device.negotiated.remarks.extend(member.stepped_down.clone());
        device.set_egress(self.links.egress_is_free(link.index));
        let first = number as u16 * SOURCES_MAX;
        let sources = device.sources.drain(..).zip(first..).map(|(source, lane)| {
            let (header_len, features) = (source.header_len, source.features);
            let source = WireSource::of_uplink(source.intake, port, lane, header_len, features);
            member.inwards.add(Arc::clone(source.counters()));
            (fabric.start_intake(source), lane)
        });
        let sources = sources.collect();
        device.lanes.iter().for_each(|lane| member.outwards.add(Arc::clone(lane.counters())));
        member.trouble.over();
        self.watch_at.get_or_insert(now + watchdog::LOOK_EVERY);
        member.state = State::Open(Box::new(OpenMember {
            lanes: std::mem::take(&mut device.lanes),
            sources,
            device,
            link,
        }));
        self.stale = true;
    }

    /// A source has come back from its worker.
    pub(in crate::control) fn on_stopped(&mut self, stopped: IntakeStopped) {
        self.closing.source(stopped);
    }

    /// A lane has come back from the workers.
    pub(in crate::control) fn on_lane(&mut self, lane: Arc<Lane>) {
        self.closing.lane(lane);
    }

    /// A worker cannot go on with a source, or through a lane: the device is opened anew. Returns its line for the log.
    pub(in crate::control) fn on_broken(
        &mut self,
        port: PortIndex,
        half: Half,
        why: &str,
        now: Instant,
        fabric: &mut Fabric,
    ) -> Option<String> {
        let uplink = self.uplinks.values_mut().find(|uplink| uplink.index == port)?;
        let broken = uplink.member_of(half);
        for (number, member) in uplink.members.iter_mut().enumerate() {
            // The other members of an aggregate go on.
            if broken.is_none_or(|broken| broken == number) && matches!(member.state, State::Open(_)) {
                close(member, port, fabric, &mut self.closing);
                member.state = State::Closed { retry: Some(now + Duration::from_millis(200)) };
            }
        }
        self.stale = true;
        self.links.refresh();
        Some(format!("uplink {}: stopped: {why}", uplink.name))
    }
}
