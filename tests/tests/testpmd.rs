//! DPDK's virtio-user driver as the guest, in every ring layout and driver path that it has: frames sent and frames arrived
//! are compared with the switch's own counters, exactly.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::frames::BROADCAST;
use avio_tests::testpmd::{Driver, Mode, PortStats, Testpmd};
use avio_tests::{Failure, Result};

/// Each case: two or three starts of testpmd at a second each, a second of traffic, and room for a busy machine.
const SECONDS: u64 = 60;

/// How long frames flow, in milliseconds.
const TRAFFIC_MS: u64 = 700;

/// Length of testpmd's transmitted frames without their check sequence, in bytes.
const FRAME_LEN: u64 = 64;

fn main() -> ExitCode {
    case::main(&[
        Case::new("testpmd_split", SECONDS, || pass(|d| d)).data_path(),
        Case::new("testpmd_split_not_mergeable", SECONDS, || pass(|d| Driver { mergeable: false, ..d })),
        Case::new("testpmd_split_in_order", SECONDS, || pass(|d| Driver { in_order: true, ..d })),
        Case::new("testpmd_split_vectorized", SECONDS, || {
            pass(|d| Driver { mergeable: false, in_order: true, vectorized: true, ..d })
        }),
        Case::new("testpmd_packed", SECONDS, || pass(|d| Driver { packed: true, ..d })).data_path(),
        Case::new("testpmd_packed_not_mergeable", SECONDS, || {
            pass(|d| Driver { packed: true, mergeable: false, ..d })
        }),
        Case::new("testpmd_packed_in_order", SECONDS, || {
            pass(|d| Driver { packed: true, in_order: true, ..d })
        }),
        Case::new("testpmd_packed_vectorized", SECONDS, || {
            pass(|d| Driver { packed: true, mergeable: false, in_order: true, vectorized: true, ..d })
        }),
        Case::new("testpmd_small_ring", SECONDS, || pass(|d| Driver { queue_size: 64, ..d })),
        Case::new("testpmd_packed_odd_ring", SECONDS, || {
            pass(|d| Driver { packed: true, queue_size: 300, ..d })
        }),
        Case::new("testpmd_four_queue_pairs", SECONDS, || pass(|d| Driver { queue_pairs: 4, ..d }))
            .data_path(),
        Case::new("testpmd_four_queue_pairs_packed", SECONDS, || {
            pass(|d| Driver { queue_pairs: 4, packed: true, ..d })
        }),
        Case::new("testpmd_listens", SECONDS, || pass(|d| Driver { server: true, ..d })),
        Case::new("testpmd_listens_packed_four", SECONDS, || {
            pass(|d| Driver { server: true, packed: true, queue_pairs: 4, ..d })
        }),
        Case::new("testpmd_two_workers", SECONDS, two_workers).data_path(),
        Case::new("testpmd_split_meets_packed", SECONDS, split_meets_packed),
        Case::new("testpmd_echo", SECONDS, echo),
        Case::new("testpmd_long_chains", SECONDS, long_chains),
        Case::new("testpmd_jumbo", SECONDS, jumbo),
        Case::new("testpmd_broadcast", SECONDS, broadcast),
        Case::new("testpmd_unknown_destination", SECONDS, unknown_destination),
        Case::new("testpmd_spoofed_source", SECONDS, spoofed_source),
        Case::new("testpmd_vanishes", 90, vanishes),
        Case::new("testpmd_listens_through_restart", 90, listens_through_restart),
    ])
}

const SINK: Mode = Mode { name: "rxonly", peer: None, options: &[] };

/// The lines of a port's table for a guest with such a driver.
fn extra(driver: &Driver) -> String {
    let role = if driver.server { "socket_role = \"client\"\n" } else { "" };
    format!("{role}queue_pairs = {}\n", driver.queue_pairs)
}

fn source(peer: &str) -> Mode<'_> {
    Mode { name: "txonly", peer: Some(peer), options: &["--txonly-multi-flow"] }
}

/// The daemon with `guests` ports and a testpmd on each, in the modes given; none forwards yet.
fn set_up(config: Config, guests: &[(Driver, Mode)]) -> Result<(Daemon, Vec<Testpmd>)> {
    let daemon = Daemon::start(config)?;
    let mut running = Vec::new();
    for (index, (driver, mode)) in guests.iter().enumerate() {
        running.push(Testpmd::start(&format!("testpmd-{}", index + 1), &daemon.socket(index), driver, mode)?);
    }
    for number in 1..=guests.len() {
        daemon.wait_active(u32::try_from(number)?)?;
    }
    Ok((daemon, running))
}

