//! Structures and feature bits of the virtio standard that AVIO's devices use.
//!
//! Owns names and layouts only; what a device does with them lives in the daemons.

pub mod features;
pub mod net;
