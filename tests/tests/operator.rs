//! What an operator meets: the daemon's life, what it refuses and how it says so, reloading, the tables of `avio net`, and
//! the promises about idling and memory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use avio_tests::case::{self, Case};
use avio_tests::config::{Config, mac_of, replace};
use avio_tests::console::{Console, command};
use avio_tests::daemon::{Daemon, program};
use avio_tests::failure::ensure;
use avio_tests::testpmd::{Driver, Mode, Testpmd};
use avio_tests::{Failure, Result, scratch};

fn main() -> ExitCode {
    case::main(&[
        Case::new("daemon_tells_the_service_manager", 20, daemon_tells_the_service_manager),
        Case::new("daemon_stops_within_a_second", 20, daemon_stops_within_a_second),
        Case::new("daemon_comes_back_after_kill", 20, daemon_comes_back_after_kill),
        Case::new("daemon_runs_once_per_run_folder", 20, daemon_runs_once_per_run_folder),
        Case::new("wrong_configuration_is_refused", 60, wrong_configuration_is_refused),
        Case::new("unusable_socket_folder_is_named", 20, unusable_socket_folder_is_named),
        Case::new("usage_errors_end_with_2", 20, usage_errors_end_with_2),
        Case::new("check_judges_and_changes_nothing", 20, check_judges_and_changes_nothing),
        Case::new("reload_of_a_wrong_file_changes_nothing", 60, reload_of_a_wrong_file_changes_nothing),
        Case::new("reload_adds_and_removes_guests", 30, reload_adds_and_removes_guests),
        Case::new("avio_net_refuses_what_is_not_there", 20, avio_net_refuses_what_is_not_there),
        Case::new("avio_net_shows_the_tables", 20, avio_net_shows_the_tables),
        Case::new("avio_net_changes_vswitches", 30, avio_net_changes_vswitches),
        Case::new("avio_net_clears_statistics", 60, avio_net_clears_statistics),
        Case::new("sockets_have_the_configured_mode", 20, sockets_have_the_configured_mode),
        Case::new("a_port_has_one_guest_at_a_time", 60, a_port_has_one_guest_at_a_time),
        Case::new("garbage_on_sockets_harms_nobody", 30, garbage_on_sockets_harms_nobody),
        Case::new("package_has_what_its_units_start", 120, package_has_what_its_units_start),
    ])
}

const IDLE: Mode = Mode { name: "rxonly", peer: None, options: &[] };

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program to its end.
fn run(name: &str, arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(program(name)?).args(arguments).output()?)
}

/// The arguments of a daemon on the scratch folder's `etc` and `run`.
fn folders() -> Result<Vec<String>> {
    let folder = scratch::folder();
    fs::create_dir_all(folder.join("run"))?;
    fs::create_dir_all(folder.join("state"))?;
    let path = |name: &str| folder.join(name).display().to_string();
    let arguments = ["--config", &path("etc"), "--run-dir", &path("run"), "--state-dir", &path("state")];
    Ok(arguments.map(str::to_owned).to_vec())
}

/// Starts the daemon where it must refuse: gives its one line of complaint.
fn refusal() -> Result<String> {
    let arguments = folders()?;
    let mut console = Console::spawn("refused", command(program("avio-vswitchd")?).args(&arguments))?;
    let status = console.wait_end(10).map_err(|e| e.while_doing("it should have refused to start"))?;
    let said = console.output();
    ensure(status.code() == Some(1), || format!("ended with {status}: {said}"))?;
    ensure(!said.contains("panicked"), || said.clone())?;
    let complaints: Vec<&str> = said.lines().filter(|l| l.starts_with("avio-vswitchd:")).collect();
    ensure(complaints.len() == 1, || format!("one line of complaint, not: {said}"))?;
    Ok(complaints[0].to_owned())
}

fn contains_all(line: &str, words: &[&str]) -> Result {
    let missing: Vec<&&str> = words.iter().filter(|word| !line.contains(**word)).collect();
    ensure(missing.is_empty(), || format!("'{line}' does not say {missing:?}"))
}

