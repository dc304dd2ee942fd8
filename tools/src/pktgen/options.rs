//! Options of `avio-pktgen`, and what they mean together.
//!
//! Owns names, defaults and the refusal of combinations that make no sense. The rest of the generator reads the checked
//! [`Plan`] only.

use super::frame::{self, Transport};
use super::pattern::{FLOWS_MAX, IMIX, mac_plus};
use avio_guest::net::{NetOptions, Offloads};
use avio_proto::config::MacAddr;
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// First default guest address; further ports count up. Locally administered.
const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Most ports in one generator: their number travels in 8 bits, and the last is kept for tests.
const PORTS_MAX: usize = 255;
/// Payload bytes per TSO segment: 1,500 bytes of MTU without IP and TCP headers and the usual timestamp option.
const MSS: u16 = 1448;
/// Default TSO frame: 45 whole segments, the most that fit into one IPv4 packet.
const TSO_LEN: usize = frame::TCP_STAMP_AT + 45 * MSS as usize;

/// What the ports do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Every first socket transmits to the second, in this process.
    Pair,
    /// All sockets transmit.
    Transmit,
    /// All sockets receive.
    Receive,
    /// All sockets answer each frame with one of their own (the far end of `--pattern rr` in another process).
    Answer,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Traffic {
    /// One size (`--size`).
    Fixed,
    /// Seven frames of 60 bytes, four of 590, one of 1,514 (64, 594 and 1,518 on a wire).
    Imix,
    /// TCP segmentation frames of 64 KiB (or `--size`).
    Tso,
    /// One request at a time, the next when the answer has come.
    Rr,
}

/// How the guest waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Notify {
    /// It polls; the switch never has to signal it.
    Poll,
    /// It sleeps on its eventfds when there is nothing to do.
    Wait,
}

