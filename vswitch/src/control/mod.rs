//! The control thread of `avio-vswitchd`: start, event loop, stop.
//!
//! Owns the mio loop that sessions, the control socket, signals, workers' wake-ups and control queues meet in. It moves no
//! frame and blocks on nothing while it runs; only start-up reads files itself.

mod control_queue;
mod device;
mod fabric;
mod interface;
mod reconcile;
mod reload;
mod show;
mod sockets;
mod switch;
mod taps;
#[cfg(test)]
mod tests;
pub mod uplink;
mod varlink;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_host::blocking::{DEFAULT_THREADS, Helpers, Mailbox};
use avio_host::config::{check, load, surroundings};
use avio_host::control::{Access, Reloads, Server, TOKENS};
use avio_host::facility::Facilities;
use avio_host::links::Links;
use avio_host::options::DaemonOptions;
use avio_host::service::Service;
use avio_host::session::{EndpointId, Sessions, gid_of};
use avio_host::signals::Signals;
use avio_host::worker::{ControlWaker, Worker, WorkerOptions, Workers};
use avio_proto::config::{PollMode, WorkersConfig};
use avio_proto::control::SOCKET_FILE_NAME;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::forward;
use crate::port::xdp::xdp_available;
use fabric::Fabric;
use reload::Reader;
use switch::{Switch, Watch};
use taps::Taps;
use uplink::{Allowed, Uplinks};
use varlink::{CAPABILITIES, Daemon, summary};

/// Kernel facilities newer than the floor that this daemon can use; `AVIO_DISABLE` switches them off.
const FACILITIES: &[&str] = &[XDP, ZERO_COPY, BUSY_POLL];
const XDP: &str = "xdp";
const ZERO_COPY: &str = "xdp_zero_copy";
const BUSY_POLL: &str = "xdp_busy_poll";

const TOKEN_SIGNALS: Token = Token(0);
const TOKEN_WORKERS: Token = Token(1);
const TOKEN_SESSIONS: Token = Token(2);
const TOKEN_HELPERS: Token = Token(3);
const TOKEN_LINKS: Token = Token(4);
const TOKEN_CONTROL_FRAMES: Token = Token(5);
const TOKEN_CONTROL: Token = Token(16);
/// Control queues' kicks, by endpoint.
const TOKEN_KICKS: usize = 1 << 32;
const _: () = assert!(TOKEN_CONTROL.0 + TOKENS < TOKEN_KICKS);

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What was wrong, a line each: what, where, what would be right.
pub fn run(options: &DaemonOptions) -> Result<(), String> {
    let mut facilities = Facilities::from_env(FACILITIES).map_err(|e| e.to_string())?;
    let around = surroundings(CAPABILITIES);
    if options.check {
        print!("{}", check(&options.config, &around).map_err(|e| e.to_string())?);
        return Ok(());
    }
    avio_host::log::init().map_err(|e| e.to_string())?;
    let config = load(&options.config, &around).map_err(|e| e.to_string())?;
    let group = options
        .control_group
        .as_deref()
        .map(gid_of)
        .transpose()
        .map_err(|e| format!("--control-group: {e}"))?;
    let run_dir = &options.run_dir;
    std::fs::create_dir_all(run_dir).map_err(|e| {
        format!("--run-dir: {}: cannot be made: {e}; name a directory that can", run_dir.display())
    })?;

    let system = |e: io::Error| format!("cannot start: {e}");
    let poll = Poll::new().map_err(system)?;
    let registry = poll.registry();
    let signals = Signals::install().map_err(system)?;
    // The control socket is the daemon's lock: whoever has it owns the run directory.
    let access = Access { group };
    let server = Server::bind(&run_dir.join(SOCKET_FILE_NAME), access, registry, TOKEN_CONTROL)
        .map_err(|e| e.to_string())?;
    let helper_waker = Arc::new(Waker::new(registry, TOKEN_HELPERS).map_err(system)?);
    let waker = ControlWaker::new().map_err(system)?;
    let (events_in, events) = forward::Events::new(waker.clone());
    let workers = start_workers(&config.workers, &events_in, &waker)?;
    let helpers = Helpers::new(DEFAULT_THREADS).map_err(system)?;
    let sessions = Sessions::new(helpers.clone()).map_err(system)?;
    let has_xdp = facilities.probe(XDP, || match xdp_available() {
        Ok(()) => Ok("AF_XDP sockets".to_owned()),
        Err(error) => Err(error.to_string()),
    });
    let if_xdp = |detail: &str| if has_xdp { Ok(detail.to_owned()) } else { Err("needs xdp".to_owned()) };
    let allowed = Allowed {
        xdp: has_xdp,
        zero_copy: facilities.probe(ZERO_COPY, || if_xdp("where the driver has it")),
        busy_poll: facilities.probe(BUSY_POLL, || match config.workers.poll {
            PollMode::Always => if_xdp("where the driver has it"),
            _ => Err("only for workers that never sleep (poll = \"always\")".to_owned()),
        }),
    };
    let links = Links::new().map_err(system)?;
    let uplinks = Uplinks::new(
        links,
        helpers.clone(),
        Mailbox::new(Arc::clone(&helper_waker)),
        allowed,
        config.workers.placement().len(),
    )
    .map_err(system)?;
    for (fd, token) in [
        (uplinks.links_fd(), TOKEN_LINKS),
        (uplinks.control_frames_fd(), TOKEN_CONTROL_FRAMES),
        (signals.as_raw_fd(), TOKEN_SIGNALS),
        (waker.as_raw_fd(), TOKEN_WORKERS),
        (sessions.as_raw_fd(), TOKEN_SESSIONS),
    ] {
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE).map_err(system)?;
    }
    let started_with = config.workers.clone();
    let taps = Taps::new(waker.clone(), helpers.clone(), Mailbox::new(Arc::clone(&helper_waker)));
    let mut switch =
        Switch::new(run_dir.clone(), sessions, Fabric::new(workers), taps, uplinks, events, started_with);
    switch.look_at_host();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    switch.reconcile(config).map_err(|reasons| reasons.join("\n"))?;
    switch.turn(Instant::now());
    let daemon = Daemon {
        switch,
        service: Service::new("avio-vswitchd"),
        reader: Reader::new(options.config.clone(), helpers, Mailbox::new(helper_waker)),
        reloads: Reloads::default(),
        facilities: facilities.states().to_vec(),
        started: Instant::now(),
    };
    daemon.service.ready(&summary(&daemon.switch.config));
    Loop { poll, signals, waker, server, daemon }.run()
}

