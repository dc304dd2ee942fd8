//! Putting an 802.1Q tag into a frame's head and taking it out.
//!
//! Owns the moving of bytes. Called by the forwarding engine for trunk ports and uplinks. The head buffer keeps
//! [`TAG_LEN`] free bytes in front, so that either way only the twelve address bytes move. Offsets into the frame
//! change with it: see `Validated::tag_inserted` and `Validated::tag_stripped` in `offload`.

use super::{ETHERNET_LEN, TAG_LEN, ethertype};

const ADDRESSES_LEN: usize = 12;

/// Inserts a tag with these priority, drop and VLAN id bits into the frame that starts at `start` of `buffer`; returns
/// where it starts now: `start - TAG_LEN`. `None`, and nothing changed, without that much room in front or without addresses.
#[inline]
#[must_use]
pub fn insert_tag(buffer: &mut [u8], start: usize, tci: u16) -> Option<usize> {
    let new_start = start.checked_sub(TAG_LEN)?;
    if buffer.len() < start + ADDRESSES_LEN {
        return None;
    }
    buffer.copy_within(start..start + ADDRESSES_LEN, new_start);
    let tag = &mut buffer[new_start + ADDRESSES_LEN..start + ADDRESSES_LEN];
    tag[..2].copy_from_slice(&ethertype::VLAN.to_be_bytes());
    tag[2..].copy_from_slice(&tci.to_be_bytes());
    Some(new_start)
}

/// Takes the 802.1Q tag out of the frame that starts at `start` of `buffer`; returns where it starts now: `start +
/// TAG_LEN`. `None`, and nothing changed, when the frame has no such tag.
#[inline]
#[must_use]
pub fn strip_tag(buffer: &mut [u8], start: usize) -> Option<usize> {
    let frame: &[u8; ETHERNET_LEN + TAG_LEN] = buffer.get(start..)?.first_chunk()?;
    if frame[ADDRESSES_LEN..ETHERNET_LEN] != ethertype::VLAN.to_be_bytes() {
        return None;
    }
    buffer.copy_within(start..start + ADDRESSES_LEN, start + TAG_LEN);
    Some(start + TAG_LEN)
}
