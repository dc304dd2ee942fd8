//! A switch whose uplink is a device under test, and what the daemon says of that device. Needs root, as uplinks do.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::config::{Config, mac_of};
use crate::console::{Console, command};
use crate::daemon::{Daemon, program};
use crate::failure::ensure;
use crate::wire::Wire;
use crate::{Failure, Result};

/// How long a device may take to be as it should, in seconds.
const SETTLES_S: u64 = 10;

/// The best way that this run may take to a veth: `AVIO_DISABLE=all` leaves packet sockets.
#[must_use]
pub fn best() -> &'static str {
    if std::env::var_os("AVIO_DISABLE").is_some_and(|value| value == "all") { "packet" } else { "copy" }
}

/// A switch `vs` whose uplink is `name`, with these lines of its `[[uplink]]`, and one guest on port 1.
#[must_use]
pub fn config(name: &str, uplink: &str, extra: &str) -> Config {
    let vswitch = format!("uplink = \"{name}\"\n[[uplink]]\nname = \"{name}\"\n{uplink}");
    Config::default().vswitch("vs", &vswitch).guest("g1", "vs", 1, extra)
}

/// A daemon with a switch whose uplink is the wire, up.
///
/// # Errors
/// When it does not come up.
pub fn daemon(wire: &Wire, uplink: &str, extra: &str) -> Result<Daemon> {
    let daemon = Daemon::start(config(&wire.near, uplink, extra))?;
    wait_device(&daemon, "Up")?;
    Ok(daemon)
}

/// What `avio net --json` says of the first device of the uplink of `vs`.
///
/// # Errors
/// When it cannot be asked.
pub fn device(daemon: &Daemon, key: &str) -> Result<Value> {
    let output = daemon.avio(&["--json", "net", "-S", "vs", "-A"])?;
    let value: Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| Failure::new(format!("{e}: {}", String::from_utf8_lossy(&output.stderr))))?;
    Ok(value["wire"]["members"][0][key].clone())
}

/// Waits until that device is `state`.
///
/// # Errors
/// When that takes more than ten seconds.
pub fn wait_device(daemon: &Daemon, state: &str) -> Result {
    wait_key(daemon, "state", state)
}

/// Waits until `key` of that device is `wanted`.
///
/// # Errors
/// When that takes more than ten seconds.
pub fn wait_key(daemon: &Daemon, key: &str, wanted: &str) -> Result {
    let end = Instant::now() + Duration::from_secs(SETTLES_S);
    loop {
        let now = device(daemon, key)?;
        if now == wanted {
            return Ok(());
        }
        ensure(Instant::now() < end, || format!("the device's {key} is {now}, not {wanted}"))?;
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Short frames from the guest on port 1 to somebody on the wire, `rate` a second, for so many seconds.
///
/// # Errors
/// When it cannot be started.
pub fn frames_out(daemon: &Daemon, to: &str, seconds: u64, rate: u32) -> Result<Console> {
    frames_out_with(daemon, to, seconds, rate, &[])
}

/// The same with further options of `avio-pktgen`.
///
/// # Errors
/// When it cannot be started.
pub fn frames_out_with(
    daemon: &Daemon,
    to: &str,
    seconds: u64,
    rate: u32,
    options: &[&str],
) -> Result<Console> {
    let mut command = command(program("avio-pktgen")?);
    command.arg("--socket").arg(daemon.socket(0)).args(["--role", "transmit", "--guest-mac", &mac_of(1)]);
    command.args(["--peer-mac", to, "--rate", &rate.to_string(), "--duration", &seconds.to_string()]);
    command.args(options);
    Console::spawn("pktgen", command.arg("--json"))
}

/// Frames that the far end of a wire has received.
///
/// # Errors
/// When it is not there.
pub fn arrived(wire: &Wire) -> Result<u64> {
    let path = format!("/sys/class/net/{}/statistics/rx_packets", wire.far);
    let text = wire.far(&["cat", &path])?;
    text.trim().parse().map_err(|e| Failure::new(format!("{path}: {e}: {text}")))
}

/// Waits until `count` more frames than `before` have arrived at the far end.
///
/// # Errors
/// When that takes more than ten seconds.
pub fn wait_arrived(wire: &Wire, before: u64, count: u64) -> Result {
    let end = Instant::now() + Duration::from_secs(SETTLES_S);
    loop {
        let more = arrived(wire)? - before;
        if more >= count {
            return Ok(());
        }
        ensure(Instant::now() < end, || format!("{more} of {count} frames have arrived"))?;
        std::thread::sleep(Duration::from_millis(50));
    }
}
