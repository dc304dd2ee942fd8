//! Aggregates: Open vSwitch as LACP partner, failover under load with every frame counted, hot standby, failover groups, members that come
//! and go. Members are veth pairs; needs root, as uplinks do.

use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::ensure;
use avio_tests::wire::run;
use avio_tests::{Failure, Result, scratch};
use serde_json::Value;

fn main() -> ExitCode {
    case::main(&[
        Case::new("lacp_with_ovs", 60, lacp_with_ovs),
        Case::new("lacp_failover_under_load", 60, lacp_failover_under_load),
        Case::new("moved_flows_are_held", 60, moved_flows_are_held),
        Case::new("moved_flows_through_ovs", 60, moved_flows_through_ovs),
        Case::new("hot_standby", 40, hot_standby),
        Case::new("failover_group_and_spoofs", 60, failover_group_and_spoofs),
        Case::new("members_come_and_go", 60, members_come_and_go),
    ])
}

/// Veth pairs between here and here, or a namespace; deleted with the case.
struct Cables {
    count: usize,
    id: u32,
    namespace: Option<String>,
}

impl Cables {
    fn new(count: usize, in_namespace: bool) -> Result<Cables> {
        let id = std::process::id() % 1_000_000;
        let namespace = in_namespace.then(|| format!("avio-{id}"));
        let cables = Cables { count, id, namespace };
        cables.delete();
        if let Some(namespace) = &cables.namespace {
            run("ip", &["netns", "add", namespace])?;
        }
        for n in 0..count {
            let (near, far) = (cables.near(n), cables.far(n));
            let mut arguments = vec!["link", "add", &near, "type", "veth", "peer", "name", &far];
            if let Some(namespace) = &cables.namespace {
                arguments.extend(["netns", namespace.as_str()]);
            }
            run("ip", &arguments)?;
            run("ip", &["link", "set", &near, "up"])?;
            cables.plug(n, true)?;
        }
        Ok(cables)
    }

    fn near(&self, n: usize) -> String {
        format!("ava{}x{n}", self.id)
    }

    fn far(&self, n: usize) -> String {
        format!("avb{}x{n}", self.id)
    }

    /// Pulls or plugs cable `n` at its far end: both ends lose their carrier.
    fn plug(&self, n: usize, up: bool) -> Result {
        let (far, state) = (self.far(n), if up { "up" } else { "down" });
        let mut arguments = Vec::new();
        if let Some(namespace) = &self.namespace {
            arguments.extend(["-n", namespace.as_str()]);
        }
        arguments.extend(["link", "set", &far, state]);
        run("ip", &arguments).map(drop)
    }

    fn members(&self, far: bool, count: usize) -> String {
        let name = |n| if far { self.far(n) } else { self.near(n) };
        (0..count).map(|n| format!("\"{}\"", name(n))).collect::<Vec<_>>().join(", ")
    }

    fn delete(&self) {
        for n in 0..self.count {
            let _ = Command::new("ip").args(["link", "del", &self.near(n)]).output();
        }
        if let Some(namespace) = &self.namespace {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        self.delete();
    }
}

fn aggregate(name: &str, members: &str, lines: &str) -> String {
    format!("uplink = \"{name}\"\n[[aggregate]]\nname = \"{name}\"\nmembers = [{members}]\n{lines}\n")
}

/// `avio apa --json` of one aggregate.
fn shown(daemon: &Daemon, name: &str) -> Result<Value> {
    let output = daemon.avio(&["--json", "apa", "-c", name])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Failure::new(format!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr))))?;
    Ok(value["aggregates"][0].clone())
}

fn states(shown: &Value) -> Vec<String> {
    let members = shown["members"].as_array().map(Vec::as_slice).unwrap_or_default();
    members.iter().map(|member| member["state"].as_str().unwrap_or_default().to_owned()).collect()
}

fn wait_states(daemon: &Daemon, name: &str, wanted: &[&str], seconds: u64) -> Result<Value> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let now = shown(daemon, name)?;
        let settled = now["is_moving"] == false && states(&now) == wanted;
        if settled {
            return Ok(now);
        }
        ensure(Instant::now() < end, || format!("{name} is not {wanted:?}: {now}"))?;
        sleep(Duration::from_millis(20));
    }
}

/// Open vSwitch in the far namespace, with its own folder and sockets, and a bond of the far ends.
struct Ovs {
    _processes: [Console; 2],
    folder: String,
}

