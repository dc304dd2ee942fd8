//! The storage daemon against guests in this process: task management, fences, reservations, events, hostile rings, refusals.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::storage::{Disk, Kind, StorageError, StorageOptions, Transfer};
use avio_proto::virtio::{blk, scsi};
use avio_tests::case::{self, Case};
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::ensure;
use avio_tests::initiator::{Initiator, RESERVATION_CONFLICT, cdb10, compare_and_write};
use avio_tests::scratch::image;
use avio_tests::storage::{Adapter, Storage};
use avio_tests::{Failure, Result, scratch};

/// Where requests of one adapter are on several workers.
const TWO_WORKERS: &str = "[workers]\ncores = [0, 1]\n";
/// How long the delaying backings of these tests hold a write.
const DELAY: Duration = Duration::from_millis(1500);

const BAD_TARGET: u8 = scsi::S_BAD_TARGET;
const WRITE_10: u8 = 0x2a;

fn main() -> ExitCode {
    case::main(&[
        Case::new("aborted_commands_do_not_end_after_the_answer", 60, aborts),
        Case::new("resets_end_everybodys_commands_and_are_told", 60, resets),
        Case::new("compare_and_write_is_atomic_across_guests_and_kinds_of_disks", 60, compare_race)
            .data_path(),
        Case::new("preempt_and_abort_fences_what_was_under_way", 60, preempt_and_abort),
        Case::new("events_are_told_and_missed_ones_said_to_be", 60, events),
        Case::new("reloads_in_a_row_are_all_followed", 30, reloads_in_a_row),
        Case::new("a_broken_ring_stops_alone", 60, hostile_rings).data_path(),
        Case::new("a_disk_does_all_that_virtio_blk_has", 60, disk).data_path(),
        Case::new("two_hundred_and_fifty_six_targets_and_none_between", 60, targets),
        Case::new("what_cannot_be_a_lun_is_refused_in_one_line", 60, bad_input),
        Case::new("a_removed_adapter_serves_nothing_more", 60, removed_adapter),
        Case::new("a_backing_that_hangs_fails_and_comes_back", 90, hanging_backing),
        Case::new("a_ring_that_drains_is_not_lost_to_a_new_one", 60, drains_beside_a_new_one),
        Case::new("a_limit_holds_and_changes_live", 60, limits),
        Case::new("a_reload_says_what_it_changes_and_what_not", 60, changed_keys),
        Case::new("numbers_are_summed_by_adapter_and_start_over", 60, sums),
    ])
}

fn options() -> StorageOptions {
    StorageOptions { depth: 64, data_len: 16384, ..StorageOptions::new(Kind::Scsi) }
}

fn two_queues() -> StorageOptions {
    StorageOptions { queues: 2, ..options() }
}

/// Two guests, each with two request queues, on one logical unit.
fn sharing(head: &str, backing: &str) -> Result<(Daemon<Storage>, Initiator, Initiator)> {
    let adapter =
        |guest: &str| Adapter::new(guest, "avio_stor").lines("queues = 2").disk(0, backing, "share = true");
    let config = Storage::default().head(head).adapter(adapter("g1")).adapter(adapter("g2"));
    let folder = scratch::folder().join(if head.is_empty() { "one" } else { "two" });
    let daemon = Daemon::start_in(folder, config)?;
    let one = Initiator::connect(&daemon.stor_socket("g1")?, &two_queues(), &[0])?;
    let two = Initiator::connect(&daemon.stor_socket("g2")?, &two_queues(), &[0])?;
    Ok((daemon, one, two))
}

fn delaying() -> String {
    format!("fault:write_delay_ms={}:memory:4M", DELAY.as_millis())
}

fn aborts() -> Result {
    for head in ["", TWO_WORKERS] {
        let (mut daemon, mut one, _two) = sharing(head, &delaying())?;
        one.begin(0, 0, 0x77, &cdb10(WRITE_10, 0, 8), &[7; 4096])?;
        sleep(Duration::from_millis(100));
        let query = |one: &mut Initiator, tag| one.task_management(0, scsi::T_TMF_QUERY_TASK, tag);
        ensure(query(&mut one, 0x77)? == scsi::S_FUNCTION_SUCCEEDED, || "the write is not found".into())?;
        ensure(query(&mut one, 0x78)? == scsi::S_FUNCTION_COMPLETE, || "a command that is not there".into())?;
        let set = one.task_management(0, scsi::T_TMF_QUERY_TASK_SET, 0)?;
        ensure(set == scsi::S_FUNCTION_SUCCEEDED, || "the task set is not empty".into())?;
        let begin = Instant::now();
        let response = one.task_management(0, scsi::T_TMF_ABORT_TASK, 0x77)?;
        ensure(response == scsi::S_FUNCTION_COMPLETE && begin.elapsed() < DELAY, || {
            format!("ABORT TASK: {response} after {:?}", begin.elapsed())
        })?;
        let ended = one.ended(0)?;
        ensure(ended.len() == 1 && ended[0].reply.response == scsi::S_ABORTED, || {
            format!("when the answer came: {ended:?}")
        })?;
        // Commands and functions that become available together: whatever the answer to the function follows, no command ends
        // after it.
        for round in 0..300 {
            let queue = round as usize % 2;
            one.stage(queue, 0, round, &cdb10(WRITE_10, 8, 8), &[9; 4096])?;
            let response = one.race_task_management(queue, 0, scsi::T_TMF_ABORT_TASK, round)?;
            let ended = one.ended(queue)?;
            ensure(response == 0 && ended.len() == 1 && ended[0].tag == round, || {
                format!("round {round}: response {response}, {ended:?}")
            })?;
        }
        let unknown = one.task_management(0, 99, 0)?;
        ensure(unknown == scsi::S_FUNCTION_REJECTED, || format!("an unknown function: {unknown}"))?;
        let other_lun = scsi::Lun { target: 0, lun: 1 }.encode();
        let wrong = one.adapter().task_management(scsi::T_TMF_ABORT_TASK, other_lun, 1)?;
        ensure(wrong == scsi::S_INCORRECT_LUN, || format!("LUN 1: {wrong}"))?;
        let absent = one.task_management(9, scsi::T_TMF_ABORT_TASK, 1)?;
        ensure(absent == BAD_TARGET, || format!("target 9: {absent}"))?;
        sleep(DELAY + Duration::from_millis(200));
        let late = [one.ended(0)?, one.ended(1)?].concat();
        ensure(late.is_empty(), || format!("after everything: {late:?}"))?;
        ensure(one.read(0, 0, 16)? == vec![0; 8192], || "an aborted write was done".into())?;
        daemon.ensure_healthy()?;
    }
    Ok(())
}

