//! The quirks of FRONTENDS.md ("Quirks to survive"), each by its number, as far as a session sees them.

use super::fronts::{BIT30, qemu_7_2, uml};
use super::rig::*;
use crate::session::DeviceSpec;
use avio_proto::vhost_user::message::FLAG_NEED_REPLY;
use avio_proto::vhost_user::payload::{Config, VringState};
use avio_proto::vhost_user::{Request, features as protocol};
use avio_proto::virtio::features as virtio;

fn base_reply(rig: &mut Rig, ring: u32) -> u32 {
    VringState::decode(&rig.call(state(Request::GET_VRING_BASE, ring, 0))).unwrap().num
}

/// UML hands every bit to the guest: nothing is offered that the device did not ask for, except vhost's own two.
#[test]
fn quirk_01_only_what_the_device_offers_is_offered() {
    let mut rig = Rig::new();
    let offered = rig.call_number(ask(Request::GET_FEATURES));
    assert_eq!(offered, NET_FEATURES | BIT30 | virtio::VHOST_LOG_ALL);
    assert_eq!(offered & virtio::NET_CTRL_VQ, 0);
}

#[test]
fn quirk_02_uml_packed_base_without_wrap_bits() {
    let mut rig = Rig::new();
    rig.say_all(uml());
    assert_eq!(rig.running[&0].setup.base, 0x8000_8000);
    assert_ne!(rig.running[&0].setup.features & virtio::RING_PACKED, 0);
}

/// A front-end that acks bit 30 means what it says: 0 is a packed ring after an odd number of rounds.
#[test]
fn quirk_02_is_not_applied_to_qemu() {
    let mut rig = Rig::new();
    let mut script = qemu_7_2();
    script[8] = number(Request::SET_FEATURES, virtio::VERSION_1 | virtio::RING_PACKED | BIT30);
    rig.say_all(script);
    assert_eq!(rig.running[&0].setup.base, 0);
}

#[test]
fn quirk_03_uml_rings_start_enabled_judged_by_the_last_set_features() {
    let mut rig = Rig::new();
    rig.say_all(uml());
    assert_eq!(rig.runs(), [0, 1]);
    assert_eq!(rig.running[&0].features & BIT30, 0);
    // With bit 30 in the last one, the same messages leave the rings disabled.
    let mut rig = Rig::new();
    let mut script = uml();
    script[7] = Say { flags: FLAG_NEED_REPLY, ..number(Request::SET_FEATURES, virtio::VERSION_1 | BIT30) };
    rig.say_all(script);
    assert_eq!(rig.runs(), Vec::<u16>::new());
}

#[test]
fn quirk_04_uml_memory_table_is_longer_than_needed_and_at_an_odd_address() {
    let mut rig = Rig::new();
    rig.say_all(uml());
    let memory = &rig.running[&0].memory;
    assert_eq!(memory.regions()[0].guest_base, 0x60a9_3000);
    assert_eq!(memory.user_to_guest(USER + 0x10), Some(0x60a9_3010));
}

#[test]
fn quirk_05_scsi_may_ack_a_bit_that_was_not_offered() {
    let device = DeviceSpec { features_tolerated: 1 << 2, ..net_device() };
    let mut rig = Rig::with(device);
    rig.say_all(vec![number(Request::SET_FEATURES, 1 << 2 | BIT30)]);
    assert_eq!(rig.told(), [format!("Features({})", 1u64 << 2 | BIT30)]);
    // A device that does not tolerate it: the guest would rely on what is not there.
    let mut rig = Rig::new();
    rig.send(number(Request::SET_FEATURES, 1 << 2 | BIT30));
    rig.expect_end();
}

/// SeaBIOS: only ring 2 has addresses, all three are enabled; then Linux starts over after GET_VRING_BASE.
#[test]
fn quirk_06_firmware_enables_unset_rings_and_linux_starts_over() {
    let mut rig = Rig::new();
    rig.say_all(vec![
        number(Request::SET_FEATURES, virtio::VERSION_1 | BIT30),
        mem_table(),
        state(Request::SET_VRING_NUM, 2, 128),
        state(Request::SET_VRING_BASE, 2, 0),
        ring_addr(2),
        ring_fd(Request::SET_VRING_KICK, 2),
        ring_fd(Request::SET_VRING_CALL, 2),
    ]);
    rig.say_all((0..3).map(|ring| state(Request::SET_VRING_ENABLE, ring, 1)).collect());
    assert_eq!(rig.runs(), [2]);
    rig.base = 17;
    assert_eq!(base_reply(&mut rig, 2), 17);
    assert_eq!(base_reply(&mut rig, 0), 0, "a ring that never ran has a base too");
    assert_eq!(rig.runs(), Vec::<u16>::new());
    // Ring state survives: a kick descriptor is all that is missing.
    rig.say_all(vec![ring_fd(Request::SET_VRING_KICK, 2)]);
    assert_eq!(rig.runs(), [2]);
    let ring = &rig.running[&2];
    assert_eq!((ring.setup.base, ring.setup.size, ring.call.is_some()), (17, 128, true));
}

#[test]
fn quirk_07_get_features_is_a_barrier_behind_enable() {
    let mut rig = Rig::new();
    rig.say_all(qemu_7_2());
    rig.say_all(vec![state(Request::SET_VRING_ENABLE, 0, 0)]);
    rig.stops_at_once = false;
    rig.send(state(Request::SET_VRING_ENABLE, 1, 0));
    rig.send(ask(Request::GET_FEATURES));
    rig.until("RingStop", |rig| rig.stopping == [1]);
    rig.stop(1);
    assert_eq!(rig.reply().request, Request::GET_FEATURES);
    assert_eq!(rig.runs(), Vec::<u16>::new());
}

