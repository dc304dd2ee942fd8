//! What administrators inside guests do to their disks: `gvsdmgr` under QEMU and User-Mode Linux, replaced stores and their
//! approval, sg3-utils, and two guests that share a disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use avio_guest::Endpoint;
use avio_guest::storage::{Adapter as Driver, Kind as DriverKind, StorageOptions};
use avio_tests::case::{self, Case};
use avio_tests::daemon::Daemon;
use avio_tests::disk_guest::{self, Kind};
use avio_tests::failure::ensure;
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::storage::{Adapter, Storage, file_backing, image};
use avio_tests::{Failure, Result, scratch};

/// For cases without emulated guests, in seconds.
const PLAIN_S: u64 = 60;
/// For cases with emulated guests.
const QEMU_S: u64 = 180;

const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    case::main(&[
        Case::new("qemu_gvsdmgr", QEMU_S, qemu_gvsdmgr),
        Case::new("uml_gvsdmgr", PLAIN_S, uml_gvsdmgr),
        Case::new("qemu_replaced_store", QEMU_S, qemu_replaced_store),
        Case::new("replaced_store_stays_replaced", PLAIN_S, replaced_store_stays_replaced),
        Case::new("uml_reset_aborts_what_is_under_way", PLAIN_S, uml_reset_aborts_what_is_under_way),
        Case::new("qemu_sg3_utils", QEMU_S, qemu_sg3_utils),
        Case::new("two_guests_share_a_disk", QEMU_S, two_guests_share_a_disk),
    ])
}

/// Runs `command` in the guest; it must end with `status` and print all of `words`.
fn says(guest: &mut LinuxGuest, status: i32, command: &str, words: &[&str]) -> Result<String> {
    let (ended, text) = guest.run_for(40, command)?;
    ensure(ended == status, || {
        format!("in the guest, '{command}' ended with {ended}, not {status}: {text}")
    })?;
    for word in words {
        ensure(text.contains(word), || format!("'{command}' does not say '{word}': {text}"))?;
    }
    Ok(text)
}

/// The value behind a label of `gvsdmgr`.
fn value(text: &str, label: &str) -> Result<String> {
    let found = text.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        (name.trim_end() == label).then(|| value.to_owned())
    });
    found.ok_or_else(|| Failure::new(format!("no '{label}' in {text}")))
}

fn gvsdmgr_guest() -> Result<Storage> {
    let (first, second) = (image("first.img", 16 * MIB)?, image("second.img", 8 * MIB)?);
    let adapter = Adapter::new("g1", "avio_stor")
        .disk(0, &file_backing(&first), "serial = \"FIRST\"")
        .lun(3, "dvd", "none", "")
        .disk(22, &file_backing(&second), "serial = \"SECOND\"");
    Ok(Storage::one(adapter))
}

fn qemu_gvsdmgr() -> Result {
    let mut daemon = Daemon::start(gvsdmgr_guest()?)?;
    let mut guest = disk_guest::qemu("qemu", &daemon.stor_socket("g1")?, Kind::Scsi, 1, "")?.wait()?;
    guest.wait_disks_in_order(2, 20)?;
    all_verbs(&mut guest, &daemon, "0000:00:01.0", ("0x1af4", "0x1004"))?;
    // The link that our rule makes, made by udev.
    guest.run("ln -sf /bin/udevadm /bin/systemd-udevd && systemd-udevd --daemon && udevadm trigger -c add -s scsi_generic && udevadm settle -t 20")?;
    let link = guest.run("readlink /dev/gvsd0")?;
    ensure(link.starts_with("sg"), || format!("/dev/gvsd0 leads to {link}"))?;
    says(&mut guest, 0, "gvsdmgr get_info -D /dev/gvsd0", &["State of HBA             : ONLINE"])?;
    // The LUN that the link leads to goes away: the adapter keeps its name.
    let target =
        guest.run("basename $(readlink -f /sys/class/scsi_generic/$(readlink /dev/gvsd0)/device)")?;
    guest.run(&format!("echo 1 > /sys/class/scsi_device/{target}/device/delete; udevadm settle -t 20"))?;
    says(&mut guest, 0, "gvsdmgr get_info -D /dev/gvsd0", &["Guest                    : g1"])?;
    daemon.ensure_healthy()
}