fn daemon_tells_the_service_manager() -> Result {
    let path = scratch::folder().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Config::one_switch(&[""]).write(&scratch::folder().join("etc"))?;
    let arguments = folders()?;
    let mut command = command(program("avio-vswitchd")?);
    let console = Console::spawn("vswitchd", command.args(&arguments).env("NOTIFY_SOCKET", &path))?;
    let mut buffer = [0; 1024];
    let mut said = String::new();
    while !said.contains("READY=1") {
        let count = socket
            .recv(&mut buffer)
            .map_err(|e| Failure::from(e).while_doing(&format!("READY=1 after '{said}'")))?;
        said += &text(&buffer[..count]);
    }
    drop(console);
    Ok(())
}

fn daemon_stops_within_a_second() -> Result {
    let mut daemon = Daemon::start(Config::one_switch(&["", ""]))?;
    let begin = Instant::now();
    daemon.stop()?;
    ensure(begin.elapsed() < Duration::from_secs(1), || format!("stopping took {:?}", begin.elapsed()))?;
    ensure(!daemon.socket(0).exists(), || "its sockets are still there".to_owned())
}

/// Sockets that a killed daemon left behind do not hinder the next.
fn daemon_comes_back_after_kill() -> Result {
    let mut daemon = Daemon::start(Config::one_switch(&[""]))?;
    daemon.kill();
    ensure(daemon.socket(0).exists(), || "nothing was left behind, so nothing is tested".to_owned())?;
    daemon.restart()?;
    daemon.vswitch("vs").map(drop)
}

fn daemon_runs_once_per_run_folder() -> Result {
    let mut daemon = Daemon::start(Config::one_switch(&[""]))?;
    contains_all(&refusal()?, &[&scratch::folder().join("run").display().to_string()])?;
    daemon.ensure_healthy()?;
    daemon.vswitch("vs").map(drop)
}

/// The MAC address of one of this host's interfaces.
fn host_mac() -> Result<String> {
    for entry in fs::read_dir("/sys/class/net")? {
        let mac = fs::read_to_string(entry?.path().join("address")).unwrap_or_default().trim().to_owned();
        // As configured MAC addresses have to be: unicast, not zero.
        let first = u8::from_str_radix(mac.get(..2).unwrap_or(""), 16).unwrap_or(1);
        if mac.len() == 17 && mac != "00:00:00:00:00:00" && first % 2 == 0 {
            return Ok(mac);
        }
    }
    Err(Failure::new("this host has no Ethernet interface to take a MAC address from"))
}

/// Each wrong file is refused with its name, the key and the value; the words must all be in the one line.
fn wrong_configuration_is_refused() -> Result {
    let host_mac = host_mac()?;
    let guest = |lines: &str| {
        format!(
            "name = \"g1\"\n[[network]]\nbus = 0\ndevice = 5\nadaptor = \"avio_lan\"\nvswitch = \"vs\"\nport = 1\n{lines}\n"
        )
    };
    let own = format!("mac = \"{}\"", mac_of(1));
    let wrong: Vec<(String, &[&str])> = vec![
        ("name = ".to_owned(), &["g1.toml:1"]),
        (guest("macc = \"1e:29:8c:88:a5:eb\""), &["g1.toml:8", "macc", "mac"]),
        (guest("mac = \"1e:29:8c:88:a5\""), &["g1.toml:8", "mac", "1e:29:8c:88:a5"]),
        (guest("mac = \"01:00:5e:00:00:01\""), &["g1.toml:8", "mac", "multicast"]),
        (guest(&format!("mac = \"{host_mac}\"")), &["g1.toml:8", "mac"]),
        (guest(&format!("{own}\nvlan = 4095")), &["g1.toml:9", "vlan", "4095"]),
        (guest(&format!("{own}\nmtu = 9001")), &["g1.toml:9", "mtu", "9000"]),
        (guest(&format!("{own}\nqueue_pairs = 0")), &["g1.toml:9", "queue_pairs"]),
        (guest(&own).replace("\"vs\"", "\"vss\""), &["g1.toml:6", "vss", "vs"]),
        (guest(&own).replace("port = 1", "port = 0"), &["g1.toml:7", "port"]),
        (guest(&own).replace("port = 1", "port = 101"), &["g1.toml:7", "port", "100"]),
        (guest(&own).replace("avio_lan", "avio_lann"), &["g1.toml:5", "avio_lan"]),
    ];
    let etc = scratch::folder().join("etc");
    for (file, words) in wrong {
        Config::one_switch(&[""]).write(&etc)?;
        replace(&etc.join("guests/g1.toml"), &file)?;
        contains_all(&refusal().map_err(|e| e.while_doing(&file))?, words)?;
    }
    // Between files: two guests on one port, two guests with one MAC address.
    Config::one_switch(&["", ""]).write(&etc)?;
    let second = fs::read_to_string(etc.join("guests/g2.toml"))?;
    replace(&etc.join("guests/g2.toml"), &second.replace(&mac_of(2), &mac_of(1)))?;
    contains_all(&refusal()?, &["g2.toml", &mac_of(1), "g1"])?;
    replace(&etc.join("vswitches.toml"), "[[vswitch]]\nname = \"vs\"\nmax_port = 3\n")?;
    contains_all(&refusal_of_two(&etc)?, &["vswitches.toml:3", "max_port", "max_ports"])
}

