//! The packed ring, driver side (virtio 1.3 §2.8.21, §2.8.22).

#![expect(unsafe_code, reason = "ring words live in guest memory (DESIGN section 6: rings)")]

use super::layout::{DriverLayout, TABLE_ENTRIES, TABLE_LEN, area_lens};
use super::tokens::Tokens;
use super::{GuestBuffer, Used, for_each_buffer, writable_len};
use crate::mem::MemoryTable;
use crate::ring::RingError;
use crate::ring::area::Area;
use crate::ring::descriptor::{DESCRIPTOR_LEN, F_INDIRECT, F_NEXT, F_WRITE};
use crate::ring::packed::position::{Position, need_event};
use crate::ring::packed::{EVENT_DESCRIPTOR, EVENT_DISABLE, EVENT_ENABLE, EVENT_LEN, F_AVAIL, F_USED};
use crate::virtio::features::{IN_ORDER, RING_EVENT_IDX};
use std::sync::atomic::{Ordering, fence};

/// How many descriptors ahead used ones are fetched: four lines.
const FETCH_AHEAD: usize = 16;

/// Descriptors in a cache line.
const LINE_DESCRIPTORS: u16 = 4;
/// How many descriptors ahead the lines of those to come are fetched for writing: two lines.
const OWN_AHEAD: usize = 8;
/// Free slots that must be left for that line to be free as a whole.
const OWN_SLOTS: u32 = OWN_AHEAD as u32 + LINE_DESCRIPTORS as u32;

/// What the driver remembers of a chain, by its buffer ID.
#[derive(Clone, Copy, Default)]
struct Chain {
    /// Ring descriptors; 0 = no such chain is out.
    slots: u32,
    /// Bytes the device may write.
    writable_len: u32,
    /// Bytes of its indirect table, which stays when the chain comes back; 0 = it has none.
    table_len: u32,
}

pub(super) struct PackedDriver {
    desc: Area,
    driver: Area,
    device: Area,
    tables: Option<(Area, u64)>,
    size: u16,
    ids: Tokens,
    chains: Box<[Chain]>,
    free_slots: u32,
    avail: Position,
    /// Where the next batch begins; equal to `avail` when all is published.
    published: Position,
    /// Second word of the descriptor at `published`, held back until `publish`.
    first_word: u64,
    /// Chains added since the last `publish`.
    unpublished_count: usize,
    used: Position,
    event_idx: bool,
    in_order: bool,
    /// IN_ORDER: last buffer ID and written length of the batch being taken back.
    batch: Option<(u16, u32)>,
    error: Option<RingError>,
}

impl PackedDriver {
    pub fn new(memory: &MemoryTable, layout: &DriverLayout, features: u64) -> Result<Self, RingError> {
        let size = layout.size;
        if size == 0 || size > 32768 {
            return Err(RingError::BadSize(size));
        }
        let [desc_len, ..] = area_lens(size, features);
        let tables = match layout.indirect {
            Some(base) => Some((Area::from_guest(memory, base, usize::from(size) * TABLE_LEN, 16)?, base)),
            None => None,
        };
        let ring = Self {
            desc: Area::from_guest(memory, layout.desc, desc_len as usize, 16)?,
            driver: Area::from_guest(memory, layout.driver, EVENT_LEN, 4)?,
            device: Area::from_guest(memory, layout.device, EVENT_LEN, 4)?,
            tables,
            size,
            ids: Tokens::new(size),
            chains: vec![Chain::default(); usize::from(size)].into_boxed_slice(),
            free_slots: u32::from(size),
            avail: Position::START,
            published: Position::START,
            first_word: 0,
            unpublished_count: 0,
            used: Position::START,
            event_idx: features & RING_EVENT_IDX != 0,
            in_order: features & IN_ORDER != 0,
            batch: None,
            error: None,
        };
        ring.desc.clear();
        ring.driver.clear();
        ring.device.clear();
        Ok(ring)
    }

    #[inline]
    pub fn add(&mut self, readable: &[GuestBuffer], writable: &[GuestBuffer]) -> Option<u16> {
        let count = readable.len() + writable.len();
        let indirect = count > 1 && count <= TABLE_ENTRIES && self.tables.is_some();
        let slots = if indirect { 1 } else { count };
        if count == 0 || slots > self.free_slots as usize {
            return None;
        }
        // In order, a chain's number is where it starts: DPDK's driver does so, and a batch is then found without a table.
        let id = if self.in_order { self.avail.index() } else { self.ids.take()? };
        let mut table_len = 0;
        if indirect {
            let table = self.fill_table(id, readable, writable)?;
            table_len = table.1;
            self.put(id, table, F_INDIRECT, true);
        } else {
            let mut at = 0;
            for_each_buffer(readable, writable, |buffer, flags| {
                at += 1;
                let flags = if at < count { flags | F_NEXT } else { flags };
                self.put(id, buffer, flags, at == 1);
            });
        }
        let writable_len = writable_len(writable);
        self.chains[usize::from(id)] = Chain { slots: slots as u32, writable_len, table_len };
        self.free_slots -= slots as u32;
        self.unpublished_count += 1;
        Some(id)
    }

