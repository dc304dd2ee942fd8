//! Options of `avio-iogen`: fio's names for the load, ours for rings and connections.
//!
//! Owns names, defaults and the refusal of what makes no sense. Job files are read here, too; both end as [`JobSpec`]s.

use super::jobfile;
use super::load::{JobSpec, parse_size, parse_time};
use avio_guest::storage::Kind;
use clap::{Args, Parser, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What is behind the sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// One disk (vhost-user-blk, `avio_blk`).
    #[default]
    Blk,
    /// A host adapter (vhost-user-scsi, `avio_stor`).
    Scsi,
}

/// How the guest waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Notify {
    /// It polls; the device never has to signal it.
    Poll,
    /// It sleeps on its eventfds when there is nothing to do.
    Wait,
}

/// A guest in a process: drives vhost-user disks and host adapters at full speed and verifies what they hold.
#[derive(Clone, Debug, Parser)]
#[command(name = "avio-iogen", version)]
pub struct Options {
    /// fio job files; without one the options are the job.
    pub job_files: Vec<PathBuf>,
    /// vhost-user socket; repeat for several devices at once.
    #[arg(long = "socket", visible_alias = "filename", value_name = "PATH")]
    pub sockets: Vec<PathBuf>,
    /// Name of the job.
    #[arg(long, default_value = "iogen")]
    pub name: String,
    /// read, write, randread, randwrite, rw or randrw.
    #[arg(long, visible_alias = "readwrite", default_value = "read", value_name = "PATTERN")]
    pub rw: String,
    /// Bytes of a request.
    #[arg(long, visible_alias = "blocksize", default_value = "4k", value_parser = parse_size, value_name = "SIZE")]
    pub bs: u64,
    /// Requests in flight, per job and socket.
    #[arg(long, default_value_t = 1)]
    pub iodepth: u16,
    /// Jobs alike; each has a request queue of its own on every socket.
    #[arg(long, default_value_t = 1)]
    pub numjobs: u16,
    /// Share of reads in percent of rw and randrw.
    #[arg(long, default_value_t = 50, value_name = "PERCENT")]
    pub rwmixread: u32,
    /// Ends after so many seconds; without --size the load starts again until then.
    #[arg(long, value_parser = parse_time, value_name = "TIME")]
    pub runtime: Option<Duration>,
    /// With --size, too, starts again until --runtime is over.
    #[arg(long, visible_alias = "time_based")]
    pub time_based: bool,
    /// Not measured, before the window.
    #[arg(long, visible_alias = "ramp_time", default_value = "0", value_parser = parse_time, value_name = "TIME")]
    pub ramp_time: Duration,
    /// Bytes of each disk that are used, and that each job moves; default: all.
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub size: Option<u64>,
    /// First byte of each disk that is used.
    #[arg(long, default_value = "0", value_parser = parse_size, value_name = "SIZE")]
    pub offset: u64,
    /// Marks every block written with its place and generation, checks every block read, and reads back in the end what was
    /// written. A load that only reads checks what an earlier one wrote. (fio's names of methods are taken for it.)
    #[arg(long, num_args = 0..=1, default_missing_value = "pattern", value_name = "METHOD")]
    pub verify: Option<String>,
    /// A flush after so many writes.
    #[arg(long, default_value_t = 0, value_name = "WRITES")]
    pub fsync: u32,
    #[command(flatten)]
    /// Connections.
    pub rings: Rings,
    /// Processor cores, one thread each; queues are dealt out to them. Default: one thread, on the first core.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// Print one JSON object like fio's at the end instead of a table.
    #[arg(long)]
    pub json: bool,
    /// No progress lines.
    #[arg(long)]
    pub quiet: bool,
}

/// How the guest is connected.
#[derive(Clone, Debug, Default, Args)]
pub struct Rings {
    /// What is behind the sockets.
    #[arg(long, value_enum, default_value = "blk")]
    pub device: DeviceKind,
    /// SCSI targets, such as 0-127 or 0,3,5; default: all disks that are there.
    #[arg(long, value_name = "LIST", value_parser = parse_targets, default_value = "all")]
    pub targets: Targets,
    /// Listen at the sockets instead of connecting (the device is the client).
    #[arg(long)]
    pub listen: bool,
    /// Packed rings.
    #[arg(long)]
    pub packed: bool,
    /// Chains of descriptors instead of indirect tables.
    #[arg(long)]
    pub no_indirect: bool,
    /// Notification flags instead of event indices.
    #[arg(long)]
    pub no_event_idx: bool,
    /// Let the device track in shared memory what is in flight, as QEMU does.
    #[arg(long)]
    pub inflight: bool,
    /// Sleep on eventfds when there is nothing to do (`--notify wait`).
    #[arg(skip)]
    pub wait: bool,
    /// How the guest waits.
    #[arg(long, value_enum, default_value = "poll")]
    pub notify: Option<Notify>,
    /// How long to wait for the sockets.
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = parse_time)]
    pub connect_timeout: Duration,
}

/// SCSI targets; none: all.
pub type Targets = Vec<u8>;

impl Rings {
    /// The device as the library names it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.device {
            DeviceKind::Blk => Kind::Blk,
            DeviceKind::Scsi => Kind::Scsi,
        }
    }
}

fn parse_targets(text: &str) -> Result<Targets, String> {
    if text == "all" {
        return Ok(Vec::new());
    }
    let wrong = || "targets from 0 to 255, such as 0-127 or 0,3,5".to_owned();
    let mut targets = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u8, u8) = (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
        if from > to {
            return Err(wrong());
        }
        targets.extend(from..=to);
    }
    Ok(targets)
}

