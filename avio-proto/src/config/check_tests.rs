//! Every line that an operator can get for a wrong file, word for word.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const SWITCH: &str = "[[vswitch]]\nname = 'vs_site'\nmax_ports = 8\n";

fn source(path: &str, text: &str) -> SourceFile {
    SourceFile { path: PathBuf::from(path), text: text.to_owned() }
}

fn files(vswitches: &str, guests: &[(&str, &str)]) -> Files {
    Files {
        storage: None,
        vswitches: Some(source("vswitches.toml", vswitches)),
        guests: guests
            .iter()
            .map(|(name, text)| ((*name).to_owned(), source(&format!("guests/{name}.toml"), text)))
            .collect(),
    }
}

fn surroundings() -> Surroundings {
    Surroundings {
        host_macs: vec![("eth0".into(), "52:54:00:00:00:01".parse().unwrap())],
        cores: Some(vec![0, 1]),
        capabilities: Capabilities { uplinks: false, tap_ports: false },
    }
}

fn errors(vswitches: &str, guests: &[(&str, &str)]) -> String {
    match Config::from_files(&files(vswitches, guests), &surroundings()) {
        Ok(_) => String::new(),
        Err(errors) => errors.to_string(),
    }
}

fn load(vswitches: &str, guests: &[(&str, &str)]) -> Config {
    Config::from_files(&files(vswitches, guests), &surroundings()).unwrap()
}

