//! Uplinks: a Linux guest on a switch whose wire is a veth pair, and a Linux host at the other end of it. Every way to the device, VLAN tags and
//! checksums as tcpdump sees them, the host's own traffic beside the guests', and the device before and after.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::console::Console;
use avio_tests::counters::Vswitch;
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::frames::{self, EXPERIMENT};
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::uplink::{best, daemon, device, wait_device};
use avio_tests::wire::{Wire, run, send_raw};
use avio_tests::{Failure, Result, uml};
use rustix::process::Signal;

/// For cases with a guest, in seconds; they take about ten.
const GUEST_S: u64 = 90;
/// For cases without.
const ALONE_S: u64 = 30;
/// How long each throughput run takes, in seconds.
const IPERF_S: u64 = 2;
/// Less than this through a wire is a fault, not a slow machine.
const SLOWEST_BPS: f64 = 20e6;
/// The guest, and the host at the far end.
const GUEST: &str = "192.0.2.1";
const FAR: &str = "192.0.2.2";

fn main() -> ExitCode {
    case::main(&[
        Case::new("wire_traffic", GUEST_S, wire_traffic).data_path(),
        Case::new("wire_generic", GUEST_S, || access("generic")),
        Case::new("wire_packet", GUEST_S, || access("packet")),
        Case::new("wire_gro", GUEST_S, wire_gro).data_path(),
        Case::new("wire_jumbo", GUEST_S, wire_jumbo).data_path(),
        Case::new("wire_vlans", GUEST_S, wire_vlans).data_path(),
        Case::new("wire_beside_the_host", GUEST_S, wire_beside_the_host),
        Case::new("wire_spoofs", GUEST_S, wire_spoofs),
        Case::new("device_is_as_before", ALONE_S, || device_is_as_before("copy")),
        Case::new("generic_device_is_as_before", ALONE_S, || device_is_as_before("generic")),
        Case::new("packet_device_is_as_before", ALONE_S, || device_is_as_before("packet")),
        Case::new("negotiation_is_shown", ALONE_S, negotiation_is_shown),
        Case::new("device_is_lost_and_found", GUEST_S, device_is_lost_and_found),
        Case::new("bad_devices_are_refused", ALONE_S, bad_devices_are_refused),
    ])
}

/// A switch with a wire, one guest on port 1 with [`GUEST`], and a host at the other end with [`FAR`].
struct Wired {
    daemon: Daemon,
    guest: LinuxGuest,
    wire: Wire,
}

impl Wired {
    fn new(wire: Wire, uplink: &str, extra: &str) -> Result<Wired> {
        let daemon = daemon(&wire, uplink, extra)?;
        let mut guest = uml::start("uml-1", &daemon.socket(0))?;
        if guest.mac()? != mac_of(1) {
            guest.set_mac(&mac_of(1))?;
        }
        guest.set_address(&format!("{GUEST}/24"))?;
        Ok(Wired { daemon, guest, wire })
    }

    fn ensure_reach(&mut self, options: &str) -> Result {
        self.guest.ping_until_answered(FAR, 15)?;
        let pinged = self.guest.ping(FAR, 5, options)?;
        ensure(pinged.received == 5, || format!("ping {options} to the wire: {pinged:?}"))?;
        let options: Vec<&str> = options.split_whitespace().collect();
        let received = self.wire.ping(GUEST, 5, &options)?;
        ensure(received == 5, || format!("ping {options:?} from the wire: {received} of 5"))
    }

    /// TCP both ways and UDP with iperf3 between the guest and the far end.
    fn ensure_throughput(&mut self) -> Result {
        let mut server = self.wire.start("iperf-server", &["iperf3", "-s", "--forceflush"])?;
        server.wait_for("listening", 10)?;
        for options in ["", "-R"] {
            let measured = self.guest.iperf(FAR, IPERF_S, options)?;
            println!("iperf3 {options}: {:.0} Mbit/s", measured.bits_per_second / 1e6);
            ensure(measured.bits_per_second > SLOWEST_BPS, || format!("iperf3 {options}: {measured:?}"))?;
        }
        Ok(())
    }

    /// The daemon is well, and what an honest guest and the wire sent was in order.
    fn ensure_clean(&mut self) -> Result {
        self.daemon.ensure_healthy()?;
        let vswitch = self.daemon.vswitch("vs")?;
        let port = vswitch.port(1)?;
        for reason in ["spoofed_source", "bad_header", "header_too_long", "malformed_chain", "too_long"] {
            ensure(port.discarded(reason) == 0, || format!("{reason}: {port:?}"))?;
        }
        ensure(port.counters.outbound_unicast_wire > 0 && port.counters.inbound_unicast_wire > 0, || {
            format!("nothing counts as of the wire: {port:?}")
        })?;
        ensure(port.counters.outbound_unicast_local == 0, || format!("local, with one guest: {port:?}"))
    }
}

