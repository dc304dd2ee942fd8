//! The split ring, device side (virtio 1.3 §2.7).
//!
//! Owns the device's two indices and the three areas. `walk.rs` turns descriptors into buffers; this file takes from
//! the available ring, fills the used ring and decides about notifications in both directions.

#![expect(unsafe_code, reason = "ring words live in guest memory (DESIGN section 6: rings)")]

mod walk;

use super::area::Area;
use super::arena::{ChainId, Segments, Shape, Stop};
use super::descriptor::{DESCRIPTOR_LEN, Descriptor};
use super::index::Index;
use super::queue::{Queue, Staged};
use super::{RingError, RingSetup};
use crate::mem::{GuestSlice, MemoryTable, RegionHint};
use crate::virtio::features::RING_EVENT_IDX;
use std::sync::atomic::{Ordering, fence};

/// Largest split ring (§2.7).
const SIZE_MAX: u16 = 32768;
/// `avail.flags`: the driver asks for no notifications (§2.7.6).
pub(super) const AVAIL_NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device asks for no notifications (§2.7.8).
pub(super) const USED_NO_NOTIFY: u16 = 1;
/// Offset of the index in both rings, in bytes; the flags are at 0.
pub(super) const INDEX: usize = 2;
/// Offset of the first entry in both rings, in bytes.
pub(super) const ENTRIES: usize = 4;
/// Bytes of one used element.
pub(super) const USED_ELEMENT_LEN: usize = 8;

/// Bytes of a cache line.
const LINE: usize = 64;

/// How far behind the next available index `avail_event` is parked. A driver notifies when its index passes the event, so
/// the farthest point of the 16-bit circle is the quietest.
const PARKED_BEHIND: u16 = 0x8000;
/// After so many chains a parked event is moved along, long before the driver comes round to it.
const REPARK_AFTER: u16 = 0x4000;

/// What the driver was last told about notifying us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kicks {
    /// Nothing yet, by us.
    Unknown,
    Wanted,
    /// Unwanted, said when the next available index was this.
    Parked(u16),
}

/// Bytes of the available ring.
pub(super) fn available_len(size: u16, event_idx: bool) -> usize {
    ENTRIES + 2 * usize::from(size) + 2 * usize::from(event_idx)
}

/// Bytes of the used ring.
pub(super) fn used_len(size: u16, event_idx: bool) -> usize {
    ENTRIES + USED_ELEMENT_LEN * usize::from(size) + 2 * usize::from(event_idx)
}

/// Whether `event` lies in `old..new`: somebody asked to hear when the index passes it (§2.7.10).
#[inline(always)]
pub(super) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

pub(super) struct SplitQueue {
    desc: Area,
    avail: Area,
    used: Area,
    size: u16,
    mask: u16,
    /// Next available index to take; runs freely over 16 bits.
    last_avail: Index,
    /// Available index as last loaded.
    avail_seen: Index,
    /// Used index as published.
    used_idx: Index,
    event_idx: bool,
    kicks: Kicks,
    /// Whether anything was published since the start. A predecessor may have died between publishing and notifying, so the
    /// first publication always notifies.
    published: bool,
    /// Guest address of the used ring, if writes to it are logged.
    used_log: Option<u64>,
}

impl SplitQueue {
    pub fn new(memory: &MemoryTable, setup: &RingSetup) -> Result<Self, RingError> {
        let size = setup.size;
        if !size.is_power_of_two() || size > SIZE_MAX {
            return Err(RingError::BadSize(size));
        }
        let event_idx = setup.features & RING_EVENT_IDX != 0;
        let desc = Area::from_user(memory, setup.desc_user, DESCRIPTOR_LEN * usize::from(size), 16)?;
        let avail = Area::from_user(memory, setup.driver_user, available_len(size, event_idx), 2)?;
        let used = Area::from_user(memory, setup.device_user, used_len(size, event_idx), 4)?;
        // SAFETY: every ring is longer than its index.
        let used_idx = u16::from_le(unsafe { used.u16(INDEX) }.load(Ordering::Acquire));
        // Where the two differ, a predecessor died with chains taken and not returned, or the front-end knows no better:
        // DPDK's virtio-user says 0 when a back-end comes back, cloud-hypervisor the available index. The used ring is in
        // the guest's memory and tells what was returned, so nothing is lost to the guest for good; a frame may come twice.
        let last_avail = used_idx;
        Ok(Self {
            desc,
            avail,
            used,
            size,
            mask: size - 1,
            last_avail: Index::new(last_avail),
            avail_seen: Index::new(last_avail),
            used_idx: Index::new(used_idx),
            event_idx,
            kicks: Kicks::Unknown,
            published: false,
            used_log: setup.used_log.filter(|_| memory.log().is_some()),
        })
    }

    /// Used index as published.
    pub fn used_idx(&self) -> u16 {
        self.used_idx.get()
    }

    /// `count` chains are in flight: the next one to take is behind them.
    pub fn skip_in_flight(&mut self, count: usize) {
        self.last_avail.advance(count as u16);
        self.avail_seen = self.last_avail;
    }

