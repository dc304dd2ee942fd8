//! The rings of one TAP port, and its pump half: frames between them and the kernel.
//!
//! Owns the driver side of both rings, as a guest's driver would, and the buffers. The pump calls a [`Duct`] in turns: it stages
//! reads and writes, the pump submits them for all ducts with one call, and the duct takes the completions. The device side of the
//! rings goes to the workers ([`Rings`]).

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use avio_host::wait::EventFd;
use avio_proto::ring::{DeviceRing, DriverLayout, DriverRing, RingSetup, Used};
use avio_proto::virtio::features as virtio;
use avio_proto::virtio::net::HEADER_LEN;

use super::memory::TapMemory;
use super::open::Opened;
use super::uring::Uring;
use crate::packet::{ETHERNET_LEN, TAG_LEN};
use crate::port::guest::{RxQueue, TxQueue};
use crate::table::PortIndex;

/// Frames on their way to the kernel: two full batches of a worker.
const WRITES: u16 = 128;
/// Frames on their way from the kernel: one full batch.
const READS: u16 = 64;
/// Longest frame that segmentation offload makes: 64 KiB of IP packet, Ethernet header and tag.
const OFFLOADED_LEN_MAX: usize = 65_535 + ETHERNET_LEN + TAG_LEN;
/// Low bits of a token: what it is about. The rest is the duct's number, and the slot or chain.
const READ: u64 = 0;
const WRITE: u64 = 1;

/// The device side of a port's rings, for control to hand to the fabric.
pub struct Rings {
    /// The switch delivers here.
    pub rx: Arc<RxQueue>,
    /// The switch takes frames from here.
    pub tx: TxQueue,
}

/// The pump half of a TAP port.
pub struct Duct {
    file: Arc<OwnedFd>,
    memory: Arc<TapMemory>,
    /// Switch to kernel.
    to_kernel: DriverRing,
    /// Kernel to switch.
    to_switch: DriverRing,
    /// What the worker of `to_switch` waits for.
    kick: EventFd,
    write_base: u64,
    read_base: u64,
    stride: u64,
    buffer_len: usize,
    /// Slots that no frame is in.
    free: VecDeque<u16>,
    /// Slot of the chain that `to_switch` knows by this number.
    slot_of: Vec<u16>,
    /// Buffer of the chain that `to_kernel` knows by this number.
    buffer_of: Vec<u16>,
    used: Vec<Used>,
    /// Reads in the kernel: one chain, each begins when the one before has a frame.
    reads: usize,
    /// Writes in the kernel.
    writes: usize,
    /// It moves nothing any more: the kernel lost the network device, or a ring broke (why, until that is told), or it is let go.
    lost: Option<String>,
}

/// Memory, rings and buffers for a TAP that was opened; `wake` is signalled by workers when the pump sleeps.
///
/// # Errors
/// No memory or descriptors left.
pub fn make_rings(opened: Opened, index: PortIndex, wake: &EventFd) -> io::Result<(Duct, Rings)> {
    let Opened { file, features, mtu, .. } = opened;
    let offloaded = features & virtio::NET_GUEST_CSUM != 0;
    let longest = if offloaded { OFFLOADED_LEN_MAX } else { usize::from(mtu) + ETHERNET_LEN + TAG_LEN };
    let buffer_len = HEADER_LEN + longest;
    // An odd number of cache lines, so that the buffers' first lines spread over the cache's sets.
    let stride = ((buffer_len.div_ceil(64) | 1) * 64) as u64;
    let ring_len = |size| DriverLayout::bytes_needed(size, features);
    let len = ring_len(WRITES) + ring_len(READS) + stride * u64::from(WRITES + READS) + 4 * 4096;
    let mut memory = TapMemory::new(len as usize)?;
    let broken = |error| io::Error::other(format!("ring: {error}"));
    let place = |memory: &mut TapMemory, size| -> io::Result<(DriverRing, DeviceRing)> {
        let layout = DriverLayout::at(memory.take(ring_len(size))?, size, features);
        let setup = RingSetup {
            size,
            desc_user: memory.user_addr(layout.desc),
            driver_user: memory.user_addr(layout.driver),
            device_user: memory.user_addr(layout.device),
            features,
            base: 0,
            used_log: None,
        };
        let driver = DriverRing::new(memory.table().clone(), &layout, features).map_err(broken)?;
        Ok((driver, DeviceRing::new(memory.table().clone(), &setup).map_err(broken)?))
    };
    let (mut to_kernel, rx) = place(&mut memory, WRITES)?;
    let (mut to_switch, tx) = place(&mut memory, READS)?;
    let write_base = memory.take(stride * u64::from(WRITES))?;
    let read_base = memory.take(stride * u64::from(READS))?;
    to_kernel.disable_interrupts();
    to_switch.disable_interrupts();
    let mut buffer_of = vec![0; usize::from(WRITES)];
    for buffer in 0..WRITES {
        let at = (write_base + u64::from(buffer) * stride, buffer_len as u32);
        if let Some(token) = to_kernel.add(&[], &[at]) {
            buffer_of[usize::from(token)] = buffer;
        }
    }
    to_kernel.publish();
    let kick = EventFd::new()?;
    let rx = RxQueue::new(rx, features, Some(wake.try_clone()?));
    let tx = TxQueue::new(tx, index, 0, features, Some(kick.try_clone()?), Some(wake.try_clone()?));
    let duct = Duct {
        file: Arc::new(file),
        memory: Arc::new(memory),
        to_kernel,
        to_switch,
        kick,
        write_base,
        read_base,
        stride,
        buffer_len,
        free: (0..READS).collect(),
        slot_of: vec![0; usize::from(READS)],
        buffer_of,
        used: vec![Used::default(); usize::from(WRITES.max(READS))],
        reads: 0,
        writes: 0,
        lost: None,
    };
    Ok((duct, Rings { rx, tx }))
}

