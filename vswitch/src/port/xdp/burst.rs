//! Sends bursts of frames to a device that cannot take them out of our memory: one system call for all, by a program of ours.
//!
//! An AF_XDP socket in copy mode has the kernel leave and enter its network stack for each frame, and the receiving half of a virtual device runs each
//! time. Here a traffic classifier (`BPF_PROG_TYPE_SCHED_CLS`, attached to nothing) is run by `BPF_PROG_TEST_RUN` over an array map whose memory is
//! mapped here: it takes frame after frame out of it and gives each to the device's ordinary transmission, with the softirq held off until all are out.
//! It costs about half (decision 0013). The lane's queue is kept by the hash that the kernel chooses queues by. What the kernel refuses, such as for a
//! full queueing discipline, is known frame by frame. Where nothing is in the way of the device's egress, frames go by `redirect` first, which makes no
//! packets of them.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use avio_proto::mem::{MemoryTable, Region, RegionHint};
use avio_proto::ring::Undelivered;

use super::assembly::{
    ADD, ADD_CONSTANT, AND_CONSTANT, Assembly, CALL, CHANGE_TAIL, CLONE_REDIRECT, EXIT, JUMP_EQUAL,
    JUMP_EQUAL_CONSTANT, JUMP_GREATER_CONSTANT, JUMP_LESS_CONSTANT, JUMP_NOT_CONSTANT, JUMP_NOT_LESS,
    LOAD_32, LOAD_64, Label, MOVE, MOVE_CONSTANT, SET_HASH, SHIFT_LEFT, STORE_32, STORE_64, STORE_BYTES,
    load_map_value, op,
};
use super::redirect::{self, Handed, Redirect};
use super::rings::{fill, word};
use super::sys::{self, RingMapping};
use crate::port::wire::{OUT_PIECES_MAX, OutFrame, Outlet, Refused, Target};

/// Frames of one run, at most: the kernel's free lists of packets are as long.
pub(super) const FRAMES_MAX: usize = 128;
/// Where the frames begin in the map; in front of them are `FIRST`, `COUNT` and the descriptors.
pub(super) const FRAMES_AT: usize = 8192;
/// First frame of a run, and how many they are.
const FIRST: usize = 0;
const COUNT: usize = 4;
/// Descriptors of 32 bytes: offset behind `FRAMES_AT`, length, what became of the frame, interface number and packet hash.
pub(super) const DESCRIPTORS_AT: usize = 64;
pub(super) const DESCRIPTOR_SHIFT: i32 = 5;
pub(super) const OFFSET: usize = 0;
pub(super) const LEN: usize = 4;
pub(super) const RESULT: usize = 8;
const IFINDEX: usize = 12;
const HASH: usize = 16;
/// Behind them, what `redirect` is told of them.
pub(super) const NOTES_AT: usize = DESCRIPTORS_AT + (FRAMES_MAX << DESCRIPTOR_SHIFT);
/// Frames begin below this: a first-level cache holds what small ones take of it.
pub(super) const AREA: usize = 256 * 1024;
/// Longest frame, in bytes.
const LEN_MAX: usize = 16 * 1024;
const MAP_LEN: usize = FRAMES_AT + AREA + LEN_MAX;
/// The packet that the program fills is made this long at most; for longer frames it grows.
const SEED_MAX: usize = 2048;
/// An Ethernet header; the kernel takes nothing shorter.
pub(super) const LEN_MIN: usize = 14;

/// Lanes that are sent to at once, about.
const TARGETS_MAX: usize = 32;

/// What stands for the result of a frame that the program did not get to.
pub(super) const NOT_SENT: u32 = 1;
/// Of one for which the driver had no room.
pub(super) const REFUSED: u32 = 3;
/// `NET_XMIT_SUCCESS`, and `NET_XMIT_CN`: this one is queued, another was not.
const TAKEN: [u32; 2] = [0, 2];

const _: () = assert!(NOTES_AT + 16 * FRAMES_MAX <= FRAMES_AT, "descriptors lie in front");

/// What [`open_burst`] gives.
pub type OpenBurst = (Box<dyn Outlet>, Option<io::Result<()>>);

