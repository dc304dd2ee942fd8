//! The two ends of the traffic: a generator at the far end of the wire, and a guest on the switch.
//!
//! Both run on one thread, on the guests' core: a generator of its own there would keep the receiver from the processor for longer than a ring lasts.
//! The generator is an AF_XDP socket of ours on the far device; what reaches that device is counted by the kernel.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::net::{NetGuest, NetOptions, NetQueue};
use avio_proto::config::MacAddr;
use avio_proto::virtio::net::NetHeader;
use avio_tests::config::mac_of;
use avio_tests::failure::ensure;
use avio_tests::wire::Wire;
use avio_tests::{Failure, Result};
use avio_vswitch::port::wire::Outlet;
use avio_vswitch::port::xdp::{Wanted, open_xsk};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Who is at the far end of the wire.
pub const FAR_MAC: &str = "02:00:00:00:77:77";
/// Frames that are sent at once: a batch of any of the targets' drivers.
const BURST: usize = 32;
/// What is still under way when a window ends has arrived after this.
const SETTLE: Duration = Duration::from_millis(20);
/// Looked at as often, where bursts are far apart.
const FRAME_LEN: usize = 60;

/// Frames offered and received in a window.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// By the sender.
    pub offered: u64,
    /// At the receiver.
    pub received: u64,
    /// How long the sender sent.
    pub seconds: f64,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Way {
    /// Wire to guest.
    In,
    /// Guest to wire.
    Out,
}

/// See the module.
pub struct Ends {
    far: Box<dyn Outlet>,
    wire: Wire,
    // Kept: its end is the end of the guest.
    _guest: NetGuest,
    queue: NetQueue,
    inbound: Vec<u8>,
    outbound: Vec<u8>,
}

impl Ends {
    /// Connects a guest to `socket` (which it listens at, for switches that connect) and opens the generator at the far end of `wire`.
    ///
    /// # Errors
    /// When the switch does not serve the guest, or the far device takes no socket.
    pub fn new(wire: Wire, socket: &Path, listen: bool) -> Result<Self> {
        let endpoint = if listen { Endpoint::listen(socket)? } else { Endpoint::connect(socket) };
        let options =
            NetOptions { listen, connect_timeout: Duration::from_secs(20), ..NetOptions::default() };
        let (guest, queues) =
            NetGuest::connect(endpoint, &options).map_err(|e| Failure::new(e.to_string()))?;
        let queue = queues.into_iter().next().ok_or_else(|| Failure::new("the guest has no queue"))?;
        let far = generator(&wire)?;
        let frame = |to: &str, from: &str| -> Result<Vec<u8>> {
            let mac = |text: &str| text.parse::<MacAddr>().map_err(|e| Failure::new(e.to_string()));
            let mut bytes = [mac(to)?.0, mac(from)?.0].concat();
            // IPv4 and UDP, as OVS's parser wants to see it.
            bytes.extend([0x08, 0x00, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0x26, 0xbd]);
            bytes.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x10, 0, 0x10, 1, 0, 26, 0, 0]);
            bytes.resize(FRAME_LEN, 0x5a);
            Ok(bytes)
        };
        let (inbound, outbound) = (frame(&mac_of(1), FAR_MAC)?, frame(FAR_MAC, &mac_of(1))?);
        Ok(Self { far, wire, _guest: guest, queue, inbound, outbound })
    }

    /// Sends one way for `window`, at `rate` frames per second or as fast as it goes.
    ///
    /// # Errors
    /// When a ring breaks or the kernel refuses the socket.
    pub fn window(&mut self, way: Way, rate: Option<f64>, window: Duration) -> Result<Moved> {
        match way {
            Way::In => self.inwards(rate, window),
            Way::Out => self.outwards(rate, window),
        }
    }

    fn inwards(&mut self, rate: Option<f64>, window: Duration) -> Result<Moved> {
        let Self { far, queue, inbound, .. } = self;
        let (mut offered, mut received) = (0, 0);
        let start = Instant::now();
        let mut seconds;
        loop {
            seconds = start.elapsed().as_secs_f64();
            if seconds >= window.as_secs_f64() {
                break;
            }
            if rate.is_none_or(|rate| offered as f64 <= rate * seconds) {
                for _ in 0..BURST {
                    let Ok(frame) = far.reserve(inbound.len()) else { break };
                    frame[0].copy_from(inbound);
                    offered += 1;
                }
                far.commit()?;
            }
            received += receive(queue)?;
        }
        let end = Instant::now();
        while end.elapsed() < SETTLE {
            far.commit()?;
            received += receive(queue)?;
        }
        Ok(Moved { offered, received, seconds })
    }

    fn outwards(&mut self, rate: Option<f64>, window: Duration) -> Result<Moved> {
        let before = self.arrived()?;
        let Self { queue, outbound, .. } = self;
        let mut offered = 0;
        let start = Instant::now();
        let mut seconds;
        loop {
            seconds = start.elapsed().as_secs_f64();
            if seconds >= window.as_secs_f64() {
                break;
            }
            if rate.is_none_or(|rate| offered as f64 <= rate * seconds) {
                let room = queue.tx.room(BURST).map_err(|e| Failure::new(e.to_string()))?;
                for _ in 0..room.min(BURST) {
                    offered += u64::from(queue.tx.push(&NetHeader::default(), outbound));
                }
                queue.tx.flush();
            }
            // Whatever the wire says on its own account.
            receive(queue)?;
        }
        std::thread::sleep(SETTLE);
        Ok(Moved { offered, received: self.arrived()?.saturating_sub(before), seconds })
    }

    /// Frames that have reached the far device.
    fn arrived(&self) -> Result<u64> {
        let text = self.wire.far_ip(&["-s", "-j", "link", "show", &self.wire.far])?;
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| Failure::new(e.to_string()))?;
        let packets = value[0]["stats64"]["rx"]["packets"].as_u64();
        packets.ok_or_else(|| Failure::new(format!("no counters in {text}")))
    }
}

fn receive(queue: &mut NetQueue) -> Result<u64> {
    let count = queue.rx.poll(64, |_| ()).map_err(|e| Failure::new(e.to_string()))?;
    Ok(count as u64)
}

/// The sending half of a socket on the far device, opened from inside its namespace.
fn generator(wire: &Wire) -> Result<Box<dyn Outlet>> {
    let text = wire.far_ip(&["-o", "link", "show", &wire.far])?;
    let index: u32 = text.split(':').next().unwrap_or_default().trim().parse()?;
    let namespace = File::open(format!("/run/netns/{}", wire.namespace))?;
    let open = move || -> Result<Box<dyn Outlet>> {
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
            .map_err(std::io::Error::from)?;
        let wanted = Wanted { copy: true, frame_len_max: 1518, busy_poll: false };
        let (_, outlet, ..) = open_xsk(index, 0, wanted).map_err(|e| Failure::new(e.to_string()))?;
        Ok(outlet)
    };
    // A thread of its own: the namespace is the thread's.
    std::thread::spawn(open).join().map_err(|_| Failure::new("the generator panicked"))?
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
    drop(std::fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", wire.near), "1"));
    Ok(wire)
}
