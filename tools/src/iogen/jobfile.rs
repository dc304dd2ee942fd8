//! Simple fio job files.
//!
//! Owns their grammar: sections, `global` ones whose keys those behind them inherit, comments, bare words that mean 1. Keys
//! that change what is measured and that this generator lacks are refused; keys that say how fio itself does it are passed over.

use super::load::{JobSpec, parse_size, parse_time};
use std::path::PathBuf;

/// Keys that say how fio does its own I/O, not what the disk is asked for.
const PASSED_OVER: [&str; 15] = [
    "ioengine",
    "direct",
    "thread",
    "group_reporting",
    "randrepeat",
    "norandommap",
    "buffered",
    "invalidate",
    "gtod_reduce",
    "clocksource",
    "create_on_open",
    "exitall",
    "refill_buffers",
    "do_verify",
    "description",
];

/// Keys that are understood, for messages.
const UNDERSTOOD: &str = "rw, bs, iodepth, numjobs, rwmixread, rwmixwrite, runtime, time_based, ramp_time, size, offset, \
                          verify, fsync, filename, name, stonewall";

/// Reads a job file named `path` for messages; `defaults` are what the command line says.
///
/// # Errors
/// One line: file, line, what would be right.
pub fn parse(text: &str, path: &str, defaults: &JobSpec) -> Result<Vec<JobSpec>, String> {
    let mut global = Section { job: defaults.clone(), mix: 50 };
    let mut jobs: Vec<JobSpec> = Vec::new();
    let mut current: Option<Section> = None;
    let mut in_global = false;
    let mut group = 0;
    let end =
        |current: &mut Option<Section>, jobs: &mut Vec<JobSpec>| jobs.extend(current.take().map(|s| s.job));
    for (number, line) in (1..).zip(text.lines()) {
        let fail = |why: String| format!("{path}:{number}: {why}");
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name
                .strip_suffix(']')
                .filter(|name| !name.is_empty())
                .ok_or_else(|| fail("a section is [name]".into()))?;
            end(&mut current, &mut jobs);
            in_global = name == "global";
            if !in_global {
                let mut section = global.clone();
                section.job.name = name.into();
                section.job.group = group;
                current = Some(section);
            }
            continue;
        }
        let (key, value) = match line.split_once('=') {
            Some((key, value)) => (key.trim(), value.trim()),
            None => (line, "1"),
        };
        if matches!(key, "stonewall" | "wait_for_previous") {
            // It concerns the job it stands in: that one waits for all before it.
            if let Some(section) = current.as_mut().filter(|_| value != "0" && !jobs.is_empty()) {
                group += 1;
                section.job.group = group;
            }
            continue;
        }
        let section = match (&mut current, in_global) {
            (_, true) => &mut global,
            (Some(section), false) => section,
            (None, false) => return Err(fail("a key before the first [section]".into())),
        };
        section.set(key, value).map_err(fail)?;
    }
    end(&mut current, &mut jobs);
    if jobs.is_empty() {
        return Err(format!("{path}: no [job] in it"));
    }
    for job in &jobs {
        job.check(|key| format!("{path}: [{}]: {key}", job.name))?;
    }
    Ok(jobs)
}

#[derive(Clone)]
struct Section {
    job: JobSpec,
    mix: u32,
}

impl Section {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let job = &mut self.job;
        let named = |why: String| format!("{key}: {why}");
        let number = || value.parse::<u32>().map_err(|_| format!("{key}: a number"));
        let small = || value.parse::<u16>().map_err(|_| format!("{key}: a number up to 65535"));
        match key {
            "rw" | "readwrite" => {
                let mix = self.mix;
                job.set_rw(value, mix).map_err(named)?;
            }
            "rwmixread" | "rwmixwrite" => {
                let mut mix = number()?;
                if mix > 100 {
                    return Err(format!("{key}: 0 to 100 percent"));
                }
                if key == "rwmixwrite" {
                    mix = 100 - mix;
                }
                self.mix = mix;
                let rw = job.rw.clone();
                job.set_rw(&rw, mix).map_err(named)?;
            }
            "bs" | "blocksize" => job.block = parse_size(value).map_err(named)?,
            "iodepth" => job.iodepth = small()?,
            "numjobs" => job.count = small()?,
            "runtime" => job.runtime = Some(parse_time(value).map_err(named)?).filter(|t| !t.is_zero()),
            "time_based" => job.time_based = value != "0",
            "ramp_time" => job.ramp = parse_time(value).map_err(named)?,
            "size" => job.size = Some(parse_size(value).map_err(named)?),
            "offset" => job.offset = parse_size(value).map_err(named)?,
            "verify" => job.verify = value != "0",
            "fsync" | "fdatasync" => job.fsync = number()?,
            "filename" => job.sockets = value.split(':').map(PathBuf::from).collect(),
            "name" => job.name = value.into(),
            key if PASSED_OVER.contains(&key) => {}
            _ => return Err(format!("{key}: not understood here; understood are {UNDERSTOOD}")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::Pattern;
    use super::*;
    use std::time::Duration;

    fn defaults() -> JobSpec {
        JobSpec { sockets: vec!["/s".into()], ..JobSpec::default() }
    }

    /// A file as fio's own manual shows them.
    #[test]
    fn a_usual_job_file() {
        let text = "; a comment\n[global]\nioengine=io_uring\ndirect=1\nbs=8k\nruntime=30\ntime_based\ngroup_reporting\n\n\
                    [oltp]\nrw=randrw\nrwmixread=70\niodepth=32\nnumjobs=2\n\n# another\n[log]\nrw=write\nbs=128k\nfilename=/a:/b\n\
                    [check]\nstonewall\nrw=read\nverify=crc32c\nruntime=0\ntime_based=0\nsize=1g\n";
        let jobs = parse(text, "f", &defaults()).unwrap();
        let [oltp, log, check] = jobs.as_slice() else { panic!("{jobs:?}") };
        assert_eq!((oltp.pattern, oltp.block), (Pattern { random: true, read_percent: 70 }, 8192));
        assert_eq!((oltp.iodepth, oltp.count, oltp.runtime), (32, 2, Some(Duration::from_secs(30))));
        assert!(oltp.time_based && !oltp.verify);
        assert_eq!((log.block, log.sockets.len(), log.group), (131_072, 2, 0));
        assert_eq!((check.group, check.verify, check.runtime, check.size), (1, true, None, Some(1 << 30)));
        assert_eq!(check.sockets, [PathBuf::from("/s")]);
    }

    #[test]
    fn the_order_of_rw_and_its_mix_does_not_matter() {
        for text in ["[a]\nrwmixread=90\nrw=rw", "[a]\nrw=rw\nrwmixwrite=10"] {
            assert_eq!(parse(text, "f", &defaults()).unwrap()[0].pattern.read_percent, 90);
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, what) in [
            ("[a]\nrw=trim", "f:2: rw"),
            ("bs=4k", "f:1: a key before"),
            ("[a]\nbssplit=4k/50:8k/50", "f:2: bssplit: not understood"),
            ("[a\n", "f:1: a section"),
            ("[global]\nbs=4k", "no [job]"),
            ("[a]\nbs=100", "[a]: bs"),
            ("[a]\niodepth=0", "[a]: iodepth"),
            ("[a]\nrwmixread=150", "f:2: rwmixread"),
            ("[a]\ntime_based", "[a]: time_based"),
        ] {
            let error = parse(text, "f", &defaults()).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
