//! A worker's memory for one batch: snapshots, what was found out about each frame, and who gets it.
//!
//! Allocated once per worker (the lists of jobs once per table); the engine resets it with each batch. It holds bytes and
//! numbers only, nothing of a table or ring.

use avio_proto::ring::{Batch, Chain};
use avio_proto::virtio::net::{HEADER_LEN, LEGACY_HEADER_LEN, NetHeader};

use super::deliver::{Outcome, TOGETHER_MAX};
use super::patience::Patience;
use crate::offload::{Coalescer, HEAD_CAPACITY, Validated};
use crate::packet::TAG_LEN;
use crate::table::{DomainIndex, MacNumber, PortIndex};

/// Most frames in a batch (DESIGN section 3). Links between frames are one byte, with [`NONE`] left over.
pub(super) const BATCH_MAX: usize = 64;
/// Bytes of a frame that are looked at (DESIGN section 3, step 2).
pub(super) const SNAPSHOT_LEN: usize = 192;
/// The same for ports that name their addresses: neighbour discovery has options far behind.
pub(super) const SNAPSHOT_LEN_IPS: usize = 256;
/// Where a frame starts in its snapshot: room for an inserted tag, then the virtio-net header.
pub(super) const FRAME_AT: usize = TAG_LEN + HEADER_LEN;
/// No frame: the end of a list.
pub(super) const NONE: u8 = u8::MAX;

const _: () = assert!(BATCH_MAX < NONE as usize && SNAPSHOT_LEN_IPS <= HEAD_CAPACITY - TAG_LEN);

/// The low 48 bits.
const MAC_MASK: u64 = 0xffff_ffff_ffff;

/// The bytes of one frame, copied once. Five cache lines: an odd number, so that consecutive snapshots spread over the
/// cache's sets.
#[repr(align(64))]
pub(super) struct Snap([u8; SNAP_LEN]);

/// Five lines.
const SNAP_LEN: usize = 320;
const _: () = assert!(FRAME_AT + SNAPSHOT_LEN_IPS <= SNAP_LEN);

impl Snap {
    /// Copies the virtio-net header (`header_len` bytes) and the first `head_len` bytes of the frame out of guest memory:
    /// the only time that either is read. The chain must hold that many.
    #[inline(always)]
    pub(super) fn fill(&mut self, batch: &Batch<'_>, i: usize, header_len: usize, head_len: usize) {
        let (first, _) = batch.front(i);
        if first.len() < header_len + head_len {
            gather(&batch.chain(i), &mut self.0[FRAME_AT - header_len..FRAME_AT + head_len]);
            return;
        }
        // Two copies, so that the frame's first sixteen bytes are one store: `front` loads words of them at once, and a load that
        // spans two stores on their way to the cache waits for both. The length of the first is a constant on either side, so
        // that it is two moves and not a loop.
        if header_len == HEADER_LEN {
            first.copy_to(&mut self.0[FRAME_AT - HEADER_LEN..FRAME_AT]);
        } else {
            first.copy_to(&mut self.0[FRAME_AT - LEGACY_HEADER_LEN..FRAME_AT]);
        }
        first.sub(header_len, head_len).copy_to(&mut self.0[FRAME_AT..FRAME_AT + head_len]);
    }

    /// The same of a frame without a virtio-net header: as if it had one that asks for nothing.
    #[inline]
    pub(super) fn fill_bare(&mut self, batch: &Batch<'_>, i: usize, head_len: usize) {
        self.0[FRAME_AT - HEADER_LEN..FRAME_AT].fill(0);
        let (first, _) = batch.front(i);
        let to = &mut self.0[FRAME_AT..FRAME_AT + head_len];
        if first.len() < head_len {
            gather(&batch.chain(i), to);
        } else {
            first.sub(0, head_len).copy_to(to);
        }
    }

    /// What the short check of a frame needs, behind a virtio-net header of `header_len` bytes.
    #[inline(always)]
    pub(super) fn front(&self, header_len: usize) -> Front {
        // Overlapping words: destination and two bytes more, source after two bytes, type.
        let first = u64::from_be_bytes(self.word::<FRAME_AT, 8>());
        let second = u64::from_be_bytes(self.word::<{ FRAME_AT + 4 }, 8>());
        let at = FRAME_AT - header_len;
        Front {
            destination: first >> 16,
            source: second & MAC_MASK,
            kind: u16::from_be_bytes(self.word::<{ FRAME_AT + 12 }, 2>()),
            asks_nothing: self.0[at] | self.0[at + 1] == 0,
        }
    }

