//! The options of `avio stor`.

use std::path::PathBuf;

use avio_proto::control::Place;
use clap::{Args, Subcommand};

/// Shows storage adapters and their LUNs; without a command and options, all of them.
#[derive(Debug, Clone, Args)]
pub struct StorArgs {
    /// Only this guest's adapters.
    #[arg(short = 'P', long, value_name = "GUEST")]
    pub guest: Option<String>,
    /// More of each LUN: bytes, errors by sense key, all percentiles, limits, serial number.
    #[arg(short = 'V', long)]
    pub verbose: bool,
    /// Statistics start over.
    #[arg(short = 'Z', long)]
    pub clear: bool,
    /// Show again every so many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", conflicts_with = "clear",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub watch: Option<u32>,
    /// Tell the daemon to read the files again.
    #[arg(long)]
    pub reload: bool,
    /// What to do.
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// Which LUN.
#[derive(Debug, Clone, Args)]
pub struct PlaceArgs {
    /// The guest.
    pub guest: String,
    /// Its adapter's bus.
    pub bus: u8,
    /// Its adapter's device.
    pub device: u8,
    /// The LUN's target.
    pub target: u8,
}

impl PlaceArgs {
    /// As the daemon wants it.
    #[must_use]
    pub fn place(&self) -> Place {
        Place { guest: self.guest.clone(), bus: self.bus, device: self.device, target: self.target }
    }
}

/// What `avio stor` can do.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Take the medium out of a DVD drive.
    Eject {
        #[command(flatten)]
        place: PlaceArgs,
        /// Although the guest has locked it.
        #[arg(long)]
        force: bool,
    },
    /// Put an ISO file into an empty DVD drive.
    Insert {
        #[command(flatten)]
        place: PlaceArgs,
        /// The file.
        iso: PathBuf,
    },
    /// Set a LUN's limits until the next reload. A limit that is not named stays as it is.
    #[command(group = clap::ArgGroup::new("limits").required(true).multiple(true).args(["iops", "mib_per_s"]))]
    Qos {
        #[command(flatten)]
        place: PlaceArgs,
        /// Requests a second; 0: no limit.
        #[arg(long)]
        iops: Option<u64>,
        /// MiB a second; 0: no limit.
        #[arg(long, value_parser = clap::value_parser!(u64).range(..1 << 32))]
        mib_per_s: Option<u64>,
    },
    /// Approve a replaced backing in the guest's place.
    Replace {
        #[command(flatten)]
        place: PlaceArgs,
        /// The host decides, not the guest.
        #[arg(long)]
        force_host: bool,
    },
}
