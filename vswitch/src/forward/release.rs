//! Frames that were held while their flow moved to another member of an aggregate go out through it.
//!
//! Called by a worker when it takes up a table, between two batches. Flows stay in order because every worker that may have put frames of a flow
//! into the queue empties the queue before it sends the next one past it. The queue's lock is kept meanwhile, and one lane's lock is taken under
//! it: the only place where two are held, always in this order, and nobody who has a lane's lock waits for a queue's.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use avio_proto::control::DiscardReason;
use avio_proto::mem::{GuestSlice, Tail};
use avio_proto::ring::Undelivered;
use avio_proto::virtio::net::HEADER_LEN;

use super::put::{LanePut, Put};
use super::scratch::{BATCH_MAX, SNAPSHOT_LEN};
use super::{Event, Events};
use crate::packet::vlan;
use crate::port::PortKind;
use crate::port::uplink::{UplinkPort, bucket_of};
use crate::port::wire::{Lane, LaneState};
use crate::table::{Port, PortIndex, Table};

/// How long a full transmit ring is waited for, all held frames together: a device at 10 Gbit/s sends ten thousand small frames in that time.
const FULL_MAX: Duration = Duration::from_millis(5);

/// Sends what waits for buckets that `table` gives to members, and counts it.
pub(super) fn release(table: &Table, worker: usize, events: &Events) {
    for &index in &table.holding {
        let Some(port) = table.port(index) else { continue };
        let PortKind::Uplink(uplink) = &port.kind else { continue };
        let Some(hold) = &uplink.hold else { continue };
        if !uplink.holds_some() {
            Release { index, port, uplink, worker, events, give_up_at: None }.empty(hold);
        }
    }
}

/// One queue that is being emptied.
struct Release<'a> {
    index: PortIndex,
    port: &'a Port,
    uplink: &'a UplinkPort,
    worker: usize,
    events: &'a Events,
    /// When a full ring is no longer waited for; the clock runs from the first.
    give_up_at: Option<Instant>,
}

/// Frames that were written to one lane and not yet handed over, and what they count for.
struct Open<'a> {
    lane: &'a Lane,
    number: u16,
    state: MutexGuard<'a, LaneState>,
    frames: u64,
    grouped: u64,
    octets: u64,
}

impl<'a> Release<'a> {
    fn empty(&mut self, hold: &Lane) {
        // Held for a batch at most, or by another worker that does just this.
        let mut state = take(hold);
        let Some(hold) = state.outlet.hold() else { return };
        let mut open: Option<Open<'a>> = None;
        for frame in hold.frames() {
            self.send(&frame, &mut open);
        }
        self.close(open);
        hold.clear();
    }

    fn send(&mut self, frame: &GuestSlice<'_>, open: &mut Option<Open<'a>>) {
        let mut head = [0; SNAPSHOT_LEN];
        let head_len = frame.copy_to(&mut head);
        let is_grouped = head[0] & 1 != 0;
        let mut untagged = head;
        let number = self.lane_of(&mut untagged[..head_len], frame.len());
        if open.as_ref().is_some_and(|open| Some(open.number) != number || open.frames == BATCH_MAX as u64) {
            self.close(open.take());
        }
        let Some(number) = number else { return self.discard(DiscardReason::ReceiverDown) };
        if open.is_none() {
            *open = self.open(number);
        }
        let tail = [*frame];
        let tail = Tail { slices: &tail, skip: head_len, len: frame.len() - head_len };
        loop {
            let Some(to) = open else { return self.discard(DiscardReason::ReceiverDown) };
            let mut put = LanePut { outlet: &mut *to.state.outlet, header_len: to.lane.header_len };
            match put.push(&[0; HEADER_LEN], &head[..head_len], tail) {
                Ok(()) => {
                    to.frames += 1;
                    to.grouped += u64::from(is_grouped);
                    to.octets += frame.len() as u64;
                    return;
                }
                Err(Undelivered::NoBuffer) if self.may_wait() => {
                    // The kernel sends what is in the ring, and there is room again.
                    self.close(open.take());
                    std::thread::yield_now();
                    *open = self.open(number);
                }
                Err(_) => {
                    to.lane.counters.no_buffer.add(1);
                    return self.discard(DiscardReason::NoBuffer);
                }
            }
        }
    }

    fn may_wait(&mut self) -> bool {
        let now = Instant::now();
        now < *self.give_up_at.get_or_insert(now + FULL_MAX)
    }

    /// The lane of a frame as it goes out, tag included.
    fn lane_of(&self, head: &mut [u8], frame_len: usize) -> Option<u16> {
        let start = vlan::strip_tag(head, 0).unwrap_or(0);
        let bucket = bucket_of(self.uplink.balance, head.get(start..)?, frame_len - start);
        self.port.lane_for(bucket).map(|enabled| enabled.pair)
    }

    /// The lane, locked; `None`: nothing goes out through it.
    fn open(&self, number: u16) -> Option<Open<'a>> {
        let lane: &'a Lane = self.uplink.lanes.get(usize::from(number))?;
        let state = take(lane);
        (!state.broken).then_some(Open { lane, number, state, frames: 0, grouped: 0, octets: 0 })
    }

    /// Hands over what was written.
    fn close(&self, open: Option<Open<'_>>) {
        let Some(mut open) = open else { return };
        let outcome = open.state.outlet.commit();
        open.state.broken |= outcome.is_err();
        let refused = open.state.outlet.refused(open.lane.target);
        let Open { lane, number, mut frames, mut grouped, mut octets, state } = open;
        let cell = self.port.state.stats.cell(self.worker);
        cell.offered.add(frames);
        if let Err(error) = outcome {
            drop(state);
            cell.discard(DiscardReason::ReceiverDown, frames);
            self.events.send(Event::LaneBroken { port: self.index, lane: number, error: error.kind() });
            return;
        }
        if refused.frames() > 0 {
            frames -= refused.frames().min(frames);
            grouped -= refused.grouped.min(grouped);
            octets -= refused.octets.min(octets);
            lane.counters.no_buffer.add(refused.frames());
            cell.discard(DiscardReason::NoBuffer, refused.frames());
        }
        lane.counters.frames.add(frames);
        lane.counters.octets.add(octets);
        drop(state);
        cell.inbound_octets.add(octets);
        cell.inbound_unicast_local.add(frames - grouped);
        cell.inbound_nonunicast_local.add(grouped);
    }

    fn discard(&self, reason: DiscardReason) {
        let cell = self.port.state.stats.cell(self.worker);
        cell.offered.add(1);
        cell.discard(reason, 1);
    }
}

/// A lane's lock. What a batch that panicked had written halfway is taken back.
fn take(lane: &Lane) -> MutexGuard<'_, LaneState> {
    lane.state.lock().unwrap_or_else(|poisoned| {
        lane.state.clear_poison();
        let mut state = poisoned.into_inner();
        state.outlet.rollback();
        state
    })
}
