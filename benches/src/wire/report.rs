//! Tables, ratios, verdicts; `wire.md`, `wire.json` and the plot.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use avio_tests::{Failure, Result};
use serde::Serialize;

use super::target::Kind;
use super::{ROWS, Reading, Row};
use crate::beside::machine::Machine;
use crate::beside::probe::Distance;
use crate::beside::spread::{Spread, spread};
use crate::beside::svg::{Bars, Group};
use crate::beside::window::Taken;
use crate::net::record;

/// Most cycles per frame, as a share of what OVS needs.
const CYCLES_GOAL: f64 = 0.6;
/// Least rate, as a multiple of testpmd's.
const RATE_GOAL: f64 = 1.2;
/// Most of a core that an idle uplink may take, in percent.
const IDLE_GOAL: f64 = 1.0;

/// One window.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    crossing_ns: f64,
    distance: Option<Distance>,
    discarded: u32,
    reading: Reading,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Taking {
    when: String,
    facts: String,
    idle_percent: Option<f64>,
    missing: BTreeMap<String, String>,
    /// Row, then target.
    rows: BTreeMap<String, BTreeMap<String, Vec<Sample>>>,
}

/// See the module.
pub(super) struct Report {
    taking: Taking,
    folder: Option<PathBuf>,
}

impl Report {
    /// Written to `folder` at the end, if there is one.
    pub(super) fn new(machine: &Machine, folder: Option<PathBuf>) -> Self {
        let taking = Taking { when: record::now(), facts: machine.facts.clone(), ..Taking::default() };
        Self { taking, folder }
    }

    /// A target that cannot be had.
    pub(super) fn missing(&mut self, kind: Kind, why: &Failure) {
        self.taking.missing.insert(kind.name().to_owned(), why.to_string());
    }

    /// One window.
    pub(super) fn add(&mut self, row: Row, kind: Kind, taken: &Taken<Reading>) {
        let sample = Sample {
            crossing_ns: taken.crossing_ns,
            distance: taken.distance,
            discarded: taken.discarded,
            reading: taken.reading,
        };
        let of_row = self.taking.rows.entry(row.name.to_owned()).or_default();
        of_row.entry(kind.name().to_owned()).or_default().push(sample);
    }

    /// What an idle uplink takes.
    pub(super) fn idle(&mut self, percent: f64) {
        self.taking.idle_percent = Some(percent);
    }

    fn spread(&self, row: Row, kind: Kind, value: impl Fn(&Reading) -> f64) -> Option<Spread> {
        let samples = self.taking.rows.get(row.name)?.get(kind.name())?;
        spread(samples.iter().map(|sample| value(&sample.reading)))
    }

    /// The table of one row.
    pub(super) fn table(&self, row: Row) -> String {
        let mut text = format!(
            "\n### {}\n\n| switch | offered Mpps | received Mpps | lost % | cycles per frame |\n| --- | --- | --- | --- | --- |\n",
            row.title
        );
        for kind in Kind::ALL {
            let of = |value: fn(&Reading) -> f64| self.spread(row, kind, value);
            let (Some(offered), Some(received), Some(loss), Some(cycles)) =
                (of(|r| r.offered_mpps), of(|r| r.received_mpps), of(|r| r.loss), of(|r| r.cycles))
            else {
                continue;
            };
            let _ = writeln!(
                text,
                "| {} | {:.3} | {:.3} ({:.3} to {:.3}; {}) | {:.2} ({:.2} to {:.2}) | {:.0} ({:.0} to {:.0}) |",
                kind.name(),
                offered.median,
                received.median,
                received.min,
                received.max,
                received.count,
                loss.median,
                loss.min,
                loss.max,
                cycles.median,
                cycles.min,
                cycles.max
            );
        }
        text
    }

