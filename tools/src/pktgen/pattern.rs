//! What is sent next: sizes, flows, addresses, broadcast.
//!
//! Owns the order of frames and the sequence number of each flow. The sender asks it per frame; it allocates at start
//! only. It builds templates but never touches a ring.

use super::frame::{FrameSpec, SEED_COUNT, Template, Transport};

/// The usual Internet mix: per twelve frames seven of 64 bytes, four of 594, one of 1,518 on the wire, spread evenly; here
/// without FCS, as everywhere in AVIO.
pub const IMIX: [usize; 12] = [60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 60, 590];
/// Most flows: their number travels in 16 bits, the last one is the broadcast flow.
pub const FLOWS_MAX: u16 = 65_534;

/// What a transmitter sends.
#[derive(Clone, Debug)]
pub struct PatternSpec {
    /// Frame lengths in bytes without FCS, taken in turn; 1..=[`IMIX`]'s length.
    pub lens: Vec<usize>,
    /// Transport and offload.
    pub transport: Transport,
    /// Flows, 1..=[`FLOWS_MAX`].
    pub flow_count: u16,
    /// Source addresses, counted up from `from`; more than one needs a trusted port.
    pub source_mac_count: u32,
    /// Destination addresses, counted up from `to`.
    pub peer_mac_count: u32,
    /// Broadcast frames among 1,000.
    pub broadcast_permille: u32,
    /// First destination.
    pub to: [u8; 6],
    /// First source.
    pub from: [u8; 6],
    /// Number of the sending port.
    pub source: u8,
}

/// The next frame.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    /// Index into [`Pattern::template`] without the seed.
    pub size: u16,
    /// Flow number.
    pub flow: u16,
    /// First sequence number.
    pub seq: u32,
    /// Sequence numbers taken.
    pub seq_count: u32,
    /// Destination, if it differs from frame to frame.
    pub to: Option<[u8; 6]>,
    /// Source, if it differs from frame to frame.
    pub from: Option<[u8; 6]>,
}

/// An endless sequence of frames of one transmit queue. Flows are dealt out to queues, so that each flow has one order.
#[derive(Debug)]
pub struct Pattern {
    spec: PatternSpec,
    templates: Vec<Template>,
    seqs: Vec<u32>,
    broadcast_seq: u32,
    flow: u32,
    flow_first: u32,
    flow_step: u32,
    size: usize,
    mac: u32,
    permille: u32,
    fixed: bool,
}

impl Pattern {
    /// The share of `spec` that belongs to transmit queue `queue` of `queue_count`.
    #[must_use]
    pub fn new(spec: PatternSpec, queue: u16, queue_count: u16) -> Self {
        let mut templates = Vec::new();
        for &len in &spec.lens {
            for seed in 0..SEED_COUNT {
                templates.push(Template::new(&FrameSpec {
                    to: spec.to,
                    from: spec.from,
                    len,
                    transport: spec.transport,
                    source: spec.source,
                    seed,
                }));
            }
        }
        let flow_count = u32::from(spec.flow_count.max(1));
        // With fewer flows than queues, the queues beyond send nothing of their own but share the last flow's number space
        // apart: each queue then has one flow, so that order inside a flow is never split over two queues.
        let (flow_first, flow_step) = (u32::from(queue), u32::from(queue_count.max(1)));
        let fixed = spec.lens.len() == 1
            && spec.source_mac_count <= 1
            && spec.peer_mac_count <= 1
            && spec.broadcast_permille == 0
            && flow_count <= flow_step;
        Self {
            seqs: vec![0; flow_count.max(flow_step) as usize],
            broadcast_seq: 0,
            flow: flow_first,
            flow_first,
            flow_step,
            size: 0,
            mac: 0,
            permille: 0,
            templates,
            fixed,
            spec,
        }
    }

    /// The template of a size and a seed.
    #[inline]
    #[must_use]
    pub fn template(&self, size: u16, seed: u8) -> &Template {
        &self.templates[usize::from(size) * usize::from(SEED_COUNT) + usize::from(seed % SEED_COUNT)]
    }

    /// Longest frame in bytes.
    #[must_use]
    pub fn len_max(&self) -> usize {
        self.spec.lens.iter().copied().max().unwrap_or(0)
    }

    /// Mean sequence numbers per frame: segments of TSO frames, else 1.
    #[must_use]
    pub fn seqs_per_frame(&self) -> f64 {
        let sum: u32 =
            self.spec.lens.iter().enumerate().map(|(i, _)| self.template(i as u16, 0).chunk_count).sum();
        f64::from(sum) / self.spec.lens.len() as f64
    }

