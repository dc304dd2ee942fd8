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

use super::idle::Figure;
use super::machine::Machine;
use super::options::Options;
use super::probe::Distance;
use super::rows::{Metric, Row};
use super::svg::{Bars, Group};
use super::target::Target;
use super::window::{Results, Sample};

/// Median and extremes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Middle value.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// How many.
    pub count: usize,
}

/// The spread of some values; `None` without any.
pub fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let count = values.len();
    let median = match count {
        0 => return None,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    };
    Some(Spread { median, min: values[0], max: values[count - 1], count })
}

/// See the module.
pub struct Report {
    folder: PathBuf,
    facts: String,
    text: String,
    verdicts: Vec<String>,
    plots: Vec<(String, Bars)>,
    sizes: Vec<Group>,
}

impl Report {
    /// An empty one.
    pub fn new(options: &Options, machine: &Machine) -> Self {
        Self {
            folder: options.results.clone(),
            facts: machine.facts.clone(),
            text: String::new(),
            verdicts: Vec::new(),
            plots: Vec::new(),
            sizes: Vec::new(),
        }
    }

    /// Adds a row; returns its table.
    pub fn add(&mut self, row: &Row, results: Vec<Results>) -> String {
        let mut text = format!("\n### {}\n\n{}\n", row.title, table(row, &results));
        for verdict in verdicts(row, &results) {
            let _ = writeln!(text, "\n{verdict}");
            self.verdicts.push(verdict);
        }
        self.plot(row, &results);
        self.text += &text;
        text
    }

    /// Adds a row that could not be measured.
    pub fn add_failure(&mut self, row: &Row, failure: &Failure) {
        let line = format!("{}: could not be measured: {failure}", row.title);
        let _ = write!(self.text, "\n### {}\n\nCould not be measured: {failure}\n", row.title);
        self.verdicts.push(line);
    }

    /// Adds a single figure.
    pub fn add_figure(&mut self, figure: Figure) {
        let _ = write!(self.text, "\n### {}\n\n{}\n", figure.what, figure.value);
        self.verdicts.push(format!("{}: {}", figure.what, figure.value));
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

    /// Writes `net.md` and the plots.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self) -> Result {
        fs::create_dir_all(&self.folder)?;
        let mut plots = String::new();
        let rates = Bars { title: "Frames received per second, millions".into(), groups: self.sizes.clone() };
        let all = std::iter::once(("rates".to_owned(), &rates))
            .chain(self.plots.iter().map(|(n, b)| (n.clone(), b)));
        for (name, bars) in all.filter(|(_, bars)| !bars.groups.is_empty()) {
            let file = format!("net-{name}.svg");
            fs::write(self.folder.join(&file), bars.svg())?;
            let _ = writeln!(plots, "![{}]({file})", bars.title);
        }
        let mut text = format!(
            "# Guest to guest, beside peers\n\nWritten by `make bench-net`; how it measures is told in [performance](../../docs/performance.md).\n\
             {}. One switch thread on core 1, guests on core 0; frames counted at the receiver.\n\n## Ratios\n\n",
            self.facts
        );
        for verdict in &self.verdicts {
            let _ = writeln!(text, "- {verdict}");
        }
        let _ = write!(
            text,
            "\n## Rows\n\nMedian (smallest to largest; windows). *Crossing*: what a cache line takes between the two cores. *Empty*: share\n\
             of the receiver's polls that found nothing; above 80 % the switch is the bottleneck, near 0 the guest is. *Thrown away*:\n\
             windows in which somebody waited for a processor or the cores moved.\n{}\n## Plots\n\n{plots}",
            self.text
        );
        fs::write(self.folder.join("net.md"), text)?;
        Ok(())
    }

    /// One line per ratio.
    pub fn summary(&self, elapsed: Duration) -> String {
        let mut text = format!("\nRatios, ours to the peer's ({:.0} s):\n", elapsed.as_secs_f64());
        for verdict in &self.verdicts {
            let _ = writeln!(text, "  {verdict}");
        }
        text
    }
}

fn of(results: &Results, distance: Option<Distance>) -> impl Iterator<Item = &Sample> {
    results.samples.iter().filter(move |s| s.distance == distance)
}

fn table(row: &Row, results: &[Results]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "target",
        "",
        "near",
        "far",
        "disturbed",
        "crossing ns",
        "empty",
        "wrong",
        "thrown away",
    ]);
    for r in results {
        let load = r.load.map_or_else(String::new, |load| format!(" at {load} %"));
        for (i, &metric) in row.metrics.iter().enumerate() {
            let cell = |distance| match spread(of(r, distance).map(|s| s.value(metric))) {
                None => "–".to_owned(),
                Some(s) => format!("{:.2} ({:.2}–{:.2}; {})", s.median, s.min, s.max, s.count),
            };
            let first = i == 0;
            let only_first = |text: String| if first { text } else { String::new() };
            let crossing = spread(r.samples.iter().map(|s| s.crossing_ns));
            let empty = spread(r.samples.iter().map(|s| s.reading.empty_share));
            table.add_row([
                only_first(format!("{}{load}", r.target.name())),
                metric.name().to_owned(),
                cell(Some(Distance::Near)),
                cell(Some(Distance::Far)),
                cell(None),
                only_first(crossing.map_or_else(String::new, |s| format!("{:.0}–{:.0}", s.min, s.max))),
                only_first(match empty {
                    Some(s) if s.median >= 0.0 => format!("{:.0} %", s.median * 100.0),
                    _ => "–".to_owned(),
                }),
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

    #[test]
    fn medians() {
        let s = spread([3.0, 1.0, 2.0].into_iter()).unwrap();
        assert_eq!((s.median, s.min, s.max, s.count), (2.0, 1.0, 3.0, 3));
        assert_eq!(spread([1.0, 2.0].into_iter()).unwrap().median, 1.5);
        assert_eq!(spread(std::iter::empty()), None);
    }

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
