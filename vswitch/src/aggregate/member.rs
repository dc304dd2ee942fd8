//! One member of an aggregate: its device, its link, its numbers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use avio_proto::config::MacAddr;

/// Markers answered in [`ANSWERS_IN`] (IEEE 802.3 Annex 57A: no more than ten frames of a slow protocol in any one second). The rest find no answer, which
/// whoever asks waits for no longer than a lost one.
const ANSWERS_MAX: usize = 10;
const ANSWERS_IN: Duration = Duration::from_secs(1);

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
    /// When the last Markers were answered, [`ANSWERS_MAX`] at most.
    answered: VecDeque<Instant>,
}

impl Member {
    pub(super) fn new(name: &str, mac: MacAddr, now: Instant) -> Self {
        let (link, counters) = (Link::default(), MemberCounters::default());
        Member { name: name.to_owned(), mac, link, up_since: now, counters, answered: VecDeque::new() }
    }

    /// Whether one more Marker may be answered now: a partner that asks without end gets no flood back.
    pub(super) fn may_answer(&mut self, now: Instant) -> bool {
        if self.answered.len() == ANSWERS_MAX {
            let first = self.answered.front().copied();
            if first.is_some_and(|at| now.saturating_duration_since(at) < ANSWERS_IN) {
                return false;
            }
            self.answered.pop_front();
        }
        self.answered.push_back(now);
        true
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
