//! The checks of a whole configuration: every value in its range, every name known, nothing twice.
//!
//! Called by [`Config::from_files`] only. Goes on after an error, so that an operator sees all of them at once.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::aggregate_check::aggregates;
use super::guest::{
    IPS_MAX, MAC_LIMIT_MAX, MTU_MAX, MTU_MIN, QUEUE_PAIRS_MAX, SOCKET_PATH_LEN_MAX, STORAGE_QUEUES_MAX,
};
use super::parse::parse;
use super::source::{Positions, last_key};
use super::vswitches::{LOCALNET, MAX_PORTS_MAX, SPIN_US_MAX, WORKERS_MAX};
use super::{
    AggregateConfig, BackingSpec, Config, ConfigError, ConfigErrors, Files, GUEST_SECTIONS, Guest, GuestFile,
    LunConfig, LunDevice, MacAddr, NetworkAdaptor, NetworkConfig, NumberedVswitch, STORAGE_SECTIONS,
    SourceFile, StorageAdaptor, StorageFile, Surroundings, VSWITCHES_SECTIONS, VswitchConfig, VswitchesFile,
    check_device_name, check_name, nearest,
};

/// One file under check.
pub(super) struct Place<'a> {
    source: &'a SourceFile,
    positions: Positions,
}

impl Place<'_> {
    /// An error at the key with that path.
    pub(super) fn at(&self, path: &str, message: impl Into<String>) -> ConfigError {
        self.source.error(self.positions.line(path), last_key(path), message.into())
    }

    /// `FILE:LINE` of a path, for an error elsewhere that refers to it.
    pub(super) fn named(&self, path: &str) -> String {
        match self.positions.line(path) {
            Some(line) => format!("{}:{line}", self.source.path.display()),
            None => self.source.path.display().to_string(),
        }
    }

    /// Holds a number to its range.
    pub(super) fn range(
        &self,
        errors: &mut Vec<ConfigError>,
        path: &str,
        value: u32,
        allowed: RangeInclusive<u32>,
    ) {
        if !allowed.contains(&value) {
            let message = format!("{value} is out of range; give {} to {}", allowed.start(), allowed.end());
            errors.push(self.at(path, message));
        }
    }
}

/// Parses and checks everything.
pub(super) fn check(files: &Files, surroundings: &Surroundings) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let mut config = Config::default();
    if let Some(source) = &files.storage {
        match parse::<StorageFile>(source, STORAGE_SECTIONS) {
            Ok((file, positions)) => {
                let place = Place { source, positions };
                place.range(&mut errors, "workers.spin_us", file.workers.spin_us, 0..=SPIN_US_MAX);
                if let Some(cores) = &file.workers.cores
                    && (cores.is_empty() || cores.len() > WORKERS_MAX)
                {
                    let message = format!("give 1 to {WORKERS_MAX} cores, or leave it out");
                    errors.push(place.at("workers.cores", message));
                }
                block_size(&place, &mut errors, "defaults.block_size", file.defaults.block_size, false);
                config.storage = file;
            }
            Err(found) => errors.extend(found),
        }
    }
    let switches_known = match &files.vswitches {
        Some(source) => match parse::<VswitchesFile>(source, VSWITCHES_SECTIONS) {
            Ok((file, positions)) => {
                vswitches(&Place { source, positions }, file, surroundings, &mut config, &mut errors);
                true
            }
            Err(found) => {
                errors.extend(found);
                false
            }
        },
        None => {
            number_vswitches(Vec::new(), &mut config);
            true
        }
    };
    let mut taken = Taken::default();
    for (stem, source) in &files.guests {
        match parse::<GuestFile>(source, GUEST_SECTIONS) {
            Ok((file, positions)) => {
                let place = Place { source, positions };
                let mut checker = GuestCheck {
                    place: &place,
                    surroundings,
                    switches_known,
                    taken: &mut taken,
                    errors: &mut errors,
                };
                checker.guest(stem, file, &mut config);
            }
            Err(found) => errors.extend(found),
        }
    }
    if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
}

/// `localnet` first, then the file's order.
fn number_vswitches(mut vswitches: Vec<VswitchConfig>, config: &mut Config) {
    let localnet = match vswitches.iter().position(|vswitch| vswitch.name == LOCALNET) {
        Some(position) => vswitches.remove(position),
        None => VswitchConfig::local(LOCALNET),
    };
    config.vswitches = (1..)
        .zip(std::iter::once(localnet).chain(vswitches))
        .map(|(number, settings)| NumberedVswitch { number, settings })
        .collect();
}

