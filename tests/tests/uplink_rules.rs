//! What holds of the devices of uplinks, whatever others do and whatever the files say: offloads that stay off, devices that nobody has twice, what of a fault is said, and
//! how often. Each case has a network namespace of its own (root).

use std::process::ExitCode;

use avio_tests::Result;
use avio_tests::case::{self, Case};
use avio_tests::daemon::Daemon;
use avio_tests::failure::{ensure, eventually};
use avio_tests::netns::{host, inside};
use avio_tests::uplink::{best, config, device, wait_device, wait_key};

/// In seconds; they take two or three.
const SHORT_S: u64 = 40;
/// The uplink, and the other end of its wire.
const UPLINK: &str = "up0";
const WIRE: &str = "wire0";

fn main() -> ExitCode {
    case::main(&[
        Case::new("offloads_stay_off", SHORT_S, || inside(offloads_stay_off)),
        Case::new("offloads_that_were_off_stay_off", SHORT_S, || inside(offloads_that_were_off_stay_off)),
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