/// Lets the last guest send to the others for a while; gives what it sent once the switch has taken all of it.
fn send_for_a_while(daemon: &Daemon, guests: &mut [Testpmd]) -> Result<PortStats> {
    for guest in guests.iter_mut() {
        guest.forward()?;
    }
    sleep(Duration::from_millis(TRAFFIC_MS));
    let number = u32::try_from(guests.len())?;
    let sender = guests.last_mut().ok_or_else(|| Failure::new("no guests"))?;
    sender.stop()?;
    let sent = sender.stats()?;
    ensure(sent.tx_packets > 1_000, || format!("the guest sent next to nothing: {sent:?}"))?;
    daemon.vswitch_when("vs", 5, |v| v.port(number).is_ok_and(|p| p.counters.taken() == sent.tx_packets))?;
    Ok(sent)
}

/// One guest sends to another; every frame is accounted for on both sides.
fn pass(variant: fn(Driver) -> Driver) -> Result {
    let (one, two) = (mac_of(1), mac_of(2));
    let (receiver, sender) = (variant(Driver::new(&one)), variant(Driver::new(&two)));
    let config = Config::one_switch(&[&extra(&receiver), &extra(&sender)]);
    check_pass(config, receiver, sender)
}

fn check_pass(config: Config, receiver: Driver, sender: Driver) -> Result {
    let (mut daemon, mut guests) = set_up(config, &[(receiver, SINK), (sender, source(receiver.mac))])?;
    let sent = send_for_a_while(&daemon, &mut guests)?;
    let got = settled_stats(&mut guests[0])?;
    let vswitch = daemon.vswitch("vs")?;
    vswitch.ensure_exact()?;
    let (to, from) = (vswitch.port(1)?, vswitch.port(2)?);
    ensure(from.counters.outbound_unicast_local == sent.tx_packets, || {
        format!("sent {sent:?}, port {from:?}")
    })?;
    ensure(from.counters.outbound_octets == sent.tx_packets * FRAME_LEN, || format!("octets of {from:?}"))?;
    ensure(to.counters.inbound_unicast_local == got.rx_packets, || format!("got {got:?}, port {to:?}"))?;
    ensure(to.counters.inbound_octets == got.rx_bytes, || format!("got {got:?}, octets of {to:?}"))?;
    ensure(got.rx_packets + to.counters.inbound_discards == sent.tx_packets, || {
        format!(
            "{} sent, {} arrived, {} dropped",
            sent.tx_packets, got.rx_packets, to.counters.inbound_discards
        )
    })?;
    // A guest that polls gets most of what comes, even where everyone shares two cores.
    ensure(got.rx_packets > 1_000 && got.rx_errors == 0, || format!("next to nothing arrived: {got:?}"))?;
    daemon.ensure_healthy()
}

