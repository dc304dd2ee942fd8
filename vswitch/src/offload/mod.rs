//! Checksum and segmentation offloads: what a guest's virtio-net header asks for, whether that is believable, and how each
//! receiver gets it.
//!
//! Owns the judgement of the sender's header ([`validate`]), the header that a receiver sees ([`Validated::header_for`]), the one's
//! complement sums ([`checksum`]), software segmentation ([`Segmenter`]) and its inverse ([`Coalescer`]). Workers call it through the forwarding engine with
//! the snapshot of a frame; header bytes come from the snapshot only, so a guest that rewrites its buffers meanwhile changes nothing.
//! It allocates nothing, does no I/O, holds no state between frames and never panics on any bytes.
//!
//! A worker's use of it, per frame and receiver:
//! ```text
//! let offload = validate(&header, head, frame_len, &l2, sender_features)?;    // once per frame
//! match offload.mode_for(receiver_features) {
//!     PassThrough      => push(&offload.header_for(PassThrough).to_bytes(), head, tail),
//!     CompleteChecksum => { let c = offload.completion(head);
//!                           push_summed(&header_for(..), head, tail, |h, sum| c.apply(h, sum)) }
//!     mode @ (SegmentPartial | SegmentComplete) => {
//!         let mut segments = Segmenter::new(&offload, head, frame_len, mode);
//!         while let Some(s) = segments.next_into(&mut scratch) { push or push_summed, as s.completion says } }
//! }
//! ```

pub mod checksum;
mod coalesce;
mod delivery;
mod header;
mod segment;
#[cfg(test)]
mod tests;

pub use checksum::Completion;
pub use coalesce::{Candidate, Coalescer, Frames, Merged, PIECES_MAX, takes_merged};
pub use delivery::Mode;
pub use header::{BadHeader, MAX_SEGMENTS, MIN_TCP_SEGMENT_SIZE, Validated, validate};
pub use segment::{HEAD_CAPACITY, Segment, Segmenter};
