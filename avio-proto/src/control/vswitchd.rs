//! `io.avio.vswitchd`: what the switch daemon tells and does. The JSON of INTERFACE, and additions.

use serde::{Deserialize, Serialize};

use super::Discards;
use crate::config::{MacAddr, NetworkAdaptor, PollMode, VlanId};

/// The interface's name.
pub const INTERFACE: &str = "io.avio.vswitchd";
/// Its description, for `GetInterfaceDescription`.
pub const INTERFACE_DESCRIPTION: &str = include_str!("../../varlink/io.avio.vswitchd.varlink");
/// Grows when a client that knows the previous one could be misled; additions do not count.
pub const PROTOCOL_VERSION: u32 = 1;
/// The socket's name under the run directory.
pub const SOCKET_FILE_NAME: &str = "vswitchd.varlink";

/// Method names without the interface.
pub mod method {
    /// [`super::InfoReply`].
    pub const INFO: &str = "Info";
    /// [`super::ShowParams`], [`super::ShowReply`].
    pub const SHOW: &str = "Show";
    /// [`super::ClearStatisticsParams`]; no reply parameters.
    pub const CLEAR_STATISTICS: &str = "ClearStatistics";
    /// [`super::ReloadReply`]; fails with [`super::error::REFUSED`].
    pub const RELOAD: &str = "Reload";
    /// [`super::RestartParams`]; no reply parameters.
    pub const RESTART: &str = "Restart";
    /// [`super::WorkersReply`].
    pub const WORKERS: &str = "Workers";
    /// [`super::DiscardsReply`].
    pub const DISCARDS: &str = "Discards";
    /// [`crate::control::AggregatesReply`].
    pub const AGGREGATES: &str = "Aggregates";
    /// [`crate::control::AggregateParams`]; no reply parameters.
    pub const REBALANCE: &str = "Rebalance";
    /// [`crate::control::AggregateParams`]; no reply parameters.
    pub const RESET_AGGREGATE: &str = "ResetAggregate";
    /// Every method, as described.
    pub const ALL: [&str; 10] = [
        INFO,
        SHOW,
        CLEAR_STATISTICS,
        RELOAD,
        RESTART,
        WORKERS,
        DISCARDS,
        AGGREGATES,
        REBALANCE,
        RESET_AGGREGATE,
    ];
}

/// Error names without the interface.
pub mod error {
    /// [`super::NoSuchVswitchParams`].
    pub const NO_SUCH_VSWITCH: &str = "NoSuchVswitch";
    /// [`super::RefusedParams`].
    pub const REFUSED: &str = "Refused";
    /// [`crate::control::AggregateParams`].
    pub const NO_SUCH_AGGREGATE: &str = "NoSuchAggregate";
    /// Every error, as described.
    pub const ALL: [&str; 3] = [NO_SUCH_VSWITCH, REFUSED, NO_SUCH_AGGREGATE];
}

/// Parameters of `Show`: one vswitch by name or by number, or all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShowParams {
    /// By name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vswitch: Option<String>,
    /// By number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
}

/// What `Show` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShowReply {
    /// In the order of their numbers.
    pub vswitches: Vec<Vswitch>,
}

/// A vswitch and its ports: the JSON of `avio net -S NAME -A --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vswitch {
    /// Its name.
    pub name: String,
    /// Its number; `localnet` is 1, the others follow in the order of the file.
    pub number: u32,
    /// Whether it forwards.
    pub state: VswitchState,
    /// Largest port number.
    pub max_ports: u32,
    /// Ports that at least one guest reserves.
    pub configured_ports: u32,
    /// Network device or aggregate; `None`: a local switch.
    pub uplink: Option<String>,
    /// Address of the uplink (an addition to INTERFACE).
    #[serde(default)]
    pub uplink_mac: Option<MacAddr>,
    /// First address of the host on the uplink (an addition to INTERFACE).
    #[serde(default)]
    pub uplink_ip: Option<String>,
    /// The configured ports, by number.
    pub ports: Vec<Port>,
    /// The wire (an addition to INTERFACE); `None`: a local switch.
    #[serde(default)]
    pub wire: Option<UplinkReport>,
    /// The host's own port (an addition to INTERFACE); `None`: it has none.
    #[serde(default)]
    pub host_port: Option<HostPort>,
}