fn resets() -> Result {
    for head in ["", TWO_WORKERS] {
        let (mut daemon, mut one, mut two) = sharing(head, &delaying())?;
        // CLEAR TASK SET of the second guest ends the first one's commands.
        one.begin(0, 0, 1, &cdb10(WRITE_10, 0, 8), &[7; 4096])?;
        one.begin(1, 0, 2, &cdb10(WRITE_10, 8, 8), &[7; 4096])?;
        sleep(Duration::from_millis(100));
        ensure(two.task_management(0, scsi::T_TMF_CLEAR_TASK_SET, 0)? == 0, || "CLEAR TASK SET".into())?;
        let ended = [one.ended(0)?, one.ended(1)?].concat();
        ensure(ended.len() == 2 && ended.iter().all(|e| e.reply.response == scsi::S_ABORTED), || {
            format!("cleared: {ended:?}")
        })?;
        let told = one.settle(0)?;
        ensure(told == [(0x2f, 0x00)], || format!("commands cleared by another: {told:02x?}"))?;
        // Its ABORT TASK SET does not.
        one.begin(0, 0, 3, &cdb10(WRITE_10, 0, 8), &[7; 4096])?;
        sleep(Duration::from_millis(100));
        ensure(two.task_management(0, scsi::T_TMF_ABORT_TASK_SET, 0)? == 0, || "ABORT TASK SET".into())?;
        ensure(one.ended(0)?.is_empty(), || "another initiator's task set was aborted".into())?;
        let nexus = two.task_management(0, scsi::T_TMF_I_T_NEXUS_RESET, 0)?;
        ensure(nexus == 0 && one.ended(0)?.is_empty(), || "a reset of another nexus".into())?;
        let told = two.settle(0)?;
        ensure(told == [(0x29, 0x07)], || format!("I_T nexus loss: {told:02x?}"))?;
        // Its LOGICAL UNIT RESET ends them, and both are told.
        ensure(two.task_management(0, scsi::T_TMF_LOGICAL_UNIT_RESET, 0)? == 0, || "RESET".into())?;
        let ended = one.ended(0)?;
        ensure(ended.len() == 1 && ended[0].reply.response == scsi::S_RESET, || format!("reset: {ended:?}"))?;
        for guest in [&mut one, &mut two] {
            let told = guest.settle(0)?;
            ensure(told == [(0x29, 0x03)], || format!("reset occurred: {told:02x?}"))?;
        }
        let lun = daemon.lun("g1", 0)?;
        ensure(lun["stats"]["aborts"] == 3 && lun["stats"]["in_flight"] == 0, || format!("{lun:#}"))?;
        daemon.ensure_healthy()?;
    }
    Ok(())
}

/// Block in which two guests count by COMPARE AND WRITE while a third looks.
const COUNTER: u32 = 5;
/// How often each of them counts.
const COUNTS: u64 = 300;

fn block_of(count: u64) -> Vec<u8> {
    count.to_le_bytes().repeat(64)
}

fn count_up(guest: &mut Initiator, queue: usize) -> Result {
    let mut done = 0;
    while done < COUNTS {
        let now = guest.command_on(queue, 0, &cdb10(0x28, COUNTER, 1), &[], 512)?.good("READ")?.data;
        let count = u64::from_le_bytes(now[..8].try_into().unwrap_or_default());
        ensure(now == block_of(count), || format!("a torn block: {:02x?}", &now[..32]))?;
        let both = [block_of(count), block_of(count + 1)].concat();
        let reply = guest.command_on(queue, 0, &compare_and_write(COUNTER.into(), 1), &both, 0)?;
        if reply.is_good() {
            done += 1;
        } else {
            reply.check((0xe, 0x1d, 0), "COMPARE AND WRITE")?;
        }
    }
    Ok(())
}

