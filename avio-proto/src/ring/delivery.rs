//! Writing frames into a receive ring: reserve, copy once, publish at once.
//!
//! The switch's workers call it under the receive ring's lock. Frames come as a validated header, a snapshot of their
//! first bytes and a tail that still lies in the sender's memory. Never publishes half a frame; never reads back what it
//! wrote.

use super::arena::{Shape, Stop};
use super::device::{DeviceRing, Layout};
use super::queue::{Core, Queue, Staged};
use super::{CHAINS_MAX, RingError, packed};
use crate::mem::{GuestSlice, MemoryTable, Tail, TailSum, add_carry, fold};
use crate::virtio::net::{HEADER_LEN, LEGACY_HEADER_LEN, NUM_BUFFERS_OFFSET};

/// Why a frame was not delivered. The ring is as if the frame had never been tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// The driver has made too few buffers available.
    NoBuffer,
    /// Without merged buffers: the next buffer is too short for this frame. With them: it takes more than 512 pieces.
    TooLong,
    /// The ring is broken; `DeviceRing::take` semantics: stop it. What was pushed before can still be committed.
    Broken(RingError),
}

/// Frames being written into one receive ring: reserved, copied, then published at once by `commit`. Dropping it
/// without `commit` makes all its buffers available again; the driver sees nothing.
pub struct Delivery<'r> {
    ring: &'r mut DeviceRing,
    start: Start,
}

/// What a rollback restores.
struct Start {
    staged: (usize, usize),
    position: Position,
    committed: bool,
}

enum Position {
    Split(u16),
    Packed(packed::position::Position),
}

impl<'r> Delivery<'r> {
    #[inline]
    pub(super) fn new(ring: &'r mut DeviceRing) -> Self {
        match &ring.layout {
            Layout::Split(queue) => queue.prefetch_used(CHAINS_MAX),
            Layout::Packed(queue) => queue.prefetch_used(CHAINS_MAX),
        }
        let position = match &ring.layout {
            Layout::Split(queue) => Position::Split(queue.position()),
            Layout::Packed(queue) => Position::Packed(queue.position()),
        };
        let start = Start { staged: ring.core.staging.mark(), position, committed: false };
        Self { ring, start }
    }

    /// Writes one frame if it is the usual short one: with a header that asks for nothing, no longer than its snapshot `head`, into
    /// one buffer. False: nothing was done, `push` says why or does it.
    ///
    /// A function of its own and small: what the processor can have on its way to the guest's memory is bounded by stores, and
    /// in a large one most of them go to the stack.
    #[inline(never)]
    pub fn push_short(&mut self, head: &[u8]) -> bool {
        match &mut self.ring.layout {
            Layout::Split(queue) => push_short(&mut self.ring.core, queue, head),
            Layout::Packed(queue) => push_short(&mut self.ring.core, queue, head),
        }
    }

    /// Writes one frame: the virtio-net header (its `num_buffers` is filled in here; a legacy ring takes ten bytes), the
    /// snapshot `head`, then the tail from the sender's memory: one copy.
    ///
    /// # Errors
    /// [`Undelivered`]; the frame then leaves no trace that the driver can see.
    #[inline(never)]
    pub fn push(
        &mut self,
        header: &[u8; HEADER_LEN],
        head: &[u8],
        tail: Tail<'_>,
    ) -> Result<(), Undelivered> {
        let DeviceRing { core, layout } = &mut *self.ring;
        let need = core.header_len + head.len() + tail.len;
        let whole = match layout {
            Layout::Split(queue) => reserve_whole(core, queue, need),
            Layout::Packed(queue) => reserve_whole(core, queue, need),
        };
        // The usual frame is in one buffer; anything else, every error included, takes the other way.
        let Some((buffer, memory, header_len)) = whole else { return self.push_pieces(header, head, tail) };
        if tail.len > 0 {
            copy_tail(&[buffer], header_len + head.len(), tail);
        }
        write_whole(buffer, header_len, header, head);
        memory.log_slice(&buffer, need);
        Ok(())
    }

