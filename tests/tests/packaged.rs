//! The units as they are packaged, under systemd itself: PID 1 of a guest with Debian's kernel. All restrictions are in force together: capabilities, address
//! families, system calls, what may be written, no memory that is both written and executed.

use std::path::Path;
use std::process::ExitCode;

use avio_tests::case::{self, Case};
use avio_tests::daemon::program;
use avio_tests::failure::ensure;
use avio_tests::guest_image::{Extras, READY};
use avio_tests::linux_guest::LinuxGuest;
use avio_tests::qemu::{Machine, VLAN_MODULES};
use avio_tests::{Failure, Result, scratch};

/// For cases with an emulated guest, in seconds; they take about thirty.
const QEMU_S: u64 = 240;
/// How long the switch may take until a change is seen, in seconds.
const SETTLES_S: u64 = 30;
/// Frames that are to arrive.
const FRAMES: u32 = 100;
/// How long a unit may take to start in an emulated guest, in seconds.
const START_S: u64 = 60;

fn main() -> ExitCode {
    case::main(&[Case::new("switch_as_packaged", QEMU_S, switch_as_packaged)])
}

/// What the wires need: veth pairs whose far ends a bond and a bridge join.
const MODULES: &[&str] = &["tls", "bonding", "veth", "bridge", "tun", "tap", "macvlan", "macvtap"];

/// The guest's console as a unit: reads commands as init did.
const CONSOLE: &str = "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sh /console.sh\nStandardInput=tty\nStandardOutput=tty\nStandardError=tty\nTTYPath=/dev/ttyS0\n";
const CONSOLE_LOOP: &str = "stty -echo -onlcr\nexport PATH=/bin:/usr/bin:/usr/sbin:/sbin SYSTEMD_PAGER=cat SYSTEMD_COLORS=0\necho AVIO-GUEST-READY\nwhile read -r line; do eval \"$line\"; done\n";
const TARGET: &str = "[Unit]\nDefaultDependencies=no\nRequires=console.service\nAllowIsolate=yes\n";
const TARGETS: &[&str] = &["sysinit", "basic", "shutdown", "network-pre", "local-fs"];

const VSWITCHES: &str = r#"
[[vswitch]]
name = "vs_a"
uplink = "v0"
host_port = true
[[vswitch]]
name = "vs_b"
uplink = "lan900"
[[aggregate]]
name = "lan900"
mode = "LACP_AUTO"
timeout = "fast"
balance = "LB_FLOW"
members = ["v1", "v2"]
"#;

fn guest_file(name: &str, adaptor: &str, vswitch: &str, port: u16, more: &str) -> String {
    format!(
        "name = \"{name}\"\n[[network]]\nbus = 0\ndevice = 5\nadaptor = \"{adaptor}\"\nvswitch = \"{vswitch}\"\nport = {port}\nmac = \"1e:29:8c:88:00:0{port}\"\n{more}\n"
    )
}

fn extras() -> Result<Extras> {
    let mut extras = Extras::default();
    for name in ["avio-vswitchd", "avio", "avio-pktgen", "avio-stord", "avio-iogen"] {
        extras.programs.push((program(name)?, format!("usr/bin/{name}")));
    }
    // Programs have no other folders in a guest.
    extras.programs.push(("/usr/lib/systemd/systemd".into(), "usr/bin/systemd".to_owned()));
    extras.program("/usr/bin/systemctl");
    let folder = scratch::folder().join("files");
    std::fs::create_dir_all(&folder)?;
    let mut add = |place: &str, content: &str| -> Result {
        let path = folder.join(place.replace('/', "_"));
        std::fs::write(&path, content)?;
        extras.files.push((path, place.to_owned()));
        Ok(())
    };
    let units = "etc/systemd/system";
    for unit in ["avio-vswitchd", "avio-stord"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../systemd/{unit}.service"));
        add(&format!("{units}/{unit}.service"), &std::fs::read_to_string(path)?.replace("@PREFIX@", "/usr"))?;
    }
    // No journal here.
    add(
        &format!("{units}/avio-vswitchd.service.d/log.conf"),
        "[Service]\nStandardOutput=append:/switch.log\n",
    )?;
    add(&format!("{units}/console.service"), CONSOLE)?;
    add(&format!("{units}/console.target"), TARGET)?;
    add("console.sh", CONSOLE_LOOP)?;
    add("etc/passwd", "root:x:0:0:root:/:/bin/sh\nqemu:x:64:64::/:/bin/false\n")?;
    add("etc/group", "root:x:0:\nqemu:x:64:\n")?;
    add("etc/avio/vswitches.toml", VSWITCHES)?;
    let shared = "socket_group = \"qemu\"\nsocket_owner = \"qemu\"\nsocket_perm = \"0660\"";
    add("etc/avio/guests/g1.toml", &guest_file("g1", "avio_lan", "vs_a", 1, shared))?;
    add("etc/avio/guests/g2.toml", &guest_file("g2", "lan", "vs_a", 2, "socket_owner = \"qemu\""))?;
    add("etc/avio/guests/g3.toml", &guest_file("g3", "avio_lan", "vs_b", 3, ""))?;
    for target in TARGETS {
        let path = format!("/usr/lib/systemd/system/{target}.target");
        extras.files.push((path.clone().into(), path.trim_start_matches('/').to_owned()));
    }
    Ok(extras)
}