impl Ovs {
    /// `bonded`: how many of the cables end in the bond, the first ones.
    fn start(cables: &Cables, bonded: usize) -> Result<Ovs> {
        let folder = scratch::folder().join("ovs");
        std::fs::create_dir_all(&folder)?;
        let folder = folder.display().to_string();
        let database = format!("{folder}/conf.db");
        run("ovsdb-tool", &["create", &database, "/usr/share/openvswitch/vswitch.ovsschema"])?;
        let socket = format!("{folder}/db.sock");
        let environment = ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"].map(|name| (name, folder.as_str()));
        let mut server = command("ovsdb-server");
        server.envs(environment).args([&database, &format!("--remote=punix:{socket}")]);
        server.arg(format!("--unixctl={folder}/db.ctl"));
        let server = Console::spawn("ovsdb-server", &mut server)?;
        let end = Instant::now() + Duration::from_secs(5);
        while !std::path::Path::new(&socket).exists() {
            ensure(Instant::now() < end, || "ovsdb-server has no socket".to_owned())?;
            sleep(Duration::from_millis(10));
        }
        let ovs = |arguments: &[&str]| {
            let database = format!("--db=unix:{socket}");
            let mut all = vec![database.as_str(), "--no-wait"];
            all.extend(arguments);
            run("ovs-vsctl", &all)
        };
        ovs(&["init"])?;
        let namespace = cables.namespace.clone().unwrap_or_default();
        let mut switch = command("ip");
        switch.envs(environment).args(["netns", "exec", &namespace, "ovs-vswitchd"]);
        switch.args([&format!("unix:{socket}"), &format!("--unixctl={folder}/ctl"), "--disable-system"]);
        let switch = Console::spawn("ovs-vswitchd", &mut switch)?;
        ovs(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])?;
        let mut bond = vec!["add-bond", "br0", "bond0"];
        let far: Vec<String> = (0..bonded).map(|n| cables.far(n)).collect();
        bond.extend(far.iter().map(String::as_str));
        bond.extend(["lacp=active", "bond_mode=balance-tcp", "other_config:lacp-time=fast"]);
        ovs(&bond)?;
        Ok(Ovs { _processes: [server, switch], folder })
    }

    fn add_port(&self, name: &str) -> Result {
        let database = format!("--db=unix:{}/db.sock", self.folder);
        run("ovs-vsctl", &[&database, "--no-wait", "add-port", "br0", name]).map(drop)
    }

    fn lacp(&self) -> Result<String> {
        run("ovs-appctl", &["-t", &format!("{}/ctl", self.folder), "lacp/show"])
    }
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

/// Frames from the first guest to the second for so many seconds.
fn pktgen(daemon: &Daemon, seconds: f64, flows: u16) -> Result<Console> {
    let mut command = command(program("avio-pktgen")?);
    for index in 0..2 {
        command.arg("--socket").arg(daemon.socket(index));
        command.args(["--guest-mac", &mac_of(index as u16 + 1)]);
    }
    command.args(["--flows", &flows.to_string(), "--rate", &RATE.to_string()]);
    command.args(["--duration", &seconds.to_string(), "--json"]);
    Console::spawn("pktgen", &mut command)
}

/// Frames per second under which links are pulled.
const RATE: u32 = 10_000;
/// Failovers of which the median counts.
const FAILOVERS: usize = 5;

fn report(mut pktgen: Console, seconds: u64) -> Result<Value> {
    pktgen.wait_end(seconds)?;
    let output = pktgen.output();
    let line = output.lines().find(|line| line.starts_with('{'));
    let line = line.ok_or_else(|| Failure::new(format!("pktgen reports nothing: {output}")))?;
    serde_json::from_str(line).map_err(|e| Failure::new(format!("{e}: {line}")))
}

fn lacp_failover_under_load() -> Result {
    let cables = Cables::new(2, false)?;
    let lines = "mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nbalance = \"LB_FLOW\"";
    let mut daemon = back_to_back(&cables, [lines, lines], Default::default())?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 12)?;
    wait_states(&daemon, "lan901", &["Active", "Active"], 12)?;
    let mut outages = Vec::new();
    for round in 0..FAILOVERS {
        let load = pktgen(&daemon, 1.0, 64)?;
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
    let load = pktgen(&daemon, 2.0, 1)?;
    for _ in 0..5 {
        sleep(Duration::from_millis(300));
        daemon.avio(&["apa", "rebalance", "lan900"])?;
    }
    let report = report(load, 20)?;
    ensure(report["reordered"] == 0 && report["duplicated"] == 0 && report["lost"] == 0, || {
        report.to_string()
    })
}

