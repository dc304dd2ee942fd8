//! LACP: two systems joined by cables, and liars.

use std::time::Duration;

use avio_proto::aggregation::{LacpPdu, MarkerKind, MarkerPdu, PortInfo, PortStateBits, SlowFrame, SystemId};
use avio_proto::config::{AggregateConfig, AggregateMode, LacpTimeout, MemberConfig};
use proptest::prelude::*;

use super::super::{Action, Aggregate, BUCKETS, Churn, MemberState, Place, Receive, Slot};
use super::net::{DOWN, Net, UP, config, mac};

const SECOND: Duration = Duration::from_secs(1);
/// Aggregate_Wait_Time and a few round trips.
const CONVERGED: Duration = Duration::from_millis(3_200);

fn lacp(members: usize) -> AggregateConfig {
    AggregateConfig { timeout: LacpTimeout::Fast, ..config(AggregateMode::LacpAuto, members) }
}

fn up(a: AggregateConfig, b: AggregateConfig) -> Net {
    let links = a.members.len();
    let mut net = Net::new(a, b);
    (0..links).for_each(|link| net.cable(link as u8, true));
    net.pass(CONVERGED);
    net
}

#[test]
fn two_systems_agree_and_spread_evenly() {
    let net = up(lacp(4), lacp(4));
    for end in 0..2 {
        assert_eq!(net.distributing(end), [0, 1, 2, 3]);
        let aggregate = &net.ends[end];
        assert!(aggregate.is_up());
        assert!((0..4).all(|slot| aggregate.spread().count(Slot(slot)) == BUCKETS / 4));
        let group = aggregate.lacp().unwrap().group().unwrap();
        assert_eq!((group.partner.mac, group.partner_key, group.key), (mac(1 - end as u8, 0), 900, 900));
        let actor = aggregate.lacp().unwrap().actor(Slot(0)).unwrap();
        assert_eq!(actor.state.to_string(), "ATGSCD--");
        assert_eq!(aggregate.state(Slot(1), net.now), MemberState::Active);
    }
}

#[test]
fn a_pulled_cable_moves_its_buckets_at_once_and_only_those() {
    let mut net = up(lacp(2), lacp(2));
    let before = *net.ends[0].spread().places();
    net.cable(1, false);
    let after = net.ends[0].spread().places();
    assert!(after.iter().all(|place| *place == Place::Member(Slot(0))), "without waiting for anything");
    assert!(before.iter().zip(after).all(|(old, new)| *old == Place::Member(Slot(1)) || old == new));
    assert_eq!(net.ends[0].members()[&Slot(1)].counters.link_losses, 1);
    net.cable(1, true);
    net.pass(CONVERGED + SECOND);
    assert_eq!(net.distributing(0), [0, 1]);
    assert_eq!(net.ends[0].spread().count(Slot(1)), BUCKETS / 2);
    assert!(net.ends[0].members()[&Slot(0)].counters.marker_responses_in >= 4, "moved by Markers");
}

#[test]
fn silence_is_noticed_after_three_seconds_or_ninety() {
    for (timeout, least, most) in [(LacpTimeout::Fast, 3, 6), (LacpTimeout::Slow, 60, 93)] {
        let side = || AggregateConfig { timeout, ..lacp(2) };
        let mut net = up(side(), side());
        net.pass(SECOND * 35);
        assert_eq!(net.distributing(0), [0, 1]);
        net.loss[1] = 256;
        let mut seconds = 0;
        while net.distributing(0) == [0, 1] {
            net.pass(SECOND);
            seconds += 1;
            assert!(seconds < 200, "never noticed");
        }
        assert!((least..=most).contains(&seconds), "{timeout:?}: {seconds} s");
        assert_eq!(net.distributing(0), [0]);
        net.pass(SECOND * 4);
        assert_eq!(net.ends[0].lacp().unwrap().port(Slot(1)).unwrap().receive, Receive::Defaulted);
        net.loss[1] = 0;
        net.pass(SECOND * 35);
        assert_eq!(net.distributing(0), [0, 1]);
    }
}

