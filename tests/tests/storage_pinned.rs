//! Guests that keep their memory in place (`pin_memory`): fixed buffers where they can be had, plain ones where not.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::storage::{Disk, StorageOptions};
use avio_proto::ring::Used;
use avio_proto::virtio::blk;
use avio_tests::case::{self, Case};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::ensure;
use avio_tests::initiator::{Initiator, two_queues};
use avio_tests::storage::{Adapter, Storage, file_backing, image};
use avio_tests::{Failure, Result, scratch};

fn main() -> ExitCode {
    case::main(&[
        Case::new("a_guest_that_pins_its_memory_uses_fixed_buffers", 60, fixed_buffers),
        Case::new("without_fixed_buffers_plain_ones_serve", 60, without_fixed_buffers),
    ])
}

/// KiB of guests' memory that the daemon has pinned.
fn pinned_kib(daemon: &mut Daemon<Storage>) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.console()?.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).unwrap_or_default();
    Ok(line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0))
}

fn await_pinned(daemon: &mut Daemon<Storage>, wanted: impl Fn(u64) -> bool, what: &str) -> Result<u64> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let kib = pinned_kib(daemon)?;
        if wanted(kib) {
            return Ok(kib);
        }
        ensure(Instant::now() < end, || format!("{what}: {kib} KiB are pinned"))?;
        sleep(Duration::from_millis(10));
    }
}

/// A guest's file with and without the promise that its memory stays in place, over a file.
fn pinning(kind: &str, backing: &str, pin: bool) -> Storage {
    let head = if pin { "pin_memory = true" } else { "" };
    Storage::one(Adapter::new("g1", kind).head(head).lines("queues = 2").disk(0, backing, ""))
}

fn fixed_buffers() -> Result {
    let path = image("pinned.img", 8 << 20)?;
    let file = file_backing(&path);
    let mut daemon = Daemon::start(pinning("avio_blk", &file, true))?;
    for packed in [false, true] {
        for indirect in [false, true] {
            let options = StorageOptions { packed, indirect, depth: 16, data_len: 65536, ..two_queues() };
            let mut disk = Disk::connect(Endpoint::Connect(daemon.stor_socket("g1")?), &options)?;
            let output = daemon.console()?.wait_for("fixed buffers: 1 region", 5)?;
            ensure(!output.contains("plain buffers serve"), || output.clone())?;
            await_pinned(&mut daemon, |kib| kib > 0, "connected")?;
            in_pieces(&mut disk, &path)?;
            for round in 0..32usize {
                // Also lengths and places that no buffer is aligned to.
                let len = [512, 4096, 65536, 5 * 512][round % 4];
                let data: Vec<u8> =
                    (0..len).map(|at| (at / 3 + round * 7) as u8 ^ u8::from(packed)).collect();
                let sector = 256 * round as u64 + round as u64 % 3;
                disk.write(round % 2, sector, &data)?;
                let mut got = vec![0; len];
                disk.read(1 - round % 2, sector, &mut got)?;
                ensure(got == data, || format!("round {round}: it read something else"))?;
                let mut held = vec![0; len];
                File::open(&path)?.read_exact_at(&mut held, sector * 512)?;
                ensure(held == data, || format!("round {round}: the file holds something else"))?;
            }
            drop(disk);
            await_pinned(&mut daemon, |kib| kib == 0, "gone")?;
            // Both queues are on the one worker: every read and write but none of the flushes.
            daemon
                .console()?
                .wait_for("fixed buffers: 1 region let go by worker 0; 64 operations used", 5)?;
            // No more lines than are let through.
            sleep(Duration::from_millis(700));
        }
    }
    for round in 0..100 {
        let mut disk = Disk::connect(Endpoint::Connect(daemon.stor_socket("g1")?), &two_queues())
            .map_err(|error| Failure::new(format!("connection {round}: {error}")))?;
        disk.write(0, 0, &[round; 512])?;
        if round % 10 == 0 {
            await_pinned(&mut daemon, |kib| kib > 0, "connected again")?;
        }
    }
    await_pinned(&mut daemon, |kib| kib == 0, "gone a hundred times")?;
    changed_promise(&mut daemon, &file)?;
    daemon.ensure_healthy()
}

