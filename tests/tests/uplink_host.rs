//! What of a device stays the host's while a switch has it, frame by frame: unicast to its own addresses and to those that the operator lists, and every
//! broadcast, which guests get as well; the host's own traffic while guests fill the wire; and the memory that the kernel shares with the daemon.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::net::{NetGuest, NetOptions, NetQueue, Offloads, RxFrame};
use avio_proto::virtio::net::NetHeader;
use avio_tests::aggregate::{Cables, aggregate, wait_states};
use avio_tests::capture::{Capture, hex};
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::driver::Driver;
use avio_tests::failure::ensure;
use avio_tests::frames::{BROADCAST, EXPERIMENT, arp_request, ethernet, mac as bytes};
use avio_tests::uplink::{self, config, wait_key};
use avio_tests::wire::{Wire, ping, run, send_raw};
use avio_tests::{Failure, Result};
use avio_vswitch::port::wire::Outlet;
use avio_vswitch::port::xdp::{Wanted, open_xsk};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

/// In seconds; they take two or three.
const SHORT_S: u64 = 40;
/// For cases with load; they take eight.
const LOADED_S: u64 = 60;
/// How long each run of iperf3 takes, in seconds.
const IPERF_S: &str = "2";
/// Less than this over TCP is no progress, in bits per second.
const SLOWEST_BPS: f64 = 1e6;
/// Echo requests each way.
const PINGS: u32 = 20;
/// Frames that the generators send at once.
const BURST: usize = 32;
/// The host's address on the device, and that of the host at the far end.
const NEAR_IP: &str = "198.51.100.1";
const FAR_IP: &str = "198.51.100.2";
/// Somebody on the wire.
const FAR: &str = "02:00:00:00:00:63";
/// What the operator lists, and what nobody has.
const LISTED: &str = "02:00:00:00:77:05";
const STRANGER: &str = "02:00:00:00:77:06";
/// What the far end sends over TCP, in bytes, and how long it may take.
const SENT_LEN: usize = 4 << 20;
const SENT_WITHIN: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    case::main(&[
        Case::new("host_keeps_what_is_listed", SHORT_S, || host_keeps_what_is_listed("copy")),
        Case::new("generic_host_keeps_what_is_listed", SHORT_S, || host_keeps_what_is_listed("generic")),
        Case::new("host_tcp_on_a_full_wire", LOADED_S, || host_tcp_on_a_full_wire("copy")),
        Case::new("packet_host_tcp_on_a_full_wire", LOADED_S, || host_tcp_on_a_full_wire("packet")),
        Case::new("host_address_of_another_member", SHORT_S, || host_address_of_another_member("copy")),
        Case::new("generic_host_address_of_another_member", SHORT_S, || {
            host_address_of_another_member("generic")
        }),
        Case::new("packet_host_address_of_another_member", SHORT_S, || {
            host_address_of_another_member("packet")
        }),
        Case::new("host_is_not_reached_through_the_device", SHORT_S, || host_is_not_reached("copy")),
        Case::new("packet_host_is_not_reached_through_the_device", SHORT_S, || host_is_not_reached("packet")),
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

/// What a guest asks of the host's own address on the device (ARP, to all and to that address) goes out to the wire, and the host does not hear it; the same
/// question from the far end is answered.
fn host_is_not_reached(access: &str) -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    run("ip", &["addr", "add", &format!("{NEAR_IP}/24"), "dev", &wire.near])?;
    let mut daemon = uplink::daemon(&wire, &format!("access = \"{access}\""), "")?;
    wait_key(&daemon, "access", access)?;
    let mut guest = Driver::connect(&daemon.socket(0), Offloads::None)?;
    daemon.wait_active(1)?;
    let near = wire.near_mac()?;
    let far = Capture::start(Some(&wire.namespace), &wire.far, "arp")?;
    let question = |mac: &str, to: &str, last: u8| {
        let mut frame = arp_request(mac, mac, [198, 51, 100, last], [198, 51, 100, 1]);
        frame[..6].copy_from_slice(&bytes(to));
        frame
    };
    for to in [BROADCAST, near.as_str()] {
        let asked = question(&mac_of(1), to, 7);
        guest.send(&asked)?;
        far.frames_when(&format!("the guest's question to {to}"), |frames| frames.contains(&asked))?;
    }
    // An answer of the host's to the same question from the far end comes later than one to the guest would have.
    send_raw(Some(&wire.namespace), &wire.far, &question(FAR, BROADCAST, 8))?;
    let answers = |to: &str, frames: &[Vec<u8>]| {
        let is_it = |frame: &&Vec<u8>| {
            frame[..6] == bytes(to) && frame[6..12] == bytes(&near) && frame[20..22] == [0, 2]
        };
        frames.iter().filter(is_it).count()
    };
    let seen = far.frames_when("the host's answer to the far end", |frames| answers(FAR, frames) == 1)?;
    let got = guest.received()?;
    ensure(answers(&mac_of(1), &seen) + answers(&mac_of(1), &got) == 0, || {
        format!("the host has answered the guest: {} and {}", hex(&seen), hex(&got))
    })?;
    daemon.ensure_healthy()
}

/// A guest and a neighbour on the wire that send each other as many frames as there is room for, both from one thread.
struct Flood {
    queue: NetQueue,
    _guest: NetGuest,
    far: Box<dyn Outlet>,
}

/// What they saw.
#[derive(Debug, Default)]
struct Flooded {
    /// Frames out of the guest, and how often its ring was full.
    out: u64,
    out_full: u64,
    /// Frames that the neighbour sent, and those of them that the guest got.
    inwards: u64,
    got: u64,
    /// Other frames that the guest got: broadcasts, and what is for a single address.
    broadcasts: u64,
    others: Vec<Vec<u8>>,
}

impl Flood {
    fn new(wire: &Wire, daemon: &Daemon) -> Result<Flood> {
        let options = NetOptions::default();
        let (guest, mut queues) =
            NetGuest::connect(Endpoint::Connect(daemon.socket(0)), &options).map_err(told)?;
        Ok(Flood { queue: queues.remove(0), _guest: guest, far: generator(wire)? })
    }

    /// Goes on until `ends`.
    fn run(&mut self, ends: &AtomicBool) -> Result<Flooded> {
        let outwards = ethernet(FAR, &mac_of(1), EXPERIMENT);
        let inwards = ethernet(&mac_of(1), FAR, EXPERIMENT);
        let mut seen = Flooded::default();
        let mut bytes = Vec::new();
        while !ends.load(Ordering::Relaxed) {
            let tx = &mut self.queue.tx;
            let room = tx.room(BURST).map_err(told)?.min(BURST);
            seen.out_full += u64::from(room < BURST);
            for _ in 0..room {
                seen.out += u64::from(tx.push(&NetHeader::default(), &outwards));
            }
            tx.flush();
            for _ in 0..BURST {
                let Ok(frame) = self.far.reserve(inwards.len()) else { break };
                frame[0].copy_from(&inwards);
                seen.inwards += 1;
            }
            self.far.commit()?;
            let look = |frame: &RxFrame<'_>| {
                frame.copy_to(&mut bytes);
                if bytes == inwards {
                    seen.got += 1;
                } else if bytes[0] & 1 == 1 {
                    seen.broadcasts += 1;
                } else {
                    seen.others.push(bytes.clone());
                }
            };
            self.queue.rx.poll(2 * BURST, look).map_err(told)?;
        }
        Ok(seen)
    }
}