    fn verdicts(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let reached = |is: bool| if is { "reached" } else { "MISSED" };
        for row in ROWS {
            let median = |kind, value: fn(&Reading) -> f64| self.spread(row, kind, value).map(|s| s.median);
            if let (Some(ours), Some(ovs)) =
                (median(Kind::Avio, |r| r.cycles), median(Kind::Ovs, |r| r.cycles))
            {
                let ratio = ours / ovs;
                lines.push(format!(
                    "{}: cycles per frame {ratio:.2}x of OVS afxdp (goal <= {CYCLES_GOAL}: {})",
                    row.title,
                    reached(ratio <= CYCLES_GOAL)
                ));
            }
            if row.rate.is_some()
                && let (Some(ours), Some(ovs)) =
                    (median(Kind::Avio, |r| r.loss), median(Kind::Ovs, |r| r.loss))
            {
                lines.push(format!(
                    "{}: lost {ours:.2} %, OVS {ovs:.2} % (goal: not more: {})",
                    row.title,
                    reached(ours <= ovs + 0.005)
                ));
            }
            if row.rate.is_none()
                && let (Some(ours), Some(theirs)) =
                    (median(Kind::Avio, |r| r.received_mpps), median(Kind::Testpmd, |r| r.received_mpps))
            {
                let ratio = ours / theirs;
                lines.push(format!(
                    "{}: {ratio:.2}x the rate of testpmd (goal >= {RATE_GOAL} where the generator allows: {})",
                    row.title,
                    reached(ratio >= RATE_GOAL)
                ));
            }
        }
        if let Some(percent) = self.taking.idle_percent {
            lines.push(format!(
                "idle uplink, as shipped: {percent:.2} % of a core (goal < {IDLE_GOAL}: {})",
                reached(percent < IDLE_GOAL)
            ));
        }
        lines.extend(
            self.taking.missing.iter().map(|(name, why)| format!("{name}: could not be measured: {why}")),
        );
        lines
    }

    /// One line per ratio.
    pub(super) fn summary(&self) -> String {
        self.verdicts().join("\n")
    }

    /// Writes everything.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(super) fn write(&self) -> Result {
        let Some(folder) = &self.folder else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let json = serde_json::to_string_pretty(&self.taking).map_err(|e| Failure::new(e.to_string()))?;
        fs::write(folder.join("wire.json"), json + "\n")?;
        let groups = ROWS.iter().map(|&row| Group {
            label: row.title.to_owned(),
            bars: Kind::ALL
                .iter()
                .filter_map(|&kind| Some((kind.name().to_owned(), self.spread(row, kind, |r| r.cycles)?)))
                .collect(),
        });
        let bars = Bars { title: "Cycles of the switch's core per frame".into(), groups: groups.collect() };
        fs::write(folder.join("wire-cycles.svg"), bars.svg())?;
        let mut text = format!(
            "# The wire, beside peers\n\nWritten by `make bench-wire`, {}; every window is in [wire.json](wire.json).\n{}.\n\n\
             A veth pair for each switch, native XDP in copy mode: **zero-copy cannot be measured on veth**, whose driver has none; it is chosen by\n\
             capability where a driver has it. The switch's thread is on core 1; generator (an AF_XDP socket on the far device), guest and the kernel's\n\
             receiving half are on core 0. Windows in turn, everything else stopped. *Cycles*: OVS's processing cycles of iterations with packets, testpmd's of\n\
             bursts with packets, ours all time less the polls that found nothing; per frame received, system calls and the kernel's sending half included.\n\n## Ratios\n\n",
            self.taking.when, self.taking.facts
        );
        for line in self.verdicts() {
            let _ = writeln!(text, "- {line}");
        }
        text += "\n## Rows\n\nMedian (smallest to largest; windows).\n";
        for row in ROWS {
            text += &self.table(row);
        }
        text += "\n![Cycles per frame](wire-cycles.svg)\n";
        fs::write(folder.join("wire.md"), text)?;
        Ok(())
    }
}
