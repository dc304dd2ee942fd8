//! AVIO rings: virtio virtqueues, split (virtio 1.3 §2.7) and packed (§2.8), device side and driver side.
//!
//! The device side is what the daemons' workers run; the driver side is what tools, benches and tests run as a guest. A
//! ring owns its indices and its share of the memory table; it never waits, never makes a system call, and never trusts
//! a value that it has not copied out and checked.

#![expect(
    missing_docs,
    reason = "the signatures land first; documented with the implementation in the next step"
)]

use crate::mem::{GuestSlice, MemoryTable, Tail, TailSum};
use crate::virtio::net::HEADER_LEN;
use std::sync::Arc;

/// Everything needed to start a ring, as vhost-user's SET_VRING_* messages gave it.
#[derive(Clone, Debug)]
pub struct RingSetup {
    /// Number of entries, 1..=32768; a power of two for split rings.
    pub size: u16,
    /// Descriptor table or descriptor ring, front-end address.
    pub desc_user: u64,
    /// Available ring or driver event suppression, front-end address.
    pub driver_user: u64,
    /// Used ring or device event suppression, front-end address.
    pub device_user: u64,
    /// Acked virtio feature bits (`crate::virtio::features`).
    pub features: u64,
    /// As SET_VRING_BASE gives it: split: next available index (16 bits); packed: next available index and wrap counter in
    /// bits 0..=15, next used index and wrap counter in bits 16..=31.
    pub base: u32,
    /// Guest address to mark in the dirty log for writes to the used ring (VHOST_VRING_F_LOG), if asked.
    pub used_log: Option<u64>,
}

#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum RingError {
    #[error("ring size {0} is not allowed")]
    BadSize(u16),
    #[error("ring addresses are not inside the guest's memory, or misaligned")]
    BadAddress,
    #[error("available index jumped by more than the ring size")]
    BadIndex,
    #[error("descriptor {0} is malformed")]
    BadDescriptor(u16),
    #[error("descriptor chain is too long or loops")]
    ChainTooLong,
    #[error("buffer address outside the guest's memory")]
    BadBuffer,
}

/// Scratch space of one worker for the chains of one batch; allocated once.
pub struct ChainArena {}
impl Default for ChainArena {
    fn default() -> Self {
        Self::new()
    }
}
impl ChainArena {
    #[must_use]
    pub fn new() -> Self {
        unimplemented!()
    }
}

/// Names a taken chain until it is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainId {}

/// One chain: what the device may read, then what it may write.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a> {
    pub id: ChainId,
    pub readable: &'a [GuestSlice<'a>],
    pub writable: &'a [GuestSlice<'a>],
    /// Sum of the readable lengths in bytes.
    pub readable_len: usize,
    /// Sum of the writable lengths in bytes.
    pub writable_len: usize,
}

/// Chains taken from a source ring in one go, in the order in which they were made available.
pub struct Batch<'a> {
    _arena: &'a ChainArena,
}
impl<'a> Batch<'a> {
    #[must_use]
    pub fn len(&self) -> usize {
        unimplemented!()
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    #[must_use]
    pub fn chain(&self, _i: usize) -> Chain<'a> {
        unimplemented!()
    }
}

/// The device side of one ring, split or packed.
pub struct DeviceRing {}
impl DeviceRing {
    pub fn new(_memory: Arc<MemoryTable>, _setup: &RingSetup) -> Result<Self, RingError> {
        unimplemented!()
    }
    /// Takes up to `max_count` available chains. A malformed chain ends the batch before it; the next call returns the error.
    pub fn take<'a>(
        &'a mut self,
        _arena: &'a mut ChainArena,
        _max_count: usize,
    ) -> Result<Batch<'a>, RingError> {
        unimplemented!()
    }
    /// Stages all chains of the last `take` as used with 0 bytes written (transmit rings).
    pub fn complete_taken(&mut self) {
        unimplemented!()
    }
    /// Stages one chain as used, in any order, `written` bytes written (storage). Unless IN_ORDER was negotiated.
    pub fn complete(&mut self, _id: ChainId, _written: u32) {
        unimplemented!()
    }
    /// Publishes what was staged with one index store; true = the driver wants a notification. Decided once over the range.
    pub fn publish(&mut self) -> bool {
        unimplemented!()
    }
    /// Starts deliveries into a receive ring; everything is rolled back unless `Delivery::commit` is called.
    pub fn deliver(&mut self) -> Delivery<'_> {
        unimplemented!()
    }
    /// Whether a chain is available; touches no notification state.
    #[must_use]
    pub fn has_work(&self) -> bool {
        unimplemented!()
    }
    /// Asks the driver for kicks, full fence, re-check; true = work is already there.
    pub fn enable_notifications(&mut self) -> bool {
        unimplemented!()
    }
    pub fn disable_notifications(&mut self) {
        unimplemented!()
    }
    /// What GET_VRING_BASE answers, encoded as `RingSetup::base`.
    #[must_use]
    pub fn base(&self) -> u32 {
        unimplemented!()
    }
    #[must_use]
    pub fn memory(&self) -> &Arc<MemoryTable> {
        unimplemented!()
    }
}

/// Why a frame was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// The driver has made too few buffers available.
    NoBuffer,
    /// Without merged buffers, and the next buffer is too short for this frame.
    TooLong,
    /// The ring is broken; `DeviceRing::take` semantics: stop it.
    Broken(RingError),
}

/// Frames being written into one receive ring: reserved, copied, then published at once by `commit`.
pub struct Delivery<'r> {
    _ring: &'r mut DeviceRing,
}
impl Delivery<'_> {
    /// Writes one frame: the virtio-net header (its `num_buffers` is filled in here; a legacy ring takes ten bytes), the
    /// snapshot `head`, then the tail from the sender's memory: one copy.
    pub fn push(
        &mut self,
        _header: &[u8; HEADER_LEN],
        _head: &[u8],
        _tail: Tail<'_>,
    ) -> Result<(), Undelivered> {
        unimplemented!()
    }
    /// Like `push`, but sums the tail while copying it, then lets `finish` patch the head (a checksum field) before it is written.
    pub fn push_summed(
        &mut self,
        _header: &[u8; HEADER_LEN],
        _head: &mut [u8],
        _tail: Tail<'_>,
        _finish: impl FnOnce(&mut [u8], TailSum),
    ) -> Result<(), Undelivered> {
        unimplemented!()
    }
    /// Publishes all pushed frames with one index store; true = notify the driver.
    pub fn commit(self) -> bool {
        unimplemented!()
    }
}
