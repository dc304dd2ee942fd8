//! What an operator of storage meets: the tables and JSON of `avio stor`, statistics that start over, limits and drives
//! changed while guests run, and how each command that cannot be done says so.

use std::collections::BTreeSet;
use std::process::{ExitCode, Output};
use std::time::{Duration, Instant};

use avio_guest::storage::{Kind, StorageOptions};
use avio_tests::case::{self, Case};
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::ensure;
use avio_tests::initiator::Initiator;
use avio_tests::storage::{Adapter, Storage, file_backing, image};
use avio_tests::{Failure, Result};
use serde_json::Value;

fn main() -> ExitCode {
    case::main(&[
        Case::new("json_has_the_names_that_stay", 30, json_has_the_names_that_stay),
        Case::new("tables_show_every_lun", 30, tables_show_every_lun),
        Case::new("watching_goes_on", 30, watching_goes_on),
        Case::new("statistics_start_over", 30, statistics_start_over),
        Case::new("limits_change_one_by_one_until_the_reload", 30, limits_change_one_by_one),
        Case::new("drives_are_emptied_and_filled", 30, drives_are_emptied_and_filled),
        Case::new("what_cannot_be_done_is_said_in_one_line", 30, what_cannot_be_done),
    ])
}

const MIB: u64 = 1 << 20;
/// PREVENT ALLOW MEDIUM REMOVAL (SPC-5 6.16): prevented, and allowed.
const PREVENT: [u8; 6] = [0x1e, 0, 0, 0, 1, 0];
const ALLOW: [u8; 6] = [0x1e, 0, 0, 0, 0, 0];
/// Sense: not ready, medium not present.
const NO_MEDIUM: (u8, u8, u8) = (2, 0x3a, 0);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Two guests: one with a disk, a disk in memory and a drive, one with a disk of its own kind.
fn start() -> Result<Daemon<Storage>> {
    let disk = image("disk.img", 16 * MIB)?;
    image("one.iso", MIB)?;
    let iso = image("two.iso", 2 * MIB)?;
    let adapter = Adapter::new("g1", "avio_stor")
        .lines("queues = 2")
        .disk(0, &file_backing(&disk), "serial = \"SERIAL-1\"")
        .disk(1, "memory:8M", "block_size = 4096\niops = 500")
        .lun(7, "dvd", &file_backing(&iso), "");
    let other = Adapter::new("g2", "avio_blk").disk(0, "null:1G", "");
    Daemon::start(Storage::one(adapter).adapter(other))
}

fn connect(daemon: &Daemon<Storage>, targets: &[u8]) -> Result<Initiator> {
    let options = StorageOptions { depth: 64, data_len: 65536, ..StorageOptions::new(Kind::Scsi) };
    Initiator::connect(&daemon.stor_socket("g1")?, &StorageOptions { queues: 2, ..options }, targets)
}

/// What a command prints that must succeed, and says nothing else.
fn shown(daemon: &Daemon<Storage>, arguments: &[&str]) -> Result<String> {
    let Output { status, stdout, stderr } = daemon.avio(arguments)?;
    ensure(status.success() && stderr.is_empty(), || format!("{arguments:?}: {status} {}", text(&stderr)))?;
    Ok(text(&stdout))
}

/// The one line of a command that must be refused.
fn refused(daemon: &Daemon<Storage>, arguments: &[&str], words: &[&str]) -> Result<String> {
    let Output { status, stdout, stderr } = daemon.avio(arguments)?;
    let said = text(&stderr).trim().to_owned();
    ensure(status.code() == Some(1), || format!("{arguments:?} ended with {status}: {said}"))?;
    ensure(said.lines().count() == 1 && said.starts_with("avio: ERROR: "), || {
        format!("{arguments:?}: one line, not: {said}")
    })?;
    ensure(stdout.is_empty(), || format!("{arguments:?} was refused and printed {}", text(&stdout)))?;
    let missing: Vec<&&str> = words.iter().filter(|word| !said.contains(**word)).collect();
    ensure(missing.is_empty(), || format!("{arguments:?}: '{said}' does not say {missing:?}"))?;
    Ok(said)
}

/// The names of a JSON object's members.
fn names(of: &Value) -> BTreeSet<&str> {
    of.as_object().map(|members| members.keys().map(String::as_str).collect()).unwrap_or_default()
}

