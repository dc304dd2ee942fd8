//! The split ring, driver side (virtio 1.3 §2.7.13, §2.7.14).

#![expect(unsafe_code, reason = "ring words live in guest memory (DESIGN section 6: rings)")]

use super::layout::{DriverLayout, TABLE_ENTRIES, TABLE_LEN, area_lens};
use super::tokens::Tokens;
use super::{GuestBuffer, Used, for_each_buffer, writable_len};
use crate::mem::MemoryTable;
use crate::ring::RingError;
use crate::ring::area::Area;
use crate::ring::descriptor::{DESCRIPTOR_LEN, F_INDIRECT, F_NEXT, F_WRITE};
use crate::ring::index::Index;
use crate::ring::split::{AVAIL_NO_INTERRUPT, ENTRIES, INDEX, USED_ELEMENT_LEN, USED_NO_NOTIFY, need_event};
use crate::virtio::features::{IN_ORDER, RING_EVENT_IDX};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};

/// As on the device side: the quietest place for an event, and when to move it along.
const PARKED_BEHIND: u16 = 0x8000;
const REPARK_AFTER: u16 = 0x4000;

/// Bytes of a cache line.
const LINE: usize = 64;

/// What the driver remembers of a descriptor.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// Next descriptor of the chain, while it is part of one.
    next: u32,
    /// Descriptors of the chain that starts here; 0 = no chain that is out starts here.
    chain_count: u32,
    /// Bytes the device may write to the chain that starts here.
    writable_len: u32,
    /// Descriptors of a chain that was taken back whole and still stands here; 0 = none.
    kept_count: u32,
}

pub(super) struct SplitDriver {
    desc: Area,
    avail: Area,
    used: Area,
    tables: Option<(Area, u64)>,
    size: u16,
    mask: u16,
    free: Tokens,
    slots: Box<[Slot]>,
    /// Heads in the order in which they were made available.
    order: Box<[u16]>,
    avail_idx: Index,
    published_idx: Index,
    /// What was published when it was last decided whether the device is kicked.
    told_idx: Index,
    last_used: Index,
    event_idx: bool,
    in_order: bool,
    /// IN_ORDER: last head and written length of the batch being taken back.
    batch: Option<(u16, u32)>,
    /// Used index at which interrupts were last declined.
    parked: Option<u16>,
    error: Option<RingError>,
}

/// Stores `value` unless it is there already, so that an unchanged line stays shared.
#[inline(always)]
fn store_if_new(word: &AtomicU64, value: u64) {
    if word.load(Ordering::Relaxed) != value.to_le() {
        word.store(value.to_le(), Ordering::Relaxed);
    }
}

impl SplitDriver {
    pub fn new(memory: &MemoryTable, layout: &DriverLayout, features: u64) -> Result<Self, RingError> {
        let size = layout.size;
        if !size.is_power_of_two() || size > 32768 {
            return Err(RingError::BadSize(size));
        }
        let [desc_len, avail_len, used_len] = area_lens(size, features);
        let tables = match layout.indirect {
            Some(base) => Some((Area::from_guest(memory, base, usize::from(size) * TABLE_LEN, 16)?, base)),
            None => None,
        };
        let ring = Self {
            desc: Area::from_guest(memory, layout.desc, desc_len as usize, 16)?,
            avail: Area::from_guest(memory, layout.driver, avail_len as usize, 2)?,
            used: Area::from_guest(memory, layout.device, used_len as usize, 4)?,
            tables,
            size,
            mask: size - 1,
            free: Tokens::new(size),
            slots: vec![Slot::default(); usize::from(size)].into_boxed_slice(),
            order: vec![0; usize::from(size)].into_boxed_slice(),
            avail_idx: Index::new(0),
            published_idx: Index::new(0),
            told_idx: Index::new(0),
            last_used: Index::new(0),
            event_idx: features & RING_EVENT_IDX != 0,
            in_order: features & IN_ORDER != 0,
            batch: None,
            parked: None,
            error: None,
        };
        ring.desc.clear();
        ring.avail.clear();
        ring.used.clear();
        Ok(ring)
    }

