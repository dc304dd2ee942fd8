//! `avio demo`: the project's main job on one screen. A switch with four guests, traffic between them, an attack, and what
//! the switch counted; a guest with 128 disks; then, for root, an aggregate that loses a cable.
//!
//! Owns the order of the show and the verdict. The daemons are the real ones, the guests are processes of `avio-guest`; the
//! statistics come through the control socket as for any operator.

mod daemon;
mod disks;
mod failover;
mod phases;

use crate::cli::{self, Failure, Global};
use crate::client::Client;
use crate::pktgen::lane::Port;
use crate::pktgen::report::{percentiles, progress_line};
use crate::pktgen::run::{Progress, connect};
use avio_guest::Endpoint;
use avio_guest::net::{NetOptions, Offloads};
use avio_proto::control::{DiscardReason, ShowParams, ShowReply, method};
use clap::Args;
use daemon::{DISK_GUEST, Daemon, DemoGuest, VSWITCH};
use disks::DiskResult;
use failover::{Cables, FailoverResult};
use phases::{FloodResult, PingResult, SpoofResult, Stage};
use serde::Serialize;
use std::ffi::OsStr;
use std::time::{Duration, Instant};

/// The guests and their addresses: two for small frames, one to attack, one to stay honest beside it.
const GUESTS: [DemoGuest; 4] = [
    DemoGuest { name: "guest1", mac: [0x1e, 0x29, 0x8c, 0x88, 0xa5, 0x01] },
    DemoGuest { name: "guest2", mac: [0x1e, 0x29, 0x8c, 0x88, 0xa5, 0x02] },
    DemoGuest { name: "guest3", mac: [0x1e, 0x29, 0x8c, 0x88, 0xa5, 0x03] },
    DemoGuest { name: "guest4", mac: [0x1e, 0x29, 0x8c, 0x88, 0xa5, 0x04] },
];
/// How long the switch may take to count what the last phase sent.
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);

/// Options of `avio demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Length of each of the four phases, in seconds (1 to 60).
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
}

/// What the demo found: the object of `avio demo --json`.
#[derive(Debug, Serialize)]
struct Summary {
    request_response: PingResult,
    small_frames: FloodResult,
    segments_64k: FloodResult,
    spoofing: SpoofResult,
    disks: DiskResult,
    /// `None` without root.
    failover: Option<FailoverResult>,
    duration_s: f64,
}

/// Runs the demo.
///
/// # Errors
/// [`Failure::Refused`] when something did not work or a claim did not hold; everything it started is gone then.
pub fn run(global: &Global, args: &DemoArgs) -> Result<(), Failure> {
    show(global, args).map_err(Failure::Refused)
}

fn show(global: &Global, args: &DemoArgs) -> Result<(), String> {
    let start = Instant::now();
    let say = |line: String| {
        // With --json, stdout is for the object alone.
        if global.json { eprintln!("{line}") } else { println!("{line}") }
    };
    let cores: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|c| c.id).collect();
    // The last core is the worker's, the others are the guests'. On one core all take turns, asleep when there is nothing.
    let (worker, guest_cores) = match cores.as_slice() {
        [guests @ .., worker] if !guests.is_empty() => {
            (Some(*worker), guests[..guests.len().min(2)].to_vec())
        }
        _ => (None, Vec::new()),
    };
    let stage =
        Stage { cores: guest_cores, wait: worker.is_none(), window: Duration::from_secs(args.seconds) };
    say(match worker {
        Some(core) => format!("avio demo: worker of the switch on core {core}, guests on {:?}", stage.cores),
        None => "avio demo: one core for the switch and the guests, so everything waits for its turn".into(),
    });
    let daemon = Daemon::switch(&GUESTS, worker)?;
    let mut summary = traffic(global, &stage, &daemon, start, &say).map_err(|e| with_log(e, &daemon))?;
    daemon.stop()?;
    let daemon = Daemon::storage(disks::LUNS, disks::IMAGE_LEN, worker)?;
    summary.disks = storage(global, &daemon, &say).map_err(|e| with_log(format!("disks: {e}"), &daemon))?;
    daemon.stop()?;
    summary.failover = failover(global, &say).map_err(|e| format!("failover: {e}"))?;
    summary.duration_s = start.elapsed().as_secs_f64();
    if global.json {
        println!("{}", serde_json::to_string(&summary).map_err(|e| e.to_string())?);
    } else {
        print!("{}", text(&summary));
    }
    Ok(())
}

/// The daemon's log explains most failures better than their symptoms.
fn with_log(error: String, daemon: &Daemon) -> String {
    let log = daemon.log_tail();
    if log.is_empty() { error } else { format!("{error}\nend of the daemon's log:\n{log}") }
}

/// A command that an operator would type, and what it prints.
fn shown(daemon: &Daemon, command: &[&str]) -> Result<(), String> {
    println!("\n$ avio {}", command.join(" "));
    let (run, config) = (daemon.run_dir(), daemon.config_dir());
    let folders: [&OsStr; 4] = ["--run-dir".as_ref(), run.as_ref(), "--config".as_ref(), config.as_ref()];
    cli::line(folders.into_iter().chain(command.iter().map(AsRef::as_ref))).map_err(|e| e.to_string())
}