    /// Decides the next frame and takes its sequence numbers.
    #[inline]
    #[expect(
        clippy::should_implement_trait,
        reason = "an endless sequence needs no Option around each frame"
    )]
    pub fn next(&mut self) -> Next {
        if self.fixed {
            let seq_count = self.templates[0].chunk_count;
            let seq = &mut self.seqs[self.flow as usize];
            let first = *seq;
            *seq = seq.wrapping_add(seq_count);
            return Next { size: 0, flow: self.flow as u16, seq: first, seq_count, to: None, from: None };
        }
        self.next_varied()
    }

    fn next_varied(&mut self) -> Next {
        let size = self.size as u16;
        self.size = (self.size + 1) % self.spec.lens.len();
        let seq_count = self.template(size, 0).chunk_count;
        let flow = self.flow;
        self.mac = self.mac.wrapping_add(1);
        let from = (self.spec.source_mac_count > 1)
            .then(|| mac_plus(self.spec.from, self.mac % self.spec.source_mac_count));
        // 1,000 and 997 have no common factor: broadcasts are spread over the frames, not sent in one run.
        self.permille = (self.permille + 997) % 1000;
        if self.permille < self.spec.broadcast_permille {
            let seq = self.broadcast_seq;
            self.broadcast_seq = seq.wrapping_add(seq_count);
            let flow = u16::MAX - self.flow_first as u16;
            return Next { size, flow, seq, seq_count, to: Some([0xff; 6]), from };
        }
        let to = (self.spec.peer_mac_count > 1 || self.spec.broadcast_permille > 0)
            .then(|| mac_plus(self.spec.to, flow % self.spec.peer_mac_count.max(1)));
        let seq = &mut self.seqs[flow as usize];
        let first = *seq;
        *seq = seq.wrapping_add(seq_count);
        self.flow += self.flow_step;
        if self.flow >= u32::from(self.spec.flow_count) {
            self.flow = self.flow_first;
        }
        Next { size, flow: flow as u16, seq: first, seq_count, to, from }
    }

    /// Sequence numbers spent on broadcasts so far (they start at 0, and wrap long after any test ends).
    #[must_use]
    pub fn broadcast_seqs(&self) -> u64 {
        u64::from(self.broadcast_seq)
    }

    /// Whether frames of this pattern differ in their source port.
    #[must_use]
    pub fn varies_flow(&self) -> bool {
        self.seqs.len() > 1
    }
}

/// `mac` counted up by `n` in its last four bytes.
#[inline]
#[must_use]
pub fn mac_plus(mac: [u8; 6], n: u32) -> [u8; 6] {
    let low = u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]).wrapping_add(n).to_be_bytes();
    [mac[0], mac[1], low[0], low[1], low[2], low[3]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn spec() -> PatternSpec {
        PatternSpec {
            lens: vec![64],
            transport: Transport::Udp,
            flow_count: 1,
            source_mac_count: 1,
            peer_mac_count: 1,
            broadcast_permille: 0,
            to: [2, 0, 0, 0, 0, 2],
            from: [2, 0, 0, 0, 0, 1],
            source: 0,
        }
    }

    #[test]
    fn imix_is_seven_four_one() {
        let mut p = Pattern::new(PatternSpec { lens: IMIX.to_vec(), ..spec() }, 0, 1);
        let mut sizes: HashMap<usize, u32> = HashMap::new();
        for _ in 0..120 {
            let n = p.next();
            *sizes.entry(p.template(n.size, 0).bytes.len()).or_default() += 1;
        }
        assert_eq!(sizes, HashMap::from([(60, 70), (590, 40), (1514, 10)]));
    }

    #[test]
    fn each_flow_counts_for_itself_and_belongs_to_one_queue() {
        let spec = PatternSpec { flow_count: 10, ..spec() };
        let mut seen = [false; 10];
        for queue in 0..4 {
            let mut p = Pattern::new(spec.clone(), queue, 4);
            let mut next_seq: HashMap<u16, u32> = HashMap::new();
            for _ in 0..100 {
                let n = p.next();
                let want = next_seq.entry(n.flow).or_default();
                assert_eq!(n.seq, *want);
                *want += 1;
            }
            for flow in next_seq.keys() {
                assert!(
                    !std::mem::replace(&mut seen[usize::from(*flow)], true),
                    "flow {flow} has two queues"
                );
            }
        }
        assert_eq!(seen, [true; 10]);
    }

    #[test]
    fn broadcast_share_is_what_was_asked() {
        let mut p = Pattern::new(PatternSpec { broadcast_permille: 20, ..spec() }, 0, 1);
        let count = (0..10_000).filter(|_| p.next().to == Some([0xff; 6])).count();
        assert_eq!(count, 200);
    }

    #[test]
    fn macs_count_up() {
        assert_eq!(mac_plus([2, 0, 0, 0, 0, 0xff], 1), [2, 0, 0, 0, 1, 0]);
        let mut p = Pattern::new(PatternSpec { source_mac_count: 3, ..spec() }, 0, 1);
        let mut seen: Vec<_> = (0..6).map(|_| p.next().from.unwrap()[5]).collect();
        seen.sort_unstable();
        assert_eq!(seen, [1, 1, 2, 2, 3, 3]);
    }
}
