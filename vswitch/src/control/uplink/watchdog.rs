//! Whether the kernel still serves the rings of an AF_XDP socket. A driver that has lost track of one leaves guests without a wire, and nothing else
//! tells: the link is up, and no call fails.
//!
//! Looks at published indices once a second, on the control thread. Only what *has* work and does not move is stuck: an idle wire has none, and a slow one
//! moves. Before a ring is given up the kernel was asked to look at it, each time. What is done then is up to [`super::Uplinks`].

use std::time::Duration;

use avio_host::inject;
use avio_proto::config::UplinkAccess;

use crate::port::xdp::{CHUNKS_OUT_MAX, Indices, Reading, XskWatch};

/// Between two looks.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks in a row that find a ring with work where it was. Longer than a pause that flow control makes, shorter than the five seconds after which the kernel
/// resets a device that does not send.
const LOOKS: u32 = 3;

/// Which ring does not move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stuck {
    /// Frames lie in the transmit ring.
    Transmit,
    /// All chunks for sending are with the kernel, and none comes back.
    Completion,
    /// The kernel says that it has no chunk to receive into, with the fill ring full of them.
    Fill,
}

impl Stuck {
    /// As log lines call the ring.
    pub(super) fn name(self) -> &'static str {
        match self {
            Stuck::Transmit => "transmit",
            Stuck::Completion => "completion",
            Stuck::Fill => "fill",
        }
    }
}

/// One step down the ladder from how a device was opened; `None`: a packet socket, the lowest.
pub(super) fn below(access: &str) -> Option<UplinkAccess> {
    match access {
        "zero-copy" => Some(UplinkAccess::Copy),
        "copy" => Some(UplinkAccess::Generic),
        "generic" => Some(UplinkAccess::Packet),
        _ => None,
    }
}

/// The watch over the socket of one queue.
#[derive(Debug)]
pub(super) struct Watchdog {
    socket: XskWatch,
    record: Record,
}

impl Watchdog {
    pub(super) fn new(socket: XskWatch) -> Self {
        Self { socket, record: Record::default() }
    }

    /// Looks once more.
    pub(super) fn look(&mut self) -> Option<Stuck> {
        if inject::happens("uplink::fill_stuck") {
            return Some(Stuck::Fill);
        }
        let verdict = self.record.look(self.socket.read());
        if self.record.is_suspicious() {
            self.socket.kick();
        }
        verdict
    }

    /// Without a carrier nothing moves, and nothing has to.
    pub(super) fn rest(&mut self) {
        self.record = Record::default();
    }
}

/// What was seen.
#[derive(Debug, Default)]
struct Record {
    last: Option<Reading>,
    /// Looks in a row at which each ring was found as it was, with work.
    transmit: u32,
    completion: u32,
    fill: u32,
}

impl Record {
    fn look(&mut self, now: Reading) -> Option<Stuck> {
        let last = self.last.replace(now)?;
        let waits = |last: Indices, now: Indices| last.waiting() > 0 && now.consumer == last.consumer;
        let count = |count: &mut u32, as_it_was: bool| *count = if as_it_was { *count + 1 } else { 0 };
        count(&mut self.transmit, waits(last.transmit, now.transmit));
        let out = last.transmit.producer.wrapping_sub(last.completion.consumer);
        // What has come back but was not fetched is the worker's affair: it does that when it needs chunks.
        let none_back = now.completion.producer == last.completion.producer && now.completion.waiting() == 0;
        count(&mut self.completion, out >= CHUNKS_OUT_MAX && none_back);
        if waits(last.fill, now.fill) && now.received == last.received {
            // That nothing came in says nothing; that the kernel misses what is there does.
            let misses = now.no_chunk > last.no_chunk || last.fill_wakeup && now.fill_wakeup;
            self.fill += u32::from(misses);
        } else {
            self.fill = 0;
        }
        let rings = [
            (self.transmit, Stuck::Transmit),
            (self.completion, Stuck::Completion),
            (self.fill, Stuck::Fill),
        ];
        rings.into_iter().find(|(looks, _)| *looks >= LOOKS).map(|(_, ring)| ring)
    }

