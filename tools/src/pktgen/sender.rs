//! Fills one transmit queue: pattern, stamps, rate.
//!
//! Owns the pattern and the counts of one queue. The run loop calls [`Sender::burst`] again and again; it never waits and
//! allocates nothing.

use super::frame::{self, SEED_COUNT, SOURCE_PORT_AT, Stamp};
use super::pattern::Pattern;
use super::receiver::Timing;
use avio_guest::net::{QueueError, TxQueue, TxSlot};
use std::sync::atomic::{AtomicU32, Ordering};

/// Most frames per call: a batch of the switch.
pub const BURST_COUNT: usize = 64;
/// Without a rate, smaller batches are not begun.
const BATCH_MIN: usize = 32;
/// With a rate, what may be caught up at once after a pause, in nanoseconds: longer gaps are lost rate, not a later burst.
const CATCH_UP_NS: u64 = 2_000_000;

/// Frames allowed per time.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    ns_per_frame: f64,
    next_ns: f64,
}

impl Rate {
    /// `per_second` frames, from `now_ns` on. `None`: as fast as the ring takes them.
    #[must_use]
    pub fn new(per_second: Option<f64>, now_ns: u64) -> Self {
        let ns_per_frame = per_second.map_or(0.0, |r| 1e9 / r.max(1e-3));
        Self { ns_per_frame, next_ns: now_ns as f64 }
    }

    fn is_unlimited(&self) -> bool {
        self.ns_per_frame == 0.0
    }

    /// How many of `max` frames may go now.
    #[inline]
    fn allowed(&mut self, now_ns: u64, max: usize) -> usize {
        if self.ns_per_frame == 0.0 {
            return max;
        }
        let now = now_ns as f64;
        self.next_ns = self.next_ns.max(now - CATCH_UP_NS as f64);
        let due = (now - self.next_ns) / self.ns_per_frame;
        if due < 0.0 { 0 } else { (due as usize + 1).min(max) }
    }

    #[inline]
    fn sent(&mut self, count: usize) {
        self.next_ns += self.ns_per_frame * count as f64;
    }
}

/// What one queue has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames.
    pub frames: u64,
    /// Bytes of frames, without FCS.
    pub octets: u64,
    /// Sequence numbers: segments of TSO frames count singly.
    pub seqs: u64,
    /// Calls that found the ring full.
    pub full_polls: u64,
    /// Calls.
    pub polls: u64,
}

/// One transmit queue's generator.
#[derive(Debug)]
pub struct Sender {
    pattern: Pattern,
    rate: Rate,
    counts: Sent,
    source: u8,
    varies_flow: bool,
    /// Every frame carries its time, not one in so many.
    times_all: bool,
    /// Marks slots that this sender filled: a slot may still hold another's frame from an earlier measurement.
    mark: u32,
}

/// Gives every sender of this process a mark of its own, in the upper half of a slot's tag.
static NEXT_MARK: AtomicU32 = AtomicU32::new(1);

impl Sender {
    /// Sends `pattern` as port `source`; how its receivers take times decides which frames carry one.
    #[must_use]
    pub fn new(pattern: Pattern, source: u8, rate: Rate, timing: Timing) -> Self {
        let varies_flow = pattern.varies_flow();
        let mark = NEXT_MARK.fetch_add(1, Ordering::Relaxed) << 16;
        Self {
            pattern,
            rate,
            counts: Sent::default(),
            source,
            varies_flow,
            times_all: timing == Timing::Every,
            mark,
        }
    }

    /// Counts so far.
    #[must_use]
    pub fn counts(&self) -> Sent {
        self.counts
    }

    /// Changes the rate.
    pub fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// The pattern.
    #[must_use]
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Puts up to `max` frames into the ring and publishes them; returns how many. All carry `now_ns` as their time.
    ///
    /// # Errors
    /// [`QueueError`] if the back-end broke the ring.
    pub fn burst(&mut self, tx: &mut TxQueue, now_ns: u64, max: usize) -> Result<usize, QueueError> {
        self.counts.polls += 1;
        let want = self.rate.allowed(now_ns, max);
        if want == 0 {
            return Ok(0);
        }
        let room = tx.room(want)?;
        let count = want.min(room);
        // At full speed the ring is full, and each look for a few free places takes the used ring's line away from the
        // switch: wait until a batch fits.
        if count == 0
            || (self.rate.is_unlimited() && want > BATCH_MIN && room < tx.slot_count().min(BATCH_MIN))
        {
            self.counts.full_polls += 1;
            return Ok(0);
        }
        tx.push_burst(count, |slot| self.fill(slot, now_ns));
        tx.flush();
        self.rate.sent(count);
        self.counts.frames += count as u64;
        Ok(count)
    }

    /// Writes the next frame into a slot; returns its length.
    #[inline(always)]
    fn fill(&mut self, slot: &mut TxSlot<'_>, now_ns: u64) -> usize {
        let next = self.pattern.next();
        let seed = (slot.index() % u32::from(SEED_COUNT)) as u8;
        let template = self.pattern.template(next.size, seed);
        let len = template.bytes.len();
        self.counts.octets += len as u64;
        self.counts.seqs += u64::from(next.seq_count);
        // The slot's memory still holds what it held a lap ago: with the same template only the stamp is new, and of that
        // mostly only what lies in the first cache line.
        let tag = self.mark | u32::from(next.size);
        let is_new = slot.tag() != tag;
        if is_new {
            slot.set_header(&template.header);
            slot.write(0, &template.bytes);
            slot.set_tag(tag);
        }
        if self.varies_flow {
            slot.write_array(SOURCE_PORT_AT, &frame::source_port(next.flow));
        }
        if let Some(to) = next.to {
            slot.write_array(0, &to);
        }
        if let Some(from) = next.from {
            slot.write_array(6, &from);
        }
        let mut stamp = Stamp { source: self.source, seed, flow: next.flow, seq: next.seq, time_ns: now_ns };
        let (head, rest) = stamp.to_words();
        slot.write_array(template.stamp_at, &head);
        slot.write_array(template.stamp_at + 8, &rest);
        if is_new || self.times_all || frame::is_timed(next.seq) {
            slot.write_array(template.stamp_at + 10, &now_ns.to_be_bytes());
        }
        for i in 1..next.seq_count {
            stamp.seq = stamp.seq.wrapping_add(1);
            slot.write_array(template.stamp_at + i as usize * template.chunk_len, &stamp.to_bytes());
        }
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_and_pauses_are_not_caught_up() {
        let mut rate = Rate::new(Some(1e6), 0);
        let mut sent = 0;
        for now in (0..10_000_000).step_by(3_000) {
            let n = rate.allowed(now, 64);
            rate.sent(n);
            sent += n;
        }
        assert!((9_990..=10_010).contains(&sent), "{sent}");
        let n = rate.allowed(1_000_000_000, 10_000);
        assert!(n <= 2_002, "{n} frames at once after a second of silence");
        assert_eq!(Rate::new(None, 0).allowed(5, 64), 64);
    }
}
