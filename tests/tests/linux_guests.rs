//! Real Linux guests on the switch: QEMU with Debian's kernel and User-Mode Linux, alone and together. What their own
//! drivers, network stacks and administrators do.

use std::path::PathBuf;
use std::process::ExitCode;

use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::frames::{self, BROADCAST, EXPERIMENT};
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::qemu::Qemu;
use avio_tests::{Result, uml};

/// For cases with User-Mode Linux only, in seconds.
const UML_S: u64 = 90;

/// For cases with emulated guests: they boot in 4 s each, or in 15 when the machine is busy.
const QEMU_S: u64 = 240;

/// How long each throughput run takes, in seconds.
const IPERF_S: u64 = 2;

/// Less than this between two guests is a fault, not a slow machine.
const SLOWEST_BPS: f64 = 20e6;

fn main() -> ExitCode {
    case::main(&[
        Case::new("uml_pair", UML_S, uml_pair).data_path(),
        Case::new("uml_beside_qemu", QEMU_S, uml_beside_qemu).data_path(),
        Case::new("uml_vlans", UML_S, uml_vlans),
        Case::new("uml_tagged_frames_are_dropped", UML_S, uml_tagged_frames_are_dropped),
        Case::new("uml_spoofs", UML_S, uml_spoofs),
        Case::new("uml_addresses_are_guarded", UML_S, uml_addresses_are_guarded),
        Case::new("uml_isolated_ports", UML_S, uml_isolated_ports),
        Case::new("uml_to_guest_without_offloads", UML_S, uml_to_guest_without_offloads),
        Case::new("qemu_tso_on_and_off", QEMU_S, qemu_tso_on_and_off),
        Case::new("qemu_two_queue_pairs", QEMU_S, qemu_two_queue_pairs),
        Case::new("qemu_packed", QEMU_S, qemu_packed),
        Case::new("qemu_jumbo", QEMU_S, qemu_jumbo),
        Case::new("qemu_spoofs", QEMU_S, qemu_spoofs),
        Case::new("qemu_access_vlans", QEMU_S, qemu_access_vlans),
        Case::new("qemu_trunk", QEMU_S, qemu_trunk),
        Case::new("qemu_driver_comes_and_goes", QEMU_S, qemu_driver_comes_and_goes),
        Case::new("qemu_reconnects_after_restart", QEMU_S, qemu_reconnects_after_restart),
        Case::new("qemu_listens_through_restart", QEMU_S, qemu_listens_through_restart),
    ])
}

/// Two guests on one switch, with 192.0.2.1 and 192.0.2.2.
struct Pair {
    daemon: Daemon,
    one: LinuxGuest,
    two: LinuxGuest,
}

impl Pair {
    fn uml(extras: [&str; 2]) -> Result<Pair> {
        let daemon = Daemon::start(Config::one_switch(&extras))?;
        let one = uml::launch("uml-1", &daemon.socket(0))?;
        let two = uml::launch("uml-2", &daemon.socket(1))?;
        Pair { one: one.wait()?, two: two.wait()?, daemon }.addressed()
    }

    fn qemu(extras: [&str; 2], queue_pairs: u16, server: bool, device: &str) -> Result<Pair> {
        Pair::qemu_unaddressed(extras, queue_pairs, server, device)?.addressed()
    }

    fn qemu_unaddressed(extras: [&str; 2], queue_pairs: u16, server: bool, device: &str) -> Result<Pair> {
        let daemon = Daemon::start(Config::one_switch(&extras))?;
        let start = |name, socket: PathBuf, mac: String| {
            Qemu { server, queue_pairs, device, ..Qemu::new(name, &socket, &mac) }.launch()
        };
        let one = start("qemu-1", daemon.socket(0), mac_of(1))?;
        let two = start("qemu-2", daemon.socket(1), mac_of(2))?;
        Ok(Pair { one: one.wait()?, two: two.wait()?, daemon })
    }

