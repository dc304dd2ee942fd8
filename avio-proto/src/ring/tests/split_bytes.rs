//! The split ring's bytes, built and checked by hand from virtio 1.3 §2.7.

use super::*;
use crate::mem::Tail;

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const DATA: u64 = 0x8000;

/// A name, what spoils the ring, and the error that it must have.
type Case = (&'static str, fn(&Guest), RingError);

fn ring(guest: &Guest, size: u16, features: u64, base: u32) -> Result<DeviceRing, RingError> {
    let setup = RingSetup {
        size,
        desc_user: DESC + USER,
        driver_user: AVAIL + USER,
        device_user: USED + USER,
        features,
        base,
        used_log: None,
    };
    DeviceRing::new(guest.table.clone(), &setup)
}

/// le64 addr, le32 len, le16 flags, le16 next (§2.7.5).
fn desc(guest: &Guest, index: u64, addr: u64, len: u32, flags: u16, next: u16) {
    desc_at(guest, DESC + index * 16, addr, len, flags, next);
}

fn desc_at(guest: &Guest, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
    let mut bytes = addr.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    guest.write(at, &bytes);
}

/// le16 flags, le16 idx, le16 ring[], le16 used_event (§2.7.6).
fn avail(guest: &Guest, flags: u16, idx: u16, ring: &[u16], used_event: u16) {
    let words = [flags, idx].into_iter().chain(ring.iter().copied()).chain([used_event]);
    let bytes: Vec<u8> = words.flat_map(u16::to_le_bytes).collect();
    guest.write(AVAIL, &bytes);
}

fn guest() -> Guest {
    Guest::new(0, &[0x10000])
}

#[test]
fn used_elements_and_index_are_where_the_standard_puts_them() {
    let g = guest();
    desc(&g, 2, DATA, 4, 0, 0);
    desc(&g, 1, DATA + 16, 8, 1, 3);
    desc(&g, 3, DATA + 32, 2, 2, 0);
    // The ring has run for a while: both indices stand at 0xfffe and wrap over 16 bits.
    g.write(USED + 2, &0xfffeu16.to_le_bytes());
    avail(&g, 0, 1, &[9, 9, 2, 1], 0);
    // Index 0xfffe is entry 2, 0xffff entry 3, 0 entry 0.
    avail(&g, 0, 1, &[3, 9, 2, 1], 0);
    desc(&g, 3, DATA + 32, 2, 2, 0);
    let mut ring = ring(&g, 4, VERSION_1, 0xfffe).unwrap();
    let mut arena = ChainArena::new();
    let ids = {
        let batch = ring.take(&mut arena, 64).unwrap();
        let shapes: Vec<_> = batch
            .iter()
            .map(|c| (c.id.number(), c.readable_len, c.writable_len, c.readable.len(), c.writable.len()))
            .collect();
        assert_eq!(shapes, [(2, 4, 0, 1, 0), (1, 8, 2, 1, 1), (3, 0, 2, 0, 1)]);
        batch.iter().map(|c| c.id).collect::<Vec<_>>()
    };
    assert_eq!(ring.base(), 1);
    assert_eq!(ring.pending(), 3);
    // Out of order, with lengths.
    ring.complete(ids[1], 2);
    ring.complete(ids[0], 0);
    ring.complete(ids[2], 1);
    assert_eq!(g.u16(USED + 2), 0xfffe, "nothing shows before publish");
    assert!(ring.publish());
    assert_eq!(g.u16(USED), 0);
    assert_eq!(g.u16(USED + 2), 1);
    // le32 id, le32 len: entry 2 first, then 3, then 0.
    assert_eq!(
        g.read(USED + 4, 32),
        [
            3, 0, 0, 0, 1, 0, 0, 0, //
            0, 0, 0, 0, 0, 0, 0, 0, //
            1, 0, 0, 0, 2, 0, 0, 0, //
            2, 0, 0, 0, 0, 0, 0, 0,
        ]
    );
    assert_eq!(ring.pending(), 0);
}

#[test]
fn in_order_batch_is_one_element_at_its_start_with_the_last_id() {
    let g = guest();
    for i in 0..4 {
        desc(&g, i, DATA, 4, 0, 0);
    }
    avail(&g, 0, 3, &[0, 1, 2, 3], 0);
    g.write(USED + 4, &[0xee; 32]);
    let mut ring = ring(&g, 4, VERSION_1 | IN_ORDER, 0).unwrap();
    let mut arena = ChainArena::new();
    assert_eq!(ring.take(&mut arena, 64).unwrap().len(), 3);
    ring.complete_taken();
    ring.publish();
    assert_eq!(g.u16(USED + 2), 3, "the index goes on by the batch");
    assert_eq!(g.read(USED + 4, 8), [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(g.read(USED + 12, 24), [0xee; 24], "skipped entries are not written");
    avail(&g, 0, 5, &[0, 1, 2, 3], 0);
    assert_eq!(ring.take(&mut arena, 64).unwrap().len(), 2);
    ring.complete_taken();
    ring.publish();
    assert_eq!(
        g.read(USED + 4 + 24, 8),
        [0, 0, 0, 0, 0, 0, 0, 0],
        "the next batch starts at its first chain"
    );
    assert_eq!(g.u16(USED + 2), 5);
}

#[test]
fn event_index_decides_once_over_the_whole_range() {
    let g = guest();
    for i in 0..8 {
        desc(&g, i, DATA, 4, 0, 0);
    }
    let mut ring = ring(&g, 8, VERSION_1 | RING_EVENT_IDX, 0).unwrap();
    let mut arena = ChainArena::new();
    let order = [0, 1, 2, 3, 4, 5, 6, 7];
    let mut round = |ring: &mut DeviceRing, idx: u16, used_event: u16| {
        avail(&g, 1, idx, &order, used_event);
        let taken = ring.take(&mut arena, 64).unwrap().len();
        ring.complete_taken();
        (taken, ring.publish())
    };
    // The first publication after a start always notifies: a predecessor may have died before it could.
    assert_eq!(round(&mut ring, 1, 100), (1, true));
    // used goes 1 -> 4. The driver waits for used_event + 1 to be reached; avail.flags does not count with EVENT_IDX.
    assert_eq!(round(&mut ring, 4, 4), (3, false));
    assert_eq!(round(&mut ring, 6, 4), (2, true), "4..6 contains the event");
    assert_eq!(round(&mut ring, 8, 7), (2, true), "the last of the range counts");
    assert_eq!(round(&mut ring, 9, 9), (1, false));
    assert_eq!(round(&mut ring, 9, 9), (0, false), "nothing to publish, nothing to tell");
}

#[test]
fn without_event_index_the_drivers_flag_decides() {
    let g = guest();
    desc(&g, 0, DATA, 4, 0, 0);
    let mut ring = ring(&g, 4, VERSION_1, 0).unwrap();
    let mut arena = ChainArena::new();
    for (idx, flags, want) in [(1, 0, true), (2, 1, false), (3, 0, true)] {
        avail(&g, flags, idx, &[0, 0, 0, 0], 0);
        assert_eq!(ring.take(&mut arena, 64).unwrap().len(), 1);
        ring.complete_taken();
        assert_eq!(ring.publish(), want);
    }
}

#[test]
fn kicks_are_declined_and_asked_for() {
    let g = guest();
    avail(&g, 0, 0, &[0; 4], 0);
    let mut plain = ring(&g, 4, VERSION_1, 0).unwrap();
    assert_eq!(g.u16(USED), 0, "a new ring writes nothing");
    plain.disable_notifications();
    assert_eq!(g.u16(USED), 1);
    assert!(!plain.enable_notifications());
    assert_eq!(g.u16(USED), 0);
    avail(&g, 0, 1, &[0; 4], 0);
    assert!(plain.enable_notifications(), "work that is already there is told");
    assert!(plain.has_work());

    // With EVENT_IDX: avail_event behind the used ring's entries, at 4 + 8 * 4.
    let g = guest();
    let mut events = ring(&g, 4, VERSION_1 | RING_EVENT_IDX, 0).unwrap();
    events.disable_notifications();
    assert_eq!(g.u16(USED + 36), 0x8000, "parked half the circle behind");
    assert_eq!(g.u16(USED), 0);
    assert!(!events.enable_notifications());
    assert_eq!(g.u16(USED + 36), 0, "the next index is the event");
}

#[test]
fn indirect_tables_follow_next_and_may_end_a_chain() {
    let g = guest();
    desc(&g, 0, DATA, 10, 1, 1);
    // WRITE on a descriptor that names a table is ignored (§2.7.5.3.2).
    desc(&g, 1, 0x4000, 48, 4 | 2, 0);
    desc_at(&g, 0x4000, DATA + 64, 20, 1, 2);
    desc_at(&g, 0x4010, DATA + 128, 7, 2, 0);
    desc_at(&g, 0x4020, DATA + 256, 30, 1, 1);
    avail(&g, 0, 1, &[0; 4], 0);
    let mut ring = ring(&g, 4, VERSION_1 | RING_INDIRECT_DESC, 0).unwrap();
    let mut arena = ChainArena::new();
    let batch = ring.take(&mut arena, 64).unwrap();
    let chain = batch.chain(0);
    assert_eq!(chain.readable.iter().map(|s| s.len()).collect::<Vec<_>>(), [10, 20, 30]);
    assert_eq!((chain.writable_len, chain.writable.len()), (7, 1));
}

#[test]
fn every_malformed_chain_has_its_error_and_breaks_only_from_there() {
    let cases: [Case; 9] = [
        ("loop", |g| desc(g, 1, DATA, 4, 1, 1), RingError::ChainTooLong),
        ("next out of range", |g| desc(g, 1, DATA, 4, 1, 4), RingError::BadDescriptor(4)),
        (
            "read after write",
            |g| {
                desc(g, 1, DATA, 4, 3, 2);
                desc(g, 2, DATA, 4, 0, 0);
            },
            RingError::BadDescriptor(2),
        ),
        ("unmapped", |g| desc(g, 1, 0x10000, 1, 0, 0), RingError::BadBuffer),
        ("past the end", |g| desc(g, 1, 0xffff, 2, 0, 0), RingError::BadBuffer),
        ("wraps", |g| desc(g, 1, u64::MAX - 1, 16, 0, 0), RingError::BadBuffer),
        ("table length", |g| desc(g, 1, 0x4000, 24, 4, 0), RingError::BadDescriptor(1)),
        (
            "nested table",
            |g| {
                desc(g, 1, 0x4000, 16, 4, 0);
                desc_at(g, 0x4000, 0x5000, 16, 4, 0);
            },
            RingError::BadDescriptor(1),
        ),
        (
            "table loop",
            |g| {
                desc(g, 1, 0x4000, 16, 4, 0);
                desc_at(g, 0x4000, DATA, 4, 1, 0);
            },
            RingError::ChainTooLong,
        ),
    ];
    for (name, spoil, error) in cases {
        let g = guest();
        desc(&g, 0, DATA, 4, 0, 0);
        spoil(&g);
        avail(&g, 0, 3, &[0, 1, 0, 0], 0);
        let mut ring = ring(&g, 4, VERSION_1, 0).unwrap();
        let mut arena = ChainArena::new();
        assert_eq!(ring.take(&mut arena, 64).unwrap().len(), 1, "{name}: the chain before it is good");
        ring.complete_taken();
        ring.publish();
        assert_eq!(g.u16(USED + 2), 1, "{name}: and is given back");
        assert!(ring.has_work(), "{name}: the error waits to be fetched");
        assert_eq!(ring.take(&mut arena, 64).err(), Some(error), "{name}");
        assert_eq!(ring.take(&mut arena, 64).err(), Some(error), "{name}: and stays");
        let refused = ring.deliver().push(&[0; 12], &[0; 14], Tail::default());
        assert_eq!(refused, Err(Undelivered::Broken(error)), "{name}");
        assert_eq!(ring.error(), Some(error));
    }
}

#[test]
fn impossible_indices_and_heads_are_refused() {
    let g = guest();
    let mut arena = ChainArena::new();
    avail(&g, 0, 5, &[0; 4], 0);
    let mut too_far = ring(&g, 4, VERSION_1, 0).unwrap();
    assert_eq!(too_far.take(&mut arena, 1).err(), Some(RingError::BadIndex));
    avail(&g, 0, 0xffff, &[0; 4], 0);
    let mut backwards = ring(&g, 4, VERSION_1, 0).unwrap();
    assert_eq!(backwards.take(&mut arena, 1).err(), Some(RingError::BadIndex));
    avail(&g, 0, 1, &[4, 0, 0, 0], 0);
    let mut head = ring(&g, 4, VERSION_1, 0).unwrap();
    assert_eq!(head.take(&mut arena, 1).err(), Some(RingError::BadDescriptor(4)));
    // More chains out than entries: four are held, a fifth cannot be there.
    desc(&g, 0, DATA, 4, 0, 0);
    avail(&g, 0, 4, &[0; 4], 0);
    let mut held = ring(&g, 4, VERSION_1, 0).unwrap();
    assert_eq!(held.take(&mut arena, 64).unwrap().len(), 4);
    avail(&g, 0, 5, &[0; 4], 0);
    assert_eq!(held.take(&mut arena, 64).err(), Some(RingError::BadIndex));
}

/// The used ring tells what a predecessor returned, whatever the front-end says: 0 (virtio-user), or the available index.
#[test]
fn a_ring_goes_on_where_the_used_ring_stands() {
    for base in [0, 7, 9, 100] {
        let g = guest();
        desc(&g, 0, DATA, 4, 0, 0);
        g.write(USED + 2, &7u16.to_le_bytes());
        avail(&g, 0, 9, &[0; 4], 0);
        let mut ring = ring(&g, 4, VERSION_1, base).unwrap();
        assert_eq!(ring.base(), 7);
        assert_eq!(ring.take(&mut ChainArena::new(), 64).unwrap().len(), 2, "both that were not returned");
    }
}

#[test]
fn set_up_is_checked() {
    let g = guest();
    for size in [0, 3, 33000] {
        assert_eq!(ring(&g, size, VERSION_1, 0).err(), Some(RingError::BadSize(size)));
    }
    assert_eq!(ring(&g, 8192, VERSION_1, 0).err(), Some(RingError::BadAddress), "runs out of the region");
    for (desc, avail, used) in [(8, 0, 0), (0, 1, 0), (0, 0, 2)] {
        let setup = RingSetup {
            size: 4,
            desc_user: DESC + USER + desc,
            driver_user: AVAIL + USER + avail,
            device_user: USED + USER + used,
            features: VERSION_1,
            base: 0,
            used_log: None,
        };
        assert_eq!(DeviceRing::new(g.table.clone(), &setup).err(), Some(RingError::BadAddress));
    }
}

#[test]
fn empty_descriptors_leave_no_slice_and_need_no_address() {
    let g = guest();
    desc(&g, 0, u64::MAX, 0, 1, 1);
    desc(&g, 1, DATA, 5, 1, 2);
    desc(&g, 2, 0xdead_0000, 0, 0, 0);
    avail(&g, 0, 1, &[0; 4], 0);
    let mut ring = ring(&g, 4, VERSION_1, 0).unwrap();
    let mut arena = ChainArena::new();
    let batch = ring.take(&mut arena, 64).unwrap();
    assert_eq!((batch.chain(0).readable.len(), batch.chain(0).readable_len), (1, 5));
}
