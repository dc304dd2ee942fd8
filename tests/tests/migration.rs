//! A QEMU guest moves from one host's switch to another's while it receives: every write into its memory was logged.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::failure::{ensure, eventually};
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::qemu::Qemu;
use avio_tests::qmp::Qmp;
use avio_tests::{Result, scratch, uml};

/// Fast enough to end soon, slow enough that the transfer falls into it.
const MIGRATION_BYTES_PER_S: u64 = 12 << 20;

/// 64 blocks of 64 KiB.
const SENT_LEN: &str = "4194304";

fn main() -> ExitCode {
    case::main(&[Case::new("qemu_migrates_while_it_receives", 240, qemu_migrates_while_it_receives)])
}

/// Gives a guest the address of port `number`, in case its VMM gave it another.
fn adopt(guest: &mut LinuxGuest, number: u16, address: &str) -> Result {
    if guest.mac()? != mac_of(number) {
        guest.set_mac(&mac_of(number))?;
    }
    guest.set_address(address)
}

fn qemu_migrates_while_it_receives() -> Result {
    let folder = scratch::folder();
    let path = |name: &str| folder.join(name);
    // Two hosts: the same guest is defined on both.
    let mut here = Daemon::start_in(path("here"), Config::one_switch(&["", ""]))?;
    let mut there = Daemon::start_in(path("there"), Config::one_switch(&["", ""]))?;
    let incoming = format!("unix:{}", path("migration.sock").display());
    let control = format!("unix:{},server=on,wait=off", path("qmp.sock").display());
    let (socket_here, socket_there, mac) = (here.socket(0), there.socket(0), mac_of(1));
    let source = Qemu { arguments: vec!["-qmp".into(), control], ..Qemu::new("source", &socket_here, &mac) };
    let target = Qemu {
        arguments: vec!["-incoming".into(), incoming.clone()],
        ..Qemu::new("target", &socket_there, &mac)
    };
    let booting = source.launch()?;
    let peer_here = uml::launch("uml-here", &here.socket(1))?;
    let peer_there = uml::launch("uml-there", &there.socket(1))?;
    let (mut guest, mut peer_here, mut peer_there) = (booting.wait()?, peer_here.wait()?, peer_there.wait()?);
    let target = target.launch()?;
    adopt(&mut guest, 1, "192.0.2.1/24")?;
    adopt(&mut peer_here, 2, "192.0.2.2/24")?;
    adopt(&mut peer_there, 2, "192.0.2.3/24")?;
    guest.ping_until_answered("192.0.2.2", 15)?;

    // Its input stays open: busybox's nc would end the connection with it.
    guest.run("(sleep 1000 | nc -l -p 5001 > /tmp/received 2>/dev/null &)")?;
    peer_here.run("dd if=/dev/urandom of=/tmp/sent bs=65536 count=64")?;
    let sent = peer_here.run("md5sum < /tmp/sent")?;
    let mut qmp = Qmp::connect(&path("qmp.sock"))?;
    // The other QEMU was started last, and on a machine with nothing else to do it is not there yet.
    eventually("the other QEMU's socket", 30, || path("migration.sock").exists())?;
    qmp.start_migration(&incoming, MIGRATION_BYTES_PER_S)?;
    peer_here.run("nc 192.0.2.1 5001 < /tmp/sent")?;
    // The sender is done when its kernel has taken the last byte, the receiver later.
    let mut arrived = String::new();
    for _ in 0..100 {
        arrived = guest.run("wc -c < /tmp/received")?;
        if arrived.trim() == SENT_LEN {
            break;
        }
        sleep(Duration::from_millis(100));
    }
    ensure(arrived.trim() == SENT_LEN, || format!("{arrived} of {SENT_LEN} bytes arrived"))?;
    let status = qmp.migration_status()?;
    println!("after the transfer the migration is {status}");
    ensure(status == "active", || format!("the transfer did not fall into the migration: {status}"))?;
    qmp.finish_migration(120)?;

    let mut guest = guest.moved_to(target.console);
    // What the new process has printed so far is not the guest's.
    guest.run("true")?;
    let received = guest.run("md5sum < /tmp/received")?;
    ensure(received.trim() == sent.trim(), || format!("sent {sent}, received {received}"))?;
    guest.ping_until_answered("192.0.2.3", 15)?;
    let pinged = guest.ping("192.0.2.3", 5, "")?;
    ensure(pinged.received == 5, || format!("after the migration: {pinged:?}"))?;
    peer_there.serve_iperf()?;
    for direction in ["", "-R"] {
        let measured = guest.iperf("192.0.2.3", 2, direction)?;
        println!("iperf3 {direction} after the migration: {:.0} Mbit/s", measured.bits_per_second / 1e6);
        ensure(measured.bits_per_second > 20e6, || format!("iperf3 {direction}: {measured:?}"))?;
    }
    here.ensure_healthy()?;
    there.ensure_healthy()
}