/// The guest's counters once they stand still.
fn settled_stats(guest: &mut Testpmd) -> Result<PortStats> {
    let mut last = guest.stats()?;
    for _ in 0..50 {
        sleep(Duration::from_millis(100));
        let now = guest.stats()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    Err(Failure::new(format!("frames keep coming: {last:?}")))
}

fn two_workers() -> Result {
    let (one, two) = (mac_of(1), mac_of(2));
    let driver = |mac| Driver { queue_pairs: 4, ..Driver::new(mac) };
    let config = Config::one_switch(&["queue_pairs = 4", "queue_pairs = 4"]).workers("cores = [0, 1]");
    check_pass(config, driver(&one), driver(&two))
}

fn split_meets_packed() -> Result {
    let (one, two) = (mac_of(1), mac_of(2));
    let receiver = Driver { packed: true, in_order: true, ..Driver::new(&one) };
    check_pass(Config::one_switch(&["", ""]), receiver, Driver { mergeable: false, ..Driver::new(&two) })
}

/// A guest that sends back everything, with the addresses exchanged: both directions at once.
fn echo() -> Result {
    let (one, two) = (mac_of(1), mac_of(2));
    let mirror = Mode { name: "macswap", peer: None, options: &[] };
    // Not testpmd's flowgen: that one sends to an address of its own, whatever its peer.
    let guests = [(Driver::new(&one), mirror), (Driver::new(&two), source(&one))];
    let (mut daemon, mut guests) = set_up(Config::one_switch(&["", ""]), &guests)?;
    send_for_a_while(&daemon, &mut guests)?;
    let mirrored = settled_stats(&mut guests[0])?;
    let vswitch = daemon.vswitch("vs")?;
    vswitch.ensure_exact()?;
    let (port, back) = (vswitch.port(1)?, vswitch.port(2)?);
    ensure(port.counters.taken() == mirrored.tx_packets && mirrored.tx_packets > 100, || {
        format!("{mirrored:?} {port:?}")
    })?;
    ensure(port.counters.outbound_discards == 0, || format!("nothing of it was wrong: {port:?}"))?;
    // The sender does not read: its ring of buffers fills, and the rest is dropped and counted.
    let arrived = back.counters.inbound_unicast_local;
    ensure(arrived > 0 && arrived + back.counters.inbound_discards == mirrored.tx_packets, || {
        format!("{back:?}")
    })?;
    daemon.ensure_healthy()
}

/// Frames spread over several descriptors each.
fn long_chains() -> Result {
    let (one, two) = (mac_of(1), mac_of(2));
    let pieces = Mode {
        name: "txonly",
        peer: Some(&one),
        options: &["--txpkts=64,128,256,512,554", "--tx-offloads=0x8000"],
    };
    let guests = [(Driver::new(&one), SINK), (Driver::new(&two), pieces)];
    let (daemon, mut guests) = set_up(Config::one_switch(&["", ""]), &guests)?;
    let sent = send_for_a_while(&daemon, &mut guests)?;
    let got = settled_stats(&mut guests[0])?;
    ensure(got.rx_packets > 0 && got.rx_bytes == got.rx_packets * 1514, || {
        format!("whole frames of 1,514: {got:?}")
    })?;
    let vswitch = daemon.vswitch("vs")?;
    vswitch.ensure_exact()?;
    let dropped = vswitch.port(1)?.counters.inbound_discards;
    ensure(got.rx_packets + dropped == sent.tx_packets, || format!("{sent:?} {got:?}, {dropped} dropped"))
}

/// Frames of 9,014 bytes, merged from several receive buffers on arrival.
fn jumbo() -> Result {
    let (one, two) = (mac_of(1), mac_of(2));
    let large: &[&str] = &["--max-pkt-len=9018", "--rx-offloads=0x2000", "--enable-scatter"];
    let options: Vec<&str> =
        large.iter().copied().chain(["--txpkts=2000,2000,2000,2000,1014", "--tx-offloads=0x8000"]).collect();
    let guests = [
        (Driver::new(&one), Mode { options: large, ..SINK }),
        (Driver::new(&two), Mode { name: "txonly", peer: Some(&one), options: &options }),
    ];
    let (daemon, mut guests) = set_up(Config::one_switch(&["mtu = 9000", "mtu = 9000"]), &guests)?;
    let sent = send_for_a_while(&daemon, &mut guests)?;
    let got = settled_stats(&mut guests[0])?;
    ensure(got.rx_packets > 0 && got.rx_bytes == got.rx_packets * 9014, || {
        format!("whole frames of 9,014: {got:?}")
    })?;
    let vswitch = daemon.vswitch("vs")?;
    vswitch.ensure_exact()?;
    let dropped = vswitch.port(1)?.counters.inbound_discards;
    ensure(got.rx_packets + dropped == sent.tx_packets, || format!("{sent:?} {got:?}, {dropped} dropped"))
}

/// One frame in, as many out as there are others; the sender gets none.
fn broadcast() -> Result {
    let macs = [mac_of(1), mac_of(2), mac_of(3)];
    let guests = [
        (Driver::new(&macs[0]), SINK),
        (Driver::new(&macs[1]), SINK),
        (Driver::new(&macs[2]), source(BROADCAST)),
    ];
    let (daemon, mut guests) = set_up(Config::one_switch(&["", "", ""]), &guests)?;
    let sent = send_for_a_while(&daemon, &mut guests)?.tx_packets;
    for (index, number) in [(0, 1), (1, 2)] {
        let got = settled_stats(&mut guests[index])?;
        let vswitch = daemon.vswitch("vs")?;
        let port = vswitch.port(number)?;
        let counters = &port.counters;
        ensure(counters.inbound_nonunicast_local == got.rx_packets && got.rx_packets > 0, || {
            format!("{got:?} {port:?}")
        })?;
        ensure(got.rx_packets + counters.inbound_discards == sent, || {
            format!("{sent} sent, {got:?}, {port:?}")
        })?;
    }
    let vswitch = daemon.vswitch("vs")?;
    let own = &vswitch.port(3)?.counters;
    ensure(own.outbound_nonunicast == sent && own.delivered() == 0, || format!("the sender's port: {own:?}"))
}

/// Nobody asked for unknown unicast: it ends in a counter.
fn unknown_destination() -> Result {
    let (one, two) = (mac_of(1), mac_of(2));
    let guests = [(Driver::new(&one), SINK), (Driver::new(&two), source("1e:29:8c:88:99:99"))];
    let (daemon, mut guests) = set_up(Config::one_switch(&["", ""]), &guests)?;
    let sent = send_for_a_while(&daemon, &mut guests)?.tx_packets;
    let vswitch = daemon.vswitch("vs")?;
    let dropped = vswitch.port(2)?.discarded("no_destination");
    ensure(dropped == sent, || format!("{sent} sent, {dropped} dropped for no_destination"))?;
    ensure(guests[0].stats()?.rx_packets == 0, || "another guest got frames that are not its own".to_owned())
}

/// A guest whose MAC address is not the port's gets nothing through, and the log says who it is.
fn spoofed_source() -> Result {
    let (one, wrong) = (mac_of(1), mac_of(0x666));
    let guests = [(Driver::new(&one), SINK), (Driver::new(&wrong), source(&one))];
    let (mut daemon, mut guests) = set_up(Config::one_switch(&["", ""]), &guests)?;
    let sent = send_for_a_while(&daemon, &mut guests)?.tx_packets;
    let vswitch = daemon.vswitch("vs")?;
    vswitch.ensure_exact()?;
    let port = vswitch.port(2)?;
    ensure(port.discarded("spoofed_source") == sent, || format!("{sent} sent, {port:?}"))?;
    ensure(guests[0].stats()?.rx_packets == 0, || "a spoofed frame got through".to_owned())?;
    let log = daemon.console()?.output();
    let lines =
        log.lines().filter(|l| l.contains("g2") && l.contains(&wrong) && l.contains(&mac_of(2))).count();
    ensure((1..=5).contains(&lines), || format!("{lines} log lines name the spoofing guest:\n{log}"))
}

/// A guest killed in the middle of everything costs nobody else anything, and can come back.
fn vanishes() -> Result {
    let (one, two) = (mac_of(1), mac_of(2));
    let config = Config::one_switch(&["", ""]);
    let guests = [(Driver::new(&one), SINK), (Driver::new(&two), source(&one))];
    let (mut daemon, mut running) = set_up(config, &guests)?;
    for _ in 0..3 {
        for guest in &mut running {
            guest.forward()?;
        }
        sleep(Duration::from_millis(200));
        // The receiver dies while frames flow to it.
        running.remove(0);
        sleep(Duration::from_millis(200));
        daemon.ensure_healthy()?;
        running[0].stop()?;
        running.insert(0, Testpmd::start("testpmd-back", &daemon.socket(0), &guests[0].0, &SINK)?);
        daemon.wait_active(1)?;
        running[0].forward()?;
        running[1].forward()?;
        sleep(Duration::from_millis(300));
        let got = running[0].stats()?;
        ensure(got.rx_packets > 0, || "nothing arrives after the guest came back".to_owned())?;
        running[0].stop()?;
        running[1].stop()?;
    }
    daemon.vswitch("vs")?.ensure_exact()
}

/// A guest that listens is found again by a daemon that was killed and started anew.
fn listens_through_restart() -> Result {
    let (one, two) = (mac_of(1), mac_of(2));
    let listening = |mac| Driver { server: true, ..Driver::new(mac) };
    let (receiver, sender) = (listening(&one), listening(&two));
    let config = Config::one_switch(&[&extra(&receiver), &extra(&sender)]);
    let (mut daemon, mut guests) = set_up(config, &[(receiver, SINK), (sender, source(&one))])?;
    guests[0].forward()?;
    guests[1].forward()?;
    sleep(Duration::from_millis(300));
    daemon.kill();
    sleep(Duration::from_millis(300));
    daemon.restart()?;
    daemon.wait_active(1)?;
    daemon.wait_active(2)?;
    let before = guests[0].stats()?.rx_packets;
    daemon.vswitch_when("vs", 10, |v| v.port(1).is_ok_and(|p| p.counters.delivered() > 1_000))?;
    // testpmd's handler of the lost connection may still come and close the new one; the daemon then connects once more.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let after = guests[0].stats()?.rx_packets;
        if after > before {
            return Ok(());
        }
        ensure(Instant::now() < deadline, || format!("{before} frames before, {after} after the restart"))?;
        sleep(Duration::from_millis(200));
    }
}
