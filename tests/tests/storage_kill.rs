//! The storage daemon killed in the middle of its work and started again: each request is answered once, the old process's
//! I/O is over before anything is done again, and what must not be done twice is not.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::storage::{Disk, Done, Kind, StorageOptions, Transfer};
use avio_proto::virtio::blk;
use avio_tests::case::{self, Case};
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::ensure;
use avio_tests::initiator::{Initiator, RESERVATION_CONFLICT, Reply, cdb10, compare_and_write, reserve_out};
use avio_tests::storage::{Adapter, Storage, file_backing, image};
use avio_tests::{Failure, Result, scratch};
use rustix::fs::{FlockOperation, fcntl_lock};

fn main() -> ExitCode {
    case::main(&[
        Case::new("a_write_load_survives_kills_split", 90, || write_load(false)).data_path(),
        Case::new("a_write_load_survives_kills_packed", 90, || write_load(true)).data_path(),
        Case::new("old_io_is_over_before_anything_is_done_again", 60, old_io),
        Case::new("compare_and_write_is_not_compared_again", 60, compare_again),
        Case::new("persistent_reserve_out_is_not_done_twice", 60, reserve_twice),
        Case::new("reservations_modes_trays_and_replacements_outlive_the_process", 60, state),
        Case::new("a_shared_store_that_was_replaced_stays_fenced", 60, shared_replacement),
        Case::new("who_shares_a_store_and_keeps_it_notices_no_replacement", 60, one_parts),
        Case::new(
            "a_backing_that_is_missing_at_a_start_is_waited_for_by_its_lun_alone",
            60,
            missing_at_start,
        ),
        Case::new("what_cannot_be_written_down_is_not_called_done", 60, not_saved),
        Case::new(
            "a_store_replaced_while_the_daemon_was_down_is_fenced_for_who_was_there",
            60,
            replaced_while_down,
        ),
    ])
}

const MIB: u64 = 1 << 20;

fn tracked(kind: Kind, packed: bool) -> StorageOptions {
    StorageOptions {
        packed,
        inflight: true,
        depth: 32,
        data_len: 8192,
        reply_timeout: Duration::from_secs(20),
        connect_timeout: Duration::from_secs(20),
        ..StorageOptions::new(kind)
    }
}

fn pattern(block: u64, round: u64) -> Vec<u8> {
    (0..512u64).flat_map(|i| (block << 32 ^ round << 16 ^ i).to_le_bytes()).collect()
}

/// Thirty-two writes are always under way, held back for a while, through several kills; each block is written several times,
/// and never twice at once. Every write is answered once, and the image has the last of each block.
fn write_load(packed: bool) -> Result {
    const BLOCKS: u64 = 64;
    const WRITES: u64 = 640;
    let path = image("disk.img", BLOCKS * 4096)?;
    let backing = format!("fault:write_delay_ms=150:file:{}", path.display());
    let config = Storage::one(Adapter::new("g1", "avio_blk").disk(0, &backing, ""));
    let mut daemon = Daemon::start(config)?;
    let options = tracked(Kind::Blk, packed);
    let mut disk = Disk::connect(Endpoint::Connect(daemon.stor_socket("g1")?), &options)?;
    let (mut begun, mut ended, mut kills) = (0, 0, 0);
    // Slot -> block, and what each block was last told to hold.
    let (mut out, mut holds) = (BTreeMap::new(), BTreeMap::new());
    let mut next_kill = Instant::now() + Duration::from_millis(400);
    let deadline = Instant::now() + Duration::from_secs(60);
    while ended < WRITES {
        ensure(Instant::now() < deadline, || format!("{ended} of {WRITES} after a minute, {out:?}"))?;
        let queue = &mut disk.queues()[0];
        while begun < WRITES {
            let block = begun % BLOCKS;
            if out.values().any(|other| *other == block) {
                break;
            }
            let Some(slot) = queue.take() else { break };
            let head = blk::RequestHeader { kind: blk::T_OUT, sector: block * 8 };
            queue.head(slot).copy_from(&head.to_bytes());
            queue.response(slot).copy_from(&[0xff]);
            let data = pattern(block, begun);
            queue.data(slot).copy_from(&data);
            ensure(queue.submit(slot, 16, 1, Transfer::Out(4096)), || "the ring has no room".into())?;
            ensure(out.insert(slot, block).is_none(), || format!("slot {slot} was free and in flight"))?;
            holds.insert(block, data);
            begun += 1;
        }
        queue.flush();
        if kills < 4 && Instant::now() > next_kill {
            daemon.kill();
            kills += 1;
            daemon.restart_with(&[], 20)?;
            // What the old one had published is taken back first: see `StorageGuest::reconnect`.
            ended += finished(&mut disk, &mut out)?;
            disk.reconnect()?;
            next_kill = Instant::now() + Duration::from_millis(300);
        }
        let now = finished(&mut disk, &mut out)?;
        ended += now;
        if now == 0 {
            disk.queues()[0].wait(Duration::from_millis(20));
        }
    }
    ensure(out.is_empty() && kills == 4, || format!("{kills} kills, {out:?} not answered"))?;
    sleep(Duration::from_millis(300));
    ensure(finished(&mut disk, &mut out)? == 0, || "an answer too many".into())?;
    let file = File::open(&path)?;
    for (block, wanted) in holds {
        let mut found = vec![0; 4096];
        file.read_exact_at(&mut found, block * 4096)?;
        ensure(found == wanted, || {
            format!("block {block} has {:02x?}, not {:02x?}", &found[..16], &wanted[..16])
        })?;
    }
    daemon.ensure_healthy()
}