    /// Gives both guests the MAC addresses of their ports, if they have others, and IPv4 addresses.
    fn addressed(mut self) -> Result<Pair> {
        adopt_mac(&mut self.one, 1)?;
        adopt_mac(&mut self.two, 2)?;
        self.one.set_address("192.0.2.1/24")?;
        self.two.set_address("192.0.2.2/24")?;
        Ok(self)
    }

    /// Ping answers in both directions.
    fn ensure_reach(&mut self, options: &str) -> Result {
        self.one.ping_until_answered("192.0.2.2", 15)?;
        let pinged = self.one.ping("192.0.2.2", 5, options)?;
        ensure(pinged.received == 5, || format!("ping {options} to the second guest: {pinged:?}"))?;
        let pinged = self.two.ping("192.0.2.1", 5, options)?;
        ensure(pinged.received == 5, || format!("ping {options} to the first guest: {pinged:?}"))
    }

    /// iperf3 in both directions.
    fn ensure_throughput(&mut self, options: &str) -> Result {
        for direction in ["", "-R"] {
            let options = format!("{options} {direction}");
            let measured = self.one.iperf("192.0.2.2", IPERF_S, &options)?;
            println!(
                "iperf3 {options}: {:.0} Mbit/s, {} retransmits",
                measured.bits_per_second / 1e6,
                measured.retransmits
            );
            ensure(measured.bits_per_second > SLOWEST_BPS, || {
                let ports = self.daemon.vswitch("vs").map(|vswitch| vswitch.ports);
                format!("iperf3 {options}: {measured:?}; {ports:#?}")
            })?;
        }
        Ok(())
    }

    /// The numbers add up, nothing was found wrong with what honest guests sent, and the daemon is well.
    fn ensure_clean(&mut self) -> Result {
        self.daemon.ensure_healthy()?;
        let vswitch = self.daemon.vswitch("vs")?;
        for port in &vswitch.ports {
            for reason in [
                "spoofed_source",
                "bad_header",
                "header_too_long",
                "malformed_chain",
                "too_long",
                "cannot_segment",
            ] {
                ensure(port.discarded(reason) == 0, || format!("{reason}: {port:?}"))?;
            }
        }
        Ok(())
    }
}

/// User-Mode Linux makes up a MAC address unless the switch tells it one.
fn adopt_mac(guest: &mut LinuxGuest, number: u16) -> Result {
    let wanted = mac_of(number);
    if guest.mac()? != wanted {
        guest.set_mac(&wanted)?;
    }
    Ok(())
}

fn uml_pair() -> Result {
    let mut pair = Pair::uml(["", ""])?;
    pair.ensure_reach("")?;
    pair.two.serve_iperf()?;
    pair.ensure_throughput("")?;
    pair.ensure_clean()
}

fn uml_beside_qemu() -> Result {
    let daemon = Daemon::start(Config::one_switch(&["", ""]))?;
    let (socket, mac) = (daemon.socket(1), mac_of(2));
    let one = uml::launch("uml-1", &daemon.socket(0))?;
    let two = Qemu::new("qemu-2", &socket, &mac).launch()?;
    let mut pair = Pair { one: one.wait()?, two: two.wait()?, daemon }.addressed()?;
    pair.ensure_reach("")?;
    pair.two.serve_iperf()?;
    pair.ensure_throughput("")?;
    pair.ensure_clean()
}

/// Guests of different access VLANs do not reach each other; `avio net -u` moves a running port.
fn uml_vlans() -> Result {
    let mut pair = Pair::uml(["vlan = 10", "vlan = 20"])?;
    join_access_vlan(&mut pair)
}