#[test]
fn lines_for_a_wrong_vswitches_file() {
    let cases: &[(&str, &str)] = &[
        ("[[vswitch]\n", "vswitches.toml:1: is not TOML: unclosed array table, expected `]`"),
        ("x = = 1\n", "vswitches.toml:1: is not TOML: extra `=`, expected nothing"),
        (
            "version = 2\nfuture = 1\n",
            "vswitches.toml:1: version: is not supported; this release reads version 1",
        ),
        (
            "\n[workers]\npol = 'never'\n",
            "vswitches.toml:3: pol: there is no such key in [workers]; did you mean `poll`?",
        ),
        (
            "[[vswitch]]\nname = 'a'\nzzz = 1\n",
            "vswitches.toml:3: zzz: there is no such key in [vswitch]; the keys are name, max_ports, uplink, host_port, enabled",
        ),
        (
            "vswitches = []\n",
            "vswitches.toml:1: vswitches: there is no such key here; did you mean `vswitch`?",
        ),
        (
            "[workers]\npoll = 'adaptiv'\n",
            "vswitches.toml:2: poll: unknown variant `adaptiv`, expected one of `always`, `adaptive`, `never`; did you mean `adaptive`?",
        ),
        (
            "[workers]\nspin_us = -1\n",
            "vswitches.toml:2: spin_us: invalid value: integer `-1`, expected a whole number from 0 to 4294967295",
        ),
        (
            "[workers]\nspin_us = 2000000\n",
            "vswitches.toml:2: spin_us: 2000000 is out of range; give 0 to 1000000",
        ),
        (
            "[workers]\ncores = []\n",
            "vswitches.toml:2: cores: give 1 to 128 cores, or leave the key out for one worker that is not pinned",
        ),
        (
            "[workers]\ncores = [1, 1]\n",
            "vswitches.toml:2: cores: core 1 is named twice; one worker per core",
        ),
        (
            "[workers]\ncores = [7]\n",
            "vswitches.toml:2: cores: there is no core 7 for this process; it has 0, 1",
        ),
        ("[[vswitch]]\nmax_ports = 3\n", "vswitches.toml:1: name: is missing; this section needs it"),
        (
            "[[vswitch]]\nname = 'a/b'\n",
            "vswitches.toml:2: name: `a/b` is not a usable name; take 1 to 64 letters, digits, `_`, `-` or `.`, beginning with a letter, digit or `_`",
        ),
        (
            "[[vswitch]]\nname = 'a'\n[[vswitch]]\nname = 'a'\n",
            "vswitches.toml:4: name: `a` is already defined at vswitches.toml:2",
        ),
        (
            "[[vswitch]]\nname = 'a'\nmax_ports = 4097\n",
            "vswitches.toml:3: max_ports: 4097 is out of range; give 1 to 4096",
        ),
        (
            "[[vswitch]]\nname = 'a'\nenabled = 1\n",
            "vswitches.toml:3: enabled: invalid type: integer `1`, expected true or false",
        ),
        (
            "[[vswitch]]\nname = 'a'\nuplink = 'eth1'\n",
            "vswitches.toml:3: uplink: uplinks come with a later release; leave `uplink = \"eth1\"` out for a local vswitch",
        ),
        (
            "[[vswitch]]\nname = 'a_name_too_long_for_it'\nhost_port = true\n",
            "vswitches.toml:3: host_port: the host port is called like the vswitch, but `a_name_too_long_for_it` cannot name a network device: 1 to 15 letters, digits, `_`, `-` or `.`",
        ),
        (
            "[[vswitch]]\nname = 'localnet'\nuplink = 'eth1'\n",
            "vswitches.toml:3: uplink: localnet never has an uplink; define another vswitch",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(errors(text, &[]), *wanted, "for\n{text}");
    }
}

#[test]
fn lines_for_a_wrong_aggregate() {
    let head = "[[aggregate]]\nname = 'lan900'\n";
    let members = |list: &str| format!("{head}mode = 'MANUAL'\nmembers = [{list}]\n");
    let line = |mode: &str, more: &str| {
        let text = format!("{head}mode = '{mode}'\nmembers = ['eth1', 'eth2']\n{more}\n");
        errors(&text, &[])
    };
    let many: Vec<String> = (0..33).map(|number| format!("'e{number}'")).collect();
    for (list, wanted) in [
        (
            "",
            "4: members: an aggregate has 2 to 32 network devices, not 0; a single one can be an `uplink` itself",
        ),
        (
            "'a'",
            "4: members: an aggregate has 2 to 32 network devices, not 1; a single one can be an `uplink` itself",
        ),
        (
            &many.join(","),
            "4: members: an aggregate has 2 to 32 network devices, not 33; a single one can be an `uplink` itself",
        ),
        ("'a', 'b', 'a'", "4: members: `a` is named twice"),
        (
            "'a', 'a_name_of_16_byt'",
            "4: members: `a_name_of_16_byt` is no network device's name (1 to 15 characters); `ip link` lists them",
        ),
        (
            "'a', '../b'",
            "4: members: `../b` is no network device's name (1 to 15 characters); `ip link` lists them",
        ),
    ] {
        assert_eq!(errors(&members(list), &[]), format!("vswitches.toml:{wanted}"), "for {list}");
    }
    let two = format!(
        "{}[[aggregate]]\nname = 'lan901'\nmode = 'MANUAL'\nmembers = ['c', 'a']\n",
        members("'a', 'b'")
    );
    assert_eq!(
        errors(&two, &[]),
        "vswitches.toml:8: members: `a` is already a member of `lan900`; a device belongs to one aggregate"
    );
    for (mode, more, wanted) in [
        (
            "FEC_AUTO",
            "",
            "3: mode: FEC_AUTO (Cisco PAgP) is a proprietary protocol that switches have given up for LACP; write LACP_AUTO, or MANUAL if the switch has a static channel",
        ),
        (
            "LACP",
            "",
            "3: mode: unknown variant `LACP`, expected one of `MANUAL`, `LACP_AUTO`, `LAN_MONITOR`, `FEC_AUTO`; did you mean `LACP_AUTO`?",
        ),
        (
            "LACP_AUTO",
            "balance = 'LB_HOT_STANDBY'",
            "5: balance: hot standby has no partner to agree with; write mode = \"MANUAL\", or another balance",
        ),
        ("LACP_AUTO", "min_links = 3", "5: min_links: 3 is out of range; give 1 to 2"),
        ("LAN_MONITOR", "min_links = 2", "5: min_links: 2 is out of range; give 1 to 1"),
        ("LACP_AUTO", "key = 0", "5: key: 0 is no key; give 1 to 65535"),
        ("LACP_AUTO", "timeout = 'quick'", "5: timeout: unknown variant `quick`, expected `slow` or `fast`"),
        (
            "MANUAL",
            "mac = '00:16:3e:00:00:01'",
            "5: mac: 00:16:3e:00:00:01 must be local and unicast: the first pair x2, x6, xa or xe",
        ),
        ("MANUAL", "failback_delay_s = 3601", "5: failback_delay_s: 3601 is out of range; give 0 to 3600"),
        (
            "LAN_MONITOR",
            "poll_interval_ms = 499",
            "5: poll_interval_ms: 499 is out of range; give 500 to 2147000",
        ),
        ("LAN_MONITOR", "dead_count = 0", "5: dead_count: 0 is out of range; give 1 to 255"),
        ("LAN_MONITOR", "rapid_arp_count = 4", "5: rapid_arp_count: 4 is out of range; give 5 to 60"),
        (
            "LAN_MONITOR",
            "rapid_arp_interval_s = 4\nrapid_arp_count = 16",
            "6: rapid_arp_count: 16 announcements every 4 s take more than 60 s; give fewer",
        ),
        (
            "LAN_MONITOR",
            "[[aggregate.member]]\nname = 'eth3'",
            "6: name: `eth3` is not in `members`; they are eth1, eth2",
        ),
        (
            "LAN_MONITOR",
            "[[aggregate.member]]\nname = 'eth1'\ncost = 101",
            "7: cost: 101 is out of range; give 1 to 100",
        ),
        (
            "LAN_MONITOR",
            "[[aggregate.member]]\nname = 'eth1'\n[[aggregate.member]]\nname = 'eth1'",
            "8: name: `eth1` has a section already",
        ),
        (
            "LAN_MONITOR",
            "[[aggregate.member]]\nname = 'eth1'\nprio = 1",
            "7: prio: there is no such key in [aggregate.member]; did you mean `priority`?",
        ),
        (
            "LAN_MONITOR",
            "policy = 'COST_BASED'\n[[aggregate.member]]\nname = 'eth1'\ncost = 5",
            "5: policy: COST_BASED needs the cost of every member; give `eth2` an [[aggregate.member]] with `cost`",
        ),
    ] {
        assert_eq!(line(mode, more), format!("vswitches.toml:{wanted}"), "for {mode} {more}");
    }
    assert_eq!(
        line(
            "LAN_MONITOR",
            "policy = 'COST_BASED'\n[[aggregate.member]]\nname = 'eth1'\ncost = 5\n[[aggregate.member]]\nname = 'eth2'\ncost = 7"
        ),
        ""
    );
}

#[test]
fn the_lacp_key_is_the_number_in_the_name() {
    let key = |name: &str| AggregateConfig::new(name, AggregateMode::LacpAuto, Vec::new()).lacp_key();
    assert_eq!(["lan900", "bond0", "agg", "x70000", "7"].map(key), [900, 1, 1, 1, 7]);
    let own = AggregateConfig {
        key: Some(5),
        ..AggregateConfig::new("lan900", AggregateMode::LacpAuto, Vec::new())
    };
    assert_eq!(own.lacp_key(), 5);
}

#[test]
fn lines_for_a_wrong_guest() {
    let base = "[[network]]\nbus = 0\ndevice = 5\nvswitch = 'vs_site'\nport = 1\n";
    let cases: &[(&str, &str)] = &[
        ("macc = 'x'", "macc: there is no such key in [network]; did you mean `mac`?"),
        ("mac = 5", "mac: invalid type: integer `5`, expected a text in quotes"),
        (
            "mac = '1e:29'",
            "mac: `1e:29` is not a MAC address; write six hexadecimal pairs, such as 1e:29:8c:88:a5:eb",
        ),
        (
            "mac = '01:00:5e:00:00:01'",
            "mac: 01:00:5e:00:00:01 is multicast; clear bit 0 of the first pair, or leave the key out",
        ),
        (
            "mac = '00:00:00:00:00:00'",
            "mac: 00:00:00:00:00:00 is no station's address; give a unicast one or leave the key out",
        ),
        (
            "mac = '52:54:00:00:00:01'",
            "mac: 52:54:00:00:00:01 belongs to this host's eth0; give the guest another one",
        ),
        ("vlan = 0", "vlan: `0` is not a VLAN id; give a number from 1 to 4094"),
        ("vlan = 4095", "vlan: `4095` is not a VLAN id; give a number from 1 to 4094"),
        ("trunk = [10, 10]", "trunk: VLAN 10 is named twice"),
        ("trunk = [10, 5000]", "trunk: `5000` is not a VLAN id; give a number from 1 to 4094"),
        ("ips = ['192.0.2.256']", "ips: invalid IP address syntax"),
        ("ips = ['224.0.0.1']", "ips: 224.0.0.1 is no host's address"),
        ("mtu = 67", "mtu: 67 is out of range; give 68 to 9000"),
        ("mtu = 9001", "mtu: 9001 is out of range; give 68 to 9000"),
        ("mtu = 70000", "mtu: invalid value: integer `70000`, expected a whole number from 0 to 65535"),
        ("queue_pairs = 0", "queue_pairs: 0 is out of range; give 1 to 16"),
        ("mac_limit = 0", "mac_limit: 0 is out of range; give 1 to 8192"),
        (
            "adaptor = 'e1000'",
            "adaptor: unknown variant `e1000`, expected one of `avio_lan`, `aviolan`, `lan`",
        ),
        ("socket = 'rel.sock'", "socket: `rel.sock` is not an absolute path"),
        (
            "socket_perm = '0888'",
            "socket_perm: `0888` is not a socket mode; give octal digits in quotes, such as \"0660\"",
        ),
    ];
    for (line, wanted) in cases {
        assert_eq!(
            errors(SWITCH, &[("guest1", &format!("{base}{line}\n"))]),
            format!("guests/guest1.toml:6: {wanted}"),
            "for {line}"
        );
    }
    let long = format!("{base}socket = '/{}'\n", "x".repeat(107));
    assert_eq!(
        errors(SWITCH, &[("guest1", &long)]),
        "guests/guest1.toml:6: socket: the path has 108 bytes; 107 at most"
    );
}

#[test]
fn lines_for_what_does_not_fit_together() {
    let network = |device: u8, port: u32, more: &str| {
        format!("[[network]]\nbus = 0\ndevice = {device}\nvswitch = 'vs_site'\nport = {port}\n{more}\n")
    };
    let one = |text: &str| errors(SWITCH, &[("guest1", text)]);
    assert_eq!(
        one("[[network]]\ndevice = 1\nvswitch = 'vs_sit'\nport = 1\n"),
        "guests/guest1.toml:3: vswitch: there is no vswitch `vs_sit`; there are localnet, vs_site; did you mean `vs_site`?"
    );
    assert_eq!(
        one(&network(1, 9, "")),
        "guests/guest1.toml:5: port: 9 is out of range; vswitch `vs_site` has ports 1 to 8 (max_ports)"
    );
    assert_eq!(
        one(&network(1, 0, "")),
        "guests/guest1.toml:5: port: 0 is out of range; vswitch `vs_site` has ports 1 to 8 (max_ports)"
    );
    assert_eq!(
        one(&format!("{}{}", network(1, 1, ""), network(1, 2, ""))),
        "guests/guest1.toml:9: device: bus 0 device 1 is already taken at guests/guest1.toml:3; choose another\n\
         guests/guest1.toml:7: mac: 62:8f:35:12:4f:64 is already used at guests/guest1.toml:1; every interface needs its own"
            .replace("62:8f:35:12:4f:64", &MacAddr::derived("guest1", 0, 1).to_string())
    );
    assert_eq!(
        one(&format!("{}[[storage]]\ndevice = 1\n", network(1, 1, ""))),
        "guests/guest1.toml:8: device: bus 0 device 1 is already taken at guests/guest1.toml:3; choose another"
    );
    assert_eq!(
        one(&format!("{}{}", network(1, 1, ""), network(2, 1, ""))),
        "guests/guest1.toml:11: port: port 1 of `vs_site` is already taken by this guest at guests/guest1.toml:5; choose another"
    );
    assert_eq!(
        one("name = 'guest2'\n"),
        "guests/guest1.toml:1: name: `guest2` is not what the file is called; write `guest1` or rename the file"
    );
    assert_eq!(
        one(&network(1, 1, "vlan = 10\ntrunk = [10]")),
        "guests/guest1.toml:7: trunk: VLAN 10 is the port's untagged `vlan`; name it in one of them"
    );
    let mac = "mac = '1e:29:8c:88:a5:eb'";
    assert_eq!(
        errors(SWITCH, &[("guest1", &network(1, 1, mac)), ("guest2", &network(1, 2, mac))]),
        "guests/guest2.toml:6: mac: 1e:29:8c:88:a5:eb is already used at guests/guest1.toml:6; every interface needs its own"
    );
    let socket = "socket = '/run/a.sock'";
    assert_eq!(
        errors(SWITCH, &[("guest1", &network(1, 1, socket)), ("guest2", &network(1, 2, socket))]),
        "guests/guest2.toml:6: socket: `/run/a.sock` is already used at guests/guest1.toml:6"
    );
    // All that is wrong is said at once; a broken switch file does not make every guest's vswitch unknown.
    assert_eq!(
        errors("[workers\n", &[("guest1", &network(1, 1, "mtu = 1")), ("guest2", "[[network]]\nx = 1\n")])
            .lines()
            .map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(": "))
            .collect::<Vec<_>>(),
        ["vswitches.toml:1: is not TOML", "guests/guest1.toml:6: mtu", "guests/guest2.toml:2: x"]
    );
}

