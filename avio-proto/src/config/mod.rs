//! The configuration files as types: `vswitches.toml` and `guests/NAME.toml` (INTERFACE, "Files").
//!
//! Owns what a key is called, what values it takes, what it means when left out, and which files make sense together
//! ([`Config::from_files`]). `avio_host::config` reads the files for the daemons; `tools` edits them and checks its edit
//! before anything is replaced. Nothing here opens a file or keeps state.

mod aggregate;
mod aggregate_check;
mod backing;
mod check;
mod errors;
mod guest;
mod keys;
mod loaded;
mod mac;
mod names;
mod parse;
mod source;
mod storage;
mod vlan;
mod vswitches;

pub use aggregate::{
    AggregateConfig, AggregateMode, Balance, LacpTimeout, MEMBERS_MAX, MEMBERS_MIN, MemberConfig,
    MonitorPolicy,
};
pub use backing::{BackingError, BackingSpec, FaultRules, parse_size};
pub use errors::{ConfigError, ConfigErrors, nearest};
pub use guest::{
    BackingCache, DEFAULT_MAC_LIMIT, DEFAULT_MTU, GuestFile, IPS_MAX, LunConfig, LunDevice, MAC_LIMIT_MAX,
    MTU_MAX, MTU_MIN, NetworkAdaptor, NetworkConfig, QUEUE_PAIRS_MAX, SOCKET_PATH_LEN_MAX, SocketPerm,
    SocketRole, StorageAdaptor, StorageConfig,
};
pub use keys::{GUEST_SECTIONS, Key, STORAGE_SECTIONS, Section, TakesEffect, VSWITCHES_SECTIONS, section};
pub use loaded::{Capabilities, Config, Guest, NumberedVswitch, Surroundings};
pub use mac::{MacAddr, MacError};
pub use names::{
    DEVICE_NAME_LEN_MAX, DeviceNameError, NAME_LEN_MAX, NameError, check_device_name, check_name,
};
pub use source::{Files, SourceFile};
pub use storage::{DEFAULT_TIMEOUT_S, LunDefaults, StorageFile};
pub use vlan::{VlanError, VlanId};
pub use vswitches::{
    DEFAULT_MAX_PORTS, LOCALNET, MAX_PORTS_MAX, PollMode, SPIN_US_MAX, UplinkAccess, UplinkConfig,
    VswitchConfig, VswitchesFile, WORKERS_MAX, WorkersConfig,
};

/// The version of the file format that this release writes; a file without `version` has this one.
pub const FORMAT_VERSION: u32 = 1;

/// What `version` is when a file does not say.
pub(crate) fn format_version() -> u32 {
    FORMAT_VERSION
}

/// Serde's way to say that a switch is on when left out.
pub(crate) fn on() -> bool {
    true
}

#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod tests;
