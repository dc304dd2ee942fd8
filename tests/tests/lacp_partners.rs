//! LACP partners that nobody here wrote: Open vSwitch, DPDK's bonding driver, and Linux' `bonding` in a guest whose NICs are TAPs that are our
//! members. Each deals what comes through the aggregate on to a second uplink, so every frame of a load over it is counted, while links go down and
//! up. Needs root, as uplinks do.

use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_tests::aggregate::{Cables, Partner, aggregate, fail_under_load, move_under_load, wait_states};
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::ensure;
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::ovs::Ovs;
use avio_tests::qemu::{Machine, NET_MODULES};
use avio_tests::testpmd::Bond;
use avio_tests::wire::run;
use avio_tests::{Failure, Result};
use serde_json::Value;

fn main() -> ExitCode {
    case::main(&[
        Case::new("open_vswitch", 90, open_vswitch),
        Case::new("dpdk_bonding", 90, dpdk_bonding),
        Case::new("linux_bonding", 240, linux_bonding),
    ])
}

const LACP: &str = "mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nbalance = \"LB_FLOW\"";

/// A guest on a vswitch with the aggregate, and one on a vswitch whose uplink is what the partner deals frames on to.
fn daemon(members: &str, beyond: &str, lines: &str) -> Result<Daemon> {
    let beyond = format!("uplink = \"{beyond}\"\n{lines}");
    let config = Config::default()
        .vswitch("vs_a", &aggregate("lan900", members, LACP))
        .vswitch("vs_b", &beyond)
        .guest("g1", "vs_a", 1, "")
        .guest("g2", "vs_b", 2, "")
        .guest("g3", "vs_b", 3, "");
    Daemon::start(config)
}

/// Markers that the first member sent, and how many were answered.
fn markers(shown: &Value) -> Result<[u64; 2]> {
    let numbers =
        ["markers_out", "marker_responses_in"].map(|n| shown["members"][0][n].as_u64().unwrap_or(0));
    println!("Markers sent {}, answered {}", numbers[0], numbers[1]);
    ensure(numbers[0] >= 4, || shown.to_string())?;
    Ok(numbers)
}

fn open_vswitch() -> Result {
    let cables = Cables::new(3, true)?;
    let ovs = Ovs::start(&cables, 2)?;
    ovs.add_port(&cables.far(2))?;
    let daemon = daemon(&cables.members(false, 2), &cables.near(2), "")?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 12)?;
    let plug = |n: usize, up: bool| cables.plug(n, up);
    let partner = Partner { plug: &plug, lossless: false, rate: 10_000, settles_s: 8 };
    let after = move_under_load(&daemon, &partner)?;
    markers(&after)?;
    fail_under_load(&daemon, &partner)
}

fn dpdk_bonding() -> Result {
    let cables = Cables::new(3, true)?;
    let namespace = cables.namespace.clone().unwrap_or_default();
    let _bond = Bond::start(&namespace, &[cables.far(0), cables.far(1)], &cables.far(2))?;
    let daemon = daemon(&cables.members(false, 2), &cables.near(2), "")?;
    // Its LACPDUs leave with the frames that it sends: with nothing to send it is silent (DPDK's guide: bonding, mode 4). A guest that calls out keeps
    // it talking.
    let mut caller = command(program("avio-pktgen")?);
    caller.arg("--socket").arg(daemon.socket(2)).args(["--role", "transmit", "--guest-mac", &mac_of(3)]);
    caller.args(["--peer-mac", "1e:29:8c:88:77:77", "--rate", "50", "--duration", "100"]);
    let _caller = Console::spawn("caller", &mut caller)?;
    let up = wait_states(&daemon, "lan900", &["Active", "Active"], 20)?;
    println!("the partner: {} {}", up["partner"], up["members"][0]["lacp"]);
    let plug = |n: usize, up: bool| cables.plug(n, up);
    let partner = Partner { plug: &plug, lossless: false, rate: 5_000, settles_s: 15 };
    let after = move_under_load(&daemon, &partner)?;
    markers(&after)?;
    fail_under_load(&daemon, &partner)
}