fn wire_traffic() -> Result {
    let mut wired = Wired::new(Wire::new(&format!("{FAR}/24"))?, "", "")?;
    let access = device(&wired.daemon, "access")?;
    ensure(access == best(), || format!("{access} instead of {}", best()))?;
    wired.ensure_reach("")?;
    wired.ensure_reach("-s 1400")?;
    wired.ensure_throughput()?;
    wired.ensure_clean()
}

fn access(access: &str) -> Result {
    let mut wired = Wired::new(Wire::new(&format!("{FAR}/24"))?, &format!("access = \"{access}\""), "")?;
    let now = device(&wired.daemon, "access")?;
    ensure(now == access, || format!("{now} instead of {access}"))?;
    wired.ensure_reach("")?;
    wired.ensure_throughput()?;
    wired.ensure_clean()
}

/// Frames of a TCP flow from the wire reach the guest as few long ones, and with `gro = false` as they came; the guest's own stack takes
/// both, for the transfer goes on. A packet socket gets them merged by the kernel where it can, so that way nothing is promised.
fn wire_gro() -> Result {
    for gro in [true, false] {
        let mut wired = Wired::new(Wire::new(&format!("{FAR}/24"))?, &format!("gro = {gro}"), "")?;
        wired.guest.ping_until_answered(FAR, 15)?;
        let mut server = wired.wire.start("iperf-server", &["iperf3", "-s", "--forceflush"])?;
        server.wait_for("listening", 10)?;
        let octets = |wired: &Wired| {
            let counters = wired.daemon.vswitch("vs")?.port(1)?.counters;
            Ok::<_, Failure>((counters.inbound_octets, counters.inbound_unicast_wire))
        };
        let before = octets(&wired)?;
        let measured = wired.guest.iperf(FAR, IPERF_S, "-R")?;
        let after = octets(&wired)?;
        let mean = (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64;
        println!("gro = {gro}: {:.0} Mbit/s in frames of {mean:.0} bytes", measured.bits_per_second / 1e6);
        ensure(measured.bits_per_second > SLOWEST_BPS, || format!("gro = {gro}: {measured:?}"))?;
        if best() != "packet" {
            ensure((mean > 3000.0) == gro, || format!("gro = {gro}: frames of {mean:.0} bytes"))?;
        }
        wired.ensure_clean()?;
    }
    Ok(())
}

/// Bytes of a broadcast that needs a jumbo MTU; socat sends 8,192 at once.
const LONG: usize = 8000;

fn wire_jumbo() -> Result {
    let wire = Wire::new(&format!("{FAR}/24"))?;
    run("ip", &["link", "set", &wire.near, "mtu", "9000"])?;
    wire.far_ip(&["link", "set", &wire.far, "mtu", "9000"])?;
    let mut wired = Wired::new(wire, "", "mtu = 9000")?;
    wired.guest.run("ip link set eth0 mtu 9000")?;
    wired.ensure_reach("-s 8900")?;
    // Broadcasts too long for a slot of the ring in which the switch finds its copy of them, between short ones.
    let counters = |vswitch: &Vswitch| vswitch.port(1).map(|port| port.counters);
    let before = counters(&wired.daemon.vswitch("vs")?)?;
    let short = frames::ethernet(frames::BROADCAST, "02:00:00:00:00:63", EXPERIMENT);
    let mut long = short.clone();
    long.resize(LONG, 0x5a);
    for frame in [&short, &long, &long, &short] {
        send_raw(Some(&wired.wire.namespace), &wired.wire.far, frame)?;
    }
    let octets = (2 * LONG + 2 * short.len()) as u64;
    let arrived = |vswitch: &Vswitch| {
        counters(vswitch).is_ok_and(|now| {
            now.inbound_nonunicast_wire >= before.inbound_nonunicast_wire + 4
                && now.inbound_octets >= before.inbound_octets + octets
        })
    };
    wired.daemon.vswitch_when("vs", 5, arrived)?;
    wired.ensure_throughput()?;
    wired.ensure_clean()
}

/// What tcpdump sees at the far end until `enough` says so.
fn captured(dump: &mut Console, enough: impl Fn(&str) -> bool) -> Result<String> {
    dump.wait_until("the frames on the wire", 15, |output| enough(output).then_some(output.len()))
}

/// An access port's frames have its tag on the wire and none in the guest; checksums are right on the wire.
fn wire_vlans() -> Result {
    let wire = Wire::new("192.0.2.99/24")?;
    // A packet socket leaves checksums to the kernel, and the kernel to a device that can; a veth would pass that on to its other end.
    run("ethtool", &["-K", &wire.near, "tx", "off"])?;
    let mut wired = Wired::new(wire, "", "vlan = 120")?;
    let far = wired.wire.far.clone();
    let mut dump =
        wired.wire.start("tcpdump", &["tcpdump", "-l", "-n", "-e", "-vv", "-i", &far, "vlan 120"])?;
    dump.wait_for("listening", 10)?;
    // Nobody answers: what counts is what is on the wire.
    wired.guest.run("arp -s 192.0.2.99 02:00:00:00:00:63 || ip neigh replace 192.0.2.99 lladdr 02:00:00:00:00:63 dev eth0")?;
    wired.guest.run("nc -w 1 192.0.2.99 7777 </dev/null || true")?;
    let mac = mac_of(1);
    let seen = captured(&mut dump, |output| output.contains(".7777: Flags [S]"))?;
    let line = seen.lines().find(|line| line.contains(&mac)).unwrap_or_default();
    ensure(line.contains("802.1Q") && line.contains("vlan 120"), || format!("no tag: {seen}"))?;
    ensure(seen.contains("(correct)"), || format!("the checksum on the wire is wrong: {seen}"))?;
    // A tagged broadcast from the wire arrives; one of another VLAN, or untagged, does not.
    let before = wired.daemon.vswitch("vs")?.port(1)?.counters.inbound_nonunicast_wire;
    // What is to arrive is sent last: who looks then has seen the others.
    for vlan in [Some(121), None, Some(120)] {
        let frame = match vlan {
            Some(vlan) => frames::tagged(frames::BROADCAST, "02:00:00:00:00:63", vlan),
            None => frames::ethernet(frames::BROADCAST, "02:00:00:00:00:63", EXPERIMENT),
        };
        send_raw(Some(&wired.wire.namespace), &far, &frame)?;
    }
    let arrived = |v: &Vswitch| v.port(1).is_ok_and(|p| p.counters.inbound_nonunicast_wire > before);
    wired.daemon.vswitch_when("vs", 3, arrived)?;
    let vswitch = wired.daemon.vswitch("vs")?;
    let got = vswitch.port(1)?.counters.inbound_nonunicast_wire - before;
    ensure(got == 1, || format!("{got} of three broadcasts reached VLAN 120"))
}

/// The host has an address on the device and keeps talking through it while the guest does; neither hears the other.
fn wire_beside_the_host() -> Result {
    let wire = Wire::new(&format!("{FAR}/24"))?;
    run("ip", &["addr", "add", "198.51.100.1/24", "dev", &wire.near])?;
    wire.far_ip(&["addr", "add", "198.51.100.2/24", "dev", &wire.far])?;
    let mut wired = Wired::new(wire, "", "")?;
    wired.ensure_reach("")?;
    let shown = wired.daemon.vswitch("vs")?.uplink_ip;
    ensure(shown.as_deref() == Some("198.51.100.1"), || format!("the uplink's address: {shown:?}"))?;
    let mut server = wired.wire.start("iperf-server", &["iperf3", "-s", "--forceflush"])?;
    server.wait_for("listening", 10)?;
    // The host's own end of the pair leaves checksums to the other side, which is no XDP device.
    let host = std::thread::spawn(|| run("ping", &["-n", "-c", "15", "-i", "0.2", "198.51.100.2"]));
    let measured = wired.guest.iperf(FAR, 4, "")?;
    ensure(measured.bits_per_second > SLOWEST_BPS, || format!("beside the host: {measured:?}"))?;
    let answers = host.join().map_err(|_| Failure::new("the host's ping panicked"))??;
    ensure(answers.contains("15 received") || answers.contains("14 received"), || answers.clone())?;
    let received = wired.wire.ping("198.51.100.1", 5, &[])?;
    ensure(received == 5, || format!("the host answers {received} of 5"))?;
    wired.ensure_clean()
}

/// Addresses of the host's devices are nobody else's: the uplink's own, and that of a macvlan that is made on it meanwhile.
fn wire_spoofs() -> Result {
    let mut wired = Wired::new(Wire::new(&format!("{FAR}/24"))?, "", "strict = false")?;
    wired.ensure_reach("")?;
    let macvlan = "02:00:00:00:77:01";
    // The daemon hears of an address a moment after it is there; from then on each frame is refused.
    let spoof = |wired: &mut Wired, mac: &str| -> Result {
        let refused =
            |wired: &Wired| Ok::<_, Failure>(wired.daemon.vswitch("vs")?.port(1)?.discarded("protected_mac"));
        let (before, end) = (refused(wired)?, Instant::now() + Duration::from_secs(5));
        while refused(wired)? == before {
            ensure(Instant::now() < end, || format!("{mac} is not protected"))?;
            wired.guest.send_raw(&frames::ethernet("02:00:00:00:00:63", mac, EXPERIMENT))?;
        }
        let before = refused(wired)?;
        wired.guest.send_raw(&frames::ethernet("02:00:00:00:00:63", mac, EXPERIMENT))?;
        let more = |v: &Vswitch| v.port(1).is_ok_and(|p| p.discarded("protected_mac") > before);
        wired.daemon.vswitch_when("vs", 3, more).map(drop).map_err(|e| e.while_doing(mac))
    };
    let own = wired.wire.near_mac()?;
    spoof(&mut wired, &own)?;
    let before = wired.daemon.vswitch("vs")?.port(1)?.counters.outbound_unicast_wire;
    wired.guest.send_raw(&frames::ethernet("02:00:00:00:00:63", macvlan, EXPERIMENT))?;
    let passed = |v: &Vswitch| v.port(1).is_ok_and(|p| p.counters.outbound_unicast_wire > before);
    wired.daemon.vswitch_when("vs", 3, passed)?;
    let near = wired.wire.near.clone();
    let name = format!("{near}m");
    run("ip", &["link", "add", "link", &near, "name", &name, "address", macvlan, "type", "macvlan"])?;
    spoof(&mut wired, macvlan)?;
    // The device itself gets another address: the new one is protected, too.
    run("ip", &["link", "set", &near, "address", "02:00:00:00:77:02"])?;
    spoof(&mut wired, "02:00:00:00:77:02")
}

/// Flags, features and programs of the device are what they were: after an orderly end, and after `kill -9`; however it was opened.
fn device_is_as_before(access: &str) -> Result {
    let wire = Wire::new(&format!("{FAR}/24"))?;
    // A device whose hardware takes tags out: what the switch turns off has to come back.
    run("ethtool", &["-K", &wire.near, "rxvlan", "on"])?;
    let before = wire.state()?;
    for orderly in [true, false] {
        let mut daemon = daemon(&wire, &format!("access = \"{access}\""), "")?;
        let opened = device(&daemon, "access")?;
        ensure(opened == access, || format!("{opened} instead of {access}"))?;
        let off = device(&daemon, "switched_off")?;
        ensure(off == serde_json::json!(["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"]), || {
            format!("switched off: {off}")
        })?;
        let during = wire.state()?;
        ensure(during.contains("rx-vlan-offload: off"), || format!("tags are taken out: {during}"))?;
        ensure(during.contains("promiscuity 1"), || format!("not promiscuous: {during}"))?;
        // As `ip` calls them: of the driver, of the network stack, none.
        let program = match access {
            "copy" => during.contains(" xdp ") || during.contains(" xdp/id"),
            "generic" => during.contains("xdpgeneric"),
            _ => !during.contains("xdp"),
        };
        ensure(program, || format!("{access}: not its program: {during}"))?;
        if orderly {
            daemon.stop()?;
        } else {
            daemon.console()?.signal(Signal::KILL)?;
            daemon.console()?.wait_end(5)?;
        }
        let end = Instant::now() + Duration::from_secs(5);
        while wire.state()? != before {
            ensure(Instant::now() < end, || {
                format!("orderly {orderly}: before:\n{before}\nafter:\n{}", wire.state().unwrap_or_default())
            })?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// `avio net -V` tells all that was negotiated with a device, each way of opening it.
fn negotiation_is_shown() -> Result {
    const BURSTS: &str = "bursts of a program, as XDP frames where the other end takes them";
    // Labels and values of native, generic and packet sockets.
    let rows: [(&str, [&str; 3]); 12] = [
        ("Access", ["AF_XDP, native, copy", "AF_XDP, generic", "packet socket"]),
        ("Queues", ["1", "1", "1"]),
        ("Ring Size", ["2048", "2048", "none"]),
        ("Multi-Buffer", ["no", "no", "yes"]),
        ("Need Wakeup", ["yes", "yes", "no"]),
        ("Busy Polling", ["no", "no", "no"]),
        ("VLAN Metadata", ["yes", "no", "yes"]),
        ("Frames Sent By", [BURSTS, BURSTS, "packet socket"]),
        ("Segments Cut By", ["switch", "switch", "kernel"]),
        ("Checksums Filled In By", ["switch", "switch", "kernel"]),
        ("Checksum Metadata", ["none"; 3]),
        ("Switched Off", ["rx-vlan-hw-parse rx-vlan-stag-hw-parse"; 3]),
    ];
    let wire = Wire::new(&format!("{FAR}/24"))?;
    run("ethtool", &["-K", &wire.near, "rxvlan", "on"])?;
    for (way, access) in ["copy", "generic", "packet"].into_iter().enumerate() {
        let mut daemon = daemon(&wire, &format!("access = \"{access}\""), "")?;
        let output = daemon.avio(&["net", "-S", "vs", "-V"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        let wire = text.split_once("Uplink  ").map_or("", |(_, wire)| wire);
        for (label, values) in rows {
            let line = wire.lines().find(|line| line.trim_start().starts_with(label)).unwrap_or_default();
            let shown = line.split_once(" : ").map_or("", |(_, value)| value);
            ensure(shown == values[way], || format!("{access}: {label}: not {}: {text}", values[way]))?;
        }
        // `--json` has what the Varlink interface says.
        let sent_by = device(&daemon, "sent_by")?;
        ensure(sent_by == ["Burst", "Burst", "Socket"][way], || format!("{access}: sent by {sent_by}"))?;
        daemon.stop()?;
        if access == "copy" {
            for (off, shown, told) in
                [("xdp_burst", " : AF_XDP ring", "Ring"), ("xdp_redirect", " : bursts of a program", "Burst")]
            {
                daemon.restart_with(&[("AVIO_DISABLE", off)], 10)?;
                wait_device(&daemon, "Up")?;
                let text =
                    String::from_utf8_lossy(&daemon.avio(&["net", "-S", "vs", "-V"])?.stdout).into_owned();
                let line = text.lines().find(|line| line.contains("Frames Sent By")).unwrap_or_default();
                ensure(line.ends_with(shown), || format!("without {off}: {text}"))?;
                ensure(device(&daemon, "sent_by")? == told, || format!("without {off}: --json"))?;
                ensure(device(&daemon, "xdp_frames")? == false, || format!("without {off}: --json"))?;
                daemon.stop()?;
            }
        }
    }
    Ok(())
}

/// The device is deleted and made again while a guest runs: a line in the log, and then the guest is back on the wire.
fn device_is_lost_and_found() -> Result {
    let mut wired = Wired::new(Wire::new(&format!("{FAR}/24"))?, "", "")?;
    wired.ensure_reach("")?;
    wired.wire.far_ip(&["link", "set", &wired.wire.far, "down"])?;
    wait_device(&wired.daemon, "Down")?;
    wired.wire.far_ip(&["link", "set", &wired.wire.far, "up"])?;
    wait_device(&wired.daemon, "Up")?;
    wired.ensure_reach("")?;
    wired.wire.unplug()?;
    wait_device(&wired.daemon, "Missing")?;
    wired.daemon.console()?.wait_for("is gone; waiting until it comes back", 5)?;
    wired.wire.plug()?;
    wired.wire.far_ip(&["addr", "add", &format!("{FAR}/24"), "dev", &wired.wire.far])?;
    wait_device(&wired.daemon, "Up")?;
    // The far end has another address now.
    wired.guest.run("ip neigh flush dev eth0")?;
    wired.ensure_reach("")?;
    wired.ensure_clean()
}

/// One line, which names the device and the way out.
fn bad_devices_are_refused() -> Result {
    let wire = Wire::new(&format!("{FAR}/24"))?;
    let near = &wire.near;
    let cases = [
        ("uplink = \"nosuch0\"".to_owned(), "there is no network device `nosuch0`"),
        ("uplink = \"lo\"".to_owned(), "`lo` is no Ethernet device"),
        (format!("uplink = \"{near}\"\n[[uplink]]\nname = \"{near}\"\nacces = \"copy\""), "acces"),
    ];
    for (lines, wanted) in cases {
        let Err(refused) = Daemon::start(Config::default().vswitch("vs", &lines)) else {
            return Err(Failure::new(format!("taken: {lines}")));
        };
        let text = refused.to_string();
        ensure(text.contains(wanted), || format!("{lines}: {text}"))?;
    }
    Ok(())
}
