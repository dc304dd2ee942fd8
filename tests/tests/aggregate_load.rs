//! Load over aggregates of each mode while flows are dealt anew, links go down and up, and members are removed and come back: what is lost, comes twice or
//! out of order, by iperf3's count of its datagrams and by our generator's of its own; and that TCP goes on. iperf3 runs in a Linux guest; at the far end are
//! Open vSwitch (LACP), our own other end (MANUAL) and a Linux bridge (LAN_MONITOR), each with a Linux host behind. Needs root, as uplinks do.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_tests::aggregate::{Cables, aggregate, pktgen, report, shown, wait_states};
use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::netns::{host, inside};
use avio_tests::ovs::Ovs;
use avio_tests::wire::run;
use avio_tests::{Failure, Result, uml};
use serde_json::Value;

fn main() -> ExitCode {
    case::main(&[
        Case::new("iperf_lacp_with_ovs", 150, iperf_lacp_with_ovs),
        Case::new("iperf_manual", 150, || inside(iperf_manual)),
        Case::new("iperf_lan_monitor", 150, iperf_lan_monitor),
        Case::new("members_leave_manual", 60, || members_leave_back_to_back("LB_FLOW")),
        Case::new("members_leave_hot_standby", 60, || members_leave_back_to_back("LB_HOT_STANDBY")),
        Case::new("members_leave_lan_monitor", 60, members_leave_lan_monitor),
    ])
}

/// The host at the far end, and the guest.
const HOST: &str = "192.0.2.100";
const GUEST: &str = "192.0.2.2";
/// Less than this over TCP is a fault, not a slow machine.
const SLOWEST_BPS: f64 = 5e6;
/// Eight flows of 250 datagrams a second each.
const UDP: &str = "-u -b 1M -l 500 -P 8";
/// Datagrams that a failing link may take along: an eighth of a second of all flows. (The median of failovers is another test's.)
const LOST_MAX: u64 = 250;
/// Those that a leaving member may: what its ring and its wire hold.
const LEFT_MAX: u64 = 20;
/// iperf3's direction from the guest to the host: through our distribution.
const OUTWARDS: &str = "-R";
/// Cables of the aggregate: as many as leave two when one member leaves.
const MEMBERS: usize = 3;
/// A host with several devices on one wire answers with any of them for any of its addresses (ARP), unless it is told: and the one that it answers with may be
/// a cable's end.
const OWN_ADDRESSES_ONLY: &str = "echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore";
/// How long a link or a member is away.
const AWAY: Duration = Duration::from_millis(500);

/// A guest on `vs`, whose uplink is `lan900`, and a host behind its far end.
struct Rig {
    daemon: Daemon,
    guest: LinuxGuest,
    cables: Cables,
    /// States of the members when all is well, and how long they may take to be so again.
    well: [&'static str; MEMBERS],
    settles_s: u64,
    /// The same configuration, without a member.
    without: Without,
    /// Vswitches on the way.
    vswitches: &'static [&'static str],
}

/// Makes a configuration in which one of the cables is left out.
type Without = Box<dyn Fn(&Cables, usize) -> Config + Send + Sync>;

/// What became of iperf3's datagrams.
#[derive(Debug)]
struct Datagrams {
    #[expect(dead_code, reason = "shown")]
    all: u64,
    lost: u64,
    /// Those that came after a later one, or twice.
    late: u64,
    /// What the switch and the kernels count as dropped for want of room: nothing of it is a link's.
    without_room: u64,
}