/// The port through which the host talks to guests. Its counters are those of a port: inbound = delivered to the host, outbound = taken from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// Its network device.
    pub device: String,
    /// `Active`: the device is there; `Reserved`: it is waited for.
    pub state: PortState,
    /// Address of the device.
    pub mac: MacAddr,
    /// Frames and octets.
    pub counters: Counters,
    /// Discarded frames by reason.
    pub discards: Discards,
}

/// The wire of a vswitch. Its counters are those of a port: inbound = sent to the wire, outbound = taken from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkReport {
    /// Its address.
    pub mac: Option<MacAddr>,
    /// Largest payload of a frame through it, in bytes: the least of its devices' (an addition to INTERFACE).
    #[serde(default)]
    pub mtu: u32,
    /// VLAN of untagged frames.
    pub native_vlan: Option<VlanId>,
    /// Its network devices.
    pub members: Vec<UplinkMember>,
    /// Frames and octets.
    pub counters: Counters,
    /// Discarded frames by reason.
    pub discards: Discards,
}

/// A network device of an uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkMember {
    /// Its name.
    pub name: String,
    /// `Up`, `Down`, `Opening` or `Missing`.
    pub state: String,
    /// Its address.
    pub mac: Option<MacAddr>,
    /// Largest payload of a frame, in bytes.
    pub mtu: u32,
    /// How it was opened: `zero-copy`, `copy`, `generic` (AF_XDP) or `packet`; `None`: it is not open.
    pub access: Option<String>,
    /// Queues that are served.
    pub queues: u32,
    /// Frames may come in several buffers.
    pub multi_buffer: bool,
    /// Preferred busy polling.
    pub busy_poll: bool,
    /// Why it is not open, or not in a better way.
    pub remarks: Vec<String>,
    /// System calls only where the kernel asks for them (AF_XDP's need_wakeup).
    #[serde(default)]
    pub need_wakeup: bool,
    /// Entries of each of a queue's rings; 0: there are none.
    #[serde(default)]
    pub ring_size: u32,
    /// VLAN tags that are beside a frame are seen (XDP metadata; a packet socket always tells of them).
    #[serde(default)]
    pub vlan_metadata: bool,
    /// By what frames leave; `None`: it is not open.
    #[serde(default)]
    pub sent_by: Option<SentBy>,
    /// Bursts leave as XDP frames, while nothing is on the device's egress and its other end takes them (decision 0013).
    #[serde(default)]
    pub xdp_frames: bool,
    /// Who cuts long frames of guests; `None`: it is not open.
    #[serde(default)]
    pub segments_by: Option<OffloadedTo>,
    /// Who fills in the checksums that guests leave open; `None`: it is not open. Those of frames from the wire are for guests to verify.
    #[serde(default)]
    pub checksums_by: Option<OffloadedTo>,
    /// The hardware's receive offloads that were switched off and will be put back, by the kernel's names (`ethtool -k` has others for some).
    #[serde(default)]
    pub switched_off: Vec<String>,
}

/// By what frames leave a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SentBy {
    /// Test runs of a program that sends all frames of a batch (decision 0013).
    Burst,
    /// The transmit ring of an AF_XDP socket.
    Ring,
    /// A packet socket.
    Socket,
}

/// Who does a piece of work on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OffloadedTo {
    /// The switch, in software.
    Switch,
    /// The kernel: by the device if that can, else in software.
    Kernel,
    /// The device, as AF_XDP metadata asks it to.
    Device,
}

/// State of a vswitch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VswitchState {
    /// Forwards.
    Up,
    /// Halted.
    Down,
}