/// Guests on VLANs 10 and 20 that reach each other once the second is moved to VLAN 10.
fn join_access_vlan(pair: &mut Pair) -> Result {
    let pinged = pair.one.ping("192.0.2.2", 3, "")?;
    ensure(pinged.received == 0, || format!("VLAN 10 reached VLAN 20: {pinged:?}"))?;
    let vswitch = pair.daemon.vswitch("vs")?;
    ensure(vswitch.port(2)?.counters.delivered() == 0, || format!("frames crossed: {vswitch:?}"))?;
    ensure(vswitch.port(1)?.counters.taken() > 0, || {
        "nothing was sent, so nothing was kept apart".to_owned()
    })?;
    let output = pair.daemon.avio(&["net", "-S", "vs", "-u", "portid:2:vlanid:10"])?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    pair.daemon.vswitch_when("vs", 3, |v| v.port(2).is_ok_and(|p| p.untagged_vlanid == Some(10)))?;
    pair.ensure_reach("")?;
    pair.ensure_clean()
}

fn uml_tagged_frames_are_dropped() -> Result {
    let mut pair = Pair::uml(["vlan = 10", "vlan = 10"])?;
    pair.ensure_reach("")?;
    send_tagged(&mut pair)
}

/// Raw frames with tags, the port's own VLAN and a priority tag among them, from a port that may send none.
fn send_tagged(pair: &mut Pair) -> Result {
    let before = pair.daemon.vswitch("vs")?.port(2)?.counters.delivered();
    for vlan in [10, 20, 0, 4095] {
        pair.one.send_raw(&frames::tagged(&mac_of(2), &mac_of(1), vlan))?;
    }
    let vswitch =
        pair.daemon.vswitch_when("vs", 3, |v| v.port(1).is_ok_and(|p| p.discarded("guest_tagged") >= 4))?;
    ensure(vswitch.port(1)?.discarded("guest_tagged") == 4, || format!("{:?}", vswitch.port(1)))?;
    let after = vswitch.port(2)?.counters.delivered();
    // Neighbours may refresh their addresses meanwhile, which is a frame or two.
    ensure(after - before <= 2, || format!("{} frames arrived", after - before))
}

/// Frames that a hostile administrator sends from a guest whose address is right: each has its counter.
fn send_spoofs(guest: &mut LinuxGuest, daemon: &Daemon) -> Result {
    let other = mac_of(2);
    let spoofs = [
        ("spoofed_source", frames::ethernet(&other, "1e:29:8c:99:99:99", EXPERIMENT)),
        // The other guest's own address.
        ("spoofed_source", frames::ethernet(BROADCAST, &other, EXPERIMENT)),
        ("multicast_source", frames::ethernet(&other, "03:00:00:00:00:01", EXPERIMENT)),
        ("zero_source", frames::ethernet(&other, "00:00:00:00:00:00", EXPERIMENT)),
        // LACP (IEEE 802.3 annex 57A) and a bridge's own group address (IEEE 802.1Q table 8-1).
        ("control_ethertype", frames::ethernet("01:80:c2:00:00:02", &mac_of(1), 0x8809)),
        ("link_local_destination", frames::ethernet("01:80:c2:00:00:0e", &mac_of(1), EXPERIMENT)),
    ];
    for (reason, frame) in spoofs {
        let before = daemon.vswitch("vs")?.port(1)?.discarded(reason);
        guest.send_raw(&frame)?;
        let once_more =
            |v: &avio_tests::counters::Vswitch| v.port(1).is_ok_and(|p| p.discarded(reason) == before + 1);
        daemon.vswitch_when("vs", 3, once_more).map_err(|e| e.while_doing(reason))?;
    }
    Ok(())
}

