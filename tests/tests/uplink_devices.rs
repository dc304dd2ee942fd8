//! The devices that uplinks are made of: those that are lost and come back, rings that the kernel does not serve any more, and what is refused.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use avio_tests::aggregate::{Cables, aggregate, wait_states};
use avio_tests::case::{self, Case};
use avio_tests::config::Config;
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::{ensure, eventually};
use avio_tests::uplink::{
    self, arrived, config, device, frames_out, frames_out_with, wait_arrived, wait_device, wait_key,
};
use avio_tests::wire::{Wire, run};
use avio_tests::{Failure, Result, scratch};
use avio_vswitch::port::xdp::{AttachMode, Attached};

/// For cases that wait for a watchdog, which takes some four seconds.
const WATCHED_S: u64 = 60;
/// For cases that take a second or two.
const SHORT_S: u64 = 40;
/// Somebody on the wire.
const NEIGHBOUR: &str = "02:00:00:00:00:63";

fn main() -> ExitCode {
    case::main(&[
        Case::new("stuck_fill_ring_steps_down", WATCHED_S, stuck_fill_ring_steps_down),
        Case::new("stuck_transmit_ring_steps_down", WATCHED_S, stuck_transmit_ring_steps_down),
        Case::new("refused_frames_are_counted", SHORT_S, refused_frames_are_counted),
        Case::new("driver_refusals_are_counted", SHORT_S, driver_refusals_are_counted),
        Case::new("lost_device_comes_back", WATCHED_S, lost_device_comes_back).data_path(),
        Case::new("lost_member_comes_back", WATCHED_S, lost_member_comes_back),
        Case::new("renamed_device_is_as_before", SHORT_S, renamed_device_is_as_before),
        Case::new("what_cannot_be_an_uplink", SHORT_S, what_cannot_be_an_uplink),
        Case::new("what_somebody_else_has", SHORT_S, what_somebody_else_has),
        Case::new("names_that_are_taken", SHORT_S, names_that_are_taken),
    ])
}

/// No kernel here loses a fill ring, so the daemon is told that one did, twice: each time the device is opened anew a step lower, the log has one line, the
/// operator sees why, and frames flow. A device that is set up anew begins at the top.
fn stuck_fill_ring_steps_down() -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    let mut daemon = Daemon::start(config(&wire.near, "", ""))?;
    daemon.stop()?;
    daemon.restart_with(&[("AVIO_TEST_PANIC", "uplink::fill_stuck:1,uplink::fill_stuck:3")], 5)?;
    let load = frames_out(&daemon, NEIGHBOUR, 50, 2000)?;
    for (from, to) in [("copy", "generic"), ("generic", "packet")] {
        let line = format!("the fill ring of queue 0 was stuck; opened anew, a step down from {from}");
        daemon.console()?.wait_for(&line, 10)?;
        wait_key(&daemon, "access", to)?;
        let remarks = device(&daemon, "remarks")?;
        let said = remarks.as_array().is_some_and(|all| {
            all.iter().any(|one| one.as_str().is_some_and(|one| one.contains("stepped down from")))
        });
        ensure(said, || format!("the operator is not told: {remarks}"))?;
        let before = arrived(&wire)?;
        wait_arrived(&wire, before, 200)?;
    }
    drop(load);
    run("ip", &["link", "set", &wire.near, "down"])?;
    wait_device(&daemon, "Down")?;
    run("ip", &["link", "set", &wire.near, "up"])?;
    wait_key(&daemon, "access", uplink::best())?;
    let output = daemon.console()?.output();
    ensure(output.matches("was stuck").count() == 2, || format!("other lines: {output}"))?;
    daemon.ensure_healthy()
}