#[test]
fn what_is_right_is_loaded_with_numbers_and_addresses() {
    let network =
        |vlan: &str| format!("[[network]]\nbus = 0\ndevice = 5\nvswitch = 'vs_site'\nport = 1\n{vlan}\n");
    // Two guests may reserve one port.
    let config = load(
        "[[vswitch]]\nname = 'b'\n[[vswitch]]\nname = 'vs_site'\n",
        &[("guest1", &network("vlan = 120")), ("guest2", &network("adaptor = 'lan'"))],
    );
    let numbers: Vec<_> =
        config.vswitches.iter().map(|vswitch| (vswitch.number, vswitch.settings.name.as_str())).collect();
    assert_eq!(numbers, [(1, "localnet"), (2, "b"), (3, "vs_site")]);
    assert_eq!(config.networks().count(), 2);
    assert_eq!(config.guests["guest1"].networks[0].mac, Some(MacAddr::derived("guest1", 0, 5)));
    assert_eq!(
        config.warnings[0].to_string(),
        "guests/guest2.toml:6: adaptor: ports of adaptor lan come with a later release; until then the port stays reserved"
    );
    let renamed = load("[[vswitch]]\nname = 'b'\n[[vswitch]]\nname = 'localnet'\nmax_ports = 4\n", &[]);
    assert_eq!(renamed.vswitches[0].settings.max_ports, 4);
    assert_eq!(renamed.vswitches.len(), 2);
    let empty = Config::from_files(&Files::default(), &surroundings()).unwrap();
    assert_eq!(empty.vswitches.len(), 1);
}

