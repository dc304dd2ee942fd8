//! Delivery: one list of frames into one receive ring, under that ring's lock and with one publication.
//!
//! The engine calls [`Courier::run`] with the jobs of a batch. A ring that another worker holds is left for later, the other
//! jobs go first, and only then is it waited for; no two locks are ever held together. What cannot be delivered is counted at the
//! receiver, and one frame that does not fit never blocks another.

use std::sync::{Mutex, MutexGuard, TryLockError};

use avio_host::inject;
use avio_host::stats::WorkerStats;
use avio_proto::control::DiscardReason;
use avio_proto::mem::Tail;
use avio_proto::ring::{Batch, RingError, Undelivered};
use avio_proto::virtio::net::HEADER_LEN;

use super::patience::Patience;
use super::put::{LanePut, Put};
use super::scratch::{Frame, Job, NONE, Snap, Wait};
use super::{Event, Events};
use crate::offload::{HEAD_CAPACITY, Mode, PIECES_MAX, Segmenter, Validated};
use crate::packet::{TAG_LEN, vlan};
use crate::port::PortKind;
use crate::port::guest::{PortCell, RxQueue, RxRing};
use crate::port::wire::{Lane, Refused, Target};
use crate::table::{Port, Table};

/// Looks at a taken lock before the next job is tried, once every job has been tried without any: a holder needs 2 us at most for 64
/// small frames, and other jobs are better than waiting.
const SPINS_MAX: u32 = 64;
/// Rounds over all remaining jobs (3.5 us each with its spins) before the processor is given up: a holder that has not finished by
/// then has itself lost its core, maybe to this very worker.
const ROUNDS_MAX: u32 = 16;
/// Lanes of one uplink that are sent to with one commit.
pub(super) const TOGETHER_MAX: usize = 32;
/// Octets that a frame to the kernel costs beside its bytes (0.6 us at 4 GB/s). A frame that is cut makes many of them: a batch of such must not
/// make several times as many as a batch from the wire takes, or who receives them at the other end, maybe this very worker, falls behind.
const LANE_FRAME_COST: u64 = 2400;
/// The header of a frame that is complete as it is.
const PLAIN_HEADER: [u8; HEADER_LEN] = [0; HEADER_LEN];

/// What deliveries of one batch need; nothing here outlives the batch.
pub(super) struct Courier<'a> {
    pub table: &'a Table,
    pub worker: usize,
    pub batch: &'a Batch<'a>,
    pub snaps: &'a [Snap],
    pub frames: &'a [Frame],
    pub offloads: &'a [Validated],
    pub buckets: &'a [u8],
    pub edit: &'a mut [u8; HEAD_CAPACITY],
    pub segment: &'a mut [u8; HEAD_CAPACITY],
    pub events: &'a Events,
    pub stats: &'a WorkerStats,
    /// The frames come from an uplink.
    pub from_wire: bool,
    pub patience: &'a mut Patience,
    /// Jobs that are sent with one commit, and what they came to: empty but while that is done.
    pub together: &'a mut Vec<(Job, Outcome)>,
    /// A frame for which a guest has no buffer may wait for one.
    pub waits: bool,
    /// Octets written, and what counts as such: what the batch cost.
    pub copied_len: u64,
    /// Looks at a lock that is taken: none while other jobs have not been tried yet.
    pub spins_max: u32,
    /// A lock of this batch was waited for, which is counted once, however often it is tried again. One that was free when the other
    /// jobs were done was not waited for.
    pub waited: bool,
}

/// The rest of a job, from this frame on, found the ring full.
#[derive(Debug, Clone, Copy)]
struct Full(u8);

/// What one job came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    offered: u64,
    unicast: u64,
    group_addressed: u64,
    octets: u64,
    no_buffer: u64,
    receiver_mtu: u64,
}