    /// The `N` bytes at `AT`, which lie inside: the compiler checks it.
    #[inline(always)]
    fn word<const AT: usize, const N: usize>(&self) -> [u8; N] {
        const { assert!(AT + N <= SNAP_LEN) };
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[AT..AT + N]);
        bytes
    }

    /// The virtio-net header; `num_buffers` is meaningless in this direction.
    pub(super) fn header(&self, header_len: usize) -> NetHeader {
        let mut bytes = [0; HEADER_LEN];
        bytes[..header_len].copy_from_slice(&self.0[FRAME_AT - header_len..FRAME_AT]);
        NetHeader::from_bytes(&bytes)
    }

    /// The frame's first bytes, from `start`.
    #[inline]
    pub(super) fn head(&self, start: usize, head_len: usize) -> &[u8] {
        &self.0[start..start + head_len]
    }

    /// All bytes, for moving tags.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Fills `to` from the pieces of a chain.
#[inline(never)]
fn gather(chain: &Chain<'_>, to: &mut [u8]) {
    let mut done = 0;
    for slice in chain.readable {
        done += slice.copy_to(&mut to[done..]);
        if done == to.len() {
            return;
        }
    }
}

/// The first things to know about a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Front {
    pub destination: MacNumber,
    pub source: MacNumber,
    /// Ethertype, tag type or length.
    pub kind: u16,
    /// The virtio-net header has no flag and no segmentation.
    pub asks_nothing: bool,
}

/// What is known about one frame of the batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    /// Length in bytes as it travels inside the switch: without tag.
    pub len: u32,
    /// Bytes of the chain in front of its tail: virtio-net header and snapshot.
    pub skip: u16,
    /// Bytes of it that are in the snapshot.
    pub head_len: u16,
    /// Where it starts in the snapshot.
    pub start: u8,
    /// Next frame of the same group.
    pub next: u8,
    /// Next of the frames whose payload follows that of this one: they were put together, and are in no group.
    pub joined: u8,
    /// Nothing is left to do for any receiver: `offloads` is not looked at.
    pub plain: bool,
    /// Broadcast or multicast.
    pub group_addressed: bool,
    pub domain: DomainIndex,
    /// Flow hash, where a port with several pairs needs one.
    pub hash: u32,
}

impl Default for Frame {
    fn default() -> Self {
        NO_FRAME
    }
}

const NO_FRAME: Frame = Frame {
    len: 0,
    skip: 0,
    head_len: 0,
    start: FRAME_AT as u8,
    next: NONE,
    joined: NONE,
    plain: true,
    group_addressed: false,
    domain: DomainIndex(0),
    hash: 0,
};

/// Where a group of frames goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Egress {
    /// One receive ring.
    Pair(PortIndex, u16),
    /// All members of the domain.
    Members(DomainIndex),
    /// Those members that want what nobody has.
    Flood(DomainIndex),
}

/// Frames with the same egress, as a list in the order in which they were taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub egress: Egress,
    pub first: u8,
    pub last: u8,
}

/// One delivery to be made: the frames of a list to one ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub port: PortIndex,
    pub pair: u16,
    pub first: u8,
    /// Only the frames whose flow belongs to the pair, because the port has several and the list is for all of them.
    pub by_flow: bool,
    pub wait: Wait,
}

/// Whether a job is still there because its ring was full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wait {
    /// It was not.
    #[default]
    No,
    /// It was, and still is.
    Stuck,
    /// It was, and has taken some frames since.
    Moving,
}