fn told(error: impl ToString) -> Failure {
    Failure::new(error.to_string())
}

/// The sending half of a socket on the far device, opened from inside its namespace.
fn generator(wire: &Wire) -> Result<Box<dyn Outlet>> {
    let text = wire.far_ip(&["-o", "link", "show", &wire.far])?;
    let index: u32 = text.split(':').next().unwrap_or_default().trim().parse()?;
    let namespace = File::open(format!("/run/netns/{}", wire.namespace))?;
    let open = move || -> Result<Box<dyn Outlet>> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(std::io::Error::from)?;
        let (_, outlet, ..) =
            open_xsk(index, 0, Wanted { copy: true, frame_len_max: 1518, ..Wanted::default() })
                .map_err(told)?;
        Ok(outlet)
    };
    // A thread of its own: the namespace is the thread's.
    std::thread::spawn(open).join().map_err(|_| Failure::new("the generator panicked"))?
}

/// TCP of the host's to the far end: bits per second that arrived, both ways.
fn host_tcp() -> Result<[f64; 2]> {
    let mut measured = [0.0; 2];
    for (bps, direction) in measured.iter_mut().zip([&[][..], &["-R"]]) {
        let arguments = [&["-c", FAR_IP, "-t", IPERF_S, "-J"], direction].concat();
        let report: Value = serde_json::from_str(&run("iperf3", &arguments)?).map_err(told)?;
        *bps = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0);
    }
    Ok(measured)
}

