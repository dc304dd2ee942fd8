//! vhost-user sessions of a daemon: sockets, mappings and timers around the machine in `avio_proto::vhost_user::backend`.
//!
//! Owns every vhost-user socket, listening or connecting, and the one session that may be on each. The control thread
//! registers [`Sessions`] once in its event loop, calls [`Sessions::on_ready`] when it is readable, takes events with
//! [`Sessions::next_event`] and answers RingStop with [`Sessions::ring_stopped`]. Everything here is called on that thread
//! and never waits: mapping and unmapping happen on helper threads.
//!
//! It never touches a ring, and it tells the device nothing of vhost-user but [`Event`]s.

mod endpoint;
mod listener;
mod mapping;
mod owner;
mod sigbus;
mod stream;
#[cfg(test)]
mod tests;

pub use avio_proto::vhost_user::backend::{DeviceSpec, Event, InflightRing, RingStart};
pub use endpoint::{EndpointSpec, Role};
pub use listener::{Access, SocketError};
pub use mapping::SharedMapping;
pub use owner::{UnknownAccount, gid_of, uid_of};

use crate::blocking::{Helpers, Mailbox};
use crate::ratelimit::RateLimit;
use endpoint::{Endpoint, Surroundings};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a client-role socket tries to connect, in milliseconds: a guest that starts waits half of it on average, and a
/// thousand sockets without a front-end cost a thousand failed calls a second at most.
const RECONNECT_MS: u64 = 500;
/// Turns of the inner event loop per [`Sessions::on_ready`], so that chatty front-ends do not keep the control thread.
const TURNS: usize = 8;

const TOKEN_WAKER: Token = Token(0);
const TOKEN_ALARM: Token = Token(1);
const TOKEN_TIMER: Token = Token(2);
const TOKEN_FIRST: usize = 4;

/// Names one endpoint as long as the daemon runs; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u32);

impl EndpointId {
    fn listener_token(self) -> Token {
        Token(TOKEN_FIRST + 2 * self.0 as usize)
    }

    fn stream_token(self) -> Token {
        Token(TOKEN_FIRST + 2 * self.0 as usize + 1)
    }

    /// The endpoint of a token, and whether it is the stream's.
    fn of(token: Token) -> Option<(Self, bool)> {
        let n = token.0.checked_sub(TOKEN_FIRST)?;
        Some((Self((n / 2) as u32), n % 2 == 1))
    }
}

/// What a helper thread answers.
struct Answer {
    id: EndpointId,
    /// Which session of the endpoint asked.
    serial: u64,
    ticket: u64,
    outcome: Outcome,
}

enum Outcome {
    Mapped(Result<Arc<SharedMapping>, String>),
    Created(Result<OwnedFd, String>),
}

/// All vhost-user sockets of a daemon.
pub struct Sessions {
    poll: Poll,
    ready: Events,
    waker: Arc<Waker>,
    timer: OwnedFd,
    timer_runs: bool,
    helpers: Helpers,
    mailbox: Mailbox<Answer>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    next_id: u32,
    events: VecDeque<(EndpointId, Event)>,
    again: Vec<EndpointId>,
    limit: RateLimit<String>,
}

impl Sessions {
    /// No endpoints yet.
    ///
    /// # Errors
    /// If the process has no descriptors left, or SIGBUS cannot be caught.
    pub fn new(helpers: Helpers) -> io::Result<Self> {
        let poll = Poll::new()?;
        let registry = poll.registry();
        let waker = Arc::new(Waker::new(registry, TOKEN_WAKER)?);
        let alarm = sigbus::alarm()?;
        registry.register(&mut SourceFd(&alarm.as_raw_fd()), TOKEN_ALARM, Interest::READABLE)?;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        registry.register(&mut SourceFd(&timer.as_raw_fd()), TOKEN_TIMER, Interest::READABLE)?;
        Ok(Self {
            mailbox: Mailbox::new(Arc::clone(&waker)),
            poll,
            ready: Events::with_capacity(256),
            waker,
            timer,
            timer_runs: false,
            helpers,
            endpoints: BTreeMap::new(),
            next_id: 0,
            events: VecDeque::new(),
            again: Vec::new(),
            limit: RateLimit::default(),
        })
    }

    /// Opens a socket: listening from now on, or connecting.
    ///
    /// # Errors
    /// [`SocketError`], one line for the operator.
    pub fn add(&mut self, spec: EndpointSpec) -> Result<EndpointId, SocketError> {
        let id = self.new_id();
        let endpoint = Endpoint::new(id, spec, self.poll.registry())?;
        self.endpoints.insert(id, endpoint);
        self.with(id, Endpoint::find_peer);
        self.settle();
        Ok(id)
    }

    /// As [`Self::add`], around a connection that exists already; when it ends, the endpoint stays without one.
    pub fn add_connected(&mut self, spec: EndpointSpec, stream: UnixStream) -> EndpointId {
        let id = self.new_id();
        let role = Role::Server(Access::default());
        self.endpoints.insert(id, Endpoint::connected(id, EndpointSpec { role, ..spec }));
        self.with(id, |endpoint, around| endpoint.attach(stream, around));
        self.settle();
        id
    }

    /// Closes a socket for good and removes its file. A session on it still yields its RingStops and Disconnected.
    pub fn remove(&mut self, id: EndpointId) {
        self.with(id, Endpoint::remove);
        self.settle();
    }

    /// Ends the session on a socket, if there is one; the front-end may connect again.
    pub fn disconnect(&mut self, id: EndpointId) {
        self.with(id, Endpoint::disconnect);
        self.settle();
    }

