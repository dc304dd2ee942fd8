//! One configured socket: its listener or its reconnecting, and the session that is on it, if any.
//!
//! Owns the session's socket, machine, mappings and channel; carries out the machine's actions. `Sessions` calls it when
//! something is ready; it never waits and never handles more than a budget of messages in one go.

use super::listener::{self, Access, Listener, SocketError};
use super::mapping::SharedMapping;
use super::owner::{UnknownAccount, gid_of, uid_of};
use super::stream::{Received, Stream, StreamError, send};
use super::{Answer, EndpointId, Outcome};
use crate::blocking::{Helpers, Reply, answered};
use crate::notify::{kick_fd, signal_fd};
use crate::wait::tell;
use avio_proto::config::{SocketPerm, SocketRole};
use avio_proto::mem::Mapping;
use avio_proto::vhost_user::backend::{Action, Backend, DeviceSpec, Event, RingStart};
use avio_proto::vhost_user::{Message, Request};
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long a socket takes no session after one whose front-end held a thread of ours up: a quarter second in a minute is
/// what it can take from the others.
const HELD_FOR: Duration = Duration::from_secs(60);
/// What is said about it.
pub(super) const HELD_US: &str = "the front-end made a notification block";
/// Messages handled for one session before the others get their turn. A whole start of a 4-pair device fits.
const MESSAGES_PER_TURN: usize = 64;

/// Events that may wait for the device before no more messages are read: a front-end writes faster than a device listens.
const EVENTS_WAITING_MAX: usize = 1024;

/// Which side of the socket the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The daemon listens.
    Server(Access),
    /// The daemon connects, and connects again when the connection has ended.
    Client,
}

impl Role {
    /// As a guest's definition has it.
    ///
    /// # Errors
    /// [`UnknownAccount`]: `owner` or `group` names nobody.
    pub fn configured(
        role: SocketRole,
        owner: Option<&str>,
        group: Option<&str>,
        perm: Option<SocketPerm>,
    ) -> Result<Self, UnknownAccount> {
        Ok(match role {
            SocketRole::Client => Self::Client,
            SocketRole::Server => Self::Server(Access {
                uid: owner.map(uid_of).transpose()?,
                gid: group.map(gid_of).transpose()?,
                perm: perm.map(|perm| perm.mode()),
            }),
        })
    }
}

/// One vhost-user socket and the device behind it.
#[derive(Clone, Debug)]
pub struct EndpointSpec {
    /// For log lines, such as `guest1 net-0-5`.
    pub name: String,
    /// The socket's path.
    pub path: PathBuf,
    /// Which side the daemon is.
    pub role: Role,
    /// What the front-end sees.
    pub device: DeviceSpec,
}

/// What an endpoint needs from `Sessions` to do its work.
pub(super) struct Surroundings<'a> {
    pub(super) registry: &'a Registry,
    pub(super) helpers: &'a Helpers,
    pub(super) reply: &'a Reply<Answer>,
    pub(super) events: &'a mut VecDeque<(EndpointId, Event)>,
    /// Endpoints that want another turn.
    pub(super) again: &'a mut Vec<EndpointId>,
    pub(super) log: &'a mut dyn FnMut(&EndpointSpec, &str),
}

/// The connection and the machine behind it.
struct Session {
    /// Tells answers for this session from those for its predecessor.
    serial: u64,
    /// `None` once the session is closing.
    stream: Option<Stream>,
    backend: Backend,
    channel: Option<OwnedFd>,
    mappings: Vec<Weak<SharedMapping>>,
    /// Whether the socket may hold more: edge-triggered readiness is told only once.
    readable: bool,
}

pub(super) struct Endpoint {
    pub(super) id: EndpointId,
    pub(super) spec: EndpointSpec,
    listener: Option<Listener>,
    /// Whether the listener may hold a connection.
    acceptable: bool,
    session: Option<Session>,
    serials: u64,
    /// To be dropped once its session has ended.
    pub(super) removed: bool,
    /// Takes no session before.
    held_until: Option<Instant>,
}

