//! What the operator sees of uplinks, and the numbers' beginnings.
//!
//! Called by the control socket's methods, on the control thread; changes nothing but where counting begins.

use std::time::Instant;

use avio_proto::control::{AggregateReport, UplinkMember, UplinkReport};

use super::traffic::Sum;
use super::wire::{Member, State, Uplink};
use super::{Uplinks, aggregate_report};

impl Uplinks {
    /// What the operator sees of a vswitch's uplink.
    pub(in crate::control) fn report(&self, vswitch: &str) -> Option<UplinkReport> {
        let uplink = self.uplinks.get(vswitch)?;
        let numbers = uplink.state.stats.snapshot().since(&uplink.baseline);
        let member = |member: &Member| {
            let open = if let State::Open(open) = &member.state { Some(open) } else { None };
            let link = member.link.as_ref();
            let negotiated = open.map(|open| &open.device.negotiated);
            let state = match (&member.state, link) {
                (_, None) => "Missing",
                (State::Open(_), Some(link)) if link.has_carrier => "Up",
                (State::Opening, _) => "Opening",
                _ => "Down",
            };
            UplinkMember {
                name: member.name.clone(),
                state: state.to_owned(),
                mac: link.and_then(|link| link.mac),
                mtu: link.map_or(0, |link| link.mtu),
                access: negotiated.map(|n| n.access.to_owned()),
                queues: negotiated.map_or(0, |n| n.queues as u32),
                multi_buffer: negotiated.is_some_and(|n| n.multi_buffer),
                busy_poll: negotiated.is_some_and(|n| n.busy_poll),
                remarks: negotiated.map_or_else(
                    || member.trouble.why().into_iter().cloned().collect(),
                    |n| n.remarks.clone(),
                ),
                need_wakeup: negotiated.is_some_and(|n| n.need_wakeup),
                ring_size: negotiated.map_or(0, |n| n.ring_size),
                vlan_metadata: negotiated.is_some_and(|n| n.vlan_metadata),
                sent_by: negotiated.map(|n| n.sent_by),
                xdp_frames: negotiated.is_some_and(|n| n.xdp_frames),
                segments_by: negotiated.map(|n| n.segments_by),
                checksums_by: negotiated.map(|n| n.checksums_by),
                switched_off: negotiated.map_or_else(Vec::new, |n| n.switched_off.names()),
            }
        };
        Some(UplinkReport {
            mac: Some(uplink.spec.mac).filter(|mac| !mac.is_zero()),
            mtu: u32::from(uplink.spec.mtu),
            native_vlan: uplink.config.native_vlan,
            members: uplink.members.iter().map(member).collect(),
            counters: numbers.counters,
            discards: numbers.discards,
        })
    }

    /// The aggregates that are uplinks, for the operator.
    pub(in crate::control) fn aggregates(&self) -> Vec<AggregateReport> {
        let now = Instant::now();
        let of = |uplink: &Uplink| {
            let bundle = uplink.bundle.as_ref()?;
            let through = |name: &str| {
                let member = uplink.members.iter().find(|member| member.name == name);
                member.map_or([Sum::default(); 2], |member| [member.inwards.sum(), member.outwards.sum()])
            };
            let held = uplink.held.sum();
            Some(aggregate_report::report(&uplink.vswitch, bundle.aggregate(), held, through, now))
        };
        self.uplinks.values().filter_map(of).collect()
    }

    /// What went through the members of the aggregate `name` counts from here.
    pub(in crate::control) fn clear_traffic(&mut self, name: &str) {
        self.uplinks.values_mut().filter(|uplink| uplink.name == name).for_each(Uplink::clear_traffic);
    }

    /// Counts from here.
    pub(in crate::control) fn clear_numbers(&mut self, vswitch: Option<&str>) {
        for uplink in self.uplinks.values_mut().filter(|u| vswitch.is_none_or(|name| name == u.vswitch)) {
            uplink.baseline = uplink.state.stats.snapshot();
            uplink.clear_traffic();
        }
    }
}
