//! A switch and its guests on one thread, without sockets: what micro-benchmarks and instruction counts drive.
//!
//! Owns guest memory, rings on both sides and the forwarders. No cache line crosses cores here, so what is measured is the
//! work itself. Panics on anything unexpected: a benchmark of a broken path has no result.

#![expect(
    clippy::missing_panics_doc,
    reason = "a benchmark's rig panics on everything that goes wrong, as said above"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use avio_guest::{GUEST_BASE, GuestMemory};
use avio_host::worker::ControlWaker;
use avio_proto::config::MacAddr;
use avio_proto::mem::RegionHint;
use avio_proto::ring::{DeviceRing, DriverLayout, DriverRing, Used};
use avio_vswitch::forward::{Events, Forwarder};
use avio_vswitch::port::PortKind;
use avio_vswitch::port::guest::{GuestPort, RxQueue, TxQueue};
use avio_vswitch::table::{PortIndex, PortSpec, PortState, TableBuilder};

use crate::ends::ends;

/// Entries of each ring.
pub const RING_SIZE: u16 = 256;
/// Frames per round: what a busy guest makes available at once.
pub const BATCH: usize = 32;
/// Bytes of the virtio-net header.
const HEADER_LEN: u32 = 12;
/// The sender's IPv4 address.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// What a rig is built for.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Acked virtio feature bits of all rings.
    pub features: u64,
    /// Frame length in bytes without FCS.
    pub frame_len: u32,
    /// Ports in the table, 2 of them with rings.
    pub port_count: u32,
    /// Queue pairs of each port with rings.
    pub pair_count: u16,
    /// Forwarders that share them.
    pub worker_count: usize,
    /// Ports name their addresses, so that each frame gets the whole check instead of the short one.
    pub names_ips: bool,
    /// Whether anybody has the frames' destination; if not, they are dropped once that is decided.
    pub is_known: bool,
}

impl Shape {
    /// Two ports, one pair each, one worker.
    #[must_use]
    pub const fn new(features: u64, frame_len: u32) -> Self {
        Self {
            features,
            frame_len,
            port_count: 2,
            pair_count: 1,
            worker_count: 1,
            names_ips: false,
            is_known: true,
        }
    }
}

/// The driver's end of one ring and its buffers.
struct Driver {
    ring: DriverRing,
    buffers_at: u64,
    stride: u64,
    buffer_len: u32,
    /// Receive: buffer of each token.
    held: Vec<u16>,
    next: u64,
}

/// See the module.
pub struct Rig {
    shape: Shape,
    forwarders: Vec<Forwarder>,
    /// Sender's transmit rings, device side, by pair.
    queues: Vec<TxQueue>,
    tx: Vec<Driver>,
    rx: Vec<Driver>,
    states: Vec<Arc<PortState>>,
    used: Vec<Used>,
    _memory: Vec<GuestMemory>,
}

/// Address of port `i`.
fn mac(i: u32) -> MacAddr {
    MacAddr([0x1e, 0, 0, 0, (i >> 8) as u8, i as u8])
}

fn spec(mac: MacAddr, ips: Vec<IpAddr>) -> PortSpec {
    PortSpec {
        guest: "bench".into(),
        number: 1,
        mac,
        vlan: None,
        trunk: vec![],
        ips,
        trusted: false,
        strict: true,
        isolated: false,
        flood: false,
        mac_limit: 16,
        mtu: 9000,
        rate_mbps: 0,
        storm_pps: 0,
    }
}

/// Both ends of a ring in memory of its own.
fn ring(features: u64, buffer_len: u64) -> (GuestMemory, Driver, DeviceRing) {
    // An odd number of lines, or all buffers would fall into the same few sets of the cache.
    let stride = buffer_len.div_ceil(64) * 64;
    let stride = if (stride / 64).is_multiple_of(2) { stride + 64 } else { stride };
    let rings = DriverLayout::bytes_needed(RING_SIZE, features).next_multiple_of(4096);
    let len = (rings + stride * u64::from(RING_SIZE)).next_multiple_of(4096);
    let memory = GuestMemory::new("bench", len as usize).expect("guest memory");
    let (ring, device, _) = ends(&memory, features);
    let held = vec![0; usize::from(RING_SIZE)];
    let driver =
        Driver { ring, buffers_at: GUEST_BASE + rings, stride, buffer_len: buffer_len as u32, held, next: 0 };
    (memory, driver, device)
}