#[test]
fn the_rate_of_pdus_is_what_the_partner_asks_for() {
    for (timeout, least, most) in [(LacpTimeout::Fast, 2 * 300, 2 * 320), (LacpTimeout::Slow, 2 * 10, 2 * 12)]
    {
        let mut net = up(lacp(2), AggregateConfig { timeout, ..lacp(2) });
        net.pass(SECOND * 40);
        let before = net.ends[0].members()[&Slot(0)].counters.lacpdus_out;
        net.pass(SECOND * 300);
        let sent = 2 * (net.ends[0].members()[&Slot(0)].counters.lacpdus_out - before);
        assert!((least..=most).contains(&sent), "{timeout:?}: {sent}");
    }
}

/// Actor_State of an LACPDU as it is on the wire (§6.4.2.3): octet 19 of the PDU, behind Ethernet header, subtype, version, the TLV's type and length, system,
/// key, port priority and port.
const ACTOR_STATE_AT: usize = 32;
/// LACP_Timeout in it: 1 is Short Timeout.
const LACP_TIMEOUT: u8 = 1 << 1;

#[test]
fn a_changed_timeout_is_told_at_once_and_interrupts_nothing() {
    let with = |timeout| AggregateConfig { timeout, ..lacp(2) };
    let mut net = up(with(LacpTimeout::Slow), with(LacpTimeout::Slow));
    for (timeout, bit, in_a_minute) in
        [(LacpTimeout::Fast, LACP_TIMEOUT, 58..=62), (LacpTimeout::Slow, 0, 2..=4)]
    {
        // Far from any interval's end.
        net.pass(SECOND * 100 + SECOND / 2);
        let heard = |net: &Net, end: usize| net.ends[end].members()[&Slot(1)].counters.lacpdus_in;
        let before = heard(&net, 0);
        let now = net.now;
        net.ends[0].configure(with(timeout), now);
        let sent = net.ends[0].take_actions();
        for slot in 0..2 {
            // NTT at once: it is not left to the periodic machine.
            let frame = sent.iter().find_map(|action| match action {
                Action::Send(to, frame) if *to == Slot(slot) => Some(frame),
                _ => None,
            });
            let state = frame.map(|frame| frame[ACTOR_STATE_AT]);
            assert_eq!(state.map(|state| state & LACP_TIMEOUT), Some(bit), "member {slot}: {sent:?}");
            net.ends[1].receive(Slot(slot), frame.unwrap(), now);
        }
        net.act();
        // Asked to speak sooner, the partner does at once (figure 6-19: NTT in PERIODIC_TX); asked to speak later, when it likes.
        net.pass(SECOND / 100);
        assert_eq!(heard(&net, 0) - before, u64::from(timeout == LacpTimeout::Fast), "{timeout:?}");
        let before = heard(&net, 0);
        for _ in 0..600 {
            net.pass(SECOND / 10);
            assert_eq!((net.distributing(0), net.distributing(1)), (vec![0, 1], vec![0, 1]), "{timeout:?}");
        }
        // Nor for a moment between two looks.
        assert!(
            !net.notes.iter().any(|note| note.contains("aggregate is down")),
            "{timeout:?}: {:?}",
            net.notes
        );
        let sent = heard(&net, 0) - before;
        assert!(in_a_minute.contains(&sent), "{timeout:?}: {sent} in a minute");
    }
    assert!(net.ends.iter().all(|end| end.members().values().all(|member| member.counters.link_losses == 0)));
    // The short time holds from the partner's next PDU on.
    let now = net.now;
    net.ends[0].configure(with(LacpTimeout::Fast), now);
    net.act();
    net.pass(SECOND * 2);
    net.loss[1] = 256;
    net.pass(SECOND * 4);
    assert_eq!(net.distributing(0), [0]);
}

#[test]
fn two_passive_ends_never_speak() {
    let passive = || AggregateConfig { passive: true, ..lacp(2) };
    let net = up(passive(), passive());
    assert_eq!((net.sent, net.distributing(0)), (0, vec![]));
    let net = up(passive(), lacp(2));
    assert_eq!(net.distributing(0), [0, 1]);
}

#[test]
fn fewer_members_than_min_links_carry_nothing() {
    let mut net = up(AggregateConfig { min_links: 2, ..lacp(3) }, lacp(3));
    net.cable(0, false);
    assert!(net.ends[0].is_up());
    net.cable(1, false);
    assert!(!net.ends[0].is_up());
    assert!(net.ends[0].spread().places().iter().all(|place| *place == Place::Nobody));
    assert!(net.notes.iter().any(|note| note.contains("aggregate is down, 1 members")), "{:?}", net.notes);
    net.cable(1, true);
    net.pass(CONVERGED + SECOND);
    assert!(net.ends[0].is_up());
}

