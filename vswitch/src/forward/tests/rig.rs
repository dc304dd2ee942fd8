//! Guests in this process, driver rings in memory of their own, and a forwarder between them: no socket, no thread.

use std::sync::Arc;
use std::time::Instant;

use avio_guest::{GUEST_BASE, GuestMemory};
use avio_host::worker::ControlWaker;
use avio_proto::config::MacAddr;
use avio_proto::mem::RegionHint;
use avio_proto::ring::{DeviceRing, DriverLayout, DriverRing, RingSetup, Used};
use avio_proto::virtio::features::{NET_MRG_RXBUF, RING_PACKED, VERSION_1};
use avio_proto::virtio::net::{HEADER_LEN, NetHeader, header_len};
use crossbeam_channel::Receiver;

use crate::forward::{Event, Events, Forwarder};
use crate::port::PortKind;
use crate::port::guest::{GuestPort, RxQueue, Snapshot, TxQueue};
use crate::table::{Learner, PortIndex, PortSpec, PortState, Table, TableBuilder};

/// What most guests of the tests have.
pub(crate) const MODERN: u64 = VERSION_1 | NET_MRG_RXBUF;
/// Ring entries.
const SIZE: u16 = 256;
/// Length of each transmit buffer: the longest frame of the tests.
const TX_LEN: u64 = 66_000;
/// Transmit buffers of a ring.
const TX_COUNT: u16 = 64;

/// The transmit side of one pair, as the guest has it.
pub(crate) struct Tx {
    pub driver: DriverRing,
    memory: Arc<avio_proto::mem::MemoryTable>,
    buffers: u64,
    free: Vec<u16>,
    /// Buffer of each token.
    out: Vec<u16>,
    header_len: usize,
}

impl Tx {
    /// Guest address of the bytes of buffer `i`.
    pub(crate) fn address(&self, i: u16) -> u64 {
        self.buffers + u64::from(i) * TX_LEN
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.slice(&mut RegionHint::default(), at, bytes.len()).unwrap().copy_from(bytes);
    }

    /// Takes back what was forwarded.
    pub(crate) fn reclaim(&mut self) -> usize {
        let mut used = [Used::default(); 64];
        let mut count = 0;
        loop {
            let n = self.driver.poll_used(&mut used);
            if n == 0 {
                return count;
            }
            count += n;
            self.free.extend(used[..n].iter().map(|used| self.out[usize::from(used.token)]));
        }
    }

    /// Puts one frame into the ring, its bytes in pieces that end at `cuts` (offsets into header and frame together).
    /// Returns the buffer; `None`: no room.
    pub(crate) fn put(&mut self, header: &NetHeader, frame: &[u8], cuts: &[usize]) -> Option<u16> {
        let buffer = self.free.pop()?;
        let mut bytes = header.to_bytes()[..self.header_len].to_vec();
        bytes.extend_from_slice(frame);
        let at = self.address(buffer);
        self.write(at, &bytes);
        let ends = cuts.iter().copied().filter(|&cut| cut > 0 && cut < bytes.len()).chain([bytes.len()]);
        let mut start = 0;
        let mut pieces = Vec::new();
        for end in ends {
            if end > start {
                pieces.push((at + start as u64, (end - start) as u32));
                start = end;
            }
        }
        match self.driver.add(&pieces, &[]) {
            Some(token) => {
                self.out[usize::from(token)] = buffer;
                Some(buffer)
            }
            None => {
                self.free.push(buffer);
                None
            }
        }
    }

    /// Sends a frame as it is; panics when there is no room.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        assert!(self.put(&NetHeader::default(), frame, &[]).is_some(), "ring full");
        self.driver.publish();
    }
}

/// A frame as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub header: NetHeader,
    pub frame: Vec<u8>,
}

/// The receive side of one pair, as the guest has it.
pub(crate) struct Rx {
    pub driver: DriverRing,
    memory: Arc<avio_proto::mem::MemoryTable>,
    buffers: u64,
    buffer_len: u32,
    out: Vec<u16>,
    header_len: usize,
}

impl Rx {
    fn post(&mut self, buffer: u16) {
        let at = self.buffers + u64::from(buffer) * u64::from(self.buffer_len);
        let token = self.driver.add(&[], &[(at, self.buffer_len)]).unwrap();
        self.out[usize::from(token)] = buffer;
    }

