//! `vswitches.toml`: workers and vswitches; aggregates are in `aggregate`.

use serde::{Deserialize, Serialize};

use super::{AggregateConfig, MacAddr, VlanId};

/// Ports of a vswitch that does not say (the original's number).
pub const DEFAULT_MAX_PORTS: u32 = 100;
/// Most ports of a vswitch: port numbers fit 12 bits, and a table of them stays far below a megabyte.
pub const MAX_PORTS_MAX: u32 = 4096;
/// Most workers of a daemon: more than any host has cores to give away, and a mask of them fits a few words.
pub const WORKERS_MAX: usize = 128;
/// Longest time a worker may spin before it sleeps, in microseconds (one second).
pub const SPIN_US_MAX: u32 = 1_000_000;
/// The vswitch that always exists, has no wire and is number 1 (SEMANTICS 1.2).
pub const LOCALNET: &str = "localnet";

/// The whole file. A missing file is an empty one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VswitchesFile {
    /// Format version; only [`super::FORMAT_VERSION`] exists.
    #[serde(default = "super::format_version")]
    pub version: u32,
    /// Threads that move frames.
    #[serde(default)]
    pub workers: WorkersConfig,
    /// The vswitches, in the order of their numbers.
    #[serde(default)]
    pub vswitch: Vec<VswitchConfig>,
    /// Aggregates that `uplink` may name.
    #[serde(default)]
    pub aggregate: Vec<AggregateConfig>,
    /// How uplinks are used; what is not named here is used with all defaults.
    #[serde(default)]
    pub uplink: Vec<UplinkConfig>,
}

impl Default for VswitchesFile {
    fn default() -> Self {
        VswitchesFile {
            version: super::FORMAT_VERSION,
            workers: WorkersConfig::default(),
            vswitch: Vec::new(),
            aggregate: Vec::new(),
            uplink: Vec::new(),
        }
    }
}

/// `[workers]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkersConfig {
    /// One worker per entry, pinned to that core. Left out: one worker, not pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<Vec<u32>>,
    /// When workers spin and when they sleep.
    #[serde(default)]
    pub poll: PollMode,
    /// How long a worker spins without work before it sleeps, in microseconds.
    #[serde(default = "default_spin_us")]
    pub spin_us: u32,
}

fn default_spin_us() -> u32 {
    50
}

impl Default for WorkersConfig {
    fn default() -> Self {
        WorkersConfig { cores: None, poll: PollMode::default(), spin_us: default_spin_us() }
    }
}

impl WorkersConfig {
    /// The workers to start: the core of each, `None` for a worker that is not pinned.
    #[must_use]
    pub fn placement(&self) -> Vec<Option<u32>> {
        match &self.cores {
            Some(cores) => cores.iter().copied().map(Some).collect(),
            None => vec![None],
        }
    }
}

/// How workers wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PollMode {
    /// Never sleep.
    Always,
    /// Poll under load, sleep when idle.
    #[default]
    Adaptive,
    /// Sleep whenever there is no work.
    Never,
}

/// `[[vswitch]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VswitchConfig {
    /// What guests and commands call it.
    pub name: String,
    /// Port numbers run from 1 to this; 1 to [`MAX_PORTS_MAX`].
    #[serde(default = "default_max_ports")]
    pub max_ports: u32,
    /// A network device or aggregate; left out: a local switch without a wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// A TAP of the vswitch's name, through which the host itself talks to its guests.
    #[serde(default)]
    pub host_port: bool,
    /// Whether it is booted (`avio net -b`) or halted (`avio net -h`).
    #[serde(default = "super::on")]
    pub enabled: bool,
}

fn default_max_ports() -> u32 {
    DEFAULT_MAX_PORTS
}

impl VswitchConfig {
    /// A booted local vswitch with all defaults.
    #[must_use]
    pub fn local(name: &str) -> Self {
        VswitchConfig {
            name: name.to_owned(),
            max_ports: DEFAULT_MAX_PORTS,
            uplink: None,
            host_port: false,
            enabled: true,
        }
    }
}

/// `[[uplink]]`: how a network device or aggregate that some vswitch names is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UplinkConfig {
    /// The network device or aggregate.
    pub name: String,
    /// VLAN of untagged frames on the wire; left out: the vswitch's untagged network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native_vlan: Option<VlanId>,
    /// A device of less than 1 Gbit/s will do.
    #[serde(default)]
    pub allow_slow: bool,
    /// The best way to the device that is tried.
    #[serde(default)]
    pub access: UplinkAccess,
    /// Further addresses whose unicast frames stay with the host (those of its own interfaces on the device do anyway).
    #[serde(default)]
    pub host_macs: Vec<MacAddr>,
    /// Frames of one TCP flow from the wire reach guests that can take them so as one frame (GRO).
    #[serde(default = "super::on")]
    pub gro: bool,
    /// Guests whose VMM can be told (QMP) see whether the wire is up as their link's status.
    #[serde(default = "super::on")]
    pub link_status: bool,
}

impl UplinkConfig {
    /// With all defaults.
    #[must_use]
    pub fn of(name: &str) -> Self {
        UplinkConfig {
            name: name.to_owned(),
            native_vlan: None,
            allow_slow: false,
            access: UplinkAccess::default(),
            host_macs: Vec::new(),
            gro: true,
            link_status: true,
        }
    }
}

/// The ways to a network device, best first; one that a device lacks is stepped over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkAccess {
    /// AF_XDP, zero-copy where the driver has it.
    #[default]
    Auto,
    /// AF_XDP in the driver, copying.
    Copy,
    /// AF_XDP in the network stack, for every driver.
    Generic,
    /// A packet socket.
    Packet,
}