impl<'a> Courier<'a> {
    /// Does all jobs.
    pub(super) fn run(&mut self, jobs: &mut Vec<Job>) {
        let mut rounds = 0;
        self.spins_max = 0;
        if jobs.len() > 1 {
            self.send_together(jobs);
        }
        loop {
            jobs.retain_mut(|job| !self.deliver(job));
            if jobs.is_empty() {
                if std::mem::take(&mut self.waited) {
                    self.stats.lock_waits.add(1);
                }
                return;
            }
            if self.waits && jobs.iter().all(|job| job.wait != Wait::No) {
                self.waits = self.patience.wait();
                continue;
            }
            self.spins_max = SPINS_MAX;
            rounds += 1;
            if rounds % ROUNDS_MAX == 0 {
                std::thread::yield_now();
            }
        }
    }

    /// One job; `false`: the ring is locked by another worker, nothing was done; or it is full, and what is left of the job waits.
    fn deliver(&mut self, job: &mut Job) -> bool {
        let Some(port) = self.table.port(job.port) else { return true };
        let guest = match &port.kind {
            PortKind::Guest(guest) => guest,
            PortKind::Uplink(uplink) => {
                return uplink.lanes.get(usize::from(job.pair)).is_none_or(|lane| self.send(job, port, lane));
            }
            PortKind::Lan(lane) => return lane.as_ref().is_none_or(|lane| self.send(job, port, lane)),
        };
        let Some(Some(rx)) = guest.rx.get(usize::from(job.pair)) else { return true };
        let Some(mut ring) = lock_ring(rx, self.spins_max, &mut self.waited) else { return false };
        inject::point("forward::deliver");
        let mut out = Outcome::default();
        let mut notify = false;
        let mut rest = None;
        if !ring.broken {
            let waits = self.waits && !ring.in_vain;
            let RxRing { ring: device, publishing, broken, .. } = &mut *ring;
            let mut delivery = device.deliver();
            match self.push_all(&mut delivery, job, port, rx.features, waits, &mut out) {
                Ok(full) => {
                    if out.unicast + out.group_addressed > 0 {
                        *publishing = true;
                        inject::point("forward::commit");
                        notify = delivery.commit();
                        *publishing = false;
                    }
                    rest = full;
                }
                Err(error) => {
                    drop(delivery);
                    *broken = true;
                    self.events.send(Event::RxBroken { port: job.port, pair: job.pair, error: Some(error) });
                }
            }
        }
        if self.from_wire {
            after_wait(&mut ring, job, &out, rest);
        }
        let is_broken = ring.broken;
        // Only a panic leaves this set: nobody has told control yet.
        if std::mem::take(&mut ring.publishing) {
            self.events.send(Event::RxBroken { port: job.port, pair: job.pair, error: None });
        }
        drop(ring);
        if is_broken {
            self.refuse_all(job, port);
            return true;
        }
        let cell = self.count(&out, port);
        if notify {
            self.events.notify(&rx.notifier, cell, job.port);
        }
        rest.is_none()
    }

    /// The lane of a job, if another lane's outlet can send its frames.
    fn aimed(&self, job: &Job) -> Option<(&'a Lane, Target)> {
        let PortKind::Uplink(uplink) = &self.table.port(job.port)?.kind else { return None };
        let lane: &Lane = uplink.lanes.get(usize::from(job.pair))?;
        Some((lane, lane.target?))
    }