/// While guests fill the wire both ways, the host's TCP through the same device goes on both ways, it answers pings and gets answers; and no guest gets
/// a frame of it.
fn host_tcp_on_a_full_wire(access: &str) -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    run("ip", &["addr", "add", &format!("{NEAR_IP}/24"), "dev", &wire.near])?;
    wire.far_ip(&["addr", "add", &format!("{FAR_IP}/24"), "dev", &wire.far])?;
    let mut daemon = uplink::daemon(&wire, &format!("access = \"{access}\""), "")?;
    wait_key(&daemon, "access", access)?;
    let mut server = wire.start("iperf-server", &["iperf3", "-s", "--forceflush"])?;
    server.wait_for("listening", 10)?;
    let mut flood = Flood::new(&wire, &daemon)?;
    daemon.wait_active(1)?;
    let ends = AtomicBool::new(false);
    let begin = Instant::now();
    let (seen, host) = std::thread::scope(|scope| {
        let load = scope.spawn(|| flood.run(&ends));
        let host = || -> Result<([f64; 2], String, u32)> {
            std::thread::sleep(Duration::from_millis(200));
            let tcp = host_tcp()?;
            let pinged = run("ping", &["-n", "-c", &PINGS.to_string(), "-i", "0.05", "-W", "2", FAR_IP])?;
            Ok((tcp, pinged, wire.ping(NEAR_IP, PINGS, &["-i", "0.05"])?))
        };
        let host = host();
        ends.store(true, Ordering::Relaxed);
        (load.join(), host)
    });
    let seconds = begin.elapsed().as_secs_f64();
    let seen = seen.map_err(|_| Failure::new("the load panicked"))??;
    let (tcp, pinged, answered) = host?;
    println!(
        "{access}: guests {:.0} k/s out (ring full {} times), {:.0} k/s in ({} of {} arrived); host {:.0} and {:.0} Mbit/s, {answered} of {PINGS}; {}",
        seen.out as f64 / seconds / 1e3,
        seen.out_full,
        seen.inwards as f64 / seconds / 1e3,
        seen.got,
        seen.inwards,
        tcp[0] / 1e6,
        tcp[1] / 1e6,
        pinged.lines().rev().find(|line| line.contains("received")).unwrap_or_default(),
    );
    // The wire was full: each way there was more to send than it took.
    ensure(seen.out > 1000 && seen.out_full > 100, || format!("outwards: {seen:?}"))?;
    ensure(seen.got > 1000 && seen.inwards > seen.got, || format!("inwards: {seen:?}"))?;
    ensure(tcp.iter().all(|bps| *bps > SLOWEST_BPS), || format!("the host's TCP: {tcp:?}"))?;
    let received = pinged.split(", ").find_map(|part| part.strip_suffix(" received")?.parse().ok());
    ensure(received >= Some(PINGS * 9 / 10), || pinged.clone())?;
    ensure(answered >= PINGS * 9 / 10, || format!("the host answers {answered} of {PINGS}"))?;
    // What was no broadcast and for somebody else than the guest.
    ensure(seen.others.is_empty(), || format!("of the host's: {}", hex(&seen.others)))?;
    let discards = daemon.vswitch("vs")?.port(1)?.discards.clone();
    ensure(discards.keys().all(|reason| ["no_buffer", "receiver_down"].contains(&reason.as_str())), || {
        format!("{discards:?}")
    })?;
    daemon.ensure_healthy()
}

