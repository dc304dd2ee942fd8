//! Aggregates as `nwmgr` and `lanadmin` showed them (SEMANTICS 4.6).

use std::fmt::Write;

use avio_proto::config::{AggregateMode, Balance};
use avio_proto::control::{AggregateReport, AggregatesReply, MemberReport};

/// How `nwmgr` wrote the balance.
fn balance(aggregate: &AggregateReport) -> &'static str {
    match aggregate.balance {
        _ if aggregate.mode == AggregateMode::LanMonitor => "LB_HS",
        Balance::LbHotStandby => "LB_HS",
        other => other.name(),
    }
}

/// The members that `wanted` picks, `-` if none.
fn names(aggregate: &AggregateReport, separator: &str, wanted: impl Fn(&MemberReport) -> bool) -> String {
    let names: Vec<&str> =
        aggregate.members.iter().filter(|member| wanted(member)).map(|member| member.name.as_str()).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(separator) }
}

/// `nwmgr -c lan900`. A member that is down has a `*`.
pub(super) fn brief(reply: &AggregatesReply) -> String {
    if reply.aggregates.is_empty() {
        return "no vswitch has an aggregate as its uplink\n".to_owned();
    }
    let mut text = String::from(
        "Class    Parent APA          Mode        Load      Membership\n\
         Instance PPA    State                    Balancing\n\
         ======== ====== ============ =========== ========= ==========\n",
    );
    for aggregate in &reply.aggregates {
        let members: Vec<String> = aggregate
            .members
            .iter()
            .map(|member| format!("{}{}", member.name, if member.state == "Down" { "*" } else { "" }))
            .collect();
        let _ = writeln!(
            text,
            "{:<8} {:<6} {:<12} {:<11} {:<9} {}",
            aggregate.name,
            "-",
            aggregate.state,
            aggregate.mode.name(),
            balance(aggregate),
            members.join(",")
        );
    }
    text
}

/// `lanadmin -x -i 900`, and every member.
pub(super) fn verbose(reply: &AggregatesReply) -> String {
    let mut text = String::new();
    for (number, aggregate) in reply.aggregates.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        let ports = |wanted: &dyn Fn(&MemberReport) -> bool| names(aggregate, " ", wanted);
        let hot_standby =
            if balance(aggregate) == "LB_HS" { "Hot Standby (LB_HOT_STANDBY)" } else { balance(aggregate) };
        let mut line = |what: &str, value: &str| {
            let _ = writeln!(text, "{what:<32}: {value}");
        };
        line("Link Aggregate PPA #", &aggregate.name);
        line("Link Aggregation Mode", aggregate.mode.name());
        line("Load Balance Mode", hot_standby);
        line("Vswitch", &aggregate.vswitch);
        line("State", &aggregate.state);
        line("Station Address", &aggregate.mac.to_string());
        if let Some(partner) = &aggregate.partner {
            let key = aggregate.partner_key.unwrap_or_default();
            line("Partner", &format!("{partner}, key {key} (ours: {})", aggregate.key.unwrap_or_default()));
        }
        line("Active Ports PPA #", &ports(&|member| member.state == "Active"));
        line("Port(s) ready", &ports(&|member| member.state == "Ready"));
        line("Port(s) not ready", &ports(&|member| member.state == "Not Ready" || member.state == "Down"));
        if aggregate.mode == AggregateMode::LanMonitor {
            line("Port(s) connected to active port", &ports(&|member| member.is_connected));
        }
        if aggregate.is_moving {
            line("Flows", "on their way from one member to another");
        }
        if aggregate.frames_held + aggregate.frames_not_held > 0 {
            let (held, lost) = (aggregate.frames_held, aggregate.frames_not_held);
            line("Frames held while flows moved", &format!("{held}, {lost} more found no room"));
        }
        for member in &aggregate.members {
            text.push_str(&of_member(member));
        }
    }
    text
}