/// A port that at least one guest reserves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its number on the vswitch, from 1.
    pub number: u32,
    /// What it does now.
    pub state: PortState,
    /// The guest that uses it; `None` unless `state` is `Active`.
    pub active_vm: Option<String>,
    /// VLAN of untagged frames.
    pub untagged_vlanid: Option<VlanId>,
    /// The guests whose definitions name it.
    pub reserved_vms: Vec<String>,
    /// Kind of interface.
    pub adaptor: NetworkAdaptor,
    /// Address of the active guest's interface, else of the first reservation.
    pub mac: Option<MacAddr>,
    /// Frames and octets.
    pub counters: Counters,
    /// Discarded frames by reason.
    pub discards: Discards,
    /// VLANs that the guest may tag itself (an addition to INTERFACE).
    #[serde(default)]
    pub trunk: Vec<VlanId>,
    /// Largest payload of a frame, in bytes (an addition to INTERFACE).
    #[serde(default)]
    pub mtu: u16,
    /// Queue pairs that the guest has enabled (an addition to INTERFACE).
    #[serde(default)]
    pub queue_pairs: u16,
    /// Feature bits that the guest acknowledged, `0x` and hexadecimal digits; `None` if none is connected (an addition to
    /// INTERFACE). A text because JSON readers round 64-bit numbers.
    #[serde(default)]
    pub features: Option<String>,
    /// Path of its vhost-user socket (an addition to INTERFACE).
    #[serde(default)]
    pub socket: Option<String>,
    /// What the guest sees of its wire, if its VMM can be told (an addition to INTERFACE).
    #[serde(default)]
    pub link_status: Option<GuestLink>,
}

/// The status of a guest's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestLink {
    /// The wire is up, or there is none.
    Up,
    /// The wire is down.
    Down,
}

impl GuestLink {
    /// The name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            GuestLink::Up => "Up",
            GuestLink::Down => "Down",
        }
    }
}

/// State of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortState {
    /// A guest is connected.
    Active,
    /// Guests may connect.
    Reserved,
    /// The vswitch is halted.
    Down,
}

impl PortState {
    /// The name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            PortState::Active => "Active",
            PortState::Reserved => "Reserved",
            PortState::Down => "Down",
        }
    }
}

/// The eleven counters of a port (SEMANTICS 1.3). Inbound = delivered to the guest, outbound = taken from it; wire =
/// through the uplink, local = from or to another port or the host. Octets count Ethernet frames without FCS and without
/// the virtio-net header; an offloaded frame of 64 KiB is one frame. Outbound classes count frames that were forwarded;
/// discarded ones are only in the discard counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Octets delivered.
    pub inbound_octets: u64,
    /// Unicast frames delivered from the wire.
    pub inbound_unicast_wire: u64,
    /// Unicast frames delivered from this vswitch.
    pub inbound_unicast_local: u64,
    /// Broadcast and multicast frames delivered from the wire.
    pub inbound_nonunicast_wire: u64,
    /// Broadcast and multicast frames delivered from this vswitch.
    pub inbound_nonunicast_local: u64,
    /// Frames that should have been delivered here: the sum of the inbound reasons.
    pub inbound_discards: u64,
    /// Octets taken and forwarded.
    pub outbound_octets: u64,
    /// Unicast frames taken and sent to the wire.
    pub outbound_unicast_wire: u64,
    /// Unicast frames taken and forwarded on this vswitch.
    pub outbound_unicast_local: u64,
    /// Broadcast and multicast frames taken and forwarded; they go both ways.
    pub outbound_nonunicast: u64,
    /// Frames taken and not forwarded: the sum of the outbound reasons.
    pub outbound_discards: u64,
}

impl Counters {
    /// Adds `other` to each counter; they wrap at 2^64.
    pub fn add(&mut self, other: &Counters) {
        let pairs = [
            (&mut self.inbound_octets, other.inbound_octets),
            (&mut self.inbound_unicast_wire, other.inbound_unicast_wire),
            (&mut self.inbound_unicast_local, other.inbound_unicast_local),
            (&mut self.inbound_nonunicast_wire, other.inbound_nonunicast_wire),
            (&mut self.inbound_nonunicast_local, other.inbound_nonunicast_local),
            (&mut self.inbound_discards, other.inbound_discards),
            (&mut self.outbound_octets, other.outbound_octets),
            (&mut self.outbound_unicast_wire, other.outbound_unicast_wire),
            (&mut self.outbound_unicast_local, other.outbound_unicast_local),
            (&mut self.outbound_nonunicast, other.outbound_nonunicast),
            (&mut self.outbound_discards, other.outbound_discards),
        ];
        for (to, count) in pairs {
            *to = to.wrapping_add(count);
        }
    }

