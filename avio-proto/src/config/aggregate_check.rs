//! The checks of `[[aggregate]]`: one bad member or key refuses the whole, naming it.
//!
//! Called by the checks of `vswitches.toml` only.

use std::collections::BTreeMap;

use super::aggregate::{
    AggregateConfig, AggregateMode, Balance, COST, DEAD_COUNT_MAX, FAILBACK_DELAY_S_MAX, MEMBERS_MAX,
    MEMBERS_MIN, MonitorPolicy, POLL_INTERVAL_MS, RAPID_ARP_COUNT, RAPID_ARP_INTERVAL_S, RAPID_ARP_S_MAX,
};
use super::check::Place;
use super::{ConfigError, VswitchesFile, check_name};

/// Why the original's third protocol is refused.
const FEC_AUTO: &str = "FEC_AUTO (Cisco PAgP) is a proprietary protocol that switches have given up for LACP; \
    write LACP_AUTO, or MANUAL if the switch has a static channel";

/// Longest network device name, in bytes (`IFNAMSIZ` less the terminator).
const DEVICE_LEN_MAX: usize = 15;

/// Checks all aggregates of a file.
pub(super) fn aggregates(place: &Place<'_>, file: &VswitchesFile, errors: &mut Vec<ConfigError>) {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    let mut members: BTreeMap<&str, &str> = BTreeMap::new();
    for (index, aggregate) in file.aggregate.iter().enumerate() {
        let key = |name: &str| format!("aggregate[{index}].{name}");
        if let Err(error) = check_name(&aggregate.name) {
            errors.push(place.at(&key("name"), error.to_string()));
        }
        if let Some(first) = names.insert(&aggregate.name, index) {
            let first = place.named(&format!("aggregate[{first}].name"));
            errors
                .push(place.at(&key("name"), format!("`{}` is already defined at {first}", aggregate.name)));
        }
        let count = aggregate.members.len();
        if !(MEMBERS_MIN..=MEMBERS_MAX).contains(&count) {
            let message = format!(
                "an aggregate has {MEMBERS_MIN} to {MEMBERS_MAX} network devices, not {count}; \
                 a single one can be an `uplink` itself"
            );
            errors.push(place.at(&key("members"), message));
        }
        for member in &aggregate.members {
            if check_name(member).is_err() || member.len() > DEVICE_LEN_MAX {
                let member: String = member.chars().take(40).collect();
                errors.push(place.at(
                    &key("members"),
                    format!("`{member}` is no network device's name (1 to {DEVICE_LEN_MAX} characters); `ip link` lists them"),
                ));
                continue;
            }
            match members.insert(member, &aggregate.name) {
                Some(owner) if owner == aggregate.name => {
                    errors.push(place.at(&key("members"), format!("`{member}` is named twice")));
                }
                Some(owner) => errors.push(place.at(
                    &key("members"),
                    format!("`{member}` is already a member of `{owner}`; a device belongs to one aggregate"),
                )),
                None => {}
            }
        }
        particulars(place, index, aggregate, errors);
        settings(place, index, aggregate, errors);
    }
}

/// `[[aggregate.member]]`.
fn particulars(place: &Place<'_>, index: usize, aggregate: &AggregateConfig, errors: &mut Vec<ConfigError>) {
    for (at, member) in aggregate.member.iter().enumerate() {
        let key = |name: &str| format!("aggregate[{index}].member[{at}].{name}");
        let name: String = member.name.chars().take(40).collect();
        if !aggregate.members.contains(&member.name) {
            let known = aggregate.members.join(", ");
            errors.push(place.at(&key("name"), format!("`{name}` is not in `members`; they are {known}")));
        } else if aggregate.member[..at].iter().any(|other| other.name == member.name) {
            errors.push(place.at(&key("name"), format!("`{name}` has a section already")));
        }
        if member.key == Some(0) {
            errors.push(place.at(&key("key"), "0 is no key; give 1 to 65535"));
        }
        if let Some(cost) = member.cost {
            place.range(errors, &key("cost"), cost, COST.0..=COST.1);
        }
    }
    if aggregate.mode == AggregateMode::LanMonitor && aggregate.policy == MonitorPolicy::CostBased {
        for name in &aggregate.members {
            if aggregate.member(name).cost.is_none() {
                let message = format!(
                    "COST_BASED needs the cost of every member; give `{name}` an [[aggregate.member]] with `cost`"
                );
                errors.push(place.at(&format!("aggregate[{index}].policy"), message));
            }
        }
    }
}

/// Everything else.
fn settings(place: &Place<'_>, index: usize, aggregate: &AggregateConfig, errors: &mut Vec<ConfigError>) {
    let key = |name: &str| format!("aggregate[{index}].{name}");
    if aggregate.mode == AggregateMode::FecAuto {
        errors.push(place.at(&key("mode"), FEC_AUTO));
    }
    if aggregate.mode == AggregateMode::LacpAuto && aggregate.balance == Balance::LbHotStandby {
        let message = "hot standby has no partner to agree with; write mode = \"MANUAL\", or another balance";
        errors.push(place.at(&key("balance"), message));
    }
    if let Some(mac) = aggregate.mac
        && (!mac.is_local() || mac.is_multicast())
    {
        let message = format!("{mac} must be local and unicast: the first pair x2, x6, xa or xe");
        errors.push(place.at(&key("mac"), message));
    }
    if aggregate.key == Some(0) {
        errors.push(place.at(&key("key"), "0 is no key; give 1 to 65535"));
    }
    let most = if aggregate.is_one_at_a_time() { 1 } else { aggregate.members.len() as u32 };
    place.range(errors, &key("min_links"), aggregate.min_links, 1..=most.max(1));
    place.range(errors, &key("failback_delay_s"), aggregate.failback_delay_s, 0..=FAILBACK_DELAY_S_MAX);
    place.range(
        errors,
        &key("poll_interval_ms"),
        aggregate.poll_interval_ms,
        POLL_INTERVAL_MS.0..=POLL_INTERVAL_MS.1,
    );
    place.range(errors, &key("dead_count"), aggregate.dead_count, 1..=DEAD_COUNT_MAX);
    let (interval, count) = (aggregate.rapid_arp_interval_s, aggregate.rapid_arp_count);
    place.range(
        errors,
        &key("rapid_arp_interval_s"),
        interval,
        RAPID_ARP_INTERVAL_S.0..=RAPID_ARP_INTERVAL_S.1,
    );
    place.range(errors, &key("rapid_arp_count"), count, RAPID_ARP_COUNT.0..=RAPID_ARP_COUNT.1);
    if interval.saturating_mul(count) > RAPID_ARP_S_MAX
        && count <= RAPID_ARP_COUNT.1
        && interval <= RAPID_ARP_INTERVAL_S.1
    {
        let message = format!(
            "{count} announcements every {interval} s take more than {RAPID_ARP_S_MAX} s; give fewer"
        );
        errors.push(place.at(&key("rapid_arp_count"), message));
    }
}