fn compare_race() -> Result {
    let path = scratch::folder().join("shared.img");
    File::create(&path)?.set_len(1 << 20)?;
    let file = format!("file:{}", path.display());
    for (round, backing) in [("memory", "memory:1M".to_owned()), ("file", file)] {
        let lun = |guest: &str, kind: &str| {
            Adapter::new(guest, kind).lines("queues = 2").disk(
                0,
                &backing,
                "share = true\ncache = \"writeback\"",
            )
        };
        let config = Storage::default()
            .head(TWO_WORKERS)
            .adapter(lun("g1", "avio_stor"))
            .adapter(lun("g2", "avio_stor"))
            .adapter(lun("g3", "avio_blk"));
        let mut daemon = Daemon::start_in(scratch::folder().join(round), config)?;
        let sockets = ["g1", "g2"].map(|guest| daemon.stor_socket(guest));
        let looker = daemon.stor_socket("g3")?;
        let counting: Vec<_> = sockets
            .into_iter()
            .enumerate()
            .map(|(i, socket)| {
                thread::spawn(move || {
                    let mut guest = Initiator::connect(&socket?, &two_queues(), &[0])?;
                    count_up(&mut guest, i)
                })
            })
            .collect();
        let mut disk = Disk::connect(Endpoint::Connect(looker), &two_queues())?;
        let (mut last, mut looks) = (0, 0);
        while counting.iter().any(|thread| !thread.is_finished()) {
            let mut block = [0; 512];
            disk.read(looks % 2, COUNTER.into(), &mut block)?;
            let count = u64::from_le_bytes(block[..8].try_into().unwrap_or_default());
            ensure(block[..] == block_of(count), || {
                format!("the disk shows a torn block: {:02x?}", &block[..32])
            })?;
            ensure(count >= last, || format!("{count} after {last}"))?;
            (last, looks) = (count, looks + 1);
        }
        for thread in counting {
            thread.join().map_err(|_| Failure::new("a guest panicked"))??;
        }
        let mut block = [0; 512];
        disk.read(0, COUNTER.into(), &mut block)?;
        ensure(block[..] == block_of(2 * COUNTS), || {
            format!(
                "{} instead of {}",
                u64::from_le_bytes(block[..8].try_into().unwrap_or_default()),
                2 * COUNTS
            )
        })?;
        println!("{round}: {} counts, {looks} looks", 2 * COUNTS);
        daemon.ensure_healthy()?;
    }
    Ok(())
}

fn preempt_and_abort() -> Result {
    for head in ["", TWO_WORKERS] {
        let (mut daemon, mut one, mut two) = sharing(head, &delaying())?;
        one.reserve_out(0, 0, 0, 0, 0xa)?.good("REGISTER")?;
        two.reserve_out(0, 0, 0, 0, 0xb)?.good("REGISTER")?;
        two.reserve_out(0, 1, 5, 0xb, 0)?.good("RESERVE, registrants only")?;
        two.begin(0, 0, 1, &cdb10(WRITE_10, 0, 8), &[7; 4096])?;
        two.begin(1, 0, 2, &cdb10(WRITE_10, 8, 8), &[7; 4096])?;
        sleep(Duration::from_millis(100));
        let begin = Instant::now();
        one.reserve_out(0, 5, 1, 0xa, 0xb)?.good("PREEMPT AND ABORT")?;
        ensure(begin.elapsed() < DELAY, || format!("took {:?}", begin.elapsed()))?;
        let ended = [two.ended(0)?, two.ended(1)?].concat();
        ensure(ended.len() == 2 && ended.iter().all(|e| e.reply.response == scsi::S_ABORTED), || {
            format!("when it was answered: {ended:?}")
        })?;
        let told = two.command(0, &[0; 6], &[], 0)?;
        told.check((6, 0x2a, 0x05), "registrations preempted")?;
        let refused = two.command(0, &cdb10(WRITE_10, 0, 1), &[1; 512], 0)?;
        ensure(refused.status == RESERVATION_CONFLICT, || format!("{refused:?}"))?;
        sleep(DELAY);
        ensure(one.read(0, 0, 16)? == vec![0; 8192], || "a fenced write was done".into())?;
        daemon.ensure_healthy()?;
    }
    Ok(())
}

fn lun_text(event: &scsi::Event) -> (u32, u8, u32) {
    (event.event, event.lun[1], event.reason)
}

fn next_event(guest: &mut Initiator) -> Result<(u32, u8, u32)> {
    let event = guest.adapter().event(Duration::from_secs(5))?;
    event.as_ref().map(lun_text).ok_or_else(|| Failure::new("no event within five seconds"))
}

