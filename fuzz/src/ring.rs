//! Fuzzes the device side of AVIO rings, split and packed, with whatever a driver could have in its memory.
//!
//! The first bytes of the input choose features, size and base, the rest fills the memory in which ring, indirect tables and
//! buffers lie, rewritten between turns. Nothing may panic; memory is checked by the mapping's bounds.

#![no_main]

use avio_guest::{GuestMemory, GUEST_BASE};
use avio_proto::mem::Tail;
use avio_proto::ring::{ChainArena, DeviceRing, RingSetup};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

/// Memory of the guest: ring areas in the first three pages, the rest is buffers.
const MEMORY_LEN: usize = 0x8000;

thread_local! {
    /// Made once: a memfd for each input would measure the kernel.
    static MEMORY: RefCell<Option<GuestMemory>> = const { RefCell::new(None) };
}

/// Puts `bytes` over the guest's memory, over and over.
fn fill(memory: &GuestMemory, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let all: Vec<u8> = bytes.iter().copied().cycle().take(MEMORY_LEN).collect();
    if let Some(slice) = memory.table().slice(&mut Default::default(), GUEST_BASE, MEMORY_LEN) {
        slice.copy_from(&all);
    }
}

fn run(memory: &GuestMemory, data: &[u8]) {
    let Some((&[f0, f1, f2, size, b0, b1, b2, b3], rest)) = data.split_first_chunk::<8>() else { return };
    let user = memory.user_addr(GUEST_BASE);
    let setup = RingSetup {
        size: if size < 12 { 1 << size } else { u16::from(size) },
        desc_user: user,
        driver_user: user + 0x1000,
        device_user: user + 0x2000,
        // Every bit that concerns rings is among these: 10..=15 and 28..=39.
        features: u64::from(f0) << 10 | u64::from(f1) << 28 | u64::from(f2) << 32,
        base: u32::from_le_bytes([b0, b1, b2, b3]),
        used_log: Some(GUEST_BASE + 0x2000),
    };
    fill(memory, rest);
    let Ok(mut ring) = DeviceRing::new(memory.table().clone(), &setup) else { return };
    let mut arena = ChainArena::new();
    let mut buffer = [0; 256];
    for turn in rest.chunks(64).take(16) {
        fill(memory, turn);
        match turn[0] % 5 {
            0 => {
                ring.enable_notifications();
                ring.disable_notifications();
            }
            1 => {
                let mut delivery = ring.deliver();
                let nothing = Tail { slices: &[], skip: 0, len: 0 };
                for _ in 0..4 {
                    let _ = delivery.push(&[1; 12], &[2; 60], nothing);
                }
                if turn[0] & 1 == 0 {
                    delivery.commit();
                }
            }
            _ => {
                if let Ok(batch) = ring.take(&mut arena, usize::from(turn[0]) % 65) {
                    for chain in batch.iter() {
                        chain.readable.iter().for_each(|piece| {
                            piece.copy_to(&mut buffer);
                        });
                        chain.writable.iter().for_each(|piece| {
                            piece.copy_from(&[0x5a; 256]);
                        });
                    }
                }
                ring.complete_taken();
                ring.publish();
            }
        }
        let _ = (ring.has_work(), ring.base(), ring.error());
    }
}

fuzz_target!(|data: &[u8]| {
    MEMORY.with_borrow_mut(|memory| {
        if memory.is_none() {
            *memory = GuestMemory::new("fuzz", MEMORY_LEN).ok();
        }
        run(memory.as_ref().expect("memory for the ring"), data);
    });
});