/// Takes back what is done; each must have been out, and good.
fn finished(disk: &mut Disk, out: &mut BTreeMap<u16, u64>) -> Result<u64> {
    let queue = &mut disk.queues()[0];
    let mut done = [Done::default(); 32];
    let count = queue.poll(&mut done).map_err(|e| Failure::new(e.to_string()))?;
    for one in &done[..count] {
        let block = out.remove(&one.slot);
        let status = queue.response(one.slot).read::<1>(0);
        ensure(block.is_some() && status == Some([blk::S_OK]), || {
            format!("slot {} of block {block:?} ended with {status:?}", one.slot)
        })?;
        queue.give(one.slot);
    }
    Ok(count as u64)
}

/// Has the claim on an image, as the kernel holds it for a process that is gone and whose I/O is not. It is this process's:
/// closing the image anywhere in it lets go.
struct Lingering(File);

impl Lingering {
    fn claim(path: &Path, seconds: u64) -> Result<Lingering> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while let Err(error) = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            ensure(Instant::now() < deadline, || format!("the claim of a daemon that was killed: {error}"))?;
            sleep(Duration::from_millis(5));
        }
        Ok(Lingering(file))
    }
}

/// Writes of the old process reach the disk seconds after it was killed. The successor must not have done anything by then:
/// what it does again comes after them.
fn old_io() -> Result {
    let path = image("disk.img", MIB)?;
    let backing = format!("fault:write_delay_ms=2000:file:{}", path.display());
    let config = Storage::one(Adapter::new("g1", "avio_blk").disk(0, &backing, ""))
        .adapter(Adapter::new("g2", "avio_stor").disk(0, "memory:1M", ""));
    let mut daemon = Daemon::start(config)?;
    let options = tracked(Kind::Blk, false);
    let mut disk = Disk::connect(Endpoint::Connect(daemon.stor_socket("g1")?), &options)?;
    let mut other = Initiator::connect(&daemon.stor_socket("g2")?, &tracked(Kind::Scsi, false), &[0])?;
    let queue = &mut disk.queues()[0];
    let slot = queue.take().ok_or_else(|| Failure::new("no slot"))?;
    let head = blk::RequestHeader { kind: blk::T_OUT, sector: 0 };
    queue.head(slot).copy_from(&head.to_bytes());
    queue.data(slot).copy_from(&[2; 4096]);
    ensure(queue.submit(slot, 16, 1, Transfer::Out(4096)), || "room".into())?;
    queue.flush();
    sleep(Duration::from_millis(300));
    daemon.kill();
    let old = Lingering::claim(&path, 5)?;
    // The thread stands for the kernel: it writes what the old process had asked for, late, and only then lets go.
    let (served, is_served) = std::sync::mpsc::channel();
    let late = std::thread::spawn(move || -> Result<Instant> {
        let _ = is_served.recv_timeout(Duration::from_secs(15));
        sleep(Duration::from_secs(2));
        old.0.write_all_at(&[1; 4096], 0)?;
        let over = Instant::now();
        drop(old);
        Ok(over)
    });
    daemon.restart_with(&[], 20)?;
    // Whoever has nothing to do with it is served meanwhile.
    other.reconnect()?;
    other.read(0, 0, 1)?;
    ensure(served.send(()).is_ok(), || "another guest was served after the old I/O only".into())?;
    disk.reconnect()?;
    let back = Instant::now();
    let over = late.join().map_err(|_| Failure::new("the writer panicked"))??;
    ensure(back > over, || format!("back {:?} before the old I/O was over", over - back))?;
    let mut done = [Done::default()];
    let deadline = Instant::now() + Duration::from_secs(10);
    while disk.queues()[0].poll(&mut done).map_err(|e| Failure::new(e.to_string()))? == 0 {
        ensure(Instant::now() < deadline, || "the write is not answered".into())?;
        disk.queues()[0].wait(Duration::from_millis(50));
    }
    let mut found = [0; 4096];
    File::open(&path)?.read_exact_at(&mut found, 0)?;
    ensure(found == [2; 4096], || format!("the image has {:?}", &found[..8]))?;
    daemon.ensure_healthy()
}

