//! Models of the waiting protocols, run by `RUSTFLAGS="--cfg loom" cargo test -p avio-host --lib loom_`.
//!
//! Loom runs every interleaving and every value that the memory model lets a load return. Each protocol is also run with a fence
//! left out: the model must find the lost wake-up then, else it proves nothing.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;

use crate::wait::Handoff;
use crate::wait::arm::{Arm, arm_with, full_fence, must_kick};
use crate::worker::ControlWaker;

/// A fence that is none.
fn no_fence() {}

/// Writes an eventfd. A read-modify-write as in the kernel: loom orders a plain store against a drain too freely.
fn signal(event: &AtomicBool) {
    event.swap(true, Ordering::AcqRel);
}

/// Reads an eventfd; whether it was signalled.
fn drain(event: &AtomicBool) -> bool {
    event.swap(false, Ordering::AcqRel)
}

/// What driver and device of a virtqueue share, without the ring itself.
struct Virtqueue {
    /// Entries made available by the driver.
    avail: AtomicU64,
    /// Split ring without EVENT_IDX: the device wants kicks (the inverse of VIRTQ_USED_F_NO_NOTIFY).
    wants_kicks: AtomicBool,
    /// With EVENT_IDX: kick when the entry of this index is made available.
    avail_event: AtomicU64,
    /// The eventfd.
    kicked: AtomicBool,
}

/// How the driver is asked to notify.
#[derive(Clone, Copy)]
enum Suppression {
    Flag,
    EventIndex,
}

/// The device's view while it arms.
struct DeviceSide<'q> {
    queue: &'q Virtqueue,
    suppression: Suppression,
    taken: u64,
}

impl Arm for DeviceSide<'_> {
    fn enable(&mut self) {
        match self.suppression {
            Suppression::Flag => self.queue.wants_kicks.store(true, Ordering::Relaxed),
            Suppression::EventIndex => self.queue.avail_event.store(self.taken, Ordering::Relaxed),
        }
    }

    fn has_work(&mut self) -> bool {
        self.queue.avail.load(Ordering::Acquire) != self.taken
    }
}

/// Entries the driver makes available, one by one: the second may come while the device deals with the first.
const ENTRIES: u64 = 2;
/// An event index that no entry has: notifications off.
const PARKED: u64 = u64::MAX;

/// A driver publishes [`ENTRIES`] entries while the device takes them, arms, and sleeps when armed. At the end the device has all
/// entries or a kick that wakes it; anything else is a lost wake-up.
fn virtqueue(suppression: Suppression, device_fence: fn(), driver_fence: fn()) {
    loom::model(move || {
        let queue = Arc::new(Virtqueue {
            avail: AtomicU64::new(0),
            wants_kicks: AtomicBool::new(false),
            avail_event: AtomicU64::new(PARKED),
            kicked: AtomicBool::new(false),
        });
        let driver = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                for entry in 0..ENTRIES {
                    queue.avail.store(entry + 1, Ordering::Release);
                    let enabled = || match suppression {
                        Suppression::Flag => queue.wants_kicks.load(Ordering::Relaxed),
                        Suppression::EventIndex => queue.avail_event.load(Ordering::Relaxed) == entry,
                    };
                    if must_kick(enabled, driver_fence) {
                        signal(&queue.kicked);
                    }
                }
            })
        };
        let mut device = DeviceSide { queue: &queue, suppression, taken: 0 };
        loop {
            if arm_with(&mut device, device_fence) {
                queue.wants_kicks.store(false, Ordering::Relaxed);
                device.taken = queue.avail.load(Ordering::Acquire);
            } else if !drain(&queue.kicked) {
                // Asleep: nothing but a later kick gets it going again.
                break;
            }
        }
        let taken = device.taken;
        driver.join().unwrap();
        assert!(taken == ENTRIES || drain(&queue.kicked), "lost wake-up: took {taken}");
    });
}

#[test]
fn loom_arming_by_flag_loses_no_wake_up() {
    virtqueue(Suppression::Flag, full_fence, full_fence);
}