    /// Chains known to be available without looking again.
    #[inline]
    pub fn available_seen(&self) -> usize {
        usize::from(self.avail_seen.since(self.last_avail))
    }

    #[inline(always)]
    fn load_avail_idx(&self, order: Ordering) -> u16 {
        // SAFETY: the available ring is longer than its index.
        u16::from_le(unsafe { self.avail.u16(INDEX) }.load(order))
    }

    #[inline]
    fn load_available(&mut self) -> Result<(), RingError> {
        let seen = Index::new(self.load_avail_idx(Ordering::Acquire));
        let available = u32::from(seen.since(self.last_avail));
        let in_flight = u32::from(self.last_avail.since(self.used_idx));
        // No driver can have more chains out than the ring has entries (§2.7.13.3).
        if available + in_flight > u32::from(self.size) {
            return Err(RingError::BadIndex);
        }
        self.avail_seen = seen;
        Ok(())
    }

    /// Head descriptor of the chain at available index `index`.
    #[inline(always)]
    fn head(&self, index: u16) -> u16 {
        // SAFETY: the masked index is below the ring size.
        let entry = unsafe { self.avail.u16(ENTRIES + 2 * usize::from(index & self.mask)) };
        u16::from_le(entry.load(Ordering::Relaxed))
    }

    /// Descriptor `index`, which must be below the ring size, copied out.
    #[inline(always)]
    fn descriptor(&self, index: u16) -> Descriptor {
        debug_assert!(index < self.size);
        // SAFETY: callers check the index; the area is 16-aligned and has `size` descriptors.
        Descriptor::split(unsafe { self.desc.descriptor(usize::from(index), Ordering::Relaxed) })
    }

    /// The words of descriptor `index`, if there is one.
    #[inline(always)]
    fn words(&self, index: usize) -> Option<(u64, u64)> {
        // SAFETY: as in `descriptor`.
        (index < usize::from(self.size)).then(|| unsafe { self.desc.descriptor(index, Ordering::Relaxed) })
    }

    #[inline]
    fn log_used(&self, memory: &MemoryTable, offset: usize, len: usize) {
        if let Some(base) = self.used_log {
            memory.log_write(base.wrapping_add(offset as u64), len as u64);
        }
    }

    fn store_avail_event(&self, memory: &MemoryTable, event: u16) {
        let offset = ENTRIES + USED_ELEMENT_LEN * usize::from(self.size);
        // SAFETY: only called with EVENT_IDX, and then the used ring was checked to hold this word.
        unsafe { self.used.u16(offset) }.store(event.to_le(), Ordering::Relaxed);
        self.log_used(memory, offset, 2);
    }

    fn store_used_flags(&self, memory: &MemoryTable, flags: u16) {
        // SAFETY: every ring is longer than its flags.
        unsafe { self.used.u16(0) }.store(flags.to_le(), Ordering::Relaxed);
        self.log_used(memory, 0, 2);
    }

    /// Whether the driver wants to hear that the used index went from `old` to where it is now.
    #[inline]
    fn driver_wants(&mut self, old: u16) -> bool {
        // The driver writes its wish and then looks at the index; we do it the other way round. Without a full fence on
        // both sides each could miss the other (§2.7.10.1).
        fence(Ordering::SeqCst);
        if self.event_idx {
            // SAFETY: with EVENT_IDX the available ring was checked to hold this word behind its entries.
            let event = unsafe { self.avail.u16(ENTRIES + 2 * usize::from(self.size)) };
            let first = !std::mem::replace(&mut self.published, true);
            first || need_event(u16::from_le(event.load(Ordering::Relaxed)), self.used_idx.get(), old)
        } else {
            // SAFETY: every ring is longer than its flags.
            let flags = u16::from_le(unsafe { self.avail.u16(0) }.load(Ordering::Relaxed));
            flags & AVAIL_NO_INTERRUPT == 0
        }
    }

    #[cold]
    fn log_elements(&self, memory: &MemoryTable, from: u16, to: u16) {
        let mut at = from;
        while at != to {
            self.log_used(memory, ENTRIES + USED_ELEMENT_LEN * usize::from(at & self.mask), USED_ELEMENT_LEN);
            at = at.wrapping_add(1);
        }
    }
}

impl Queue for SplitQueue {
    type Position = u16;

    #[inline(always)]
    fn position(&self) -> u16 {
        self.last_avail.get()
    }

    #[inline(always)]
    fn rewind(&mut self, to: u16) {
        self.last_avail.set(to);
    }

