//! Front-ends that lie: bad sizes, descriptors too many or too few, rings that do not exist, streams that are no vhost-user.
//! Each ends its own session, closes what it sent, and leaves the daemon able to serve the next.

use super::fronts::{BIT30, qemu_7_2};
use super::rig::*;
use avio_proto::vhost_user::features as protocol;
use avio_proto::vhost_user::message::{FLAG_NEED_REPLY, FLAG_REPLY, Header};
use avio_proto::vhost_user::payload::MemoryRegion;
use avio_proto::vhost_user::{Outgoing, Request};
use proptest::prelude::*;
use std::os::fd::OwnedFd;

/// Says `bad` to a session whose rings run, with a pipe among the descriptors; the session ends and nothing leaks.
fn ends_with(bad: Say, extra_fds: usize) {
    let mut rig = Rig::new();
    rig.say_all(qemu_7_2());
    let (leak, write) = Leak::new();
    let mut fds: Vec<OwnedFd> = bad.fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
    fds.extend((0..extra_fds).map(|_| write.try_clone().unwrap()));
    drop(write);
    let request = bad.request;
    let bytes = Outgoing::new(request.0, bad.flags, &bad.payload, vec![]).bytes;
    rig.send_raw(&bytes, &fds);
    drop(fds);
    rig.expect_end();
    assert!(leak.is_closed(), "{request}: a descriptor leaked");
}

#[test]
fn too_many_or_too_few_descriptors() {
    ends_with(ask(Request::GET_FEATURES), 1);
    ends_with(number(Request::SET_FEATURES, BIT30), 1);
    ends_with(state(Request::SET_VRING_NUM, 0, 64), 2);
    ends_with(ring_addr(0), 1);
    ends_with(ring_fd(Request::SET_VRING_KICK, 0), 1);
    ends_with(mem_table(), 1);
    ends_with(Say { fds: vec![], ..mem_table() }, 0);
    ends_with(Say { fds: vec![], ..ring_fd(Request::SET_VRING_CALL, 0) }, 0);
    ends_with(number(Request::SET_VRING_KICK, 0x100), 1);
    ends_with(say(Request::ADD_MEM_REG, whole_memory().encode_single(), vec![]), 0);
    ends_with(say(Request::SET_LOG_BASE, [0; 16], vec![]), 0);
    ends_with(say(Request::SET_BACKEND_REQ_FD, [], vec![]), 0);
    // More than any message may carry.
    ends_with(ask(Request::SET_OWNER), 33);
}

#[test]
fn payloads_that_are_too_short() {
    for request in Request::KNOWN {
        let needs_payload = !matches!(
            *request,
            Request::GET_FEATURES
                | Request::SET_OWNER
                | Request::RESET_OWNER
                | Request::GET_PROTOCOL_FEATURES
                | Request::GET_QUEUE_NUM
                | Request::RESET_DEVICE
                | Request::GET_MAX_MEM_SLOTS
                | Request::GET_STATUS
                | Request::SET_CONFIG
                | Request::SET_LOG_FD
        );
        let offered = !matches!(request.0, 22 | 23 | 26..=30 | 33 | 35);
        if needs_payload && offered {
            ends_with(say(*request, [0; 7], vec![]), 0);
        }
    }
}

#[test]
fn rings_that_do_not_exist() {
    for index in [4, 255, 256, u32::MAX] {
        ends_with(state(Request::SET_VRING_NUM, index, 64), 0);
        ends_with(state(Request::GET_VRING_BASE, index, 0), 0);
        ends_with(state(Request::SET_VRING_ENABLE, index, 1), 0);
    }
    ends_with(ring_fd(Request::SET_VRING_CALL, 4), 0);
    ends_with(ring_addr(4), 0);
}

