//! What `avio net` prints, byte for byte, and what it writes, with a daemon of a few lines.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use avio_proto::config::{NetworkAdaptor, VlanId};
use avio_proto::control::{
    Counters, DiscardReason, Discards, Port, PortState, SOCKET_FILE_NAME, Vswitch, VswitchState,
};
use clap::Parser;
use serde_json::{Value, json};

use super::*;

fn port(number: u32, guest: &str, adaptor: NetworkAdaptor, state: PortState) -> Port {
    Port {
        number,
        state,
        active_vm: (state == PortState::Active).then(|| guest.to_owned()),
        untagged_vlanid: None,
        reserved_vms: vec![guest.to_owned()],
        adaptor,
        mac: "1e:29:8c:88:a5:eb".parse().ok(),
        counters: Counters::default(),
        discards: Discards::default(),
        trunk: Vec::new(),
        mtu: 1500,
        queue_pairs: u16::from(state == PortState::Active),
        features: None,
        socket: Some(format!("/run/avio/guests/{guest}/net-0-5.sock")),
        link_status: None,
    }
}

/// The vswitches of SEMANTICS 1.3 and of the seed's Figure 3.
fn vswitches() -> Vec<Vswitch> {
    let mut first = port(1, "guest1", NetworkAdaptor::AvioLan, PortState::Active);
    first.counters.inbound_octets = 6400;
    first.counters.inbound_unicast_local = 100;
    first.counters.outbound_nonunicast = 7;
    first.counters.outbound_discards = 2;
    first.discards[DiscardReason::SpoofedSource] = 2;
    let mut second = port(2, "guest2", NetworkAdaptor::Lan, PortState::Reserved);
    second.untagged_vlanid = VlanId::new(120);
    let local = |name: &str, number| Vswitch {
        name: name.to_owned(),
        number,
        state: VswitchState::Up,
        max_ports: 100,
        configured_ports: 0,
        uplink: None,
        uplink_mac: None,
        uplink_ip: None,
        wire: None,
        host_port: None,
        ports: Vec::new(),
    };
    vec![
        local("localnet", 1),
        Vswitch { configured_ports: 2, ports: vec![first, second], ..local("vs_site", 2) },
        Vswitch {
            uplink: Some("lan4".into()),
            uplink_mac: "00:0c:fc:00:46:b9".parse().ok(),
            uplink_ip: Some("10.1.1.99".into()),
            wire: None,
            state: VswitchState::Down,
            ..local("devlan12", 3)
        },
    ]
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    args: NetArgs,
}

fn args(line: &str) -> Line {
    Line::try_parse_from(std::iter::once("net").chain(line.split_whitespace())).unwrap()
}

/// A daemon that shows `vswitches()`, and refuses to reload if told to; keeps the calls that it got.
struct Daemon {
    dir: PathBuf,
    calls: Arc<Mutex<Vec<Value>>>,
}

