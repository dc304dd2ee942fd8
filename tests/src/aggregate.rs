//! Aggregates under test: the cables that members are, what the daemon says of them, and load over them whose every frame is counted.
//! Needs root, as uplinks do.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::config::mac_of;
use crate::console::{Console, command};
use crate::daemon::{Daemon, program};
use crate::failure::ensure;
use crate::wire::run;
use crate::{Failure, Result};

/// Veth pairs between here and here, or a namespace; deleted with the case.
pub struct Cables {
    /// How many.
    pub count: usize,
    /// Number of the first.
    first: usize,
    id: u32,
    /// Where the far ends are, if not here.
    pub namespace: Option<String>,
}

impl Cables {
    /// Makes `count` of them and plugs them; the far ends are in a namespace of their own, or here.
    ///
    /// # Errors
    /// When this is not root, or the kernel has no veth.
    pub fn new(count: usize, in_namespace: bool) -> Result<Cables> {
        Cables::numbered(0, count, in_namespace)
    }

    /// The same, numbered from `first` on: for several sets in one process.
    ///
    /// # Errors
    /// As [`Cables::new`].
    pub fn numbered(first: usize, count: usize, in_namespace: bool) -> Result<Cables> {
        let id = std::process::id() % 1_000_000;
        let namespace = in_namespace.then(|| format!("avio-{id}"));
        let cables = Cables { count, first, id, namespace };
        cables.delete();
        if let Some(namespace) = &cables.namespace {
            run("ip", &["netns", "add", namespace])?;
        }
        for n in first..first + count {
            cables.make(n)?;
        }
        Ok(cables)
    }

    /// Makes cable `n`, which is not there yet or any more, and plugs it.
    ///
    /// # Errors
    /// When it is there.
    pub fn make(&self, n: usize) -> Result {
        let (near, far) = (self.near(n), self.far(n));
        let mut arguments = vec!["link", "add", &near, "type", "veth", "peer", "name", &far];
        if let Some(namespace) = &self.namespace {
            arguments.extend(["netns", namespace.as_str()]);
        }
        run("ip", &arguments)?;
        run("ip", &["link", "set", &near, "up"])?;
        self.plug(n, true)
    }

    /// The device at the near end of cable `n`.
    #[must_use]
    pub fn near(&self, n: usize) -> String {
        format!("ava{}x{n}", self.id)
    }

    /// The device at its far end.
    #[must_use]
    pub fn far(&self, n: usize) -> String {
        format!("avb{}x{n}", self.id)
    }

    /// Pulls or plugs cable `n` at its far end: both ends lose their carrier.
    ///
    /// # Errors
    /// When it is not there.
    pub fn plug(&self, n: usize, up: bool) -> Result {
        let (far, state) = (self.far(n), if up { "up" } else { "down" });
        let mut arguments = Vec::new();
        if let Some(namespace) = &self.namespace {
            arguments.extend(["-n", namespace.as_str()]);
        }
        arguments.extend(["link", "set", &far, state]);
        run("ip", &arguments).map(drop)
    }

    /// Frames that the devices of all cables dropped so far, by their own count: a veth pair's ring is full while the receiving
    /// core is busy.
    ///
    /// # Errors
    /// When `ip` does not show them.
    pub fn dropped(&self) -> Result<u64> {
        let mut sum = 0;
        for n in 0..self.count {
            sum += dropped_by(&["-s", "-j", "link", "show", &self.near(n)])?;
            let far = self.far(n);
            let there = ["-s", "-j", "link", "show", &far];
            sum += match &self.namespace {
                Some(namespace) => dropped_by(&[["-n", namespace].as_slice(), &there].concat())?,
                None => dropped_by(&there)?,
            };
        }
        Ok(sum)
    }

    /// The devices of the first `count` cables as a list in a configuration file.
    #[must_use]
    pub fn members(&self, far: bool, count: usize) -> String {
        let name = |n| if far { self.far(n) } else { self.near(n) };
        (0..count).map(|n| format!("\"{}\"", name(n))).collect::<Vec<_>>().join(", ")
    }

