//! From a head descriptor of a split ring to translated buffers (virtio 1.3 §2.7.5).

use super::SplitQueue;
use crate::mem::{MemoryTable, RegionHint};
use crate::ring::RingError;
use crate::ring::arena::{Segments, Shape, Stop};
use crate::ring::descriptor::{F_INDIRECT, F_NEXT, Step, walk_ordinary, walk_split_table};

impl SplitQueue {
    /// Appends the chain that starts at descriptor `head` to `out`. Each descriptor is copied out once and only the copy
    /// is looked at.
    #[inline(always)]
    pub(in crate::ring) fn walk(
        &self,
        memory: &MemoryTable,
        hint: &mut RegionHint,
        head: u16,
        out: &mut Segments,
        shape: &mut Shape,
    ) -> Result<(), Stop> {
        if head >= self.size {
            return Err(Stop::Bad(RingError::BadDescriptor(head)));
        }
        let descriptor = self.descriptor(head);
        out.begin(shape);
        if descriptor.flags & F_INDIRECT != 0 {
            walk_split_table(descriptor, head, memory, hint, out, shape)
        } else if descriptor.flags & F_NEXT != 0 {
            self.walk_chain(memory, hint, head, out, shape)
        } else {
            out.push(shape, memory, hint, descriptor.buffer(head))
        }
    }

    /// The walk of a chain that has more than one buffer.
    fn walk_chain(
        &self,
        memory: &MemoryTable,
        hint: &mut RegionHint,
        head: u16,
        out: &mut Segments,
        shape: &mut Shape,
    ) -> Result<(), Stop> {
        // A chain with a loop in it runs into this bound: no chain has more descriptors than the ring (§2.7.5.1).
        let mut step = Step { at: usize::from(head), left: usize::from(self.size) };
        if walk_ordinary::<true>(|at| self.words(at), &mut step, memory, hint, out, shape) {
            return Ok(());
        }
        self.walk_rest(step, memory, hint, out, shape)
    }

    /// The part of a chain in which something is not ordinary.
    #[cold]
    fn walk_rest(
        &self,
        step: Step,
        memory: &MemoryTable,
        hint: &mut RegionHint,
        out: &mut Segments,
        shape: &mut Shape,
    ) -> Result<(), Stop> {
        // Below the ring size or the `next` of a descriptor.
        let mut index = step.at as u16;
        for _ in 0..step.left {
            if index >= self.size {
                return Err(Stop::Bad(RingError::BadDescriptor(index)));
            }
            let descriptor = self.descriptor(index);
            if descriptor.flags & F_INDIRECT != 0 {
                // Ends the chain; it may follow plain descriptors (§2.7.5.3.2).
                return walk_split_table(descriptor, index, memory, hint, out, shape);
            }
            out.push(shape, memory, hint, descriptor.buffer(index))?;
            if descriptor.flags & F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.other;
        }
        let error = if index < self.size { RingError::ChainTooLong } else { RingError::BadDescriptor(index) };
        Err(Stop::Bad(error))
    }
}
