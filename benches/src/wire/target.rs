//! The switches, each with one guest and one end of a wire, and what each says of the cycles that it worked.
//!
//! Owns the processes. A poll-mode thread is always busy to the kernel, so work is what the switch itself counts: OVS the cycles of its iterations
//! with packets, testpmd those of bursts with packets, ours all time but its polls that found nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use avio_tests::aggregate::{Cables, aggregate, wait_states};
use avio_tests::config::Config;
use avio_tests::console::Console;
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::{Failure, Result};
use serde::{Deserialize, Serialize};

use super::rows::Shape;
use super::traffic::{Ends, FAR_MAC, FarEnd, quiet, wire};
use crate::beside::{TARGET_CORE, machine, process};
use crate::net::ovs::Ovs;
use crate::net::target::Target as OvsMode;
use crate::net::testpmd::Forwarder;

/// Which switch, by which way to the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// This daemon, as shipped but for `poll = "always"`.
    Avio,
    /// Another build of it.
    Other,
    /// Open vSwitch with DPDK's vhost and its own AF_XDP netdev, learning.
    Ovs,
    /// DPDK testpmd, which forwards without looking.
    Testpmd,
    /// The same without its busy polling (`busy_budget=0`), which is on unless it is told otherwise.
    TestpmdSoftirq,
    /// This daemon through packet sockets.
    AvioPacket,
    /// Open vSwitch with the netdev that it has for any device, which is a packet socket.
    OvsPacket,
    /// This daemon with one device.
    OneMember,
    /// This daemon with an aggregate of two.
    TwoMembers,
    /// This daemon with an aggregate of four.
    FourMembers,
}

impl Kind {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Avio => "avio-vswitchd",
            Kind::Other => "the other build",
            Kind::Ovs => "OVS afxdp",
            Kind::Testpmd => "testpmd net_af_xdp",
            Kind::TestpmdSoftirq => "testpmd net_af_xdp, busy_budget=0",
            Kind::AvioPacket => "avio-vswitchd, packet socket",
            Kind::OvsPacket => "OVS netdev (packet socket)",
            Kind::OneMember => "one device",
            Kind::TwoMembers => "aggregate of two",
            Kind::FourMembers => "aggregate of four",
        }
    }

    /// Whether it is somebody else's.
    pub fn is_peer(self) -> bool {
        matches!(self, Kind::Ovs | Kind::Testpmd | Kind::TestpmdSoftirq | Kind::OvsPacket)
    }

    fn wire_count(self) -> u32 {
        match self {
            Kind::TwoMembers => 2,
            Kind::FourMembers => 4,
            _ => 1,
        }
    }
}

enum Process {
    Avio(Daemon),
    Ovs(Ovs),
    Testpmd(Forwarder),
}

/// One switch with its ends.
pub struct Target {
    /// Which.
    pub kind: Kind,
    // The guest goes before the switch.
    ends: Option<Ends>,
    process: Process,
    // What two switches have between them.
    _cables: Option<Cables>,
}

/// How long a switch is awake without traffic before each window: what the stop left behind is over, and a worker of ours learns what its looks cost here.
const SETTLE: Duration = Duration::from_millis(60);

/// Cycles worked, and frames they were for, since some beginning.
#[derive(Clone, Copy, Debug, Default)]
struct Worked {
    cycles: f64,
}

impl Target {
    /// Starts one on wires of its own; `against` is the folder of [`Kind::Other`].
    ///
    /// # Errors
    /// When a program is missing, or refuses the device.
    pub fn start(kind: Kind, shape: Shape, against: Option<&Path>) -> Result<Self> {
        let (process, ends, cables) = match shape {
            Shape::Between => between(kind, against)?,
            _ => wired(kind, shape, against)?,
        };
        // OVS connects to its guests once a second, and rings are started by the control side.
        std::thread::sleep(Duration::from_millis(300));
        let mut target = Self { kind, ends: Some(ends), process, _cables: cables };
        process::stop(target.console()?)?;
        Ok(target)
    }

