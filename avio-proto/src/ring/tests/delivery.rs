//! Deliveries: what rolls back, what is written when, and where it goes.

use super::*;
use crate::mem::Tail;

const BUFFERS: u64 = 0x8000;

fn layouts() -> [u64; 2] {
    [0, RING_PACKED].map(|layout| layout | VERSION_1)
}

fn give(driver: &mut DriverRing, count: u64, len: u32) {
    for i in 0..count {
        driver.add(&[], &[(BUFFERS + i * 0x1000, len)]).expect("room");
    }
    driver.publish();
}

#[test]
fn dropping_a_delivery_gives_every_buffer_back() {
    for features in layouts() {
        let g = Guest::new(0, &[0x40000]);
        let (mut driver, mut device, _) = pair(&g, 8, features | NET_MRG_RXBUF);
        give(&mut driver, 8, 1000);
        let ring_before = g.read(0, 0x4000);
        let base = device.base();
        for _ in 0..3 {
            let mut delivery = device.deliver();
            for _ in 0..4 {
                delivery.push(&[0; 12], &[1; 1500], Tail::default()).unwrap();
            }
            assert_eq!(delivery.push(&[0; 12], &[1; 10], Tail::default()), Err(Undelivered::NoBuffer));
            drop(delivery);
            assert_eq!((device.base(), device.pending()), (base, 0));
            assert_eq!(g.read(0, 0x4000), ring_before, "no trace in the ring");
            assert!(device.has_work() && !driver.has_used());
        }
        let mut delivery = device.deliver();
        delivery.push(&[0; 12], &[1; 1500], Tail::default()).unwrap();
        assert!(delivery.commit());
        let mut used = [Used::default(); 8];
        assert_eq!(driver.poll_used(&mut used), 2);
        assert_eq!((used[0].len, used[1].len), (1000, 512));
    }
}

#[test]
fn a_panic_in_the_middle_of_a_frame_rolls_back() {
    for features in layouts() {
        let g = Guest::new(0, &[0x40000]);
        let (mut driver, mut device, _) = pair(&g, 8, features);
        give(&mut driver, 4, 1600);
        let base = device.base();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut delivery = device.deliver();
            delivery.push(&[0; 12], &[1; 60], Tail::default()).unwrap();
            let _ = delivery.push_summed(&[0; 12], &mut [1; 60], Tail::default(), |_, _| panic!("injected"));
        }));
        assert!(result.is_err());
        assert_eq!((device.base(), device.pending()), (base, 0));
        assert!(!driver.has_used());
    }
}

#[test]
fn a_frame_that_does_not_fit_leaves_the_ones_before_it() {
    for features in layouts() {
        let g = Guest::new(0, &[0x40000]);
        let (mut driver, mut device, _) = pair(&g, 4, features | NET_MRG_RXBUF);
        give(&mut driver, 3, 1000);
        let mut delivery = device.deliver();
        delivery.push(&[0; 12], &[1; 900], Tail::default()).unwrap();
        assert_eq!(delivery.push(&[0; 12], &[2; 3000], Tail::default()), Err(Undelivered::NoBuffer));
        delivery.push(&[0; 12], &[3; 1500], Tail::default()).unwrap();
        delivery.commit();
        let mut used = [Used::default(); 4];
        assert_eq!(driver.poll_used(&mut used), 3);
        assert_eq!(g.read(BUFFERS + 0x1000 + 10, 3), [2, 0, 3], "two buffers, then the third frame's bytes");
    }
}

#[test]
fn without_merging_a_long_frame_is_refused_and_a_short_one_fits() {
    for features in layouts() {
        let g = Guest::new(0, &[0x40000]);
        let (mut driver, mut device, _) = pair(&g, 4, features);
        give(&mut driver, 4, 100);
        let mut delivery = device.deliver();
        assert_eq!(delivery.push(&[0; 12], &[1; 89], Tail::default()), Err(Undelivered::TooLong));
        delivery.push(&[9; 12], &[1; 88], Tail::default()).unwrap();
        delivery.commit();
        let mut used = [Used::default(); 4];
        assert_eq!(driver.poll_used(&mut used), 1);
        assert_eq!(used[0].len, 100);
        assert_eq!(g.read(BUFFERS, 13), [9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 1, 0, 1]);
    }
}

