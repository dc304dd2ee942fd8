//! What holds of the devices of uplinks, whatever others do and whatever the files say: offloads that stay off, devices that nobody has twice, what of a fault is said, and
//! how often. Each case has a network namespace of its own (root).

use std::fs::Permissions;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::ExitCode;

use avio_tests::aggregate::{aggregate, report, wait_states};
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::{ensure, eventually};
use avio_tests::netns::{host, inside};
use avio_tests::uplink::{best, config, device, wait_device, wait_key};
use avio_tests::{Result, scratch};
use serde_json::Value;

/// In seconds; they take two or three.
const SHORT_S: u64 = 40;
/// For the one that waits for two tries of five seconds.
const LONG_S: u64 = 60;
/// The uplink, and the other end of its wire.
const UPLINK: &str = "up0";
const WIRE: &str = "wire0";
/// An interface number that nobody has.
const NUMBER: u32 = 700;
/// Somebody on the wire.
const FAR: &str = "02:00:00:00:00:63";

fn main() -> ExitCode {
    case::main(&[
        Case::new("offloads_stay_off", SHORT_S, || inside(offloads_stay_off)),
        Case::new("offloads_that_were_off_stay_off", SHORT_S, || inside(offloads_that_were_off_stay_off)),
        Case::new("a_fault_is_said_once", LONG_S, || inside(a_fault_is_said_once)),
        Case::new("memory_that_cannot_be_locked", SHORT_S, || inside(memory_that_cannot_be_locked)),
        Case::new("members_with_different_mtus", SHORT_S, || inside(members_with_different_mtus)),
        Case::new("offloads_are_as_before_after_each_opening", SHORT_S, || {
            inside(offloads_are_as_before_after_each_opening)
        }),
    ])
}

/// A wire, up at both ends.
fn wire(near: &str, far: &str) -> Result {
    host(&format!("ip link add {near} type veth peer name {far}"))?;
    for device in [near, far] {
        host(&format!("echo 1 > /proc/sys/net/ipv6/conf/{device}/disable_ipv6 && ip link set {device} up"))?;
    }
    Ok(())
}

fn features() -> Result<String> {
    host(&format!("ethtool -k {UPLINK}"))
}

fn takes_tags_out() -> bool {
    features().is_ok_and(|all| all.contains("rx-vlan-offload: on"))
}

/// `ethtool -K up0 rxvlan on` while the switch has the device: off again at once, with a line each time, for a card that takes tags out hands XDP frames of a VLAN
/// as untagged ones. Who does not leave off gets a packet socket, which copes with it; a device that is set up anew begins at the top.
fn offloads_stay_off() -> Result {
    wire(UPLINK, WIRE)?;
    ensure(takes_tags_out(), || "a veth device has it on from the start".to_owned())?;
    let mut daemon = Daemon::start(config(UPLINK, "", ""))?;
    wait_key(&daemon, "access", best())?;
    wait_device(&daemon, "Up")?;
    ensure(!takes_tags_out(), || "tags are taken out".to_owned())?;
    let line = "up0: somebody has switched on rx-vlan-hw-parse: its hardware takes VLAN tags out (rx-vlan-offload); switched off again";
    let others = "generic-receive-offload: on";
    for time in 1..=5 {
        host(&format!("ethtool -K {UPLINK} rxvlan on"))?;
        eventually("tags stay in frames", 5, || !takes_tags_out())?;
        let said = |output: &str| (output.matches(line).count() >= time).then_some(0);
        daemon.console()?.wait_until(line, 5, said)?;
        wait_key(&daemon, "access", best())?;
        // What is none of its business is left alone.
        host(&format!("ethtool -K {UPLINK} gro on"))?;
        ensure(features()?.contains(others), || "GRO is switched off".to_owned())?;
    }
    host(&format!("ethtool -K {UPLINK} rxvlan on"))?;
    wait_key(&daemon, "access", "packet")?;
    wait_device(&daemon, "Up")?;
    let remarks = device(&daemon, "remarks")?.to_string();
    ensure(
        remarks.contains("stepped down from copy: somebody switches rx-vlan-hw-parse on again and again"),
        || remarks,
    )?;
    // From now on it may be.
    ensure(!takes_tags_out(), || "it is switched off at each opening".to_owned())?;
    host(&format!("ethtool -K {UPLINK} rxvlan on"))?;
    host(&format!("ip link set {UPLINK} down"))?;
    wait_device(&daemon, "Down")?;
    host(&format!("ip link set {UPLINK} up"))?;
    wait_key(&daemon, "access", best())?;
    let output = daemon.console()?.output();
    ensure(output.matches("somebody has switched on").count() == 5, || format!("other lines: {output}"))?;
    ensure(output.matches("opened anew as a packet socket").count() == 1, || {
        format!("other lines: {output}")
    })?;
    daemon.stop()?;
    ensure(takes_tags_out(), || "it is not as before".to_owned())
}

