//! What a job is: which requests, how many at a time, for how long, on which disks.
//!
//! Owns the names of fio for it and what they may be. Options and job files both end here; the rest of the generator reads
//! nothing else.

use std::path::PathBuf;
use std::time::Duration;

/// Most requests in flight per queue.
pub const IODEPTH_MAX: u16 = 1024;
/// Longest request in bytes.
pub const BLOCK_MAX: u64 = 4 << 20;
/// Most jobs per socket: each has a request queue of its own.
pub const JOBS_MAX: u16 = 128;
/// Shortest block that `verify` can mark: three words of eight bytes say what it is.
pub const VERIFY_BLOCK_MIN: u64 = 512;

/// Order and direction of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Any block next, not the one behind the last.
    pub random: bool,
    /// Reads in a hundred requests.
    pub read_percent: u32,
}

/// One job, or several alike (`count`), on all of its disks at once.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSpec {
    /// For the report.
    pub name: String,
    /// fio's name of the pattern.
    pub rw: String,
    /// What that means.
    pub pattern: Pattern,
    /// Bytes of a request.
    pub block: u64,
    /// Requests in flight, per job and socket.
    pub iodepth: u16,
    /// Jobs alike (`numjobs`).
    pub count: u16,
    /// Ends then; `None`: when `size` is done.
    pub runtime: Option<Duration>,
    /// Starts again from the beginning until `runtime` is over.
    pub time_based: bool,
    /// Not measured, before the window.
    pub ramp: Duration,
    /// Bytes of each disk that are used, and moved by each job; `None`: all of it.
    pub size: Option<u64>,
    /// First byte of each disk that is used.
    pub offset: u64,
    /// Marks what is written, checks what is read.
    pub verify: bool,
    /// A flush after so many writes; 0: none.
    pub fsync: u32,
    /// vhost-user sockets.
    pub sockets: Vec<PathBuf>,
    /// Jobs of the next group begin when those of this one have ended (`stonewall`).
    pub group: usize,
}

impl Default for JobSpec {
    /// fio's defaults: sequential reads of 4 KiB, one at a time.
    fn default() -> Self {
        Self {
            name: "iogen".into(),
            rw: "read".into(),
            pattern: Pattern { random: false, read_percent: 100 },
            block: 4096,
            iodepth: 1,
            count: 1,
            runtime: None,
            time_based: false,
            ramp: Duration::ZERO,
            size: None,
            offset: 0,
            verify: false,
            fsync: 0,
            sockets: Vec::new(),
            group: 0,
        }
    }
}

impl JobSpec {
    /// Sets the pattern by fio's name for it; `mix` is the share of reads in percent of mixed ones.
    ///
    /// # Errors
    /// What would be right.
    pub fn set_rw(&mut self, name: &str, mix: u32) -> Result<(), String> {
        let (random, read_percent) = match name {
            "read" => (false, 100),
            "write" => (false, 0),
            "randread" => (true, 100),
            "randwrite" => (true, 0),
            "rw" | "readwrite" => (false, mix),
            "randrw" => (true, mix),
            _ => return Err("read, write, randread, randwrite, rw or randrw".into()),
        };
        self.rw = name.into();
        self.pattern = Pattern { random, read_percent };
        Ok(())
    }

    /// Whether it writes at all.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.pattern.read_percent < 100
    }

    /// Refuses what makes no sense, whoever asked for it; `what` names the option as its user wrote it.
    ///
    /// # Errors
    /// One line: which option, and what would be right.
    pub fn check(&self, what: impl Fn(&str) -> String) -> Result<(), String> {
        if self.block == 0 || !self.block.is_multiple_of(512) || self.block > BLOCK_MAX {
            return Err(format!("{}: a multiple of 512 up to 4M", what("bs")));
        }
        if self.iodepth == 0 || self.iodepth > IODEPTH_MAX {
            return Err(format!("{}: 1 to {IODEPTH_MAX}", what("iodepth")));
        }
        if self.count == 0 || self.count > JOBS_MAX {
            return Err(format!("{}: 1 to {JOBS_MAX}", what("numjobs")));
        }
        if self.pattern.read_percent > 100 {
            return Err(format!("{}: 0 to 100 percent", what("rwmixread")));
        }
        if self.verify && self.block < VERIFY_BLOCK_MIN {
            return Err(format!("{}: at least {VERIFY_BLOCK_MIN} to verify", what("bs")));
        }
        if self.time_based && self.runtime.is_none() {
            return Err(format!("{}: needs {}", what("time_based"), what("runtime")));
        }
        if self.size.is_some_and(|size| size < self.block) {
            return Err(format!("{}: at least one block", what("size")));
        }
        if self.sockets.is_empty() {
            return Err(format!("{}: which vhost-user socket?", what("filename")));
        }
        Ok(())
    }
}

/// `4k`, `1M`, `2g`, `4096`: powers of 1024, as fio and the configuration files have it.
///
/// # Errors
/// What would be right.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches("ib").trim_end_matches('b');
    let (number, shift) = match digits.chars().last() {
        Some('k') => (&digits[..digits.len() - 1], 10),
        Some('m') => (&digits[..digits.len() - 1], 20),
        Some('g') => (&digits[..digits.len() - 1], 30),
        Some('t') => (&digits[..digits.len() - 1], 40),
        _ => (digits, 0),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| "a size is a number of bytes, such as 4096, 4k or 1G".into())
}

/// `30`, `0.5`, `30s`, `500ms`, `2m`: fio's times; a bare number is seconds.
///
/// # Errors
/// What would be right.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let (number, unit) = match text {
        t if t.ends_with("ms") => (&t[..t.len() - 2], 0.001),
        t if t.ends_with("us") => (&t[..t.len() - 2], 0.000_001),
        t if t.ends_with('s') => (&t[..t.len() - 1], 1.0),
        t if t.ends_with('m') => (&t[..t.len() - 1], 60.0),
        t if t.ends_with('h') => (&t[..t.len() - 1], 3600.0),
        t => (t, 1.0),
    };
    number
        .parse::<f64>()
        .ok()
        .and_then(|n| Duration::try_from_secs_f64(n * unit).ok())
        .ok_or_else(|| "a time is a number of seconds, such as 5, 0.5 or 500ms".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_as_fio_reads_them() {
        assert_eq!((parse_size("4k"), parse_size("1G"), parse_size("512")), (Ok(4096), Ok(1 << 30), Ok(512)));
        assert_eq!((parse_size("8KiB"), parse_size("2mb")), (Ok(8192), Ok(2 << 20)));
        assert!(parse_size("x").is_err() && parse_size("99999999999t").is_err());
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(
            (parse_time("2m"), parse_time("1.5")),
            (Ok(Duration::from_secs(120)), Ok(Duration::from_millis(1500)))
        );
        assert!(parse_time("-1").is_err() && parse_time("soon").is_err());
    }

    #[test]
    fn patterns_have_fios_names() {
        let mut job = JobSpec::default();
        job.set_rw("randrw", 70).unwrap();
        assert_eq!(job.pattern, Pattern { random: true, read_percent: 70 });
        assert!(job.writes());
        job.set_rw("randread", 70).unwrap();
        assert!(!job.writes() && job.pattern.random);
        assert!(job.set_rw("trim", 0).is_err());
    }
}