    #[inline]
    fn refresh(&mut self, memory: &MemoryTable, max_count: usize) -> Result<usize, RingError> {
        let mut count = usize::from(self.avail_seen.since(self.last_avail));
        if count < max_count {
            self.load_available()?;
            count = usize::from(self.avail_seen.since(self.last_avail));
            if let Kicks::Parked(at) = self.kicks
                && self.event_idx
                && self.last_avail.get().wrapping_sub(at) >= REPARK_AFTER
            {
                self.kicks = Kicks::Unknown;
                self.disable_notifications(memory);
            }
        }
        let count = count.min(max_count);
        for ahead in 0..count as u16 {
            let head = self.head(self.last_avail.get().wrapping_add(ahead));
            self.desc.prefetch(usize::from(head) * DESCRIPTOR_LEN);
        }
        Ok(count)
    }

    #[inline(always)]
    fn next(
        &mut self,
        memory: &MemoryTable,
        hint: &mut RegionHint,
        out: &mut Segments,
        shape: &mut Shape,
    ) -> Result<bool, Stop> {
        if self.avail_seen == self.last_avail {
            self.load_available().map_err(Stop::Bad)?;
            if self.avail_seen == self.last_avail {
                return Ok(false);
            }
        }
        let head = self.head(self.last_avail.get());
        self.walk(memory, hint, head, out, shape)?;
        shape.id = ChainId::new(head, 1);
        self.last_avail.advance(1);
        Ok(true)
    }

    #[inline(always)]
    fn next_single<'m, const WRITABLE: bool>(
        &mut self,
        memory: &'m MemoryTable,
        hint: &mut RegionHint,
        least: usize,
    ) -> Option<(ChainId, GuestSlice<'m>)> {
        if self.avail_seen == self.last_avail {
            return None;
        }
        let head = self.head(self.last_avail.get());
        if head >= self.size {
            return None;
        }
        let descriptor = self.descriptor(head);
        let piece = descriptor.single::<WRITABLE>(memory, hint, least)?;
        self.last_avail.advance(1);
        Some((ChainId::new(head, 1), piece))
    }

    #[inline(always)]
    fn prefetch_ahead(&self, memory: &MemoryTable, hint: &mut RegionHint, ahead: u16, lines: usize) {
        if self.avail_seen.since(self.last_avail) <= ahead {
            return;
        }
        let head = self.head(self.last_avail.get().wrapping_add(ahead));
        if head < self.size {
            self.descriptor(head).prefetch_for_write(memory, hint, lines);
        }
    }

    #[inline]
    fn prefetch_used(&self, count: usize) {
        // The driver reads these lines while we fill them: each comes over once instead of holding up the publication.
        for ahead in (0..count).step_by(LINE / USED_ELEMENT_LEN) {
            let at = usize::from(self.used_idx.get().wrapping_add(ahead as u16) & self.mask);
            self.used.prefetch_for_write(ENTRIES + USED_ELEMENT_LEN * at);
        }
    }

    #[inline]
    fn publish(&mut self, memory: &MemoryTable, staged: &[Staged]) -> bool {
        let old = self.used_idx.get();
        let mut at = old;
        for element in staged {
            let offset = ENTRIES + USED_ELEMENT_LEN * usize::from(at & self.mask);
            let value = u64::from(element.chain.number()) | u64::from(element.len) << 32;
            // SAFETY: the masked index is below the ring size. The driver does not look at it before the index is
            // released below.
            unsafe { self.used.store_unaligned(offset, value) };
            at = at.wrapping_add(element.chain.slots());
        }
        self.used_idx.set(at);
        // SAFETY: every ring is longer than its index.
        unsafe { self.used.u16(INDEX) }.store(at.to_le(), Ordering::Release);
        if self.used_log.is_some() {
            self.log_elements(memory, old, at);
            self.log_used(memory, INDEX, 2);
        }
        self.driver_wants(old)
    }

    #[inline]
    fn fetch(&self) {
        self.avail.prefetch(INDEX);
        for ahead in [0, LINE / 2] {
            let at = self.last_avail.get().wrapping_add(ahead as u16);
            self.avail.prefetch(ENTRIES + 2 * usize::from(at & self.mask));
        }
    }

    #[inline]
    fn has_work(&self) -> bool {
        self.avail_seen != self.last_avail || self.load_avail_idx(Ordering::Relaxed) != self.last_avail.get()
    }

    fn enable_notifications(&mut self, memory: &MemoryTable) -> bool {
        self.kicks = Kicks::Wanted;
        if self.event_idx {
            self.store_avail_event(memory, self.last_avail.get());
        } else {
            self.store_used_flags(memory, 0);
        }
        // The driver publishes its index and then reads this wish: the re-check must not be done before the wish is out.
        fence(Ordering::SeqCst);
        self.load_avail_idx(Ordering::Acquire) != self.last_avail.get()
    }

    fn disable_notifications(&mut self, memory: &MemoryTable) {
        if matches!(self.kicks, Kicks::Parked(_)) {
            return;
        }
        self.kicks = Kicks::Parked(self.last_avail.get());
        if self.event_idx {
            self.store_avail_event(memory, self.last_avail.get().wrapping_sub(PARKED_BEHIND));
        } else {
            self.store_used_flags(memory, USED_NO_NOTIFY);
        }
    }

    fn base(&self) -> u32 {
        u32::from(self.last_avail.get())
    }
}
