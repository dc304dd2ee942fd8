//! The packed ring, device side (virtio 1.3 §2.8).
//!
//! One descriptor ring that both sides write, and two event suppression structures. Owns the device's two positions;
//! `walk.rs` turns descriptors into buffers. A packed ring shows no index: each descriptor says by two flag bits whose it is.

#![expect(unsafe_code, reason = "ring words live in guest memory (DESIGN section 6: rings)")]

pub(super) mod position;
mod walk;

use super::area::Area;
use super::arena::{ChainId, Segments, Shape, Stop};
use super::descriptor::{DESCRIPTOR_LEN, Descriptor, F_WRITE};
use super::queue::{Queue, Staged};
use super::{RingError, RingSetup};
use crate::mem::{GuestSlice, MemoryTable, RegionHint};
use crate::virtio::features::RING_EVENT_IDX;
use position::{Position, need_event};
use std::sync::atomic::{Ordering, fence};

/// Largest packed ring (§2.8).
const SIZE_MAX: u16 = 32768;
/// Descriptor flag, bit 7: the driver's mark (§2.8.1).
pub(super) const F_AVAIL: u16 = 1 << 7;
/// Descriptor flag, bit 15: the device's mark (§2.8.1).
pub(super) const F_USED: u16 = 1 << 15;
/// Bytes of an event suppression structure: offset and wrap counter, then flags (§2.8.10).
pub(super) const EVENT_LEN: usize = 4;
/// Event flags: notify always.
pub(super) const EVENT_ENABLE: u16 = 0;
/// Event flags: notify never.
pub(super) const EVENT_DISABLE: u16 = 1;
/// Event flags: notify when the descriptor at the offset is reached (EVENT_IDX only).
pub(super) const EVENT_DESCRIPTOR: u16 = 2;

/// What the driver was last told about notifying us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kicks {
    Unknown,
    Wanted,
    Unwanted,
}

pub(super) struct PackedQueue {
    desc: Area,
    /// Written by the driver: when it wants to be notified.
    driver: Area,
    /// Written by us.
    device: Area,
    size: u16,
    avail: Position,
    used: Position,
    /// Descriptors of chains that were taken and not yet published as used.
    in_flight: u32,
    event_idx: bool,
    kicks: Kicks,
    /// As in the split ring: the first publication always notifies.
    published: bool,
    /// Guest addresses of the descriptor ring and of the device's event structure, if writes to them are logged.
    log: Option<(u64, u64)>,
}

impl PackedQueue {
    pub fn new(memory: &MemoryTable, setup: &RingSetup) -> Result<Self, RingError> {
        let size = setup.size;
        if size == 0 || size > SIZE_MAX {
            return Err(RingError::BadSize(size));
        }
        let desc = Area::from_user(memory, setup.desc_user, DESCRIPTOR_LEN * usize::from(size), 16)?;
        let driver = Area::from_user(memory, setup.driver_user, EVENT_LEN, 4)?;
        let device = Area::from_user(memory, setup.device_user, EVENT_LEN, 4)?;
        let ever_used = || {
            (0..usize::from(size)).any(|i| {
                // SAFETY: the index is below the ring size; the area is 16-aligned.
                let words = unsafe { desc.descriptor(i, Ordering::Relaxed) };
                Descriptor::packed(words).flags & F_USED != 0
            })
        };
        let (avail, used) = position::decode(setup.base, size, ever_used).ok_or(RingError::BadIndex)?;
        let log = match (setup.used_log, memory.log()) {
            // The front-end gives the device area's guest address; the descriptors' follows from the memory table.
            (Some(device_guest), Some(_)) => memory.user_to_guest(setup.desc_user).map(|d| (d, device_guest)),
            _ => None,
        };
        Ok(Self {
            desc,
            driver,
            device,
            size,
            avail,
            used,
            in_flight: u32::from(used.distance_to(avail, size)),
            event_idx: setup.features & RING_EVENT_IDX != 0,
            kicks: Kicks::Unknown,
            published: false,
            log,
        })
    }

    /// Descriptor `index`, which must be below the ring size, copied out.
    #[inline(always)]
    fn descriptor(&self, index: u16, order: Ordering) -> Descriptor {
        debug_assert!(index < self.size);
        // SAFETY: the index is below the ring size; the area is 16-aligned and has `size` descriptors.
        Descriptor::packed(unsafe { self.desc.descriptor(usize::from(index), order) })
    }

