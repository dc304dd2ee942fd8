//! One batch of one transmit ring, from taking its chains to giving them back.
//!
//! Called by the engine; the order of steps is that of DESIGN section 3. Nothing here outlives the batch but what the queue
//! remembers. The numbers of the sending port are added once at the end, so a batch that panics counts for nothing there.

mod announce;
mod merge;
mod wire;

use std::sync::Arc;
use std::time::Instant;

use avio_host::inject;
use avio_host::stats::WorkerStats;
use avio_proto::config::{Balance, MacAddr, VlanId};
use avio_proto::control::DiscardReason;
use avio_proto::ring::{Batch, ChainArena, RingError};

use super::deliver::Courier;
use super::guard::{GROUP_BIT, Passed, inspect, is_common, is_link_local};
use super::release::release;
use super::scratch::{
    BATCH_MAX, Egress, FRAME_AT, Frame, Front, Job, NONE, SNAPSHOT_LEN, SNAPSHOT_LEN_IPS, Scratch, Wait,
};
use super::{Event, Events, Refusal};
use crate::packet::{ETHERNET_LEN, Ethernet, TAG_LEN, flow_hash, vlan};
use crate::port::PortKind;
use crate::port::guest::{LastDestination, PortCell, Reports, TxQueue};
use crate::port::uplink::bucket_of;
use crate::table::{DomainIndex, MacNumber, Port, PortIndex, Table, key};

/// Octets that a batch may write (300 us at 1 GB/s, the worst that was seen between cores; 20 us near): the cap in time. Time
/// itself would have to be read per frame, which costs as much as a frame.
const BATCH_COST_MAX: u64 = 256 * 1024;
/// Octets that one delivered frame costs beside its bytes: 50 ns of ring work at 4 GB/s.
const FRAME_COST: u64 = 200;
/// Depth of the `rate_mbps` bucket.
const RATE_BURST_NS: u64 = 10_000_000;
/// Depth of the `storm_pps` bucket: bursts of ARP after a link flap are short.
const STORM_BURST_NS: u64 = 100_000_000;
/// Learning reports per ring and second; more stay unlearned until the next second.
const LEARNED_PER_S: u32 = 256;

/// The data path of one worker, without its rings: give it a transmit ring and it forwards a batch. The engine of a worker is
/// made of one; benchmarks and tests drive it directly.
pub struct Forwarder {
    worker: usize,
    events: Events,
    table: Arc<Table>,
    arena: ChainArena,
    scratch: Scratch,
    stats: Arc<WorkerStats>,
}

/// The sender's side of the batch, counted locally and added up once.
struct Tally {
    octets: u64,
    /// Of all frames that came from the wire, whatever became of them.
    octets_in: u64,
    unicast: u64,
    /// Those of them that went to the uplink.
    unicast_wire: u64,
    group_addressed: u64,
    discards: [u8; DiscardReason::COUNT],
    any_discard: bool,
    /// The clock, read once and only if something needs it.
    now: Option<Instant>,
}

impl Tally {
    #[inline]
    fn new() -> Self {
        Self {
            octets: 0,
            octets_in: 0,
            unicast: 0,
            unicast_wire: 0,
            group_addressed: 0,
            discards: [0; DiscardReason::COUNT],
            any_discard: false,
            now: None,
        }
    }

    /// Adds it to the sender's numbers.
    #[inline]
    fn add_to(&self, cell: &PortCell) {
        cell.outbound_octets.add(self.octets);
        cell.outbound_unicast_local.add(self.unicast - self.unicast_wire);
        if self.unicast_wire > 0 {
            cell.outbound_unicast_wire.add(self.unicast_wire);
        }
        if self.group_addressed > 0 {
            cell.outbound_nonunicast.add(self.group_addressed);
        }
        if self.any_discard {
            for reason in DiscardReason::ALL {
                cell.discard(reason, u64::from(self.discards[reason.index()]));
            }
        }
    }

    #[cold]
    fn discard(&mut self, reason: DiscardReason) {
        self.discards[reason.index()] += 1;
        self.any_discard = true;
    }

    fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }
}

/// What a frame's sender is, as the steps below pass it on.
struct Source<'a> {
    index: PortIndex,
    pair: u16,
    port: &'a Port,
    features: u64,
    header_len: usize,
    /// The wire sent it.
    from_wire: bool,
}

impl Forwarder {
    /// For worker number `worker` (its cell in every port's numbers), with an empty table.
    #[must_use]
    pub fn new(worker: usize, events: Events) -> Self {
        Self {
            worker,
            events,
            table: Arc::new(Table::empty()),
            arena: ChainArena::new(),
            scratch: Scratch::new(),
            stats: Arc::default(),
        }
    }

    /// Counts lock waits in `stats` from now on.
    pub fn set_stats(&mut self, stats: Arc<WorkerStats>) {
        self.stats = stats;
    }

    /// Uses `table` from now on. Allocates for it, so that no batch has to. What had to wait until then goes out first.
    pub fn publish(&mut self, table: Arc<Table>) {
        self.scratch.fit(table.rx_slots);
        self.table = table;
        release(&self.table, self.worker, &self.events);
    }

    /// Where events go.
    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    /// Forwards up to `budget` frames of `queue`. Returns how many were taken and whether there may be more at once.
    ///
    /// # Errors
    /// The ring is broken and must not be polled again.
    pub fn forward(&mut self, queue: &mut TxQueue, budget: usize) -> Result<(usize, bool), RingError> {
        let table = &*self.table;
        let Some(port) = table.port(queue.port) else { return Ok((0, false)) };
        let cell = port.state.stats.cell(self.worker);
        let worth = BATCH_COST_MAX / queue.cost_len.max(1);
        let max = BATCH_MAX.min(budget).min(worth as usize).max(1);
        inject::point("forward::take");
        let batch = match queue.ring.take(&mut self.arena, max) {
            Ok(batch) => batch,
            Err(error) => {
                cell.taken.add(1);
                cell.discard(DiscardReason::MalformedChain, 1);
                return Err(error);
            }
        };
        let count = batch.len();
        if count == 0 {
            return Ok((0, false));
        }
        let source = Source {
            index: queue.port,
            pair: queue.pair,
            port,
            features: queue.features,
            header_len: queue.header_len,
            from_wire: false,
        };
        let mut run = Run {
            table,
            worker: self.worker,
            events: &self.events,
            scratch: &mut self.scratch,
            source,
            // What was found in another table may have moved.
            last: if queue.last.table == table.id { queue.last } else { LastDestination::NOTHING },
            reports: queue.reports,
            tally: Tally::new(),
        };
        run.scratch.begin();
        run.sort(&batch);
        let copied_len = run.deliver(&batch, &self.stats);
        let Run { last, reports, tally, .. } = run;
        queue.last = last;
        queue.reports = reports;
        let cost_len = (copied_len + count as u64 * FRAME_COST) / count as u64;
        queue.cost_len = (queue.cost_len * 3 + cost_len) / 4;

        inject::point("forward::complete");
        queue.ring.complete_taken();
        let notify = queue.ring.publish();
        cell.taken.add(count as u64);
        tally.add_to(cell);
        if notify {
            self.events.notify(&queue.notifier, cell, queue.port);
        }
        Ok((count, count == max))
    }
}

/// One batch under way.
struct Run<'a> {
    table: &'a Table,
    worker: usize,
    events: &'a Events,
    scratch: &'a mut Scratch,
    source: Source<'a>,
    last: LastDestination,
    reports: Reports,
    tally: Tally,
}

/// Where frames to one address go, for as long as a batch lasts.
#[derive(Clone, Copy)]
enum Towards<'a> {
    /// To this group.
    Group(u8),
    /// To a lane each, by its flow.
    Lanes(Lanes<'a>),
}

/// An uplink that spreads its frames.
#[derive(Clone, Copy)]
struct Lanes<'a> {
    port: &'a Port,
    index: PortIndex,
    balance: Balance,
}