    /// `push` of a frame that takes several buffers, or a buffer of several pieces.
    #[inline(never)]
    fn push_pieces(
        &mut self,
        header: &[u8; HEADER_LEN],
        head: &[u8],
        tail: Tail<'_>,
    ) -> Result<(), Undelivered> {
        let need = self.ring.core.header_len + head.len() + tail.len;
        let buffers = self.reserve(need)?;
        let core = &self.ring.core;
        let frame = core.frame.get(0, core.frame.count());
        // The first lines of the next buffers come over while this one is being filled; `pairs` goes on with it.
        for piece in &frame[..frame.len().min(PIECES_AHEAD)] {
            piece.prefetch_write_lines(PIECE_LINES);
        }
        if tail.len > 0 {
            copy_tail(frame, core.header_len + head.len(), tail);
        }
        write_front(core, frame, header, head, buffers);
        self.log(need);
        Ok(())
    }

    /// Like `push`, but sums the tail while copying it, then lets `finish` patch the head (a checksum field) before it is
    /// written. The sum is over the bytes as delivered.
    ///
    /// # Errors
    /// As `push`; `finish` is not called then.
    #[inline]
    pub fn push_summed(
        &mut self,
        header: &[u8; HEADER_LEN],
        head: &mut [u8],
        tail: Tail<'_>,
        finish: impl FnOnce(&mut [u8], TailSum),
    ) -> Result<(), Undelivered> {
        let need = self.ring.core.header_len + head.len() + tail.len;
        let buffers = self.reserve(need)?;
        let core = &self.ring.core;
        let frame = core.frame.get(0, core.frame.count());
        let sum = copy_tail_summed(frame, core.header_len + head.len(), tail);
        finish(head, sum);
        write_front(core, frame, header, head, buffers);
        self.log(need);
        Ok(())
    }

    /// Frames that surely still fit if each takes one buffer: a lower bound from what was last seen of the ring, without
    /// looking at it again. Packed rings do not know and answer 0.
    #[inline]
    #[must_use]
    pub fn free_hint(&self) -> usize {
        match &self.ring.layout {
            Layout::Split(queue) => queue.available_seen(),
            Layout::Packed(_) => 0,
        }
    }

    /// Publishes all pushed frames with one index store; true = notify the driver.
    #[inline]
    pub fn commit(mut self) -> bool {
        self.start.committed = true;
        self.ring.publish()
    }

    #[inline(always)]
    fn reserve(&mut self, need: usize) -> Result<u16, Undelivered> {
        let DeviceRing { core, layout } = &mut *self.ring;
        match layout {
            Layout::Split(queue) => reserve(core, queue, need),
            Layout::Packed(queue) => reserve(core, queue, need),
        }
    }

    /// Marks the frame just written in the dirty log. After the writes: a page that is marked early may be copied early.
    #[inline]
    fn log(&self, need: usize) {
        let core = &self.ring.core;
        if core.memory.log().is_none() {
            return;
        }
        let mut left = need;
        for piece in core.frame.get(0, core.frame.count()) {
            let len = left.min(piece.len());
            core.memory.log_slice(piece, len);
            left -= len;
        }
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        if self.start.committed {
            return;
        }
        self.ring.core.staging.unstage(self.start.staged);
        match (&mut self.ring.layout, &self.start.position) {
            (Layout::Split(queue), Position::Split(at)) => queue.rewind(*at),
            (Layout::Packed(queue), Position::Packed(at)) => queue.rewind(*at),
            // A ring does not change its layout while it is borrowed.
            _ => {}
        }
    }
}