#[test]
fn values_out_of_range() {
    ends_with(state(Request::SET_VRING_NUM, 0, 0), 0);
    ends_with(state(Request::SET_VRING_NUM, 0, 32769), 0);
    ends_with(number(Request::SET_FEATURES, 1 << 63), 0);
    let table = |region: MemoryRegion| {
        say(Request::SET_MEM_TABLE, MemoryRegion::encode_table(&[region]), vec![memory_file(MEM_LEN)])
    };
    ends_with(table(MemoryRegion { len: 0, ..whole_memory() }), 0);
    ends_with(table(MemoryRegion { len: MEM_LEN + 1, ..whole_memory() }), 0);
    ends_with(table(MemoryRegion { len: u64::MAX, ..whole_memory() }), 0);
    ends_with(table(MemoryRegion { mmap_offset: u64::MAX - 5, ..whole_memory() }), 0);
    ends_with(table(MemoryRegion { mmap_offset: 4096, ..whole_memory() }), 0);
    ends_with(table(MemoryRegion { guest_base: u64::MAX - 5, ..whole_memory() }), 0);
    let twice = MemoryRegion::encode_table(&[whole_memory(), whole_memory()]);
    ends_with(say(Request::SET_MEM_TABLE, twice, vec![memory_file(MEM_LEN), memory_file(MEM_LEN)]), 0);
    // Not memory, and not a kick.
    ends_with(mem_table_of(event_fd()), 0);
    let file = OwnedFd::from(std::fs::File::open("/proc/self/status").unwrap());
    ends_with(Say { fds: vec![file], ..ring_fd(Request::SET_VRING_KICK, 0) }, 0);
}

#[test]
fn streams_that_are_no_vhost_user() {
    for header in [
        Header { request: 1, flags: 0, size: 0 },
        Header { request: 1, flags: 2, size: 0 },
        Header { request: 5, flags: 1, size: 4097 },
        Header { request: 5, flags: 1, size: u32::MAX },
        Header { request: 1, flags: 1 | FLAG_REPLY, size: 0 },
    ] {
        let mut rig = Rig::new();
        rig.send_raw(&header.encode(), &[]);
        rig.expect_end();
    }
}

#[test]
fn unknown_requests_are_refused_and_survived() {
    let mut rig = Rig::new();
    rig.send(ask(Request(4711)));
    rig.call(number(Request::SET_PROTOCOL_FEATURES, protocol::IMPLEMENTED | 1 << 63).clone_without_fds());
    let refused = Say { flags: FLAG_NEED_REPLY, ..ask(Request(4711)) };
    assert_eq!(rig.call_number(refused), 1);
    rig.barrier();
}

/// A region that cannot be mapped, by a front-end that listens to acknowledgements: hot plug fails, the guest lives.
#[test]
fn a_refused_region_leaves_the_session_alone() {
    let mut rig = Rig::new();
    rig.say_all(qemu_7_2());
    let region =
        MemoryRegion { guest_base: MEM_LEN, len: MEM_LEN, user_base: USER + MEM_LEN, mmap_offset: MEM_LEN };
    let add = say(Request::ADD_MEM_REG, region.encode_single(), vec![memory_file(MEM_LEN)]);
    assert_eq!(rig.call_number(Say { flags: FLAG_NEED_REPLY, ..add }), 1);
    assert_eq!(rig.runs(), [0, 1]);
    // Overlap is found only when the table is built: the rings have stopped by then and run again.
    let region = MemoryRegion { mmap_offset: 4096, len: MEM_LEN - 4096, ..whole_memory() };
    let add = say(Request::ADD_MEM_REG, region.encode_single(), vec![memory_file(MEM_LEN)]);
    assert_eq!(rig.call_number(Say { flags: FLAG_NEED_REPLY, ..add }), 1);
    assert_eq!(rig.runs(), [0, 1]);
}

/// A front-end that asks and never reads is not heard again until it does; the daemon keeps a bounded amount for it.
#[test]
fn a_front_end_that_does_not_read() {
    let mut rig = Rig::new();
    let question = Outgoing::new(Request::GET_FEATURES.0, 0, &[], vec![]).bytes;
    let mut asked = 0;
    while crate::session::stream::send(rig.front.as_ref().unwrap().socket_fd(), &question, &[]).is_ok() {
        asked += 1;
        rig.sessions.on_ready();
        assert!(asked < 1_000_000, "no back-pressure");
    }
    for _ in 0..asked {
        rig.reply();
    }
    rig.barrier();
}

