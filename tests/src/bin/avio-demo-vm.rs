//! `make demo-vm`: two real Linux guests, User-Mode Linux and QEMU, on one vswitch. Shows them booting, pinging, pushing TCP
//! both ways, one of them lying about its MAC address, and at the end the statistics of `avio net -A`. Then a third guest with
//! disks: a file system, and `gvsdmgr` inside. Takes about a minute; leaves nothing behind.

use std::process::ExitCode;
use std::time::Instant;

use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::disk_guest::{self, Kind};
use avio_tests::failure::ensure;
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::qemu::Qemu;
use avio_tests::storage::{Adapter, Storage, image};
use avio_tests::{Result, scratch, uml};

/// How long each direction of TCP is measured, in seconds.
const IPERF_S: u64 = 4;

fn main() -> ExitCode {
    let begin = Instant::now();
    let step = |what: &str| println!("[{:5.1} s] {what}", begin.elapsed().as_secs_f64());
    let outcome = show(&step);
    // The transcripts are of use only when something went wrong.
    match outcome {
        Ok(()) => {
            drop(std::fs::remove_dir_all(scratch::folder()));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("demo-vm: {failure}\ndemo-vm: transcripts are in {}", scratch::folder().display());
            ExitCode::FAILURE
        }
    }
}

fn show(step: &dyn Fn(&str)) -> Result {
    step("starting avio-vswitchd with a vswitch of two ports");
    let mut daemon = Daemon::start(Config::one_switch(&["", ""]))?;
    let (socket, mac) = (daemon.socket(1), mac_of(2));
    step("booting two guests: g1 is User-Mode Linux, g2 is QEMU (emulated, no KVM)");
    let first = uml::launch("uml", &daemon.socket(0))?;
    let second = Qemu::new("qemu", &socket, &mac).launch()?;
    let mut first = first.wait()?;
    step("g1 is up");
    let mut second = second.wait()?;
    step("g2 is up");
    for (guest, number) in [(&mut first, 1), (&mut second, 2)] {
        if guest.mac()? != mac_of(number) {
            guest.set_mac(&mac_of(number))?;
        }
        guest.set_address(&format!("192.0.2.{number}/24"))?;
    }
    second.ping_until_answered("192.0.2.1", 20)?;
    step("g1 pings g2");
    println!("{}", indented(&first.run("ping -c 4 -i 0.2 192.0.2.2")?));
    second.serve_iperf()?;
    for (options, direction) in [("", "g1 -> g2"), ("-R", "g2 -> g1")] {
        let measured = first.iperf("192.0.2.2", IPERF_S, options)?;
        let gbit = measured.bits_per_second / 1e9;
        step(&format!("TCP {direction}: {gbit:.2} Gbit/s, {} segments sent again", measured.retransmits));
    }
    spoof(&mut first, &daemon, step)?;
    daemon.ensure_healthy()?;
    step("avio net -S vs -A");
    let table = daemon.avio(&["net", "-S", "vs", "-A"])?;
    println!("\n{}", String::from_utf8_lossy(&table.stdout));
    drop((first, second));
    daemon.stop()?;
    disks(step)?;
    step("done");
    Ok(())
}

/// A guest with two disks and an empty drive: a file system with its stock drivers, and what its administrator sees.
fn disks(step: &dyn Fn(&str)) -> Result {
    step("starting avio-stord with two image files and an empty DVD drive for g3");
    let backing = |name: &str| -> Result<String> { Ok(format!("file:{}", image(name, 32 << 20)?.display())) };
    let adapter = Adapter::new("g3", "avio_stor").disk(0, &backing("system.img")?, "");
    let adapter = adapter.disk(1, &backing("data.img")?, "").lun(2, "dvd", "none", "");
    let mut daemon = Daemon::start_in(scratch::folder().join("stord"), Storage::one(adapter))?;
    let mut guest = disk_guest::qemu("disks", &daemon.stor_socket("g3")?, Kind::Scsi, 1, "")?.wait()?;
    guest.wait_disks_in_order(2, 20)?;
    step("g3 is up: it makes a file system, writes, reads back and compares");
    guest.run("/usr/sbin/mke2fs -q -F -t ext4 /dev/sdb && mkdir -p /mnt && mount -t ext4 /dev/sdb /mnt")?;
    guest.run(
        "dd if=/dev/urandom of=/mnt/a bs=1M count=8 2>/dev/null && md5sum /mnt/a > /tmp/sum && umount /mnt",
    )?;
    guest.run("mount -t ext4 /dev/sdb /mnt && md5sum -c /tmp/sum && umount /mnt")?;
    guest.ensure_holds("sda", 8, "64k")?;
    step("gvsdmgr get_info -D host0 -q all, inside g3");
    println!("{}", indented(&guest.run("gvsdmgr get_info -D host0 -q all")?));
    daemon.ensure_healthy()?;
    step("avio stor");
    println!("\n{}", String::from_utf8_lossy(&daemon.avio(&["stor"])?.stdout));
    drop(guest);
    daemon.stop()
}

/// The first guest takes another MAC address; nothing of what it then sends arrives.
fn spoof(guest: &mut LinuxGuest, daemon: &Daemon, step: &dyn Fn(&str)) -> Result {
    guest.set_mac("1e:29:8c:66:66:66")?;
    guest.run("ip addr show eth0 | grep -q 192.0.2.1 || ip addr add 192.0.2.1/24 dev eth0")?;
    let pinged = guest.ping("192.0.2.2", 3, "")?;
    let dropped = daemon.vswitch("vs")?.port(1)?.discarded("spoofed_source");
    step(&format!(
        "g1 sends as 1e:29:8c:66:66:66: {} of {} pings answered, {dropped} spoofed frames dropped",
        pinged.received, pinged.sent
    ));
    ensure(pinged.received == 0 && dropped > 0, || "the spoofing guest got through".to_owned())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("          {line}\n")).collect::<String>().trim_end().to_owned()
}
