//! Which network devices may be uplinks, by their drivers, speeds and owners: asked of `avio-vswitchd --check` in a guest that has Debian's kernel and QEMU's
//! cards, for the kernel under these tests has few of them. Each that is refused is refused as a member of an aggregate, too, and the aggregate with it.

use std::process::ExitCode;

use avio_tests::Result;
use avio_tests::aggregate::aggregate;
use avio_tests::case::{self, Case};
use avio_tests::daemon::program;
use avio_tests::failure::ensure;
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::qemu::{Machine, NET_MODULES};

/// For cases with an emulated guest, in seconds; they take about twenty.
const QEMU_S: u64 = 240;

fn main() -> ExitCode {
    case::main(&[Case::new("each_driver", QEMU_S, each_driver)])
}

/// The cards, in the order in which their drivers are loaded: `eth0` and so on. QEMU has none that 8139too takes (it leaves revisions from 0x20 on to 8139cp).
const CARDS: &[&str] = &["virtio-net-pci", "e1000", "i82550", "rtl8139", "pcnet", "ne2k_pci", "tulip"];
/// What devices that are no cards need, then the drivers of the cards; in load order.
const MODULES: &[&str] = &[
    "crc32c_generic",
    "libcrc32c",
    "nf_defrag_ipv4",
    "nf_defrag_ipv6",
    "nf_conntrack",
    "nf_nat",
    "nf_conncount",
    "nsh",
    "openvswitch",
    "llc",
    "stp",
    "bridge",
    "garp",
    "mrp",
    "8021q",
    "tls",
    "bonding",
    "team",
    "tun",
    "e1000",
    "mii",
    "e100",
    "8139cp",
    "pcnet32",
    "8390",
    "ne2k-pci",
    "tulip",
];

/// Devices that each would-be owner needs to have one: `bond0` comes with its module.
const MAKE: &[&str] = &[
    "ip link add team0 type team",
    "ip link add br0 type bridge",
    "ip link add link eth0 name eth0.5 type vlan id 5",
    "ovs-dpctl add-dp dp0",
];

fn machine() -> Result<LinuxGuest> {
    let modules = [NET_MODULES, MODULES].concat();
    let mut machine = Machine::new("cards", &modules);
    machine.kernel = "kernel-pc";
    machine.memory_mib = 512;
    machine.extras.programs.push((program("avio-vswitchd")?, "usr/bin/avio-vswitchd".to_owned()));
    machine.extras.program("/usr/bin/ovs-dpctl");
    for (n, card) in CARDS.iter().enumerate() {
        machine.arguments.extend(["-netdev".to_owned(), format!("hubport,id=n{n},hubid={n}")]);
        machine.arguments.extend(["-device".to_owned(), format!("{card},netdev=n{n}")]);
    }
    let mut guest = machine.launch()?.wait()?;
    for line in MAKE {
        guest.run(line)?;
    }
    Ok(guest)
}

/// `avio-vswitchd --check` on a switch with these lines: its exit status and what it printed.
fn check(guest: &mut LinuxGuest, vswitch: &str) -> Result<(i32, String)> {
    let file = format!("[[vswitch]]\nname = \"vs\"\n{vswitch}\n").replace('\n', "\\n");
    guest.run(&format!("mkdir -p /cfg; printf '{file}' > /cfg/vswitches.toml"))?;
    guest.run_for(30, "avio-vswitchd --check --config /cfg --run-dir /run --state-dir /run")
}

fn uplink(name: &str, lines: &str) -> String {
    format!("uplink = \"{name}\"\n[[uplink]]\nname = \"{name}\"\n{lines}")
}

fn ensure_taken(guest: &mut LinuxGuest, vswitch: &str) -> Result {
    let (status, text) = check(guest, vswitch)?;
    ensure(status == 0, || format!("refused ({status}): {vswitch}: {text}"))
}

