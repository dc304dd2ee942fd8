//! `guests/NAME.toml`: a guest's network and storage adapters.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{MacAddr, VlanId};

/// MTU of a port that does not say, in bytes of Ethernet payload.
pub const DEFAULT_MTU: u16 = 1500;
/// Smallest MTU, in bytes: what IPv4 asks every link for (RFC 791), and virtio's lower bound (virtio 1.3 §5.1.4.1).
pub const MTU_MIN: u16 = 68;
/// Largest MTU, in bytes: jumbo frames.
pub const MTU_MAX: u16 = 9000;
/// Most queue pairs of a port.
pub const QUEUE_PAIRS_MAX: u16 = 16;
/// Addresses that a `trusted` port may have learned at a time, unless it says.
pub const DEFAULT_MAC_LIMIT: u32 = 16;
/// Largest `mac_limit`: bounds what one port can take of the table.
pub const MAC_LIMIT_MAX: u32 = 8192;

/// Most addresses in `ips`: the guard compares each frame with all of them.
pub const IPS_MAX: usize = 64;
/// Longest path of a Unix socket, in bytes (sun_path without its NUL, unix(7)).
pub const SOCKET_PATH_LEN_MAX: usize = 107;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestFile {
    /// Format version; only [`super::FORMAT_VERSION`] exists.
    #[serde(default = "super::format_version")]
    pub version: u32,
    /// The guest's name, the same as the file's; left out: the file's name without `.toml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Storage may pin this guest's memory; promises no balloon, free-page reporting or virtio-mem.
    #[serde(default)]
    pub pin_memory: bool,
    /// Network interfaces.
    #[serde(default)]
    pub network: Vec<NetworkConfig>,
    /// Storage adapters. `avio-vswitchd` only checks their shape.
    #[serde(default)]
    pub storage: Vec<StorageConfig>,
}

/// `[[network]]`: one interface of a guest and the vswitch port that it reserves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Bus, with `device` unique in the guest; names the socket.
    #[serde(default)]
    pub bus: u8,
    /// Device, with `bus` unique in the guest; names the socket.
    pub device: u8,
    /// What the guest sees.
    #[serde(default)]
    pub adaptor: NetworkAdaptor,
    /// Name of the vswitch.
    pub vswitch: String,
    /// Port number there, from 1. Several guests may reserve one port; one at a time is active (SEMANTICS 1.3).
    pub port: u32,
    /// The interface's address. Left out: [`MacAddr::derived`]; the loader fills that in, so it is always set in a
    /// loaded configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// VLAN of the guest's untagged frames; left out: the switch's untagged network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
    /// VLANs that the guest may tag itself (an extension); empty: tagged frames are discarded.
    #[serde(default)]
    pub trunk: Vec<VlanId>,
    /// Addresses that the guest may send from; guards IP, ARP and ND. Empty: not guarded.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// The port may send from any address that is not protected, and the switch learns them.
    #[serde(default)]
    pub trusted: bool,
    /// The source address must be `mac`. A `trusted` port is not held to it.
    #[serde(default = "super::on")]
    pub strict: bool,
    /// No traffic with other isolated ports.
    #[serde(default)]
    pub isolated: bool,
    /// Most addresses learned on a `trusted` port, 1 to [`MAC_LIMIT_MAX`].
    #[serde(default = "default_mac_limit")]
    pub mac_limit: u32,
    /// Most queue pairs that the guest may use, 1 to [`QUEUE_PAIRS_MAX`].
    #[serde(default = "default_queue_pairs")]
    pub queue_pairs: u16,
    /// Largest payload of a frame, in bytes, [`MTU_MIN`] to [`MTU_MAX`].
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// Most that the guest may send, in 10^6 bits a second; 0: no limit.
    #[serde(default)]
    pub rate_mbps: u32,
    /// Most broadcast and multicast frames that the guest may send a second; 0: no limit.
    #[serde(default)]
    pub storm_pps: u32,
    /// Deliver frames here whose destination no port has.
    #[serde(default)]
    pub flood: bool,
    /// Offer checksum and segmentation offloads to the guest.
    #[serde(default = "super::on")]
    pub offloads: bool,
    /// Offer mergeable receive buffers (VIRTIO_NET_F_MRG_RXBUF).
    #[serde(default = "super::on")]
    pub mergeable: bool,
    /// Offer packed rings (VIRTIO_F_RING_PACKED).
    #[serde(default = "super::on")]
    pub packed: bool,
    /// Offer in-order completion (VIRTIO_F_IN_ORDER).
    #[serde(default = "super::on")]
    pub in_order: bool,
    /// Name of the TAP (or other network device) that the VMM's emulated NIC is attached to; `lan` only. Left out:
    /// `GUEST-BUS-DEVICE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Path of the vhost-user socket instead of the one under the run directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Who listens.
    #[serde(default)]
    pub socket_role: SocketRole,
    /// Owner of the socket: a user name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_owner: Option<String>,
    /// Group of the socket: a group name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_group: Option<String>,
    /// Permission bits of the socket, octal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_perm: Option<SocketPerm>,
}

