//! Tables, ratios, verdicts; `stor.md` and its plots.
//!
//! Owns the arithmetic from windows to medians and ratios. Near windows are compared with near ones, far with far ones;
//! disturbed ones only where a target has nothing else, and marked.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use avio_tests::Result;
use comfy_table::{CellAlignment, Table, presets};

use super::FIGURES;
use super::options::Options;
use super::rows::{Backing, Bound, GRID, Goal, Metric, Row, Set, rows};
use super::target::{Server, Target};
use super::window::{Results, Sample};
use crate::beside::record::{self, Figure, Record, Taken};
use crate::beside::spread::{Spread, spread};
use crate::beside::svg::{Bars, Group};

/// Near, far, disturbed.
const PLACES: [(Option<bool>, &str); 3] = [(Some(true), "near"), (Some(false), "far"), (None, "DISTURBED")];

fn of(results: &Results, near: Option<bool>) -> impl Iterator<Item = &Sample> {
    results.samples.iter().filter(move |s| s.near == near)
}

fn median(results: &Results, near: Option<bool>, metric: Metric) -> Option<Spread> {
    spread(of(results, near).map(|s| s.value(metric)))
}

/// Whether a plot shows a backing.
type Shows = fn(Backing) -> bool;

/// Plots: file, title, what they show.
const PLOTS: [(&str, &str, Shows); 3] = [
    ("stor-null.svg", "null and memory", |backing| !backing.is_kernels()),
    ("stor-disk.svg", "files and devices", |backing| backing.is_kernels() && backing != Backing::ZramFile),
    ("stor-fast.svg", "files on zram", |backing| backing == Backing::ZramFile),
];
/// The file beside the report.
const RECORD: &str = "stor.json";

/// See the module.
pub struct Report {
    options: Options,
    facts: String,
    record: Record<Results, Vec<Figure>>,
    /// Names of what this run measured.
    measured: Vec<String>,
}

impl Report {
    /// With what earlier runs found, if this one adds to it and nobody wants to forget it.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn open(options: &Options, facts: &str) -> Result<Self> {
        let path = options.results.join(RECORD);
        let goes_on = options.writes() && !options.fresh;
        let record = if goes_on { Record::read(&path)? } else { Record::default() };
        Ok(Self { options: options.clone(), facts: facts.to_owned(), record, measured: Vec::new() })
    }

    /// Whether a row or figures of this name have been measured.
    pub fn has(&self, name: &str) -> bool {
        let is_there = |taken: &Taken<Results>| taken.failure.is_none();
        self.record.rows.get(name).is_some_and(is_there) || self.record.figures.contains_key(name)
    }

    /// Adds a row, or why it could not be measured; returns its table.
    ///
    /// # Errors
    /// When the report cannot be written.
    pub fn add(&mut self, row: &Row, found: Result<Vec<Results>>) -> Result<String> {
        let failure = found.as_ref().err().map(|failure| failure.to_string().replace('\n', " "));
        let results = found.unwrap_or_default();
        let taken = Taken { when: record::now(), facts: self.facts.clone(), results, failure };
        self.record.rows.insert(row.name.clone(), taken);
        self.measured.push(row.name.clone());
        self.write()?;
        Ok(self.row(row))
    }

    /// Adds single figures of one kind: what, and value.
    ///
    /// # Errors
    /// When the report cannot be written.
    pub fn add_figures(&mut self, kind: &str, figures: Vec<(String, String)>) -> Result {
        let figures = figures.into_iter().map(|(what, value)| Figure { what, value }).collect();
        self.record.figures.insert(kind.to_owned(), figures);
        self.measured.push(kind.to_owned());
        self.write()
    }

    /// A row's table and verdicts.
    fn row(&self, row: &Row) -> String {
        let Some(taken) = self.record.rows.get(&row.name) else { return String::new() };
        let mut text = format!("\n### {}\n\n", row.title);
        if let Some(failure) = &taken.failure {
            let _ = writeln!(text, "Could not be measured: {failure}");
            return text;
        }
        let _ = writeln!(text, "{}\n\n{}.", table(row, &taken.results), taken.when);
        for verdict in verdicts(row, &taken.results) {
            let _ = writeln!(text, "\n{verdict}");
        }
        text
    }
}

