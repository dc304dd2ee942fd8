//! The processes of the current row: switches that are alive but stopped, each with its guests connected.
//!
//! Owns who runs: [`Stand::reading`] lets one switch run for one window and stops it again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_proto::control::WorkersReply;
use avio_tests::config::mac_of;
use avio_tests::console::Console;
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::{Failure, Result};
use avio_tools::client::Client;
use avio_tools::pktgen;
use avio_tools::pktgen::lane::Port;
use avio_tools::pktgen::options::{Options as PktgenOptions, Plan};
use serde::{Deserialize, Serialize};

use super::options::Options;
use super::ovs::Ovs;
use super::rows::{self, Row};
use super::target::{Family, Target};
use super::testpmd::{Forwarder, Pair};
use super::{GUEST_CORE, avio};
use crate::beside::process::{self, Scheduled};

/// A switch needs this to notice that its guests have gone before new ones come.
const FAREWELL: Duration = Duration::from_millis(300);

enum Process {
    /// Ours, or another build of it.
    Avio(Daemon),
    Ovs(Ovs),
    Testpmd(Forwarder),
}

enum Guests {
    Own { plan: Box<Plan>, ports: Vec<Port> },
    Testpmd(Pair, f64),
}

struct Switch {
    family: Family,
    // Guests go first when both are dropped.
    guests: Option<Guests>,
    process: Process,
}

/// What a switch is started for; another one needs a new start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    port_count: u16,
    tso: bool,
    mtu: u16,
}

/// See the module.
pub struct Stand {
    switches: Vec<Switch>,
    shape: Shape,
    window: Duration,
    warmup: Duration,
    wanted: Vec<Family>,
    /// Folder of the other build.
    other: PathBuf,
}

/// What one window gave.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Reading {
    /// Frames received per second, in millions.
    pub mpps: f64,
    /// Bits received per second, in thousand millions.
    pub gbit: f64,
    /// One-way latency, median and 99th percentile, in microseconds; 0 without samples.
    pub latency_us: (f64, f64),
    /// Share of the receivers' polls that found nothing; negative: unknown.
    pub empty_share: f64,
    /// Share of the polls of our switch's worker that found nothing, and frames per poll that found some; `None`: not ours.
    #[serde(default)]
    pub switch: Option<SwitchPolls>,
    /// Largest share of the window that the switch's thread or the guests were ready but did not run.
    pub waited_share: f64,
    /// Frames corrupt, duplicated or reordered.
    pub wrong: u64,
}

/// What the worker of our switch looked for and found in a window.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct SwitchPolls {
    /// Share of its polls that found nothing, the idle time before and after the guests' traffic included, when polls are quick.
    pub empty_share: f64,
    /// Frames per poll that found some.
    pub frames_per_batch: f64,
}

impl Stand {
    /// Nothing runs yet.
    pub fn empty(options: &Options) -> Self {
        let wanted = [Family::Avio, Family::Other, Family::Ovs, Family::Testpmd];
        Self {
            switches: Vec::new(),
            shape: Shape::default(),
            window: options.window(),
            warmup: Duration::from_millis(150),
            wanted: wanted.into_iter().filter(|f| options.wants_target(f.name())).collect(),
            other: options.against.clone().unwrap_or_default(),
        }
    }

    /// Starts what `row` needs and connects its guests; everything is stopped afterwards.
    ///
    /// # Errors
    /// When a program is missing, does not start, or refuses a guest.
    pub fn fit(&mut self, row: &Row) -> Result {
        let shape = Shape { port_count: row.port_count, tso: row.tso, mtu: row.mtu };
        if self.shape != shape {
            self.switches.clear();
            self.shape = shape;
        }
        if matches!(row.client, rows::Client::Testpmd(..)) {
            // OVS connects to its guests, later each time that they go; by then testpmd's few frames are lost, and nothing
            // circulates. A new one connects at once.
            self.switches.retain(|s| s.family != Family::Ovs || s.guests.is_none());
        }
        for target in &row.targets {
            let family = target.family();
            if self.wanted.contains(&family) && self.switches.iter().all(|s| s.family != family) {
                eprintln!("   starting {}", family.name());
                let mut switch = Switch { family, guests: None, process: start(family, shape, &self.other)? };
                process::stop(switch.process.console()?)?;
                self.switches.push(switch);
            }
        }
        for switch in &mut self.switches {
            let is_used = row.targets.iter().any(|t| t.family() == switch.family);
            switch.leave()?;
            if is_used {
                switch
                    .connect(row, self.window, self.warmup)
                    .map_err(|f| f.while_doing(&format!("guests on {}", switch.family.name())))?;
            }
        }
        Ok(())
    }

