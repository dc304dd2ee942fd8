//! The dirty log holds every page that the device wrote, rings included, and no other.

use super::*;
use crate::mem::Tail;

fn run(features: u64, used_log: bool) -> (Guest, DriverLayout) {
    let g = Guest::build(0x10_0000, &[0x10_0000, 0x10_0000], true);
    let layout = DriverLayout::at(g.base, 256, features);
    let mut driver = DriverRing::new(g.table.clone(), &layout, features).unwrap();
    let mut setup = setup(&layout, features);
    if !used_log {
        setup.used_log = None;
    }
    let mut device = DeviceRing::new(g.table.clone(), &setup).unwrap();
    assert!(g.dirty_pages().is_empty());
    // Room for more than is written: only what is written counts. The second one straddles two regions.
    driver.add(&[], &[(0x15_0ff0, 0x3000)]).unwrap();
    driver.add(&[], &[(0x1f_fff0, 0x3000)]).unwrap();
    driver.publish();
    let mut delivery = device.deliver();
    delivery.push(&[0; 12], &[1; 60], Tail::default()).unwrap();
    delivery.push(&[0; 12], &[1; 60], Tail::default()).unwrap();
    assert!(delivery.commit());
    (g, layout)
}

#[test]
fn exactly_the_written_pages_are_marked() {
    for features in [VERSION_1, VERSION_1 | RING_PACKED] {
        let (g, layout) = run(features, true);
        let used = if features & RING_PACKED != 0 { layout.desc } else { layout.device };
        assert_eq!(g.dirty_pages(), [used >> 12, 0x150, 0x151, 0x1ff, 0x200], "features {features:#x}");
        assert!(g.canaries_alive());
    }
}

#[test]
fn the_ring_is_marked_only_if_asked() {
    for features in [VERSION_1, VERSION_1 | RING_PACKED] {
        let (g, _) = run(features, false);
        assert_eq!(g.dirty_pages(), [0x150, 0x151, 0x1ff, 0x200]);
    }
}

#[test]
fn notification_words_and_the_far_end_of_the_used_ring_are_marked() {
    for features in [RING_EVENT_IDX, 0, RING_PACKED, RING_PACKED | RING_EVENT_IDX] {
        let g = Guest::build(0, &[0x40_0000], true);
        let (_, mut device, _) = pair(&g, 1024, features | VERSION_1);
        let layout = DriverLayout::at(0, 1024, features);
        device.disable_notifications();
        // avail_event stands 4 + 8 * 1024 bytes into the used ring, two pages on; the rest at the area's start.
        let far = if features == RING_EVENT_IDX { 2 } else { 0 };
        assert_eq!(g.dirty_pages(), [(layout.device >> 12) + far]);
    }
}

#[test]
fn used_elements_are_marked_where_they_are() {
    let g = Guest::build(0, &[0x40_0000], true);
    let (mut driver, mut device, _) = pair(&g, 1024, VERSION_1);
    let layout = DriverLayout::at(0, 1024, VERSION_1);
    let mut arena = ChainArena::new();
    let mut used = [Used::default(); 64];
    let mut pages = Vec::new();
    for round in 0..20 {
        for _ in 0..50 {
            driver.add(&[(0x30_0000, 64)], &[]).unwrap();
        }
        driver.publish();
        assert_eq!(device.take(&mut arena, 64).unwrap().len(), 50);
        device.complete_taken();
        device.publish();
        driver.poll_used(&mut used);
        let last = layout.device + 4 + 8 * (round * 50 + 49) + 7;
        pages = (layout.device >> 12..=last >> 12).collect();
        assert_eq!(g.dirty_pages(), pages, "round {round}");
    }
    assert_eq!(pages.len(), 2);
}
