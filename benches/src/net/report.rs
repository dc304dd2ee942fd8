//! Tables, ratios, verdicts; `net.md` and its plots.
//!
//! Owns the arithmetic from windows to medians and ratios. Near windows are compared with near ones, far with far ones;
//! disturbed ones are shown only where a target has nothing else, and marked.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use avio_tests::{Failure, Result};
use comfy_table::{CellAlignment, Table, presets};

use super::idle;
use super::options::Options;
use super::rows::{Metric, Row, rows};
use super::stand::SwitchPolls;
use super::target::Target;
use super::window::{Results, Sample};
use crate::beside::machine::{self, Machine};
use crate::beside::probe::Distance;
use crate::beside::record::{self, Figure, Record, Taken};
use crate::beside::spread::spread;
use crate::beside::svg::{Bars, Group};

/// The file beside the report.
const RECORD: &str = "net.json";

/// See the module.
pub struct Report {
    folder: PathBuf,
    facts: String,
    mhz: f64,
    writes: bool,
    record: Record<Results, Figure>,
    /// Names of what this run measured.
    measured: Vec<String>,
}

/// What the rows in the record amount to.
#[derive(Default)]
struct Page {
    text: String,
    verdicts: Vec<String>,
    plots: Vec<(String, Bars)>,
    sizes: Vec<Group>,
}