/// The example of INTERFACE, word for word: what programs of other people read.
const PROMISED: &str = r#"{"adapters":[{"guest":"guest1","bus":0,"device":4,"adaptor":"avio_stor","state":"Connected","queues":1,
  "luns":[{"target":0,"device":"disk","backing":"file:...","state":"Online","size_bytes":0,"block_size":512,
    "stats":{"reads":0,"writes":0,"read_bytes":0,"write_bytes":0,"flushes":0,"discards":0,"errors":0,"in_flight":0,
      "read_latency_us":{"p50":0,"p99":0,"p999":0},"write_latency_us":{"p50":0,"p99":0,"p999":0}}}]}]}"#;

/// Whether everything that `promised` names is in `said`, with the same type; lists are compared by their first entries.
fn keeps(promised: &Value, said: &Value, place: &str) -> Result {
    match (promised, said) {
        (Value::Object(members), Value::Object(_)) => {
            for (name, value) in members {
                let there =
                    said.get(name).ok_or_else(|| Failure::new(format!("{place}.{name} is missing")))?;
                keeps(value, there, &format!("{place}.{name}"))?;
            }
            Ok(())
        }
        (Value::Array(one), Value::Array(other)) => match (one.first(), other.first()) {
            (Some(one), Some(other)) => keeps(one, other, &format!("{place}[0]")),
            _ => Err(Failure::new(format!("{place} is empty"))),
        },
        (Value::Number(_), Value::Number(_)) | (Value::String(_), Value::String(_)) => Ok(()),
        _ => Err(Failure::new(format!("{place} is {said}, not like {promised}"))),
    }
}

fn json_has_the_names_that_stay() -> Result {
    let mut daemon = start()?;
    let promised: Value = serde_json::from_str(PROMISED).map_err(|e| Failure::new(e.to_string()))?;
    let idle = daemon.stor()?;
    keeps(&promised, &idle, "")?;
    let adapters = idle["adapters"].as_array().cloned().unwrap_or_default();
    ensure(adapters.len() == 2 && adapters.iter().all(|a| a["state"] == "Disconnected"), || {
        idle.to_string()
    })?;
    let mut guest = connect(&daemon, &[0, 1])?;
    guest.write(0, 0, &[1; 4096])?;
    guest.write(0, 8, &[2; 512])?;
    guest.read(0, 0, 16)?;
    // SYNCHRONIZE CACHE (10), UNMAP of one block, and a read beyond the end.
    guest.command(0, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0)?.good("SYNCHRONIZE CACHE")?;
    let mut list = [0; 24];
    (list[1], list[3], list[19]) = (22, 16, 1);
    guest.command(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0)?.good("UNMAP")?;
    guest
        .command(0, &[0x28, 0, 0xff, 0, 0, 0, 0, 0, 1, 0], &[], 512)?
        .check((5, 0x21, 0), "beyond the end")?;
    let said = daemon.stor()?;
    let adapter =
        said["adapters"].as_array().and_then(|all| all.iter().find(|a| a["guest"] == "g1")).cloned();
    let adapter = adapter.ok_or_else(|| Failure::new(said.to_string()))?;
    ensure(adapter["state"] == "Connected" && adapter["queues"] == 2 && adapter["bus"] == 0, || {
        adapter.to_string()
    })?;
    let lun = daemon.lun("g1", 0)?;
    ensure(lun["state"] == "Online" && lun["size_bytes"] == 16 * MIB && lun["block_size"] == 512, || {
        lun.to_string()
    })?;
    let stats = &lun["stats"];
    for (name, count) in [
        ("reads", 1),
        ("writes", 2),
        ("read_bytes", 8192),
        ("write_bytes", 4608),
        ("flushes", 1),
        ("discards", 1),
        ("errors", 1),
        ("in_flight", 0),
    ] {
        ensure(stats[name] == count, || format!("{name} is {}, not {count}: {stats}", stats[name]))?;
    }
    for latency in ["read_latency_us", "write_latency_us"] {
        let at = |quantile: &str| stats[latency][quantile].as_f64().unwrap_or(-1.0);
        let rising = at("p50") > 0.0 && at("p50") <= at("p99") && at("p99") <= at("p999");
        ensure(rising, || format!("{latency}: {}", stats[latency]))?;
    }
    let (drive, memory) = (daemon.lun("g1", 7)?, daemon.lun("g1", 1)?);
    ensure(drive["device"] == "dvd" && drive["block_size"] == 2048, || drive.to_string())?;
    ensure(memory["block_size"] == 4096 && memory["stats"]["reads"] == 0, || memory.to_string())?;
    // Every state has the same members.
    shown(&daemon, &["stor", "eject", "g1", "0", "4", "7"])?;
    let empty = daemon.lun("g1", 7)?;
    ensure(empty["state"] == "NoMedia" && names(&empty) == names(&lun), || empty.to_string())?;
    daemon.ensure_healthy()
}