impl<'a> Run<'a> {
    /// Snapshot, guard and look-up: every frame ends up in a group or in the tally of discards.
    #[inline(always)]
    fn sort(&mut self, batch: &Batch<'_>) {
        // Never more, but the compiler need not look each time.
        let count = batch.len().min(BATCH_MAX);
        let Source { port, header_len, .. } = self.source;
        let limit = if port.spec.ips.is_empty() { SNAPSHOT_LEN } else { SNAPSHOT_LEN_IPS };
        let records_flows = port.enabled.len() > 1;
        // Where the last frame's destination is.
        let mut group_of: Option<(u64, Towards<'_>)> = None;
        for i in 0..count {
            inject::point("forward::frame");
            let (_, chain_len) = batch.front(i);
            if chain_len < header_len + ETHERNET_LEN {
                self.tally.discard(DiscardReason::TooShort);
                continue;
            }
            let len = chain_len - header_len;
            let head_len = len.min(limit);
            let snap = &mut self.scratch.snaps[i];
            snap.fill(batch, i, header_len, head_len);
            #[cfg(test)]
            super::tests::rewriting::after_snapshot();
            let Front { destination, source, kind, asks_nothing } = snap.front(header_len);
            let is_plain = port.plain
                && source == port.mac
                && asks_nothing
                && is_common(kind)
                && len <= port.frame_len_max;
            if is_plain {
                self.scratch.frames[i] = Frame {
                    len: len as u32,
                    skip: (header_len + head_len) as u16,
                    head_len: head_len as u16,
                    start: FRAME_AT as u8,
                    next: NONE,
                    joined: NONE,
                    plain: true,
                    group_addressed: false,
                    domain: port.domain,
                    hash: 0,
                };
            } else if let Err(reason) = self.inspect(i, len, head_len) {
                self.refuse(reason, source, kind);
                continue;
            }
            let domain = self.scratch.frames[i].domain;
            if destination & GROUP_BIT != 0 {
                self.send_to_group(i, destination, domain, len);
                continue;
            }
            if records_flows {
                let hash = self.hash(i);
                port.state.saw_flow(hash, self.source.pair);
            }
            let key = key(domain, destination);
            let group = match group_of {
                Some((of, Towards::Group(group))) if of == key => Some(group),
                Some((of, Towards::Lanes(lanes))) if of == key => self.lane(i, lanes),
                _ => self.resolve(i, key, &mut group_of),
            };
            let Some(group) = group else { continue };
            self.tally.unicast += 1;
            self.tally.octets += len as u64;
            self.scratch.append(group, i);
        }
    }

    /// A frame that is not settled by the short check. On success everything but its destination is known.
    #[inline(never)]
    fn inspect(&mut self, i: usize, len: usize, head_len: usize) -> Result<(), DiscardReason> {
        let Source { port, header_len, features, .. } = self.source;
        let snap = &mut self.scratch.snaps[i];
        let header = snap.header(header_len);
        let passed = inspect(self.table, port, features, &header, snap.head(FRAME_AT, head_len), len)?;
        let mut frame = Frame {
            len: len as u32,
            skip: (header_len + head_len) as u16,
            head_len: head_len as u16,
            start: FRAME_AT as u8,
            next: NONE,
            joined: NONE,
            plain: passed.offload.is_plain(),
            group_addressed: false,
            domain: passed.domain,
            hash: 0,
        };
        let mut offload = passed.offload;
        if passed.vid.is_some()
            && let Some(start) = vlan::strip_tag(snap.bytes_mut(), FRAME_AT)
        {
            frame.start = start as u8;
            frame.head_len -= TAG_LEN as u16;
            frame.len -= TAG_LEN as u32;
            offload = offload.tag_stripped();
        }
        self.scratch.offloads[i] = offload;
        self.scratch.frames[i] = frame;
        if port.spec.trusted {
            self.learn(&passed)?;
        }
        if port.ns_per_kib > 0 {
            let now = self.table.ns(self.tally.now());
            let cost_ns = len as u64 * port.ns_per_kib / 1024;
            if !port.state.rate.take(now, cost_ns, RATE_BURST_NS) {
                return Err(DiscardReason::RateLimited);
            }
        }
        Ok(())
    }

    /// The source of a frame on a trusted port: known here, to be learned, or refused because the port has enough.
    fn learn(&mut self, passed: &Passed) -> Result<(), DiscardReason> {
        let source = super::guard::mac(passed.l2.source);
        let Source { port, index, .. } = self.source;
        if source == port.mac {
            return Ok(());
        }
        let key = key(passed.domain, source);
        let now = self.tally.now();
        if let Some(found) = self.table.macs.find(key)
            && found.port() == index
        {
            found.touch(self.table.coarse_s(now));
            return Ok(());
        }
        if port.is_full {
            return Err(DiscardReason::MacLimit);
        }
        self.new_window(now);
        if self.reports.learned_key != key && self.reports.learned_count < LEARNED_PER_S {
            self.reports.learned_key = key;
            self.reports.learned_count += 1;
            let vlan = passed.vid.and_then(VlanId::new);
            self.events.send(Event::Learn { port: index, vlan, mac: MacAddr(passed.l2.source) });
        }
        Ok(())
    }

    /// Counts a refused frame, and tells control about one a second.
    #[cold]
    fn refuse(&mut self, reason: DiscardReason, source: MacNumber, ethertype: u16) {
        self.tally.discard(reason);
        if matches!(reason, DiscardReason::RateLimited | DiscardReason::MacLimit) {
            return;
        }
        let now = self.tally.now();
        self.new_window(now);
        if self.reports.refused_count == 0 {
            let [_, _, a, b, c, d, e, f] = source.to_be_bytes();
            let spec = Arc::clone(&self.source.port.spec);
            let source = MacAddr([a, b, c, d, e, f]);
            self.events.send(Event::Refused(Refusal { spec, reason, source, ethertype }));
        }
        self.reports.refused_count = self.reports.refused_count.saturating_add(1);
    }

    /// Starts the next second of reports.
    fn new_window(&mut self, now: Instant) {
        let over =
            self.reports.window.is_none_or(|start| now.saturating_duration_since(start).as_secs() >= 1);
        if over {
            self.reports = Reports { window: Some(now), ..Reports::default() };
        }
    }

    /// A broadcast or multicast frame.
    #[inline(never)]
    fn send_to_group(&mut self, i: usize, destination: MacNumber, domain: DomainIndex, len: usize) {
        if is_link_local(destination) {
            let Front { source, kind, .. } = self.scratch.snaps[i].front(self.source.header_len);
            self.refuse(DiscardReason::LinkLocalDestination, source, kind);
            return;
        }
        if self.is_storm() {
            self.tally.discard(DiscardReason::Storm);
            return;
        }
        self.spread(i, domain);
        self.scratch.frames[i].group_addressed = true;
        let group = self.scratch.group_of_members(Egress::Members(domain));
        self.tally.group_addressed += 1;
        self.tally.octets += len as u64;
        self.scratch.append(group, i);
    }

    /// Whether a frame for many exceeds `storm_pps`.
    fn is_storm(&mut self) -> bool {
        let port = self.source.port;
        port.ns_per_storm_frame > 0 && {
            let now = self.table.ns(self.tally.now());
            !port.state.storm.take(now, port.ns_per_storm_frame, STORM_BURST_NS)
        }
    }

    /// The group of a unicast destination. `None`: the frame has been dealt with.
    #[inline(never)]
    fn resolve(&mut self, i: usize, key: u64, group_of: &mut Option<(u64, Towards<'a>)>) -> Option<u8> {
        let index = if self.last.key == key {
            self.last.port
        } else {
            let port = match self.table.macs.find(key) {
                Some(found) => found.port(),
                None => {
                    let domain = self.scratch.frames[i].domain;
                    let beyond = self.table.domains[usize::from(domain.0)].beyond();
                    match beyond.filter(|&uplink| uplink != self.source.index) {
                        Some(uplink) => uplink,
                        None => return self.unknown(i),
                    }
                }
            };
            self.last = LastDestination { table: self.table.id, key, port };
            port
        };
        let table = self.table;
        let Some(port) = table.port(index).filter(|_| index != self.source.index) else {
            // Its own address: a switch does not send a frame back to where it came from (IEEE 802.1Q clause 8.6.1).
            self.tally.discard(DiscardReason::NoDestination);
            return None;
        };
        if port.spec.isolated && self.source.port.spec.isolated {
            self.tally.discard(DiscardReason::Isolated);
            return None;
        }
        match (&*port.enabled, &port.kind) {
            ([], _) => self.down(i, port),
            ([only], _) if port.buckets.is_none() => {
                let group = self.scratch.group_of_ring(only.slot, index, only.pair);
                *group_of = Some((key, Towards::Group(group)));
                Some(group)
            }
            (_, PortKind::Uplink(uplink)) => {
                let lanes = Lanes { port, index, balance: uplink.balance };
                *group_of = Some((key, Towards::Lanes(lanes)));
                self.lane(i, lanes)
            }
            _ => {
                let hash = self.hash(i);
                match port.pair_for(hash) {
                    Some(to) => Some(self.scratch.group_of_ring(to.slot, index, to.pair)),
                    None => self.down(i, port),
                }
            }
        }
    }

    /// The group of a unicast frame to an uplink that spreads its frames. `None`: nobody can carry it.
    #[inline(always)]
    fn lane(&mut self, i: usize, lanes: Lanes<'_>) -> Option<u8> {
        let Lanes { port, index, balance } = lanes;
        let frame = &self.scratch.frames[i];
        let head = self.scratch.snaps[i].head(usize::from(frame.start), usize::from(frame.head_len));
        match port.lane_for(bucket_of(balance, head, frame.len as usize)) {
            Some(to) => Some(self.scratch.group_of_ring(to.slot, index, to.pair)),
            None => self.down(i, port),
        }
    }

    /// A frame whose receiver takes nothing now.
    #[cold]
    fn down(&mut self, i: usize, port: &Port) -> Option<u8> {
        let cell = port.state.stats.cell(self.worker);
        cell.offered.add(1);
        cell.discard(DiscardReason::ReceiverDown, 1);
        self.tally.unicast += 1;
        self.tally.unicast_wire += u64::from(port.is_uplink());
        self.tally.octets += u64::from(self.scratch.frames[i].len);
        None
    }

    /// A unicast frame that nobody has: to the ports that asked for such frames, if there are any.
    #[cold]
    fn unknown(&mut self, i: usize) -> Option<u8> {
        let domain = self.scratch.frames[i].domain;
        let wanted = self.table.domains[usize::from(domain.0)].flood.iter().any(|&to| self.may_flood(to));
        if !wanted {
            self.tally.discard(DiscardReason::NoDestination);
            return None;
        }
        if self.is_storm() {
            self.tally.discard(DiscardReason::Storm);
            return None;
        }
        self.spread(i, domain);
        Some(self.scratch.group_of_members(Egress::Flood(domain)))
    }

    /// What members of the domain with several pairs or lanes need to know of a frame that goes to all of them.
    fn spread(&mut self, i: usize, domain: DomainIndex) {
        if self.table.has_pairs {
            self.hash(i);
        }
        let uplink = self.table.domains[usize::from(domain.0)].uplink;
        if let Some(port) = uplink.and_then(|uplink| self.table.port(uplink))
            && port.buckets.is_some()
        {
            self.bucket(i, port);
        }
    }

    /// Whether a frame of this batch for a whole domain goes to the member `to`.
    fn may_flood(&self, to: PortIndex) -> bool {
        to != self.source.index
            && self.table.port(to).is_some_and(|port| !(port.spec.isolated && self.source.port.spec.isolated))
    }

    /// The flow hash of frame `i`, which is remembered.
    #[inline(never)]
    fn hash(&mut self, i: usize) -> u32 {
        let frame = &mut self.scratch.frames[i];
        let head = self.scratch.snaps[i].head(usize::from(frame.start), usize::from(frame.head_len));
        if let Some(l2) = Ethernet::parse(head) {
            frame.hash = flow_hash(head, frame.len as usize, &l2);
        }
        frame.hash
    }

    /// The bucket of frame `i` at the uplink `port`, which is remembered.
    fn bucket(&mut self, i: usize, port: &Port) -> u8 {
        let PortKind::Uplink(uplink) = &port.kind else { return 0 };
        let frame = &self.scratch.frames[i];
        let head = self.scratch.snaps[i].head(usize::from(frame.start), usize::from(frame.head_len));
        let bucket = bucket_of(uplink.balance, head, frame.len as usize);
        self.scratch.buckets[i] = bucket;
        bucket
    }

    /// Counts which unicast frames went to an uplink.
    fn count_wire(&mut self) {
        let mut count = 0;
        for group in self.scratch.groups() {
            let to_wire = match group.egress {
                Egress::Pair(port, _) => self.table.port(port).is_some_and(Port::is_uplink),
                Egress::Members(_) => false,
                Egress::Flood(domain) => self.table.domains[usize::from(domain.0)]
                    .uplink
                    .is_some_and(|uplink| uplink != self.source.index),
            };
            let mut at = group.first;
            while to_wire && at != NONE {
                count += 1;
                at = self.scratch.frames[usize::from(at)].next;
            }
        }
        self.tally.unicast_wire += count;
    }

    /// Delivers all groups; returns how many octets were written.
    #[inline]
    fn deliver(&mut self, batch: &Batch<'_>, stats: &WorkerStats) -> u64 {
        if self.table.has_uplinks {
            self.count_wire();
        }
        // The list is taken out while it is worked on and put back, with its memory, at the end.
        let mut jobs = std::mem::take(&mut self.scratch.jobs);
        for group in self.scratch.groups() {
            if let Egress::Pair(port, pair) = group.egress {
                jobs.push(Job { port, pair, first: group.first, by_flow: false, wait: Wait::No });
            }
        }
        let mut copied_len = self.run_jobs(batch, stats, &mut jobs);
        for at in 0..self.scratch.groups().len() {
            let group = self.scratch.groups()[at];
            let domains = &self.table.domains;
            let members = match group.egress {
                Egress::Pair(..) => continue,
                Egress::Members(domain) => &domains[usize::from(domain.0)].members,
                Egress::Flood(domain) => &domains[usize::from(domain.0)].flood,
            };
            for &to in members {
                let Some(port) = self.table.port(to).filter(|_| self.may_flood(to)) else { continue };
                let by_flow = port.enabled.len() > 1 || port.buckets.is_some();
                jobs.extend(port.enabled.iter().map(|enabled| Job {
                    port: to,
                    pair: enabled.pair,
                    first: group.first,
                    by_flow,
                    wait: Wait::No,
                }));
            }
            copied_len += self.run_jobs(batch, stats, &mut jobs);
        }
        self.scratch.jobs = jobs;
        copied_len
    }

    fn run_jobs(&mut self, batch: &Batch<'_>, stats: &WorkerStats, jobs: &mut Vec<Job>) -> u64 {
        if jobs.is_empty() {
            return 0;
        }
        let scratch = &mut *self.scratch;
        let mut courier = Courier {
            table: self.table,
            worker: self.worker,
            batch,
            snaps: &scratch.snaps[..],
            frames: &scratch.frames,
            offloads: &scratch.offloads,
            buckets: &scratch.buckets,
            edit: &mut scratch.edit,
            segment: &mut scratch.segment,
            events: self.events,
            stats,
            from_wire: self.source.from_wire,
            patience: &mut scratch.patience,
            together: &mut scratch.together,
            waits: self.source.from_wire,
            copied_len: 0,
            spins_max: 0,
            waited: false,
        };
        courier.run(jobs);
        courier.copied_len
    }
}

const _: () = assert!(BATCH_MAX <= u8::MAX as usize, "the tally counts a batch in bytes");
