//! Real Linux guests on the storage daemon: QEMU with Debian's kernel and User-Mode Linux, with their own drivers, fio and
//! sg3-utils.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use avio_tests::case::{self, Case};
use avio_tests::daemon::{Daemon, Definitions};
use avio_tests::disk_guest::{self, Kind};
use avio_tests::failure::ensure;
use avio_tests::guest_image;
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::qemu::NO_MSI_X;
use avio_tests::storage::{Adapter, Storage, file_backing, image};
use avio_tests::{Failure, Result, scratch};

/// For the generator alone, in seconds.
const GENERATOR_S: u64 = 40;
/// For cases with User-Mode Linux only, in seconds.
const UML_S: u64 = 120;
/// For cases with emulated guests.
const QEMU_S: u64 = 240;

const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    case::main(&[
        Case::new("generator_on_every_medium", GENERATOR_S, generator_on_every_medium).data_path(),
        Case::new("uml_disk", UML_S, uml_disk).data_path(),
        Case::new("uml_adapter", UML_S, uml_adapter).data_path(),
        Case::new("qemu_128_luns", QEMU_S, qemu_128_luns).data_path(),
        Case::new("qemu_scsi_file_system", QEMU_S, qemu_scsi_file_system),
        Case::new("qemu_hot_changes", QEMU_S, qemu_hot_changes),
        Case::new("qemu_dvd", QEMU_S, qemu_dvd),
        Case::new("qemu_as_the_readme_says", QEMU_S, qemu_as_the_readme_says),
        Case::new("qemu_disk", QEMU_S, qemu_disk).data_path(),
        Case::new("qemu_fio_verifies_disk_and_adapter", QEMU_S, qemu_fio),
        Case::new("qemu_disk_survives_kill", QEMU_S, qemu_disk_survives_kill),
    ])
}

/// An adapter of `guest` with one image file of `mib` MiB at target 0.
fn one_disk(kind: &str, mib: u64, extra: &str) -> Result<(Storage, PathBuf)> {
    let path = image("disk.img", mib * MIB)?;
    Ok((Storage::one(Adapter::new("g1", kind).disk(0, &file_backing(&path), extra)), path))
}

/// What the guest writes to a place of a disk is there in the image, and nowhere else.
fn ensure_written_through(guest: &mut LinuxGuest, disk: &str, path: &Path, block: u64) -> Result {
    guest.run(&format!("yes avio | head -c 4096 > /tmp/block && dd if=/tmp/block of=/dev/{disk} bs=4096 seek={block} oflag=direct 2>/dev/null"))?;
    let mut bytes = [0; 4096];
    File::open(path)?.read_exact_at(&mut bytes, block * 4096)?;
    ensure(bytes.starts_with(b"avio\navio\n"), || {
        format!("block {block} of the image has {:?}", &bytes[..16])
    })?;
    let mut behind = [0; 512];
    File::open(path)?.read_exact_at(&mut behind, (block + 1) * 4096)?;
    ensure(behind == [0; 512], || "the next block was written as well".to_owned())
}

fn iogen(line: &str) -> Result<avio_tools::iogen::report::Report> {
    let options: avio_tools::iogen::options::Options = line.parse()?;
    let report =
        options.plan(&[0]).and_then(|plan| avio_tools::iogen::generate(&plan)).map_err(Failure::new)?;
    match report.complaint() {
        None => Ok(report),
        Some(complaint) => Err(Failure::new(format!("{line}: {complaint}"))),
    }
}