    /// Name in JSON and value of each, in the order of INTERFACE.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 11] {
        [
            ("inbound_octets", self.inbound_octets),
            ("inbound_unicast_wire", self.inbound_unicast_wire),
            ("inbound_unicast_local", self.inbound_unicast_local),
            ("inbound_nonunicast_wire", self.inbound_nonunicast_wire),
            ("inbound_nonunicast_local", self.inbound_nonunicast_local),
            ("inbound_discards", self.inbound_discards),
            ("outbound_octets", self.outbound_octets),
            ("outbound_unicast_wire", self.outbound_unicast_wire),
            ("outbound_unicast_local", self.outbound_unicast_local),
            ("outbound_nonunicast", self.outbound_nonunicast),
            ("outbound_discards", self.outbound_discards),
        ]
    }
}

/// Parameters of `ClearStatistics`: one vswitch, or all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClearStatisticsParams {
    /// By name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vswitch: Option<String>,
}

/// What `Reload` answers when the files were accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReply {
    /// What changed, a line each; empty if nothing did.
    pub changes: Vec<String>,
    /// What an operator should know, a line each.
    pub warnings: Vec<String>,
}

/// Parameters of `Restart`: the vswitch forgets what it has learned and is published anew; guests stay connected.
/// Booting and halting are edits of `enabled` and a `Reload`, because the files are the truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartParams {
    /// By name.
    pub vswitch: String,
}

/// Parameters of the error `NoSuchVswitch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoSuchVswitchParams {
    /// The name or number that was asked for.
    pub vswitch: String,
    /// The names that there are.
    pub known: Vec<String>,
}

/// Parameters of the error `Refused`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedParams {
    /// What, where, what would be right; a line each.
    pub reasons: Vec<String>,
}

/// What `Info` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoReply {
    /// Version of the daemon.
    pub version: String,
    /// [`PROTOCOL_VERSION`] of the daemon.
    pub protocol_version: u32,
    /// Its process id.
    pub pid: u32,
    /// Since it is ready, in seconds.
    pub uptime_s: u64,
    /// How its workers wait.
    pub poll: PollMode,
    /// How long they spin, in microseconds.
    pub spin_us: u32,
    /// The core of each worker; `None`: not pinned.
    pub worker_cores: Vec<Option<u32>>,
    /// Kernel facilities and whether they are used.
    pub facilities: Vec<FacilityState>,
}

/// A kernel facility newer than the floor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FacilityState {
    /// Its name in `AVIO_DISABLE`.
    pub name: String,
    /// Whether it is used.
    pub used: bool,
    /// Why, or why not.
    pub detail: String,
}

/// What `Workers` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkersReply {
    /// By index.
    pub workers: Vec<WorkerReport>,
}

/// What one worker did since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Its index.
    pub index: u32,
    /// The core that it is pinned to.
    pub core: Option<u32>,
    /// Looks at a source.
    pub polls: u64,
    /// Looks that found nothing.
    pub empty_polls: u64,
    /// Frames taken.
    pub frames: u64,
    /// Batches by size.
    pub batches: Vec<StatisticsBucket>,
    /// Time with work, in nanoseconds.
    pub busy_ns: u64,
    /// Time asleep, in nanoseconds; what is neither was spent looking.
    pub sleep_ns: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Times that it slept and a kick or a command woke it.
    pub wakeups: u64,
    /// Looks for kicks without sleeping.
    pub looks: u64,
    /// Times a guest that had fallen silent was asked to kick from now on.
    pub armings: u64,
    /// Times that it had sent something meanwhile.
    pub armings_in_vain: u64,
    /// Batches that found the lock of a receive ring held by another worker.
    pub lock_waits: u64,
    /// Batches that panicked; each stopped one ring.
    pub panics: u64,
    /// Rings stopped for what the guest wrote into them.
    pub broken_rings: u64,
}

/// One bar of a histogram.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatisticsBucket {
    /// Largest value that it counts.
    pub up_to: u64,
    /// How many.
    pub count: u64,
}

/// What `Discards` answers: the catalogue of reasons, with the sums over all ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscardsReply {
    /// In the order of [`super::DiscardReason::ALL`].
    pub reasons: Vec<DiscardEntry>,
}

/// A reason and how often it applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscardEntry {
    /// Its name.
    pub name: String,
    /// `inbound` or `outbound`.
    pub direction: String,
    /// One line.
    pub description: String,
    /// Frames on all ports.
    pub count: u64,
}