/// The guest's administrator changes its MAC address: nothing gets out until it is changed back.
fn change_mac_and_back(pair: &mut Pair) -> Result {
    let before = pair.daemon.vswitch("vs")?.port(2)?.counters.delivered();
    pair.one.set_mac("1e:29:8c:66:66:66")?;
    pair.one.run("ip neigh flush dev eth0 2>/dev/null; ip addr show eth0 | grep -q 192.0.2.1 || ip addr add 192.0.2.1/24 dev eth0")?;
    let pinged = pair.one.ping("192.0.2.2", 3, "")?;
    ensure(pinged.received == 0, || format!("a guest with a made-up MAC address got answers: {pinged:?}"))?;
    let vswitch = pair.daemon.vswitch("vs")?;
    ensure(vswitch.port(1)?.discarded("spoofed_source") > 0, || format!("{:?}", vswitch.port(1)))?;
    ensure(vswitch.port(2)?.counters.delivered() == before, || "a spoofed frame arrived".to_owned())?;
    let log = pair.daemon.console()?.output();
    ensure(log.contains("1e:29:8c:66:66:66"), || {
        format!("the log does not tell of the spoofing guest:\n{log}")
    })?;
    pair.one.set_mac(&mac_of(1))?;
    pair.one.run("ip addr show eth0 | grep -q 192.0.2.1 || ip addr add 192.0.2.1/24 dev eth0")?;
    pair.ensure_reach("")
}

fn uml_spoofs() -> Result {
    let mut pair = Pair::uml(["", ""])?;
    pair.ensure_reach("")?;
    send_spoofs(&mut pair.one, &pair.daemon)?;
    change_mac_and_back(&mut pair)
}

/// A port that names its addresses takes no others: in IP, and in what ARP claims.
fn uml_addresses_are_guarded() -> Result {
    let mut pair = Pair::uml(["ips = [\"192.0.2.1\"]", ""])?;
    pair.ensure_reach("")?;
    let (own, stolen) = ([192, 0, 2, 1], [192, 0, 2, 77]);
    pair.one.send_raw(&frames::arp_request(&mac_of(1), &mac_of(1), stolen, [192, 0, 2, 2]))?;
    pair.one.send_raw(&frames::arp_request(&mac_of(1), "1e:29:8c:66:66:66", own, [192, 0, 2, 2]))?;
    pair.daemon.vswitch_when("vs", 3, |v| v.port(1).is_ok_and(|p| p.discarded("arp_guard") == 2))?;
    pair.one.run("ip addr add 192.0.2.77/24 dev eth0")?;
    pair.one.ping("192.0.2.2", 2, "-I 192.0.2.77")?;
    let vswitch = pair.daemon.vswitch("vs")?;
    let guarded = vswitch.port(1)?.discarded("ip_guard") + vswitch.port(1)?.discarded("arp_guard") - 2;
    ensure(guarded >= 2, || format!("a stolen address passed: {:?}", vswitch.port(1)))
}

fn uml_isolated_ports() -> Result {
    let mut pair = Pair::uml(["isolated = true", "isolated = true"])?;
    let pinged = pair.one.ping("192.0.2.2", 3, "")?;
    ensure(pinged.received == 0, || format!("isolated ports reach each other: {pinged:?}"))?;
    ensure(pair.daemon.vswitch("vs")?.port(2)?.counters.delivered() == 0, || "frames crossed".to_owned())
}

/// The sender's large frames are cut up and checksummed for a receiver that was offered nothing.
fn uml_to_guest_without_offloads() -> Result {
    let mut pair = Pair::uml(["", "offloads = false"])?;
    pair.ensure_reach("")?;
    pair.two.serve_iperf()?;
    pair.ensure_throughput("")?;
    pair.ensure_clean()?;
    let vswitch = pair.daemon.vswitch("vs")?;
    let counters = &vswitch.port(2)?.counters;
    let average = counters.inbound_octets / counters.delivered().max(1);
    ensure(average <= 1514, || format!("{average} bytes in an average frame that arrived"))
}

/// Octets per frame that port `number` delivered since `before`.
fn average_len(daemon: &Daemon, number: u32, before: (u64, u64)) -> Result<u64> {
    let vswitch = daemon.vswitch("vs")?;
    let counters = &vswitch.port(number)?.counters;
    Ok((counters.inbound_octets - before.0) / (counters.delivered() - before.1).max(1))
}

