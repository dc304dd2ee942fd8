//! Guest memory: which guest and user addresses are mapped where, and safe ways to touch them.
//!
//! A [`MemoryTable`] is immutable; a change of the guest's memory makes a new one. Sessions build it, workers hold it
//! in an `Arc`, so a mapping lives as long as anything can still reach it. Nothing here hands out a reference into guest
//! memory: the guest writes it at any moment, so bytes are copied out and in, never borrowed.

mod copy;
mod log;
mod pieces;
mod slice;
mod table;

pub(crate) use copy::{add_carry, fold};
pub use log::DirtyLog;
pub use pieces::GuestPieces;
pub use slice::{GuestSlice, Tail, TailSum};
pub(crate) use slice::{prefetch, prefetch_for_write};
pub use table::{Mapping, MemoryTable, REGIONS_MAX, Region, RegionHint, TableError};
