//! Options of `bench-wire`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Measures avio-vswitchd beside OVS and testpmd on veth pairs.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench-wire", version)]
pub struct Options {
    /// Under three minutes: fewer rounds, nothing written.
    #[arg(long)]
    pub quick: bool,
    /// Only these rows, by whole names; the others keep what an earlier run found, so that a long run can be taken in slices.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Prints the names of all rows.
    #[arg(long)]
    pub list: bool,
    /// Also measures the avio-vswitchd in this folder, another build: an A/B in one run, of which nothing is written.
    #[arg(long, value_name = "FOLDER")]
    pub against: Option<PathBuf>,
    /// Without the peers, for an A/B.
    #[arg(long)]
    pub alone: bool,
    /// Rounds, a window per target and row in each.
    #[arg(long)]
    pub rounds: Option<u32>,
    /// Length of a window in seconds.
    #[arg(long)]
    pub window: Option<f64>,
    /// Where the report goes.
    #[arg(long, default_value = "benches/results")]
    pub results: PathBuf,
}

impl Options {
    /// Whether a row of this name is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == name)
    }

    /// Whether what is found goes into the report: a short form or an A/B says nothing about the peers.
    pub fn writes(&self) -> bool {
        !self.quick && self.against.is_none() && !self.alone
    }

    /// Rounds per row.
    pub fn round_count(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 }).max(1)
    }

    /// Length of a window.
    pub fn window(&self) -> Duration {
        Duration::from_secs_f64(self.window.unwrap_or(if self.quick { 0.3 } else { 0.5 }).clamp(0.05, 60.0))
    }

    /// How often a disturbed window is repeated before the least disturbed one is taken and marked.
    pub fn repeat_max(&self) -> u32 {
        if self.quick { 1 } else { 3 }
    }
}
