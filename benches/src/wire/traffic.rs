//! The two ends of the traffic: a generator at the far end of the wire and a guest on the switch, or two guests.
//!
//! Both run on one thread, on the guests' core: a generator of its own there would keep the receiver from the processor for longer than a ring lasts.
//! What reaches the far device is counted by the kernel.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::net::{NetGuest, NetOptions, NetQueue, Offloads};
use avio_proto::config::MacAddr;
use avio_proto::virtio::net::NetHeader;
use avio_tests::config::mac_of;
use avio_tests::failure::ensure;
use avio_tests::wire::Wire;
use avio_tests::{Failure, Result};
use avio_tools::pktgen::frame::{
    FrameSpec, LEN_MAX, SOURCE_PORT_AT, TCP_STAMP_AT, Template, Transport, source_port,
};

use super::generator::Generator;
use super::receiver::Receiver;
use super::rows::{Source, Way};

/// Who is at the far end of the wire.
pub const FAR_MAC: &str = "02:00:00:00:77:77";
/// Frames that are sent at once: a batch of any of the targets' drivers.
const BURST: usize = 32;
/// What is still under way when a window ends has arrived after this.
const SETTLE: Duration = Duration::from_millis(20);
/// 64 bytes with their check sequence, as the wire counts.
const FRAME_LEN: usize = 60;
/// Payload of a segment at an MTU of 1,500 bytes, as with TCP's timestamps.
const MSS: u16 = 1448;
/// Segments of a long frame: as many as an IPv4 packet holds.
const LONG_SEGMENTS: usize = 45;
/// Long frames that are sent at once.
const LONG_BURST: usize = 4;
/// Where the sequence number of a TCP frame stands.
const TCP_SEQUENCE_AT: usize = 38;

/// What is at the far end of a wire, beside the device that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarEnd {
    /// Nothing: the kernel's network stack drops what comes.
    Stack,
    /// The generator.
    Generator,
    /// An AF_XDP socket and its program.
    Receiver,
}

/// Frames offered and received in a window.
#[derive(Clone, Debug, Default)]
pub struct Moved {
    /// By the sender.
    pub offered: u64,
    /// At the receiver.
    pub received: u64,
    /// Their octets, where the receiver is a guest that counts them.
    pub octets: u64,
    /// At each far device, where there are several.
    pub shares: Vec<u64>,
    /// How long the sender sent.
    pub seconds: f64,
}

/// See the module.
pub struct Ends {
    far: Option<Generator>,
    far_receiver: Option<Receiver>,
    wires: Vec<Wire>,
    // Kept: its end is the end of the guest.
    _guests: Vec<NetGuest>,
    sender: NetQueue,
    receiver: Option<NetQueue>,
    inbound: Vec<u8>,
    outbound: Vec<u8>,
    long: Option<Template>,
    next_seq: u32,
}