#[test]
fn members_with_another_key_stay_out() {
    let odd = MemberConfig { name: "eth2".into(), priority: 0, key: Some(77), cost: None };
    let net = up(AggregateConfig { member: vec![odd], ..lacp(3) }, lacp(3));
    assert_eq!((net.distributing(0), net.distributing(1)), (vec![0, 1], vec![0, 1]));
    assert_eq!(net.ends[0].state(Slot(2), net.now), MemberState::NotReady);
}

#[test]
fn a_member_in_the_wrong_switch_stays_out() {
    let mut net = up(lacp(3), lacp(3));
    // Cable 2 now leads to a third system.
    let stranger = PortInfo {
        system: SystemId { priority: 0, mac: mac(9, 9) },
        key: 900,
        port_priority: 0,
        port: 3,
        state: PortStateBits(0x3f),
    };
    net.loss[2] = 256;
    for _ in 0..10 {
        let actor = net.ends[0].lacp().unwrap().actor(Slot(2)).unwrap();
        let pdu = LacpPdu { actor: stranger, partner: actor, collector_max_delay: 0 };
        let now = net.now;
        net.ends[0].receive(Slot(2), &SlowFrame::Lacp(pdu).to_frame(mac(9, 9)), now);
        net.act();
        assert_eq!(net.distributing(0), [0, 1]);
        net.pass(SECOND);
    }
    assert_eq!(net.distributing(0), [0, 1]);
}

#[test]
fn two_of_our_own_ports_cabled_together_are_no_aggregate() {
    let mut alone = Aggregate::new(lacp(2), 1);
    let mut now = std::time::Instant::now();
    for slot in 0..2 {
        alone.set_member(&format!("eth{slot}"), mac(0, slot), now);
        alone.set_link(Slot(slot), UP, now);
    }
    for _ in 0..100 {
        for action in alone.take_actions() {
            if let Action::Send(Slot(slot), frame) = action {
                alone.receive(Slot(1 - slot), &frame, now);
            }
        }
        now += SECOND / 10;
        alone.run(now);
    }
    assert!(alone.lacp().unwrap().distributing().is_empty());
}

/// What the first member of an aggregate has to answer to a partner that says `actor` of itself and `partner` of us.
fn told(actor: PortStateBits, about_us: impl Fn(PortInfo) -> PortInfo) -> (Aggregate, bool) {
    let mut aggregate = Aggregate::new(lacp(2), 1);
    let mut now = std::time::Instant::now();
    for slot in 0..2 {
        aggregate.set_member(&format!("eth{slot}"), mac(0, slot), now);
    }
    aggregate.set_link(Slot(0), UP, now);
    for _ in 0..6 {
        let ours = aggregate.lacp().unwrap().actor(Slot(0)).unwrap();
        let liar = PortInfo {
            system: SystemId { priority: 1, mac: mac(1, 0) },
            key: 5,
            port_priority: 2,
            port: 1,
            state: actor,
        };
        let pdu = LacpPdu { actor: liar, partner: about_us(ours), collector_max_delay: 0 };
        aggregate.receive(Slot(0), &SlowFrame::Lacp(pdu).to_frame(mac(1, 0)), now);
        now += SECOND;
        aggregate.run(now);
    }
    let carries = !aggregate.lacp().unwrap().distributing().is_empty();
    (aggregate, carries)
}

#[test]
fn a_partner_that_lies_gets_no_traffic() {
    let all = PortStateBits(0x3f);
    let without = |bits: PortStateBits| PortStateBits(all.0 & !bits.0);
    assert!(told(all, |ours| ours).1, "the truth is believed");
    assert!(!told(without(PortStateBits::SYNCHRONIZATION), |ours| ours).1);
    assert!(!told(without(PortStateBits::COLLECTING), |ours| ours).1);
    assert!(!told(without(PortStateBits::AGGREGATION), |ours| ours).1);
    // It is in sync, but with somebody else.
    assert!(!told(all, |ours| PortInfo { key: 6, ..ours }).1);
    assert!(!told(all, |ours| PortInfo { port: 9, ..ours }).1);
    assert!(!told(all, |ours| PortInfo { system: SystemId { mac: mac(7, 7), ..ours.system }, ..ours }).1);
}