    /// The jobs of an aggregate's lanes with one commit, through the outlet of the first of them, and under its lock alone. What is left in `jobs` is
    /// still to be done: all of it where that lane is not free.
    fn send_together(&mut self, jobs: &mut Vec<Job>) {
        let Some(first) = jobs.iter().position(|job| self.aimed(job).is_some()) else { return };
        let index = jobs[first].port;
        let together = jobs
            .iter()
            .filter(|job| job.port == index && self.aimed(job).is_some())
            .take(TOGETHER_MAX)
            .count();
        let (Some((carrier, own)), Some(port)) = (self.aimed(&jobs[first]), self.table.port(index)) else {
            return;
        };
        if together < 2 {
            return;
        }
        let Some((mut state, poisoned)) = lock(&carrier.state, 0, &mut self.waited) else { return };
        if poisoned {
            state.outlet.rollback();
        }
        if state.broken {
            return;
        }
        inject::point("forward::deliver");
        let mut sent = std::mem::take(self.together);
        sent.clear();
        jobs.retain(|job| {
            let Some((lane, target)) =
                self.aimed(job).filter(|_| job.port == index && sent.len() < TOGETHER_MAX)
            else {
                return true;
            };
            state.outlet.aim(target);
            let mut put = LanePut { outlet: &mut *state.outlet, header_len: lane.header_len };
            let mut out = Outcome::default();
            // A lane never breaks while frames are written.
            let _ = self.push_all(&mut put, job, port, lane.features, false, &mut out);
            sent.push((*job, out));
            false
        });
        state.outlet.aim(own);
        inject::point("forward::commit");
        let failed = state.outlet.commit().err();
        for (job, out) in &mut sent {
            self.copied_len += (out.unicast + out.group_addressed) * LANE_FRAME_COST;
            out.take_back(state.outlet.refused(self.aimed(job).map(|(_, target)| target)));
        }
        state.broken |= failed.is_some();
        drop(state);
        if let Some(error) = &failed {
            let lane = sent.first().map_or(0, |(job, _)| job.pair);
            self.events.send(Event::LaneBroken { port: index, lane, error: error.kind() });
        }
        for (job, out) in &sent {
            let Some((lane, _)) = self.aimed(job).filter(|_| failed.is_none()) else {
                self.refuse_all(job, port);
                continue;
            };
            // Its lock goes with its numbers. Who has it now writes or sends a batch, and waits for nothing.
            let guard = lane.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            lane.counters.frames.add(out.unicast + out.group_addressed);
            lane.counters.octets.add(out.octets);
            lane.counters.no_buffer.add(out.no_buffer);
            drop(guard);
            self.count(out, port);
        }
        *self.together = sent;
    }

    /// One job of a lane; `false`: another worker has it, nothing was done.
    #[inline(never)]
    fn send(&mut self, job: &Job, port: &Port, lane: &Lane) -> bool {
        let Some((mut state, poisoned)) = lock(&lane.state, self.spins_max, &mut self.waited) else {
            return false;
        };
        inject::point("forward::deliver");
        if poisoned {
            // What a batch that panicked had written halfway.
            state.outlet.rollback();
        }
        let mut out = Outcome::default();
        let mut failed = None;
        if !state.broken {
            let mut put = LanePut { outlet: &mut *state.outlet, header_len: lane.header_len };
            // A lane never breaks while frames are written.
            let _ = self.push_all(&mut put, job, port, lane.features, false, &mut out);
            if out.unicast + out.group_addressed > 0 {
                inject::point("forward::commit");
                failed = state.outlet.commit().err();
                self.copied_len += (out.unicast + out.group_addressed) * LANE_FRAME_COST;
                out.take_back(state.outlet.refused(lane.target));
                lane.counters.frames.add(out.unicast + out.group_addressed);
                lane.counters.octets.add(out.octets);
            }
            if out.no_buffer > 0 {
                lane.counters.no_buffer.add(out.no_buffer);
            }
            if lane.holds {
                // Whoever lets them go counts them.
                (out.offered, out.octets) = (out.no_buffer + out.receiver_mtu, 0);
                (out.unicast, out.group_addressed) = (0, 0);
            }
        }
        state.broken |= failed.is_some();
        let is_broken = state.broken;
        drop(state);
        if let Some(error) = failed {
            self.events.send(Event::LaneBroken { port: job.port, lane: job.pair, error: error.kind() });
        }
        if is_broken {
            self.refuse_all(job, port);
        } else {
            self.count(&out, port);
        }
        true
    }

