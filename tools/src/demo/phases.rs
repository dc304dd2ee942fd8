//! What the demo's guests do, one phase after the other.
//!
//! Owns the traffic of each phase and what must have come of it. Uses the traffic generator's parts on ports that stay
//! connected; [`super`] prints the results.

use super::daemon::DemoGuest;
use crate::latency::{Latency, LatencySummary, now_ns};
use crate::pktgen::frame::{TCP_STAMP_AT, Transport};
use crate::pktgen::lane::{Job, Port, Requests};
use crate::pktgen::pattern::{Pattern, PatternSpec};
use crate::pktgen::receiver::{Receiver, Timing};
use crate::pktgen::run::{Measured, Progress, Schedule, measure};
use crate::pktgen::sender::{Rate, Sender};
use serde::Serialize;
use std::time::Duration;

/// Payload bytes per TSO segment.
const MSS: u16 = 1448;
/// Length of a TSO frame: 45 whole segments.
pub const TSO_LEN: usize = TCP_STAMP_AT + 45 * MSS as usize;
/// Length of a small frame.
const SMALL_LEN: usize = 64;
/// Frames per second of the spoofing guest and of the honest one beside it: enough to count, too few to crowd each other out.
const SPOOF_PPS: f64 = 100_000.0;

/// Where and how to run.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Cores of the guests; empty: one thread, not pinned.
    pub cores: Vec<usize>,
    /// Guests sleep on their eventfds: there is only one core.
    pub wait: bool,
    /// Length of one phase.
    pub window: Duration,
}

/// Request and response.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PingResult {
    /// From publication in one guest to the poll of the other.
    pub one_way_us: LatencySummary,
    /// There and back.
    pub round_trip_us: LatencySummary,
    /// Requests without an answer.
    pub unanswered: u64,
}

/// One-way load.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FloodResult {
    /// Frames received per second, in millions.
    pub mpps: f64,
    /// Bits received per second, in thousand millions.
    pub gbit_s: f64,
    /// Frames (of TSO: segments) sent.
    pub sent: u64,
    /// Of these, received.
    pub received: u64,
    /// Whole frames that were sent and did not arrive.
    pub lost_frames: u64,
    /// Of these, counted by the switch because the receiver's ring had no buffer: a flood is not slowed down by its receiver.
    pub no_buffer: u64,
    /// Received twice, or out of order.
    pub disordered: u64,
    /// With wrong bytes.
    pub corrupt: u64,
    /// Frames checked byte for byte.
    pub checked: u64,
    /// Frames that passed unsegmented.
    pub unsegmented: u64,
}

/// Spoofing.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct SpoofResult {
    /// Frames with another guest's source address.
    pub spoofed_sent: u64,
    /// Of these, counted as dropped by the switch.
    pub spoofed_dropped: u64,
    /// Of these, arrived at any guest.
    pub spoofed_leaked: u64,
    /// Frames that an honest guest sent meanwhile.
    pub honest_sent: u64,
    /// Of these, arrived.
    pub honest_received: u64,
}

fn pattern(from: [u8; 6], to: [u8; 6], len: usize, transport: Transport, source: u8) -> Pattern {
    let spec = PatternSpec {
        lens: vec![len],
        transport,
        flow_count: 1,
        source_mac_count: 1,
        peer_mac_count: 1,
        broadcast_permille: 0,
        to,
        from,
        source,
    };
    Pattern::new(spec, 0, 1)
}

fn sender(pattern: Pattern, source: u8, pps: Option<f64>) -> Sender {
    Sender::new(pattern, source, Rate::new(pps, now_ns()), Timing::Every)
}

fn job(senders: Vec<Sender>, check_every: u64, mss: u16, timing: Timing) -> Job {
    Job { senders, receiver: Receiver::new(check_every, mss, true, timing), answers: false, requests: None }
}

fn run(
    stage: &Stage,
    ports: &mut [Port],
    jobs: Vec<Job>,
    progress: impl FnMut(&Progress),
) -> Result<Measured, String> {
    let schedule = Schedule { warmup: Duration::from_millis(200), window: stage.window, wait: stage.wait };
    measure(ports, jobs, &stage.cores, &schedule, progress).map_err(|e| e.to_string())
}