#[test]
fn uplinks_are_accepted_where_the_daemon_can() {
    let text = "[[vswitch]]\nname = 'a'\nuplink = 'lan900'\n[[aggregate]]\nname = 'lan900'\nmode = 'LACP_AUTO'\nmembers = ['eth1', 'eth2']\n";
    let able = Surroundings::default();
    let config = Config::from_files(&files(text, &[]), &able).unwrap();
    assert_eq!(config.vswitch("a").unwrap().settings.uplink.as_deref(), Some("lan900"));
    let member = text.replace("uplink = 'lan900'", "uplink = 'eth1'");
    assert_eq!(
        Config::from_files(&files(&member, &[]), &able).unwrap_err().to_string(),
        "vswitches.toml:3: uplink: `eth1` is a member of aggregate `lan900`; name that"
    );
    let twice = format!("{text}[[vswitch]]\nname = 'b'\nuplink = 'lan900'\n");
    assert_eq!(
        Config::from_files(&files(&twice, &[]), &able).unwrap_err().to_string(),
        "vswitches.toml:10: uplink: `lan900` is already the uplink of `a`"
    );
}

#[test]
fn a_device_has_one_use() {
    let wire = "[[vswitch]]\nname = 'vs'\nuplink = 'eth1'\n";
    let aggregate = "[[vswitch]]\nname = 'vs'\nuplink = 'lan900'\n[[aggregate]]\nname = 'lan900'\nmode = 'MANUAL'\nmembers = ['eth1', 'eth2']\n";
    let lan = "[[network]]\ndevice = 1\nadaptor = 'lan'\nvswitch = 'vs'\nport = 1\ntap = 'eth1'\n";
    let host = "[[vswitch]]\nname = 'eth1'\nhost_port = true\n";
    for (vswitches, guests, wanted) in [
        (
            wire.to_owned(),
            Some(lan),
            "guests/g.toml:6: tap: `eth1` is the uplink of vswitch `vs`; give another name",
        ),
        (
            aggregate.to_owned(),
            Some(lan),
            "guests/g.toml:6: tap: `eth1` is a member of aggregate `lan900`; give another name",
        ),
        (
            format!("{wire}{host}"),
            None,
            "vswitches.toml:6: host_port: the host port is called like the vswitch, and that name is the uplink of vswitch `vs`; rename the vswitch",
        ),
        (
            format!("{aggregate}{host}"),
            None,
            "vswitches.toml:10: host_port: the host port is called like the vswitch, and that name is a member of aggregate `lan900`; rename the vswitch",
        ),
    ] {
        let guests: Vec<(&str, &str)> = guests.map(|text| ("g", text)).into_iter().collect();
        let refused = Config::from_files(&files(&vswitches, &guests), &Surroundings::default()).unwrap_err();
        assert_eq!(refused.to_string(), wanted);
    }
}

