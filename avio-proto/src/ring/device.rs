//! The device side of a ring, whatever its layout: what the daemons' workers hold.

use super::arena::{Batch, ChainArena, ChainId};
use super::delivery::Delivery;
use super::packed::PackedQueue;
use super::queue::{Core, Queue};
use super::split::SplitQueue;
use super::{RingError, RingSetup};
use crate::mem::MemoryTable;
use crate::virtio::features::RING_PACKED;
use std::sync::Arc;

/// The two layouts.
pub(super) enum Layout {
    Split(SplitQueue),
    Packed(PackedQueue),
}

/// Runs `$body` with `$queue` bound to the ring's layout.
macro_rules! with {
    ($layout:expr, $queue:ident => $body:expr) => {
        match $layout {
            Layout::Split($queue) => $body,
            Layout::Packed($queue) => $body,
        }
    };
}

/// The device side of one ring, split or packed. One thread at a time uses it; it may move between threads.
///
/// Once its driver has broken a rule, a ring is *broken*: what was taken before can still be completed and published,
/// nothing more is taken or delivered, and every `take` and `push` returns the error.
pub struct DeviceRing {
    pub(super) core: Core,
    pub(super) layout: Layout,
}

impl DeviceRing {
    /// Resolves and checks the ring's three areas and takes over at `setup.base`. Nothing is written to guest memory.
    /// Control thread.
    ///
    /// # Errors
    /// [`RingError::BadSize`], [`RingError::BadAddress`], or [`RingError::BadIndex`] when `base` cannot belong to the used
    /// index found in memory.
    pub fn new(memory: Arc<MemoryTable>, setup: &RingSetup) -> Result<Self, RingError> {
        let layout = if setup.features & RING_PACKED != 0 {
            Layout::Packed(PackedQueue::new(&memory, setup)?)
        } else {
            Layout::Split(SplitQueue::new(&memory, setup)?)
        };
        Ok(Self { core: Core::new(memory, setup), layout })
    }

    /// Takes up to `max_count` available chains, never more than [`super::CHAINS_MAX`] or than fit the arena. A malformed
    /// chain ends the batch before it; the next call returns the error.
    ///
    /// # Errors
    /// What the driver did wrong; the ring is broken then.
    #[inline]
    pub fn take<'a>(
        &'a mut self,
        arena: &'a mut ChainArena,
        max_count: usize,
    ) -> Result<Batch<'a>, RingError> {
        let core = &mut self.core;
        with!(&mut self.layout, queue => core.take(queue, arena, max_count))
    }

    /// Fetches what the next `take` reads first; for a worker that is busy with another ring meanwhile.
    #[inline]
    pub fn fetch(&self) {
        with!(&self.layout, queue => queue.fetch());
    }

    /// Stages all chains of the last `take` as used with 0 bytes written (transmit rings). With IN_ORDER one used element
    /// stands for all of them.
    #[inline]
    pub fn complete_taken(&mut self) {
        self.core.complete_taken();
    }

    /// Stages one chain as used, `written` bytes written (storage). In any order, unless IN_ORDER was negotiated: then in
    /// the order in which chains were taken. Each taken chain once.
    #[inline]
    pub fn complete(&mut self, id: ChainId, written: u32) {
        self.core.complete(id, written);
    }

    /// As [`complete`](Self::complete) for several chains: each with the bytes written.
    #[inline]
    pub fn complete_all(&mut self, chains: &[(ChainId, u32)]) {
        self.core.complete_all(chains);
    }

    /// Publishes what was staged with one index store; true = the driver wants a notification. Decided once over the range.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let core = &mut self.core;
        with!(&mut self.layout, queue => core.publish(queue))
    }

    /// Starts deliveries into a receive ring; everything is rolled back unless `Delivery::commit` is called.
    #[inline]
    pub fn deliver(&mut self) -> Delivery<'_> {
        Delivery::new(self)
    }

    /// Whether a chain is available, or an error waits to be fetched by `take`. Touches no notification state.
    #[inline]
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.core.broken.is_some() || with!(&self.layout, queue => queue.has_work())
    }

    /// Asks the driver for kicks, full fence, re-check; true = work is already there.
    pub fn enable_notifications(&mut self) -> bool {
        let memory = &self.core.memory;
        let work = with!(&mut self.layout, queue => queue.enable_notifications(memory));
        work || self.core.broken.is_some()
    }

    /// Tells the driver that it need not kick. A hint: a late kick may still come. Cheap when it was told already.
    pub fn disable_notifications(&mut self) {
        let memory = &self.core.memory;
        with!(&mut self.layout, queue => queue.disable_notifications(memory));
    }

    /// What GET_VRING_BASE answers, encoded as `RingSetup::base`.
    #[must_use]
    pub fn base(&self) -> u32 {
        with!(&self.layout, queue => queue.base())
    }

    /// Chains taken or reserved and not yet published as used.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.core.staging.pending_count
    }

    /// Why the ring is broken, if it is.
    #[must_use]
    pub fn error(&self) -> Option<RingError> {
        self.core.broken
    }

    /// The memory that the ring and its buffers lie in.
    #[must_use]
    pub fn memory(&self) -> &Arc<MemoryTable> {
        &self.core.memory
    }
}

impl std::fmt::Debug for DeviceRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let layout = match self.layout {
            Layout::Split(_) => "split",
            Layout::Packed(_) => "packed",
        };
        write!(f, "DeviceRing({layout}, base {:#x}, pending {})", self.base(), self.pending())
    }
}
