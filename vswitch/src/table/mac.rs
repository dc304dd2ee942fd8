//! The address table: (domain, MAC) to port, in one array that is never changed once it is built.
//!
//! Built by [`TableBuilder`](super::TableBuilder), read by workers for each frame. Open addressing with linear probes; the
//! hash is multiply-shift with a key drawn at random per table, so a guest that chooses its addresses cannot make them
//! collide. The builder bounds the probes, so a look-up costs the same with 2 entries and with 4,096.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{DomainIndex, PortIndex};

/// Most slots a look-up touches: two cache lines, with four slots in each. The builder grows the array until this holds.
const PROBES_MAX: usize = 8;
/// The key of an empty slot: no domain is numbered so.
const EMPTY: u64 = u64::MAX;
/// The domain number under which protected addresses are kept: they are protected in every domain.
const PROTECTED: u64 = 0xfffe;
/// Most domains: the two numbers above are not among them.
pub(crate) const DOMAINS_MAX: usize = 0xfff0;

/// A MAC address as a number, first octet most significant, as [`avio_proto::config::MacAddr::to_u64`].
pub(crate) type MacNumber = u64;

/// The key of `mac` in `domain`.
#[inline]
pub(crate) fn key(domain: DomainIndex, mac: MacNumber) -> u64 {
    u64::from(domain.0) << 48 | mac
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From a definition; never moves.
    Static,
    /// Seen as a source on a trusted port.
    Learned,
}

/// One entry to be put in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewEntry {
    pub key: u64,
    pub port: PortIndex,
    pub origin: Origin,
    /// Coarse time of the last frame from there, s; learned entries only.
    pub seen_s: u32,
}

#[derive(Debug)]
struct Slot {
    key: u64,
    /// Bit 31: learned.
    port: u32,
    seen_s: AtomicU32,
}

const LEARNED_BIT: u32 = 1 << 31;

/// A found entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'t>(&'t Slot);

impl Found<'_> {
    #[inline]
    pub(crate) fn port(self) -> PortIndex {
        PortIndex(self.0.port & !LEARNED_BIT)
    }

    #[inline]
    pub(crate) fn is_learned(self) -> bool {
        self.0.port & LEARNED_BIT != 0
    }

    /// The address was just used as a source. The line is written once a second at most.
    #[inline]
    pub(crate) fn touch(self, now_s: u32) {
        if self.0.seen_s.load(Ordering::Relaxed) != now_s {
            self.0.seen_s.store(now_s, Ordering::Relaxed);
        }
    }

    /// Coarse time of the last frame from there, s.
    pub(crate) fn seen_s(self) -> u32 {
        self.0.seen_s.load(Ordering::Relaxed)
    }
}

/// The finished table.
#[derive(Debug)]
pub(crate) struct MacTable {
    slots: Box<[Slot]>,
    multiplier: u64,
    shift: u32,
    len: usize,
}

impl MacTable {
    /// Builds it from entries with distinct keys and from protected addresses.
    pub(crate) fn new(entries: &[NewEntry], protected: &[MacNumber]) -> Self {
        let protected = protected.iter().map(|mac| NewEntry {
            key: PROTECTED << 48 | mac,
            port: PortIndex(0),
            origin: Origin::Static,
            seen_s: 0,
        });
        let all: Vec<NewEntry> = entries.iter().copied().chain(protected).collect();
        // A quarter full at most: with random keys, eight probes then suffice in nearly every draw.
        let mut bits = (all.len().max(4) * 4).next_power_of_two().trailing_zeros();
        loop {
            for _ in 0..8 {
                if let Some(table) = Self::try_new(&all, bits, RandomState::new().hash_one(bits) | 1) {
                    return table;
                }
            }
            bits += 1;
        }
    }