/// Marked blocks through every ring layout, on media that are answered at once and on one that is not, all LUNs of an adapter
/// at a time: content, counters and limits.
fn generator_on_every_medium() -> Result {
    let (config, path) = one_disk("avio_blk", 16, "cache = \"writeback\"")?;
    let adapter = Adapter::new("g2", "avio_stor")
        .lines("queues = 2")
        .disk(0, "memory:8M", "")
        .disk(3, &file_backing(&image("second.img", 8 * MIB)?), "")
        .disk(200, "memory:8M", "block_size = 4096");
    let limited = Adapter::new("g3", "avio_blk").disk(0, "memory:8M", "iops = 2000");
    let mut daemon = Daemon::start(config.adapter(adapter).adapter(limited))?;
    let (blk, scsi) = (daemon.stor_socket("g1")?, daemon.stor_socket("g2")?);
    let load = "--quiet --verify --iodepth 16 --rw randrw --runtime 0.7 --ramp-time 0";
    for rings in [
        "--inflight",
        "--packed --inflight",
        "--no-indirect --no-event-idx",
        "--packed --no-indirect --notify wait",
    ] {
        iogen(&format!("--socket {} {load} {rings} --bs 8k", blk.display()))?;
        iogen(&format!("--socket {} --device scsi --numjobs 2 {load} {rings} --bs 4k", scsi.display()))?;
    }
    ensure(fs::read(path)?.windows(8).any(|bytes| bytes == b"AVIOGEN1"), || {
        "the image has no block".to_owned()
    })?;
    let before = daemon.lun("g2", 200)?["stats"].clone();
    let report = iogen(&format!(
        "--socket {} --device scsi --targets 200 --quiet --rw read --iodepth 8 --size 4m",
        scsi.display()
    ))?;
    let after = daemon.lun("g2", 200)?["stats"].clone();
    let count = |stats: &serde_json::Value, name: &str| stats[name].as_u64().unwrap_or(0);
    let sent = count(&report.json()["jobs"][0]["read"], "total_ios");
    let counted = count(&after, "reads") - count(&before, "reads");
    ensure(sent == 1024 && counted == sent && count(&after, "in_flight") == 0, || {
        format!("{sent} reads sent, {counted} counted: {after}")
    })?;
    // A limit holds for media that could answer at once, too: its burst is a tenth of a second.
    let limited = daemon.stor_socket("g3")?;
    let report =
        iogen(&format!("--socket {} --quiet --rw randread --iodepth 32 --runtime 1", limited.display()))?;
    let rate = report.iops(avio_tools::iogen::command::Op::Read);
    ensure((1500.0..2500.0).contains(&rate), || format!("{rate:.0} requests in a second, 2,000 allowed"))?;
    daemon.ensure_healthy()
}

fn uml_disk() -> Result {
    let (config, path) = one_disk("avio_blk", 32, "")?;
    let mut daemon = Daemon::start(config)?;
    let mut guest = disk_guest::uml("uml", &daemon.stor_socket("g1")?, Kind::Blk)?.wait()?;
    guest.wait_disks("vd*", 1, 10)?;
    ensure_written_through(&mut guest, "vda", &path, 100)?;
    guest.ensure_holds("vda", 8, "4k")?;
    let lun = daemon.lun("g1", 0)?;
    ensure(lun["stats"]["errors"] == 0 && lun["stats"]["writes"].as_u64() > Some(2000), || {
        format!("{lun:#}")
    })?;
    daemon.ensure_healthy()
}

fn uml_adapter() -> Result {
    let (config, path) = one_disk("avio_stor", 32, "")?;
    let mut daemon = Daemon::start(config)?;
    let mut guest = disk_guest::uml("uml", &daemon.stor_socket("g1")?, Kind::Scsi)?.wait()?;
    guest.wait_disks("sd*", 1, 20)?;
    ensure_written_through(&mut guest, "sda", &path, 100)?;
    guest.ensure_holds("sda", 8, "4k")?;
    daemon.ensure_healthy()
}

/// The floor of DESIGN: 128 LUNs of one adapter, all usable at once, each its own.
fn qemu_128_luns() -> Result {
    let mut adapter = Adapter::new("g1", "avio_stor");
    let mut paths = Vec::new();
    for target in 0..128 {
        let path = image(&format!("disk{target}.img"), 4 * MIB)?;
        adapter = adapter.disk(target, &file_backing(&path), "");
        paths.push(path);
    }
    let mut daemon = Daemon::start(Storage::one(adapter))?;
    let mut guest = disk_guest::qemu("qemu", &daemon.stor_socket("g1")?, Kind::Scsi, 1, "")?.wait()?;
    guest.wait_disks("sd*", 128, 60)?;
    // By target number: names follow the order of discovery. From files: a pipe may hand dd a part of a block, which it writes
    // as two, not both directly.
    let script = "for t in $(seq 0 127); do d=$(ls -d /sys/class/scsi_device/*:0:$t:0/device/block/* | sed 's|.*/||'); \
                  p=$(printf '%08d' $t); yes $p | head -c 65536 > /tmp/p$t; \
                  dd if=/tmp/p$t of=/dev/$d bs=64k oflag=direct 2>/dev/null & done; wait; sync";
    guest.run_for(120, script)?;
    for (target, path) in paths.iter().enumerate() {
        let mut bytes = vec![0; 65536];
        File::open(path)?.read_exact_at(&mut bytes, 0)?;
        let wanted = format!("{target:08}\n").repeat(65536 / 9 + 1);
        ensure(bytes == wanted.as_bytes()[..65536], || format!("target {target} holds {:?}", &bytes[..18]))?;
        let lun = daemon.lun("g1", target as u64)?;
        ensure(lun["state"] == "Online" && lun["stats"]["write_bytes"] == 65536, || format!("{lun:#}"))?;
    }
    daemon.ensure_healthy()
}

