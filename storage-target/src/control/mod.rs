//! The control thread of `avio-stord`: start, event loop, stop.
//!
//! Owns the mio loop that sessions, the control socket, signals, workers' wake-ups and helpers' answers meet in. It does no
//! I/O of guests and blocks on nothing while it runs; start-up opens the backings itself.

mod absent;
mod adapter;
mod device;
mod journal;
mod lun;
mod reconcile;
mod served;
mod show;
mod storage;
mod varlink;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_host::blocking::{DEFAULT_THREADS, Helpers, Mailbox};
use avio_host::config::{check, load, surroundings};
use avio_host::control::{Access, Server};
use avio_host::facility::Facilities;
use avio_host::inject;
use avio_host::options::DaemonOptions;
use avio_host::service::Service;
use avio_host::session::{Sessions, gid_of};
use avio_host::signals::Signals;
use avio_host::worker::{ControlWaker, Worker, WorkerOptions, Workers};
use avio_proto::config::WorkersConfig;
use avio_proto::control::STORD_SOCKET_FILE_NAME;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::backing::Io;
use crate::serve::{self, Command, Engine};
use crate::uring::{Capabilities, FACILITIES};
use storage::{Parts, Storage};
use varlink::{CAPABILITIES, Daemon, summary};

const TOKEN_SIGNALS: Token = Token(0);
const TOKEN_WORKERS: Token = Token(1);
const TOKEN_SESSIONS: Token = Token(2);
const TOKEN_HELPERS: Token = Token(3);
const TOKEN_CONTROL: Token = Token(16);

/// Longest time between two turns: sizes of files are looked at then.
const TURN: Duration = Duration::from_millis(1000);
/// The same while an adapter waits for requests of a daemon that was killed.
const WAITING_TURN: Duration = Duration::from_millis(50);

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What was wrong, a line each: what, where, what would be right.
pub fn run(options: &DaemonOptions) -> Result<(), String> {
    let mut facilities = Facilities::from_env(FACILITIES).map_err(|e| e.to_string())?;
    let around = surroundings(CAPABILITIES);
    if options.check {
        let text = check(&options.config, &around).map_err(|e| e.to_string())?;
        let config = load(&options.config, &around).map_err(|e| e.to_string())?;
        reconcile::wanted(&config).map_err(|lines| lines.join("\n"))?;
        print!("{text}");
        return Ok(());
    }
    avio_host::log::init().map_err(|e| e.to_string())?;
    inject::arm_from_environment().map_err(|part| format!("AVIO_TEST_PANIC: `{part}` is not step:nth"))?;
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
    let capabilities = Capabilities::probe(&mut facilities)?;

    let system = |e: io::Error| format!("cannot start: {e}");
    let poll = Poll::new().map_err(system)?;
    let registry = poll.registry();
    let signals = Signals::install().map_err(system)?;
    // The control socket is the daemon's lock: whoever has it owns the run directory.
    let access = Access { group };
    let server = Server::bind(&run_dir.join(STORD_SOCKET_FILE_NAME), access, registry, TOKEN_CONTROL)
        .map_err(|e| e.to_string())?;
    let helper_waker = Waker::new(registry, TOKEN_HELPERS).map_err(system)?;
    let waker = ControlWaker::new().map_err(system)?;
    let (events_in, events) = serve::Events::new(waker.clone());
    let started_with = config.storage.workers.clone();
    let workers = start_workers(&started_with, &events_in, &waker, capabilities)?;
    let helpers = Helpers::new(DEFAULT_THREADS).map_err(system)?;
    // Opening and journalling wait for disks; mapping must not wait for them.
    let sessions = Sessions::new(Helpers::new(DEFAULT_THREADS).map_err(system)?).map_err(system)?;
    for (fd, token) in [
        (signals.as_raw_fd(), TOKEN_SIGNALS),
        (waker.as_raw_fd(), TOKEN_WORKERS),
        (sessions.as_raw_fd(), TOKEN_SESSIONS),
    ] {
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE).map_err(system)?;
    }
    let mut storage = Storage::new(Parts {
        run_dir: run_dir.clone(),
        state_dir: options.state_dir.clone(),
        started_with,
        sessions,
        workers,
        events,
        helpers,
        journal: Helpers::new(1).map_err(system)?,
        mailbox: Mailbox::new(Arc::new(helper_waker)),
    });
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    storage.start(config).map_err(|reasons| reasons.join("\n"))?;
    storage.turn(Instant::now());
    let daemon = Daemon::new(storage, Service::new("avio-stord"), options.config.clone());
    daemon.service.ready(&summary(&daemon.storage.config));
    Loop { poll, signals, waker, server, daemon }.run()
}

/// One worker per configured core.
fn start_workers(
    config: &WorkersConfig,
    events: &serve::Events,
    waker: &ControlWaker,
    capabilities: Capabilities,
) -> Result<Workers<Command>, String> {
    let placement = config.placement();
    let (count, epoch) = (placement.len(), Instant::now());
    let start = |(number, core): (usize, Option<u32>)| {
        let options = WorkerOptions {
            name: format!("worker-{number}"),
            core: core.map(|core| core as usize),
            poll: config.poll,
            spin_us: config.spin_us,
            ..WorkerOptions::default()
        };
        let engine = Engine::new(number, count, events.clone(), Io::new(capabilities), epoch);
        Worker::spawn(engine, options, waker.clone()).map_err(|e| e.to_string())
    };
    placement.into_iter().enumerate().map(start).collect::<Result<_, _>>().map(Workers::new)
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
            let turn = if self.daemon.storage.is_waiting() { WAITING_TURN } else { TURN };
            let period = self.daemon.service.watchdog_period().unwrap_or(turn).min(turn);
            match self.poll.poll(&mut events, Some(period)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("event loop: {e}")),
            }
            for event in &events {
                if self.on_event(event.token()) {
                    self.daemon.service.stopping();
                    self.daemon.storage.stop();
                    return Ok(());
                }
            }
            let now = Instant::now();
            self.daemon.storage.turn(now);
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
            TOKEN_SESSIONS => self.daemon.storage.sessions.on_ready(),
            TOKEN_HELPERS => {
                if let Some(outcome) = self.daemon.storage.on_helper() {
                    self.daemon.reloaded(outcome);
                }
                self.server.resume(self.poll.registry(), &mut self.daemon);
                self.daemon.reloads.forget();
            }
            token => self.server.ready(token, self.poll.registry(), &mut self.daemon),
        }
        false
    }
}