/// How many frames before its turn a buffer is fetched: it was read by the guest's core last, and a store that waits for its
/// line holds up all that follow. Far enough for one line to cross between cores that are far from each other (200 ns), near
/// enough that the lines are still there.
const FETCH_AHEAD: u16 = 6;
/// Most lines of a buffer that are fetched ahead: of longer frames the processor fetches the rest by itself.
const FETCH_LINES_MAX: usize = 4;
/// How many pieces before its turn one of several is fetched, and how many lines of it: of more, or all pieces at once, the
/// first are gone again when they are needed (64 KiB frames lost 6 % so). The processor fetches the rest by itself.
const PIECES_AHEAD: usize = 4;
const PIECE_LINES: usize = 4;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Takes the next chain if it is one buffer that holds `need` bytes, and stages it as used; returns it with the memory that it
/// lies in and the length of the virtio-net header. `None` changes nothing.
#[inline(always)]
fn reserve_whole<'c, Q: Queue>(
    core: &'c mut Core,
    queue: &mut Q,
    need: usize,
) -> Option<(GuestSlice<'c>, &'c MemoryTable, usize)> {
    let Core { memory, hint, staging, broken, header_len, .. } = core;
    if broken.is_some() {
        return None;
    }
    let memory: &MemoryTable = memory;
    let (chain, buffer) = queue.next_single::<true>(memory, hint, need)?;
    staging.pending_count += 1;
    staging.stage(Staged { chain, len: need as u32 }, 1);
    queue.prefetch_ahead(memory, hint, FETCH_AHEAD, need.div_ceil(LINE).min(FETCH_LINES_MAX));
    Some((buffer, memory, *header_len))
}

/// `Delivery::push_short` for one layout.
#[inline(always)]
fn push_short<Q: Queue>(core: &mut Core, queue: &mut Q, head: &[u8]) -> bool {
    let need = HEADER_LEN + head.len();
    if core.header_len != HEADER_LEN || head.len() < 4 {
        return false;
    }
    let Some((buffer, memory, _)) = reserve_whole(core, queue, need) else { return false };
    write_whole(buffer, HEADER_LEN, &[0; HEADER_LEN], head);
    // The guest reads this line next and waits less for the shared cache than for ours. Only this one, and only of short
    // frames: the others cost more than they give (docs/performance.md).
    buffer.demote_first();
    memory.log_slice(&buffer, need);
    true
}

/// Takes chains until `need` bytes fit and stages them as used; returns how many. Leaves all as it was on error.
#[inline(always)]
fn reserve<Q: Queue>(core: &mut Core, queue: &mut Q, need: usize) -> Result<u16, Undelivered> {
    if let Some(error) = core.broken {
        return Err(Undelivered::Broken(error));
    }
    let position = queue.position();
    let staged = core.staging.mark();
    core.frame.clear();
    let mut shape = Shape::default();
    let mut room = 0;
    let mut buffers = 0;
    let failure = loop {
        match queue.next(&core.memory, &mut core.hint, &mut core.frame, &mut shape) {
            Ok(true) => {
                let id = shape.id;
                // A receive buffer is there to be written, and the first one holds the whole header (§5.1.6.3.1).
                let least = if buffers == 0 { core.header_len } else { 1 };
                if shape.readable_len != 0 || shape.writable_len < least {
                    let error = RingError::BadDescriptor(id.number());
                    core.broken = Some(error);
                    break Undelivered::Broken(error);
                }
                let used = shape.writable_len.min(need - room);
                room += used;
                buffers += 1;
                core.staging.pending_count += 1;
                core.staging.stage(Staged { chain: id, len: used as u32 }, 1);
                if room == need {
                    return Ok(buffers);
                }
                if !core.mergeable {
                    break Undelivered::TooLong;
                }
            }
            Ok(false) => break Undelivered::NoBuffer,
            Err(Stop::Full) => break Undelivered::TooLong,
            Err(Stop::Bad(error)) => {
                core.broken = Some(error);
                break Undelivered::Broken(error);
            }
        }
    };
    core.staging.unstage(staged);
    queue.rewind(position);
    Err(failure)
}