/// Opens the way to transmit queue `queue` of `queues` of interface number `ifindex`, which frames of `frame_len_max` bytes go to. Helper thread: the
/// kernel checks the program. With `is_free`, frames may leave as XDP frames as long as that says that the device has neither a queueing discipline nor filters
/// on its egress; the second of what is returned says whether there is a way for that, or why not. `None`: it was not asked for, or frames are too long.
///
/// # Errors
/// What the system says: the kernel is older than 5.5, or we may not.
pub fn open_burst(
    ifindex: u32,
    queue: u32,
    queues: u32,
    frame_len_max: usize,
    is_free: Option<Arc<AtomicBool>>,
) -> io::Result<OpenBurst> {
    if frame_len_max > LEN_MAX || frame_len_max > packet_len_max() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "frames too long for a run of a program"));
    }
    let map = sys::frame_map(MAP_LEN as u32)?;
    let mapping = Arc::new(RingMapping::new(map.as_fd(), MAP_LEN, 0)?);
    let program =
        sys::program_load(sys::PROG_CLASSIFIER, 0, &assemble(map.as_fd()), *b"avio_burst\0\0\0\0\0\0")?;
    let region = Region {
        guest_base: 0,
        user_base: 0,
        len: MAP_LEN as u64,
        mapping: mapping.clone(),
        mapping_offset: 0,
    };
    let table = MemoryTable::new(vec![region], None).map_err(io::Error::other)?;
    let own = Target { ifindex, hash: if queues > 1 { hash_of(queue, queues) } else { 0 } };
    let (frames, refused) = (Vec::with_capacity(FRAMES_MAX), Vec::with_capacity(TARGETS_MAX));
    let is_free = is_free.filter(|_| frame_len_max <= redirect::LEN_MAX);
    let opened = is_free.map(|is_free| Redirect::open(map.as_fd(), ifindex, is_free));
    let (redirect, outcome) = match opened {
        Some(Ok(redirect)) => (Some(redirect), Some(Ok(()))),
        Some(Err(why)) => (None, Some(Err(why))),
        None => (None, None),
    };
    let outlet = BurstOutlet {
        program,
        redirect,
        mapping,
        table,
        frames,
        used: 0,
        refused,
        failed: None,
        own,
        target: own,
    };
    Ok((Box::new(outlet), outcome))
}

/// A test run's packet belongs to the loopback device, and cannot be longer than that takes.
fn packet_len_max() -> usize {
    let text = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap_or_default();
    text.trim().parse().unwrap_or(usize::MAX)
}

/// The packet hash by which the kernel takes this queue (`reciprocal_scale` in `skb_tx_hash`): the middle of its share.
fn hash_of(queue: u32, queues: u32) -> u32 {
    let queues = u64::from(queues.max(1));
    (((2 * u64::from(queue) + 1) << 31) / queues) as u32
}

/// A frame in the area.
#[derive(Debug, Clone, Copy)]
struct Frame {
    at: usize,
    len: usize,
    target: Target,
}

struct BurstOutlet {
    program: OwnedFd,
    redirect: Option<Redirect>,
    mapping: Arc<RingMapping>,
    table: MemoryTable,
    /// Written, not yet sent.
    frames: Vec<Frame>,
    /// Bytes of the area that they take.
    used: usize,
    /// By target; mostly empty.
    refused: Vec<(Target, Refused)>,
    /// Its lane's, and where what is reserved goes now.
    own: Target,
    target: Target,
    /// What a run before the commit failed by.
    failed: Option<io::Error>,
}

impl Outlet for BurstOutlet {
    fn reserve(&mut self, len: usize) -> Result<OutFrame<'_>, Undelivered> {
        if !(LEN_MIN..=LEN_MAX).contains(&len) {
            return Err(Undelivered::TooLong);
        }
        if self.frames.len() == FRAMES_MAX || self.used >= AREA {
            self.send();
        }
        let (i, at) = (self.frames.len(), self.used);
        self.describe(i, at, len);
        let address = (FRAMES_AT + at) as u64;
        let piece =
            self.table.slice(&mut RegionHint::default(), address, len).ok_or(Undelivered::NoBuffer)?;
        let mut frame = [piece.sub(0, 0); OUT_PIECES_MAX];
        frame[0] = piece;
        Ok(frame)
    }

    fn put(&mut self, frame: &[u8]) -> bool {
        let (i, at, len) = (self.frames.len(), self.used, frame.len());
        if i == FRAMES_MAX || at >= AREA || !(LEN_MIN..=LEN_MAX).contains(&len) {
            return false;
        }
        self.describe(i, at, len);
        fill(&self.mapping, FRAMES_AT + at, frame);
        true
    }

    fn commit(&mut self) -> io::Result<()> {
        self.send();
        self.failed.take().map_or(Ok(()), Err)
    }

    fn rollback(&mut self) {
        self.empty();
        self.target = self.own;
        self.refused.clear();
    }

    fn refused(&mut self, target: Option<Target>) -> Refused {
        let target = target.unwrap_or(self.own);
        let place = self.refused.iter().position(|(of, _)| *of == target);
        place.map_or_else(Refused::default, |place| self.refused.swap_remove(place).1)
    }

    fn target(&self) -> Option<Target> {
        // What is redirected goes to one device.
        Some(self.own).filter(|_| self.redirect.is_none())
    }

    fn aim(&mut self, target: Target) {
        self.target = target;
    }
}

