//! TAP ports: a guest whose NIC its VMM emulates beside one with `avio_lan` on one vswitch, and the host on it through its host
//! port. Each case has a network namespace of its own (root).

use std::process::ExitCode;
use std::time::{Duration, Instant};

use avio_guest::net::Offloads;
use avio_tests::capture::Capture;
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::counters::{Counters, HostPort, Vswitch};
use avio_tests::daemon::Daemon;
use avio_tests::driver::Driver;
use avio_tests::failure::{ensure, eventually};
use avio_tests::frames::{EXPERIMENT, ethernet};
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::netns::{host, inside};
use avio_tests::qemu::{self, Qemu};
use avio_tests::uplink::frames_out;
use avio_tests::wire::RawSender;
use avio_tests::{Failure, Result, scratch};

/// For cases with emulated guests, in seconds.
const QEMU_S: u64 = 240;
/// How long each throughput run takes, in seconds.
const IPERF_S: u64 = 2;
/// Less than this is a fault, not a slow machine.
const SLOWEST_BPS: f64 = 10e6;

fn main() -> ExitCode {
    case::main(&[
        Case::new("e1000_beside_avio", QEMU_S, || inside(e1000_beside_avio)).data_path(),
        Case::new("e1000_obeys_its_port", QEMU_S, || inside(e1000_obeys_its_port)),
        Case::new("host_talks_to_guests", QEMU_S, || inside(host_talks_to_guests)).data_path(),
        Case::new("lost_taps_come_back", QEMU_S, || inside(lost_taps_come_back)),
        Case::new("existing_device_is_lent", 60, || inside(existing_device_is_lent)).data_path(),
        Case::new("host_port_numbers", 60, || inside(host_port_numbers)).data_path(),
    ])
}

/// Guest `g1` with an emulated NIC and guest `g2` with `avio_lan`, on one vswitch.
fn config() -> Config {
    Config::default().vswitch("vs", "").lan("g1", "vs", 1, "").guest("g2", "vs", 2, "")
}

struct Pair {
    daemon: Daemon,
    emulated: LinuxGuest,
    avio: LinuxGuest,
}

impl Pair {
    fn start() -> Result<Pair> {
        let daemon = Daemon::start(config())?;
        let emulated = qemu::launch_e1000("e1000", &tap(&daemon)?, &mac_of(1), Vec::new())?;
        let avio = Qemu::new("avio", &daemon.socket(1), &mac_of(2)).launch()?;
        Pair { daemon, emulated: emulated.wait()?, avio: avio.wait()? }.addressed()
    }

    fn addressed(mut self) -> Result<Pair> {
        self.emulated.set_address("192.0.2.1/24")?;
        self.avio.set_address("192.0.2.2/24")?;
        Ok(self)
    }

    fn ensure_reach(&mut self) -> Result {
        self.emulated.ping_until_answered("192.0.2.2", 15)?;
        let pinged = self.avio.ping("192.0.2.1", 5, "-s 1400")?;
        ensure(pinged.received == 5, || format!("ping from the avio guest: {pinged:?}"))
    }

    fn ensure_no_reach(&mut self, why: &str) -> Result {
        let pinged = self.avio.ping("192.0.2.1", 3, "")?;
        ensure(pinged.received == 0, || format!("reached although {why}: {pinged:?}"))?;
        let pinged = self.emulated.ping("192.0.2.2", 3, "")?;
        ensure(pinged.received == 0, || format!("reached although {why}: {pinged:?}"))
    }

    fn ensure_throughput(&mut self) -> Result {
        self.avio.serve_iperf()?;
        for direction in ["", "-R"] {
            let measured = self.emulated.iperf("192.0.2.2", IPERF_S, direction)?;
            println!("iperf3 {direction}: {:.0} Mbit/s", measured.bits_per_second / 1e6);
            ensure(measured.bits_per_second > SLOWEST_BPS, || format!("iperf3 {direction}: {measured:?}"))?;
        }
        Ok(())
    }
}

/// The TAP of the first guest, once the daemon has made it.
fn tap(daemon: &Daemon) -> Result<String> {
    let name = daemon.config.ports()[0].tap();
    wait_for_device(&name)?;
    Ok(name)
}

fn wait_for_device(name: &str) -> Result {
    eventually(&format!("network device {name}"), 10, || {
        host(&format!("ip link show dev {name} up")).is_ok_and(|t| !t.is_empty())
    })
}

