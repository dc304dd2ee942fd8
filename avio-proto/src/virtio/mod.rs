//! Structures and feature bits of the virtio standard that AVIO's devices use.
//!
//! Owns names and layouts only; what a device does with them lives in the daemons.

pub mod blk;
pub mod features;
pub mod net;
pub mod scsi;

/// `N` bytes of `bytes` at `at`, which callers keep inside their fixed-size arrays.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
