//! `MANUAL` with and without hot standby, and failover groups.

use std::time::{Duration, Instant};

use avio_proto::aggregation::PollingFrame;
use avio_proto::config::{AggregateConfig, AggregateMode, Balance, MemberConfig, MonitorPolicy};

use super::super::{Action, Aggregate, MemberState, Place, Slot};
use super::net::{DOWN, UP, config, mac};

const SECOND: Duration = Duration::from_secs(1);

/// An aggregate whose members are joined by a switch: a polling frame reaches whom it is for, unless one of the two is cut off.
struct Lan {
    now: Instant,
    aggregate: Aggregate,
    cut_off: Vec<Slot>,
    notes: Vec<String>,
    announced: usize,
}

impl Lan {
    fn new(config: AggregateConfig) -> Lan {
        let now = Instant::now();
        let names = config.members.clone();
        let mut aggregate = Aggregate::new(config, 42);
        for (number, name) in names.iter().enumerate() {
            aggregate.set_member(name, mac(0, number as u8), now);
        }
        let mut lan = Lan { now, aggregate, cut_off: Vec::new(), notes: Vec::new(), announced: 0 };
        (0..names.len()).for_each(|slot| lan.link(slot as u8, true));
        lan
    }

    fn link(&mut self, slot: u8, up: bool) {
        self.aggregate.set_link(Slot(slot), if up { UP } else { DOWN }, self.now);
        self.act();
    }

