//! Rounds of windows: each target in turn.

use avio_tests::Result;
use serde::{Deserialize, Serialize};

use super::options::Options;
use super::rows::{Metric, Row};
use super::stand::Stand;
use super::target::Target;
use crate::beside::machine::Machine;
use crate::beside::probe::{self, Distance};
use crate::beside::window::undisturbed;

/// What one window gave.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Reading {
    /// Requests per second.
    pub iops: f64,
    /// Latency, us: median, 99th percentile, 99.9th percentile.
    pub latency_us: [f64; 3],
    /// CPU seconds of the target per million requests.
    pub cpu: f64,
    /// Kicks per thousand requests.
    pub kicks: f64,
    /// Notifications that the guest saw per thousand requests.
    pub signals: f64,
    /// Largest share of the window that somebody was ready but did not run.
    pub waited_share: f64,
}

/// One window that counts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Crossing between the cores in nanoseconds.
    pub crossing_ns: f64,
    /// `near`, `far`; `None`: disturbed each time it was tried.
    pub near: Option<bool>,
    /// What was measured.
    pub reading: Reading,
}

impl Sample {
    /// The figure for one metric.
    pub fn value(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Kiops => self.reading.iops / 1e3,
            Metric::P50 => self.reading.latency_us[0],
            Metric::Cpu => self.reading.cpu,
        }
    }
}

/// All windows of one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Which.
    pub target: Target,
    /// In order.
    pub samples: Vec<Sample>,
    /// Windows that were thrown away.
    pub discarded: u32,
}

/// Measures all targets of a row.
///
/// # Errors
/// When a process is gone, requests fail, or the run was stopped.
pub fn measure(stand: &mut Stand, machine: &Machine, options: &Options, row: &Row) -> Result<Vec<Results>> {
    let wanted = row.targets.iter().copied().filter(|&target| stand.has(target));
    let mut results: Vec<Results> =
        wanted.map(|target| Results { target, samples: Vec::new(), discarded: 0 }).collect();
    let mut crossing = probe::crossing_ns();
    let (rounds, window) = (options.round_count(row.has_goal()), options.window(row.has_goal()));
    let repeat_max = options.repeat_max(row.has_goal());
    for round in 1..=rounds {
        for results in &mut results {
            let target = results.target;
            let taken = undisturbed(machine, repeat_max, &mut crossing, || {
                let reading = stand.reading(row, target, window);
                let reading = reading.map_err(|f| f.while_doing(&target.name()))?;
                Ok((reading, reading.waited_share))
            })?;
            results.discarded += taken.discarded;
            let near = taken.distance.map(|distance| distance == Distance::Near);
            let sample = Sample { crossing_ns: taken.crossing_ns, near, reading: taken.reading };
            results.samples.push(sample);
            let r = sample.reading;
            eprintln!(
                "   {round}/{rounds} {:<46} {:9.1} kIOPS  p50 {:7.2} p99 {:7.2} us  CPU-s/1M {:6.3}  kicks {:.1} signals {:.1}  crossing {:.0} ns{}",
                target.name(),
                r.iops / 1e3,
                r.latency_us[0],
                r.latency_us[1],
                r.cpu,
                r.kicks,
                r.signals,
                sample.crossing_ns,
                if near.is_none() {
                    format!("  disturbed, waited {:.1} %", r.waited_share * 100.0)
                } else {
                    String::new()
                },
            );
        }
    }
    Ok(results)
}