fn qemu_scsi_file_system() -> Result {
    let path = image("disk.img", 64 * MIB)?;
    let adapter = Adapter::new("g1", "avio_stor").lines("queues = 2");
    let config = Storage::one(adapter.disk(0, &file_backing(&path), ""));
    let mut daemon = Daemon::start(config)?;
    let mut guest = disk_guest::qemu("qemu", &daemon.stor_socket("g1")?, Kind::Scsi, 2, "")?.wait()?;
    guest.wait_disks("sd*", 1, 20)?;
    guest.run_for(60, "mke2fs /dev/sda > /dev/null && mkdir -p /mnt && mount -t ext4 /dev/sda /mnt")?;
    guest.run_for(60, "dd if=/dev/urandom of=/mnt/a bs=1M count=16 2>/dev/null && md5sum /mnt/a > /tmp/sum && umount /mnt && mount -t ext4 /dev/sda /mnt && md5sum -c /tmp/sum && umount /mnt")
        .and_then(|(status, text)| ensure(status == 0, || text))?;
    guest.ensure_holds("sda", 8, "4k")?;
    daemon.ensure_healthy()
}

fn qemu_hot_changes() -> Result {
    let (config, path) = one_disk("avio_stor", 16, "")?;
    let second = image("second.img", 8 * MIB)?;
    let mut daemon = Daemon::start(config)?;
    let mut guest = disk_guest::qemu("qemu", &daemon.stor_socket("g1")?, Kind::Scsi, 1, "")?.wait()?;
    guest.wait_disks("sd*", 1, 20)?;
    // I/O of the first disk goes on through all of it.
    guest.run("dd if=/dev/urandom of=/tmp/r bs=1M count=1 2>/dev/null; (for i in $(seq 12); do dd if=/tmp/r of=/dev/sda bs=4k oflag=direct && dd if=/dev/sda bs=4k count=256 iflag=direct | cmp - /tmp/r || echo bad; done; echo done) > /tmp/io 2>/dev/null & true")?;
    let first = file_backing(&path);
    let with = Adapter::new("g1", "avio_stor").disk(0, &first, "").disk(7, &file_backing(&second), "");
    daemon.config = Storage::one(with.clone());
    daemon.reload()?;
    guest.wait_disks("sd*", 2, 20)?;
    ensure_written_through(&mut guest, "sdb", &second, 10)?;
    File::options().write(true).open(&second)?.set_len(12 * MIB)?;
    let grown = "for i in $(seq 100); do [ $(cat /sys/block/sdb/size) = 24576 ] && break; usleep 100000; done; cat /sys/block/sdb/size";
    let (_, text) = guest.run_for(60, grown)?;
    ensure(text.trim() == "24576", || format!("after growing, sdb has {text} sectors"))?;
    daemon.config = Storage::one(with.without_last());
    daemon.reload()?;
    guest.wait_disks("sd*", 1, 20)?;
    let (_, text) = guest.run_for(
        90,
        "for i in $(seq 300); do grep -q done /tmp/io && break; usleep 200000; done; cat /tmp/io",
    )?;
    ensure(text.trim() == "done", || format!("I/O meanwhile: {text}"))?;
    daemon.ensure_healthy()
}

/// A disc with these files at these places.
fn iso(name: &str, files: &[(PathBuf, String)]) -> Result<PathBuf> {
    let path = scratch::folder().join(name);
    let mut xorriso = std::process::Command::new("xorriso");
    xorriso.args(["-as", "mkisofs", "-quiet", "-R", "-f", "-graft-points", "-o"]).arg(&path);
    xorriso.args(files.iter().map(|(file, place)| format!("{place}={}", file.display())));
    let status = xorriso.status()?;
    ensure(status.success(), || "xorriso failed".to_owned())?;
    Ok(path)
}