    fn delete(&self) {
        for n in self.first..self.first + self.count {
            let _ = Command::new("ip").args(["link", "del", &self.near(n)]).output();
        }
        if let Some(namespace) = &self.namespace {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        self.delete();
    }
}

/// What `ip -s -j link show` says of one device, both directions together.
fn dropped_by(words: &[&str]) -> Result<u64> {
    let text = run("ip", words)?;
    let devices: Value =
        serde_json::from_str(&text).map_err(|e| Failure::new(format!("ip {words:?}: {e} in {text}")))?;
    let of = |direction: &str| devices[0]["stats64"][direction]["dropped"].as_u64();
    of("rx")
        .zip(of("tx"))
        .map(|(rx, tx)| rx + tx)
        .ok_or_else(|| Failure::new(format!("ip {words:?}: {text}")))
}

/// Lines of a `[[vswitch]]` that make it and its `[[aggregate]]`.
#[must_use]
pub fn aggregate(name: &str, members: &str, lines: &str) -> String {
    format!("uplink = \"{name}\"\n[[aggregate]]\nname = \"{name}\"\nmembers = [{members}]\n{lines}\n")
}

/// `avio apa --json` of one aggregate.
///
/// # Errors
/// When it cannot be asked.
pub fn shown(daemon: &Daemon, name: &str) -> Result<Value> {
    let output = daemon.avio(&["--json", "apa", "-c", name])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Failure::new(format!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr))))?;
    Ok(value["aggregates"][0].clone())
}

/// The states of its members.
#[must_use]
pub fn states(shown: &Value) -> Vec<String> {
    let members = shown["members"].as_array().map(Vec::as_slice).unwrap_or_default();
    members.iter().map(|member| member["state"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Waits until its members have these states and no flow is on its way; gives what is shown then.
///
/// # Errors
/// When that takes more than `seconds`.
pub fn wait_states(daemon: &Daemon, name: &str, wanted: &[&str], seconds: u64) -> Result<Value> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let now = shown(daemon, name)?;
        let settled = now["is_moving"] == false && states(&now) == wanted;
        if settled {
            return Ok(now);
        }
        ensure(Instant::now() < end, || format!("{name} is not {wanted:?}: {now}"))?;
        sleep(Duration::from_millis(20));
    }
}

/// Frames from the first guest to the second, `rate` a second, for so many seconds.
///
/// # Errors
/// When it cannot be started.
pub fn pktgen(daemon: &Daemon, seconds: f64, flows: u16, rate: u32) -> Result<Console> {
    let mut command = command(program("avio-pktgen")?);
    for index in 0..2 {
        command.arg("--socket").arg(daemon.socket(index));
        command.args(["--guest-mac", &mac_of(index as u16 + 1)]);
    }
    command.args(["--flows", &flows.to_string(), "--rate", &rate.to_string()]);
    command.args(["--duration", &seconds.to_string(), "--json"]);
    Console::spawn("pktgen", &mut command)
}

/// What it counted.
///
/// # Errors
/// When it does not end within `seconds`, or fails.
pub fn report(mut pktgen: Console, seconds: u64) -> Result<Value> {
    pktgen.wait_end(seconds)?;
    let output = pktgen.output();
    let line = output.lines().find(|line| line.starts_with('{'));
    let line = line.ok_or_else(|| Failure::new(format!("pktgen reports nothing: {output}")))?;
    serde_json::from_str(line).map_err(|e| Failure::new(format!("{e}: {line}")))
}

/// A partner at the far end of `lan900`'s two members, and the load under which flows move.
pub struct Partner<'a> {
    /// Pulls or plugs a member's cable.
    pub plug: &'a dyn Fn(usize, bool) -> Result,
    /// It loses nothing, however busy this machine is; else only what it was given is sure.
    pub lossless: bool,
    /// Frames a second.
    pub rate: u32,
    /// How long it may take to take up a link, in seconds.
    pub settles_s: u64,
}

