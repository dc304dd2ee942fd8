//! What the operator sees of an aggregate.

use std::time::Instant;

use avio_proto::control::{AggregateReport, LacpReport, MemberReport};

use super::traffic::Sum;
use crate::aggregate::{Aggregate, Member, Slot};

/// One aggregate, the uplink of `vswitch`. `held`: frames that waited; `through`: what came in and went out through a device.
pub(super) fn report(
    vswitch: &str,
    aggregate: &Aggregate,
    held: Sum,
    through: impl Fn(&str) -> [Sum; 2],
    now: Instant,
) -> AggregateReport {
    let config = aggregate.config();
    let group = aggregate.lacp().and_then(|lacp| lacp.group());
    AggregateReport {
        name: config.name.clone(),
        vswitch: vswitch.to_owned(),
        state: if aggregate.is_up() { "Up" } else { "Down" }.to_owned(),
        mode: config.mode,
        balance: config.balance,
        mac: aggregate.mac(),
        partner: group.map(|group| group.partner.to_string()),
        partner_key: group.map(|group| group.partner_key),
        key: aggregate.lacp().map(|_| config.lacp_key()),
        is_moving: aggregate.spread().is_moving(),
        frames_held: held.frames,
        frames_not_held: held.no_buffer,
        members: aggregate
            .members()
            .iter()
            .map(|(slot, one)| member(aggregate, *slot, one, through(&one.name), now))
            .collect(),
    }
}

fn member(
    aggregate: &Aggregate,
    slot: Slot,
    member: &Member,
    [inwards, outwards]: [Sum; 2],
    now: Instant,
) -> MemberReport {
    let counters = &member.counters;
    let lacp = aggregate.lacp().and_then(|lacp| {
        let (port, actor) = (lacp.port(slot)?, lacp.actor(slot)?);
        Some(LacpReport {
            receive: format!("{:?}", port.receive),
            mux: format!("{:?}", port.mux),
            actor: actor.state.to_string(),
            partner: port.partner.state.to_string(),
            partner_system: port.partner.system.to_string(),
            partner_port: port.partner.port,
        })
    });
    MemberReport {
        name: member.name.clone(),
        state: aggregate.state(slot, now).name().to_owned(),
        mac: member.mac,
        speed_mbps: member.link.speed_mbps,
        priority: aggregate.config().member(&member.name).priority,
        buckets: aggregate.spread().count(slot) as u32,
        is_connected: aggregate.hears_active(slot, now),
        lacp,
        frames_in: inwards.frames,
        octets_in: inwards.octets,
        frames_out: outwards.frames,
        octets_out: outwards.octets,
        no_buffer_out: outwards.no_buffer,
        lacpdus_in: counters.lacpdus_in,
        lacpdus_out: counters.lacpdus_out,
        markers_in: counters.markers_in,
        markers_out: counters.markers_out,
        marker_responses_in: counters.marker_responses_in,
        polls_in: counters.polls_in,
        polls_out: counters.polls_out,
        unreadable: counters.unreadable,
        link_losses: counters.link_losses,
    }
}