fn octets_and_frames(daemon: &Daemon, number: u32) -> Result<(u64, u64)> {
    let vswitch = daemon.vswitch("vs")?;
    let counters = &vswitch.port(number)?.counters;
    Ok((counters.inbound_octets, counters.delivered()))
}

fn qemu_tso_on_and_off() -> Result {
    let mut pair = Pair::qemu(["", ""], 1, false, "")?;
    pair.ensure_reach("")?;
    pair.two.serve_iperf()?;
    let before = octets_and_frames(&pair.daemon, 2)?;
    pair.ensure_throughput("")?;
    let average = average_len(&pair.daemon, 2, before)?;
    ensure(average > 1514, || format!("TSO is on, but frames arrive with {average} bytes on average"))?;
    for guest in [&mut pair.one, &mut pair.two] {
        guest.run("ethtool -K eth0 tso off gso off tx off")?;
    }
    let before = octets_and_frames(&pair.daemon, 2)?;
    pair.ensure_throughput("")?;
    let average = average_len(&pair.daemon, 2, before)?;
    ensure(average <= 1514, || format!("TSO is off, but frames arrive with {average} bytes on average"))?;
    pair.ensure_clean()
}

fn qemu_two_queue_pairs() -> Result {
    let mut pair = Pair::qemu(["queue_pairs = 2", "queue_pairs = 2"], 2, false, "")?;
    pair.one.run("ethtool -L eth0 combined 2")?;
    pair.two.run("ethtool -L eth0 combined 2")?;
    pair.ensure_reach("")?;
    pair.two.serve_iperf()?;
    pair.ensure_throughput("-P 4")?;
    // Back to one pair while running: the other must no longer be delivered to.
    pair.two.run("ethtool -L eth0 combined 1")?;
    pair.ensure_reach("")?;
    pair.ensure_throughput("-P 4")?;
    pair.ensure_clean()
}

fn qemu_packed() -> Result {
    let mut pair = Pair::qemu(["", ""], 1, false, "packed=on")?;
    pair.ensure_reach("")?;
    pair.two.serve_iperf()?;
    pair.ensure_throughput("")?;
    pair.ensure_clean()
}

fn qemu_jumbo() -> Result {
    let mut pair = Pair::qemu(["mtu = 9000", "mtu = 9000"], 1, false, "")?;
    for guest in [&mut pair.one, &mut pair.two] {
        guest.run("ip link set eth0 mtu 9000 && ethtool -K eth0 tso off gso off")?;
    }
    // 8,972 bytes and 28 of headers fill 9,000: one frame, not fragments.
    pair.ensure_reach("-s 8972")?;
    let before = octets_and_frames(&pair.daemon, 2)?;
    pair.one.ping("192.0.2.2", 3, "-s 8972")?;
    let average = average_len(&pair.daemon, 2, before)?;
    ensure(average > 4_500, || format!("{average} bytes on average: the pings were cut up"))?;
    pair.two.serve_iperf()?;
    pair.ensure_throughput("")?;
    pair.ensure_clean()
}

fn qemu_spoofs() -> Result {
    let mut pair = Pair::qemu(["", ""], 1, false, "")?;
    pair.ensure_reach("")?;
    send_spoofs(&mut pair.one, &pair.daemon)?;
    change_mac_and_back(&mut pair)
}

/// QEMU's guest on an access port: kept to its VLAN, and no tag of its own making gets out, be it raw or from Linux's
/// VLAN driver.
fn qemu_access_vlans() -> Result {
    let mut pair = Pair::qemu(["vlan = 10", "vlan = 20"], 1, false, "")?;
    join_access_vlan(&mut pair)?;
    send_tagged(&mut pair)?;
    pair.one.set_vlan(10, "198.51.100.1/24")?;
    pair.two.set_vlan(10, "198.51.100.2/24")?;
    let before = pair.daemon.vswitch("vs")?.port(1)?.discarded("guest_tagged");
    let pinged = pair.one.ping("198.51.100.2", 3, "")?;
    ensure(pinged.received == 0, || format!("a tag of the guest's own passed: {pinged:?}"))?;
    let vswitch = pair.daemon.vswitch("vs")?;
    ensure(vswitch.port(1)?.discarded("guest_tagged") > before, || format!("{:?}", vswitch.port(1)))?;
    // The untagged network is none the worse for it.
    pair.ensure_reach("")?;
    pair.ensure_clean()
}

