//! Our XDP program: which frames of a device the switch takes, as bytecode assembled here, and how it is attached.
//!
//! Unicast that is not for the host goes to the AF_XDP socket of its receive queue; unicast to the addresses of a map (the device's own, those
//! that the operator lists), broadcast and multicast go on to the kernel. The switch's copy of broadcast and multicast comes from a packet socket
//! (`packet`, decision 0010). Nothing is pinned: program, maps and link go with their descriptors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use avio_proto::config::MacAddr;

use super::sys;

/// Most addresses that stay with the kernel.
const MACS_MAX: u32 = 256;
/// Most receive queues of a device.
pub const QUEUES_MAX: u32 = 128;

const MAP_HASH: u32 = 1;
const MAP_XSK: u32 = 17;
/// `XDP_FLAGS_SKB_MODE`, `XDP_FLAGS_DRV_MODE`.
const FLAG_GENERIC: u32 = 1 << 1;
const FLAG_NATIVE: u32 = 1 << 2;
/// `BPF_F_XDP_HAS_FRAGS` (Linux 5.18): frames in several buffers are welcome, so that a jumbo MTU is no obstacle.
const FLAG_HAS_FRAGS: u32 = 1 << 5;

/// Where the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the network stack, for every driver.
    Generic,
}

/// Why the program is not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Another program is.
    #[error("another XDP program is attached; detach it first (`ip link set dev NAME xdp off`)")]
    Taken,
    /// The kernel or the driver says so.
    #[error("{0}")]
    Refused(io::Error),
}

/// The program, attached while this lives.
#[derive(Debug)]
pub struct Attached {
    sockets: OwnedFd,
    macs: OwnedFd,
    _link: OwnedFd,
}

impl Attached {
    /// Loads the program and attaches it to interface number `ifindex`. Takes no frame before a socket is [added](Self::add). Helper thread.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is attached then.
    pub fn new(ifindex: u32, mode: AttachMode) -> Result<Self, AttachError> {
        let refused = AttachError::Refused;
        let sockets = sys::map_create(MAP_XSK, 4, 4, QUEUES_MAX).map_err(refused)?;
        let macs = sys::map_create(MAP_HASH, 8, 1, MACS_MAX).map_err(refused)?;
        let code = assemble(sockets.as_fd(), macs.as_fd());
        let program =
            sys::prog_load(&code, FLAG_HAS_FRAGS).or_else(|_| sys::prog_load(&code, 0)).map_err(refused)?;
        let flags = match mode {
            AttachMode::Native => FLAG_NATIVE,
            AttachMode::Generic => FLAG_GENERIC,
        };
        let link = sys::link_create(program.as_fd(), ifindex, flags).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EBUSY | libc::EEXIST) => AttachError::Taken,
                _ => AttachError::Refused(error),
            }
        })?;
        Ok(Self { sockets, macs, _link: link })
    }

    /// Unicast to `mac` stays with the kernel.
    ///
    /// # Errors
    /// There are 256 such addresses already.
    pub fn leave(&self, mac: MacAddr) -> io::Result<()> {
        let [a, b, c, d, e, f] = mac.0;
        sys::map_update(self.macs.as_fd(), &[a, b, c, d, e, f, 0, 0], &[1])
    }

    /// Frames of receive queue `queue` go to `socket` from now on.
    ///
    /// # Errors
    /// The queue's number is 128 or more.
    pub fn add(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        sys::map_update(self.sockets.as_fd(), &queue.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes())
    }
}

/// One instruction: opcode, destination and source register, offset, immediate.
pub(super) fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let registers = destination | source << 4;
    u64::from(code)
        | u64::from(registers) << 8
        | u64::from(offset as u16) << 16
        | u64::from(immediate as u32) << 32
}

// Opcodes (Documentation/bpf/standardization/instruction-set.rst).
const LOAD_8: u8 = 0x71;
const LOAD_16: u8 = 0x69;
const LOAD_32: u8 = 0x61;
const STORE_32: u8 = 0x63;
const LOAD_MAP: u8 = 0x18;
const MOVE: u8 = 0xbf;
const MOVE_CONSTANT: u8 = 0xb7;
const ADD_CONSTANT: u8 = 0x07;
const AND_CONSTANT: u8 = 0x57;
const JUMP_GREATER: u8 = 0x2d;
const JUMP_NOT_CONSTANT: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

const MAP_LOOKUP: i32 = 1;
const REDIRECT_MAP: i32 = 51;
const XDP_PASS: i32 = 2;

/// The program. Offsets of jumps count instructions behind the jump; all go to the last two: pass.
fn assemble(sockets: BorrowedFd<'_>, macs: BorrowedFd<'_>) -> Vec<u64> {
    use std::os::fd::AsRawFd;
    let map = |register: u8, fd: BorrowedFd<'_>| [op(LOAD_MAP, register, 1, 0, fd.as_raw_fd()), 0];
    let mut code = vec![
        op(MOVE, 6, 1, 0, 0),
        // The Ethernet header is there, or the kernel may have it.
        op(LOAD_32, 2, 6, 0, 0),
        op(LOAD_32, 3, 6, 4, 0),
        op(MOVE, 4, 2, 0, 0),
        op(ADD_CONSTANT, 4, 0, 0, 14),
        op(JUMP_GREATER, 4, 3, 19, 0),
        // Group addresses: the kernel's, and ours by way of the packet socket.
        op(LOAD_8, 0, 2, 0, 0),
        op(AND_CONSTANT, 0, 0, 0, 1),
        op(JUMP_NOT_CONSTANT, 0, 0, 16, 0),
        // The destination, two zero bytes behind it, is the key.
        op(LOAD_32, 1, 2, 0, 0),
        op(STORE_32, 10, 1, -8, 0),
        op(LOAD_16, 1, 2, 4, 0),
        op(STORE_32, 10, 1, -4, 0),
    ];
    code.extend(map(1, macs));
    code.extend([
        op(MOVE, 2, 10, 0, 0),
        op(ADD_CONSTANT, 2, 0, 0, -8),
        op(CALL, 0, 0, 0, MAP_LOOKUP),
        op(JUMP_NOT_CONSTANT, 0, 0, 6, 0),
    ]);
    code.extend(map(1, sockets));
    code.extend([
        // `rx_queue_index` of `struct xdp_md`; without a socket there, the kernel has it.
        op(LOAD_32, 2, 6, 16, 0),
        op(MOVE_CONSTANT, 3, 0, 0, XDP_PASS),
        op(CALL, 0, 0, 0, REDIRECT_MAP),
        op(EXIT, 0, 0, 0, 0),
        op(MOVE_CONSTANT, 0, 0, 0, XDP_PASS),
        op(EXIT, 0, 0, 0, 0),
    ]);
    code
}