#[test]
fn loom_arming_by_event_index_loses_no_wake_up() {
    virtqueue(Suppression::EventIndex, full_fence, full_fence);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn loom_finds_the_missing_fence_of_the_device() {
    virtqueue(Suppression::Flag, no_fence, full_fence);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn loom_finds_the_missing_fence_of_the_device_with_event_index() {
    virtqueue(Suppression::EventIndex, no_fence, full_fence);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn loom_finds_the_missing_fence_of_the_driver() {
    virtqueue(Suppression::Flag, full_fence, no_fence);
}

/// Control publishes a command while the worker takes up, passes and falls asleep. At the end the worker has it or its eventfd is
/// written.
fn hand_off(control_fence: fn(), worker_fence: fn()) {
    loom::model(move || {
        let handoff = Arc::new(Handoff::new());
        let channel = Arc::new(AtomicU64::new(0));
        let event = Arc::new(AtomicBool::new(false));
        let control = {
            let (handoff, channel, event) = (Arc::clone(&handoff), Arc::clone(&channel), Arc::clone(&event));
            thread::spawn(move || {
                channel.store(1, Ordering::Relaxed);
                let announced = handoff.announce_with(control_fence);
                if announced.must_wake {
                    signal(&event);
                }
                announced.generation
            })
        };
        let mut seen = 0;
        loop {
            if let Some(announced) = handoff.newer_than(seen) {
                assert_eq!(channel.load(Ordering::Relaxed), 1, "announced before it was published");
                seen = announced;
                handoff.pass(announced);
            } else if handoff.fall_asleep_with(seen, worker_fence) {
                if !drain(&event) {
                    break;
                }
                handoff.wake_up();
            }
        }
        let generation = control.join().unwrap();
        assert!(handoff.has_passed(generation) || drain(&event), "lost wake-up");
    });
}

#[test]
fn loom_hand_off_to_a_worker_that_falls_asleep_is_not_lost() {
    hand_off(full_fence, full_fence);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn loom_finds_the_missing_fence_of_the_worker() {
    hand_off(full_fence, no_fence);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn loom_finds_the_missing_fence_of_control() {
    hand_off(no_fence, full_fence);
}

#[test]
fn loom_what_a_barrier_has_passed_is_no_longer_used() {
    loom::model(|| {
        let handoff = Arc::new(Handoff::new());
        // A ring in the former table: loom fails when the two threads touch it unordered.
        let ring = Arc::new(UnsafeCell::new(()));
        let withdrawn = Arc::new(AtomicBool::new(false));
        let worker = {
            let (handoff, ring, withdrawn) =
                (Arc::clone(&handoff), Arc::clone(&ring), Arc::clone(&withdrawn));
            thread::spawn(move || {
                let mut seen = 0;
                for _ in 0..2 {
                    if let Some(announced) = handoff.newer_than(seen) {
                        seen = announced;
                        handoff.pass(announced);
                    }
                    if !withdrawn.load(Ordering::Relaxed) {
                        ring.with(|_| ());
                    }
                }
            })
        };
        withdrawn.store(true, Ordering::Relaxed);
        let generation = handoff.announce().generation;
        if handoff.has_passed(generation) {
            ring.with_mut(|_| ());
        }
        worker.join().unwrap();
    });
}

#[test]
fn loom_control_waker_skips_no_write_that_is_needed() {
    loom::model(|| {
        let waker = ControlWaker::new().unwrap();
        let replies = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let workers = [0, 1].map(|at| {
            let (waker, replies) = (waker.clone(), Arc::clone(&replies));
            thread::spawn(move || {
                replies[at].store(true, Ordering::Relaxed);
                waker.wake();
            })
        });
        waker.drain();
        let seen = replies.each_ref().map(|reply| reply.load(Ordering::Relaxed));
        for worker in workers {
            worker.join().unwrap();
        }
        assert!(seen == [true; 2] || waker.drain(), "a reply lies there and nobody wakes control");
    });
}