fn uml_gvsdmgr() -> Result {
    let mut daemon = Daemon::start(gvsdmgr_guest()?)?;
    let mut guest = disk_guest::uml("uml", &daemon.stor_socket("g1")?, Kind::Scsi)?.wait()?;
    guest.wait_disks_in_order(2, 20)?;
    all_verbs(&mut guest, &daemon, "virtio-uml.0", ("N/A", "N/A"))?;
    daemon.ensure_healthy()
}

/// Every verb but the approval, and what it prints; `path` and `pci` are what the adapter has on the guest's bus.
fn all_verbs(guest: &mut LinuxGuest, daemon: &Daemon<Storage>, path: &str, pci: (&str, &str)) -> Result {
    let wanted = format!(
        "PCI Vendor ID            : {}\nPCI Device ID            : {}\nState of HBA             : ONLINE\n\
         Hardware Path            : {path}\nMax. IO size             : 1048576\nSCSI host                : host0\n\
         Adapter                  : avio_stor 0:4\nGuest                    : g1\nRequest queues           : 1\n\
         Logical units            : 3\nTarget version           : {}",
        pci.0,
        pci.1,
        env!("CARGO_PKG_VERSION"),
    );
    let said = says(guest, 0, "gvsdmgr get_info -D host0", &[])?;
    ensure(said == wanted, || format!("get_info says:\n{said}\nwanted:\n{wanted}"))?;
    let said = says(guest, 0, "gvsdmgr get_info -D /dev/sda -q lun=all", &[])?;
    let blocks: Vec<&str> = said.lines().filter(|line| !line.ends_with(" UTC")).collect();
    let folder = scratch::folder();
    let block = |dsf: &str, target: u32, state: &str, size: u64, serial: &str, backing: &str| {
        format!(
            "Lun DSF              : {dsf}\nVSD LUN Id           : 0x{target:x}\n\
             Lun Hardware path    : {path}/0:0:{target}:0\nLUN State            : {state}\n\
             Size                 : {size}\nSerial number        : {serial}\nIdentity             : {}\n\
             Backing store        : {backing}",
            identity(&blocks, dsf),
        )
    };
    let drive = daemon.lun("g1", 3)?["serial"].as_str().unwrap_or_default().to_owned();
    let wanted = [
        block("/dev/sda", 0, "ONLINE", 16 * MIB, "FIRST", &file_backing(&folder.join("first.img"))),
        block("/dev/sr0", 3, "NO_MEDIA", 0, &drive, "none"),
        block("/dev/sdb", 22, "ONLINE", 8 * MIB, "SECOND", &file_backing(&folder.join("second.img"))),
    ]
    .join("\n");
    ensure(blocks.join("\n") == wanted, || {
        format!("get_info says:\n{}\nwanted:\n{wanted}", blocks.join("\n"))
    })?;
    ensure(said.lines().filter(|line| line.ends_with(" UTC")).count() == 3, || said.clone())?;
    // One by its target, in both spellings, and the identity is that of VPD page 83h.
    let naa = guest.run("sg_vpd -p 0x83 /dev/sdb | grep -io '0x3[0-9a-f]*' | head -1")?;
    for target in ["22", "0x16"] {
        let said = says(guest, 0, &format!("gvsdmgr get_info -D host0 -q tgt={target}"), &["/dev/sdb"])?;
        ensure(!said.contains("/dev/sda"), || said.clone())?;
        let identity = value(&said, "Identity")?;
        ensure(
            identity.to_lowercase().ends_with(naa.trim_start_matches("0x").to_lowercase().as_str()),
            || format!("{identity} in get_info, {naa} in page 83h"),
        )?;
    }
    statistics(guest, daemon)?;
    resets(guest, daemon)?;
    for (status, command, word) in [
        (1, "gvsdmgr get_info -D host9", "AVIO storage adapters here: host0"),
        (1, "gvsdmgr get_info -D /dev/null", "is no SCSI device"),
        (1, "gvsdmgr get_info -D host0 -q tgt=9", "it has 0, 3, 22"),
        (1, "gvsdmgr replace_dsk -D host0 -q lun=/dev/sda", "nothing to approve"),
        (2, "gvsdmgr replace_dsk -D host0", "needs -q"),
        (2, "gvsdmgr get_nothing -D host0", "invalid value"),
        (0, "gvsdmgr -h", "replace_dsk"),
    ] {
        says(guest, status, command, &[word])?;
    }
    Ok(())
}