fn table(row: &Row, results: &[Results]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "target",
        "cores",
        "kIOPS",
        "MiB/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "CPU-s per 1 M",
        "kicks",
        "notified",
        "crossing ns",
        "thrown away",
    ]);
    for r in results {
        for (near, name) in PLACES {
            let Some(rate) = median(r, near, Metric::Kiops) else { continue };
            let figure =
                |of_sample: fn(&Sample) -> f64| spread(of(r, near).map(of_sample)).map_or(0.0, |s| s.median);
            let crossing = spread(of(r, near).map(|s| s.crossing_ns));
            table.add_row([
                r.target.name(),
                name.to_owned(),
                format!("{:.1} ({:.1}–{:.1}; {})", rate.median, rate.min, rate.max, rate.count),
                format!("{:.0}", rate.median * 1e3 * row.load.block as f64 / f64::from(1 << 20)),
                format!("{:.2}", figure(|s| s.reading.latency_us[0])),
                format!("{:.2}", figure(|s| s.reading.latency_us[1])),
                format!("{:.2}", figure(|s| s.reading.latency_us[2])),
                format!("{:.3}", figure(|s| s.reading.cpu)),
                format!("{:.1}", figure(|s| s.reading.kicks)),
                format!("{:.1}", figure(|s| s.reading.signals)),
                crossing.map_or_else(String::new, |s| format!("{:.0}–{:.0}", s.min, s.max)),
                r.discarded.to_string(),
            ]);
        }
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// A line per goal, else per peer: our figure to the peer's.
pub fn verdicts(row: &Row, results: &[Results]) -> Vec<String> {
    let find = |target: Target| results.iter().find(|r| r.target == target);
    let mut lines: Vec<String> = row
        .goals
        .iter()
        .filter_map(|goal| Some(verdict(row, goal, find(goal.ours)?, find(goal.peer)?)))
        .collect();
    if let (Some(budget), Some(ours)) = (row.budget_ns, results.first())
        && let Some(rate) = median(ours, Some(true), Metric::Kiops)
    {
        let ns = 1e6 / rate.median;
        let word = if ns <= budget { "reached" } else { "MISSED" };
        lines.push(format!(
            "{}: {ns:.0} ns a whole request of {} near ({} windows; budget <= {budget:.0} ns: {word})",
            row.title,
            ours.target.name(),
            rate.count
        ));
    }
    if let Some(qsd) = find(Target::QSD) {
        for limit in results.iter().filter(|r| r.target.is_limit()) {
            for (_, a, b) in ratios(limit, qsd, Metric::Kiops) {
                lines.push(format!(
                    "{}: the disk's own limit, {}: {:.2}x of {}",
                    row.title,
                    limit.target.name(),
                    a / b,
                    qsd.target.name()
                ));
            }
        }
    }
    for other in results.iter().filter(|r| r.target.is_other) {
        let Some(ours) = find(Target { is_other: false, ..other.target }) else { continue };
        for metric in [Metric::Kiops, Metric::P50, Metric::Cpu] {
            for (place, a, b) in ratios(ours, other, metric) {
                let (name, metric) = (ours.target.name(), metric.name());
                lines.push(format!(
                    "{}, {metric}: {name} {:.2}x {place} of the other build",
                    row.title,
                    a / b
                ));
            }
        }
    }
    if !row.has_goal()
        && let Some(ours) = results.first()
    {
        // Modes of our own stand beside one another in the table.
        let is_peer = |r: &&Results| r.target.family() != "avio" || row.set == Set::Luns;
        let peers = results.iter().skip(1).filter(is_peer);
        let peers = peers.filter(|peer| !peer.target.is_limit() && !peer.target.is_other);
        for peer in peers {
            let ratios = ratios(ours, peer, Metric::Kiops);
            let shown: Vec<String> =
                ratios.iter().map(|(place, a, b)| format!("{:.2}x {place}", a / b)).collect();
            lines.push(format!(
                "{}: {} {} of {}",
                row.title,
                ours.target.name(),
                shown.join(", "),
                peer.target.name()
            ));
        }
    }
    lines
}

fn verdict(row: &Row, goal: &Goal, ours: &Results, peer: &Results) -> String {
    let pairs = ratios(ours, peer, goal.metric);
    let (ours_name, peer_name, metric) = (ours.target.name(), peer.target.name(), goal.metric.name());
    let holds = |a: f64, b: f64| match goal.bound {
        Bound::AtLeast(ratio) => a >= ratio * b,
        Bound::AtMost(ratio) => a <= ratio * b,
        Bound::Added(more) => a <= b + more,
    };
    let reached = !pairs.is_empty() && pairs.iter().all(|(_, a, b)| holds(*a, *b));
    let shown: Vec<String> = pairs
        .iter()
        .map(|(place, a, b)| match goal.bound {
            Bound::Added(_) => format!("{:+.2} us {place}", a - b),
            _ => format!("{:.2}x {place}", a / b),
        })
        .collect();
    let bound = match goal.bound {
        Bound::AtLeast(ratio) => format!(">= {ratio:.2}x"),
        Bound::AtMost(ratio) => format!("<= {ratio:.2}x"),
        Bound::Added(more) => format!("<= +{more:.0} us"),
    };
    let word = if pairs.is_empty() {
        "no comparable windows"
    } else if reached {
        "reached"
    } else {
        "MISSED"
    };
    format!("{}, {metric}: {ours_name} {} of {peer_name} (goal {bound}: {word})", row.title, shown.join(", "))
}

/// Medians of both, near with near and far with far; of disturbed windows only if there is nothing else.
fn ratios(ours: &Results, peer: &Results, metric: Metric) -> Vec<(String, f64, f64)> {
    // fio has no guest on another core: its windows compare with any.
    let alone = |r: &Results| r.target.server == Server::Fio;
    let of_any = |r: &Results, near| {
        if alone(r) { spread(r.samples.iter().map(|s| s.value(metric))) } else { median(r, near, metric) }
    };
    let pair = |near, name: &str| {
        let (a, b) = (of_any(ours, near)?, of_any(peer, near)?);
        (b.median > 0.0).then(|| (format!("{name} ({} windows)", a.count.min(b.count)), a.median, b.median))
    };
    let found: Vec<_> = PLACES[..2].iter().filter_map(|&(near, name)| pair(near, name)).collect();
    if found.is_empty() { pair(None, "DISTURBED").into_iter().collect() } else { found }
}

impl Report {
    /// Verdicts of rows with a goal, and single figures, among what is `wanted`.
    fn verdicts(&self, rows: &[Row], wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        for row in rows.iter().filter(|row| row.has_goal() && wanted(&row.name)) {
            match self.record.rows.get(&row.name) {
                None => {}
                Some(Taken { failure: Some(failure), .. }) => {
                    lines.push(format!("{}: could not be measured: {failure}", row.title));
                }
                Some(taken) => lines.extend(verdicts(row, &taken.results)),
            }
        }
        let figures = FIGURES.iter().filter(|(name, _)| wanted(name));
        let figures = figures.filter_map(|(name, _)| self.record.figures.get(*name)).flatten();
        lines.extend(figures.map(|figure| format!("{}: {}", figure.what, figure.value)));
        lines
    }

    /// Writes `stor.md`, its plots and the record, unless this run says nothing about all peers.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self) -> Result {
        if !self.options.writes() {
            return Ok(());
        }
        let folder = &self.options.results;
        fs::create_dir_all(folder)?;
        self.record.write(&folder.join(RECORD))?;
        let rows = rows(&self.options);
        let mut plots = String::new();
        for (file, title, is_in) in PLOTS {
            let of_plot = rows.iter().filter(|row| row.set == Set::One && is_in(row.backing));
            let groups = of_plot.filter_map(|row| self.group(row)).collect();
            let bars = Bars { title: format!("{title}, thousands of requests per second"), groups };
            if !bars.groups.is_empty() {
                fs::write(folder.join(file), bars.svg())?;
                let _ = writeln!(plots, "![{}]({file})", bars.title);
            }
        }
        let mut text = format!(
            "# Storage, beside peers\n\nWritten by `make bench-stor`; how it measures is told in [performance](../../docs/performance.md), every window is in\n\
             [{RECORD}]({RECORD}). {}. One worker on core 1, the guest on core 0 with indirect tables and event indices; dirty-log checks,\n\
             in-flight tracking, counters and limits active. `poll = \"always\"` unless the target says adaptive. fio runs on core 1.\n\n## Ratios\n\n",
            self.facts
        );
        for verdict in self.verdicts(&rows, |_| true) {
            let _ = writeln!(text, "- {verdict}");
        }
        text += &self.overview(&rows);
        text += &self.transitions(&rows);
        text += "\n## Rows\n\nMedian (smallest to largest; windows). *Crossing*: what a cache line takes between the two cores. *Kicks*, *notified*: per\n\
                 thousand requests, of the daemon and of the guest. *CPU-s per 1 M*: of all threads of the target, the guest not counted.\n\
                 *Thrown away*: windows in which somebody waited for a processor or the cores moved. Under each table: when, and at which commit.\n";
        for row in &rows {
            text += &self.row(row);
        }
        for figure in FIGURES.iter().filter_map(|(name, _)| self.record.figures.get(*name)).flatten() {
            let _ = write!(text, "\n### {}\n\n{}\n", figure.what, figure.value);
        }
        let _ = write!(text, "\n## Plots\n\n{plots}");
        fs::write(folder.join("stor.md"), text)?;
        Ok(())
    }

    /// Rates of all loads of the grid: a table for each backing and set, medians of all windows.
    fn overview(&self, rows: &[Row]) -> String {
        let mut text = "\n## All loads, thousands of requests per second\n".to_owned();
        let backings = GRID.into_iter().chain([Backing::ZramFile]);
        for (backing, set) in backings.flat_map(|backing| Set::GRID.map(|set| (backing, set))) {
            let of_set = rows.iter().filter(|row| (row.backing, row.set) == (backing, set));
            let found: Vec<(&Row, &Taken<Results>)> =
                of_set.filter_map(|row| Some((row, self.record.rows.get(&row.name)?))).collect();
            let mut targets: Vec<Target> = Vec::new();
            for result in found.iter().flat_map(|(_, taken)| &taken.results) {
                if !targets.contains(&result.target) {
                    targets.push(result.target);
                }
            }
            if targets.is_empty() {
                continue;
            }
            let mut table = Table::new();
            table.load_style(presets::ASCII_MARKDOWN);
            table.set_header(std::iter::once("load".to_owned()).chain(targets.iter().map(|t| t.name())));
            for (row, taken) in found {
                let of_target = |&target: &Target| {
                    let result = taken.results.iter().find(|r| r.target == target)?;
                    spread(result.samples.iter().map(|s| s.value(Metric::Kiops)))
                };
                let cells = targets
                    .iter()
                    .map(|target| of_target(target).map_or_else(String::new, |s| format!("{:.1}", s.median)));
                table.add_row(std::iter::once(row.load_title()).chain(cells));
            }
            table.column_iter_mut().skip(1).for_each(|column| {
                column.set_cell_alignment(CellAlignment::Right);
            });
            let _ = write!(text, "\n### {}{}, all loads\n\n{table}\n", backing.title(), set.title());
        }
        text
    }

    /// Kicks and notifications per thousand requests of a worker that sleeps and a guest that does, by depth: what adaptive
    /// algorithms are judged by.
    fn transitions(&self, rows: &[Row]) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["target", "QD1", "QD8", "QD32", "QD128", "as load rises"]);
        let asleep: Vec<&Row> =
            rows.iter().filter(|row| row.backing == Backing::Null && row.set == Set::Asleep).collect();
        for &target in asleep.first().map(|row| &row.targets[..]).unwrap_or_default() {
            let of_row = |row: &&Row| {
                let results = self.record.rows.get(&row.name)?.results.iter().find(|r| r.target == target)?;
                spread(results.samples.iter().map(|s| s.reading.kicks + s.reading.signals)).map(|s| s.median)
            };
            let counts: Vec<f64> = asleep.iter().filter_map(of_row).collect();
            if counts.len() == asleep.len() {
                let falls = counts.windows(2).all(|pair| pair[1] < pair[0]);
                let cells = counts.iter().map(|count| format!("{count:.1}"));
                let word = if falls { "falls: reached" } else { "MISSED" };
                table.add_row([target.name()].into_iter().chain(cells).chain([word.to_owned()]));
            }
        }
        if table.row_iter().next().is_none() {
            return String::new();
        }
        format!(
            "\n## Transitions\n\nKicks and notifications per thousand requests, null, randread 4 KiB, both sides asleep when there is nothing to do.\n\n{table}\n"
        )
    }

    fn group(&self, row: &Row) -> Option<Group> {
        let taken = self.record.rows.get(&row.name)?;
        let bars: Vec<_> = taken
            .results
            .iter()
            .filter_map(|r| {
                Some((r.target.name(), spread(r.samples.iter().map(|s| s.value(Metric::Kiops)))?))
            })
            .collect();
        (!bars.is_empty()).then(|| Group { label: row.title.clone(), bars })
    }

    /// One line per ratio that this run measured.
    pub fn summary(&self, elapsed: Duration) -> String {
        let mut text = format!("\nRatios ({:.0} s):\n", elapsed.as_secs_f64());
        for verdict in self.verdicts(&rows(&self.options), |name| self.measured.iter().any(|one| one == name))
        {
            let _ = writeln!(text, "  {verdict}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::window::Reading;
    use super::*;

    fn results(target: Target, values: &[(Option<bool>, f64)]) -> Results {
        let sample = |&(near, iops)| Sample {
            crossing_ns: 30.0,
            near,
            reading: Reading { iops, ..Reading::default() },
        };
        Results { target, samples: values.iter().map(sample).collect(), discarded: 0 }
    }

    #[test]
    fn near_is_compared_with_near_and_fio_with_both() {
        let (near, far) = (Some(true), Some(false));
        let ours = results(Target::BLK, &[(near, 12e3), (far, 5e3), (None, 1e3)]);
        let qsd = results(Target::QSD, &[(near, 10e3), (None, 9e3)]);
        assert_eq!(ratios(&ours, &qsd, Metric::Kiops), [("near (1 windows)".to_owned(), 12.0, 10.0)]);
        let fio = results(Target::FIO, &[(far, 10e3)]);
        assert_eq!(ratios(&ours, &fio, Metric::Kiops).len(), 2);
    }

    #[test]
    fn a_goal_is_missed_when_one_distance_misses_it() {
        let (near, far) = (Some(true), Some(false));
        let (ours, peer) = (
            results(Target::BLK, &[(near, 12e3), (far, 5e3)]),
            results(Target::QSD, &[(near, 1e3), (far, 1e3)]),
        );
        let row = &rows(&clap::Parser::parse_from(["bench-stor", "--quick"]))[0];
        let verdict = verdict(row, &row.goals[0], &ours, &peer);
        assert!(verdict.contains("12.00x near") && verdict.contains("MISSED"), "{verdict}");
    }
}
