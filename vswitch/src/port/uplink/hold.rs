//! Where the frames of flows wait that move from one member of an aggregate to another: a bounded queue in memory, behind a lane.
//!
//! For the data path it is a lane like any other (complete frames, no header in front), so writing to it takes no step of its own. When a table
//! gives the buckets to a member, each worker that takes up the table empties the queue into the members' lanes first (`forward::release`). One
//! per aggregate, made by a helper; its memory is touched only as far as it was ever filled.

use std::io;

use avio_host::frame_memory::FrameMemory;
use avio_proto::mem::{GuestSlice, RegionHint};
use avio_proto::ring::Undelivered;

use crate::port::wire::{OUT_PIECES_MAX, OutFrame, Outlet};

/// Bytes that can be held: an eighth of 10 Gbit/s for as long as a Marker may take, twice over.
const HELD_LEN_MAX: usize = 16 << 20;
/// Frames that can be held: an eighth of 4 million a second for as long as that.
const HELD_MAX: usize = 32 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Hold {
    memory: FrameMemory,
    /// Where each frame is and how long, in the order in which they came.
    frames: Vec<(u32, u32)>,
    /// Those of them that are written.
    committed: usize,
    /// End of the last frame.
    used: usize,
}

impl Hold {
    /// An empty queue. Helper thread: it maps memory.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Self> {
        let memory = FrameMemory::new("avio-hold", HELD_LEN_MAX)?;
        Ok(Self { memory, frames: Vec::with_capacity(HELD_MAX), committed: 0, used: 0 })
    }

    /// The frames that wait, first come first.
    pub(crate) fn frames(&self) -> impl Iterator<Item = GuestSlice<'_>> {
        let table = self.memory.table();
        let frames = self.frames[..self.committed].iter();
        frames.filter_map(|&(at, len)| table.slice(&mut RegionHint::default(), u64::from(at), len as usize))
    }

    /// Nothing waits any more.
    pub(crate) fn clear(&mut self) {
        self.frames.clear();
        (self.committed, self.used) = (0, 0);
    }
}

impl Outlet for Hold {
    fn reserve(&mut self, len: usize) -> Result<OutFrame<'_>, Undelivered> {
        if self.used + len > HELD_LEN_MAX || self.frames.len() == HELD_MAX {
            return Err(Undelivered::NoBuffer);
        }
        let at = self.used;
        let table = self.memory.table();
        let piece = table.slice(&mut RegionHint::default(), at as u64, len).ok_or(Undelivered::NoBuffer)?;
        self.frames.push((at as u32, len as u32));
        self.used = at + len;
        let mut frame = [piece.sub(0, 0); OUT_PIECES_MAX];
        frame[0] = piece;
        Ok(frame)
    }

    fn commit(&mut self) -> io::Result<()> {
        self.committed = self.frames.len();
        Ok(())
    }

    fn rollback(&mut self) {
        self.frames.truncate(self.committed);
        self.used = self.frames.last().map_or(0, |&(at, len)| (at + len) as usize);
    }

    fn hold(&mut self) -> Option<&mut Hold> {
        Some(self)
    }
}

const _: () = assert!(HELD_LEN_MAX <= u32::MAX as usize, "places are 32 bits");

#[cfg(test)]
mod tests {
    use super::*;

    fn put(hold: &mut Hold, bytes: &[u8]) -> bool {
        hold.reserve(bytes.len()).is_ok_and(|frame| frame[0].copy_from(bytes) == bytes.len())
    }

    fn held(hold: &Hold) -> Vec<Vec<u8>> {
        let bytes = |slice: GuestSlice<'_>| {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            bytes
        };
        hold.frames().map(bytes).collect()
    }

    #[test]
    fn what_was_committed_waits_in_order() {
        let mut hold = Hold::new().unwrap();
        assert!(put(&mut hold, &[1; 60]) && put(&mut hold, &[2; 1514]));
        assert!(held(&hold).is_empty());
        hold.commit().unwrap();
        assert!(put(&mut hold, &[3; 60]));
        hold.rollback();
        assert!(put(&mut hold, &[4; 61]));
        hold.commit().unwrap();
        assert_eq!(held(&hold), [vec![1; 60], vec![2; 1514], vec![4; 61]]);
        hold.clear();
        assert!(held(&hold).is_empty() && put(&mut hold, &[5; 60]));
    }

    #[test]
    fn it_is_bounded_in_frames_and_in_bytes() {
        let mut hold = Hold::new().unwrap();
        assert_eq!((0..HELD_MAX + 9).filter(|_| put(&mut hold, &[7; 60])).count(), HELD_MAX);
        hold.rollback();
        assert_eq!((0..HELD_MAX).filter(|_| put(&mut hold, &[7; 4096])).count(), HELD_LEN_MAX / 4096);
        assert_eq!(hold.frames.capacity(), HELD_MAX, "nothing was allocated");
    }
}