fn vswitches(
    place: &Place<'_>,
    file: VswitchesFile,
    surroundings: &Surroundings,
    config: &mut Config,
    errors: &mut Vec<ConfigError>,
) {
    workers(place, &file, surroundings, errors);
    aggregates(place, &file, errors);
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    let mut uplinks: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, vswitch) in file.vswitch.iter().enumerate() {
        let key = |name: &str| format!("vswitch[{index}].{name}");
        if let Err(error) = check_name(&vswitch.name) {
            errors.push(place.at(&key("name"), error.to_string()));
        }
        if let Some(first) = names.insert(&vswitch.name, index) {
            let first = place.named(&format!("vswitch[{first}].name"));
            errors.push(place.at(&key("name"), format!("`{}` is already defined at {first}", vswitch.name)));
        }
        place.range(errors, &key("max_ports"), vswitch.max_ports, 1..=MAX_PORTS_MAX);
        if vswitch.host_port
            && let Err(error) = check_device_name(&vswitch.name)
        {
            let message = format!("the host port is called like the vswitch, but {error}");
            errors.push(place.at(&key("host_port"), message));
        }
        if vswitch.host_port
            && let Some(whose) = wire_of(&file.vswitch, &file.aggregate, &vswitch.name)
        {
            let message = format!(
                "the host port is called like the vswitch, and that name is {whose}; rename the vswitch"
            );
            errors.push(place.at(&key("host_port"), message));
        }
        let Some(uplink) = &vswitch.uplink else { continue };
        if let Err(error) = check_name(uplink) {
            errors.push(place.at(&key("uplink"), error.to_string()));
        } else if vswitch.name == LOCALNET {
            errors.push(place.at(&key("uplink"), "localnet never has an uplink; define another vswitch"));
        } else if !surroundings.capabilities.uplinks {
            errors.push(place.at(
                &key("uplink"),
                format!(
                    "uplinks come with a later release; leave `uplink = \"{uplink}\"` out for a local vswitch"
                ),
            ));
        } else if let Some(aggregate) =
            file.aggregate.iter().find(|aggregate| aggregate.members.contains(uplink))
        {
            let name = &aggregate.name;
            errors.push(
                place.at(&key("uplink"), format!("`{uplink}` is a member of aggregate `{name}`; name that")),
            );
        }
        if let Some(first) = uplinks.insert(uplink, index) {
            let first = &file.vswitch[first].name;
            errors.push(place.at(&key("uplink"), format!("`{uplink}` is already the uplink of `{first}`")));
        }
    }
    for (index, uplink) in file.uplink.iter().enumerate() {
        let key = |name: &str| format!("uplink[{index}].{name}");
        if file.uplink[..index].iter().any(|other| other.name == uplink.name) {
            errors.push(place.at(&key("name"), format!("`{}` is described twice", uplink.name)));
        }
        if !file.vswitch.iter().any(|vswitch| vswitch.uplink.as_ref() == Some(&uplink.name)) {
            let message = format!("no vswitch has `uplink = \"{}\"`; name it there, too", uplink.name);
            errors.push(place.at(&key("name"), message));
        }
        if let Some(mac) = uplink.host_macs.iter().find(|mac| mac.is_multicast() || mac.is_zero()) {
            let message =
                format!("{mac} is no address of one station; broadcast and multicast reach the host anyway");
            errors.push(place.at(&key("host_macs"), message));
        }
    }
    config.workers = file.workers;
    config.uplinks = file.uplink;
    config.aggregates = file.aggregate;
    number_vswitches(file.vswitch, config);
}

/// Which wire the network device `name` is of, in words.
fn wire_of<'a>(
    vswitches: impl IntoIterator<Item = &'a VswitchConfig>,
    aggregates: &[AggregateConfig],
    name: &str,
) -> Option<String> {
    let mut vswitches = vswitches.into_iter();
    if let Some(vswitch) = vswitches.find(|vswitch| vswitch.uplink.as_deref() == Some(name)) {
        return Some(format!("the uplink of vswitch `{}`", vswitch.name));
    }
    let is_member = |aggregate: &&AggregateConfig| aggregate.members.iter().any(|member| member == name);
    aggregates.iter().find(is_member).map(|aggregate| format!("a member of aggregate `{}`", aggregate.name))
}

