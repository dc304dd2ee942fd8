//! What of a device stays the host's while a switch has it, frame by frame: unicast to its own addresses and to those that the operator lists, and every
//! broadcast, which guests get as well; and the memory that the kernel shares with the daemon.

use std::process::ExitCode;

use avio_guest::net::Offloads;
use avio_tests::Result;
use avio_tests::capture::{Capture, hex};
use avio_tests::case::{self, Case};
use avio_tests::config::mac_of;
use avio_tests::driver::Driver;
use avio_tests::failure::ensure;
use avio_tests::frames::{BROADCAST, EXPERIMENT, ethernet, mac as bytes};
use avio_tests::uplink::{self, config, wait_key};
use avio_tests::wire::{Wire, run, send_raw};

/// In seconds; they take two or three.
const SHORT_S: u64 = 40;
/// Somebody on the wire.
const FAR: &str = "02:00:00:00:00:63";
/// What the operator lists, and what nobody has.
const LISTED: &str = "02:00:00:00:77:05";
const STRANGER: &str = "02:00:00:00:77:06";

fn main() -> ExitCode {
    case::main(&[
        Case::new("host_keeps_what_is_listed", SHORT_S, || host_keeps_what_is_listed("copy")),
        Case::new("generic_host_keeps_what_is_listed", SHORT_S, || host_keeps_what_is_listed("generic")),
        Case::new("frame_memory_is_a_memfd", SHORT_S, frame_memory_is_a_memfd),
    ])
}

/// Sends a frame from the far end to each of `to`, at last to all. Gives what the host's own stack got of them, and what the guest did.
fn deliver(
    wire: &Wire,
    capture: &Capture,
    guest: &mut Driver,
    round: u8,
    to: &[&str],
) -> Result<[Vec<Vec<u8>>; 2]> {
    let frame = |to: &str| {
        let mut frame = ethernet(to, FAR, EXPERIMENT);
        frame[59] = round;
        frame
    };
    for to in to {
        send_raw(Some(&wire.namespace), &wire.far, &frame(to))?;
    }
    let last = frame(BROADCAST);
    send_raw(Some(&wire.namespace), &wire.far, &last)?;
    let is_of_round =
        |frame: &Vec<u8>| frame.len() == 60 && frame[12..14] == last[12..14] && frame[59] == round;
    // Unicast and broadcasts reach the guest on two ways: wait for its own frame, too.
    let mut got = guest.received_until(&frame(&mac_of(1)))?;
    if !got.contains(&last) {
        got.extend(guest.received_until(&last)?);
    }
    let kept = capture.frames_when("the broadcast", |frames| frames.contains(&last))?;
    let of_round = |frames: Vec<Vec<u8>>| frames.into_iter().filter(is_of_round).collect();
    Ok([of_round(kept), of_round(got)])
}

/// The host's stack gets what is for its own address and for those listed, and broadcasts; the guest its own frames and broadcasts; nobody anything else.
/// The list is taken over live.
fn host_keeps_what_is_listed(access: &str) -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    run("sysctl", &["-q", "-w", &format!("net.ipv6.conf.{}.disable_ipv6=1", wire.near)])?;
    let access_line = format!("access = \"{access}\"");
    let mut daemon = uplink::daemon(&wire, &format!("{access_line}\nhost_macs = [\"{LISTED}\"]"), "")?;
    wait_key(&daemon, "access", access)?;
    let mut guest = Driver::connect(&daemon.socket(0), Offloads::None)?;
    daemon.wait_active(1)?;
    let (own, near) = (mac_of(1), wire.near_mac()?);
    // Programs of both modes run in front of captures: these see what the stack gets.
    let capture = Capture::start(None, &wire.near, "")?;
    let to = |frames: &[Vec<u8>], mac: &str| frames.iter().filter(|frame| frame[..6] == bytes(mac)).count();
    for (round, listed) in [(1, true), (2, false), (3, true)] {
        if round > 1 {
            let list = if listed { format!("host_macs = [\"{LISTED}\"]") } else { String::new() };
            config(&wire.near, &format!("{access_line}\n{list}"), "").write(&daemon.config_folder())?;
            let reloaded = daemon.avio(&["net", "--reload"])?;
            ensure(reloaded.status.success(), || format!("{reloaded:?}"))?;
            wait_key(&daemon, "state", "Up")?;
        }
        let [kept, got] = deliver(&wire, &capture, &mut guest, round, &[LISTED, STRANGER, &near, &own])?;
        let told = || format!("round {round}: kept {}; got {}", hex(&kept), hex(&got));
        ensure(to(&got, &own) == 1 && to(&got, BROADCAST) == 1 && got.len() == 2, told)?;
        ensure(to(&kept, &near) == 1 && to(&kept, BROADCAST) == 1, told)?;
        ensure(to(&kept, LISTED) == usize::from(listed) && kept.len() == 2 + usize::from(listed), told)?;
    }
    daemon.ensure_healthy()
}

/// The memory that an AF_XDP socket's frames lie in is a memfd of the daemon's, which a successor could be handed: open, and mapped.
fn frame_memory_is_a_memfd() -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    let mut daemon = uplink::daemon(&wire, "access = \"copy\"", "")?;
    let pid = daemon.console()?.pid();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mapped = maps.lines().find(|line| line.contains("/memfd:avio-umem"));
    // Shared, read and written: not a copy of the file.
    ensure(mapped.is_some_and(|line| line.contains(" rw-s ")), || format!("no shared memory: {maps}"))?;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .any(|target| target.to_string_lossy().contains("/memfd:avio-umem"));
    ensure(open, || "its descriptor is closed".to_owned())?;
    daemon.stop()
}
