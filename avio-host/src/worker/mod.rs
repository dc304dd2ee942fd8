//! Workers: threads that run an engine over its sources without ever blocking, and the handle by which control speaks to them.
//!
//! Used by the control thread of each daemon. What an engine does with a source (switch frames, serve requests) is
//! the daemon's; when it is asked, in which order, with which budget, and what happens when it panics, is decided here.

mod clock;
mod control_waker;
mod engine;
mod handle;
mod turn;

pub use control_waker::ControlWaker;
pub use engine::{Engine, Polled};
pub use handle::{Barrier, SpawnError, Worker, WorkerGone, WorkerOptions, Workers};

#[cfg(all(test, not(loom)))]
mod tests;
