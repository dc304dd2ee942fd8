//! Packet sockets (packet(7)): the way to the wire where XDP cannot attach, and the switch's copy of broadcast and multicast where it can.
//!
//! One system call per batch each way (recvmmsg, sendmmsg), each frame behind a virtio-net header (PACKET_VNET_HDR): so the kernel's merged frames
//! come whole and ours leave whole, and who can segment does. Why not a TPACKET ring: decision 0010. The copy of broadcast and multicast has one
//! (`group_ring`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use avio_host::frame_memory::FrameMemory;
use avio_proto::config::MacAddr;
use avio_proto::mem::{GuestSlice, RegionHint};
use avio_proto::ring::{Batch, CHAINS_MAX, ChainArena, Collector, Undelivered};
use avio_proto::virtio::net::LEGACY_HEADER_LEN;

use super::group_ring::GroupIntake;
use super::sys::{self, Messages};
use crate::port::wire::{Intake, OUT_PIECES_MAX, OutFrame, Outlet};

const PACKET_ADD_MEMBERSHIP: i32 = 1;
const PACKET_AUXDATA: i32 = 8;
const PACKET_VNET_HDR: i32 = 15;
const PACKET_IGNORE_OUTGOING: i32 = 23;
const PACKET_MR_PROMISC: u16 = 1;
const ETH_P_ALL: u16 = 3;

/// Longest frame with its header: a merged IP packet of 65,535 bytes, Ethernet header and tag.
pub(super) const SLOT: usize = 66 * 1024;
/// Bytes of unsent frames that one batch may have.
const SEND_LEN: usize = 4 << 20;
/// Room in the socket for bursts while the worker is elsewhere.
const SOCKET_BUFFER: i32 = 8 << 20;

/// The tag that the kernel took out of a frame, by what it tells of it (`tp_status`, `tp_vlan_tci`, `tp_vlan_tpid` of packet(7)). A tag that is no customer tag counts as
/// one with the number that IEEE 802.1Q reserves (table 9-2): no port is in that VLAN.
pub(super) fn tag(status: u32, tci: u16, tpid: u16) -> Option<u16> {
    const VLAN_VALID: u32 = 1 << 4;
    const VLAN_TPID_VALID: u32 = 1 << 6;
    const CUSTOMER: u16 = 0x8100;
    const NOBODYS: u16 = 0xfff;
    let is_customer = status & VLAN_TPID_VALID == 0 || tpid == CUSTOMER;
    (status & VLAN_VALID != 0).then_some(if is_customer { tci } else { NOBODYS })
}

/// Which frames of a device a packet socket takes. Frames that the host itself sends are in neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// Broadcast and multicast: beside an XDP program, which hands over the rest.
    Groups,
    /// Everything but unicast to the device's own address, and what is [excepted](PacketFilter::except).
    All,
}

/// Puts an interface into promiscuous mode for as long as it lives: guests' addresses are not in the device's filter.
#[derive(Debug)]
pub struct Promiscuous(OwnedFd);

impl Promiscuous {
    /// # Errors
    /// What the system says.
    pub fn new(ifindex: u32) -> io::Result<Self> {
        let fd = sys::socket(libc::AF_PACKET, 0)?;
        // `struct packet_mreq`: interface, type, no address.
        let mut request = [0; 16];
        request[..4].copy_from_slice(&ifindex.to_ne_bytes());
        request[4..6].copy_from_slice(&PACKET_MR_PROMISC.to_ne_bytes());
        sys::set_option(fd.as_fd(), libc::SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request)?;
        Ok(Self(fd))
    }

    /// The descriptor that holds the membership.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }
}

/// A packet socket's two halves and its filter; without an outlet for [`Capture::Groups`].
pub type OpenPacket = (Box<dyn Intake>, Option<Box<dyn Outlet>>, PacketFilter);

/// The filter of an open packet socket.
#[derive(Debug)]
pub struct PacketFilter {
    fd: OwnedFd,
    capture: Capture,
    excepted: Vec<MacAddr>,
}

