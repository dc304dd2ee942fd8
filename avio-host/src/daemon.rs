//! The control thread of a daemon: its event loop, and what meets in it.
//!
//! Owns the mio loop in which signals, the control socket, sessions, workers' wake-ups and helpers' answers meet. A daemon's
//! `main` opens it, starts its workers, and runs it; what an event means is the [`Daemon`]'s. It blocks on nothing but events.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_proto::config::WorkersConfig;
use avio_proto::control::{RefusedParams, error};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use serde_json::{Value, json};

use crate::control::{Access, Called, Interface, ReloadOutcome, Reloads, Server, TOKENS, VarlinkError};
use crate::options::DaemonOptions;
use crate::service::Service;
use crate::session::{Sessions, gid_of};
use crate::signals::Signals;
use crate::worker::{ControlWaker, Engine, Worker, WorkerOptions, Workers};

const TOKEN_SIGNALS: Token = Token(0);
const TOKEN_WORKERS: Token = Token(1);
const TOKEN_SESSIONS: Token = Token(2);
const TOKEN_HELPERS: Token = Token(3);
const TOKEN_CONTROL: Token = Token(16);
/// The first token of a daemon's own sources ([`Watches`]).
const TOKEN_OWN: usize = 1 << 32;
const _: () = assert!(TOKEN_CONTROL.0 + TOKENS < TOKEN_OWN);
/// Events taken from the kernel at once.
const EVENTS: usize = 256;

/// What a daemon does with what happens. Everything is called on the control thread and must not block.
pub trait Daemon: Interface {
    /// The service manager's view of it.
    fn service(&mut self) -> &mut Service;

    /// Its vhost-user sessions; the loop tells them when they are ready.
    fn sessions(&mut self) -> &mut Sessions;

    /// Who waits for which reading of the configuration.
    fn reloads(&mut self) -> &mut Reloads;

    /// Begins to read the configuration, which ends with [`Daemon::reloaded`].
    fn begin_reload(&mut self);

    /// One line about what it serves, for the log.
    fn summary(&self) -> String;

    /// Helper threads have brought something. Calls without an answer are made again behind it.
    fn on_helpers(&mut self);

    /// One of its own sources is readable: `number` as given to [`Watches::add`].
    fn on_own(&mut self, number: usize);

    /// How long [`Daemon::turn`] may be left uncalled if nothing happens.
    fn next_turn(&self, now: Instant) -> Duration;

    /// Does everything that has become due. Its own sources come and go in `watches`.
    fn turn(&mut self, now: Instant, watches: &Watches<'_>);

    /// SIGHUP: reads the files again, now or behind the reading that is under way.
    fn start_reload(&mut self) {
        if self.reloads().ask() {
            self.service().reloading();
            self.begin_reload();
        }
    }

    /// A reading has come to its end: tells everybody who wants to know.
    fn reloaded(&mut self, outcome: ReloadOutcome) {
        match &outcome {
            Ok(reply) => {
                reply.changes.iter().for_each(|line| tracing::info!("{line}"));
                reply.warnings.iter().for_each(|line| tracing::warn!("{line}"));
            }
            Err(reasons) => reasons.iter().for_each(|line| tracing::error!("configuration refused: {line}")),
        }
        let summary = self.summary();
        self.service().ready(&summary);
        if self.reloads().done(outcome) {
            self.start_reload();
        }
    }

    /// A client calls `Reload`; `again`: as [`Peer::again`](crate::control::Peer::again).
    ///
    /// # Errors
    /// `Refused` with the reasons; [`VarlinkError::NotYet`].
    fn reload(&mut self, again: bool) -> Result<Value, VarlinkError> {
        match self.reloads().call(again) {
            // Our own types always are JSON; if one were not, the caller sees an empty reply rather than a dead daemon.
            Called::Answer(Ok(done)) => Ok(serde_json::to_value(done).unwrap_or_else(|_| json!({}))),
            Called::Answer(Err(reasons)) => {
                Err(VarlinkError::own(error::REFUSED, &RefusedParams { reasons }))
            }
            Called::Wait => Err(VarlinkError::NotYet),
            Called::Begin => {
                self.service().reloading();
                self.begin_reload();
                // Files that are wrong may have been refused at once.
                self.reload(true)
            }
        }
    }
}

/// The sources of a daemon's own in its event loop.
pub struct Watches<'a>(&'a Registry);

impl Watches<'_> {
    /// Watches `fd`; [`Daemon::on_own`] hears under `number` that it is readable, once each time it becomes so.
    ///
    /// # Errors
    /// What the system said.
    pub fn add(&self, fd: RawFd, number: usize) -> io::Result<()> {
        self.0.register(&mut SourceFd(&fd), Token(TOKEN_OWN + number), Interest::READABLE)
    }

    /// Watches `fd` no longer. To be called before it is closed.
    pub fn remove(&self, fd: RawFd) {
        // One that is not watched needs no more.
        let _ = self.0.deregister(&mut SourceFd(&fd));
    }
}

