//! What others do to the device of an uplink, and to what is on it, while a switch has it: an interface joins a bridge, the process is killed that puts
//! offloads back, the device gets more queues, our program is taken from it, and the configuration changes while it is opened. Each case has a network namespace of its own (root).

use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use avio_guest::net::Offloads;
use avio_tests::aggregate::{Cables, aggregate, wait_states};
use avio_tests::capture::Capture;
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::driver::Driver;
use avio_tests::failure::{ensure, eventually};
use avio_tests::frames::{EXPERIMENT, ethernet, tcp};
use avio_tests::netns::{host, inside};
use avio_tests::uplink::{best, config, device, wait_device, wait_key};
use avio_tests::wire::RawSender;
use avio_tests::{Failure, Result, scratch};
use rustix::process::Signal;

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
        Case::new("too_little_locked_memory", SHORT_S, || inside(too_little_locked_memory)),
        Case::new("what_goes_on_is_said_once", SHORT_S, || inside(what_goes_on_is_said_once)),
        Case::new("members_of_different_mtu", SHORT_S, members_of_different_mtu),
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
    wire(129)?;
    let mut daemon = Daemon::start(config(UPLINK, "", ""))?;
    wait_key(&daemon, "access", "packet")?;
    let line = "it has 129 queues, and 128 at most can have a socket; let it have fewer (`ethtool -L up0`)";
    daemon.console()?.wait_for(line, 5)?;
    let mut guest = Driver::connect(&daemon.socket(0), Offloads::None)?;
    daemon.wait_active(1)?;
    ensure_flows(&mut guest, &RawSender::new(WIRE)?, "a packet socket")?;
    daemon.ensure_healthy()
}

/// Without the right to lock memory, and with a limit below what frames need: a packet socket, and a line that says what to do.
fn too_little_locked_memory() -> Result {
    wire(1)?;
    let script = scratch::folder().join("limited");
    let limits = "prlimit --memlock=1048576:1048576 setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock";
    let daemon = program("avio-vswitchd")?;
    std::fs::write(&script, format!("#!/bin/sh\nexec {limits} {} \"$@\"\n", daemon.display()))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    let mut daemon =
        Daemon::start_as(Some(script), scratch::folder().join("daemon"), config(UPLINK, "", ""))?;
    wait_key(&daemon, "access", "packet")?;
    daemon
        .console()?
        .wait_for("16 MiB of memory for frames exceed the limit of locked memory; raise it", 5)?;
    daemon.ensure_healthy()
}

/// A device that cannot be opened is tried every five seconds, and the log has that once; when the reason is gone it is opened.
fn what_goes_on_is_said_once() -> Result {
    wire(1)?;
    let mut daemon = daemon()?;
    host(&format!("ip link set {UPLINK} name up1"))?;
    wait_device(&daemon, "Missing")?;
    // As another daemon of ours would have it.
    let index = host("cat /sys/class/net/up1/ifindex")?;
    let mark = format!("avio-uplink-{}", index.trim());
    let is_marked = || host("cat /proc/net/unix").is_ok_and(|sockets| sockets.contains(&format!("@{mark}")));
    eventually("the device is nobody's", 5, || !is_marked())?;
    let socket = format!("ABSTRACT-LISTEN:{mark},fork");
    let mut other = Console::spawn("other", command("socat").args([&socket, "EXEC:true"]))?;
    eventually("socat listens", 5, is_marked)?;
    host(&format!("ip link set up1 name {UPLINK} && ip link set {UPLINK} up"))?;
    let line = "is an uplink of another avio-vswitchd";
    daemon.console()?.wait_for(line, 5)?;
    // Long enough for another try.
    sleep(Duration::from_secs(6));
    let output = daemon.console()?.output();
    ensure(output.matches(line).count() == 1, || output.clone())?;
    let shown = device(&daemon, "remarks")?.to_string();
    ensure(shown.contains(line), || format!("not shown: {shown}"))?;
    other.signal(Signal::TERM)?;
    other.wait_end(5)?;
    wait_opened(&mut daemon, 2)?;
    wait_device(&daemon, "Up")?;
    daemon.ensure_healthy()
}

/// What a flow's member would not take is refused at the wire for the reason that it has, whichever member the flow is on; what all take passes.
fn members_of_different_mtu() -> Result {
    let cables = Cables::new(2, true)?;
    let namespace = cables.namespace.clone().unwrap_or_default();
    for n in 0..2 {
        host(&format!(
            "ip link set {} mtu 9000 && ip -n {namespace} link set {} mtu 9000",
            cables.near(n),
            cables.far(n)
        ))?;
    }
    let lines = aggregate("lan900", &cables.members(false, 2), "mode = \"MANUAL\"\nbalance = \"LB_FLOW\"");
    let mut daemon =
        Daemon::start(Config::default().vswitch("vs", &lines).guest("g1", "vs", 1, "mtu = 9000"))?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 10)?;
    let mut guest = Driver::connect(&daemon.socket(0), Offloads::None)?;
    daemon.wait_active(1)?;
    let mut send = |payload_len: u16| -> Result {
        for flow in 0..FLOWS {
            let mut frame = tcp(FAR, &mac_of(1), payload_len);
            frame[34..36].copy_from_slice(&(2000 + 7 * flow).to_be_bytes());
            guest.send(&frame)?;
        }
        Ok(())
    };
    let discarded = |daemon: &Daemon, reason: &str| -> Result<u64> {
        let output = daemon.avio(&["--json", "net", "-S", "vs", "-A"])?;
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        Ok(shown["wire"]["discards"][reason].as_u64().unwrap_or(0))
    };
    send(8000)?;
    ensure(discarded(&daemon, "receiver_mtu")? == 0, || "refused although both take it".to_owned())?;
    let second = cables.near(1);
    host(&format!("ip link set {second} mtu 1500"))?;
    daemon.console()?.wait_for(&format!("{second}: open"), 5)?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 10)?;
    let before = discarded(&daemon, "no_buffer")?;
    send(8000)?;
    send(1400)?;
    let flows = u64::from(FLOWS);
    eventually("long frames are refused", 5, || {
        discarded(&daemon, "receiver_mtu").is_ok_and(|count| count == flows)
    })?;
    ensure(discarded(&daemon, "no_buffer")? == before, || "frames are lost at a member".to_owned())?;
    let (first, second) = (cables.near(0), cables.near(1));
    daemon.console()?.wait_for(
        &format!("its devices have different MTUs ({first} 9000, {second} 1500); it has the least, 1500"),
        5,
    )?;
    daemon.ensure_healthy()
}
