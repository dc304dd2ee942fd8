//! Recorded message orders of the front-ends in FRONTENDS.md, for two rings (one pair) of a net device.

use super::rig::*;
use avio_proto::vhost_user::Request;
use avio_proto::vhost_user::features as protocol;
use avio_proto::vhost_user::message::FLAG_NEED_REPLY;
use avio_proto::vhost_user::payload::{Config, InflightArea, MemoryRegion, VringState};
use avio_proto::virtio::features as virtio;

pub const BIT30: u64 = virtio::VHOST_USER_PROTOCOL_FEATURES;
const ACKED: u64 = virtio::VERSION_1 | virtio::NET_MRG_RXBUF | BIT30;

fn acked(say: Say) -> Say {
    Say { flags: FLAG_NEED_REPLY, ..say }
}

/// QEMU 7.2: no memory slots, no STATUS.
pub fn qemu_7_2() -> Vec<Say> {
    let mut script = vec![
        ask(Request::GET_FEATURES),
        ask(Request::GET_PROTOCOL_FEATURES),
        number(Request::SET_PROTOCOL_FEATURES, protocol::IMPLEMENTED & !protocol::CONFIGURE_MEM_SLOTS),
        ask(Request::GET_QUEUE_NUM),
        ask(Request::SET_OWNER),
        ask(Request::GET_FEATURES),
        ring_fd(Request::SET_VRING_CALL, 0),
        ring_fd(Request::SET_VRING_CALL, 1),
        // The guest's driver is there.
        number(Request::SET_FEATURES, ACKED),
        acked(mem_table()),
    ];
    for ring in 0..2 {
        script.push(state(Request::SET_VRING_NUM, ring, 256));
        script.push(state(Request::SET_VRING_BASE, ring, 0));
        script.push(ring_addr(ring));
        script.push(ring_fd(Request::SET_VRING_KICK, ring));
        script.push(ring_fd(Request::SET_VRING_CALL, ring));
    }
    script.extend((0..2).map(|ring| state(Request::SET_VRING_ENABLE, ring, 1)));
    script
}

/// QEMU 10: memory slots, STATUS, back-end channel, GET_FEATURES as a barrier behind SET_VRING_ENABLE.
pub fn qemu_10() -> Vec<Say> {
    let region = whole_memory().encode_single();
    let mut script = vec![
        ask(Request::GET_FEATURES),
        ask(Request::GET_PROTOCOL_FEATURES),
        number(Request::SET_PROTOCOL_FEATURES, protocol::IMPLEMENTED),
        ask(Request::GET_QUEUE_NUM),
        ask(Request::GET_MAX_MEM_SLOTS),
        ask(Request::SET_OWNER),
        ask(Request::GET_FEATURES),
        ring_fd(Request::SET_VRING_CALL, 0),
        ring_fd(Request::SET_VRING_ERR, 0),
        ring_fd(Request::SET_VRING_CALL, 1),
        ring_fd(Request::SET_VRING_ERR, 1),
        number(Request::SET_FEATURES, ACKED),
        ask(Request::GET_STATUS),
        number(Request::SET_STATUS, 8 | 2 | 1),
        acked(say(Request::ADD_MEM_REG, region, vec![memory_file(MEM_LEN)])),
    ];
    for ring in 0..2 {
        script.push(state(Request::SET_VRING_NUM, ring, 256));
        script.push(state(Request::SET_VRING_BASE, ring, 0));
        script.push(ring_addr(ring));
        script.push(ring_fd(Request::SET_VRING_KICK, ring));
    }
    script.push(ask(Request::GET_STATUS));
    script.push(number(Request::SET_STATUS, 0xf));
    for ring in 0..2 {
        script.push(ring_fd(Request::SET_VRING_CALL, ring));
        script.push(state(Request::SET_VRING_ENABLE, ring, 1));
        script.push(ask(Request::GET_FEATURES));
    }
    script
}

/// QEMU, both versions, when the guest resets its driver.
pub fn qemu_stop() -> Vec<Say> {
    let mut script: Vec<Say> = (0..2).map(|ring| state(Request::SET_VRING_ENABLE, ring, 0)).collect();
    script.extend((0..2).map(|ring| state(Request::GET_VRING_BASE, ring, 0)));
    script
}

/// DPDK virtio-user 22.11: call descriptors before anything else, addresses after the base, first pair enabled last.
pub fn dpdk_virtio_user(packed: bool) -> Vec<Say> {
    let (features, base) = if packed { (ACKED | virtio::RING_PACKED, 0x8000) } else { (ACKED, 0) };
    let mut script = vec![
        ask(Request::SET_OWNER),
        ask(Request::GET_FEATURES),
        ask(Request::GET_PROTOCOL_FEATURES),
        number(Request::SET_PROTOCOL_FEATURES, protocol::MQ | protocol::REPLY_ACK | protocol::STATUS),
        ask(Request::GET_QUEUE_NUM),
        number(Request::SET_STATUS, 0),
        number(Request::SET_STATUS, 1),
        number(Request::SET_STATUS, 3),
        ring_fd(Request::SET_VRING_CALL, 0),
        ring_fd(Request::SET_VRING_CALL, 1),
        number(Request::SET_FEATURES, features),
        acked(number(Request::SET_STATUS, 0xb)),
        ask(Request::GET_STATUS),
        acked(mem_table()),
    ];
    for ring in 0..2 {
        script.push(state(Request::SET_VRING_NUM, ring, 256));
        script.push(state(Request::SET_VRING_BASE, ring, base));
        script.push(ring_addr(ring));
        script.push(ring_fd(Request::SET_VRING_KICK, ring));
    }
    script.extend((0..2).map(|ring| state(Request::SET_VRING_ENABLE, ring, 1)));
    script.push(acked(number(Request::SET_STATUS, 0xf)));
    script
}