impl Daemon {
    fn new(name: &str, refuse: Option<&'static str>) -> Daemon {
        let dir = std::env::temp_dir().join(format!("avio-net-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("guests")).unwrap();
        let listener = UnixListener::bind(dir.join(SOCKET_FILE_NAME)).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&calls);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                loop {
                    let mut message = Vec::new();
                    if reader.read_until(0, &mut message).unwrap() == 0 {
                        break;
                    }
                    message.pop();
                    let call: Value = serde_json::from_slice(&message).unwrap();
                    let reply = answer(&call, refuse);
                    kept.lock().unwrap().push(call);
                    stream.write_all(format!("{reply}\0").as_bytes()).unwrap();
                }
            }
        });
        Daemon { dir, calls }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap()
    }

    fn run(&self, line: &str) -> Result<(), String> {
        run_in(&self.dir, line)
    }

    fn methods(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|call| call["method"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn run_in(dir: &Path, line: &str) -> Result<(), String> {
    let Line { mut global, args } = args(line);
    global.run_dir = dir.to_owned();
    global.config = dir.to_owned();
    run("avio net", &global, args).map_err(|failure| failure.to_string())
}

fn answer(call: &Value, refuse: Option<&str>) -> Value {
    match (call["method"].as_str().unwrap(), refuse) {
        ("io.avio.vswitchd.Show", _) => {
            let wanted = call["parameters"]["vswitch"].as_str().map(str::to_owned);
            let number = call["parameters"]["number"].as_u64();
            let mut found = vswitches();
            found.retain(|vswitch| wanted.as_ref().is_none_or(|name| *name == vswitch.name));
            found.retain(|vswitch| number.is_none_or(|number| number == u64::from(vswitch.number)));
            if found.is_empty() {
                let known: Vec<String> = vswitches().into_iter().map(|vswitch| vswitch.name).collect();
                return json!({"error":"io.avio.vswitchd.NoSuchVswitch",
                    "parameters":{"vswitch": wanted, "known": known}});
            }
            json!({"parameters":{"vswitches": found}})
        }
        ("io.avio.vswitchd.Reload", Some(reason)) => {
            json!({"error":"io.avio.vswitchd.Refused","parameters":{"reasons":[reason]}})
        }
        ("io.avio.vswitchd.Reload", None) => json!({"parameters":{"changes":[],"warnings":[]}}),
        _ => json!({"parameters":{}}),
    }
}

/// What `avio net LINE` prints.
fn shown(line: &str) -> String {
    let daemon = Daemon::new(&format!("show-{}", line.replace([' ', '/'], "_")), None);
    let Line { global, args } = args(line);
    let mut client = crate::client::Client::vswitchd(&daemon.dir).unwrap();
    let vswitches = show::ask(&mut client, &args).unwrap();
    show::render(&vswitches, global.json, &args).unwrap()
}

#[test]
fn the_summary_has_the_original_columns() {
    assert_eq!(
        shown(""),
        "\
Name     Number State   Mode      NamePPA  MAC Address    IP Address
======== ====== ======= ========= ======== ============== ===============
localnet      1 Up      Shared             N/A            N/A
vs_site       2 Up      Shared             N/A            N/A
devlan12      3 Down    Shared    lan4     0x000cfc0046b9 10.1.1.99
"
    );
}

#[test]
fn a_vswitch_is_shown_with_its_ports() {
    let wanted = "\
Name     Number State   Mode      NamePPA  MAC Address    IP Address
======== ====== ======= ========= ======== ============== ===============
vs_site       2 Up      Shared             N/A            N/A

[Port Configuration Details]
Port    Port         Port     Untagged Number of    Active VM
Number  State        Adaptor  VLANID   Reserved VMs
======= ============ ======== ======== ============ ============
1       Active       avio_lan none     1            guest1
2       Reserved     lan      120      1
";
    assert_eq!(shown("-S vs_site"), wanted);
    assert_eq!(shown("-s 2"), wanted);
    assert_eq!(shown("-s 2 -p all"), wanted);
    assert!(!shown("-S vs_site -p 2").contains("guest1"));
}

#[test]
fn statistics_are_figure_3_in_its_order() {
    let wanted = "\
Vswitch Name                     : vs_site
Max Number of Ports              : 100
Configured Ports                 : 2

Port Number                      : 1
Port State                       : Active
Active VM                        : guest1
Untagged VlanId                  : none
Reserved VMs                     : guest1
Adaptor                          : avio_lan
Inbound Octets                   : 6400
Inbound Unicast Pkts (wire)      : 0
Inbound Unicast Pkts (local)     : 100
Inbound Non-Unicast Pkts (wire)  : 0
Inbound Non-Unicast Pkts (local) : 0
Inbound Discards                 : 0
Outbound Octets                  : 0
Outbound Unicast Pkts (wire)     : 0
Outbound Unicast Pkts (local)    : 0
Outbound Non-Unicast Pkts        : 7
Outbound Discards                : 2

Port Number                      : 2
Port State                       : Reserved
Active VM                        :
Untagged VlanId                  : 120
Reserved VMs                     : guest2
Adaptor                          : lan
";
    assert_eq!(shown("-S vs_site -A"), wanted);
}

#[test]
fn verbose_adds_addresses_and_every_reason() {
    let text = shown("-S vs_site -A -V -p 1");
    assert!(text.contains(
        "\nMac Address                      : 1e:29:8c:88:a5:eb\nTagged VlanIds                   : none\n\
         MTU                              : 1500\nQueue Pairs                      : 1\n\
         Features                         : none\n\
         Link Status                      : not available\n\
         Socket                           : /run/avio/guests/guest1/net-0-5.sock\n\
         Discards spoofed_source          : 2\n"
    ));
    assert_eq!(text.lines().filter(|line| line.starts_with("Discards ")).count(), DiscardReason::COUNT);
}

#[test]
fn machine_readable() {
    assert_eq!(
        shown("-M"),
        "vswitch:localnet:1:Up:Shared::::100:0\nvswitch:vs_site:2:Up:Shared::::100:2\n\
         vswitch:devlan12:3:Down:Shared:lan4:0x000cfc0046b9:10.1.1.99:100:0\n"
    );
    assert_eq!(
        shown("-M -S vs_site -A"),
        "vswitch:vs_site:2:Up:Shared::::100:2\n\
         port:vs_site:1:Active:avio_lan:none:guest1:guest1:0x1e298c88a5eb\n\
         counters:vs_site:1:6400:0:100:0:0:0:0:0:0:7:2\n\
         port:vs_site:2:Reserved:lan:120:guest2::0x1e298c88a5eb\n\
         counters:vs_site:2:0:0:0:0:0:0:0:0:0:0:0\n"
    );
}

#[test]
fn json_is_one_vswitch_or_all() {
    let one: Value = serde_json::from_str(&shown("-S vs_site -A --json")).unwrap();
    assert_eq!((one["name"].as_str(), one["number"].as_u64()), (Some("vs_site"), Some(2)));
    assert_eq!(one["ports"][0]["counters"]["inbound_octets"], 6400);
    assert_eq!(one["ports"][0]["discards"]["spoofed_source"], 2);
    let all: Value = serde_json::from_str(&shown("--json")).unwrap();
    assert_eq!(all["vswitches"].as_array().unwrap().len(), 3);
}

#[test]
fn wrong_questions_get_one_line() {
    let daemon = Daemon::new("wrong", None);
    assert_eq!(
        daemon.run("-S vs_sit"),
        Err("there is no vswitch `vs_sit`; there are localnet, vs_site, devlan12".into())
    );
    assert_eq!(
        daemon.run("-S vs_site -p 9"),
        Err("-p 9: no guest reserves this port of vs_site; reserved are: 1, 2".into())
    );
    assert_eq!(daemon.run("-p 9"), Err("-p N needs the vswitch: -S NAME or -s NUMBER".into()));
    assert_eq!(daemon.run("-n eth0"), Err("-n goes with -c or -C".into()));
    let nobody = daemon.dir.join("nobody");
    let error = run_in(&nobody, "").unwrap_err();
    assert!(error.starts_with("cannot reach avio-vswitchd at ") && error.contains("--run-dir"), "{error}");
}

#[test]
fn clearing_shows_first_and_names_the_vswitch() {
    let daemon = Daemon::new("clear", None);
    daemon.run("-s 2 -A -Z").unwrap();
    assert_eq!(daemon.methods(), ["io.avio.vswitchd.Show", "io.avio.vswitchd.ClearStatistics"]);
    assert_eq!(daemon.calls.lock().unwrap()[1]["parameters"], json!({"vswitch":"vs_site"}));
}

const COMMENTED: &str = "# mine\n[[vswitch]]\nname = \"vs_site\" # the site\nmax_ports = 8\n";
const GUEST: &str =
    "# guest\n[[network]]\ndevice = 5\nvswitch = \"vs_site\"\nport = 1 # first\nvlan = 7 # old\n";

#[test]
fn actions_edit_the_files_and_reload() {
    let daemon = Daemon::new("edit", None);
    daemon.write("vswitches.toml", COMMENTED);
    daemon.write("guests/guest1.toml", GUEST);

    daemon.run("-c -S new").unwrap();
    assert_eq!(daemon.read("vswitches.toml"), format!("{COMMENTED}\n[[vswitch]]\nname = \"new\"\n"));
    daemon.run("-h -S new -Q").unwrap();
    assert!(daemon.read("vswitches.toml").ends_with("name = \"new\"\nenabled = false\n"));
    daemon.run("-b -s 3").unwrap();
    assert!(daemon.read("vswitches.toml").ends_with("name = \"new\"\nenabled = true\n"));
    daemon.run("-d -S new -Q").unwrap();
    assert_eq!(daemon.read("vswitches.toml").trim_end(), COMMENTED.trim_end());

    daemon.run("-S vs_site -u portid:1:vlanid:120").unwrap();
    assert_eq!(daemon.read("guests/guest1.toml"), GUEST.replace("vlan = 7", "vlan = 120"));
    daemon.run("-S vs_site -u portid:1:vlanid:10,20").unwrap();
    assert!(daemon.read("guests/guest1.toml").ends_with("port = 1 # first\ntrunk = [10, 20]\n"));
    daemon.run("-S vs_site -u portid:1:vlanid:none").unwrap();
    assert!(daemon.read("guests/guest1.toml").ends_with("port = 1 # first\n"));

    daemon.run("-C -S vs_site -N vs_new").unwrap();
    assert_eq!(
        daemon.read("vswitches.toml").trim_end(),
        COMMENTED.replace("vs_site\"", "vs_new\"").trim_end()
    );
    assert!(daemon.read("guests/guest1.toml").contains("vswitch = \"vs_new\"\n"));

    assert_eq!(daemon.methods().len(), 8);
    assert!(daemon.methods().iter().all(|method| method == "io.avio.vswitchd.Reload"));
    daemon.run("-r -S vs_site").unwrap();
    assert_eq!(daemon.methods().last().unwrap(), "io.avio.vswitchd.Restart");
}

#[test]
fn refused_actions_change_nothing() {
    let daemon = Daemon::new("refuse", Some("vswitches.toml:3: uplink: not yet"));
    daemon.write("vswitches.toml", COMMENTED);
    daemon.write("guests/guest1.toml", GUEST);
    let refusals = [
        ("-c -S new -n eth1", "nothing was changed: vswitches.toml:3: uplink: not yet"),
        ("-c -S vs_site", "the vswitch `vs_site` exists already; choose another name, or change it with -C"),
        (
            "-c -S localnet",
            "the vswitch `localnet` exists already; choose another name, or change it with -C",
        ),
        (
            "-c -S a/b",
            "-S: `a/b` is not a usable name; take 1 to 64 letters, digits, `_`, `-` or `.`, beginning with a letter, digit or `_`",
        ),
        (
            "-d -S vs_site -Q",
            "the vswitch `vs_site` is reserved by guest1 (port 1); remove those [[network]] from guests/*.toml first",
        ),
        ("-d -S localnet -Q", "localnet always exists and cannot be deleted; -h halts it"),
        ("-b -S nope", "there is no vswitch `nope`; there are localnet, vs_site"),
        (
            "-S vs_site -u portid:3:vlanid:1",
            "no guest reserves port 3 of `vs_site`; a [[network]] in guests/NAME.toml does that",
        ),
        (
            "-C -S localnet -N x",
            "`localnet` cannot be called `x`: localnet keeps its name, and names are unique",
        ),
        ("-C -S vs_site", "-C needs what to change: -N NEW_NAME, -n UPLINK"),
        ("-S vs_site -u portid:1:vlanid:9", "nothing was changed: vswitches.toml:3: uplink: not yet"),
    ];
    for (line, wanted) in refusals {
        assert_eq!(daemon.run(line), Err(wanted.to_owned()), "for {line}");
        assert_eq!(daemon.read("vswitches.toml"), COMMENTED, "after {line}");
        assert_eq!(daemon.read("guests/guest1.toml"), GUEST, "after {line}");
    }
    // What was wrong before is said with file and line, and nothing is written on top of it.
    daemon.write("vswitches.toml", "[[vswitch]]\nnam = 'x'\n");
    let error = daemon.run("-c -S new").unwrap_err();
    assert!(
        error.ends_with("vswitches.toml:2: nam: there is no such key in [vswitch]; did you mean `name`?"),
        "{error}"
    );
}

#[test]
fn files_can_be_edited_while_the_daemon_is_down() {
    let daemon = Daemon::new("down", None);
    let config = daemon.dir.clone();
    let Line { mut global, args } = args("-c -S new");
    global.config = config;
    global.run_dir = daemon.dir.join("nobody");
    run("avio net", &global, args).unwrap();
    assert_eq!(daemon.read("vswitches.toml"), "[[vswitch]]\nname = \"new\"\n");
}