/// A trunk port beside an access port: the tag is taken out and put in, large frames included; only the VLANs of the trunk
/// pass, and each stays by itself.
fn qemu_trunk() -> Result {
    let mut pair = Pair::qemu_unaddressed(["trunk = [10, 20]", "vlan = 10"], 1, false, "")?;
    pair.one.set_vlan(10, "192.0.2.1/24")?;
    pair.one.set_vlan(20, "198.51.100.1/24")?;
    pair.two.set_address("192.0.2.2/24")?;
    pair.two.run("ip addr add 198.51.100.2/24 dev eth0 && ip addr add 203.0.113.2/24 dev eth0")?;
    pair.ensure_reach("")?;
    pair.ensure_reach("-s 1400")?;
    pair.two.serve_iperf()?;
    pair.ensure_throughput("")?;
    let pinged = pair.one.ping("198.51.100.2", 3, "")?;
    ensure(pinged.received == 0, || format!("VLAN 20 reached VLAN 10: {pinged:?}"))?;
    ensure(pair.daemon.vswitch("vs")?.port(1)?.discarded("guest_tagged") == 0, || {
        "VLANs of the trunk were refused".to_owned()
    })?;
    pair.one.set_vlan(30, "203.0.113.1/24")?;
    let pinged = pair.one.ping("203.0.113.2", 3, "")?;
    ensure(pinged.received == 0, || format!("VLAN 30 is not of the trunk, but passed: {pinged:?}"))?;
    let vswitch = pair.daemon.vswitch("vs")?;
    ensure(vswitch.port(1)?.discarded("guest_tagged") > 0, || format!("{:?}", vswitch.port(1)))?;
    // Untagged, the trunk port is in no VLAN, so not in the access port's.
    pair.one.run("ip addr del 192.0.2.1/24 dev eth0.10 && ip addr add 192.0.2.1/24 dev eth0")?;
    let pinged = pair.one.ping("192.0.2.2", 3, "")?;
    ensure(pinged.received == 0, || format!("no VLAN reached VLAN 10: {pinged:?}"))?;
    pair.ensure_clean()
}

/// The driver goes and another comes, as when firmware hands over to a kernel, or a guest reboots.
fn qemu_driver_comes_and_goes() -> Result {
    let mut pair = Pair::qemu(["", ""], 1, false, "")?;
    for _ in 0..3 {
        pair.ensure_reach("")?;
        pair.one.run("rmmod virtio_net && insmod /modules/virtio_net.ko")?;
        pair.one.set_address("192.0.2.1/24")?;
    }
    pair.ensure_reach("")?;
    pair.ensure_clean()
}

fn qemu_reconnects_after_restart() -> Result {
    let mut pair = Pair::qemu(["", ""], 1, false, "")?;
    through_restarts(&mut pair)
}

fn qemu_listens_through_restart() -> Result {
    let role = "socket_role = \"client\"";
    let mut pair = Pair::qemu([role, role], 1, true, "")?;
    through_restarts(&mut pair)
}

/// The daemon is stopped, and killed; each time it starts again, the guests' traffic goes on without their doing anything.
fn through_restarts(pair: &mut Pair) -> Result {
    pair.ensure_reach("")?;
    pair.daemon.stop()?;
    pair.daemon.restart()?;
    pair.ensure_reach("")?;
    pair.daemon.kill();
    pair.daemon.restart()?;
    pair.ensure_reach("")?;
    pair.ensure_clean()
}
