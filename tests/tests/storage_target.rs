//! The storage daemon against guests in this process: disks, events, hostile rings, limits, numbers, a backing that hangs.

use std::fs::File;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::storage::{Disk, StorageError, StorageOptions, Transfer};
use avio_proto::virtio::scsi::S_BAD_TARGET;
use avio_proto::virtio::{blk, scsi};
use avio_tests::case::{self, Case};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::initiator::{Initiator, WRITE_10, cdb10, options, two_queues};
use avio_tests::mounted::Mounted;
use avio_tests::storage::{Adapter, DELAY, Storage, delaying, file_backing, image};
use avio_tests::{Failure, Result};

fn main() -> ExitCode {
    case::main(&[
        Case::new("events_are_told_and_missed_ones_said_to_be", 60, events),
        Case::new("a_broken_ring_stops_alone", 60, hostile_rings).data_path(),
        Case::new("a_disk_does_all_that_virtio_blk_has", 60, disk).data_path(),
        Case::new("two_hundred_and_fifty_six_targets_and_none_between", 60, targets),
        Case::new("a_backing_that_hangs_fails_and_comes_back", 90, hanging_backing),
        Case::new("a_ring_that_drains_is_not_lost_to_a_new_one", 60, drains_beside_a_new_one),
        Case::new("a_limit_holds_and_changes_live", 60, limits),
        Case::new("numbers_are_summed_by_adapter_and_start_over", 60, sums),
    ])
}

fn lun_text(event: &scsi::Event) -> (u32, u8, u32) {
    (event.event, event.lun[1], event.reason)
}

fn next_event(guest: &mut Initiator) -> Result<(u32, u8, u32)> {
    let event = guest.adapter().event(Duration::from_secs(5))?;
    event.as_ref().map(lun_text).ok_or_else(|| Failure::new("no event within five seconds"))
}

fn events() -> Result {
    let path = image("grows.img", 1 << 20)?;
    let first = Adapter::new("g1", "avio_stor").disk(0, &file_backing(&path), "");
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
    ensure(one.command(7, &[0; 6], &[], 0)?.response == S_BAD_TARGET, || "target 7 is gone".into())?;
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
    let path = image("disk.img", 4 << 20)?;
    let file = file_backing(&path);
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
            ensure(absent.response == S_BAD_TARGET, || format!("{absent:?}"))?;
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

/// The file system of the backing is frozen: writes hang in the kernel, as they do when storage is gone.
fn hanging_backing() -> Result {
    let mounted = Mounted::new(&image("host.img", 64 << 20)?)?;
    let path = mounted.folder.join("disk.img");
    let file = File::create(&path)?;
    file.set_len(1 << 20)?;
    file.sync_all()?;
    let config =
        Storage::one(Adapter::new("g1", "avio_stor").disk(0, &file_backing(&path), "timeout_s = 2").disk(
            1,
            "memory:1M",
            "",
        ));
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
