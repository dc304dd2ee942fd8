//! One ring of requests: slots, each with a head, a response and a data buffer, placed once.
//!
//! Owns which slot is in flight. Whoever drives the queue fills a slot's head, submits it, flushes once per batch and takes
//! back what is done. A slot keeps its bytes from one use to the next; nothing is allocated per request.

use super::options::StorageOptions;
use super::{Kind, StorageError};
use crate::eventfd::{EventFd, wait_readable};
use crate::memory::GuestMemory;
use crate::rings::RingPlace;
use crate::session::Session;
use avio_proto::mem::{GuestSlice, MemoryTable, RegionHint};
use avio_proto::ring::{DriverLayout, DriverRing, RingError, Used};
use avio_proto::virtio::features::RING_PACKED;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// Bytes for a request's head, the longest is virtio-scsi's 51.
const HEAD_LEN: usize = 64;
/// Head and response of a slot: a response is 108 bytes at most.
pub(super) const HEAD_STRIDE: usize = 192;
/// From one slot's data buffer to the next: whole pages, an odd number of them. A guest's buffers lie anywhere; at a power
/// of two from one another they would all share the same few sets of a cache.
pub(super) fn data_stride(data_len: usize) -> usize {
    match data_len.next_multiple_of(4096) {
        0 => 0,
        len => ((len / 4096) | 1) * 4096,
    }
}

/// A slot that has no chain in the ring.
const NO_TOKEN: u16 = u16::MAX;

/// Where the response stands behind the start of a slot's head. A block request's status shares its line with the header, as
/// in Linux's driver: one line less travels between the cores.
const fn response_at(kind: Kind) -> usize {
    match kind {
        Kind::Blk => 16,
        Kind::Scsi => HEAD_LEN,
    }
}

/// What a request moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Nothing.
    None,
    /// This many bytes from the slot's buffer to the device.
    Out(u32),
    /// This many bytes from the device into the slot's buffer.
    In(u32),
}

/// A request that is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Its slot, still the caller's until [`RequestQueue::give`].
    pub slot: u16,
    /// Bytes that the device says it wrote, response included.
    pub written: u32,
}

/// The chain that a slot has in the ring, kept from one use to the next.
#[derive(Clone, Copy, Debug)]
struct Kept {
    token: u16,
    head_len: u32,
    response_len: u32,
    transfer: Transfer,
}

/// One ring and its slots. One thread at a time drives it.
pub struct RequestQueue {
    ring: DriverRing,
    place: RingPlace,
    features: u64,
    kind: Kind,
    kick: EventFd,
    call: EventFd,
    table: Arc<MemoryTable>,
    heads: u64,
    data: u64,
    data_len: usize,
    data_stride: usize,
    /// First in, first out, so that a slot meets the same descriptors again and they need not be rewritten.
    free: VecDeque<u16>,
    slot_of: Vec<u16>,
    /// By slot; unused in rings that do not keep chains.
    kept: Vec<Kept>,
    keeps_chains: bool,
    used: Vec<Used>,
    in_flight: usize,
    started: bool,
    kicks: u64,
}

impl RequestQueue {
    pub(super) fn new(
        memory: &mut GuestMemory,
        options: &StorageOptions,
        features: u64,
        depth: u16,
        data_len: usize,
    ) -> Result<Self, StorageError> {
        let place = RingPlace::alloc(memory, options.ring_size(features), features)?;
        let data_stride = data_stride(data_len);
        let heads = memory.alloc(u64::from(depth) * HEAD_STRIDE as u64, 64)?;
        let data = memory.alloc(u64::from(depth) * data_stride as u64, 4096)?;
        let mut ring = DriverRing::new(memory.table().clone(), &place.layout, features)?;
        ring.disable_interrupts();
        let none = Kept { token: NO_TOKEN, head_len: 0, response_len: 0, transfer: Transfer::None };
        Ok(Self {
            keeps_chains: ring.keeps_chains(),
            kept: vec![none; usize::from(depth)],
            ring,
            place,
            features,
            kind: options.kind,
            kick: EventFd::new()?,
            call: EventFd::new()?,
            table: memory.table().clone(),
            heads,
            data,
            data_len,
            data_stride,
            free: (0..depth).collect(),
            slot_of: vec![0; usize::from(place.layout.size)],
            used: vec![Used::default(); usize::from(depth)],
            in_flight: 0,
            started: false,
            kicks: 0,
        })
    }

    /// A queue without a session, in memory of the caller's, who is its device as well: what a generator can do alone is measured so.
    ///
    /// # Errors
    /// [`StorageError::Memory`] if `memory` is too small, [`StorageError::EventFd`].
    pub fn alone(
        memory: &mut GuestMemory,
        options: &StorageOptions,
        features: u64,
    ) -> Result<Self, StorageError> {
        let (depth, data_len) = options.shape(options.kind.first_request_queue());
        Self::new(memory, options, features, depth, data_len)
    }

