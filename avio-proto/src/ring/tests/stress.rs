//! Two threads on one ring: no chain and no wake-up is lost, in either direction.

use super::*;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// An eventfd in miniature: a count that a sleeper waits for.
#[derive(Default)]
struct Bell(AtomicU64);

impl Bell {
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits for a ring; false when none came in far longer than any scheduler keeps a thread waiting.
    fn wait(&self) -> bool {
        let start = Instant::now();
        while self.0.swap(0, Ordering::SeqCst) == 0 {
            if start.elapsed() > Duration::from_secs(20) {
                return false;
            }
            thread::yield_now();
        }
        true
    }
}

/// Both sides sleep whenever they find nothing, so each lost notification would hang the test.
fn ping_pong(features: u64, total: usize) {
    let guest = Guest::new(0, &[0x10_0000]);
    let (mut driver, mut device, _) = pair(&guest, 8, features | VERSION_1);
    let (kick, call) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    let (device_kick, device_call) = (kick.clone(), call.clone());
    let worker = thread::spawn(move || {
        let mut arena = ChainArena::new();
        let mut done = 0;
        while done < total {
            let count = device.take(&mut arena, 3).expect("an honest driver").len();
            if count == 0 {
                if !device.enable_notifications() {
                    assert!(device_kick.wait(), "a kick was lost after {done} chains");
                }
                device.disable_notifications();
                continue;
            }
            device.complete_taken();
            done += count;
            if device.publish() {
                device_call.ring();
            }
        }
        device.pending()
    });
    let mut used = [Used::default(); 5];
    let (mut sent, mut back) = (0, 0);
    driver.disable_interrupts();
    while back < total {
        while sent < total && sent % 7 != 6 && driver.add(&[(0x8_0000, 64)], &[]).is_some() {
            sent += 1;
        }
        if sent < total && driver.add(&[(0x8_0000, 64)], &[]).is_some() {
            sent += 1;
        }
        if driver.publish() {
            kick.ring();
        }
        let count = driver.poll_used(&mut used);
        back += count;
        if count == 0 {
            if !driver.enable_interrupts() {
                assert!(call.wait(), "an interrupt was lost after {back} chains");
            }
            driver.disable_interrupts();
        }
    }
    assert_eq!((sent, back), (total, total));
    assert_eq!(worker.join().expect("the device's thread"), 0);
}

#[test]
fn no_wake_up_is_lost() {
    let total = if cfg!(miri) { 40 } else { 200_000 };
    for layout in [0, RING_PACKED] {
        for event in [0, RING_EVENT_IDX] {
            for order in [0, IN_ORDER] {
                ping_pong(layout | event | order, total);
            }
        }
    }
}
