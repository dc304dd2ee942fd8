//! The demo's aggregate: two vswitches joined by two cables that are one link, of which one is pulled while frames flow. Needs root: the cables are
//! network devices, in a network namespace of their own that ends with the demo.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_proto::control::{AggregatesReply, method};
use serde::Serialize;
use serde_json::Value;

use super::daemon::{Daemon, DemoGuest, program};
use crate::client::Client;

/// Frames a second under which the cable is pulled.
const RATE: u32 = 20_000;
/// How long frames flow; the cable is pulled after half of it.
const LOAD: Duration = Duration::from_millis(1600);
/// LACP agrees within some seconds; on a machine that is busy with other things it may take longer.
const AGREE: Duration = Duration::from_secs(20);

/// What came of it; all 0 without root.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FailoverResult {
    /// Frames sent.
    pub sent: u64,
    /// Frames that were lost with the cable.
    pub lost: u64,
    /// Frames that came out of order or twice.
    pub disordered: u64,
    /// How long the flows of the pulled cable were without one, in ms.
    pub outage_ms: f64,
}

/// The namespace with the cables; gone when dropped.
pub struct Cables(String);

impl Cables {
    /// Makes them.
    ///
    /// # Errors
    /// Who may not make network devices, or has no `ip` (iproute2).
    pub fn new() -> Result<Self, String> {
        let cables = Cables(format!("avio-demo-{}", std::process::id()));
        ip(&["netns", "add", &cables.0])?;
        for n in 0..2 {
            cables.ip(&["link", "add", &near(n), "type", "veth", "peer", "name", &far(n)])?;
            cables.ip(&["link", "set", &near(n), "up"])?;
            cables.ip(&["link", "set", &far(n), "up"])?;
        }
        Ok(cables)
    }

    fn ip(&self, arguments: &[&str]) -> Result<(), String> {
        ip(&[&["-n", self.0.as_str()], arguments].concat())
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.0]);
    }
}

fn near(n: usize) -> String {
    format!("eth{n}")
}

fn far(n: usize) -> String {
    format!("peer{n}")
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|e| format!("ip: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

fn vswitches() -> String {
    let vswitch = |name: &str, aggregate: &str, members: [String; 2]| {
        format!(
            "[[vswitch]]\nname = \"{name}\"\nuplink = \"{aggregate}\"\n\n[[aggregate]]\nname = \"{aggregate}\"\nmode = \"LACP_AUTO\"\n\
             balance = \"LB_FLOW\"\ntimeout = \"fast\"\nmembers = [\"{}\", \"{}\"]\n\n",
            members[0], members[1]
        )
    };
    vswitch("vs_site", "lan900", [near(0), near(1)]) + &vswitch("vs_peer", "lan901", [far(0), far(1)])
}

/// Whether both ends of both cables carry traffic, no flow on its way.
fn agreed(run_dir: &Path) -> Result<bool, String> {
    let mut client = Client::vswitchd(run_dir).map_err(|e| e.to_string())?;
    let reply: AggregatesReply =
        client.call(method::AGGREGATES, &serde_json::json!({})).map_err(|e| e.to_string())?;
    let members = reply.aggregates.iter().flat_map(|aggregate| &aggregate.members);
    let active = members.filter(|member| member.state == "Active").count();
    Ok(active == 4 && reply.aggregates.iter().all(|aggregate| !aggregate.is_moving))
}

/// Pulls a cable under load. `show` runs while it is out: what an operator sees then.
///
/// # Errors
/// What did not work, or which promise did not hold.
pub fn run(
    cables: &Cables,
    guests: &[DemoGuest; 2],
    show: impl FnOnce(&Daemon) -> Result<(), String>,
) -> Result<FailoverResult, String> {
    let daemon = Daemon::joined(guests, &vswitches(), &cables.0)?;
    let deadline = Instant::now() + AGREE;
    while !agreed(&daemon.run_dir())? {
        if Instant::now() > deadline {
            return Err(format!("LACP has not agreed after {AGREE:?}:\n{}", daemon.log_tail()));
        }
        sleep(Duration::from_millis(50));
    }
    let mut load = Command::new(program("avio-pktgen")?);
    for guest in guests {
        load.arg("--socket").arg(daemon.socket(guest.name));
        load.args(["--guest-mac", &avio_proto::config::MacAddr(guest.mac).to_string()]);
    }
    load.args(["--flows", "64", "--rate", &RATE.to_string(), "--json"]);
    load.args(["--duration", &LOAD.as_secs_f64().to_string()]);
    let load = load.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let load = load.map_err(|e| format!("avio-pktgen: {e}"))?;
    sleep(LOAD / 2);
    cables.ip(&["link", "set", &far(0), "down"])?;
    let output = load.wait_with_output().map_err(|e| format!("avio-pktgen: {e}"))?;
    let shown = show(&daemon);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(text.trim()).map_err(|e| format!("avio-pktgen: {e}: {text}"))?;
    let [sent, lost, reordered, duplicated] =
        ["sent", "lost", "reordered", "duplicated"].map(|name| report[name].as_u64().unwrap_or(u64::MAX));
    let disordered = reordered.saturating_add(duplicated);
    // Half of the flows went through the cable that was pulled.
    let outage_ms = lost as f64 * 2_000.0 / f64::from(RATE);
    daemon.stop()?;
    shown?;
    if disordered > 0 || lost > u64::from(RATE) / 2 {
        return Err(format!("{lost} of {sent} frames lost, {disordered} out of order: {report}"));
    }
    Ok(FailoverResult { sent, lost, disordered, outage_ms })
}
