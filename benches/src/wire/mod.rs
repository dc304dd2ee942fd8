//! `make bench-wire`: this daemon, OVS and testpmd between guests and veth pairs, measured in one run.
//!
//! Measures as [`crate::beside`] has it: windows in turn at the same offered rate, everything but the target stopped; frames count at the receiver, work as
//! each switch counts it. Each target has veth pairs of its own, all made alike, because a device has one XDP program. Owns the order of things.

mod generator;
mod options;
mod receiver;
mod report;
mod rows;
mod target;
mod traffic;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use avio_tests::{Result, scratch};
use clap::Parser;
use serde::{Deserialize, Serialize};

use options::Options;
use report::Report;
use rows::{Metric, Row, Shape, rows};
use target::{Kind, Target};

use crate::beside::GUEST_CORE;
use crate::beside::machine::Machine;
use crate::beside::probe;
use crate::beside::process;
use crate::beside::window;

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
    /// Received by a guest, in thousand million bits per second.
    gbit: f64,
    /// The far device with the share farthest from even, in percent of that.
    uneven: f64,
}

impl Reading {
    fn value(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Cycles => self.cycles,
            Metric::Loss => self.loss,
            Metric::Mpps => self.received_mpps,
            Metric::Gbit => self.gbit,
            Metric::Uneven => self.uneven,
        }
    }
}

/// Runs `bench-wire` with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        rows().iter().for_each(|row| println!("{:<16} {}", row.name, row.title));
        println!("{:<16} what an uplink costs without traffic", rows::IDLE);
        return ExitCode::SUCCESS;
    }
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
    let begin = Instant::now();
    let mut rows = rows();
    rows.retain(|row| options.wants(row.name));
    for row in &mut rows {
        if options.alone {
            row.targets.retain(|kind| !kind.is_peer());
        }
        if options.against.is_some() && matches!(row.shape, Shape::Wire | Shape::Receiving) {
            row.targets.insert(1, Kind::Other);
        }
    }
    let has_peers = rows.iter().any(|row| row.targets.iter().any(|kind| kind.is_peer()));
    let machine = Machine::prepare("bench-wire", has_peers)?;
    let mut report = Report::new(options, &machine)?;
    if options.wants(rows::IDLE) && options.against.is_none() {
        let percent = target::idle_percent(Duration::from_secs(if options.quick { 3 } else { 10 }))?;
        report.add_idle(percent)?;
    }
    let mut crossing = probe::crossing_ns();
    for of_shape in rows.chunk_by(|a, b| a.shape == b.shape) {
        let Some(first) = of_shape.first() else { continue };
        let mut kinds: Vec<Kind> = of_shape.iter().flat_map(|row| row.targets.clone()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        // Those that are started would inherit the core of whoever drives them.
        let mut targets = start(options, first.shape, &kinds, &mut report);
        let drive = || -> Result {
            core_affinity::set_for_current(core_affinity::CoreId { id: GUEST_CORE });
            for row in of_shape {
                eprintln!("== {} ({:.0} s since the start)", row.title, begin.elapsed().as_secs_f64());
                measure(options, &machine, row, &mut targets, &mut report, &mut crossing)?;
                print!("{}", report.row(row)?);
            }
            Ok(())
        };
        std::thread::scope(|scope| scope.spawn(drive).join())
            .unwrap_or_else(|_| Err(avio_tests::Failure::new("the traffic panicked")))?;
    }
    println!("{}", report.summary());
    Ok(())
}

/// The targets of rows of one shape; those that cannot be had are in the report.
fn start(options: &Options, shape: Shape, kinds: &[Kind], report: &mut Report) -> Vec<Target> {
    let mut targets = Vec::new();
    for &kind in kinds {
        eprintln!("   starting {}", kind.name());
        match Target::start(kind, shape, options.against.as_deref()) {
            Ok(target) => targets.push(target),
            Err(failure) => {
                eprintln!("   {} could not be started: {failure}", kind.name());
                report.missing(shape, kind, &failure);
            }
        }
    }
    targets
}

fn measure(
    options: &Options,
    machine: &Machine,
    row: &Row,
    targets: &mut [Target],
    report: &mut Report,
    crossing: &mut f64,
) -> Result {
    let rounds = options.round_count();
    report.begin(row);
    for round in 1..=rounds {
        for target in targets.iter_mut().filter(|target| row.targets.contains(&target.kind)) {
            let taken = window::undisturbed(machine, options.repeat_max(), crossing, || {
                one(target, row, options.window())
            })?;
            let shown = row.metrics.iter().map(|&metric| {
                format!("{:.*} {}", metric.digits(), taken.reading.value(metric), metric.name())
            });
            eprintln!(
                "   {round}/{rounds} {:<28} {}",
                target.kind.name(),
                shown.collect::<Vec<_>>().join(", ")
            );
            report.add(row, target.kind, &taken);
        }
    }
    Ok(())
}

/// One window of one target, and the share of it that its busiest thread waited for a processor.
fn one(target: &mut Target, row: &Row, window: Duration) -> Result<(Reading, f64)> {
    let pid = target.console()?.pid();
    let (before, start) = (process::by_thread(pid)?, Instant::now());
    let (moved, cycles) = target.awake(|ends| ends.window(row.way, row.rate, row.flows, window))?;
    let busiest = process::busiest_since(&before, &process::by_thread(pid)?);
    let waited = busiest.waited_ns as f64 / start.elapsed().as_nanos() as f64;
    let (offered, received) = (moved.offered as f64, moved.received as f64);
    let even = received / moved.shares.len().max(1) as f64;
    let off = moved.shares.iter().map(|&share| (share as f64 - even).abs()).fold(0.0, f64::max);
    let reading = Reading {
        offered_mpps: offered / moved.seconds / 1e6,
        received_mpps: received / moved.seconds / 1e6,
        loss: (offered - received).max(0.0) / offered.max(1.0) * 100.0,
        cycles: cycles / received.max(1.0),
        gbit: moved.octets as f64 * 8.0 / moved.seconds / 1e9,
        uneven: off / even.max(1.0) * 100.0,
    };
    Ok((reading, waited))
}
