//! What no guest gets through an aggregate, whatever its links do: frames in the name of a member, of the aggregate or of an interface of the host's, sent
//! without pause before, during and after failovers in each mode; and the frames of its control protocols. The wire is read by tcpdump at the far ends. Needs
//! root, as uplinks do.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use avio_guest::net::Offloads;
use avio_proto::virtio::net::NetHeader;
use avio_tests::aggregate::{Cables, aggregate, shown, wait_states};
use avio_tests::capture::{Capture, hex};
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::driver::Driver;
use avio_tests::failure::ensure;
use avio_tests::frames::{BROADCAST, ethernet};
use avio_tests::ovs::Ovs;
use avio_tests::wire::run;
use avio_tests::{Failure, Result};

fn main() -> ExitCode {
    case::main(&[
        Case::new("spoofs_through_failovers_of_lacp", 60, spoofs_lacp),
        Case::new("spoofs_through_failovers_of_a_manual_aggregate", 60, spoofs_manual),
        Case::new("spoofs_through_failovers_of_hot_standby", 60, spoofs_hot_standby),
        Case::new("spoofs_through_failovers_of_a_failover_group", 60, spoofs_monitor),
        Case::new("control_frames_are_no_guests", 60, control_frames),
    ])
}

/// An ethertype for experiments, but not the one of polling frames (IEEE 802 local experimental 2).
const EXPERIMENT: u16 = 0x88b6;
/// An address of the aggregate itself that no device has.
const OWN: &str = "1e:00:00:00:09:00";
/// A host at the far end.
const FAR: &str = "02:00:00:00:00:63";
/// Of an interface of the host's on the first member.
const MACVLAN: &str = "02:00:00:00:77:01";
/// Which the first member gets meanwhile.
const CHANGED: &str = "02:00:00:00:77:02";

fn spoofs_lacp() -> Result {
    let cables = Cables::new(2, true)?;
    let _ovs = Ovs::start(&cables, 2)?;
    let mode = "mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nbalance = \"LB_FLOW\"";
    spoofs(&cables, &format!("{mode}\nmac = \"{OWN}\""), &["Active", "Active"], &["Down", "Active"])
}

fn spoofs_manual() -> Result {
    let mode = "mode = \"MANUAL\"\nbalance = \"LB_FLOW\"";
    let lines = format!("{mode}\nmac = \"{OWN}\"");
    spoofs(&Cables::new(2, true)?, &lines, &["Active", "Active"], &["Down", "Active"])
}

fn spoofs_hot_standby() -> Result {
    let cables = Cables::new(2, true)?;
    let better = format!("[[aggregate.member]]\nname = \"{}\"\npriority = 9", cables.near(0));
    let lines = format!("mode = \"MANUAL\"\nbalance = \"LB_HOT_STANDBY\"\nmac = \"{OWN}\"\n{better}");
    spoofs(&cables, &lines, &["Active", "Ready"], &["Down", "Active"])
}

fn spoofs_monitor() -> Result {
    let cables = Cables::new(2, true)?;
    let namespace = cables.namespace.clone().unwrap_or_default();
    run("ip", &["-n", &namespace, "link", "add", "name", "sw0", "type", "bridge"])?;
    run("ip", &["-n", &namespace, "link", "set", "sw0", "up"])?;
    for n in 0..2 {
        run("ip", &["-n", &namespace, "link", "set", &cables.far(n), "master", "sw0"])?;
    }
    let better = format!("[[aggregate.member]]\nname = \"{}\"\npriority = 9", cables.near(0));
    // Its address is that of whoever carries the traffic: there is none of its own.
    let lines = format!("mode = \"LAN_MONITOR\"\npoll_interval_ms = 500\n{better}");
    spoofs(&cables, &lines, &["Active", "Ready"], &["Down", "Active"])
}

/// A guest that sends in others' names without pause.
struct Spoofer {
    end: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<Result<Driver>>,
}

impl Spoofer {
    /// Sends as each of `macs` in turn, to everybody, to the wire and to the other guest.
    fn start(mut guest: Driver, macs: Vec<String>) -> Spoofer {
        let (end, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (Arc::clone(&end), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let frames: Vec<Vec<u8>> = macs
                .iter()
                .flat_map(|mac| [BROADCAST, FAR, &mac_of(2)].map(|to| ethernet(to, mac, EXPERIMENT)))
                .collect();
            while !until.load(Ordering::Relaxed) {
                guest.send_all(&NetHeader::default(), &frames)?;
                count.fetch_add(frames.len() as u64, Ordering::Relaxed);
                sleep(Duration::from_millis(1));
            }
            Ok(guest)
        });
        Spoofer { end, sent, thread }
    }

