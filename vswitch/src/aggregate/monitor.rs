//! The polling of a failover group: who hears whom (SEMANTICS 4.4).
//!
//! Pure, and used by aggregates of mode `LAN_MONITOR` only. Each member polls each other one; who has heard nobody for
//! the dead count is *deaf*, which is a line in the log. Traffic avoids it in one case: when it is deaf while two others
//! hear each other, for then it is cut off and they are not. With two members nobody can tell which of them is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use avio_proto::aggregation::PollingFrame;
use avio_proto::config::MacAddr;

use super::Slot;

/// A member that is up: slot, permanent address, since when.
pub(super) type Up = (Slot, MacAddr, Instant);

/// See the module.
#[derive(Debug)]
pub(super) struct Monitor {
    group: u64,
    round: u32,
    poll_at: Option<Instant>,
    /// Who heard whom last, and when.
    heard: BTreeMap<(Slot, Slot), Instant>,
    /// Members of which it has been said that they are deaf.
    deaf: BTreeSet<Slot>,
    /// When the last of the members that are up came up.
    since: Option<Instant>,
}

impl Monitor {
    pub(super) fn new(group: u64) -> Self {
        let (heard, deaf) = (BTreeMap::new(), BTreeSet::new());
        Monitor { group, round: 0, poll_at: None, heard, deaf, since: None }
    }

    /// The link of `slot` is down, or it is no member any more.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.heard.retain(|(by, whom), _| *by != slot && *whom != slot);
        self.deaf.remove(&slot);
        // Whoever comes next polls at once.
        self.poll_at = None;
    }

    /// `slot` has received a polling frame. Returns whether it is one of this group.
    pub(super) fn heard(&mut self, slot: Slot, poll: &PollingFrame, now: Instant) -> bool {
        let from = u8::try_from(poll.member).map(Slot);
        match from {
            Ok(from) if poll.group == self.group && from != slot => {
                self.heard.insert((slot, from), now);
                true
            }
            _ => false,
        }
    }

    /// The polling frames that are due, with the member that sends each.
    pub(super) fn polls(&mut self, up: &[Up], interval: Duration, now: Instant) -> Vec<(Slot, PollingFrame)> {
        let newest = up.iter().map(|(_, _, since)| *since).max();
        let is_new = newest > self.since;
        self.since = newest;
        if up.len() < 2 {
            self.poll_at = None;
            return Vec::new();
        }
        if self.poll_at.is_some_and(|at| at > now) && !is_new {
            return Vec::new();
        }
        self.poll_at = Some(now + interval);
        self.round = self.round.wrapping_add(1);
        let mut polls = Vec::new();
        for (from, source, _) in up {
            for (_, destination, _) in up.iter().filter(|(to, ..)| to != from) {
                let poll = PollingFrame {
                    destination: *destination,
                    source: *source,
                    group: self.group,
                    member: from.0.into(),
                    round: self.round,
                };
                polls.push((*from, poll));
            }
        }
        polls
    }

    /// Whether `slot` has heard `whom` lately.
    pub(super) fn hears(&self, slot: Slot, whom: Slot, dead: Duration, now: Instant) -> bool {
        self.heard.get(&(slot, whom)).is_some_and(|at| now.saturating_duration_since(*at) < dead)
    }

    /// Whether `slot`, up since `since`, has heard nobody for the dead time.
    pub(super) fn is_deaf(&self, slot: Slot, since: Instant, dead: Duration, now: Instant) -> bool {
        let last = self.heard.iter().filter(|((by, _), _)| *by == slot).map(|(_, at)| *at).max();
        now.saturating_duration_since(last.map_or(since, |last| last.max(since))) >= dead
    }

    /// Who has become deaf (false), or hears again (true), since the last call. A member alone is not deaf.
    pub(super) fn changes(&mut self, up: &[Up], dead: Duration, now: Instant) -> Vec<(Slot, bool)> {
        let mut changes = Vec::new();
        for (slot, _, since) in up.iter().filter(|_| up.len() > 1) {
            // The other ones' start counts too: before, there was nobody to hear.
            let others = up.iter().filter(|(other, ..)| other != slot).map(|(_, _, since)| *since).min();
            let is_deaf = self.is_deaf(*slot, others.map_or(*since, |others| others.max(*since)), dead, now);
            if is_deaf && self.deaf.insert(*slot) {
                changes.push((*slot, false));
            } else if !is_deaf && self.deaf.remove(slot) {
                changes.push((*slot, true));
            }
        }
        changes
    }

    /// Whether a member is cut off while two others are not.
    pub(super) fn is_isolated(&self, slot: Slot, up: &[Up], dead: Duration, now: Instant) -> bool {
        let Some((_, _, since)) = up.iter().find(|(other, ..)| *other == slot) else { return false };
        let others: Vec<Slot> = up.iter().map(|(other, ..)| *other).filter(|other| *other != slot).collect();
        let hear_each_other =
            others.iter().any(|a| others.iter().any(|b| a != b && self.hears(*a, *b, dead, now)));
        hear_each_other && self.is_deaf(slot, *since, dead, now)
    }

    /// When the next poll is due; who has become deaf is found out then, too.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.poll_at
    }
}
