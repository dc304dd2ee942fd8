//! Aggregates: Open vSwitch as LACP partner, failover under load with every frame counted, hot standby, failover groups, members that come
//! and go. Members are veth pairs; needs root, as uplinks do.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_tests::Result;
use avio_tests::aggregate::{
    Cables, Partner, aggregate, move_under_load, pktgen, report, shown, wait_states,
};
use avio_tests::capture::{Capture, hex};
use avio_tests::case::{self, Case};
use avio_tests::config::Config;
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::ensure;
use avio_tests::ovs::Ovs;
use avio_tests::wire::run;
use serde_json::Value;

fn main() -> ExitCode {
    case::main(&[
        Case::new("lacp_with_ovs", 60, lacp_with_ovs),
        Case::new("lacp_failover_under_load", 60, lacp_failover_under_load),
        Case::new("moved_flows_are_held", 60, moved_flows_are_held),
        Case::new("hot_standby", 40, hot_standby),
        Case::new("failover_group_and_spoofs", 60, failover_group_and_spoofs),
        Case::new("members_come_and_go", 60, members_come_and_go),
        Case::new("lender_leaves", 60, lender_leaves),
    ])
}

fn lacp_with_ovs() -> Result {
    let cables = Cables::new(2, true)?;
    let ovs = Ovs::start(&cables, 2)?;
    let lines = "mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nbalance = \"LB_FLOW\"";
    let vswitch = aggregate("lan900", &cables.members(false, 2), lines);
    let daemon = Daemon::start(Config::default().vswitch("vs", &vswitch).guest("g1", "vs", 1, ""))?;
    let up = wait_states(&daemon, "lan900", &["Active", "Active"], 12)?;
    ensure(up["key"] == 900 && up["state"] == "Up", || up.to_string())?;
    for member in up["members"].as_array().into_iter().flatten() {
        ensure(member["lacp"]["partner"] == "ATGSCD--", || format!("OVS says of itself: {member}"))?;
    }
    let lacp = ovs.lacp()?;
    let agreed =
        lacp.matches("partner state: activity timeout aggregation synchronized collecting distributing");
    ensure(agreed.count() == 2 && lacp.matches("partner key: 900").count() == 2, || lacp.clone())?;
    // A pulled cable, seen by its carrier.
    cables.plug(0, false)?;
    let down = wait_states(&daemon, "lan900", &["Down", "Active"], 2)?;
    ensure(down["members"][1]["buckets"] == 256, || down.to_string())?;
    cables.plug(0, true)?;
    let back = wait_states(&daemon, "lan900", &["Active", "Active"], 12)?;
    ensure(back["members"][0]["buckets"] == 128, || back.to_string())?;
    // The operator's tables.
    let table = daemon.avio(&["apa"])?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    ensure(table.contains("lan900   -      Up           LACP_AUTO   LB_FLOW"), || table.clone())?;
    let refused = daemon.avio(&["apa", "rebalance", "lan901"])?;
    let line = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure(refused.status.code() == Some(1) && line.lines().count() == 1 && line.contains("lan901"), || {
        line.clone()
    })?;
    let done = daemon.avio(&["apa", "reset", "lan900"])?;
    ensure(done.status.success(), || "reset is refused".to_owned())?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 12).map(drop)
}

/// Two vswitches of one daemon, an aggregate each, cable by cable, and a guest behind each.
fn back_to_back(cables: &Cables, lines: [&str; 2], particulars: [String; 2]) -> Result<Daemon> {
    let (near, far) = (cables.members(false, cables.count), cables.members(true, cables.count));
    let config = Config::default()
        .vswitch("vs_a", &aggregate("lan900", &near, &format!("{}{}", lines[0], particulars[0])))
        .vswitch("vs_b", &aggregate("lan901", &far, &format!("{}{}", lines[1], particulars[1])))
        .guest("g1", "vs_a", 1, "")
        .guest("g2", "vs_b", 2, "");
    Daemon::start(config)
}

/// Frames per second under which links are pulled.
const RATE: u32 = 10_000;
/// Failovers of which the median counts.
const FAILOVERS: usize = 5;