/// The identity that the block of `dsf` shows.
fn identity(lines: &[&str], dsf: &str) -> String {
    let from = lines.iter().position(|line| line.ends_with(dsf)).unwrap_or(0);
    let line = lines[from..].iter().find(|line| line.starts_with("Identity"));
    line.and_then(|line| line.split_once(": ")).map(|(_, text)| text.to_owned()).unwrap_or_default()
}

fn statistics(guest: &mut LinuxGuest, daemon: &Daemon<Storage>) -> Result {
    for disk in ["sda", "sdb"] {
        guest.run(&format!("dd if=/dev/zero of=/dev/{disk} bs=4k count=20 oflag=direct 2>/dev/null && dd if=/dev/{disk} of=/dev/null bs=4k count=30 iflag=direct 2>/dev/null"))?;
    }
    let text = says(
        guest,
        0,
        "gvsdmgr get_stat -D host0 -q lun=/dev/sda",
        &["Lun DSF                  : /dev/sda"],
    )?;
    let host = daemon.lun("g1", 0)?;
    for (label, name) in [
        ("Reads", "reads"),
        ("Writes", "writes"),
        ("Bytes read", "read_bytes"),
        ("Bytes written", "write_bytes"),
        ("Flushes", "flushes"),
        ("Aborts", "aborts"),
        ("Queue depth, highest", "in_flight_max"),
    ] {
        let (inside, outside) = (value(&text, label)?, host["stats"][name].to_string());
        ensure(inside == outside, || format!("{label}: {inside} in the guest, {outside} on the host"))?;
    }
    ensure(value(&text, "Writes")? == "20" && value(&text, "Bytes written")? == "81920", || text.clone())?;
    let all = says(guest, 0, "gvsdmgr get_stat -D host0 -q tgt=all", &["/dev/sda", "/dev/sr0", "/dev/sdb"])?;
    ensure(!all.contains("Kicks"), || "LUNs have no rings of their own".to_owned())?;
    let adapter = says(guest, 0, "gvsdmgr get_stat -D host0", &["HBA                      : host0"])?;
    ensure(value(&adapter, "Writes")? == "40", || adapter.clone())?;
    ensure(value(&adapter, "Kicks received")? != "0", || adapter.clone())?;
    // One, then all; the host's numbers start over with the guest's.
    says(guest, 0, "gvsdmgr clear_stat -D host0 -q lun_dsf=/dev/sda", &[])?;
    let text = says(guest, 0, "gvsdmgr get_stat -D host0 -q tgt=0 -q tgt=22", &[])?;
    let writes: Vec<&str> = text.lines().filter(|line| line.starts_with("Writes ")).collect();
    ensure(writes.len() == 2 && writes[0].ends_with(": 0") && writes[1].ends_with(": 20"), || text.clone())?;
    says(guest, 0, "gvsdmgr clear_stat -D host0 -q all", &[])?;
    let text = says(guest, 0, "gvsdmgr get_stat -D host0", &[])?;
    ensure(value(&text, "Writes")? == "0" && value(&text, "Bytes read")? == "0", || text.clone())?;
    ensure(daemon.lun("g1", 22)?["stats"]["writes"] == 0, || "the host still counts".to_owned())
}

fn resets(guest: &mut LinuxGuest, daemon: &Daemon<Storage>) -> Result {
    says(guest, 0, "gvsdmgr lun_reset -D host0 -q lun=/dev/sda", &[])?;
    says(guest, 0, "gvsdmgr tgt_reset -D host0 -q tgt=22", &[])?;
    says(guest, 2, "gvsdmgr lun_reset -D host0", &["needs -q"])?;
    for target in [0, 22] {
        let lun = daemon.lun("g1", target)?;
        ensure(lun["stats"]["resets"] == 1, || format!("target {target} was reset once: {lun:#}"))?;
    }
    // The unit attention of the reset is the driver's to see, not the administrator's.
    says(
        guest,
        0,
        "gvsdmgr get_info -D host0 -q lun=/dev/sda && dd if=/dev/sda of=/dev/null bs=4k count=1 iflag=direct",
        &["ONLINE"],
    )
    .map(drop)
}

