//! Memory that comes, goes, is logged, lies at odd places, or is pulled away.

use super::fronts::{qemu_7_2, qemu_10};
use super::rig::*;
use crate::session::SharedMapping;
use avio_proto::mem::Mapping;
use avio_proto::vhost_user::backend::{MapPurpose, MapRequest};
use avio_proto::vhost_user::message::FLAG_NEED_REPLY;
use avio_proto::vhost_user::payload::{LogArea, MemoryRegion};
use avio_proto::vhost_user::{Request, features as protocol};
use avio_proto::virtio::features as virtio;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::sync::Arc;

fn region_at(slot: u64) -> MemoryRegion {
    let at = slot * MEM_LEN;
    MemoryRegion { guest_base: at, len: MEM_LEN, user_base: USER + at, mmap_offset: 0 }
}

fn add(slot: u64) -> Say {
    let fds = vec![memory_file(MEM_LEN)];
    Say { flags: FLAG_NEED_REPLY, ..say(Request::ADD_MEM_REG, region_at(slot).encode_single(), fds) }
}

fn remove(slot: u64) -> Say {
    Say { flags: FLAG_NEED_REPLY, ..say(Request::REM_MEM_REG, region_at(slot).encode_single(), vec![]) }
}

#[test]
fn addresses_may_come_before_the_memory_that_covers_them() {
    let mut rig = Rig::new();
    let mut script = qemu_7_2();
    let table = script.remove(9);
    rig.say_all(script);
    assert_eq!(rig.runs(), Vec::<u16>::new());
    rig.say_all(vec![table]);
    assert_eq!(rig.runs(), [0, 1]);
}

/// QEMU 7.2 adds every region once for each queue pair. Nothing stops for what is there already.
#[test]
fn a_region_added_twice_is_one_region() {
    let mut rig = Rig::new();
    rig.say_all(qemu_10());
    assert_eq!(rig.call_number(add(1)), 0);
    let before = Arc::clone(&rig.running[&0].memory);
    assert_eq!(rig.call_number(add(1)), 0);
    assert_eq!(before.regions().len(), 2);
    assert!(Arc::ptr_eq(&before, &rig.running[&0].memory), "no ring was started anew");
}

#[test]
fn memory_slots_come_and_go() {
    let mut rig = Rig::new();
    rig.say_all(qemu_10());
    assert_eq!(rig.call_number(ask(Request::GET_MAX_MEM_SLOTS)), 509);
    assert_eq!(rig.call_number(add(1)), 0);
    assert_eq!(rig.running[&0].memory.regions().len(), 2);
    let old = Arc::downgrade(&rig.running[&0].memory.regions()[1].mapping);
    rig.stops_at_once = false;
    rig.send(remove(1));
    rig.until("both rings are told to stop", |rig| rig.stopping == [0, 1]);
    rig.stop(0);
    rig.turn();
    assert!(old.strong_count() > 0, "mapped until the last ring has stopped");
    rig.stop(1);
    assert_eq!(rig.reply().request, Request::REM_MEM_REG);
    assert_eq!(old.strong_count(), 0, "and not longer than the answer");
    rig.drain_now();
    assert_eq!(rig.runs(), [0, 1]);
    rig.stops_at_once = true;
    // Without the slot that the rings lie in, they stop and stay stopped until it is back.
    assert_eq!(rig.call_number(remove(0)), 0);
    assert_eq!(rig.runs(), Vec::<u16>::new());
    assert_eq!(rig.call_number(remove(0)), 1, "there is no such slot any more");
    assert_eq!(rig.call_number(add(0)), 0);
    assert_eq!(rig.runs(), [0, 1]);
}

#[test]
fn as_many_slots_as_qemu_may_use() {
    let mut rig = Rig::new();
    rig.say_all(qemu_10());
    let file = memory_file(MEM_LEN);
    for slot in 1..509 {
        let fds = vec![file.try_clone().unwrap()];
        let add = say(Request::ADD_MEM_REG, region_at(slot).encode_single(), fds);
        assert_eq!(rig.call_number(Say { flags: FLAG_NEED_REPLY, ..add }), 0, "slot {slot}");
    }
    assert_eq!(rig.running[&0].memory.regions().len(), 509);
    assert_eq!(rig.call_number(add(509)), 1, "one more is refused, the session goes on");
    rig.barrier();
}