/// A device that had none of them on: each that is switched on meanwhile is off at once, the device goes on as it is, and has none on in the end.
fn offloads_that_were_off_stay_off() -> Result {
    wire(UPLINK, WIRE)?;
    host(&format!("ethtool -K {UPLINK} rxvlan off rx-vlan-stag-hw-parse off"))?;
    let before = features()?;
    let mut daemon = Daemon::start(config(UPLINK, "", ""))?;
    wait_device(&daemon, "Up")?;
    for name in ["rxvlan", "rx-vlan-stag-hw-parse"] {
        host(&format!("ethtool -K {UPLINK} {name} on"))?;
        eventually(name, 5, || features().is_ok_and(|now| now == before))?;
    }
    wait_device(&daemon, "Up")?;
    let said = "somebody has switched on rx-vlan-stag-hw-parse: its hardware takes service tags out";
    daemon.console()?.wait_for(said, 5)?;
    let output = daemon.console()?.output();
    ensure(output.matches("up0: open, ").count() == 1, || format!("it was opened anew: {output}"))?;
    daemon.stop()?;
    ensure(features()? == before, || "it is not as before".to_owned())
}

/// A device that is opened anew and anew, by an MTU that changes: what was on before is off each time, and on in the end.
fn offloads_are_as_before_after_each_opening() -> Result {
    wire(UPLINK, WIRE)?;
    let before = features()?;
    ensure(takes_tags_out(), || "a veth device has it on from the start".to_owned())?;
    let mut daemon = Daemon::start(config(UPLINK, "", ""))?;
    wait_device(&daemon, "Up")?;
    for time in 2..=12 {
        host(&format!("ip link set {UPLINK} mtu {}", 1400 + time))?;
        let opened = |output: &str| (output.matches("up0: open, ").count() >= time).then_some(0);
        daemon.console()?.wait_until("the device is opened anew", 10, opened)?;
        ensure(!takes_tags_out(), || format!("opening {time}: tags are taken out"))?;
        let off = device(&daemon, "switched_off")?.to_string();
        ensure(off.contains("rx-vlan-hw-parse"), || format!("opening {time}: switched off: {off}"))?;
    }
    let output = daemon.console()?.output();
    ensure(!output.contains("somebody has switched on"), || format!("nobody has: {output}"))?;
    daemon.stop()?;
    ensure(features()? == before, || "it is not as before".to_owned())
}

/// A device that cannot be opened is tried again every five seconds; the log has one line, and the operator sees why as long as it is so.
fn a_fault_is_said_once() -> Result {
    wire(UPLINK, WIRE)?;
    let mut daemon = Daemon::start(config(UPLINK, "", ""))?;
    wait_device(&daemon, "Up")?;
    host(&format!("ip link del {UPLINK}"))?;
    wait_device(&daemon, "Missing")?;
    // The next one is another daemon's: it has the mark.
    let mark = UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!("avio-uplink-{NUMBER}"))?)?;
    host(&format!("ip link add {UPLINK} index {NUMBER} type veth peer name {WIRE}"))?;
    host(&format!("ip link set {UPLINK} up && ip link set {WIRE} up"))?;
    let why = "`up0` is an uplink of another avio-vswitchd";
    daemon.console()?.wait_for(why, 10)?;
    // Each try connects to it.
    mark.set_nonblocking(true)?;
    let mut tries = 0;
    eventually("two more tries", 20, || {
        while mark.accept().is_ok() {
            tries += 1;
        }
        tries >= 3
    })?;
    ensure(device(&daemon, "remarks")?.to_string().contains(why), || "the operator is not told".to_owned())?;
    let output = daemon.console()?.output();
    ensure(output.matches(why).count() == 1, || format!("not one line: {output}"))?;
    drop(mark);
    wait_device(&daemon, "Up")?;
    daemon.ensure_healthy()
}

/// Without CAP_IPC_LOCK and with a small limit no AF_XDP socket gets its memory: one line says so, and the ways out.
fn memory_that_cannot_be_locked() -> Result {
    wire(UPLINK, WIRE)?;
    let limited = scratch::folder().join("limited");
    let program = program("avio-vswitchd")?;
    let ids = "--bounding-set -ipc_lock --inh-caps -ipc_lock";
    let script =
        format!("#!/bin/sh\nexec prlimit --memlock=1048576 setpriv {ids} {} \"$@\"\n", program.display());
    std::fs::write(&limited, script)?;
    std::fs::set_permissions(&limited, Permissions::from_mode(0o755))?;
    let mut daemon = Daemon::start_as(Some(limited), scratch::folder(), config(UPLINK, "", ""))?;
    wait_key(&daemon, "access", "packet")?;
    let output = daemon.console()?.output();
    let what = "16 MiB of memory for frames exceed the limit of locked memory; raise it";
    for part in [what, "LimitMEMLOCK=infinity", "CAP_IPC_LOCK"] {
        ensure(output.matches(part).count() == 1, || format!("'{part}' is not said once: {output}"))?;
        let remarks = device(&daemon, "remarks")?.to_string();
        ensure(remarks.matches(part).count() == 1, || format!("'{part}' is not shown once: {remarks}"))?;
    }
    daemon.ensure_healthy()
}

