//! The two ends of one ring in memory of its own, on one thread: what the micro-benchmarks of ring walk, publication and copy drive.
//!
//! Owns memory, driver and device; no switch. Panics on anything unexpected, as the rig does.

#![expect(
    clippy::missing_panics_doc,
    reason = "a benchmark's rig panics on everything that goes wrong, as said above"
)]

use std::sync::Arc;

use avio_guest::{GUEST_BASE, GuestMemory};
use avio_proto::mem::{GuestSlice, RegionHint, Tail};
use avio_proto::ring::{ChainArena, DeviceRing, DriverLayout, DriverRing, RingSetup, Used};
use avio_proto::virtio::features::RING_PACKED;

use crate::rig::{BATCH, RING_SIZE};

/// Bytes of a buffer.
const BUFFER_LEN: u32 = 2048;
/// A virtio-net header that asks for nothing.
const HEADER: [u8; 12] = [0; 12];

/// See the module.
pub struct Ends {
    memory: GuestMemory,
    driver: DriverRing,
    device: DeviceRing,
    arena: ChainArena,
    buffers_at: u64,
}

/// The driver's and the device's end of a ring of [`RING_SIZE`] entries at the beginning of `memory`, and where the device finds it. Nobody
/// is interrupted.
pub(crate) fn ends(memory: &GuestMemory, features: u64) -> (DriverRing, DeviceRing, RingSetup) {
    let layout = DriverLayout::at(GUEST_BASE, RING_SIZE, features);
    let mut driver = DriverRing::new(Arc::clone(memory.table()), &layout, features).expect("driver ring");
    driver.disable_interrupts();
    let setup = RingSetup {
        size: RING_SIZE,
        desc_user: memory.user_addr(layout.desc),
        driver_user: memory.user_addr(layout.driver),
        device_user: memory.user_addr(layout.device),
        features,
        base: if features & RING_PACKED != 0 { 0x8000_8000 } else { 0 },
        used_log: None,
    };
    let device = DeviceRing::new(Arc::clone(memory.table()), &setup).expect("device ring");
    (driver, device, setup)
}

impl Ends {
    /// With these acked virtio feature bits.
    #[must_use]
    pub fn new(features: u64) -> Self {
        let rings = DriverLayout::bytes_needed(RING_SIZE, features).next_multiple_of(4096);
        let len = rings + u64::from(RING_SIZE) * u64::from(BUFFER_LEN);
        let memory = GuestMemory::new("bench", len as usize).expect("guest memory");
        let (driver, device, _) = ends(&memory, features);
        Self { memory, driver, device, arena: ChainArena::new(), buffers_at: GUEST_BASE + rings }
    }

    /// The driver makes [`BATCH`] buffers available: for the device to write, or to read.
    pub fn offer(&mut self, writable: bool) {
        for i in 0..BATCH as u64 {
            let buffer = [(self.buffers_at + i * u64::from(BUFFER_LEN), BUFFER_LEN)];
            let (readable, writable): (&[_], &[_]) = if writable { (&[], &buffer) } else { (&buffer, &[]) };
            self.driver.add(readable, writable).expect("room");
        }
        self.driver.publish();
    }

    /// The device takes all of them; returns how many.
    #[inline]
    pub fn walk(&mut self) -> usize {
        self.device.take(&mut self.arena, BATCH).expect("sound ring").len()
    }

    /// The device gives back what it took.
    #[inline]
    pub fn publish(&mut self) {
        self.device.complete_taken();
        self.device.publish();
    }

    /// The device writes a frame with this head into each, and publishes them.
    #[inline]
    pub fn deliver(&mut self, head: &[u8]) {
        let mut delivery = self.device.deliver();
        for _ in 0..BATCH {
            delivery.push(&HEADER, head, Tail::default()).expect("a buffer");
        }
        delivery.commit();
    }

    /// The driver takes all of them back.
    pub fn collect(&mut self) {
        let mut used = [Used::default(); RING_SIZE as usize];
        assert_eq!(self.driver.poll_used(&mut used), BATCH);
    }

    /// Two pieces of the guest's memory, `len` bytes each, a little apart.
    #[must_use]
    pub fn pieces(&self, len: usize) -> (GuestSlice<'_>, GuestSlice<'_>) {
        let slice =
            |at| self.memory.table().slice(&mut RegionHint::default(), at, len).expect("guest memory");
        (slice(self.buffers_at), slice(self.buffers_at + 64 * 1024))
    }
}
