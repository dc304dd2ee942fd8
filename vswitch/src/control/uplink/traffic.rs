//! What went through one member: the numbers of its lanes and sources, also of those that are gone.
//!
//! A device that lost its link is opened anew and has new lanes then; the operator's numbers go on.

use std::sync::Arc;

use crate::port::wire::Counters;

/// Frames, their octets, and frames for which there was no room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub frames: u64,
    pub octets: u64,
    pub no_buffer: u64,
}

impl Sum {
    fn add(&mut self, part: &Counters) {
        self.frames += part.frames.get();
        self.octets += part.octets.get();
        self.no_buffer += part.no_buffer.get();
    }

    fn since(self, earlier: Sum) -> Sum {
        Sum {
            frames: self.frames - earlier.frames,
            octets: self.octets - earlier.octets,
            no_buffer: self.no_buffer - earlier.no_buffer,
        }
    }
}

/// One direction. See the module.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    gone: Sum,
    parts: Vec<Arc<Counters>>,
    baseline: Sum,
}

impl Traffic {
    /// Counts `part` as well.
    pub(super) fn add(&mut self, part: Arc<Counters>) {
        // Those that nobody writes any more need not be kept.
        self.parts.retain(|part| {
            let is_used = Arc::strong_count(part) > 1;
            if !is_used {
                self.gone.add(part);
            }
            is_used
        });
        self.parts.push(part);
    }

    fn total(&self) -> Sum {
        let mut sum = self.gone;
        self.parts.iter().for_each(|part| sum.add(part));
        sum
    }

    /// Since it was cleared.
    pub(super) fn sum(&self) -> Sum {
        self.total().since(self.baseline)
    }

    /// Counts from here.
    pub(super) fn clear(&mut self) {
        self.baseline = self.total();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outlive_lanes_and_are_cleared() {
        let mut traffic = Traffic::default();
        let part = |frames| {
            let part = Arc::<Counters>::default();
            part.frames.add(frames);
            part
        };
        let first = part(5);
        traffic.add(Arc::clone(&first));
        first.frames.add(1);
        assert_eq!(traffic.sum().frames, 6);
        drop(first);
        let second = part(10);
        traffic.add(Arc::clone(&second));
        assert_eq!((traffic.sum().frames, traffic.parts.len()), (16, 1));
        traffic.clear();
        second.frames.add(2);
        assert_eq!(traffic.sum(), Sum { frames: 2, octets: 0, no_buffer: 0 });
    }
}