impl Report {
    /// With what earlier runs found, if this one adds to it.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn new(options: &Options, machine: &Machine) -> Result<Self> {
        let folder = options.results.clone();
        let record = if options.writes() { Record::read(&folder.join(RECORD))? } else { Record::default() };
        Ok(Self {
            folder,
            facts: machine.facts.clone(),
            mhz: machine::mhz().unwrap_or(0.0),
            writes: options.writes(),
            record,
            measured: Vec::new(),
        })
    }

    /// Adds a row; returns its table.
    ///
    /// # Errors
    /// When the report cannot be written.
    pub fn add(&mut self, row: &Row, found: std::result::Result<Vec<Results>, &Failure>) -> Result<String> {
        let failure = found.as_ref().err().map(|failure| failure.to_string());
        let results = found.unwrap_or_default();
        let taken = Taken { when: record::now(), facts: self.facts.clone(), results, failure };
        let mut page = Page::default();
        page.add(row, &taken, self.mhz);
        self.record.rows.insert(row.name.to_owned(), taken);
        self.measured.push(row.name.to_owned());
        self.write()?;
        Ok(page.text)
    }

    /// Adds a single figure.
    ///
    /// # Errors
    /// When the report cannot be written.
    pub fn add_figure(&mut self, name: &str, figure: Figure) -> Result {
        self.record.figures.insert(name.to_owned(), figure);
        self.measured.push(name.to_owned());
        self.write()
    }

    fn page(&self, rows: &[Row], wanted: impl Fn(&str) -> bool) -> Page {
        let mut page = Page::default();
        for row in rows.iter().filter(|row| wanted(row.name)) {
            if let Some(taken) = self.record.rows.get(row.name) {
                page.add(row, taken, self.mhz);
            }
        }
        for (name, _) in idle::FIGURES.iter().filter(|(name, _)| wanted(name)) {
            if let Some(Figure { what, value }) = self.record.figures.get(*name) {
                let _ = write!(page.text, "\n### {what}\n\n{value}\n");
                page.verdicts.push(format!("{what}: {value}"));
            }
        }
        page
    }

    /// Writes `net.md`, the plots and the record, unless this run says nothing about all peers.
    fn write(&self) -> Result {
        if !self.writes {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        self.record.write(&self.folder.join(RECORD))?;
        let Page { text: rows, mut verdicts, plots: bars, sizes } = self.page(&rows(false, false), |_| true);
        verdicts.extend(self.crowd());
        let mut plots = String::new();
        let rates = Bars { title: "Frames received per second, millions".into(), groups: sizes };
        let all =
            std::iter::once(("rates".to_owned(), &rates)).chain(bars.iter().map(|(n, b)| (n.clone(), b)));
        for (name, bars) in all.filter(|(_, bars)| !bars.groups.is_empty()) {
            let file = format!("net-{name}.svg");
            fs::write(self.folder.join(&file), bars.svg())?;
            let _ = writeln!(plots, "![{}]({file})", bars.title);
        }
        let mut text = format!(
            "# Guest to guest, beside peers\n\nWritten by `make bench-net`; how it measures is told in [performance](../../docs/performance.md), \
             every window is in [{RECORD}]({RECORD}).\n{}. One switch thread on core 1, guests on core 0; frames counted at the receiver.\n\n\
             ## Ratios\n\n",
            self.facts
        );
        for verdict in &verdicts {
            let _ = writeln!(text, "- {verdict}");
        }
        let _ = write!(
            text,
            "\n## Rows\n\nMedian (smallest to largest; windows). *Crossing*: what a cache line takes between the two cores. *Cycles*: of the\n\
             switch's core per frame that arrived, waiting included. *Empty*: share of the receiver's polls that found nothing; above 80 %\n\
             the switch is the bottleneck, near 0 the guest is. *Switch empty*: share of our worker's polls that found nothing, from before\n\
             the guests begin until after they end: too high for a figure of the load alone; *batch*: frames per poll that found some. *Wrong*: frames corrupt, doubled or out of order. *Thrown away*: windows\n\
             in which somebody waited for a processor or the cores moved.\n{rows}\n## Plots\n\n{plots}"
        );
        fs::write(self.folder.join("net.md"), text)?;
        Ok(())
    }

    /// What a frame costs with many active ports, compared with two.
    fn crowd(&self) -> Option<String> {
        let mpps = |name: &str| {
            let results = &self.record.rows.get(name)?.results;
            let ours = results.iter().find(|r| r.target == Target::Avio)?;
            spread(ours.samples.iter().map(|s| s.value(Metric::Mpps))).map(|s| s.median)
        };
        let (two, sixteen, many) = (mpps("size-64")?, mpps("ports-16")?, mpps("ports-64")?);
        let mut line = format!(
            "64 B, time per frame with 16 and 64 active ports, ours to itself with 2: {:.2}x, {:.2}x (goal <= 1.10; the guests, all on \
             one core, grow with the ports)",
            two / sixteen,
            two / many
        );
        if let Some(long) = mpps("ports-2-long-rings") {
            let _ =
                write!(line, "; with 64 to 2 that have as many buffers between them: {:.2}x", long / many);
        }
        if let (Some(two), Some(many)) = (mpps("ports-2-huge"), mpps("ports-64-huge")) {
            let _ = write!(line, "; guests in pages of 2 MiB, with 64 to 2: {:.2}x", two / many);
            if let Some(long) = mpps("ports-2-long-rings-huge") {
                let _ = write!(line, ", to 2 that have as many buffers between them: {:.2}x", long / many);
            }
        }
        Some(line)
    }

    /// One line per ratio of this run.
    pub fn summary(&self, rows: &[Row], elapsed: Duration) -> String {
        let mut text = format!("\nRatios, ours to the peer's ({:.0} s):\n", elapsed.as_secs_f64());
        for verdict in self.page(rows, |name| self.measured.iter().any(|n| n == name)).verdicts {
            let _ = writeln!(text, "  {verdict}");
        }
        text
    }
}

impl Page {
    fn add(&mut self, row: &Row, taken: &Taken<Results>, mhz: f64) {
        let _ = write!(
            self.text,
            "\n### {}\n\n`--only {}`, {}, {}\n",
            row.title, row.name, taken.when, taken.facts
        );
        if let Some(failure) = &taken.failure {
            let line = format!("Could not be measured: {failure}");
            let _ = write!(self.text, "\n{line}\n");
            self.verdicts.push(format!("{}: {line}", row.title));
            return;
        }
        let _ = write!(self.text, "\n{}\n", table(row, &taken.results, mhz));
        for verdict in verdicts(row, &taken.results) {
            let _ = writeln!(self.text, "\n{verdict}");
            self.verdicts.push(verdict);
        }
        self.plot(row, &taken.results);
    }

