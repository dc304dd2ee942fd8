//! A place in a packed ring: index and wrap counter, its encodings and the arithmetic on it (virtio 1.3 §2.8.2).
//!
//! Used by both sides. Pure values; touches no memory.

/// The wrap counter's bit.
const WRAP: u32 = 1 << 15;

/// Index below the ring size, and the wrap counter that starts at 1 (§2.8.1).
///
/// Bits 0..=14 index, bit 15 wrap counter: as event structures and vhost-user write it. Kept as 32 bits for the reason
/// that `ring::index` gives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position(u32);

impl Position {
    /// Where both sides of a new ring start.
    pub const START: Self = Self(WRAP);

    /// From the encoding of event structures and vhost-user.
    #[inline]
    pub fn from_bits(bits: u16) -> Self {
        Self(u32::from(bits))
    }

    /// The inverse of `from_bits`.
    #[inline]
    pub fn bits(self) -> u16 {
        self.0 as u16
    }

    /// Which descriptor.
    #[inline(always)]
    pub fn index(self) -> u16 {
        (self.0 & (WRAP - 1)) as u16
    }

    /// In which kind of round.
    #[inline(always)]
    pub fn wrap(self) -> bool {
        self.0 & WRAP != 0
    }

    /// Goes `slots` on, at most once around.
    #[inline(always)]
    pub fn advance(&mut self, slots: u16, size: u16) {
        let wrap = self.0 & WRAP;
        let index = (self.0 & (WRAP - 1)) + u32::from(slots);
        let size = u32::from(size);
        self.0 = if index >= size { (index - size) | (wrap ^ WRAP) } else { index | wrap };
    }

    /// Slots from here to `to`, which is at most one round ahead.
    #[inline]
    pub fn distance_to(self, to: Self, size: u16) -> u16 {
        if self.wrap() == to.wrap() {
            to.index().wrapping_sub(self.index())
        } else {
            size.wrapping_sub(self.index()).wrapping_add(to.index())
        }
    }
}

impl std::fmt::Debug for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({}, wrap {})", self.index(), u8::from(self.wrap()))
    }
}

/// Whether `event` is among the slots from `old` up to, not including, `new` (§2.8.10, §2.7.10 for the arithmetic).
#[inline]
pub(crate) fn need_event(event: Position, new: Position, old: Position, size: u16) -> bool {
    // As numbers on a line on which `new` keeps its index, positions of the round before lie `size` lower.
    let mut event_at = event.index();
    if event.wrap() != new.wrap() {
        event_at = event_at.wrapping_sub(size);
    }
    new.index().wrapping_sub(event_at).wrapping_sub(1) < old.distance_to(new, size)
}

/// Next available and next used position out of SET_VRING_BASE ("Vring descriptor indices for packed virtqueues").
///
/// Real front-ends leave parts out. User-Mode Linux sends 0 for a new ring, without wrap bits: a ring in which nothing was
/// ever used (`ever_used`) is a new one. DPDK's virtio-user fills in only the available half: where the used half cannot
/// belong to it, nothing is in flight.
pub(crate) fn decode(base: u32, size: u16, ever_used: impl Fn() -> bool) -> Option<(Position, Position)> {
    if base == 0 && !ever_used() {
        return Some((Position::START, Position::START));
    }
    let avail = Position::from_bits(base as u16);
    let used = Position::from_bits((base >> 16) as u16);
    if avail.index() >= size {
        return None;
    }
    // A used half of 0 beside a fresh available half would mean a full ring in flight: it was not filled in.
    let absent = base >> 16 == 0 && avail == Position::START;
    let behind = used.index() < size
        && if used.wrap() == avail.wrap() {
            used.index() <= avail.index()
        } else {
            used.index() >= avail.index()
        };
    Some((avail, if behind && !absent { used } else { avail }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u16, wrap: bool) -> Position {
        Position::from_bits(index | u16::from(wrap) << 15)
    }

    #[test]
    fn advancing_past_the_end_flips_the_wrap_counter() {
        let mut p = at(254, true);
        p.advance(3, 256);
        assert_eq!(p, at(1, false));
        p.advance(256, 256);
        assert_eq!(p, at(1, true));
        let mut largest = at(32767, true);
        largest.advance(1, 32768);
        assert_eq!(largest, at(0, false));
    }

    #[test]
    fn distance_is_what_advance_went() {
        for size in [1u16, 3, 256, 32768] {
            for start in [0, size / 2, size - 1] {
                for slots in [0, 1, size / 2, size - 1, size] {
                    if slots > size {
                        continue;
                    }
                    let from = at(start, true);
                    let mut to = from;
                    to.advance(slots, size);
                    assert_eq!(from.distance_to(to, size), slots, "size {size} start {start} slots {slots}");
                }
            }
        }
    }

    /// The definition itself: walk from old to new and see whether the event is met.
    fn met(event: Position, new: Position, old: Position, size: u16) -> bool {
        let mut p = old;
        for _ in 0..old.distance_to(new, size) {
            if p == event {
                return true;
            }
            p.advance(1, size);
        }
        false
    }

    #[test]
    fn event_decision_matches_a_walk_at_every_position_of_a_small_ring() {
        for size in [1u16, 2, 3, 5, 8] {
            for old_index in 0..size {
                for slots in 1..=size {
                    let old = at(old_index, true);
                    let mut new = old;
                    new.advance(slots, size);
                    for index in 0..size {
                        for wrap in [false, true] {
                            let event = at(index, wrap);
                            assert_eq!(
                                need_event(event, new, old, size),
                                met(event, new, old, size),
                                "size {size} event {event:?} new {new:?} old {old:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn base_is_read_as_the_specification_and_as_real_front_ends_write_it() {
        let fresh = (Position::START, Position::START);
        // QEMU: both halves.
        assert_eq!(decode(0x8000_8000, 256, || false), Some(fresh));
        // User-Mode Linux, new ring; the same bits on a ring that has been round once mean what they say.
        assert_eq!(decode(0, 256, || false), Some(fresh));
        assert_eq!(decode(0, 256, || true), Some((at(0, false), at(0, false))));
        // DPDK virtio-user: only the lower half.
        assert_eq!(decode(0x8000, 256, || false), Some(fresh));
        // In flight: used behind available.
        assert_eq!(decode(0x8003_8007, 256, || true), Some((at(7, true), at(3, true))));
        assert_eq!(decode(0x80fe_0002, 256, || true), Some((at(2, false), at(254, true))));
        // Used ahead of available cannot be.
        assert_eq!(decode(0x8007_8003, 256, || true), Some((at(3, true), at(3, true))));
        assert_eq!(decode(0x8000_8100, 256, || true), None);
    }
}