/// SEMANTICS 2.4 from end to end, with a file system mounted on what is replaced; daemon and guest both start anew in between.
fn qemu_replaced_store() -> Result {
    let (old, new) = (image("old.img", 16 * MIB)?, scratch::folder().join("new.img"));
    let other = image("other.img", 4 * MIB)?;
    fs::write(&new, random(24 * MIB as usize)?)?;
    let with = |store: &Path| {
        let adapter = Adapter::new("g1", "avio_stor").disk(0, &file_backing(store), "serial = \"S\"");
        Storage::one(adapter.disk(1, &file_backing(&other), ""))
    };
    let mut daemon = Daemon::start(with(&old))?;
    let mut guest = disk_guest::qemu("qemu", &daemon.stor_socket("g1")?, Kind::Scsi, 1, "")?.wait()?;
    guest.wait_disks_in_order(2, 20)?;
    guest.run("/usr/sbin/mke2fs -q -F -t ext4 /dev/sda && mkdir -p /mnt && mount -t ext4 /dev/sda /mnt && echo before > /mnt/file && sync")?;
    // What is dirty now belongs to the old store; what the guest does from the replacement on reaches neither.
    daemon.config = with(&new);
    let new_bytes = fs::read(&new)?;
    let told = daemon.reload_by_command()?;
    ensure(told.contains("target 0: backing replaced"), || format!("avio stor --reload says {told}"))?;
    daemon.lun_when("g1", 0, 5, |lun| lun["state"] == "Replaced")?;
    let old_bytes = fs::read(&old)?;
    // What happened is told once, then what is.
    let told = "for i in 1 2 3 4; do sg_turs /dev/sda > /dev/null 2>&1; [ $? = 6 ] || break; done; sg_turs -v /dev/sda";
    says(&mut guest, 2, told, &["Not Ready", "manual intervention required"])?;
    says(&mut guest, 1, "dd if=/dev/sda of=/dev/null bs=4k count=1 iflag=direct", &["Input/output error"])?;
    says(&mut guest, 1, "dd if=/dev/zero of=/dev/sda bs=4k count=1 oflag=direct", &["Input/output error"])?;
    // The file system's writes fail as well, those of its journal included.
    guest.run_for(40, "echo after > /mnt/file2; sync; true")?;
    says(
        &mut guest,
        0,
        "sg_inq /dev/sda && dd if=/dev/sdb of=/dev/null bs=4k count=1 iflag=direct",
        &["AVIO"],
    )?;
    let untouched = |when: &str| -> Result {
        ensure(fs::read(&old)? == old_bytes, || format!("{when}: the old store was written"))?;
        ensure(fs::read(&new)? == new_bytes, || format!("{when}: the new store was written"))
    };
    untouched("while replaced")?;
    drop(guest);
    daemon.stop()?;
    daemon.restart()?;
    let lun = daemon.lun("g1", 0)?;
    ensure(lun["state"] == "Replaced", || format!("after a restart: {lun:#}"))?;
    let mut guest = disk_guest::qemu("again", &daemon.stor_socket("g1")?, Kind::Scsi, 1, "")?.wait()?;
    guest.wait_disks_in_order(2, 20)?;
    // A kernel that never saw the store has a disk of no blocks; a read past it is refused as before.
    says(&mut guest, 0, "dd if=/dev/sda of=/dev/null bs=4k count=1", &["0+0 records in"])?;
    says(
        &mut guest,
        2,
        "sg_raw -r 512 /dev/sda 28 00 00 00 00 00 00 00 01 00",
        &["manual intervention required"],
    )?;
    let text = says(&mut guest, 0, "gvsdmgr get_info -D host0 -q lun=/dev/sda", &["REPLACED"])?;
    ensure(
        value(&text, "Serial number")? == "S-1" && value(&text, "Size")? == (24 * MIB).to_string(),
        || text.clone(),
    )?;
    let asked = format!("{} ({} bytes, serial number S)", file_backing(&old), 16 * MIB);
    ensure(value(&text, "Replaced store")? == asked, || text.clone())?;
    let no = "echo n | gvsdmgr replace_dsk -D host0 -q lun=/dev/sda";
    says(&mut guest, 1, no, &["the host has replaced", &asked, "[n]: ", "not approved"])?;
    says(&mut guest, 1, "gvsdmgr -f replace_dsk -D host0 -q lun=/dev/sdb", &["nothing to approve"])?;
    untouched("after a refusal")?;
    // All means those that wait.
    let approved = says(
        &mut guest,
        0,
        "gvsdmgr -f replace_dsk -D host0 -q lun=all",
        &["LUN State            : ONLINE"],
    )?;
    ensure(!approved.contains("/dev/sdb"), || approved.clone())?;
    untouched("by the approval")?;
    ensure(guest.disk_bytes("sda")? == 24 * MIB, || "the guest has not seen the new size".to_owned())?;
    says(&mut guest, 0, "sg_vpd -p 0x80 /dev/sda", &["S-1"])?;
    says(&mut guest, 0, "cat /sys/block/sda/device/vpd_pg80", &["S-1"])?;
    let sum = guest.run("dd if=/dev/sda bs=1M 2>/dev/null | md5sum | cut -d' ' -f1")?;
    ensure(sum == md5_of(&new)?, || "the guest reads something else than the new store".to_owned())?;
    guest.run("yes avio | head -c 4096 > /tmp/block && dd if=/tmp/block of=/dev/sda bs=4096 seek=5 oflag=direct 2>/dev/null")?;
    let mut bytes = [0; 10];
    File::open(&new)?.read_exact_at(&mut bytes, 5 * 4096)?;
    ensure(&bytes == b"avio\navio\n", || format!("written after the approval: {bytes:?}"))?;
    ensure(fs::read(&old)? == old_bytes, || "the old store was written after the approval".to_owned())?;
    ensure(daemon.lun("g1", 0)?["state"] == "Online", || "approved and not online".to_owned())?;
    daemon.ensure_healthy()
}