    /// A chain of one buffer that `take_used` left with the caller.
    #[inline(always)]
    pub fn again(&mut self, id: u16, buffer: GuestBuffer, flags: u16) -> Option<u16> {
        let id = if self.in_order { self.avail.index() } else { id };
        let chain = self.chains.get_mut(usize::from(id)).filter(|chain| chain.slots == 0)?;
        if self.free_slots == 0 {
            return None;
        }
        let writable_len = if flags & F_WRITE != 0 { buffer.1 } else { 0 };
        *chain = Chain { slots: 1, writable_len, table_len: 0 };
        self.put(id, buffer, flags, true);
        self.free_slots -= 1;
        self.unpublished_count += 1;
        Some(id)
    }

    /// A chain with an indirect table that `take_used` left with the caller, as it is.
    #[inline(always)]
    pub fn resubmit(&mut self, id: u16) -> bool {
        let Some((_, base)) = &self.tables else { return false };
        let base = *base;
        if self.free_slots == 0 || self.in_order {
            return false;
        }
        let Some(chain) = self.chains.get_mut(usize::from(id)).filter(|c| c.slots == 0 && c.table_len > 0)
        else {
            return false;
        };
        chain.slots = 1;
        let table = (base + (usize::from(id) * TABLE_LEN) as u64, chain.table_len);
        self.put(id, table, F_INDIRECT, true);
        self.free_slots -= 1;
        self.unpublished_count += 1;
        true
    }

    /// Frees the number of a chain that `take_used` left with the caller.
    pub fn let_go(&mut self, id: u16) {
        if self.chains.get(usize::from(id)).is_some_and(|chain| chain.slots == 0) && !self.in_order {
            self.ids.give(id);
        }
    }

    pub fn keeps_chains(&self) -> bool {
        !self.in_order && self.tables.is_some()
    }

    /// Writes the next ring descriptor; the flags of the first one of a batch are held back.
    #[inline(always)]
    fn put(&mut self, id: u16, buffer: GuestBuffer, flags: u16, head: bool) {
        let mark = if self.avail.wrap() { F_AVAIL } else { F_USED };
        let word = u64::from(buffer.1) | u64::from(id) << 32 | u64::from(flags | mark) << 48;
        let offset = usize::from(self.avail.index()) * DESCRIPTOR_LEN;
        if self.avail.index().is_multiple_of(LINE_DESCRIPTORS) && self.free_slots >= OWN_SLOTS {
            // The device has looked at that line last, a lap ago; a store that waits for it holds up all behind it. Only where the
            // device is done with it: one that it is about to write is not taken away from it.
            self.desc.prefetch_for_write(offset + OWN_AHEAD * DESCRIPTOR_LEN);
        }
        // SAFETY: a position's index is below the ring size; the area is 16-aligned.
        unsafe {
            self.desc.u64(offset).store(buffer.0.to_le(), Ordering::Relaxed);
            if head && self.unpublished_count == 0 {
                self.first_word = word;
            } else {
                self.desc.u64(offset + 8).store(word.to_le(), Ordering::Relaxed);
            }
        }
        self.avail.advance(1, self.size);
    }

