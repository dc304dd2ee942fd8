//! The driver side of a ring: what tools, benches and tests run as a guest.
//!
//! A guest-in-a-process owns memory (a `MemoryTable` of its own), lays a ring out in it, adds buffers and polls them back. As
//! fast as the device side, so that a generator never limits what it measures: no allocation after `new`, one index store
//! per `publish`, and words that already hold the right value are not written again, so that their lines stay shared with
//! the device's core. Never makes a system call: kicking and waiting are the caller's.

mod layout;
mod packed;
mod split;
mod tokens;

pub use layout::DriverLayout;

use super::RingError;
use super::descriptor::F_WRITE;
use crate::mem::MemoryTable;
use crate::virtio::features::RING_PACKED;
use std::sync::Arc;

/// A buffer: guest address and length in bytes.
pub type GuestBuffer = (u64, u32);

/// A chain that the device has given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// What `add` returned.
    pub token: u16,
    /// Bytes that the device wrote. With IN_ORDER, chains that a batch passed over are taken to be wholly written.
    pub len: u32,
}

enum Layout {
    Split(split::SplitDriver),
    Packed(packed::PackedDriver),
}

/// The driver side of one ring. One thread at a time uses it.
pub struct DriverRing {
    /// Keeps the ring's areas mapped.
    memory: Arc<MemoryTable>,
    layout: Layout,
}

/// Runs `$body` with `$ring` bound to the layout.
macro_rules! with {
    ($layout:expr, $ring:ident => $body:expr) => {
        match $layout {
            Layout::Split($ring) => $body,
            Layout::Packed($ring) => $body,
        }
    };
}

impl DriverRing {
    /// Makes a new, empty ring at `layout` and clears its areas. `features` are the acked virtio bits: RING_PACKED,
    /// RING_EVENT_IDX, IN_ORDER and RING_INDIRECT_DESC matter. Interrupts are wanted at first, as the standard has it.
    ///
    /// # Errors
    /// [`RingError::BadSize`] and [`RingError::BadAddress`].
    pub fn new(memory: Arc<MemoryTable>, layout: &DriverLayout, features: u64) -> Result<Self, RingError> {
        let layout = if features & RING_PACKED != 0 {
            Layout::Packed(packed::PackedDriver::new(&memory, layout, features)?)
        } else {
            Layout::Split(split::SplitDriver::new(&memory, layout, features)?)
        };
        Ok(Self { memory, layout })
    }

    /// Adds one chain: buffers for the device to read, then buffers for it to write. The device sees it after `publish`.
    /// Returns a token below the ring size, unique among the chains that are out; `None` if the ring has no room for it, or
    /// there is no buffer at all.
    ///
    /// The addresses are not checked: a test may want to send bad ones.
    #[inline]
    pub fn add(&mut self, readable: &[GuestBuffer], writable: &[GuestBuffer]) -> Option<u16> {
        with!(&mut self.layout, ring => ring.add(readable, writable))
    }

    /// Shows all added chains to the device with one store; true = it wants a kick. Decided once over the batch.
    #[inline]
    pub fn publish(&mut self) -> bool {
        with!(&mut self.layout, ring => ring.publish())
    }

    /// Shows what was added to the device and leaves the kick to the next [`DriverRing::publish`], which must come: a device that
    /// looks by itself begins with these. Linux's driver does so after each chain. Packed rings: nothing, until then.
    #[inline]
    pub fn expose(&mut self) {
        if let Layout::Split(ring) = &mut self.layout {
            ring.expose();
        }
    }

    /// Takes back used chains, as many as there are and fit `out`; returns how many. After a device error
    /// ([`DriverRing::error`]) always 0.
    #[inline]
    pub fn poll_used(&mut self, out: &mut [Used]) -> usize {
        with!(&mut self.layout, ring => ring.poll_used(out))
    }

    /// As [`DriverRing::poll_used`], for rings all of whose chains are single buffers: the chains stay the caller's, who makes
    /// each available again with [`DriverRing::again`] when he is done with what is in it.
    #[inline(always)]
    pub fn take_used(&mut self, out: &mut [Used]) -> usize {
        with!(&mut self.layout, ring => ring.take_used(out))
    }

    /// Makes a chain of one buffer available again that [`DriverRing::take_used`] gave, with the next `publish`. Returns its new
    /// token, nearly always the same; `None` if it is not the caller's.
    #[inline(always)]
    pub fn again(&mut self, token: u16, buffer: GuestBuffer, writable: bool) -> Option<u16> {
        let flags = if writable { F_WRITE } else { 0 };
        with!(&mut self.layout, ring => ring.again(token, buffer, flags))
    }

    /// Whether [`DriverRing::resubmit`] serves this ring's chains of several buffers: without IN_ORDER, and in a packed ring only
    /// through indirect tables, since its descriptors move on.
    #[must_use]
    pub fn keeps_chains(&self) -> bool {
        with!(&self.layout, ring => ring.keeps_chains())
    }

    /// Makes a chain available again, buffers and all, that [`DriverRing::take_used`] gave, with the next `publish`: not one
    /// descriptor is written. False if it is not the caller's.
    #[inline(always)]
    pub fn resubmit(&mut self, token: u16) -> bool {
        with!(&mut self.layout, ring => ring.resubmit(token))
    }

    /// Frees a chain that [`DriverRing::take_used`] gave: once, and not one that was made available again.
    pub fn let_go(&mut self, token: u16) {
        with!(&mut self.layout, ring => ring.let_go(token));
    }

    /// Whether a used chain is there to be taken back; touches no notification state.
    #[inline]
    #[must_use]
    pub fn has_used(&self) -> bool {
        with!(&self.layout, ring => ring.has_used())
    }

    /// Asks the device for interrupts, full fence, re-check; true = used chains are already there.
    pub fn enable_interrupts(&mut self) -> bool {
        with!(&mut self.layout, ring => ring.enable_interrupts())
    }

    /// Tells the device that it need not interrupt. A late interrupt may still come.
    pub fn disable_interrupts(&mut self) {
        with!(&mut self.layout, ring => ring.disable_interrupts());
    }

    /// Where a device that takes the ring over goes on, in SET_VRING_BASE's encoding: behind the last chain taken back. Call it
    /// after `poll_used` has taken back everything that the previous device had published; what that device still had is
    /// then found through the in-flight region.
    #[must_use]
    pub fn resume_base(&self) -> u32 {
        with!(&self.layout, ring => ring.resume_base())
    }

    /// Descriptors that are free. A chain takes one per buffer, or one if it goes through an indirect table.
    #[inline]
    #[must_use]
    pub fn free_count(&self) -> usize {
        with!(&self.layout, ring => ring.free_count())
    }

    /// What the device did wrong, if anything.
    #[must_use]
    pub fn error(&self) -> Option<RingError> {
        with!(&self.layout, ring => ring.error())
    }

    /// The memory that the ring lies in.
    #[must_use]
    pub fn memory(&self) -> &Arc<MemoryTable> {
        &self.memory
    }
}

/// Hands every buffer of a chain, its flags without NEXT, to `each`.
#[inline(always)]
fn for_each_buffer(
    readable: &[GuestBuffer],
    writable: &[GuestBuffer],
    mut each: impl FnMut(GuestBuffer, u16),
) {
    for &buffer in readable {
        each(buffer, 0);
    }
    for &buffer in writable {
        each(buffer, F_WRITE);
    }
}

#[inline(always)]
fn writable_len(writable: &[GuestBuffer]) -> u32 {
    writable.iter().fold(0, |sum: u32, buffer| sum.saturating_add(buffer.1))
}