fn workers(
    place: &Place<'_>,
    file: &VswitchesFile,
    surroundings: &Surroundings,
    errors: &mut Vec<ConfigError>,
) {
    place.range(errors, "workers.spin_us", file.workers.spin_us, 0..=SPIN_US_MAX);
    let Some(cores) = &file.workers.cores else { return };
    if cores.is_empty() || cores.len() > WORKERS_MAX {
        let message =
            format!("give 1 to {WORKERS_MAX} cores, or leave the key out for one worker that is not pinned");
        errors.push(place.at("workers.cores", message));
    }
    for (index, core) in cores.iter().enumerate() {
        if cores[..index].contains(core) {
            errors
                .push(place.at("workers.cores", format!("core {core} is named twice; one worker per core")));
        }
        if let Some(known) = &surroundings.cores
            && !known.contains(core)
        {
            let known = known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            errors.push(
                place
                    .at("workers.cores", format!("there is no core {core} for this process; it has {known}")),
            );
        }
    }
}

/// What guests have taken so far, with where.
#[derive(Default)]
struct Taken {
    macs: BTreeMap<MacAddr, String>,
    sockets: BTreeMap<String, String>,
    taps: BTreeMap<String, String>,
}

/// The checks of one guest's file.
struct GuestCheck<'a> {
    place: &'a Place<'a>,
    surroundings: &'a Surroundings,
    /// Whether `vswitches.toml` was read: if not, every vswitch would seem unknown.
    switches_known: bool,
    taken: &'a mut Taken,
    errors: &'a mut Vec<ConfigError>,
}

