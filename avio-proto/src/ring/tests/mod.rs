//! Tests of both sides of both rings, against the standard's bytes and against each other.
//!
//! This file has the memory they run in: regions with canaries around them.

#![expect(unsafe_code, reason = "memory for the rings under test")]

mod delivery;
mod held;
mod hostile;
mod inflight;
mod log;
mod packed_bytes;
mod pair;
mod split_bytes;
mod stress;

use super::*;
use crate::mem::{DirtyLog, Mapping, MemoryTable, Region};
use crate::virtio::features::*;
use std::alloc::{Layout, alloc, dealloc};
use std::sync::Arc;

/// Bytes on each side of a region that nobody may touch.
const CANARY_LEN: usize = 256;
const CANARY: u8 = 0xc5;
/// Front-end addresses are this far above guest addresses.
pub const USER: u64 = 0x7f00_0000_0000;

/// Page-aligned memory between two canaries.
pub struct Ram {
    start: *mut u8,
    len: usize,
}

// SAFETY: plain memory; tests access it through the copies and atomics that they test.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len + 8192, 4096).unwrap()
    }

    pub fn new(len: usize) -> Arc<Self> {
        // SAFETY: the size is not zero; all bytes are initialised below.
        let start = unsafe { alloc(Self::layout(len)) };
        assert!(!start.is_null());
        // SAFETY: allocated with 4096 bytes on each side of `len`.
        unsafe {
            start.write_bytes(0, len + 8192);
            start.add(4096 - CANARY_LEN).write_bytes(CANARY, CANARY_LEN);
            start.add(4096 + len).write_bytes(CANARY, CANARY_LEN);
        }
        Arc::new(Self { start, len })
    }

    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        // SAFETY: inside the allocation; tests do not write meanwhile.
        (0..len).map(|i| unsafe { self.start.add(4096 + at + i).read_volatile() }).collect()
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: inside the allocation.
        unsafe { self.start.add(4096 + at).copy_from(bytes.as_ptr(), bytes.len()) };
    }

    pub fn canaries_alive(&self) -> bool {
        // SAFETY: inside the allocation.
        (0..CANARY_LEN).all(|i| unsafe {
            self.start.add(4096 - CANARY_LEN + i).read() == CANARY
                && self.start.add(4096 + self.len + i).read() == CANARY
        })
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.start, Self::layout(self.len)) };
    }
}

// SAFETY: the allocation lives as long as the value.
unsafe impl Mapping for Ram {
    fn base(&self) -> *mut u8 {
        // SAFETY: inside the allocation.
        unsafe { self.start.add(4096) }
    }
    fn len(&self) -> usize {
        self.len
    }
}

/// A guest's memory: consecutive regions from guest address `base` on, each with a mapping of its own.
pub struct Guest {
    pub table: Arc<MemoryTable>,
    pub rams: Vec<Arc<Ram>>,
    pub base: u64,
    pub log: Option<Arc<Ram>>,
}

impl Guest {
    pub fn new(base: u64, lens: &[usize]) -> Self {
        Self::build(base, lens, false)
    }

    pub fn build(base: u64, lens: &[usize], logged: bool) -> Self {
        let mut at = base;
        let mut regions = Vec::new();
        let mut rams = Vec::new();
        for &len in lens {
            let ram = Ram::new(len);
            regions.push(Region {
                guest_base: at,
                user_base: at + USER,
                len: len as u64,
                mapping: ram.clone(),
                mapping_offset: 0,
            });
            rams.push(ram);
            at += len as u64;
        }
        let log = logged.then(|| Ram::new(((at / 4096) as usize).div_ceil(8) + 1));
        let dirty = log.as_ref().map(|ram| DirtyLog::new(ram.clone()));
        Self { table: Arc::new(MemoryTable::new(regions, dirty).unwrap()), rams, base, log }
    }

    /// Bytes at a guest address, across regions.
    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        (0..len as u64)
            .map(|i| {
                let mut at = (addr + i - self.base) as usize;
                for ram in &self.rams {
                    if at < ram.len {
                        return ram.read(at, 1)[0];
                    }
                    at -= ram.len;
                }
                panic!("address {addr:#x} is outside");
            })
            .collect()
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let mut at = (addr - self.base) as usize + i;
            let ram = self.rams.iter().find(|ram| {
                if at < ram.len {
                    return true;
                }
                at -= ram.len;
                false
            });
            ram.expect("inside").write(at, &[*byte]);
        }
    }

    pub fn u16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.read(addr, 2).try_into().unwrap())
    }

    pub fn canaries_alive(&self) -> bool {
        self.rams.iter().chain(&self.log).all(|ram| ram.canaries_alive())
    }

    /// Pages marked in the dirty log.
    pub fn dirty_pages(&self) -> Vec<u64> {
        let log = self.log.as_ref().expect("logged");
        let bits = log.read(0, log.len);
        (0..bits.len() as u64 * 8).filter(|p| bits[(p / 8) as usize] & (1 << (p % 8)) != 0).collect()
    }
}

/// The device's view of a driver's layout.
pub fn setup(layout: &DriverLayout, features: u64) -> RingSetup {
    RingSetup {
        size: layout.size,
        desc_user: layout.desc + USER,
        driver_user: layout.driver + USER,
        device_user: layout.device + USER,
        features,
        base: if features & RING_PACKED != 0 { 0x8000_8000 } else { 0 },
        used_log: Some(layout.device),
    }
}

/// Driver and device of one ring at the start of `guest`'s memory; returns the first guest address behind it.
pub fn pair(guest: &Guest, size: u16, features: u64) -> (DriverRing, DeviceRing, u64) {
    let layout = DriverLayout::at(guest.base, size, features);
    let driver = DriverRing::new(guest.table.clone(), &layout, features).unwrap();
    let device = DeviceRing::new(guest.table.clone(), &setup(&layout, features)).unwrap();
    (driver, device, guest.base + DriverLayout::bytes_needed(size, features))
}

pub fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ seed.wrapping_mul(97) ^ (i >> 8)) as u8).collect()
}