fn random(len: usize) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = vec![0; len];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn md5_of(path: &Path) -> Result<String> {
    let output = std::process::Command::new("md5sum").arg(path).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned())
}

/// A guest that reconnects finds the LUN as replaced as it left it, however the daemon ended, until the host approves.
fn replaced_store_stays_replaced() -> Result {
    const LUN_0: [u8; 8] = [1, 0, 0x40, 0, 0, 0, 0, 0];
    const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let (old, new): (PathBuf, PathBuf) = (image("old.img", MIB)?, image("new.img", 2 * MIB)?);
    File::options().write(true).open(&new)?.write_all_at(b"new", 0)?;
    let with = |store: &Path| Storage::one(Adapter::new("g1", "avio_stor").disk(0, &file_backing(store), ""));
    let mut daemon = Daemon::start(with(&old))?;
    let options = StorageOptions { inflight: true, ..StorageOptions::new(DriverKind::Scsi) };
    let mut driver = Driver::connect(Endpoint::connect(daemon.stor_socket("g1")?), &options)
        .map_err(|e| Failure::new(e.to_string()))?;
    let read = |driver: &mut Driver| -> Result<(u8, Vec<u8>, Vec<u8>)> {
        for _ in 0..20 {
            let outcome = driver
                .command(0, LUN_0, &READ, &[], 512)
                .map_err(|e| Failure::new(format!("READ 10: {e}")))?;
            let sense = outcome.response.sense;
            // Fixed format (SPC-5 4.5.3): unit attentions tell what happened and are over.
            if outcome.response.status != 2 || sense[2] & 0xf != 6 {
                return Ok((
                    outcome.response.status,
                    vec![sense[2] & 0xf, sense[12], sense[13]],
                    outcome.data,
                ));
            }
        }
        Err(Failure::new("unit attentions without end"))
    };
    ensure(read(&mut driver)?.0 == 0, || "the old store is not read".to_owned())?;
    daemon.config = with(&new);
    daemon.reload_by_command()?;
    // Killed in the moment of the answer: what was answered is on disk.
    for how in ["killed", "running", "stopped"] {
        match how {
            "killed" => daemon.kill(),
            "stopped" => daemon.stop()?,
            _ => {}
        }
        if how != "running" {
            daemon.restart()?;
            driver.reconnect().map_err(|e| Failure::new(e.to_string()))?;
        }
        let (status, sense, _) = read(&mut driver)?;
        ensure(status == 2 && sense == [2, 4, 3], || format!("{how}: status {status}, sense {sense:x?}"))?;
        let lun = daemon.lun("g1", 0)?;
        ensure(lun["state"] == "Replaced", || format!("{how}: {lun:#}"))?;
    }
    let place = ["g1", "0", "4", "0"];
    let output = daemon.avio(&[&["stor", "replace"], &place[..]].concat())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(output.status.code() == Some(1) && said.contains("--force-host"), || said.clone())?;
    let output = daemon.avio(&[&["stor", "replace", "--force-host"], &place[..]].concat())?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    let (status, sense, data) = read(&mut driver)?;
    ensure(status == 0 && data.starts_with(b"new"), || {
        format!("approved: status {status}, sense {sense:x?}")
    })?;
    // Approved is approved: the next start does not bring it back.
    daemon.stop()?;
    daemon.restart()?;
    driver.reconnect().map_err(|e| Failure::new(e.to_string()))?;
    ensure(read(&mut driver)?.0 == 0, || "replaced again after a restart".to_owned())?;
    daemon.ensure_healthy()
}

