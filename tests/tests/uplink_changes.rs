//! What others do to the device of an uplink, and to what is on it, while a switch has it: an interface joins a bridge, the process is killed that puts
//! offloads back, the device gets more queues, our program is taken from it, and the configuration changes while it is opened. Each case has a network namespace of its own (root).

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use avio_guest::net::Offloads;
use avio_tests::capture::Capture;
use avio_tests::case::{self, Case};
use avio_tests::config::mac_of;
use avio_tests::daemon::Daemon;
use avio_tests::driver::Driver;
use avio_tests::failure::{ensure, eventually};
use avio_tests::frames::{EXPERIMENT, ethernet, tcp};
use avio_tests::netns::{host, inside};
use avio_tests::uplink::{best, config, device, wait_device, wait_key};
use avio_tests::wire::RawSender;
use avio_tests::{Failure, Result};

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
        Case::new("more_and_fewer_queues", SHORT_S, || inside(more_and_fewer_queues)),
        Case::new("program_is_taken_away", SHORT_S, || inside(program_is_taken_away)),
        Case::new("too_many_queues", SHORT_S, || inside(too_many_queues)),
        Case::new("access_changes_while_it_is_opened", SHORT_S, || inside(access_changes_while_it_is_opened)),
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
    let console = daemon.console()?;
    eventually(&format!("the device is opened {times} times"), 10, || {
        console.output().matches("up0: open, ").count() >= times
    })
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
        host(&format!("kill -9 $(pgrep -P {pid})"))?;
        if orderly {
            // It is missed when a device is opened anew.
            host(&format!("ip link set {UPLINK} mtu 1400"))?;
            wait_opened(&mut daemon, 2)?;
            wait_device(&daemon, "Up")?;
            daemon.stop()?;
        } else {
            daemon.console()?.wait_for("another one knows what it knew", 10)?;
            daemon.kill();
        }
        eventually("the device is as before", 5, || features().is_ok_and(|now| now == before))?;
        host(&format!("ip link set {UPLINK} mtu 1500"))?;
    }
    Ok(())
}

/// Frames of so many flows from the wire, which the kernel deals over the queues.
const FLOWS: u16 = 64;

/// All of them reach the guest.
fn ensure_flows(guest: &mut Driver, from: &RawSender, when: &str) -> Result {
    let mut wanted: Vec<Vec<u8>> = (0..FLOWS)
        .map(|flow| {
            let mut frame = tcp(&mac_of(1), FAR, 100);
            frame[34..36].copy_from_slice(&(2000 + 7 * flow).to_be_bytes());
            frame
        })
        .collect();
    guest.received()?;
    wanted.iter().try_for_each(|frame| from.send(frame))?;
    eventually(when, 10, || {
        let got = guest.received().unwrap_or_default();
        wanted.retain(|frame| !got.contains(frame));
        wanted.is_empty()
    })
    .map_err(|e| {
        let sent = host(&format!("cat /sys/class/net/{WIRE}/statistics/tx_packets")).unwrap_or_default();
        e.while_doing(&format!(
            "{} of {FLOWS} flows are missing, {} frames were sent",
            wanted.len(),
            sent.trim()
        ))
    })
}

fn set_queues(count: u32) -> Result {
    // More of one end's transmit queues than the other end receives with: an end with an XDP program refuses that.
    for device in if count > 1 { [UPLINK, WIRE] } else { [WIRE, UPLINK] } {
        host(&format!("ethtool -L {device} rx {count} tx {count}"))?;
    }
    Ok(())
}

/// Each queue has its socket, also those that come later; while sockets are on them, the kernel lets nobody take queues away.
fn more_and_fewer_queues() -> Result {
    wire(4)?;
    set_queues(1)?;
    let mut daemon = daemon()?;
    let mut guest = Driver::connect(&daemon.socket(0), Offloads::None)?;
    daemon.wait_active(1)?;
    let from = RawSender::new(WIRE)?;
    ensure_flows(&mut guest, &from, "one queue")?;
    ensure(device(&daemon, "queues")? == 1, || "one queue".to_owned())?;
    set_queues(4)?;
    daemon.console()?.wait_for("up0: it has 4 queues now, not 1; opened anew", 5)?;
    wait_opened(&mut daemon, 2)?;
    ensure_flows(&mut guest, &from, "four queues")?;
    ensure(device(&daemon, "queues")? == 4, || "four queues".to_owned())?;
    let fewer = host(&format!("ethtool -L {UPLINK} rx 1"));
    ensure(fewer.is_err(), || "queues were taken away".to_owned())?;
    ensure_flows(&mut guest, &from, "four queues, still")?;
    daemon.ensure_healthy()
}