    /// Adds what a job came to to the receiver's numbers.
    #[inline]
    fn count<'p>(&mut self, out: &Outcome, port: &'p Port) -> &'p PortCell {
        let cell = port.state.stats.cell(self.worker);
        cell.offered.add(out.offered);
        cell.inbound_octets.add(out.octets);
        if out.unicast > 0 {
            if self.from_wire { &cell.inbound_unicast_wire } else { &cell.inbound_unicast_local }
                .add(out.unicast);
        }
        if out.group_addressed > 0 {
            if self.from_wire { &cell.inbound_nonunicast_wire } else { &cell.inbound_nonunicast_local }
                .add(out.group_addressed);
        }
        if out.no_buffer + out.receiver_mtu > 0 {
            cell.discard(DiscardReason::NoBuffer, out.no_buffer);
            cell.discard(DiscardReason::ReceiverMtu, out.receiver_mtu);
        }
        self.copied_len += out.octets;
        cell
    }

    /// Counts the frames of a job as offered to a ring that takes none.
    #[cold]
    fn refuse_all(&self, job: &Job, port: &Port) {
        let mut count = 0;
        let mut at = job.first;
        while at != NONE {
            let i = usize::from(at);
            count += u64::from(self.is_for(job, port, i));
            at = self.frames[i].next;
        }
        let cell = port.state.stats.cell(self.worker);
        cell.offered.add(count);
        cell.discard(DiscardReason::ReceiverDown, count);
    }

    /// Whether frame `i` of a list for a whole port goes to the pair of this job.
    fn is_for(&self, job: &Job, port: &Port, i: usize) -> bool {
        !job.by_flow || {
            let to = if port.is_uplink() {
                port.lane_for(self.buckets[i])
            } else {
                port.pair_by_hash(self.frames[i].hash)
            };
            to.is_some_and(|enabled| enabled.pair == job.pair)
        }
    }

    /// Writes the frames of a job. An error means that the ring is broken; nothing of this job is then published. If `waits`, stops at the first frame
    /// that there is no buffer for.
    #[inline(always)]
    fn push_all(
        &mut self,
        delivery: &mut impl Put,
        job: &Job,
        port: &Port,
        features: u64,
        waits: bool,
        out: &mut Outcome,
    ) -> Result<Option<Full>, RingError> {
        // Held in registers: `self` and `out` would be read and written for each frame.
        let (frames, snaps, batch) = (self.frames, self.snaps, self.batch);
        let (untagged, len_max) = (port.untagged, port.frame_len_max);
        let (mut count, mut octets, mut grouped) = (0, 0, 0);
        let mut at = job.first;
        let mut full = None;
        while at != NONE {
            let i = usize::from(at);
            let frame = &frames[i];
            at = frame.next;
            if job.by_flow && !self.is_for(job, port, i) {
                continue;
            }
            inject::point("forward::push");
            let len = frame.len as usize;
            if !frame.plain || frame.domain != untagged || len > len_max {
                self.push_changed(delivery, port, features, i, out)?;
                continue;
            }
            let head_len = usize::from(frame.head_len);
            let head = snaps[i].head(usize::from(frame.start), head_len);
            if len != head_len || !delivery.push_short(head) {
                if !push_plain(delivery, batch, i, frame, head, waits, out)? {
                    full = Some(Full(i as u8));
                    break;
                }
                continue;
            }
            count += 1;
            octets += len as u64;
            grouped += u64::from(frame.group_addressed);
        }
        out.offered += count;
        out.octets += octets;
        out.group_addressed += grouped;
        out.unicast += count - grouped;
        Ok(full)
    }

    /// A frame that this receiver gets with a tag, or with an offload still to be done.
    #[inline(never)]
    fn push_changed(
        &mut self,
        delivery: &mut impl Put,
        port: &Port,
        features: u64,
        i: usize,
        out: &mut Outcome,
    ) -> Result<(), RingError> {
        let frame = self.frames[i];
        if frame.joined != NONE {
            return self.push_merged(delivery, port, features, i, out);
        }
        let len = frame.len as usize - usize::from(frame.head_len);
        let slices = if len == 0 { &[][..] } else { self.batch.chain(i).readable };
        let tail = Tail { slices, skip: usize::from(frame.skip), len };
        self.push_offloaded(delivery, port, features, i, tail, out)
    }

    /// A frame that was put together from several: its tail is in the memory of all of them.
    #[inline(never)]
    fn push_merged(
        &mut self,
        delivery: &mut impl Put,
        port: &Port,
        features: u64,
        i: usize,
        out: &mut Outcome,
    ) -> Result<(), RingError> {
        let Some(first) = self.batch.chain(i).readable.first() else { return Ok(()) };
        let mut pieces = [first.sub(0, 0); PIECES_MAX];
        let mut count = 0;
        let header_len = self.offloads[i].header_len();
        let mut at = i as u8;
        while at != NONE {
            let frame = &self.frames[usize::from(at)];
            // Of the first frame the snapshot's payload goes with the head; of the others only the headers are known already.
            let known = usize::from(frame.skip);
            let mut skip =
                if usize::from(at) == i { known } else { known - usize::from(frame.head_len) + header_len };
            for slice in self.batch.chain(usize::from(at)).readable {
                let piece = slice.sub(skip, usize::MAX);
                skip = skip.saturating_sub(slice.len());
                if let Some(to) = pieces.get_mut(count).filter(|_| !piece.is_empty()) {
                    *to = piece;
                    count += 1;
                }
            }
            at = frame.joined;
        }
        let len = self.frames[i].len as usize - usize::from(self.frames[i].head_len);
        let tail = Tail { slices: &pieces[..count], skip: 0, len };
        self.push_offloaded(delivery, port, features, i, tail, out)
    }

    /// Frame `i` as this receiver gets it.
    fn push_offloaded(
        &mut self,
        delivery: &mut impl Put,
        port: &Port,
        features: u64,
        i: usize,
        tail: Tail<'_>,
        out: &mut Outcome,
    ) -> Result<(), RingError> {
        let frame = self.frames[i];
        let mut offload = if frame.plain { Validated::PLAIN } else { self.offloads[i] };
        if offload.wire_len(frame.len as usize) > port.frame_len_max {
            out.offered += 1;
            out.receiver_mtu += 1;
            return Ok(());
        }
        // The head as this receiver sees it, in a buffer with room for a tag in front.
        let mut head_len = usize::from(frame.head_len);
        let mut len = frame.len;
        let mut start = TAG_LEN;
        self.edit[TAG_LEN..TAG_LEN + head_len]
            .copy_from_slice(self.snaps[i].head(usize::from(frame.start), head_len));
        if frame.domain != port.untagged {
            let vid = self.table.domains[usize::from(frame.domain.0)].vid;
            if let Some(tagged) = vlan::insert_tag(&mut self.edit[..], start, vid) {
                start = tagged;
                head_len += TAG_LEN;
                len += TAG_LEN as u32;
                offload = offload.tag_inserted();
            }
        }
        let head = &mut self.edit[start..start + head_len];
        let mut mode = offload.mode_for(features);
        let header = offload.header_for(mode).to_bytes();
        let grouped = frame.group_addressed;
        match mode {
            Mode::PassThrough => {
                let pushed = delivery.push(&header, head, tail);
                let is_refused = matches!(pushed, Err(Undelivered::NoBuffer | Undelivered::TooLong));
                if !is_refused || frame.joined == NONE {
                    return out.count(pushed, len, grouped);
                }
                // The guest has buffers for some of what was put together: it gets those one by one.
                mode = Mode::SegmentPartial;
            }
            Mode::CompleteChecksum => {
                let completion = offload.completion(head);
                return out.count(delivery.push_summed(&header, head, tail, completion), len, grouped);
            }
            Mode::SegmentPartial | Mode::SegmentComplete => {}
        }
        let mut segments = Segmenter::new(&offload, head, len as usize, mode);
        while let Some(segment) = segments.next_into(self.segment) {
            let head = &mut self.segment[..segment.head_len];
            let tail = tail.sub(segment.tail_offset, segment.tail_len);
            let header = segment.header.to_bytes();
            let pushed = match segment.completion {
                Some(completion) => delivery.push_summed(&header, head, tail, completion),
                None => delivery.push(&header, head, tail),
            };
            out.count(pushed, (segment.head_len + segment.tail_len) as u32, grouped)?;
        }
        Ok(())
    }
}