impl PacketFilter {
    /// Unicast to `macs` (which are the host's, on other devices) is not taken from now on, in [`Capture::All`].
    ///
    /// # Errors
    /// What the system says; the filter is as it was.
    pub fn except(&mut self, macs: &[MacAddr]) -> io::Result<()> {
        if self.excepted != macs {
            filter(&self.fd, self.capture, macs)?;
            self.excepted = macs.to_vec();
        }
        Ok(())
    }
}

/// Opens a packet socket on interface number `ifindex`.
///
/// # Errors
/// What the system says.
pub fn open_packet(ifindex: u32, capture: Capture) -> io::Result<OpenPacket> {
    // Protocol 0 until the filter is in place.
    let fd = sys::socket(libc::AF_PACKET, 0)?;
    let on = 1i32.to_ne_bytes();
    // Not PACKET_QDISC_BYPASS: that way, a frame that the kernel has to cut for a device without TSO is dropped (`__dev_direct_xmit`).
    for option in [PACKET_VNET_HDR, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING] {
        sys::set_option(fd.as_fd(), libc::SOL_PACKET, option, &on)?;
    }
    filter(&fd, capture, &[])?;
    let filter = PacketFilter { fd: fd.try_clone()?, capture, excepted: Vec::new() };
    // More than the limit of users without privileges; that limit is better than nothing.
    let size = SOCKET_BUFFER.to_ne_bytes();
    let force = sys::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &size);
    force.or_else(|_| sys::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &size))?;
    let _ = sys::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &size);
    // `struct sockaddr_ll`: family, protocol, interface; the rest is the kernel's.
    let mut address = [0; 20];
    address[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&ETH_P_ALL.to_be_bytes());
    address[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    // The ring has to be there before the first frame.
    let ring = match capture {
        Capture::Groups => Some(GroupIntake::new(fd.try_clone()?)?),
        Capture::All => None,
    };
    sys::bind(fd.as_fd(), &address)?;
    if let Some(intake) = ring {
        return Ok((Box::new(intake), None, filter));
    }
    let outlet = PacketOutlet {
        fd: fd.try_clone()?,
        memory: FrameMemory::new("avio-send", SEND_LEN)?,
        messages: Messages::new(CHAINS_MAX),
        ranges: Vec::with_capacity(4 * CHAINS_MAX),
        used: 0,
    };
    let slots = CHAINS_MAX;
    let intake = PacketIntake {
        fd,
        memory: FrameMemory::new("avio-receive", slots * SLOT)?,
        messages: Messages::new(slots),
        ranges: (0..slots).map(|slot| (slot * SLOT, SLOT)).collect(),
    };
    Ok((Box::new(intake), Some(Box::new(outlet)), filter))
}

/// Attaches the classic BPF program that makes the kernel's choice.
fn filter(fd: &OwnedFd, capture: Capture, excepted: &[MacAddr]) -> io::Result<()> {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    /// `SKF_AD_OFF + SKF_AD_PKTTYPE`.
    const PACKET_TYPE: u32 = (-0x1000i32 + 4) as u32;
    const TO_HOST: u32 = 0;
    const OUTGOING: u32 = 4;
    let code: Vec<(u16, u8, u8, u32)> = match capture {
        Capture::Groups => vec![
            (LOAD_WORD, 0, 0, PACKET_TYPE),
            (JUMP_EQUAL, 3, 0, OUTGOING),
            (LOAD_BYTE, 0, 0, 0),
            (JUMP_SET, 0, 1, 1),
            (RETURN, 0, 0, u32::MAX),
            (RETURN, 0, 0, 0),
        ],
        Capture::All => {
            let mut code = vec![
                (LOAD_WORD, 0, 0, PACKET_TYPE),
                (JUMP_EQUAL, 1, 0, OUTGOING),
                (JUMP_EQUAL, 0, 1, TO_HOST),
                (RETURN, 0, 0, 0),
            ];
            for MacAddr([a, b, c, d, e, f]) in excepted {
                code.extend([
                    (LOAD_WORD, 0, 0, 0),
                    (JUMP_EQUAL, 0, 3, u32::from_be_bytes([*a, *b, *c, *d])),
                    (LOAD_HALF, 0, 0, 4),
                    (JUMP_EQUAL, 0, 1, u32::from(u16::from_be_bytes([*e, *f]))),
                    (RETURN, 0, 0, 0),
                ]);
            }
            code.push((RETURN, 0, 0, u32::MAX));
            code
        }
    };
    sys::set_filter(fd.as_fd(), &code)
}