/// The host has an address on the first of two members, and its link partner deals frames by their flow: what is for the first member's MAC comes in on the
/// second. The host gets it as if it had come in on the first, and the switch, its guests and their numbers see nothing of it; so also with another MAC, and
/// with reverse paths checked. Killed, the daemon leaves nothing behind.
fn host_address_of_another_member(access: &str) -> Result {
    let cables = Cables::new(2, true)?;
    let namespace = cables.namespace.clone().unwrap_or_default();
    let (near, far) = ([cables.near(0), cables.near(1)], [cables.far(0), cables.far(1)]);
    for name in &near {
        run("sysctl", &["-q", "-w", &format!("net.ipv4.conf.{name}.rp_filter=1")])?;
    }
    run("ip", &["addr", "add", &format!("{NEAR_IP}/24"), "dev", &near[0]])?;
    // Answers come to the first cable and are taken there, though the address is on the second.
    for name in ["all", &far[0], &far[1]] {
        let setting = format!("net.ipv4.conf.{name}.rp_filter=0");
        run("ip", &["netns", "exec", &namespace, "sysctl", "-q", "-w", &setting])?;
    }
    run("ip", &["-n", &namespace, "addr", "add", &format!("{FAR_IP}/24"), "dev", &far[1]])?;
    // The second cable, whatever address the first member has.
    let crosses = || {
        let mac = std::fs::read_to_string(format!("/sys/class/net/{}/address", near[0]))?;
        let neighbour =
            ["neigh", "replace", NEAR_IP, "lladdr", mac.trim(), "dev", &far[1], "nud", "permanent"];
        run("ip", &[&["-n", namespace.as_str()], &neighbour[..]].concat()).map(drop)
    };
    let silent = || -> Result {
        let answered = ping(&namespace, NEAR_IP, 1, &["-W", "1"])?;
        ensure(answered == 0, || "answered although nobody leads the frame there".to_owned())
    };
    crosses()?;
    silent()?;
    let vswitch = aggregate("lan900", &cables.members(false, 2), "mode = \"MANUAL\"");
    let uplink = format!("{vswitch}[[uplink]]\nname = \"lan900\"\naccess = \"{access}\"");
    let mut daemon = Daemon::start(Config::default().vswitch("vs", &uplink).guest("g1", "vs", 1, ""))?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 12)?;
    wait_key(&daemon, "access", access)?;
    let answered = ping(&namespace, NEAR_IP, 5, &[])?;
    ensure(answered == 5, || format!("the host answers {answered} of 5"))?;
    host_tcp_across(&namespace)?;
    run("ip", &["link", "set", &near[0], "address", "02:00:00:00:77:07"])?;
    crosses()?;
    let end = Instant::now() + SENT_WITHIN;
    while ping(&namespace, NEAR_IP, 1, &["-W", "1"])? == 0 {
        ensure(Instant::now() < end, || "the new address is not led to the first member".to_owned())?;
    }
    let output = daemon.avio(&["--json", "net", "-S", "vs", "-A"])?;
    let value: Value = serde_json::from_slice(&output.stdout).map_err(told)?;
    let is_zero = |of: &str, key: &str| value["wire"][of][key] == 0;
    let unseen = is_zero("discards", "no_destination") && is_zero("counters", "outbound_unicast_local");
    ensure(unseen, || format!("the switch had them, too: {}", value["wire"]))?;
    daemon.kill();
    silent()
}

/// TCP of the host's with a far end whose frames come in on another member: all that each sends arrives.
fn host_tcp_across(namespace: &str) -> Result {
    let listener = TcpListener::bind((NEAR_IP, 0))?;
    let address = format!("TCP:{NEAR_IP}:{}", listener.local_addr()?.port());
    // What it gets it sends back.
    let mut far = Command::new("ip");
    far.args(["netns", "exec", namespace, "timeout", "20", "socat", &address, "EXEC:cat"]);
    let mut far = far.spawn()?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(SENT_WITHIN))?;
    stream.set_write_timeout(Some(SENT_WITHIN))?;
    let sent: Vec<u8> = (0..SENT_LEN).map(|at| (at % 251) as u8).collect();
    let mut sender = stream.try_clone()?;
    let (got, written) = std::thread::scope(|scope| {
        let write = scope.spawn(|| sender.write_all(&sent));
        let mut got = vec![0; SENT_LEN];
        let read = stream.read_exact(&mut got);
        (read.map(|()| got), write.join())
    });
    written.map_err(|_| Failure::new("the sender panicked"))??;
    ensure(got? == sent, || "something else came back".to_owned())?;
    drop((stream, sender));
    far.wait()?;
    Ok(())
}
