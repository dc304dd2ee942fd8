//! Which one member carries everything: hot standby and failover groups (SEMANTICS 4.3, 4.4).
//!
//! Pure: what is known about each member goes in, the choice comes out. Used by aggregates of mode `MANUAL` with
//! `LB_HOT_STANDBY` and of mode `LAN_MONITOR`.

use std::time::{Duration, Instant};

use super::Slot;

/// How good a member is: by policy the cost, then the priority. Greater is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The negated normalised cost (cost divided by speed); 0 without a cost policy.
    cost: i64,
    priority: u16,
}

impl Rank {
    /// By priority alone.
    #[must_use]
    pub fn by_priority(priority: u16) -> Rank {
        Rank { cost: 0, priority }
    }

    /// By cost divided by the speed in Mbit/s, lowest first, then by priority. A speed that is not known counts as 1 Mbit/s.
    #[must_use]
    pub fn by_cost(cost: u32, speed_mbps: u32, priority: u16) -> Rank {
        // In billionths, so that 1 at 800 Gbit/s is still more than nothing.
        let normalised = u64::from(cost) * 1_000_000_000 / u64::from(speed_mbps.max(1));
        Rank { cost: -i64::try_from(normalised).unwrap_or(i64::MAX), priority }
    }
}

/// A member that could carry the traffic.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Which one.
    pub slot: Slot,
    /// How good.
    pub rank: Rank,
    /// Since when it could.
    pub usable_since: Instant,
}

/// The choice.
#[derive(Debug, Default)]
pub struct Standby {
    active: Option<Slot>,
    /// When a better member will have been usable for long enough.
    due: Option<Instant>,
}

impl Standby {
    /// The member that carries everything.
    #[must_use]
    pub fn active(&self) -> Option<Slot> {
        self.active
    }

    /// When [`Self::run`] will decide otherwise by itself.
    #[must_use]
    pub fn next_at(&self) -> Option<Instant> {
        self.due
    }

    /// Chooses among `candidates`. An active member that is no candidate any more is replaced at once by the best one, the
    /// lowest slot among equals; one that is, only by a better one, and only when that has been usable for `failback_delay`.
    pub fn run(&mut self, candidates: &[Candidate], failback_delay: Duration, now: Instant) {
        self.due = None;
        let best = candidates.iter().max_by(|a, b| a.rank.cmp(&b.rank).then(b.slot.cmp(&a.slot)));
        let active = candidates.iter().find(|candidate| Some(candidate.slot) == self.active);
        let Some(active) = active else {
            self.active = best.map(|best| best.slot);
            return;
        };
        let better = candidates.iter().filter(|candidate| candidate.rank > active.rank);
        let settled = |candidate: &&Candidate| candidate.usable_since + failback_delay <= now;
        let back =
            better.clone().filter(settled).max_by(|a, b| a.rank.cmp(&b.rank).then(b.slot.cmp(&a.slot)));
        if let Some(back) = back {
            self.active = Some(back.slot);
        }
        let rank = back.map_or(active.rank, |back| back.rank);
        self.due = better
            .filter(|candidate| candidate.rank > rank && !settled(candidate))
            .map(|candidate| candidate.usable_since + failback_delay)
            .min();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(slot: u8, priority: u16, since: Instant) -> Candidate {
        Candidate { slot: Slot(slot), rank: Rank::by_priority(priority), usable_since: since }
    }

    #[test]
    fn the_best_carries_and_equals_do_not_take_over() {
        let t = Instant::now();
        let mut standby = Standby::default();
        standby.run(&[candidate(0, 0, t), candidate(1, 0, t)], Duration::ZERO, t);
        assert_eq!(standby.active(), Some(Slot(0)));
        standby.run(&[candidate(1, 0, t)], Duration::ZERO, t);
        assert_eq!(standby.active(), Some(Slot(1)));
        standby.run(&[candidate(0, 0, t), candidate(1, 0, t)], Duration::ZERO, t);
        assert_eq!(standby.active(), Some(Slot(1)), "equal priorities: it stays");
        standby.run(&[candidate(0, 7, t), candidate(1, 0, t)], Duration::ZERO, t);
        assert_eq!(standby.active(), Some(Slot(0)));
        standby.run(&[], Duration::ZERO, t);
        assert_eq!(standby.active(), None);
    }

    #[test]
    fn a_better_one_waits_for_the_failback_delay() {
        let t = Instant::now();
        let delay = Duration::from_secs(5);
        let mut standby = Standby::default();
        standby.run(&[candidate(1, 0, t)], delay, t);
        let both = [candidate(0, 9, t), candidate(1, 0, t)];
        standby.run(&both, delay, t + Duration::from_secs(1));
        assert_eq!((standby.active(), standby.next_at()), (Some(Slot(1)), Some(t + delay)));
        standby.run(&both, delay, t + delay);
        assert_eq!((standby.active(), standby.next_at()), (Some(Slot(0)), None));
        // But who is there when nobody carries does so at once.
        let mut standby = Standby::default();
        standby.run(&both, delay, t);
        assert_eq!(standby.active(), Some(Slot(0)));
    }

    #[test]
    fn cost_over_speed_decides_then_priority() {
        assert!(Rank::by_cost(10, 10_000, 0) > Rank::by_cost(5, 1_000, 0));
        assert!(Rank::by_cost(10, 10_000, 1) > Rank::by_cost(10, 10_000, 0));
        assert!(Rank::by_cost(1, 800_000, 0) > Rank::by_cost(2, 800_000, 9));
        assert!(Rank::by_cost(1, 0, 0) < Rank::by_cost(1, 100, 0));
    }
}
