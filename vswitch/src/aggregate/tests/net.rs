//! A little world for the machines: systems, cables that lose frames, and a clock that jumps to whatever is due next.

use std::time::{Duration, Instant};

use avio_proto::config::{AggregateConfig, AggregateMode, MacAddr};

use super::super::{Action, Aggregate, Link, Slot};

/// Time that a frame takes on a cable.
const DELAY: Duration = Duration::from_micros(100);

pub(super) const UP: Link = Link { up: true, half_duplex: false, speed_mbps: 10_000 };
pub(super) const DOWN: Link = Link { up: false, ..UP };

/// Systems are joined link by link: member n of the one to member n of the other.
pub(super) struct Net {
    pub(super) now: Instant,
    pub(super) ends: [Aggregate; 2],
    flying: Vec<(Instant, usize, Slot, Vec<u8>)>,
    /// Frames that a link loses, in 256ths, by link.
    pub(super) loss: Vec<u32>,
    random: u64,
    pub(super) notes: Vec<String>,
    pub(super) sent: usize,
}

pub(super) fn mac(system: u8, member: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, system, member])
}

pub(super) fn config(mode: AggregateMode, members: usize) -> AggregateConfig {
    let members = (0..members).map(|number| format!("eth{number}")).collect();
    AggregateConfig::new("lan900", mode, members)
}

impl Net {
    pub(super) fn new(a: AggregateConfig, b: AggregateConfig) -> Net {
        let links = a.members.len().max(b.members.len());
        let now = Instant::now();
        let mut net = Net {
            now,
            ends: [Aggregate::new(a, 1), Aggregate::new(b, 2)],
            flying: Vec::new(),
            loss: vec![0; links],
            random: 88_172_645_463_325_252,
            notes: Vec::new(),
            sent: 0,
        };
        for end in 0..2 {
            for (number, name) in net.ends[end].config().members.clone().iter().enumerate() {
                net.ends[end].set_member(name, mac(end as u8, number as u8), now);
            }
        }
        net
    }

    fn random(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as u32
    }

    /// Pulls or plugs a cable: both ends see it.
    pub(super) fn cable(&mut self, link: u8, up: bool) {
        for end in &mut self.ends {
            end.set_link(Slot(link), if up { UP } else { DOWN }, self.now);
        }
        if !up {
            self.flying.retain(|(_, _, slot, _)| *slot != Slot(link));
        }
        self.act();
    }

    /// Does what the systems ask.
    pub(super) fn act(&mut self) {
        loop {
            let mut idle = true;
            for end in 0..2 {
                for action in self.ends[end].take_actions() {
                    idle = false;
                    match action {
                        Action::Send(slot, frame) => {
                            self.sent += 1;
                            let lost = self.random() % 256 < self.loss[usize::from(slot.0)];
                            if !lost {
                                self.flying.push((self.now + DELAY, 1 - end, slot, frame));
                            }
                        }
                        Action::Publish => self.ends[end].published(self.now),
                        Action::Announce => self.notes.push(format!("{end}: announce")),
                        Action::Note(line) => self.notes.push(format!("{end}: {line}")),
                    }
                }
            }
            if idle {
                return;
            }
        }
    }

    /// Lets `time` pass.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..1_000_000 {
            let arrival = self.flying.iter().map(|(at, ..)| *at).min();
            let due = self.ends.iter().filter_map(Aggregate::next_at).min();
            let Some(next) = [arrival, due].into_iter().flatten().min().filter(|next| *next <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            let now = self.now;
            let (arrived, flying) =
                std::mem::take(&mut self.flying).into_iter().partition(|(at, ..)| *at <= now);
            self.flying = flying;
            let arrived: Vec<(Instant, usize, Slot, Vec<u8>)> = arrived;
            for (_, to, slot, frame) in arrived {
                self.ends[to].receive(slot, &frame, now);
            }
            self.ends.iter_mut().for_each(|end| end.run(now));
            self.act();
        }
        panic!("the clock stands still: {:?}", self.ends);
    }

    /// The members that distribute, at one end.
    pub(super) fn distributing(&self, end: usize) -> Vec<u8> {
        self.ends[end].lacp().unwrap().distributing().into_iter().map(|slot| slot.0).collect()
    }
}
