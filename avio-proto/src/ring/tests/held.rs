//! Chains held beyond their batch: whole, in any order, of their own guest only.

use super::*;
use crate::mem::GuestPieces;

const BUFFERS_AT: u64 = 0x20_0000;

#[test]
fn held_chains_keep_their_bytes_and_come_back_in_any_order() {
    for features in [VERSION_1, VERSION_1 | RING_PACKED, VERSION_1 | RING_INDIRECT_DESC] {
        let guest = Guest::new(0x10_0000, &[0x20_0000]);
        let (mut driver, mut device, _) = pair(&guest, 16, features);
        let mut arena = ChainArena::new();
        let mut held = HeldChains::new(&device, 8);
        let mut ids = Vec::new();
        for i in 0..4 {
            let at = BUFFERS_AT + i * 0x1000;
            guest.write(at, &pattern(i as usize, 0x300));
            let token = driver.add(&[(at, 16), (at + 0x100, 0x200)], &[(at + 0x400, 0x80)]).unwrap();
            driver.publish();
            let batch = device.take(&mut arena, 1).unwrap();
            let id = held.hold(&batch, 0).unwrap();
            ids.push((id, token, at, i as usize));
        }
        assert_eq!(held.count(), 4);
        ids.swap(0, 2);
        for (id, token, at, seed) in ids {
            let mut data = GuestPieces::new();
            held.data(id, Side::Readable, 16, 0x200, &mut data);
            let mut bytes = vec![0; 0x200];
            assert_eq!(data.copy_to(&mut bytes), 0x200);
            assert_eq!(bytes, pattern(seed, 0x300)[0x100..], "the header's 16 bytes are left out");
            held.data(id, Side::Writable, 4, usize::MAX, &mut data);
            assert_eq!(data.len(), 0x7c);
            data.copy_from(&[7; 0x7c]);
            let chain = held.release(id).unwrap();
            assert!(held.release(id).is_none(), "released once");
            device.complete(chain, 0x80);
            device.publish();
            assert_eq!(guest.read(at + 0x404, 0x7c), vec![7; 0x7c]);
            let mut used = [Used::default(); 2];
            assert_eq!(driver.poll_used(&mut used), 1);
            assert_eq!(used[0].token, token);
        }
        assert_eq!((held.count(), device.pending()), (0, 0));
    }
}

#[test]
fn a_batch_of_another_guest_is_refused() {
    let (one, other) = (Guest::new(0x10_0000, &[0x20_0000]), Guest::new(0x10_0000, &[0x20_0000]));
    let (_, device, _) = pair(&one, 8, VERSION_1);
    let (mut driver, mut foreign, _) = pair(&other, 8, VERSION_1);
    driver.add(&[(BUFFERS_AT, 16)], &[]).unwrap();
    driver.publish();
    let mut arena = ChainArena::new();
    let batch = foreign.take(&mut arena, 1).unwrap();
    assert!(HeldChains::new(&device, 8).hold(&batch, 0).is_none());
    let mut full = HeldChains::new(&foreign, 0);
    let mut arena = ChainArena::new();
    driver.add(&[(BUFFERS_AT, 16)], &[]).unwrap();
    driver.publish();
    assert!(full.hold(&foreign.take(&mut arena, 1).unwrap(), 0).is_none(), "no room");
}

#[test]
fn pieces_advance_and_know_their_alignment() {
    let guest = Guest::new(0x10_0000, &[0x10_0000, 0x10_0000]);
    let (mut driver, mut device, _) = pair(&guest, 8, VERSION_1);
    driver.add(&[], &[(0x1f_f000, 0x2000), (0x18_0200, 0x200)]).unwrap();
    driver.publish();
    let mut arena = ChainArena::new();
    let mut held = HeldChains::new(&device, 8);
    let id = held.hold(&device.take(&mut arena, 1).unwrap(), 0).unwrap();
    let mut data = GuestPieces::new();
    held.data(id, Side::Writable, 0, usize::MAX, &mut data);
    assert_eq!((data.slices().len(), data.len()), (3, 0x2200), "the first buffer spans two regions");
    assert!(data.is_aligned(512) && !data.is_aligned(4096));
    data.advance(0x1800);
    assert_eq!((data.slices().len(), data.len()), (2, 0xa00));
    data.advance(usize::MAX);
    assert!(data.is_empty() && data.slices().is_empty());
}
