//! Receive rings that are full when frames come from the wire: who is waited for, for how long, and who is not.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use avio_proto::config::MacAddr;
use avio_proto::control::DiscardReason;

use super::rig::frame;
use super::wire::{Wired, guest};
use crate::table::tests::mac;

thread_local! {
    static HOOK: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// Runs what a test of this thread wants to happen at each look at a full ring.
pub(crate) fn while_waiting() {
    HOOK.with_borrow_mut(|hook| hook.iter_mut().for_each(|hook| hook()));
}

/// Counts looks until the returned closure is asked for their number, which begins again then.
fn count_looks() -> impl Fn() -> usize {
    let looks = std::rc::Rc::new(std::cell::Cell::new(0));
    let seen = std::rc::Rc::clone(&looks);
    HOOK.set(Some(Box::new(move || looks.set(looks.get() + 1))));
    move || seen.take()
}

/// Frame number `number` for guest `n`.
fn numbered(n: u16, number: u32) -> (Vec<u8>, Option<u16>) {
    let mut bytes = frame(mac(n), mac(77), 0x0800, 60);
    bytes[20..24].copy_from_slice(&number.to_be_bytes());
    (bytes, None)
}

#[test]
fn frames_wait_for_a_guest_that_makes_room_and_stay_in_order() {
    let mut wired = Wired::new([guest(1)], 1);
    let mut rx = wired.rig.guests[0].rx.remove(0);
    let got = std::rc::Rc::new(RefCell::new(Vec::new()));
    let seen = std::rc::Rc::clone(&got);
    // At each look the guest has been through its ring once.
    HOOK.set(Some(Box::new(move || {
        got.borrow_mut().extend(rx.receive(false).into_iter().map(|arrived| arrived.frame));
    })));
    wired.arrive_all((0..1000).map(|number| numbered(1, number)));
    wired.consistent();
    // What came last is still in the ring.
    let (counters, seen) = (wired.rig.stats(0).counters, seen.borrow());
    assert_eq!(counters.inbound_unicast_wire, 1000);
    assert_eq!(wired.rig.stats(0).discards[DiscardReason::NoBuffer], 0);
    assert!(seen.len() >= 1000 - 256, "{}", seen.len());
    assert!(seen.iter().zip(0..).all(|(frame, number)| frame[..] == numbered(1, number).0));
    HOOK.set(None);
}

#[test]
fn a_guest_that_never_looks_is_waited_for_once() {
    let mut wired = Wired::new([guest(1), guest(2)], 1);
    let looks = count_looks();
    wired.arrive_all((0..256).map(|number| numbered(1, number)));
    assert_eq!(looks(), 0);
    let start = Instant::now();
    wired.arrive_all((0..64).map(|number| numbered(1, number)));
    assert!(looks() > 0);
    // 60 us; the machine may be busy.
    assert!(start.elapsed() < Duration::from_millis(50), "{:?}", start.elapsed());
    // From then on nobody waits for it: not its own frames, not those of another guest in the same batch, not those for all.
    for round in 0..100 {
        let both = |number| numbered(1 + (number % 2) as u16, number);
        wired.arrive_all((0..64).map(both));
        wired.arrive(&frame(MacAddr::BROADCAST, mac(77), 0x0806, 60), None);
        assert_eq!(wired.rig.guests[1].rx[0].receive(false).len(), 33, "{round}");
    }
    assert_eq!(looks(), 0);
    assert_eq!(wired.rig.stats(0).discards[DiscardReason::NoBuffer], 64 + 100 * 33);
    assert_eq!(wired.rig.stats(1).discards[DiscardReason::NoBuffer], 0);
    wired.consistent();
    // It has come back once a batch finds room at once.
    assert_eq!(wired.rig.guests[0].rx[0].receive(false).len(), 256);
    wired.arrive_all((0..256).map(|number| numbered(1, number)));
    assert_eq!(looks(), 0);
    wired.arrive_all([numbered(1, 0)]);
    assert!(looks() > 0);
    HOOK.set(None);
}

#[test]
fn guests_that_always_nearly_keep_up_cost_a_share_of_the_time() {
    let mut wired = Wired::new([guest(1)], 1);
    wired.arrive_all((0..256).map(|number| numbered(1, number)));
    let mut rx = wired.rig.guests[0].rx.remove(0);
    let looked = std::rc::Rc::new(std::cell::Cell::new(0));
    let looks = std::rc::Rc::clone(&looked);
    // The guest gives its buffers back once for each wait, and is full again with the next batch.
    HOOK.set(Some(Box::new(move || {
        looks.set(looks.get() + 1);
        if looks.get() % 8 == 0 {
            let _ = rx.receive(false);
        }
    })));
    let start = Instant::now();
    for _ in 0..20_000 {
        wired.arrive_all((0..64).map(|number| numbered(1, number)));
    }
    // A look counts for a microsecond at least: 2 ms at once, and a sixteenth of the time.
    let most = 2_000 + start.elapsed().as_micros() / 16 + 1_000;
    assert!((looked.get() as u128) < most, "{} looks in {:?}", looked.get(), start.elapsed());
    wired.consistent();
    HOOK.set(None);
}

#[test]
fn frames_between_guests_do_not_wait() {
    let mut wired = Wired::new([guest(1), guest(2)], 1);
    let looks = count_looks();
    for _ in 0..300 {
        wired.rig.send(0, &frame(mac(2), mac(1), 0x0800, 60));
    }
    assert_eq!((looks(), wired.rig.stats(1).discards[DiscardReason::NoBuffer]), (0, 44));
    HOOK.set(None);
}