/// Writes the snapshot and, last of all, the header: `num_buffers` then describes buffers that are filled, and the stores to
/// the first lines stand together.
#[inline(always)]
fn write_front(core: &Core, frame: &[GuestSlice<'_>], header: &[u8; HEADER_LEN], head: &[u8], buffers: u16) {
    let mut header = *header;
    header[NUM_BUFFERS_OFFSET..].copy_from_slice(&buffers.to_le_bytes());
    let header = &header[..core.header_len];
    match frame.first() {
        Some(first) if first.len() >= header.len() + head.len() => {
            first.sub(header.len(), head.len()).copy_from(head);
            first.copy_from(header);
        }
        _ => {
            scatter(frame, header.len(), head);
            scatter(frame, 0, header);
        }
    }
}

/// The same into one buffer that is long enough.
///
/// The header goes from registers, in words: put together in memory and read back in words that straddle its parts, it would wait
/// for every store in front of it to reach the cache, and those in front are to lines that the guest's core holds.
#[inline(always)]
fn write_whole(buffer: GuestSlice<'_>, header_len: usize, header: &[u8; HEADER_LEN], head: &[u8]) {
    const { assert!(HEADER_LEN == 12 && NUM_BUFFERS_OFFSET == 10) };
    let [a, b, c, d, e, f, g, h, i, j, ..] = *header;
    if header_len == HEADER_LEN {
        // The frame's first four bytes go with the header: all stores but the last ones then are aligned in a buffer that is.
        if let Some((&[k, l, m, n], rest)) = head.split_first_chunk() {
            buffer.sub(HEADER_LEN + 4, rest.len()).copy_from(rest);
            buffer.write(8, &[i, j, 1, 0, k, l, m, n]);
        } else {
            buffer.sub(HEADER_LEN, head.len()).copy_from(head);
            buffer.write(8, &[i, j, 1, 0]);
        }
        buffer.write(0, &[a, b, c, d, e, f, g, h]);
    } else {
        buffer.sub(LEGACY_HEADER_LEN, head.len()).copy_from(head);
        buffer.copy_from(&header[..LEGACY_HEADER_LEN]);
    }
}

/// Copies `bytes` to `offset` bytes into the pieces.
#[cold]
pub(super) fn scatter(frame: &[GuestSlice<'_>], mut offset: usize, mut bytes: &[u8]) {
    for piece in frame {
        if offset >= piece.len() {
            offset -= piece.len();
            continue;
        }
        let count = piece.sub(offset, bytes.len()).copy_from(bytes);
        bytes = &bytes[count..];
        offset = 0;
        if bytes.is_empty() {
            return;
        }
    }
}

/// Walks tail and frame side by side and hands each pair of pieces, which are equally long, to `copy`.
#[inline(always)]
fn pairs(
    frame: &[GuestSlice<'_>],
    mut offset: usize,
    tail: Tail<'_>,
    mut copy: impl FnMut(GuestSlice<'_>, GuestSlice<'_>),
) {
    let mut taken = 0;
    let mut room = GuestSlice::NONE;
    let mut skip = tail.skip;
    let mut left = tail.len;
    for source in tail.slices {
        if skip >= source.len() {
            skip -= source.len();
            continue;
        }
        let mut source = source.sub(skip, left);
        skip = 0;
        left -= source.len();
        while !source.is_empty() {
            while room.is_empty() {
                let Some(next) = frame.get(taken) else { return };
                if let Some(ahead) = frame.get(taken + PIECES_AHEAD) {
                    ahead.prefetch_write_lines(PIECE_LINES);
                }
                taken += 1;
                room = next.sub(offset, usize::MAX);
                offset = offset.saturating_sub(next.len());
            }
            let count = room.len().min(source.len());
            copy(room.sub(0, count), source.sub(0, count));
            room = room.sub(count, usize::MAX);
            source = source.sub(count, usize::MAX);
        }
        if left == 0 {
            return;
        }
    }
}

#[inline]
pub(super) fn copy_tail(frame: &[GuestSlice<'_>], offset: usize, tail: Tail<'_>) {
    pairs(frame, offset, tail, |to, from| {
        to.copy_from_guest(&from);
    });
}

#[inline]
pub(super) fn copy_tail_summed(frame: &[GuestSlice<'_>], offset: usize, tail: Tail<'_>) -> TailSum {
    let mut sum = 0;
    let mut odd = false;
    pairs(frame, offset, tail, |to, from| {
        let part = to.copy_summed_from(&from);
        // A piece that begins at an odd offset has its bytes in the other halves of their words (RFC 1071 section 2(B)).
        sum = add_carry(sum, u64::from(if odd { part.swap_bytes() } else { part }));
        odd ^= from.len() % 2 != 0;
    });
    TailSum(u16::from_be(fold(sum)))
}
