//! The switches, each with one guest and one end of a wire, and what each says of the cycles that it worked.
//!
//! Owns the processes. A poll-mode thread is always busy to the kernel, so work is what the switch itself counts: OVS the cycles of its iterations
//! with packets, testpmd those of bursts with packets, ours all time but its polls that found nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use avio_tests::config::Config;
use avio_tests::console::Console;
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::wire::Wire;
use avio_tests::{Failure, Result};
use serde::{Deserialize, Serialize};

use super::traffic::{Ends, FAR_MAC, wire};
use crate::beside::{TARGET_CORE, machine, process};
use crate::net::ovs::Ovs;
use crate::net::target::Target as OvsMode;
use crate::net::testpmd::Forwarder;

/// Which switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// This daemon, as shipped but for `poll = "always"`.
    Avio,
    /// Open vSwitch with DPDK's vhost and its own AF_XDP netdev, learning.
    Ovs,
    /// DPDK testpmd, which forwards without looking.
    Testpmd,
}

impl Kind {
    /// In the order of a round.
    pub const ALL: [Kind; 3] = [Kind::Avio, Kind::Ovs, Kind::Testpmd];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Avio => "avio-vswitchd",
            Kind::Ovs => "OVS afxdp",
            Kind::Testpmd => "testpmd net_af_xdp",
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
    /// What one look that finds nothing takes, in nanoseconds; ours only.
    empty_ns: f64,
}

/// Cycles worked, and frames they were for, since some beginning.
#[derive(Clone, Copy, Debug, Default)]
struct Worked {
    cycles: f64,
}

/// What a worker of ours has counted.
#[derive(Clone, Copy, Debug, Default)]
struct Polls {
    polls: f64,
    empty: f64,
}

impl Target {
    /// Starts one on a wire of its own.
    ///
    /// # Errors
    /// When a program is missing, or refuses the device.
    pub fn start(kind: Kind) -> Result<Self> {
        let wire = wire(kind as u32)?;
        let (process, socket, listen) = match kind {
            Kind::Avio => {
                let lines = format!("uplink = \"{}\"", wire.near);
                let config = Config::default()
                    .workers(&format!("cores = [{TARGET_CORE}]\npoll = \"always\""))
                    .vswitch("vs", &lines)
                    .guest("g1", "vs", 1, "");
                let daemon = Daemon::start(config)?;
                wait_up(&daemon, &wire)?;
                let socket = daemon.socket(0);
                (Process::Avio(daemon), socket, false)
            }
            Kind::Ovs => {
                let mut ovs = Ovs::start(1, false, 1500)?;
                ovs.add_wire(&wire.near, FAR_MAC)?;
                ovs.set_mode(OvsMode::OvsNormal)?;
                let socket = ovs.socket(0);
                (Process::Ovs(ovs), socket, true)
            }
            Kind::Testpmd => {
                (Process::Testpmd(Forwarder::start_wire(&wire.near)?), Forwarder::socket(0), false)
            }
        };
        let ends = Ends::new(wire, &socket, listen)?;
        // OVS connects to its guests once a second, and rings are started by the control side.
        std::thread::sleep(Duration::from_millis(300));
        let mut target = Self { kind, ends: Some(ends), process, empty_ns: 0.0 };
        target.calibrate()?;
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
        let start = Instant::now();
        let (before, polls) = (self.worked()?, self.polls()?);
        let outcome = window(self.ends()?);
        let elapsed_ns = start.elapsed().as_nanos() as f64;
        let cycles = match self.kind {
            Kind::Avio => {
                let now = self.polls()?;
                let looking_ns = (now.empty - polls.empty) * self.empty_ns;
                (elapsed_ns - looking_ns).max(0.0) * machine::mhz().unwrap_or(0.0) / 1e3
            }
            _ => self.worked()?.cycles - before.cycles,
        };
        process::stop(self.console()?)?;
        Ok((outcome?, cycles))
    }

    /// Finds out what a look costs that finds nothing.
    fn calibrate(&mut self) -> Result {
        if self.kind == Kind::Avio {
            let (before, start) = (self.polls()?, Instant::now());
            std::thread::sleep(Duration::from_millis(300));
            let (after, elapsed) = (self.polls()?, start.elapsed());
            self.empty_ns = elapsed.as_nanos() as f64 / (after.polls - before.polls).max(1.0);
        }
        Ok(())
    }

    fn polls(&self) -> Result<Polls> {
        let Process::Avio(daemon) = &self.process else { return Ok(Polls::default()) };
        let mut stream = UnixStream::connect(daemon.run_folder().join("vswitchd.varlink"))?;
        stream.write_all(b"{\"method\":\"io.avio.vswitchd.Workers\"}\0")?;
        let mut text = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 && byte[0] != 0 {
            text.push(byte[0]);
        }
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| Failure::new(format!("Workers: {e}")))?;
        let worker = &value["parameters"]["workers"][0];
        let number =
            |name: &str| worker[name].as_f64().ok_or_else(|| Failure::new(format!("Workers: no {name}")));
        Ok(Polls { polls: number("polls")?, empty: number("empty_polls")? })
    }

    /// What OVS and testpmd count themselves.
    fn worked(&mut self) -> Result<Worked> {
        let cycles = match &mut self.process {
            Process::Avio(_) => 0.0,
            Process::Ovs(ovs) => {
                let text = ovs.appctl(&["dpif-netdev/pmd-stats-show"])?;
                let of_pmd = text.split("pmd thread").nth(1).unwrap_or_default();
                let line = of_pmd.lines().find_map(|line| line.trim().strip_prefix("processing cycles:"));
                // None before the first packet.
                line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
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

impl Drop for Target {
    fn drop(&mut self) {
        // A stopped process does not hear anything else.
        if let Ok(console) = self.console() {
            drop(process::resume(console));
        }
        self.ends = None;
    }
}

fn wait_up(daemon: &Daemon, wire: &Wire) -> Result {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let output = daemon.avio(&["--json", "net", "-S", "vs", "-A"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains("\"copy\"") || text.contains("\"zero-copy\"") {
            return Ok(());
        }
        ensure(Instant::now() < end, || format!("{} does not come up: {text}", wire.near))?;
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Where a daemon without anything to do stands: an uplink, one guest, as shipped. Share of a core in percent over `window`.
///
/// # Errors
/// When it does not start.
pub fn idle_percent(window: Duration) -> Result<f64> {
    let wire = wire(9)?;
    let lines = format!("uplink = \"{}\"", wire.near);
    let folder: PathBuf = avio_tests::scratch::folder().join("idle");
    let config = Config::default().vswitch("vs", &lines).guest("g1", "vs", 1, "");
    let mut daemon = Daemon::start_in(folder, config)?;
    wait_up(&daemon, &wire)?;
    std::thread::sleep(Duration::from_millis(500));
    let before = daemon.cpu_ms()?;
    std::thread::sleep(window);
    let used_ms = daemon.cpu_ms()? - before;
    Ok(used_ms as f64 / window.as_millis() as f64 * 100.0)
}
