//! `avio-vswitchd`: the AVIO virtual switch as a program. Parses its options and runs the control thread.

use std::process::ExitCode;

use avio_host::options::{DaemonOptions, finish};
use avio_vswitch::control::uplink::guardian;
use clap::Parser;

/// The AVIO virtual switch: ports for guests over vhost-user, in the foreground.
#[derive(Debug, Parser)]
#[command(name = "avio-vswitchd", version)]
struct Arguments {
    #[command(flatten)]
    options: DaemonOptions,
}

fn main() -> ExitCode {
    // Started by the daemon itself: it restores what the daemon changed, should the daemon be killed.
    if std::env::args().nth(1).as_deref() == Some(guardian::ARGUMENT) {
        guardian::run();
        return ExitCode::SUCCESS;
    }
    finish("avio-vswitchd", avio_vswitch::control::run(&Arguments::parse().options))
}