    fn fill_table(&self, id: u16, readable: &[GuestBuffer], writable: &[GuestBuffer]) -> Option<GuestBuffer> {
        let (tables, base) = self.tables.as_ref()?;
        let first = usize::from(id) * TABLE_LEN;
        let mut at = first;
        for_each_buffer(readable, writable, |buffer, flags| {
            // SAFETY: `add` checked that the chain fits its table, and there is one per buffer ID.
            unsafe {
                tables.u64(at).store(buffer.0.to_le(), Ordering::Relaxed);
                let word = u64::from(buffer.1) | u64::from(flags) << 48;
                tables.u64(at + 8).store(word.to_le(), Ordering::Relaxed);
            }
            at += DESCRIPTOR_LEN;
        });
        Some((base + first as u64, (at - first) as u32))
    }

    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.unpublished_count == 0 {
            return false;
        }
        self.unpublished_count = 0;
        let old = self.published;
        self.published = self.avail;
        // SAFETY: a position's index is below the ring size.
        let word = unsafe { self.desc.u64(usize::from(old.index()) * DESCRIPTOR_LEN + 8) };
        // The device reads descriptors in order: with the first one the whole batch becomes visible.
        word.store(self.first_word.to_le(), Ordering::Release);
        // Our descriptors and then the device's wish; the device does it the other way round (§2.8.21.3.1).
        fence(Ordering::SeqCst);
        // SAFETY: the structure is four bytes long and 4-aligned.
        let event = u32::from_le(unsafe { self.device.u32(0) }.load(Ordering::Relaxed));
        match (event >> 16) as u16 & 3 {
            EVENT_DISABLE => false,
            EVENT_DESCRIPTOR if self.event_idx => {
                need_event(Position::from_bits(event as u16), self.avail, old, self.size)
            }
            _ => true,
        }
    }

    /// Length and buffer ID of the used descriptor at the used position, if there is one.
    #[inline(always)]
    fn element(&self, order: Ordering) -> Option<(u16, u32)> {
        // SAFETY: a position's index is below the ring size.
        let word = unsafe { self.desc.u64(usize::from(self.used.index()) * DESCRIPTOR_LEN + 8) };
        let word = u64::from_le(word.load(order));
        let flags = (word >> 48) as u16;
        let (avail, used) = (flags & F_AVAIL != 0, flags & F_USED != 0);
        (avail == self.used.wrap() && used == self.used.wrap()).then_some(((word >> 32) as u16, word as u32))
    }

    #[inline]
    pub fn poll_used(&mut self, out: &mut [Used]) -> usize {
        self.collect::<true>(out)
    }

    #[inline(always)]
    pub fn take_used(&mut self, out: &mut [Used]) -> usize {
        self.collect::<false>(out)
    }

    /// Takes back used chains; with `FREE` their numbers are free then.
    #[inline(always)]
    fn collect<const FREE: bool>(&mut self, out: &mut [Used]) -> usize {
        let mut taken = 0;
        while taken < out.len() && self.error.is_none() {
            // A ring that is all the driver's own shows nothing used; the check also keeps stale marks from counting.
            if self.free_slots == u32::from(self.size) {
                break;
            }
            let Some(used) = self.next_used::<FREE>() else { break };
            match used {
                Ok(used) => out[taken] = used,
                Err(error) => {
                    self.error = Some(error);
                    break;
                }
            }
            taken += 1;
        }
        taken
    }

    #[inline(always)]
    fn next_used<const FREE: bool>(&mut self) -> Option<Result<Used, RingError>> {
        let (last, len) = match self.batch {
            Some(batch) => batch,
            None => self.element(Ordering::Acquire)?,
        };
        // With IN_ORDER the element at the start of a batch names the batch's last chain (§2.8.9).
        let token = if self.in_order { self.used.index() } else { last };
        let Some(chain) = self.chains.get_mut(usize::from(token)) else {
            return Some(Err(RingError::BadDescriptor(token)));
        };
        let place = chain;
        let chain = *place;
        if chain.slots == 0 {
            return Some(Err(RingError::BadDescriptor(token)));
        }
        place.slots = 0;
        self.free_slots += chain.slots;
        self.used.advance(chain.slots as u16, self.size);
        let len = if token == last {
            self.batch = None;
            len
        } else {
            self.batch = Some((last, len));
            chain.writable_len
        };
        if FREE && !self.in_order {
            self.ids.give(token);
        }
        // The device has just written the lines behind: fetched while this one is looked at.
        self.desc.prefetch((usize::from(self.used.index()) + FETCH_AHEAD) * DESCRIPTOR_LEN);
        Some(Ok(Used { token, len }))
    }

    #[inline]
    pub fn has_used(&self) -> bool {
        self.free_slots != u32::from(self.size)
            && (self.batch.is_some() || self.element(Ordering::Relaxed).is_some())
    }

    pub fn enable_interrupts(&mut self) -> bool {
        let flags = if self.event_idx { EVENT_DESCRIPTOR } else { EVENT_ENABLE };
        // SAFETY: the structure is four bytes long.
        unsafe {
            self.driver.u16(0).store(self.used.bits().to_le(), Ordering::Relaxed);
            self.driver.u16(2).store(flags.to_le(), Ordering::Release);
        }
        fence(Ordering::SeqCst);
        self.has_used()
    }

    pub fn disable_interrupts(&mut self) {
        // SAFETY: the structure is four bytes long.
        unsafe { self.driver.u16(2) }.store(EVENT_DISABLE.to_le(), Ordering::Relaxed);
    }

    pub fn resume_base(&self) -> u32 {
        u32::from(self.used.bits()) | u32::from(self.used.bits()) << 16
    }

    #[inline]
    pub fn free_count(&self) -> usize {
        self.free_slots as usize
    }

    pub fn error(&self) -> Option<RingError> {
        self.error
    }
}