    fn plot(&mut self, row: &Row, results: &[Results]) {
        let metric = row.metrics[0];
        let bars = results.iter().filter(|r| r.load.is_none()).filter_map(|r| {
            let s = spread(r.samples.iter().map(|s| s.value(metric)))?;
            Some((r.target.name().to_owned(), s))
        });
        let group = Group { label: row.title.clone(), bars: bars.collect() };
        if metric == Metric::Mpps && !group.bars.is_empty() {
            self.sizes.push(group);
        } else if !group.bars.is_empty() {
            let title = format!("{}, {}", row.title, metric.name());
            self.plots.push((row.name.to_owned(), Bars { title, groups: vec![group] }));
        }
        if !row.loads.is_empty() {
            let groups = row.loads.iter().map(|&load| Group {
                label: format!("{load} % of its full rate"),
                bars: results
                    .iter()
                    .filter(|r| r.load == Some(load))
                    .filter_map(|r| {
                        let s = spread(r.samples.iter().map(|s| s.value(Metric::P50)))?;
                        Some((r.target.name().to_owned(), s))
                    })
                    .collect(),
            });
            let title = format!("{}, p50 us", row.title);
            self.plots.push((row.name.to_owned(), Bars { title, groups: groups.collect() }));
        }
    }
}

fn of(results: &Results, distance: Option<Distance>) -> impl Iterator<Item = &Sample> {
    results.samples.iter().filter(move |s| s.distance == distance)
}

fn dash() -> String {
    "–".to_owned()
}

