//! Tables, ratios, verdicts; `stor.md` and its plots.
//!
//! Owns the arithmetic from windows to medians and ratios. Near windows are compared with near ones, far with far ones;
//! disturbed ones only where a target has nothing else, and marked.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use avio_tests::Result;
use comfy_table::{CellAlignment, Table, presets};

use super::options::Options;
use super::rows::{Bound, Goal, Metric, Row, rows};
use super::store::Store;
use super::target::Target;
use super::window::{Results, Sample};
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

/// A row's table and verdicts.
pub fn row(row: &Row, store: &Store) -> String {
    let Some(measured) = store.row(row.name) else { return String::new() };
    let mut text = format!("\n### {}\n\n", row.title);
    if let Some(failure) = &measured.failure {
        let _ = writeln!(text, "Could not be measured: {failure}");
        return text;
    }
    let _ = writeln!(text, "{}", table(row, &measured.results));
    for verdict in verdicts(row, &measured.results) {
        let _ = writeln!(text, "\n{verdict}");
    }
    text
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
                r.target.name().to_owned(),
                name.to_owned(),
                format!("{:.1} ({:.1}–{:.1}; {})", rate.median, rate.min, rate.max, rate.count),
                format!("{:.0}", rate.median * 1e3 * row.block as f64 / f64::from(1 << 20)),
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
    if let Some(qsd) = find(Target::Qsd) {
        for limit in [Target::FioTwice, Target::FioDeep].into_iter().filter_map(find) {
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
    if row.goals.is_empty()
        && let Some(ours) = results.first()
    {
        for peer in results.iter().skip(1).filter(|peer| !peer.target.is_limit()) {
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
    let alone = |r: &Results| r.target.family() == "fio";
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

fn all_verdicts(options: &Options, store: &Store) -> Vec<String> {
    let mut lines = Vec::new();
    for row in rows(options) {
        match store.row(row.name) {
            None => {}
            Some(measured) => match &measured.failure {
                Some(failure) => lines.push(format!("{}: could not be measured: {failure}", row.title)),
                None => lines.extend(verdicts(&row, &measured.results)),
            },
        }
    }
    lines.extend(store.figures().iter().map(|figure| format!("{}: {}", figure.what, figure.value)));
    lines
}

/// Writes `stor.md`, its plots, and what the next slice needs.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(options: &Options, store: &Store) -> Result {
    fs::create_dir_all(&options.results)?;
    store.save()?;
    let mut plots = String::new();
    for (file, title, prefixes) in [
        ("stor-null.svg", "null and memory, thousands of requests per second", &["null-", "memory-"][..]),
        (
            "stor-disk.svg",
            "files and devices, thousands of requests per second",
            &["file-", "loop", "zram-"][..],
        ),
        ("stor-fast.svg", "files on zram, thousands of requests per second", &["zramfile-"][..]),
    ] {
        let groups = rows(options)
            .iter()
            .filter(|row| prefixes.iter().any(|prefix| row.name.starts_with(prefix)))
            .filter_map(|row| group(row, store))
            .collect();
        let bars = Bars { title: title.into(), groups };
        if !bars.groups.is_empty() {
            fs::write(options.results.join(file), bars.svg())?;
            let _ = writeln!(plots, "![{title}]({file})");
        }
    }
    let mut text = format!(
        "# Storage, beside peers\n\nWritten by `make bench-stor`; how it measures is told in [performance](../../docs/performance.md).\n\
         {}. One worker on core 1, the guest on core 0 with indirect tables and event indices; dirty-log checks, in-flight\n\
         tracking, counters and limits active. `poll = \"always\"` unless the target says adaptive. fio runs on core 1.\n\n## Ratios\n\n",
        store.facts()
    );
    for verdict in all_verdicts(options, store) {
        let _ = writeln!(text, "- {verdict}");
    }
    text += &transitions(options, store);
    text += "\n## Rows\n\nMedian (smallest to largest; windows). *Crossing*: what a cache line takes between the two cores. *Kicks*, *notified*: per\n\
             thousand requests, of the daemon and of the guest. *CPU-s per 1 M*: of all threads of the target, the guest not counted.\n\
             *Thrown away*: windows in which somebody waited for a processor or the cores moved.\n";
    for one in rows(options) {
        text += &row(&one, store);
    }
    for figure in store.figures() {
        let _ = write!(text, "\n### {}\n\n{}\n", figure.what, figure.value);
    }
    let _ = write!(text, "\n## Plots\n\n{plots}");
    fs::write(options.results.join("stor.md"), text)?;
    Ok(())
}

/// Kicks and notifications per thousand requests of a worker that sleeps and a guest that does, by depth: what adaptive algorithms
/// are judged by.
fn transitions(options: &Options, store: &Store) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["target", "QD1", "QD8", "QD32", "QD128", "as load rises"]);
    for target in [Target::BlkAdaptiveSleeping, Target::QsdSleeping] {
        let of_row = |row: &Row| {
            let results = store.row(row.name)?.results.iter().find(|r| r.target == target)?;
            spread(results.samples.iter().map(|s| s.reading.kicks + s.reading.signals)).map(|s| s.median)
        };
        let counts: Vec<f64> =
            rows(options).iter().filter(|row| row.name.starts_with("sleep-")).filter_map(of_row).collect();
        if counts.len() == 4 {
            let falls = counts.windows(2).all(|pair| pair[1] < pair[0]);
            let cells = counts.iter().map(|count| format!("{count:.1}"));
            let word = if falls { "falls: reached" } else { "MISSED" };
            table.add_row([target.name().to_owned()].into_iter().chain(cells).chain([word.to_owned()]));
        }
    }
    if table.row_iter().next().is_none() {
        return String::new();
    }
    format!(
        "\n## Transitions\n\nKicks and notifications per thousand requests, null, randread 4 KiB, both sides asleep when there is nothing to do.\n\n{table}\n"
    )
}

fn group(row: &Row, store: &Store) -> Option<Group> {
    let measured = store.row(row.name)?;
    let bars: Vec<_> = measured
        .results
        .iter()
        .filter_map(|r| {
            let s = spread(r.samples.iter().map(|s| s.value(Metric::Kiops)))?;
            Some((r.target.name().to_owned(), s))
        })
        .collect();
    (!bars.is_empty()).then(|| Group { label: row.title.clone(), bars })
}

/// One line per ratio.
pub fn summary(options: &Options, store: &Store, elapsed: Duration) -> String {
    let mut text = format!("\nRatios ({:.0} s):\n", elapsed.as_secs_f64());
    for verdict in all_verdicts(options, store) {
        let _ = writeln!(text, "  {verdict}");
    }
    text
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
        let ours = results(Target::Blk, &[(near, 12e3), (far, 5e3), (None, 1e3)]);
        let qsd = results(Target::Qsd, &[(near, 10e3), (None, 9e3)]);
        assert_eq!(ratios(&ours, &qsd, Metric::Kiops), [("near (1 windows)".to_owned(), 12.0, 10.0)]);
        let fio = results(Target::Fio, &[(far, 10e3)]);
        assert_eq!(ratios(&ours, &fio, Metric::Kiops).len(), 2);
    }

    #[test]
    fn a_goal_is_missed_when_one_distance_misses_it() {
        let (near, far) = (Some(true), Some(false));
        let (ours, peer) = (
            results(Target::Blk, &[(near, 12e3), (far, 5e3)]),
            results(Target::Qsd, &[(near, 1e3), (far, 1e3)]),
        );
        let row = &rows(&clap::Parser::parse_from(["bench-stor", "--quick"]))[0];
        let verdict = verdict(row, &row.goals[0], &ours, &peer);
        assert!(verdict.contains("12.00x near") && verdict.contains("MISSED"), "{verdict}");
    }
}
