//! Which member carries which of the 256 buckets, and how buckets move without reordering a flow.
//!
//! Pure: the members that may carry traffic go in, a place for each bucket comes out, for control to publish. Buckets of a member
//! that is gone move at once: whatever it still had is lost or long delivered. Buckets of one that still works move in small
//! groups: the frames of a group are held (`port::uplink::hold`), the old members get a Marker behind the last frame (802.1AX-2014 §6.5.1), and
//! when the partner has answered, or a time has passed, what was held and what comes after it goes through the new member. The next group waits
//! until no worker holds anything of this one. Buckets that need not move do not.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Slot;

/// Number of buckets (the original's hash table, SEMANTICS 4.2).
pub const BUCKETS: usize = 256;
/// Most buckets that are held at a time: an eighth of the traffic, for some milliseconds, fits where held frames wait.
const HELD_MAX: usize = 32;
/// After the last worker has let go of a group: time for the devices' rings to empty, so that the Marker comes behind.
const DRAIN: Duration = Duration::from_millis(2);
/// Longest wait for a Marker Response. A partner on the same cable answers within one; partners need not answer at all.
const MARKER_WAIT: Duration = Duration::from_millis(50);
/// Wait where there is no Marker protocol: a switch forwards what it has within that.
const QUIET: Duration = Duration::from_millis(10);

/// Where the frames of a bucket go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nobody can carry them.
    Nobody,
    /// This member.
    Member(Slot),
    /// They wait until this member may have them.
    Held(Slot),
}

/// How far the group that moves has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Some worker may still send through the old members.
    Publishing,
    /// What was sent is on its way out of this host.
    Draining(Instant),
    /// Waits for the responses of these, until then.
    Marked(BTreeSet<Slot>, Instant),
    /// The group has its new places; some worker may still hold frames of it.
    Releasing,
}

#[derive(Debug)]
struct Moving {
    to: Slot,
    from: BTreeSet<Slot>,
    buckets: Vec<usize>,
    phase: Phase,
    transaction: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Spread {
    places: [Place; BUCKETS],
    target: [Option<Slot>; BUCKETS],
    active: Vec<Slot>,
    /// Those that have to give up what they carry, and still can carry it until then.
    finishing: Vec<Slot>,
    moving: Option<Moving>,
    transactions: u32,
    markers: Vec<(Slot, u32)>,
    changed: bool,
}

impl Default for Spread {
    fn default() -> Self {
        Spread {
            places: [Place::Nobody; BUCKETS],
            target: [None; BUCKETS],
            active: Vec::new(),
            finishing: Vec::new(),
            moving: None,
            transactions: 0,
            markers: Vec::new(),
            changed: false,
        }
    }
}

/// How buckets move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// In groups, with Markers.
    Marked,
    /// In groups, without a protocol.
    Quiet,
    /// All together, without a protocol: one member at a time carries everything.
    Whole,
}

impl Spread {
    /// These members may carry traffic from now on, ascending. What others have moves at once, unless they are among `finishes`:
    /// then it moves in order.
    pub fn set_active(&mut self, active: &[Slot], finishes: &[Slot]) {
        if active == self.active && finishes == self.finishing {
            return;
        }
        if active != self.active {
            active.clone_into(&mut self.active);
            self.target = fewest_moves(&self.target, active);
        }
        finishes.clone_into(&mut self.finishing);
        self.settle();
    }

    /// Deals all buckets anew, evenly and in turn, as if the members had come up together.
    pub fn rebalance(&mut self) {
        if !self.active.is_empty() {
            self.target = std::array::from_fn(|bucket| Some(self.active[bucket % self.active.len()]));
            self.settle();
        }
    }

    /// Takes away from members that are gone what they had.
    fn settle(&mut self) {
        let gone = |slot: &Slot| !self.active.contains(slot) && !self.finishing.contains(slot);
        let out = |slot: &Slot| !self.active.contains(slot);
        if let Some(moving) = &mut self.moving {
            moving.from.retain(|slot| !gone(slot));
            if let Phase::Marked(waiting, _) = &mut moving.phase {
                waiting.retain(|slot| !gone(slot));
            }
            if out(&moving.to) {
                match self.active.first() {
                    // What is held goes to whoever is there now, together as it is.
                    Some(&to) if moving.phase != Phase::Releasing => {
                        moving.to = to;
                        moving.buckets.iter().for_each(|&bucket| self.places[bucket] = Place::Held(to));
                    }
                    // To nobody, or wherever each bucket goes now.
                    _ => moving.phase = Phase::Releasing,
                }
            }
        }
        let is_held = |moving: &&Moving| moving.phase != Phase::Releasing;
        let held: Vec<usize> =
            self.moving.iter().filter(is_held).flat_map(|moving| moving.buckets.iter().copied()).collect();
        for bucket in (0..BUCKETS).filter(|bucket| !held.contains(bucket)) {
            let place = match (self.places[bucket], self.target[bucket]) {
                (_, None) => Place::Nobody,
                (Place::Member(now), Some(_)) if !gone(&now) => continue,
                (_, Some(target)) => Place::Member(target),
            };
            self.changed |= self.places[bucket] != place;
            self.places[bucket] = place;
        }
    }

