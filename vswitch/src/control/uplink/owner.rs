//! One owner for each device: no two daemons of a host have the same network device as an uplink.
//!
//! The mark is the name of a socket in the abstract namespace, which is the network namespace's own as the device's number is, and goes with the process
//! however that ends. Nothing is ever sent to it.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A device that is ours as long as this lives.
#[derive(Debug)]
pub(super) struct Owned(#[expect(dead_code, reason = "its name is what counts")] UnixDatagram);

impl Owned {
    /// Takes interface number `index` called `name`.
    ///
    /// # Errors
    /// One line: somebody else has it.
    pub(super) fn take(index: u32, name: &str) -> Result<Self, String> {
        let address = SocketAddr::from_abstract_name(format!("avio-uplink-{index}"));
        let taken = address.and_then(|address| UnixDatagram::bind_addr(&address));
        taken.map(Owned).map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                format!(
                    "`{name}` is an uplink of another avio-vswitchd; stop that one, or name another device"
                )
            } else {
                format!("`{name}` cannot be marked as ours: {error}")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_owner_at_a_time() {
        // No device has that number.
        let index = u32::MAX - std::process::id();
        let first = Owned::take(index, "eth1").unwrap();
        let refused = Owned::take(index, "eth1").unwrap_err();
        assert!(refused.starts_with("`eth1` is an uplink of another avio-vswitchd"), "{refused}");
        drop(first);
        assert!(Owned::take(index, "eth1").is_ok());
    }
}