fn descriptor(i: usize) -> usize {
    DESCRIPTORS_AT + (i << DESCRIPTOR_SHIFT)
}

impl BurstOutlet {
    /// Notes that frame `i` of `len` bytes lies at `at`.
    #[inline]
    fn describe(&mut self, i: usize, at: usize, len: usize) {
        let Target { ifindex, hash } = self.target;
        let fields =
            [(OFFSET, at as u32), (LEN, len as u32), (RESULT, NOT_SENT), (IFINDEX, ifindex), (HASH, hash)];
        for (field, value) in fields {
            word(&self.mapping, descriptor(i) + field).store(value, Ordering::Relaxed);
        }
        self.frames.push(Frame { at, len, target: self.target });
        // Each frame begins on a line of its own.
        self.used = (at + len).next_multiple_of(64);
    }

    /// Sends what was written, in order.
    fn send(&mut self) {
        match self.redirect() {
            Some(Handed::All) => return self.empty(),
            Some(Handed::Some) => {}
            // None is sent yet.
            None => {
                self.send_as_packets(0..self.frames.len());
                return self.empty();
            }
        }
        let mut first = 0;
        while first < self.frames.len() {
            let is_sent = self.result(first) != NOT_SENT;
            let alike = |&i: &usize| (self.result(i) != NOT_SENT) == is_sent;
            let end = first + (first..self.frames.len()).take_while(alike).count();
            if is_sent {
                self.judge(first..end);
            } else {
                self.send_as_packets(first..end);
            }
            first = end;
        }
        self.empty();
    }

    fn send_as_packets(&mut self, frames: Range<usize>) {
        let (mut first, end) = (frames.start, frames.end);
        while first < end {
            // A packet has its protocol from the seed, and filters, disciplines and captures go by it.
            let kind = self.kind(first);
            let same = (first..end).take_while(|&i| self.kind(i) == kind).count();
            self.run(first, same);
            first += same;
        }
    }

    /// Hands over what can be as it is. What cannot is as it was; `None`: that is all.
    #[inline]
    fn redirect(&mut self) -> Option<Handed> {
        let redirect = self.redirect.as_mut()?;
        // Of the copies, the last is what was written, with no room to grow.
        let seed = self.frames.last().filter(|_| redirect.is_open())?;
        Some(redirect.run(&self.mapping, self.frames.len(), (FRAMES_AT + seed.at, seed.len)))
    }

    fn result(&self, i: usize) -> u32 {
        word(&self.mapping, descriptor(i) + RESULT).load(Ordering::Relaxed)
    }

    /// Counts those of these frames that were refused.
    fn judge(&mut self, range: Range<usize>) {
        for i in range {
            if TAKEN.contains(&self.result(i)) {
                continue;
            }
            let frame = self.frames[i];
            let [lead, ..] = word(&self.mapping, FRAMES_AT + frame.at).load(Ordering::Relaxed).to_ne_bytes();
            let place = self.refused.iter().position(|(of, _)| *of == frame.target);
            let place = place.unwrap_or_else(|| {
                self.refused.push((frame.target, Refused::default()));
                self.refused.len() - 1
            });
            self.refused[place].1.add(frame.len, lead & 1 != 0);
        }
    }

    fn empty(&mut self) {
        self.frames.clear();
        self.used = 0;
    }

    /// The ethertype of frame `i`.
    #[inline]
    fn kind(&self, i: usize) -> [u8; 2] {
        // Frames begin on a line.
        let at = FRAMES_AT + self.frames[i].at + 12;
        let [a, b, ..] = word(&self.mapping, at).load(Ordering::Relaxed).to_ne_bytes();
        [a, b]
    }

    /// Runs the program over `count` frames of one kind.
    fn run(&mut self, first: usize, count: usize) {
        let frames = &self.frames[first..first + count];
        let longest = frames.iter().map(|frame| frame.len).max().unwrap_or(0);
        word(&self.mapping, FIRST).store(first as u32, Ordering::Relaxed);
        word(&self.mapping, COUNT).store(count as u32, Ordering::Relaxed);
        let seed_at = FRAMES_AT + frames[0].at;
        let outcome = sys::test_run(self.program.as_fd(), &self.mapping, seed_at, longest.min(SEED_MAX));
        self.judge(first..first + count);
        match outcome {
            // For want of memory, or for a signal, before anything was done.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN | libc::EINTR)) => {
            }
            Err(error) => self.failed = Some(error),
            Ok(()) => {}
        }
    }
}