fn qemu_dvd() -> Result {
    let hello = scratch::folder().join("hello.txt");
    let make = |name: &str, text: &str| {
        fs::write(&hello, text)?;
        iso(name, &[(hello.clone(), "hello.txt".to_owned())])
    };
    let one = make("one.iso", "hello from the first disc\n")?;
    let two = make("two.iso", "hello from the second disc\n")?;
    let adapter = Adapter::new("g1", "avio_stor").lun(3, "dvd", &file_backing(&one), "");
    let mut daemon = Daemon::start(Storage::one(adapter))?;
    let mut guest = disk_guest::qemu("qemu", &daemon.stor_socket("g1")?, Kind::Scsi, 1, "")?.wait()?;
    guest.wait_disks("sr*", 1, 20)?;
    guest.run("mkdir -p /mnt && mount -t iso9660 -o ro /dev/sr0 /mnt")?;
    let text = guest.run("cat /mnt/hello.txt")?;
    ensure(text == "hello from the first disc", || text.clone())?;
    // A mounted disc is locked: the operator is told so.
    let output = daemon.avio(&["stor", "eject", "g1", "0", "4", "3"])?;
    ensure(!output.status.success(), || "a locked disc was ejected".to_owned())?;
    let (status, _) =
        guest.run_for(30, "dd if=/dev/zero of=/dev/sr0 bs=2048 count=1 oflag=direct 2>/dev/null")?;
    ensure(status != 0, || "a DVD was written".to_owned())?;
    guest.run("umount /mnt")?;
    let output = daemon.avio(&["stor", "eject", "g1", "0", "4", "3"])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    ensure(daemon.lun("g1", 3)?["state"] == "NoMedia", || "ejected and not empty".to_owned())?;
    let (status, _) = guest.run_for(30, "mount -t iso9660 -o ro /dev/sr0 /mnt")?;
    ensure(status != 0, || "an empty drive was mounted".to_owned())?;
    let two = two.display().to_string();
    let output = daemon.avio(&["stor", "insert", "g1", "0", "4", "3", &two])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    guest.run_for(
        60,
        "for i in $(seq 50); do mount -t iso9660 -o ro /dev/sr0 /mnt && break; usleep 100000; done",
    )?;
    let text = guest.run("cat /mnt/hello.txt")?;
    ensure(text == "hello from the second disc", || text.clone())?;
    // The guest opens and closes the tray itself.
    guest.run("umount /mnt && sg_start --eject /dev/sr0")?;
    ensure(daemon.lun("g1", 3)?["state"] == "NoMedia", || "ejected by the guest and not empty".to_owned())?;
    guest.run("sg_start --load /dev/sr0")?;
    guest.run_for(
        60,
        "for i in $(seq 50); do mount -t iso9660 -o ro /dev/sr0 /mnt && break; usleep 100000; done",
    )?;
    let text = guest.run("cat /mnt/hello.txt")?;
    ensure(text == "hello from the second disc", || text.clone())?;
    daemon.ensure_healthy()
}

/// The files of README's example.
struct Example(String);

impl Definitions for Example {
    const PROGRAM: &str = "avio-stord";

    fn write(&self, folder: &Path) -> Result {
        fs::create_dir_all(folder.join("guests"))?;
        fs::write(folder.join("storage.toml"), "")?;
        Ok(fs::write(folder.join("guests/guest1.toml"), &self.0)?)
    }
}