    /// Ends the session on a socket whose front-end made a notification block, and takes no other there for a minute.
    pub fn hold(&mut self, id: EndpointId) {
        self.with(id, |endpoint, around| endpoint.hold(endpoint::HELD_US, around));
        self.settle();
    }

    /// Handles whatever is ready; call when the descriptor is readable.
    pub fn on_ready(&mut self) {
        for turn in 0..=TURNS {
            if turn == TURNS {
                // The outer loop is edge-triggered: it must be told that there is more.
                let _ = self.waker.wake();
                break;
            }
            match self.poll.poll(&mut self.ready, Some(Duration::ZERO)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    tracing::error!("waiting for vhost-user sockets: {e}");
                    break;
                }
            }
            let tokens: Vec<Token> = self.ready.iter().map(|event| event.token()).collect();
            if tokens.is_empty() {
                break;
            }
            for token in tokens {
                self.on_token(token);
            }
            self.take_turns();
        }
        self.take_turns();
        self.settle();
    }

    /// One more turn for each endpoint that asked for one.
    fn take_turns(&mut self) {
        for id in std::mem::take(&mut self.again) {
            self.with(id, Endpoint::on_again);
        }
    }

    fn on_token(&mut self, token: Token) {
        match token {
            TOKEN_WAKER => {
                while let Some(answer) = self.mailbox.take() {
                    self.with(answer.id, |endpoint, around| endpoint.on_answer(answer, around));
                }
            }
            TOKEN_ALARM => self.each(Endpoint::check_memory),
            TOKEN_TIMER => {
                let mut ticks = [0; 8];
                let _ = rustix::io::read(&self.timer, &mut ticks);
                self.each(Endpoint::find_peer);
                for (name, count) in self.limit.settle(Instant::now()) {
                    tracing::warn!("{name}: {count} more lines suppressed");
                }
            }
            _ => match EndpointId::of(token) {
                Some((id, true)) => self.with(id, Endpoint::on_stream),
                Some((id, false)) => self.with(id, Endpoint::on_listener),
                None => {}
            },
        }
    }

    /// Whether [`Self::next_event`] has something.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next thing that happened to a device, in order.
    pub fn next_event(&mut self) -> Option<(EndpointId, Event)> {
        self.events.pop_front()
    }

    /// The device's answer to [`Event::RingStop`]: the ring's memory and descriptors are dropped, everything that was taken
    /// from it is complete. `base` is where it would go on, in GET_VRING_BASE's encoding. Answers for sessions that are gone
    /// are ignored.
    pub fn ring_stopped(&mut self, id: EndpointId, index: u16, base: u32) {
        self.with(id, |endpoint, around| endpoint.ring_stopped(index, base, around));
        self.settle();
    }

    /// Replaces a device's configuration space, for this session and later ones. True if the guest could be told
    /// (CONFIG_CHANGE); else it sees the change when it reads again.
    pub fn set_config(&mut self, id: EndpointId, config: Vec<u8>) -> bool {
        let mut told = false;
        self.with(id, |endpoint, around| told = endpoint.set_config(config, around));
        self.settle();
        told
    }

    /// Replaces what a device offers, from its next session on.
    pub fn set_device(&mut self, id: EndpointId, device: DeviceSpec) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.spec.device = device;
        }
    }

    /// Whether a front-end is connected.
    #[must_use]
    pub fn is_connected(&self, id: EndpointId) -> bool {
        self.endpoints.get(&id).is_some_and(Endpoint::is_connected)
    }

    /// The number of the process at the other end of a connection, if the kernel says.
    #[must_use]
    pub fn peer_pid(&self, id: EndpointId) -> Option<i32> {
        self.endpoints.get(&id)?.peer_pid()
    }

    fn new_id(&mut self) -> EndpointId {
        let id = EndpointId(self.next_id);
        self.next_id += 1;
        id
    }

    fn each(&mut self, f: impl Fn(&mut Endpoint, &mut Surroundings<'_>)) {
        let ids: Vec<EndpointId> = self.endpoints.keys().copied().collect();
        for id in ids {
            self.with(id, &f);
        }
    }

    /// Lends an endpoint everything it works with; forgets it once it is gone.
    fn with(&mut self, id: EndpointId, f: impl FnOnce(&mut Endpoint, &mut Surroundings<'_>)) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        let limit = &mut self.limit;
        let mut log = |spec: &EndpointSpec, line: &str| {
            let Some(suppressed) = limit.check(spec.name.clone(), Instant::now()) else { return };
            tracing::warn!("{} ({}): {line}{suppressed}", spec.name, spec.path.display());
        };
        let mut around = Surroundings {
            registry: self.poll.registry(),
            helpers: &self.helpers,
            reply: &self.mailbox.reply(),
            events: &mut self.events,
            again: &mut self.again,
            log: &mut log,
        };
        f(endpoint, &mut around);
        if endpoint.is_gone() {
            self.endpoints.remove(&id);
        }
    }

    /// After every call from outside: makes sure that the event loop comes back for what is left, and that the timer runs
    /// only while somebody waits for it.
    fn settle(&mut self) {
        if !self.again.is_empty() {
            let _ = self.waker.wake();
        }
        let wanted = self.endpoints.values().any(Endpoint::wants_tick);
        if wanted != self.timer_runs {
            let every =
                Timespec { tv_sec: 0, tv_nsec: if wanted { RECONNECT_MS as i64 * 1_000_000 } else { 0 } };
            let setting = Itimerspec { it_interval: every, it_value: every };
            match rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting) {
                Ok(_) => self.timer_runs = wanted,
                Err(e) => tracing::error!("reconnect timer: {e}"),
            }
        }
    }
}

/// For the control thread's event loop: readable when [`Sessions::on_ready`] has something to do.
impl AsRawFd for Sessions {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}
