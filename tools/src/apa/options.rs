//! The options of `avio apa`.

use clap::{Args, Subcommand};

/// Shows the aggregates that are uplinks; without a command and options, one line each.
#[derive(Debug, Clone, Args)]
pub struct ApaArgs {
    /// Only this aggregate.
    #[arg(short = 'c', long = "class", value_name = "NAME")]
    pub class: Option<String>,
    /// Every member with its states and numbers.
    #[arg(short = 'v', long)]
    pub verbose: bool,
    /// For scripts: `apa!NAME#ATTRIBUTE#current#VALUE`, a line each.
    #[arg(long, conflicts_with = "verbose")]
    pub sc: bool,
    /// What to do.
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// What `avio apa` can do.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Deal the flows anew over the members, without reordering any.
    Rebalance {
        /// Which aggregate.
        aggregate: String,
    },
    /// Start the protocol over and clear the numbers; traffic pauses meanwhile.
    Reset {
        /// Which aggregate.
        aggregate: String,
    },
}