    fn bytes(&self, used: &Used) -> Vec<u8> {
        let buffer = self.out[usize::from(used.token)];
        let at = self.buffers + u64::from(buffer) * u64::from(self.buffer_len);
        let mut bytes = vec![0; used.len as usize];
        let slice = self.memory.slice(&mut RegionHint::default(), at, bytes.len()).unwrap();
        slice.copy_to(&mut bytes);
        bytes
    }

    /// All frames that arrived, in order; their buffers are posted again unless `keep`.
    pub(crate) fn receive(&mut self, keep: bool) -> Vec<Arrived> {
        let mut used = vec![Used::default(); usize::from(SIZE)];
        let count = self.driver.poll_used(&mut used);
        let mut pieces: Vec<Vec<u8>> = used[..count].iter().map(|used| self.bytes(used)).collect();
        pieces.reverse();
        if !keep {
            for used in &used[..count] {
                self.post(self.out[usize::from(used.token)]);
            }
            self.driver.publish();
        }
        let mut frames = Vec::new();
        while let Some(mut bytes) = pieces.pop() {
            let mut header = [0; HEADER_LEN];
            header[..self.header_len].copy_from_slice(&bytes[..self.header_len]);
            let header = NetHeader::from_bytes(&header);
            for _ in 1..header.num_buffers {
                bytes.extend(pieces.pop().expect("num_buffers within what was published together"));
            }
            frames.push(Arrived { header, frame: bytes.split_off(self.header_len) });
        }
        frames
    }
}

/// How a guest is attached.
#[derive(Debug, Clone)]
pub(crate) struct Attach {
    pub spec: PortSpec,
    pub vswitch: u32,
    pub features: u64,
    pub pairs: u16,
    /// Length of each receive buffer in bytes.
    pub rx_len: u32,
    /// Receive buffers posted at first.
    pub rx_count: u16,
    /// The guest has receive rings at all.
    pub up: bool,
}

impl Attach {
    pub(crate) fn new(guest: &str, mac: MacAddr) -> Self {
        Self {
            spec: crate::table::tests::spec(guest, mac),
            vswitch: 0,
            features: MODERN,
            pairs: 1,
            rx_len: 2048,
            rx_count: SIZE,
            up: true,
        }
    }
}

/// One guest, both sides.
pub(crate) struct Guest {
    pub attach: Attach,
    pub tx: Vec<Tx>,
    pub rx: Vec<Rx>,
    /// The device's ends of its transmit rings.
    pub queues: Vec<TxQueue>,
    pub port: GuestPort,
    pub state: Arc<PortState>,
}

impl Guest {
    pub(crate) fn new(index: u32, attach: Attach, workers: usize) -> Self {
        let features = attach.features;
        let ring_len = DriverLayout::bytes_needed(SIZE, features);
        let rx_pool = u64::from(attach.rx_len) * u64::from(SIZE);
        let per_pair = 2 * ring_len + rx_pool + u64::from(TX_COUNT) * TX_LEN;
        let len = (per_pair * u64::from(attach.pairs)).next_multiple_of(4096);
        let memory = GuestMemory::new("rig", len as usize).unwrap();
        let table = memory.table();
        let user = |at: u64| memory.user_addr(at);
        let (mut tx, mut rx, mut queues) = (Vec::new(), Vec::new(), Vec::new());
        let mut port = GuestPort::default();
        for pair in 0..attach.pairs {
            let base = GUEST_BASE + u64::from(pair) * per_pair;
            let ring = |base: u64| {
                let layout = DriverLayout::at(base, SIZE, features);
                let driver = DriverRing::new(Arc::clone(table), &layout, features).unwrap();
                let setup = RingSetup {
                    size: SIZE,
                    desc_user: user(layout.desc),
                    driver_user: user(layout.driver),
                    device_user: user(layout.device),
                    features,
                    base: if features & RING_PACKED != 0 { 0x8000_8000 } else { 0 },
                    used_log: None,
                };
                (driver, DeviceRing::new(Arc::clone(table), &setup).unwrap())
            };
            let (tx_driver, tx_device) = ring(base);
            let (rx_driver, rx_device) = ring(base + ring_len);
            tx.push(Tx {
                driver: tx_driver,
                memory: Arc::clone(table),
                buffers: base + 2 * ring_len + rx_pool,
                free: (0..TX_COUNT).rev().collect(),
                out: vec![0; usize::from(SIZE)],
                header_len: header_len(features),
            });
            let mut receiver = Rx {
                driver: rx_driver,
                memory: Arc::clone(table),
                buffers: base + 2 * ring_len,
                buffer_len: attach.rx_len,
                out: vec![0; usize::from(SIZE)],
                header_len: header_len(features),
            };
            (0..attach.rx_count).for_each(|buffer| receiver.post(buffer));
            receiver.driver.publish();
            rx.push(receiver);
            queues.push(TxQueue::new(tx_device, PortIndex(index), pair, features, None, None));
            port.rx.push(attach.up.then(|| RxQueue::new(rx_device, features, None)));
        }
        let state = Arc::new(PortState::new(workers, attach.pairs));
        Self { attach, tx, rx, queues, port, state }
    }
}

