//! What `avio-iogen` says at the end: a table, or one JSON object close to fio's.
//!
//! Owns the arithmetic from counts to figures and the verdict. Reads measurements, never rings.

use super::command::Op;
use super::load::JobSpec;
use super::run::{JobResult, Measured, Progress};
use crate::latency::Latency;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

/// fio's percentiles.
const PERCENTILES: [f64; 17] =
    [1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99];
/// Reads, writes, flushes, as fio names them.
const NAMES: [(&str, Op); 3] = [("read", Op::Read), ("write", Op::Write), ("sync", Op::Flush)];

/// A run's figures.
#[derive(Clone, Debug)]
pub struct Report {
    jobs: Vec<JobSpec>,
    measured: Measured,
}

impl Report {
    /// Of `jobs`, as they were measured.
    #[must_use]
    pub fn new(jobs: &[JobSpec], measured: Measured) -> Self {
        Self { jobs: jobs.to_vec(), measured }
    }

    /// Requests per second of one kind, all jobs together.
    #[must_use]
    pub fn iops(&self, op: Op) -> f64 {
        self.measured.jobs.iter().map(|job| per_s(job, op)).sum()
    }

    /// Why this is no success, as one line.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let jobs = || self.measured.jobs.iter();
        let sum = |of: fn(&JobResult) -> u64| jobs().map(of).sum::<u64>();
        let first = jobs().find_map(|job| job.tally.complaint.clone()).unwrap_or_default();
        let (errors, corrupt, lost) =
            (sum(|j| j.tally.errors), sum(|j| j.tally.corrupt), sum(|j| j.unanswered));
        if corrupt > 0 {
            Some(format!(
                "{corrupt} of {} checked blocks are wrong; the first: {first}",
                sum(|j| j.tally.verified)
            ))
        } else if errors > 0 {
            Some(format!("{errors} requests failed; the first: {first}"))
        } else if lost > 0 {
            Some(format!("{lost} requests were never answered"))
        } else if sum(|j| j.window.done.iter().sum()) == 0 {
            Some("no request ended: is the device served?".into())
        } else {
            None
        }
    }

    /// The JSON object. Names and units are fio's where fio has the figure; `avio` is what it has not.
    #[must_use]
    pub fn json(&self) -> Value {
        let jobs: Vec<Value> = self.measured.jobs.iter().map(|job| self.job_json(job)).collect();
        json!({
            "fio version": concat!("avio-iogen-", env!("CARGO_PKG_VERSION")),
            "tool": "avio-iogen",
            "format": 1,
            "ok": self.complaint().is_none(),
            "jobs": jobs,
            "avio": { "ran_ms": self.measured.ran_ms, "waited_ms": self.measured.waited_ms },
        })
    }

    fn job_json(&self, result: &JobResult) -> Value {
        let spec = &self.jobs[result.job];
        let mut job = Map::new();
        job.insert("jobname".into(), json!(spec.name));
        job.insert("groupid".into(), json!(spec.group));
        job.insert("error".into(), json!(result.tally.errors));
        job.insert(
            "job options".into(),
            json!({
                "rw": spec.rw, "bs": spec.block.to_string(), "iodepth": spec.iodepth.to_string(),
                "numjobs": spec.count.to_string(), "rwmixread": spec.pattern.read_percent.to_string(),
            }),
        );
        for (name, op) in NAMES {
            job.insert(name.into(), direction(spec, result, op));
        }
        let w = &result.window;
        let thousands = w.done.iter().sum::<u64>().max(1) as f64 / 1000.0;
        job.insert(
            "avio".into(),
            json!({
                "verified": result.tally.verified,
                "corrupt": result.tally.corrupt,
                "unanswered": result.unanswered,
                "kicks_per_1000": w.kicks as f64 / thousands,
                "signals_per_1000": w.signals as f64 / thousands,
                "empty_poll_ratio": w.empty_polls as f64 / w.polls.max(1) as f64,
            }),
        );
        Value::Object(job)
    }

    /// The table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["Job", "", "IOPS", "MiB/s", "p50 us", "p99 us", "p99.9 us", "max us"]);
        for result in &self.measured.jobs {
            let spec = &self.jobs[result.job];
            let mut first = true;
            for (name, op) in NAMES.into_iter().filter(|(_, op)| result.window.done[*op as usize] > 0) {
                let rate = per_s(result, op);
                let mib = if op == Op::Flush { 0.0 } else { rate * spec.block as f64 / f64::from(1 << 20) };
                let s = result.tally.latency[op as usize].summary();
                let title = format!("{} {} {}", spec.name, spec.rw, spec.block);
                table.add_row([
                    if std::mem::take(&mut first) { title } else { String::new() },
                    name.to_owned(),
                    format!("{rate:.0}"),
                    format!("{mib:.1}"),
                    format!("{:.2}", s.p50_us),
                    format!("{:.2}", s.p99_us),
                    format!("{:.2}", s.p999_us),
                    format!("{:.2}", s.max_us),
                ]);
            }
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text: String = table.to_string().lines().map(|l| format!("{}\n", l.trim_end())).collect();
        for result in &self.measured.jobs {
            let (w, t) = (&result.window, &result.tally);
            let thousands = w.done.iter().sum::<u64>().max(1) as f64 / 1000.0;
            text += &format!(
                "{}: {} errors, {} of {} checked blocks wrong, {:.2} kicks and {:.2} signals per 1000 requests\n",
                self.jobs[result.job].name,
                t.errors,
                t.corrupt,
                t.verified,
                w.kicks as f64 / thousands,
                w.signals as f64 / thousands,
            );
        }
        text
    }
}

