//! One ring as the front-end has set it up.
//!
//! Owns the pieces that SET_VRING_* bring, in whatever order, and decides whether they are enough to run. The back-end
//! machine calls it; it sends nothing and never looks into guest memory.

use crate::mem::MemoryTable;
use crate::ring::RingSetup;
use crate::vhost_user::payload::{VRING_F_LOG, VringAddr};
use crate::virtio::features::{RING_EVENT_IDX, RING_PACKED, VHOST_USER_PROTOCOL_FEATURES};
use std::io;
use std::os::fd::OwnedFd;

/// Most entries of a ring (virtio 1.3 §2.7 and §2.8.10.1: 2^15).
pub(super) const RING_SIZE_MAX: u32 = 1 << 15;
/// Packed ring, untouched: indices 0, both wrap counters 1 (virtio 1.3 §2.8.1).
const PACKED_INITIAL: u32 = 0x8000_8000;

/// Whether the device runs the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Run {
    #[default]
    Stopped,
    Running,
    /// Told to stop, has not answered.
    Stopping,
}

/// How the guest announces buffers. Having one means that the ring is started.
#[derive(Debug)]
pub(super) enum Kick {
    Poll,
    Fd(OwnedFd),
}

/// Where to go on, and who says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Base {
    #[default]
    Initial,
    /// SET_VRING_BASE.
    Given(u32),
    /// The device, when it stopped.
    Reported(u32),
}

/// Descriptors for one RingStart: kick, call, err.
pub(super) type Fds = (Option<OwnedFd>, Option<OwnedFd>, Option<OwnedFd>);

#[derive(Debug, Default)]
pub(super) struct Vring {
    /// Entries; 0 until set.
    pub(super) size: u16,
    pub(super) addr: Option<VringAddr>,
    pub(super) base: Base,
    pub(super) kick: Option<Kick>,
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    /// Last SET_VRING_ENABLE, if there was one.
    pub(super) enable: Option<bool>,
    pub(super) run: Run,
}

impl Vring {
    /// Whether the ring is enabled. Without an explicit word it depends on the acked F_PROTOCOL_FEATURES of the *last*
    /// SET_FEATURES (specification: "Ring states"): User-Mode Linux leaves the bit out and never enables.
    pub(super) fn enabled(&self, features: u64) -> bool {
        self.enable.unwrap_or(features & VHOST_USER_PROTOCOL_FEATURES == 0)
    }

    /// The answer to GET_VRING_BASE for the ring as it is, stopped.
    pub(super) fn base_for_reply(&self, features: u64) -> u32 {
        match self.base {
            Base::Initial if features & RING_PACKED != 0 => PACKED_INITIAL,
            Base::Initial => 0,
            Base::Given(base) | Base::Reported(base) => base,
        }
    }

    /// Where the device goes on. Front-ends leave out parts of a packed ring's base:
    /// User-Mode Linux sends 0, without wrap counters; DPDK sends only the available half. This daemon finishes what it
    /// took before it stops, so the used half then equals the available half.
    pub(super) fn base_for_start(&self, features: u64) -> u32 {
        let packed = features & RING_PACKED != 0;
        match self.base {
            Base::Given(base) if !packed => base & 0xffff,
            Base::Given(0) if features & VHOST_USER_PROTOCOL_FEATURES == 0 => PACKED_INITIAL,
            Base::Given(base) if base >> 16 == 0 && base != 0 => base | base << 16,
            _ => self.base_for_reply(features),
        }
    }

    /// What the device needs to run the ring, if it is stopped and nothing is missing: started, enabled, sized, and all
    /// three areas inside the memory that is mapped now.
    pub(super) fn runnable(&self, features: u64, table: &MemoryTable) -> Option<RingSetup> {
        if self.run != Run::Stopped || self.kick.is_none() || self.size == 0 || !self.enabled(features) {
            return None;
        }
        let addr = self.addr?;
        let size = usize::from(self.size);
        // Split: virtio 1.3 §2.7, with the event index behind each ring; packed: §2.8.10 and §2.8.14.
        let event = if features & RING_EVENT_IDX != 0 { 2 } else { 0 };
        let (driver_len, device_len) =
            if features & RING_PACKED != 0 { (4, 4) } else { (4 + 2 * size + event, 4 + 8 * size + event) };
        table.user_slice(addr.desc, 16 * size)?;
        table.user_slice(addr.avail, driver_len)?;
        table.user_slice(addr.used, device_len)?;
        Some(RingSetup {
            size: self.size,
            desc_user: addr.desc,
            driver_user: addr.avail,
            device_user: addr.used,
            features,
            base: self.base_for_start(features),
            used_log: (addr.flags & VRING_F_LOG != 0).then_some(addr.log),
        })
    }

    /// Duplicates of the descriptors: the session keeps its own for the next start.
    pub(super) fn fds(&self) -> io::Result<Fds> {
        let dup = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        let kick = match &self.kick {
            Some(Kick::Fd(fd)) => Some(fd.try_clone()?),
            _ => None,
        };
        Ok((kick, dup(&self.call)?, dup(&self.err)?))
    }

    /// The device has stopped the ring.
    pub(super) fn stopped(&mut self, base: u32) {
        self.run = Run::Stopped;
        self.base = Base::Reported(base);
    }

    /// Neither started nor enabled any more; size, addresses and call descriptor stay.
    pub(super) fn disable(&mut self) {
        self.kick = None;
        self.enable = None;
    }

    /// Back to the start of its life. The call descriptor stays: QEMU sends it again only when it changes.
    pub(super) fn reset(&mut self) {
        self.disable();
        self.size = 0;
        self.addr = None;
        self.base = Base::Initial;
    }
}