#[test]
fn what_stays_with_the_host_is_somebody_s() {
    for mac in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
        let text = format!(
            "[[vswitch]]\nname = 'a'\nuplink = 'e'\n[[uplink]]\nname = 'e'\nhost_macs = ['02:00:00:00:00:01', '{mac}']\n"
        );
        let refused = Config::from_files(&files(&text, &[]), &Surroundings::default()).unwrap_err();
        let wanted = format!(
            "vswitches.toml:6: host_macs: {mac} is no address of one station; broadcast and multicast reach the host anyway"
        );
        assert_eq!(refused.to_string(), wanted);
    }
}

#[test]
fn bytes_that_are_no_text_are_located() {
    let error = SourceFile::from_bytes("g.toml".into(), b"a = 1\nb = \xff\n".to_vec()).unwrap_err();
    assert_eq!(error.to_string(), "g.toml:2: is not UTF-8 text");
}

proptest! {
    #[test]
    fn no_text_panics(vswitches in "\\PC*", guest in "(\\[\\[network\\]\\]|\\[|\\]|=|\\n|'|\"|[a-z_]+|-?[0-9]+|\\PC)*") {
        let _ = errors(&vswitches, &[("guest1", &guest)]);
        let _ = errors(&guest, &[("guest1", &vswitches)]);
    }

    /// Lines of right keys with wrong values reach the checks behind the parser.
    #[test]
    fn no_value_panics(lines in proptest::collection::vec((0..26_usize, "(-?[0-9]{1,20}|true|'[^'\\n]*'|\\[[0-9, ]*\\]|\\['[^'\\n]*'\\]|\\{\\})"), 0..12)) {
        let keys = section(GUEST_SECTIONS, "network").unwrap().keys;
        let body: String = lines.iter().map(|(key, value)| format!("{} = {value}\n", keys[key % keys.len()].name)).collect();
        let _ = errors(SWITCH, &[("guest1", &format!("[[network]]\ndevice = 1\nvswitch = 'vs_site'\nport = 1\n{body}"))]);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(file) = SourceFile::from_bytes("x.toml".into(), bytes) {
            let files = Files {
                vswitches: Some(file.clone()),
                storage: Some(file.clone()),
                guests: [("x".to_owned(), file)].into(),
            };
            let _ = Config::from_files(&files, &surroundings());
        }
    }
}