fn lacp_failover_under_load() -> Result {
    let cables = Cables::new(2, false)?;
    let lines = "mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nbalance = \"LB_FLOW\"";
    let mut daemon = back_to_back(&cables, [lines, lines], Default::default())?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 12)?;
    wait_states(&daemon, "lan901", &["Active", "Active"], 12)?;
    let mut outages = Vec::new();
    for round in 0..FAILOVERS {
        let load = pktgen(&daemon, 1.0, 64, RATE)?;
        sleep(Duration::from_millis(700));
        cables.plug(round % 2, false)?;
        let report = report(load, 20)?;
        let lost = report["lost"].as_u64().unwrap_or(u64::MAX);
        // Also what was stuck in the link that was pulled in the round before must never come out.
        for never in ["duplicated", "reordered", "corrupt"] {
            ensure(report[never] == 0, || format!("{never}: {report}"))?;
        }
        // Half of the frames went out through the link that was pulled.
        outages.push(lost as f64 * 2_000.0 / f64::from(RATE));
        cables.plug(round % 2, true)?;
        wait_states(&daemon, "lan900", &["Active", "Active"], 12)?;
        wait_states(&daemon, "lan901", &["Active", "Active"], 12)?;
    }
    outages.sort_by(f64::total_cmp);
    println!("outage after a pulled link, ms: {outages:?}");
    ensure(outages[FAILOVERS / 2] < 50.0, || format!("the median outage is over 50 ms: {outages:?}"))?;
    // Each was opened anew as it was before.
    let log = daemon.console()?.output();
    ensure(!log.contains("open, packet"), || "a device came back as a packet socket".to_owned())?;
    // One flow: nothing of it is reordered or seen twice while all buckets are dealt anew.
    let load = pktgen(&daemon, 2.0, 1, RATE)?;
    for _ in 0..5 {
        sleep(Duration::from_millis(300));
        daemon.avio(&["apa", "rebalance", "lan900"])?;
    }
    let report = report(load, 20)?;
    ensure(report["reordered"] == 0 && report["duplicated"] == 0 && report["lost"] == 0, || {
        report.to_string()
    })
}

fn moved_flows_are_held() -> Result {
    let cables = Cables::new(2, false)?;
    let lines = "mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nbalance = \"LB_FLOW\"";
    let daemon = back_to_back(&cables, [lines, lines], Default::default())?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 12)?;
    wait_states(&daemon, "lan901", &["Active", "Active"], 12)?;
    let plug = |n: usize, up: bool| cables.plug(n, up);
    let partner = Partner { plug: &plug, lossless: true, rate: RATE, settles_s: 8 };
    let after = move_under_load(&daemon, &partner)?;
    // Marker and response, and the other side's view of it.
    let far = shown(&daemon, "lan901")?;
    let [out, answered] = ["markers_out", "marker_responses_in"].map(|n| after["members"][0][n].as_u64());
    ensure(out >= Some(4) && out == answered, || after.to_string())?;
    ensure(far["members"][0]["markers_in"].as_u64() >= out, || far.to_string())?;
    Ok(())
}

fn hot_standby() -> Result {
    let cables = Cables::new(2, false)?;
    let better = |name: String| format!("[[aggregate.member]]\nname = \"{name}\"\npriority = 9");
    let lines = "mode = \"MANUAL\"\nbalance = \"LB_HOT_STANDBY\"\n";
    let daemon = back_to_back(&cables, [lines, lines], [better(cables.near(0)), better(cables.far(0))])?;
    wait_states(&daemon, "lan900", &["Active", "Ready"], 5)?;
    wait_states(&daemon, "lan901", &["Active", "Ready"], 5)?;
    let load = pktgen(&daemon, 1.5, 8, RATE)?;
    sleep(Duration::from_millis(900));
    cables.plug(0, false)?;
    let report = report(load, 20)?;
    let ms = report["lost"].as_f64().unwrap_or(f64::MAX) * 1000.0 / f64::from(RATE);
    println!("outage {ms} ms");
    ensure(ms < 500.0 && report["duplicated"] == 0, || report.to_string())?;
    wait_states(&daemon, "lan900", &["Down", "Active"], 2)?;
    cables.plug(0, true)?;
    // The better one has the traffic again.
    wait_states(&daemon, "lan900", &["Active", "Ready"], 5).map(drop)
}

/// Sends from the aggregate's and both members' addresses on a port that may send from any other; returns how many were refused.
fn spoofed(daemon: &Daemon, macs: &[String]) -> Result<u64> {
    let before = daemon.vswitch("vs")?.port(1)?.discarded("protected_mac");
    for mac in macs {
        let mut command = command(program("avio-pktgen")?);
        command.arg("--socket").arg(daemon.socket(0)).args(["--role", "transmit", "--guest-mac", mac]);
        command.args(["--peer-mac", "1e:29:8c:88:77:77", "--rate", "1000", "--duration", "0.2", "--json"]);
        Console::spawn("spoofer", &mut command)?.wait_end(10)?;
    }
    Ok(daemon.vswitch("vs")?.port(1)?.discarded("protected_mac") - before)
}