/// A COMPARE AND WRITE has compared and waits in its write when the daemon is killed. Whether the write had been done or not, it
/// is answered with GOOD; and if somebody has written since, that stays.
fn compare_again() -> Result {
    for packed in [false, true] {
        for (case, meanwhile, after) in [
            ("not done", None, [2u8; 512]),
            ("done", Some([2u8; 512]), [2; 512]),
            ("overtaken", Some([9; 512]), [9; 512]),
        ] {
            let name = format!("{case} {packed}").replace(' ', "-");
            let path = image(&format!("{name}.img"), MIB)?;
            let backing = format!("fault:write_delay_ms=1200:file:{}", path.display());
            let config = Storage::one(Adapter::new("g1", "avio_stor").disk(0, &backing, ""));
            let mut daemon = Daemon::start_in(scratch::folder().join(&name), config)?;
            let socket = daemon.stor_socket("g1")?;
            let mut one = Initiator::connect(&socket, &tracked(Kind::Scsi, packed), &[0])?;
            let both = [[0u8; 512], [2; 512]].concat();
            one.begin(0, 0, 1, &compare_and_write(4, 1), &both)?;
            sleep(Duration::from_millis(400));
            daemon.kill();
            if let Some(bytes) = meanwhile {
                Lingering::claim(&path, 5)?.0.write_all_at(&bytes, 4 * 512)?;
            }
            daemon.restart_with(&[], 20)?;
            one.reconnect()?;
            let ended = one.await_ended(0, 1, 10)?;
            ended[0].reply.clone().good(&format!("packed {packed}, the write was {case}"))?;
            ensure(one.read(0, 4, 1)? == after, || format!("packed {packed}, {case}: another block"))?;
            // A new one is compared as ever.
            let again = one.command(0, &compare_and_write(4, 1), &both, 0)?;
            again.check((0xe, 0x1d, 0), "a comparison that does not hold")?;
            daemon.ensure_healthy()?;
        }
    }
    Ok(())
}