    fn try_new(all: &[NewEntry], bits: u32, multiplier: u64) -> Option<Self> {
        let empty = || Slot { key: EMPTY, port: 0, seen_s: AtomicU32::new(0) };
        let mut slots: Box<[Slot]> = (0..1usize << bits).map(|_| empty()).collect();
        let shift = u64::BITS - bits;
        let mask = slots.len() - 1;
        for entry in all {
            let start = (entry.key.wrapping_mul(multiplier) >> shift) as usize;
            let at = (0..PROBES_MAX).map(|i| (start + i) & mask).find(|&at| slots[at].key == EMPTY)?;
            let learned = if entry.origin == Origin::Learned { LEARNED_BIT } else { 0 };
            slots[at] =
                Slot { key: entry.key, port: entry.port.0 | learned, seen_s: AtomicU32::new(entry.seen_s) };
        }
        Some(Self { slots, multiplier, shift, len: all.len() })
    }

    /// The entry of `key`.
    #[inline]
    pub(crate) fn find(&self, key: u64) -> Option<Found<'_>> {
        let mask = self.slots.len() - 1;
        let start = (key.wrapping_mul(self.multiplier) >> self.shift) as usize;
        for i in 0..PROBES_MAX {
            let slot = &self.slots[(start + i) & mask];
            if slot.key == key {
                return Some(Found(slot));
            }
            if slot.key == EMPTY {
                return None;
            }
        }
        None
    }

    /// Whether `mac` belongs to a host interface or to a guest.
    #[inline]
    pub(crate) fn is_protected(&self, mac: MacNumber) -> bool {
        self.find(PROTECTED << 48 | mac).is_some()
    }

    /// Number of entries, protected addresses included.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn entry(key: u64, port: u32, origin: Origin) -> NewEntry {
        NewEntry { key, port: PortIndex(port), origin, seen_s: 7 }
    }

    #[test]
    fn keys_of_two_domains_differ_and_protection_is_of_no_domain() {
        let mac = 0x1e29_8c88_a5eb;
        let entries = [
            entry(key(DomainIndex(0), mac), 1, Origin::Static),
            entry(key(DomainIndex(1), mac), 2, Origin::Learned),
        ];
        let table = MacTable::new(&entries, &[0x0200_0000_0001]);
        let found = table.find(key(DomainIndex(1), mac)).unwrap();
        assert_eq!((found.port(), found.is_learned(), found.seen_s()), (PortIndex(2), true, 7));
        found.touch(9);
        assert_eq!(table.find(key(DomainIndex(1), mac)).unwrap().seen_s(), 9);
        assert!(!table.find(key(DomainIndex(0), mac)).unwrap().is_learned());
        assert!(table.is_protected(0x0200_0000_0001) && !table.is_protected(mac));
        assert!(table.find(key(DomainIndex(0), 0x0200_0000_0001)).is_none());
        assert_eq!(table.len(), 3);
    }

    proptest! {
        #[test]
        fn finds_what_was_put_in_and_nothing_else(
            macs in proptest::collection::hash_map(0u64..1 << 20, 0u32..4096, 0..600),
            strangers in proptest::collection::vec(0u64..1 << 20, 100),
        ) {
            let macs: HashMap<u64, u32> = macs;
            let entries: Vec<_> = macs.iter().map(|(&k, &p)| entry(k, p, Origin::Static)).collect();
            let table = MacTable::new(&entries, &[]);
            for (&k, &p) in &macs {
                prop_assert_eq!(table.find(k).map(Found::port), Some(PortIndex(p)));
            }
            for k in strangers {
                prop_assert_eq!(table.find(k).is_some(), macs.contains_key(&k));
            }
        }
    }

    #[test]
    fn addresses_chosen_to_collide_do_not_lengthen_probes() {
        // Arithmetic progressions are what a guest would use against a fixed multiplier.
        for step in [1, 1 << 8, 1 << 16, 1 << 24] {
            let entries: Vec<_> = (0..4096).map(|i| entry(i * step, 1, Origin::Learned)).collect();
            let table = MacTable::new(&entries, &[]);
            assert!(table.slots.len() <= 4096 * 16, "grew to {} slots", table.slots.len());
        }
    }
}