#[test]
fn a_partner_that_never_gets_in_sync_is_churn() {
    let mut aggregate = told(PortStateBits(0x37), |ours| ours).0;
    let now = std::time::Instant::now();
    assert!(matches!(aggregate.lacp().unwrap().port(Slot(0)).unwrap().partner_churn, Churn::Monitor(_)));
    aggregate.run(now + SECOND * 70);
    assert_eq!(aggregate.lacp().unwrap().port(Slot(0)).unwrap().partner_churn, Churn::Churn);
}

/// As the other end asks.
fn a_marker() -> MarkerPdu {
    MarkerPdu { kind: MarkerKind::Marker, requester_port: 7, requester_system: mac(1, 0), transaction: 99 }
}

#[test]
fn markers_are_answered_and_foreign_responses_ignored() {
    let mut net = up(lacp(2), lacp(2));
    let marker = a_marker();
    let now = net.now;
    net.ends[0].receive(Slot(1), &SlowFrame::Marker(marker).to_frame(mac(1, 1)), now);
    let answer = SlowFrame::Marker(marker.response()).to_frame(mac(0, 1)).to_vec();
    assert_eq!(net.ends[0].take_actions(), [Action::Send(Slot(1), answer)]);
    net.ends[0].receive(Slot(1), &SlowFrame::Marker(marker.response()).to_frame(mac(1, 1)), now);
    assert_eq!(net.ends[0].take_actions(), []);
}

/// IEEE 802.3 Annex 57A: no more than ten frames of a slow protocol in any one second.
#[test]
fn ten_markers_a_second_are_answered() {
    let mut net = up(lacp(2), lacp(2));
    let marker = a_marker();
    let (frame, start) = (SlowFrame::Marker(marker).to_frame(mac(1, 1)), net.now);
    let mut answers = |millis: u64| {
        net.ends[0].receive(Slot(1), &frame, start + Duration::from_millis(millis));
        // LACPDUs that are due meanwhile are not counted.
        let response = SlowFrame::Marker(marker.response()).to_frame(mac(0, 1)).to_vec();
        net.ends[0]
            .take_actions()
            .into_iter()
            .filter(|action| *action == Action::Send(Slot(1), response.clone()))
            .count()
    };
    // Three seconds of one each millisecond: in no second more than ten.
    let times: Vec<u64> = (0..3000).filter(|&millis| answers(millis) == 1).collect();
    assert_eq!(times.len(), 30);
    assert!(times.windows(11).all(|eleven| eleven[10] - eleven[0] >= 1000), "{times:?}");
    // After a pause as before.
    assert_eq!(answers(10_000), 1);
}

#[test]
fn members_come_and_go_while_the_others_stay() {
    let mut net = up(lacp(3), lacp(3));
    let now = net.now;
    let fewer = AggregateConfig { members: vec!["eth1".into(), "eth2".into()], ..lacp(3) };
    net.ends[0].configure(fewer, now);
    net.act();
    assert_eq!(net.ends[0].slot_of("eth1"), Some(Slot(1)));
    assert_eq!(net.ends[0].slot_of("eth0"), None);
    // Its first member's address was the system's, and is: the partner notices nothing.
    assert_eq!((net.distributing(0), net.ends[0].mac()), (vec![1, 2], mac(0, 0)));
    assert!(
        net.notes.iter().any(|note| note.contains("keeps the address 02:00:00:00:00:00 of eth0")),
        "{:?}",
        net.notes
    );
    net.pass(SECOND * 6);
    assert_eq!(net.distributing(0), [1, 2]);
    assert!(net.ends[0].members().values().all(|member| member.counters.link_losses == 0));
    let now = net.now;
    net.ends[0].configure(lacp(3), now);
    assert_eq!(net.ends[0].set_member("eth0", mac(0, 0), now), Some(Slot(0)));
    net.ends[0].set_link(Slot(0), UP, now);
    net.act();
    net.pass(SECOND * 8);
    assert_eq!(net.distributing(0), [0, 1, 2]);
}