    /// Which of the row's targets run here.
    pub fn has(&self, target: Target) -> bool {
        self.switches.iter().any(|s| s.family == target.family())
    }

    /// Lets `target` run for one window, at `rate` frames per second and sending port or as fast as it can.
    ///
    /// # Errors
    /// When a process is gone or nothing arrives.
    pub fn reading(&mut self, target: Target, rate: Option<f64>) -> Result<Reading> {
        let (window, warmup) = (self.window, self.warmup);
        let switch = self
            .switches
            .iter_mut()
            .find(|s| s.family == target.family())
            .ok_or_else(|| Failure::new("the target does not run"))?;
        switch.process.resume()?;
        if let Process::Ovs(ovs) = &mut switch.process {
            ovs.set_mode(target)?;
        }
        let pid = switch.process.console()?.pid();
        let polls_before = switch.process.polls()?;
        let (before, start) = (process::by_thread(pid)?, Instant::now());
        let reading = match &mut switch.guests {
            Some(Guests::Own { plan, ports }) => own_reading(plan, ports, rate),
            Some(Guests::Testpmd(pair, len)) => testpmd_reading(pair, *len, warmup, window),
            None => Err(Failure::new("no guests are connected")),
        };
        let busiest = process::busiest_since(&before, &process::by_thread(pid)?);
        let elapsed_ns = start.elapsed().as_nanos() as f64;
        let polls = switch.process.polls()?;
        process::stop(switch.process.console()?)?;
        let mut reading = reading?;
        reading.switch = polls.zip(polls_before).map(|(after, before)| after.since(before));
        reading.waited_share = reading.waited_share.max(busiest.waited_ns as f64 / elapsed_ns);
        Ok(reading)
    }
}

fn own_reading(plan: &Plan, ports: &mut [Port], rate: Option<f64>) -> Result<Reading> {
    let start = Instant::now();
    let report = pktgen::once(plan, ports, rate).map_err(Failure::new)?;
    let elapsed_ms = start.elapsed().as_secs_f64() * 1e3;
    ensure(report.received > 0, || "nothing arrived".to_owned())?;
    Ok(Reading {
        mpps: report.mpps,
        gbit: report.gbit_s,
        latency_us: (report.latency_us.p50_us, report.latency_us.p99_us),
        empty_share: report.empty_poll_ratio,
        waited_share: report.waited_ms / elapsed_ms,
        wrong: report.corrupt + report.duplicated + report.reordered,
        switch: None,
    })
}

fn testpmd_reading(pair: &mut Pair, len: f64, warmup: Duration, window: Duration) -> Result<Reading> {
    process::resume(&pair.console)?;
    let pid = pair.console.pid();
    let (before, start) = (process::by_thread(pid)?, Instant::now());
    let frames_per_s = pair.frames_per_s(warmup, window);
    let busiest: Scheduled = process::busiest_since(&before, &process::by_thread(pid)?);
    let elapsed_ns = start.elapsed().as_nanos() as f64;
    process::stop(&pair.console)?;
    let (frames_per_s, empty_share) = frames_per_s?;
    Ok(Reading {
        mpps: frames_per_s / 1e6,
        gbit: frames_per_s * len * 8.0 / 1e9,
        empty_share,
        waited_share: busiest.waited_ns as f64 / elapsed_ns,
        ..Reading::default()
    })
}

fn start(family: Family, shape: Shape, other: &Path) -> Result<Process> {
    let Shape { port_count, tso, mtu } = shape;
    Ok(match family {
        Family::Avio => Process::Avio(avio::start(port_count)?),
        Family::Other => Process::Avio(avio::start_other(other, port_count)?),
        Family::Ovs => Process::Ovs(Ovs::start(port_count, tso, mtu)?),
        Family::Testpmd => Process::Testpmd(Forwarder::start(port_count, tso, mtu)?),
    })
}

