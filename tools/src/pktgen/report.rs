//! What `avio-pktgen` says at the end: a table, or one JSON object whose field names stay as they are.
//!
//! Owns the arithmetic from counts to figures and the verdict. Reads measurements, never rings.

use super::options::{Plan, Role, Traffic};
use super::run::{Measured, Progress, Window, sum};
use super::tracker::Sequence;
use crate::latency::{Latency, LatencySummary};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// The JSON object of `avio-pktgen --json`. Fields are added, never renamed. Frames are counted at the receiver; octets
/// are those of Ethernet frames without FCS.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// `avio-pktgen`.
    pub tool: &'static str,
    /// Version of this object.
    pub format: u32,
    /// Whether something arrived and nothing was corrupt: exit status 0.
    pub ok: bool,
    /// `fixed`, `imix`, `tso` or `rr`.
    pub pattern: String,
    /// Frame lengths sent, in bytes, in turn.
    pub sizes: Vec<usize>,
    /// Length of the measured window in seconds.
    pub duration_s: f64,
    /// Frames received per second in the window, in millions.
    pub mpps: f64,
    /// Bits of frames received per second in the window, in thousand millions.
    pub gbit_s: f64,
    /// Frames sent per second in the window, in millions.
    pub tx_mpps: f64,
    /// Frames sent, warm-up and drain included.
    pub sent: u64,
    /// Frames received, warm-up and drain included.
    pub received: u64,
    /// Sequence numbers sent (segments of TSO frames count singly).
    pub sent_seqs: u64,
    /// Sequence numbers received once.
    pub unique_seqs: u64,
    /// Sequence numbers that never came; `null` if another process sends or receives and the number cannot be known.
    pub lost: Option<u64>,
    /// The same as a share of those sent.
    pub lost_ratio: Option<f64>,
    /// Sequence numbers that came again.
    pub duplicated: u64,
    /// Sequence numbers that came after a later one of their flow.
    pub reordered: u64,
    /// Frames with wrong bytes, among `checked` ones, and impossible sequence numbers.
    pub corrupt: u64,
    /// Frames checked byte for byte.
    pub checked: u64,
    /// Frames of somebody else.
    pub foreign: u64,
    /// Frames that came unsegmented under a segmentation header.
    pub gso_frames: u64,
    /// Share of receive polls that found nothing: above 0.8 the switch is the bottleneck, near 0 the guest is.
    pub empty_poll_ratio: f64,
    /// One-way latency of a sample, from before the transmit ring's publication to the receiver's poll.
    pub latency_us: LatencySummary,
    /// Round trips of `--pattern rr`.
    pub rtt_us: LatencySummary,
    /// Requests without an answer.
    pub rr_timeouts: u64,
    /// Time in which the generator's threads were ready but did not run, in milliseconds.
    pub waited_ms: f64,
    /// Connections opened anew.
    pub reconnects: u64,
    /// Ports in order of `--socket`.
    pub ports: Vec<PortReport>,
    /// Trials of `--search`, and the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchReport>,
}

/// One port.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PortReport {
    /// vhost-user socket.
    pub socket: String,
    /// Features agreed on, virtio bits, hexadecimal.
    pub features: String,
    /// Frames sent per second in the window, in millions.
    pub tx_mpps: f64,
    /// Frames received per second in the window, in millions.
    pub rx_mpps: f64,
    /// Bits received per second in the window, in thousand millions.
    pub rx_gbit_s: f64,
    /// Frames sent.
    pub sent: u64,
    /// Frames received.
    pub received: u64,
    /// Share of polls that found the transmit ring full.
    pub full_poll_ratio: f64,
    /// Sequence counts at this receiver.
    pub sequence: Sequence,
    /// Frames with wrong bytes.
    pub corrupt: u64,
}

/// Outcome of `--search` (RFC 2544 section 26.1).
#[derive(Clone, Debug, Default, Serialize)]
pub struct SearchReport {
    /// Highest rate whose trial lost no more than allowed, in millions of frames per second of all transmitters; 0 if none.
    pub no_loss_mpps: f64,
    /// All trials in order.
    pub trials: Vec<Trial>,
}

