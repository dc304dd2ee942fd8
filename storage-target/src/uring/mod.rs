//! The kernel's queues of one worker: io_uring, and nothing that knows disks.
//!
//! The only place of this crate with `unsafe` (DESIGN section 6). What makes it sound is ownership: an operation owns the
//! memory that the kernel reads or writes, and its file, until the kernel has said that it is done with both; a ring that
//! goes away waits for that.

mod buffer;
mod capability;
mod claim;
mod fixed;
mod ring;

pub use buffer::AlignedBuf;
pub use capability::{Capabilities, FACILITIES};
pub use claim::{ClaimError, claim};
pub use fixed::{Pin, PinError, Pinned, Unpinned};
pub use ring::{Call, Done, Memory, Ring, Woken};
