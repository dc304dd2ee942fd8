//! What others do to the device of an uplink, and to what is on it, while a switch has it: an interface joins a bridge, the process is killed that puts
//! offloads back. Each case has a network namespace of its own (root).

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use avio_tests::Result;
use avio_tests::capture::Capture;
use avio_tests::case::{self, Case};
use avio_tests::daemon::Daemon;
use avio_tests::failure::{ensure, eventually};
use avio_tests::frames::{EXPERIMENT, ethernet};
use avio_tests::netns::{host, inside};
use avio_tests::uplink::{best, config, wait_device, wait_key};
use avio_tests::wire::RawSender;

/// In seconds; they take two or three.
const SHORT_S: u64 = 40;
/// The uplink, and the other end of its wire.
const UPLINK: &str = "up0";
const WIRE: &str = "wire0";
/// Somebody on the wire, and an interface of the host's on the uplink.
const FAR: &str = "02:00:00:00:00:63";
const MACVLAN: &str = "02:00:00:00:77:01";
/// Longer than the daemon takes to hear of an interface.
const HEARD: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    case::main(&[
        Case::new("bridge_port_stays_what_it_is", SHORT_S, || inside(bridge_port_stays_what_it_is)),
        Case::new("guardian_is_killed", SHORT_S, || inside(guardian_is_killed)),
    ])
}

/// A wire with as many queues at both ends, up.
fn wire(queues: u32) -> Result {
    let pair = format!("numrxqueues {queues} numtxqueues {queues}");
    host(&format!("ip link add {UPLINK} {pair} type veth peer name {WIRE} {pair}"))?;
    for device in [UPLINK, WIRE] {
        host(&format!("echo 1 > /proc/sys/net/ipv6/conf/{device}/disable_ipv6 && ip link set {device} up"))?;
    }
    Ok(())
}

fn daemon() -> Result<Daemon> {
    let daemon = Daemon::start(config(UPLINK, "", ""))?;
    wait_key(&daemon, "access", best())?;
    wait_device(&daemon, "Up")?;
    Ok(daemon)
}

/// Waits until the device has been opened `times` times.
fn wait_opened(daemon: &mut Daemon, times: usize) -> Result {
    let opened = |output: &str| (output.matches("up0: open, ").count() >= times).then_some(0);
    daemon.console()?.wait_until("the device is opened anew", 10, opened).map(drop)
}

/// A bridge tells of its ports in messages of its own family, with little in them, and of one that leaves as of one that is deleted: what is known of the
/// interface stays. Here that is a macvlan on the uplink, whose address is the host's as long as it is there.
fn bridge_port_stays_what_it_is() -> Result {
    wire(1)?;
    host(&format!(
        "ip link add m0 link {UPLINK} address {MACVLAN} type macvlan mode private && ip link set m0 up"
    ))?;
    let mut daemon = daemon()?;
    let (capture, from) = (Capture::start(None, "m0", "")?, RawSender::new(WIRE)?);
    let mut sent = 0;
    let mut reaches_the_host = |when: &str| -> Result {
        sent += 1;
        let mut frame = ethernet(MACVLAN, FAR, EXPERIMENT);
        frame[59] = sent;
        // The daemon hears of interfaces a moment later.
        eventually(when, 3, || {
            from.send(&frame).is_ok() && capture.frames().is_ok_and(|frames| frames.contains(&frame))
        })
    };
    reaches_the_host("a frame to the macvlan")?;
    host("ip link add br0 type bridge && ip link set br0 up && ip link set m0 master br0")?;
    // The last that is told of it is told by the bridge.
    host("bridge link set dev m0 learning off")?;
    // Once the daemon has heard of it; nothing that it shows changes by that.
    sleep(HEARD);
    reaches_the_host("a frame to the macvlan in a bridge")?;
    host("ip link set m0 nomaster")?;
    reaches_the_host("a frame to the macvlan that has left the bridge")?;
    daemon.ensure_healthy()
}

/// The process that puts a device's offloads back is killed: another one knows what it knew. The device can be opened anew, and is as before in the end, whichever
/// way that comes.
fn guardian_is_killed() -> Result {
    wire(1)?;
    let features = || host(&format!("ethtool -k {UPLINK}"));
    host(&format!("ethtool -K {UPLINK} rxvlan on"))?;
    let before = features()?;
    ensure(before.contains("rx-vlan-offload: on"), || before.clone())?;
    for orderly in [true, false] {
        let mut daemon = daemon()?;
        ensure(features()?.contains("rx-vlan-offload: off"), || "tags are taken out".to_owned())?;
        let pid = daemon.console()?.pid();
        let guardian = || host(&format!("pgrep -P {pid}")).ok();
        let first = guardian().unwrap_or_default();
        host(&format!("kill -9 {first}"))?;
        if orderly {
            // It is missed when a device is opened anew.
            host(&format!("ip link set {UPLINK} mtu 1400"))?;
            wait_opened(&mut daemon, 2)?;
            wait_device(&daemon, "Up")?;
            daemon.stop()?;
        } else {
            eventually("another guardian", 10, || guardian().is_some_and(|other| other != first))?;
            daemon.kill();
        }
        eventually("the device is as before", 5, || features().is_ok_and(|now| now == before))?;
        host(&format!("ip link set {UPLINK} mtu 1500"))?;
    }
    Ok(())
}
