//! The sockets that front-ends connect to, and the connecting when the front-end listens.
//!
//! Owns the socket file: it appears under its name only once owner, group and mode are right and it listens, and it goes
//! away with the listener. Control thread; nothing here waits.

use rustix::fs::{FileType, Gid, Mode, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Who may connect to a socket that the daemon listens on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Owner of the socket file; `None`: the daemon's.
    pub uid: Option<u32>,
    /// Group of the socket file; `None`: the daemon's.
    pub gid: Option<u32>,
    /// Permission bits; `None`: 0600, or 0660 if a group is given.
    pub perm: Option<u32>,
}

/// Why a socket cannot be set up: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers on the path.
    #[error("{0}: another process listens on this socket; stop it or choose another path")]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{0}: exists and is not a socket; remove it or choose another path")]
    NotASocket(PathBuf),
    /// The kernel's limit.
    #[error("{0}: longer than the 107 bytes that a Unix socket path may have")]
    TooLong(PathBuf),
    /// Anything else.
    #[error("{path}: {step}: {error}")]
    System {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the system says.
        error: io::Error,
    },
}

/// A listening socket; dropping it removes the file.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of our file: somebody may have put another one in its place since.
    identity: Option<(u64, u64)>,
}

impl Listener {
    pub(super) fn bind(path: &Path, access: Access) -> Result<Self, SocketError> {
        let failed =
            |step| move |error: io::Error| SocketError::System { path: path.to_owned(), step, error };
        let os = |step| move |error: rustix::io::Errno| failed(step)(error.into());
        if path.as_os_str().len() > 107 {
            return Err(SocketError::TooLong(path.to_owned()));
        }
        clear_the_way(path)?;
        // Bound under a name that nobody connects to, made right, and only then moved to its own: whoever sees the
        // socket may use it, and nobody else ever could.
        let name = path.file_name().map(|name| name.len()).unwrap_or(0);
        let mut hidden = format!(".{:x}", std::process::id());
        hidden.truncate(name.max(2));
        let hidden = path.with_file_name(hidden);
        let _ = rustix::fs::unlink(&hidden);
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(os("create the socket"))?;
        let address = SocketAddrUnix::new(&hidden).map_err(|_| SocketError::TooLong(path.to_owned()))?;
        rustix::net::bind(&socket, &address).map_err(os("bind (is the directory there and writable?)"))?;
        let ready = || -> Result<(), SocketError> {
            let perm = access.perm.unwrap_or(if access.gid.is_some() { 0o660 } else { 0o600 });
            // Closed to everybody while it changes hands.
            rustix::fs::chmod(&hidden, Mode::empty()).map_err(os("set the mode"))?;
            if access.uid.is_some() || access.gid.is_some() {
                let (uid, gid) = (access.uid.map(Uid::from_raw), access.gid.map(Gid::from_raw));
                rustix::fs::chown(&hidden, uid, gid).map_err(os("set owner and group"))?;
            }
            rustix::fs::chmod(&hidden, Mode::from_raw_mode(perm)).map_err(os("set the mode"))?;
            // One guest uses it; a few more so that a reconnecting one finds room behind its predecessor.
            rustix::net::listen(&socket, 8).map_err(os("listen"))?;
            rustix::fs::rename(&hidden, path).map_err(os("move the socket to its name"))
        };
        if let Err(error) = ready() {
            let _ = rustix::fs::unlink(&hidden);
            return Err(error);
        }
        let identity = rustix::fs::lstat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
        Ok(Self { socket: socket.into(), path: path.to_owned(), identity })
    }

    /// The next connection; `WouldBlock` if there is none.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        loop {
            match self.socket.accept() {
                Ok((stream, _)) => return Ok(stream),
                // A front-end that gave up while it waited.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let now = rustix::fs::lstat(&self.path).ok().map(|stat| (stat.st_dev, stat.st_ino));
        if now.is_some() && now == self.identity {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

/// Makes sure that nothing alive is on the path. A socket file that nobody listens on is left over from a killed daemon;
/// the rename replaces it.
fn clear_the_way(path: &Path) -> Result<(), SocketError> {
    match rustix::fs::lstat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            Err(SocketError::NotASocket(path.to_owned()))
        }
        Ok(_) => match connect(path) {
            // A full backlog answers "try again": somebody is there.
            Ok(_) => Err(SocketError::InUse(path.to_owned())),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(SocketError::InUse(path.to_owned())),
            Err(_) => Ok(()),
        },
        Err(_) => Ok(()),
    }
}

/// Connects to a front-end that listens; never waits.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}