/// Plugs a cable while frames flow, so that half of the flows move, and has them dealt anew: nothing may be lost or reordered, neither of the flows that
/// move nor of those that stay. The load comes from the first guest and ends at the second. Gives what is shown of the aggregate then.
///
/// # Errors
/// When something is lost, duplicated or reordered.
pub fn move_under_load(daemon: &Daemon, partner: &Partner<'_>) -> Result<Value> {
    (partner.plug)(1, false)?;
    let before = wait_states(daemon, "lan900", &["Active", "Down"], 5)?;
    let dropped_before = dropped(daemon)?;
    // Long enough for the slowest; ended by what is counted, not by a time.
    let load = pktgen(daemon, 2.5 + partner.settles_s as f64, FLOWS, partner.rate)?;
    sleep(Duration::from_millis(500));
    (partner.plug)(1, true)?;
    let moved = wait_states(daemon, "lan900", &["Active", "Active"], partner.settles_s)?;
    // After the loss of a link the buckets do not lie in turn; dealt anew, some of them do move back and forth.
    for _ in 0..3 {
        daemon.avio(&["apa", "rebalance", "lan900"])?;
        wait_states(daemon, "lan900", &["Active", "Active"], 5)?;
    }
    let report = report(load, 20 + partner.settles_s)?;
    for never in ["duplicated", "reordered", "corrupt"] {
        ensure(report[never] == 0, || format!("{never}: {report}"))?;
    }
    // On a machine whose cores others have, a guest's ring or a link's may fill up: that is counted, and no frame is gone without.
    let dropped =
        dropped(daemon)?.iter().zip(dropped_before).map(|(now, then)| now - then).collect::<Vec<_>>();
    let all_dropped: u64 = dropped.iter().sum();
    ensure(!partner.lossless || report["lost"].as_u64() <= Some(all_dropped), || {
        format!("lost, and {dropped:?} dropped and counted: {report}")
    })?;
    let after = shown(daemon, "lan900")?;
    let held = after["frames_held"].as_u64().unwrap_or(0) - before["frames_held"].as_u64().unwrap_or(0);
    println!(
        "{} sent, {held} held while flows moved, {} lost, {dropped:?} of them counted as dropped",
        report["sent"], report["lost"]
    );
    ensure(held > 0 && after["frames_not_held"] == 0, || format!("held: {after}"))?;
    ensure(moved["members"][1]["buckets"] == 128, || moved.to_string())?;
    let out = |value: &Value, n: usize| value["members"][n]["frames_out"].as_u64().unwrap_or(0);
    let through = [0, 1].map(|n| out(&after, n) - out(&before, n));
    let sent = report["sent"].as_u64().unwrap_or(u64::MAX);
    ensure(through.iter().all(|n| *n > 0) && through.iter().sum::<u64>() + dropped[0] >= sent, || {
        format!("frames out through the members {through:?}, dropped {dropped:?}, sent {sent}: {after}")
    })?;
    Ok(after)
}

/// What the sender's and the receiver's vswitch have dropped so far for want of room.
fn dropped(daemon: &Daemon) -> Result<[u64; 2]> {
    Ok([daemon.vswitch("vs_a")?.without_room(), daemon.vswitch("vs_b")?.without_room()])
}

/// Pulls a cable while frames flow, and plugs it again: frames that were on their way are lost, but none comes twice or out of order, and what is lost is
/// less than what the link carried in half a second.
///
/// # Errors
/// When something else happens.
pub fn fail_under_load(daemon: &Daemon, partner: &Partner<'_>) -> Result {
    let load = pktgen(daemon, 2.5 + partner.settles_s as f64, FLOWS, partner.rate)?;
    sleep(Duration::from_millis(500));
    (partner.plug)(0, false)?;
    wait_states(daemon, "lan900", &["Down", "Active"], 5)?;
    sleep(Duration::from_millis(500));
    (partner.plug)(0, true)?;
    wait_states(daemon, "lan900", &["Active", "Active"], partner.settles_s)?;
    let report = report(load, 20 + partner.settles_s)?;
    let [sent, lost] = ["sent", "lost"].map(|name| report[name].as_u64().unwrap_or(u64::MAX));
    println!("link down and up under load: {sent} sent, {lost} lost");
    for never in ["duplicated", "reordered", "corrupt"] {
        ensure(report[never] == 0, || format!("{never}: {report}"))?;
    }
    ensure(lost < u64::from(partner.rate) / 4, || format!("lost: {report}"))
}

/// Flows that move, and flows that stay.
const FLOWS: u16 = 256;
