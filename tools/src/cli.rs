//! The command line of `avio` and of its Integrity VM names: options that all subcommands share, dispatch, exit status.
//!
//! A new subcommand is one module with an `Args` struct and a `run`, one variant of [`Command`] and one line in
//! `Command::run`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::{apa, demo, net, stor};

/// Options that all subcommands share stand below their own in `--help`.
const LAST: usize = 900;

/// Options that every subcommand takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Directory of the daemons' sockets.
    #[arg(long, global = true, display_order = LAST, value_name = "DIR", env = "AVIO_RUN_DIR", default_value = "/run/avio")]
    pub run_dir: PathBuf,
    /// Directory of the configuration files.
    #[arg(long, global = true, display_order = LAST, value_name = "DIR", env = "AVIO_CONFIG", default_value = "/etc/avio")]
    pub config: PathBuf,
    /// Print JSON.
    #[arg(long, global = true, display_order = LAST)]
    pub json: bool,
}

/// The operator's command for AVIO.
#[derive(Debug, Parser)]
#[command(name = "avio", version, disable_help_subcommand = true)]
struct Avio {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Create, modify and show AVIO virtual switches (`avio net` under its Integrity VM name).
#[derive(Debug, Parser)]
#[command(name = "hpvmnet", disable_help_flag = true)]
struct Hpvmnet {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    args: net::NetArgs,
}

/// What `avio` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, modify and show virtual switches.
    Net(net::NetArgs),
    /// Show, rebalance and reset aggregates.
    Apa(apa::ApaArgs),
    /// Show and operate storage adapters and their LUNs.
    Stor(stor::StorArgs),
    /// Show a switch and disks at work: five guests, traffic, a spoofing attempt, 128 LUNs, the statistics. No root needed.
    Demo(demo::DemoArgs),
}

impl Command {
    fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Command::Net(args) => net::run("avio net", global, args),
            Command::Apa(args) => apa::run(global, &args),
            Command::Stor(args) => stor::run(global, &args),
            Command::Demo(args) => demo::run(global, &args),
        }
    }
}

/// Why a command did not do what it was asked: printed as one line, and the exit status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Refused or failed: exit status 1. What, where, what would be right.
    #[error("{0}")]
    Refused(String),
    /// The command makes no sense: exit status 2.
    #[error("{0}")]
    Usage(String),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Refused(_) => ExitCode::from(1),
            Failure::Usage(_) => ExitCode::from(2),
        }
    }
}

/// Runs `avio` with the process's arguments.
#[must_use]
pub fn avio() -> ExitCode {
    let Avio { global, command } = Avio::parse();
    report("avio", command.run(&global))
}

/// Runs another command line of `avio`, without the program's name: what the demo shows is what an operator would type.
///
/// # Errors
/// The command's own, or [`Failure::Usage`].
pub fn line(words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<(), Failure> {
    let words = words.into_iter().map(|word| word.as_ref().to_owned());
    let Avio { global, command } = Avio::try_parse_from(std::iter::once(OsString::from("avio")).chain(words))
        .map_err(|error| Failure::Usage(error.to_string()))?;
    command.run(&global)
}

/// Runs `hpvmnet` with the process's arguments.
#[must_use]
pub fn hpvmnet() -> ExitCode {
    let Hpvmnet { global, args } = Hpvmnet::parse();
    report("hpvmnet", net::run("hpvmnet", &global, args))
}

/// One line on stderr for a failure, in the shape of Integrity VM's tools.
fn report(program: &str, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.to_string().lines() {
                eprintln!("{program}: ERROR: {line}");
            }
            failure.exit_code()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_lines_are_consistent() {
        Avio::command().debug_assert();
        Hpvmnet::command().debug_assert();
    }

    #[test]
    fn short_h_halts_and_long_help_helps() {
        let parsed = Avio::try_parse_from(["avio", "net", "-h", "-S", "vs_site"]).unwrap();
        assert!(matches!(parsed.command, Command::Net(args) if args.halt));
        let error = Avio::try_parse_from(["avio", "net", "--help"]).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp);
        assert!(Hpvmnet::try_parse_from(["hpvmnet", "-hS", "vs_site"]).unwrap().args.halt);
    }

    #[test]
    fn global_options_stand_anywhere() {
        let avio = Avio::try_parse_from(["avio", "net", "--json", "--run-dir", "/x"]).unwrap();
        assert!(avio.global.json);
        assert_eq!(avio.global.run_dir, PathBuf::from("/x"));
    }
}
