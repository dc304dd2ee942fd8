//! Where a driver puts the parts of its ring in its own memory.

use crate::ring::descriptor::DESCRIPTOR_LEN;
use crate::ring::split::{available_len, used_len};
use crate::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};

/// Most buffers of a chain that goes through an indirect table; longer ones are chained in the ring. Linux's network
/// driver needs 19, its disk driver 128.
pub(super) const TABLE_ENTRIES: usize = 128;
/// Bytes between two chains' indirect tables.
pub(super) const TABLE_LEN: usize = TABLE_ENTRIES * DESCRIPTOR_LEN;

/// Each area starts on a page of its own, as Linux lays them out: what one side writes shares no line with what the
/// other writes.
const AREA_ALIGN: u64 = 4096;

/// Guest addresses of a ring's areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverLayout {
    /// Entries: 1..=32768, a power of two for a split ring.
    pub size: u16,
    /// Descriptor table or ring, 16-aligned.
    pub desc: u64,
    /// Available ring (2-aligned) or driver event suppression (4-aligned).
    pub driver: u64,
    /// Used ring or device event suppression, 4-aligned.
    pub device: u64,
    /// Space for indirect tables, 2 KiB per entry, 16-aligned; without it chains are never indirect.
    pub indirect: Option<u64>,
}

impl DriverLayout {
    /// Lays a ring out from guest address `base` on, areas on pages of their own; tables only if RING_INDIRECT_DESC is in
    /// `features`. It ends before `base + bytes_needed(size, features)`.
    #[must_use]
    pub fn at(base: u64, size: u16, features: u64) -> Self {
        let [desc_len, driver_len, device_len] = area_lens(size, features);
        let desc = base.next_multiple_of(AREA_ALIGN);
        let driver = (desc + desc_len).next_multiple_of(AREA_ALIGN);
        let device = (driver + driver_len).next_multiple_of(AREA_ALIGN);
        let tables = (device + device_len).next_multiple_of(AREA_ALIGN);
        let indirect = (features & RING_INDIRECT_DESC != 0).then_some(tables);
        Self { size, desc, driver, device, indirect }
    }

    /// Bytes from `base` that [`DriverLayout::at`] may use, wherever `base` is.
    #[must_use]
    pub fn bytes_needed(size: u16, features: u64) -> u64 {
        let tables = if features & RING_INDIRECT_DESC != 0 { u64::from(size) * TABLE_LEN as u64 } else { 0 };
        area_lens(size, features).iter().map(|len| len.next_multiple_of(AREA_ALIGN)).sum::<u64>()
            + tables
            + AREA_ALIGN
    }
}

/// Bytes of the descriptor, driver and device areas.
pub(super) fn area_lens(size: u16, features: u64) -> [u64; 3] {
    let desc = u64::from(size) * DESCRIPTOR_LEN as u64;
    if features & RING_PACKED != 0 {
        return [desc, 4, 4];
    }
    let event_idx = features & RING_EVENT_IDX != 0;
    [desc, available_len(size, event_idx) as u64, used_len(size, event_idx) as u64]
}
