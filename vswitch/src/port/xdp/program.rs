//! Our XDP program: which frames of a device the switch takes, as bytecode assembled here, and how it is attached.
//!
//! Unicast that is not for the host goes to the AF_XDP socket of its receive queue; unicast to the addresses of a map (the device's own, those
//! that the operator lists), broadcast and multicast go on to the kernel. The switch's copy of broadcast and multicast comes from a packet socket
//! (`packet`, decision 0010). Nothing is pinned: program, maps and link go with their descriptors.
//!
//! A tag that is beside a frame instead of in it (a veth hands over those that a bridge or a VLAN device at its other end sent; cards that take tags out do so, too)
//! is asked for with the kernel's `bpf_xdp_metadata_rx_vlan_tag` and put back into the frame, so that the switch sees every frame as it was on the wire. Only a program that is
//! bound to its device may ask, and none in generic mode.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use avio_proto::config::MacAddr;

use super::assembly::{
    ADD_CONSTANT, ADJUST_HEAD, AND_CONSTANT, Assembly, CALL, EXIT, JUMP, JUMP_GREATER, JUMP_NOT_CONSTANT,
    JUMP_NOT_CONSTANT_32, LOAD_8, LOAD_16, LOAD_32, Label, MAP_LOOKUP, MOVE, MOVE_CONSTANT, REDIRECT_MAP,
    STORE_16, STORE_32, STORE_CONSTANT_32, TO_BIG_ENDIAN, load_map, op,
};
use super::{btf, sys};

/// Most addresses that stay with the kernel.
pub(super) const MACS_MAX: u32 = 256;
/// Most receive queues of a device.
pub const QUEUES_MAX: u32 = 128;

const MAP_HASH: u32 = 1;
const MAP_XSK: u32 = 17;
/// `XDP_FLAGS_SKB_MODE`, `XDP_FLAGS_DRV_MODE`.
const FLAG_GENERIC: u32 = 1 << 1;
const FLAG_NATIVE: u32 = 1 << 2;
/// `BPF_F_XDP_HAS_FRAGS` (Linux 5.18): frames in several buffers are welcome, so that a jumbo MTU is no obstacle.
const FLAG_HAS_FRAGS: u32 = 1 << 5;
/// `BPF_F_XDP_DEV_BOUND_ONLY` (Linux 6.3): for one device alone, whose metadata it may ask for. With frames in several buffers since Linux 6.14.
const FLAG_DEVICE_BOUND: u32 = 1 << 6;

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
    /// What is in the map of addresses.
    left: Vec<MacAddr>,
    vlan_tags: bool,
    hook: Hook,
}

/// Where a program of ours is attached. It goes with the last of these, and at once when its program is dropped.
#[derive(Debug, Clone)]
pub struct Hook {
    link: Arc<Mutex<Option<OwnedFd>>>,
    program: u32,
}

impl Hook {
    /// `link` as it was made just now.
    pub(super) fn new(link: OwnedFd) -> io::Result<Self> {
        let (_, program) = sys::link_info(link.as_fd())?;
        Ok(Self { link: Arc::new(Mutex::new(Some(link))), program })
    }

    /// Whether the program is still there: others may detach it, or put theirs in its place, and no event tells. True if we have taken it away. Helper
    /// thread: waits for whoever changes an interface.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let info = link.as_ref().and_then(|link| sys::link_info(link.as_fd()).ok());
        info.is_none_or(|(ifindex, program)| ifindex != 0 && program == self.program)
    }

    /// Takes the program away, once nobody looks at it.
    pub(super) fn close(&self) {
        drop(self.link.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.hook.close();
    }
}