fn of_member(member: &MemberReport) -> String {
    let mut text = String::new();
    let speed = if member.speed_mbps == 0 { "-".to_owned() } else { format!("{} Mbit/s", member.speed_mbps) };
    let _ = writeln!(
        text,
        "  {:<15} {:<9} {}  {speed}  priority {}  {} of 256 buckets, link lost {} times",
        member.name, member.state, member.mac, member.priority, member.buckets, member.link_losses
    );
    let _ = writeln!(
        text,
        "  {:<15} frames {} in {} out, octets {} in {} out, {} found the transmit ring full",
        "", member.frames_in, member.frames_out, member.octets_in, member.octets_out, member.no_buffer_out
    );
    if let Some(lacp) = &member.lacp {
        let _ = writeln!(
            text,
            "  {:<15} LACP {}/{}  actor {}  partner {} port {} of {}",
            "", lacp.receive, lacp.mux, lacp.actor, lacp.partner, lacp.partner_port, lacp.partner_system
        );
        let _ = writeln!(
            text,
            "  {:<15} LACPDUs {} in {} out, Markers {} in {} out {} answered, {} unreadable",
            "",
            member.lacpdus_in,
            member.lacpdus_out,
            member.markers_in,
            member.markers_out,
            member.marker_responses_in,
            member.unreadable
        );
    }
    if member.polls_in + member.polls_out > 0 {
        let _ = writeln!(text, "  {:<15} polling frames {} in {} out", "", member.polls_in, member.polls_out);
    }
    text
}

/// `nwmgr --sc`.
pub(super) fn script(reply: &AggregatesReply) -> String {
    let mut text = String::new();
    for aggregate in &reply.aggregates {
        let mut line = |attribute: &str, value: &str| {
            let _ = writeln!(text, "apa!{}#{attribute}#current#{value}", aggregate.name);
        };
        line("apa_state", &aggregate.state);
        line("mode", aggregate.mode.name());
        line("lb", balance(aggregate));
        line("mac", &aggregate.mac.to_string());
        line("ports", &names(aggregate, ",", |_| true));
        line("active_ports", &names(aggregate, ",", |member| member.state == "Active"));
        if let Some(partner) = &aggregate.partner {
            line("partner", partner);
        }
        for member in &aggregate.members {
            line(&format!("{}_state", member.name), &member.state);
            let numbers = [
                ("frames_in", member.frames_in),
                ("octets_in", member.octets_in),
                ("frames_out", member.frames_out),
                ("octets_out", member.octets_out),
            ];
            for (what, count) in numbers {
                line(&format!("{}_{what}", member.name), &count.to_string());
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, state: &str) -> MemberReport {
        MemberReport {
            name: name.into(),
            state: state.into(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            speed_mbps: 10_000,
            priority: 5,
            buckets: 256,
            is_connected: state == "Ready",
            lacp: None,
            frames_in: 3,
            octets_in: 300,
            frames_out: 5,
            octets_out: 500,
            no_buffer_out: 1,
            lacpdus_in: 0,
            lacpdus_out: 0,
            markers_in: 0,
            markers_out: 0,
            marker_responses_in: 0,
            polls_in: 7,
            polls_out: 8,
            unreadable: 0,
            link_losses: 1,
        }
    }

    fn reply() -> AggregatesReply {
        AggregatesReply {
            aggregates: vec![AggregateReport {
                name: "lan900".into(),
                vswitch: "vs_site".into(),
                state: "Up".into(),
                mode: AggregateMode::LanMonitor,
                balance: Balance::LbMac,
                mac: "02:00:00:00:00:01".parse().unwrap(),
                partner: None,
                partner_key: None,
                key: None,
                is_moving: false,
                frames_held: 12,
                frames_not_held: 0,
                members: vec![member("lan4", "Active"), member("lan5", "Down"), member("lan6", "Ready")],
            }],
        }
    }

    #[test]
    fn the_tables_of_the_original() {
        assert_eq!(
            brief(&reply()),
            "Class    Parent APA          Mode        Load      Membership\n\
             Instance PPA    State                    Balancing\n\
             ======== ====== ============ =========== ========= ==========\n\
             lan900   -      Up           LAN_MONITOR LB_HS     lan4,lan5*,lan6\n"
        );
        let text = verbose(&reply());
        for line in [
            "Link Aggregate PPA #            : lan900",
            "Active Ports PPA #              : lan4",
            "Link Aggregation Mode           : LAN_MONITOR",
            "Load Balance Mode               : Hot Standby (LB_HOT_STANDBY)",
            "Port(s) ready                   : lan6",
            "Port(s) not ready               : lan5",
            "Port(s) connected to active port: lan6",
            "Frames held while flows moved   : 12, 0 more found no room",
            "                  frames 3 in 5 out, octets 300 in 500 out, 1 found the transmit ring full",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
        let text = script(&reply());
        assert!(text.starts_with("apa!lan900#apa_state#current#Up\n"), "{text}");
        assert!(text.contains("apa!lan900#lan5_state#current#Down\n"), "{text}");
        assert!(text.contains("apa!lan900#lan4_octets_out#current#500\n"), "{text}");
    }
}