/// The first two guests: one asks, the other answers.
///
/// # Errors
/// A connection that broke, or nothing was answered.
pub fn ping(
    stage: &Stage,
    ports: &mut [Port],
    guests: &[DemoGuest],
    progress: impl FnMut(&Progress),
) -> Result<PingResult, String> {
    let (a, b) = (guests[0].mac, guests[1].mac);
    let mut asks =
        job(vec![sender(pattern(a, b, SMALL_LEN, Transport::Udp, 0), 0, None)], 1, 0, Timing::Every);
    asks.requests = Some(Requests::default());
    let mut answers =
        job(vec![sender(pattern(b, a, SMALL_LEN, Transport::Udp, 1), 1, None)], 1, 0, Timing::Every);
    answers.answers = true;
    let measured = run(stage, &mut ports[..2], vec![asks, answers], progress)?;
    let corrupt: u64 = measured.jobs.iter().map(|j| j.receiver.counts().corrupt).sum();
    let mut one_way = Latency::new();
    for job in &measured.jobs {
        one_way.merge(job.receiver.latency());
    }
    let (round_trip, unanswered) =
        measured.jobs[0].requests.as_ref().map(|r| (r.rtt.summary(), r.timeouts)).unwrap_or_default();
    if round_trip.count == 0 {
        return Err("no request was answered".into());
    }
    if corrupt > 0 {
        return Err(format!("{corrupt} answers or requests were corrupt"));
    }
    Ok(PingResult { one_way_us: one_way.summary(), round_trip_us: round_trip, unanswered })
}

/// The first guest floods the second, as fast as the switch takes it. What the switch counted is filled in by the caller.
///
/// # Errors
/// A connection that broke, nothing arrived, or something was corrupt.
pub fn flood(
    stage: &Stage,
    ports: &mut [Port],
    guests: &[DemoGuest],
    progress: impl FnMut(&Progress),
) -> Result<FloodResult, String> {
    let (a, b) = (guests[0].mac, guests[1].mac);
    one_way(stage, ports, pattern(a, b, SMALL_LEN, Transport::Udp, 0), 64, 0, progress)
}

/// The same with TCP segmentation frames of 64 KiB.
///
/// # Errors
/// As [`flood`].
pub fn segments(
    stage: &Stage,
    ports: &mut [Port],
    guests: &[DemoGuest],
    progress: impl FnMut(&Progress),
) -> Result<FloodResult, String> {
    let (a, b) = (guests[0].mac, guests[1].mac);
    let transport = Transport::TcpSegments { mss: MSS };
    one_way(stage, ports, pattern(a, b, TSO_LEN, transport, 0), 16, MSS, progress)
}

fn one_way(
    stage: &Stage,
    ports: &mut [Port],
    pattern: Pattern,
    check_every: u64,
    mss: u16,
    progress: impl FnMut(&Progress),
) -> Result<FloodResult, String> {
    let from = job(vec![sender(pattern, 0, None)], check_every, mss, Timing::Sampled);
    let to = job(Vec::new(), check_every, mss, Timing::Sampled);
    let measured = run(stage, &mut ports[..2], vec![from, to], progress)?;
    let (got, seqs, window) = (
        measured.jobs[1].receiver.counts(),
        measured.jobs[1].receiver.tracker().counts(),
        measured.windows[1],
    );
    if got.frames == 0 || window.rx_frames == 0 {
        return Err("nothing arrived".into());
    }
    let sent = measured.jobs[0].senders[0].counts();
    let result = FloodResult {
        mpps: window.rx_frames as f64 / window.seconds / 1e6,
        gbit_s: window.rx_octets as f64 * 8.0 / window.seconds / 1e9,
        sent: sent.seqs,
        received: seqs.unique,
        lost_frames: sent.frames.saturating_sub(got.frames),
        no_buffer: 0,
        disordered: seqs.duplicated + seqs.reordered,
        corrupt: got.corrupt + seqs.implausible,
        checked: got.checked,
        unsegmented: got.gso_frames,
    };
    if result.corrupt > 0 || result.disordered > 0 {
        return Err(format!(
            "{} frames corrupt, {} doubled or out of order",
            result.corrupt, result.disordered
        ));
    }
    Ok(result)
}

/// The third guest sends as the first, to the second; the fourth sends honestly to the second meanwhile. What the switch
/// counted is filled in by the caller.
///
/// # Errors
/// A connection that broke.
pub fn spoof(
    stage: &Stage,
    ports: &mut [Port],
    guests: &[DemoGuest],
    progress: impl FnMut(&Progress),
) -> Result<SpoofResult, String> {
    let (victim, target, honest) = (guests[0].mac, guests[1].mac, guests[3].mac);
    let spoofed = sender(pattern(victim, target, SMALL_LEN, Transport::Udp, 2), 2, Some(SPOOF_PPS));
    let beside = sender(pattern(honest, target, SMALL_LEN, Transport::Udp, 3), 3, Some(SPOOF_PPS));
    let quiet = || job(Vec::new(), 1, 0, Timing::Sampled);
    let jobs = vec![
        quiet(),
        quiet(),
        job(vec![spoofed], 1, 0, Timing::Sampled),
        job(vec![beside], 1, 0, Timing::Sampled),
    ];
    let measured = run(stage, ports, jobs, progress)?;
    let from =
        |source: u8| -> u64 { measured.jobs.iter().map(|j| j.receiver.tracker().unique_from(source)).sum() };
    Ok(SpoofResult {
        spoofed_sent: measured.jobs[2].senders[0].counts().frames,
        spoofed_dropped: 0,
        spoofed_leaked: from(2),
        honest_sent: measured.jobs[3].senders[0].counts().frames,
        honest_received: from(3),
    })
}