    /// Where the ring's areas are in guest memory.
    #[must_use]
    pub fn layout(&self) -> DriverLayout {
        self.place.layout
    }

    /// Starts the ring, at its beginning the first time, then behind what the device has given back: everything that it
    /// still owes us is in flight.
    pub(super) fn start(&mut self, session: &mut Session, index: u32) -> Result<(), StorageError> {
        let base = match (self.started, self.features & RING_PACKED != 0) {
            (true, _) => self.ring.resume_base(),
            // Both positions 0, both wrap counters 1 (vhost-user "SET_VRING_BASE").
            (false, true) => 0x8000_8000,
            (false, false) => 0,
        };
        self.started = true;
        Ok(session.start_ring(index, &self.place, base, &self.kick, &self.call)?)
    }

    pub(super) fn kick_now(&mut self) {
        if self.in_flight > 0 {
            self.kick.signal();
        }
    }

    fn slice(&self, addr: u64, len: usize) -> GuestSlice<'_> {
        // Slots were allocated in the guest's one region.
        self.table
            .slice(&mut RegionHint::default(), addr, len)
            .unwrap_or_else(|| unreachable!("slots lie in guest memory"))
    }

    #[inline]
    fn head_addr(&self, slot: u16) -> u64 {
        self.heads + u64::from(slot) * HEAD_STRIDE as u64
    }

    #[inline]
    fn data_addr(&self, slot: u16) -> u64 {
        self.data + u64::from(slot) * self.data_stride as u64
    }

    /// A free slot, the caller's until it is submitted or given back.
    #[inline]
    pub fn take(&mut self) -> Option<u16> {
        self.free.pop_front()
    }

    /// The caller is done with `slot`.
    #[inline]
    pub fn give(&mut self, slot: u16) {
        debug_assert!(!self.free.contains(&slot), "a slot was given back twice");
        self.free.push_back(slot);
    }

    /// A slot's head, for the device to read: 64 bytes, of a block request 16.
    #[inline]
    #[must_use]
    pub fn head(&self, slot: u16) -> GuestSlice<'_> {
        self.slice(self.head_addr(slot), response_at(self.kind))
    }

    /// A slot's response, for the device to write: a block request's status byte stands first.
    #[inline]
    #[must_use]
    pub fn response(&self, slot: u16) -> GuestSlice<'_> {
        let at = response_at(self.kind);
        self.slice(self.head_addr(slot) + at as u64, HEAD_STRIDE - at)
    }

    /// A slot's data buffer.
    #[inline]
    #[must_use]
    pub fn data(&self, slot: u16) -> GuestSlice<'_> {
        self.slice(self.data_addr(slot), self.data_len)
    }

    /// Makes a taken slot's request available with the next [`RequestQueue::flush`]: `head_len` bytes of head,
    /// `response_len` of response. False, and the slot still the caller's, if the ring has no room or the data no place. A slot
    /// that is used as it was the last time costs no descriptor.
    #[inline]
    pub fn submit(&mut self, slot: u16, head_len: u32, response_len: u32, transfer: Transfer) -> bool {
        if self.keeps_chains {
            let kept = self.kept[usize::from(slot)];
            if kept.token != NO_TOKEN {
                let same = kept.head_len == head_len
                    && kept.response_len == response_len
                    && kept.transfer == transfer;
                if same && self.ring.resubmit(kept.token) {
                    self.in_flight += 1;
                    return true;
                }
                self.ring.let_go(kept.token);
                self.kept[usize::from(slot)].token = NO_TOKEN;
            }
        }
        let added = self.add(slot, head_len, response_len, transfer);
        let Some(token) = added else { return false };
        self.slot_of[usize::from(token)] = slot;
        self.kept[usize::from(slot)] = Kept { token, head_len, response_len, transfer };
        self.in_flight += 1;
        true
    }

    fn add(&mut self, slot: u16, head_len: u32, response_len: u32, transfer: Transfer) -> Option<u16> {
        let head = (self.head_addr(slot), head_len);
        let response = (self.head_addr(slot) + response_at(self.kind) as u64, response_len);
        let data = self.data_addr(slot);
        let (Transfer::Out(len) | Transfer::In(len)) = transfer else {
            return self.ring.add(&[head][..usize::from(head_len > 0)], &[response]);
        };
        if len as usize > self.data_len || len == 0 {
            return None;
        }
        match (transfer, self.kind) {
            (Transfer::Out(_), _) => self.ring.add(&[head, (data, len)], &[response]),
            // A block request ends with its status (§5.2.6), a SCSI response comes before the data (§5.6.6.1).
            (_, Kind::Blk) => self.ring.add(&[head], &[(data, len), response]),
            (_, Kind::Scsi) => self.ring.add(&[head], &[response, (data, len)]),
        }
    }

    /// Shows what was submitted to a device that polls; [`RequestQueue::flush`] must follow.
    #[inline]
    pub fn expose(&mut self) {
        self.ring.expose();
    }

    /// Publishes what was submitted and kicks the device if it wants that.
    #[inline]
    pub fn flush(&mut self) {
        if self.ring.publish() {
            self.kicks += 1;
            self.kick.signal();
        }
    }

    /// Takes back requests that are done, as many as fit `out`; returns how many.
    ///
    /// # Errors
    /// [`RingError`] if the device broke the ring.
    #[inline]
    pub fn poll(&mut self, out: &mut [Done]) -> Result<usize, RingError> {
        let most = out.len().min(self.used.len());
        let used = &mut self.used[..most];
        let count = if self.keeps_chains { self.ring.take_used(used) } else { self.ring.poll_used(used) };
        for (done, used) in out.iter_mut().zip(&self.used[..count]) {
            *done = Done { slot: self.slot_of[usize::from(used.token)], written: used.len };
        }
        // The device had these lines. All come back at once, and are ours to write again.
        for done in &out[..count] {
            let head = self.head_addr(done.slot);
            self.slice(head, HEAD_LEN).prefetch_write();
            if self.kind == Kind::Scsi {
                self.slice(head + HEAD_LEN as u64, HEAD_LEN).prefetch_read();
            }
        }
        self.in_flight -= count;
        match self.ring.error() {
            Some(error) => Err(error),
            None => Ok(count),
        }
    }

    /// Sleeps until the device signals, or `timeout` is over; returns at once if something is done already.
    pub fn wait(&mut self, timeout: Duration) {
        if !self.ring.enable_interrupts() {
            wait_readable(&[self.call.as_fd()], timeout);
        }
        self.call.clear();
        self.ring.disable_interrupts();
    }

    /// Asks for a signal when something is done; true: something is already, so do not sleep.
    pub fn arm(&mut self) -> bool {
        self.ring.enable_interrupts()
    }

    /// Asks for no more signals; returns how many came since the last call.
    pub fn disarm(&mut self) -> u64 {
        let signals = self.call.take();
        self.ring.disable_interrupts();
        signals
    }

    /// What the device signals; for who waits for several rings.
    #[must_use]
    pub fn call(&self) -> &EventFd {
        &self.call
    }

    /// Requests that the device has.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Kicks sent so far.
    #[must_use]
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// Guest addresses of a slot's head, response and data, for who puts chains of his own into the [`ring`](Self::ring).
    #[must_use]
    pub fn addresses(&self, slot: u16) -> [u64; 3] {
        let head = self.head_addr(slot);
        [head, head + response_at(self.kind) as u64, self.data_addr(slot)]
    }

    /// The ring, for tests that break its rules.
    pub fn ring(&mut self) -> &mut DriverRing {
        &mut self.ring
    }
}