/// A guest in a process: drives vhost-user network ports at full speed and verifies what arrives.
#[derive(Clone, Debug, Parser)]
#[command(name = "avio-pktgen", version)]
pub struct Options {
    /// vhost-user socket of a port; repeat for several ports.
    #[arg(long = "socket", value_name = "PATH", required = true)]
    pub sockets: Vec<PathBuf>,
    /// Listen at the sockets instead of connecting (the switch is the client).
    #[arg(long)]
    pub listen: bool,
    /// What the ports do.
    #[arg(long, value_enum, default_value = "pair")]
    pub role: Role,
    /// The guests' MAC addresses, one per socket; default 02:00:00:00:00:01 and up.
    #[arg(long = "guest-mac", value_name = "MAC")]
    pub guest_macs: Vec<MacAddr>,
    /// Where each socket sends to; default with `pair`: the partner's.
    #[arg(long = "peer-mac", value_name = "MAC")]
    pub peer_macs: Vec<MacAddr>,
    /// What is sent.
    #[arg(long, value_enum, default_value = "fixed")]
    pub pattern: Traffic,
    /// Frame length in bytes without FCS.
    #[arg(long, value_name = "BYTES")]
    pub size: Option<usize>,
    /// With `pair`: both directions at once.
    #[arg(long)]
    pub bidirectional: bool,
    /// Flows (source ports).
    #[arg(long, default_value_t = 1)]
    pub flows: u16,
    /// Source MAC addresses, counted up from the guest's; more than one needs a trusted port.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub source_mac_count: u32,
    /// Destination MAC addresses, counted up from the peer's.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub peer_mac_count: u32,
    /// Share of broadcast frames in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    pub broadcast: f64,
    /// Frames per second of each transmitting port, e.g. 200k or 1.5M; default: as fast as the ring takes them.
    #[arg(long, value_name = "PPS", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Search the highest rate without loss (RFC 2544 section 26.1); `--duration` is the length of one trial.
    #[arg(long)]
    pub search: bool,
    /// Loss in percent that a trial of `--search` may have.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    pub search_loss: f64,
    /// Where `--search` stops: width of the remaining interval in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    pub search_resolution: f64,
    /// Measured time in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    pub duration: Duration,
    /// Time before that, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "0.3", value_parser = parse_seconds)]
    pub warmup: Duration,
    /// Packed rings.
    #[arg(long)]
    pub packed: bool,
    /// In-order use of buffers.
    #[arg(long)]
    pub in_order: bool,
    /// One buffer per frame instead of merged ones.
    #[arg(long)]
    pub no_mergeable: bool,
    /// Indirect descriptors for transmitted frames.
    #[arg(long)]
    pub indirect: bool,
    /// Notification flags instead of event indices.
    #[arg(long)]
    pub no_event_idx: bool,
    /// Queue pairs.
    #[arg(long, default_value_t = 1)]
    pub queues: u16,
    /// Ring entries; default 256, or 1024 with `--pattern tso`, where a frame takes 32 receive buffers.
    #[arg(long)]
    pub ring_size: Option<u16>,
    /// Guest memory in pages of 2 MiB, as guests with many ports have it; the system must have set some aside
    /// (/proc/sys/vm/nr_hugepages).
    #[arg(long)]
    pub huge_pages: bool,
    /// Offloads to ask for: none, csum, tso (with csum), all. Default: none, or tso with `--pattern tso`.
    #[arg(long, value_name = "WHICH", value_parser = parse_offloads)]
    pub offloads: Option<Offloads>,
    /// Receive buffer length in bytes; default 2,048 with merged buffers, else what the longest frame needs.
    #[arg(long, value_name = "BYTES")]
    pub rx_buffer: Option<usize>,
    /// How the guests wait.
    #[arg(long, value_enum, default_value = "poll")]
    pub notify: Notify,
    /// Check every Nth frame byte for byte; 1: all, 0: none. Sequence numbers are always checked.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub verify: u64,
    /// Processor cores, one thread each; ports are dealt out to them. Default: one thread per port, but one core is left to
    /// the switch.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// How long to wait for the sockets, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    pub connect_timeout: Duration,
    /// Print one JSON object at the end instead of a table.
    #[arg(long)]
    pub json: bool,
    /// No progress lines.
    #[arg(long)]
    pub quiet: bool,
}