/// A guest whose PID 1 is systemd.
fn systemd_guest() -> Result<LinuxGuest> {
    let modules = [VLAN_MODULES, MODULES].concat();
    let mut machine = Machine::new("systemd", &modules);
    machine.memory_mib = 768;
    machine.extras = extras()?;
    let mut guest = machine.launch()?.wait()?;
    guest
        .console()
        .send("exec /usr/bin/systemd --system --unit=console.target --log-target=console --log-level=err --show-status=no")?;
    guest.console().wait_for(READY, START_S)?;
    Ok(guest)
}

/// Three wires; at their far ends a bond of two (LACP) and the third meet in a bridge.
const WIRES: &[&str] = &[
    "ip link del bond0; for i in 0 1 2; do ip link add v$i type veth; done; ip link add bond0 type bond",
    "echo 802.3ad > /sys/class/net/bond0/bonding/mode; echo fast > /sys/class/net/bond0/bonding/lacp_rate",
    "echo 100 > /sys/class/net/bond0/bonding/miimon; for i in 1 2; do ip link set veth$i master bond0; done",
    "ip link add br0 type bridge; for i in veth0 bond0; do ip link set $i master br0; done",
    "for i in v0 v1 v2 veth0 veth1 veth2 bond0 br0; do ip link set $i up; done",
];

/// Waits until `condition`, a command, holds in the guest.
fn until(guest: &mut LinuxGuest, condition: &str) -> Result {
    let (status, _) =
        guest.run_for(SETTLES_S + 30, &format!("for i in $(seq {SETTLES_S}); do {condition} && break; sleep 1; done >/dev/null; {condition} >/dev/null"))?;
    if status == 0 {
        return Ok(());
    }
    let (_, text) = guest.run_for(60, "tail -n 30 /switch.log; avio net -S vs_a -A -V; avio net -S vs_a -p 1 -A; bridge link; ip -s link show veth0; ip -s link show bond0; ps; avio apa -c lan900 -v")?;
    Err(Failure::new(format!("{text}\nstill not after {SETTLES_S} s: {condition}")))
}

/// Frames from the guest at the aggregate over the wires to the guest at the other uplink, and to the host port of that one.
fn ensure_flows(guest: &mut LinuxGuest, sent_by: &str) -> Result {
    until(guest, "avio net -S vs_a -V | grep -q 'Device State *: Up'")?;
    until(guest, "[ $(avio apa -c lan900 -v | grep -c '^  v[12] *Active') = 2 ]")?;
    for vswitch in ["vs_a", "vs_b"] {
        until(guest, &format!("avio net -S {vswitch} -V | grep -q 'Frames Sent By *: {sent_by}'"))?;
    }
    let pktgen = "avio-pktgen --quiet --duration 120";
    let socket = |name| format!("--socket /run/avio/guests/{name}/net-0-5.sock");
    guest.run("avio net -Z")?;
    let mut background = |role: &str| {
        guest.run(&format!("({pktgen} --role {role} >/dev/null 2>&1 & echo $! >>/generators)")).map(drop)
    };
    background(&format!("receive {} --guest-mac {}", socket("g1"), mac(1)))?;
    // An emulated guest is slow: what counts is that they arrive, not how soon.
    let to =
        |peer: &str| format!("transmit --rate 100 {} --guest-mac {} --peer-mac {peer}", socket("g3"), mac(3));
    background(&to(&mac(1)))?;
    let wire = "avio net -S vs_a -p 1 -A | sed -n 's/^Inbound Unicast Pkts (wire) *: //p'";
    until(guest, &format!("[ $({wire}) -ge {FRAMES} ]"))?;
    guest.run("kill $(tail -n 1 /generators)")?;
    guest.run(&format!(
        "({pktgen} --role {} >/dev/null 2>&1 & echo $! >>/generators)",
        to("$(cat /sys/class/net/vs_a/address)")
    ))?;
    until(guest, &format!("[ $(cat /sys/class/net/vs_a/statistics/rx_packets) -ge {FRAMES} ]"))?;
    guest.run("kill $(sed '2d' /generators); rm /generators").map(drop)
}

