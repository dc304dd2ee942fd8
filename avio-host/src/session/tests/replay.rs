//! Whole starts as real front-ends do them, starts over, and front-ends that vanish after any message of them.

use super::fronts::*;
use super::rig::*;
use avio_proto::vhost_user::Request;

fn starts_both(script: Vec<Say>) -> Rig {
    let mut rig = Rig::new();
    rig.say_all(script);
    assert_eq!(rig.runs(), [0, 1], "told {:?}", rig.told);
    rig
}

#[test]
fn qemu_7_2_starts_stops_and_starts() {
    let mut rig = starts_both(qemu_7_2());
    rig.base = 33;
    rig.say_all(qemu_stop());
    assert_eq!(rig.runs(), Vec::<u16>::new());
    // The second driver: the same messages from SET_FEATURES on.
    rig.say_all(qemu_7_2().split_off(8));
    assert_eq!(rig.runs(), [0, 1]);
    assert_eq!(rig.running[&0].setup.base, 0, "SET_VRING_BASE 0 was said again");
}

#[test]
fn qemu_10_starts() {
    let rig = starts_both(qemu_10());
    let ring = &rig.running[&1];
    assert!(ring.kick.is_some() && ring.call.is_some() && ring.err.is_some());
    assert_eq!(ring.setup.size, 256);
    assert_eq!(ring.setup.driver_user, addr_of(1).avail);
    assert!(ring.inflight.is_none());
}

#[test]
fn dpdk_virtio_user_starts_split_and_packed() {
    assert_eq!(starts_both(dpdk_virtio_user(false)).running[&0].setup.base, 0);
    // DPDK gives only the available half of a packed ring's base.
    assert_eq!(starts_both(dpdk_virtio_user(true)).running[&0].setup.base, 0x8000_8000);
}

#[test]
fn user_mode_linux_starts() {
    starts_both(uml());
}

#[test]
fn cloud_hypervisor_starts_with_inflight_and_reconnects() {
    let rig = starts_both(cloud_hypervisor());
    let inflight = rig.running[&1].inflight.as_ref().unwrap();
    assert_eq!((inflight.offset, inflight.len), (32 + 32 * 256, 32 + 32 * 256));
    let rig = starts_both(cloud_hypervisor_again());
    assert_eq!(rig.running[&0].setup.base, 77);
    // A resumed ring's guest is told to look, in case the last notification was lost.
    let mut count = [0; 8];
    rustix::io::read(rig.running[&0].call.as_ref().unwrap(), &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
}

#[test]
fn a_front_end_may_vanish_after_any_message() {
    let fronts: [fn() -> Vec<Say>; 5] = [qemu_7_2, qemu_10, || dpdk_virtio_user(true), uml, cloud_hypervisor];
    for (which, front) in fronts.into_iter().enumerate() {
        for said in 0..=front().len() {
            let mut rig = Rig::new();
            for say in front().into_iter().take(said) {
                let wait = has_reply(&say);
                rig.send(say);
                if wait {
                    rig.reply();
                }
            }
            rig.vanish();
            assert!(rig.running.is_empty(), "front-end {which}, {said} messages");
        }
    }
}

/// Without waiting for any reply, and in the middle of a message.
#[test]
fn a_front_end_may_vanish_in_the_middle_of_a_message() {
    for cut in [1, 11, 12, 13, 19] {
        let mut rig = Rig::new();
        let bytes = avio_proto::vhost_user::Outgoing::new(Request::SET_VRING_NUM.0, 0, &[0; 8], vec![]).bytes;
        rig.send_raw(&bytes[..cut], &[]);
        rig.vanish();
    }
}

/// Everything is expressed as stop and start: a change never meets a running ring.
#[test]
fn changes_under_running_rings_stop_and_start_them() {
    let mut rig = starts_both(qemu_10());
    rig.told();
    rig.base = 9;
    rig.say_all(vec![ring_fd(Request::SET_VRING_CALL, 1)]);
    assert_eq!(rig.told(), ["stop 1", "start 1"]);
    assert_eq!(rig.running[&1].setup.base, 9, "goes on where it stopped");
    rig.say_all(vec![state(Request::SET_VRING_ENABLE, 0, 0)]);
    assert_eq!(rig.told(), ["stop 0"]);
    rig.say_all(vec![state(Request::SET_VRING_ENABLE, 0, 0), state(Request::SET_VRING_ENABLE, 0, 1)]);
    assert_eq!(rig.told(), ["start 0"]);
    rig.say_all(vec![mem_table()]);
    assert_eq!(rig.told(), ["stop 0", "stop 1", "start 0", "start 1"]);
    rig.say_all(vec![ring_addr(0), state(Request::SET_VRING_NUM, 0, 256)]);
    assert_eq!(rig.told(), Vec::<String>::new(), "saying the same again is no change");
}

/// GET_VRING_BASE is answered only when the ring has stopped, and meanwhile nothing else is read.
#[test]
fn the_reply_waits_for_the_ring() {
    let mut rig = starts_both(qemu_7_2());
    (rig.stops_at_once, rig.base) = (false, 300);
    rig.send(state(Request::GET_VRING_BASE, 0, 0));
    rig.send(ask(Request::GET_FEATURES));
    rig.until("RingStop", |rig| rig.stopping == [0]);
    for _ in 0..5 {
        rig.turn();
    }
    assert!(matches!(
        rig.front.as_mut().unwrap().receive().unwrap(),
        crate::session::stream::Received::Later
    ));
    rig.stop(0);
    let reply = rig.reply();
    assert_eq!(reply.request, Request::GET_VRING_BASE);
    assert_eq!(reply.payload, [0u32.to_ne_bytes(), 300u32.to_ne_bytes()].concat());
    assert_eq!(rig.reply().request, Request::GET_FEATURES);
    assert_eq!(rig.runs(), [1]);
}

/// The front-end goes while a ring is stopping: Disconnected waits for the ring too.
#[test]
fn vanishing_while_a_ring_stops() {
    let mut rig = starts_both(qemu_7_2());
    rig.stops_at_once = false;
    rig.send(state(Request::GET_VRING_BASE, 0, 0));
    rig.until("RingStop", |rig| rig.stopping == [0]);
    rig.front = None;
    // The socket is not looked at while the machine is busy, so the end is seen once the ring has stopped.
    rig.stop(0);
    rig.until("the other ring is told to stop", |rig| rig.stopping == [0, 1]);
    assert!(rig.connected);
    rig.stop(1);
    rig.until("Disconnected", |rig| !rig.connected);
}

#[test]
fn removing_an_endpoint_stops_its_rings() {
    let mut rig = starts_both(qemu_7_2());
    rig.sessions.remove(rig.id);
    rig.until("Disconnected", |rig| !rig.connected);
    assert_eq!(rig.told().split_off(3), ["stop 0", "stop 1"]);
}