/// The event loop and all that is registered in it.
pub struct EventLoop {
    poll: Poll,
    signals: Signals,
    waker: ControlWaker,
    helpers: Arc<Waker>,
    server: Server,
}

impl EventLoop {
    /// Opens the control socket `socket` in the run directory, which is made if need be; installs the signals. The socket is the
    /// daemon's lock: whoever has it owns the run directory.
    ///
    /// # Errors
    /// What was wrong: one line.
    pub fn open(options: &DaemonOptions, socket: &str) -> Result<Self, String> {
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
        let poll = Poll::new().map_err(cannot_start)?;
        let registry = poll.registry();
        let signals = Signals::install().map_err(cannot_start)?;
        let server = Server::bind(&run_dir.join(socket), Access { group }, registry, TOKEN_CONTROL)
            .map_err(|e| e.to_string())?;
        let helpers = Arc::new(Waker::new(registry, TOKEN_HELPERS).map_err(cannot_start)?);
        let waker = ControlWaker::new().map_err(cannot_start)?;
        let this = Self { poll, signals, waker, helpers, server };
        this.register(this.signals.as_raw_fd(), TOKEN_SIGNALS)?;
        this.register(this.waker.as_raw_fd(), TOKEN_WORKERS)?;
        Ok(this)
    }

    /// By which workers wake control.
    #[must_use]
    pub fn waker(&self) -> &ControlWaker {
        &self.waker
    }

    /// By which helpers say that something is in a mailbox.
    #[must_use]
    pub fn helper_waker(&self) -> Arc<Waker> {
        Arc::clone(&self.helpers)
    }

    /// Starts one worker per configured core; `make` makes each one's engine from its number.
    ///
    /// # Errors
    /// Which core or thread cannot be had.
    pub fn start_workers<E: Engine>(
        &self,
        config: &WorkersConfig,
        make: impl Fn(usize) -> E,
    ) -> Result<Workers<E::Command>, String> {
        let start = |(number, core): (usize, Option<u32>)| {
            let options = WorkerOptions {
                name: format!("worker-{number}"),
                core: core.map(|core| core as usize),
                poll: config.poll,
                spin_us: config.spin_us,
                ..WorkerOptions::default()
            };
            Worker::spawn(make(number), options, self.waker.clone()).map_err(|e| e.to_string())
        };
        config.placement().into_iter().enumerate().map(start).collect::<Result<_, _>>().map(Workers::new)
    }

    /// Where a daemon's own sources go before it runs.
    #[must_use]
    pub fn watches(&self) -> Watches<'_> {
        Watches(self.poll.registry())
    }

    fn register(&self, fd: RawFd, token: Token) -> Result<(), String> {
        self.poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE).map_err(cannot_start)
    }

    /// Runs until the daemon is told to stop, and gives it back to be taken apart.
    ///
    /// # Errors
    /// What the system said.
    pub fn run<D: Daemon>(mut self, mut daemon: D) -> Result<D, String> {
        self.register(daemon.sessions().as_raw_fd(), TOKEN_SESSIONS)?;
        let summary = daemon.summary();
        daemon.service().ready(&summary);
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let mut timeout = daemon.next_turn(Instant::now());
            if let Some(period) = daemon.service().watchdog_period() {
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
                if self.on_event(event.token(), &mut daemon) {
                    daemon.service().stopping();
                    return Ok(daemon);
                }
            }
            let now = Instant::now();
            daemon.turn(now, &self.watches());
            daemon.service().alive(now);
        }
    }

    /// Returns whether the daemon is to stop.
    fn on_event(&mut self, token: Token, daemon: &mut impl Daemon) -> bool {
        match token {
            TOKEN_SIGNALS => {
                let requested = self.signals.take();
                if requested.reload && !requested.stop {
                    daemon.start_reload();
                }
                return requested.stop;
            }
            TOKEN_WORKERS => {
                self.waker.drain();
            }
            TOKEN_SESSIONS => daemon.sessions().on_ready(),
            TOKEN_HELPERS => {
                daemon.on_helpers();
                self.server.resume(self.poll.registry(), daemon);
                daemon.reloads().forget();
            }
            token if self.server.owns(token) => self.server.ready(token, self.poll.registry(), daemon),
            Token(own) => daemon.on_own(own - TOKEN_OWN),
        }
        false
    }
}

fn cannot_start(error: io::Error) -> String {
    format!("cannot start: {error}")
}