/// A device whose frames lie in a queue of the host for ever: the kernel takes none any more from the transmit ring. While they leave, however slowly,
/// the device is left alone.
fn stuck_transmit_ring_steps_down() -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    let near = wire.near.as_str();
    let top = format!("{near}m");
    run("ip", &["link", "add", "link", near, "name", &top, "type", "macvlan", "mode", "passthru"])?;
    run("ip", &["link", "set", &top, "up"])?;
    let queue = |how: &str, rate: &str| {
        let parts =
            ["qdisc", how, "dev", near, "root", "tbf", "rate", rate, "burst", "2000", "limit", "100mb"];
        run("tc", &parts).map(drop)
    };
    queue("add", "100kbit")?;
    let mut daemon = Daemon::start(config(&top, "", ""))?;
    daemon.stop()?;
    // A device that copies has the ring only where bursts do not go past it.
    daemon.restart_with(&[("AVIO_DISABLE", "xdp_burst")], 10)?;
    wait_key(&daemon, "access", "generic")?;
    // Far more than the queue lets out: the transmit ring is full all the time.
    let before = arrived(&wire)?;
    let load = frames_out(&daemon, NEIGHBOUR, 40, 3000)?;
    std::thread::sleep(Duration::from_secs(7));
    wait_arrived(&wire, before, 100)?;
    let output = daemon.console()?.output();
    ensure(!output.contains("was stuck"), || format!("slow is not stuck: {output}"))?;
    queue("change", "8bit")?;
    let line = "the transmit ring of queue 0 was stuck; opened anew, a step down from generic";
    daemon.console()?.wait_for(line, 15)?;
    wait_key(&daemon, "access", "packet")?;
    run("tc", &["qdisc", "del", "dev", near, "root"])?;
    let before = arrived(&wire)?;
    wait_arrived(&wire, before, 1000)?;
    drop(load);
    daemon.ensure_healthy()
}

/// A device whose queueing discipline is full refuses frames of a burst: each that the guest sent has either arrived or is counted as dropped at the wire.
fn refused_frames_are_counted() -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    let near = wire.near.as_str();
    // Nobody else on the wire.
    run("sysctl", &["-q", "-w", &format!("net.ipv6.conf.{near}.disable_ipv6=1")])?;
    let parts = ["root", "tbf", "rate", "1mbit", "burst", "2000", "limit", "20000"];
    run("tc", &[&["qdisc", "add", "dev", near][..], &parts].concat())?;
    let daemon = uplink::daemon(&wire, "", "")?;
    adds_up(&wire, daemon, &[], (5000, 1000))
}

/// The same where frames leave without packets and the driver takes none of a length: the far end's MTU is shorter than they are.
fn driver_refusals_are_counted() -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    run("sysctl", &["-q", "-w", &format!("net.ipv6.conf.{}.disable_ipv6=1", wire.near)])?;
    wire.far(&["ethtool", "-K", &wire.far, "gro", "on"])?;
    let daemon = uplink::daemon(&wire, "", "")?;
    wire.far_ip(&["link", "set", &wire.far, "mtu", "600"])?;
    adds_up(&wire, daemon, &["--pattern", "imix"], (1000, 200))
}

