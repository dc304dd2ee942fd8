//! `avio-pktgen` as an operator runs it, through the daemon: each pattern, the search, what it prints, two processes as two guests.
//! What its rings do with a foreign back-end is in `guest_vs_testpmd`.

use std::process::ExitCode;

use avio_tests::aggregate::report;
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::ensure;
use avio_tests::{Result, scratch};
use serde_json::Value;

/// Numbers of the two ports: between their addresses is room for the further ones that a generator counts up.
const PORTS: [u16; 2] = [0x10, 0x20];

fn main() -> ExitCode {
    case::main(&[
        Case::new("pktgen_sends_tso_frames_that_pass_unsegmented", 30, tso),
        Case::new("pktgen_mixes_addresses_flows_and_broadcasts", 30, mixture),
        Case::new("pktgen_uses_queue_pairs_and_offloads_both_ways", 30, pairs),
        Case::new("pktgen_searches_the_rate_without_loss", 60, search),
        Case::new("pktgen_says_how_far_it_is_and_ends_with_a_table", 30, words),
        Case::new("pktgen_in_two_processes_one_of_which_listens", 30, processes),
        Case::new("pktgen_takes_huge_pages_or_says_how_to_get_them", 30, huge_pages),
    ])
}

/// A daemon with two ports, and these lines in the tables of both.
fn start(lines: &str) -> Result<Daemon> {
    let config = Config::default().vswitch("vs", "");
    Daemon::start(config.guest("g1", "vs", PORTS[0], lines).guest("g2", "vs", PORTS[1], lines))
}

/// A generator on some of a daemon's ports.
fn spawn(name: &str, daemon: &Daemon, ports: &[usize], line: &str) -> Result<Console> {
    let mut command = command(program("avio-pktgen")?);
    for &port in ports {
        command.arg("--socket").arg(daemon.socket(port)).args(["--guest-mac", &mac_of(PORTS[port])]);
    }
    Console::spawn(name, command.args(line.split_whitespace()))
}

/// What one run on both ports reports.
fn run(daemon: &mut Daemon, line: &str) -> Result<Value> {
    let value = report(spawn("pktgen", daemon, &[0, 1], &format!("{line} --json"))?, 25)?;
    daemon.ensure_healthy()?;
    Ok(value)
}

/// Frames arrived and all of them as they were sent, each checked if `all` are to be.
fn ensure_clean(report: &Value, all: bool) -> Result {
    for name in ["lost", "duplicated", "reordered", "corrupt"] {
        ensure(report[name] == 0, || format!("{name}: {report}"))?;
    }
    ensure(report["received"].as_u64() > Some(500), || format!("hardly anything arrived: {report}"))?;
    ensure(!all || report["checked"] == report["received"], || format!("not all were checked: {report}"))
}

fn tso() -> Result {
    let mut daemon = start("")?;
    let report = run(&mut daemon, "--pattern tso --rate 2k --duration 1 --verify 1")?;
    ensure_clean(&report, true)?;
    ensure(report["gso_frames"] == report["received"], || format!("some were cut: {report}"))?;
    ensure(report["sent_seqs"] == report["unique_seqs"], || format!("segments are missing: {report}"))
}

fn mixture() -> Result {
    let mut daemon = start("trusted = true\nflood = true")?;
    let line = "--pattern imix --bidirectional --source-mac-count 4 --peer-mac-count 8 --flows 100 --broadcast 10 --rate 10k \
                --duration 1 --verify 1";
    let report = run(&mut daemon, line)?;
    ensure_clean(&report, true)?;
    let sizes = report["sizes"].as_array().map_or(0, Vec::len);
    ensure(sizes == 12, || format!("{sizes} sizes instead of the mix of twelve"))?;
    let vswitch = daemon.vswitch("vs")?;
    for number in PORTS {
        let counters = &vswitch.port(u32::from(number))?.counters;
        let (grouped, unicast) = (counters.outbound_nonunicast, counters.outbound_unicast_local);
        let share = grouped as f64 / (grouped + unicast).max(1) as f64;
        ensure((0.09..0.11).contains(&share), || format!("port {number}: {share} instead of a tenth"))?;
    }
    Ok(())
}

