//! A receive ring and its buffers.
//!
//! Owns the buffers; each is either posted or just being looked at. Whoever drives the queue polls with a closure that
//! sees each frame once, in the guest's memory; afterwards its buffers are posted again, published in batches.

use super::buffers::Layout;
use super::{GuestError, QueueError};
use crate::eventfd::EventFd;
use crate::memory::GuestMemory;
use crate::rings::RingPlace;
use crate::session::{Session, SessionError};
use avio_proto::mem::{GuestSlice, MemoryTable, RegionHint};
use avio_proto::ring::{DriverRing, Used};
use avio_proto::virtio::features::NET_MRG_RXBUF;
use avio_proto::virtio::net::{HEADER_LEN, NUM_BUFFERS_OFFSET, NetHeader};
use std::sync::Arc;

/// Buffers are published in batches of this many, or a quarter of a small ring: each publication takes a cache line away
/// from the switch.
const REPOST_COUNT: usize = 32;

/// After this many polls without a frame in a row the rest is published too, so that a burst finds the whole ring.
const IDLE_POLLS: u32 = 64;

/// Switch to guest.
pub struct RxQueue {
    ring: DriverRing,
    place: RingPlace,
    features: u64,
    kick: EventFd,
    call: EventFd,
    pool: Pool,
    count: usize,
    mergeable: bool,
    /// Buffer of the chain that the ring knows by this number.
    buffer_of: Vec<u16>,
    /// Used chains that were collected; those from `used_at` to `used_end` have not been looked at.
    used: Vec<Used>,
    used_at: usize,
    used_end: usize,
    unpublished: usize,
    repost_count: usize,
    empty_polls: u32,
    kicks: u64,
}

#[derive(Debug)]
struct Pool {
    table: Arc<MemoryTable>,
    base: u64,
    stride: usize,
    len: usize,
}

impl Pool {
    #[inline]
    fn buffer(&self, hint: &mut RegionHint, index: u16, len: usize) -> GuestSlice<'_> {
        // The pool was allocated in one region, so this always finds it.
        self.table
            .prefix(hint, self.addr(index), len.min(self.len))
            .unwrap_or_else(|| unreachable!("receive buffers lie in guest memory"))
    }

    /// All of them, for looking at many.
    #[inline]
    fn whole(&self, count: usize) -> GuestSlice<'_> {
        self.table
            .prefix(&mut RegionHint::default(), self.base, self.stride * count)
            .unwrap_or_else(|| unreachable!("receive buffers lie in guest memory"))
    }

    #[inline]
    fn addr(&self, index: u16) -> u64 {
        self.base + u64::from(index) * self.stride as u64
    }
}

impl RxQueue {
    pub(super) fn new(
        memory: &mut GuestMemory,
        place: RingPlace,
        features: u64,
        layout: &Layout,
    ) -> Result<Self, GuestError> {
        let base = memory.alloc((layout.rx_stride * layout.rx_count) as u64, 4096)?;
        let pool = Pool { table: memory.table().clone(), base, stride: layout.rx_stride, len: layout.rx_len };
        let size = usize::from(place.layout.size);
        Ok(Self {
            ring: Self::fresh(&pool.table, &place, features)?,
            place,
            features,
            kick: EventFd::new()?,
            call: EventFd::new()?,
            pool,
            count: layout.rx_count,
            mergeable: features & NET_MRG_RXBUF != 0,
            buffer_of: vec![0; size],
            used: vec![Used::default(); size],
            used_at: 0,
            used_end: 0,
            unpublished: 0,
            repost_count: REPOST_COUNT.min(layout.rx_count / 4).max(1),
            empty_polls: 0,
            kicks: 0,
        })
    }

    fn fresh(table: &Arc<MemoryTable>, place: &RingPlace, features: u64) -> Result<DriverRing, QueueError> {
        let mut ring = DriverRing::new(table.clone(), &place.layout, features)?;
        ring.disable_interrupts();
        Ok(ring)
    }

    /// Forgets everything and starts at the ring's beginning; buffers are posted by `fill`.
    pub(super) fn reset(&mut self) -> Result<(), QueueError> {
        self.ring = Self::fresh(&self.pool.table, &self.place, self.features)?;
        (self.used_at, self.used_end, self.unpublished) = (0, 0, 0);
        Ok(())
    }