/// README's guest with two disks and a DVD drive: its file and its QEMU arguments as they are printed, but for the host's paths.
fn qemu_as_the_readme_says() -> Result {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = fs::read_to_string(root.join("README.md"))?;
    let part = |from: &str, begin: &str, end: &str| -> Result<String> {
        let missing = || Failure::new(format!("README.md has no '{begin}' behind '{from}'"));
        let (_, rest) = readme.split_once(from).ok_or_else(missing)?;
        let (_, rest) = rest.split_once(begin).ok_or_else(missing)?;
        Ok(rest.split_once(end).ok_or_else(missing)?.0.to_owned())
    };
    let (one, two) = (image("one.img", 16 * MIB)?, image("two.img", 8 * MIB)?);
    let hello = scratch::folder().join("hello.txt");
    fs::write(&hello, "hello")?;
    let disc = iso("disc.iso", &[(hello, "hello.txt".to_owned())])?;
    let mut text = part("## Disks", "```toml\n", "```")?;
    for (printed, here) in [
        ("file:/srv/images/system.img", file_backing(&one)),
        ("disk:/dev/disk/by-id/nvme-...", file_backing(&two)),
        ("file:/srv/iso/debian.iso", file_backing(&disc)),
    ] {
        ensure(text.contains(printed), || format!("README.md's example has no {printed}"))?;
        text = text.replace(printed, &here);
    }
    let mut daemon = Daemon::start(Example(text))?;
    let arguments = part("## Disks", "    -chardev ", "\n\n")?;
    // Without KVM, QEMU 7.2 needs its devices without MSI-X.
    let arguments = format!("-chardev {arguments},{NO_MSI_X}")
        .replace("/run/avio", &daemon.run_folder().display().to_string())
        .replace("\\\n", " ");
    let words = arguments.split_whitespace().map(str::to_owned).collect();
    let mut guest = disk_guest::qemu_with_arguments("qemu", words)?.wait()?;
    guest.wait_disks_in_order(2, 30)?;
    guest.wait_disks("sr*", 1, 20)?;
    ensure(guest.disk_bytes("sda")? == 16 * MIB && guest.disk_bytes("sdb")? == 8 * MIB, || {
        "other disks than the file's".to_owned()
    })?;
    ensure_written_through(&mut guest, "sda", &one, 100)?;
    ensure_written_through(&mut guest, "sdb", &two, 100)?;
    let text = guest.run("mkdir -p /mnt && mount -t iso9660 -o ro /dev/sr0 /mnt && cat /mnt/hello.txt")?;
    ensure(text == "hello", || text.clone())?;
    daemon.ensure_healthy()
}

fn qemu_disk() -> Result {
    let path = image("disk.img", 32 * MIB)?;
    let adapter = Adapter::new("g1", "avio_blk").lines("queues = 2");
    let config = Storage::one(adapter.disk(0, &file_backing(&path), "serial = \"AVIO-TEST-1\""));
    let mut daemon = Daemon::start(config)?;
    let mut guest = disk_guest::qemu("qemu", &daemon.stor_socket("g1")?, Kind::Blk, 2, "")?.wait()?;
    guest.wait_disks("vd*", 1, 10)?;
    ensure(guest.run("cat /sys/block/vda/serial")? == "AVIO-TEST-1", || "another serial number".to_owned())?;
    ensure_written_through(&mut guest, "vda", &path, 100)?;
    guest.ensure_holds("vda", 8, "4k")?;
    guest.run("blkdiscard -o 409600 -l 4096 /dev/vda")?;
    let mut bytes = [1; 4096];
    File::open(&path)?.read_exact_at(&mut bytes, 100 * 4096)?;
    ensure(bytes == [0; 4096], || "a discarded block of a file reads as zeroes".to_owned())?;
    File::options().write(true).open(&path)?.set_len(48 * MIB)?;
    let grown = "for i in $(seq 100); do [ $(cat /sys/block/vda/size) = 98304 ] && break; usleep 100000; done; cat /sys/block/vda/size";
    let (_, text) = guest.run_for(60, grown)?;
    ensure(text.trim() == "98304", || format!("after growing, vda has {text} sectors"))?;
    daemon.ensure_healthy()
}