    /// Waits until it has sent each of its frames several times more.
    fn go_on(&self, what: &str) -> Result {
        let (begin, end) = (self.sent.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(20));
        while self.sent.load(Ordering::Relaxed) < begin + 60 {
            ensure(Instant::now() < end && !self.thread.is_finished(), || {
                format!("{what}: it does not send")
            })?;
            sleep(Duration::from_millis(5));
        }
        println!("{what}: {} spoofed frames so far", self.sent.load(Ordering::Relaxed));
        Ok(())
    }

    fn stop(self) -> Result<(Driver, u64)> {
        self.end.store(true, Ordering::Relaxed);
        let guest = self.thread.join().map_err(|_| Failure::new("the spoofer panicked"))??;
        Ok((guest, self.sent.load(Ordering::Relaxed)))
    }
}

/// `up` and `down`: the members' states with both cables, and without the first.
fn spoofs(cables: &Cables, lines: &str, up: &[&str], down: &[&str]) -> Result {
    let namespace = cables.namespace.as_deref();
    run(
        "ip",
        &["link", "add", "link", &cables.near(0), "name", "avmv0", "address", MACVLAN, "type", "macvlan"],
    )?;
    let vswitch = aggregate("lan900", &cables.members(false, 2), lines);
    let config = Config::default()
        .vswitch("vs", &vswitch)
        .guest("g1", "vs", 1, "strict = false")
        .guest("g2", "vs", 2, "");
    let mut daemon = Daemon::start(config)?;
    let up_now = wait_states(&daemon, "lan900", up, 15)?;
    let mut other = Driver::connect(&daemon.socket(1), Offloads::None)?;
    let guest = Driver::connect(&daemon.socket(0), Offloads::None)?;
    (1..=2).try_for_each(|port| daemon.wait_active(port))?;
    let filter = format!("ether proto {EXPERIMENT:#x}");
    let captures = [0, 1]
        .map(|n| Capture::start(namespace, &cables.far(n), &filter))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let of = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut macs =
        vec![of(&up_now["mac"]), of(&up_now["members"][0]["mac"]), of(&up_now["members"][1]["mac"])];
    macs.push(MACVLAN.to_owned());
    println!("protected: {macs:?}");
    let before = daemon.vswitch("vs")?.port(1)?.discarded("protected_mac");
    let spoofer = Spoofer::start(guest, macs.clone());
    spoofer.go_on("before")?;
    for round in 0..2 {
        cables.plug(0, false)?;
        spoofer.go_on("while it fails over")?;
        wait_states(&daemon, "lan900", down, 5)?;
        spoofer.go_on("failed over")?;
        honest(&mut other, &captures, round)?;
        cables.plug(0, true)?;
        spoofer.go_on("while the link comes back")?;
        wait_states(&daemon, "lan900", up, 15)?;
        spoofer.go_on("back")?;
    }
    let (guest, sent) = spoofer.stop()?;
    // A member gets another address: from the moment that the daemon knows, that one is protected, and those of the others still are.
    run("ip", &["link", "set", &cables.near(0), "address", CHANGED])?;
    let end = Instant::now() + Duration::from_secs(5);
    let changed = loop {
        let now = shown(&daemon, "lan900")?;
        if now["members"][0]["mac"] == CHANGED {
            break now;
        }
        ensure(Instant::now() < end, || format!("the member's new address is not known: {now}"))?;
        sleep(Duration::from_millis(10));
    };
    macs = vec![of(&changed["mac"]), CHANGED.to_owned(), macs.swap_remove(2), MACVLAN.to_owned()];
    let spoofer = Spoofer::start(guest, macs.clone());
    spoofer.go_on("after a change of address")?;
    cables.plug(0, false)?;
    spoofer.go_on("while it fails over again")?;
    wait_states(&daemon, "lan900", down, 5)?;
    spoofer.go_on("at the end")?;
    honest(&mut other, &captures, 9)?;
    let (_, more) = spoofer.stop()?;
    // Every one of them was refused and counted; none is on the wire or at the other guest.
    let refused = daemon.vswitch("vs")?.port(1)?.discarded("protected_mac") - before;
    ensure(refused == sent + more, || format!("{} sent, {refused} refused", sent + more))?;
    let mut seen = other.received()?;
    for capture in &captures {
        seen.extend(capture.frames()?);
    }
    // But for the honest ones, and what else is spoken here.
    let theirs = avio_tests::frames::mac(&mac_of(2));
    seen.retain(|frame| frame[6..12] != theirs && frame[12..14] == EXPERIMENT.to_be_bytes());
    ensure(seen.is_empty(), || format!("spoofed frames got through: {}", hex(&seen)))?;
    daemon.ensure_healthy()
}

