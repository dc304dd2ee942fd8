//! The switch's copy of broadcast and multicast: the receive ring of a packet socket (packet(7), TPACKET_V2), beside an XDP program.
//!
//! Such frames are rare and looked for at every turn of a worker, so the look is one load and no system call. What is there is copied to memory
//! of ours, for a slot has to go back at once. A frame longer than a slot waits in the socket's queue (PACKET_COPY_THRESH) and is received from there.
//! Owns ring and memory; which frames come is the filter's choice (`packet`).

#![expect(unsafe_code, reason = "memory that the kernel writes (DESIGN section 6)")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering, fence};

use avio_host::frame_memory::FrameMemory;
use avio_proto::mem::RegionHint;
use avio_proto::ring::{Batch, CHAINS_MAX, ChainArena, Collector};
use avio_proto::virtio::net::LEGACY_HEADER_LEN;

use super::packet::{self, SLOT};
use super::sys::{self, Messages, RingMapping};
use crate::port::wire::Intake;

const PACKET_RX_RING: i32 = 5;
const PACKET_COPY_THRESH: i32 = 7;
const PACKET_VERSION: i32 = 10;
const TPACKET_V2: u32 = 1;

const STATUS_KERNEL: u32 = 0;
const STATUS_USER: u32 = 1 << 0;
const STATUS_COPY: u32 = 1 << 1;

/// Bytes of a slot: the kernel's header, an address, the virtio-net header and a frame of 1,900 bytes.
const SLOT_LEN: usize = 2048;
/// Slots: as many frames as an AF_XDP socket's ring has.
const SLOTS: usize = 2048;
/// The kernel allocates so many bytes at once.
const BLOCK_LEN: usize = 64 * 1024;

/// `struct tpacket2_hdr`, as the kernel leaves it in a slot.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    status: u32,
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    sec: u32,
    nsec: u32,
    vlan_tci: u16,
    vlan_tpid: u16,
    padding: [u8; 4],
}

/// See the module.
pub(super) struct GroupIntake {
    fd: OwnedFd,
    ring: RingMapping,
    /// The slot that is filled next.
    head: usize,
    memory: FrameMemory,
    messages: Messages,
    /// Lengths and tags of the last batch, frame by frame.
    taken: Vec<(usize, Option<u16>)>,
}

impl GroupIntake {
    /// Gives the socket, which has PACKET_VNET_HDR and is not bound yet, its ring.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::set_option(fd.as_fd(), libc::SOL_PACKET, PACKET_VERSION, &TPACKET_V2.to_ne_bytes())?;
        sys::set_option(fd.as_fd(), libc::SOL_PACKET, PACKET_COPY_THRESH, &1u32.to_ne_bytes())?;
        // `struct tpacket_req`: block size, blocks, slot size, slots.
        let mut request = [0; 16];
        let len = SLOTS * SLOT_LEN;
        for (i, value) in [BLOCK_LEN, len / BLOCK_LEN, SLOT_LEN, SLOTS].into_iter().enumerate() {
            request[4 * i..4 * i + 4].copy_from_slice(&(value as u32).to_ne_bytes());
        }
        sys::set_option(fd.as_fd(), libc::SOL_PACKET, PACKET_RX_RING, &request)?;
        let ring = RingMapping::new(fd.as_fd(), len, 0)?;
        let memory = FrameMemory::new("avio-receive", CHAINS_MAX * SLOT)?;
        let taken = Vec::with_capacity(CHAINS_MAX);
        Ok(Self { fd, ring, head: 0, memory, messages: Messages::new(1), taken })
    }

    fn status(&self) -> &AtomicU32 {
        let at = self.ring.at(self.head * SLOT_LEN, size_of::<u32>());
        // SAFETY: the word is inside the mapping, which lives as long as `self`, and aligned as the slot is; both sides access it atomically.
        unsafe { AtomicU32::from_ptr(at.cast()) }
    }

    /// Copies the frame of the head's slot to `to` in our memory; its length with the virtio-net header in front, and its tag. No bytes: nothing
    /// that could be a frame.
    fn copy(&mut self, status: u32, to: usize) -> (usize, Option<u16>) {
        let at = self.ring.at(self.head * SLOT_LEN, SLOT_LEN);
        // SAFETY: the slot is inside the mapping and aligned, and the kernel does not write to it before it is given back.
        let header = unsafe { at.cast::<Header>().read() };
        let tag = packet::tag(status, header.vlan_tci, header.vlan_tpid);
        if status & STATUS_COPY != 0 {
            let range = [(to, SLOT)];
            let got = sys::receive_ranges(self.fd.as_fd(), self.memory.mapped(), &range, &mut self.messages);
            let (len, cut) =
                if got.is_ok_and(|count| count == 1) { self.messages.received(0) } else { (0, true) };
            return (if cut { 0 } else { len }, tag);
        }
        let (start, len) = (usize::from(header.mac), header.snaplen as usize);
        let fits = start >= size_of::<Header>() + LEGACY_HEADER_LEN && start + len <= SLOT_LEN;
        if !fits || header.snaplen < header.len {
            return (0, tag);
        }
        let (start, len) = (start - LEGACY_HEADER_LEN, len + LEGACY_HEADER_LEN);
        let from = self.ring.at(self.head * SLOT_LEN + start, len);
        // SAFETY: the bytes are inside the slot, which is ours until it is given back.
        let bytes = unsafe { std::slice::from_raw_parts(from, len) };
        let place = self.memory.table().slice(&mut RegionHint::default(), to as u64, len);
        (place.map_or(0, |place| place.copy_from(bytes)), tag)
    }
}

impl Intake for GroupIntake {
    fn take<'a>(&'a mut self, arena: &'a mut ChainArena, max: usize) -> io::Result<Batch<'a>> {
        self.taken.clear();
        while self.taken.len() < max.min(CHAINS_MAX) {
            let status = self.status().load(Ordering::Acquire);
            if status & STATUS_USER == 0 {
                break;
            }
            let copied = self.copy(status, self.taken.len() * SLOT);
            self.taken.push(copied);
            self.status().store(STATUS_KERNEL, Ordering::Release);
            self.head = (self.head + 1) % SLOTS;
        }
        let mut frames = Collector::new(arena, self.memory.table());
        for (i, &(len, tag)) in self.taken.iter().enumerate() {
            // What could not be had leaves as a frame that is too short for its header.
            frames.push([((i * SLOT) as u64, len as u32)], tag);
        }
        Ok(frames.finish())
    }

    fn is_empty(&mut self) -> bool {
        self.status().load(Ordering::Relaxed) & STATUS_USER == 0
    }

    fn done(&mut self) {}

    fn wait_fd(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    fn arm(&mut self) -> bool {
        // The kernel wakes for each slot that it fills.
        fence(Ordering::SeqCst);
        self.status().load(Ordering::Acquire) & STATUS_USER != 0
    }
}

const _: () = assert!(size_of::<Header>() == 32 && SLOT_LEN.is_multiple_of(align_of::<Header>()));
const _: () = assert!(BLOCK_LEN.is_multiple_of(SLOT_LEN) && (SLOTS * SLOT_LEN).is_multiple_of(BLOCK_LEN));