fn failover_group_and_spoofs() -> Result {
    let cables = Cables::new(2, true)?;
    let first = cables.near(0);
    let lines = format!(
        "mode = \"LAN_MONITOR\"\npoll_interval_ms = 500\n[[aggregate.member]]\nname = \"{first}\"\npriority = 9"
    );
    let vswitch = aggregate("lan900", &cables.members(false, 2), &lines);
    let config = Config::default().vswitch("vs", &vswitch).guest("g1", "vs", 1, "strict = false");
    let daemon = Daemon::start(config)?;
    // A bridge at the far end, so that the members hear each other.
    let namespace = cables.namespace.clone().unwrap_or_default();
    run("ip", &["-n", &namespace, "link", "add", "name", "sw0", "type", "bridge"])?;
    run("ip", &["-n", &namespace, "link", "set", "sw0", "up"])?;
    for n in 0..2 {
        run("ip", &["-n", &namespace, "link", "set", &cables.far(n), "master", "sw0"])?;
    }
    wait_states(&daemon, "lan900", &["Active", "Ready"], 8)?;
    let end = Instant::now() + Duration::from_secs(8);
    let before = loop {
        let now = shown(&daemon, "lan900")?;
        if now["members"][1]["is_connected"] == true {
            break now;
        }
        ensure(Instant::now() < end, || format!("the standby does not hear the active member: {now}"))?;
        sleep(Duration::from_millis(50));
    };
    let macs: Vec<String> =
        (0..2).filter_map(|n| before["members"][n]["mac"].as_str().map(str::to_owned)).collect();
    ensure(before["mac"] == before["members"][0]["mac"], || before.to_string())?;
    ensure(spoofed(&daemon, &macs)? > 0, || "a member's address is not protected before".to_owned())?;
    cables.plug(0, false)?;
    ensure(spoofed(&daemon, &macs)? > 0, || "a member's address is not protected meanwhile".to_owned())?;
    let after = wait_states(&daemon, "lan900", &["Down", "Active"], 2)?;
    ensure(after["mac"] == after["members"][1]["mac"], || after.to_string())?;
    for mac in &macs {
        ensure(spoofed(&daemon, std::slice::from_ref(mac))? > 0, || format!("{mac} is not protected after"))?;
    }
    Ok(())
}

fn members_come_and_go() -> Result {
    let cables = Cables::new(3, true)?;
    let _ovs = Ovs::start(&cables, 3)?;
    let lines = "mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nmac = \"1e:00:00:00:09:00\"";
    let vswitch = |count| aggregate("lan900", &cables.members(false, count), lines);
    let config = |count| Config::default().vswitch("vs", &vswitch(count)).guest("g1", "vs", 1, "");
    let mut daemon = Daemon::start(config(2))?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 12)?;
    daemon.config = config(3);
    daemon.reload()?;
    let three = wait_states(&daemon, "lan900", &["Active", "Active", "Active"], 12)?;
    ensure(three["members"][0]["link_losses"] == 0, || format!("those that stay go on: {three}"))?;
    daemon.config = config(2);
    daemon.reload()?;
    let two = wait_states(&daemon, "lan900", &["Active", "Active"], 5)?;
    ensure(two["members"][0]["buckets"] == 128 && two["members"][0]["link_losses"] == 0, || two.to_string())?;
    // One bad member refuses the whole, naming it.
    let wrong = vswitch(2).replace("members = [", "members = [\"nosuch0\", ");
    daemon.config = Config::default().vswitch("vs", &wrong).guest("g1", "vs", 1, "");
    daemon.config.write(&daemon.config_folder())?;
    let refused = daemon.avio(&["net", "--reload"])?;
    let line = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure(refused.status.code() == Some(1) && line.contains("nosuch0") && line.contains("lan900"), || {
        line.clone()
    })?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 2).map(drop)
}

/// Of an LACPDU with its Ethernet header (IEEE 802.1AX-2014 §6.4.2.3): the actor's system and state, and in that Synchronization, Collecting, Distributing.
const ACTOR_SYSTEM_AT: usize = 20;
const ACTOR_STATE_AT: usize = 32;
const CARRIES: u8 = 0x38;
/// Frames per second through a userspace switch whose core others have at times: what it may not have looked at for a fifth of a second fits its socket.
const GENTLE_RATE: u32 = 1_000;