/// One worker per configured core, each with the empty table.
fn start_workers(
    config: &WorkersConfig,
    events: &forward::Events,
    waker: &ControlWaker,
) -> Result<Workers<forward::Command>, String> {
    let start = |(number, core): (usize, Option<u32>)| {
        let options = WorkerOptions {
            name: format!("worker-{number}"),
            core: core.map(|core| core as usize),
            poll: config.poll,
            spin_us: config.spin_us,
            ..WorkerOptions::default()
        };
        let engine = forward::Engine::new(number, events.clone(), waker.clone());
        Worker::spawn(engine, options, waker.clone()).map_err(|e| e.to_string())
    };
    config.placement().into_iter().enumerate().map(start).collect::<Result<_, _>>().map(Workers::new)
}

/// The event loop and all that is registered in it.
struct Loop {
    poll: Poll,
    signals: Signals,
    waker: ControlWaker,
    server: Server,
    daemon: Daemon,
}

impl Loop {
    fn run(mut self) -> Result<(), String> {
        let mut events = Events::with_capacity(256);
        loop {
            let now = Instant::now();
            let mut timeout = self.daemon.switch.next_turn(now);
            if let Some(period) = self.daemon.service.watchdog_period() {
                timeout = timeout.min(period);
            }
            // Rounded up, so that a turn is never a moment too early and then again.
            if !timeout.is_zero() {
                timeout += Duration::from_millis(1);
            }
            match self.poll.poll(&mut events, Some(timeout)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("event loop: {e}")),
            }
            for event in &events {
                if self.on_event(event.token()) {
                    return self.stop();
                }
            }
            let now = Instant::now();
            self.daemon.switch.turn(now);
            self.update_watches();
            self.daemon.service.alive(now);
        }
    }

    /// Returns whether the daemon is to stop.
    fn on_event(&mut self, token: Token) -> bool {
        match token {
            TOKEN_SIGNALS => {
                let requested = self.signals.take();
                if requested.reload && !requested.stop {
                    self.daemon.start_reload();
                }
                return requested.stop;
            }
            TOKEN_WORKERS => {
                self.waker.drain();
            }
            TOKEN_LINKS => self.daemon.switch.on_links(),
            // The turn that follows reads them.
            TOKEN_CONTROL_FRAMES => {}
            TOKEN_SESSIONS => self.daemon.switch.sessions.on_ready(),
            TOKEN_HELPERS => {
                while self.daemon.finish_reload() {
                    self.server.resume(self.poll.registry(), &mut self.daemon);
                    self.daemon.reloads.forget();
                }
            }
            token if self.server.owns(token) => {
                self.server.ready(token, self.poll.registry(), &mut self.daemon)
            }
            Token(kick) => {
                let endpoint = EndpointId((kick - TOKEN_KICKS) as u32);
                self.daemon.switch.on_control_kick(endpoint, Instant::now());
            }
        }
        false
    }

    /// Watches the kicks of control queues that have started, and no longer those that have stopped.
    fn update_watches(&mut self) {
        for watch in std::mem::take(&mut self.daemon.switch.watches) {
            match watch {
                Watch::Add(kick, endpoint) => {
                    let token = Token(TOKEN_KICKS + endpoint.0 as usize);
                    if let Err(e) =
                        self.poll.registry().register(&mut SourceFd(&kick), token, Interest::READABLE)
                    {
                        tracing::warn!("control queue of endpoint {}: {e}", endpoint.0);
                    }
                }
                Watch::Remove(kick) => {
                    let _ = self.poll.registry().deregister(&mut SourceFd(&kick.as_raw_fd()));
                }
            }
        }
    }

    fn stop(self) -> Result<(), String> {
        self.daemon.service.stopping();
        let Daemon { switch, .. } = self.daemon;
        switch.stop();
        Ok(())
    }
}
