//! Arm and re-check: how somebody who stops polling makes sure that he is woken for work that arrives meanwhile.
//!
//! The one place of the algorithm. An engine arms a ring with it, the worker's own sleep uses it (`handoff`), and
//! `loom_tests` proves it. It never sleeps and never notifies.
//!
//! ```text
//!   poller                                producer
//!   1 switch notifications on             1 publish the work
//!   2 full fence                          2 full fence
//!   3 look for work: found -> stay awake  3 look whether notifications are on: yes -> kick
//! ```
//! Store then load on both sides, of two different words: without a full fence on *both* sides each may read the old
//! value of the other's word, and the work lies there with nobody awake (virtio 1.3 §2.7.10 and §2.7.13.4.1 ask
//! the driver for its half). Release and acquire do not order a store before a later load; only a full fence does.

use crate::wait::sync::{Ordering, fence};

/// Something that can be asked to notify us, and looked at without being asked.
pub trait Arm {
    /// Switches notifications on (virtio: clears `VIRTQ_USED_F_NO_NOTIFY`, or sets the event index to the next entry).
    fn enable(&mut self);

    /// Whether there is work. Must read what the producer publishes, and have no side effect.
    fn has_work(&mut self) -> bool;
}

/// Arms `source`; returns whether work was there already.
///
/// `false`: whoever publishes work from now on sees the notifications on and kicks; the caller may sleep.
/// `true`: the caller stays awake and switches the notifications off again.
#[inline]
#[must_use = "work that is pending now may never be announced"]
pub fn arm<A: Arm>(source: &mut A) -> bool {
    arm_with(source, full_fence)
}

/// [`arm`] with the fence given, so that the model can show what happens without one.
#[inline]
pub(crate) fn arm_with<A: Arm>(source: &mut A, fence: impl FnOnce()) -> bool {
    source.enable();
    fence();
    source.has_work()
}

/// The producer's half: called after the work is published, returns whether to kick.
#[inline]
pub(crate) fn must_kick(enabled: impl FnOnce() -> bool, fence: impl FnOnce()) -> bool {
    fence();
    enabled()
}

/// A store before it is seen by everybody before a load after it is made.
#[inline]
pub(crate) fn full_fence() {
    fence(Ordering::SeqCst);
}
