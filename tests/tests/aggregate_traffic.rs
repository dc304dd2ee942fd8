//! Traffic over aggregates: how each balance spreads it, thirty-two members under load while half of them go and come
//! back, and what `avio apa` says of it all. Needs root, as uplinks do.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_tests::aggregate::{Cables, aggregate, pktgen, report, shown, wait_states};
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::ensure;
use avio_tests::netns::inside;
use avio_tests::{Failure, Result};
use serde_json::Value;

fn main() -> ExitCode {
    case::main(&[
        Case::new("each_balance_over_two_and_four", 90, || inside(balances)),
        Case::new("thirty_two_members", 90, || inside(thirty_two)),
    ])
}

const LACP: &str = "mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nbalance = \"LB_FLOW\"";

/// A number of a member.
fn number(member: &Value, name: &str) -> u64 {
    member[name].as_u64().unwrap_or(0)
}

/// The same number of each member.
fn numbers(shown: &Value, name: &str) -> Vec<u64> {
    shown["members"].as_array().into_iter().flatten().map(|member| number(member, name)).collect()
}

/// Bytes of a frame of the generator's.
const FRAME_LEN: u64 = 64;

/// Frames from the first guest to the wire; gives how many.
fn transmit(daemon: &Daemon, options: &[&str]) -> Result<u64> {
    let mut command = command(program("avio-pktgen")?);
    command.arg("--socket").arg(daemon.socket(0)).args(["--role", "transmit", "--guest-mac", &mac_of(1)]);
    command
        .args([
            "--peer-mac",
            "1e:29:8c:00:00:00",
            "--rate",
            "20000",
            "--duration",
            "0.5",
            "--warmup",
            "0",
            "--json",
        ])
        .args(options);
    // On a machine whose cores others have, the generator may not get to it.
    let mut sent = 0;
    for _ in 0..5 {
        let report = report(Console::spawn("pktgen", &mut command)?, 20)?;
        sent +=
            report["sent"].as_u64().ok_or_else(|| Failure::new(format!("pktgen did not say: {report}")))?;
        if sent > 4_000 {
            return Ok(sent);
        }
    }
    Err(Failure::new(format!("the generator sent {sent} frames only")))
}

/// What goes out through each of `members` members with `options` of the generator, after the numbers were reset; compared in all forms of `avio apa`.
fn spread(daemon: &Daemon, members: usize, options: &[&str]) -> Result<Vec<u64>> {
    ensure(daemon.avio(&["apa", "reset", "lan900"])?.status.success(), || "reset is refused".to_owned())?;
    let states = vec!["Active"; members];
    let before = wait_states(daemon, "lan900", &states, 5)?;
    ensure(numbers(&before, "frames_out").iter().sum::<u64>() == 0, || format!("reset clears: {before}"))?;
    let sent = transmit(daemon, options)?;
    let end = Instant::now() + Duration::from_secs(5);
    let now = loop {
        let now = shown(daemon, "lan900")?;
        if numbers(&now, "frames_out").iter().sum::<u64>() >= sent {
            break now;
        }
        ensure(Instant::now() < end, || format!("{sent} sent: {now}"))?;
        sleep(Duration::from_millis(20));
    };
    let out = numbers(&now, "frames_out");
    ensure(out.iter().sum::<u64>() == sent, || format!("{sent} sent: {now}"))?;
    let octets: Vec<u64> = out.iter().map(|frames| frames * FRAME_LEN).collect();
    ensure(numbers(&now, "octets_out") == octets, || format!("octets: {now}"))?;
    alike(daemon, now)?;
    Ok(out)
}

/// Compares all forms with `json`. The far ends are devices of a kernel, which sends a frame of its own now and then: if one came in between two of the forms,
/// they are compared once more.
fn alike(daemon: &Daemon, mut json: Value) -> Result {
    loop {
        let outcome = said(daemon, &json);
        let after = shown(daemon, "lan900")?;
        if outcome.is_ok() || numbers(&after, "frames_in") == numbers(&json, "frames_in") {
            return outcome;
        }
        json = after;
    }
}