/// User-Mode Linux 6.1: SET_FEATURES twice, the second without bit 30; call before size and addresses; memory at an odd
/// guest address in a payload with room for two; packed rings with base 0; no SET_VRING_ENABLE ever.
pub fn uml() -> Vec<Say> {
    let region =
        MemoryRegion { guest_base: 0x60a9_3000, len: MEM_LEN - 0x3000, user_base: USER, mmap_offset: 0x3000 };
    let mut payload = MemoryRegion::encode_table(&[region]);
    payload.resize(72, 0);
    let features = virtio::VERSION_1 | virtio::RING_PACKED | virtio::NET_MRG_RXBUF;
    let mut script = vec![
        ask(Request::SET_OWNER),
        ask(Request::GET_FEATURES),
        number(Request::SET_FEATURES, features | BIT30),
        ask(Request::GET_PROTOCOL_FEATURES),
        number(
            Request::SET_PROTOCOL_FEATURES,
            protocol::REPLY_ACK | protocol::BACKEND_REQ | protocol::CONFIG,
        ),
        acked(say(Request::SET_BACKEND_REQ_FD, [], vec![event_fd()])),
        say(Request::GET_CONFIG, Config { offset: 0, size: 6, flags: 0, bytes: vec![0; 6] }.encode(), vec![]),
        acked(number(Request::SET_FEATURES, features)),
        acked(say(Request::SET_MEM_TABLE, payload, vec![memory_file(MEM_LEN)])),
    ];
    for ring in 0..2 {
        script.push(acked(ring_fd(Request::SET_VRING_CALL, ring)));
        script.push(acked(state(Request::SET_VRING_NUM, ring, 256)));
        script.push(acked(state(Request::SET_VRING_BASE, ring, 0)));
        script.push(acked(ring_addr(ring)));
    }
    script.extend((0..2).map(|ring| acked(ring_fd(Request::SET_VRING_KICK, ring))));
    script
}

/// cloud-hypervisor v54: all sizes first, in-flight region, address before base, everything acknowledged, channel last.
pub fn cloud_hypervisor() -> Vec<Say> {
    let area = InflightArea { len: 0, mmap_offset: 0, queues: 2, queue_size: 256 };
    let mut script = vec![
        ask(Request::SET_OWNER),
        ask(Request::GET_FEATURES),
        ask(Request::GET_PROTOCOL_FEATURES),
        number(
            Request::SET_PROTOCOL_FEATURES,
            protocol::MQ
                | protocol::REPLY_ACK
                | protocol::CONFIG
                | protocol::CONFIGURE_MEM_SLOTS
                | protocol::INFLIGHT_SHMFD
                | protocol::LOG_SHMFD,
        ),
        ask(Request::GET_QUEUE_NUM),
        acked(number(Request::SET_FEATURES, ACKED)),
        acked(mem_table()),
        acked(state(Request::SET_VRING_NUM, 0, 256)),
        acked(state(Request::SET_VRING_NUM, 1, 256)),
        say(Request::GET_INFLIGHT_FD, area.encode(), vec![]),
    ];
    // Its answer is handed back; the replay uses a file of the same length.
    let len = 2 * (32 + 32 * 256);
    let area = InflightArea { len, ..area };
    script.push(acked(say(Request::SET_INFLIGHT_FD, area.encode(), vec![memory_file(len)])));
    for ring in 0..2 {
        script.push(acked(ring_addr(ring)));
        script.push(acked(state(Request::SET_VRING_BASE, ring, 0)));
        script.push(acked(ring_fd(Request::SET_VRING_CALL, ring)));
        script.push(acked(ring_fd(Request::SET_VRING_KICK, ring)));
    }
    script.extend((0..2).map(|ring| acked(state(Request::SET_VRING_ENABLE, ring, 1))));
    script
}

/// cloud-hypervisor when it reconnects: no GET of protocol features, start at the available index.
pub fn cloud_hypervisor_again() -> Vec<Say> {
    let mut script = vec![
        ask(Request::SET_OWNER),
        ask(Request::GET_FEATURES),
        number(Request::SET_PROTOCOL_FEATURES, protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG),
        acked(number(Request::SET_FEATURES, ACKED)),
        acked(mem_table()),
    ];
    for ring in 0..2 {
        script.push(acked(state(Request::SET_VRING_NUM, ring, 256)));
        script.push(acked(ring_addr(ring)));
        script.push(acked(say(
            Request::SET_VRING_BASE,
            VringState { index: ring, num: 77 }.encode(),
            vec![],
        )));
        script.push(acked(ring_fd(Request::SET_VRING_CALL, ring)));
        script.push(acked(ring_fd(Request::SET_VRING_KICK, ring)));
        script.push(acked(state(Request::SET_VRING_ENABLE, ring, 1)));
    }
    script
}
