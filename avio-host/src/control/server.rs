//! The listening socket, who may use it, and the clients.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use serde_json::json;

use super::connection::{Connection, Fate};
use super::dispatch::{Interface, service_error};

/// Most clients at a time: operators and collectors, not guests.
pub const CONNECTIONS_MAX: usize = 64;
/// Tokens that a server takes from the one that it is given.
pub const TOKENS: usize = 1 + CONNECTIONS_MAX;

/// Who may use a control socket, beside root and the user of the daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// Members of this group.
    pub group: Option<u32>,
}

impl Access {
    /// Permission bits of the socket. connect(2) needs write permission, so the kernel decides by them first.
    fn mode(self) -> u32 {
        if self.group.is_some() { 0o660 } else { 0o600 }
    }

    /// Whether a client with that user may call. Its group membership cannot be read from its credentials (they carry the
    /// primary group only), so for a group the kernel's own check at connect(2) is the one that counts.
    fn admits(self, uid: u32) -> bool {
        uid == 0 || uid == rustix::process::geteuid().as_raw() || self.group.is_some()
    }
}

/// Who calls (SO_PEERCRED, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user at connect(2).
    pub uid: u32,
    /// Its process.
    pub pid: i32,
    /// Whether its call is made again after [`VarlinkError::NotYet`](super::VarlinkError::NotYet).
    pub again: bool,
}

/// Why a control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error("{}: another daemon listens here; stop it, or give this one its own --run-dir", .0.display())]
    Taken(PathBuf),
    /// Something that is not a socket is in the way.
    #[error("{}: is not a socket; remove it, or give another --run-dir", .0.display())]
    NotASocket(PathBuf),
    /// The system said no.
    #[error("{}: cannot listen: {source}; the run directory must exist and be writable (--run-dir)", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A control socket and its clients. Lives on the control thread.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    access: Access,
    first: usize,
    clients: BTreeMap<usize, Connection<UnixStream>>,
}

impl Server {
    /// Listens at `path` and registers with `registry`, using the [`TOKENS`] tokens from `first`. A socket that a dead
    /// daemon left behind is replaced.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path, access: Access, registry: &Registry, first: Token) -> Result<Server, BindError> {
        let io = |source| BindError::Io { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(BindError::NotASocket(path.to_owned()));
            }
            Ok(_) if StdUnixStream::connect(path).is_ok() => return Err(BindError::Taken(path.to_owned())),
            Ok(_) => fs::remove_file(path).map_err(io)?,
        }
        let mut listener = UnixListener::bind(path).map_err(io)?;
        // Whoever connects before this is held to `admits` all the same.
        let prepared = fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .and_then(|()| match access.group {
                Some(group) => std::os::unix::fs::chown(path, None, Some(group)),
                None => Ok(()),
            })
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(access.mode())))
            .and_then(|()| registry.register(&mut listener, first, Interest::READABLE));
        if let Err(error) = prepared {
            let _ = fs::remove_file(path);
            return Err(io(error));
        }
        Ok(Server { listener, path: path.to_owned(), access, first: first.0, clients: BTreeMap::new() })
    }

    /// Whether an event with `token` is this server's.
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        (self.first..self.first + TOKENS).contains(&token.0)
    }

    /// Handles an event that it [`owns`](Server::owns): takes new clients, answers calls with `interface`.
    pub fn ready(&mut self, token: Token, registry: &Registry, interface: &mut dyn Interface) {
        if token.0 == self.first {
            self.accept(registry, interface);
        } else {
            self.drive(token.0, registry, interface);
        }
    }

    /// Makes every call again that was answered with [`VarlinkError::NotYet`](super::VarlinkError::NotYet).
    pub fn resume(&mut self, registry: &Registry, interface: &mut dyn Interface) {
        let tokens: Vec<usize> = self.clients.keys().copied().collect();
        for token in tokens {
            self.with(token, registry, |client| client.resume(interface));
        }
    }

    fn drive(&mut self, token: usize, registry: &Registry, interface: &mut dyn Interface) {
        self.with(token, registry, |client| client.drive(interface));
    }

    fn with(
        &mut self,
        token: usize,
        registry: &Registry,
        f: impl FnOnce(&mut Connection<UnixStream>) -> Fate,
    ) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        if f(client) == Fate::Ends {
            let _ = registry.deregister(client.stream());
            self.clients.remove(&token);
        }
    }

    fn accept(&mut self, registry: &Registry, interface: &mut dyn Interface) {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!("{}: cannot accept a client: {error}", self.path.display());
                    return;
                }
            };
            let peer = match rustix::net::sockopt::socket_peercred(&stream) {
                Ok(credentials) => Peer {
                    uid: credentials.uid.as_raw(),
                    pid: credentials.pid.as_raw_nonzero().get(),
                    again: false,
                },
                Err(_) => continue,
            };
            if !self.access.admits(peer.uid) {
                // One reply into an empty socket buffer; if even that fails the client sees the end.
                if let Ok(mut reply) = serde_json::to_vec(&service_error("PermissionDenied", json!({}))) {
                    reply.push(0);
                    let _ = stream.write(&reply);
                }
                continue;
            }
            let free = (self.first + 1..self.first + TOKENS).find(|token| !self.clients.contains_key(token));
            let Some(token) = free else {
                tracing::warn!("{}: refused a client; {CONNECTIONS_MAX} are connected", self.path.display());
                continue;
            };
            let interest = Interest::READABLE | Interest::WRITABLE;
            if registry.register(&mut stream, Token(token), interest).is_err() {
                continue;
            }
            self.clients.insert(token, Connection::new(stream, peer));
            // Its first call may have come with it.
            self.drive(token, registry, interface);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