impl Outcome {
    /// What the kernel refused was not delivered after all.
    fn take_back(&mut self, refused: Refused) {
        self.unicast -= refused.unicast.min(self.unicast);
        self.group_addressed -= refused.grouped.min(self.group_addressed);
        self.octets -= refused.octets.min(self.octets);
        self.no_buffer += refused.frames();
    }

    /// Counts one frame on this port.
    #[inline]
    fn count(&mut self, pushed: Result<(), Undelivered>, len: u32, grouped: bool) -> Result<(), RingError> {
        self.offered += 1;
        match pushed {
            Ok(()) => {
                self.octets += u64::from(len);
                self.group_addressed += u64::from(grouped);
                self.unicast += u64::from(!grouped);
            }
            // The buffers that the guest offers are too few, or too short: either way it has none for this frame.
            Err(Undelivered::NoBuffer | Undelivered::TooLong) => self.no_buffer += 1,
            Err(Undelivered::Broken(error)) => return Err(error),
        }
        Ok(())
    }
}

/// A frame that goes out as it came, whatever its length and the buffers that it takes. False: it has no buffer yet, and waits for one.
#[inline(never)]
fn push_plain(
    delivery: &mut impl Put,
    batch: &Batch<'_>,
    i: usize,
    frame: &Frame,
    head: &[u8],
    waits: bool,
    out: &mut Outcome,
) -> Result<bool, RingError> {
    let len = frame.len as usize - head.len();
    let slices = if len == 0 { &[][..] } else { batch.chain(i).readable };
    let tail = Tail { slices, skip: usize::from(frame.skip), len };
    let pushed = delivery.push(&PLAIN_HEADER, head, tail);
    if waits && pushed == Err(Undelivered::NoBuffer) {
        return Ok(false);
    }
    out.count(pushed, frame.len, frame.group_addressed).map(|()| true)
}