/// SET_LOG_BASE, then F_LOG_ALL, as QEMU starts a migration; then without it, as when it is cancelled.
#[test]
fn migration_switches_logging_on_and_off() {
    let mut rig = Rig::new();
    rig.say_all(qemu_10());
    assert!(rig.running[&0].memory.log().is_none());
    let acked = virtio::VERSION_1 | virtio::NET_MRG_RXBUF | virtio::VHOST_USER_PROTOCOL_FEATURES;
    let log = memory_file(8192);
    // The bitmap starts in the middle of its file and of a page.
    let area = LogArea { len: 4096, mmap_offset: 100 };
    let reply = rig.call(say(Request::SET_LOG_BASE, area.encode(), vec![log.try_clone().unwrap()]));
    assert_eq!(LogArea::decode(&reply), Ok(area), "rust-vmm reads the description back");
    rig.say_all(vec![number(Request::SET_FEATURES, acked | virtio::VHOST_LOG_ALL)]);
    let mut addr = addr_of(0);
    addr.flags = 1;
    rig.say_all(vec![say(Request::SET_VRING_ADDR, addr.encode(), vec![])]);
    let ring = &rig.running[&0];
    assert_eq!(ring.setup.used_log, Some(addr.log));
    ring.memory.log_write(9 * 4096 + 1, 4096);
    let mut bytes = [0; 16];
    rustix::io::pread(&log, &mut bytes, 100).unwrap();
    assert_eq!(bytes[..3], [0, 0b110, 0], "pages 9 and 10");
    rig.say_all(vec![number(Request::SET_FEATURES, acked)]);
    assert!(rig.running[&0].memory.log().is_none());
    assert_eq!(rig.runs(), [0, 1]);
}

#[test]
fn migration_is_offered_as_both_front_ends_require() {
    let mut rig = Rig::new();
    assert_ne!(rig.call_number(ask(Request::GET_FEATURES)) & virtio::VHOST_LOG_ALL, 0);
    assert_ne!(rig.call_number(ask(Request::GET_PROTOCOL_FEATURES)) & protocol::LOG_SHMFD, 0);
}

/// The VMM truncates its memory while a ring runs: the read gives zeros, this session ends, the process lives.
#[test]
fn a_truncated_guest_ends_only_its_session() {
    let mut rig = Rig::new();
    let mut other = Rig::new();
    other.say_all(qemu_7_2());
    let file = memory_file(MEM_LEN);
    rustix::io::pwrite(&file, b"guest", 0x8000).unwrap();
    let mut script = qemu_7_2();
    script[9] = Say { flags: FLAG_NEED_REPLY, ..mem_table_of(file.try_clone().unwrap()) };
    rig.say_all(script);
    let memory = Arc::clone(&rig.running[&0].memory);
    let mut bytes = [0; 5];
    memory.user_slice(USER + 0x8000, 5).unwrap().copy_to(&mut bytes);
    assert_eq!(&bytes, b"guest");
    ftruncate(&file, 0).unwrap();
    memory.user_slice(USER + 0x8000, 5).unwrap().copy_to(&mut bytes);
    assert_eq!(bytes, [0; 5]);
    drop(memory);
    rig.expect_end();
    for _ in 0..3 {
        other.turn();
    }
    assert_eq!(other.runs(), [0, 1]);
    other.barrier();
}

fn request(fd: std::os::fd::OwnedFd, offset: u64, len: u64) -> MapRequest {
    MapRequest { ticket: 0, fd, offset, len, purpose: MapPurpose::Guest }
}

#[test]
fn mappings_start_at_the_byte_that_was_asked_for() {
    let file = memory_file(3 * 4096);
    rustix::io::pwrite(&file, &[7, 8, 9], 4096 + 123).unwrap();
    let mapping = SharedMapping::map(&request(file, 4096 + 123, 3), None).unwrap();
    assert_eq!(mapping.len(), 3);
    assert_eq!(mapping.base() as usize % 4096, 123);
    assert!(!mapping.has_failed());
}

/// Only where the machine has huge pages; the test says so when it could not look.
#[test]
fn huge_pages_are_mapped_in_their_own_size() {
    let Ok(file) = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)
    else {
        eprintln!("no hugetlbfs here");
        return;
    };
    ftruncate(&file, 4 << 20).unwrap();
    // A region behind the hole below 4 GiB need not start at a huge page of the file.
    match SharedMapping::map(&request(file, 4096 * 3, (2 << 20) + 5), None) {
        Ok(mapping) => assert_eq!(mapping.base() as usize % (2 << 20), 4096 * 3),
        Err(reason) => eprintln!("no huge pages free: {reason}"),
    }
}