impl Endpoint {
    pub(super) fn new(id: EndpointId, spec: EndpointSpec, registry: &Registry) -> Result<Self, SocketError> {
        let listener = match spec.role {
            Role::Server(access) => Some(Listener::bind(&spec.path, access)?),
            Role::Client => None,
        };
        if let Some(listener) = &listener {
            let register = |error| SocketError::System { path: spec.path.clone(), step: "watch", error };
            registry
                .register(&mut SourceFd(&listener.as_raw_fd()), id.listener_token(), Interest::READABLE)
                .map_err(register)?;
        }
        Ok(Self {
            id,
            spec,
            listener,
            acceptable: true,
            session: None,
            serials: 0,
            removed: false,
            held_until: None,
        })
    }

    /// An endpoint around a connection that exists already.
    pub(super) fn connected(id: EndpointId, spec: EndpointSpec) -> Self {
        Self {
            id,
            spec,
            listener: None,
            acceptable: false,
            session: None,
            serials: 0,
            removed: false,
            held_until: None,
        }
    }

    /// Whether it waits for a tick: to connect, or to accept again after a failure.
    pub(super) fn wants_tick(&self) -> bool {
        self.session.is_none()
            && !self.removed
            && (self.spec.role == Role::Client || self.listener.is_some() && self.acceptable)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.removed && self.session.is_none()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.session.as_ref().is_some_and(|s| s.stream.is_some())
    }

    pub(super) fn peer_pid(&self) -> Option<i32> {
        self.session.as_ref()?.stream.as_ref()?.peer_pid()
    }

    pub(super) fn on_listener(&mut self, around: &mut Surroundings<'_>) {
        self.acceptable = true;
        self.find_peer(around);
    }

    /// Takes the next connection, or makes one, if there is no session.
    pub(super) fn find_peer(&mut self, around: &mut Surroundings<'_>) {
        if self.session.is_some() || self.removed || self.held_until.is_some_and(|end| Instant::now() < end) {
            return;
        }
        let found = match &self.listener {
            Some(listener) if self.acceptable => listener.accept(),
            None if self.spec.role == Role::Client => listener::connect(&self.spec.path),
            _ => return,
        };
        match found {
            Ok(stream) => self.attach(stream, around),
            Err(e) if self.listener.is_some() && e.kind() == io::ErrorKind::WouldBlock => {
                self.acceptable = false;
            }
            // A peer that does not listen yet is the normal case: tried again at the next tick, in silence.
            Err(_) if self.listener.is_none() => {}
            Err(e) => (around.log)(&self.spec, &format!("accepting a connection: {e}; trying again")),
        }
    }