fn events() -> Result {
    let path = scratch::folder().join("grows.img");
    File::create(&path)?.set_len(1 << 20)?;
    let first = Adapter::new("g1", "avio_stor").disk(0, &format!("file:{}", path.display()), "");
    let mut daemon = Daemon::start(Storage::one(first.clone()))?;
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options(), &[0])?;
    daemon.config = Storage::one(first.clone().disk(7, "memory:1M", ""));
    daemon.reload()?;
    let added = (scsi::T_TRANSPORT_RESET, 7, scsi::RESET_RESCAN);
    let event = next_event(&mut one)?;
    ensure(event == added, || format!("hot-add: {event:?}"))?;
    ensure(one.settle(7)? == [(0x29, 0)], || "a new LUN tells of its power-on".into())?;
    File::options().write(true).open(&path)?.set_len(2 << 20)?;
    let event = next_event(&mut one)?;
    ensure(event == (scsi::T_PARAM_CHANGE, 0, 0x092a), || format!("growth: {event:x?}"))?;
    one.command(0, &[0; 6], &[], 0)?.check((6, 0x2a, 0x09), "capacity data changed")?;
    let capacity = one.command(0, &cdb10(0x25, 0, 0), &[], 8)?.good("READ CAPACITY")?;
    ensure(capacity.data[..4] == 4095u32.to_be_bytes(), || format!("{:02x?}", capacity.data))?;
    daemon.config = Storage::one(first.clone());
    daemon.reload()?;
    let event = next_event(&mut one)?;
    ensure(event == (scsi::T_TRANSPORT_RESET, 7, scsi::RESET_REMOVED), || format!("hot-remove: {event:?}"))?;
    ensure(one.command(7, &[0; 6], &[], 0)?.response == BAD_TARGET, || "target 7 is gone".into())?;
    // The guest has one buffer left of four, then none.
    daemon.config = Storage::one(first.clone().disk(8, "memory:1M", ""));
    daemon.reload()?;
    ensure(next_event(&mut one)? == (scsi::T_TRANSPORT_RESET, 8, scsi::RESET_RESCAN), || "the last".into())?;
    daemon.config = Storage::one(first.clone().disk(8, "memory:1M", "").disk(9, "memory:1M", ""));
    daemon.reload()?;
    daemon.console()?.wait_for("target 9: memory:1M added", 5)?;
    sleep(Duration::from_millis(300));
    one.adapter().post_events();
    let event = next_event(&mut one)?;
    ensure(event == (scsi::T_NO_EVENT | scsi::EVENTS_MISSED, 0, 0), || format!("missed: {event:x?}"))?;
    one.settle(9)?;
    daemon.ensure_healthy()
}

/// Files change while a daemon still follows the change before: what it follows in the end is what stands there.
fn reloads_in_a_row() -> Result {
    let first = || Adapter::new("g1", "avio_stor").disk(0, "memory:1M", "");
    let mut daemon = Daemon::start(Storage::one(first()))?;
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options(), &[0])?;
    for target in 1..24u8 {
        // What had been added is removed, which waits for the disk.
        daemon.config = Storage::one(first());
        daemon.reload()?;
        sleep(Duration::from_micros(200) * u32::from(target));
        daemon.config = Storage::one(first().disk(target.into(), "memory:1M", ""));
        daemon.reload()?;
        daemon.console()?.wait_for(&format!("target {target}: memory:1M added"), 5)?;
    }
    one.settle(23)?;
    daemon.ensure_healthy()
}

fn hostile_rings() -> Result {
    let config = Storage::default()
        .adapter(Adapter::new("g1", "avio_stor").lines("queues = 2").disk(0, "memory:1M", ""))
        .adapter(Adapter::new("g2", "avio_blk").lines("queues = 2").disk(0, "memory:1M", ""))
        .adapter(Adapter::new("g3", "avio_blk").disk(0, "memory:1M", ""));
    let mut daemon = Daemon::start(config)?;
    for packed in [false, true] {
        let reply_timeout = Duration::from_secs(1);
        let options = StorageOptions { packed, reply_timeout, ..two_queues() };
        let mut other = Disk::connect(Endpoint::Connect(daemon.stor_socket("g3")?), &self::options())?;
        other.write(0, 0, &[3; 512])?;
        let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options, &[0])?;
        // A request in guest memory that does not exist.
        let bad = [(0xdead_0000_0000, 51)];
        let ring = &mut one.adapter().queues()[scsi::REQUEST_QUEUE as usize];
        ensure(ring.ring().add(&bad, &[(0xdead_0000_1000, 108)]).is_some(), || "room".into())?;
        ring.flush();
        let answer = one.command_on(1, 0, &cdb10(0x28, 0, 1), &[], 512)?;
        answer.good("the ring beside the broken one")?;
        let still = one.command(0, &[0; 6], &[], 0);
        ensure(still.is_err(), || format!("the broken ring answered: {still:?}"))?;
        let mut disk = Disk::connect(Endpoint::Connect(daemon.stor_socket("g2")?), &options)?;
        let queue = &mut disk.queues()[1];
        ensure(queue.ring().add(&[(u64::MAX - 4, 16)], &[]).is_some(), || "room".into())?;
        queue.flush();
        disk.write(0, 8, &[5; 512])?;
        let mut got = [0; 512];
        other.read(0, 0, &mut got)?;
        ensure(got == [3; 512], || "another guest's disk has changed".into())?;
        // Requests that are none get what the standard has for them, and the ring goes on: no status byte, a head cut short,
        // a transfer that does not fit its buffers, data of half a block.
        let queue = &mut disk.queues()[0];
        let slot = queue.take().ok_or_else(|| Failure::new("no slot"))?;
        ensure(queue.submit(slot, 7, 1, Transfer::None), || "room".into())?;
        queue.flush();
        let half = disk.write(0, 0, &[1; 100]);
        ensure(matches!(half, Err(StorageError::Status(blk::S_IOERR))), || format!("{half:?}"))?;
        let mut two = Initiator::connect(&daemon.stor_socket("g1")?, &options, &[]);
        if let Ok(two) = &mut two {
            let over = two.command_on(1, 0, &cdb10(0x28, 0, 8), &[], 512)?;
            ensure(over.response == scsi::S_OVERRUN, || format!("{over:?}"))?;
        }
        drop((one, two, disk, other));
        sleep(Duration::from_millis(300));
    }
    let said = daemon.console()?.output().matches("is broken and stopped").count();
    ensure(said == 4, || format!("{said} lines about four broken rings"))?;
    daemon.ensure_healthy()
}