/// The receiving half.
struct PacketIntake {
    fd: OwnedFd,
    memory: FrameMemory,
    messages: Messages,
    ranges: Vec<(usize, usize)>,
}

impl Intake for PacketIntake {
    fn take<'a>(&'a mut self, arena: &'a mut ChainArena, max: usize) -> io::Result<Batch<'a>> {
        let Self { fd, memory, messages, ranges } = self;
        let mut frames = Collector::new(arena, memory.table());
        let wanted = &ranges[..max.min(ranges.len())];
        let count = match sys::receive_ranges(fd.as_fd(), memory.mapped(), wanted, messages) {
            Ok(count) => count,
            // The link went down: told once, and no reason to end.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => 0,
            Err(error) => return Err(error),
        };
        for (i, &(at, _)) in wanted[..count].iter().enumerate() {
            let (len, cut) = messages.received(i);
            // A frame longer than any that IP can make: it leaves as one that is too short for its header.
            let len = if cut { 0 } else { len };
            frames.push([(at as u64, len as u32)], messages.tag(i));
        }
        Ok(frames.finish())
    }

    fn done(&mut self) {}

    fn wait_fd(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    fn arm(&mut self) -> bool {
        // Only the kernel knows; the worker's epoll set tells of what came before as well as of what comes.
        sys::is_readable(self.fd.as_fd())
    }
}

/// The sending half.
struct PacketOutlet {
    fd: OwnedFd,
    memory: FrameMemory,
    messages: Messages,
    ranges: Vec<(usize, usize)>,
    used: usize,
}

impl Outlet for PacketOutlet {
    fn reserve(&mut self, len: usize) -> Result<OutFrame<'_>, Undelivered> {
        if len > SLOT {
            return Err(Undelivered::TooLong);
        }
        if self.used + len > SEND_LEN || self.ranges.len() == self.ranges.capacity() {
            return Err(Undelivered::NoBuffer);
        }
        let at = self.used;
        let table = self.memory.table();
        let piece = table.slice(&mut RegionHint::default(), at as u64, len).ok_or(Undelivered::NoBuffer)?;
        self.ranges.push((at, len));
        // Each frame begins on a line of its own.
        self.used = (at + len).next_multiple_of(64);
        let none = GuestSlice::sub(&piece, 0, 0);
        Ok(std::array::from_fn(|i| if i == 0 { piece } else { none }))
    }

    fn commit(&mut self) -> io::Result<()> {
        let mut from = 0;
        let outcome = loop {
            if from == self.ranges.len() {
                break Ok(());
            }
            let rest = &self.ranges[from..];
            match sys::send_ranges(self.fd.as_fd(), self.memory.mapped(), rest, &mut self.messages) {
                Ok(sent) => from += sent,
                Err(error) => match error.raw_os_error() {
                    // The device is full or down, or does not take this frame: it is lost as on any wire, the others go on.
                    Some(libc::EAGAIN | libc::ENOBUFS | libc::EMSGSIZE | libc::EINVAL) => from += 1,
                    Some(libc::ENETDOWN | libc::ENXIO) => break Ok(()),
                    _ => break Err(error),
                },
            }
        };
        self.rollback();
        outcome
    }

    fn rollback(&mut self) {
        self.ranges.clear();
        self.used = 0;
    }
}

const _: () = assert!(LEGACY_HEADER_LEN == 10 && OUT_PIECES_MAX >= 1, "the header of PACKET_VNET_HDR");