/// Somebody takes our program from the device, by the tool that is made for that: it comes back, and guests have their wire.
fn program_is_taken_away() -> Result {
    wire(1)?;
    let mut daemon = daemon()?;
    let mut guest = Driver::connect(&daemon.socket(0), Offloads::None)?;
    daemon.wait_active(1)?;
    let from = RawSender::new(WIRE)?;
    ensure_flows(&mut guest, &from, "as opened")?;
    // `prog/xdp id 9`, and of the links `7: xdp  prog 9`.
    let shown = host(&format!("ip -d -o link show {UPLINK}"))?;
    let program =
        shown.split("prog/xdp id ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    let links = host("bpftool link show")?;
    let ours = links
        .lines()
        .find(|line| line.contains("xdp") && line.trim_end().ends_with(&format!("prog {program}")));
    let number = ours.and_then(|line| line.split(':').next());
    let number = number.ok_or_else(|| Failure::new(format!("no link to program {program}: {links}")))?;
    host(&format!("bpftool link detach id {number}"))?;
    daemon.console()?.wait_for("up0: its program was taken away by somebody else; opened anew", 5)?;
    wait_opened(&mut daemon, 2)?;
    wait_key(&daemon, "access", best())?;
    ensure_flows(&mut guest, &from, "with its program again")?;
    daemon.ensure_healthy()
}

/// One reload after the other changes how the device is to be opened while it is being opened: what was opened for a configuration that is gone is nobody's, it keeps
/// nobody away, and in the end the device is opened as it is to be.
fn access_changes_while_it_is_opened() -> Result {
    wire(1)?;
    let mut daemon = Daemon::start(config(UPLINK, "", ""))?;
    for times in 0..30 {
        let access = if times % 2 == 0 { "generic" } else { "packet" };
        daemon.config = config(UPLINK, &format!("access = \"{access}\""), "");
        daemon.reload()?;
        daemon.console()?.wait_for("avio-vswitchd ready", 5)?;
        // Each at another time of the opening, which takes some tens of milliseconds.
        sleep(Duration::from_millis(times * 7 % 50));
    }
    wait_key(&daemon, "access", "packet")?;
    wait_device(&daemon, "Up")?;
    let mut guest = Driver::connect(&daemon.socket(0), Offloads::None)?;
    daemon.wait_active(1)?;
    ensure_flows(&mut guest, &RawSender::new(WIRE)?, "as configured last")?;
    let output = daemon.console()?.output();
    for never in ["another avio-vswitchd", "tried again", "stopped: "] {
        ensure(!output.contains(never), || format!("{never}: {output}"))?;
    }
    daemon.ensure_healthy()
}

/// More queues than sockets can be on: a packet socket, which has the frames of all, and a line that says what to do; with fewer, sockets.
fn too_many_queues() -> Result {
    wire(130)?;
    let mut daemon = Daemon::start(config(UPLINK, "", ""))?;
    wait_key(&daemon, "access", "packet")?;
    let line = "it has 130 queues, and 128 at most can have a socket; let it have fewer (`ethtool -L up0`)";
    daemon.console()?.wait_for(line, 5)?;
    let mut guest = Driver::connect(&daemon.socket(0), Offloads::None)?;
    daemon.wait_active(1)?;
    let from = RawSender::new(WIRE)?;
    ensure_flows(&mut guest, &from, "a packet socket")?;
    let output = daemon.console()?.output();
    ensure(output.matches(line).count() == 1, || output)?;
    set_queues(2)?;
    wait_key(&daemon, "access", best())?;
    wait_device(&daemon, "Up")?;
    ensure_flows(&mut guest, &from, "two queues")?;
    daemon.ensure_healthy()
}