fn e1000_beside_avio() -> Result {
    let mut pair = Pair::start()?;
    pair.ensure_reach()?;
    pair.ensure_throughput()?;
    let vswitch = pair.daemon.vswitch("vs")?;
    let (lan, avio) = (vswitch.port(1)?, vswitch.port(2)?);
    ensure(lan.state == "Active" && lan.adaptor == "lan", || format!("{lan:?}"))?;
    ensure(lan.counters == Counters::default(), || format!("AVIO counters of an emulated NIC: {lan:?}"))?;
    ensure(avio.counters.inbound_octets > 1_000_000, || format!("{avio:?}"))?;
    // The table of an emulated NIC ends with its adaptor (SEMANTICS 1.3).
    let shown = String::from_utf8_lossy(&pair.daemon.avio(&["net", "-S", "vs", "-A"])?.stdout).into_owned();
    ensure(shown.matches("Inbound Octets").count() == 1, || format!("one port has AVIO counters: {shown}"))?;
    pair.daemon.ensure_healthy()
}

fn e1000_obeys_its_port() -> Result {
    host("ip addr add 192.0.2.99/24 dev lo")?;
    let mut pair = Pair::start()?;
    pair.ensure_reach()?;

    let with =
        |one, two| Config::default().vswitch("vs", "").lan("g1", "vs", 1, one).guest("g2", "vs", 2, two);
    pair.daemon.config = with("vlan = 7", "");
    pair.daemon.reload()?;
    pair.daemon.console()?.wait_for("net 0:5: changed", 10)?;
    pair.ensure_no_reach("it is in another VLAN")?;
    pair.daemon.config = with("vlan = 7", "vlan = 7");
    pair.daemon.reload()?;
    pair.ensure_reach()?;

    // The host answers ARP for any of its addresses on any device; not on this one, and the guest cannot reach the device's own
    // address either.
    let pinged = pair.emulated.ping("192.0.2.99", 2, "")?;
    ensure(pinged.received == 0, || format!("the host answered: {pinged:?}"))?;
    let tap = tap(&pair.daemon)?;
    let mac = host(&format!("cat /sys/class/net/{tap}/address"))?;
    pair.emulated.run(&format!("arp -s 192.0.2.99 {}", mac.trim()))?;
    let pinged = pair.emulated.ping("192.0.2.99", 2, "")?;
    ensure(pinged.received == 0, || format!("the host answered on the device's own address: {pinged:?}"))?;
    let addresses = host(&format!("ip -o addr show dev {tap}"))?;
    ensure(addresses.is_empty(), || format!("the host has an address there: {addresses}"))?;

    // Another address than its own.
    pair.emulated.set_mac("1e:29:8c:88:77:77")?;
    let line = "g1 port 1 sends as 1e:29:8c:88:77:77, its definition says 1e:29:8c:88:00:01";
    let deadline = Instant::now() + Duration::from_secs(20);
    // An emulated e1000 that was down takes seconds to have its link again; until then nothing leaves it.
    while !pair.daemon.console()?.output().contains(line) {
        ensure(Instant::now() < deadline, || "nobody says that it is a spoofer".to_owned())?;
        let pinged = pair.emulated.ping("192.0.2.2", 2, "")?;
        ensure(pinged.received == 0, || format!("a spoofer was answered: {pinged:?}"))?;
    }
    pair.daemon.ensure_healthy()
}

