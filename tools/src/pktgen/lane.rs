//! One port at work: what it sends, what it receives, what it answers.
//!
//! Owns the order of a turn: receive first, then answer or send. [`super::run`] calls [`Lane::turn`] in a loop; it never
//! waits and allocates nothing.

use super::receiver::Receiver;
use super::sender::{BURST_COUNT, Sender};
use crate::latency::{Latency, now_ns};
use avio_guest::net::{NetGuest, NetQueue, QueueError};
use std::sync::atomic::{AtomicU64, Ordering};

/// A request without an answer for this long is lost, in nanoseconds.
const ANSWER_TIMEOUT_NS: u64 = 100_000_000;

/// A connected guest and its queue pairs.
#[derive(Debug)]
pub struct Port {
    /// The session and memory.
    pub guest: NetGuest,
    /// Queue pairs in order.
    pub queues: Vec<NetQueue>,
}

/// Counters that the progress line reads while a lane runs. Single writer, relaxed, on lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Live {
    /// Frames sent.
    pub tx_frames: AtomicU64,
    /// Their bytes.
    pub tx_octets: AtomicU64,
    /// Frames received.
    pub rx_frames: AtomicU64,
    /// Their bytes.
    pub rx_octets: AtomicU64,
    /// Sequence numbers missing so far.
    pub missing: AtomicU64,
    /// Receive polls.
    pub polls: AtomicU64,
    /// Receive polls that found nothing.
    pub empty_polls: AtomicU64,
    /// Frames sent that the switch has not taken yet; known once sending has stopped.
    pub in_flight: AtomicU64,
}

/// What a port does during one measurement.
#[derive(Debug)]
pub struct Job {
    /// One per queue pair that sends; empty: receives only.
    pub senders: Vec<Sender>,
    /// What it checks.
    pub receiver: Receiver,
    /// Sends one frame per frame received instead of at a rate.
    pub answers: bool,
    /// Request and response: waits for an answer before it sends the next request.
    pub requests: Option<Requests>,
}

/// One request at a time.
#[derive(Debug, Default)]
pub struct Requests {
    sent_ns: u64,
    waiting: bool,
    /// Round trips.
    pub rtt: Latency,
    /// Requests that nobody answered in time.
    pub timeouts: u64,
}

/// A port, its job, and what others may see of it.
#[derive(Debug)]
pub struct Lane<'a> {
    /// The guest.
    pub port: &'a mut Port,
    /// What it does.
    pub job: Job,
    /// What the progress line reads.
    pub live: &'a Live,
}

impl Lane<'_> {
    /// One turn; returns how many frames moved.
    ///
    /// # Errors
    /// [`QueueError`] if the back-end broke a ring.
    #[inline]
    pub fn turn(&mut self, now: u64, sending: bool) -> Result<usize, QueueError> {
        let mut received = 0;
        for queue in &mut self.port.queues {
            received += self.job.receiver.burst(&mut queue.rx, now, BURST_COUNT)?;
        }
        let sent = if let Some(requests) = &mut self.job.requests {
            let (tx, sender) = (&mut self.port.queues[0].tx, &mut self.job.senders[0]);
            requests.turn(received, sending, |now| sender.burst(tx, now, 1))?
        } else if self.job.answers {
            if received > 0 && !self.job.senders.is_empty() {
                self.job.senders[0].burst(&mut self.port.queues[0].tx, now_ns(), received)?
            } else {
                0
            }
        } else if sending {
            let mut sent = 0;
            for (queue, sender) in self.port.queues.iter_mut().zip(&mut self.job.senders) {
                sent += sender.burst(&mut queue.tx, now, BURST_COUNT)?;
            }
            sent
        } else {
            let mut in_flight = 0;
            for queue in &mut self.port.queues {
                queue.tx.reclaim()?;
                in_flight += queue.tx.in_flight() as u64;
            }
            self.live.in_flight.store(in_flight, Ordering::Relaxed);
            0
        };
        self.publish();
        Ok(received + sent)
    }

    fn publish(&self) {
        let set = |cell: &AtomicU64, value| cell.store(value, Ordering::Relaxed);
        if let [only] = self.job.senders.as_slice() {
            set(&self.live.tx_frames, only.counts().frames);
            set(&self.live.tx_octets, only.counts().octets);
        } else {
            set(&self.live.tx_frames, self.job.senders.iter().map(|s| s.counts().frames).sum());
            set(&self.live.tx_octets, self.job.senders.iter().map(|s| s.counts().octets).sum());
        }
        let received = self.job.receiver.counts();
        set(&self.live.rx_frames, received.frames);
        set(&self.live.rx_octets, received.octets);
        set(&self.live.polls, received.polls);
        set(&self.live.empty_polls, received.empty_polls);
        set(&self.live.missing, self.job.receiver.tracker().counts().missing);
    }
}

impl Requests {
    #[inline]
    fn turn(
        &mut self,
        received: usize,
        sending: bool,
        mut send: impl FnMut(u64) -> Result<usize, QueueError>,
    ) -> Result<usize, QueueError> {
        if self.waiting {
            let now = now_ns();
            if received > 0 {
                self.rtt.record(now - self.sent_ns);
                self.waiting = false;
            } else if now - self.sent_ns > ANSWER_TIMEOUT_NS {
                self.timeouts += 1;
                self.waiting = false;
            }
        }
        if self.waiting || !sending {
            return Ok(0);
        }
        self.sent_ns = now_ns();
        let sent = send(self.sent_ns)?;
        self.waiting = sent > 0;
        Ok(sent)
    }
}
