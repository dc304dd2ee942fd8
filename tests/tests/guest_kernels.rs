//! What the kernel under these tests does not have, and Debian's kernels in guests do: Linux' VLAN devices (802.1Q) at both ends of a wire. Each case has a
//! network namespace of its own (root).

use std::process::ExitCode;

use avio_tests::Result;
use avio_tests::capture::Capture;
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::guest_image::Extras;
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::netns::inside;
use avio_tests::qemu::{Machine, NET_MODULES, VLAN_MODULES};
use avio_tests::uml;
use avio_tests::uplink::wait_key;
use avio_tests::wire::run;

/// For cases with an emulated guest, in seconds; they take about twenty.
const QEMU_S: u64 = 240;
/// How long each run of iperf3 takes, in seconds.
const IPERF_S: u64 = 2;
/// Less than this over TCP is no progress, in bits per second.
const SLOWEST_BPS: f64 = 1e6;
/// The uplink: a TAP, whose other end is the far host's NIC.
const UPLINK: &str = "up0";

fn main() -> ExitCode {
    case::main(&[Case::new("vlan_devices_at_both_ends", QEMU_S, || inside(vlan_devices_at_both_ends))])
}

/// Frames reach XDP on a TAP as they are: complete.
const COMPLETE: &str =
    "csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";

/// A host at the far end: VLANs 120 and 30 with tags, VLAN 10 without. What it sends on VLAN 120 has priority 5.
fn far_host() -> Result<LinuxGuest> {
    let modules = [NET_MODULES, VLAN_MODULES].concat();
    let mut machine = Machine::new("far", &modules);
    machine.arguments = vec![
        "-netdev".to_owned(),
        format!("tap,id=n0,ifname={UPLINK},script=no,downscript=no"),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=n0,mac=02:00:00:00:00:63,{COMPLETE}"),
    ];
    let mut far = machine.launch()?.wait()?;
    far.set_address("203.0.113.100/24")?;
    far.set_vlan(120, "192.0.2.100/24")?;
    far.set_vlan(30, "198.51.100.100/24")?;
    far.run("vconfig set_egress_map eth0.120 0 5")?;
    Ok(far)
}

/// A User-Mode Linux guest with VLAN devices.
fn guest(daemon: &Daemon, number: u16) -> Result<LinuxGuest> {
    let modules = [uml::NET_MODULES, VLAN_MODULES].concat();
    let socket = daemon.socket(usize::from(number) - 1);
    let name = format!("uml-{number}");
    let mut guest =
        uml::launch_with(&name, &modules, &Extras::default(), &[(&socket, uml::VIRTIO_ID_NET)])?.wait()?;
    if guest.mac()? != mac_of(number) {
        guest.set_mac(&mac_of(number))?;
    }
    Ok(guest)
}

/// Ping both ways.
fn ensure_reach(near: &mut LinuxGuest, near_ip: &str, far: &mut LinuxGuest, far_ip: &str) -> Result {
    near.ping_until_answered(far_ip, 15)?;
    for (from, to) in [(&mut *near, far_ip), (far, near_ip)] {
        let pinged = from.ping(to, 3, "-s 1400")?;
        ensure(pinged.received == 3, || format!("ping to {to}: {pinged:?}"))?;
    }
    Ok(())
}

/// TCP both ways.
fn ensure_tcp(near: &mut LinuxGuest, near_ip: &str, far_ip: &str) -> Result {
    for direction in ["", "-R"] {
        let measured = near.iperf(far_ip, IPERF_S, direction)?;
        println!("{near_ip} to {far_ip} {direction}: {:.0} Mbit/s", measured.bits_per_second / 1e6);
        ensure(measured.bits_per_second > SLOWEST_BPS, || format!("{far_ip} {direction}: {measured:?}"))?;
    }
    Ok(())
}

/// An access port, a trunk port with VLAN devices in its guest, and the native VLAN, against a host with VLAN devices; the wire through XDP and through
/// packet sockets.
fn vlan_devices_at_both_ends() -> Result {
    run("ip", &["tuntap", "add", "dev", UPLINK, "mode", "tap"])?;
    run("ip", &["link", "set", UPLINK, "up"])?;
    let config = |access: &str| {
        let uplink = format!(
            "uplink = \"{UPLINK}\"\n[[uplink]]\nname = \"{UPLINK}\"\nallow_slow = true\naccess = \"{access}\"\nnative_vlan = 10"
        );
        Config::default().vswitch("vs", &uplink).guest("g1", "vs", 1, "vlan = 120").guest(
            "g2",
            "vs",
            2,
            "trunk = [10, 30]",
        )
    };
    let mut far = far_host()?;
    let mut daemon = Daemon::start(config("auto"))?;
    let (mut access, mut trunk) = (guest(&daemon, 1)?, guest(&daemon, 2)?);
    access.set_address("192.0.2.1/24")?;
    trunk.set_vlan(30, "198.51.100.1/24")?;
    trunk.set_vlan(10, "203.0.113.1/24")?;
    far.serve_iperf()?;
    for way in ["auto", "packet"] {
        daemon.config = config(way);
        daemon.reload()?;
        wait_key(&daemon, "access", if way == "auto" { "copy" } else { way })?;
        wait_key(&daemon, "state", "Up")?;
        ensure_reach(&mut access, "192.0.2.1", &mut far, "192.0.2.100")?;
        ensure_reach(&mut trunk, "198.51.100.1", &mut far, "198.51.100.100")?;
        ensure_reach(&mut trunk, "203.0.113.1", &mut far, "203.0.113.100")?;
        ensure_tcp(&mut access, "192.0.2.1", "192.0.2.100")?;
        if way == "auto" {
            ensure_tcp(&mut trunk, "198.51.100.1", "198.51.100.100")?;
            ensure_tcp(&mut trunk, "203.0.113.1", "203.0.113.100")?;
        }
        // Its tags are in the frames' bytes, with their priorities: who has an address that nobody has, on the way that broadcasts take.
        let capture = Capture::start(None, UPLINK, "")?;
        for (nobody, tag) in [("192.0.2.55", [0x81, 0, 0xa0, 120]), ("198.51.100.55", [0x81, 0, 0, 30])] {
            let pinged = far.ping(nobody, 1, "")?;
            ensure(pinged.received == 0, || format!("{nobody}: {pinged:?}"))?;
            let is_tagged = |frame: &Vec<u8>| frame[..6] == [0xff; 6] && frame[12..16] == tag;
            capture.frames_when(nobody, |frames| frames.iter().any(is_tagged))?;
        }
    }
    // The same addresses in the wrong VLAN are nobody's.
    access.run("ip addr add 198.51.100.2/24 dev eth0 && ip addr add 203.0.113.2/24 dev eth0")?;
    for address in ["198.51.100.100", "203.0.113.100"] {
        let pinged = access.ping(address, 2, "")?;
        ensure(pinged.received == 0, || format!("VLAN 120 reached {address}: {pinged:?}"))?;
    }
    // Of all that arrived, no checksum was wrong, and no tag unknown to the far host's kernel.
    let wrong = far.run("awk '/^Tcp: [0-9]/ { print $16 }' /proc/net/snmp")?;
    ensure(wrong == "0", || format!("wrong TCP checksums at the far end: {wrong}"))?;
    daemon.ensure_healthy()
}
