//! Where a ring lies in guest memory, in both kinds of addresses.
//!
//! Owns the translation from the driver's layout (guest addresses) to what vhost-user wants (the front-end's own). Devices
//! place their rings with it; the driver side in `avio-proto` works on the result.

use crate::memory::{GuestMemory, MemoryError};
use avio_proto::ring::DriverLayout;

/// Rings start on a page of their own.
const RING_ALIGN: u64 = 4096;

/// One ring's areas.
#[derive(Clone, Copy, Debug)]
pub struct RingPlace {
    /// Guest addresses, for the driver.
    pub layout: DriverLayout,
    /// Descriptor table or ring, front-end address.
    pub desc_user: u64,
    /// Available ring or driver event suppression, front-end address.
    pub driver_user: u64,
    /// Used ring or device event suppression, front-end address.
    pub device_user: u64,
}

impl RingPlace {
    /// Sets memory aside for a ring of `size` entries under these features.
    ///
    /// # Errors
    /// [`MemoryError::Full`].
    pub fn alloc(memory: &mut GuestMemory, size: u16, features: u64) -> Result<Self, MemoryError> {
        let base = memory.alloc(DriverLayout::bytes_needed(size, features), RING_ALIGN)?;
        let layout = DriverLayout::at(base, size, features);
        Ok(Self {
            layout,
            desc_user: memory.user_addr(layout.desc),
            driver_user: memory.user_addr(layout.driver),
            device_user: memory.user_addr(layout.device),
        })
    }
}
