//! Aggregates on the control interface: what `avio apa` shows and asks for.

use serde::{Deserialize, Serialize};

use crate::config::{AggregateMode, Balance, MacAddr};

/// What `Aggregates` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AggregatesReply {
    /// Those that are uplinks, by vswitch.
    pub aggregates: Vec<AggregateReport>,
}

/// Parameters of `Rebalance` and `ResetAggregate`, and of the error `NoSuchAggregate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AggregateParams {
    /// By name.
    pub aggregate: String,
}

/// An aggregate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AggregateReport {
    /// Its name.
    pub name: String,
    /// The vswitch whose uplink it is.
    pub vswitch: String,
    /// `Up` or `Down`.
    pub state: String,
    /// How its members work together.
    pub mode: AggregateMode,
    /// How frames are spread.
    pub balance: Balance,
    /// Its own address.
    pub mac: MacAddr,
    /// LACP: the partner, `PRIORITY,ADDRESS`.
    pub partner: Option<String>,
    /// LACP: the partner's key.
    pub partner_key: Option<u16>,
    /// LACP: our key.
    pub key: Option<u16>,
    /// Buckets are on their way from one member to another.
    pub is_moving: bool,
    /// Frames that waited while their buckets were on their way.
    pub frames_held: u64,
    /// Frames that were lost because too many waited already.
    pub frames_not_held: u64,
    /// Its members, by slot.
    pub members: Vec<MemberReport>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReport {
    /// Its device.
    pub name: String,
    /// `Active`, `Ready`, `Not Ready` or `Down`.
    pub state: String,
    /// The device's own address.
    pub mac: MacAddr,
    /// In Mbit/s; 0: not known.
    pub speed_mbps: u32,
    /// Priority.
    pub priority: u16,
    /// Buckets of 256 that it carries.
    pub buckets: u32,
    /// Failover group: it hears the active member.
    pub is_connected: bool,
    /// LACP's machines: receive, mux, and the state octets of actor and partner.
    pub lacp: Option<LacpReport>,
    /// Frames that came in, whatever became of them.
    pub frames_in: u64,
    /// Their octets, without FCS.
    pub octets_in: u64,
    /// Frames that went out.
    pub frames_out: u64,
    /// Their octets, without FCS.
    pub octets_out: u64,
    /// Frames that did not go out because the transmit ring was full.
    pub no_buffer_out: u64,
    /// LACPDUs received.
    pub lacpdus_in: u64,
    /// LACPDUs sent.
    pub lacpdus_out: u64,
    /// Markers received and answered.
    pub markers_in: u64,
    /// Markers sent.
    pub markers_out: u64,
    /// Marker Responses received.
    pub marker_responses_in: u64,
    /// Polling frames received.
    pub polls_in: u64,
    /// Polling frames sent.
    pub polls_out: u64,
    /// Control frames that could not be read.
    pub unreadable: u64,
    /// Times that the link went down.
    pub link_losses: u64,
}

/// The LACP machines of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LacpReport {
    /// State of the receive machine.
    pub receive: String,
    /// State of the mux machine.
    pub mux: String,
    /// Our state octet as letters: Active, shorT timeout, aGgregation, Synchronization, Collecting, Distributing, deFaulted,
    /// Expired.
    pub actor: String,
    /// The partner's.
    pub partner: String,
    /// The partner's system, `PRIORITY,ADDRESS`.
    pub partner_system: String,
    /// The partner's port number.
    pub partner_port: u16,
}
