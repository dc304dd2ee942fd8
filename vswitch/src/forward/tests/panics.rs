//! A panic at any step of a batch stops that batch's ring, and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use avio_host::inject;
use avio_proto::config::MacAddr;
use avio_proto::control::DiscardReason as Reason;

use super::rig::{Attach, Rig, frame};
use crate::forward::Event;
use crate::table::tests::mac;

const IPV4: u16 = 0x0800;
/// Children run one after the other: each starts a process as large as all the tests.
static TURN: Mutex<()> = Mutex::new(());

/// Panics at `step` while guest 0 sends three frames to guest 1 and one broadcast. Returns the rig afterwards.
fn panicked_at(step: &str) -> Rig {
    let mut rig = Rig::new((0..3).map(|i| Attach::new(&format!("guest{i}"), mac(i))));
    for to in [mac(1), mac(1), MacAddr::BROADCAST, mac(1)] {
        rig.guests[0].tx[0].put(&Default::default(), &frame(to, mac(0), IPV4, 60), &[]).unwrap();
    }
    rig.guests[0].tx[0].driver.publish();
    inject::arm(step, 1);
    let outcome = catch_unwind(AssertUnwindSafe(|| rig.forwarder.forward(&mut rig.guests[0].queues[0], 64)));
    assert!(outcome.is_err(), "{step} was not reached");
    // What the engine does when the worker tells it.
    rig.guests[0].queues[0].broken = true;
    rig
}

/// Runs this test again in a child process with `AVIO_VSWITCH_PANIC_STEP`, unless this is the child. Injection points are
/// global and all tests here forward, so a step that is armed needs a process of its own.
fn in_child(test: &str, step: &str, body: impl FnOnce()) {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if std::env::var("AVIO_VSWITCH_PANIC_STEP").is_ok_and(|wanted| wanted == step) {
        body();
        return;
    }
    if std::env::var("AVIO_VSWITCH_PANIC_STEP").is_ok() {
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("AVIO_VSWITCH_PANIC_STEP", step)
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{step}: {text}");
}

const STEPS: [&str; 5] =
    ["forward::take", "forward::frame", "forward::deliver", "forward::push", "forward::complete"];

#[test]
fn other_rings_go_on_and_no_lock_stays() {
    for step in STEPS {
        in_child("forward::tests::panics::other_rings_go_on_and_no_lock_stays", step, || {
            let mut rig = panicked_at(step);
            // What was pushed before the panic was never published, except at the last step, when all was delivered.
            let seen = if step == "forward::complete" { 4 } else { 0 };
            assert_eq!(rig.received(1).len(), seen, "{step}");
            assert_eq!(rig.stats(0).taken, 0, "a batch that panicked counts for nothing at its sender");
            assert!(rig.stats(1).is_consistent());
            rig.received(2);
            for _ in 0..300 {
                rig.send(2, &frame(mac(1), mac(2), IPV4, 60));
                assert_eq!(rig.received(1).len(), 1, "{step}: the receive ring is whole");
            }
        });
    }
}

#[test]
fn a_half_published_receive_ring_is_broken_and_the_rest_goes_on() {
    in_child(
        "forward::tests::panics::a_half_published_receive_ring_is_broken_and_the_rest_goes_on",
        "forward::commit",
        || {
            let mut rig = panicked_at("forward::commit");
            rig.send(2, &frame(mac(1), mac(2), IPV4, 60));
            assert_eq!(rig.received(1).len(), 0);
            assert_eq!(rig.stats(1).discards[Reason::ReceiverDown], 1);
            let broken = |event: &Event| matches!(event, Event::RxBroken { error: None, .. });
            assert_eq!(
                rig.events.try_iter().filter(|event| broken(event)).count(),
                1,
                "control is told, once"
            );
            rig.send(1, &frame(mac(2), mac(1), IPV4, 60));
            assert_eq!(rig.received(2).len(), 1);
        },
    );
}
