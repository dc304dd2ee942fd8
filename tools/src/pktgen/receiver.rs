//! Empties one receive queue: sequence, latency, damage, empty polls.
//!
//! Owns the counts of one queue; flows of several queues of a guest share one [`Tracker`]. The run loop calls
//! [`Receiver::burst`]; it never waits and allocates nothing.

use super::frame::{self, Damage, Stamp, TCP_STAMP_AT, UDP_STAMP_AT};
use super::tracker::Tracker;
use crate::latency::{Latency, now_ns as now_ns_exact};
use avio_guest::net::{QueueError, RxFrame, RxQueue};
use avio_proto::virtio::net::GSO_NONE;

/// How exactly latencies are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// A sample, by the time of the poll: costs nothing at full speed.
    Sampled,
    /// Each frame, by the clock after the poll: request and response.
    Every,
}

/// What one receiver has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Frames of ours.
    pub frames: u64,
    /// Their bytes, without FCS.
    pub octets: u64,
    /// Frames that are not ours (a guest's ARP, say).
    pub foreign: u64,
    /// Frames with a header, checksum or payload that is not what was sent.
    pub corrupt: u64,
    /// Frames checked byte for byte.
    pub checked: u64,
    /// Frames that came with a segmentation header, unsegmented.
    pub gso_frames: u64,
    /// Calls.
    pub polls: u64,
    /// Calls that found nothing.
    pub empty_polls: u64,
    /// Time of the last frame, [`crate::latency::now_ns`].
    pub last_ns: u64,
}

/// One guest's receiving half.
#[derive(Debug)]
pub struct Receiver {
    counts: Received,
    tracker: Tracker,
    latency: Latency,
    check_every: u64,
    mss: u16,
    until_check: u64,
    scratch: Vec<u8>,
    last_damage: Option<Damage>,
    timing: Timing,
}

impl Receiver {
    /// Checks every `check_every`th frame byte for byte (1: all, 0: none). `mss` as the senders stamp by, 0 for UDP.
    #[must_use]
    pub fn new(check_every: u64, mss: u16, from_zero: bool, timing: Timing) -> Self {
        Self {
            counts: Received::default(),
            tracker: Tracker::new(from_zero),
            latency: Latency::new(),
            check_every,
            mss,
            until_check: check_every.min(1),
            scratch: Vec::with_capacity(frame::LEN_MAX),
            last_damage: None,
            timing,
        }
    }

    /// Counts so far.
    #[must_use]
    pub fn counts(&self) -> Received {
        self.counts
    }

    /// Sequence counts so far.
    #[must_use]
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// Latencies so far.
    #[must_use]
    pub fn latency(&self) -> &Latency {
        &self.latency
    }

    /// Forgets latencies, as after a warm-up.
    pub fn clear_latency(&mut self) {
        self.latency = Latency::new();
    }

    /// What was wrong with the last corrupt frame.
    #[must_use]
    pub fn last_damage(&self) -> Option<Damage> {
        self.last_damage
    }

    /// Takes up to `max` frames and gives their buffers back; returns how many.
    ///
    /// # Errors
    /// [`QueueError`] if the back-end broke the ring.
    pub fn burst(&mut self, rx: &mut RxQueue, now_ns: u64, max: usize) -> Result<usize, QueueError> {
        self.counts.polls += 1;
        let count = rx.poll(max, |f| self.take(f, now_ns))?;
        if count == 0 {
            self.counts.empty_polls += 1;
        } else {
            self.counts.last_ns = now_ns;
        }
        Ok(count)
    }

    #[inline(always)]
    fn take(&mut self, f: &RxFrame<'_>, now_ns: u64) {
        // IPv4's protocol byte says where the stamp stands.
        let [protocol] = f.bytes_at::<1>(23);
        let at = if protocol == 6 { TCP_STAMP_AT } else { UDP_STAMP_AT };
        let Some(stamp) = Stamp::from_words(f.bytes_at(at), f.bytes_at(at + 8)) else {
            self.counts.foreign += 1;
            return;
        };
        self.counts.frames += 1;
        self.counts.octets += f.len() as u64;
        let mut seq_count = 1;
        if protocol == 6 && f.header().gso_type != GSO_NONE {
            self.counts.gso_frames += 1;
            let (payload, mss) = (f.len() - at.min(f.len()), usize::from(self.mss.max(1)));
            seq_count = (payload / mss + usize::from(payload % mss >= frame::STAMP_LEN)) as u32;
        }
        self.tracker.take(&stamp, seq_count);
        if self.timing == Timing::Every || frame::is_timed(stamp.seq) {
            let now_ns = if self.timing == Timing::Every { now_ns_exact() } else { now_ns };
            let sent_ns = u64::from_be_bytes(f.bytes_at::<8>(at + 10));
            if sent_ns != 0 {
                self.latency.record(now_ns.saturating_sub(sent_ns));
            }
        }
        if self.until_check > 0 {
            self.until_check -= 1;
            if self.until_check == 0 {
                self.until_check = self.check_every;
                self.check(f);
            }
        }
    }

    #[cold]
    fn check(&mut self, f: &RxFrame<'_>) {
        self.counts.checked += 1;
        f.copy_to(&mut self.scratch);
        if let Err(damage) = frame::check(&self.scratch, &f.header(), self.mss) {
            self.counts.corrupt += 1;
            self.last_damage = Some(damage);
        }
    }
}