/// TAPs as cables into a guest; deleted with the case.
struct Taps(Vec<String>);

impl Taps {
    fn new(count: usize) -> Result<Taps> {
        let id = std::process::id() % 1_000_000;
        let taps = Taps((0..count).map(|n| format!("avt{id}x{n}")).collect());
        for tap in &taps.0 {
            run("ip", &["tuntap", "add", "dev", tap, "mode", "tap"])?;
            run("ip", &["link", "set", tap, "up"])?;
        }
        Ok(taps)
    }

    fn plug(&self, n: usize, up: bool) -> Result {
        run("ip", &["link", "set", &self.0[n], if up { "up" } else { "down" }]).map(drop)
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        for tap in &self.0 {
            let _ = Command::new("ip").args(["link", "del", tap]).output();
        }
    }
}

/// Bonding and a bridge, in load order.
const MODULES: &[&str] = &["llc", "stp", "bridge", "tls", "bonding"];

/// A guest whose first two NICs are one bond in mode 802.3ad, bridged to the third.
fn bonding_guest(taps: &Taps) -> Result<LinuxGuest> {
    let modules = [NET_MODULES, MODULES].concat();
    let mut machine = Machine::new("bonding", &modules);
    // Frames reach XDP on a TAP as they are: complete.
    let complete =
        "csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";
    for (n, tap) in taps.0.iter().enumerate() {
        let netdev = format!("tap,id=n{n},ifname={tap},script=no,downscript=no");
        let device = format!("virtio-net-pci,netdev=n{n},mac=02:00:00:00:90:0{n},{complete}");
        machine.arguments.extend(["-netdev".to_owned(), netdev, "-device".to_owned(), device]);
    }
    let mut guest = machine.launch()?.wait()?;
    let bond = "/sys/class/net/bond0/bonding";
    for line in [
        format!("echo 802.3ad > {bond}/mode"),
        format!(
            "echo 1 > {bond}/lacp_rate; echo 50 > {bond}/miimon; echo layer3+4 > {bond}/xmit_hash_policy"
        ),
        // 802.3ad wants full duplex, and a virtio NIC on a TAP does not say.
        "ethtool -s eth0 speed 10000 duplex full && ethtool -s eth1 speed 10000 duplex full".to_owned(),
        "ip link set bond0 up".to_owned(),
        format!("echo +eth0 > {bond}/slaves && echo +eth1 > {bond}/slaves"),
        "brctl addbr br0 && brctl addif br0 bond0 && brctl addif br0 eth2".to_owned(),
        "ip link set eth2 up && ip link set br0 up".to_owned(),
    ] {
        guest.run(&line)?;
    }
    Ok(guest)
}

fn linux_bonding() -> Result {
    let taps = Taps::new(3)?;
    let mut guest = bonding_guest(&taps)?;
    let slow = format!(
        "[[uplink]]\nname = \"lan900\"\nallow_slow = true\n[[uplink]]\nname = \"{}\"\nallow_slow = true",
        taps.0[2]
    );
    let members = format!("\"{}\", \"{}\"", taps.0[0], taps.0[1]);
    let daemon = daemon(&members, &taps.0[2], &slow)?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 30)?;
    // The bond's own view: one aggregator with both ports, and a partner with our key.
    let end = Instant::now() + Duration::from_secs(10);
    let shown = loop {
        let shown = guest.run("cat /proc/net/bonding/bond0")?;
        if shown.contains("Number of ports: 2") && shown.contains("Partner Key: 900") {
            break shown;
        }
        ensure(Instant::now() < end, || shown)?;
        sleep(Duration::from_millis(200));
    };
    let churned = shown.matches("Actor Churn State: none").count();
    println!("Linux bonding sees both ports; churn state none of {churned}");
    let plug = |n: usize, up: bool| taps.plug(n, up);
    let partner = Partner { plug: &plug, lossless: false, rate: 1_000, settles_s: 15 };
    let after = move_under_load(&daemon, &partner)?;
    let [sent, answered] = markers(&after)?;
    ensure(sent == answered, || Failure::new("Linux answers Markers").to_string())?;
    fail_under_load(&daemon, &partner)
}