/// Everything of one batch.
pub(super) struct Scratch {
    pub snaps: Box<[Snap; BATCH_MAX]>,
    pub frames: [Frame; BATCH_MAX],
    pub offloads: [Validated; BATCH_MAX],
    /// Bucket of each frame, where an uplink with several lanes needs one.
    pub buckets: [u8; BATCH_MAX],
    /// Puts frames from the wire together.
    pub coalescer: Coalescer,
    groups: [Group; BATCH_MAX],
    groups_count: usize,
    /// Per receive ring: number of the batch in which it got a group (upper bits), and the group.
    marks: Vec<u64>,
    batch: u64,
    pub jobs: Vec<Job>,
    pub patience: Patience,
    /// Of an aggregate's lanes: not on the stack, where room for all that there might be would be written in each batch.
    pub together: Vec<(Job, Outcome)>,
    /// A head that differs from the snapshot: tagged, or with a completed checksum.
    pub edit: Box<[u8; HEAD_CAPACITY]>,
    /// Head of one segment.
    pub segment: Box<[u8; HEAD_CAPACITY]>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            snaps: Box::new([const { Snap([0; SNAP_LEN]) }; BATCH_MAX]),
            frames: [NO_FRAME; BATCH_MAX],
            offloads: [Validated::PLAIN; BATCH_MAX],
            buckets: [0; BATCH_MAX],
            coalescer: Coalescer::new(),
            groups: [Group { egress: Egress::Members(DomainIndex(0)), first: NONE, last: NONE }; BATCH_MAX],
            groups_count: 0,
            marks: Vec::new(),
            batch: 0,
            jobs: Vec::new(),
            patience: Patience::new(),
            together: Vec::with_capacity(TOGETHER_MAX),
            edit: Box::new([0; HEAD_CAPACITY]),
            segment: Box::new([0; HEAD_CAPACITY]),
        }
    }

    /// Makes room for a table with `rx_slots` receive rings, so that no batch allocates.
    pub(super) fn fit(&mut self, rx_slots: u32) {
        self.marks.clear();
        self.marks.resize(rx_slots as usize, 0);
        self.jobs.clear();
        self.jobs.reserve(BATCH_MAX.max(rx_slots as usize));
    }

    /// Forgets the former batch, also one that panicked.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.groups_count = 0;
        self.batch += 1;
        self.jobs.clear();
        // A batch that panicked took it along.
        self.together.reserve(TOGETHER_MAX);
        self.patience.begin();
    }

    #[inline]
    pub(super) fn groups(&self) -> &[Group] {
        &self.groups[..self.groups_count]
    }

    /// Takes frame `i`, which stands behind `before` (`None`: first) in a group, out of it and joins it to frame `behind`.
    pub(super) fn join(&mut self, group: usize, before: Option<u8>, i: u8, behind: u8) {
        let next = std::mem::replace(&mut self.frames[usize::from(i)].next, NONE);
        let group = &mut self.groups[group];
        match before {
            Some(before) => self.frames[usize::from(before)].next = next,
            None => group.first = next,
        }
        if group.last == i {
            group.last = before.unwrap_or(NONE);
        }
        self.frames[usize::from(behind)].joined = i;
    }

    /// The group of receive ring `slot`, made if there is none yet.
    #[inline]
    pub(super) fn group_of_ring(&mut self, slot: u32, port: PortIndex, pair: u16) -> u8 {
        let mark = &mut self.marks[slot as usize];
        if *mark >> 8 == self.batch {
            return *mark as u8;
        }
        *mark = self.batch << 8 | self.groups_count as u64;
        self.new_group(Egress::Pair(port, pair))
    }

    /// The group of a list of members; a batch has few of those.
    pub(super) fn group_of_members(&mut self, egress: Egress) -> u8 {
        match self.groups().iter().position(|group| group.egress == egress) {
            Some(at) => at as u8,
            None => self.new_group(egress),
        }
    }

    fn new_group(&mut self, egress: Egress) -> u8 {
        // Each group has a frame, so there are never more than frames.
        self.groups[self.groups_count] = Group { egress, first: NONE, last: NONE };
        self.groups_count += 1;
        (self.groups_count - 1) as u8
    }

    /// Appends frame `i` to a group.
    #[inline]
    pub(super) fn append(&mut self, group: u8, i: usize) {
        self.frames[i].next = NONE;
        let group = &mut self.groups[usize::from(group)];
        if group.first == NONE {
            group.first = i as u8;
        } else {
            self.frames[usize::from(group.last)].next = i as u8;
        }
        group.last = i as u8;
    }
}
