//! A whole configuration, checked: what the daemons run from.

use std::collections::BTreeMap;

use super::{
    AggregateConfig, ConfigError, ConfigErrors, Files, MacAddr, NetworkConfig, StorageConfig, StorageFile,
    UplinkConfig, VswitchConfig, WorkersConfig, check,
};

/// A configuration directory that is right in itself and on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Threads that move frames.
    pub workers: WorkersConfig,
    /// The vswitches by number: `localnet` first, whether or not the file names it, then in the file's order.
    pub vswitches: Vec<NumberedVswitch>,
    /// The aggregates, in the file's order.
    pub aggregates: Vec<AggregateConfig>,
    /// How uplinks are used, in the file's order.
    pub uplinks: Vec<UplinkConfig>,
    /// The storage daemon's own settings.
    pub storage: StorageFile,
    /// The guests by name.
    pub guests: BTreeMap<String, Guest>,
    /// What is allowed but probably not meant.
    pub warnings: Vec<ConfigError>,
}

/// A vswitch and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberedVswitch {
    /// From 1.
    pub number: u32,
    /// What the file says.
    pub settings: VswitchConfig,
}

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Whether storage may pin its memory.
    pub pin_memory: bool,
    /// Its network interfaces; `mac` is always set.
    pub networks: Vec<NetworkConfig>,
    /// Its storage adapters.
    pub storage: Vec<StorageConfig>,
}

/// What this release can do; a definition that needs more is refused with a line that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// `uplink` and `[[aggregate]]`.
    pub uplinks: bool,
    /// Ports of adaptor `lan`; without, they are only shown as reserved.
    pub tap_ports: bool,
}

/// What a configuration is checked against beyond itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// The host's interfaces and their addresses, which no guest may have.
    pub host_macs: Vec<(String, MacAddr)>,
    /// The cores that a worker can be pinned to; `None`: not known, not checked.
    pub cores: Option<Vec<u32>>,
    /// What the daemon can do.
    pub capabilities: Capabilities,
}

impl Default for Surroundings {
    /// Nothing known about the host, everything possible: for a tool that leaves the last word to the daemon.
    fn default() -> Self {
        Surroundings {
            host_macs: Vec::new(),
            cores: None,
            capabilities: Capabilities { uplinks: true, tap_ports: true },
        }
    }
}

impl Config {
    /// Parses and checks `files`, each by itself and against the others.
    ///
    /// # Errors
    /// Everything that is wrong. There is no half configuration.
    pub fn from_files(files: &Files, surroundings: &Surroundings) -> Result<Config, ConfigErrors> {
        check::check(files, surroundings)
    }

    /// The vswitch called `name`.
    #[must_use]
    pub fn vswitch(&self, name: &str) -> Option<&NumberedVswitch> {
        self.vswitches.iter().find(|vswitch| vswitch.settings.name == name)
    }

    /// How the uplink `name` is used.
    #[must_use]
    pub fn uplink(&self, name: &str) -> UplinkConfig {
        let found = self.uplinks.iter().find(|uplink| uplink.name == name);
        found.cloned().unwrap_or_else(|| UplinkConfig::of(name))
    }

    /// Every network interface with its guest's name.
    pub fn networks(&self) -> impl Iterator<Item = (&str, &NetworkConfig)> {
        self.guests
            .values()
            .flat_map(|guest| guest.networks.iter().map(move |network| (guest.name.as_str(), network)))
    }

    /// Every storage adapter that AVIO serves, with its guest.
    pub fn adapters(&self) -> impl Iterator<Item = (&Guest, &StorageConfig)> {
        let served = |storage: &&StorageConfig| storage.adaptor != super::StorageAdaptor::Scsi;
        self.guests
            .values()
            .flat_map(move |guest| guest.storage.iter().filter(served).map(move |storage| (guest, storage)))
    }
}