    pub(super) fn attach(&mut self, stream: UnixStream, around: &mut Surroundings<'_>) {
        self.serials += 1;
        let stream = match Stream::new(stream) {
            Ok(stream) => stream,
            Err(e) => return (around.log)(&self.spec, &format!("connection: {e}")),
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        let token = self.id.stream_token();
        if let Err(e) = around.registry.register(&mut SourceFd(&stream.as_raw_fd()), token, interest) {
            return (around.log)(&self.spec, &format!("connection: {e}"));
        }
        self.session = Some(Session {
            serial: self.serials,
            stream: Some(stream),
            backend: Backend::new(self.spec.device.clone()),
            channel: None,
            mappings: Vec::new(),
            readable: true,
        });
        self.pump(around);
    }

    pub(super) fn on_stream(&mut self, around: &mut Surroundings<'_>) {
        if let Some(session) = &mut self.session {
            session.readable = true;
        }
        self.pump(around);
    }

    /// A helper's answer.
    pub(super) fn on_answer(&mut self, answer: Answer, around: &mut Surroundings<'_>) {
        let Some(session) = self.session.as_mut().filter(|s| s.serial == answer.serial) else { return };
        let outcome = match answer.outcome {
            Outcome::Mapped(result) => {
                let result = result.map(|mapping| {
                    session.mappings.retain(|m| m.strong_count() > 0);
                    session.mappings.push(Arc::downgrade(&mapping));
                    mapping as Arc<dyn Mapping>
                });
                session.backend.mapped(answer.ticket, result)
            }
            Outcome::Created(result) => session.backend.created(answer.ticket, result),
        };
        if let Err(error) = outcome {
            self.fail(&error.to_string(), around);
        }
        self.pump(around);
    }

    pub(super) fn ring_stopped(&mut self, index: u16, base: u32, around: &mut Surroundings<'_>) {
        let Some(session) = &mut self.session else { return };
        if let Err(error) = session.backend.ring_stopped(index, base) {
            self.fail(&error.to_string(), around);
        }
        self.pump(around);
    }

    pub(super) fn set_config(&mut self, config: Vec<u8>, around: &mut Surroundings<'_>) -> bool {
        self.spec.device.config.clone_from(&config);
        let told = self.session.as_mut().is_some_and(|s| s.backend.set_config(config));
        self.pump(around);
        told
    }

    /// Ends the session if its memory has failed.
    pub(super) fn check_memory(&mut self, around: &mut Surroundings<'_>) {
        let Some(session) = &mut self.session else { return };
        let failed = session.mappings.iter().filter_map(Weak::upgrade).any(|m| m.has_failed());
        if failed && session.stream.is_some() {
            self.fail("the shared memory was truncated while in use", around);
            self.pump(around);
        }
    }

    /// Ends the session; the device still gets its RingStops and Disconnected.
    pub(super) fn disconnect(&mut self, around: &mut Surroundings<'_>) {
        self.close(around);
        self.pump(around);
    }

    pub(super) fn remove(&mut self, around: &mut Surroundings<'_>) {
        self.removed = true;
        if let Some(listener) = self.listener.take() {
            let _ = around.registry.deregister(&mut SourceFd(&listener.as_raw_fd()));
        }
        self.disconnect(around);
    }

    /// Ends the session and takes no other for [`HELD_FOR`].
    pub(super) fn hold(&mut self, reason: &str, around: &mut Surroundings<'_>) {
        self.held_until = Some(Instant::now() + HELD_FOR);
        self.fail(&format!("{reason}; no other for {} s", HELD_FOR.as_secs()), around);
        self.pump(around);
    }

    fn fail(&mut self, reason: &str, around: &mut Surroundings<'_>) {
        (around.log)(&self.spec, &format!("session ended: {reason}"));
        self.close(around);
    }

    fn close(&mut self, around: &mut Surroundings<'_>) {
        let Some(session) = &mut self.session else { return };
        if let Some(mut stream) = session.stream.take() {
            // A refusal may still be waiting to go out.
            let _ = stream.flush();
            let _ = around.registry.deregister(&mut SourceFd(&stream.as_raw_fd()));
        }
        session.backend.close();
    }

    /// Carries on after a turn that ended early.
    pub(super) fn on_again(&mut self, around: &mut Surroundings<'_>) {
        if self.session.is_some() { self.pump(around) } else { self.find_peer(around) }
    }

    /// Carries out actions and handles messages until there is nothing to do or the budget is used up; in that case, and when
    /// the session has ended, asks for another turn.
    fn pump(&mut self, around: &mut Surroundings<'_>) {
        for _ in 0..MESSAGES_PER_TURN {
            self.act(around);
            let Some(session) = &mut self.session else { return };
            if session.backend.is_closed() {
                self.session = None;
                // The next front-end may be waiting already. A peer that we connect to is asked at the next tick: it may
                // be one that hangs up on everybody.
                if self.listener.is_some() {
                    around.again.push(self.id);
                }
                return;
            }
            let Some(stream) = &mut session.stream else { return };
            match stream.flush() {
                Ok(true) => {}
                // It must read its replies before it is heard again.
                Ok(false) => return,
                Err(_) => {
                    self.close(around);
                    continue;
                }
            }
            if !session.readable || !session.backend.wants_message() {
                return;
            }
            if around.events.len() >= EVENTS_WAITING_MAX {
                break;
            }
            match stream.receive() {
                Ok(Received::Message(mut message)) => {
                    let vetted = vet(&mut message);
                    if let Err(reason) = vetted {
                        self.fail(&reason, around);
                    } else if let Err(error) = session.backend.receive(message) {
                        // What it did before the error still counts.
                        self.act(around);
                        self.fail(&error.to_string(), around);
                    }
                }
                Ok(Received::Later) => {
                    session.readable = false;
                    return;
                }
                Ok(Received::Gone { midway: false }) => self.close(around),
                Ok(Received::Gone { midway: true }) => {
                    self.fail("the front-end went away in the middle of a message", around);
                }
                Err(StreamError::Session(error)) => self.fail(&error.to_string(), around),
                Err(error) => self.fail(&error.to_string(), around),
            }
        }
        around.again.push(self.id);
    }

    fn act(&mut self, around: &mut Surroundings<'_>) {
        while let Some(session) = &mut self.session {
            let Some(action) = session.backend.next_action() else { break };
            match action {
                Action::Send(message) => {
                    if let Some(stream) = &mut session.stream {
                        stream.queue(message);
                    }
                }
                Action::OpenChannel(fd) => session.channel = Some(fd),
                Action::SendChannel(message) => {
                    // Lost if the front-end does not read: a later change will tell it again.
                    if let Some(channel) = &session.channel {
                        let _ = send(channel.as_fd(), &message.bytes, &[]);
                    }
                }
                Action::Map(request) => {
                    let (helpers, reply) = (around.helpers.clone(), around.reply.clone());
                    let (id, serial, ticket) = (self.id, session.serial, request.ticket);
                    around.helpers.run(move || {
                        let result = answered(|| SharedMapping::map(&request, Some(helpers)).map(Arc::new));
                        reply.send(Answer { id, serial, ticket, outcome: Outcome::Mapped(result) });
                    });
                }
                Action::Create { ticket, len } => {
                    let reply = around.reply.clone();
                    let (id, serial) = (self.id, session.serial);
                    around.helpers.run(move || {
                        let outcome = Outcome::Created(answered(|| memory_file(len)));
                        reply.send(Answer { id, serial, ticket, outcome });
                    });
                }
                Action::Event(event) => {
                    let nudged = if let Event::RingStart(start) = &event { nudge(start) } else { true };
                    around.events.push_back((self.id, event));
                    if !nudged {
                        self.held_until = Some(Instant::now() + HELD_FOR);
                        self.fail(HELD_US, around);
                    }
                }
                Action::Refused(error) => (around.log)(&self.spec, &error.to_string()),
            }
        }
    }
}

/// Checks the descriptors of a ring, before anything keeps them; those that are written become non-blocking.
fn vet(message: &mut Message) -> Result<(), String> {
    let request = message.request;
    let check = match request {
        Request::SET_VRING_KICK => kick_fd,
        Request::SET_VRING_CALL | Request::SET_VRING_ERR => signal_fd,
        _ => return Ok(()),
    };
    let fds = std::mem::take(&mut message.fds).into_iter().map(check).collect::<io::Result<_>>();
    message.fds = fds.map_err(|e| format!("{request}: {e}"))?;
    Ok(())
}

/// A ring that goes on where an earlier session stopped: its last notification may have been lost with that session, so the
/// guest is told to look. One interrupt too many does no harm. `false`: the front-end held the writer.
fn nudge(start: &RingStart) -> bool {
    match &start.call {
        Some(call) if !matches!(start.setup.base, 0 | 0x8000_8000) => tell(call),
        _ => true,
    }
}

/// A zeroed file in memory for an in-flight region.
fn memory_file(len: u64) -> Result<OwnedFd, String> {
    let file = rustix::fs::memfd_create("avio-inflight", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| format!("memfd: {e}"))?;
    rustix::fs::ftruncate(&file, len).map_err(|e| format!("memfd of {len} bytes: {e}"))?;
    Ok(file)
}