fn pairs() -> Result {
    let mut daemon = start("queue_pairs = 2")?;
    let line =
        "--bidirectional --queues 2 --flows 16 --offloads all --size 200 --rate 10k --duration 1 --verify 1";
    let report = run(&mut daemon, line)?;
    ensure_clean(&report, true)?;
    for port in 0..2 {
        let received = report["ports"][port]["received"].as_u64();
        ensure(received > Some(500), || format!("port {port} received {received:?}"))?;
    }
    Ok(())
}

fn search() -> Result {
    let mut daemon = start("")?;
    // A machine with other loads loses frames at any rate, so some are allowed; what is tested is the search.
    let line = "--search --search-loss 5 --search-resolution 25 --duration 0.2 --warmup 0.1 --notify wait";
    let report = run(&mut daemon, line)?;
    let search = &report["search"];
    let rate = search["no_loss_mpps"].as_f64().unwrap_or(0.0);
    let trials = search["trials"].as_array().cloned().unwrap_or_default();
    ensure(rate > 0.0, || format!("no rate: {report}"))?;
    // The rate found is one that was tried and lost no more than that; what was tried above it lost more.
    let figure = |trial: &Value, name: &str| trial[name].as_f64().unwrap_or(f64::NAN);
    let offered = |trial: &Value| match figure(trial, "offered_mpps") {
        0.0 => figure(trial, "mpps"),
        rate => rate,
    };
    let passed = |trial: &&Value| figure(trial, "lost_ratio") <= 0.05;
    let best = trials.iter().filter(passed).map(offered).fold(0.0, f64::max);
    ensure((best - rate).abs() <= rate * 1e-6, || format!("{rate} is not the best of {trials:?}"))
}

fn words() -> Result {
    let daemon = start("")?;
    let mut pktgen = spawn("pktgen", &daemon, &[0, 1], "--rate 5k --duration 2.5")?;
    pktgen.wait_for(" Mpps  received ", 10)?;
    let status = pktgen.wait_end(20)?;
    let output = pktgen.output();
    ensure(status.success(), || format!("{status}: {output}"))?;
    for word in
        ["Frames", "Received", "Sent", "Lost", "Duplicated", "Reordered", "Corrupt", "One way", "Empty polls"]
    {
        ensure(output.lines().any(|line| line.starts_with(word)), || format!("no line '{word}': {output}"))?;
    }
    Ok(())
}

fn processes() -> Result {
    let socket = scratch::folder().join("listening.sock");
    let role = format!("socket = \"{}\"\nsocket_role = \"client\"", socket.display());
    let config = Config::default().vswitch("vs", "").guest("g1", "vs", PORTS[0], "");
    let mut daemon = Daemon::start(config.guest("g2", "vs", PORTS[1], &role))?;
    let mut answer = command(program("avio-pktgen")?);
    answer.arg("--socket").arg(&socket).args([
        "--guest-mac",
        &mac_of(PORTS[1]),
        "--peer-mac",
        &mac_of(PORTS[0]),
    ]);
    answer.args(["--listen", "--role", "answer", "--duration", "20", "--connect-timeout", "20", "--quiet"]);
    let answer = Console::spawn("answer", &mut answer)?;
    daemon.wait_active(u32::from(PORTS[1]))?;
    let line = format!("--role transmit --pattern rr --peer-mac {} --duration 1 --json", mac_of(PORTS[1]));
    let report = report(spawn("request", &daemon, &[0], &line)?, 20)?;
    let trips = report["rtt_us"]["count"].as_u64();
    ensure(trips > Some(100), || format!("{trips:?} round trips: {report}"))?;
    ensure(report["corrupt"] == 0, || format!("corrupt: {report}"))?;
    drop(answer);
    daemon.ensure_healthy()
}

/// Whether there are such pages is the machine's affair, and other tests use them, too.
fn huge_pages() -> Result {
    let daemon = start("")?;
    let mut pktgen =
        spawn("pktgen", &daemon, &[0, 1], "--huge-pages --rate 5k --duration 0.5 --quiet --verify 1")?;
    let status = pktgen.wait_end(20)?;
    let output = pktgen.output();
    ensure(
        status.success() || (status.code() == Some(1) && output.contains("/proc/sys/vm/nr_hugepages")),
        || format!("{status}: {output}"),
    )
}
