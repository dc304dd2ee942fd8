//! How long buffers are, how many there are and how far apart they lie.
//!
//! Owns the arithmetic only. A pool that falls out of the cache halves the rate of small frames (PEERS, "How to measure"),
//! so pools are as small as rings and frames allow.

use super::options::NetOptions;
use avio_proto::virtio::features as f;
use avio_proto::virtio::net::HEADER_LEN;

/// Cache line; buffers start on one.
const LINE: usize = 64;
/// Receive buffer with merging: what Linux and DPDK use for ordinary frames.
const MERGED_BUFFER_LEN: usize = 2048;
/// Longest frame that segmentation offload makes: 64 KiB of IP packet and an Ethernet header with a tag.
const GSO_FRAME_LEN_MAX: usize = 65_535 + 18;
/// Transmit buffers altogether, in bytes, beyond which fewer of them are used: half of a usual L2.
const TX_POOL_LEN: usize = 512 * 1024;
/// Fewest transmit buffers: below this a batch is too short to mean anything.
const TX_COUNT_MIN: usize = 16;
/// Indirect table entries per frame at most; a frame of 64 KiB in pages, and its header.
pub(super) const PIECES_MAX: usize = 18;

/// Sizes of one queue pair's pools.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Bytes the device may write per receive buffer.
    pub rx_len: usize,
    /// Distance of receive buffers in bytes.
    pub rx_stride: usize,
    /// Receive buffers.
    pub rx_count: usize,
    /// Bytes per transmit buffer, header included.
    pub tx_len: usize,
    /// Distance of transmit buffers in bytes.
    pub tx_stride: usize,
    /// Transmit buffers; also the most frames in flight.
    pub tx_count: usize,
    /// Longest piece per descriptor in bytes.
    pub tx_piece_len: usize,
}

/// An odd number of lines: with a power of two, all buffers' first lines would fall into the same few sets of the L1.
fn stride(len: usize) -> usize {
    let lines = len.div_ceil(LINE);
    (lines + usize::from(lines.is_multiple_of(2))) * LINE
}

impl Layout {
    pub fn new(options: &NetOptions, features: u64) -> Self {
        let ring_size = usize::from(options.ring_size);
        let gso = f::NET_GUEST_TSO4 | f::NET_GUEST_TSO6 | f::NET_GUEST_USO4 | f::NET_GUEST_USO6;
        let longest = if features & gso != 0 { GSO_FRAME_LEN_MAX } else { options.frame_len_max.max(1518) };
        let rx_len = options.rx_buffer_len.unwrap_or(if features & f::NET_MRG_RXBUF != 0 {
            MERGED_BUFFER_LEN
        } else {
            HEADER_LEN + longest
        });
        let tx_len = HEADER_LEN + options.frame_len_max.max(LINE);
        let tx_piece_len = options.tx_piece_len.max(tx_len.div_ceil(PIECES_MAX)).max(LINE);
        let pieces = tx_len.div_ceil(tx_piece_len);
        let tx_stride = stride(tx_len);
        let fits = (TX_POOL_LEN / tx_stride).max(TX_COUNT_MIN);
        let tx_count =
            fits.min(ring_size / if features & f::RING_INDIRECT_DESC != 0 { 1 } else { pieces }).max(1);
        Self {
            rx_len,
            rx_stride: stride(rx_len),
            rx_count: ring_size,
            tx_len,
            tx_stride,
            tx_count,
            tx_piece_len,
        }
    }

    /// Guest memory for one pair, in bytes: two rings of `ring_len` each, two pools, alignment included.
    pub fn memory_len(&self, ring_len: usize) -> usize {
        let pools = self.rx_stride * self.rx_count + self.tx_stride * self.tx_count;
        (2 * ring_len + pools + 4 * 4096).next_multiple_of(4096)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::options::Offloads;

    #[test]
    fn small_frames_have_small_pools() {
        let l = Layout::new(&NetOptions { frame_len_max: 64, ..NetOptions::default() }, f::NET_MRG_RXBUF);
        assert_eq!((l.rx_len, l.rx_stride, l.tx_count), (2048, 33 * 64, 256));
        assert!(l.tx_stride * l.tx_count <= 64 * 1024, "{l:?}");
    }

    #[test]
    fn buffers_hold_the_longest_frame() {
        let jumbo = NetOptions { frame_len_max: 9018, mergeable: false, ..NetOptions::default() };
        assert!(Layout::new(&jumbo, 0).rx_len >= 9018 + HEADER_LEN);
        let tso = NetOptions { frame_len_max: 65_549, offloads: Offloads::Tso, ..NetOptions::default() };
        let l = Layout::new(&tso, f::NET_GUEST_TSO4);
        assert!(l.rx_len >= 65_549 + HEADER_LEN && l.tx_len >= 65_549 + HEADER_LEN);
        assert!(l.tx_count >= TX_COUNT_MIN, "{l:?}");
    }
}
