//! From the first descriptor of a packed ring's chain to translated buffers (virtio 1.3 §2.8.6 to §2.8.8).

use super::PackedQueue;
use crate::mem::{MemoryTable, RegionHint};
use crate::ring::RingError;
use crate::ring::arena::{ChainId, Segments, Shape, Stop};
use crate::ring::descriptor::{Descriptor, F_INDIRECT, F_NEXT, walk_packed_table};
use std::sync::atomic::Ordering;

impl PackedQueue {
    /// Appends the chain that starts with `first`, at the available position, to `out`. Each descriptor is copied out
    /// once and only the copy is looked at.
    #[inline(always)]
    pub(super) fn walk(
        &self,
        memory: &MemoryTable,
        hint: &mut RegionHint,
        first: Descriptor,
        out: &mut Segments,
        shape: &mut Shape,
    ) -> Result<(), Stop> {
        out.begin(shape);
        if first.flags & (F_NEXT | F_INDIRECT) != 0 {
            return self.walk_chain(memory, hint, first, out, shape);
        }
        if self.in_flight == u32::from(self.size) {
            return Err(Stop::Bad(RingError::BadIndex));
        }
        shape.id = ChainId::new(first.other, 1);
        out.push(shape, memory, hint, first.buffer(self.avail.index()))
    }

    /// The walk of a chain that has more than one buffer. Descriptors follow each other in the ring; the buffer ID that
    /// counts is the last one's.
    fn walk_chain(
        &self,
        memory: &MemoryTable,
        hint: &mut RegionHint,
        mut descriptor: Descriptor,
        out: &mut Segments,
        shape: &mut Shape,
    ) -> Result<(), Stop> {
        let mut index = self.avail.index();
        // Descriptors in flight have not been given back: no honest chain reaches into them.
        for slots in 1..=self.size - self.in_flight as u16 {
            shape.id = ChainId::new(descriptor.other, slots);
            if descriptor.flags & F_INDIRECT != 0 {
                return walk_packed_table(descriptor, index, memory, hint, out, shape);
            }
            out.push(shape, memory, hint, descriptor.buffer(index))?;
            if descriptor.flags & F_NEXT == 0 {
                return Ok(());
            }
            index = if index + 1 == self.size { 0 } else { index + 1 };
            descriptor = self.descriptor(index, Ordering::Relaxed);
        }
        Err(Stop::Bad(RingError::ChainTooLong))
    }
}
