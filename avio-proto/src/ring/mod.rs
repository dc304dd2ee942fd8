//! AVIO rings: virtio virtqueues, split (virtio 1.3 §2.7) and packed (§2.8), device side and driver side.
//!
//! The device side is what the daemons' workers run; the driver side is what tools, benches and tests run as a guest. A
//! ring owns its indices and its share of the memory table; it never waits, never makes a system call, and never trusts
//! a value that it has not copied out and checked.

mod area;
mod arena;
mod collect;
mod delivery;
mod descriptor;
mod device;
mod driver;
mod held;
mod index;
mod inflight;
mod packed;
mod place;
mod queue;
mod split;

pub use arena::{Batch, CHAINS_MAX, Chain, ChainArena, ChainId, SEGMENTS_MAX};
pub use collect::Collector;
pub use delivery::{Delivery, Undelivered};
pub use device::DeviceRing;
pub use driver::{DriverLayout, DriverRing, GuestBuffer, Used};
pub use held::{HeldChains, HeldId, Side};
pub use inflight::{Inflight, InflightError};
pub use place::{place, place_summed};

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
    /// As SET_VRING_BASE gives it. Packed: next available index and wrap counter in bits 0..=15, next used index and wrap
    /// counter in bits 16..=31. Split: not looked at; the guest's used ring says where to go on.
    pub base: u32,
    /// Guest address to mark in the dirty log for writes to the used ring (VHOST_VRING_F_LOG), if asked.
    pub used_log: Option<u64>,
}

/// What makes a ring unusable. All but the first two are the driver's doing while the ring runs.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum RingError {
    /// Not 1..=32768, or a split ring's size is no power of two.
    #[error("ring size {0} is not allowed")]
    BadSize(u16),
    /// An area is not wholly inside one region, or is not aligned as its layout asks.
    #[error("ring addresses are not inside the guest's memory, or misaligned")]
    BadAddress,
    /// More chains are available than the ring can hold.
    #[error("available index jumped by more than the ring size")]
    BadIndex,
    /// An index out of range, forbidden flags, a bad indirect table, or a receive buffer that cannot be written.
    #[error("descriptor {0} is malformed")]
    BadDescriptor(u16),
    /// More descriptors than the ring, an indirect table or an arena holds: most likely a loop.
    #[error("descriptor chain is too long or loops")]
    ChainTooLong,
    /// Some byte of a buffer or an indirect table is not mapped.
    #[error("buffer address outside the guest's memory")]
    BadBuffer,
}

#[cfg(test)]
mod tests;