/// The daemon dies when a REGISTER is in the journal and not answered. Its successor answers it, and does not do it again:
/// with the key changed it would be refused.
fn reserve_twice() -> Result {
    for packed in [false, true] {
        let config = Storage::one(Adapter::new("g1", "avio_stor").disk(0, "memory:1M", ""));
        let folder = scratch::folder().join(if packed { "packed" } else { "split" });
        let mut daemon = Daemon::start_in(folder, config)?;
        daemon.kill();
        daemon.restart_with(&[("AVIO_TEST_PANIC", "storage-journalled:2")], 5)?;
        let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &tracked(Kind::Scsi, packed), &[0])?;
        one.reserve_out(0, 0, 0, 0, 0xa)?.good("REGISTER")?;
        let (cdb, list) = reserve_out(0, 0, 0xa, 0xb);
        one.begin(0, 0, 0x51, &cdb, &list)?;
        let status = daemon.console()?.wait_end(5)?;
        ensure(!status.success() && one.ended(0)?.is_empty(), || format!("died with {status}"))?;
        daemon.restart_with(&[], 5)?;
        one.reconnect()?;
        let ended = one.await_ended(0, 1, 5)?;
        ended[0].reply.clone().good("the REGISTER that was journalled")?;
        one.reserve_out(0, 0, 0, 0xb, 0xc)?.good("with the key that it set")?;
        let keys = one.command(0, &[0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[], 256)?.good("READ KEYS")?;
        ensure(keys.data[..4] == 3u32.to_be_bytes(), || format!("generation: {:02x?}", &keys.data[..8]))?;
        daemon.ensure_healthy()?;
    }
    Ok(())
}

/// What a logical unit and a drive remember through a kill.
fn state() -> Result {
    let (first, second) = (image("one.iso", MIB)?, image("two.iso", 2 * MIB)?);
    let adapter = |guest: &str| Adapter::new(guest, "avio_stor").disk(0, "memory:1M", "share = true");
    let one = adapter("g1").lun(1, "dvd", &file_backing(&first), "");
    let mut daemon = Daemon::start(Storage::default().adapter(one).adapter(adapter("g2")))?;
    let options = tracked(Kind::Scsi, false);
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options, &[0, 1])?;
    let mut two = Initiator::connect(&daemon.stor_socket("g2")?, &options, &[0])?;
    one.reserve_out(0, 0, 0, 0, 0xa)?.good("REGISTER")?;
    one.reserve_out(0, 1, 1, 0xa, 0)?.good("RESERVE, write exclusive")?;
    // MODE SELECT (6): descriptor format sense data.
    let page = [0, 0, 0, 0, 0x0a, 10, 4, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0];
    one.command(0, &[0x15, 0x10, 0, 0, 16, 0], &page, 0)?.good("MODE SELECT")?;
    ensure(two.settle(0)? == [(0x2a, 0x01)], || "mode parameters changed".into())?;
    sleep(Duration::from_millis(200));
    let avio = |daemon: &Daemon<Storage>, arguments: &[&str]| -> Result {
        let output = daemon.avio(&[&["stor"], arguments].concat())?;
        ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())
    };
    avio(&daemon, &["eject", "g1", "0", "4", "1"])?;
    avio(&daemon, &["insert", "g1", "0", "4", "1", &second.display().to_string()])?;
    for round in 0..2 {
        let refused = two.command(0, &cdb10(0x2a, 0, 1), &[1; 512], 0)?;
        ensure(refused.status == RESERVATION_CONFLICT, || format!("round {round}: {refused:?}"))?;
        let sensed = one.command(0, &[0x1a, 8, 0x0a, 0, 255, 0], &[], 255)?.good("MODE SENSE")?;
        ensure(sensed.data.get(6) == Some(&4), || format!("round {round}: {:02x?}", sensed.data))?;
        one.settle(1)?;
        let capacity = one.command(1, &cdb10(0x25, 0, 0), &[], 8)?.good("READ CAPACITY")?;
        ensure(capacity.data[..4] == 1023u32.to_be_bytes(), || {
            format!("round {round}: {:02x?}", capacity.data)
        })?;
        // An unrelated reload leaves the inserted medium where it is.
        daemon.reload()?;
        sleep(Duration::from_millis(300));
        ensure(daemon.lun("g1", 1)?["state"] == "Online", || "the reload took the medium".into())?;
        if round == 0 {
            daemon.kill();
            daemon.restart_with(&[], 5)?;
            one.reconnect()?;
            two.reconnect()?;
        }
    }
    // The memory is new, and nobody was told of a power-on: the process was, not the power.
    ensure(two.settle(0)?.is_empty(), || "a power-on that was none".into())?;
    avio(&daemon, &["eject", "g1", "0", "4", "1"])?;
    sleep(Duration::from_millis(200));
    daemon.kill();
    daemon.restart_with(&[], 5)?;
    ensure(daemon.lun("g1", 1)?["state"] == "NoMedia", || "the drive was empty".into())?;
    one.reconnect()?;
    let empty = one.command(1, &cdb10(0x28, 0, 1), &[], 2048)?;
    empty.check((2, 0x3a, 0), "medium not present")?;
    daemon.ensure_healthy()
}

