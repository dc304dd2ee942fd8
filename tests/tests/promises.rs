//! The daemons' promised figures, with guests in this process: idle cost, the first frame after a pause, own memory; idle LUNs,
//! LUNs added to a running guest.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::net::{NetGuest, NetOptions, NetQueue};
use avio_guest::storage::{Kind, StorageOptions};
use avio_proto::virtio::net::NetHeader;
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::frames::{EXPERIMENT, ethernet};
use avio_tests::initiator::Initiator;
use avio_tests::storage::{Adapter, Storage, file_backing};
use avio_tests::{Failure, Result, scratch};

fn main() -> ExitCode {
    case::main(&[
        Case::new("idle_with_16_guests_costs_less_than_a_hundredth_of_a_core", 30, idle),
        Case::new("first_frame_after_a_pause_comes_within_100_us", 30, first_frame),
        Case::new("a_hundred_guests_take_less_than_64_mib", 60, memory),
        Case::new("idle_with_128_luns_costs_less_than_a_hundredth_of_a_core", 30, idle_luns),
        Case::new("a_lun_is_added_within_100_ms_and_the_others_go_on", 60, added_lun),
    ])
}

/// A daemon as shipped, and `count` connected guests.
fn connected(count: u16) -> Result<(Daemon, Vec<(NetGuest, NetQueue)>)> {
    let extras = vec![""; usize::from(count)];
    let daemon = Daemon::start(Config::one_switch(&extras))?;
    let mut guests = Vec::new();
    for index in 0..usize::from(count) {
        let (guest, mut queues) =
            NetGuest::connect(Endpoint::Connect(daemon.socket(index)), &NetOptions::default())
                .map_err(|e| Failure::new(e.to_string()))?;
        guests.push((guest, queues.remove(0)));
    }
    for number in 1..=u32::from(count) {
        daemon.wait_active(number)?;
    }
    Ok((daemon, guests))
}

fn idle() -> Result {
    let (mut daemon, guests) = connected(16)?;
    sleep(Duration::from_millis(500));
    let (before, begin) = (daemon.cpu_ms()?, Instant::now());
    sleep(Duration::from_secs(4));
    let (used, elapsed) = (daemon.cpu_ms()? - before, begin.elapsed().as_millis() as u64);
    println!("idle with {} guests: {used} ms of CPU in {elapsed} ms", guests.len());
    ensure(used * 100 < elapsed, || format!("{used} ms of CPU in {elapsed} ms without traffic"))
}

fn first_frame() -> Result {
    let (mut daemon, mut guests) = connected(2)?;
    let frame = ethernet(&mac_of(2), &mac_of(1), EXPERIMENT);
    let (receivers, senders) = guests.split_at_mut(1);
    let (sender, receiver) = (&mut receivers[0].1, &mut senders[0].1);
    let (mut delays_us, mut machines_us) = (Vec::new(), Vec::new());
    for _ in 0..41 {
        machines_us.push(wake_up()?);
        sleep(Duration::from_millis(50));
        let begin = Instant::now();
        ensure(sender.tx.push(&NetHeader::default(), &frame), || "no room to send".into())?;
        sender.tx.flush();
        let mut got = 0;
        while got == 0 {
            got = receiver.rx.poll(64, |_| {}).map_err(|e| Failure::new(e.to_string()))?;
            ensure(begin.elapsed() < Duration::from_secs(5), || "the frame did not arrive".into())?;
        }
        delays_us.push(begin.elapsed().as_micros());
        sender.tx.reclaim().map_err(|e| Failure::new(e.to_string()))?;
    }
    daemon.ensure_healthy()?;
    let (median_us, machine_us) = (median(&mut delays_us), median(&mut machines_us));
    println!("first frame after 50 ms of silence: median {median_us} us, all {delays_us:?}");
    println!("a thread that sleeps wakes up: median {machine_us} us, all {machines_us:?}");
    // Where the machine itself takes long to wake a core, that is not the daemon's time: up to half a millisecond was seen on a virtual one whose host was busy.
    let most_us = 100.max(machine_us * 3 / 2 + 50);
    ensure(median_us < most_us, || {
        format!("median {median_us} us, {machine_us} us of a thread alone: {delays_us:?}")
    })
}

