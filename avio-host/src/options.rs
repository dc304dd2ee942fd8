//! The options that every daemon takes, and their exit statuses (INTERFACE, "Programs").
//!
//! A daemon flattens [`DaemonOptions`] into its own clap parser, which adds `--version`; clap ends usage errors with 2.

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

/// Exit status of what was refused or failed.
pub const EXIT_FAILED: u8 = 1;

/// Directories and modes.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DaemonOptions {
    /// Directory of the configuration files.
    #[arg(long, value_name = "DIR", env = "AVIO_CONFIG", default_value = "/etc/avio")]
    pub config: PathBuf,
    /// Directory of the sockets.
    #[arg(long, value_name = "DIR", env = "AVIO_RUN_DIR", default_value = "/run/avio")]
    pub run_dir: PathBuf,
    /// Directory of what must outlive the process.
    #[arg(long, value_name = "DIR", env = "AVIO_STATE_DIR", default_value = "/var/lib/avio")]
    pub state_dir: PathBuf,
    /// Check the configuration, print what is wrong or when each key takes effect, and exit.
    #[arg(long)]
    pub check: bool,
    /// Who may use the control socket beside root and this user: a group's name or number.
    #[arg(long, value_name = "GROUP", env = "AVIO_CONTROL_GROUP")]
    pub control_group: Option<String>,
}

/// The end of a program: status 0, or one line (one per reason) on standard error and status 1.
pub fn finish(program: &str, result: Result<(), impl Display>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                eprintln!("{program}: {line}");
            }
            ExitCode::from(EXIT_FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::path::Path;

    #[derive(Debug, Parser)]
    #[command(name = "daemon", version)]
    struct Daemon {
        #[command(flatten)]
        options: DaemonOptions,
    }

    #[test]
    fn defaults_and_statuses() {
        let options = Daemon::try_parse_from(["daemon"]).unwrap().options;
        assert_eq!(options.config, PathBuf::from("/etc/avio"));
        assert_eq!(options.run_dir, PathBuf::from("/run/avio"));
        assert_eq!(options.state_dir, PathBuf::from("/var/lib/avio"));
        assert!(!options.check);
        let options = Daemon::try_parse_from(["daemon", "--check", "--config", "/x"]).unwrap().options;
        assert!(options.check && options.config == Path::new("/x"));
        assert_eq!(Daemon::try_parse_from(["daemon", "--nonsense"]).unwrap_err().exit_code(), 2);
        assert_eq!(Daemon::try_parse_from(["daemon", "--version"]).unwrap_err().exit_code(), 0);
    }
}