#[test]
fn an_address_that_was_lent_is_kept_until_nothing_goes_on_under_it() {
    let without_first = || AggregateConfig { members: vec!["eth1".into(), "eth2".into()], ..lacp(3) };
    // Until a reset.
    let mut net = up(lacp(3), lacp(3));
    let now = net.now;
    net.ends[0].configure(without_first(), now);
    assert_eq!(net.ends[0].mac(), mac(0, 0));
    net.ends[0].reset(now);
    assert_eq!(net.ends[0].mac(), mac(0, 1));
    net.act();
    net.pass(SECOND * 8);
    assert_eq!((net.distributing(0), net.ends[0].mac()), (vec![1, 2], mac(0, 1)));
    // Until it is down.
    let mut net = up(lacp(3), lacp(3));
    let now = net.now;
    net.ends[0].configure(without_first(), now);
    for (slot, expected) in [(1, mac(0, 0)), (2, mac(0, 1))] {
        net.ends[0].set_link(Slot(slot), DOWN, now);
        assert_eq!(net.ends[0].mac(), expected);
    }
    // A device that comes in another's place under the same name changes nothing.
    let mut net = up(lacp(2), lacp(2));
    let now = net.now;
    net.ends[0].set_member("eth0", mac(7, 7), now);
    net.act();
    net.pass(SECOND * 8);
    assert_eq!((net.distributing(0), net.ends[0].mac()), (vec![0, 1], mac(0, 0)));
    // What is configured is what is used.
    let named = AggregateConfig { mac: Some(mac(9, 9)), ..lacp(2) };
    net.ends[0].configure(named, now);
    assert_eq!(net.ends[0].mac(), mac(9, 9));
}

#[test]
fn reset_starts_over_and_clears() {
    let mut net = up(lacp(2), lacp(2));
    let now = net.now;
    net.ends[0].reset(now);
    net.act();
    assert!(net.distributing(0).is_empty());
    net.pass(SECOND * 5);
    assert_eq!(net.distributing(0), [0, 1]);
    assert!(net.ends[0].members()[&Slot(0)].counters.link_losses == 0);
    assert!(!DOWN.can_carry());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However cables come and go, and lose up to a quarter of the PDUs: once they are all good again both ends agree.
    #[test]
    fn a_lossy_pair_converges(
        members in 2_usize..6,
        slow: bool,
        events in proptest::collection::vec((0_u8..6, 0_u32..64, any::<bool>(), 0_u64..5_000), 0..20)
    ) {
        let timeout = if slow { LacpTimeout::Slow } else { LacpTimeout::Fast };
        let mut net = Net::new(lacp(members), AggregateConfig { timeout, ..lacp(members) });
        for (link, loss, up, ms) in events {
            let link = link % members as u8;
            net.loss[usize::from(link)] = loss;
            net.cable(link, up);
            net.pass(Duration::from_millis(ms));
            for end in 0..2 {
                // Never a bucket on a member whose link is down.
                for place in net.ends[end].spread().places() {
                    if let Place::Member(slot) = place {
                        prop_assert!(net.ends[end].members()[slot].link.up);
                    }
                }
            }
        }
        for link in 0..members {
            net.loss[link] = 0;
            net.cable(link as u8, true);
        }
        net.pass(SECOND * 100);
        let all: Vec<u8> = (0..members as u8).collect();
        prop_assert_eq!(net.distributing(0), all.clone());
        prop_assert_eq!(net.distributing(1), all);
        let counts: Vec<usize> = (0..members as u8).map(|slot| net.ends[0].spread().count(Slot(slot))).collect();
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
    }

    #[test]
    fn no_frame_panics(frames in proptest::collection::vec((0_u8..3, proptest::collection::vec(any::<u8>(), 0..130), 0_u8..4), 0..40)) {
        let mut net = up(lacp(2), lacp(2));
        for (slot, mut frame, kind) in frames {
            if frame.len() > 60 && kind > 0 {
                let model = SlowFrame::Lacp(LacpPdu::default()).to_frame(mac(1, 1));
                for at in [0, 1, 2, 3, 4, 5, 12, 13, 15, 16, 17, 36, 37, 56, 57] {
                    frame[at] = model[at];
                }
                frame[14] = if kind == 1 { 2 } else { 1 };
            }
            let now = net.now;
            net.ends[0].receive(Slot(slot), &frame, now);
            net.act();
            net.pass(Duration::from_millis(10));
        }
    }
}
