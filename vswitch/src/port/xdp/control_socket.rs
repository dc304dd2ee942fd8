//! The packet socket that a member's control protocols (LACP, polling of a failover group) are spoken through.
//!
//! One per member, owned by the control thread, apart from those that workers have: a busy worker cannot lose an aggregate. The device is
//! promiscuous already ([`super::Promiscuous`]), so slow protocol frames arrive without joining their group. Never blocks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::sys;

const PACKET_IGNORE_OUTGOING: i32 = 23;
/// Longest frame that is read; those of the protocols are shorter than the shortest MTU.
const FRAME_MAX: usize = 256;

/// See the module.
#[derive(Debug)]
pub struct ControlSocket(OwnedFd);

impl ControlSocket {
    /// Opens one on interface number `ifindex` for frames of one ethertype.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(ifindex: u32, ethertype: u16) -> io::Result<Self> {
        // Protocol 0 until it is bound: frames of other interfaces never get in.
        let fd = sys::socket(libc::AF_PACKET, 0)?;
        sys::set_option(fd.as_fd(), libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1_i32.to_ne_bytes())?;
        // `struct sockaddr_ll`: family, protocol, interface; the rest is for sending only.
        let mut address = [0; 20];
        address[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
        address[2..4].copy_from_slice(&ethertype.to_be_bytes());
        address[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        sys::bind(fd.as_fd(), &address)?;
        Ok(Self(fd))
    }

    /// The next frame that has arrived; `None`: no more now.
    ///
    /// # Errors
    /// The interface is down or gone (`NETDOWN`); its link events tell when to try again.
    pub fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut frame = [0; FRAME_MAX];
        match recv(&self.0, frame.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((_, len)) => Ok(Some(frame[..len.min(FRAME_MAX)].to_vec())),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a whole frame.
    ///
    /// # Errors
    /// What the system says; the protocols send again by themselves.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(&self.0, frame, SendFlags::DONTWAIT)?;
        Ok(())
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
