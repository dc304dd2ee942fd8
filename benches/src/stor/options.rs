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
    /// Also measures the avio-stord in this folder, another build: an A/B in one run, of which nothing is written.
    #[arg(long, value_name = "FOLDER")]
    pub against: Option<PathBuf>,
    /// Rounds per row, a window per target in each; default 5 for rows with a goal, 3 for others and with --quick.
    #[arg(long)]
    pub rounds: Option<u32>,
    /// Length of a window in seconds; default 0.6 for rows with a goal, 0.25 for others and with --quick.
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

    /// Whether what is found goes into the report: a short form or an A/B says nothing about the peers.
    pub fn writes(&self) -> bool {
        !self.quick && self.against.is_none() && self.targets.is_empty()
    }

    /// Rounds per row; a row that has a goal is worth more of them.
    pub fn round_count(&self, has_goal: bool) -> u32 {
        self.rounds.unwrap_or(if has_goal && !self.quick { 5 } else { 3 }).max(1)
    }

    /// Length of a window, likewise.
    pub fn window(&self, has_goal: bool) -> Duration {
        let own = if has_goal && !self.quick { 0.6 } else { 0.25 };
        Duration::from_secs_f64(self.window.unwrap_or(own).clamp(0.05, 60.0))
    }

    /// How often a disturbed window is repeated before the least disturbed one is taken and marked, likewise.
    pub fn repeat_max(&self, has_goal: bool) -> u32 {
        if has_goal && !self.quick { 3 } else { 1 }
    }
}