impl Attached {
    /// Loads the program and attaches it to interface number `ifindex`. Takes no frame before a socket is [added](Self::add). With `vlan_tags` it asks for tags
    /// beside frames if the kernel lets it; the device must say that it can tell. Helper thread.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is attached then.
    pub fn new(ifindex: u32, mode: AttachMode, vlan_tags: bool) -> Result<Self, AttachError> {
        let refused = AttachError::Refused;
        let sockets = sys::map_create(MAP_XSK, 4, 4, QUEUES_MAX).map_err(refused)?;
        let macs = sys::map_create(MAP_HASH, 8, 1, MACS_MAX).map_err(refused)?;
        let flags = match mode {
            AttachMode::Native => FLAG_NATIVE,
            AttachMode::Generic => FLAG_GENERIC,
        };
        // From the best to the plainest: what an older kernel does not know is refused, when it is loaded or when it is attached.
        let function = btf::rx_vlan_tag().filter(|_| vlan_tags && mode == AttachMode::Native);
        let bound = function.map(|function| [FLAG_HAS_FRAGS, 0].map(|frags| (Some(function), frags)));
        let plain = [(None, FLAG_HAS_FRAGS), (None, 0)];
        let mut outcome = Err(AttachError::Refused(io::ErrorKind::Unsupported.into()));
        for (function, frags) in bound.into_iter().flatten().chain(plain) {
            let code = assemble(sockets.as_fd(), macs.as_fd(), function);
            let bound_to = function.map(|_| ifindex);
            let load_flags = frags | if bound_to.is_some() { FLAG_DEVICE_BOUND } else { 0 };
            let attached = sys::prog_load(&code, load_flags, bound_to.unwrap_or(0))
                .and_then(|program| sys::link_create(program.as_fd(), ifindex, sys::ATTACH_XDP, flags))
                .and_then(Hook::new);
            match attached {
                Ok(hook) => {
                    let vlan_tags = function.is_some();
                    return Ok(Self { sockets, macs, left: Vec::new(), vlan_tags, hook });
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
                    return Err(AttachError::Taken);
                }
                Err(error) => outcome = Err(AttachError::Refused(error)),
            }
        }
        outcome
    }

    /// Where it is attached.
    #[must_use]
    pub fn hook(&self) -> &Hook {
        &self.hook
    }

    /// Whether tags beside frames are asked for.
    #[must_use]
    pub fn sees_vlan_tags(&self) -> bool {
        self.vlan_tags
    }

