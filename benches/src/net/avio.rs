//! This daemon as a target: as shipped, but for `poll`, which the report states.

use std::path::{Path, PathBuf};

use avio_tests::config::Config;
use avio_tests::daemon::Daemon;
use avio_tests::{Result, scratch};

use super::SWITCH_CORE;

/// A daemon with `port_count` ports on one vswitch, one worker on the switch's core that never sleeps.
///
/// # Errors
/// When it does not get ready.
pub fn start(port_count: u16) -> Result<Daemon> {
    with_workers(port_count, &polling(), "")
}

/// The same with another build of the daemon, the program in the folder `binaries`: for comparing two builds in one run.
///
/// # Errors
/// When it is not there or does not get ready.
pub fn start_other(binaries: &Path, port_count: u16) -> Result<Daemon> {
    let binary: PathBuf = binaries.join("avio-vswitchd");
    Daemon::start_as(Some(binary), scratch::folder().join("other"), config(port_count, &polling(), ""))
}

fn polling() -> String {
    format!("cores = [{SWITCH_CORE}]\npoll = \"always\"")
}

/// The same with lines of the `[workers]` table, and of each port.
///
/// # Errors
/// When it does not get ready.
pub fn with_workers(port_count: u16, workers: &str, port_lines: &str) -> Result<Daemon> {
    Daemon::start(config(port_count, workers, port_lines))
}

fn config(port_count: u16, workers: &str, port_lines: &str) -> Config {
    // One MTU for all rows; a port's MTU costs nothing per frame.
    let lines = format!("mtu = 9000\n{port_lines}");
    let extras: Vec<&str> = (0..port_count).map(|_| lines.as_str()).collect();
    Config::one_switch(&extras).workers(workers)
}