#[test]
fn a_legacy_ring_takes_ten_bytes_of_header() {
    let g = Guest::new(0, &[0x40000]);
    let (mut driver, mut device, _) = pair(&g, 4, 0);
    give(&mut driver, 1, 100);
    let mut delivery = device.deliver();
    delivery.push(&[9; 12], &[1; 20], Tail::default()).unwrap();
    delivery.commit();
    assert_eq!(g.read(BUFFERS, 12), [9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 1, 1]);
}

#[test]
fn a_receive_buffer_that_cannot_be_written_breaks_the_ring_but_not_what_came_before() {
    for features in layouts() {
        for bad in 0..3 {
            let g = Guest::new(0, &[0x40000]);
            let (mut driver, mut device, _) = pair(&g, 4, features);
            give(&mut driver, 1, 200);
            match bad {
                0 => driver.add(&[(BUFFERS, 100)], &[]),
                1 => driver.add(&[], &[(BUFFERS, 11)]),
                _ => driver.add(&[], &[(0x40000 - 100, 101)]),
            };
            driver.publish();
            let mut delivery = device.deliver();
            delivery.push(&[0; 12], &[1; 60], Tail::default()).unwrap();
            let result = delivery.push(&[0; 12], &[1; 60], Tail::default());
            assert!(matches!(result, Err(Undelivered::Broken(_))), "{bad}: {result:?}");
            assert!(delivery.commit());
            let mut used = [Used::default(); 4];
            assert_eq!(driver.poll_used(&mut used), 1);
            assert!(matches!(
                device.deliver().push(&[0; 12], &[], Tail::default()),
                Err(Undelivered::Broken(_))
            ));
        }
    }
}

#[test]
fn a_buffer_may_span_neighbouring_regions() {
    for features in layouts() {
        let g = Guest::new(0, &[0x10000, 0x1000, 0x10000]);
        let (mut driver, mut device, _) = pair(&g, 4, features);
        // Starts 16 bytes before the second region's start and ends 84 bytes into the third.
        driver.add(&[], &[(0xfff0, 16 + 0x1000 + 84)]).unwrap();
        driver.publish();
        let frame = pattern(3, 16 + 0x1000 + 84 - 12);
        let mut delivery = device.deliver();
        delivery.push(&[7; 12], &frame, Tail::default()).unwrap();
        delivery.commit();
        assert_eq!(g.read(0xfff0 + 12, frame.len()), frame);
        driver.add(&[(0xfff0, 16 + 0x1000 + 84)], &[]).unwrap();
        driver.publish();
        let mut arena = ChainArena::new();
        let batch = device.take(&mut arena, 4).unwrap();
        let lens: Vec<usize> = batch.chain(0).readable.iter().map(|s| s.len()).collect();
        assert_eq!(lens, [16, 0x1000, 84]);
        assert!(g.canaries_alive());
    }
}

/// The first header byte that the driver could see changes only after all the frame's buffers are filled.
#[test]
fn the_header_is_completed_after_the_payload() {
    for features in layouts() {
        let g = Guest::new(0, &[0x40000]);
        let (mut driver, mut device, _) = pair(&g, 8, features | NET_MRG_RXBUF);
        give(&mut driver, 3, 600);
        let sender = Guest::new(0, &[0x1000]);
        sender.write(0, &pattern(5, 1500));
        let slice = sender.table.slice(&mut Default::default(), 0, 1500).unwrap();
        let mut seen = Vec::new();
        let mut delivery = device.deliver();
        let tail = Tail { slices: &[slice], skip: 100, len: 1400 };
        delivery
            .push_summed(&[5; 12], &mut pattern(5, 100), tail, |_, _| {
                // Called between payload and header: the payload is there in all three buffers, the header is not.
                seen.extend(g.read(BUFFERS, 12));
                assert_eq!(g.read(BUFFERS + 112, 488), pattern(5, 1500)[100..588]);
                assert_eq!(g.read(BUFFERS + 0x2000, 312), pattern(5, 1500)[1188..]);
            })
            .unwrap();
        assert_eq!(seen, [0; 12]);
        assert_eq!(g.read(BUFFERS, 12), [5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 3, 0]);
        drop(delivery);
    }
}
