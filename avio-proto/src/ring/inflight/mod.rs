//! The in-flight region: which chains of a ring were taken and not given back, in memory that outlives the process
//! (vhost-user, "Inflight I/O tracking").
//!
//! A storage worker writes it beside each ring. When the process has died, its successor learns here what to do again. The
//! region is shared with the front-end, so nothing in it is believed unchecked. All stores to it are the worker's own, in an
//! order in which the process may die between any two.

mod packed;
mod region;
mod split;

use std::sync::Arc;

use super::arena::{Batch, ChainArena, ChainId};
use super::device::{DeviceRing, Layout};
use super::{RingError, RingSetup};
use crate::mem::Mapping;
use crate::virtio::features::RING_PACKED;
use packed::PackedLog;
use region::Region;
use split::SplitLog;

/// Format of the region; 0: nobody has used it yet.
const VERSION: u16 = 1;

/// Why a region cannot be used.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum InflightError {
    /// Too short for the ring, or not mapped.
    #[error("the in-flight region has {len} bytes for a ring that needs {needed}")]
    TooShort {
        /// Bytes there are.
        len: u64,
        /// Bytes the ring needs.
        needed: u64,
    },
    /// Written for another kind or size of ring, or by a program that we do not know.
    #[error("the in-flight region is of version {version} for {size} entries, the ring has {expected}")]
    Foreign {
        /// Version it says.
        version: u16,
        /// Entries it says.
        size: u16,
        /// Entries of the ring.
        expected: u16,
    },
}

enum Log {
    Split(SplitLog),
    Packed(PackedLog),
}

/// One ring's part of the region.
pub struct Inflight(Log);

impl Inflight {
    /// The part of a ring: `len` bytes at `offset` of `mapping`. Control thread.
    ///
    /// # Errors
    /// [`InflightError`].
    pub fn new(
        mapping: &Arc<dyn Mapping>,
        offset: u64,
        len: u64,
        setup: &RingSetup,
    ) -> Result<Self, InflightError> {
        let packed = setup.features & RING_PACKED != 0;
        let needed = if packed { packed::len(setup.size) } else { split::len(setup.size) };
        let region = Region::new(mapping, offset, len)
            .filter(|region| region.len() as u64 >= needed)
            .ok_or(InflightError::TooShort { len, needed })?;
        let log = if packed {
            Log::Packed(PackedLog::open(region, setup.size)?)
        } else {
            Log::Split(SplitLog::open(region, setup.size)?)
        };
        Ok(Self(log))
    }

    /// Brings the ring and its log together: a publication that a predecessor did not finish is finished, and the ring goes
    /// on behind what is in flight. Returns how many chains [`Inflight::retake`] will bring, in the order in which they were
    /// taken. Once, before the ring is served.
    pub fn recover(&mut self, ring: &mut DeviceRing) -> usize {
        match (&mut self.0, &mut ring.layout) {
            (Log::Split(log), Layout::Split(queue)) => {
                let count = log.recover(queue.used_idx());
                queue.skip_in_flight(count);
                count
            }
            (Log::Packed(log), Layout::Packed(queue)) => log.recover(queue),
            // The layout of both follows from the same feature bit.
            _ => 0,
        }
    }

    /// Chain number `i` of those in flight when the log was recovered, taken again.
    ///
    /// # Errors
    /// As [`DeviceRing::take`]: what the driver, or the region, says about it is wrong.
    pub fn retake<'a>(
        &mut self,
        ring: &'a mut DeviceRing,
        arena: &'a mut ChainArena,
        i: usize,
    ) -> Result<Batch<'a>, RingError> {
        let core = &mut ring.core;
        arena.clear(&core.memory);
        let (segments, shape) = arena.next();
        let walked = match (&mut self.0, &ring.layout) {
            (Log::Split(log), Layout::Split(queue)) => {
                let head = log.recovered(i);
                let walked = queue.walk(&core.memory, &mut core.hint, head, segments, shape);
                shape.id = ChainId::new(head, 1);
                walked
            }
            (Log::Packed(log), Layout::Packed(_)) => {
                log.walk_recovered(i, &core.memory, &mut core.hint, segments, shape)
            }
            _ => return Err(RingError::BadAddress),
        };
        walked.map_err(super::arena::Stop::error)?;
        arena.add();
        core.staging.pending_count += 1;
        Ok(Batch::new(arena))
    }

    /// Notes the chains of a batch as taken, before any of them is worked on.
    #[inline]
    pub fn taken(&mut self, ring: &DeviceRing, chains: impl Iterator<Item = ChainId>) {
        match (&mut self.0, &ring.layout) {
            (Log::Split(log), _) => chains.for_each(|chain| log.taken(chain.number())),
            (Log::Packed(log), Layout::Packed(queue)) => log.taken(queue, chains),
            (Log::Packed(_), Layout::Split(_)) => {}
        }
    }

    /// Notes chains of a batch that were answered at once, in the order in which they were taken and before others of it are noted as
    /// taken; the next publication tells the driver.
    #[inline]
    pub fn answered(&mut self, ring: &DeviceRing, chains: impl Iterator<Item = ChainId> + Clone) {
        match (&mut self.0, &ring.layout) {
            (Log::Split(log), _) => log.answered(chains.map(|chain| chain.number())),
            (Log::Packed(log), Layout::Packed(queue)) => {
                log.taken(queue, chains.clone());
                chains.for_each(|chain| log.completed(chain));
            }
            (Log::Packed(_), Layout::Split(_)) => {}
        }
    }

    /// Writes a byte beside the entry of a chain that was taken: what the successor of this process must know of it.
    pub fn mark(&mut self, chain: ChainId, mark: u8) {
        match &mut self.0 {
            Log::Split(log) => log.mark(chain.number(), mark),
            Log::Packed(log) => log.mark(chain, mark),
        }
    }

    /// What was marked, by this process or its predecessor; 0: nothing.
    #[must_use]
    pub fn marked(&self, chain: ChainId) -> u8 {
        match &self.0 {
            Log::Split(log) => log.mark_of(chain.number()),
            Log::Packed(log) => log.mark_of(chain),
        }
    }

    /// The number under which a chain was taken: its own among all that are in flight, and the same for a successor.
    #[must_use]
    pub fn number(&self, chain: ChainId) -> u64 {
        match &self.0 {
            Log::Split(log) => log.number_of(chain.number()),
            Log::Packed(log) => log.number_of(chain),
        }
    }

    /// Notes a chain as completed; the next publication tells the driver.
    #[inline]
    pub fn completed(&mut self, chain: ChainId) {
        match &mut self.0 {
            Log::Split(log) => log.completed(chain.number()),
            Log::Packed(log) => log.completed(chain),
        }
    }

    /// Prepares the publication of what was completed: right before it.
    #[inline]
    pub fn publishing(&mut self) {
        match &mut self.0 {
            Log::Split(log) => log.publishing(),
            Log::Packed(log) => log.publishing(),
        }
    }

    /// Forgets what was completed: right after the publication.
    #[inline]
    pub fn published(&mut self, ring: &DeviceRing) {
        match (&mut self.0, &ring.layout) {
            (Log::Split(log), Layout::Split(queue)) => log.published(queue.used_idx()),
            (Log::Packed(log), Layout::Packed(_)) => log.published(),
            _ => {}
        }
    }
}

impl std::fmt::Debug for Inflight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Log::Split(_) => write!(f, "Inflight(split)"),
            Log::Packed(_) => write!(f, "Inflight(packed)"),
        }
    }
}