fn tables_show_every_lun() -> Result {
    let mut daemon = start()?;
    let mut guest = connect(&daemon, &[0])?;
    guest.write(0, 0, &[1; 4096])?;
    let table = shown(&daemon, &["stor"])?;
    let heads: Vec<&str> = table.lines().filter(|line| line.starts_with('g')).collect();
    ensure(
        heads.len() == 2 && heads[0].starts_with("g1 avio_stor 0,4: Connected, 2 queues, 3 LUNs"),
        || table.clone(),
    )?;
    for (target, words) in [("0", ["disk", "Online", "16", "MiB"]), ("7", ["dvd", "Online", "2", "MiB"])] {
        let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let found = row.into_iter().any(|row| row.first() == Some(&target) && row[1..].starts_with(&words));
        ensure(found, || format!("no row of target {target}:\n{table}"))?;
    }
    let one = shown(&daemon, &["stor", "-P", "g2"])?;
    ensure(one.contains("g2 avio_blk") && !one.contains("g1"), || one.clone())?;
    let all = shown(&daemon, &["stor", "-V"])?;
    for line in [
        "Serial number            : SERIAL-1",
        "Limits                   : 500 requests/s",
        "Writes                   : 1 (4 KiB)",
        "State                    : Disconnected",
    ] {
        ensure(all.lines().any(|l| l == line), || format!("{line} in\n{all}"))?;
    }
    ensure(all.contains("p99.99"), || all.clone())?;
    daemon.ensure_healthy()
}

fn watching_goes_on() -> Result {
    let daemon = start()?;
    let mut guest = connect(&daemon, &[0])?;
    let mut line = command(program("avio")?);
    line.arg("--run-dir").arg(daemon.run_folder()).args(["stor", "-P", "g1", "--json", "--watch", "1"]);
    let mut watch = Console::spawn("watch", &mut line)?;
    let begin = Instant::now();
    let mut reads = Vec::new();
    for round in 0..3 {
        let said = watch.wait_for("\n", 5)?;
        let value: Value =
            serde_json::from_str(said.trim()).map_err(|e| Failure::new(format!("{e}: {said}")))?;
        reads.push(value["adapters"][0]["luns"][0]["stats"]["reads"].as_u64().unwrap_or(99));
        if round < 2 {
            guest.read(0, 0, 1)?;
        }
    }
    ensure(reads == [0, 1, 2], || format!("reads that were seen: {reads:?}"))?;
    let took = begin.elapsed();
    ensure((1800..4000).contains(&took.as_millis()), || format!("three pictures in {took:?}"))?;
    ensure(watch.is_running(), || "watching ended".to_owned())?;
    watch.signal(rustix::process::Signal::TERM)?;
    watch.wait_end(2)?;
    // Without a number: each second; in a table as well.
    let mut line = command(program("avio")?);
    line.arg("--run-dir").arg(daemon.run_folder()).args(["stor", "--watch"]);
    let mut watch = Console::spawn("watch-table", &mut line)?;
    watch.wait_for("g1 avio_stor", 5)?;
    watch.wait_for("g1 avio_stor", 5).map(drop)
}

fn statistics_start_over() -> Result {
    let mut daemon = start()?;
    let mut guest = connect(&daemon, &[0, 1])?;
    let mut load = || -> Result {
        guest.write(0, 0, &[1; 4096])?;
        guest.read(0, 0, 8)?;
        guest.command(0, &[0x28, 0, 0xff, 0, 0, 0, 0, 0, 1, 0], &[], 512)?.check((5, 0x21, 0), "")?;
        Ok(())
    };
    load()?;
    let count =
        |name: &str| -> Result<u64> { Ok(daemon.lun("g1", 0)?["stats"][name].as_u64().unwrap_or(99)) };
    ensure(count("reads")? == 1 && count("errors")? == 1, || "nothing was counted".to_owned())?;
    // Of another guest: nothing here changes.
    ensure(shown(&daemon, &["stor", "-P", "g2", "-Z"])?.is_empty(), || "-Z prints nothing".to_owned())?;
    ensure(count("reads")? == 1, || "another guest's statistics were cleared".to_owned())?;
    shown(&daemon, &["stor", "-P", "g1", "-Z"])?;
    for name in ["reads", "writes", "read_bytes", "write_bytes", "errors"] {
        ensure(count(name)? == 0, || format!("{name} was not cleared"))?;
    }
    let cleared = daemon.lun("g1", 0)?;
    ensure(cleared["stats"]["read_latency_us"]["p999"] == 0.0, || cleared.to_string())?;
    let adapter = daemon.stor()?["adapters"][0].clone();
    ensure(adapter["notifications_sent"] == 0, || adapter.to_string())?;
    // A pause, then the same load counts from zero.
    load()?;
    ensure(count("reads")? == 1 && count("read_bytes")? == 4096 && count("writes")? == 1, || {
        "after clearing".to_owned()
    })?;
    shown(&daemon, &["stor", "-Z"])?;
    ensure(count("writes")? == 0, || "-Z of all".to_owned())?;
    daemon.ensure_healthy()
}