fn sharing(stores: &[(&str, &str)]) -> Storage {
    stores.iter().fold(Storage::default(), |all, (guest, store)| {
        all.adapter(Adapter::new(guest, "avio_stor").disk(0, store, "share = true"))
    })
}

/// A READ (10), after the unit attentions of what has happened.
fn read_after_attentions(guest: &mut Initiator) -> Result<Reply> {
    for _ in 0..8 {
        let reply = guest.command(0, &cdb10(0x28, 0, 1), &[], 512)?;
        if reply.sense.0 != 6 {
            return Ok(reply);
        }
    }
    Err(Failure::new("unit attentions without end"))
}

/// Two guests that share the store `slow`, the first with a write to it under way.
fn writing_to_shared(slow: &str) -> Result<(Daemon<Storage>, Initiator, Initiator)> {
    let daemon = Daemon::start(sharing(&[("g1", slow), ("g2", slow)]))?;
    let options = tracked(Kind::Scsi, false);
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options, &[0])?;
    let two = Initiator::connect(&daemon.stor_socket("g2")?, &options, &[0])?;
    one.begin(0, 0, 1, &cdb10(0x2a, 0, 1), &[1; 512])?;
    sleep(Duration::from_millis(200));
    Ok((daemon, one, two))
}

/// Two guests share a store, writes to it are under way, and the host replaces it: a daemon killed meanwhile has not let
/// anybody have the new one.
fn shared_replacement() -> Result {
    let (old, new) = (image("old.img", MIB)?, image("new.img", 2 * MIB)?);
    let slow = format!("fault:write_delay_ms=4000:file:{}", old.display());
    let fresh = file_backing(&new);
    let (mut daemon, mut one, mut two) = writing_to_shared(&slow)?;
    daemon.config = sharing(&[("g1", &fresh), ("g2", &fresh)]);
    daemon.reload_by_command()?;
    ensure(one.ended(0)?.is_empty(), || "the write was over before the kill".into())?;
    daemon.kill();
    daemon.restart_with(&[], 10)?;
    one.reconnect()?;
    two.reconnect()?;
    // What was in flight comes again, and does not reach the new store.
    let ended = one.await_ended(0, 1, 10)?;
    ensure(!ended[0].reply.is_good(), || "the write was answered with GOOD".into())?;
    for (name, guest) in [("g1", &mut one), ("g2", &mut two)] {
        read_after_attentions(guest)?.check((2, 4, 3), name)?;
        let lun = daemon.lun(name, 0)?;
        ensure(lun["state"] == "Replaced", || format!("{name}: {lun:#}"))?;
    }
    ensure(std::fs::read(&new)?.iter().all(|byte| *byte == 0), || "the new store was written".into())?;
    let output = daemon.avio(&["stor", "replace", "--force-host", "g1", "0", "4", "0"])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    for guest in [&mut one, &mut two] {
        read_after_attentions(guest)?.good("approved")?;
    }
    daemon.ensure_healthy()
}