/// As [`refusal`] with only the vswitches' file wrong.
fn refusal_of_two(etc: &Path) -> Result<String> {
    fs::remove_dir_all(etc.join("guests"))?;
    refusal()
}

fn unusable_socket_folder_is_named() -> Result {
    Config::one_switch(&[""]).write(&scratch::folder().join("etc"))?;
    // A file where the folder should be stops root too, unlike permissions.
    let run = scratch::folder().join("run");
    folders()?;
    fs::remove_dir(&run)?;
    fs::write(&run, "")?;
    let arguments = ["--config", "--run-dir", "--state-dir"].map(str::to_owned);
    let paths = ["etc", "run", "state"].map(|name| scratch::folder().join(name).display().to_string());
    let arguments: Vec<&str> =
        arguments.iter().zip(&paths).flat_map(|(a, p)| [a.as_str(), p.as_str()]).collect();
    let output = run_to_end(&arguments)?;
    contains_all(&output, &[&run.display().to_string()])
}

fn run_to_end(arguments: &[&str]) -> Result<String> {
    let mut console = Console::spawn("refused", command(program("avio-vswitchd")?).args(arguments))?;
    let status = console.wait_end(10)?;
    ensure(status.code() == Some(1), || format!("ended with {status}: {}", console.output()))?;
    Ok(console.output())
}

fn usage_errors_end_with_2() -> Result {
    for (name, arguments) in [
        ("avio-vswitchd", &["--nonsense"][..]),
        ("avio", &["net", "--nonsense"]),
        ("avio", &["nonsense"]),
        ("hpvmnet", &["-u", "nonsense"]),
    ] {
        let output = run(name, arguments)?;
        ensure(output.status.code() == Some(2), || {
            format!("{name} {arguments:?} ended with {}", output.status)
        })?;
        ensure(!output.stderr.is_empty(), || format!("{name} {arguments:?} says nothing"))?;
    }
    for name in ["avio-vswitchd", "avio", "avio-pktgen"] {
        let output = run(name, &["--version"])?;
        ensure(output.status.success() && text(&output.stdout).contains(env!("CARGO_PKG_VERSION")), || {
            format!("{output:?}")
        })?;
    }
    Ok(())
}