fn disk() -> Result {
    let path = scratch::folder().join("disk.img");
    File::create(&path)?.set_len(4 << 20)?;
    let file = format!("file:{}", path.display());
    let config = Storage::default()
        .adapter(Adapter::new("g1", "avio_blk").lines("queues = 4").disk(
            0,
            &file,
            "serial = \"S-1234567890123456789\"",
        ))
        .adapter(Adapter::new("g2", "avio_blk").disk(0, "memory:1M", "readonly = true"))
        .adapter(Adapter::new("g3", "avio_blk").disk(0, "memory:1M", "block_size = 4096"));
    let mut daemon = Daemon::start(config)?;
    let options = StorageOptions { queues: 4, ..options() };
    let mut one = Disk::connect(Endpoint::Connect(daemon.stor_socket("g1")?), &options)?;
    let config = one.config();
    ensure((config.capacity, config.blk_size, config.num_queues) == (8192, 512, 4), || {
        format!("{config:?}")
    })?;
    ensure(config.max_discard_seg > 0 && config.max_write_zeroes_seg > 0 && config.seg_max > 0, || {
        format!("{config:?}")
    })?;
    ensure(one.serial(0)?[..] == *b"S-123456789012345678", || "the serial number, cut at 20".into())?;
    for queue in 0..4 {
        let sector = 64 * queue as u64;
        one.write(queue, sector, &[queue as u8 + 1; 4096])?;
        one.flush(queue)?;
        let mut got = [0; 4096];
        one.read(3 - queue, sector, &mut got)?;
        ensure(got == [queue as u8 + 1; 4096], || format!("queue {queue} holds something else"))?;
    }
    one.discard(1, 0, 8)?;
    one.write_zeroes(2, 64, 4, true)?;
    one.write_zeroes(3, 128, 0, false)?;
    let mut got = [1; 4096];
    one.read(0, 0, &mut got)?;
    ensure(got == [0; 4096], || "a discarded range of a file reads as zeroes".into())?;
    one.read(0, 64, &mut got)?;
    ensure(got[..2048] == [0; 2048] && got[2048..] == [2; 2048], || {
        "zeroes where they were asked for".into()
    })?;
    for (what, answer) in [
        ("behind the end", one.read(0, 8192, &mut got)),
        ("across the end", one.write(0, 8191, &got)),
        ("a discard behind the end", one.discard(0, 8190, 8)),
        ("part of a sector", one.read(0, 0, &mut got[..100])),
    ] {
        ensure(matches!(answer, Err(StorageError::Status(blk::S_IOERR))), || format!("{what}: {answer:?}"))?;
    }
    let unknown = one.request(0, 77, 0, &[], &mut got[..512]);
    ensure(matches!(unknown, Err(StorageError::Status(blk::S_UNSUPP))), || format!("{unknown:?}"))?;
    let flags = blk::DiscardSegment { sector: 0, sectors: 8, flags: 1 };
    let flagged = one.request(0, blk::T_DISCARD, 0, &flags.to_bytes(), &mut []);
    ensure(matches!(flagged, Err(StorageError::Status(blk::S_UNSUPP))), || format!("{flagged:?}"))?;

    let mut two = Disk::connect(Endpoint::Connect(daemon.stor_socket("g2")?), &self::options())?;
    ensure(two.guest().features() & blk::F_RO != 0, || "a read-only disk says so".into())?;
    for answer in [two.write(0, 0, &[1; 512]), two.write_zeroes(0, 0, 1, false), two.discard(0, 0, 1)] {
        ensure(matches!(answer, Err(StorageError::Status(blk::S_IOERR))), || format!("{answer:?}"))?;
    }
    let mut three = Disk::connect(Endpoint::Connect(daemon.stor_socket("g3")?), &self::options())?;
    ensure(three.config().blk_size == 4096 && three.config().capacity == 2048, || "blocks of 4,096".into())?;
    let odd = three.write(0, 1, &[1; 4096]);
    ensure(matches!(odd, Err(StorageError::Status(blk::S_IOERR))), || format!("{odd:?}"))?;
    three.write(0, 8, &[1; 4096])?;
    let lun = daemon.lun("g1", 0)?;
    ensure(lun["stats"]["flushes"] == 4 && lun["stats"]["discards"] == 3, || format!("{lun:#}"))?;
    daemon.ensure_healthy()
}

fn targets() -> Result {
    let mut adapter = Adapter::new("g1", "avio_stor");
    for target in 0..256 {
        if target != 200 {
            adapter = adapter.disk(target, "memory:64K", "");
        }
    }
    let mut daemon = Daemon::start(Storage::one(adapter))?;
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options(), &[])?;
    let begin = Instant::now();
    for target in 0..=255u8 {
        if target == 200 {
            let absent = one.command(target, &[0x12, 0, 0, 0, 96, 0], &[], 96)?;
            ensure(absent.response == BAD_TARGET, || format!("{absent:?}"))?;
            continue;
        }
        one.settle(target)?;
        one.write(target, 3, &[target; 512])?;
    }
    for target in (0..=255u8).filter(|target| *target != 200) {
        ensure(one.read(target, 3, 1)? == [target; 512], || format!("target {target} is another"))?;
    }
    println!("256 targets asked, written and read in {:?}", begin.elapsed());
    let other = scsi::Lun { target: 0, lun: 1 }.encode();
    let outcome = one.adapter().command(0, other, &[0x12, 0, 0, 0, 36, 0], &[], 36)?;
    ensure(outcome.data.first() == Some(&0x7f), || format!("INQUIRY of LUN 1: {:02x?}", outcome.data))?;
    daemon.ensure_healthy()
}