/// One trial.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Trial {
    /// Offered, in millions of frames per second; 0: as fast as the rings take them.
    pub offered_mpps: f64,
    /// Received, in millions of frames per second.
    pub mpps: f64,
    /// Share lost.
    pub lost_ratio: f64,
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Sequence numbers that should have arrived in this process; `None` if some come from or go to elsewhere.
fn expected_seqs(plan: &Plan, measured: &Measured) -> Option<u64> {
    (plan.options.role == Role::Pair).then(|| {
        measured
            .jobs
            .iter()
            .flat_map(|job| &job.senders)
            .map(|sender| {
                let broadcast = sender.pattern().broadcast_seqs();
                let receivers = plan.ports.len() as u64 - 1;
                sender.counts().seqs - broadcast + broadcast * receivers
            })
            .sum()
    })
}

impl Report {
    /// Figures of one measurement; `features` as negotiated, per port.
    #[must_use]
    pub fn new(plan: &Plan, measured: &Measured, features: &[u64]) -> Self {
        let window = sum(&measured.windows);
        let rate = |count: u64, w: &Window| if w.seconds > 0.0 { count as f64 / w.seconds } else { 0.0 };
        let mut r = Self {
            tool: "avio-pktgen",
            format: 1,
            pattern: match plan.options.pattern {
                Traffic::Fixed => "fixed",
                Traffic::Imix => "imix",
                Traffic::Tso => "tso",
                Traffic::Rr => "rr",
            }
            .into(),
            sizes: plan.lens.clone(),
            duration_s: window.seconds,
            mpps: rate(window.rx_frames, &window) / 1e6,
            gbit_s: rate(window.rx_octets, &window) * 8.0 / 1e9,
            tx_mpps: rate(window.tx_frames, &window) / 1e6,
            waited_ms: measured.waited_ms,
            reconnects: measured.reconnects,
            ..Self::default()
        };
        let (mut latency, mut rtt) = (Latency::new(), Latency::new());
        let (mut missing, mut rx_windows) = (0, Vec::new());
        for (i, job) in measured.jobs.iter().enumerate() {
            let (w, got, seqs) =
                (&measured.windows[i], job.receiver.counts(), job.receiver.tracker().counts());
            let sent: u64 = job.senders.iter().map(|s| s.counts().frames).sum();
            let tx_polls = job.senders.iter().map(|s| s.counts().polls).sum();
            let full = job.senders.iter().map(|s| s.counts().full_polls).sum();
            r.sent += sent;
            r.sent_seqs += job.senders.iter().map(|s| s.counts().seqs).sum::<u64>();
            r.received += got.frames;
            r.unique_seqs += seqs.unique;
            r.duplicated += seqs.duplicated;
            r.reordered += seqs.reordered;
            r.corrupt += got.corrupt + seqs.implausible;
            r.checked += got.checked;
            r.foreign += got.foreign;
            r.gso_frames += got.gso_frames;
            missing += seqs.missing;
            latency.merge(job.receiver.latency());
            if let Some(requests) = &job.requests {
                rtt.merge(&requests.rtt);
                r.rr_timeouts += requests.timeouts;
            }
            if got.frames > 0 {
                rx_windows.push(*w);
            }
            r.ports.push(PortReport {
                socket: plan.ports[i].socket.display().to_string(),
                features: format!("{:#x}", features.get(i).copied().unwrap_or(0)),
                tx_mpps: rate(w.tx_frames, w) / 1e6,
                rx_mpps: rate(w.rx_frames, w) / 1e6,
                rx_gbit_s: rate(w.rx_octets, w) * 8.0 / 1e9,
                sent,
                received: got.frames,
                full_poll_ratio: ratio(full, tx_polls),
                sequence: seqs,
                corrupt: got.corrupt,
            });
        }
        r.lost = match plan.options.role {
            Role::Pair => expected_seqs(plan, measured).map(|e| e.saturating_sub(r.unique_seqs)),
            Role::Receive => Some(missing),
            Role::Transmit | Role::Answer => None,
        };
        r.lost_ratio = r.lost.map(|lost| ratio(lost, lost + r.unique_seqs));
        let polled = sum(&rx_windows);
        r.empty_poll_ratio = ratio(polled.empty_polls, polled.polls);
        r.latency_us = latency.summary();
        r.rtt_us = rtt.summary();
        let arrived = plan.options.role == Role::Transmit || r.received > 0;
        r.ok = r.corrupt == 0 && arrived;
        r
    }

