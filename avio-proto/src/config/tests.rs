//! The types against the texts of INTERFACE, and the key table against the types.

use serde::de::DeserializeOwned;

use super::*;

const VSWITCHES: &str = r#"
[workers]
cores = [1]
poll = "adaptive"
spin_us = 50

[[vswitch]]
name = "vs_site"
max_ports = 100
uplink = "lan900"

[[aggregate]]
name = "lan900"
mode = "LACP_AUTO"
balance = "LB_MAC"
members = ["eth1", "eth2"]
"#;

const GUEST: &str = r#"
version = 1
name = "guest1"
pin_memory = false

[[network]]
bus = 0
device = 5
adaptor = "avio_lan"
vswitch = "vs_site"
port = 1
mac = "1e:29:8c:88:a5:eb"
vlan = 120
trunk = [10, 20]
ips = ["192.0.2.7"]
trusted = false
strict = true
isolated = false
mac_limit = 16
queue_pairs = 1
mtu = 1500
rate_mbps = 0
storm_pps = 0

[[storage]]
bus = 0
device = 4
adaptor = "avio_stor"
queues = 1

[[storage.lun]]
target = 0
device = "disk"
backing = "disk:/dev/disk/by-id/x"
readonly = false
share = false
block_size = 512
serial = "s"
iops = 0
mib_per_s = 0
cache = "writethrough"
timeout_s = 30
"#;

#[test]
fn the_files_of_interface_are_read() {
    let file: VswitchesFile = toml::from_str(VSWITCHES).unwrap();
    assert_eq!(file.workers.placement(), [Some(1)]);
    assert_eq!(file.vswitch[0].uplink.as_deref(), Some("lan900"));
    assert!(file.vswitch[0].enabled);
    assert_eq!(file.aggregate[0].mode, AggregateMode::LacpAuto);

    let guest: GuestFile = toml::from_str(GUEST).unwrap();
    let network = &guest.network[0];
    assert_eq!(network.mac.unwrap().to_string(), "1e:29:8c:88:a5:eb");
    assert_eq!(network.vlan, VlanId::new(120));
    assert_eq!(network.socket_file_name(), "net-0-5.sock");
    assert_eq!(guest.storage[0].lun[0].timeout_s, Some(30));
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let guest: GuestFile =
        toml::from_str("[[network]]\ndevice = 1\nvswitch = 'v'\nport = 1\nadaptor = 'aviolan'").unwrap();
    let network = &guest.network[0];
    assert_eq!(guest.version, 1);
    assert_eq!((network.mtu, network.queue_pairs, network.mac_limit), (1500, 1, 16));
    assert!(network.strict && !network.trusted && !network.isolated && !network.flood);
    assert_eq!(network.adaptor.name(), "avio_lan");
    assert_eq!(network.mac_of("g"), MacAddr::derived("g", 0, 1));
    let file: VswitchesFile = toml::from_str("[[vswitch]]\nname = 'v'").unwrap();
    assert_eq!(file.vswitch[0], VswitchConfig::local("v"));
    assert_eq!(file.workers.placement(), [None]);
    assert_eq!(toml::from_str::<VswitchesFile>("").unwrap(), VswitchesFile::default());
}

#[test]
fn socket_modes_are_octal() {
    let perm = |value: &str| {
        toml::from_str::<GuestFile>(&format!(
            "[[network]]\ndevice = 1\nvswitch = 'v'\nport = 1\nsocket_perm = {value}"
        ))
        .map(|guest| guest.network[0].socket_perm.unwrap().mode())
    };
    assert_eq!(perm("\"0660\""), Ok(0o660));
    assert_eq!(perm("\"600\""), Ok(0o600));
    assert_eq!(perm("0o660"), Ok(0o660));
    assert!(perm("\"0990\"").unwrap_err().to_string().contains("octal digits in quotes"));
    assert!(perm("660").unwrap_err().to_string().contains("octal digits in quotes"));
    assert!(perm("\"+660\"").is_err());
}

/// The fields that serde knows, from its own error for a field that it does not know.
fn fields_of<T: DeserializeOwned>(prefix: &str) -> Vec<String> {
    let error = toml::from_str::<T>(&format!("{prefix}\nzzz_not_a_key = 1")).err().unwrap();
    let listed = error.message().split("expected one of").nth(1).unwrap().to_owned();
    let mut names: Vec<String> = listed.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    names.sort();
    names
}

fn keys_of(sections: &'static [Section], path: &str) -> Vec<String> {
    let mut names: Vec<String> =
        section(sections, path).unwrap().keys.iter().map(|key| key.name.to_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_key_table_is_complete() {
    assert_eq!(fields_of::<VswitchesFile>(""), keys_of(VSWITCHES_SECTIONS, ""));
    for path in ["workers", "vswitch", "uplink", "aggregate"] {
        let header = if path == "workers" { "[workers]" } else { &format!("[[{path}]]") };
        assert_eq!(fields_of::<VswitchesFile>(header), keys_of(VSWITCHES_SECTIONS, path));
    }
    assert_eq!(
        fields_of::<VswitchesFile>(
            "[[aggregate]]\nname='a'\nmode='MANUAL'\nmembers=[]\n[[aggregate.member]]"
        ),
        keys_of(VSWITCHES_SECTIONS, "aggregate.member")
    );
    assert_eq!(fields_of::<GuestFile>(""), keys_of(GUEST_SECTIONS, ""));
    for path in ["network", "storage"] {
        assert_eq!(fields_of::<GuestFile>(&format!("[[{path}]]")), keys_of(GUEST_SECTIONS, path));
    }
    assert_eq!(
        fields_of::<GuestFile>("[[storage]]\ndevice=1\n[[storage.lun]]"),
        keys_of(GUEST_SECTIONS, "storage.lun")
    );
}
