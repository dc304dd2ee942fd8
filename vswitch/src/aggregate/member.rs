//! One member of an aggregate: its device, its link, its numbers.

use std::time::Instant;

use avio_proto::config::MacAddr;

/// What is known about a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// There is a device, it is set up, and it has a carrier.
    pub up: bool,
    /// Half duplex: no protocol and no aggregate works with that (802.1AX-2014 §6.1.1).
    pub half_duplex: bool,
    /// In Mbit/s; 0 if the device does not say.
    pub speed_mbps: u32,
}

impl Link {
    /// Whether it can be part of an aggregate.
    #[must_use]
    pub fn can_carry(self) -> bool {
        self.up && !self.half_duplex
    }
}

/// What a member does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// No link.
    Down,
    /// A link, but the protocol has not (yet) agreed, or no other member is heard.
    NotReady,
    /// Could carry traffic.
    Ready,
    /// Carries traffic.
    Active,
}

impl MemberState {
    /// The word in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            MemberState::Down => "Down",
            MemberState::NotReady => "Not Ready",
            MemberState::Ready => "Ready",
            MemberState::Active => "Active",
        }
    }
}

/// Frames of the control protocols on a member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemberCounters {
    /// LACPDUs received.
    pub lacpdus_in: u64,
    /// LACPDUs sent.
    pub lacpdus_out: u64,
    /// Markers received.
    pub markers_in: u64,
    /// Markers sent.
    pub markers_out: u64,
    /// Marker Responses received.
    pub marker_responses_in: u64,
    /// Marker Responses sent.
    pub marker_responses_out: u64,
    /// Polling frames received.
    pub polls_in: u64,
    /// Polling frames sent.
    pub polls_out: u64,
    /// Frames of a protocol's ethertype that could not be read.
    pub unreadable: u64,
    /// Times that the link went down.
    pub link_losses: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Member {
    /// Its device.
    pub name: String,
    /// The device's own address.
    pub mac: MacAddr,
    /// Its link.
    pub link: Link,
    /// When the link last came up.
    pub up_since: Instant,
    /// Its numbers.
    pub counters: MemberCounters,
}

impl Member {
    pub(super) fn new(name: &str, mac: MacAddr, now: Instant) -> Self {
        let (link, counters) = (Link::default(), MemberCounters::default());
        Member { name: name.to_owned(), mac, link, up_since: now, counters }
    }

    /// Its link as it is now; losses are counted.
    pub(super) fn set_link(&mut self, link: Link, now: Instant) {
        match (self.link.up, link.up) {
            (false, true) => self.up_since = now,
            (true, false) => self.counters.link_losses += 1,
            _ => {}
        }
        self.link = link;
    }
}