/// The program. Register 6 is the packet, 7 the map, 8 counts frames, 9 is the frame's length; on the stack the place of its descriptor.
fn assemble(map: BorrowedFd<'_>) -> Vec<u64> {
    let field = |field: usize| (DESCRIPTORS_AT + field) as i16;
    // The frame's descriptor into register 1.
    let to_descriptor = [op(LOAD_64, 1, 10, -8, 0), op(ADD, 1, 7, 0, 0)];
    let mut program = Assembly::default();
    program.put(&[op(MOVE, 6, 1, 0, 0)]);
    program.put(&load_map_value(7, map));
    program.put(&[op(MOVE_CONSTANT, 8, 0, 0, 0)]);
    // Once round: all done, or the next.
    program.label(Label::Again);
    program.put(&[op(LOAD_32, 9, 7, COUNT as i16, 0)]);
    program.jump(op(JUMP_NOT_LESS, 8, 9, 0, 0), Label::End);
    program.put(&[
        op(LOAD_32, 1, 7, FIRST as i16, 0),
        op(ADD, 1, 8, 0, 0),
        op(AND_CONSTANT, 1, 0, 0, FRAMES_MAX as i32 - 1),
        op(SHIFT_LEFT, 1, 0, 0, DESCRIPTOR_SHIFT),
        op(STORE_64, 10, 1, -8, 0),
        op(ADD, 1, 7, 0, 0),
        op(LOAD_32, 9, 1, field(LEN), 0),
    ]);
    program.jump(op(JUMP_LESS_CONSTANT, 9, 0, 0, LEN_MIN as i32), Label::Next);
    program.jump(op(JUMP_GREATER_CONSTANT, 9, 0, 0, LEN_MAX as i32), Label::Next);
    program.put(&[op(LOAD_32, 1, 1, field(OFFSET), 0)]);
    program.jump(op(JUMP_GREATER_CONSTANT, 1, 0, 0, AREA as i32), Label::Next);
    program.put(&[
        op(STORE_64, 10, 1, -16, 0),
        // `len` of `struct __sk_buff`: mostly right already.
        op(LOAD_32, 1, 6, 0, 0),
        op(JUMP_EQUAL, 1, 9, 5, 0),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE, 2, 9, 0, 0),
        op(MOVE_CONSTANT, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, CHANGE_TAIL),
    ]);
    program.jump(op(JUMP_NOT_CONSTANT, 0, 0, 0, 0), Label::Next);
    program.put(&[
        op(LOAD_64, 3, 10, -16, 0),
        op(ADD_CONSTANT, 3, 0, 0, FRAMES_AT as i32),
        op(ADD, 3, 7, 0, 0),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE_CONSTANT, 2, 0, 0, 0),
        op(MOVE, 4, 9, 0, 0),
        op(MOVE_CONSTANT, 5, 0, 0, 0),
        op(CALL, 0, 0, 0, STORE_BYTES),
    ]);
    program.jump(op(JUMP_NOT_CONSTANT, 0, 0, 0, 0), Label::Next);
    program.put(&to_descriptor);
    program.put(&[
        op(LOAD_32, 2, 1, field(HASH), 0),
        op(JUMP_EQUAL_CONSTANT, 2, 0, 2, 0),
        op(MOVE, 1, 6, 0, 0),
        op(CALL, 0, 0, 0, SET_HASH),
    ]);
    program.put(&to_descriptor);
    program.put(&[
        op(LOAD_32, 2, 1, field(IFINDEX), 0),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE_CONSTANT, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, CLONE_REDIRECT),
    ]);
    program.put(&to_descriptor);
    program.put(&[op(STORE_32, 1, 0, field(RESULT), 0)]);
    program.label(Label::Next);
    program.put(&[op(ADD_CONSTANT, 8, 0, 0, 1)]);
    program.jump(op(JUMP_LESS_CONSTANT, 8, 0, 0, FRAMES_MAX as i32), Label::Again);
    program.label(Label::End);
    program.put(&[op(MOVE_CONSTANT, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_has_the_hash_that_the_kernel_takes_it_by() {
        for queues in [1, 2, 3, 7, 64] {
            for queue in 0..queues {
                let hash = u64::from(hash_of(queue, queues));
                assert_eq!((hash * u64::from(queues)) >> 32, u64::from(queue), "{queue} of {queues}");
            }
        }
    }
}