fn per_s(result: &JobResult, op: Op) -> f64 {
    let seconds = result.window.seconds;
    if seconds > 0.0 { result.window.done[op as usize] as f64 / seconds } else { 0.0 }
}

fn direction(spec: &JobSpec, result: &JobResult, op: Op) -> Value {
    let (count, rate) = (result.window.done[op as usize], per_s(result, op));
    let latency = latency(&result.tally.latency[op as usize]);
    if op == Op::Flush {
        return json!({ "total_ios": count, "lat_ns": latency });
    }
    let bytes = count * spec.block;
    let bytes_per_s = rate * spec.block as f64;
    json!({
        "io_bytes": bytes,
        "io_kbytes": bytes / 1024,
        "bw_bytes": bytes_per_s.round() as u64,
        "bw": (bytes_per_s / 1024.0).round() as u64,
        "iops": rate,
        "runtime": (result.window.seconds * 1000.0).round() as u64,
        "total_ios": count,
        "clat_ns": latency,
        "lat_ns": latency,
    })
}

fn latency(latency: &Latency) -> Value {
    let h = latency.histogram();
    if h.is_empty() {
        return json!({ "min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0, "percentile": {} });
    }
    let at = |p: &f64| (format!("{p:.6}"), json!(h.value_at_percentile(*p)));
    let percentile: Map<String, Value> = PERCENTILES.iter().map(at).collect();
    json!({
        "min": h.min(), "max": h.max(), "mean": h.mean(), "stddev": h.stdev(), "N": h.len(), "percentile": percentile,
    })
}

/// The progress line.
#[must_use]
pub fn progress_line(p: &Progress) -> String {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    format!(
        "{:6.1} s  read {:9.0} IOPS {:8.1} MiB/s  write {:9.0} IOPS {:8.1} MiB/s",
        p.elapsed_s,
        p.per_s[0],
        mib(p.bytes_per_s[0]),
        p.per_s[1],
        mib(p.bytes_per_s[1]),
    )
}

#[cfg(test)]
mod tests {
    use super::super::lane::Tally;
    use super::super::run::Window;
    use super::*;

    fn result() -> JobResult {
        let mut tally = Tally::default();
        for us in 1..=1000 {
            tally.latency[0].record(us * 1000);
        }
        let window = Window { seconds: 2.0, done: [1000, 0, 0], kicks: 5, ..Window::default() };
        JobResult { job: 0, window, tally, unanswered: 0 }
    }

    /// Names that scripts for fio's output look up.
    #[test]
    fn the_object_has_fios_names_and_units() {
        let measured = Measured { jobs: vec![result()], ..Measured::default() };
        let json = Report::new(&[JobSpec::default()], measured).json();
        let read = &json["jobs"][0]["read"];
        assert_eq!((read["iops"].as_f64(), read["bw"].as_u64()), (Some(500.0), Some(2000)));
        assert_eq!((read["total_ios"].as_u64(), read["runtime"].as_u64()), (Some(1000), Some(2000)));
        let p99 = read["clat_ns"]["percentile"]["99.000000"].as_u64().unwrap();
        assert!((980_000..1_000_000).contains(&p99), "{p99}");
        assert_eq!(json["jobs"][0]["avio"]["kicks_per_1000"].as_f64(), Some(5.0));
        assert_eq!(json["ok"].as_bool(), Some(true));
    }

    #[test]
    fn a_wrong_block_is_no_success() {
        let mut result = result();
        (result.tally.corrupt, result.tally.verified) = (1, 9);
        let measured = Measured { jobs: vec![result], ..Measured::default() };
        let complaint = Report::new(&[JobSpec::default()], measured).complaint().unwrap();
        assert!(complaint.starts_with("1 of 9"), "{complaint}");
    }
}