/// The rig's `call` checks the flags (5) of every reply.
#[test]
fn quirk_08_get_config_replies() {
    let mut rig = Rig::new();
    let ask = |offset, size, flags| {
        let bytes = vec![0; size as usize];
        say(Request::GET_CONFIG, Config { offset, size, flags, bytes }.encode(), vec![])
    };
    let reply = Config::decode(&rig.call(ask(0, 60, 1))).unwrap();
    assert_eq!((reply.size, reply.flags, reply.bytes.len()), (60, 1, 60));
    assert_eq!(reply.bytes[..25], (0..24).chain([0]).collect::<Vec<u8>>());
    assert_eq!(Config::decode(&rig.call(ask(20, 6, 0))).unwrap().bytes, [20, 21, 22, 23, 0, 0]);
    assert_eq!(rig.call(ask(250, 7, 0)), [0; 0], "beyond 256 bytes: refused");
}

#[test]
fn quirk_09_queue_number_counts_rings() {
    assert_eq!(Rig::new().call_number(ask(Request::GET_QUEUE_NUM)), 4);
}

/// QEMU acks whatever is offered; what a device asks for beyond our own set is not offered, and extra acks are no error.
#[test]
fn quirk_10_protocol_features_are_only_our_own() {
    let mut rig = Rig::with(DeviceSpec { protocol_features: u64::MAX, ..net_device() });
    let offered = rig.call_number(ask(Request::GET_PROTOCOL_FEATURES));
    assert_eq!(offered, protocol::IMPLEMENTED);
    assert_eq!(offered & (1 << 14 | 1 << 17), 0);
    rig.say_all(vec![number(Request::SET_PROTOCOL_FEATURES, u64::MAX)]);
    let mut rig = Rig::with(DeviceSpec { protocol_features: protocol::MQ, ..net_device() });
    assert_eq!(rig.call_number(ask(Request::GET_FEATURES)) & virtio::VHOST_LOG_ALL, 0);
}

/// Reconnecting (quirk 11) is `replay::cloud_hypervisor_starts_with_inflight_and_reconnects`, migration (quirk 12) is
/// `memory::migration_*`. Quirk 13: a front-end without a channel cannot be told, and that is no error.
#[test]
fn quirk_13_config_changes_need_a_channel() {
    let mut rig = Rig::new();
    rig.barrier();
    assert!(!rig.sessions.set_config(rig.id, vec![9]));
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    rig.say_all(vec![say(Request::SET_BACKEND_REQ_FD, [], vec![theirs.into()])]);
    assert!(rig.sessions.set_config(rig.id, vec![8]));
    let mut bytes = [0; 12];
    rustix::io::read(&ours, &mut bytes).unwrap();
    assert_eq!(bytes, [2u32, 1, 0].map(u32::to_ne_bytes).concat().as_slice(), "CONFIG_CHANGE_MSG");
    let asked = Config { offset: 0, size: 1, flags: 0, bytes: vec![0] };
    let reply = rig.call(say(Request::GET_CONFIG, asked.encode(), vec![]));
    assert_eq!(Config::decode(&reply).unwrap().bytes, [8]);
}

/// Quirk 14 is the SCSI driver's; nothing of it reaches a session. What a reset leaves behind does.
#[test]
fn resets_stop_everything() {
    for reset in [ask(Request::RESET_DEVICE), number(Request::SET_STATUS, 0), ask(Request::RESET_OWNER)] {
        let mut rig = Rig::new();
        rig.say_all(qemu_7_2());
        let name = reset.request;
        rig.say_all(vec![reset]);
        assert_eq!(rig.runs(), Vec::<u16>::new(), "{name}");
        rig.say_all(qemu_7_2().split_off(8));
        assert_eq!(rig.runs(), [0, 1], "{name}");
    }
}

#[test]
fn mtu_status_and_announcement() {
    let mut rig = Rig::new();
    let acks = number(Request::SET_PROTOCOL_FEATURES, protocol::IMPLEMENTED);
    rig.call(Say { flags: FLAG_NEED_REPLY, ..acks });
    let mtu = |value| Say { flags: FLAG_NEED_REPLY, ..number(Request::NET_SET_MTU, value) };
    assert_eq!(rig.call_number(mtu(1500)), 0);
    assert_eq!(rig.call_number(mtu(9001)), 1);
    assert_eq!(rig.call_number(mtu(67)), 1);
    rig.say_all(vec![say(Request::SEND_RARP, [2, 0, 0, 0, 0, 7, 0, 0], vec![])]);
    assert_eq!(rig.told(), ["Mtu(1500)", "Announce([2, 0, 0, 0, 0, 7])"]);
    rig.say_all(vec![number(Request::SET_STATUS, 0xb)]);
    assert_eq!(rig.call_number(ask(Request::GET_STATUS)), 0xb);
}

#[test]
fn a_ring_without_a_kick_descriptor_is_polled() {
    let mut rig = Rig::new();
    let mut script = qemu_7_2();
    script[13] = number(Request::SET_VRING_KICK, 0x100);
    rig.say_all(script);
    assert_eq!(rig.runs(), [0, 1]);
    assert!(rig.running[&0].kick.is_none() && rig.running[&1].kick.is_some());
}
