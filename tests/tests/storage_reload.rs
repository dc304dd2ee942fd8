//! The storage daemon and changed files: what is followed at once, what waits, what is refused and leaves everything as it was.

use std::fs;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::storage::{Disk, StorageOptions};
use avio_proto::virtio::scsi::S_BAD_TARGET;
use avio_tests::case::{self, Case};
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, Definitions, program};
use avio_tests::failure::ensure;
use avio_tests::initiator::{Initiator, WRITE_10, cdb10, options};
use avio_tests::mounted::Mounted;
use avio_tests::storage::{Adapter, Storage, file_backing, image};
use avio_tests::{Result, scratch};

fn main() -> ExitCode {
    case::main(&[
        Case::new("reloads_in_a_row_are_all_followed", 30, reloads_in_a_row),
        Case::new("what_cannot_be_a_lun_is_refused_in_one_line", 60, bad_input),
        Case::new("a_removed_adapter_serves_nothing_more", 60, removed_adapter),
        Case::new("a_reload_says_what_it_changes_and_what_not", 60, changed_keys),
    ])
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

fn removed_adapter() -> Result {
    let keep = Adapter::new("g1", "avio_stor").disk(0, "memory:1M", "");
    let path = image("gone.img", 1 << 20)?;
    let gone = Adapter::new("g2", "avio_blk").disk(0, &file_backing(&path), "");
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

/// Starts a daemon that should refuse; its one line.
fn refusal(name: &str, config: &Storage) -> Result<String> {
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

fn bad_input() -> Result {
    let small = image("small.img", 100)?;
    let good = image("good.img", 1 << 20)?;
    let mounted = Mounted::new(&image("mounted.img", 16 << 20)?)?;
    let lun = |backing: &str| Storage::one(Adapter::new("g1", "avio_stor").disk(3, backing, ""));
    let cases = [
        ("missing", lun("file:/nowhere/disk.img"), "no such file"),
        ("small", lun(&file_backing(&small)), "too small"),
        ("folder", lun("file:/tmp"), "folder"),
        ("device", lun(&format!("file:{}", mounted.device)), "write disk:"),
        ("mounted", lun(&format!("disk:{}", mounted.device)), "mounted or in use"),
        ("loop-mounted", lun(&file_backing(&scratch::folder().join("mounted.img"))), "loop device"),
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
    let twice =
        lun(&file_backing(&good)).adapter(Adapter::new("g2", "avio_blk").disk(0, &file_backing(&good), ""));
    let line = refusal("twice", &twice)?;
    ensure(line.contains("g1") && line.contains("g2") && line.contains("share = true"), || line.clone())?;

    // The same while guests run: refused, and everything goes on as it was.
    let mut daemon = Daemon::start(lun(&file_backing(&good)))?;
    let mut one = Initiator::connect(&daemon.stor_socket("g1")?, &options(), &[3])?;
    one.write(3, 0, &[6; 512])?;
    daemon.config = Storage::one(
        Adapter::new("g1", "avio_stor").disk(3, &file_backing(&good), "").disk(4, "memory:1M", "").disk(
            5,
            "file:/nowhere/disk.img",
            "",
        ),
    );
    daemon.reload()?;
    daemon.console()?.wait_for("configuration refused", 5)?;
    ensure(one.read(3, 0, 1)? == [6; 512], || "the LUN that was there".into())?;
    ensure(one.command(4, &[0; 6], &[], 0)?.response == S_BAD_TARGET, || "half of a definition".into())?;
    let state = fs::read_dir(scratch::folder().join("state/stord"))?.count();
    ensure(state <= 2, || format!("{state} files of state for one LUN and none"))?;
    daemon.ensure_healthy()
}
