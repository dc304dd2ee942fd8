//! `make bench-wire`: this daemon, OVS and testpmd between a guest and a veth pair, measured in one run.
//!
//! Measures as [`crate::beside`] has it: windows in turn at the same offered rate, everything but the target stopped; frames count at the receiver, work as
//! each switch counts it. Each target has a veth pair of its own, all made alike, because a device has one XDP program. Owns the order of things.

mod report;
mod target;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use avio_tests::{Result, scratch};
use clap::Parser;
use serde::{Deserialize, Serialize};

use report::Report;
use target::{Kind, Target};
use traffic::Way;

use crate::beside::GUEST_CORE;
use crate::beside::machine::Machine;
use crate::beside::probe;
use crate::beside::process;
use crate::beside::window;

/// Measures avio-vswitchd beside OVS and testpmd on a veth pair.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench-wire", version)]
struct Options {
    /// Under three minutes: fewer rounds, nothing written.
    #[arg(long)]
    quick: bool,
    /// Rounds, a window per target and row in each.
    #[arg(long)]
    rounds: Option<u32>,
    /// Length of a window in seconds.
    #[arg(long, default_value_t = 0.5)]
    window: f64,
    /// Where the report goes.
    #[arg(long, default_value = "benches/results")]
    results: PathBuf,
}

/// One load.
#[derive(Clone, Copy, Debug)]
struct Row {
    name: &'static str,
    title: &'static str,
    way: Way,
    /// Frames per second; `None`: as many as there can be.
    rate: Option<f64>,
}

/// 64 bytes with their check sequence, as the wire counts.
const ROWS: [Row; 4] = [
    Row { name: "in", title: "64 B, wire to guest, 300,000 a second", way: Way::In, rate: Some(300e3) },
    Row { name: "in-full", title: "64 B, wire to guest, all the generator gives", way: Way::In, rate: None },
    Row { name: "out", title: "64 B, guest to wire, 300,000 a second", way: Way::Out, rate: Some(300e3) },
    Row { name: "out-full", title: "64 B, guest to wire, all the switch takes", way: Way::Out, rate: None },
];

/// What one window gave.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Reading {
    /// Offered and received, in millions per second.
    offered_mpps: f64,
    received_mpps: f64,
    /// Share that was lost, in percent.
    loss: f64,
    /// Of the switch's core, for each frame received.
    cycles: f64,
}

/// Runs `bench-wire` with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => {
            drop(std::fs::remove_dir_all(scratch::folder()));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("bench-wire: ERROR: {failure}");
            eprintln!("bench-wire: transcripts are in {}", scratch::folder().display());
            ExitCode::from(1)
        }
    }
}

fn run(options: &Options) -> Result {
    let machine = Machine::prepare("bench-wire", true)?;
    let mut report = Report::new(&machine, (!options.quick).then(|| options.results.clone()));
    report.idle(target::idle_percent(Duration::from_secs(if options.quick { 3 } else { 10 }))?);
    let mut targets = Vec::new();
    for kind in Kind::ALL {
        eprintln!("   starting {}", kind.name());
        match Target::start(kind) {
            Ok(target) => targets.push(target),
            Err(failure) => {
                eprintln!("   {} could not be started: {failure}", kind.name());
                report.missing(kind, &failure);
            }
        }
    }
    // Only now: what is started would inherit it.
    core_affinity::set_for_current(core_affinity::CoreId { id: GUEST_CORE });
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 7 });
    let window = Duration::from_secs_f64(options.window);
    let mut crossing = probe::crossing_ns();
    for row in ROWS {
        eprintln!("== {}", row.title);
        for round in 1..=rounds {
            for target in &mut targets {
                let taken = window::undisturbed(&machine, 2, &mut crossing, || one(target, row, window))?;
                eprintln!("   {round}/{rounds} {:<20} {:?}", target.kind.name(), taken.reading);
                report.add(row, target.kind, &taken);
            }
        }
        print!("{}", report.table(row));
    }
    drop(targets);
    println!("{}", report.summary());
    report.write()
}

/// One window of one target, and the share of it that its busiest thread waited for a processor.
fn one(target: &mut Target, row: Row, window: Duration) -> Result<(Reading, f64)> {
    let pid = target.console()?.pid();
    let (before, start) = (process::by_thread(pid)?, Instant::now());
    let (moved, cycles) = target.awake(|ends| ends.window(row.way, row.rate, window))?;
    let busiest = process::busiest_since(&before, &process::by_thread(pid)?);
    let waited = busiest.waited_ns as f64 / start.elapsed().as_nanos() as f64;
    let (offered, received) = (moved.offered as f64, moved.received as f64);
    let reading = Reading {
        offered_mpps: offered / moved.seconds / 1e6,
        received_mpps: received / moved.seconds / 1e6,
        loss: (offered - received).max(0.0) / offered.max(1.0) * 100.0,
        cycles: cycles / received.max(1.0),
    };
    Ok((reading, waited))
}