/// fio writes at random places of a disk and of an adapter's LUN at once, each block with its checksum, and finds all of them
/// again, as does a second run that only reads. It comes on a disc, since it brings seventy libraries.
fn qemu_fio() -> Result {
    let fio = PathBuf::from("/usr/bin/fio");
    let mut files = vec![(fio.clone(), "fio".to_owned())];
    for library in guest_image::libraries_of(&fio)? {
        let library = PathBuf::from(library);
        let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((library, format!("lib/{name}")));
    }
    let disc = iso("fio.iso", &files)?;
    let (lun, disk) = (image("lun.img", 16 * MIB)?, image("disk.img", 16 * MIB)?);
    let adapter = Adapter::new("g1", "avio_stor").lines("queues = 2");
    let adapter = adapter.disk(0, &file_backing(&lun), "").lun(1, "dvd", &file_backing(&disc), "");
    let blk = Adapter::new("g2", "avio_blk").lines("queues = 2");
    let blk = blk.disk(0, &file_backing(&disk), "cache = \"writeback\"");
    let mut daemon = Daemon::start(Storage::one(adapter).adapter(blk))?;
    let (stor, blk) = (daemon.stor_socket("g1")?, daemon.stor_socket("g2")?);
    let devices = [(&stor, Kind::Scsi), (&blk, Kind::Blk)].map(|(socket, kind)| disk_guest::Device {
        socket,
        kind,
        queues: 2,
        extra: "",
    });
    let mut guest = disk_guest::qemu_with("qemu", &devices)?.wait()?;
    guest.wait_disks("sd*", 1, 20)?;
    guest.wait_disks("sr*", 1, 20)?;
    guest.wait_disks("vd*", 1, 20)?;
    guest.run("mkdir -p /mnt && mount -t iso9660 -o ro /dev/sr0 /mnt")?;
    for (round, kind, writes) in [(1, "randwrite", 3072), (2, "randread", 0)] {
        let command = format!(
            "/mnt/lib/ld-linux-x86-64.so.2 --library-path /mnt/lib /mnt/fio --eta=never --output=/tmp/fio --output-format=json \
             --direct=1 --ioengine=libaio --rw={kind} --verify=crc32c --verify_fatal=1 \
             --name=lun --filename=/dev/sda --bs=4k --size=8m --iodepth=32 \
             --name=disk --filename=/dev/vda --bs=512 --size=512k --offset=1m --iodepth=16; \
             status=$?; cat /tmp/fio; (exit $status)"
        );
        let (status, said) = guest.run_for(120, &command)?;
        ensure(status == 0, || format!("fio, round {round}, ended with {status}: {said}"))?;
        let json: serde_json::Value = serde_json::from_str(&said)
            .map_err(|e| Failure::new(format!("fio, round {round}: {e} in {said}")))?;
        let jobs = json["jobs"].as_array().cloned().unwrap_or_default();
        let count = |kind: &str| jobs.iter().filter_map(|job| job[kind]["total_ios"].as_u64()).sum::<u64>();
        let clean = jobs.len() == 2 && jobs.iter().all(|job| job["error"] == 0);
        ensure(clean && count("write") == writes && count("read") == 3072, || {
            format!("round {round}: {} writes and {} reads, or errors: {said}", count("write"), count("read"))
        })?;
    }
    for guest in ["g1", "g2"] {
        let lun = daemon.lun(guest, 0)?;
        ensure(lun["stats"]["errors"] == 0 && lun["stats"]["in_flight"] == 0, || lun.to_string())?;
    }
    // fio's blocks begin with their magic number; the disk's first MiB was not asked for.
    ensure(fs::read(&lun)?[..2] == 0xacca_u16.to_le_bytes(), || "no block of fio's".to_owned())?;
    ensure(fs::read(&disk)?[..1 << 20].iter().all(|b| *b == 0), || "written where nobody asked".to_owned())?;
    daemon.ensure_healthy()
}

/// The daemon is killed in the middle of writes that its backing delays; QEMU comes back by itself, and no write that the
/// guest was told of is lost.
fn qemu_disk_survives_kill() -> Result {
    let path = image("disk.img", 32 * MIB)?;
    let backing = format!("fault:write_delay_ms=300:file:{}", path.display());
    let config = Storage::one(Adapter::new("g1", "avio_blk").disk(0, &backing, ""));
    let mut daemon = Daemon::start(config)?;
    let mut guest = disk_guest::qemu("qemu", &daemon.stor_socket("g1")?, Kind::Blk, 1, "")?.wait()?;
    guest.wait_disks("vd*", 1, 10)?;
    guest.run("dd if=/dev/urandom of=/tmp/r bs=64k count=2 2>/dev/null; (for p in 0 1 2 3; do dd if=/tmp/r of=/dev/vda bs=4k seek=$((p * 32)) oflag=direct 2>/dev/null & done; wait; for p in 0 1 2 3; do dd if=/dev/vda bs=4k skip=$((p * 32)) count=32 iflag=direct 2>/dev/null | cmp - /tmp/r || echo bad; done; echo done) > /tmp/io 2>&1 & true")?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    for _ in 0..2 {
        daemon.kill();
        daemon.restart()?;
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    let (_, text) = guest.run_for(
        150,
        "for i in $(seq 1200); do grep -q done /tmp/io && break; usleep 100000; done; cat /tmp/io",
    )?;
    ensure(text.lines().any(|line| line == "done") && !text.contains("bad"), || {
        format!("writes through two kills: {text}")
    })?;
    daemon.ensure_healthy()
}