fn storage(global: &Global, daemon: &Daemon, say: &impl Fn(String)) -> Result<DiskResult, String> {
    let luns = disks::LUNS;
    say(format!("[5/6] disks: {DISK_GUEST} writes, reads back and verifies {luns} LUNs over image files"));
    let result = disks::run(daemon, say)?;
    if !global.json {
        shown(daemon, &["stor"])?;
    }
    Ok(result)
}

/// The part for which root makes the cables.
fn failover(global: &Global, say: &impl Fn(String)) -> Result<Option<FailoverResult>, String> {
    if !rustix::process::geteuid().is_root() {
        say("[6/6] failover: this part makes network devices, so it needs root: sudo make demo".into());
        return Ok(None);
    }
    let cables = match Cables::new() {
        Ok(cables) => cables,
        Err(why) => {
            say(format!("[6/6] failover: left out, network devices cannot be made here: {why}"));
            return Ok(None);
        }
    };
    say("[6/6] failover: an LACP aggregate of two cables; one is pulled while frames flow".into());
    let guests = [GUESTS[0], GUESTS[1]];
    let show = |daemon: &Daemon| {
        if global.json { Ok(()) } else { shown(daemon, &["apa", "-c", "lan900", "-v"]) }
    };
    failover::run(&cables, &guests, show).map(Some)
}

fn traffic(
    global: &Global,
    stage: &Stage,
    daemon: &Daemon,
    start: Instant,
    say: &impl Fn(String),
) -> Result<Summary, String> {
    let endpoints =
        |guests: &[DemoGuest]| guests.iter().map(|g| Endpoint::connect(daemon.socket(g.name))).collect();
    let options = NetOptions { offloads: Offloads::Tso, frame_len_max: 1518, ..NetOptions::default() };
    // Transmit buffers of 64 KiB would not stay in the cache under small frames, so two guests have them, two have not. A
    // frame of 64 KiB takes 32 receive buffers, so their rings are longer.
    let long = NetOptions { frame_len_max: phases::TSO_LEN, ring_size: 1024, ..options.clone() };
    let mut ports: Vec<Port> = connect(endpoints(&GUESTS[..2]), &options).map_err(|e| e.to_string())?;
    ports.extend(connect(endpoints(&GUESTS[2..]), &long).map_err(|e| e.to_string())?);
    say(format!("avio demo: {} guests connected to vswitch {VSWITCH}", ports.len()));

    let tell = |p: &Progress| say(format!("  {}", progress_line(p)));
    say("[1/6] request and response, 64 B: guest1 asks, guest2 answers".into());
    let request_response =
        phases::ping(stage, &mut ports, &GUESTS, tell).map_err(|e| format!("request/response: {e}"))?;
    say("[2/6] small frames, 64 B: guest1 to guest2 as fast as they go".into());
    let small_frames = accounted(daemon, || phases::flood(stage, &mut ports, &GUESTS, tell))
        .map_err(|e| format!("small frames: {e}"))?;
    say("[3/6] 64 KiB TSO frames: guest3 to guest4".into());
    let segments_64k = accounted(daemon, || phases::segments(stage, &mut ports[2..], &GUESTS[2..], tell))
        .map_err(|e| format!("64 KiB frames: {e}"))?;
    if segments_64k.unsegmented == 0 {
        return Err("64 KiB frames: the switch segmented them although both guests take them whole".into());
    }
    say("[4/6] spoofing: guest3 sends as guest1, guest4 sends as itself, both to guest2".into());
    let before = discarded(daemon, DiscardReason::SpoofedSource)?;
    let mut spoofing =
        phases::spoof(stage, &mut ports, &GUESTS, tell).map_err(|e| format!("spoofing: {e}"))?;
    spoofing.spoofed_dropped = counted(daemon, DiscardReason::SpoofedSource, before, spoofing.spoofed_sent)?;
    judge(&spoofing)?;
    if let Some(line) = daemon.log_line("its definition says") {
        say(format!("  the daemon's log: {}", line.trim()));
    }
    if !global.json {
        shown(daemon, &["net", "-S", VSWITCH, "-A"])?;
    }
    Ok(Summary {
        request_response,
        small_frames,
        segments_64k,
        spoofing,
        disks: DiskResult::default(),
        failover: None,
        duration_s: start.elapsed().as_secs_f64(),
    })
}

/// Runs a flood and has every frame that did not arrive found in the switch's counters: a guest that is not looking has a full
/// ring, and a switch that does not keep frames for it drops them and says so.
fn accounted(
    daemon: &Daemon,
    flood: impl FnOnce() -> Result<FloodResult, String>,
) -> Result<FloodResult, String> {
    let before = discarded(daemon, DiscardReason::NoBuffer)?;
    let mut result = flood()?;
    result.no_buffer = counted(daemon, DiscardReason::NoBuffer, before, result.lost_frames)?;
    judge_flood(&result)?;
    Ok(result)
}