    /// Unicast to `macs` stays with the kernel, and to none that was listed before and is not any more.
    ///
    /// # Errors
    /// The first address for which there is no room: 256 are there already.
    pub fn leave(&mut self, macs: &[MacAddr]) -> Result<(), (MacAddr, io::Error)> {
        let map = self.macs.as_fd();
        self.left.retain(|mac| macs.contains(mac) || sys::map_delete(map, &key(*mac)).is_err());
        for &mac in macs {
            if !self.left.contains(&mac) {
                sys::map_update(map, &key(mac), &[1]).map_err(|error| (mac, error))?;
                self.left.push(mac);
            }
        }
        Ok(())
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

/// An address as the map has it.
pub(super) fn key(mac: MacAddr) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.0;
    [a, b, c, d, e, f, 0, 0]
}

/// In the source register of a call: of a kernel function, by its number.
const KERNEL_FUNCTION: u8 = 2;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

/// The program; with `rx_vlan_tag`, the number of that kernel function, it puts tags back.
fn assemble(sockets: BorrowedFd<'_>, macs: BorrowedFd<'_>, rx_vlan_tag: Option<i32>) -> Vec<u64> {
    let mut program = Assembly::default();
    program.put(&[
        op(MOVE, 6, 1, 0, 0),
        // What becomes of a frame for which there is no socket: the kernel has it.
        op(MOVE_CONSTANT, 7, 0, 0, XDP_PASS),
        // The Ethernet header is there, or the kernel may have it.
        op(LOAD_32, 2, 6, 0, 0),
        op(LOAD_32, 3, 6, 4, 0),
        op(MOVE, 4, 2, 0, 0),
        op(ADD_CONSTANT, 4, 0, 0, 14),
    ]);
    program.jump(op(JUMP_GREATER, 4, 3, 0, 0), Label::Pass);
    // Group addresses: the kernel's, and ours by way of the packet socket.
    program.put(&[op(LOAD_8, 0, 2, 0, 0), op(AND_CONSTANT, 0, 0, 0, 1)]);
    program.jump(op(JUMP_NOT_CONSTANT, 0, 0, 0, 0), Label::Pass);
    program.put(&[
        // The destination, two zero bytes behind it, is the key.
        op(LOAD_32, 1, 2, 0, 0),
        op(STORE_32, 10, 1, -8, 0),
        op(LOAD_16, 1, 2, 4, 0),
        op(STORE_32, 10, 1, -4, 0),
    ]);
    program.put(&load_map(1, macs));
    program.put(&[op(MOVE, 2, 10, 0, 0), op(ADD_CONSTANT, 2, 0, 0, -8), op(CALL, 0, 0, 0, MAP_LOOKUP)]);
    program.jump(op(JUMP_NOT_CONSTANT, 0, 0, 0, 0), Label::Pass);
    if let Some(function) = rx_vlan_tag {
        put_tag_back(&mut program, function);
    }
    program.label(Label::Redirect);
    program.put(&load_map(1, sockets));
    program.put(&[
        // `rx_queue_index` of `struct xdp_md`.
        op(LOAD_32, 2, 6, 16, 0),
        op(MOVE, 3, 7, 0, 0),
        op(CALL, 0, 0, 0, REDIRECT_MAP),
        op(EXIT, 0, 0, 0, 0),
    ]);
    program.label(Label::Pass);
    program.put(&[op(MOVE_CONSTANT, 7, 0, 0, XDP_PASS)]);
    program.label(Label::End);
    program.put(&[op(MOVE, 0, 7, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program.finish()
}

/// The part that asks for a tag beside the frame and moves the addresses four bytes forward to make room for it.
fn put_tag_back(program: &mut Assembly, function: i32) {
    program.put(&[
        // Its type as on the wire, and its control information in the processor's order.
        op(STORE_CONSTANT_32, 10, 0, -16, 0),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE, 2, 10, 0, 0),
        op(ADD_CONSTANT, 2, 0, 0, -16),
        op(MOVE, 3, 10, 0, 0),
        op(ADD_CONSTANT, 3, 0, 0, -14),
        op(CALL, 0, KERNEL_FUNCTION, 0, function),
    ]);
    // The result is an `int`: below 0, there is none.
    program.jump(op(JUMP_NOT_CONSTANT_32, 0, 0, 0, 0), Label::Redirect);
    program.put(&[
        // From here on the kernel must not have the frame: it would have its tag twice.
        op(MOVE_CONSTANT, 7, 0, 0, XDP_DROP),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE_CONSTANT, 2, 0, 0, -4),
        op(CALL, 0, 0, 0, ADJUST_HEAD),
    ]);
    program.jump(op(JUMP_NOT_CONSTANT, 0, 0, 0, 0), Label::End);
    program.put(&[
        op(LOAD_32, 2, 6, 0, 0),
        op(LOAD_32, 3, 6, 4, 0),
        op(MOVE, 4, 2, 0, 0),
        op(ADD_CONSTANT, 4, 0, 0, 18),
    ]);
    program.jump(op(JUMP_GREATER, 4, 3, 0, 0), Label::End);
    for at in [0, 4, 8] {
        program.put(&[op(LOAD_32, 1, 2, at + 4, 0), op(STORE_32, 2, 1, at, 0)]);
    }
    program.put(&[
        op(LOAD_16, 1, 10, -16, 0),
        op(STORE_16, 2, 1, 12, 0),
        op(LOAD_16, 1, 10, -14, 0),
        op(TO_BIG_ENDIAN, 1, 0, 0, 16),
        op(STORE_16, 2, 1, 14, 0),
    ]);
    program.jump(op(JUMP, 0, 0, 0, 0), Label::Redirect);
}