fn qemu_sg3_utils() -> Result {
    let path = image("disk.img", 16 * MIB)?;
    let adapter = Adapter::new("g1", "avio_stor").disk(0, &file_backing(&path), "serial = \"SG3\"");
    let mut daemon = Daemon::start(Storage::one(adapter.disk(5, "memory:8M", "block_size = 4096")))?;
    let mut guest = disk_guest::qemu("qemu", &daemon.stor_socket("g1")?, Kind::Scsi, 1, "")?.wait()?;
    guest.wait_disks_in_order(2, 20)?;
    let g = &mut guest;
    for (status, command, words) in [
        (
            0,
            "sg_inq /dev/sda",
            &["Vendor identification: AVIO", "Product identification: AVIO DISK", "SPC-4"][..],
        ),
        (0, "sg_vpd -p 0 /dev/sda", &["[sn]", "[di]", "[bl]", "[bdc]", "[lbpv]"]),
        (0, "sg_vpd -p 0x80 /dev/sda", &["Unit serial number: SG3"]),
        (0, "sg_vpd -p 0x83 /dev/sda", &["designator type: NAA", "0x3", "SG3"]),
        (
            0,
            "sg_vpd -p bl /dev/sda",
            &["Maximum transfer length: 2048 blocks", "Maximum compare and write length: "],
        ),
        (0, "sg_vpd -p bdc /dev/sda", &["Non-rotating medium"]),
        (0, "sg_vpd -p lbpv /dev/sda", &["Unmap command supported (LBPU): 1"]),
        (0, "sg_luns /dev/sda", &["0000000000000000"]),
        (0, "sg_readcap -l /dev/sda", &["Last LBA=32767", "Logical block length=512 bytes", "lbpme=1"]),
        (0, "sg_readcap -l /dev/sdb", &["Logical block length=4096 bytes"]),
        (0, "sg_modes -p ca /dev/sda", &["Caching"]),
        (0, "sg_modes -p co /dev/sda", &["Control"]),
        (
            0,
            "sg_opcodes -n /dev/sda",
            &["Compare and write", "Unmap", "Persistent reserve out", "Write same(16)"],
        ),
        (0, "sg_opcodes -t -n /dev/sda", &["Abort task", "Logical unit reset", "I_T nexus reset"]),
        (0, "sg_logs -p 0 /dev/sda", &["0x30", "0x31"]),
        (0, "sg_turs /dev/sda && sg_requests /dev/sda && sg_sync /dev/sda", &[]),
        (0, "sg_verify --lba=0 --count=64 /dev/sda", &[]),
        // An opcode that is not in the table: 05/20/00 is sg3-utils' status 9; a CDB field that is wrong is 5.
        (9, "sg_raw -r 16 /dev/sda ff 00 00 00 00 00", &["Invalid command operation code"]),
        (5, "sg_raw -r 64 /dev/sda 12 01 77 00 40 00", &["Invalid field in cdb"]),
        (0, "sg_raw -r 36 /dev/sda 12 00 00 00 24 00", &["AVIO"]),
    ] {
        says(g, status, command, words)?;
    }
    // WRITE SAME of a pattern, and with UNMAP; UNMAP; COMPARE AND WRITE that fits and that does not.
    g.run("yes pattern | head -c 512 > /tmp/p && yes another | head -c 512 > /tmp/q && cat /tmp/p /tmp/q > /tmp/pq && cat /tmp/q /tmp/p > /tmp/qp")?;
    says(g, 0, "sg_write_same --16 --lba=100 --num=8 --in=/tmp/p --xferlen=512 /dev/sda", &[])?;
    ensure_blocks(&path, 100, 8, b"pattern\n")?;
    ensure_zero(&path, 108, 1)?;
    says(g, 0, "sg_write_same --10 --lba=200 --num=4 --in=/tmp/q --xferlen=512 /dev/sda", &[])?;
    ensure_blocks(&path, 200, 4, b"another\n")?;
    says(g, 0, "sg_write_same --16 --unmap --lba=200 --num=4 --in=/dev/zero --xferlen=512 /dev/sda", &[])?;
    ensure_zero(&path, 200, 4)?;
    says(g, 0, "sg_compare_and_write --lba=100 --in=/tmp/pq --num=1 /dev/sda", &[])?;
    ensure_blocks(&path, 100, 1, b"another\n")?;
    ensure_blocks(&path, 101, 7, b"pattern\n")?;
    // Miscompare is status 14.
    says(g, 14, "sg_compare_and_write --lba=101 --in=/tmp/qp --num=1 /dev/sda", &[])?;
    ensure_blocks(&path, 101, 1, b"pattern\n")?;
    says(g, 0, "sg_unmap --force --lba=101 --num=3 /dev/sda", &[])?;
    ensure_zero(&path, 101, 3)?;
    ensure_blocks(&path, 104, 4, b"pattern\n")?;
    says(g, 0, "sg_get_lba_status --lba=0 /dev/sda", &["LBA"])?;
    // Behind the end: 05/21/00.
    says(g, 22, "sg_unmap --force --lba=32760 --num=9 /dev/sda", &["LBA out of range"])?;
    says(g, 0, "sg_raw -s 512 -i /tmp/p /dev/sda 2a 08 00 00 00 07 00 00 01 00", &[])?;
    ensure_blocks(&path, 7, 1, b"pattern\n")?;
    says(g, 6, "sg_reset -d /dev/sda && sg_turs /dev/sda", &["Bus device reset function occurred"])?;
    says(g, 0, "sg_turs /dev/sda", &[])?;
    ensure(daemon.lun("g1", 0)?["stats"]["resets"] == 1, || "sg_reset -d has not reset it".to_owned())?;
    daemon.ensure_healthy()
}