/// Members with different MTUs: the aggregate has the least, is shown with it and says so once. A frame that is longer is refused whole, whatever member its flow
/// leaves through; when they are all the same, it passes through each.
fn members_with_different_mtus() -> Result {
    let (pairs, flows) = ([("m0", "w0"), ("m1", "w1")], 64);
    for (near, far) in pairs {
        crate::wire(near, far)?;
    }
    host("ip link set m0 mtu 9000 && ip link set w0 mtu 9000 && ip link set w1 mtu 9000")?;
    let lines = aggregate("lan900", "\"m0\", \"m1\"", "mode = \"MANUAL\"\nbalance = \"LB_FLOW\"");
    let mut daemon =
        Daemon::start(Config::default().vswitch("vs", &lines).guest("g1", "vs", 1, "mtu = 9000"))?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 10)?;
    let wire = |daemon: &Daemon| -> Result<Value> {
        let output = daemon.avio(&["--json", "net", "-S", "vs", "-A"])?;
        Ok(serde_json::from_slice::<Value>(&output.stdout)?["wire"].clone())
    };
    let mtu = |daemon: &Daemon| -> Result<Value> { Ok(wire(daemon)?["mtu"].clone()) };
    ensure(mtu(&daemon)? == 1500, || format!("its MTU is {:?}", mtu(&daemon)))?;
    let verbose = daemon.avio(&["net", "-S", "vs", "-A", "-V"])?;
    let verbose = String::from_utf8_lossy(&verbose.stdout).into_owned();
    ensure(verbose.lines().any(|line| line.starts_with("Uplink MTU") && line.ends_with(": 1500")), || {
        verbose
    })?;
    // Frames of both members' flows; how many were sent since the beginning.
    let send = |daemon: &Daemon, size: &str| -> Result<u64> {
        let mut command = command(program("avio-pktgen")?);
        command.arg("--socket").arg(daemon.socket(0)).args(["--role", "transmit", "--guest-mac", &mac_of(1)]);
        command.args(["--peer-mac", FAR, "--size", size, "--flows", &flows.to_string()]);
        command.args(["--rate", "2000", "--duration", "0.5", "--json"]);
        report(Console::spawn("pktgen", &mut command)?, 20).map(drop)?;
        Ok(daemon.vswitch("vs")?.port(1)?.counters.outbound_unicast_wire)
    };
    let longs = |far: &str| -> Result<u64> {
        let octets = host(&format!("cat /sys/class/net/{far}/statistics/rx_bytes"))?.trim().parse::<u64>()?;
        Ok(octets / 8000)
    };
    let discarded = |daemon: &Daemon, reason: &str| -> Result<u64> {
        Ok(wire(daemon)?["discards"][reason].as_u64().unwrap_or(0))
    };
    let refused = send(&daemon, "8000")?;
    let (now, passed) = (wire(&daemon)?, longs("w0")? + longs("w1")?);
    ensure(refused > 100 && discarded(&daemon, "receiver_mtu")? == refused && passed == 0, || {
        format!("{refused} sent, {passed} passed: {now}")
    })?;
    host("ip link set m1 mtu 9000")?;
    eventually("it has the MTU of both", 5, || mtu(&daemon).is_ok_and(|mtu| mtu == 9000))?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 10)?;
    let passed = send(&daemon, "8000")?;
    eventually("long frames through both", 5, || {
        longs("w0").is_ok_and(|a| a > 100) && longs("w1").is_ok_and(|b| b > 100)
    })
    .map_err(|e| e.while_doing(&format!("{} passed", passed - refused)))?;
    ensure(discarded(&daemon, "receiver_mtu")? == refused, || "refused although both take it".to_owned())?;
    // And back, while it is in use: long ones are refused again, none is lost at a member, and those pass that both take.
    host("ip link set m1 mtu 1500")?;
    eventually("it has the least again", 5, || mtu(&daemon).is_ok_and(|mtu| mtu == 1500))?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 10)?;
    let lost = discarded(&daemon, "no_buffer")?;
    let refused = refused + send(&daemon, "8000")? - passed;
    send(&daemon, "1400")?;
    ensure(discarded(&daemon, "receiver_mtu")? == refused, || format!("not {refused}: {:?}", wire(&daemon)))?;
    ensure(discarded(&daemon, "no_buffer")? == lost, || "frames are lost at a member".to_owned())?;
    let output = daemon.console()?.output();
    for (line, times) in [
        ("its devices have different MTUs (m0 9000, m1 1500); it has the least, 1500", 2),
        ("its devices have the same MTU, 9000", 1),
    ] {
        ensure(output.matches(line).count() == times, || {
            format!("'{line}' is not said {times} times: {output}")
        })?;
    }
    daemon.ensure_healthy()
}