fn limits_change_one_by_one() -> Result {
    let mut daemon = start()?;
    let limits = |daemon: &Daemon<Storage>| -> Result<(u64, u64)> {
        let lun = daemon.lun("g1", 1)?;
        Ok((lun["iops"].as_u64().unwrap_or(99), lun["bytes_per_s"].as_u64().unwrap_or(99)))
    };
    let qos = |more: &[&'static str]| [&["stor", "qos", "g1", "0", "4", "1"], more].concat();
    ensure(limits(&daemon)? == (500, 0), || "the file's".to_owned())?;
    shown(&daemon, &qos(&["--mib-per-s", "4"]))?;
    ensure(limits(&daemon)? == (500, 4 * MIB), || "the other limit stays".to_owned())?;
    // 4 MiB a second, and a tenth of a second's burst.
    let mut guest = connect(&daemon, &[1])?;
    let (begin, mut bytes) = (Instant::now(), 0u64);
    while begin.elapsed() < Duration::from_secs(1) {
        guest.command(1, &[0x28, 0, 0, 0, 0, 0, 0, 0, 16, 0], &[], 65536)?.good("READ (10)")?;
        bytes += 65536;
    }
    ensure((3 * MIB..=5 * MIB).contains(&bytes), || format!("{bytes} bytes in a second, limit 4 MiB"))?;
    shown(&daemon, &qos(&["--iops", "0"]))?;
    ensure(limits(&daemon)? == (0, 4 * MIB), || "no more requests a second".to_owned())?;
    shown(&daemon, &qos(&["--iops", "7", "--mib-per-s", "0"]))?;
    ensure(limits(&daemon)? == (7, 0), || "both".to_owned())?;
    let said = daemon.reload_by_command()?;
    ensure(said.contains("g1 0/4 target 1: limits changed"), || said.clone())?;
    ensure(limits(&daemon)? == (500, 0), || "the files are the truth".to_owned())?;
    let said = daemon.reload_by_command()?;
    ensure(said.trim() == "nothing has changed", || said.clone())?;
    for arguments in [qos(&[]), qos(&["--mib-per-s", "17592186044416"]), qos(&["--iops", "many"])] {
        let status = daemon.avio(&arguments)?.status;
        ensure(status.code() == Some(2), || format!("{arguments:?} ended with {status}"))?;
    }
    ensure(limits(&daemon)? == (500, 0), || "a usage error changes nothing".to_owned())?;
    daemon.ensure_healthy()
}

fn drives_are_emptied_and_filled() -> Result {
    let mut daemon = start()?;
    let mut guest = connect(&daemon, &[7])?;
    let drive = ["g1", "0", "4", "7"];
    let eject = [&["stor", "eject"], &drive[..]].concat();
    let insert = |iso: &'static str| [&["stor", "insert"], &drive[..], &[iso]].concat();
    guest.command(7, &PREVENT, &[], 0)?.good("PREVENT ALLOW MEDIUM REMOVAL")?;
    refused(&daemon, &eject, &["g1 0/4 target 7", "locked", "--force"])?;
    ensure(daemon.lun("g1", 7)?["state"] == "Online", || "a refused eject ejects nothing".to_owned())?;
    shown(&daemon, &[&eject[..], &["--force"]].concat())?;
    ensure(daemon.lun("g1", 7)?["state"] == "NoMedia", || "ejected by force".to_owned())?;
    let attention = guest.command(7, &[0; 6], &[], 0)?;
    ensure(attention.sense.0 == 6 || attention.sense == NO_MEDIUM, || format!("{attention:?}"))?;
    guest.command(7, &[0; 6], &[], 0)?.check(NO_MEDIUM, "an empty drive")?;
    refused(&daemon, &eject, &["g1 0/4 target 7", "empty"])?;
    // A path that is not absolute is the operator's, not the daemon's.
    let (iso, folder) = (image("three.iso", 3 * MIB)?, avio_tests::scratch::folder());
    let mut line = std::process::Command::new(program("avio")?);
    line.current_dir(&folder).arg("--run-dir").arg(daemon.run_folder()).args(insert("three.iso"));
    let output = line.output()?;
    ensure(output.status.success(), || text(&output.stderr))?;
    let lun = daemon.lun("g1", 7)?;
    ensure(
        lun["backing"] == file_backing(&iso) && lun["size_bytes"] == 3 * MIB && lun["state"] == "Online",
        || lun.to_string(),
    )?;
    // 28h/00h: not ready to ready change, medium may have changed (MMC-6 annex F).
    guest.command(7, &[0; 6], &[], 0)?.check((6, 0x28, 0), "a new medium")?;
    let capacity = guest.command(7, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8)?.good("READ CAPACITY")?.data;
    ensure(capacity == [0, 0, 5, 0xff, 0, 0, 8, 0], || format!("{capacity:02x?}"))?;
    refused(&daemon, &insert("/nowhere.iso"), &["g1 0/4 target 7", "eject"])?;
    guest.command(7, &ALLOW, &[], 0)?.good("PREVENT ALLOW MEDIUM REMOVAL")?;
    shown(&daemon, &eject)?;
    refused(&daemon, &insert("/nowhere.iso"), &["g1 0/4 target 7", "/nowhere.iso"])?;
    refused(&daemon, &insert("/tmp"), &["g1 0/4 target 7", "/tmp"])?;
    ensure(daemon.lun("g1", 7)?["state"] == "NoMedia", || "nothing was put in".to_owned())?;
    daemon.ensure_healthy()
}

fn what_cannot_be_done() -> Result {
    let mut daemon = start()?;
    let before = daemon.stor()?;
    refused(&daemon, &["stor", "-P", "nobody"], &["nobody", "avio stor"])?;
    refused(&daemon, &["stor", "-P", "nobody", "--json"], &["nobody"])?;
    refused(&daemon, &["stor", "-P", "nobody", "-Z"], &["nobody"])?;
    for place in
        [["nobody", "0", "4", "0"], ["g1", "1", "4", "0"], ["g1", "0", "5", "0"], ["g1", "0", "4", "9"]]
    {
        let named = format!("{} {}/{} target {}", place[0], place[1], place[2], place[3]);
        for (verb, more) in [
            ("eject", &[][..]),
            ("eject", &["--force"]),
            ("insert", &["/tmp/a.iso"]),
            ("qos", &["--iops", "1"]),
            ("replace", &["--force-host"]),
        ] {
            refused(&daemon, &[&["stor", verb], &place[..], more].concat(), &[&named, "avio stor"])?;
        }
    }
    for disk in [["g1", "0", "4", "0"], ["g2", "0", "4", "0"]] {
        let named = format!("{} 0/4 target 0", disk[0]);
        refused(&daemon, &[&["stor", "eject"], &disk[..]].concat(), &[&named, "disk"])?;
        refused(&daemon, &[&["stor", "insert"], &disk[..], &["/tmp/a.iso"]].concat(), &[&named, "dvd"])?;
        refused(&daemon, &[&["stor", "replace"], &disk[..]].concat(), &["gvsdmgr", "--force-host"])?;
        refused(
            &daemon,
            &[&["stor", "replace"], &disk[..], &["--force-host"]].concat(),
            &[&named, "replaced"],
        )?;
    }
    for usage in [
        &["stor", "--nonsense"][..],
        &["stor", "eject", "g1", "0", "4"],
        &["stor", "eject", "g1", "0", "4", "256"],
        &["stor", "insert", "g1", "0", "4", "7"],
        &["stor", "--watch", "0"],
        &["stor", "-Z", "--watch"],
    ] {
        let output = daemon.avio(usage)?;
        ensure(output.status.code() == Some(2) && !output.stderr.is_empty(), || {
            format!("{usage:?} ended with {}", output.status)
        })?;
    }
    let after = daemon.stor()?;
    ensure(before == after, || format!("a refused command changed something:\n{before}\n{after}"))?;
    daemon.ensure_healthy()?;
    daemon.stop()?;
    refused(&daemon, &["stor"], &["stord.varlink", "avio-stord", "--run-dir"]).map(drop)
}
