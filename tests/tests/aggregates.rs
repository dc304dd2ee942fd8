//! Aggregates: Open vSwitch as LACP partner, failover under load with every frame counted, hot standby, failover groups, members that come
//! and go. Members are veth pairs; needs root, as uplinks do.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_tests::Result;
use avio_tests::aggregate::{
    Cables, Partner, aggregate, move_under_load, pktgen, report, shown, wait_states,
};
use avio_tests::case::{self, Case};
use avio_tests::config::Config;
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::ensure;
use avio_tests::ovs::Ovs;
use avio_tests::wire::run;

fn main() -> ExitCode {
    case::main(&[
        Case::new("lacp_with_ovs", 60, lacp_with_ovs),
        Case::new("lacp_failover_under_load", 60, lacp_failover_under_load),
        Case::new("moved_flows_are_held", 60, moved_flows_are_held),
        Case::new("hot_standby", 40, hot_standby),
        Case::new("failover_group_and_spoofs", 60, failover_group_and_spoofs),
        Case::new("members_come_and_go", 60, members_come_and_go),
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