    /// Next available and next used position.
    pub fn positions(&self) -> (Position, Position) {
        (self.avail, self.used)
    }

    /// Goes on at `used`, with `slots` descriptors in flight behind it.
    pub fn resume(&mut self, used: Position, slots: u16) {
        self.used = used;
        self.avail = used;
        self.avail.advance(slots, self.size);
        self.in_flight = u32::from(slots);
    }

    /// The descriptor at a position, copied out.
    pub fn descriptor_at(&self, at: Position) -> Descriptor {
        self.descriptor(at.index(), Ordering::Relaxed)
    }

    /// Whether the driver was given a used element at that position (§2.8.1).
    pub fn is_used_at(&self, at: Position) -> bool {
        let flags = self.descriptor_at(at).flags;
        (flags & F_AVAIL != 0) == at.wrap() && (flags & F_USED != 0) == at.wrap()
    }

    /// Whether any descriptor was ever used: a new ring has none.
    pub fn was_ever_used(&self) -> bool {
        (0..self.size).any(|i| self.descriptor(i, Ordering::Relaxed).flags & F_USED != 0)
    }

    /// Whether flags mark a descriptor available at the position where we look (§2.8.1).
    #[inline(always)]
    fn is_available(&self, flags: u16) -> bool {
        let avail = flags & F_AVAIL != 0;
        let used = flags & F_USED != 0;
        avail == self.avail.wrap() && used != self.avail.wrap()
    }

    /// Writes the second half of the used descriptor at `at`: length, buffer ID and flags in one store (§2.8.6).
    #[inline(always)]
    fn store_used(&self, at: Position, element: Staged, order: Ordering) {
        let mut flags = if at.wrap() { F_AVAIL | F_USED } else { 0 };
        if element.len != 0 {
            flags |= F_WRITE;
        }
        let word = u64::from(element.len) | u64::from(element.chain.number()) << 32 | u64::from(flags) << 48;
        // SAFETY: a position's index is below the ring size; the area is 16-aligned.
        unsafe { self.desc.u64(usize::from(at.index()) * DESCRIPTOR_LEN + 8) }.store(word.to_le(), order);
    }

    fn store_event(&self, memory: &MemoryTable, at: Option<Position>, flags: u16) {
        // SAFETY: the structure is four bytes long.
        unsafe {
            if let Some(at) = at {
                self.device.u16(0).store(at.bits().to_le(), Ordering::Relaxed);
            }
            // The offset must be there before flags say that it counts.
            self.device.u16(2).store(flags.to_le(), Ordering::Release);
        }
        if let Some((_, device)) = self.log {
            memory.log_write(device, EVENT_LEN as u64);
        }
    }

    /// Whether the driver wants to hear that the used position went from `old` to where it is now.
    #[inline]
    fn driver_wants(&mut self, old: Position) -> bool {
        // As in the split ring: our store and then its wish, the driver the other way round (§2.8.21.3.1).
        fence(Ordering::SeqCst);
        // SAFETY: the structure is four bytes long and 4-aligned. Offset and flags come from one load.
        let event = u32::from_le(unsafe { self.driver.u32(0) }.load(Ordering::Relaxed));
        match (event >> 16) as u16 & 3 {
            EVENT_DISABLE => false,
            EVENT_DESCRIPTOR if self.event_idx => {
                let first = !std::mem::replace(&mut self.published, true);
                first || need_event(Position::from_bits(event as u16), self.used, old, self.size)
            }
            _ => true,
        }
    }

    #[cold]
    fn log_elements(&self, memory: &MemoryTable, desc: u64, from: Position, staged: &[Staged]) {
        let mut at = from;
        for element in staged {
            memory.log_write(desc + u64::from(at.index()) * DESCRIPTOR_LEN as u64, DESCRIPTOR_LEN as u64);
            at.advance(element.chain.slots(), self.size);
        }
    }
}

impl Queue for PackedQueue {
    type Position = Position;

    #[inline(always)]
    fn position(&self) -> Position {
        self.avail
    }

    #[inline(always)]
    fn rewind(&mut self, to: Position) {
        self.in_flight -= u32::from(to.distance_to(self.avail, self.size));
        self.avail = to;
    }