    /// All workers use the places that were there when [`Self::take_changed`] last said so.
    pub fn published(&mut self, now: Instant) {
        let Some(moving) = self.moving.as_mut().filter(|_| !self.changed) else { return };
        match moving.phase {
            Phase::Publishing => moving.phase = Phase::Draining(now + DRAIN),
            // Each worker has sent what it held.
            Phase::Releasing => self.moving = None,
            Phase::Draining(_) | Phase::Marked(..) => {}
        }
    }

    /// The partner has answered a Marker.
    pub fn marker_response(&mut self, slot: Slot, transaction: u32) {
        if let Some(moving) = &mut self.moving
            && moving.transaction == transaction
            && let Phase::Marked(waiting, _) = &mut moving.phase
        {
            waiting.remove(&slot);
        }
    }

    /// Goes on as far as can be gone at `now`.
    pub fn run(&mut self, manner: Manner, now: Instant) {
        if self.moving.is_none() {
            self.start(manner);
        }
        let Some(moving) = &mut self.moving else { return };
        match &moving.phase {
            Phase::Draining(until) if *until <= now && manner == Manner::Marked => {
                self.transactions = self.transactions.wrapping_add(1);
                moving.transaction = self.transactions;
                self.markers.extend(moving.from.iter().map(|slot| (*slot, moving.transaction)));
                moving.phase = Phase::Marked(moving.from.clone(), now + MARKER_WAIT);
            }
            Phase::Draining(until) if *until <= now => {
                // Nobody answers.
                moving.phase = Phase::Marked([Slot(u8::MAX)].into(), *until + QUIET);
            }
            _ => {}
        }
        if let Phase::Marked(waiting, until) = &moving.phase
            && (waiting.is_empty() || *until <= now)
        {
            moving.phase = Phase::Releasing;
            moving.buckets.iter().for_each(|&bucket| self.places[bucket] = Place::Member(moving.to));
            self.changed = true;
        }
    }

    /// Begins with the next group: buckets that go to one member.
    fn start(&mut self, manner: Manner) {
        let moves = |bucket: &usize| match (self.places[*bucket], self.target[*bucket]) {
            (Place::Member(now), Some(target)) => now != target,
            _ => false,
        };
        let Some(first) = (0..BUCKETS).find(moves) else { return };
        let Some(to) = self.target[first] else { return };
        let most = if manner == Manner::Whole { BUCKETS } else { HELD_MAX };
        let buckets: Vec<usize> =
            (first..BUCKETS).filter(moves).filter(|b| self.target[*b] == Some(to)).take(most).collect();
        let from = buckets.iter().filter_map(|&bucket| match self.places[bucket] {
            Place::Member(slot) => Some(slot),
            _ => None,
        });
        let from = from.collect();
        for &bucket in &buckets {
            self.places[bucket] = Place::Held(to);
        }
        self.moving = Some(Moving { to, from, buckets, phase: Phase::Publishing, transaction: 0 });
        self.changed = true;
    }

    /// The Markers to send since the last call, with their transactions.
    pub fn take_markers(&mut self) -> Vec<(Slot, u32)> {
        std::mem::take(&mut self.markers)
    }

    /// Whether the places have changed since the last call: publish them.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Where each bucket's frames go.
    #[must_use]
    pub fn places(&self) -> &[Place; BUCKETS] {
        &self.places
    }

    /// Buckets that `slot` carries.
    #[must_use]
    pub fn count(&self, slot: Slot) -> usize {
        self.places.iter().filter(|place| **place == Place::Member(slot)).count()
    }

    /// Whether a group is on its way.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        self.moving.is_some()
    }

    /// When [`Self::run`] is due even if nothing happens.
    #[must_use]
    pub fn next_at(&self) -> Option<Instant> {
        match &self.moving.as_ref()?.phase {
            Phase::Draining(until) | Phase::Marked(_, until) => Some(*until),
            Phase::Publishing | Phase::Releasing => None,
        }
    }
}