/// Each of the frames of a guest has either arrived or is counted as refused; `more_than`: so many are sent and refused.
fn adds_up(wire: &Wire, mut daemon: Daemon, options: &[&str], more_than: (u64, u64)) -> Result {
    let before = arrived(wire)?;
    let mut load = frames_out_with(&daemon, NEIGHBOUR, 2, 5000, options)?;
    load.wait_end(20)?;
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let vswitch = daemon.vswitch("vs")?;
        let sent = vswitch.port(1)?.counters.outbound_unicast_wire;
        let came = arrived(wire)? - before;
        let refused = vswitch.without_room();
        if sent > more_than.0 && came > 100 && refused > more_than.1 && sent == came + refused {
            return daemon.ensure_healthy();
        }
        ensure(Instant::now() < end, || {
            format!("{sent} sent, {came} arrived, {refused} refused: {vswitch:?}")
        })?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The ways to lose a device without deleting it, and back; and what the log says of each.
fn lose_and_find(near: &str, elsewhere: &str) -> [(Vec<String>, Vec<String>, String); 2] {
    let words = |line: String| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let here = std::process::id();
    [
        (
            words(format!("link set {near} netns {elsewhere}")),
            words(format!("-n {elsewhere} link set {near} netns {here}")),
            format!("{near} is gone; waiting until it comes back"),
        ),
        (
            words(format!("link set {near} name {near}r")),
            words(format!("link set {near}r name {near}")),
            format!("{near} is called {near}r now; waiting until a device is called {near}"),
        ),
    ]
}

fn ip(words: &[String]) -> Result {
    run("ip", &words.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
}

/// Moved to another namespace and back, renamed and back, deleted and made again: a line when it goes, and frames when it is there again.
fn lost_device_comes_back() -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    let near = wire.near.as_str();
    let mut daemon = uplink::daemon(&wire, "", "")?;
    let _load = frames_out(&daemon, NEIGHBOUR, 50, 2000)?;
    daemon.wait_active(1)?;
    let flows = |daemon: &Daemon| -> Result {
        wait_key(daemon, "access", uplink::best())?;
        wait_device(daemon, "Up")?;
        let before = arrived(&wire)?;
        wait_arrived(&wire, before, 200)
    };
    flows(&daemon)?;
    let mut lines = Vec::new();
    for (lose, find, line) in lose_and_find(near, &wire.namespace) {
        ip(&lose)?;
        daemon.console()?.wait_for(&line, 5)?;
        wait_device(&daemon, "Missing")?;
        ip(&find)?;
        run("ip", &["link", "set", near, "up"])?;
        flows(&daemon).map_err(|e| e.while_doing(&line))?;
        lines.push(line);
    }
    // Another device of the same name, without a pause in which it is missing for long.
    wire.unplug()?;
    wire.plug()?;
    flows(&daemon)?;
    let output = daemon.console()?.output();
    for line in lines {
        let count = output.lines().filter(|one| one.contains(&line)).count();
        let deleted = usize::from(line.contains("is gone"));
        ensure((1..=1 + deleted).contains(&count), || format!("{count} times: {line}: {output}"))?;
    }
    daemon.ensure_healthy()
}

/// The same with a member of an aggregate, also deleted and made again: its place is kept, the other one carries the frames meanwhile.
fn lost_member_comes_back() -> Result {
    let cables = Cables::new(2, true)?;
    let namespace = cables.namespace.clone().unwrap_or_default();
    let lines = aggregate("lan900", &cables.members(false, 2), "mode = \"MANUAL\"");
    let mut daemon = Daemon::start(Config::default().vswitch("vs", &lines).guest("g1", "vs", 1, ""))?;
    wait_states(&daemon, "lan900", &["Active", "Active"], 10)?;
    let _load = frames_out(&daemon, NEIGHBOUR, 50, 2000)?;
    daemon.wait_active(1)?;
    // What the far ends that there are have received.
    let carried = || -> Result<u64> {
        let far = |n| format!("/sys/class/net/{}/statistics/rx_packets", cables.far(n));
        let line = format!("cat {} {} 2>/dev/null || true", far(0), far(1));
        let text = run("ip", &["netns", "exec", &namespace, "sh", "-c", &line])?;
        text.lines().try_fold(0, |sum, count| Ok(sum + count.parse::<u64>()?))
    };
    let flows = || -> Result {
        let (before, end) = (carried()?, Instant::now() + Duration::from_secs(10));
        while carried()? < before + 200 {
            ensure(Instant::now() < end, || "no frames through the aggregate".to_owned())?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    flows()?;
    for n in [0, 1] {
        let near = cables.near(n);
        let is_lost = |daemon: &mut Daemon, line: &str| -> Result {
            // That it is lost, and what that is to the aggregate; either line may be first.
            let link = format!("lan900: member {near} is down");
            let both =
                |output: &str| (output.contains(line) && output.contains(&link)).then_some(output.len());
            daemon.console()?.wait_until(line, 5, both)?;
            let states = if n == 0 { ["Down", "Active"] } else { ["Active", "Down"] };
            wait_states(daemon, "lan900", &states, 5)?;
            flows().map_err(|e| e.while_doing(line))
        };
        let is_found = |daemon: &Daemon, line: &str| -> Result {
            wait_states(daemon, "lan900", &["Active", "Active"], 10)?;
            flows().map_err(|e| e.while_doing(line))
        };
        for (lose, find, line) in lose_and_find(&near, &namespace) {
            ip(&lose)?;
            is_lost(&mut daemon, &line)?;
            ip(&find)?;
            run("ip", &["link", "set", &near, "up"])?;
            is_found(&daemon, &line)?;
        }
        // Another device of the same name, with another address, takes the place of one that was deleted.
        run("ip", &["link", "del", &near])?;
        let line = format!("{near} is gone; waiting until it comes back");
        is_lost(&mut daemon, &line)?;
        cables.make(n)?;
        is_found(&daemon, &line)?;
    }
    daemon.ensure_healthy()
}

/// What was switched off comes back under another name, too.
fn renamed_device_is_as_before() -> Result {
    let mut wire = Wire::new("192.0.2.2/24")?;
    run("ethtool", &["-K", &wire.near, "rxvlan", "on"])?;
    let before = wire.state()?;
    let mut daemon = uplink::daemon(&wire, "", "")?;
    ensure(wire.state()?.contains("rx-vlan-offload: off"), || "tags are taken out".to_owned())?;
    let (old, new) = (wire.near.clone(), format!("{}r", wire.near));
    run("ip", &["link", "set", &old, "name", &new])?;
    wait_device(&daemon, "Missing")?;
    wire.near.clone_from(&new);
    let end = Instant::now() + Duration::from_secs(5);
    // `altname`s apart, its name is all that has changed.
    while wire.state()?.replace(&new, &old) != before {
        ensure(Instant::now() < end, || {
            format!("before:\n{before}\nafter:\n{}", wire.state().unwrap_or_default())
        })?;
        std::thread::sleep(Duration::from_millis(50));
    }
    daemon.stop()
}

/// `avio-vswitchd --check` with this uplink and a name for it: one line.
fn refused(vswitch: &str, environment: &[(&str, &str)]) -> Result<String> {
    let folder = scratch::folder().join("refused");
    Config::default().vswitch("vs", vswitch).write(&folder)?;
    let mut command = Command::new(program("avio-vswitchd")?);
    command.arg("--check").arg("--config").arg(&folder).envs(environment.iter().copied());
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure(output.status.code() == Some(1) && text.lines().count() == 1, || {
        format!("{vswitch}: {}: {text}", output.status)
    })?;
    Ok(text)
}

/// A device that may be a member of an aggregate; deleted with the case.
struct Good(String);

impl Good {
    fn new(near: &str) -> Result<Good> {
        let (name, peer) = (format!("{near}g"), format!("{near}h"));
        run("ip", &["link", "add", &name, "type", "veth", "peer", "name", &peer])?;
        Ok(Good(name))
    }

    /// An aggregate of it and `bad`.
    fn with(&self, bad: &str) -> String {
        aggregate("lan900", &format!("\"{bad}\", \"{}\"", self.0), "mode = \"MANUAL\"")
    }
}

impl Drop for Good {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).output();
    }
}

/// `whole` refuses an aggregate in the words of `alone`, which refuses its one bad member.
fn ensure_refused_whole(alone: &str, whole: &str) -> Result {
    let words = alone.split_once("uplink: ").map(|(_, words)| format!("aggregate `lan900`: {words}"));
    ensure(words.is_some_and(|words| whole.contains(words.trim())), || format!("{alone}{whole}"))
}

/// By `--check` and by the start: one line with the name of the device and the way out. An aggregate is refused whole.
fn what_cannot_be_an_uplink() -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    let near = wire.near.as_str();
    let (bridge, tap, slow) = (format!("{near}b"), format!("{near}t"), format!("{near}s"));
    let good = Good::new(near)?;
    run("ip", &["link", "add", &bridge, "type", "bridge"])?;
    run("ip", &["tuntap", "add", "dev", &tap, "mode", "tap"])?;
    let made = || -> Result {
        run("ethtool", &["-s", &tap, "speed", "100", "duplex", "full"])?;
        run("ip", &["link", "add", "link", &tap, "name", &slow, "type", "macvlan"]).map(drop)
    };
    let outcome = made().and_then(|()| {
        let uplink = |name: &str| format!("uplink = \"{name}\"");
        let hook = |what: &'static str| vec![("AVIO_TEST_PANIC", what)];
        let cases = [
            (uplink("nosuch0"), vec![], vec!["`nosuch0`", "`ip link` lists"]),
            (uplink("lo"), vec![], vec!["`lo` is no Ethernet device", "name one that is"]),
            (
                uplink(&bridge),
                vec![],
                vec![&bridge, "has driver bridge", "name the device behind the bridge"],
            ),
            (uplink(&tap), vec![], vec![&tap, "`allow_slow = true`"]),
            (uplink(&slow), vec![], vec![&slow, "has 100 Mbit/s", "`allow_slow = true`"]),
            (
                uplink(near),
                hook("uplink::vlan_fixed:1"),
                vec![near, "takes VLAN tags out", "`access = \"packet\"`"],
            ),
            (
                uplink(near),
                hook("uplink::lro_fixed:1"),
                vec![near, "large-receive-offload", "use another device"],
            ),
            (
                aggregate("lan900", &format!("\"{near}\", \"nosuch1\""), "mode = \"MANUAL\""),
                vec![],
                vec!["aggregate `lan900`", "`nosuch1`"],
            ),
            (
                aggregate("lan900", &format!("\"{near}\", \"{near}\""), "mode = \"MANUAL\""),
                vec![],
                vec![near, "is named twice"],
            ),
            (
                aggregate("lan900", &format!("\"{near}\", \"{tap}\""), "mode = \"FEC_AUTO\""),
                vec![],
                vec!["FEC_AUTO (Cisco PAgP) is a proprietary protocol", "write LACP_AUTO, or MANUAL"],
            ),
            (
                aggregate("lan900", &format!("\"{near}\", \"{slow}\""), "mode = \"LACP_AUTO\""),
                vec![],
                vec!["aggregate `lan900`", &slow, "100 Mbit/s"],
            ),
        ];
        for (vswitch, environment, wanted) in cases {
            let text = refused(&vswitch, &environment)?;
            for part in wanted {
                ensure(text.contains(part), || format!("{vswitch}: no '{part}' in: {text}"))?;
            }
            // The same device beside one that may be a member: the whole aggregate is refused, with the same words.
            if let Some(name) = vswitch.strip_prefix("uplink = ").filter(|rest| !rest.contains('\n')) {
                ensure_refused_whole(&text, &refused(&good.with(name.trim_matches('"')), &environment)?)?;
            }
            // The daemon says the same and does not start; with a hook, `start` has none.
            if environment.is_empty() {
                let Err(start) = Daemon::start(Config::default().vswitch("vs", &vswitch)) else {
                    return Err(Failure::new(format!("taken: {vswitch}")));
                };
                let what = text.trim().trim_start_matches("avio-vswitchd: ");
                // Where a file has the fault, its folder is another one.
                let what = what.rsplit("vswitches.toml").next().unwrap_or(what);
                ensure(start.to_string().contains(what), || format!("'{what}' is not in: {start}"))?;
            }
        }
        // What is asked for is taken.
        let allowed = format!("uplink = \"{slow}\"\n[[uplink]]\nname = \"{slow}\"\nallow_slow = true");
        Daemon::start(Config::default().vswitch("vs", &allowed))?.stop()
    });
    run("ip", &["link", "del", &tap])?;
    run("ip", &["link", "del", &bridge])?;
    outcome
}