/// What `avio apa` prints with `arguments`.
fn apa(daemon: &Daemon, arguments: &[&str]) -> Result<String> {
    let output = daemon.avio(&[&["apa"], arguments].concat())?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Every form says the same (SEMANTICS 4.6).
fn said(daemon: &Daemon, json: &Value) -> Result {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let names: Vec<String> =
        json["members"].as_array().into_iter().flatten().map(|m| text(&m["name"])).collect();
    let brief = apa(daemon, &["-c", "lan900"])?;
    let row =
        format!("lan900   -      Up           MANUAL      {:<9} {}", text(&json["balance"]), names.join(","));
    let heading = "Class    Parent APA          Mode        Load      Membership\n\
                   Instance PPA    State                    Balancing\n\
                   ======== ====== ============ =========== ========= ==========\n";
    ensure(brief == format!("{heading}{row}\n"), || format!("{brief}instead of {row}"))?;
    let script = apa(daemon, &["-c", "lan900", "--sc"])?;
    let verbose = apa(daemon, &["-c", "lan900", "-v"])?;
    let mut wanted = vec![
        "apa!lan900#apa_state#current#Up".to_owned(),
        "apa!lan900#mode#current#MANUAL".to_owned(),
        format!("apa!lan900#lb#current#{}", text(&json["balance"])),
        format!("apa!lan900#mac#current#{}", text(&json["mac"])),
        format!("apa!lan900#ports#current#{}", names.join(",")),
        format!("apa!lan900#active_ports#current#{}", names.join(",")),
    ];
    for member in json["members"].as_array().into_iter().flatten() {
        let name = text(&member["name"]);
        wanted.push(format!("apa!lan900#{name}_state#current#Active"));
        for what in ["frames_in", "octets_in", "frames_out", "octets_out"] {
            wanted.push(format!("apa!lan900#{name}_{what}#current#{}", number(member, what)));
        }
        let [frames_in, frames_out, octets_in, octets_out] =
            ["frames_in", "frames_out", "octets_in", "octets_out"].map(|what| number(member, what));
        let line = format!("frames {frames_in} in {frames_out} out, octets {octets_in} in {octets_out} out");
        ensure(verbose.contains(&line), || format!("{line} is not in {verbose}"))?;
    }
    for line in wanted {
        ensure(script.lines().any(|have| have == line), || format!("{line} is not in {script}"))?;
    }
    for (what, value) in [
        ("Link Aggregate PPA #", "lan900".to_owned()),
        ("Link Aggregation Mode", "MANUAL".to_owned()),
        ("Load Balance Mode", text(&json["balance"])),
        ("Active Ports PPA #", names.join(" ")),
        ("Port(s) ready", "-".to_owned()),
        ("Port(s) not ready", "-".to_owned()),
    ] {
        let line = format!("{what:<32}: {value}");
        ensure(verbose.lines().any(|have| have == line), || format!("{line} is not in {verbose}"))?;
    }
    Ok(())
}

/// 1,000 flows by flow within a tenth of even; by ports evenly, too, as these flows' are in a row; by addresses all on one member, as all have the same; by MAC on
/// one with one destination, and evenly with 256 in a row. Members and balance change live.
fn balances() -> Result {
    let cables = Cables::new(4, false)?;
    let with = |balance: &str, count| {
        let lines = format!("mode = \"MANUAL\"\nbalance = \"{balance}\"");
        let vswitch = aggregate("lan900", &cables.members(false, count), &lines);
        Config::default().vswitch("vs", &vswitch).guest("g1", "vs", 1, "")
    };
    let mut daemon = Daemon::start(with("LB_FLOW", 2))?;
    let flows = ["--flows", "1000"];
    let hosts = ["--flows", "1000", "--peer-mac-count", "256"];
    for members in [2, 4] {
        for (balance, options, is_even) in [
            ("LB_FLOW", &flows[..], true),
            ("LB_PORT", &flows[..], true),
            ("LB_IP", &flows[..], false),
            ("LB_MAC", &flows[..], false),
            ("LB_MAC", &hosts[..], true),
        ] {
            daemon.config = with(balance, members);
            daemon.reload()?;
            let end = Instant::now() + Duration::from_secs(5);
            while shown(&daemon, "lan900")?["balance"] != balance {
                ensure(Instant::now() < end, || format!("{balance} is not taken over"))?;
                sleep(Duration::from_millis(10));
            }
            wait_states(&daemon, "lan900", &vec!["Active"; members], 5)?;
            let out = spread(&daemon, members, options)?;
            println!("{balance} {options:?} over {members}: {out:?}");
            let (most, sum) = (out.iter().max().copied().unwrap_or(0), out.iter().sum::<u64>());
            if is_even {
                let even = sum as f64 / members as f64;
                let off = out.iter().map(|&frames| (frames as f64 - even).abs() / even).fold(0.0, f64::max);
                ensure(off <= 0.1, || format!("{balance}: {:.1} % off even: {out:?}", off * 100.0))?;
            } else {
                ensure(most == sum, || format!("{balance}: not all on one: {out:?}"))?;
            }
        }
    }
    daemon.ensure_healthy()
}

/// Two aggregates cable by cable, each with a guest.
fn back_to_back(cables: &Cables) -> Result<Daemon> {
    let side = |name: &str, far: bool| aggregate(name, &cables.members(far, cables.count), LACP);
    Daemon::start(
        Config::default()
            .vswitch("vs_a", &side("lan900", false))
            .vswitch("vs_b", &side("lan901", true))
            .guest("g1", "vs_a", 1, "")
            .guest("g2", "vs_b", 2, ""),
    )
}

/// As many members as there may be, on both sides; all carry, and half of them go and come back under load.
fn thirty_two() -> Result {
    let cables = Cables::new(32, false)?;
    let mut daemon = back_to_back(&cables)?;
    let all = vec!["Active"; 32];
    for name in ["lan900", "lan901"] {
        let up = wait_states(&daemon, name, &all, 30)?;
        ensure(numbers(&up, "buckets").iter().all(|&count| count == 8), || up.to_string())?;
    }
    let load = pktgen(&daemon, 1.5, 256, 5_000)?;
    let quiet = report(load, 30)?;
    for never in ["lost", "duplicated", "reordered", "corrupt"] {
        ensure(quiet[never] == 0, || format!("{never}: {quiet}"))?;
    }
    let used = numbers(&shown(&daemon, "lan900")?, "frames_out");
    ensure(used.iter().all(|&frames| frames > 0), || format!("not all carry: {used:?}"))?;
    let load = pktgen(&daemon, 6.0, 256, 5_000)?;
    let half: Vec<&str> = (0..32).map(|n| if n % 2 == 0 { "Down" } else { "Active" }).collect();
    (0..32).step_by(2).try_for_each(|n| cables.plug(n, false))?;
    wait_states(&daemon, "lan900", &half, 10)?;
    (0..32).step_by(2).try_for_each(|n| cables.plug(n, true))?;
    wait_states(&daemon, "lan900", &all, 30)?;
    let report = report(load, 40)?;
    println!("half of 32 links down and up: {} sent, {} lost", report["sent"], report["lost"]);
    for never in ["duplicated", "reordered", "corrupt"] {
        ensure(report[never] == 0, || format!("{never}: {report}"))?;
    }
    daemon.ensure_healthy()
}
