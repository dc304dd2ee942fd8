//! Writing a frame into buffers that belong to no virtqueue: a network device's transmit frames, a TAP's.
//!
//! The same copies as into a receive ring (`delivery`): head from the snapshot, tail straight from the sender's memory, summed on the way
//! where a checksum is to be completed.

use super::delivery::{copy_tail, copy_tail_summed, scatter};
use crate::mem::{GuestSlice, Tail, TailSum};

/// Writes `header` (of any length, for instance a virtio-net header or nothing), then `head`, then the tail to the start of the pieces `to`,
/// which must hold that many bytes; what does not fit is left out.
#[inline]
pub fn place(to: &[GuestSlice<'_>], header: &[u8], head: &[u8], tail: Tail<'_>) {
    if tail.len > 0 {
        copy_tail(to, header.len() + head.len(), tail);
    }
    write_front(to, header, head);
}

/// As [`place`], but sums the tail while copying it, then lets `finish` patch the head before it is written.
#[inline]
pub fn place_summed(
    to: &[GuestSlice<'_>],
    header: &[u8],
    head: &mut [u8],
    tail: Tail<'_>,
    finish: impl FnOnce(&mut [u8], TailSum),
) {
    let sum = copy_tail_summed(to, header.len() + head.len(), tail);
    finish(head, sum);
    write_front(to, header, head);
}

fn write_front(to: &[GuestSlice<'_>], header: &[u8], head: &[u8]) {
    match to.first() {
        Some(first) if first.len() >= header.len() + head.len() => {
            first.copy_from(header);
            first.sub(header.len(), head.len()).copy_from(head);
        }
        _ => {
            scatter(to, 0, header);
            scatter(to, header.len(), head);
        }
    }
}
