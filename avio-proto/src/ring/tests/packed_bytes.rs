//! The packed ring's bytes, built and checked by hand from virtio 1.3 §2.8.

use super::*;

const DESC: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const DATA: u64 = 0x8000;

/// A name, what spoils the ring, and the error that it must have.
type Case = (&'static str, fn(&Guest), RingError);
const A: u16 = 1 << 7;
const U: u16 = 1 << 15;

fn ring(guest: &Guest, size: u16, features: u64, base: u32) -> DeviceRing {
    let setup = RingSetup {
        size,
        desc_user: DESC + USER,
        driver_user: DRIVER + USER,
        device_user: DEVICE + USER,
        features: features | VERSION_1 | RING_PACKED,
        base,
        used_log: None,
    };
    DeviceRing::new(guest.table.clone(), &setup).unwrap()
}

/// le64 addr, le32 len, le16 id, le16 flags (§2.8.13).
fn desc(guest: &Guest, at: u64, addr: u64, len: u32, id: u16, flags: u16) {
    let mut bytes = addr.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    guest.write(at, &bytes);
}

fn slot(guest: &Guest, index: u64, addr: u64, len: u32, id: u16, flags: u16) {
    desc(guest, DESC + index * 16, addr, len, id, flags);
}

fn events(guest: &Guest, off_wrap: u16, flags: u16) {
    guest.write(DRIVER, &off_wrap.to_le_bytes());
    guest.write(DRIVER + 2, &flags.to_le_bytes());
}

/// Length, buffer ID and flags of a descriptor.
fn used(guest: &Guest, index: u64) -> (u32, u16, u16) {
    let at = DESC + index * 16 + 8;
    let len = u32::from_le_bytes(guest.read(at, 4).try_into().unwrap());
    (len, guest.u16(at + 4), guest.u16(at + 6))
}

fn guest() -> Guest {
    Guest::new(0, &[0x10000])
}

#[test]
fn chains_are_skipped_by_their_length_and_marks_flip_at_the_wrap() {
    let g = guest();
    // Three entries. First round, wrap counter 1: available is AVAIL=1, USED=0. A chain of two whose ID stands in its last
    // descriptor, then a chain of one.
    slot(&g, 0, DATA, 4, 99, A | 1);
    slot(&g, 1, DATA + 64, 6, 7, A | 2);
    slot(&g, 2, DATA + 128, 8, 5, A);
    let mut ring = ring(&g, 3, 0, 0x8000_8000);
    let mut arena = ChainArena::new();
    let ids: Vec<ChainId> = {
        let batch = ring.take(&mut arena, 64).unwrap();
        let shapes: Vec<_> = batch.iter().map(|c| (c.id.number(), c.readable_len, c.writable_len)).collect();
        assert_eq!(shapes, [(7, 4, 6), (5, 8, 0)]);
        batch.iter().map(|c| c.id).collect()
    };
    // Available position (0, 0), used position still (0, 1).
    assert_eq!(ring.base(), 0x8000_0000);
    // Out of order: the used descriptors go where the device stands, and it skips by the length of what it used.
    ring.complete(ids[1], 0);
    ring.complete(ids[0], 6);
    ring.publish();
    assert_eq!(used(&g, 0), (0, 5, A | U));
    assert_eq!(used(&g, 1), (6, 7, A | U | 2), "WRITE because bytes were written");
    assert_eq!(used(&g, 2), (8, 5, A), "not touched");
    assert_eq!(ring.base(), 0);
    // Second round, wrap counter 0: available is AVAIL=0, USED=1; used is both 0.
    assert!(!ring.has_work());
    slot(&g, 0, DATA, 4, 1, U);
    assert!(ring.has_work());
    assert_eq!(ring.take(&mut arena, 64).unwrap().len(), 1);
    ring.complete_taken();
    ring.publish();
    assert_eq!(used(&g, 0), (0, 1, 0));
    assert_eq!(ring.base(), 0x0001_0001);
}

#[test]
fn in_order_batch_is_one_descriptor_at_its_start_with_the_last_id() {
    let g = guest();
    slot(&g, 0, DATA, 4, 0, A | 1);
    slot(&g, 1, DATA, 4, 0, A);
    slot(&g, 2, DATA, 4, 2, A);
    slot(&g, 3, DATA, 4, 3, A);
    let mut ring = ring(&g, 5, IN_ORDER, 0x8000_8000);
    let mut arena = ChainArena::new();
    assert_eq!(ring.take(&mut arena, 64).unwrap().len(), 3);
    ring.complete_taken();
    ring.publish();
    assert_eq!(used(&g, 0), (0, 3, A | U));
    assert_eq!(used(&g, 1), (4, 0, A), "skipped");
    assert_eq!(used(&g, 2), (4, 2, A), "skipped");
    assert_eq!(used(&g, 3), (4, 3, A), "skipped");
    assert_eq!(ring.base(), 0x8004_8004, "went on by the four descriptors of the batch");
}

#[test]
fn indirect_tables_are_read_to_their_end() {
    let g = guest();
    slot(&g, 0, 0x4000, 32, 9, A | 4 | 2);
    desc(&g, 0x4000, DATA, 10, 0, 0);
    // NEXT is reserved in a table and ignored (§2.8.8).
    desc(&g, 0x4010, DATA + 64, 20, 0, 2 | 1);
    let mut ring = ring(&g, 2, RING_INDIRECT_DESC, 0x8000_8000);
    let mut arena = ChainArena::new();
    let batch = ring.take(&mut arena, 64).unwrap();
    let chain = batch.chain(0);
    assert_eq!((chain.id.number(), chain.readable_len, chain.writable_len), (9, 10, 20));
}

#[test]
fn event_suppression_is_honoured() {
    let g = guest();
    let mut ring = ring(&g, 4, RING_EVENT_IDX, 0x8000_8000);
    let mut arena = ChainArena::new();
    let mut at = 0u64;
    let mut round = |ring: &mut DeviceRing, count: u64, off_wrap: u16, flags: u16| {
        for _ in 0..count {
            slot(&g, at % 4, DATA, 4, 0, if (at / 4).is_multiple_of(2) { A } else { U });
            at += 1;
        }
        events(&g, off_wrap, flags);
        assert_eq!(ring.take(&mut arena, 64).unwrap().len() as u64, count);
        ring.complete_taken();
        ring.publish()
    };
    assert!(round(&mut ring, 1, 0, 0), "0: always");
    assert!(!round(&mut ring, 1, 0, 1), "1: never");
    assert!(round(&mut ring, 1, 0x8003, 2), "the first publication under an event always notifies");
    // Used 3 -> (0, wrap 0): slot 3 of the first round is in the range.
    assert!(round(&mut ring, 1, 0x8003, 2));
    // Slots 0 and 1 of the second round; the event waits for slot 2.
    assert!(!round(&mut ring, 2, 0x0002, 2));
    assert!(round(&mut ring, 1, 0x0002, 2));
    // A stale event from the round before does not count, nor does slot 3 with the wrong wrap counter.
    assert!(!round(&mut ring, 1, 0x8003, 2));
}

#[test]
fn kicks_are_declined_and_asked_for() {
    let g = guest();
    let mut plain = ring(&g, 4, 0, 0x8000_8000);
    plain.disable_notifications();
    assert_eq!((g.u16(DEVICE), g.u16(DEVICE + 2)), (0, 1));
    assert!(!plain.enable_notifications());
    assert_eq!((g.u16(DEVICE), g.u16(DEVICE + 2)), (0, 0));
    let mut with_event = ring(&g, 4, RING_EVENT_IDX, 0x8002_8002);
    slot(&g, 2, DATA, 4, 0, A);
    assert!(with_event.enable_notifications(), "work that is already there is told");
    assert_eq!((g.u16(DEVICE), g.u16(DEVICE + 2)), (0x8002, 2));
}

#[test]
fn malformed_chains_have_their_errors() {
    let cases: [Case; 6] = [
        ("endless chain", |g| (0..4).for_each(|i| slot(g, i, DATA, 4, 0, A | 1)), RingError::ChainTooLong),
        ("table and next", |g| slot(g, 0, 0x4000, 16, 0, A | 4 | 1), RingError::BadDescriptor(0)),
        ("table length", |g| slot(g, 0, 0x4000, 17, 0, A | 4), RingError::BadDescriptor(0)),
        ("table too long", |g| slot(g, 0, 0, 1025 * 16, 0, A | 4), RingError::ChainTooLong),
        (
            "nested table",
            |g| {
                slot(g, 0, 0x4000, 16, 0, A | 4);
                desc(g, 0x4000, DATA, 16, 0, 4);
            },
            RingError::BadDescriptor(0),
        ),
        (
            "read after write",
            |g| {
                slot(g, 0, DATA, 4, 0, A | 3);
                slot(g, 1, DATA, 4, 0, A);
            },
            RingError::BadDescriptor(1),
        ),
    ];
    for (name, spoil, error) in cases {
        let g = guest();
        spoil(&g);
        let mut ring = ring(&g, 4, 0, 0x8000_8000);
        let mut arena = ChainArena::new();
        assert_eq!(ring.take(&mut arena, 64).err(), Some(error), "{name}");
        assert!(ring.has_work() && ring.take(&mut arena, 64).is_err(), "{name}");
    }
}

#[test]
fn a_driver_cannot_lap_the_device() {
    let g = guest();
    (0..4).for_each(|i| slot(&g, i, DATA, 4, i as u16, A));
    let mut ring = ring(&g, 4, 0, 0x8000_8000);
    let mut arena = ChainArena::new();
    assert_eq!(ring.take(&mut arena, 64).unwrap().len(), 4);
    (0..4).for_each(|i| slot(&g, i, DATA, 4, i as u16, U));
    assert_eq!(ring.take(&mut arena, 64).err(), Some(RingError::BadIndex));
    assert_eq!(ring.pending(), 4);
}

#[test]
fn a_ring_of_user_mode_linux_starts_at_base_0() {
    let g = guest();
    slot(&g, 0, DATA, 4, 3, A);
    let mut ring = ring(&g, 4, 0, 0);
    let mut arena = ChainArena::new();
    assert_eq!(ring.take(&mut arena, 64).unwrap().len(), 1);
    ring.complete_taken();
    ring.publish();
    assert_eq!(used(&g, 0), (0, 3, A | U));
}
