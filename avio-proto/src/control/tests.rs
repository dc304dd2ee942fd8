//! The types against INTERFACE's JSON, and the Varlink description against the types.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::config::{MacAddr, NetworkAdaptor};

fn vswitch() -> Vswitch {
    Vswitch {
        name: "vs_site".into(),
        number: 2,
        state: VswitchState::Up,
        max_ports: 100,
        configured_ports: 1,
        uplink: None,
        uplink_mac: None,
        uplink_ip: None,
        ports: vec![Port {
            number: 1,
            state: PortState::Active,
            active_vm: Some("guest1".into()),
            untagged_vlanid: None,
            reserved_vms: vec!["guest1".into()],
            adaptor: NetworkAdaptor::AvioLan,
            mac: Some(MacAddr([0x1e, 0x29, 0x8c, 0x88, 0xa5, 0xeb])),
            counters: Counters::default(),
            discards: Discards::default(),
            trunk: Vec::new(),
            mtu: 1500,
            queue_pairs: 1,
            features: None,
            socket: None,
            link_status: Some(GuestLink::Up),
        }],
        wire: None,
        host_port: None,
    }
}

/// Whether every key and value of `part` is in `whole`.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|of_whole| contains(of_whole, value)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(a, b)| contains(a, b))
        }
        _ => whole == part,
    }
}

#[test]
fn the_json_of_interface() {
    let wanted = json!({"name":"vs_site","number":2,"state":"Up","max_ports":100,"configured_ports":1,"uplink":null,
     "ports":[{"number":1,"state":"Active","active_vm":"guest1","untagged_vlanid":null,"reserved_vms":["guest1"],
       "adaptor":"avio_lan","mac":"1e:29:8c:88:a5:eb",
       "counters":{"inbound_octets":0,"inbound_unicast_wire":0,"inbound_unicast_local":0,"inbound_nonunicast_wire":0,
         "inbound_nonunicast_local":0,"inbound_discards":0,"outbound_octets":0,"outbound_unicast_wire":0,
         "outbound_unicast_local":0,"outbound_nonunicast":0,"outbound_discards":0},
       "discards":{"spoofed_source":0,"no_buffer":0}}]});
    let json = serde_json::to_value(vswitch()).unwrap();
    assert!(contains(&json, &wanted), "{json:#}");
    assert_eq!(json["ports"][0]["counters"].as_object().unwrap().len(), 11);
    assert_eq!(serde_json::from_value::<Vswitch>(json).unwrap(), vswitch());
    // A daemon that knows nothing of our additions is understood too.
    assert!(serde_json::from_value::<Vswitch>(wanted).is_ok());
}

#[test]
fn counters_are_named_in_the_order_of_interface() {
    let counters = Counters { inbound_octets: 1, outbound_discards: 11, ..Counters::default() };
    let json = serde_json::to_value(counters).unwrap();
    for (name, value) in counters.named() {
        assert_eq!(json[name].as_u64(), Some(value), "{name}");
    }
}

/// The names in the parenthesised list that follows `head` in the description.
fn described(head: &str) -> BTreeSet<String> {
    let after = INTERFACE_DESCRIPTION.split(head).nth(1).unwrap_or_else(|| panic!("{head} is not described"));
    let mut depth = 0;
    let mut list = String::new();
    for character in after.chars() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 1 => list.push(character),
            _ => {}
        }
        if depth == 0 && character == ')' {
            break;
        }
    }
    list.split(',')
        .filter_map(|field| field.split(':').next())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

fn fields(value: impl serde::Serialize) -> BTreeSet<String> {
    serde_json::to_value(value).unwrap().as_object().unwrap().keys().cloned().collect()
}

#[test]
fn the_description_has_the_fields_of_the_types() {
    assert_eq!(described("type Counters"), fields(Counters::default()));
    assert_eq!(described("type Port"), fields(&vswitch().ports[0]));
    assert_eq!(described("type Vswitch"), fields(vswitch()));
    assert_eq!(described("type WorkerReport"), fields(WorkerReport::default()));
    assert_eq!(described("type StatisticsBucket"), fields(StatisticsBucket::default()));
    assert_eq!(
        described("type DiscardEntry"),
        fields(DiscardEntry { name: "".into(), direction: "".into(), description: "".into(), count: 0 })
    );
    assert_eq!(
        described("type FacilityState"),
        fields(FacilityState { name: "".into(), used: true, detail: "".into() })
    );
    assert_eq!(
        described("method Info() ->"),
        fields(InfoReply {
            version: "".into(),
            protocol_version: 1,
            pid: 1,
            uptime_s: 0,
            poll: crate::config::PollMode::Adaptive,
            spin_us: 1,
            worker_cores: vec![None],
            facilities: Vec::new(),
        })
    );
    let lacp = json!({
        "receive": "Current", "mux": "Distributing", "actor": "", "partner": "", "partner_system": "",
        "partner_port": 1
    });
    let member = json!({
        "name": "eth1", "state": "Active", "mac": "02:00:00:00:00:01", "speed_mbps": 0, "priority": 0,
        "buckets": 256, "is_connected": false, "frames_in": 0, "octets_in": 0, "frames_out": 0, "octets_out": 0,
        "no_buffer_out": 0, "lacpdus_in": 0, "lacpdus_out": 0, "markers_in": 0, "markers_out": 0,
        "marker_responses_in": 0, "polls_in": 0, "polls_out": 0, "unreadable": 0, "link_losses": 0, "lacp": lacp
    });
    let aggregate: AggregateReport = serde_json::from_value(json!({
        "name": "lan900", "vswitch": "v", "state": "Up", "mode": "LACP_AUTO", "balance": "LB_MAC",
        "mac": "02:00:00:00:00:01", "partner": null, "partner_key": null, "key": 900, "is_moving": false,
        "frames_held": 0, "frames_not_held": 0, "members": [member]
    }))
    .unwrap();
    assert_eq!(described("type LacpReport"), fields(aggregate.members[0].lacp.clone()));
    assert_eq!(described("type MemberReport"), fields(aggregate.members[0].clone()));
    assert_eq!(described("type AggregateReport"), fields(aggregate));
    assert_eq!(described("method Show"), fields(ShowParams { vswitch: Some("".into()), number: Some(1) }));
    assert_eq!(described("method Reload() ->"), fields(ReloadReply::default()));
    assert_eq!(described("error Refused"), fields(RefusedParams { reasons: Vec::new() }));
    assert_eq!(
        described("error NoSuchVswitch"),
        fields(NoSuchVswitchParams { vswitch: "".into(), known: Vec::new() })
    );
}

#[test]
fn the_description_has_every_method_and_error() {
    let named = |keyword: &str| -> BTreeSet<String> {
        INTERFACE_DESCRIPTION
            .lines()
            .filter_map(|line| line.strip_prefix(keyword))
            .filter_map(|rest| rest.split(['(', ' ']).next())
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(named("method "), method::ALL.iter().map(|&name| name.to_owned()).collect());
    assert_eq!(named("error "), error::ALL.iter().map(|&name| name.to_owned()).collect());
    assert!(INTERFACE_DESCRIPTION.contains(&format!("\ninterface {INTERFACE}\n")));
}

#[test]
fn envelopes_leave_out_what_is_not_set() {
    let call = Call { method: GET_INFO.into(), parameters: None, oneway: false, more: false, upgrade: false };
    assert_eq!(serde_json::to_string(&call).unwrap(), r#"{"method":"org.varlink.service.GetInfo"}"#);
    assert_eq!(serde_json::to_string(&Reply::default()).unwrap(), "{}");
}