/// A request whose data lie in two places of the guest's memory, which plain I/O does: written, then read the other way round.
fn in_pieces(disk: &mut Disk, path: &Path) -> Result {
    let queue = &mut disk.queues()[0];
    let (Some(a), Some(b)) = (queue.take(), queue.take()) else { return Err(Failure::new("no room")) };
    let ([head, status, first], [_, _, second]) = (queue.addresses(a), queue.addresses(b));
    let (long, short) = ([0xa5; 4096], [0x5a; 512]);
    queue.data(a).copy_from(&long);
    queue.data(b).copy_from(&short);
    let mut request = |kind: u32, out: &[(u64, u32)], into: &[(u64, u32)]| -> Result {
        queue.head(a).copy_from(&blk::RequestHeader { kind, sector: 8 }.to_bytes());
        queue.response(a).copy_from(&[0xff]);
        let out = [&[(head, 16)], out].concat();
        let into = [into, &[(status, 1)]].concat();
        ensure(queue.ring().add(&out, &into).is_some(), || "no room in the ring".into())?;
        queue.flush();
        let end = Instant::now() + Duration::from_secs(5);
        while queue.ring().poll_used(&mut [Used::default()]) == 0 {
            ensure(Instant::now() < end, || "no answer".into())?;
            queue.wait(Duration::from_millis(10));
        }
        ensure(queue.response(a).read::<1>(0) == Some([0]), || "it was refused".into())
    };
    request(blk::T_OUT, &[(first, 4096), (second, 512)], &[])?;
    request(blk::T_IN, &[], &[(second, 512), (first, 4096)])?;
    let mut held = [0; 4608];
    File::open(path)?.read_exact_at(&mut held, 4096)?;
    ensure(held == [&long[..], &short].concat()[..], || "the file holds something else".into())?;
    let (mut back, mut rest) = ([0; 512], [0; 4096]);
    queue.data(b).copy_to(&mut back);
    queue.data(a).copy_to(&mut rest);
    ensure(back == held[..512] && rest == held[512..], || "it read something else".into())?;
    queue.give(a);
    queue.give(b);
    Ok(())
}

/// A reload counts from the guest's next connection on.
fn changed_promise(daemon: &mut Daemon<Storage>, file: &str) -> Result {
    let takes_effect = "g1 stor-0-4: pin_memory takes effect when the guest connects again";
    let connect = |daemon: &Daemon<Storage>| {
        Disk::connect(Endpoint::Connect(daemon.stor_socket("g1")?), &two_queues()).map_err(Failure::from)
    };
    for pin in [false, true] {
        let mut disk = connect(daemon)?;
        disk.write(0, 0, &[1; 512])?;
        await_pinned(daemon, |kib| (kib == 0) == pin, "before")?;
        daemon.config = pinning("avio_blk", file, pin);
        let told = daemon.reload_by_command()?;
        ensure(told.contains(takes_effect), || told.clone())?;
        disk.write(0, 0, &[2; 512])?;
        ensure((pinned_kib(daemon)? == 0) == pin, || "it took effect at once".into())?;
        drop(disk);
        await_pinned(daemon, |kib| kib == 0, "in between")?;
    }
    let mut disk = connect(daemon)?;
    disk.write(0, 0, &[3; 512])?;
    await_pinned(daemon, |kib| kib > 0, "after").map(drop)
}

fn without_fixed_buffers() -> Result {
    let over =
        |name| -> Result<Storage> { Ok(pinning("avio_stor", &file_backing(&image(name, 1 << 20)?), true)) };
    let mut daemon = Daemon::start(over("one.img")?)?;
    daemon.stop()?;
    daemon.restart_with(&[("AVIO_DISABLE", "uring_fixed_buffers")], 10)?;
    serves_plainly(&mut daemon, "kernel facility uring_fixed_buffers is not there or switched off")?;
    daemon.stop()?;
    // A daemon that may lock less memory than the guest has; its rings count, too.
    let limited = scratch::folder().join("limited-stord");
    let stord = program("avio-stord")?;
    let command = "exec setpriv --bounding-set=-ipc_lock prlimit --memlock=1048576";
    fs::write(&limited, format!("#!/bin/sh\n{command} {} \"$@\"\n", stord.display()))?;
    fs::set_permissions(&limited, fs::Permissions::from_mode(0o755))?;
    let folder = scratch::folder().join("limited");
    let mut daemon = Daemon::start_as(Some(limited), folder, over("two.img")?)?;
    serves_plainly(
        &mut daemon,
        "Cannot allocate memory (os error 12); the daemon needs LimitMEMLOCK=infinity",
    )
}

/// A guest that would have its memory registered is served without; one line says why.
fn serves_plainly(daemon: &mut Daemon<Storage>, why: &str) -> Result {
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &two_queues(), &[0])?;
    let line = "g1 stor-0-4: pin_memory: plain buffers serve where memory cannot be registered: ";
    daemon.console()?.wait_for(&format!("{line}{why}"), 5)?;
    one.write(0, 3, &[5; 4096])?;
    ensure(one.read(0, 3, 8)? == vec![5; 4096], || "it read something else".into())?;
    let output = daemon.console()?.output();
    ensure(output.matches("plain buffers serve").count() == 1, || "two rings, two lines".into())?;
    ensure(pinned_kib(daemon)? == 0, || "something is pinned".into())?;
    daemon.ensure_healthy()
}