/// The buckets dealt to `active` as evenly as can be, with as few as possible away from a member that has them and stays.
fn fewest_moves(from: &[Option<Slot>; BUCKETS], active: &[Slot]) -> [Option<Slot>; BUCKETS] {
    let mut to = [None; BUCKETS];
    if active.is_empty() {
        return to;
    }
    let count = |slot: Slot| from.iter().filter(|place| **place == Some(slot)).count();
    // Who has most may keep the larger shares, so nothing moves for a remainder.
    let mut order: Vec<(usize, Slot)> = active.iter().map(|slot| (count(*slot), *slot)).collect();
    order.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let (share, larger) = (BUCKETS / active.len(), BUCKETS % active.len());
    let quota = |place: usize| share + usize::from(place < larger);
    let mut wanting: Vec<(Slot, usize)> = Vec::new();
    for (place, (has, slot)) in order.into_iter().enumerate() {
        let keeps = has.min(quota(place));
        // Evenly spaced among those that it has: neighbours, which often are one guest's flows, stay spread.
        let has_them = (0..BUCKETS).filter(|bucket| from[*bucket] == Some(slot));
        for (owned, bucket) in has_them.enumerate() {
            if (owned + 1) * keeps / has > owned * keeps / has {
                to[bucket] = Some(slot);
            }
        }
        wanting.push((slot, quota(place) - keeps));
    }
    wanting.sort();
    // The rest in turn.
    let mut turn = 0;
    for place in to.iter_mut().filter(|place| place.is_none()) {
        while wanting[turn % wanting.len()].1 == 0 {
            turn += 1;
        }
        let at = turn % wanting.len();
        *place = Some(wanting[at].0);
        wanting[at].1 -= 1;
        turn += 1;
    }
    to
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slots(count: u8) -> Vec<Slot> {
        (0..count).map(Slot).collect()
    }

    /// Lets everything happen that is due, with a partner that answers Markers or does not. Returns how often places changed.
    fn run_to_end(spread: &mut Spread, manner: Manner, answers: bool, mut now: Instant) -> usize {
        let mut changes = 0;
        for _ in 0..10_000 {
            spread.run(manner, now);
            for (slot, transaction) in spread.take_markers() {
                if answers {
                    spread.marker_response(slot, transaction);
                }
            }
            if spread.take_changed() {
                changes += 1;
                spread.published(now);
                continue;
            }
            spread.published(now);
            match spread.next_at() {
                Some(at) => now = now.max(at),
                None if !spread.is_moving() => return changes,
                None => {}
            }
        }
        panic!("it never ends: {spread:?}");
    }

    #[test]
    fn members_that_come_up_together_share_in_turn() {
        let mut spread = Spread::default();
        spread.set_active(&slots(2), &[]);
        assert!(spread.take_changed());
        assert_eq!(spread.places()[0], Place::Member(Slot(0)));
        assert_eq!(spread.places()[1], Place::Member(Slot(1)));
        assert_eq!((spread.count(Slot(0)), spread.count(Slot(1))), (128, 128));
        assert!(!spread.is_moving());
    }

    #[test]
    fn only_the_buckets_of_a_dead_member_move_and_they_move_at_once() {
        let mut spread = Spread::default();
        spread.set_active(&slots(4), &[]);
        let before = *spread.places();
        spread.set_active(&[Slot(0), Slot(1), Slot(3)], &[]);
        assert!(spread.take_changed());
        for (old, new) in before.iter().zip(spread.places()) {
            match old {
                Place::Member(Slot(2)) => assert!(matches!(new, Place::Member(Slot(0 | 1 | 3)))),
                _ => assert_eq!(old, new),
            }
        }
        let counts = [0, 1, 3].map(|slot| spread.count(Slot(slot)));
        assert_eq!(counts.iter().sum::<usize>(), 256);
        assert!(counts.iter().all(|count| (85..=86).contains(count)), "{counts:?}");
        spread.set_active(&[], &[]);
        assert!(spread.places().iter().all(|place| *place == Place::Nobody));
    }

    fn held_count(spread: &Spread) -> usize {
        spread.places().iter().filter(|place| matches!(place, Place::Held(_))).count()
    }

    #[test]
    fn frames_of_one_group_are_held_at_a_time_whatever_members_do() {
        let now = Instant::now();
        let mut spread = Spread::default();
        spread.set_active(&slots(1), &[]);
        spread.take_changed();
        spread.set_active(&slots(2), &[]);
        spread.run(Manner::Marked, now);
        assert!(spread.take_changed());
        spread.published(now);
        // All members go: what is held goes to nobody. They come back before each worker has heard of it.
        spread.set_active(&[], &[]);
        assert!(spread.take_changed() && held_count(&spread) == 0);
        spread.set_active(&slots(1), &[]);
        spread.set_active(&slots(2), &[]);
        spread.run(Manner::Marked, now);
        assert_eq!(held_count(&spread), 0);
        assert!(spread.take_changed());
        spread.published(now);
        spread.run(Manner::Marked, now);
        assert_eq!(held_count(&spread), HELD_MAX);
        // The one they are held for goes: they are held for another.
        spread.set_active(&slots(1), &[]);
        assert_eq!(spread.places().iter().filter(|place| **place == Place::Held(Slot(0))).count(), HELD_MAX);
        run_to_end(&mut spread, Manner::Marked, false, now);
        assert_eq!(spread.count(Slot(0)), 256);
    }

    #[test]
    fn a_group_is_held_from_publication_to_the_response() {
        let now = Instant::now();
        let mut spread = Spread::default();
        spread.set_active(&slots(1), &[]);
        spread.take_changed();
        spread.set_active(&slots(2), &[]);
        spread.run(Manner::Marked, now);
        assert!(spread.take_changed());
        assert_eq!(held_count(&spread), HELD_MAX);
        spread.run(Manner::Marked, now + Duration::from_secs(9));
        assert!(spread.take_markers().is_empty(), "a worker may still send: no Marker yet");
        spread.published(now);
        spread.run(Manner::Marked, now + DRAIN);
        assert_eq!(spread.take_markers(), [(Slot(0), 1)]);
        spread.marker_response(Slot(0), 7);
        spread.run(Manner::Marked, now + DRAIN);
        assert!(!spread.take_changed(), "an answer to another Marker");
        spread.marker_response(Slot(0), 1);
        spread.run(Manner::Marked, now + DRAIN);
        assert_eq!(spread.count(Slot(1)), HELD_MAX);
        spread.run(Manner::Marked, now + Duration::from_secs(9));
        assert_eq!(held_count(&spread), 0, "a worker may still hold frames of this group: no other yet");
        assert!(spread.take_changed());
        spread.published(now);
        spread.run(Manner::Marked, now);
        assert_eq!(held_count(&spread), HELD_MAX);
        run_to_end(&mut spread, Manner::Marked, true, now);
        assert_eq!(spread.count(Slot(1)), 128);
    }

    #[test]
    fn one_at_a_time_moves_as_a_whole() {
        let mut spread = Spread::default();
        spread.set_active(&slots(1), &[]);
        spread.take_changed();
        // The old one still works: nothing overtakes what it has.
        spread.set_active(&[Slot(1)], &slots(2));
        assert_eq!(spread.count(Slot(0)), 256);
        spread.run(Manner::Whole, Instant::now());
        assert!(spread.places().iter().all(|place| *place == Place::Held(Slot(1))));
        assert_eq!(run_to_end(&mut spread, Manner::Whole, false, Instant::now()), 2);
        assert_eq!(spread.count(Slot(1)), 256);
        // It is gone: at once.
        spread.set_active(&[Slot(0)], &[]);
        assert_eq!((spread.count(Slot(0)), spread.is_moving()), (256, false));
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_it_ends_even_and_moves_no_more_than_it_must(
            steps in proptest::collection::vec((any::<u32>(), any::<bool>(), any::<bool>()), 1..12)
        ) {
            let mut now = Instant::now();
            let mut spread = Spread::default();
            for (bits, answers, interrupted) in steps {
                let active: Vec<Slot> = (0..32).filter(|slot| bits >> slot & 1 == 1).map(Slot).collect();
                let before = *spread.places();
                let old = spread.active.clone();
                spread.set_active(&active, &[]);
                let moved = before.iter().zip(&spread.target).filter(|(before, target)| {
                    matches!(before, Place::Member(slot) if active.contains(slot) && Some(*slot) != **target)
                }).count();
                if !spread.is_moving() && old.iter().all(|slot| active.contains(slot)) && !old.is_empty() {
                    // Only newcomers: exactly their shares move.
                    let share = 256_usize.div_ceil(active.len());
                    prop_assert!(moved <= share * (active.len() - old.len()));
                }
                if interrupted {
                    spread.run(Manner::Marked, now);
                    spread.take_changed();
                    spread.published(now);
                    continue;
                }
                now += Duration::from_secs(1);
                run_to_end(&mut spread, Manner::Marked, answers, now);
                let counts: Vec<usize> = active.iter().map(|slot| spread.count(*slot)).collect();
                prop_assert_eq!(counts.iter().sum::<usize>(), if active.is_empty() { 0 } else { 256 });
                prop_assert!(counts.iter().all(|count| (256 / counts.len()..=256_usize.div_ceil(counts.len())).contains(count)));
                spread.rebalance();
                run_to_end(&mut spread, Manner::Quiet, answers, now);
                for slot in &active {
                    let count = spread.count(*slot);
                    prop_assert!(count == 256 / active.len() || count == 256_usize.div_ceil(active.len()));
                }
            }
        }
    }
}