impl Ends {
    /// Connects a guest to `socket` (which it listens at, for switches that connect), and opens what is at the far end of the first of
    /// `wires`.
    ///
    /// # Errors
    /// When the switch does not serve the guest, or the far device takes no socket.
    pub fn new(wires: Vec<Wire>, socket: &Path, listen: bool, far_end: FarEnd) -> Result<Self> {
        let (guest, sender) = guest(socket, listen, false)?;
        let first = |wanted: FarEnd| wires.first().filter(|_| far_end == wanted);
        let far = first(FarEnd::Generator).map(Generator::new).transpose()?;
        let far_receiver = first(FarEnd::Receiver).map(Receiver::new).transpose()?;
        let frame = |to: &str, from: &str| -> Result<Vec<u8>> {
            let mut bytes = [mac(to)?, mac(from)?].concat();
            // IPv4 and UDP, as OVS's parser wants to see it.
            bytes.extend([0x08, 0x00, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0x26, 0xbd]);
            bytes.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x10, 0, 0x10, 1, 0, 26, 0, 0]);
            bytes.resize(FRAME_LEN, 0x5a);
            Ok(bytes)
        };
        let (inbound, outbound) = (frame(&mac_of(1), FAR_MAC)?, frame(FAR_MAC, &mac_of(1))?);
        let (_guests, receiver, long) = (vec![guest], None, None);
        Ok(Self { far, far_receiver, wires, _guests, sender, receiver, inbound, outbound, long, next_seq: 0 })
    }

    /// Connects two guests with TSO; the first sends to the second.
    ///
    /// # Errors
    /// As [`Ends::new`].
    pub fn between(sockets: [&Path; 2], listen: bool) -> Result<Self> {
        let (from, sender) = guest(sockets[0], listen, true)?;
        let (to, receiver) = guest(sockets[1], listen, true)?;
        let spec = FrameSpec {
            to: mac(&mac_of(2))?,
            from: mac(&mac_of(1))?,
            len: TCP_STAMP_AT + LONG_SEGMENTS * usize::from(MSS),
            transport: Transport::TcpSegments { mss: MSS },
            source: 0,
            seed: 0,
        };
        Ok(Self {
            far: None,
            far_receiver: None,
            wires: Vec::new(),
            _guests: vec![from, to],
            sender,
            receiver: Some(receiver),
            inbound: Vec::new(),
            outbound: Vec::new(),
            long: Some(Template::new(&spec)),
            next_seq: 1,
        })
    }

    /// Only polls, as the windows do.
    ///
    /// # Errors
    /// When a ring breaks.
    pub fn idle(&mut self, window: Duration) -> Result {
        let (start, mut ignored) = (Instant::now(), Moved::default());
        while start.elapsed() < window {
            for queue in std::iter::once(&mut self.sender).chain(&mut self.receiver) {
                receive(queue, &mut ignored)?;
            }
        }
        Ok(())
    }

    /// Sends one way for `window`, at `rate` frames per second or as fast as it goes, in so many flows.
    ///
    /// # Errors
    /// When a ring breaks or the kernel refuses the socket.
    pub fn window(&mut self, way: Way, rate: Option<f64>, flows: u16, window: Duration) -> Result<Moved> {
        match way {
            Way::In(source) => self.inwards(source, rate, window),
            Way::Out => self.outwards(rate, flows, window),
            Way::Across => self.across(window),
        }
    }

    fn inwards(&mut self, source: Source, rate: Option<f64>, window: Duration) -> Result<Moved> {
        let Self { far: Some(far), sender, inbound, .. } = self else {
            return Err(Failure::new("no generator"));
        };
        let mut far = far.by(source)?;
        let mut moved = Moved::default();
        let start = Instant::now();
        while lasts(start, window, &mut moved) {
            if rate.is_none_or(|rate| moved.offered as f64 <= rate * moved.seconds) {
                for _ in 0..BURST {
                    let Ok(frame) = far.reserve(inbound.len()) else { break };
                    frame[0].copy_from(inbound);
                    moved.offered += 1;
                }
                far.commit()?;
            }
            receive(sender, &mut moved)?;
        }
        let end = Instant::now();
        while end.elapsed() < SETTLE {
            far.commit()?;
            receive(sender, &mut moved)?;
        }
        Ok(moved)
    }

    fn outwards(&mut self, rate: Option<f64>, flows: u16, window: Duration) -> Result<Moved> {
        let before = self.arrived()?;
        let Self { sender, outbound, far_receiver, .. } = self;
        let mut moved = Moved::default();
        let mut ignored = Moved::default();
        let mut flow = 0;
        let start = Instant::now();
        while lasts(start, window, &mut moved) {
            if rate.is_none_or(|rate| moved.offered as f64 <= rate * moved.seconds) {
                let room = sender.tx.room(BURST).map_err(|e| Failure::new(e.to_string()))?;
                for _ in 0..room.min(BURST) {
                    outbound[SOURCE_PORT_AT..SOURCE_PORT_AT + 2].copy_from_slice(&source_port(flow));
                    flow = if flow + 1 < flows { flow + 1 } else { 0 };
                    moved.offered += u64::from(sender.tx.push(&NetHeader::default(), outbound));
                }
                sender.tx.flush();
            }
            // Whatever the wire says on its own account.
            receive(sender, &mut ignored)?;
            far_receiver.as_mut().map_or(Ok(()), Receiver::drain)?;
        }
        std::thread::sleep(SETTLE);
        moved.shares =
            self.arrived()?.iter().zip(before).map(|(now, then)| now.saturating_sub(then)).collect();
        moved.received = moved.shares.iter().sum();
        Ok(moved)
    }

    fn across(&mut self, window: Duration) -> Result<Moved> {
        let Self { sender, receiver: Some(receiver), long: Some(long), next_seq, .. } = self else {
            return Err(Failure::new("no second guest"));
        };
        let (mut moved, mut ignored) = (Moved::default(), Moved::default());
        let payload_len = long.bytes.len() - TCP_STAMP_AT;
        let start = Instant::now();
        while lasts(start, window, &mut moved) {
            let room = sender.tx.room(LONG_BURST).map_err(|e| Failure::new(e.to_string()))?.min(LONG_BURST);
            sender.tx.push_burst(room, |slot| {
                if slot.tag() == 0 {
                    slot.set_header(&long.header);
                    slot.write(0, &long.bytes);
                    slot.set_tag(1);
                }
                slot.write_array(TCP_SEQUENCE_AT, &next_seq.to_be_bytes());
                *next_seq = next_seq.wrapping_add(payload_len as u32);
                long.bytes.len()
            });
            moved.offered += room as u64;
            sender.tx.flush();
            receive(sender, &mut ignored)?;
            receive(receiver, &mut moved)?;
        }
        let (seconds, end) = (moved.seconds, Instant::now());
        while end.elapsed() < SETTLE {
            receive(receiver, &mut ignored)?;
        }
        Ok(Moved { seconds, ..moved })
    }

    /// Frames that have reached each far device.
    fn arrived(&self) -> Result<Vec<u64>> {
        let arrived = |wire: &Wire| {
            let text = wire.far_ip(&["-s", "-j", "link", "show", &wire.far])?;
            let value: serde_json::Value =
                serde_json::from_str(&text).map_err(|e| Failure::new(e.to_string()))?;
            let packets = value[0]["stats64"]["rx"]["packets"].as_u64();
            packets.ok_or_else(|| Failure::new(format!("no counters in {text}")))
        };
        self.wires.iter().map(arrived).collect()
    }
}