/// What the switch counted since `before`, looked at until it is `wanted` or the time for it is over.
fn counted(daemon: &Daemon, reason: DiscardReason, before: u64, wanted: u64) -> Result<u64, String> {
    let deadline = Instant::now() + COUNT_TIMEOUT;
    loop {
        let count = discarded(daemon, reason)? - before;
        if count == wanted || Instant::now() > deadline {
            return Ok(count);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Frames that the switch has discarded for `reason` so far, over all ports.
fn discarded(daemon: &Daemon, reason: DiscardReason) -> Result<u64, String> {
    let mut client = Client::vswitchd(&daemon.run_dir()).map_err(|e| e.to_string())?;
    let params = ShowParams { vswitch: Some(VSWITCH.into()), number: None };
    let reply: ShowReply = client.call(method::SHOW, &params).map_err(|e| e.to_string())?;
    let ports = reply.vswitches.iter().flat_map(|v| &v.ports);
    Ok(ports.map(|p| p.discards[reason]).sum())
}

/// The claim of a flood: what did not arrive was counted, by its reason.
fn judge_flood(f: &FloodResult) -> Result<(), String> {
    if f.lost_frames != f.no_buffer {
        let (lost, counted) = (f.lost_frames, f.no_buffer);
        return Err(format!("{lost} frames did not arrive, the switch counted {counted} without a buffer"));
    }
    Ok(())
}

/// The claims of the last phase.
fn judge(s: &SpoofResult) -> Result<(), String> {
    if s.spoofed_sent == 0 || s.honest_received == 0 {
        return Err(format!("spoofing: nothing was sent, or nothing honest arrived: {s:?}"));
    }
    if s.spoofed_leaked > 0 {
        return Err(format!(
            "spoofing: {} of {} spoofed frames reached a guest",
            s.spoofed_leaked, s.spoofed_sent
        ));
    }
    if s.spoofed_dropped != s.spoofed_sent {
        let (dropped, sent) = (s.spoofed_dropped, s.spoofed_sent);
        return Err(format!("spoofing: the switch counted {dropped} spoofed frames of {sent} sent"));
    }
    Ok(())
}

/// The closing lines.
fn text(s: &Summary) -> String {
    let flood = |f: &FloodResult| {
        // Whole frames: a lost frame of 64 KiB is many lost segments.
        let dropped = match f.no_buffer {
            0 => "none lost".to_owned(),
            count => format!("{count} dropped and counted by the switch, the receiver's ring was full"),
        };
        format!("{:.2} Mpps, {:.2} Gbit/s; {dropped}; {} checked", f.mpps, f.gbit_s, f.checked)
    };
    let failover = s.failover.as_ref().map_or_else(String::new, |f| {
        format!(
            "  Failover          {:.1} ms without the pulled cable's flows; lost {} of {}, out of order or twice {}\n",
            f.outage_ms, f.lost, f.sent, f.disordered
        )
    });
    format!(
        "\nSummary ({:.0} s)\n\
         \x20 Request/response  one way {}; round trip p50 {:.2} us; unanswered {}\n\
         \x20 64 B frames       {}\n\
         \x20 64 KiB frames     {}; {} passed unsegmented\n\
         \x20 Spoofed frames    dropped {} of {}; honest frames meanwhile arrived {} of {}\n\
         \x20 Disks             {} LUNs, {:.0} MiB written, read back and verified; {:.0} durable writes/s, {:.0} reads/s\n{failover}",
        s.duration_s,
        percentiles(&s.request_response.one_way_us),
        s.request_response.round_trip_us.p50_us,
        s.request_response.unanswered,
        flood(&s.small_frames),
        flood(&s.segments_64k),
        s.segments_64k.unsegmented,
        s.spoofing.spoofed_dropped,
        s.spoofing.spoofed_sent,
        s.spoofing.honest_received,
        s.spoofing.honest_sent,
        s.disks.luns,
        s.disks.bytes as f64 / f64::from(1 << 20),
        s.disks.writes_per_s,
        s.disks.reads_per_s,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_is_lost_and_not_counted_fails_the_demo() {
        let result =
            |lost_frames, no_buffer| FloodResult { lost_frames, no_buffer, ..FloodResult::default() };
        assert_eq!(judge_flood(&result(0, 0)), Ok(()));
        assert_eq!(judge_flood(&result(64, 64)), Ok(()));
        assert!(judge_flood(&result(64, 0)).is_err());
        assert!(judge_flood(&result(0, 64)).is_err());
    }

    #[test]
    fn a_leak_or_a_frame_that_nobody_counted_fails_the_demo() {
        let good = SpoofResult {
            spoofed_sent: 10,
            spoofed_dropped: 10,
            spoofed_leaked: 0,
            honest_sent: 5,
            honest_received: 5,
        };
        assert_eq!(judge(&good), Ok(()));
        for bad in [
            SpoofResult { spoofed_leaked: 1, spoofed_dropped: 9, ..good },
            SpoofResult { spoofed_dropped: 9, ..good },
            SpoofResult { spoofed_sent: 0, spoofed_dropped: 0, ..good },
            SpoofResult { honest_received: 0, ..good },
        ] {
            assert!(judge(&bad).is_err(), "{bad:?}");
        }
    }
}