/// What a full ring means for the next look at it, and for the next batch. `rest`: it is still full, and the job waits.
fn after_wait(ring: &mut RxRing, job: &mut Job, out: &Outcome, rest: Option<Full>) {
    let moved = out.unicast + out.group_addressed > 0;
    match (rest, job.wait) {
        (Some(Full(first)), before) => {
            job.first = first;
            job.wait = if before != Wait::No && moved { Wait::Moving } else { before.max(Wait::Stuck) };
        }
        (None, Wait::Stuck) if !moved => ring.in_vain = true,
        (None, Wait::No) if moved && out.no_buffer == 0 => ring.in_vain = false,
        (None, _) => {}
    }
}

/// The ring, unless another worker keeps it. A lock that a panic left behind is taken over: the delivery was rolled back when
/// the panic passed through it, unless it was being published.
fn lock_ring<'r>(rx: &'r RxQueue, spins_max: u32, waited: &mut bool) -> Option<MutexGuard<'r, RxRing>> {
    let (mut ring, poisoned) = lock(&rx.ring, spins_max, waited)?;
    if poisoned {
        ring.broken |= ring.publishing;
    }
    Some(ring)
}

/// The lock, unless another worker keeps it for longer than `spins_max` looks, and whether a panic had left it behind.
fn lock<'r, T>(mutex: &'r Mutex<T>, spins_max: u32, waited: &mut bool) -> Option<(MutexGuard<'r, T>, bool)> {
    let mut spins = 0;
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some((guard, false)),
            Err(TryLockError::Poisoned(poisoned)) => {
                mutex.clear_poison();
                return Some((poisoned.into_inner(), true));
            }
            Err(TryLockError::WouldBlock) if spins == spins_max => return None,
            Err(TryLockError::WouldBlock) => {
                *waited = true;
                spins += 1;
                std::hint::spin_loop();
            }
        }
    }
}
