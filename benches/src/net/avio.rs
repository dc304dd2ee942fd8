//! This daemon as a target: as shipped, but for `poll`, which the report states.

use avio_tests::Result;
use avio_tests::config::Config;
use avio_tests::daemon::Daemon;

use super::SWITCH_CORE;

/// A daemon with `port_count` ports on one vswitch, one worker on the switch's core that never sleeps.
///
/// # Errors
/// When it does not get ready.
pub fn start(port_count: u16) -> Result<Daemon> {
    with_workers(port_count, &format!("cores = [{SWITCH_CORE}]\npoll = \"always\""), "")
}

/// The same with lines of the `[workers]` table, and of each port.
///
/// # Errors
/// When it does not get ready.
pub fn with_workers(port_count: u16, workers: &str, port_lines: &str) -> Result<Daemon> {
    // One MTU for all rows; a port's MTU costs nothing per frame.
    let lines = format!("mtu = 9000\n{port_lines}");
    let extras: Vec<&str> = (0..port_count).map(|_| lines.as_str()).collect();
    Daemon::start(Config::one_switch(&extras).workers(workers))
}
