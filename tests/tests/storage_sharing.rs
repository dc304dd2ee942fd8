//! Guests in this process that share a logical unit: task management, resets, COMPARE AND WRITE races, fencing by PREEMPT AND ABORT.

use std::process::ExitCode;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::storage::Disk;
use avio_proto::virtio::scsi;
use avio_tests::case::{self, Case};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::initiator::{
    Initiator, RESERVATION_CONFLICT, WRITE_10, cdb10, compare_and_write, two_queues,
};
use avio_tests::storage::{Adapter, DELAY, Storage, delaying, file_backing, image};
use avio_tests::{Failure, Result, scratch};

/// Where requests of one adapter are on several workers.
const TWO_WORKERS: &str = "[workers]\ncores = [0, 1]\n";

fn main() -> ExitCode {
    case::main(&[
        Case::new("aborted_commands_do_not_end_after_the_answer", 60, aborts),
        Case::new("resets_end_everybodys_commands_and_are_told", 60, resets),
        Case::new("compare_and_write_is_atomic_across_guests_and_kinds_of_disks", 60, compare_race)
            .data_path(),
        Case::new("preempt_and_abort_fences_what_was_under_way", 60, preempt_and_abort),
    ])
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
        ensure(absent == scsi::S_BAD_TARGET, || format!("target 9: {absent}"))?;
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
    let file = file_backing(&image("shared.img", 1 << 20)?);
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
