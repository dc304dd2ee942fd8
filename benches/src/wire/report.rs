//! Tables, ratios, verdicts; `wire.md`, `wire.json` with every window, and the plot.
//!
//! A run replaces the rows that it measured and keeps the others, so that a full report can be taken in slices. Owns the arithmetic from windows to
//! medians and ratios.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use avio_tests::{Failure, Result};
use serde::{Deserialize, Serialize};

use super::Reading;
use super::options::Options;
use super::rows::{Bound, Goal, Metric, Row, Shape, rows};
use super::target::Kind;
use crate::beside::machine::Machine;
use crate::beside::probe::Distance;
use crate::beside::record;
use crate::beside::spread::{Spread, spread};
use crate::beside::svg::{Bars, Group};
use crate::beside::window::Taken;

/// The file beside the report.
const RECORD: &str = "wire.json";
/// Most of a core that an idle uplink may take, in percent.
const IDLE_GOAL: f64 = 1.0;

/// One window.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Sample {
    crossing_ns: f64,
    /// `None`: disturbed, and the least disturbed of several.
    distance: Option<Distance>,
    discarded: u32,
    reading: Reading,
}

/// One row, as it was measured last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Measured {
    /// Day, and the commit that was measured.
    when: String,
    facts: String,
    windows: BTreeMap<Kind, Vec<Sample>>,
    /// Targets that could not be had, and why.
    missing: BTreeMap<Kind, String>,
}

/// What a share of a core an idle uplink takes, in percent.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Idle {
    when: String,
    percent: f64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    idle: Option<Idle>,
    rows: BTreeMap<String, Measured>,
}

/// See the module.
pub(super) struct Report {
    facts: String,
    folder: Option<PathBuf>,
    record: Record,
    missing: Vec<(Shape, Kind, String)>,
}

impl Report {
    /// With what earlier runs found, if this one adds to it.
    ///
    /// # Errors
    /// When that is none of ours.
    pub(super) fn new(options: &Options, machine: &Machine) -> Result<Self> {
        let folder = options.writes().then(|| options.results.clone());
        let text = folder.as_ref().and_then(|folder| fs::read_to_string(folder.join(RECORD)).ok());
        let record = match text {
            Some(text) => serde_json::from_str(&text)
                .map_err(|e| Failure::new(format!("{RECORD}: {e}: remove it and measure all rows again")))?,
            None => Record::default(),
        };
        Ok(Self { facts: machine.facts.clone(), folder, record, missing: Vec::new() })
    }

    /// A target that cannot be had for the rows of a shape.
    pub(super) fn missing(&mut self, shape: Shape, kind: Kind, why: &Failure) {
        self.missing.push((shape, kind, why.to_string()));
    }

    /// Forgets what was known of a row.
    pub(super) fn begin(&mut self, row: &Row) {
        let missing = self.missing.iter().filter(|(shape, ..)| *shape == row.shape);
        let measured = Measured {
            when: record::now(),
            facts: self.facts.clone(),
            windows: BTreeMap::new(),
            missing: missing.map(|(_, kind, why)| (*kind, why.clone())).collect(),
        };
        self.record.rows.insert(row.name.to_owned(), measured);
    }

    /// One window.
    pub(super) fn add(&mut self, row: &Row, kind: Kind, taken: &Taken<Reading>) {
        let sample = Sample {
            crossing_ns: taken.crossing_ns,
            distance: taken.distance,
            discarded: taken.discarded,
            reading: taken.reading,
        };
        let measured = self.record.rows.entry(row.name.to_owned()).or_default();
        measured.windows.entry(kind).or_default().push(sample);
    }

    /// What an idle uplink takes.
    ///
    /// # Errors
    /// When the report cannot be written.
    pub(super) fn add_idle(&mut self, percent: f64) -> Result {
        self.record.idle = Some(Idle { when: record::now(), percent });
        self.write()
    }

    fn spread(&self, row: &Row, kind: Kind, metric: Metric) -> Option<Spread> {
        let samples = self.record.rows.get(row.name)?.windows.get(&kind)?;
        spread(samples.iter().map(|sample| sample.reading.value(metric)))
    }

    /// The table of one row that is complete now; writes it, too.
    ///
    /// # Errors
    /// When the report cannot be written.
    pub(super) fn row(&self, row: &Row) -> Result<String> {
        self.write()?;
        Ok(self.table(row))
    }

    fn table(&self, row: &Row) -> String {
        let Some(measured) = self.record.rows.get(row.name) else { return String::new() };
        let mut text = format!("\n### {}\n\n| switch | offered Mpps |", row.title);
        for metric in row.metrics {
            let _ = write!(text, " {} |", metric.name());
        }
        text += " windows; disturbed |\n| --- | --- |";
        text += &" --- |".repeat(row.metrics.len() + 1);
        for (kind, samples) in &measured.windows {
            let Some(offered) = spread(samples.iter().map(|sample| sample.reading.offered_mpps)) else {
                continue;
            };
            let _ = write!(text, "\n| {} | {:.3} |", kind.name(), offered.median);
            for &metric in row.metrics {
                let Some(Spread { median, min, max, .. }) = self.spread(row, *kind, metric) else { continue };
                let digits = metric.digits();
                let _ = write!(text, " {median:.digits$} ({min:.digits$} to {max:.digits$}) |");
            }
            let disturbed = samples.iter().filter(|sample| sample.distance.is_none()).count();
            let _ = write!(text, " {}; {disturbed} |", samples.len());
        }
        for (kind, why) in &measured.missing {
            let _ = write!(text, "\n\n{} could not be measured: {why}", kind.name());
        }
        let _ = write!(text, "\n\n{}.\n", measured.when);
        text
    }

