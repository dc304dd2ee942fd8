//! The control interface as types: what goes over `RUN/vswitchd.varlink`, and the JSON that `avio net --json` prints.
//!
//! `varlink/io.avio.vswitchd.varlink` describes the same interface for anybody else's client; a test holds the two
//! together. `avio_host::control` serves it, `avio_tools` calls it. Nothing here touches a socket.

mod aggregate;
mod discard;
mod envelope;
mod stord;
mod vswitchd;

pub use aggregate::{AggregateParams, AggregateReport, AggregatesReply, LacpReport, MemberReport};
pub use discard::{Direction, DiscardReason, Discards};
pub use envelope::{
    Call, GET_INFO, GET_INTERFACE_DESCRIPTION, MESSAGE_LEN_MAX, Reply, SERVICE_INTERFACE,
    SERVICE_INTERFACE_DESCRIPTION, ServiceInfo,
};
pub use stord::{
    AdapterReport, EjectParams, InsertParams, LatencyReport, LimitsParams, LunReport, LunStatistics,
    NO_SUCH_LUN, Place, PlaceParams, STORD_INTERFACE, STORD_INTERFACE_DESCRIPTION, STORD_SOCKET_FILE_NAME,
    ShowStorageParams, StorageReply, stord_method,
};
pub use vswitchd::{
    ClearStatisticsParams, Counters, DiscardEntry, DiscardsReply, FacilityState, GuestLink, HostPort,
    INTERFACE, INTERFACE_DESCRIPTION, InfoReply, NoSuchVswitchParams, OffloadedTo, PROTOCOL_VERSION, Port,
    PortState, RefusedParams, ReloadReply, RestartParams, SOCKET_FILE_NAME, SentBy, ShowParams, ShowReply,
    StatisticsBucket, UplinkMember, UplinkReport, Vswitch, VswitchState, WorkerReport, WorkersReply, error,
    method,
};

#[cfg(test)]
mod tests;