/// `200k`, `1.5M`, `3000`.
fn parse_rate(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.chars().last() {
        Some('k' | 'K') => (&text[..text.len() - 1], 1e3),
        Some('m' | 'M') => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 && n.is_finite() => Ok(n * unit),
        _ => Err("a rate is a number of frames per second above 0, such as 200k or 1.5M".into()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .ok_or_else(|| "a time is a number of seconds, such as 5 or 0.5".into())
}

fn parse_offloads(text: &str) -> Result<Offloads, String> {
    match text {
        "none" => Ok(Offloads::None),
        "csum" => Ok(Offloads::Checksum),
        "tso" => Ok(Offloads::Tso),
        "all" => Ok(Offloads::All),
        _ => Err("none, csum, tso or all".into()),
    }
}

/// One port as it will run.
#[derive(Clone, Debug)]
pub struct PortPlan {
    /// vhost-user socket.
    pub socket: PathBuf,
    /// Own address.
    pub mac: [u8; 6],
    /// Where it sends to; `None`: it only receives.
    pub to: Option<[u8; 6]>,
    /// Sends one frame per frame received.
    pub answers: bool,
    /// Port of this process that its frames go to.
    pub partner: Option<usize>,
}

/// Options, checked and completed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// As given.
    pub options: Options,
    /// Ports in order.
    pub ports: Vec<PortPlan>,
    /// Frame lengths in bytes, in turn.
    pub lens: Vec<usize>,
    /// Transport and offload of the frames.
    pub transport: Transport,
    /// Guests' rings and features.
    pub net: NetOptions,
    /// Segment length, 0 without segmentation.
    pub mss: u16,
    /// Cores to run on; empty: one thread, not pinned.
    pub cores: Vec<usize>,
}

impl Options {
    /// Checks and completes; `available` are the cores of this process.
    ///
    /// # Errors
    /// One line: which option, and what would be right.
    pub fn plan(self, available: &[usize]) -> Result<Plan, String> {
        let ports = self.ports()?;
        let (lens, transport) = self.frames()?;
        let len_max = lens.iter().copied().max().unwrap_or(0);
        if self.queues == 0 || self.queues > 128 {
            return Err("--queues: 1 to 128".into());
        }
        let ring_size = self.ring_size.unwrap_or(if self.pattern == Traffic::Tso { 1024 } else { 256 });
        if ring_size < 8 || !ring_size.is_power_of_two() || ring_size > 32_768 {
            return Err("--ring-size: a power of two from 8 to 32768".into());
        }
        if self.flows == 0 || self.flows > FLOWS_MAX {
            return Err(format!("--flows: 1 to {FLOWS_MAX}"));
        }
        if !(0.0..=100.0).contains(&self.broadcast) {
            return Err("--broadcast: 0 to 100 percent".into());
        }
        let segments = matches!(transport, Transport::TcpSegments { .. });
        let offloads = match self.offloads {
            Some(Offloads::None | Offloads::Checksum) if segments => {
                return Err("--pattern tso needs --offloads tso or all".into());
            }
            Some(o) => o,
            None if segments => Offloads::Tso,
            None => Offloads::None,
        };
        let transport = match transport {
            Transport::Udp if offloads != Offloads::None => Transport::UdpPartial,
            t => t,
        };
        // Any frame may arrive when segmentation is accepted, a whole frame at least always.
        let net = NetOptions {
            packed: self.packed,
            in_order: self.in_order,
            mergeable: !self.no_mergeable,
            indirect: self.indirect,
            event_idx: !self.no_event_idx,
            queue_pairs: self.queues,
            ring_size,
            offloads,
            huge_pages: self.huge_pages,
            frame_len_max: len_max,
            rx_buffer_len: self.rx_buffer,
            listen: self.listen,
            connect_timeout: self.connect_timeout,
            ..NetOptions::default()
        };
        let cores = if self.cores.is_empty() {
            let spare = available.len().saturating_sub(1).max(1);
            available.iter().copied().take(ports.len().min(spare)).collect()
        } else {
            if let Some(missing) = self.cores.iter().find(|c| !available.contains(c)) {
                return Err(format!(
                    "--cores: this process may not run on core {missing}, only on {available:?}"
                ));
            }
            self.cores.clone()
        };
        let mss = if segments { MSS } else { 0 };
        Ok(Plan { ports, lens, transport, net, mss, cores, options: self })
    }

    fn ports(&self) -> Result<Vec<PortPlan>, String> {
        let count = self.sockets.len();
        if count > PORTS_MAX {
            return Err(format!("--socket: at most {PORTS_MAX} ports"));
        }
        if self.role == Role::Pair && !count.is_multiple_of(2) {
            return Err("--role pair needs an even number of --socket".into());
        }
        if !self.guest_macs.is_empty() && self.guest_macs.len() != count {
            return Err("--guest-mac: one per --socket, or none at all".into());
        }
        if !self.peer_macs.is_empty() && self.peer_macs.len() != count {
            return Err("--peer-mac: one per --socket, or none at all".into());
        }
        let mac = |i: usize| match self.guest_macs.get(i) {
            Some(mac) => mac.0,
            None => mac_plus(GUEST_MAC, i as u32),
        };
        let rr = self.pattern == Traffic::Rr;
        let mut ports = Vec::new();
        for (i, socket) in self.sockets.iter().enumerate() {
            let first_of_pair = i % 2 == 0;
            let partner = (self.role == Role::Pair).then_some(i ^ 1);
            let sends = match self.role {
                Role::Pair => first_of_pair || self.bidirectional || rr,
                Role::Transmit | Role::Answer => true,
                Role::Receive => false,
            };
            let to = match (self.peer_macs.get(i), partner) {
                _ if !sends => None,
                (Some(mac), _) => Some(mac.0),
                (None, Some(partner)) => Some(mac(partner)),
                (None, None) => return Err("--peer-mac: needed to transmit without a partner".into()),
            };
            let answers = self.role == Role::Answer || (rr && self.role == Role::Pair && !first_of_pair);
            ports.push(PortPlan { socket: socket.clone(), mac: mac(i), to, answers, partner });
        }
        Ok(ports)
    }

    fn frames(&self) -> Result<(Vec<usize>, Transport), String> {
        let (default, transport) = match self.pattern {
            Traffic::Imix if self.size.is_some() => {
                return Err("--size: the sizes of --pattern imix are given".into());
            }
            Traffic::Imix => return Ok((IMIX.to_vec(), Transport::Udp)),
            Traffic::Fixed | Traffic::Rr => (64, Transport::Udp),
            Traffic::Tso => (TSO_LEN, Transport::TcpSegments { mss: MSS }),
        };
        let len = self.size.unwrap_or(default);
        let min = frame::stamp_offset(transport) + frame::STAMP_LEN;
        if len < min || len > frame::LEN_MAX {
            return Err(format!("--size: {min} to {} bytes", frame::LEN_MAX));
        }
        Ok((vec![len], transport))
    }
}

impl FromStr for Options {
    type Err = clap::Error;

    /// Parses a command line without the program's name; for tests and other front doors.
    fn from_str(line: &str) -> Result<Self, clap::Error> {
        Self::try_parse_from(std::iter::once("avio-pktgen").chain(line.split_whitespace()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Plan, String> {
        line.parse::<Options>().map_err(|e| e.to_string())?.plan(&[0, 1])
    }

    #[test]
    fn a_pair_sends_from_the_first_to_the_second() {
        let p = plan("--socket a --socket b").unwrap();
        assert_eq!(p.ports[0].to, Some([2, 0, 0, 0, 0, 2]));
        assert_eq!(p.ports[1].to, None);
        assert_eq!(p.cores, [0]);
        assert_eq!(p.lens, [64]);
    }

    #[test]
    fn request_and_response_go_both_ways() {
        let p = plan("--socket a --socket b --pattern rr").unwrap();
        assert!(!p.ports[0].answers && p.ports[1].answers);
        assert_eq!(p.ports[1].to, Some([2, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn segmentation_frames_bring_their_offload() {
        let p = plan("--socket a --socket b --pattern tso").unwrap();
        assert_eq!((p.lens[0], p.mss, p.net.offloads), (65_214, 1448, Offloads::Tso));
        assert!(
            plan("--socket a --socket b --pattern tso --offloads none").unwrap_err().contains("--offloads")
        );
    }

    #[test]
    fn nonsense_is_refused_with_the_options_name() {
        for (line, name) in [
            ("--socket a", "--socket"),
            ("--socket a --role transmit", "--peer-mac"),
            ("--socket a --socket b --size 30", "--size"),
            ("--socket a --socket b --queues 0", "--queues"),
            ("--socket a --socket b --ring-size 100", "--ring-size"),
            ("--socket a --socket b --cores 7", "--cores"),
            ("--socket a --socket b --guest-mac 02:00:00:00:00:09", "--guest-mac"),
            ("--socket a --socket b --rate 0", "--rate"),
        ] {
            let error = plan(line).unwrap_err();
            assert!(error.contains(name), "{line}: {error}");
        }
    }

    #[test]
    fn rates_take_units() {
        assert_eq!(parse_rate("1.5M"), Ok(1.5e6));
        assert_eq!(parse_rate("200k"), Ok(2e5));
        assert_eq!(parse_rate("10"), Ok(10.0));
    }
}