    #[inline(always)]
    fn avail_word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: callers pass the flags, the index, an entry below the size or, with EVENT_IDX, the word behind them.
        unsafe { self.avail.u16(offset) }
    }

    #[inline(always)]
    fn used_word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as `avail_word`.
        unsafe { self.used.u16(offset) }
    }

    fn used_event(&self) -> &AtomicU16 {
        self.avail_word(ENTRIES + 2 * usize::from(self.size))
    }

    #[inline(always)]
    fn write_descriptor(area: &Area, index: usize, buffer: GuestBuffer, flags: u16, next: u16) {
        let high = u64::from(buffer.1) | u64::from(flags) << 32 | u64::from(next) << 48;
        // SAFETY: the index is below the ring size (descriptor table), or inside a chain's table.
        unsafe {
            store_if_new(area.u64(index * DESCRIPTOR_LEN), buffer.0);
            store_if_new(area.u64(index * DESCRIPTOR_LEN + 8), high);
        }
    }

    #[inline]
    pub fn add(&mut self, readable: &[GuestBuffer], writable: &[GuestBuffer]) -> Option<u16> {
        let count = readable.len() + writable.len();
        let head = if count > 1 && count <= TABLE_ENTRIES && self.tables.is_some() {
            self.add_indirect(readable, writable)?
        } else {
            self.add_chain(count, readable, writable)?
        };
        self.slots[usize::from(head)].writable_len = writable_len(writable);
        self.offer(head);
        Some(head)
    }

    /// A chain of one buffer that `take_used` left with the caller.
    #[inline(always)]
    pub fn again(&mut self, head: u16, buffer: GuestBuffer, flags: u16) -> Option<u16> {
        let slot = self.slots.get_mut(usize::from(head)).filter(|slot| slot.chain_count == 0)?;
        slot.chain_count = 1;
        slot.kept_count = 0;
        slot.writable_len = if flags & F_WRITE != 0 { buffer.1 } else { 0 };
        Self::write_descriptor(&self.desc, usize::from(head), buffer, flags, 0);
        self.offer(head);
        Some(head)
    }

    /// A chain that `take_used` left with the caller, as it is.
    #[inline(always)]
    pub fn resubmit(&mut self, head: u16) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(head)).filter(|slot| slot.kept_count > 0) else {
            return false;
        };
        slot.chain_count = std::mem::take(&mut slot.kept_count);
        self.offer(head);
        true
    }

    /// Frees the descriptors of a chain that `take_used` left with the caller.
    pub fn let_go(&mut self, head: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(head)) else { return };
        let mut index = head;
        for _ in 0..std::mem::take(&mut slot.kept_count) {
            self.free.give(index);
            index = self.slots[usize::from(index)].next as u16;
        }
    }

    pub fn keeps_chains(&self) -> bool {
        !self.in_order
    }

    /// Puts a chain into the available ring.
    #[inline(always)]
    fn offer(&mut self, head: u16) {
        let at = usize::from(self.avail_idx.get() & self.mask);
        self.order[at] = head;
        let entry = self.avail_word(ENTRIES + 2 * at);
        if entry.load(Ordering::Relaxed) != head.to_le() {
            entry.store(head.to_le(), Ordering::Relaxed);
        }
        self.avail_idx.advance(1);
    }

    #[inline(always)]
    fn add_chain(&mut self, count: usize, readable: &[GuestBuffer], writable: &[GuestBuffer]) -> Option<u16> {
        if count == 0 || count > self.free.count() {
            return None;
        }
        let head = self.free.take()?;
        let (mut index, mut left) = (head, count);
        let Self { desc, free, slots, .. } = self;
        for_each_buffer(readable, writable, |buffer, flags| {
            left -= 1;
            let next = if left == 0 { None } else { free.take() };
            let flags = if next.is_some() { flags | F_NEXT } else { flags };
            let after = next.unwrap_or(0);
            Self::write_descriptor(desc, usize::from(index), buffer, flags, after);
            slots[usize::from(index)].next = u32::from(after);
            index = after;
        });
        slots[usize::from(head)].chain_count = count as u32;
        Some(head)
    }

    fn add_indirect(&mut self, readable: &[GuestBuffer], writable: &[GuestBuffer]) -> Option<u16> {
        let (tables, base) = self.tables.as_ref()?;
        let head = self.free.take()?;
        let first = usize::from(head) * TABLE_ENTRIES;
        let count = readable.len() + writable.len();
        let mut at = 0;
        for_each_buffer(readable, writable, |buffer, flags| {
            let flags = if at + 1 < count { flags | F_NEXT } else { flags };
            let next = if at + 1 < count { at as u16 + 1 } else { 0 };
            Self::write_descriptor(tables, first + at, buffer, flags, next);
            at += 1;
        });
        let table = (base + (first * DESCRIPTOR_LEN) as u64, (count * DESCRIPTOR_LEN) as u32);
        Self::write_descriptor(&self.desc, usize::from(head), table, F_INDIRECT, 0);
        self.slots[usize::from(head)].chain_count = 1;
        Some(head)
    }

    #[inline]
    pub fn expose(&mut self) {
        if self.avail_idx != self.published_idx {
            self.published_idx = self.avail_idx;
            self.avail_word(INDEX).store(self.avail_idx.get().to_le(), Ordering::Release);
        }
    }

    #[inline]
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.told_idx, self.avail_idx);
        if self.avail_idx == old {
            return false;
        }
        self.expose();
        // Our index and then the device's wish; the device does it the other way round (§2.7.13.4.1).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.used_word(ENTRIES + USED_ELEMENT_LEN * usize::from(self.size));
            need_event(u16::from_le(event.load(Ordering::Relaxed)), self.avail_idx.get(), old.get())
        } else {
            u16::from_le(self.used_word(0).load(Ordering::Relaxed)) & USED_NO_NOTIFY == 0
        }
    }

    #[inline]
    pub fn poll_used(&mut self, out: &mut [Used]) -> usize {
        self.collect::<true>(out)
    }

    #[inline(always)]
    pub fn take_used(&mut self, out: &mut [Used]) -> usize {
        self.collect::<false>(out)
    }

    /// Takes back used chains; with `FREE` their descriptors are free then.
    #[inline(always)]
    fn collect<const FREE: bool>(&mut self, out: &mut [Used]) -> usize {
        if self.error.is_some() {
            return 0;
        }
        let seen = Index::new(u16::from_le(self.used_word(INDEX).load(Ordering::Acquire)));
        let available = seen.since(self.last_used);
        if available > self.published_idx.since(self.last_used) {
            self.error = Some(RingError::BadIndex);
            return 0;
        }
        // The device has just written them: all lines come across at once instead of one after the other.
        let wanted = usize::from(available).min(out.len());
        for ahead in (0..wanted).step_by(LINE / USED_ELEMENT_LEN) {
            let at = usize::from(self.last_used.get().wrapping_add(ahead as u16) & self.mask);
            self.used.prefetch(ENTRIES + USED_ELEMENT_LEN * at);
        }
        let mut taken = 0;
        for place in &mut out[..wanted] {
            match self.next_used::<FREE>(seen) {
                Ok(used) => *place = used,
                Err(error) => {
                    self.error = Some(error);
                    break;
                }
            }
            taken += 1;
        }
        if let Some(at) = self.parked
            && self.event_idx
            && self.last_used.get().wrapping_sub(at) >= REPARK_AFTER
        {
            self.parked = None;
            self.disable_interrupts();
        }
        taken
    }

    #[inline(always)]
    fn next_used<const FREE: bool>(&mut self, seen: Index) -> Result<Used, RingError> {
        let at = self.last_used.get() & self.mask;
        let used = if self.in_order { self.next_in_order(at, seen)? } else { self.element(at)? };
        let slot = self.slots.get_mut(usize::from(used.token)).ok_or(RingError::BadDescriptor(used.token))?;
        let count = std::mem::take(&mut slot.chain_count);
        if count == 0 {
            return Err(RingError::BadDescriptor(used.token));
        }
        if FREE {
            let mut index = used.token;
            for _ in 0..count {
                self.free.give(index);
                index = self.slots[usize::from(index)].next as u16;
            }
        } else {
            slot.kept_count = count;
        }
        self.last_used.advance(1);
        Ok(used)
    }

    #[inline(always)]
    fn element(&self, at: u16) -> Result<Used, RingError> {
        let offset = ENTRIES + USED_ELEMENT_LEN * usize::from(at);
        // SAFETY: the index is below the ring size; the used ring is 4-aligned.
        let (id, len) = unsafe {
            (self.used.u32(offset).load(Ordering::Relaxed), self.used.u32(offset + 4).load(Ordering::Relaxed))
        };
        let id = u32::from_le(id);
        let token = u16::try_from(id).map_err(|_| RingError::BadDescriptor(u16::MAX))?;
        Ok(Used { token, len: u32::from_le(len) })
    }

    /// With IN_ORDER, the element at the start of a batch names the batch's last chain (§2.7.9).
    #[inline]
    fn next_in_order(&mut self, at: u16, seen: Index) -> Result<Used, RingError> {
        let (last, len) = match self.batch {
            Some(batch) => batch,
            None => {
                let used = self.element(at)?;
                (used.token, used.len)
            }
        };
        let token = self.order[usize::from(at)];
        if token == last {
            self.batch = None;
            return Ok(Used { token, len });
        }
        // The batch's last chain has to come before the published index.
        if seen.since(self.last_used) == 1 {
            return Err(RingError::BadDescriptor(last));
        }
        self.batch = Some((last, len));
        Ok(Used { token, len: self.slots[usize::from(token)].writable_len })
    }

    #[inline]
    pub fn has_used(&self) -> bool {
        u16::from_le(self.used_word(INDEX).load(Ordering::Relaxed)) != self.last_used.get()
    }

    pub fn enable_interrupts(&mut self) -> bool {
        self.parked = None;
        if self.event_idx {
            self.used_event().store(self.last_used.get().to_le(), Ordering::Relaxed);
        } else {
            self.avail_word(0).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.has_used()
    }

    pub fn disable_interrupts(&mut self) {
        if self.parked.is_some() {
            return;
        }
        self.parked = Some(self.last_used.get());
        if self.event_idx {
            self.used_event()
                .store(self.last_used.get().wrapping_sub(PARKED_BEHIND).to_le(), Ordering::Relaxed);
        } else {
            self.avail_word(0).store(AVAIL_NO_INTERRUPT.to_le(), Ordering::Relaxed);
        }
    }

    pub fn resume_base(&self) -> u32 {
        u32::from(self.last_used.get())
    }

    #[inline]
    pub fn free_count(&self) -> usize {
        self.free.count()
    }

    pub fn error(&self) -> Option<RingError> {
        self.error
    }
}
