//! Counters that the data path writes and control reads.
//!
//! One writer per counter, plain loads and stores, no locked instruction: a worker counts for nothing more than the
//! addition. Readers sum over workers; clearing is a baseline that control keeps, so writers are never disturbed.

mod cell;
mod worker;

pub use cell::{CacheLine, Cell64, Log2Histogram};
pub use worker::{WorkerStats, WorkerTotals};