/// One of two guests that share a store gets another: it is fenced, and writes of its to the old store are over before it has
/// the new one. The other goes on.
fn one_parts() -> Result {
    let (old, new) = (image("old.img", MIB)?, image("new.img", 2 * MIB)?);
    let slow = format!("fault:write_delay_ms=1500:file:{}", old.display());
    let fresh = file_backing(&new);
    let (mut daemon, mut one, mut two) = writing_to_shared(&slow)?;
    daemon.config = sharing(&[("g1", &fresh), ("g2", &slow)]);
    daemon.reload_by_command()?;
    read_after_attentions(&mut one)?.check((2, 4, 3), "who got another store")?;
    two.read(0, 8, 1)?;
    ensure(daemon.lun("g2", 0)?["state"] == "Online", || "who kept its store".into())?;
    one.await_ended(0, 1, 5)?[0].reply.clone().good("the write to the old store")?;
    for round in 0..2 {
        if round == 1 {
            daemon.kill();
            daemon.restart_with(&[], 10)?;
            one.reconnect()?;
            two.reconnect()?;
        }
        read_after_attentions(&mut one)?.check((2, 4, 3), "who got another store")?;
        ensure(two.read(0, 0, 1)? == [1; 512], || format!("round {round}: the old store"))?;
    }
    let output = daemon.avio(&["stor", "replace", "--force-host", "g1", "0", "4", "0"])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    ensure(read_after_attentions(&mut one)?.good("approved")?.data == [0; 512], || "the new store".into())?;
    let last = one.command(0, &cdb10(0x25, 0, 0), &[], 8)?.good("READ CAPACITY")?;
    ensure(last.data[..4] == 4095u32.to_be_bytes(), || format!("{:02x?}", last.data))?;
    // It cannot go back into what the other has: that could not be fenced for one alone.
    daemon.config = sharing(&[("g1", &slow), ("g2", &slow)]);
    let refused = daemon.reload_by_command();
    ensure(refused.is_err_and(|e| e.to_string().contains("define it again")), || "joined".into())?;
    daemon.ensure_healthy()
}

/// Images that were there are gone when the daemon starts: their LUNs are offline, everything else is served, and they come
/// back by themselves. What never was is a mistake, and refused as ever.
fn missing_at_start() -> Result {
    let names = ["keep.img", "gone.img", "disk.img"];
    let paths = [image(names[0], MIB)?, image(names[1], MIB)?, image(names[2], 2 * MIB)?];
    let file = |i: usize| file_backing(&paths[i]);
    let one = Adapter::new("g1", "avio_stor").disk(0, &file(0), "").disk(1, &file(1), "");
    let config = Storage::one(one.clone()).adapter(Adapter::new("g2", "avio_blk").disk(0, &file(2), ""));
    let mut daemon = Daemon::start(config.clone())?;
    let (scsi, blk) = (tracked(Kind::Scsi, false), tracked(Kind::Blk, false));
    let mut one_guest = Initiator::connect(&daemon.stor_socket("g1")?, &scsi, &[0, 1])?;
    let mut disk = Disk::connect(Endpoint::Connect(daemon.stor_socket("g2")?), &blk)?;
    one_guest.write(1, 0, &[5; 512])?;
    disk.write(0, 0, &[6; 512])?;
    daemon.stop()?;
    let away = |path: &Path| path.with_extension("away");
    for path in &paths[1..] {
        std::fs::rename(path, away(path))?;
    }
    daemon.restart()?;
    let said = daemon.console()?.output();
    for place in ["g1 0/4 target 1: file:", "g2 0/4 target 0: file:"] {
        let lines = said.lines().filter(|line| line.contains(place) && line.contains("no such file"));
        ensure(lines.count() == 1, || format!("not one line about {place} in {said}"))?;
    }
    one_guest.reconnect()?;
    disk.reconnect()?;
    one_guest.read(0, 0, 1)?;
    one_guest.command(1, &cdb10(0x28, 0, 1), &[], 512)?.check((2, 4, 3), "a disk that is not there")?;
    ensure(one_guest.command(1, &[0x12, 0, 0, 0, 36, 0], &[], 36)?.is_good(), || "INQUIRY".into())?;
    ensure(disk.read(0, 0, &mut [0; 512]).is_err(), || "read from nothing".into())?;
    ensure(disk.config().capacity == 4096, || format!("{:?}", disk.config()))?;
    let lun = daemon.lun("g1", 1)?;
    ensure(lun["state"] == "Offline" && lun["size_bytes"] == MIB, || format!("{lun:#}"))?;
    // A reload of something else does not stumble over it; one that names what never was is refused.
    daemon.config = config.clone().adapter(one.clone().disk(2, "memory:1M", ""));
    let told = daemon.reload_by_command()?;
    ensure(told.contains("target 2: memory:1M added"), || told.clone())?;
    daemon.config = config.clone().adapter(one.clone().disk(3, "file:/nowhere/disk.img", ""));
    let refused = daemon.reload_by_command();
    ensure(refused.is_err_and(|e| e.to_string().contains("target 3: file:/nowhere")), || "taken".into())?;
    for path in &paths[1..] {
        std::fs::rename(away(path), path)?;
    }
    daemon.lun_when("g1", 1, 5, |lun| lun["state"] == "Online")?;
    daemon.lun_when("g2", 0, 5, |lun| lun["state"] == "Online")?;
    let told = one_guest.settle(1)?;
    ensure(told.contains(&(0x28, 0)), || format!("not ready to ready: {told:02x?}"))?;
    ensure(one_guest.read(1, 0, 1)? == [5; 512], || "another disk came back".into())?;
    let mut got = [0; 512];
    disk.read(0, 0, &mut got)?;
    ensure(got == [6; 512], || "another disk came back".into())?;
    daemon.ensure_healthy()
}

