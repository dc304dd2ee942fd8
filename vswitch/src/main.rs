//! `avio-vswitchd`: the AVIO virtual switch as a program. Parses its options and runs the control thread.

use std::process::ExitCode;

use avio_host::options::{DaemonOptions, finish};
use clap::Parser;

/// The AVIO virtual switch: ports for guests over vhost-user, in the foreground.
#[derive(Debug, Parser)]
#[command(name = "avio-vswitchd", version)]
struct Arguments {
    #[command(flatten)]
    options: DaemonOptions,
}

fn main() -> ExitCode {
    finish("avio-vswitchd", avio_vswitch::control::run(&Arguments::parse().options))
}