    /// The process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn console(&mut self) -> Result<&mut Console> {
        match &mut self.process {
            Process::Avio(daemon) => daemon.console(),
            Process::Ovs(ovs) => Ok(&mut ovs.vswitchd),
            Process::Testpmd(forwarder) => Ok(&mut forwarder.console),
        }
    }

    /// Its traffic.
    ///
    /// # Errors
    /// Never while it runs.
    pub fn ends(&mut self) -> Result<&mut Ends> {
        self.ends.as_mut().ok_or_else(|| Failure::new("no guest"))
    }

    /// Runs `window` with the switch awake; gives what it gave, and the cycles worked meanwhile.
    ///
    /// # Errors
    /// As `window`, or when the switch does not answer.
    pub fn awake<R>(&mut self, window: impl FnOnce(&mut Ends) -> Result<R>) -> Result<(R, f64)> {
        process::resume(self.console()?)?;
        self.ends()?.idle(SETTLE)?;
        let before = self.worked()?;
        let outcome = window(self.ends()?);
        let cycles = self.worked()?.cycles - before.cycles;
        process::stop(self.console()?)?;
        Ok((outcome?, cycles))
    }

    /// What each counts itself.
    fn worked(&mut self) -> Result<Worked> {
        let cycles = match &mut self.process {
            Process::Avio(daemon) => busy_ns(daemon)? * machine::mhz().unwrap_or(0.0) / 1e3,
            Process::Ovs(ovs) => {
                let text = ovs.appctl(&["dpif-netdev/pmd-stats-show"])?;
                // Of all threads that have any: packet sockets are received from by the main one. None before the first packet.
                let lines = text.lines().filter_map(|line| line.trim().strip_prefix("processing cycles:"));
                lines.filter_map(|line| line.split_whitespace().next()?.parse::<f64>().ok()).sum()
            }
            Process::Testpmd(forwarder) => {
                let text = forwarder.ask("show fwd stats all")?;
                let part = text.split("total cycles=").nth(1).unwrap_or_default();
                let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().unwrap_or(0.0)
            }
        };
        Ok(Worked { cycles })
    }
}

/// What the only worker of a daemon of ours has counted as work, in nanoseconds.
fn busy_ns(daemon: &Daemon) -> Result<f64> {
    let mut stream = UnixStream::connect(daemon.run_folder().join("vswitchd.varlink"))?;
    stream.write_all(b"{\"method\":\"io.avio.vswitchd.Workers\"}\0")?;
    let mut text = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != 0 {
        text.push(byte[0]);
    }
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| Failure::new(format!("Workers: {e}")))?;
    let busy = &value["parameters"]["workers"][0]["busy_ns"];
    busy.as_f64().ok_or_else(|| Failure::new("Workers: no busy_ns"))
}

impl Drop for Target {
    fn drop(&mut self) {
        // A stopped process does not hear anything else.
        if let Ok(console) = self.console() {
            drop(process::resume(console));
        }
        self.ends = None;
    }
}

/// Lines of `[workers]` for a target.
fn polling() -> String {
    format!("cores = [{TARGET_CORE}]\npoll = \"always\"")
}

/// A daemon in a folder of its own.
fn daemon(kind: Kind, config: Config, against: Option<&Path>) -> Result<Daemon> {
    let folder = avio_tests::scratch::folder().join(format!("{kind:?}"));
    let binary = against.filter(|_| kind == Kind::Other).map(|folder| folder.join("avio-vswitchd"));
    Daemon::start_as(binary, folder, config.workers(&polling()))
}

/// Lines that make `device` a vswitch's wire.
fn uplink(device: &str, is_packet: bool) -> String {
    let access = format!("\n[[uplink]]\nname = \"{device}\"\naccess = \"packet\"");
    format!("uplink = \"{device}\"{}", if is_packet { &access } else { "" })
}

type Started = (Process, Ends, Option<Cables>);