    fn act(&mut self) {
        for step in 0.. {
            let actions = self.aggregate.take_actions();
            assert!(step < 1_000, "no end of actions: {actions:?}");
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Send(from, frame) => {
                        let Some(poll) = PollingFrame::parse(&frame) else { continue };
                        let to = self.aggregate.members().iter().find(|(_, m)| m.mac == poll.destination);
                        let Some((&to, _)) = to else { continue };
                        if !self.cut_off.contains(&from) && !self.cut_off.contains(&to) {
                            self.aggregate.receive(to, &frame, self.now);
                        }
                    }
                    Action::Publish => self.aggregate.published(self.now),
                    Action::Announce => self.announced += 1,
                    Action::Note(line) => self.notes.push(line),
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut steps = 0;
        while let Some(next) = self.aggregate.next_at().filter(|next| *next <= end) {
            steps += 1;
            assert!(steps < 10_000, "the clock stands still: {:?}", self.aggregate);
            self.now = self.now.max(next);
            self.aggregate.run(self.now);
            self.act();
        }
        self.now = end;
    }

    /// The member that everything goes out through.
    fn carrier(&self) -> Option<u8> {
        let places = self.aggregate.spread().places();
        match places[0] {
            Place::Member(slot) if places.iter().all(|place| *place == places[0]) => Some(slot.0),
            _ => None,
        }
    }

    fn states(&self) -> Vec<MemberState> {
        self.aggregate.members().keys().map(|slot| self.aggregate.state(*slot, self.now)).collect()
    }
}

fn particular(name: &str, priority: u16, cost: Option<u32>) -> MemberConfig {
    MemberConfig { name: name.to_owned(), priority, key: None, cost }
}

#[test]
fn a_manual_aggregate_uses_every_link_that_is_up() {
    let mut lan = Lan::new(config(AggregateMode::Manual, 3));
    lan.pass(SECOND);
    assert_eq!([0, 1, 2].map(|slot| lan.aggregate.spread().count(Slot(slot))), [86, 85, 85]);
    lan.link(1, false);
    assert_eq!([0, 1, 2].map(|slot| lan.aggregate.spread().count(Slot(slot))), [128, 0, 128]);
    assert_eq!(lan.states(), [MemberState::Active, MemberState::Down, MemberState::Active]);
    lan.aggregate.set_link(Slot(2), super::super::Link { half_duplex: true, ..UP }, lan.now);
    assert_eq!(lan.aggregate.spread().count(Slot(0)), 256);
    assert_eq!(lan.announced, 0, "the switch knows the aggregate as one port");
}

#[test]
fn hot_standby_fails_over_at_once_and_back_after_its_delay() {
    let mut lan = Lan::new(AggregateConfig {
        balance: Balance::LbHotStandby,
        failback_delay_s: 7,
        member: vec![particular("eth1", 5, None)],
        ..config(AggregateMode::Manual, 3)
    });
    // eth0 was up first and eth1 is better: it has to prove itself.
    assert_eq!(lan.carrier(), Some(0));
    lan.pass(SECOND * 8);
    assert_eq!(lan.carrier(), Some(1));
    assert_eq!(lan.states(), [MemberState::Ready, MemberState::Active, MemberState::Ready]);
    lan.link(1, false);
    assert_eq!(lan.carrier(), Some(0));
    let before = lan.announced;
    assert!(before >= 2, "announced at each move");
    lan.link(1, true);
    lan.pass(SECOND * 6);
    assert_eq!(lan.carrier(), Some(0));
    lan.pass(SECOND * 2);
    assert_eq!(lan.carrier(), Some(1));
    assert!(lan.announced > before);
}

#[test]
fn a_failover_group_shares_no_address_and_announces_for_a_minute() {
    let mut lan = Lan::new(AggregateConfig {
        member: vec![particular("eth0", 3, None)],
        poll_interval_ms: 1000,
        ..config(AggregateMode::LanMonitor, 3)
    });
    lan.pass(SECOND * 70);
    assert_eq!((lan.carrier(), lan.aggregate.mac()), (Some(0), mac(0, 0)));
    assert_eq!(lan.states(), [MemberState::Active, MemberState::Ready, MemberState::Ready]);
    assert!(lan.aggregate.hears_active(Slot(1), lan.now));
    lan.announced = 0;
    lan.link(0, false);
    assert_eq!((lan.carrier(), lan.aggregate.mac()), (Some(1), mac(0, 1)));
    lan.pass(SECOND * 120);
    // At once, ten rapid ones, then every five seconds until the minute is over.
    assert_eq!(lan.announced, 1 + 10 + 10);
    lan.link(0, true);
    lan.pass(SECOND);
    assert_eq!(lan.carrier(), Some(0), "the better one is back");
}

#[test]
fn who_is_cut_off_with_its_link_up_loses_the_traffic_only_if_others_are_not() {
    let group = |members| AggregateConfig {
        poll_interval_ms: 1000,
        member: vec![particular("eth0", 3, None)],
        ..config(AggregateMode::LanMonitor, members)
    };
    let mut lan = Lan::new(group(3));
    lan.pass(SECOND * 5);
    lan.cut_off.push(Slot(0));
    lan.pass(SECOND * 3);
    assert_eq!(lan.carrier(), Some(0), "not before the dead count");
    lan.pass(SECOND * 3);
    assert_eq!(lan.carrier(), Some(1));
    assert!(
        lan.notes
            .iter()
            .any(|n| n == "lan900: member eth0 has missed 3 polling frames of every other member")
    );
    assert_eq!(lan.states()[0], MemberState::NotReady);

    let mut pair = Lan::new(group(2));
    pair.pass(SECOND * 5);
    pair.cut_off.push(Slot(0));
    pair.pass(SECOND * 20);
    assert_eq!(pair.carrier(), Some(0), "nobody can tell which of two is cut off");
}

#[test]
fn the_cheapest_carries_under_a_cost_policy() {
    let mut lan = Lan::new(AggregateConfig {
        policy: MonitorPolicy::CostBased,
        member: vec![particular("eth0", 9, Some(10)), particular("eth1", 0, Some(5))],
        ..config(AggregateMode::LanMonitor, 2)
    });
    lan.pass(SECOND);
    assert_eq!(lan.carrier(), Some(1));
    // At a tenth of the speed it is the dearer one.
    lan.aggregate.set_link(Slot(1), super::super::Link { speed_mbps: 1000, ..UP }, lan.now);
    lan.act();
    lan.pass(SECOND);
    assert_eq!(lan.carrier(), Some(0));
}

#[test]
fn polls_of_another_group_are_not_heard() {
    let mut lan = Lan::new(config(AggregateMode::LanMonitor, 2));
    let poll = PollingFrame { destination: mac(0, 0), source: mac(0, 1), group: 41, member: 1, round: 1 };
    let before = lan.aggregate.members()[&Slot(0)].counters.polls_in;
    lan.aggregate.receive(Slot(0), &poll.to_frame(), lan.now);
    assert_eq!(lan.aggregate.members()[&Slot(0)].counters.polls_in, before);
}
