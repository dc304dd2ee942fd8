//! A network namespace for a case that makes network devices: nothing of it is seen outside, and all of it ends with the case.
//! Needs root.

use std::env;
use std::process::Command;

use crate::failure::ensure;
use crate::{Failure, Result};

/// Set in a case that is inside.
const INSIDE: &str = "AVIO_TEST_INSIDE";

/// Runs `case` in this program once more, in a network namespace with a loopback device and a sysfs of its own.
///
/// # Errors
/// When the case fails, or the namespace cannot be made.
pub fn inside(case: fn() -> Result) -> Result {
    if env::var_os(INSIDE).is_some() {
        return case();
    }
    let enter = "mount -t sysfs sysfs /sys && ip link set lo up && exec \"$0\"";
    let status = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", enter])
        .arg(env::current_exe()?)
        .env(INSIDE, "1")
        .status()?;
    ensure(status.success(), || format!("inside the network namespace (root only): {status}"))
}

/// Runs a command of the host's, such as `ip link del x`; gives what it printed.
///
/// # Errors
/// When it fails.
pub fn host(line: &str) -> Result<String> {
    let output = Command::new("sh").args(["-c", line]).output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(Failure::new(format!("'{line}' ended with {}: {text}", output.status)))
    }
}
