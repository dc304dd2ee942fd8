//! `storage.toml`: workers of the storage daemon, and what LUNs have that do not say.

use serde::{Deserialize, Serialize};

use super::{BackingCache, LunConfig, WorkersConfig};

/// Seconds until a backing that does not answer counts as failed, unless a definition says: what Linux allows a disk.
pub const DEFAULT_TIMEOUT_S: u32 = 30;

/// The whole file. A missing file is an empty one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageFile {
    /// Format version; only [`super::FORMAT_VERSION`] exists.
    #[serde(default = "super::format_version")]
    pub version: u32,
    /// Threads that serve requests.
    #[serde(default)]
    pub workers: WorkersConfig,
    /// For LUNs whose definition does not say.
    #[serde(default)]
    pub defaults: LunDefaults,
}

impl Default for StorageFile {
    fn default() -> Self {
        Self {
            version: super::FORMAT_VERSION,
            workers: WorkersConfig::default(),
            defaults: LunDefaults::default(),
        }
    }
}

/// `[defaults]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LunDefaults {
    /// When a write is durable; left out: what the kind of backing makes right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<BackingCache>,
    /// Seconds until a backing that does not answer counts as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
    /// Logical block size, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Most requests a second; 0: no limit.
    #[serde(default)]
    pub iops: u64,
    /// Most data a second, in MiB; 0: no limit.
    #[serde(default)]
    pub mib_per_s: u64,
}

impl LunDefaults {
    /// A definition with the defaults filled in.
    #[must_use]
    pub fn applied(&self, lun: &LunConfig) -> LunConfig {
        let mut lun = lun.clone();
        lun.cache = lun.cache.or(self.cache);
        lun.timeout_s = lun.timeout_s.or(self.timeout_s).or(Some(DEFAULT_TIMEOUT_S));
        lun.block_size = lun.block_size.or(self.block_size);
        lun.iops = if lun.iops == 0 { self.iops } else { lun.iops };
        lun.mib_per_s = if lun.mib_per_s == 0 { self.mib_per_s } else { lun.mib_per_s };
        lun
    }
}