/// A frame of an honest guest is on the wire: whoever looks there would see others, too.
fn honest(guest: &mut Driver, captures: &[Capture], number: u8) -> Result {
    let mut frame = ethernet(FAR, &mac_of(2), EXPERIMENT);
    frame[59] = number;
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        guest.send(&frame)?;
        for capture in captures {
            if capture.frames()?.contains(&frame) {
                return Ok(());
            }
        }
        ensure(Instant::now() < end, || "an honest frame does not get out".to_owned())?;
        sleep(Duration::from_millis(20));
    }
}

/// LACPDUs, Markers and other frames of slow protocols are taken from no guest and given to none, and a partner's go on to be obeyed: a guest that says in
/// the partner's name that the links are not to be used changes nothing.
fn control_frames() -> Result {
    let cables = Cables::new(2, true)?;
    let _ovs = Ovs::start(&cables, 2)?;
    let lines = format!("mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nmac = \"{OWN}\"");
    let vswitch = aggregate("lan900", &cables.members(false, 2), &lines);
    // As much as a port may be allowed: any source, all that is flooded.
    let config = Config::default()
        .vswitch("vs", &vswitch)
        .guest("g1", "vs", 1, "strict = false\ntrusted = true")
        .guest("g2", "vs", 2, "");
    let mut daemon = Daemon::start(config)?;
    let mut guest = Driver::connect(&daemon.socket(0), Offloads::None)?;
    let mut other = Driver::connect(&daemon.socket(1), Offloads::None)?;
    (1..=2).try_for_each(|port| daemon.wait_active(port))?;
    let up = wait_states(&daemon, "lan900", &["Active", "Active"], 15)?;
    let filter = "ether proto 0x8809 and not ether src 02:00:00:00:77:77";
    let captures = [0, 1]
        .map(|n| Capture::start(cables.namespace.as_deref(), &cables.far(n), filter))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let forged = Capture::start(cables.namespace.as_deref(), &cables.far(0), "ether src 02:00:00:00:77:77")?;
    let before = daemon.vswitch("vs")?;
    let reasons = |v: &avio_tests::counters::Vswitch| -> Result<u64> {
        let port = v.port(1)?;
        Ok(port.discarded("control_ethertype") + port.discarded("link_local_destination"))
    };
    let begin = reasons(&before)?;
    let mut sent = 0;
    for _ in 0..50 {
        for to in ["01:80:c2:00:00:02", BROADCAST, FAR, &mac_of(2)] {
            // Subtypes: LACP, Marker, OAM, and one that nobody knows (IEEE 802.3 annex 57A).
            for subtype in [1, 2, 3, 10] {
                let mut frame = ethernet(to, "02:00:00:00:77:77", 0x8809);
                frame.resize(124, 0);
                frame[14..16].copy_from_slice(&[subtype, 1]);
                guest.send(&frame)?;
                sent += 1;
            }
        }
        sleep(Duration::from_millis(20));
    }
    daemon.vswitch_when("vs", 3, |v| reasons(v).is_ok_and(|count| count - begin == sent))?;
    // Meanwhile the two ends spoke with each other, and no guest has heard anything.
    let after = wait_states(&daemon, "lan900", &["Active", "Active"], 2)?;
    for n in 0..2 {
        let heard = |value: &serde_json::Value| value["members"][n]["lacpdus_in"].as_u64().unwrap_or(0);
        ensure(heard(&after) > heard(&up), || format!("nothing came from the partner: {after}"))?;
        ensure(after["members"][n]["link_losses"] == 0, || after.to_string())?;
        captures[n].frames_when("our LACPDUs", |frames| !frames.is_empty())?;
    }
    let leaked = forged.frames()?;
    ensure(leaked.is_empty(), || format!("a guest's control frames on the wire: {}", hex(&leaked)))?;
    for (name, driver) in [("the sender", &mut guest), ("the other guest", &mut other)] {
        let mut got = driver.received()?;
        got.retain(|frame| {
            frame.get(12..14) == Some(&[0x88, 0x09]) || frame[0] & 1 == 1 && frame[..3] == [1, 0x80, 0xc2]
        });
        ensure(got.is_empty(), || format!("{name} got control frames: {}", hex(&got)))?;
    }
    daemon.ensure_healthy()
}