/// Starts a daemon that should refuse; its one line.
fn refusal(name: &str, config: &Storage) -> Result<String> {
    use avio_tests::daemon::Definitions;
    let folder = scratch::folder().join(name);
    config.write(&folder.join("etc"))?;
    fs::create_dir_all(folder.join("run"))?;
    let mut line = command(program("avio-stord")?);
    line.arg("--config").arg(folder.join("etc")).arg("--run-dir").arg(folder.join("run"));
    line.arg("--state-dir").arg(folder.join("state")).env("RUST_LOG", "off");
    let mut console = Console::spawn(name, &mut line)?;
    let status = console.wait_end(5)?;
    let said = console.output();
    ensure(status.code() == Some(1), || format!("{name} ended with {status}: {said}"))?;
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("avio-stord:")).collect();
    ensure(lines.len() == 1, || format!("{name}: {said}"))?;
    let left = folder.join("run/guests");
    let sockets = fs::read_dir(&left).map_or(0, |entries| entries.count());
    ensure(sockets == 0, || format!("{name} left {sockets} entries in {}", left.display()))?;
    Ok(lines[0].to_owned())
}

/// A file system in an image on a loop device, mounted; undone when dropped.
struct Mounted {
    device: String,
    folder: PathBuf,
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = std::process::Command::new(program).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(output.status.success(), || format!("{program} {arguments:?}: {said}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Mounted {
    fn new(image: &Path) -> Result<Mounted> {
        let folder = image.with_extension("mnt");
        fs::create_dir_all(&folder)?;
        run("mkfs.ext4", &["-q", "-F", &image.display().to_string()])?;
        let device = run("losetup", &["--find", "--show", &image.display().to_string()])?;
        let mounted = Mounted { device, folder };
        run("mount", &[&mounted.device, &mounted.folder.display().to_string()])?;
        Ok(mounted)
    }

    fn freeze(&self, freeze: bool) -> Result {
        let how = if freeze { "--freeze" } else { "--unfreeze" };
        run("fsfreeze", &[how, &self.folder.display().to_string()]).map(drop)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.freeze(false);
        let _ = run("umount", &["--lazy", &self.folder.display().to_string()]);
        let _ = run("losetup", &["--detach", &self.device]);
    }
}

fn bad_input() -> Result {
    let small = image("small.img", 100)?;
    let good = image("good.img", 1 << 20)?;
    let mounted = Mounted::new(&image("mounted.img", 16 << 20)?)?;
    let file = |path: &Path| format!("file:{}", path.display());
    let lun = |backing: &str| Storage::one(Adapter::new("g1", "avio_stor").disk(3, backing, ""));
    let cases = [
        ("missing", lun("file:/nowhere/disk.img"), "no such file"),
        ("small", lun(&file(&small)), "too small"),
        ("folder", lun("file:/tmp"), "folder"),
        ("device", lun(&format!("file:{}", mounted.device)), "write disk:"),
        ("mounted", lun(&format!("disk:{}", mounted.device)), "mounted or in use"),
        ("loop-mounted", lun(&file(&scratch::folder().join("mounted.img"))), "loop device"),
        ("character", lun("disk:/dev/null"), "tapes and changers are not supported"),
        ("tape", lun("tape:/dev/st0"), "tape is not supported"),
        ("changer", lun("changer:/dev/sg3"), "changer is not supported"),
        ("partition", lun("partition:/dev/sda1"), "partition is not supported"),
        ("volume", lun(&format!("lv:{}", good.display())), "write file:"),
    ];
    for (name, config, said) in cases {
        let line = refusal(name, &config)?;
        println!("{line}");
        let place = line.contains("g1 0/4 target 3") || line.contains("guests/g1.toml:");
        ensure(line.contains(said) && place, || format!("{name}: {line}"))?;
    }
    let twice = lun(&file(&good)).adapter(Adapter::new("g2", "avio_blk").disk(0, &file(&good), ""));
    let line = refusal("twice", &twice)?;
    ensure(line.contains("g1") && line.contains("g2") && line.contains("share = true"), || line.clone())?;

    // The same while guests run: refused, and everything goes on as it was.
    let mut daemon = Daemon::start(lun(&file(&good)))?;
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options(), &[3])?;
    one.write(3, 0, &[6; 512])?;
    daemon.config = Storage::one(
        Adapter::new("g1", "avio_stor").disk(3, &file(&good), "").disk(4, "memory:1M", "").disk(
            5,
            "file:/nowhere/disk.img",
            "",
        ),
    );
    daemon.reload()?;
    daemon.console()?.wait_for("configuration refused", 5)?;
    ensure(one.read(3, 0, 1)? == [6; 512], || "the LUN that was there".into())?;
    ensure(one.command(4, &[0; 6], &[], 0)?.response == BAD_TARGET, || "half of a definition".into())?;
    let state = fs::read_dir(scratch::folder().join("state/stord"))?.count();
    ensure(state <= 2, || format!("{state} files of state for one LUN and none"))?;
    daemon.ensure_healthy()
}

fn removed_adapter() -> Result {
    let keep = Adapter::new("g1", "avio_stor").disk(0, "memory:1M", "");
    let path = image("gone.img", 1 << 20)?;
    let gone = Adapter::new("g2", "avio_blk").disk(0, &format!("file:{}", path.display()), "");
    let mut daemon = Daemon::start(Storage::one(keep.clone()).adapter(gone.clone()))?;
    let options = StorageOptions { reply_timeout: Duration::from_secs(2), ..options() };
    let mut disk = Disk::connect(Endpoint::Connect(daemon.stor_socket("g2")?), &options)?;
    disk.write(0, 0, &[1; 512])?;
    fs::remove_file(daemon.config_folder().join("guests/g2.toml"))?;
    daemon.config = Storage::one(keep.clone());
    daemon.reload()?;
    daemon.console()?.wait_for("adapter removed", 5)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while disk.guest().is_open() {
        ensure(Instant::now() < deadline, || "the session of a removed adapter goes on".into())?;
        sleep(Duration::from_millis(20));
    }
    let answer = disk.write(0, 0, &[2; 512]);
    ensure(answer.is_err(), || "a removed adapter took a write".into())?;
    // Its image is free for others, and the same definition can come back.
    daemon.config = Storage::one(keep).adapter(gone);
    daemon.reload()?;
    daemon.console()?.wait_for("adapter added", 5)?;
    let mut disk = Disk::connect(Endpoint::Connect(daemon.stor_socket("g2")?), &options)?;
    let mut got = [0; 512];
    disk.read(0, 0, &mut got)?;
    ensure(got == [1; 512], || "what was written before the removal".into())?;
    daemon.ensure_healthy()
}

/// The file system of the backing is frozen: writes hang in the kernel, as they do when storage is gone.
fn hanging_backing() -> Result {
    let mounted = Mounted::new(&image("host.img", 64 << 20)?)?;
    let path = mounted.folder.join("disk.img");
    let file = File::create(&path)?;
    file.set_len(1 << 20)?;
    file.sync_all()?;
    let config =
        Storage::one(
            Adapter::new("g1", "avio_stor")
                .disk(0, &format!("file:{}", path.display()), "timeout_s = 2")
                .disk(1, "memory:1M", ""),
        );
    let mut daemon = Daemon::start(config)?;
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options(), &[0, 1])?;
    one.write(0, 0, &[1; 4096])?;
    mounted.freeze(true)?;
    let begin = Instant::now();
    one.begin(0, 0, 1, &cdb10(WRITE_10, 0, 8), &[2; 4096])?;
    sleep(Duration::from_millis(200));
    let mut slowest = Duration::ZERO;
    while begin.elapsed() < Duration::from_secs(1) {
        let begin = Instant::now();
        one.write(1, 0, &[1; 512])?;
        slowest = slowest.max(begin.elapsed());
    }
    ensure(slowest < Duration::from_millis(200), || format!("another LUN took {slowest:?}"))?;
    let ended = one.await_ended(0, 1, 5)?;
    ensure(begin.elapsed() >= Duration::from_secs(2), || format!("after {:?}", begin.elapsed()))?;
    ended[0].reply.clone().check((0xb, 0x08, 0x01), "a write that hangs")?;
    ensure(daemon.lun("g1", 0)?["state"] == "Offline", || "a LUN that does not answer is Offline".into())?;
    let quick = Instant::now();
    let refused = one.command(0, &cdb10(0x28, 0, 1), &[], 512)?;
    ensure(!refused.is_good() && quick.elapsed() < Duration::from_secs(1), || format!("{refused:?}"))?;
    mounted.freeze(false)?;
    daemon.lun_when("g1", 0, 5, |lun| lun["state"] == "Online")?;
    one.write(0, 0, &[3; 4096])?;
    ensure(one.read(0, 0, 8)? == [3; 4096], || "the newer write".into())?;
    daemon.ensure_healthy()
}

