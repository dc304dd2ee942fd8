//! Offloads that somebody switches on while a switch has the device: `ethtool -K eth1 rxvlan on`, or a network manager's profile.
//!
//! With AF_XDP a card that takes tags out hands the switch frames of a VLAN as untagged ones, which are the native VLAN's: guests would see what is not theirs. So
//! whatever was off for us is switched off again at once, with a line in the log. Who goes on switching it on gets a device that is opened as a packet
//! socket, where the kernel tells of the tag beside the frame and nothing has to be off. The monitor is read on the control thread, offloads are
//! looked at and set by helpers.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use avio_host::blocking::answered;
use avio_proto::config::UplinkAccess;

use super::wire::{State, close};
use super::{Answer, REOPEN_AFTER, Uplinks};
use crate::control::fabric::Fabric;
use crate::port::xdp::{Changed, FeatureMonitor, LinkFeatures};
use crate::table::PortIndex;

/// So often in [`FIGHTS_WINDOW`] offloads are switched off again; then nothing is relied on any more that somebody else does not want.
const FIGHTS_MAX: u32 = 5;
const FIGHTS_WINDOW: Duration = Duration::from_secs(60);

/// How often somebody has switched offloads of a device on.
#[derive(Debug, Default)]
pub(super) struct Fights {
    began: Option<Instant>,
    count: u32,
}

impl Fights {
    /// Once more; which one it is in its minute.
    fn another(&mut self, now: Instant) -> u32 {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= FIGHTS_WINDOW) {
            *self = Self { began: Some(now), count: 0 };
        }
        self.count += 1;
        self.count
    }
}

/// What a helper found on, of what was to be off, and what of it stays on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) struct SwitchedOn {
    pub on: LinkFeatures,
    pub left: LinkFeatures,
}

/// See [`Answer::Offloads`].
pub(in crate::control) struct Looked {
    port: PortIndex,
    member: String,
    found: Result<Option<SwitchedOn>, String>,
}

/// Which offloads matter to a device that is opened like that: see [`super::check::refusal`].
fn minded(access: Option<&str>) -> LinkFeatures {
    if access == Some("packet") { LinkFeatures::LRO } else { LinkFeatures::ALL }
}

impl Uplinks {
    /// Readable when offloads of some device change; [`Self::turn`] reads it. `None`: the kernel does not tell.
    pub(in crate::control) fn offloads_fd(&self) -> Option<RawFd> {
        self.offloads.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Has helpers look at the devices of which the kernel says that their offloads have changed.
    pub(super) fn look_at_offloads(&mut self) {
        let Some(changed) = self.offloads.as_mut().map(FeatureMonitor::changed) else { return };
        if changed == Changed::These(Default::default()) {
            return;
        }
        for uplink in self.uplinks.values() {
            for member in &uplink.members {
                let access = match &member.state {
                    State::Open(open) => Some(open.device.negotiated.access),
                    State::Opening => None,
                    State::Closed { .. } => continue,
                };
                let Some(device) = member.link.as_ref().map(|link| link.index) else { continue };
                if !changed.has(device) {
                    continue;
                }
                let (port, name, minded) = (uplink.index, member.name.clone(), minded(access));
                let (reply, guardian) = (self.mailbox.reply(), Arc::clone(&self.guardian));
                self.helpers.run(move || {
                    let look = || {
                        let mut guardian = guardian.lock().unwrap_or_else(PoisonError::into_inner);
                        guardian.insist(device, minded).map_err(|error: io::Error| error.to_string())
                    };
                    reply.send(Answer::Offloads(Looked { port, member: name, found: answered(look) }));
                });
            }
        }
    }

    /// What a helper found.
    /// Returns whether the device is closed now.
    pub(super) fn on_looked(&mut self, looked: Looked, now: Instant, fabric: &mut Fabric) -> bool {
        let uplink = self.uplinks.values_mut().find(|uplink| uplink.index == looked.port);
        let Some(uplink) = uplink else { return false };
        let Some(member) = uplink.members.iter_mut().find(|member| member.name == looked.member) else {
            return false;
        };
        let (of, name) = (uplink.name.clone(), &looked.member);
        let SwitchedOn { on, left } = match looked.found {
            Ok(None) => return false,
            Ok(Some(found)) => found,
            Err(why) => {
                tracing::warn!(
                    "uplink {of}: {name}: its offloads have changed and cannot be looked at: {why}"
                );
                return false;
            }
        };
        let count = member.fights.another(now);
        let what = on.names().join(", ");
        let access = match &member.state {
            State::Open(open) => open.device.negotiated.access,
            _ => "",
        };
        let gives_way = count > FIGHTS_MAX && !access.is_empty() && access != "packet";
        if left.is_none() && !gives_way {
            if count <= FIGHTS_MAX {
                tracing::warn!(
                    "uplink {of}: {name}: somebody has switched on {what}: its hardware {}; switched off again, as long as it is an uplink",
                    on.describe()
                );
            }
            return false;
        }
        if left.is_none() {
            let why = format!("somebody switches {what} on again and again");
            tracing::warn!("uplink {of}: {name}: {why}; opened anew as a packet socket, which copes with it");
            member.access = UplinkAccess::Packet;
            member.stepped_down = Some(format!("stepped down from {access}: {why}"));
        } else {
            tracing::warn!("uplink {of}: {name}: {what} is on and cannot be switched off; opened anew");
        }
        if access.is_empty() {
            return false;
        }
        close(member, uplink.index, fabric, &mut self.closing);
        member.state = State::Closed { retry: Some(now + REOPEN_AFTER) };
        uplink.tell_aggregate(&self.control_frames, now);
        uplink.respecify();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fights_are_counted_by_the_minute() {
        let (mut fights, start) = (Fights::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!([0, 20, 59].map(|second| fights.another(at(second))), [1, 2, 3]);
        assert_eq!([60, 61].map(|second| fights.another(at(second))), [1, 2]);
    }

    #[test]
    fn a_packet_socket_minds_only_what_the_kernel_cannot_tell() {
        assert!(
            !minded(Some("packet")).has(LinkFeatures::RX_VLAN)
                && minded(Some("packet")).has(LinkFeatures::LRO)
        );
        assert_eq!((minded(Some("copy")), minded(None)), (LinkFeatures::ALL, LinkFeatures::ALL));
    }
}