/// One line with all of `parts`: of the device alone, and of an aggregate in which it stands beside one that may be a member.
fn ensure_refused(guest: &mut LinuxGuest, name: &str, parts: &[&str]) -> Result {
    let alone = format!("`{name}` ");
    let whole = format!("aggregate `lan900`: `{name}` ");
    let members = aggregate("lan900", &format!("\"eth1\", \"{name}\""), "mode = \"MANUAL\"");
    for (vswitch, begin) in [(uplink(name, ""), &alone), (members, &whole)] {
        let (status, text) = check(guest, &vswitch)?;
        ensure(status == 1 && text.lines().count() == 1 && text.contains(begin.as_str()), || {
            format!("{vswitch}: {status}: {text}")
        })?;
        for part in parts {
            ensure(text.contains(part), || format!("{vswitch}: no '{part}' in: {text}"))?;
        }
        println!("{text}");
    }
    Ok(())
}

/// Each driver of the list whose device can be made here; then what owners there are.
fn each_driver() -> Result {
    let mut guest = machine()?;
    // Without a speed, and 1 Gbit/s: as they are.
    ensure_taken(&mut guest, &uplink("eth0", ""))?;
    ensure_taken(&mut guest, &uplink("eth1", ""))?;
    ensure_taken(&mut guest, &aggregate("lan900", "\"eth0\", \"eth1\"", "mode = \"LACP_AUTO\""))?;
    let slow = "use a faster one";
    let denied = [
        ("bond0", "bonding", "name its members in an [[aggregate]]"),
        ("team0", "team", "name its members in an [[aggregate]]"),
        ("br0", "bridge", "name the device behind the bridge"),
        ("dp0", "openvswitch", "name the device behind the switch"),
        ("eth0.5", "802.1Q VLAN Support", "name the device that it sits on, and give ports a `vlan`"),
        ("eth2", "e100", slow),
        ("eth3", "8139cp", slow),
        ("eth4", "pcnet32", slow),
        ("eth5", "ne2k-pci", slow),
        ("eth6", "tulip", slow),
    ];
    for (name, driver, instead) in denied {
        let found = guest.run(&format!("ethtool -i {name} | head -1"))?;
        ensure(found == format!("driver: {driver}"), || format!("{name}: {found}"))?;
        ensure_refused(
            &mut guest,
            name,
            &[&format!("has driver {driver} and cannot be an uplink"), instead],
        )?;
        // The list is of drivers, not of speeds.
        let (status, text) = check(&mut guest, &uplink(name, "allow_slow = true"))?;
        ensure(status == 1 && text.contains(driver), || format!("{name} with allow_slow: {status}: {text}"))?;
    }
    // A driver that is not in the list, at a speed that is too low.
    for (speed, is_fast) in [(100, false), (999, false), (1000, true)] {
        guest.run(&format!("ethtool -s eth0 speed {speed} duplex full"))?;
        ensure_taken(&mut guest, &uplink("eth0", "allow_slow = true"))?;
        if is_fast {
            ensure_taken(&mut guest, &uplink("eth0", ""))?;
        } else {
            let says = format!("has {speed} Mbit/s, an uplink needs 1000");
            ensure_refused(&mut guest, "eth0", &[&says, "`allow_slow = true`"])?;
        }
    }
    owners(&mut guest)
}

/// A device that belongs to somebody.
fn owners(guest: &mut LinuxGuest) -> Result {
    guest.run("ip link del eth0.5")?;
    for master in ["bond0", "team0", "br0", "dp0"] {
        let is_ovs = master == "dp0";
        // `ovs-dpctl` is what there is without Open vSwitch's daemon.
        let (take, give, instead) = if is_ovs {
            ("ovs-dpctl add-if dp0 eth0".to_owned(), "ovs-dpctl del-if dp0 eth0", "ovs-vsctl del-port eth0")
        } else {
            let enslave = format!("ip link set eth0 down; ip link set eth0 master {master}");
            (enslave, "ip link set eth0 nomaster", "ip link set dev eth0 nomaster")
        };
        guest.run(&take)?;
        ensure_refused(guest, "eth0", &[&format!("belongs to `{master}`; take it out (`{instead}`)")])?;
        guest.run(give)?;
        ensure_taken(guest, &uplink("eth0", ""))?;
    }
    Ok(())
}