impl std::fmt::Debug for RequestQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestQueue")
            .field("kind", &self.kind)
            .field("place", &self.place)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use avio_proto::ring::{ChainArena, DeviceRing, RingSetup};
    use avio_proto::virtio::features as f;

    /// Order of buffers as the standard has it: a block status last (§5.2.6), a SCSI response before data in (§5.6.6.1).
    #[test]
    fn buffers_stand_in_the_standards_order() {
        for (kind, features, want) in [
            (Kind::Blk, f::VERSION_1, [4096, 1]),
            (Kind::Scsi, f::VERSION_1, [108, 4096]),
            (Kind::Scsi, f::VERSION_1 | f::RING_PACKED | f::RING_INDIRECT_DESC, [108, 4096]),
        ] {
            let options = StorageOptions { depth: 4, ..StorageOptions::new(kind) };
            let mut memory = GuestMemory::new("test", options.memory_len(features)).unwrap();
            let mut queue = RequestQueue::new(&mut memory, &options, features, 4, 4096).unwrap();
            let setup = RingSetup {
                size: queue.place.layout.size,
                desc_user: queue.place.desc_user,
                driver_user: queue.place.driver_user,
                device_user: queue.place.device_user,
                features,
                base: if features & f::RING_PACKED != 0 { 0x8000_8000 } else { 0 },
                used_log: None,
            };
            let mut device = DeviceRing::new(memory.table().clone(), &setup).unwrap();
            let mut arena = ChainArena::new();
            let slot = queue.take().unwrap();
            let (head_len, response_len) = if kind == Kind::Blk { (16, 1) } else { (51, 108) };
            queue.head(slot).copy_from(&[0xa5; 51]);
            assert!(queue.submit(slot, head_len, response_len, Transfer::In(4096)));
            queue.flush();
            let batch = device.take(&mut arena, 8).unwrap();
            assert_eq!(batch.len(), 1);
            let chain = batch.chain(0);
            let (id, mut head) = (chain.id, vec![0; chain.readable_len]);
            chain.readable[0].copy_to(&mut head);
            assert_eq!(head, vec![0xa5; head_len as usize]);
            let lens: Vec<usize> = chain.writable.iter().map(GuestSlice::len).collect();
            assert_eq!(lens, want, "{kind:?} {features:#x}");
            chain.writable[0].copy_from(&[7]);
            device.complete(id, 4097);
            device.publish();
            let mut done = [Done::default(); 4];
            assert_eq!(queue.poll(&mut done), Ok(1));
            assert_eq!((done[0], queue.in_flight()), (Done { slot, written: 4097 }, 0));
            let first = if kind == Kind::Blk { queue.data(slot) } else { queue.response(slot) };
            assert_eq!(first.read::<1>(0), Some([7]));
            // A device that takes over goes on where this one stopped.
            let base = queue.ring.resume_base();
            assert_eq!(base & 0xffff, device.base() & 0xffff, "{kind:?} {features:#x}");
        }
    }

    /// A slot's second use is the first one's chain where the ring keeps chains, and another transfer makes another chain.
    #[test]
    fn slots_are_used_again_in_every_layout() {
        for features in [
            f::VERSION_1,
            f::VERSION_1 | f::RING_INDIRECT_DESC,
            f::VERSION_1 | f::RING_PACKED,
            f::VERSION_1 | f::RING_PACKED | f::RING_INDIRECT_DESC | f::RING_EVENT_IDX,
        ] {
            let options = StorageOptions { depth: 3, ..StorageOptions::new(Kind::Blk) };
            let mut memory = GuestMemory::new("test", options.memory_len(features)).unwrap();
            let mut queue = RequestQueue::new(&mut memory, &options, features, 3, 4096).unwrap();
            let setup = RingSetup {
                size: queue.place.layout.size,
                desc_user: queue.place.desc_user,
                driver_user: queue.place.driver_user,
                device_user: queue.place.device_user,
                features,
                base: if features & f::RING_PACKED != 0 { 0x8000_8000 } else { 0 },
                used_log: None,
            };
            let mut device = DeviceRing::new(memory.table().clone(), &setup).unwrap();
            let mut arena = ChainArena::new();
            let free_at_first = queue.ring.free_count();
            for round in 0..200u32 {
                for i in 0..3u8 {
                    let slot = queue.take().unwrap();
                    queue.head(slot).copy_from(&[i; 16]);
                    let write = (round / 7 + u32::from(i)).is_multiple_of(3);
                    let transfer = if write { Transfer::Out(512) } else { Transfer::In(4096) };
                    assert!(queue.submit(slot, 16, 1, transfer), "{features:#x} {round}");
                }
                queue.flush();
                let mut ids = Vec::new();
                let batch = device.take(&mut arena, 8).unwrap();
                for (i, chain) in batch.iter().enumerate() {
                    let write = (round / 7 + i as u32).is_multiple_of(3);
                    let want = if write { (16 + 512, 1) } else { (16, 4097) };
                    assert_eq!((chain.readable_len, chain.writable_len), want, "{features:#x} {round}");
                    let mut first = [0];
                    chain.readable[0].copy_to(&mut first);
                    assert_eq!(usize::from(first[0]), i);
                    ids.push(chain.id);
                }
                assert_eq!(ids.len(), 3);
                ids.iter().rev().for_each(|&id| device.complete(id, 1));
                device.publish();
                let mut done = [Done::default(); 4];
                assert_eq!(queue.poll(&mut done), Ok(3));
                done[..3].iter().for_each(|done| queue.give(done.slot));
            }
            // What is kept is what the last round used: nothing leaks.
            assert!(queue.ring.free_count() + 9 >= free_at_first, "{features:#x}");
        }
    }

    #[test]
    fn data_that_does_not_fit_stays_the_callers() {
        let options = StorageOptions { depth: 2, ..StorageOptions::new(Kind::Blk) };
        let mut memory = GuestMemory::new("test", options.memory_len(f::VERSION_1)).unwrap();
        let mut queue = RequestQueue::new(&mut memory, &options, f::VERSION_1, 2, 4096).unwrap();
        let slot = queue.take().unwrap();
        assert!(!queue.submit(slot, 16, 1, Transfer::Out(4097)));
        queue.give(slot);
        assert_eq!(queue.in_flight(), 0);
    }
}
