//! What forwarding does to frames, seen from the guests: real rings on both sides, no socket and no thread.

mod announce;
mod counters;
pub(crate) mod full;
mod guard;
mod learning;
mod merge;
mod offload;
mod pairs;
mod panics;
mod racing;
pub(crate) mod rewriting;
pub(crate) mod rig;
mod switching;
mod wire;
mod workers;
