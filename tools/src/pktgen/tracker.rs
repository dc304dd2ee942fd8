//! Loss, duplication and reordering, from sequence numbers.
//!
//! Owns what is expected next of each flow and the holes behind it. The receiver calls it once per frame; the usual frame,
//! the one that was expected, costs one comparison and one store.

use super::frame::Stamp;

/// Most holes remembered, over all flows. A frame that comes later than this many further holes counts as duplicated.
const HOLES_MAX: usize = 4096;
/// A sequence number further ahead than this is taken for damage, not loss: at 20 Mpps it would be a second of silence.
const JUMP_MAX: u32 = 1 << 24;
/// Nothing seen of this flow.
const UNSEEN: u64 = u64::MAX;

/// Counts of sequence numbers (segments count singly).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sequence {
    /// Arrived once.
    pub unique: u64,
    /// Missing between two that arrived; goes down when a late one comes.
    pub missing: u64,
    /// Arrived again.
    pub duplicated: u64,
    /// Arrived after a later one of the same flow.
    pub reordered: u64,
    /// Impossible numbers.
    pub implausible: u64,
}

#[derive(Clone, Copy, Debug)]
struct Hole {
    source: u8,
    flow: u16,
    first: u32,
    count: u32,
}

/// What came from one port.
#[derive(Debug, Default)]
struct Source {
    /// Next sequence number of each flow, or [`UNSEEN`].
    expected: Vec<u64>,
    /// Sequence numbers that arrived once.
    unique: u64,
}

/// Tracks all flows that reach one receiver.
#[derive(Debug)]
pub struct Tracker {
    sources: Vec<Source>,
    holes: std::collections::VecDeque<Hole>,
    counts: Sequence,
    from_zero: bool,
}

impl Tracker {
    /// `from_zero`: the first frame of every flow is number 0, so what is missing before the first arrival is loss.
    #[must_use]
    pub fn new(from_zero: bool) -> Self {
        Self { sources: Vec::new(), holes: Default::default(), counts: Sequence::default(), from_zero }
    }

    /// Counts so far.
    #[must_use]
    pub fn counts(&self) -> Sequence {
        Sequence { unique: self.sources.iter().map(|s| s.unique).sum(), ..self.counts }
    }

    /// Sequence numbers of one port that arrived once.
    #[must_use]
    pub fn unique_from(&self, source: u8) -> u64 {
        self.sources.get(usize::from(source)).map_or(0, |s| s.unique)
    }

    /// Takes `count` sequence numbers in a row, starting with the stamp's.
    #[inline]
    pub fn take(&mut self, stamp: &Stamp, count: u32) {
        if let Some(source) = self.sources.get_mut(usize::from(stamp.source))
            && let Some(expected) = source.expected.get_mut(usize::from(stamp.flow))
            && *expected == u64::from(stamp.seq)
        {
            *expected = u64::from(stamp.seq.wrapping_add(count));
            source.unique += u64::from(count);
        } else {
            self.unusual(stamp, count);
        }
    }

    #[cold]
    fn unusual(&mut self, stamp: &Stamp, count: u32) {
        let (source, flow) = (usize::from(stamp.source), usize::from(stamp.flow));
        if self.sources.len() <= source {
            self.sources.resize_with(source + 1, Source::default);
        }
        let Source { expected: flows, unique } = &mut self.sources[source];
        if flows.len() <= flow {
            flows.resize(flow + 1, UNSEEN);
        }
        if flows[flow] == UNSEEN {
            flows[flow] = if self.from_zero { 0 } else { u64::from(stamp.seq) };
        }
        let expected = flows[flow] as u32;
        let ahead = stamp.seq.wrapping_sub(expected);
        if ahead < JUMP_MAX {
            flows[flow] = u64::from(stamp.seq.wrapping_add(count));
            *unique += u64::from(count);
            if ahead > 0 {
                self.counts.missing += u64::from(ahead);
                if self.holes.len() == HOLES_MAX {
                    self.holes.pop_front();
                }
                self.holes.push_back(Hole {
                    source: stamp.source,
                    flow: stamp.flow,
                    first: expected,
                    count: ahead,
                });
            }
        } else if expected.wrapping_sub(stamp.seq) <= JUMP_MAX {
            for i in 0..count {
                self.late(stamp.source, stamp.flow, stamp.seq.wrapping_add(i));
            }
        } else {
            self.counts.implausible += 1;
        }
    }

    fn late(&mut self, source: u8, flow: u16, seq: u32) {
        let found = self
            .holes
            .iter()
            .rposition(|h| h.source == source && h.flow == flow && seq.wrapping_sub(h.first) < h.count);
        let Some(i) = found else {
            self.counts.duplicated += 1;
            return;
        };
        self.counts.reordered += 1;
        self.sources[usize::from(source)].unique += 1;
        self.counts.missing -= 1;
        let hole = self.holes[i];
        let before = seq.wrapping_sub(hole.first);
        let after = hole.count - before - 1;
        self.holes[i].count = before;
        if after > 0 {
            let rest = Hole { first: seq.wrapping_add(1), count: after, ..hole };
            if before == 0 {
                self.holes[i] = rest;
            } else {
                self.holes.insert(i + 1, rest);
            }
        } else if before == 0 {
            self.holes.remove(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(from_zero: bool, seqs: &[u32]) -> Sequence {
        let mut t = Tracker::new(from_zero);
        for &seq in seqs {
            t.take(&Stamp { source: 1, flow: 7, seq, ..Stamp::default() }, 1);
        }
        t.counts()
    }

    fn counts(unique: u64, missing: u64, duplicated: u64, reordered: u64) -> Sequence {
        Sequence { unique, missing, duplicated, reordered, implausible: 0 }
    }

    #[test]
    fn in_order_is_clean() {
        assert_eq!(feed(true, &[0, 1, 2, 3]), counts(4, 0, 0, 0));
        assert_eq!(feed(false, &[900, 901]), counts(2, 0, 0, 0));
    }

    #[test]
    fn loss_is_counted_also_before_the_first() {
        assert_eq!(feed(true, &[2, 3, 6]), counts(3, 4, 0, 0));
        assert_eq!(feed(false, &[2, 3, 6]), counts(3, 2, 0, 0));
    }

    #[test]
    fn late_frames_fill_holes_and_second_copies_do_not() {
        assert_eq!(feed(true, &[0, 4, 2, 1, 3, 5]), counts(6, 0, 0, 3));
        assert_eq!(feed(true, &[0, 4, 2, 2, 0, 4]), counts(3, 2, 3, 1));
    }

    #[test]
    fn numbers_wrap() {
        assert_eq!(feed(false, &[u32::MAX - 1, u32::MAX, 0, 1]), counts(4, 0, 0, 0));
        assert_eq!(feed(false, &[u32::MAX, 1, 0]), counts(3, 0, 0, 1));
    }

    #[test]
    fn damage_is_not_loss() {
        let got = feed(true, &[0, 1, 0x7000_0000, 2]);
        assert_eq!((got.unique, got.missing, got.implausible), (3, 0, 1));
    }

    #[test]
    fn flows_are_apart() {
        let mut t = Tracker::new(true);
        for (flow, seq) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            t.take(&Stamp { flow, seq, ..Stamp::default() }, 1);
        }
        assert_eq!(t.counts(), counts(4, 0, 0, 0));
    }
}
