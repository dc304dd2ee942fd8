//! The machine alone: what needs no memory. Everything with memory and descriptors is tested over sockets in
//! `avio-host/src/session/tests`.

use super::vring::{Base, Kick, Run, Vring};
use super::*;
use crate::vhost_user::Message;
use crate::vhost_user::payload::{InflightArea, MemoryRegion, VringAddr};
use crate::virtio::features::RING_PACKED;

fn spec() -> DeviceSpec {
    DeviceSpec { queue_max: 2, protocol_features: IMPLEMENTED, ..DeviceSpec::default() }
}

fn file() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn message(request: Request, payload: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
    Message { request, flags: 1, payload, fds }
}

fn table(regions: usize) -> Message {
    let regions: Vec<_> = (0..regions as u64)
        .map(|i| MemoryRegion { guest_base: i << 20, len: 1 << 20, user_base: i << 20, mmap_offset: 0 })
        .collect();
    let fds = regions.iter().map(|_| file()).collect();
    message(Request::SET_MEM_TABLE, MemoryRegion::encode_table(&regions), fds)
}

fn tickets(backend: &mut Backend) -> Vec<u64> {
    std::iter::from_fn(|| backend.next_action())
        .filter_map(|action| match action {
            Action::Map(request) => Some(request.ticket),
            Action::Create { ticket, .. } => Some(ticket),
            _ => None,
        })
        .collect()
}

#[test]
fn the_offer_is_completed_and_limited() {
    let spec = DeviceSpec { features: 1, protocol_features: u64::MAX, ..DeviceSpec::default() };
    assert_eq!(spec.offered(), 1 | VHOST_USER_PROTOCOL_FEATURES | VHOST_LOG_ALL);
    assert_eq!(spec.protocol_offered(), IMPLEMENTED);
}

/// One message at a time: while memory is being mapped no other is wanted, and one failure fails the whole table.
#[test]
fn mapping_failures_are_collected_before_the_session_ends() {
    let mut backend = Backend::new(spec());
    backend.receive(table(2)).unwrap();
    assert!(!backend.wants_message());
    let tickets = tickets(&mut backend);
    assert_eq!(tickets.len(), 2);
    backend.mapped(tickets[1], Err("no memory".into())).unwrap();
    assert!(!backend.wants_message(), "the other is still under way");
    let error = backend.mapped(tickets[0], Err("no memory either".into())).unwrap_err();
    assert_eq!(error.to_string(), "SET_MEM_TABLE: no memory either");
}

/// Answers of helpers may come after the session has ended, or twice, or for nobody.
#[test]
fn late_answers_are_dropped() {
    let mut backend = Backend::new(spec());
    backend.receive(table(1)).unwrap();
    let ticket = tickets(&mut backend)[0];
    backend.mapped(ticket + 1, Err("not this one".into())).unwrap();
    backend.ring_stopped(1, 7).unwrap();
    backend.ring_stopped(900, 7).unwrap();
    backend.close();
    assert!(backend.is_closed());
    assert!(matches!(backend.next_action(), Some(Action::Event(Event::Disconnected))));
    backend.mapped(ticket, Err("too late".into())).unwrap();
    backend.close();
    assert!(backend.next_action().is_none());
}

#[test]
fn the_inflight_region_is_sized_for_the_larger_layout() {
    let mut backend = Backend::new(spec());
    let area = InflightArea { len: 0, mmap_offset: 0, queues: 2, queue_size: 3 };
    backend.receive(message(Request::GET_INFLIGHT_FD, area.encode(), vec![])).unwrap();
    let ticket = tickets(&mut backend)[0];
    backend.created(ticket, Ok(file())).unwrap();
    let Some(Action::Send(reply)) = backend.next_action() else { panic!("no reply") };
    assert_eq!((reply.bytes.len(), reply.fds.len()), (12 + 24, 1), "QEMU wants 24 bytes exactly");
    let answer = InflightArea::decode(&reply.bytes[12..]).unwrap();
    assert_eq!(answer, InflightArea { len: 2 * 128, ..area });
    let too_many = InflightArea { queues: 3, ..area };
    assert!(backend.receive(message(Request::GET_INFLIGHT_FD, too_many.encode(), vec![])).is_err());
}

#[test]
fn base_of_a_ring() {
    let bit30 = VHOST_USER_PROTOCOL_FEATURES;
    let start = |base, features| {
        let addr = VringAddr { index: 0, flags: 0, desc: 0, used: 0, avail: 0, log: 0 };
        let ring = Vring { size: 4, addr: Some(addr), base, kick: Some(Kick::Poll), ..Vring::default() };
        ring.base_for_start(features)
    };
    assert_eq!(start(Base::Initial, bit30), 0);
    assert_eq!(start(Base::Initial, bit30 | RING_PACKED), 0x8000_8000);
    assert_eq!(start(Base::Given(0xffff_0007), bit30), 7, "split rings have 16 bits");
    assert_eq!(start(Base::Given(0), RING_PACKED), 0x8000_8000, "User-Mode Linux");
    assert_eq!(start(Base::Given(0), RING_PACKED | bit30), 0);
    assert_eq!(start(Base::Given(0x8005), RING_PACKED | bit30), 0x8005_8005, "DPDK");
    assert_eq!(start(Base::Given(0x8003_8005), RING_PACKED | bit30), 0x8003_8005);
    assert_eq!(start(Base::Reported(0), RING_PACKED), 0, "the device knows");
}

#[test]
fn a_ring_that_runs_or_stops_is_not_started() {
    let table = MemoryTable::new(Vec::new(), None).unwrap();
    for run in [Run::Stopped, Run::Running, Run::Stopping] {
        let ring = Vring { run, kick: Some(Kick::Poll), size: 4, ..Vring::default() };
        assert!(ring.runnable(0, &table).is_none(), "no addresses");
    }
}