/// A device that another daemon has, that belongs to a bridge, or that has another program. Nobody's: taken.
fn what_somebody_else_has() -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    let near = wire.near.as_str();
    let good = Good::new(near)?;
    for access in ["auto", "packet"] {
        let uplink = format!("access = \"{access}\"");
        let mut first = uplink::daemon(&wire, &uplink, "")?;
        let second = Daemon::start_in(scratch::folder().join("second"), config(near, &uplink, ""));
        let Err(why) = second else { return Err(Failure::new("two daemons have it")) };
        let wanted = format!("`{near}` is an uplink of another avio-vswitchd; stop that one");
        ensure(why.to_string().contains(&wanted), || format!("{access}: {why}"))?;
        let third = Daemon::start_in(
            scratch::folder().join("third"),
            Config::default().vswitch("vs", &good.with(near)),
        );
        let Err(why) = third else { return Err(Failure::new("an aggregate has it, too")) };
        let whole = format!("aggregate `lan900`: {wanted}");
        ensure(why.to_string().contains(&whole), || format!("{access}: {why}"))?;
        // Beside the daemon that has it, its files are right.
        let program = program("avio-vswitchd")?;
        let checked =
            Command::new(program).arg("--check").arg("--config").arg(first.config_folder()).output()?;
        ensure(checked.status.success(), || String::from_utf8_lossy(&checked.stderr).into_owned())?;
        // And the first one has not noticed.
        wait_device(&first, "Up")?;
        first.stop()?;
    }
    // The mark in another user's hands keeps nobody away.
    let index = std::fs::read_to_string(format!("/sys/class/net/{near}/ifindex"))?;
    let mark = format!("ABSTRACT-LISTEN:avio-uplink-{},fork", index.trim());
    let mut squatter = command("setpriv");
    squatter.args(["--reuid=65534", "--regid=65534", "--clear-groups", "socat", &mark, "EXEC:true"]);
    let squatter = Console::spawn("squatter", &mut squatter)?;
    let name = format!("@avio-uplink-{}", index.trim());
    let listens = || std::fs::read_to_string("/proc/net/unix").is_ok_and(|sockets| sockets.contains(&name));
    eventually("socat listens", 5, listens)?;
    let mut beside = uplink::daemon(&wire, "", "")?;
    let output = beside.console()?.output();
    ensure(output.contains("user 65534 has the mark"), || output)?;
    beside.stop()?;
    drop(squatter);
    // A killed daemon leaves none.
    let mut killed = uplink::daemon(&wire, "", "")?;
    killed.kill();
    let mut next = uplink::daemon(&wire, "", "")?;
    let output = next.console()?.output();
    ensure(!output.contains("the mark"), || output)?;
    next.stop()?;
    let bridge = format!("{near}b");
    run("ip", &["link", "add", &bridge, "type", "bridge"])?;
    let enslaved = run("ip", &["link", "set", near, "master", &bridge])
        .and_then(|_| refused(&format!("uplink = \"{near}\""), &[]))
        .and_then(|alone| Ok((alone, refused(&good.with(near), &[])?)));
    run("ip", &["link", "del", &bridge])?;
    let (text, whole) = enslaved?;
    ensure_refused_whole(&text, &whole)?;
    ensure(text.contains(&format!("`{near}` belongs to `{bridge}`; take it out")), || text.clone())?;
    // A program that this process attaches.
    let index = std::fs::read_to_string(format!("/sys/class/net/{near}/ifindex"))?.trim().parse();
    let index = index.map_err(|e| Failure::new(format!("{near}: {e}")))?;
    let other = Attached::new(index, AttachMode::Native, false).map_err(|e| Failure::new(e.to_string()))?;
    let text = refused(&format!("uplink = \"{near}\""), &[])?;
    for part in [near, "has an XDP program of somebody else", "xdp off", "`access = \"packet\"`"] {
        ensure(text.contains(part), || format!("no '{part}' in: {text}"))?;
    }
    ensure_refused_whole(&text, &refused(&good.with(near), &[])?)?;
    ensure(Daemon::start(config(near, "", "")).is_err(), || "taken beside another program".to_owned())?;
    uplink::daemon(&wire, "access = \"packet\"", "")?.stop()?;
    drop(other);
    uplink::daemon(&wire, "", "")?.stop()
}