/// Whether a window that began at `start` goes on; notes how long it has.
fn lasts(start: Instant, window: Duration, moved: &mut Moved) -> bool {
    moved.seconds = start.elapsed().as_secs_f64();
    moved.seconds < window.as_secs_f64()
}

fn mac(text: &str) -> Result<[u8; 6]> {
    text.parse::<MacAddr>().map(|mac| mac.0).map_err(|e| Failure::new(e.to_string()))
}

/// A guest with one queue pair.
fn guest(socket: &Path, listen: bool, long: bool) -> Result<(NetGuest, NetQueue)> {
    let endpoint = if listen { Endpoint::listen(socket)? } else { Endpoint::connect(socket) };
    let mut options =
        NetOptions { listen, connect_timeout: Duration::from_secs(20), ..NetOptions::default() };
    if long {
        options.offloads = Offloads::Tso;
        options.frame_len_max = LEN_MAX;
    }
    let (guest, queues) = NetGuest::connect(endpoint, &options).map_err(|e| Failure::new(e.to_string()))?;
    let queue = queues.into_iter().next().ok_or_else(|| Failure::new("the guest has no queue"))?;
    Ok((guest, queue))
}

fn receive(queue: &mut NetQueue, moved: &mut Moved) -> Result {
    let Moved { received, octets, .. } = moved;
    let look = |frame: &avio_guest::net::RxFrame<'_>| *octets += frame.len() as u64;
    *received += queue.rx.poll(64, look).map_err(|e| Failure::new(e.to_string()))? as u64;
    Ok(())
}

/// A pair of devices for one target, quiet: no address, no neighbour discovery.
///
/// # Errors
/// When this is not root, or the kernel has no veth.
pub fn wire(number: u32) -> Result<Wire> {
    let wire = Wire::numbered(number, "192.0.2.2/24")?;
    let sysctl = |line: &str| -> Result {
        let output = Command::new("ip")
            .args(["netns", "exec", &wire.namespace, "sysctl", "-q", "-w", line])
            .output()?;
        ensure(output.status.success(), || {
            format!("sysctl {line}: {}", String::from_utf8_lossy(&output.stderr))
        })
    };
    sysctl(&format!("net.ipv6.conf.{}.disable_ipv6=1", wire.far))?;
    quiet(&wire.near);
    Ok(wire)
}

/// No neighbour discovery of the host's on a device of this side.
pub fn quiet(device: &str) {
    drop(std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1"));
}