impl Say {
    fn clone_without_fds(&self) -> Self {
        Self { request: self.request, flags: FLAG_NEED_REPLY, payload: self.payload.clone(), fds: vec![] }
    }
}

/// One random message that is plausible enough to get past the first check.
fn any_say() -> impl Strategy<Value = (u32, bool, u32, u64, usize)> {
    (1u32..=41, any::<bool>(), 0u32..5, prop_oneof![0u64..3, Just(256), any::<u64>()], 0usize..4)
}

fn build((request, ack, index, value, shape): (u32, bool, u32, u64, usize)) -> Say {
    let request = Request(request);
    let mut say = match request {
        Request::SET_MEM_TABLE if shape > 0 => mem_table(),
        Request::ADD_MEM_REG | Request::REM_MEM_REG => {
            let region = MemoryRegion {
                guest_base: u64::from(index) * MEM_LEN,
                user_base: USER + u64::from(index) * MEM_LEN,
                ..whole_memory()
            };
            let fds = if request == Request::ADD_MEM_REG { vec![memory_file(MEM_LEN)] } else { vec![] };
            say(request, region.encode_single(), fds)
        }
        Request::SET_VRING_ADDR => ring_addr(index),
        Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR if shape > 0 => {
            ring_fd(request, index)
        }
        Request::SET_FEATURES if shape > 0 => {
            number(request, if shape == 1 { BIT30 | 1 << 32 } else { 1 << 32 })
        }
        Request::SET_VRING_NUM
        | Request::SET_VRING_BASE
        | Request::SET_VRING_ENABLE
        | Request::GET_VRING_BASE => state(request, index, value as u32),
        _ => say(request, [value.to_ne_bytes(), [0; 8]].concat(), vec![]),
    };
    say.flags = if ack { FLAG_NEED_REPLY } else { 0 };
    say
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Whatever is said in whatever order: no panic, no ring started twice or stopped without a start (the rig checks), every
    /// running ring's areas lie in memory that is mapped, and the end is always reached.
    #[test]
    fn random_messages(
        prelude in any::<bool>(),
        says in prop::collection::vec(any_say(), 1..40),
        base in any::<u32>(),
    ) {
        let mut rig = Rig::new();
        rig.base = base;
        if prelude {
            rig.say_all(qemu_7_2());
        }
        for say in says {
            rig.send(build(say));
            rig.sessions.on_ready();
        }
        for _ in 0..3 {
            rig.turn();
        }
        for ring in rig.running.values() {
            // Every ring that runs is on the same, newest table.
            let first = rig.running.values().next().unwrap();
            prop_assert!(std::sync::Arc::ptr_eq(&ring.memory, &first.memory));
            prop_assert!(ring.memory.user_slice(ring.setup.driver_user, 4).is_some());
            prop_assert!(ring.memory.user_slice(ring.setup.device_user, 4).is_some());
        }
        rig.vanish();
    }
}

#[test]
fn events_that_nobody_takes_stop_the_reading_and_none_is_lost() {
    const COUNT: usize = 3000;
    let mut rig = Rig::new();
    let say = number(Request::SEND_RARP, 0x0605_0403_0201);
    let one = Outgoing::new(say.request.0, 0, &say.payload, vec![]).bytes;
    rig.send_raw(&one.repeat(COUNT), &[]);
    let mut total = 0;
    for _ in 0..4 {
        (0..50).for_each(|_| rig.sessions.on_ready());
        let waiting = std::iter::from_fn(|| rig.sessions.next_event()).count();
        assert!(waiting < 1100, "{waiting} events wait");
        total += waiting;
    }
    assert_eq!(total, COUNT);
}