/// Blocks of 512 bytes hold nothing but repetitions of `line`, each from its beginning.
fn ensure_blocks(path: &Path, block: u64, count: u64, line: &[u8]) -> Result {
    for number in block..block + count {
        let mut bytes = [0; 512];
        File::open(path)?.read_exact_at(&mut bytes, number * 512)?;
        let good = bytes.chunks(line.len()).all(|chunk| line.starts_with(chunk));
        ensure(good, || format!("block {number} holds {:?}", String::from_utf8_lossy(&bytes[..16])))?;
    }
    Ok(())
}

fn ensure_zero(path: &Path, block: u64, count: u64) -> Result {
    let mut bytes = vec![1; count as usize * 512];
    File::open(path)?.read_exact_at(&mut bytes, block * 512)?;
    ensure(bytes.iter().all(|byte| *byte == 0), || format!("blocks from {block} on are not zero"))
}

/// A reset ends writes that the backing delays; the guest's kernel does them again, and what it was told is true.
fn uml_reset_aborts_what_is_under_way() -> Result {
    let path = image("disk.img", 8 * MIB)?;
    let backing = format!("fault:write_delay_ms=2000:file:{}", path.display());
    let mut daemon = Daemon::start(Storage::one(Adapter::new("g1", "avio_stor").disk(0, &backing, "")))?;
    let mut guest = disk_guest::uml("uml", &daemon.stor_socket("g1")?, Kind::Scsi)?.wait()?;
    guest.wait_disks("sd*", 1, 20)?;
    guest.run("yes avio | head -c 4096 > /tmp/b; (dd if=/tmp/b of=/dev/sda bs=4k seek=3 oflag=direct && echo done) > /tmp/io 2>&1 & true")?;
    daemon.lun_when("g1", 0, 10, |lun| lun["stats"]["in_flight"] == 1)?;
    says(&mut guest, 0, "gvsdmgr lun_reset -D host0 -q tgt=0", &[])?;
    let lun = daemon.lun_when("g1", 0, 5, |lun| lun["stats"]["aborts"] == 1)?;
    ensure(lun["stats"]["resets"] == 1, || format!("{lun:#}"))?;
    let (_, text) = guest.run_for(
        30,
        "for i in $(seq 200); do grep -q done /tmp/io && break; usleep 100000; done; cat /tmp/io",
    )?;
    ensure(text.contains("done"), || format!("the write came to no end: {text}"))?;
    let mut bytes = [0; 10];
    File::open(&path)?.read_exact_at(&mut bytes, 3 * 4096)?;
    ensure(&bytes == b"avio\navio\n", || format!("written after the reset: {bytes:?}"))?;
    daemon.ensure_healthy()
}