fn limits() -> Result {
    let adapter = Adapter::new("g1", "avio_blk").disk(0, "memory:1M", "iops = 200");
    let mut daemon = Daemon::start(Storage::one(adapter))?;
    let mut disk = Disk::connect(Endpoint::Connect(daemon.stor_socket("g1")?), &options())?;
    let mut rate = |seconds: u64| -> Result<u64> {
        let (begin, mut count) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_secs(seconds) {
            disk.read(0, 0, &mut [0; 512])?;
            count += 1;
        }
        Ok(count / seconds)
    };
    let slow = rate(2)?;
    ensure((150..=240).contains(&slow), || format!("{slow} a second, limit 200 and a burst"))?;
    let output = daemon.avio(&["stor", "qos", "g1", "0", "4", "0", "--iops", "1000"])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    let faster = rate(2)?;
    ensure((700..=1150).contains(&faster), || format!("{faster} a second, limit 1,000"))?;
    let output = daemon.avio(&["stor", "qos", "g1", "0", "4", "0", "--iops", "0"])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    let free = rate(1)?;
    ensure(free > 2000, || format!("{free} a second without a limit"))?;
    println!("200: {slow}, 1000: {faster}, none: {free}");
    daemon.ensure_healthy()
}

/// Keys of a LUN that changed and its backing did not: some are followed at once, and the others are named, each time.
fn changed_keys() -> Result {
    let lun = |lines: &str| Storage::one(Adapter::new("g1", "avio_stor").disk(3, "memory:1M", lines));
    let mut daemon = Daemon::start(lun(""))?;
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options(), &[3])?;
    daemon.config = lun("timeout_s = 7");
    let told = daemon.reload_by_command()?;
    ensure(told.contains("g1 0/4 target 3: timeout_s changed"), || told.clone())?;
    daemon.config = lun("timeout_s = 7\nserial = \"other\"\nblock_size = 4096");
    for round in 0..2 {
        let told = daemon.reload_by_command()?;
        let line = "g1 0/4 target 3: block_size, serial take effect when the daemon starts the next time";
        ensure(told.contains(line), || format!("round {round}: {told}"))?;
    }
    one.write(3, 0, &[1; 512])?;
    daemon.config = lun("readonly = true");
    let told = daemon.reload_by_command()?;
    ensure(told.contains("target 3: read-only now") && !told.contains("serial"), || told.clone())?;
    let refused = one.command(3, &cdb10(WRITE_10, 0, 1), &[2; 512], 0)?;
    refused.check((7, 0x27, 0), "a write to what is read-only now")?;
    daemon.config = lun("");
    let told = daemon.reload_by_command()?;
    ensure(told.contains("target 3: may be written now"), || told.clone())?;
    one.write(3, 0, &[3; 512])?;
    // With another backing all of it is new.
    daemon.config = Storage::one(Adapter::new("g1", "avio_stor").disk(3, "memory:2M", "serial = \"T\""));
    let told = daemon.reload_by_command()?;
    ensure(told.contains("replaced by memory:2M") && !told.contains("effect"), || told.clone())?;
    let lun = daemon.lun_when("g1", 3, 5, |lun| lun["serial"] == "T-1")?;
    ensure(lun["state"] == "Replaced", || format!("{lun:#}"))?;
    let told = daemon.reload_by_command()?;
    ensure(!told.contains("effect"), || told.clone())?;
    daemon.ensure_healthy()
}