fn check_judges_and_changes_nothing() -> Result {
    let etc = scratch::folder().join("etc");
    Config::one_switch(&[""]).write(&etc)?;
    let mut arguments = folders()?;
    arguments.push("--check".to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = run("avio-vswitchd", &arguments)?;
    ensure(output.status.success(), || text(&output.stderr))?;
    contains_all(&text(&output.stdout), &["mac", "vlan", "queue_pairs"])?;
    replace(&etc.join("guests/g1.toml"), "name = \"g1\"\nunknown = 1\n")?;
    let output = run("avio-vswitchd", &arguments)?;
    ensure(output.status.code() == Some(1), || format!("ended with {}", output.status))?;
    contains_all(&text(&output.stderr), &["g1.toml:2", "unknown"])?;
    let left = fs::read_dir(scratch::folder().join("run"))?.count();
    ensure(left == 0, || format!("--check left {left} entries in the run folder"))
}

/// A running switch with traffic takes a wrong file for nothing: same ports, same guests, frames go on.
fn reload_of_a_wrong_file_changes_nothing() -> Result {
    let mut daemon = Daemon::start(Config::one_switch(&["", ""]))?;
    let (one, two) = (mac_of(1), mac_of(2));
    let source = Mode { name: "txonly", peer: Some(&one), options: &[] };
    let mut receiver = Testpmd::start("receiver", &daemon.socket(0), &Driver::new(&one), &IDLE)?;
    let mut sender = Testpmd::start("sender", &daemon.socket(1), &Driver::new(&two), &source)?;
    receiver.forward()?;
    sender.forward()?;
    daemon.vswitch_when("vs", 5, |v| v.port(1).is_ok_and(|p| p.counters.delivered() > 1_000))?;
    let file = daemon.config_folder().join("guests/g1.toml");
    let right = fs::read_to_string(&file)?;
    replace(&file, &right.replace("port = 1", "port = 2\nvlann = 3"))?;
    daemon.console()?.signal(rustix::process::Signal::HUP)?;
    daemon.console()?.wait_for("g1.toml:", 5)?;
    let before = daemon.vswitch("vs")?.port(1)?.counters.delivered();
    sleep(Duration::from_millis(300));
    let after = daemon.vswitch("vs")?;
    ensure(after.port(1)?.counters.delivered() > before, || "traffic stopped".to_owned())?;
    ensure(after.port(1)?.active_vm.as_deref() == Some("g1"), || format!("{:?}", after.ports))?;
    daemon.ensure_healthy()
}

fn reload_adds_and_removes_guests() -> Result {
    let mut daemon = Daemon::start(Config::one_switch(&["", ""]))?;
    daemon.config = daemon.config.clone().vswitch("other", "max_ports = 5").guest("g3", "vs", 3, "vlan = 7");
    daemon.reload()?;
    let vswitch = daemon.vswitch_when("vs", 5, |v| v.ports.len() == 3)?;
    ensure(vswitch.port(3)?.untagged_vlanid == Some(7), || format!("{:?}", vswitch.ports))?;
    ensure(daemon.socket(2).exists(), || "the new guest has no socket".to_owned())?;
    ensure(daemon.vswitch("other")?.ports.is_empty(), || "a new vswitch has ports".to_owned())?;
    fs::remove_file(daemon.config_folder().join("guests/g2.toml"))?;
    daemon.console()?.signal(rustix::process::Signal::HUP)?;
    daemon.vswitch_when("vs", 5, |v| v.ports.len() == 2)?;
    ensure(!daemon.socket(1).exists(), || "the removed guest's socket is still there".to_owned())?;
    daemon.ensure_healthy()
}

fn avio_net_refuses_what_is_not_there() -> Result {
    let mut daemon = Daemon::start(Config::one_switch(&["", ""]))?;
    let before = fs::read_to_string(daemon.config_folder().join("vswitches.toml"))?;
    let refused: &[(&[&str], &[&str])] = &[
        (&["net", "-S", "vss"], &["vss"]),
        (&["net", "-s", "77"], &["77"]),
        (&["net", "-S", "vs", "-p", "9"], &["9"]),
        (&["net", "-S", "vs", "-u", "portid:9:vlanid:5"], &["9"]),
        (&["net", "-d", "-Q", "-S", "vss"], &["vss"]),
        (&["net", "-c", "-S", "vs"], &["vs"]),
        (&["net", "-b", "-S", "vss"], &["vss"]),
    ];
    for (arguments, words) in refused {
        let output = daemon.avio(arguments)?;
        let said = text(&output.stderr);
        ensure(output.status.code() == Some(1), || {
            format!("{arguments:?} ended with {}: {said}", output.status)
        })?;
        ensure(said.trim().lines().count() == 1, || format!("{arguments:?}: one line, not: {said}"))?;
        contains_all(&said, words)?;
    }
    let after = fs::read_to_string(daemon.config_folder().join("vswitches.toml"))?;
    ensure(before == after, || format!("a refused command changed the file:\n{after}"))?;
    daemon.stop()?;
    let output = daemon.avio(&["net"])?;
    ensure(output.status.code() == Some(1), || "avio net without a daemon succeeded".to_owned())?;
    contains_all(&text(&output.stderr), &["vswitchd.varlink"])
}

fn avio_net_shows_the_tables() -> Result {
    let daemon = Daemon::start(Config::one_switch(&["", "vlan = 120"]))?;
    let shown = |arguments: &[&str]| -> Result<String> {
        let output = daemon.avio(arguments)?;
        ensure(output.status.success(), || format!("{arguments:?}: {}", text(&output.stderr)))?;
        Ok(text(&output.stdout))
    };
    contains_all(
        &shown(&["net"])?,
        &["Name", "Number", "State", "Mode", "NamePPA", "localnet", "vs", "Shared"],
    )?;
    let ports = shown(&["net", "-S", "vs"])?;
    contains_all(
        &ports,
        &["[Port Configuration Details]", "Untagged", "Active VM", "Reserved", "avio_lan", "120", "none"],
    )?;
    let statistics = shown(&["net", "-S", "vs", "-A"])?;
    contains_all(&statistics, &["Vswitch Name", "Max Number of Ports", "Configured Ports", "Port Number"])?;
    let by_number = daemon.vswitch("vs")?;
    ensure(by_number.configured_ports == 2 && by_number.state == "Up", || format!("{by_number:?}"))?;
    contains_all(&shown(&["net", "-M"])?, &["vswitch:vs:"])?;
    // The old name of the same command.
    let run_dir = daemon.run_folder();
    let output =
        Command::new(program("hpvmnet")?).env("AVIO_RUN_DIR", run_dir).args(["-S", "vs"]).output()?;
    ensure(output.status.success(), || text(&output.stderr))?;
    ensure(text(&output.stdout) == ports, || {
        format!("hpvmnet shows:\n{}\navio net shows:\n{ports}", text(&output.stdout))
    })
}

fn avio_net_changes_vswitches() -> Result {
    let daemon = Daemon::start(Config::one_switch(&[""]))?;
    let done = |arguments: &[&str]| -> Result {
        let output = daemon.avio(arguments)?;
        ensure(output.status.success(), || format!("{arguments:?}: {}", text(&output.stderr)))
    };
    done(&["net", "-c", "-S", "fresh"])?;
    ensure(daemon.vswitch("fresh")?.state == "Up", || "the new vswitch is not up".to_owned())?;
    let file = fs::read_to_string(daemon.config_folder().join("vswitches.toml"))?;
    ensure(file.contains("fresh"), || format!("the file does not have it:\n{file}"))?;
    done(&["net", "-h", "-Q", "-S", "fresh"])?;
    daemon.vswitch_when("fresh", 3, |v| v.state == "Down")?;
    done(&["net", "-b", "-S", "fresh"])?;
    daemon.vswitch_when("fresh", 3, |v| v.state == "Up")?;
    done(&["net", "-d", "-Q", "-S", "fresh"])?;
    ensure(daemon.vswitch("fresh").is_err(), || "the deleted vswitch is still there".to_owned())?;
    done(&["net", "-S", "vs", "-u", "portid:1:vlanid:33"])?;
    daemon.vswitch_when("vs", 3, |v| v.port(1).is_ok_and(|p| p.untagged_vlanid == Some(33)))?;
    let guest = fs::read_to_string(daemon.config_folder().join("guests/g1.toml"))?;
    ensure(guest.contains("vlan = 33"), || format!("the guest's file does not have the VLAN:\n{guest}"))?;
    done(&["net", "-S", "vs", "-u", "portid:1:vlanid:none"])?;
    daemon.vswitch_when("vs", 3, |v| v.port(1).is_ok_and(|p| p.untagged_vlanid.is_none())).map(drop)
}

fn avio_net_clears_statistics() -> Result {
    let daemon = Daemon::start(Config::one_switch(&["", ""]))?;
    let (one, two) = (mac_of(1), mac_of(2));
    let source = Mode { name: "txonly", peer: Some(&one), options: &[] };
    let mut sender = Testpmd::start("sender", &daemon.socket(1), &Driver::new(&two), &source)?;
    sender.forward()?;
    sleep(Duration::from_millis(300));
    sender.stop()?;
    let sent = sender.stats()?.tx_packets;
    daemon.vswitch_when("vs", 5, |v| v.port(2).is_ok_and(|p| p.counters.taken() == sent))?;
    let output = daemon.avio(&["net", "-S", "vs", "-A", "-Z"])?;
    ensure(output.status.success(), || text(&output.stderr))?;
    let vswitch = daemon.vswitch("vs")?;
    for port in &vswitch.ports {
        let zero = port.counters == Default::default() && port.discards.values().all(|count| *count == 0);
        ensure(zero, || format!("not cleared: {port:?}"))?;
    }
    Ok(())
}

fn sockets_have_the_configured_mode() -> Result {
    let daemon =
        Daemon::start(Config::one_switch(&["socket_perm = \"0666\"\nsocket_group = \"daemon\"", ""]))?;
    let mode = |path: &Path| -> Result<u32> { Ok(fs::metadata(path)?.permissions().mode() & 0o777) };
    ensure(mode(&daemon.socket(0))? == 0o666, || format!("{:o}", mode(&daemon.socket(0)).unwrap_or(0)))?;
    // Others can do nothing with what was not opened to them.
    ensure(mode(&daemon.socket(1))? & 0o007 == 0, || format!("{:o}", mode(&daemon.socket(1)).unwrap_or(0)))?;
    let control = mode(&daemon.run_folder().join("vswitchd.varlink"))?;
    ensure(control & 0o007 == 0, || format!("the control socket has mode {control:o}"))
}

/// A second front-end does not take a port from the first.
fn a_port_has_one_guest_at_a_time() -> Result {
    let mut daemon = Daemon::start(Config::one_switch(&["", ""]))?;
    let one = mac_of(1);
    let mut first = Testpmd::start("first", &daemon.socket(0), &Driver::new(&one), &IDLE)?;
    daemon.wait_active(1)?;
    let second = std::os::unix::net::UnixStream::connect(daemon.socket(0));
    sleep(Duration::from_millis(200));
    ensure(daemon.vswitch("vs")?.port(1)?.state == "Active", || "the first guest lost its port".to_owned())?;
    ensure(first.console().is_running(), || "the first guest ended".to_owned())?;
    drop(second);
    daemon.ensure_healthy()
}

/// Bytes that are no message, on every socket.
fn garbage_on_sockets_harms_nobody() -> Result {
    use std::io::Write;
    let mut daemon = Daemon::start(Config::one_switch(&["", ""]))?;
    for path in [daemon.socket(0), daemon.run_folder().join("vswitchd.varlink")] {
        for fill in [0x00, 0xff, b'{'] {
            let mut stream = std::os::unix::net::UnixStream::connect(&path)?;
            // The daemon may hang up in the middle, which is its right.
            drop(stream.write_all(&vec![fill; 100_000]));
            drop(stream);
            daemon.ensure_healthy()?;
        }
    }
    ensure(daemon.vswitch("vs")?.ports.len() == 2, || "ports are missing".to_owned())?;
    ensure(daemon.cpu_ms()? < 5_000, || "it is busy with garbage".to_owned())
}

/// The Debian package unpacks to programs, units that name them, and a configuration that the daemons take.
fn package_has_what_its_units_start() -> Result {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate is in the workspace");
    let folder = scratch::folder().join("deb");
    let built = Command::new(root.join("scripts/build-deb")).arg(&folder).output()?;
    ensure(built.status.success(), || text(&built.stderr))?;
    let package =
        fs::read_dir(&folder)?.next().ok_or_else(|| Failure::new("no package was written"))??.path();
    let unpacked = scratch::folder().join("unpacked");
    let dpkg = Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked).output()?;
    ensure(dpkg.status.success(), || text(&dpkg.stderr))?;
    for daemon in ["avio-vswitchd", "avio-stord"] {
        let unit = fs::read_to_string(unpacked.join(format!("usr/lib/systemd/system/{daemon}.service")))?;
        ensure(unit.contains(&format!("ExecStart=/usr/bin/{daemon}\n")), || unit.clone())?;
        if daemon == "avio-vswitchd" {
            let families = unit.lines().find(|line| line.starts_with("RestrictAddressFamilies="));
            // Control sockets; interfaces; uplinks both ways; ethtool's ioctl.
            for family in ["AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_XDP", "AF_INET"] {
                let lets = families.is_none_or(|line| line.split(['=', ' ']).any(|word| word == family));
                ensure(lets, || format!("{daemon}.service has no {family}: {families:?}"))?;
            }
        }
        let program = unpacked.join("usr/bin").join(daemon);
        let check =
            Command::new(&program).arg("--check").arg("--config").arg(unpacked.join("etc/avio")).output()?;
        ensure(check.status.success(), || format!("{daemon}: {}", text(&check.stderr)))?;
    }
    let fields = Command::new("dpkg-deb").arg("-f").arg(&package).output()?;
    contains_all(&text(&fields.stdout), &["Package: avio\n", "Depends: libc6 (>= 2."])?;
    let asked = Command::new(unpacked.join("usr/bin/hpvmnet")).arg("-v").output()?;
    ensure(asked.status.success(), || format!("{asked:?}"))
}