/// The operator stops the daemon, names another store, and starts it again.
fn replaced_while_down() -> Result {
    let (old, new) = (image("old.img", MIB)?, image("new.img", 2 * MIB)?);
    let with = |path: &Path| {
        let backing = file_backing(path);
        Storage::one(Adapter::new("g1", "avio_stor").disk(0, &backing, "serial = \"S\""))
    };
    let serial = |daemon: &Daemon<Storage>| -> Result<String> {
        Ok(daemon.lun("g1", 0)?["serial"].as_str().unwrap_or_default().to_owned())
    };
    let change = |daemon: &mut Daemon<Storage>, path: &Path| -> Result {
        daemon.config = with(path);
        avio_tests::daemon::Definitions::write(&daemon.config, &daemon.config_folder())?;
        daemon.restart()
    };
    let mut daemon = Daemon::start(with(&old))?;
    let mut guest = Initiator::connect(&daemon.stor_socket("g1")?, &tracked(Kind::Scsi, false), &[0])?;
    guest.write(0, 0, &[1; 512])?;
    // A guest that stays where it is, through a stop and a kill.
    daemon.stop()?;
    change(&mut daemon, &new)?;
    ensure(daemon.lun("g1", 0)?["state"] == "Replaced", || "a guest was there".into())?;
    for round in 0..2 {
        guest.reconnect()?;
        read_after_attentions(&mut guest)?.check((2, 4, 3), &format!("round {round}"))?;
        daemon.kill();
        daemon.restart()?;
    }
    ensure(std::fs::read(&new)?.iter().all(|byte| *byte == 0), || "the new store was written".into())?;
    guest.reconnect()?;
    let output = daemon.avio(&["stor", "replace", "--force-host", "g1", "0", "4", "0"])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    ensure(read_after_attentions(&mut guest)?.good("approved")?.data == [0; 512], || "the new store".into())?;
    ensure(serial(&daemon)? == "S-1", || format!("the serial number {:?}", serial(&daemon)))?;
    // A guest that has gone before.
    drop(guest);
    let gone = |daemon: &Daemon<Storage>| -> Result {
        let deadline = Instant::now() + Duration::from_secs(5);
        while daemon.stor()?["adapters"][0]["state"] != "Disconnected" {
            ensure(Instant::now() < deadline, || "the guest is still there".into())?;
            sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    gone(&daemon)?;
    daemon.stop()?;
    change(&mut daemon, &old)?;
    ensure(daemon.lun("g1", 0)?["state"] == "Online", || "nobody was there".into())?;
    ensure(serial(&daemon)? == "S-2", || format!("the serial number {:?}", serial(&daemon)))?;
    // A guest that ends while the daemon is down: what comes next has booted with the new store.
    let socket = daemon.stor_socket("g1")?;
    let mut line = command(program("avio-iogen")?);
    line.arg("--socket").arg(&socket).args(["--device", "scsi", "--rw", "randread", "--time-based"]);
    line.args(["--runtime", "60", "--size", "1M"]);
    let mut guest = Console::spawn("iogen", &mut line)?;
    daemon.lun_when("g1", 0, 10, |lun| lun["stats"]["reads"].as_u64().unwrap_or(0) > 0)?;
    ensure(guest.is_running(), || "avio-iogen has ended".into())?;
    daemon.kill();
    drop(guest);
    change(&mut daemon, &new)?;
    ensure(daemon.lun("g1", 0)?["state"] == "Online", || "the guest was shut down meanwhile".into())?;
    let mut guest = Initiator::connect(&daemon.stor_socket("g1")?, &tracked(Kind::Scsi, false), &[0])?;
    guest.read(0, 0, 1)?;
    daemon.ensure_healthy()
}

/// PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY with APTPL.
fn register_for_good(key: u64) -> ([u8; 10], [u8; 24]) {
    let (cdb, mut list) = reserve_out(6, 0, 0, key);
    list[20] = 1;
    (cdb, list)
}

/// The state folder cannot be written: nobody is told that something outlives the daemon, guest or operator, and nobody waits for
/// ever. Once it can be written again everything is as before.
fn not_saved() -> Result {
    let iso = image("one.iso", MIB)?;
    let drive = file_backing(&iso);
    let with = |memory: &str| {
        Storage::one(Adapter::new("g1", "avio_stor").disk(0, memory, "").lun(1, "dvd", &drive, ""))
    };
    let mut daemon = Daemon::start(with("memory:1M"))?;
    let mut guest = Initiator::connect(&daemon.stor_socket("g1")?, &tracked(Kind::Scsi, false), &[0, 1])?;
    // The first of the folder's state must be there, or it is written into the place of the one that is taken away.
    let (cdb, list) = register_for_good(0xa);
    guest.command(0, &cdb, &list, 0)?.good("REGISTER")?;
    let folder = scratch::folder().join("state/stord");
    let away = folder.with_extension("away");
    std::fs::rename(&folder, &away)?;
    File::create(&folder)?;
    let begin = Instant::now();
    let (cdb, list) = register_for_good(0xb);
    guest.command(0, &cdb, &list, 0)?.check((4, 0x44, 0), "REGISTER that is not saved")?;
    ensure(begin.elapsed() < Duration::from_secs(2), || format!("answered after {:?}", begin.elapsed()))?;
    guest.read(0, 0, 1)?;
    let output = daemon.avio(&["stor", "eject", "g1", "0", "4", "1"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(output.status.code() == Some(1) && said.contains("not saved"), || format!("eject: {said}"))?;
    daemon.config = with("memory:2M");
    let told = daemon.reload_by_command();
    ensure(told.as_ref().is_err_and(|e| e.to_string().contains("not saved")), || format!("{told:?}"))?;
    read_after_attentions(&mut guest)?.check((2, 4, 3), "replaced all the same")?;
    std::fs::remove_file(&folder)?;
    std::fs::rename(&away, &folder)?;
    let output = daemon.avio(&["stor", "replace", "--force-host", "g1", "0", "4", "0"])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    read_after_attentions(&mut guest)?.good("approved")?;
    let output = daemon.avio(&["stor", "insert", "g1", "0", "4", "1", &iso.display().to_string()])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    let (cdb, list) = register_for_good(0xc);
    guest.command(0, &cdb, &list, 0)?.good("REGISTER")?;
    // Answered is saved, also if the daemon dies in that moment.
    let output = daemon.avio(&["stor", "eject", "g1", "0", "4", "1"])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    daemon.kill();
    daemon.restart()?;
    guest.reconnect()?;
    ensure(daemon.lun("g1", 1)?["state"] == "NoMedia", || "the eject was lost".into())?;
    ensure(daemon.lun("g1", 0)?["state"] == "Online", || "the approval was lost".into())?;
    let keys = guest.command(0, &[0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[], 256)?.good("READ KEYS")?;
    ensure(keys.data.get(8..16) == Some(&0xcu64.to_be_bytes()[..]), || format!("{:02x?}", keys.data))?;
    daemon.ensure_healthy()
}
