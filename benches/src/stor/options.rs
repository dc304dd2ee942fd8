//! Options of `bench-stor`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Measures avio-stord beside qemu-storage-daemon and fio.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench-stor", version)]
pub struct Options {
    /// Under three minutes: fewer rows and rounds, one ratio per row, nothing written.
    #[arg(long)]
    pub quick: bool,
    /// Only rows whose name contains one of these.
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only rows that the report does not have yet.
    #[arg(long)]
    pub missing: bool,
    /// Begins no further row after so many seconds.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Forgets what the report has.
    #[arg(long)]
    pub fresh: bool,
    /// Prints the names of all rows.
    #[arg(long)]
    pub list: bool,
    /// Only these targets: avio, qsd, fio.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub targets: Vec<String>,
    /// Also measures the avio-stord in this folder, another build: an A/B in one run.
    #[arg(long, value_name = "FOLDER")]
    pub against: Option<PathBuf>,
    /// Rounds per row, a window per target in each; default 5, with --quick 3.
    #[arg(long)]
    pub rounds: Option<u32>,
    /// Length of a window in seconds; default 0.6, with --quick 0.25.
    #[arg(long)]
    pub window: Option<f64>,
    /// Where files that serve as disks are made: a file system with O_DIRECT.
    #[arg(long, default_value = "/var/tmp")]
    pub disks: PathBuf,
    /// Where the report and its plots go.
    #[arg(long, default_value = "benches/results")]
    pub results: PathBuf,
}

impl Options {
    /// Whether a row of this name is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// Whether a target of this family is to be measured.
    pub fn wants_target(&self, family: &str) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|name| name == family)
    }

    /// Rounds per row.
    pub fn round_count(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 }).max(1)
    }

    /// Length of a window.
    pub fn window(&self) -> Duration {
        Duration::from_secs_f64(self.window.unwrap_or(if self.quick { 0.25 } else { 0.6 }).clamp(0.05, 60.0))
    }

    /// How often a disturbed window is repeated before the least disturbed one is taken and marked.
    pub fn repeat_max(&self) -> u32 {
        if self.quick { 1 } else { 3 }
    }
}