fn host_talks_to_guests() -> Result {
    let with_host = |port| {
        Config::default().vswitch("vs", port).guest("g1", "vs", 1, "").guest("g2", "vs", 2, "vlan = 7")
    };
    let mut daemon = Daemon::start(with_host("host_port = true"))?;
    wait_for_device("vs")?;
    host("ip addr add 192.0.2.100/24 dev vs")?;
    let mut guest = Qemu::new("g1", &daemon.socket(0), &mac_of(1)).start()?;
    guest.set_address("192.0.2.1/24")?;
    guest.ping_until_answered("192.0.2.100", 15)?;
    host("ping -c 3 -i 0.2 -W 2 -s 1400 192.0.2.1")?;
    guest.serve_iperf()?;
    for direction in ["", "-R"] {
        // The server may not listen yet, or not again; iperf3 says so in its JSON, with status 0.
        let mut text = String::new();
        eventually("an iperf3 server in the guest", 10, || {
            text = host(&format!("iperf3 -c 192.0.2.1 -t {IPERF_S} -J {direction}")).unwrap_or_default();
            !text.contains("unable to ")
        })?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        let bps = json["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_default();
        println!("host to guest {direction}: {:.0} Mbit/s", bps / 1e6);
        ensure(bps > SLOWEST_BPS, || format!("iperf3 {direction}: {text}"))?;
    }
    // The host's address is protected, and its VLANs are those of the ports.
    guest.set_mac(host("cat /sys/class/net/vs/address")?.trim())?;
    let pinged = guest.ping("192.0.2.100", 2, "")?;
    ensure(pinged.received == 0, || format!("a guest with the host's address was answered: {pinged:?}"))?;
    daemon.ensure_healthy()?;

    // Addresses survive the daemon, the device goes with its key.
    daemon.stop()?;
    ensure(host("ip -o addr show dev vs")?.contains("192.0.2.100"), || {
        "the host lost its address".to_owned()
    })?;
    daemon.restart()?;
    ensure(host("ip -o addr show dev vs")?.contains("192.0.2.100"), || {
        "the host lost its address".to_owned()
    })?;
    daemon.config = with_host("");
    daemon.reload()?;
    eventually("no device vs", 10, || host("ip link show dev vs").is_err())
}

/// `avio net -A -V` with one label's number, in the part of the host port.
fn shown_of_host(daemon: &Daemon, label: &str) -> Result<u64> {
    let text = String::from_utf8_lossy(&daemon.avio(&["net", "-S", "vs", "-A", "-V"])?.stdout).into_owned();
    let part = text.split("\n\n").find(|part| part.starts_with("Host Port "));
    let line = part.and_then(|part| part.lines().find(|line| line.starts_with(&format!("{label} "))));
    let number = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    number.ok_or_else(|| Failure::new(format!("no '{label}' of the host port in: {text}")))
}

/// What a guest sends to the host is delivered or discarded at the host port, and the kernel counts what was delivered; what the host sends in a guest's name is
/// discarded there. `avio net` shows both, and clears them.
fn host_port_numbers() -> Result {
    let config = Config::default().vswitch("vs", "host_port = true").guest("g1", "vs", 1, "");
    let mut daemon = Daemon::start(config)?;
    wait_for_device("vs")?;
    let of_host = |daemon: &Daemon| -> Result<HostPort> {
        daemon.vswitch("vs")?.host_port.ok_or_else(|| Failure::new("no host port is shown"))
    };
    eventually("the host port", 10, || of_host(&daemon).is_ok_and(|host| host.state == "Active"))?;
    let received =
        || -> Result<u64> { Ok(host("cat /sys/class/net/vs/statistics/rx_packets")?.trim().parse()?) };
    let (before, mac) = (received()?, host("cat /sys/class/net/vs/address")?);
    let mut load = frames_out(&daemon, mac.trim(), 2, 5_000_000)?;
    load.wait_end(20)?;
    let settled = |v: &Vswitch| {
        let (Ok(guest), Some(host)) = (v.port(1), &v.host_port) else { return false };
        let c = &host.counters;
        guest.counters.outbound_unicast_local > 1000
            && guest.counters.outbound_unicast_local == c.inbound_unicast_local + c.inbound_discards
    };
    let host_port = daemon
        .vswitch_when("vs", 10, settled)?
        .host_port
        .ok_or_else(|| Failure::new("no host port is shown"))?;
    println!("{host_port:?}");
    let delivered = host_port.counters.inbound_unicast_local;
    eventually("the kernel has what was delivered", 5, || {
        received().is_ok_and(|now| now - before >= delivered)
    })?;
    ensure(host_port.device == "vs" && delivered > 1000, || format!("{host_port:?}"))?;
    ensure(received()? - before == delivered, || {
        format!("{before}, {}: {host_port:?}", received().unwrap_or(0))
    })?;
    let dropped = host_port.counters.inbound_discards;
    ensure(host_port.discards.values().sum::<u64>() == dropped, || format!("{host_port:?}"))?;
    ensure(shown_of_host(&daemon, "Inbound Unicast Pkts (local)")? == delivered, || "the table".to_owned())?;
    ensure(shown_of_host(&daemon, "Inbound Discards")? == dropped, || "the table".to_owned())?;

    // A frame in the guest's name, from the host.
    let file = scratch::folder().join("frame");
    let octet = |n: u16| [0x1e, 0x29, 0x8c, 0x88, (n >> 8) as u8, n as u8];
    std::fs::write(&file, [&octet(2)[..], &octet(1), &[0x88, 0xb5], &[0; 46]].concat())?;
    host(&format!("socat -u FILE:{} INTERFACE:vs", file.display()))?;
    let is_counted = || {
        of_host(&daemon).is_ok_and(|host| {
            host.counters.outbound_discards == 1 && host.discards.get("protected_mac") == Some(&1)
        })
    };
    eventually("the spoofed frame is counted", 5, is_counted)?;
    ensure(shown_of_host(&daemon, "Discards protected_mac")? == 1, || "the table".to_owned())?;
    daemon.avio(&["net", "-S", "vs", "-Z"])?;
    let cleared = of_host(&daemon)?;
    ensure(cleared.counters == Counters::default() && cleared.discards.is_empty(), || {
        format!("{cleared:?}")
    })?;
    daemon.ensure_healthy()
}

/// A device that is there already is a lan port as well: its frames and the guests' find each other, under the port's rules, while the host neither hears nor speaks on
/// it. When its definition goes it is as before, whatever became of the daemon meanwhile.
fn existing_device_is_lent() -> Result {
    host("ip link add card0 type veth peer name wire0 && ip link set card0 up && ip link set wire0 up")?;
    host("sysctl -q -w net.ipv4.conf.card0.rp_filter=2 net.ipv6.conf.wire0.disable_ipv6=1")?;
    let state = || -> Result<String> {
        let settings = "ipv6.conf.card0.disable_ipv6 net.ipv6.conf.card0.addr_gen_mode";
        // What the kernel counts for itself is left out.
        host(&format!(
            "ip -d -o link show card0 | sed 's/ promiscuity.*//; s/ state [A-Z]*//'; sysctl net.{settings} net.ipv4.conf.card0.rp_filter"
        ))
    };
    let (before, without) = (state()?, Config::default().vswitch("vs", "").guest("g2", "vs", 2, ""));
    let with =
        Config::default().vswitch("vs", "").guest("g2", "vs", 2, "").lan("g1", "vs", 1, "tap = \"card0\"");
    let mut daemon = Daemon::start(with)?;
    let lent = |daemon: &Daemon| {
        daemon.vswitch("vs").is_ok_and(|v| v.port(1).is_ok_and(|port| port.state == "Active"))
    };
    for time in ["started", "killed and started"] {
        if time != "started" {
            daemon.kill();
            daemon.restart()?;
        }
        eventually(time, 10, || lent(&daemon))?;
        ensure(state()? != before, || "the host has it still".to_owned())?;
        let mut guest = Driver::connect(&daemon.socket(0), Offloads::None)?;
        daemon.wait_active(2)?;
        let (from, capture) = (RawSender::new("wire0")?, Capture::start(None, "wire0", "")?);
        let (inwards, outwards) =
            (ethernet(&mac_of(2), &mac_of(1), EXPERIMENT), ethernet(&mac_of(1), &mac_of(2), EXPERIMENT));
        let spoofed = ethernet(&mac_of(2), "02:00:00:00:00:63", EXPERIMENT);
        from.send(&spoofed)?;
        let mut got = Vec::new();
        eventually("a frame from the device to the guest", 5, || {
            let _ = from.send(&inwards);
            got.extend(guest.received().unwrap_or_default());
            got.contains(&inwards)
        })?;
        ensure(!got.contains(&spoofed), || "a frame in another's name has passed".to_owned())?;
        guest.send(&outwards)?;
        eventually("a frame from the guest to the device", 5, || {
            capture.frames().is_ok_and(|frames| frames.contains(&outwards))
        })?;
    }
    std::fs::remove_file(daemon.config_folder().join("guests/g1.toml"))?;
    daemon.config = without;
    daemon.reload()?;
    eventually("the device is as before", 5, || state().is_ok_and(|now| now == before))
        .map_err(|e| e.while_doing(&format!("{before} {}", state().unwrap_or_default())))?;
    daemon.ensure_healthy()
}

fn lost_taps_come_back() -> Result {
    let mut daemon = Daemon::start(config().vswitch("vt", "host_port = true"))?;
    let tap = tap(&daemon)?;
    wait_for_device("vt")?;
    host(&format!("ip link del {tap} && ip link del vt"))?;
    daemon.console()?.wait_for(&format!("network device {tap} is gone"), 5)?;
    wait_for_device(&tap)?;
    wait_for_device(&tap)?;
    wait_for_device("vt")?;
    // And they carry frames again.
    let emulated = qemu::launch_e1000("e1000", &tap, &mac_of(1), Vec::new())?;
    let avio = Qemu::new("avio", &daemon.socket(1), &mac_of(2)).launch()?;
    let mut pair = Pair { daemon, emulated: emulated.wait()?, avio: avio.wait()? }.addressed()?;
    pair.ensure_reach()?;
    pair.daemon.ensure_healthy()
}