impl Duct {
    fn token(number: usize, slot: u16, what: u64) -> u64 {
        (number as u64) << 32 | u64::from(slot) << 8 | what
    }

    /// The duct that a token is about.
    pub(super) fn number_of(token: u64) -> usize {
        (token >> 32) as usize
    }

    /// Stages what there is to read and to write.
    pub(super) fn stage(&mut self, number: usize, uring: &mut Uring) {
        if self.lost.is_some() {
            return;
        }
        let count = self.to_kernel.take_used(&mut self.used);
        for at in 0..count {
            let used = self.used[at];
            let addr = self.write_base + u64::from(self.buffer_of[usize::from(used.token)]) * self.stride;
            let len = (used.len as usize).min(self.buffer_len);
            let token = Self::token(number, used.token, WRITE);
            if uring.write(&self.file, &self.memory, addr, len, token) {
                self.writes += 1;
            }
        }
        let count = self.to_switch.poll_used(&mut self.used);
        for used in &self.used[..count] {
            self.free.push_back(self.slot_of[usize::from(used.token)]);
        }
        if let Some(error) = self.to_kernel.error().or(self.to_switch.error()) {
            self.lost = Some(format!("ring: {error}"));
        }
        if self.reads == 0 && !self.free.is_empty() {
            let count = self.free.len();
            uring.reserve(count);
            for (at, slot) in self.free.drain(..).enumerate() {
                let place = (self.read_base + u64::from(slot) * self.stride, self.buffer_len);
                let token = Self::token(number, slot, READ);
                if uring.read(&self.file, &self.memory, place, at + 1 < count, token) {
                    self.reads += 1;
                }
            }
        }
    }

    /// Takes a completion.
    pub(super) fn complete(&mut self, token: u64, result: i32) {
        let slot = (token >> 8) as u16;
        if token & 0xff == WRITE {
            self.writes -= 1;
            self.lose_if_gone(result);
            let buffer = self.buffer_of[usize::from(slot)];
            let at = (self.write_base + u64::from(buffer) * self.stride, self.buffer_len as u32);
            if let Some(token) = self.to_kernel.again(slot, at, true) {
                self.buffer_of[usize::from(token)] = buffer;
            }
            return;
        }
        self.reads -= 1;
        self.lose_if_gone(result);
        let len = usize::try_from(result).unwrap_or(0);
        if len > HEADER_LEN {
            let at = (self.read_base + u64::from(slot) * self.stride, len as u32);
            if let Some(token) = self.to_switch.add(&[at], &[]) {
                self.slot_of[usize::from(token)] = slot;
                return;
            }
        }
        self.free.push_back(slot);
    }

    /// Errors that say that there is no network device any more. Others are about one frame, which is then gone, as on a wire.
    fn lose_if_gone(&mut self, result: i32) {
        if matches!(-result, libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO | libc::ENOLINK) {
            let error = io::Error::from_raw_os_error(-result);
            self.lost.get_or_insert_with(|| format!("the network device is gone ({error})"));
        }
    }

    /// Shows what was moved to the switch.
    pub(super) fn publish(&mut self) {
        if self.to_switch.publish() {
            self.kick.signal();
        }
        // The switch looks for buffers when it has a frame; it never waits for one.
        self.to_kernel.publish();
    }

    /// Asks for wake-ups; returns whether there is something to do at once. Frames of the kernel wake the pump by themselves: a read
    /// waits for them, unless the switch has all slots.
    pub(super) fn arm(&mut self) -> bool {
        if self.lost.is_some() {
            return false;
        }
        let starved = self.reads == 0 && self.to_switch.enable_interrupts();
        self.to_kernel.enable_interrupts() || starved
    }

    /// No wake-ups are needed while the pump runs.
    pub(super) fn disarm(&mut self) {
        self.to_kernel.disable_interrupts();
        self.to_switch.disable_interrupts();
    }

    /// Why it cannot go on, once.
    pub(super) fn take_lost(&mut self) -> Option<String> {
        match &mut self.lost {
            Some(why) if !why.is_empty() => Some(std::mem::take(why)),
            _ => None,
        }
    }

    /// Moves nothing any more, and ends the read that waits in the kernel.
    pub(super) fn leave(&mut self, uring: &mut Uring) {
        self.lost.get_or_insert_default();
        if self.reads > 0 {
            uring.cancel(&self.file);
        }
    }

    /// Whether the kernel holds nothing of it.
    pub(super) fn is_idle(&self) -> bool {
        self.reads + self.writes == 0
    }
}
