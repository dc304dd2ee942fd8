//! Options of `bench-net`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Measures avio-vswitchd beside OVS-DPDK and DPDK testpmd.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench-net", version)]
pub struct Options {
    /// Under three minutes: fewer rows and rounds, one ratio per row, nothing written.
    #[arg(long)]
    pub quick: bool,
    /// Only rows whose name contains one of these; the others keep what an earlier run found, so that a machine that others
    /// use, too, can be asked for a few minutes at a time.
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only these targets: avio, ovs, testpmd.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub targets: Vec<String>,
    /// Also measures the avio-vswitchd in this folder, another build: an A/B in one run.
    #[arg(long, value_name = "FOLDER")]
    pub against: Option<PathBuf>,
    /// Rounds per row, a window per target in each; default 5.
    #[arg(long)]
    pub rounds: Option<u32>,
    /// Length of a window in seconds; default 0.5, with --quick 0.35.
    #[arg(long)]
    pub window: Option<f64>,
    /// Names the rows, measures nothing.
    #[arg(long)]
    pub list: bool,
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
        if family == "other" {
            return self.against.is_some();
        }
        self.targets.is_empty() || self.targets.iter().any(|name| name == family)
    }

    /// Whether what is found goes into the report: a short form or an A/B says nothing about the peers.
    pub fn writes(&self) -> bool {
        !self.quick && self.against.is_none() && self.targets.is_empty()
    }

    /// Rounds per row.
    pub fn round_count(&self) -> u32 {
        self.rounds.unwrap_or(5).max(1)
    }

    /// Length of a window.
    pub fn window(&self) -> Duration {
        Duration::from_secs_f64(self.window.unwrap_or(if self.quick { 0.35 } else { 0.5 }).clamp(0.05, 60.0))
    }

    /// How often a disturbed window is repeated before the least disturbed one is taken and marked.
    pub fn repeat_max(&self) -> u32 {
        if self.quick { 2 } else { 4 }
    }
}