/// Options, checked and completed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is to be done.
    pub jobs: Vec<JobSpec>,
    /// Connections.
    pub rings: Rings,
    /// Cores to run on; empty: one thread, not pinned.
    pub cores: Vec<usize>,
    /// One JSON object instead of a table.
    pub json: bool,
    /// No progress lines.
    pub quiet: bool,
}

impl Options {
    /// Checks and completes; `available` are the cores of this process. Reads the job files.
    ///
    /// # Errors
    /// One line: which option or which line of a file, and what would be right.
    pub fn plan(self, available: &[usize]) -> Result<Plan, String> {
        let job = self.job()?;
        let mut jobs = Vec::new();
        for file in &self.job_files {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file).map_err(|e| format!("{name}: {e}"))?;
            let first = jobs.iter().map(|job: &JobSpec| job.group + 1).max().unwrap_or(0);
            let more = jobfile::parse(&text, &name, &job)?;
            jobs.extend(more.into_iter().map(|job| JobSpec { group: job.group + first, ..job }));
        }
        if self.job_files.is_empty() {
            job.check(|key| {
                if key == "filename" { "--socket".into() } else { format!("--{}", key.replace('_', "-")) }
            })?;
            jobs.push(job);
        }
        if let Some(missing) = self.cores.iter().find(|c| !available.contains(c)) {
            return Err(format!(
                "--cores: this process may not run on core {missing}, only on {available:?}"
            ));
        }
        let cores = match self.cores.is_empty() {
            true => available.iter().copied().take(1).collect(),
            false => self.cores.clone(),
        };
        let mut rings = self.rings;
        rings.wait = rings.notify == Some(Notify::Wait);
        Ok(Plan { jobs, rings, cores, json: self.json, quiet: self.quiet })
    }

    fn job(&self) -> Result<JobSpec, String> {
        let mut job = JobSpec {
            name: self.name.clone(),
            block: self.bs,
            iodepth: self.iodepth,
            count: self.numjobs,
            runtime: self.runtime.filter(|t| !t.is_zero()),
            time_based: self.time_based || (self.runtime.is_some() && self.size.is_none()),
            ramp: self.ramp_time,
            size: self.size,
            offset: self.offset,
            verify: self.verify.is_some(),
            fsync: self.fsync,
            sockets: self.sockets.clone(),
            ..JobSpec::default()
        };
        if self.rwmixread > 100 {
            return Err("--rwmixread: 0 to 100 percent".into());
        }
        job.set_rw(&self.rw, self.rwmixread).map_err(|e| format!("--rw: {e}"))?;
        Ok(job)
    }
}

impl FromStr for Options {
    type Err = clap::Error;

    /// Parses a command line without the program's name; for tests and other front doors.
    fn from_str(line: &str) -> Result<Self, clap::Error> {
        Self::try_parse_from(std::iter::once("avio-iogen").chain(line.split_whitespace()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::Pattern;
    use super::*;

    fn plan(line: &str) -> Result<Plan, String> {
        line.parse::<Options>().map_err(|e| e.to_string())?.plan(&[0, 1])
    }

    #[test]
    fn fios_names_mean_what_they_mean_there() {
        let p = plan("--socket /s --rw=randrw --rwmixread=70 --bs=8k --iodepth=32 --numjobs=2 --runtime=3")
            .unwrap();
        let job = &p.jobs[0];
        assert_eq!((job.pattern, job.block), (Pattern { random: true, read_percent: 70 }, 8192));
        assert_eq!((job.iodepth, job.count, job.time_based), (32, 2, true));
        assert_eq!((p.cores, p.rings.device), (vec![0], DeviceKind::Blk));
    }

    #[test]
    fn a_size_ends_a_run_unless_it_is_time_based() {
        assert!(!plan("--socket /s --size 1m --runtime 3").unwrap().jobs[0].time_based);
        assert!(plan("--socket /s --size 1m --runtime 3 --time_based").unwrap().jobs[0].time_based);
    }

    #[test]
    fn verify_takes_fios_methods_or_none() {
        assert!(plan("--socket /s --verify").unwrap().jobs[0].verify);
        assert!(plan("--socket /s --verify=crc32c --rw write").unwrap().jobs[0].verify);
    }

    #[test]
    fn targets_are_lists_and_ranges() {
        assert_eq!(parse_targets("0-2,7"), Ok(vec![0, 1, 2, 7]));
        assert_eq!(plan("--socket /s --device scsi").unwrap().rings.targets, Vec::<u8>::new());
        assert!(parse_targets("5-2").is_err() && parse_targets("300").is_err());
    }

    #[test]
    fn nonsense_is_refused_with_the_options_name() {
        for (line, name) in [
            ("", "--socket"),
            ("--socket a --bs 100", "--bs"),
            ("--socket a --iodepth 0", "--iodepth"),
            ("--socket a --numjobs 0", "--numjobs"),
            ("--socket a --rw trim", "--rw"),
            ("--socket a --rwmixread 101", "--rwmixread"),
            ("--socket a --cores 7", "--cores"),
            ("--socket a --time-based", "--time-based"),
            ("--socket a --size 1k", "--size"),
            ("/no/such/file", "/no/such/file"),
        ] {
            let error = plan(line).unwrap_err();
            assert!(error.contains(name), "{line}: {error}");
        }
    }
}