    /// Why the verdict is not `ok`, as one line.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        if self.ok {
            None
        } else if self.corrupt > 0 {
            Some(format!("{} of {} checked frames were corrupt", self.corrupt, self.checked))
        } else {
            Some("nothing arrived: are the ports on one vswitch, the MAC addresses those of its definitions, and the frames \
                 at most 14 bytes longer than the mtu?".into())
        }
    }

    /// The table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut t = Table::new();
        t.load_style(presets::NOTHING);
        let mut line = |name: &str, value: String| {
            t.add_row([name.to_owned(), value]);
        };
        let sizes = match self.sizes.as_slice() {
            [one] => format!("{one} B"),
            _ => "7 x 60, 4 x 590, 1 x 1514 B".into(),
        };
        line("Frames", format!("{} {}", self.pattern, sizes));
        line("Received", format!("{:.3} Mpps, {:.3} Gbit/s", self.mpps, self.gbit_s));
        line("Sent", format!("{:.3} Mpps", self.tx_mpps));
        if let (Some(lost), Some(ratio)) = (self.lost, self.lost_ratio) {
            line("Lost", format!("{lost} ({:.4} %)", ratio * 100.0));
        }
        line("Duplicated", self.duplicated.to_string());
        line("Reordered", self.reordered.to_string());
        line("Corrupt", format!("{} of {} checked", self.corrupt, self.checked));
        if self.gso_frames > 0 {
            line("Unsegmented", self.gso_frames.to_string());
        }
        if self.foreign > 0 {
            line("Foreign", self.foreign.to_string());
        }
        if self.rtt_us.count > 0 {
            line("Round trip", percentiles(&self.rtt_us));
            line("Unanswered", self.rr_timeouts.to_string());
        }
        if self.latency_us.count > 0 {
            line("One way", percentiles(&self.latency_us));
        }
        line("Empty polls", format!("{:.1} %", self.empty_poll_ratio * 100.0));
        if self.reconnects > 0 {
            line("Reconnects", self.reconnects.to_string());
        }
        if let Some(search) = &self.search {
            line(
                "No-loss rate",
                format!("{:.3} Mpps in {} trials", search.no_loss_mpps, search.trials.len()),
            );
        }
        let mut text = t.to_string();
        if self.ports.len() > 2 {
            text.push_str("\n\n");
            text.push_str(&self.port_table());
        }
        text.lines().map(|l| format!("{}\n", l.trim())).collect()
    }

    fn port_table(&self) -> String {
        let mut t = Table::new();
        t.load_style(presets::NOTHING);
        t.set_header(["Port", "Sent", "Received", "Tx Mpps", "Rx Mpps", "Rx Gbit/s", "Missing", "Socket"]);
        for (i, p) in self.ports.iter().enumerate() {
            t.add_row([
                i.to_string(),
                p.sent.to_string(),
                p.received.to_string(),
                format!("{:.3}", p.tx_mpps),
                format!("{:.3}", p.rx_mpps),
                format!("{:.3}", p.rx_gbit_s),
                p.sequence.missing.to_string(),
                p.socket.clone(),
            ]);
        }
        for column in t.column_iter_mut().take(7) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        t.to_string()
    }
}

/// `p50 1.2, p99 3.4, max 5.6 us`.
#[must_use]
pub fn percentiles(s: &LatencySummary) -> String {
    format!("p50 {:.2}, p99 {:.2}, max {:.2} us ({} samples)", s.p50_us, s.p99_us, s.max_us, s.count)
}

/// The progress line.
#[must_use]
pub fn progress_line(p: &Progress) -> String {
    format!(
        "{:6.1} s  sent {:8.3} Mpps  received {:8.3} Mpps {:8.3} Gbit/s  missing {}",
        p.elapsed_s,
        p.tx_pps / 1e6,
        p.rx_pps / 1e6,
        p.rx_bits / 1e9,
        p.missing
    )
}