fn mac(port: u16) -> String {
    format!("1e:29:8c:88:00:0{port}")
}

/// What systemd says of the unit `avio-vswitchd`.
fn property(guest: &mut LinuxGuest, name: &str) -> Result<String> {
    let text = guest.run(&format!("systemctl show -P {name} avio-vswitchd"))?;
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

/// Everything that a switch does with its devices, in each way to send frames, with a reload, a death and an end.
fn switch_as_packaged() -> Result {
    let mut guest = systemd_guest()?;
    for line in WIRES {
        guest.run(line)?;
    }
    // Of `Type=notify`: it has started when the daemon says so.
    guest.run("systemctl start avio-vswitchd")?;
    let pid = property(&mut guest, "MainPID")?;
    let status = guest.run(&format!("grep -E '^(CapBnd|CapEff|NoNewPrivs|Seccomp):' /proc/{pid}/status"))?;
    println!("{status}");
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, NET_ADMIN 12, NET_RAW 13, SYS_ADMIN 21, PERFMON 38, BPF 39.
    for wanted in ["CapBnd:\t000000c00020300b", "CapEff:\t000000c00020300b", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        ensure(status.contains(wanted), || format!("no '{wanted}' in {status}"))?;
    }
    ensure_flows(&mut guest, "bursts of a program")?;
    until(&mut guest, "avio net -S vs_a -V | grep -q 'Frames Sent By *: .* as XDP frames'")?;
    // Nothing of it that the restrictions kept away: it would say so.
    let warnings = guest.run("grep -E 'WARN|ERROR' /switch.log || true")?;
    println!("{warnings}");
    ensure(!warnings.contains("as packets"), || warnings)?;
    let sockets = guest.run("ls -l /run/avio/guests/g1/net-0-5.sock")?;
    ensure(sockets.starts_with("srw-rw----") && sockets.contains("qemu     qemu"), || sockets.clone())?;
    // The TAP of an emulated NIC is kept from the host's own IP, below /proc/sys.
    until(
        &mut guest,
        "[ -e /sys/class/net/g2-0-5 ] && grep -q 1 /proc/sys/net/ipv6/conf/g2-0-5/disable_ipv6",
    )?;

    guest.run("printf '[[vswitch]]\\nname = \"vs_c\"\\n' >> /etc/avio/vswitches.toml && systemctl reload avio-vswitchd")?;
    until(&mut guest, "avio net -S vs_c")?;
    guest.run(&format!("kill -9 {pid}"))?;
    until(
        &mut guest,
        "[ $(systemctl show -P NRestarts avio-vswitchd) = 1 ] && systemctl -q is-active avio-vswitchd",
    )?;
    for (disable, sent_by) in [("xdp_burst", "AF_XDP ring"), ("xdp", "packet socket")] {
        guest.run(&format!(
            "systemctl set-environment AVIO_DISABLE={disable} && systemctl restart avio-vswitchd"
        ))?;
        ensure_flows(&mut guest, sent_by)?;
    }
    guest.run("systemctl stop avio-vswitchd")?;
    let result = property(&mut guest, "Result")?;
    ensure(result == "success", || result)?;
    // Nothing is left on the devices.
    let promiscuous = guest.run("cat /sys/class/net/v[012]/flags")?;
    ensure(promiscuous.lines().all(|flags| flags == "0x1003"), || promiscuous.clone())
}