/// The member whose address an aggregate has leaves the configuration under load, and comes back. With no `mac` set, the partner must not hear of another
/// system, nor of members that do not carry; and of a flow that stays where it is nothing is lost.
fn lender_leaves() -> Result {
    let cables = Cables::new(4, true)?;
    let ovs = Ovs::start(&cables, 3)?;
    ovs.add_port(&cables.far(3))?;
    let beyond = format!("uplink = \"{}\"", cables.near(3));
    // By the destination's address (LB_MAC): all frames of the load are one bucket, 2, which dealt in turn is the third member's.
    let lines = "mode = \"LACP_AUTO\"\ntimeout = \"fast\"";
    let config = |members: &str| {
        let vswitch = aggregate("lan900", members, lines);
        Config::default()
            .vswitch("vs_a", &vswitch)
            .vswitch("vs_b", &beyond)
            .guest("g1", "vs_a", 1, "")
            .guest("g2", "vs_b", 2, "")
    };
    let all = cables.members(false, 3);
    let without = format!("\"{}\", \"{}\"", cables.near(1), cables.near(2));
    let mut daemon = Daemon::start(config(&all))?;
    wait_states(&daemon, "lan900", &["Active"; 3], 15)?;
    daemon.avio(&["apa", "rebalance", "lan900"])?;
    let before = wait_states(&daemon, "lan900", &["Active"; 3], 5)?;
    let mac = before["mac"].clone();
    ensure(mac == before["members"][0]["mac"], || format!("the first lends its address: {before}"))?;
    // Who is where is known to all.
    report(pktgen(&daemon, 0.5, 8, GENTLE_RATE)?, 20)?;
    let captures = [1, 2].map(|n| {
        Capture::start(cables.namespace.as_deref(), &cables.far(n), "ether proto 0x8809 and ether[14] == 1")
    });
    let dropped = |daemon: &Daemon| -> Result<u64> {
        Ok(daemon.vswitch("vs_a")?.without_room()
            + daemon.vswitch("vs_b")?.without_room()
            + cables.dropped()?)
    };
    let dropped_before = dropped(&daemon)?;
    let out = |value: &Value, n: usize| value["members"][n]["frames_out"].as_u64().unwrap_or(0);
    let carried = out(&shown(&daemon, "lan900")?, 2);
    let load = pktgen(&daemon, 4.0, 8, GENTLE_RATE)?;
    sleep(Duration::from_millis(700));
    daemon.config = config(&without);
    daemon.reload()?;
    let two = wait_states(&daemon, "lan900", &["Active"; 2], 2)?;
    ensure(two["mac"] == mac, || format!("another address: {two}"))?;
    sleep(Duration::from_millis(1_200));
    let report = report(load, 20)?;
    let dropped = dropped(&daemon)? - dropped_before;
    println!("the member that lends the address leaves: {report}, {dropped} dropped and counted");
    for never in ["duplicated", "reordered", "corrupt"] {
        ensure(report[never] == 0, || format!("{never}: {report}"))?;
    }
    ensure(report["lost"].as_u64() <= Some(dropped), || format!("{dropped} dropped and counted: {report}"))?;
    let after = shown(&daemon, "lan900")?;
    let through = out(&after, 1) - carried;
    ensure(Some(through) >= report["sent"].as_u64(), || {
        format!("{through} went through the third: {after}")
    })?;
    // It comes back: as a member like any other.
    daemon.config = config(&all);
    daemon.reload()?;
    let three = wait_states(&daemon, "lan900", &["Active"; 3], 15)?;
    ensure(three["mac"] == mac, || format!("another address: {three}"))?;
    for member in three["members"].as_array().into_iter().flatten() {
        ensure(member["link_losses"] == 0, || three.to_string())?;
    }
    // What the partner heard of the two meanwhile.
    let system = mac.as_str().map(avio_tests::frames::mac).unwrap_or_default();
    for capture in captures {
        let frames = capture?.frames()?;
        let steady = |frame: &Vec<u8>| {
            frame.get(ACTOR_SYSTEM_AT..ACTOR_SYSTEM_AT + 6) == Some(&system)
                && frame.get(ACTOR_STATE_AT).is_some_and(|state| state & CARRIES == CARRIES)
        };
        ensure(frames.len() >= 4 && frames.iter().all(steady), || {
            format!("not always of one system that carries: {}", hex(&frames))
        })?;
    }
    let lacp = ovs.lacp()?;
    ensure(
        lacp.matches(&format!("partner sys_id: {}", mac.as_str().unwrap_or_default())).count() == 3,
        || lacp.clone(),
    )?;
    let ups = daemon.console()?.output().matches("lan900: aggregate is up").count();
    ensure(ups == 1, || format!("it was up {ups} times"))?;
    daemon.ensure_healthy()
}