fn table(row: &Row, results: &[Results], mhz: f64) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "target",
        "",
        "near",
        "far",
        "disturbed",
        "cycles",
        "crossing ns",
        "empty",
        "switch empty",
        "batch",
        "wrong",
        "thrown away",
    ]);
    for r in results {
        let load = r.load.map_or_else(String::new, |load| format!(" at {load} %"));
        for (i, &metric) in row.metrics.iter().enumerate() {
            let cell = |distance| match spread(of(r, distance).map(|s| s.value(metric))) {
                None => dash(),
                Some(s) => format!("{:.2} ({:.2}–{:.2}; {})", s.median, s.min, s.max, s.count),
            };
            let first = i == 0;
            let only_first = |text: String| if first { text } else { String::new() };
            let crossing = spread(r.samples.iter().map(|s| s.crossing_ns));
            let rate = spread(r.samples.iter().map(|s| s.value(Metric::Mpps)));
            let cycles = match rate {
                Some(s) if s.median > 0.0 && !metric.is_time() => format!("{:.0}", mhz / s.median),
                _ => dash(),
            };
            let empty = spread(r.samples.iter().map(|s| s.reading.empty_share));
            let polls = |of: fn(SwitchPolls) -> f64| {
                spread(r.samples.iter().filter_map(|s| s.reading.switch).map(of))
            };
            table.add_row([
                only_first(format!("{}{load}", r.target.name())),
                metric.name().to_owned(),
                cell(Some(Distance::Near)),
                cell(Some(Distance::Far)),
                cell(None),
                only_first(cycles),
                only_first(crossing.map_or_else(String::new, |s| format!("{:.0}–{:.0}", s.min, s.max))),
                only_first(match empty {
                    Some(s) if s.median >= 0.0 => format!("{:.0} %", s.median * 100.0),
                    _ => dash(),
                }),
                only_first(
                    polls(|p| p.empty_share).map_or_else(dash, |s| format!("{:.0} %", s.median * 100.0)),
                ),
                only_first(polls(|p| p.frames_per_batch).map_or_else(dash, |s| format!("{:.0}", s.median))),
                only_first(r.samples.iter().map(|s| s.reading.wrong).sum::<u64>().to_string()),
                only_first(r.discarded.to_string()),
            ]);
        }
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// A line per peer and metric of the row: ratios near and far, and whether the goal is reached.
fn verdicts(row: &Row, results: &[Results]) -> Vec<String> {
    let mut lines = Vec::new();
    for ours in results.iter().filter(|r| r.target == Target::Avio) {
        for theirs in results.iter().filter(|r| r.target != Target::Avio && r.load == ours.load) {
            for &metric in row.metrics {
                let goal = row.goals.iter().find(|g| g.target == theirs.target && g.metric == metric);
                // Rate and bit rate have the same ratio.
                let is_second = metric != row.metrics[0] && !metric.is_time();
                if goal.is_none() && is_second {
                    continue;
                }
                if goal.is_none() && row.goals.iter().any(|g| g.target == theirs.target) && !metric.is_time()
                {
                    continue;
                }
                let load = ours.load.map_or_else(String::new, |load| format!(" at {load} %"));
                let mut line = format!("{}{load}, {}: ", row.title, metric.name());
                let ratios: Vec<(String, f64)> = ratios(ours, theirs, metric);
                let shown: Vec<String> =
                    ratios.iter().map(|(where_, r)| format!("{r:.2}x {where_}")).collect();
                let _ = write!(line, "{} of {}", shown.join(", "), theirs.target.name());
                if ratios.is_empty() {
                    line += " no comparable windows";
                }
                if let Some(goal) = goal {
                    let (sign, reached) = if metric.is_time() {
                        ("<=", ratios.iter().all(|(_, r)| *r <= goal.ratio))
                    } else {
                        (">=", ratios.iter().all(|(_, r)| *r >= goal.ratio))
                    };
                    let word = if reached && !ratios.is_empty() { "reached" } else { "MISSED" };
                    let _ = write!(line, " (goal {sign} {:.2}: {word})", goal.ratio);
                }
                lines.push(line);
            }
        }
    }
    lines
}

/// Ratios of medians, near with near and far with far; of disturbed windows only if there is nothing else.
fn ratios(ours: &Results, theirs: &Results, metric: Metric) -> Vec<(String, f64)> {
    let ratio = |distance| {
        let a = spread(of(ours, distance).map(|s| s.value(metric)))?;
        let b = spread(of(theirs, distance).map(|s| s.value(metric)))?;
        (b.median > 0.0).then(|| (a.median / b.median, a.count.min(b.count)))
    };
    let mut found = Vec::new();
    for distance in Distance::ALL {
        if let Some((r, count)) = ratio(Some(distance)) {
            found.push((format!("{} ({count} windows)", distance.name()), r));
        }
    }
    if found.is_empty()
        && let Some((r, count)) = ratio(None)
    {
        found.push((format!("DISTURBED ({count} windows)"), r));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::stand::Reading;
    use super::*;

    fn results(target: Target, values: &[(Option<Distance>, f64)]) -> Results {
        let sample = |&(distance, mpps)| Sample {
            round: 1,
            crossing_ns: 30.0,
            distance,
            reading: Reading { mpps, ..Reading::default() },
        };
        Results { target, load: None, samples: values.iter().map(sample).collect(), discarded: 0 }
    }

    #[test]
    fn near_is_compared_with_near_only() {
        let (near, far) = (Some(Distance::Near), Some(Distance::Far));
        let ours = results(Target::Avio, &[(near, 12.0), (far, 5.0), (None, 1.0)]);
        let theirs = results(Target::Testpmd, &[(near, 10.0), (None, 9.0)]);
        assert_eq!(ratios(&ours, &theirs, Metric::Mpps), [("near (1 windows)".to_owned(), 1.2)]);
    }

    #[test]
    fn disturbed_windows_count_when_there_is_nothing_else_and_say_so() {
        let ours = results(Target::Avio, &[(None, 3.0)]);
        let theirs = results(Target::Testpmd, &[(None, 2.0), (Some(Distance::Far), 7.0)]);
        let found = ratios(&ours, &theirs, Metric::Mpps);
        assert_eq!(found, [("DISTURBED (1 windows)".to_owned(), 1.5)]);
    }
}