/// Persistent reservations between a QEMU guest and a User-Mode Linux guest that share a disk, as a cluster does.
fn two_guests_share_a_disk() -> Result {
    let path = image("shared.img", 8 * MIB)?;
    let adapter =
        |guest: &str| Adapter::new(guest, "avio_stor").disk(0, &file_backing(&path), "share = true");
    let mut daemon = Daemon::start(Storage::one(adapter("g1")).adapter(adapter("g2")))?;
    let first = disk_guest::qemu("qemu", &daemon.stor_socket("g1")?, Kind::Scsi, 1, "")?;
    let mut second = disk_guest::uml("uml", &daemon.stor_socket("g2")?, Kind::Scsi)?.wait()?;
    let mut first = first.wait()?;
    first.wait_disks("sd*", 1, 20)?;
    second.wait_disks("sd*", 1, 20)?;
    let (a, b) = (&mut first, &mut second);
    let write = "dd if=/dev/zero of=/dev/sda bs=4k count=1 oflag=direct";
    let read = "dd if=/dev/sda of=/dev/null bs=4k count=1 iflag=direct";
    // What one writes the other reads.
    a.run("yes from-a | head -c 4096 > /tmp/b && dd if=/tmp/b of=/dev/sda bs=4k seek=9 oflag=direct 2>/dev/null")?;
    says(b, 0, "dd if=/dev/sda bs=4k skip=9 count=1 iflag=direct 2>/dev/null | head -1", &["from-a"])?;
    says(a, 0, "sg_persist --out --register --param-sark=0xaaa /dev/sda", &[])?;
    says(a, 0, "sg_persist --out --reserve --param-rk=0xaaa --prout-type=5 /dev/sda", &[])?;
    says(b, 0, "sg_persist --in --read-keys /dev/sda", &["0xaaa"])?;
    says(
        b,
        0,
        "sg_persist --in --read-reservation /dev/sda",
        &["Key=0xaaa", "Write Exclusive, registrants only"],
    )?;
    says(b, 1, write, &[])?;
    says(b, 0, read, &[])?;
    says(b, 0, "sg_persist --out --register --param-sark=0xbbb /dev/sda", &[])?;
    says(b, 0, write, &[])?;
    // Fencing: b takes the reservation from a, as cluster managers do.
    says(
        b,
        0,
        "sg_persist --out --preempt --param-rk=0xbbb --param-sark=0xaaa --prout-type=5 /dev/sda",
        &[],
    )?;
    says(a, 1, write, &[])?;
    says(a, 0, read, &[])?;
    says(a, 0, "sg_persist --in --read-keys /dev/sda", &["0xbbb"])?;
    says(b, 0, "sg_persist --out --clear --param-rk=0xbbb /dev/sda", &[])?;
    says(a, 0, write, &[])?;
    let conflicts = daemon.lun("g1", 0)?;
    ensure(conflicts["state"] == "Online", || format!("{conflicts:#}"))?;
    daemon.ensure_healthy()
}
