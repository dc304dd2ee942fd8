//! `avio-stord`: the AVIO storage target as a program. Parses its options and runs the control thread.

use std::process::ExitCode;

use avio_host::options::{DaemonOptions, finish};
use clap::Parser;

/// The AVIO storage target: disks for guests over vhost-user, in the foreground.
#[derive(Debug, Parser)]
#[command(name = "avio-stord", version)]
struct Arguments {
    #[command(flatten)]
    options: DaemonOptions,
}

fn main() -> ExitCode {
    finish("avio-stord", avio_storage::control::run(&Arguments::parse().options))
}