    #[inline]
    fn refresh(&mut self, _memory: &MemoryTable, max_count: usize) -> Result<usize, RingError> {
        self.desc.prefetch_for_write((usize::from(self.avail.index()) + 4) * DESCRIPTOR_LEN);
        Ok(max_count)
    }

    #[inline(always)]
    fn next(
        &mut self,
        memory: &MemoryTable,
        hint: &mut RegionHint,
        out: &mut Segments,
        shape: &mut Shape,
    ) -> Result<bool, Stop> {
        // Acquire: what the driver wrote before it set the flags of a chain's first descriptor is read after them.
        let first = self.descriptor(self.avail.index(), Ordering::Acquire);
        if !self.is_available(first.flags) {
            return Ok(false);
        }
        // Four descriptors share a line; fetch the one after next.
        self.desc.prefetch_for_write((usize::from(self.avail.index()) + 8) * DESCRIPTOR_LEN);
        self.walk(memory, hint, first, out, shape)?;
        self.avail.advance(shape.id.slots(), self.size);
        self.in_flight += u32::from(shape.id.slots());
        Ok(true)
    }

    #[inline(always)]
    fn next_single<'m, const WRITABLE: bool>(
        &mut self,
        memory: &'m MemoryTable,
        hint: &mut RegionHint,
        least: usize,
    ) -> Option<(ChainId, GuestSlice<'m>)> {
        // Acquire: as in `next`.
        let first = self.descriptor(self.avail.index(), Ordering::Acquire);
        if !self.is_available(first.flags) || self.in_flight == u32::from(self.size) {
            return None;
        }
        let piece = first.single::<WRITABLE>(memory, hint, least)?;
        self.desc.prefetch_for_write((usize::from(self.avail.index()) + 8) * DESCRIPTOR_LEN);
        self.avail.advance(1, self.size);
        self.in_flight += 1;
        Some((ChainId::new(first.other, 1), piece))
    }

    #[inline(always)]
    fn prefetch_ahead(&self, memory: &MemoryTable, hint: &mut RegionHint, ahead: u16, lines: usize) {
        let mut at = self.avail;
        if ahead < self.size {
            at.advance(ahead, self.size);
            let descriptor = self.descriptor(at.index(), Ordering::Relaxed);
            descriptor.prefetch_for_write(memory, hint, lines);
        }
    }

    #[inline]
    fn prefetch_used(&self, _count: usize) {}

    #[inline]
    fn publish(&mut self, memory: &MemoryTable, staged: &[Staged]) -> bool {
        let old = self.used;
        let Some((first, rest)) = staged.split_first() else { return false };
        // The driver looks at the used descriptors in order, so it sees none of them before the first, which comes last.
        self.used.advance(first.chain.slots(), self.size);
        let mut released = u32::from(first.chain.slots());
        for element in rest {
            self.store_used(self.used, *element, Ordering::Relaxed);
            self.used.advance(element.chain.slots(), self.size);
            released += u32::from(element.chain.slots());
        }
        self.store_used(old, *first, Ordering::Release);
        self.in_flight = self.in_flight.saturating_sub(released);
        if let Some((desc, _)) = self.log {
            self.log_elements(memory, desc, old, staged);
        }
        self.driver_wants(old)
    }

    #[inline]
    fn fetch(&self) {
        self.desc.prefetch(usize::from(self.avail.index()) * DESCRIPTOR_LEN);
    }

    #[inline]
    fn has_work(&self) -> bool {
        self.is_available(self.descriptor(self.avail.index(), Ordering::Relaxed).flags)
    }

    fn enable_notifications(&mut self, memory: &MemoryTable) -> bool {
        self.kicks = Kicks::Wanted;
        if self.event_idx {
            self.store_event(memory, Some(self.avail), EVENT_DESCRIPTOR);
        } else {
            self.store_event(memory, None, EVENT_ENABLE);
        }
        // The driver sets descriptor flags and then reads this wish: the re-check must not be done before the wish is out.
        fence(Ordering::SeqCst);
        self.has_work()
    }

    fn disable_notifications(&mut self, memory: &MemoryTable) {
        if self.kicks == Kicks::Unwanted {
            return;
        }
        self.kicks = Kicks::Unwanted;
        self.store_event(memory, None, EVENT_DISABLE);
    }

    fn base(&self) -> u32 {
        u32::from(self.avail.bits()) | u32::from(self.used.bits()) << 16
    }
}