#[test]
fn taps_are_named_once_and_by_lan_interfaces_only() {
    let switch = "[[vswitch]]\nname = 'vs'\nhost_port = true\n";
    let lan = |device: u8, more: &str| {
        format!("[[network]]\ndevice = {device}\nadaptor = 'lan'\nvswitch = 'vs'\nport = {device}\n{more}\n")
    };
    let avio = "[[network]]\ndevice = 1\nvswitch = 'vs'\nport = 1\ntap = 't'\n";
    for (guest, text, wanted) in [
        (
            "g",
            avio.to_owned(),
            "guests/g.toml:5: tap: only an interface with `adaptor = \"lan\"` has a TAP; leave it out",
        ),
        (
            "g",
            lan(1, "tap = 'vs'"),
            "guests/g.toml:6: tap: `vs` is the host port of vswitch `vs`; give another name",
        ),
        (
            "g",
            lan(1, "tap = 't'") + &lan(2, "tap = 't'"),
            "guests/g.toml:12: tap: `t` is already used at guests/g.toml:6; give another name",
        ),
        (
            "g",
            lan(1, "tap = 'g-0-2'") + &lan(2, ""),
            "guests/g.toml:7: tap: `g-0-2` is already used at guests/g.toml:6; give another name",
        ),
        (
            "a-long-guest",
            lan(1, ""),
            "guests/a-long-guest.toml:1: tap: `a-long-guest-0-1` cannot name a network device: 1 to 15 letters, digits, `_`, `-` or `.`; give `tap = \"NAME\"`",
        ),
    ] {
        assert_eq!(errors(switch, &[(guest, &text)]), wanted);
    }
}