/// An adapter's numbers are its LUNs' together; cleared, the highest depth is the present one.
fn sums() -> Result {
    let adapter = Adapter::new("g1", "avio_stor").disk(0, &delaying(), "").disk(5, "memory:1M", "");
    let mut daemon = Daemon::start(Storage::one(adapter))?;
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options(), &[0, 5])?;
    for tag in 0..8 {
        one.begin(0, 0, tag, &cdb10(WRITE_10, tag as u32 * 8, 8), &[7; 4096])?;
    }
    one.await_ended(0, 8, 5)?;
    one.begin(0, 0, 9, &cdb10(WRITE_10, 0, 8), &[7; 4096])?;
    one.write(5, 0, &[1; 512])?;
    let stor = daemon.stor()?;
    let stats = &stor["adapters"][0]["stats"];
    ensure(stats["writes"] == 9 && stats["write_bytes"] == 8 * 4096 + 512, || format!("{stats:#}"))?;
    ensure(stats["in_flight"] == 1, || format!("{stats:#}"))?;
    let p50 = stats["write_latency_us"]["p50"].as_f64().unwrap_or(0.0);
    ensure(p50 > 1_000_000.0, || format!("the median of all writes: {stats:#}"))?;
    let highest = |daemon: &Daemon<Storage>| -> Result<u64> {
        Ok(daemon.lun("g1", 0)?["stats"]["in_flight_max"].as_u64().unwrap_or(0))
    };
    ensure(highest(&daemon)? == 8, || format!("highest depth {:?}", highest(&daemon)))?;
    let output = daemon.avio(&["stor", "-Z"])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    ensure(highest(&daemon)? == 1, || format!("cleared: highest depth {:?}", highest(&daemon)))?;
    // What the guest clears.
    for _ in 0..2 {
        one.begin(0, 0, 1, &cdb10(WRITE_10, 64, 8), &[7; 4096])?;
    }
    one.await_ended(0, 3, 5)?;
    ensure(highest(&daemon)? == 3, || format!("counted again: highest depth {:?}", highest(&daemon)))?;
    let mut clear = [0; 16];
    clear[..6].copy_from_slice(&[0xc1, 2, b'A', b'V', b'I', b'O']);
    one.command(0, &clear, &[], 0)?.good("CLEAR STATISTICS")?;
    let lun = daemon.lun_when("g1", 0, 5, |lun| lun["stats"]["in_flight_max"].as_u64() <= Some(1))?;
    ensure(lun["stats"]["writes"] == 0, || format!("{lun:#}"))?;
    daemon.ensure_healthy()
}

/// A guest goes while a request of it is with the disk, another comes meanwhile: the first is not shut out.
fn drains_beside_a_new_one() -> Result {
    let adapter = |guest: &str, backing: &str| Adapter::new(guest, "avio_stor").disk(0, backing, "");
    let config = Storage::default().adapter(adapter("g1", &delaying())).adapter(adapter("g2", "memory:1M"));
    let mut daemon = Daemon::start(config)?;
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options(), &[0])?;
    one.begin(0, 0, 1, &cdb10(WRITE_10, 0, 8), &[7; 4096])?;
    sleep(Duration::from_millis(100));
    drop(one);
    sleep(Duration::from_millis(100));
    let mut two = Initiator::connect(&daemon.stor_socket("g2")?, &options(), &[0])?;
    two.write(0, 0, &[1; 512])?;
    sleep(DELAY);
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options(), &[0])?;
    ensure(one.read(0, 0, 8)? == vec![7; 4096], || "what was begun was done".into())?;
    two.write(0, 0, &[2; 512])?;
    daemon.ensure_healthy()
}