/// Plugs a cable while frames flow, so that half of the flows move, and has them dealt anew: nothing may be lost or reordered, neither of the flows that
/// move nor of those that stay. The load comes from the first guest and ends at the second.
/// `lossless`: so is the partner, however busy this machine is; else only what it was given is sure.
fn move_under_load(daemon: &Daemon, cables: &Cables, lossless: bool) -> Result<Value> {
    cables.plug(1, false)?;
    wait_states(daemon, "lan900", &["Active", "Down"], 5)?;
    let before = shown(daemon, "lan900")?;
    let load = pktgen(daemon, 3.5, FLOWS)?;
    sleep(Duration::from_millis(500));
    cables.plug(1, true)?;
    let moved = wait_states(daemon, "lan900", &["Active", "Active"], 12)?;
    // After the loss of a link the buckets do not lie in turn; dealt anew, some of them do move back and forth.
    for _ in 0..3 {
        daemon.avio(&["apa", "rebalance", "lan900"])?;
        wait_states(daemon, "lan900", &["Active", "Active"], 5)?;
    }
    let report = report(load, 20)?;
    for never in ["lost", "duplicated", "reordered", "corrupt"] {
        ensure(report[never] == 0 || never == "lost" && !lossless, || format!("{never}: {report}"))?;
    }
    let after = shown(daemon, "lan900")?;
    let held = after["frames_held"].as_u64().unwrap_or(0) - before["frames_held"].as_u64().unwrap_or(0);
    println!("frames held while flows moved: {held} of {}", report["sent"]);
    ensure(held > 0 && after["frames_not_held"] == 0, || format!("held: {after}"))?;
    ensure(moved["members"][1]["buckets"] == 128, || moved.to_string())?;
    let out = |value: &Value, n: usize| value["members"][n]["frames_out"].as_u64().unwrap_or(0);
    let through = [0, 1].map(|n| out(&after, n) - out(&before, n));
    let sent = report["sent"].as_u64().unwrap_or(u64::MAX);
    ensure(through.iter().all(|n| *n > 0) && through.iter().sum::<u64>() >= sent, || {
        format!("frames out through the members {through:?}, sent {sent}: {after}")
    })?;
    Ok(after)
}

/// Flows that move, and flows that stay.
const FLOWS: u16 = 256;

fn moved_flows_are_held() -> Result {
    let cables = Cables::new(2, false)?;
    let lines = "mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nbalance = \"LB_FLOW\"";
    let daemon = back_to_back(&cables, [lines, lines], Default::default())?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 12)?;
    wait_states(&daemon, "lan901", &["Active", "Active"], 12)?;
    let after = move_under_load(&daemon, &cables, true)?;
    // Marker and response, and the other side's view of it.
    let far = shown(&daemon, "lan901")?;
    let [out, answered] = ["markers_out", "marker_responses_in"].map(|n| after["members"][0][n].as_u64());
    ensure(out >= Some(4) && out == answered, || after.to_string())?;
    ensure(far["members"][0]["markers_in"].as_u64() >= out, || far.to_string())?;
    Ok(())
}

/// Through Open vSwitch's bond, which deals the frames on to a second uplink.
fn moved_flows_through_ovs() -> Result {
    let cables = Cables::new(3, true)?;
    let ovs = Ovs::start(&cables, 2)?;
    ovs.add_port(&cables.far(2))?;
    let lines = "mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nbalance = \"LB_FLOW\"";
    let beyond = format!("uplink = \"{}\"", cables.near(2));
    let config = Config::default()
        .vswitch("vs_a", &aggregate("lan900", &cables.members(false, 2), lines))
        .vswitch("vs_b", &beyond)
        .guest("g1", "vs_a", 1, "")
        .guest("g2", "vs_b", 2, "");
    let daemon = Daemon::start(config)?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 12)?;
    let after = move_under_load(&daemon, &cables, false)?;
    let [out, answered] = ["markers_out", "marker_responses_in"].map(|n| after["members"][0][n].clone());
    println!("Markers to Open vSwitch: {out}, answered: {answered}");
    ensure(out.as_u64() >= Some(4), || after.to_string())
}

fn hot_standby() -> Result {
    let cables = Cables::new(2, false)?;
    let better = |name: String| format!("[[aggregate.member]]\nname = \"{name}\"\npriority = 9");
    let lines = "mode = \"MANUAL\"\nbalance = \"LB_HOT_STANDBY\"\n";
    let daemon = back_to_back(&cables, [lines, lines], [better(cables.near(0)), better(cables.far(0))])?;
    wait_states(&daemon, "lan900", &["Active", "Ready"], 5)?;
    wait_states(&daemon, "lan901", &["Active", "Ready"], 5)?;
    let load = pktgen(&daemon, 1.5, 8)?;
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
