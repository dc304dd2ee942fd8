//! The atomics of the waiting protocols: std's in the product, loom's in the model (`--cfg loom`).
//!
//! Used by `arm`, `handoff` and the control waker only, so that what the model proves is the code that runs.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