    pub(super) fn start(&self, session: &mut Session, index: u32, base: u32) -> Result<(), SessionError> {
        session.start_ring(index, &self.place, base, &self.kick, &self.call)
    }

    /// Posts all buffers of a fresh ring.
    pub(super) fn fill(&mut self) {
        for index in 0..self.count as u16 {
            self.post(index);
        }
        self.publish();
    }

    /// Posts a buffer of a fresh ring.
    fn post(&mut self, index: u16) {
        // A ring has as many entries as there are buffers, so there is room.
        if let Some(token) = self.ring.add(&[], &[(self.pool.addr(index), self.pool.len as u32)]) {
            self.buffer_of[usize::from(token)] = index;
            self.unpublished += 1;
        }
    }

    fn publish(&mut self) {
        self.unpublished = 0;
        if self.ring.publish() {
            self.kicks += 1;
            self.kick.signal();
        }
    }

    /// Shows up to `max` frames to `look` and posts their buffers again; returns how many.
    ///
    /// # Errors
    /// [`QueueError`] if the back-end broke the ring or wrote an impossible frame.
    #[inline]
    pub fn poll(&mut self, max: usize, mut look: impl FnMut(&RxFrame<'_>)) -> Result<usize, QueueError> {
        let mut frames = 0;
        while frames < max {
            if self.used_at == self.used_end && self.collect()? == 0 {
                break;
            }
            let shown = self.show_single(max - frames, &mut look);
            frames += shown;
            if shown == 0 {
                self.show(&mut look)?;
                frames += 1;
            }
        }
        self.empty_polls = if frames == 0 { self.empty_polls.saturating_add(1) } else { 0 };
        if self.unpublished >= self.repost_count || (self.empty_polls == IDLE_POLLS && self.unpublished > 0) {
            self.publish();
        }
        Ok(frames)
    }

    /// Shows up to `max` frames of those that were collected, up to the first that is not alone in one buffer, and posts their
    /// buffers again; returns how many.
    #[inline(always)]
    fn show_single(&mut self, max: usize, look: &mut impl FnMut(&RxFrame<'_>)) -> usize {
        let Self { ring, pool, buffer_of, used, mergeable, unpublished, .. } = self;
        let end = self.used_end.min(self.used_at + max);
        let whole = pool.whole(self.count);
        let mut count = 0;
        for used in &used[self.used_at..end] {
            let (index, len) = (buffer_of[usize::from(used.token)], used.len as usize);
            let first = whole.sub(usize::from(index) * pool.stride, len);
            let is_alone = !*mergeable || first.read(NUM_BUFFERS_OFFSET) == Some([1, 0]);
            if len < HEADER_LEN || len > pool.len || !is_alone {
                break;
            }
            look(&RxFrame { pool, first, rest: &[], buffer_of, len: len - HEADER_LEN });
            let buffer = (pool.addr(index), pool.len as u32);
            if let Some(token) = ring.again(used.token, buffer, true) {
                buffer_of[usize::from(token)] = index;
            }
            count += 1;
        }
        *unpublished += count;
        self.used_at += count;
        count
    }

    /// Shows the frame at `used_at`, in as many buffers as it takes, and posts them again.
    fn show(&mut self, look: &mut impl FnMut(&RxFrame<'_>)) -> Result<(), QueueError> {
        let first = self.used[self.used_at];
        let (index, len) = (self.buffer_of[usize::from(first.token)], first.len as usize);
        let mut hint = RegionHint::default();
        let mut buffers = 1;
        if self.mergeable {
            let count = self.pool.buffer(&mut hint, index, HEADER_LEN).read(NUM_BUFFERS_OFFSET);
            buffers = u16::from_le_bytes(count.unwrap_or_default());
        }
        let wrong = QueueError::Frame { buffers, len: first.len };
        if len < HEADER_LEN || len > self.pool.len || usize::from(buffers) > self.count || buffers == 0 {
            return Err(wrong);
        }
        let mut total = len - HEADER_LEN;
        if buffers > 1 {
            total += self.gather(usize::from(buffers), wrong)?;
        }
        let end = self.used_at + usize::from(buffers);
        look(&RxFrame {
            pool: &self.pool,
            first: self.pool.buffer(&mut hint, index, len),
            rest: &self.used[self.used_at + 1..end],
            buffer_of: &self.buffer_of,
            len: total,
        });
        for i in self.used_at..end {
            let token = self.used[i].token;
            let index = self.buffer_of[usize::from(token)];
            let buffer = (self.pool.addr(index), self.pool.len as u32);
            if let Some(token) = self.ring.again(token, buffer, true) {
                self.buffer_of[usize::from(token)] = index;
                self.unpublished += 1;
            }
        }
        self.used_at = end;
        Ok(())
    }

    /// Collects more used buffers behind those not yet looked at, which move to the front.
    fn collect(&mut self) -> Result<usize, QueueError> {
        if self.used_at < self.used_end {
            self.used.copy_within(self.used_at..self.used_end, 0);
        }
        self.used_end -= self.used_at;
        self.used_at = 0;
        let count = self.ring.take_used(&mut self.used[self.used_end..]);
        let whole = self.pool.whole(self.count);
        for used in &self.used[self.used_end..self.used_end + count] {
            let index = self.buffer_of[usize::from(used.token)];
            // The switch has just written it: all of a batch come across at once instead of one after the other.
            whole.sub(usize::from(index) * self.pool.stride, HEADER_LEN).prefetch_read();
        }
        self.used_end += count;
        match self.ring.error() {
            Some(error) => Err(error.into()),
            None => Ok(count),
        }
    }

    /// Makes sure that all buffers of the frame at `used_at` are collected; returns the bytes in those behind the first.
    #[cold]
    fn gather(&mut self, buffers: usize, wrong: QueueError) -> Result<usize, QueueError> {
        // All buffers of a frame become used at once (virtio 1.3 §5.1.6.4.1), so they must be there.
        if self.used_end - self.used_at < buffers {
            self.collect()?;
        }
        if self.used_end - self.used_at < buffers {
            return Err(wrong);
        }
        let rest = &self.used[self.used_at + 1..self.used_at + buffers];
        if rest.iter().any(|u| u.len as usize > self.pool.len) {
            return Err(wrong);
        }
        Ok(rest.iter().map(|u| u.len as usize).sum())
    }

    /// Asks the switch to signal [`RxQueue::call`] for the next frame; true if one is there already.
    pub fn arm(&mut self) -> bool {
        if self.unpublished > 0 {
            self.publish();
        }
        self.call.clear();
        self.ring.enable_interrupts() || self.used_at < self.used_end
    }

    /// The switch need not signal any more.
    pub fn disarm(&mut self) {
        self.ring.disable_interrupts();
    }

    /// What the switch signals.
    #[must_use]
    pub fn call(&self) -> &EventFd {
        &self.call
    }

    /// Kicks sent so far.
    #[must_use]
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// The ring, for tests that break its rules.
    pub fn ring(&mut self) -> &mut DriverRing {
        &mut self.ring
    }
}

impl std::fmt::Debug for RxQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RxQueue")
            .field("place", &self.place)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// One received frame, still in its buffers.
#[derive(Debug)]
pub struct RxFrame<'q> {
    pool: &'q Pool,
    /// First buffer, header included.
    first: GuestSlice<'q>,
    rest: &'q [Used],
    buffer_of: &'q [u16],
    len: usize,
}

impl RxFrame<'_> {
    /// Length in bytes without the virtio-net header.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the frame has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its virtio-net header.
    #[inline]
    #[must_use]
    pub fn header(&self) -> NetHeader {
        NetHeader::from_bytes(&self.first.read(0).unwrap_or([0; HEADER_LEN]))
    }

    /// `N` bytes at `offset` of the frame; zeros unless all of them are in the first buffer.
    #[inline]
    #[must_use]
    pub fn bytes_at<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.first.read(HEADER_LEN + offset).unwrap_or([0; N])
    }

    /// How many buffers it took.
    #[must_use]
    pub fn buffers(&self) -> usize {
        1 + self.rest.len()
    }

    /// Replaces the contents of `to` by the frame.
    pub fn copy_to(&self, to: &mut Vec<u8>) {
        to.clear();
        to.resize(self.len, 0);
        let mut at = self.first.sub(HEADER_LEN, self.len).copy_to(to);
        let mut hint = RegionHint::default();
        for used in self.rest {
            let index = self.buffer_of[usize::from(used.token)];
            at += self.pool.buffer(&mut hint, index, used.len as usize).copy_to(&mut to[at..]);
        }
    }
}