/// One guest, and the benchmark at the far end.
fn wired(kind: Kind, shape: Shape, against: Option<&Path>) -> Result<Started> {
    let numbers = (0..kind.wire_count()).map(|n| kind as u32 * 4 + n);
    let wires = numbers.map(wire).collect::<Result<Vec<_>>>()?;
    let near = wires[0].near.clone();
    let far_end = match shape {
        Shape::Wire | Shape::Packet | Shape::Between => FarEnd::Generator,
        Shape::Receiving => FarEnd::Receiver,
        Shape::Aggregate => FarEnd::Stack,
    };
    let (process, socket, listen) = match kind {
        Kind::Ovs | Kind::OvsPacket => {
            let mut ovs = Ovs::start(1, false, 1500)?;
            ovs.add_wire(&near, kind == Kind::Ovs)?;
            ovs.add_address(&near, FAR_MAC)?;
            ovs.set_mode(OvsMode::OvsNormal)?;
            let socket = ovs.socket(0);
            (Process::Ovs(ovs), socket, true)
        }
        Kind::Testpmd => {
            (Process::Testpmd(Forwarder::start_wire(&near, 0, "")?), Forwarder::socket(0), false)
        }
        Kind::TestpmdSoftirq => {
            let forwarder = Forwarder::start_wire(&near, 1, ",busy_budget=0")?;
            (Process::Testpmd(forwarder), Forwarder::socket(1), false)
        }
        _ => {
            let lines = if wires.len() == 1 {
                uplink(&near, shape == Shape::Packet)
            } else {
                let members: Vec<_> = wires.iter().map(|wire| format!("\"{}\"", wire.near)).collect();
                aggregate("lan900", &members.join(", "), "mode = \"MANUAL\"\nbalance = \"LB_FLOW\"")
            };
            let config = Config::default().vswitch("vs", &lines).guest("g1", "vs", 1, "");
            let daemon = daemon(kind, config, against)?;
            if wires.len() == 1 {
                wait_up(&daemon, "vs")?;
            } else {
                wait_states(&daemon, "lan900", &vec!["Active"; wires.len()], 10)?;
            }
            let socket = daemon.socket(0);
            (Process::Avio(daemon), socket, false)
        }
    };
    let ends = Ends::new(wires, &socket, listen, far_end)?;
    Ok((process, ends, None))
}

/// Two guests on two switches with a wire between them; OVS has one bridge whose flows make it two.
fn between(kind: Kind, against: Option<&Path>) -> Result<Started> {
    let cables = Cables::numbered(kind as usize, 1, false)?;
    let [near, far] = [cables.near(kind as usize), cables.far(kind as usize)];
    for device in [&near, &far] {
        quiet(device);
    }
    let (process, sockets, listen) = match kind {
        Kind::OvsPacket => {
            let mut ovs = Ovs::start(2, true, 1500)?;
            ovs.add_wire(&near, false)?;
            ovs.add_wire(&far, false)?;
            ovs.set_flows(&[("p0", &near), (&far, "p1")])?;
            let sockets = [ovs.socket(0), ovs.socket(1)];
            (Process::Ovs(ovs), sockets, true)
        }
        _ => {
            let is_packet = kind == Kind::AvioPacket;
            let mut config = Config::default();
            for (name, device, number) in [("vs_a", &near, 1), ("vs_b", &far, 2)] {
                config = config.vswitch(name, &uplink(device, is_packet));
                config = config.guest(&format!("g{number}"), name, number, "");
            }
            let daemon = daemon(kind, config, against)?;
            wait_up(&daemon, "vs_a")?;
            wait_up(&daemon, "vs_b")?;
            let sockets = [daemon.socket(0), daemon.socket(1)];
            (Process::Avio(daemon), sockets, false)
        }
    };
    let ends = Ends::between([&sockets[0], &sockets[1]], listen)?;
    Ok((process, ends, Some(cables)))
}

fn wait_up(daemon: &Daemon, vswitch: &str) -> Result {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let output = daemon.avio(&["--json", "net", "-S", vswitch, "-A"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if ["\"copy\"", "\"zero-copy\"", "\"packet\""].iter().any(|access| text.contains(access)) {
            return Ok(());
        }
        ensure(Instant::now() < end, || format!("the wire of {vswitch} does not come up: {text}"))?;
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Where a daemon without anything to do stands: an uplink, one guest, as shipped. Share of a core in percent over `window`.
///
/// # Errors
/// When it does not start.
pub fn idle_percent(window: Duration) -> Result<f64> {
    let wire = wire(60)?;
    let lines = format!("uplink = \"{}\"", wire.near);
    let folder: PathBuf = avio_tests::scratch::folder().join("idle");
    let config = Config::default().vswitch("vs", &lines).guest("g1", "vs", 1, "");
    let mut daemon = Daemon::start_in(folder, config)?;
    wait_up(&daemon, "vs")?;
    std::thread::sleep(Duration::from_millis(500));
    let before = daemon.cpu_ms()?;
    std::thread::sleep(window);
    let used_ms = daemon.cpu_ms()? - before;
    Ok(used_ms as f64 / window.as_millis() as f64 * 100.0)
}