    fn verdict(&self, row: &Row, goal: &Goal) -> Option<String> {
        let Goal { ours, peer, metric, bound } = *goal;
        let a = self.spread(row, ours, metric)?.median;
        let (digits, name) = (metric.digits(), metric.name());
        let b = self.spread(row, peer, metric)?.median;
        let (shown, wanted, reached) = match bound {
            Bound::AtLeast(ratio) => {
                (format!("{:.2}x of {}", a / b, peer.name()), format!(">= {ratio}"), a >= ratio * b)
            }
            Bound::AtMost(ratio) => {
                (format!("{:.2}x of {}", a / b, peer.name()), format!("<= {ratio}"), a <= ratio * b)
            }
            // A hundredth of a percent is less than one ring in a window.
            Bound::NotMore => {
                (format!("{a:.digits$}, {} {b:.digits$}", peer.name()), "not more".to_owned(), a <= b + 0.005)
            }
            Bound::Below(limit) => (format!("{a:.digits$}"), format!("<= {limit}"), a <= limit),
        };
        let word = if reached { "reached" } else { "MISSED" };
        Some(format!("{}: {}: {name} {shown} (goal {wanted}: {word})", row.title, ours.name()))
    }

    fn verdicts(&self) -> Vec<String> {
        let mut lines: Vec<String> = rows()
            .iter()
            .flat_map(|row| row.goals.iter().filter_map(|goal| self.verdict(row, goal)).collect::<Vec<_>>())
            .collect();
        if let Some(Idle { percent, when }) = &self.record.idle {
            let word = if *percent < IDLE_GOAL { "reached" } else { "MISSED" };
            lines.push(format!(
                "idle uplink, as shipped: {percent:.2} % of a core (goal < {IDLE_GOAL}: {word}; {when})"
            ));
        }
        lines
    }

    /// One line per ratio.
    pub(super) fn summary(&self) -> String {
        self.verdicts().join("\n")
    }

    /// Writes everything, unless this run says nothing about all peers.
    fn write(&self) -> Result {
        let Some(folder) = &self.folder else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let json = serde_json::to_string_pretty(&self.record).map_err(|e| Failure::new(e.to_string()))?;
        fs::write(folder.join(RECORD), json + "\n")?;
        let rows = rows();
        let groups = rows.iter().filter(|row| row.metrics.contains(&Metric::Cycles)).map(|row| Group {
            label: row.title.to_owned(),
            bars: row
                .targets
                .iter()
                .filter_map(|&kind| Some((kind.name().to_owned(), self.spread(row, kind, Metric::Cycles)?)))
                .collect(),
        });
        let bars = Bars { title: "Cycles of the switch's core per frame".into(), groups: groups.collect() };
        fs::write(folder.join("wire-cycles.svg"), bars.svg())?;
        let mut text = format!("{HEAD}\n{}.\n\n## Ratios\n\nMedians.\n\n", self.facts);
        for line in self.verdicts() {
            let _ = writeln!(text, "- {line}");
        }
        text += "\n## Rows\n\nMedian (smallest to largest).\n";
        for row in &rows {
            text += &self.table(row);
        }
        text += "\n![Cycles per frame](wire-cycles.svg)\n";
        fs::write(folder.join("wire.md"), text)?;
        Ok(())
    }
}

/// What is measured, for whoever reads the report.
const HEAD: &str = "# The wire, beside peers

Written by `make bench-wire`; every window is in [wire.json](wire.json); each row says when and at which commit it was measured.

A veth pair for each switch, native XDP in copy mode: **zero-copy cannot be measured on veth**, whose driver has none; it is chosen by capability where a
driver has it. The switch's thread is on core 1; generator (an AF_XDP socket on the far device), guests, and the kernel's receiving half of what the generator
sends are on core 0. Windows in turn, everything else stopped.

*In bursts* the generator gives the kernel 32 frames in one call instead (docs/performance.md, \"Who is the limit, wire to guest\"), which leaves core 0 time for 1.7 times as many. There, as in the other rows,
testpmd is as DPDK ships it, and a second one has `busy_budget=0`: its busy polling, on unless told otherwise, finds no device to poll on veth and is only a system call at
each empty look.

A wire *that ends in XDP* has an AF_XDP socket and its program at the far end, as one between two such switches; else the far end is the kernel's stack, which drops what comes. Frames count at the far
device.

*Cycles* of the switch's core per frame received, system calls and what the kernel does inside them included. OVS: its *processing cycles*, those of iterations with
packets, its polls of other ports in the same iteration included. Ours, in the same way: the
worker's own count of its time with work (`busy_ns`), which is all but the turns that found nothing at any source, at what it learns such a turn to cost between two batches. testpmd: bursts with packets only, not the empty bursts around them. Where the switch is what limits (*all the switch
takes*) the clock rate over the frame rate says the same without anybody's counting: 2,600 cycles over Mpps.

*Between* two guests the wire's two ends are on one daemon (OVS: one bridge whose flows make it two), so the kernel's receiving half is on the
switch's core as well. OVS can take segmentation frames to a wire through its packet-socket netdev only; its main thread, on core 0, receives from that one
and counts no cycles (0 in that row).
";
