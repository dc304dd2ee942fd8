//! `gvsdmgr`: runs inside a Linux guest, with the guest's own drivers. Shows what its AVIO storage adapters are and have done,
//! clears their statistics, resets logical units, and approves stores that the host has replaced (SEMANTICS 2.4, 2.5).
//!
//! A package of its own, so that it can be one static file that runs on whatever the guest is (`make build`). Talks to the
//! target with SG_IO only (docs/vendor-commands.md) and finds its way in the guest's `/sys`.

mod arguments;
mod device;
mod output;
mod sg;
mod tree;
mod verbs;

use std::process::ExitCode;

use arguments::Arguments;
use clap::Parser;

/// Why a command did not do what it was asked: one line, and the exit status.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// Refused or failed: exit status 1.
    Refused(String),
    /// The command makes no sense: exit status 2.
    Usage(String),
}

fn main() -> ExitCode {
    let (line, status) = match verbs::run(&Arguments::parse()) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Refused(line)) => (line, 1),
        Err(Failure::Usage(line)) => (line, 2),
    };
    eprintln!("gvsdmgr: ERROR: {line}");
    ExitCode::from(status)
}
