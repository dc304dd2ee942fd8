//! One owner for each device: no two daemons of a host have the same network device as an uplink.
//!
//! The mark is the name of a listening socket in the abstract namespace, which is the network namespace's own as the device's number is, and goes with the
//! process however that ends. Nothing is ever sent to it. Any local user could take the name, so whoever has it counts only if it is root's or our own user's
//! (`SO_PEERCRED`: who listened): another's takes the protection away, with a line in the log, and never the device. So does whoever fills the queue of those
//! that want to connect.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::geteuid;

/// How often, and after how long, a name is tried again whose socket does not listen: another daemon is about to, or is about to be gone.
const TRIES: u32 = 10;
const WAIT: Duration = Duration::from_millis(10);

/// A device that is ours as long as this lives.
#[derive(Debug)]
pub(super) struct Owned {
    /// Its name is what counts; `None`: ours without a mark.
    _mark: Option<UnixListener>,
}

impl Owned {
    /// Takes interface number `index` called `name`. Helper thread: may wait for a tenth of a second.
    ///
    /// # Errors
    /// One line: somebody else has it.
    pub(super) fn take(index: u32, name: &str) -> Result<Self, String> {
        let mark = format!("avio-uplink-{index}");
        let fail = |error: io::Error| format!("`{name}` cannot be marked as ours: {error}");
        let address = SocketAddr::from_abstract_name(&mark).map_err(fail)?;
        let mut tries = 0;
        let who = loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => return Ok(Owned { _mark: Some(listener) }),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(fail(error)),
                Err(_) => {}
            }
            tries += 1;
            match listener_of(&mark) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && tries < TRIES => {
                    std::thread::sleep(WAIT);
                }
                who => break who,
            }
        };
        match who {
            Ok(user) if user == 0 || user == geteuid().as_raw() => Err(format!(
                "`{name}` is an uplink of another avio-vswitchd; stop that one, or name another device"
            )),
            Ok(user) => {
                tracing::warn!("{name}: user {user} has the mark `@{mark}`; the device is ours without one");
                Ok(Owned { _mark: None })
            }
            // It bound the name and does not listen, or lets nobody through: no daemon of ours.
            Err(error) => {
                tracing::warn!(
                    "{name}: who has the mark `@{mark}` cannot be told ({error}); the device is ours without one"
                );
                Ok(Owned { _mark: None })
            }
        }
    }
}

/// Which user listens on an abstract name.
fn listener_of(mark: &str) -> io::Result<u32> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new_abstract_name(mark.as_bytes())?)?;
    Ok(socket_peercred(&socket)?.uid.as_raw())
}

#[cfg(test)]
mod tests {
    use rustix::net::bind;

    use super::*;

    // No device has these numbers.
    fn index(test: u32) -> u32 {
        u32::MAX - 2 * std::process::id() - test
    }

    #[test]
    fn a_device_has_one_owner_at_a_time() {
        let first = Owned::take(index(0), "eth1").unwrap();
        let refused = Owned::take(index(0), "eth1").unwrap_err();
        assert!(refused.starts_with("`eth1` is an uplink of another avio-vswitchd"), "{refused}");
        drop(first);
        assert!(Owned::take(index(0), "eth1").is_ok());
    }

    #[test]
    fn who_has_the_name_and_does_not_listen_keeps_nobody_away() {
        // A name belongs to sockets of one type; this one is a stream's, as the mark is.
        let squatter =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let name = format!("avio-uplink-{}", index(1));
        bind(&squatter, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
        assert!(Owned::take(index(1), "eth1").unwrap()._mark.is_none());
        drop(squatter);
        assert!(Owned::take(index(1), "eth1").unwrap()._mark.is_some());
    }
}
