//! `io.avio.stord`: what the storage daemon tells and does. The JSON of INTERFACE, and additions.

use serde::{Deserialize, Serialize};

use crate::config::LunDevice;

/// The interface's name.
pub const STORD_INTERFACE: &str = "io.avio.stord";
/// Its description, for `GetInterfaceDescription`.
pub const STORD_INTERFACE_DESCRIPTION: &str = include_str!("../../varlink/io.avio.stord.varlink");
/// The socket's name under the run directory.
pub const STORD_SOCKET_FILE_NAME: &str = "stord.varlink";

/// Method names without the interface.
pub mod stord_method {
    /// [`super::ShowStorageParams`] to [`super::StorageReply`].
    pub const SHOW: &str = "Show";
    /// [`super::ShowStorageParams`] to nothing.
    pub const CLEAR_STATISTICS: &str = "ClearStatistics";
    /// Nothing to [`super::super::ReloadReply`].
    pub const RELOAD: &str = "Reload";
    /// [`super::EjectParams`] to nothing.
    pub const EJECT: &str = "Eject";
    /// [`super::InsertParams`] to nothing.
    pub const INSERT: &str = "Insert";
    /// [`super::LimitsParams`] to nothing.
    pub const SET_LIMITS: &str = "SetLimits";
    /// [`super::PlaceParams`] to nothing.
    pub const APPROVE: &str = "ApproveReplacement";
}

/// Error of every method that names a LUN, without the interface: [`PlaceParams`].
pub const NO_SUCH_LUN: &str = "NoSuchLun";

/// What `avio stor --json` prints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StorageReply {
    /// The adapters, by guest, bus and device.
    pub adapters: Vec<AdapterReport>,
}

/// An adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterReport {
    /// Its guest.
    pub guest: String,
    /// Its bus.
    pub bus: u8,
    /// Its device.
    pub device: u8,
    /// `avio_stor` or `avio_blk`.
    pub adaptor: String,
    /// `Connected` or `Disconnected`.
    pub state: String,
    /// Request queues.
    pub queues: u16,
    /// Its vhost-user socket (an addition to INTERFACE).
    #[serde(default)]
    pub socket: String,
    /// How often the guest woke us (an addition).
    #[serde(default)]
    pub kicks: u64,
    /// Interrupts written to the guest (an addition).
    #[serde(default)]
    pub notifications_sent: u64,
    /// Publications that the guest did not want to hear of (an addition).
    #[serde(default)]
    pub notifications_suppressed: u64,
    /// Sums over its LUNs; latencies are those of all their requests (an addition).
    #[serde(default)]
    pub stats: LunStatistics,
    /// Its LUNs, by target.
    pub luns: Vec<LunReport>,
}

/// A LUN.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LunReport {
    /// SCSI target; the LUN is 0.
    pub target: u8,
    /// Disk or DVD drive.
    pub device: LunDevice,
    /// As the definition names it.
    pub backing: String,
    /// `Online`, `Offline`, `Replaced`, `NoMedia`.
    pub state: String,
    /// Size, in bytes.
    pub size_bytes: u64,
    /// Logical block, in bytes.
    pub block_size: u32,
    /// Serial number that the guest sees (an addition to INTERFACE, as the next three).
    #[serde(default)]
    pub serial: String,
    /// Writes are refused.
    #[serde(default)]
    pub readonly: bool,
    /// Most requests a second; 0: no limit.
    #[serde(default)]
    pub iops: u64,
    /// Most bytes a second; 0: no limit.
    #[serde(default)]
    pub bytes_per_s: u64,
    /// Its numbers.
    pub stats: LunStatistics,
}

/// A LUN's numbers since they were cleared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LunStatistics {
    /// Reads that ended well.
    pub reads: u64,
    /// Writes that ended well.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards and zeroings.
    pub discards: u64,
    /// Requests that ended with sense data other than a unit attention.
    pub errors: u64,
    /// All requests that ended with sense data, by sense key (an addition to INTERFACE, as the next two).
    #[serde(default)]
    pub errors_by_sense_key: Vec<u64>,
    /// Requests that were aborted.
    #[serde(default)]
    pub aborts: u64,
    /// Resets of the LUN.
    #[serde(default)]
    pub resets: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// Most at a time (an addition).
    #[serde(default)]
    pub in_flight_max: u64,
    /// How long reads took.
    pub read_latency_us: LatencyReport,
    /// How long writes took.
    pub write_latency_us: LatencyReport,
}

/// Percentiles, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// Median.
    pub p50: f64,
    /// 90th (an addition to INTERFACE).
    #[serde(default)]
    pub p90: f64,
    /// 99th.
    pub p99: f64,
    /// 99.9th.
    pub p999: f64,
    /// 99.99th (an addition).
    #[serde(default)]
    pub p9999: f64,
}

/// Whose adapters; `None`: everybody's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShowStorageParams {
    /// The guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
}

/// Which LUN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The guest.
    pub guest: String,
    /// Its adapter's bus.
    pub bus: u8,
    /// Its adapter's device.
    pub device: u8,
    /// The target.
    pub target: u8,
}

/// Parameters of `ApproveReplacement`, and of the error `NoSuchLun`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceParams {
    /// The LUN.
    pub place: Place,
}

/// Parameters of `Eject`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EjectParams {
    /// The drive.
    pub place: Place,
    /// Although the guest has locked the medium in.
    pub force: bool,
}

/// Parameters of `Insert`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsertParams {
    /// The drive.
    pub place: Place,
    /// The ISO file.
    pub path: String,
}

/// Parameters of `SetLimits`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsParams {
    /// The LUN.
    pub place: Place,
    /// Requests a second; 0: no limit.
    pub iops: u64,
    /// Bytes a second; 0: no limit.
    pub bytes_per_s: u64,
}