fn median(values: &mut [u128]) -> u128 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// How long this machine takes to wake a thread that has slept for 50 ms, in microseconds.
fn wake_up() -> Result<u128> {
    let awake = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&awake);
    let sleeper = std::thread::spawn(move || {
        std::thread::park();
        tell.store(true, Ordering::Release);
    });
    sleep(Duration::from_millis(50));
    let begin = Instant::now();
    sleeper.thread().unpark();
    while !awake.load(Ordering::Acquire) {
        std::hint::spin_loop();
    }
    let delay_us = begin.elapsed().as_micros();
    sleeper.join().map_err(|_| Failure::new("the thread panicked"))?;
    Ok(delay_us)
}

/// A daemon with so many image files at one adapter of one guest.
fn luns(count: usize) -> Result<(Adapter, Daemon<Storage>)> {
    let folder = scratch::folder().join("images");
    std::fs::create_dir_all(&folder)?;
    let mut adapter = Adapter::new("g1", "avio_stor");
    for target in 0..count {
        let path = folder.join(format!("{target}.img"));
        std::fs::File::create(&path)?.set_len(1 << 20)?;
        adapter = adapter.disk(target, &file_backing(&path), "");
    }
    let daemon = Daemon::start(Storage::one(adapter.clone()))?;
    Ok((adapter, daemon))
}

fn storage_options() -> StorageOptions {
    StorageOptions { depth: 32, ..StorageOptions::new(Kind::Scsi) }
}

fn idle_luns() -> Result {
    let (_, mut daemon) = luns(128)?;
    let targets: Vec<u8> = (0..128).collect();
    let mut guest = Initiator::connect(&daemon.stor_socket("g1")?, &storage_options(), &targets)?;
    for target in targets {
        guest.write(target, 0, &[target; 512])?;
    }
    sleep(Duration::from_millis(500));
    let (before, begin) = (daemon.cpu_ms()?, Instant::now());
    sleep(Duration::from_secs(4));
    let (used, elapsed) = (daemon.cpu_ms()? - before, begin.elapsed().as_millis() as u64);
    println!("idle with 128 LUNs: {used} ms of CPU in {elapsed} ms");
    ensure(used * 100 < elapsed, || format!("{used} ms of CPU in {elapsed} ms without requests"))
}

/// From the request to reload until the guest has its event and the LUN answers. Meanwhile another LUN is read without pause.
fn added_lun() -> Result {
    let (adapter, mut daemon) = luns(32)?;
    let mut guest = Initiator::connect(&daemon.stor_socket("g1")?, &storage_options(), &[0])?;
    let (mut delays_ms, mut pauses_us) = (Vec::new(), Vec::new());
    let mut with = adapter;
    for target in 100..111u8 {
        let path = scratch::folder().join(format!("added{target}.img"));
        std::fs::File::create(&path)?.set_len(1 << 20)?;
        with = with.disk(target.into(), &file_backing(&path), "");
        daemon.config = Storage::one(with.clone());
        let begin = Instant::now();
        daemon.reload()?;
        let mut pause = Duration::ZERO;
        loop {
            let read = Instant::now();
            guest.read(0, 0, 1)?;
            pause = pause.max(read.elapsed());
            let event = guest.adapter().event(Duration::ZERO).map_err(|e| Failure::new(e.to_string()))?;
            if event.is_some_and(|event| event.lun[1] == target) {
                break;
            }
            ensure(begin.elapsed() < Duration::from_secs(5), || format!("no event for target {target}"))?;
        }
        guest.settle(target)?;
        delays_ms.push(begin.elapsed().as_millis());
        pauses_us.push(pause.as_micros());
        guest.adapter().post_events();
    }
    delays_ms.sort_unstable();
    pauses_us.sort_unstable();
    let (delay_ms, pause_us) = (delays_ms[delays_ms.len() / 2], pauses_us[pauses_us.len() / 2]);
    println!(
        "a LUN more: median {delay_ms} ms of {delays_ms:?}; longest read meanwhile: median {pause_us} us of {pauses_us:?}"
    );
    ensure(delay_ms < 100, || format!("median {delay_ms} ms: {delays_ms:?}"))?;
    ensure(pause_us < 50_000, || format!("reads of another LUN took {pauses_us:?} us"))?;
    daemon.ensure_healthy()
}

fn memory() -> Result {
    let (mut daemon, guests) = connected(100)?;
    let own_kib = daemon.own_memory_kib()?;
    println!("own memory with {} guests: {own_kib} KiB", guests.len());
    ensure(own_kib < 64 * 1024, || format!("{own_kib} KiB with {} guests", guests.len()))
}