/// Some guests and what forwards between them.
pub(crate) struct Rig {
    pub guests: Vec<Guest>,
    pub forwarder: Forwarder,
    pub events: Receiver<Event>,
    pub epoch: Instant,
    pub learner: Learner,
    pub protected: Vec<MacAddr>,
}

impl Rig {
    pub(crate) fn new(attach: impl IntoIterator<Item = Attach>) -> Self {
        let (events, receiver) = Events::new(ControlWaker::new().unwrap());
        let guests =
            attach.into_iter().enumerate().map(|(i, attach)| Guest::new(i as u32, attach, 2)).collect();
        let mut rig = Self {
            guests,
            forwarder: Forwarder::new(0, events),
            events: receiver,
            epoch: Instant::now(),
            learner: Learner::new(),
            protected: Vec::new(),
        };
        rig.publish();
        rig
    }

    /// The table as it should be now.
    pub(crate) fn table(&self) -> Arc<Table> {
        let mut builder = TableBuilder::new(self.epoch);
        self.fill(&mut builder);
        Arc::new(builder.build())
    }

    /// Puts the guests and what was learned into a table.
    pub(crate) fn fill(&self, builder: &mut TableBuilder) {
        for &mac in &self.protected {
            builder.protect(mac);
        }
        for (i, guest) in self.guests.iter().enumerate() {
            let spec = Arc::new(guest.attach.spec.clone());
            let kind = PortKind::Guest(guest.port.clone());
            builder
                .port(PortIndex(i as u32), guest.attach.vswitch, spec, Arc::clone(&guest.state), kind)
                .unwrap();
        }
        builder.learned(&self.learner);
    }

    pub(crate) fn publish(&mut self) {
        self.forwarder.publish(self.table());
    }

    /// Forwards until no ring has anything left; returns how many frames were taken.
    pub(crate) fn run(&mut self) -> usize {
        let mut total = 0;
        loop {
            let mut taken = 0;
            for guest in &mut self.guests {
                for queue in guest.queues.iter_mut().filter(|queue| !queue.broken) {
                    taken += self.forwarder.forward(queue, 64).map_or(0, |(count, _)| count);
                }
                guest.tx.iter_mut().for_each(|tx| {
                    tx.reclaim();
                });
            }
            if taken == 0 {
                return total;
            }
            total += taken;
        }
    }

    /// Sends one frame from a guest and forwards it.
    pub(crate) fn send(&mut self, from: usize, frame: &[u8]) {
        self.guests[from].tx[0].send(frame);
        self.run();
    }

    /// What a guest got, over all its pairs.
    pub(crate) fn received(&mut self, guest: usize) -> Vec<Arrived> {
        self.guests[guest].rx.iter_mut().flat_map(|rx| rx.receive(false)).collect()
    }

    /// How many frames each guest got.
    pub(crate) fn counts(&mut self) -> Vec<usize> {
        (0..self.guests.len()).map(|guest| self.received(guest).len()).collect()
    }

    pub(crate) fn stats(&self, guest: usize) -> Snapshot {
        self.guests[guest].state.stats.snapshot()
    }
}

/// An Ethernet frame of `len` bytes with a recognisable payload.
pub(crate) fn frame(to: MacAddr, from: MacAddr, ethertype: u16, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(to.0);
    bytes.extend(from.0);
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend((14..len.max(14)).map(|i| i as u8));
    bytes
}

/// The same with an 802.1Q tag.
pub(crate) fn tagged(to: MacAddr, from: MacAddr, tci: u16, ethertype: u16, len: usize) -> Vec<u8> {
    let mut bytes = frame(to, from, 0x8100, 14);
    bytes.extend(tci.to_be_bytes());
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend((14..len.max(14)).map(|i| i as u8));
    bytes
}