fn default_mac_limit() -> u32 {
    DEFAULT_MAC_LIMIT
}

fn default_queue_pairs() -> u16 {
    1
}

fn default_mtu() -> u16 {
    DEFAULT_MTU
}

impl NetworkConfig {
    /// The interface's address: `mac`, or the one derived from the guest's name, bus and device.
    #[must_use]
    pub fn mac_of(&self, guest: &str) -> MacAddr {
        self.mac.unwrap_or_else(|| MacAddr::derived(guest, self.bus, self.device))
    }

    /// The network device that a `lan` interface is attached through: `tap`, or one named after guest, bus and device.
    #[must_use]
    pub fn tap_name(&self, guest: &str) -> String {
        self.tap.clone().unwrap_or_else(|| format!("{guest}-{}-{}", self.bus, self.device))
    }

    /// The file name of its socket under `RUN/guests/NAME/` (INTERFACE, "Sockets").
    #[must_use]
    pub fn socket_file_name(&self) -> String {
        format!("net-{}-{}.sock", self.bus, self.device)
    }
}

/// What a guest sees as its network interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkAdaptor {
    /// virtio-net over vhost-user.
    #[default]
    #[serde(rename = "avio_lan", alias = "aviolan")]
    AvioLan,
    /// Emulated by the VMM and attached through a TAP port.
    #[serde(rename = "lan")]
    Lan,
}

impl NetworkAdaptor {
    /// The name in files and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            NetworkAdaptor::AvioLan => "avio_lan",
            NetworkAdaptor::Lan => "lan",
        }
    }
}

/// Who listens on a vhost-user socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketRole {
    /// The daemon listens, the VMM connects.
    #[default]
    Server,
    /// The VMM listens, the daemon connects and reconnects.
    Client,
}

/// Permission bits of a socket: written as an octal text, `"0660"`, or as a TOML octal number, `0o660`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SocketPerm(u32);

impl SocketPerm {
    /// The permission bits `mode`, if they are within 0777.
    #[must_use]
    pub const fn new(mode: u32) -> Option<SocketPerm> {
        if mode <= 0o777 { Some(SocketPerm(mode)) } else { None }
    }

    /// The mode for chmod(2).
    #[must_use]
    pub const fn mode(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for SocketPerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl Serialize for SocketPerm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

impl<'de> Deserialize<'de> for SocketPerm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Both spellings. A plain decimal such as `660` means 0o1224 to TOML and is out of range, hence refused.
        struct Spelling;
        impl serde::de::Visitor<'_> for Spelling {
            type Value = SocketPerm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("octal permission bits in quotes, such as \"0660\"")
            }