impl GuestCheck<'_> {
    fn error(&mut self, path: &str, message: impl Into<String>) {
        self.errors.push(self.place.at(path, message));
    }

    fn guest(&mut self, stem: &str, file: GuestFile, config: &mut Config) {
        if let Err(error) = check_name(stem) {
            self.errors.push(self.place.source.error(None, "", format!("file name: {error}")));
        }
        if let Some(name) = file.name.as_deref().filter(|name| *name != stem) {
            let name: String = name.chars().take(80).collect();
            self.error(
                "name",
                format!("`{name}` is not what the file is called; write `{stem}` or rename the file"),
            );
        }
        let mut networks = file.network;
        let mut devices: BTreeMap<(u8, u8), String> = BTreeMap::new();
        let mut ports: BTreeMap<(String, u32), String> = BTreeMap::new();
        for (index, network) in networks.iter_mut().enumerate() {
            let path = format!("network[{index}]");
            self.device(&path, (network.bus, network.device), &mut devices);
            self.port(&path, network, config, &mut ports);
            self.mac(&path, network, stem);
            self.limits(&path, network);
            self.socket(&path, network.socket.as_deref());
            self.tap(&path, network, stem, config);
        }
        for (index, storage) in file.storage.iter().enumerate() {
            let path = format!("storage[{index}]");
            self.device(&path, (storage.bus, storage.device), &mut devices);
            self.socket(&path, storage.socket.as_deref());
            if storage.queues == 0 {
                self.error(&format!("{path}.queues"), "0 is out of range; give 1 or more");
            }
            for (position, lun) in storage.lun.iter().enumerate() {
                if storage.lun[..position].iter().any(|other| other.target == lun.target) {
                    let message = format!("target {} is already taken on this adapter", lun.target);
                    self.error(&format!("{path}.lun[{position}].target"), message);
                }
                self.lun(&format!("{path}.lun[{position}]"), lun);
            }
            if storage.adaptor == StorageAdaptor::AvioBlk && storage.lun.len() != 1 {
                let message =
                    format!("avio_blk is one disk: give it one [[storage.lun]], not {}", storage.lun.len());
                self.error(&path, message);
            }
            if storage.queues > STORAGE_QUEUES_MAX {
                let message = format!("{} is out of range; give 1 to {STORAGE_QUEUES_MAX}", storage.queues);
                self.error(&format!("{path}.queues"), message);
            }
        }
        let guest =
            Guest { name: stem.to_owned(), pin_memory: file.pin_memory, networks, storage: file.storage };
        config.guests.insert(stem.to_owned(), guest);
    }

    fn lun(&mut self, path: &str, lun: &LunConfig) {
        let dvd = lun.device == LunDevice::Dvd;
        match BackingSpec::parse(&lun.backing) {
            Err(error) => self.error(&format!("{path}.backing"), error.to_string()),
            Ok(BackingSpec::Empty) if !dvd => {
                self.error(
                    &format!("{path}.backing"),
                    "a disk needs a backing; only a dvd drive may be empty",
                );
            }
            Ok(_) => {}
        }
        block_size(self.place, self.errors, &format!("{path}.block_size"), lun.block_size, dvd);
        if lun
            .serial
            .as_ref()
            .is_some_and(|s| s.is_empty() || s.len() > 32 || !s.bytes().all(|b| b.is_ascii_graphic()))
        {
            self.error(&format!("{path}.serial"), "give 1 to 32 printable ASCII characters without spaces");
        }
        if lun.timeout_s == Some(0) {
            self.error(&format!("{path}.timeout_s"), "0 is out of range; give 1 or more seconds");
        }
    }

    fn device(&mut self, path: &str, id: (u8, u8), devices: &mut BTreeMap<(u8, u8), String>) {
        let here = format!("{path}.device");
        if let Some(first) = devices.get(&id) {
            let first = self.place.named(first);
            let message = format!("bus {} device {} is already taken at {first}; choose another", id.0, id.1);
            self.error(&here, message);
        } else {
            devices.insert(id, here);
        }
    }

    fn port(
        &mut self,
        path: &str,
        network: &NetworkConfig,
        config: &Config,
        ports: &mut BTreeMap<(String, u32), String>,
    ) {
        let here = format!("{path}.port");
        match config.vswitch(&network.vswitch) {
            None if self.switches_known => {
                let names = || config.vswitches.iter().map(|vswitch| vswitch.settings.name.as_str());
                let near = match nearest(&network.vswitch, names()) {
                    Some(near) => format!("; did you mean `{near}`?"),
                    None => String::new(),
                };
                let known = names().collect::<Vec<_>>().join(", ");
                let given: String = network.vswitch.chars().take(80).collect();
                let message = format!("there is no vswitch `{given}`; there are {known}{near}");
                self.error(&format!("{path}.vswitch"), message);
            }
            None => {}
            Some(vswitch) => {
                let settings = &vswitch.settings;
                if !(1..=settings.max_ports).contains(&network.port) {
                    let message = format!(
                        "{} is out of range; vswitch `{}` has ports 1 to {} (max_ports)",
                        network.port, settings.name, settings.max_ports
                    );
                    self.error(&here, message);
                }
            }
        }
        // Another guest may reserve the same port; the first that connects has it (SEMANTICS 1.3).
        let port = (network.vswitch.clone(), network.port);
        if let Some(first) = ports.get(&port) {
            let message = format!(
                "port {} of `{}` is already taken by this guest at {}; choose another",
                port.1,
                port.0,
                self.place.named(first)
            );
            self.error(&here, message);
        } else {
            ports.insert(port, here);
        }
    }

    fn mac(&mut self, path: &str, network: &mut NetworkConfig, guest: &str) {
        let here = format!("{path}.mac");
        let mac = network.mac_of(guest);
        network.mac = Some(mac);
        if mac.is_zero() {
            self.error(
                &here,
                "00:00:00:00:00:00 is no station's address; give a unicast one or leave the key out",
            );
        } else if mac.is_multicast() {
            self.error(
                &here,
                format!("{mac} is multicast; clear bit 0 of the first pair, or leave the key out"),
            );
        } else if let Some((interface, _)) = self.surroundings.host_macs.iter().find(|(_, host)| *host == mac)
        {
            self.error(
                &here,
                format!("{mac} belongs to this host's {interface}; give the guest another one"),
            );
        }
        if let Some(first) = self.taken.macs.get(&mac) {
            let message = format!("{mac} is already used at {first}; every interface needs its own");
            self.error(&here, message);
        } else {
            self.taken.macs.insert(mac, self.place.named(&here));
        }
    }

    fn limits(&mut self, path: &str, network: &NetworkConfig) {
        let key = |name: &str| format!("{path}.{name}");
        let place = self.place;
        place.range(self.errors, &key("mtu"), network.mtu.into(), MTU_MIN.into()..=MTU_MAX.into());
        place.range(self.errors, &key("queue_pairs"), network.queue_pairs.into(), 1..=QUEUE_PAIRS_MAX.into());
        place.range(self.errors, &key("mac_limit"), network.mac_limit, 1..=MAC_LIMIT_MAX);
        for (index, vlan) in network.trunk.iter().enumerate() {
            if network.trunk[..index].contains(vlan) {
                self.error(&key("trunk"), format!("VLAN {vlan} is named twice"));
            }
            if network.vlan == Some(*vlan) {
                self.error(
                    &key("trunk"),
                    format!("VLAN {vlan} is the port's untagged `vlan`; name it in one of them"),
                );
            }
        }
        if network.ips.len() > IPS_MAX {
            self.error(
                &key("ips"),
                format!("{} addresses are too many; {IPS_MAX} at most", network.ips.len()),
            );
        }
        for (index, ip) in network.ips.iter().enumerate() {
            if ip.is_multicast() || ip.is_unspecified() {
                self.error(&key("ips"), format!("{ip} is no host's address"));
            }
            if network.ips[..index].contains(ip) {
                self.error(&key("ips"), format!("{ip} is named twice"));
            }
        }
    }

    /// The network device of a `lan` interface.
    fn tap(&mut self, path: &str, network: &NetworkConfig, guest: &str, config: &mut Config) {
        let here = format!("{path}.tap");
        if network.adaptor != NetworkAdaptor::Lan {
            if network.tap.is_some() {
                self.error(&here, "only an interface with `adaptor = \"lan\"` has a TAP; leave it out");
            }
            return;
        }
        if !self.surroundings.capabilities.tap_ports {
            let message =
                "ports of adaptor lan come with a later release; until then the port stays reserved";
            config.warnings.push(self.place.at(&format!("{path}.adaptor"), message));
        }
        let name = network.tap_name(guest);
        if let Err(error) = check_device_name(&name) {
            let given = if network.tap.is_some() { "" } else { "; give `tap = \"NAME\"`" };
            return self.error(&here, format!("{error}{given}"));
        }
        if let Some(vswitch) = config
            .vswitches
            .iter()
            .find(|vswitch| vswitch.settings.host_port && vswitch.settings.name == name)
        {
            let vswitch = &vswitch.settings.name;
            self.error(&here, format!("`{name}` is the host port of vswitch `{vswitch}`; give another name"));
        }
        let vswitches = config.vswitches.iter().map(|vswitch| &vswitch.settings);
        if let Some(whose) = wire_of(vswitches, &config.aggregates, &name) {
            self.error(&here, format!("`{name}` is {whose}; give another name"));
        }
        if let Some(first) = self.taken.taps.get(&name) {
            let message = format!("`{name}` is already used at {first}; give another name");
            self.error(&here, message);
        } else {
            let place = if network.tap.is_some() { here } else { format!("{path}.device") };
            self.taken.taps.insert(name, self.place.named(&place));
        }
    }

    /// Either role has a path without the key: `guests/NAME/net-BUS-DEVICE.sock` in the run directory (INTERFACE).
    fn socket(&mut self, path: &str, socket: Option<&str>) {
        let here = format!("{path}.socket");
        let Some(socket) = socket else { return };
        let printable: String = socket.chars().take(120).collect::<String>().escape_debug().to_string();
        if !socket.starts_with('/') || socket.contains('\0') {
            self.error(&here, format!("`{printable}` is not an absolute path"));
        } else if socket.len() > SOCKET_PATH_LEN_MAX {
            self.error(&here, format!("the path has {} bytes; {SOCKET_PATH_LEN_MAX} at most", socket.len()));
        } else if let Some(first) = self.taken.sockets.get(socket) {
            let message = format!("`{printable}` is already used at {first}");
            self.error(&here, message);
        } else {
            self.taken.sockets.insert(socket.to_owned(), self.place.named(&here));
        }
    }
}

/// Logical blocks are 512 or 4,096 bytes; a DVD's are 2,048.
fn block_size(place: &Place<'_>, errors: &mut Vec<ConfigError>, path: &str, size: Option<u32>, dvd: bool) {
    let right = if dvd { matches!(size, None | Some(2048)) } else { matches!(size, None | Some(512 | 4096)) };
    if !right {
        let want = if dvd { "2048, or leave it out" } else { "512 or 4096" };
        errors.push(place.at(path, format!("{} is no block size; give {want}", size.unwrap_or_default())));
    }
}