impl Process {
    fn console(&mut self) -> Result<&mut Console> {
        match self {
            Process::Avio(daemon) => daemon.console(),
            Process::Ovs(ovs) => Ok(&mut ovs.vswitchd),
            Process::Testpmd(forwarder) => Ok(&mut forwarder.console),
        }
    }

    fn resume(&mut self) -> Result {
        process::resume(self.console()?)
    }

    /// What the workers of a switch of ours have counted so far.
    fn polls(&self) -> Result<Option<Polls>> {
        let Process::Avio(daemon) = self else { return Ok(None) };
        let reply: WorkersReply = Client::vswitchd(&daemon.run_folder())?.call("Workers", &())?;
        Ok(Some(reply.workers.iter().fold(Polls::default(), |sum, w| Polls {
            all: sum.all + w.polls,
            empty: sum.empty + w.empty_polls,
            frames: sum.frames + w.frames,
        })))
    }

    fn socket(&self, port: u16) -> PathBuf {
        match self {
            Process::Avio(daemon) => daemon.socket(usize::from(port)),
            Process::Ovs(ovs) => ovs.socket(port),
            Process::Testpmd(_) => Forwarder::socket(port),
        }
    }

    /// Whether guests listen and the switch connects.
    fn connects(&self) -> bool {
        matches!(self, Process::Ovs(_))
    }
}

/// Counters of all workers of one switch.
#[derive(Clone, Copy, Default)]
struct Polls {
    all: u64,
    empty: u64,
    frames: u64,
}

impl Polls {
    fn since(self, before: Self) -> SwitchPolls {
        let (all, empty) = (self.all - before.all, self.empty - before.empty);
        SwitchPolls {
            empty_share: empty as f64 / all.max(1) as f64,
            frames_per_batch: (self.frames - before.frames) as f64 / (all - empty).max(1) as f64,
        }
    }
}

impl Switch {
    /// Lets go of the guests, and lets the switch see it.
    fn leave(&mut self) -> Result {
        if self.guests.take().is_some() {
            self.process.resume()?;
            std::thread::sleep(FAREWELL);
            process::stop(self.process.console()?)?;
        }
        Ok(())
    }

    fn connect(&mut self, row: &Row, window: Duration, warmup: Duration) -> Result {
        self.process.resume()?;
        let sockets: Vec<PathBuf> = (0..row.port_count).map(|port| self.process.socket(port)).collect();
        let listen = self.process.connects();
        self.guests = Some(match &row.client {
            rows::Client::Own(options) => {
                let mut line = format!(
                    "--quiet --cores {GUEST_CORE} --connect-timeout 20 --duration {} --warmup {} {options}",
                    window.as_secs_f64(),
                    warmup.as_secs_f64(),
                );
                for (number, socket) in (1..).zip(&sockets) {
                    line += &format!(" --socket {} --guest-mac {}", socket.display(), mac_of(number));
                }
                if listen {
                    line += " --listen";
                }
                let options: PktgenOptions = line.parse()?;
                let plan = options.plan(&[GUEST_CORE]).map_err(Failure::new)?;
                let endpoints = sockets
                    .iter()
                    .map(|s| if listen { Endpoint::listen(s) } else { Ok(Endpoint::connect(s)) })
                    .collect::<std::io::Result<Vec<_>>>()?;
                let ports = pktgen::run::connect(endpoints, &plan.net)?;
                Guests::Own { plan: Box::new(plan), ports }
            }
            rows::Client::Testpmd(rings, len) => {
                if let (Process::Ovs(ovs), Some(target)) =
                    (&mut self.process, row.targets.iter().find(|t| t.family() == Family::Ovs))
                {
                    ovs.set_mode(*target)?;
                }
                let name = format!("pair-{}", self.family.name());
                let pair = Pair::start(&name, [&sockets[0], &sockets[1]], listen, *rings, *len)?;
                process::stop(&pair.console)?;
                Guests::Testpmd(pair, f64::from(*len))
            }
        });
        // The rings are started by the switch's control side.
        std::thread::sleep(Duration::from_millis(100));
        process::stop(self.process.console()?)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // A stopped process does not hear anything else, and its end may involve others.
        if let Ok(console) = self.process.console() {
            drop(process::resume(console));
        }
    }
}