impl Rig {
    /// Builds it: port 0 sends to port 1.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let frame_bytes = u64::from(shape.frame_len + HEADER_LEN);
        let mut memories = Vec::new();
        let (mut queues, mut tx, mut rx, mut receivers) = (vec![], vec![], vec![], vec![]);
        // The sender's own receive rings: with several pairs, where it sends decides where it receives.
        let mut own_receivers = vec![];
        let mut frame = vec![0; HEADER_LEN as usize];
        frame.extend(mac(if shape.is_known { 1 } else { u32::from(u16::MAX) }).0);
        frame.extend(mac(0).0);
        frame.extend([8, 0]);
        if shape.names_ips {
            // IPv4 without options: a UDP packet of the sender's.
            let [high, low] = (shape.frame_len as u16 - 14).to_be_bytes();
            frame.extend([0x45, 0, high, low, 0, 0, 0, 0, 64, 17, 0, 0]);
            frame.extend(ADDRESS.octets());
        }
        frame.resize(frame_bytes as usize, 0x5a);
        for pair in 0..shape.pair_count {
            let (memory, driver, device) = ring(shape.features, frame_bytes);
            for i in 0..u64::from(RING_SIZE) {
                let at = driver.buffers_at + i * driver.stride;
                let slice = memory.table().slice(&mut RegionHint::default(), at, frame.len());
                slice.expect("buffer").copy_from(&frame);
            }
            queues.push(TxQueue::new(device, PortIndex(0), pair, shape.features, None, None));
            tx.push(driver);
            memories.push(memory);
            let (memory, mut driver, device) = ring(shape.features, frame_bytes.max(2048));
            for i in 0..RING_SIZE {
                driver.post(i);
            }
            driver.ring.publish();
            receivers.push(Some(RxQueue::new(device, shape.features, None)));
            rx.push(driver);
            memories.push(memory);
            let (memory, _, device) = ring(shape.features, 2048);
            own_receivers.push(Some(RxQueue::new(device, shape.features, None)));
            memories.push(memory);
        }
        let (events, _) = Events::new(ControlWaker::new().expect("eventfd"));
        let ips = if shape.names_ips { vec![IpAddr::V4(ADDRESS)] } else { vec![] };
        let mut builder = TableBuilder::new(Instant::now());
        let states: Vec<_> = (0..shape.port_count)
            .map(|_| Arc::new(PortState::new(shape.worker_count, shape.pair_count)))
            .collect();
        for i in 0..shape.port_count {
            let port = match i {
                0 => GuestPort { rx: own_receivers.clone() },
                1 => GuestPort { rx: receivers.clone() },
                _ => GuestPort::default(),
            };
            let state = Arc::clone(&states[i as usize]);
            builder
                .port(PortIndex(i), 0, Arc::new(spec(mac(i), ips.clone())), state, PortKind::Guest(port))
                .expect("port");
        }
        let table = Arc::new(builder.build());
        let forwarders = (0..shape.worker_count)
            .map(|worker| {
                let mut forwarder = Forwarder::new(worker, events.clone());
                forwarder.publish(Arc::clone(&table));
                forwarder
            })
            .collect();
        let used = vec![Used::default(); usize::from(RING_SIZE)];
        Self { shape, forwarders, queues, tx, rx, states, used, _memory: memories }
    }

    /// What it was built for.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The sender makes [`BATCH`] frames available on each pair.
    pub fn offer(&mut self) {
        let len = self.shape.frame_len + HEADER_LEN;
        for driver in &mut self.tx {
            for _ in 0..BATCH {
                let at = driver.buffers_at + driver.next % u64::from(RING_SIZE) * driver.stride;
                driver.ring.add(&[(at, len)], &[]).expect("room in the transmit ring");
                driver.next += 1;
            }
            driver.ring.publish();
        }
    }

    /// The switch's part: forwards all that was offered. Returns how many frames.
    #[inline(never)]
    pub fn forward(&mut self) -> usize {
        let wanted = BATCH * self.queues.len();
        let workers = self.forwarders.len();
        let mut count = 0;
        // Long frames come in more than one batch, which is capped by what it copies.
        while count < wanted {
            for (pair, queue) in self.queues.iter_mut().enumerate() {
                count += self.forwarders[pair % workers].forward(queue, 64).expect("sound rings").0;
            }
        }
        count
    }

    /// Both guests take back what is used and post receive buffers again; checks that everything arrived.
    pub fn collect(&mut self) {
        let mut got = 0;
        for driver in &mut self.rx {
            let count = driver.ring.poll_used(&mut self.used);
            got += count;
            for used in &self.used[..count] {
                let buffer = driver.held[usize::from(used.token)];
                driver.post(buffer);
            }
            driver.ring.publish();
        }
        let mut sent = 0;
        for driver in &mut self.tx {
            sent += driver.ring.poll_used(&mut self.used);
        }
        assert_eq!(sent, BATCH * self.tx.len(), "every transmitted chain comes back");
        // A long frame takes more than one buffer.
        assert!(
            if self.shape.is_known { got >= sent } else { got == 0 },
            "{got} buffers used for {sent} frames"
        );
    }

    /// Frames that the receiving port has counted.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.states[1].stats.snapshot().counters.inbound_unicast_local
    }
}

impl Driver {
    fn post(&mut self, buffer: u16) {
        let at = self.buffers_at + u64::from(buffer) * self.stride;
        let token = self.ring.add(&[], &[(at, self.buffer_len)]).expect("room in the receive ring");
        self.held[usize::from(token)] = buffer;
    }
}