    fn is_suspicious(&self) -> bool {
        self.last.is_some_and(|last| last.transmit.waiting() > 0) || self.completion > 0 || self.fill > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(producer: u32, consumer: u32) -> Indices {
        Indices { producer, consumer }
    }

    /// How many looks it takes until something is stuck, with a reading per look.
    fn looks(reading: impl Fn(u32) -> Reading) -> Option<(u32, Stuck)> {
        let mut record = Record::default();
        (0..100).find_map(|n| record.look(reading(n)).map(|stuck| (n, stuck)))
    }

    #[test]
    fn an_idle_wire_is_not_stuck() {
        // Some chunks are with the device, some frames have never been completed: drivers do that when the next ones go out.
        let idle = Reading {
            received: 7,
            transmit: at(900, 900),
            fill: at(2055, 519),
            completion: at(880, 880),
            ..Reading::default()
        };
        assert_eq!(looks(|_| idle), None);
        // Even if the kernel dropped something before we looked, or wanted to be woken once.
        assert_eq!(looks(|n| Reading { fill_wakeup: n == 5, no_chunk: 3, ..idle }), None);
    }

    #[test]
    fn a_slow_wire_is_not_stuck() {
        // One frame a second gets out of a full ring, one chunk comes back.
        let slow = |n: u32| Reading {
            transmit: at(2048 + n, n),
            completion: at(n, n),
            fill: at(2048, 0),
            ..Reading::default()
        };
        assert_eq!(looks(slow), None);
        // A worker that comes late fetches nothing; the kernel drops frames because the fill ring is empty.
        let late = |n: u32| Reading {
            received: 2048,
            fill: at(2048, 2048),
            no_chunk: u64::from(n) * 1000,
            completion: at(2048, 0),
            transmit: at(2048, 2048),
            ..Reading::default()
        };
        assert_eq!(looks(late), None);
    }

    #[test]
    fn a_transmit_ring_that_does_not_move_is_stuck() {
        let stuck = |n: u32| Reading { transmit: at(n.min(100), 0), ..Reading::default() };
        assert_eq!(looks(stuck), Some((4, Stuck::Transmit)));
        // Near the end of the numbers, too.
        let last = u32::MAX - 1;
        assert_eq!(
            looks(|_| Reading { transmit: at(3, last), ..Reading::default() }),
            Some((3, Stuck::Transmit))
        );
        // It moved in between: from the beginning.
        let moved = |n: u32| Reading { transmit: at(100, n / 3), ..Reading::default() };
        assert_eq!(looks(moved), None);
    }

    #[test]
    fn chunks_that_never_come_back_are_stuck() {
        let gone = Reading { transmit: at(5000, 5000), completion: at(2953, 2953), ..Reading::default() };
        assert_eq!(looks(|_| gone), Some((3, Stuck::Completion)));
        assert_eq!(looks(|_| Reading { completion: at(3000, 2953), ..gone }), None, "the worker's affair");
        assert_eq!(looks(|_| Reading { completion: at(2960, 2960), ..gone }), None, "some are left");
    }

    #[test]
    fn a_fill_ring_that_the_kernel_does_not_see_is_stuck() {
        let full = Reading { received: 9, fill: at(2057, 9), ..Reading::default() };
        let misses = |n: u32| Reading { no_chunk: u64::from(n) * 10, ..full };
        assert_eq!(looks(misses), Some((3, Stuck::Fill)));
        assert_eq!(looks(|_| Reading { fill_wakeup: true, ..full }), Some((3, Stuck::Fill)));
        // Frames that arrive seldom: what is missed counts, however long nothing is.
        let seldom = |n: u32| Reading { no_chunk: u64::from(n / 4), ..full };
        assert_eq!(looks(seldom), Some((12, Stuck::Fill)));
        assert_eq!(looks(|n| Reading { received: n, ..misses(n) }), None);
    }

    #[test]
    fn the_ladder_ends_with_a_packet_socket() {
        let mut access = "zero-copy";
        let mut steps = Vec::new();
        while let Some(next) = below(access) {
            steps.push(next);
            access = match next {
                UplinkAccess::Auto | UplinkAccess::Copy => "copy",
                UplinkAccess::Generic => "generic",
                UplinkAccess::Packet => "packet",
            };
        }
        assert_eq!(steps, [UplinkAccess::Copy, UplinkAccess::Generic, UplinkAccess::Packet]);
    }
}
