//! Rounds of windows: each target in turn, the distance of the cores probed between them, disturbed windows repeated.

use avio_tests::Result;
use serde::{Deserialize, Serialize};

use super::options::Options;
use super::rows::{Metric, Row};
use super::stand::{Reading, Stand};
use super::target::Target;
use crate::beside::machine::Machine;
use crate::beside::probe::{self, Distance};
use crate::beside::window;

/// One window that counts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Round in which it was taken.
    pub round: u32,
    /// Crossing between the cores in nanoseconds, mean of before and after.
    pub crossing_ns: f64,
    /// Where the cores were; `None`: disturbed each time it was tried, shown but not compared.
    pub distance: Option<Distance>,
    /// What was measured.
    pub reading: Reading,
}

impl Sample {
    /// The figure for one metric.
    pub fn value(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Mpps => self.reading.mpps,
            Metric::Gbit => self.reading.gbit,
            Metric::P50 => self.reading.latency_us.0,
            Metric::P99 => self.reading.latency_us.1,
        }
    }
}

/// All windows of one target at one load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Which.
    pub target: Target,
    /// Percent of its full rate; `None`: full.
    pub load: Option<u32>,
    /// In order.
    pub samples: Vec<Sample>,
    /// Windows that were thrown away.
    pub discarded: u32,
}

/// Measures all targets of a row.
///
/// # Errors
/// When a process is gone, nothing arrives, or the run was stopped.
pub fn measure(stand: &mut Stand, machine: &Machine, options: &Options, row: &Row) -> Result<Vec<Results>> {
    let mut results = Vec::new();
    for &target in row.targets.iter().filter(|&&t| stand.has(t)) {
        let loads = row.loads.iter().map(|&load| Some(load));
        for load in if row.loads.is_empty() { vec![None] } else { loads.collect() } {
            results.push(Results { target, load, samples: Vec::new(), discarded: 0 });
        }
    }
    let mut crossing = probe::crossing_ns();
    for round in 1..=options.round_count() {
        let mut full: Option<(Target, f64)> = None;
        for results in &mut results {
            let rate = match results.load {
                None => None,
                Some(load) => {
                    // Its own full rate of this very round: the machine changes between rounds.
                    let mpps = match full {
                        Some((target, mpps)) if target == results.target => mpps,
                        _ => stand.reading(results.target, None)?.mpps,
                    };
                    full = Some((results.target, mpps));
                    Some(mpps * 1e6 * f64::from(load) / 100.0)
                }
            };
            crossing = one(stand, machine, options, results, round, rate, crossing)?;
            show(row, results, options.round_count());
        }
    }
    Ok(results)
}

/// One window, repeated while it is disturbed. Takes and returns the last known crossing.
fn one(
    stand: &mut Stand,
    machine: &Machine,
    options: &Options,
    results: &mut Results,
    round: u32,
    rate: Option<f64>,
    mut crossing: f64,
) -> Result<f64> {
    let target = results.target;
    let taken = window::undisturbed(machine, options.repeat_max(), &mut crossing, || {
        let reading = stand.reading(target, rate)?;
        Ok((reading, reading.waited_share))
    })?;
    results.discarded += taken.discarded;
    let (crossing_ns, distance, reading) = (taken.crossing_ns, taken.distance, taken.reading);
    results.samples.push(Sample { round, crossing_ns, distance, reading });
    Ok(crossing)
}

/// The progress line.
fn show(row: &Row, results: &Results, rounds: u32) {
    let Some(s) = results.samples.last() else { return };
    let load = results.load.map_or_else(String::new, |load| format!(" at {load} %"));
    let figures: Vec<String> =
        row.metrics.iter().map(|&m| format!("{:.2} {}", s.value(m), m.name())).collect();
    eprintln!(
        "   {}/{rounds} {:<28} {}  crossing {:.0} ns {}  waited {:.1} %{}{}",
        s.round,
        format!("{}{load}", results.target.name()),
        figures.join("  "),
        s.crossing_ns,
        s.distance.map_or("disturbed", Distance::name),
        s.reading.waited_share * 100.0,
        if s.reading.empty_share < 0.0 {
            String::new()
        } else {
            format!("  empty polls {:.0} %", s.reading.empty_share * 100.0)
        },
        s.reading.switch.map_or_else(String::new, |polls| format!(
            "  of the switch {:.0} %, {:.0} a batch",
            polls.empty_share * 100.0,
            polls.frames_per_batch
        )),
    );
}