/// A name that is another network device's already, for a host port or a `lan` port: one line, by `--check` and by a reload, which changes nothing.
fn names_that_are_taken() -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    let near = wire.near.as_str();
    let well = config(near, "", "");
    let host_port =
        Config::default().vswitch("vs", "").guest("g1", "vs", 1, "").vswitch(near, "host_port = true");
    let of_uplink = well.clone().vswitch(near, "host_port = true");
    let uplink = format!("uplink = \"{near}\"");
    let lan = Config::default().vswitch("vs", &uplink).lan("g1", "vs", 1, &format!("tap = \"{near}\""));
    let cases = [
        (
            host_port,
            format!(
                "host_port: the host port is called like the vswitch, and there is another network device `{near}`; rename"
            ),
        ),
        (of_uplink, "that name is the uplink of vswitch `vs`; rename the vswitch".to_owned()),
        (lan, format!("tap: `{near}` is the uplink of vswitch `vs`; give another name")),
    ];
    let mut daemon = uplink::daemon(&wire, "", "")?;
    for (config, wanted) in cases {
        config.write(&daemon.config_folder())?;
        let checked = Command::new(program("avio-vswitchd")?)
            .args(["--check", "--config"])
            .arg(daemon.config_folder())
            .output()?;
        let reloaded = daemon.avio(&["net", "--reload"])?;
        for output in [checked, reloaded] {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_refused = output.status.code() == Some(1) && text.lines().count() == 1;
            ensure(is_refused && text.contains(&wanted), || format!("{wanted}: {}: {text}", output.status))?;
        }
        wait_device(&daemon, "Up")?;
    }
    well.write(&daemon.config_folder())?;
    let reloaded = daemon.avio(&["net", "--reload"])?;
    ensure(reloaded.status.success(), || String::from_utf8_lossy(&reloaded.stderr).into_owned())?;
    daemon.ensure_healthy()
}