            fn visit_i64<E: serde::de::Error>(self, mode: i64) -> Result<SocketPerm, E> {
                u32::try_from(mode).ok().and_then(SocketPerm::new).ok_or_else(|| {
                    E::custom(format_args!(
                        "`{mode}` is not a socket mode; give octal digits in quotes, such as \"0660\""
                    ))
                })
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SocketPerm, E> {
                let digits = text.strip_prefix("0o").unwrap_or(text);
                let octal = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
                let mode = if octal { u32::from_str_radix(digits, 8).ok() } else { None };
                mode.and_then(SocketPerm::new).ok_or_else(|| {
                    E::custom(format_args!(
                        "`{text}` is not a socket mode; give octal digits in quotes, such as \"0660\""
                    ))
                })
            }
        }
        deserializer.deserialize_any(Spelling)
    }
}

/// `[[storage]]`: one storage adapter of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageConfig {
    /// Bus, with `device` unique in the guest; names the socket.
    #[serde(default)]
    pub bus: u8,
    /// Device, with `bus` unique in the guest; names the socket.
    pub device: u8,
    /// What the guest sees.
    #[serde(default)]
    pub adaptor: StorageAdaptor,
    /// Request queues.
    #[serde(default = "default_queues")]
    pub queues: u16,
    /// Disks and drives.
    #[serde(default)]
    pub lun: Vec<LunConfig>,
    /// Path of the vhost-user socket instead of the one under the run directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Who listens.
    #[serde(default)]
    pub socket_role: SocketRole,
    /// Owner of the socket: a user name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_owner: Option<String>,
    /// Group of the socket: a group name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_group: Option<String>,
    /// Permission bits of the socket, octal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_perm: Option<SocketPerm>,
}

/// Most request queues of a storage adapter.
pub const STORAGE_QUEUES_MAX: u16 = 64;

impl StorageConfig {
    /// The file name of its socket under `RUN/guests/NAME/` (INTERFACE, "Sockets").
    #[must_use]
    pub fn socket_file_name(&self) -> String {
        format!("stor-{}-{}.sock", self.bus, self.device)
    }
}

fn default_queues() -> u16 {
    1
}

/// What a guest sees as its storage adapter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageAdaptor {
    /// A virtio-scsi host bus adapter.
    #[default]
    #[serde(rename = "avio_stor", alias = "aviostor")]
    AvioStor,
    /// One virtio-blk disk.
    #[serde(rename = "avio_blk", alias = "avioblk")]
    AvioBlk,
    /// Emulated by the VMM.
    #[serde(rename = "scsi")]
    Scsi,
}

/// `[[storage.lun]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LunConfig {
    /// SCSI target; the LUN is 0.
    #[serde(default)]
    pub target: u8,
    /// Kind of device.
    #[serde(default)]
    pub device: LunDevice,
    /// Where the data is: `disk:`, `lv:`, `file:`, `null:SIZE`, `memory:SIZE`, `fault:`. The storage daemon reads it.
    pub backing: String,
    /// Refuse writes.
    #[serde(default)]
    pub readonly: bool,
    /// Other LUNs may have the same backing.
    #[serde(default)]
    pub share: bool,
    /// Logical block size, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Serial number that the guest sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Most requests a second; 0: no limit.
    #[serde(default)]
    pub iops: u64,
    /// Most data a second, in MiB; 0: no limit.
    #[serde(default)]
    pub mib_per_s: u64,
    /// When a write is durable; left out: what the kind of backing makes right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<BackingCache>,
    /// Seconds until a backing that does not answer counts as failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
}

impl LunConfig {
    /// Most data a second, in bytes; 0: no limit.
    #[must_use]
    pub fn bytes_per_s(&self) -> u64 {
        self.mib_per_s.saturating_mul(1 << 20)
    }
}

/// Kind of a LUN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LunDevice {
    /// A disk.
    #[default]
    Disk,
    /// A DVD drive, always read-only.
    Dvd,
}

/// When a write is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackingCache {
    /// Before it succeeds.
    Writethrough,
    /// After a flush.
    Writeback,
}