impl Rig {
    fn new(
        daemon: Daemon,
        cables: Cables,
        well: [&'static str; MEMBERS],
        settles_s: u64,
        without: impl Fn(&Cables, usize) -> Config + Send + Sync + 'static,
    ) -> Result<Rig> {
        wait_states(&daemon, "lan900", &well, settles_s)?;
        let mut guest = uml::start("uml-1", &daemon.socket(0))?;
        if guest.mac()? != mac_of(1) {
            guest.set_mac(&mac_of(1))?;
        }
        guest.set_address(&format!("{GUEST}/24"))?;
        guest.ping_until_answered(HOST, 15)?;
        guest.serve_iperf()?;
        Ok(Rig { daemon, guest, cables, well, settles_s, without: Box::new(without), vswitches: &["vs"] })
    }

    /// A command of the host's at the far end.
    fn far(&self, line: &str) -> Result<String> {
        match &self.cables.namespace {
            Some(namespace) => run("ip", &["netns", "exec", namespace, "sh", "-c", line]),
            None => host(line),
        }
    }

    /// iperf3's client at the far end with `options`, while `what` happens; gives its report.
    fn during(&self, options: &str, what: impl FnOnce(&Rig) -> Result) -> Result<Value> {
        let line = format!("timeout 25 iperf3 -c {GUEST} -J {options} || true");
        let text = std::thread::scope(|scope| {
            let client = scope.spawn(|| self.far(&line));
            // The flows are there.
            sleep(Duration::from_millis(700));
            let happened = what(self);
            let text = client.join().map_err(|_| Failure::new("iperf3's thread panicked"))?;
            happened.and(text)
        })?;
        let report: Value = serde_json::from_str(&text)
            .map_err(|e| Failure::new(format!("iperf3 {options}: {e} in {text}")))?;
        ensure(report["error"].is_null(), || format!("iperf3 {options}: {text}"))?;
        Ok(report)
    }

    /// What was dropped so far for want of room: in a ring, which the switch counts, or in a socket whose program is too slow, which the kernels do
    /// (RFC 4113: udpInErrors).
    fn without_room(&mut self) -> Result<u64> {
        let snmp = [self.guest.run("cat /proc/net/snmp")?, self.far("cat /proc/net/snmp")?];
        let mut sum: u64 = snmp.iter().map(|text| too_slow(text)).sum();
        for name in self.vswitches {
            sum += self.daemon.vswitch(name)?.wire_without_room();
        }
        Ok(sum + self.daemon.ports_without_room()?)
    }

    /// Eight flows for so many seconds in iperf3's `direction` while `what` happens.
    fn datagrams(
        &mut self,
        seconds: u64,
        direction: &str,
        what: impl FnOnce(&Rig) -> Result,
    ) -> Result<Datagrams> {
        let before = self.without_room()?;
        let report = self.during(&format!("{UDP} -t {seconds} {direction}"), what)?;
        let end = &report["end"];
        let of = |name: &str| end["sum"][name].as_u64();
        let (Some(all), Some(lost)) = (of("packets"), of("lost_packets")) else {
            return Err(Failure::new(format!("iperf3 has no sums: {report}")));
        };
        let streams = end["streams"].as_array().into_iter().flatten();
        let late =
            streams.map(|stream| stream["udp"]["out_of_order"].as_u64().unwrap_or(u64::from(u32::MAX))).sum();
        let without_room = self.without_room()? - before;
        let expected = seconds * 2000;
        ensure(all > expected / 2, || format!("{all} datagrams instead of {expected}: {report}"))?;
        Ok(Datagrams { all, lost, late, without_room })
    }

    fn wait_well(&self) -> Result {
        wait_states(&self.daemon, "lan900", &self.well, self.settles_s).map(drop)
    }

    /// Pulls a cable, and plugs it.
    fn link_fails(&self, n: usize) -> Result {
        self.cables.plug(n, false)?;
        sleep(AWAY);
        self.cables.plug(n, true)?;
        self.wait_well()
    }

    /// Takes a member out of the configuration, and puts it back.
    fn member_leaves(&mut self, n: usize) -> Result<Datagrams> {
        let seconds = 2 + self.settles_s / 2;
        let (with, without) = (self.daemon.config.clone(), (self.without)(&self.cables, n));
        let folder = self.daemon.config_folder();
        self.datagrams(seconds, OUTWARDS, move |rig| {
            for (config, count) in [(without, MEMBERS - 1), (with, MEMBERS)] {
                config.write(&folder)?;
                let output = rig.daemon.avio(&["net", "--reload"])?;
                ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
                sleep(AWAY);
                let members = shown(&rig.daemon, "lan900")?["members"].as_array().map(Vec::len);
                ensure(members == Some(count), || format!("{members:?} members instead of {count}"))?;
            }
            rig.wait_well()
        })
    }

    /// All of it. `dealt`: flows can be dealt anew.
    fn test(mut self, dealt: bool) -> Result {
        for direction in [OUTWARDS, ""] {
            let which = if direction == OUTWARDS { "outwards" } else { "inwards" };
            if dealt {
                let dealt = self.datagrams(3, direction, |rig| {
                    for _ in 0..4 {
                        let output = rig.daemon.avio(&["apa", "rebalance", "lan900"])?;
                        ensure(output.status.success(), || "rebalance is refused".to_owned())?;
                        sleep(Duration::from_millis(300));
                    }
                    Ok(())
                })?;
                println!("{which}, dealt anew: {dealt:?}");
                ensure(dealt.late == 0 && dealt.lost <= dealt.without_room, || {
                    format!("{which}, dealt anew: {dealt:?}")
                })?;
            }
            for n in [0, 1] {
                let failed = self.datagrams(2 + self.settles_s / 2, direction, |rig| rig.link_fails(n))?;
                println!("{which}, link {n} fails and is back: {failed:?}");
                ensure(failed.late == 0 && failed.lost <= failed.without_room + LOST_MAX, || {
                    format!("{which}, link {n} fails: {failed:?}")
                })?;
            }
        }
        for n in [MEMBERS - 1, 0] {
            let left = self.member_leaves(n)?;
            println!("member {n} leaves and is back: {left:?}");
            ensure(left.late == 0 && left.lost <= left.without_room + LEFT_MAX, || {
                format!("member {n} leaves: {left:?}")
            })?;
        }
        for direction in [OUTWARDS, ""] {
            let report = self.during(&format!("-P 4 -t {} {direction}", 2 + self.settles_s / 2), |rig| {
                rig.link_fails(0)
            })?;
            let end = &report["end"];
            let bps = end["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0);
            let again = &end["sum_sent"]["retransmits"];
            println!(
                "TCP {direction}, link 0 fails and is back: {:.0} Mbit/s, {again} segments sent again",
                bps / 1e6
            );
            ensure(bps > SLOWEST_BPS, || format!("TCP {direction}: {end}"))?;
        }
        self.daemon.ensure_healthy()
    }
}

/// Datagrams that had reached their host and found its program too slow, by the text of `/proc/net/snmp`.
fn too_slow(snmp: &str) -> u64 {
    let mut udp = snmp.lines().filter(|line| line.starts_with("Udp:")).map(str::split_whitespace);
    let (Some(names), Some(values)) = (udp.next(), udp.next()) else { return 0 };
    let mut columns = names.zip(values);
    columns.find(|(name, _)| *name == "RcvbufErrors").and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// A guest on `vs` with this aggregate of all cables, of which one may be left out.
fn config(lines: &str) -> impl Fn(&Cables, Option<usize>) -> Config + Send + Sync + use<> {
    let lines = lines.to_owned();
    move |cables, left_out| {
        let members: Vec<String> = (0..MEMBERS)
            .filter(|n| Some(*n) != left_out)
            .map(|n| format!("\"{}\"", cables.near(n)))
            .collect();
        // Where one carries all, the first is the best.
        let best = format!("[[aggregate.member]]\nname = \"{}\"\npriority = 9", cables.near(0));
        let lines = if left_out == Some(0) { lines.clone() } else { format!("{lines}\n{best}") };
        let vswitch = aggregate("lan900", &members.join(", "), &lines);
        Config::default().vswitch("vs", &vswitch).guest("g1", "vs", 1, "")
    }
}

/// Runs `ip` once the device that it names is there: another program makes it.
fn ip_soon(words: &str) -> Result {
    let words: Vec<&str> = words.split(' ').collect();
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match run("ip", &words) {
            Err(_) if Instant::now() < end => sleep(Duration::from_millis(50)),
            outcome => return outcome.map(drop),
        }
    }
}

fn iperf_lacp_with_ovs() -> Result {
    let cables = Cables::new(MEMBERS, true)?;
    let _ovs = Ovs::start(&cables, MEMBERS)?;
    let namespace = cables.namespace.clone().unwrap_or_default();
    run("ip", &["netns", "exec", &namespace, "sh", "-c", OWN_ADDRESSES_ONLY])?;
    ip_soon(&format!("-n {namespace} addr add {HOST}/24 dev br0"))?;
    ip_soon(&format!("-n {namespace} link set br0 up"))?;
    // An address of its own: with that of the member that leaves, the aggregate would be another LACP system, and begin anew.
    let lines =
        "mode = \"LACP_AUTO\"\ntimeout = \"fast\"\nbalance = \"LB_FLOW\"\nmac = \"02:00:00:00:09:00\"";
    let config = config(lines);
    let daemon = Daemon::start(config(&cables, None))?;
    Rig::new(daemon, cables, ["Active"; MEMBERS], 10, move |cables, n| config(cables, Some(n)))?.test(true)
}

fn iperf_manual() -> Result {
    let cables = Cables::new(MEMBERS, false)?;
    host(OWN_ADDRESSES_ONLY)?;
    let near = config("mode = \"MANUAL\"\nbalance = \"LB_FLOW\"");
    let far = |cables: &Cables| {
        let members = cables.members(true, MEMBERS);
        format!(
            "host_port = true\n{}",
            aggregate("lan901", &members, "mode = \"MANUAL\"\nbalance = \"LB_FLOW\"")
        )
    };
    let daemon = Daemon::start(near(&cables, None).vswitch("vs_far", &far(&cables)))?;
    ip_soon(&format!("addr add {HOST}/24 dev vs_far"))?;
    ip_soon("link set vs_far up")?;
    let without = move |cables: &Cables, n| near(cables, Some(n)).vswitch("vs_far", &far(cables));
    let rig = Rig::new(daemon, cables, ["Active"; MEMBERS], 5, without)?;
    Rig { vswitches: &["vs", "vs_far"], ..rig }.test(true)
}

/// A bridge `sw0` of the far ends of all cables, in their namespace, up: the members hear each other.
fn bridge(cables: &Cables) -> Result {
    let namespace = cables.namespace.clone().unwrap_or_default();
    let ip = |words: &str| -> Result {
        let words: Vec<&str> = ["-n", &namespace].into_iter().chain(words.split(' ')).collect();
        run("ip", &words).map(drop)
    };
    ip("link add name sw0 type bridge")?;
    for n in 0..cables.count {
        // A veth pair has no wire on which a checksum that is left to the device would be filled in.
        run("ip", &["netns", "exec", &namespace, "ethtool", "-K", &cables.far(n), "tx", "off"])?;
        ip(&format!("link set {} master sw0", cables.far(n)))?;
    }
    ip(&format!("addr add {HOST}/24 dev sw0"))?;
    ip("link set sw0 up")
}

const LAN_MONITOR: &str = "mode = \"LAN_MONITOR\"\npoll_interval_ms = 500";

fn iperf_lan_monitor() -> Result {
    let cables = Cables::new(MEMBERS, true)?;
    bridge(&cables)?;
    let config = config(LAN_MONITOR);
    let daemon = Daemon::start(config(&cables, None))?;
    Rig::new(daemon, cables, ["Active", "Ready", "Ready"], 5, move |cables, n| config(cables, Some(n)))?
        .test(false)
}

/// Frames a second of the generator's.
const RATE: u32 = 10_000;

/// Two aggregates, cable by cable.
fn members_leave_back_to_back(balance: &str) -> Result {
    let cables = Cables::new(MEMBERS, false)?;
    let lines = format!("mode = \"MANUAL\"\nbalance = \"{balance}\"");
    let best = format!("{lines}\n[[aggregate.member]]\nname = \"{}\"\npriority = 9", cables.far(0));
    let far = aggregate("lan901", &cables.members(true, MEMBERS), &best);
    let well = if balance == "LB_HOT_STANDBY" { ["Active", "Ready", "Ready"] } else { ["Active"; MEMBERS] };
    members_leave(&cables, config(&lines), &far, well)
}

/// An aggregate on a bridge, and a single uplink on one more port of it.
fn members_leave_lan_monitor() -> Result {
    let cables = Cables::new(MEMBERS + 1, true)?;
    bridge(&cables)?;
    let far = format!("uplink = \"{}\"\n", cables.near(MEMBERS));
    members_leave(&cables, config(LAN_MONITOR), &far, ["Active", "Ready", "Ready"])
}

/// Members leave the configuration and come back while a generator counts its own frames from a guest on an aggregate to one on `far`.
fn members_leave(
    cables: &Cables,
    near: impl Fn(&Cables, Option<usize>) -> Config,
    far: &str,
    well: [&str; MEMBERS],
) -> Result {
    let both = |left_out| near(cables, left_out).vswitch("vs_far", far).guest("g2", "vs_far", 2, "");
    let mut daemon = Daemon::start(both(None))?;
    wait_states(&daemon, "lan900", &well, 10)?;
    // Both ends know where the other is.
    report(pktgen(&daemon, 0.5, 64, RATE)?, 20)?;
    let without_room = |daemon: &Daemon| -> Result<u64> {
        let switch = daemon.vswitch("vs")?.without_room() + daemon.vswitch("vs_far")?.without_room();
        Ok(switch + cables.dropped()?)
    };
    for n in [MEMBERS - 1, 0] {
        let before = without_room(&daemon)?;
        let load = pktgen(&daemon, 3.0, 64, RATE)?;
        sleep(Duration::from_millis(900));
        for left_out in [Some(n), None] {
            both(left_out).write(&daemon.config_folder())?;
            let output = daemon.avio(&["net", "--reload"])?;
            ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
            sleep(AWAY);
        }
        let report = report(load, 20)?;
        let no_room = without_room(&daemon)? - before;
        println!(
            "member {n} leaves and is back: {} sent, {} lost, {no_room} for want of room",
            report["sent"], report["lost"]
        );
        for never in ["duplicated", "reordered", "corrupt"] {
            ensure(report[never] == 0, || format!("{never}: {report}"))?;
        }
        ensure(report["lost"].as_u64() <= Some(no_room + 5 * LEFT_MAX), || {
            format!("{no_room} for want of room: {report}")
        })?;
        wait_states(&daemon, "lan900", &well, 10)?;
    }
    daemon.ensure_healthy()
}
