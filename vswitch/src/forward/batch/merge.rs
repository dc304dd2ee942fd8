//! Frames of one TCP flow from the wire that go to one guest become one frame, where that guest takes such.
//!
//! Called once a batch from an uplink, after all frames have their groups and before any is delivered, so no merged frame waits for another
//! batch. A merged frame is from then on a segmentation frame as any guest sends one, but for its tail, which is in several chains
//! ([`Frame::joined`]). Judgement and headers are `offload::Coalescer`'s.

use avio_proto::mem::{Tail, TailSum};
use avio_proto::ring::Batch;

use super::Run;
use crate::forward::scratch::{BATCH_MAX, Egress, Frame, NONE, Snap};
use crate::offload::{Candidate, Coalescer, Frames, takes_merged};
use crate::port::PortKind;
use crate::table::{PortIndex, Table};

/// The batch as the coalescer sees it.
struct Sorted<'a> {
    batch: &'a Batch<'a>,
    frames: &'a [Frame; BATCH_MAX],
    snaps: &'a [Snap; BATCH_MAX],
}

impl Frames for Sorted<'_> {
    #[inline]
    fn candidate(&self, i: u8) -> Candidate<'_> {
        let i = usize::from(i);
        let frame = &self.frames[i];
        Candidate {
            head: self.snaps[i].head(usize::from(frame.start), usize::from(frame.head_len)),
            len: frame.len as usize,
            domain: frame.domain.0,
            pieces: self.batch.chain(i).readable.len(),
            plain: frame.plain,
        }
    }

    fn tail_sum(&self, i: u8) -> TailSum {
        let i = usize::from(i);
        let frame = &self.frames[i];
        let len = frame.len as usize - usize::from(frame.head_len);
        Tail { slices: self.batch.chain(i).readable, skip: usize::from(frame.skip), len }.sum()
    }
}

impl Run<'_> {
    /// Puts together what can be, in the groups of all receivers that take it.
    pub(super) fn merge(&mut self, batch: &Batch<'_>) {
        let PortKind::Uplink(uplink) = &self.source.port.kind else { return };
        if !uplink.gro {
            return;
        }
        for at in 0..self.scratch.groups().len() {
            let group = self.scratch.groups()[at];
            let Egress::Pair(port, pair) = group.egress else { continue };
            if group.first == group.last {
                continue;
            }
            if let Some(features) = features_of(self.table, port, pair).filter(|&acked| takes_merged(acked)) {
                self.merge_group(batch, at, features);
            }
        }
    }

    fn merge_group(&mut self, batch: &Batch<'_>, group: usize, features: u64) {
        let mut coalescer = std::mem::take(&mut self.scratch.coalescer);
        coalescer.begin(features);
        let mut before = None;
        let mut i = self.scratch.groups()[group].first;
        while i != NONE {
            let next = self.scratch.frames[usize::from(i)].next;
            let sorted = Sorted { batch, frames: &self.scratch.frames, snaps: &self.scratch.snaps };
            match coalescer.offer(i, &sorted) {
                Some(behind) => self.scratch.join(group, before, i, behind),
                None => before = Some(i),
            }
            i = next;
        }
        self.take_merged(&coalescer);
        self.scratch.coalescer = coalescer;
    }

    /// The first frame of each train becomes the whole.
    fn take_merged(&mut self, coalescer: &Coalescer) {
        for merged in coalescer.merged() {
            let i = usize::from(merged.first);
            let frame = &mut self.scratch.frames[i];
            frame.len = merged.len as u32;
            frame.plain = false;
            self.scratch.offloads[i] = merged.offload;
            let (start, head_len) = (usize::from(frame.start), usize::from(frame.head_len));
            merged.patch(&mut self.scratch.snaps[i].bytes_mut()[start..start + head_len]);
        }
    }
}

/// What the guest behind a pair has acked; `None`: no guest's pair.
fn features_of(table: &Table, port: PortIndex, pair: u16) -> Option<u64> {
    let PortKind::Guest(guest) = &table.port(port)?.kind else { return None };
    Some(guest.rx.get(usize::from(pair))?.as_ref()?.features)
}
