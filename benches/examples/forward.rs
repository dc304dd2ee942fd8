//! Nanoseconds per frame of the whole way from one guest's ring to another's, on one thread: `cargo run --release -p
//! avio-benches --example forward`.
//!
//! Both guests and the switch run on the same thread, so no cache line crosses cores: what remains is the work itself. Only
//! the switch's part is timed, two clock readings (50 ns) a batch included.

use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_guest::{GUEST_BASE, GuestMemory};
use avio_host::worker::ControlWaker;
use avio_proto::config::MacAddr;
use avio_proto::mem::RegionHint;
use avio_proto::ring::{DeviceRing, DriverLayout, DriverRing, RingSetup, Used};
use avio_proto::virtio::features::{IN_ORDER, NET_MRG_RXBUF, RING_PACKED, VERSION_1};
use avio_vswitch::forward::{Events, Forwarder};
use avio_vswitch::port::PortKind;
use avio_vswitch::port::guest::{GuestPort, RxQueue, TxQueue};
use avio_vswitch::table::{PortIndex, PortSpec, PortState, TableBuilder};

const SIZE: u16 = 256;
const BATCH: usize = 32;
/// Batches per window; the best window counts.
const WINDOW: u32 = 100;
const STRIDE: u64 = 2048 + 64;

struct Guest {
    tx: DriverRing,
    rx: DriverRing,
    queue: TxQueue,
    port: GuestPort,
    tx_at: u64,
    rx_at: u64,
    /// Buffer of each token of `rx`.
    held: Vec<u16>,
    rx_len: u32,
}

fn guest(index: u32, mac: MacAddr, to: MacAddr, features: u64, frame_len: u32) -> Guest {
    let stride = u64::from(frame_len + 12).next_multiple_of(64).max(STRIDE - 64) + 64;
    let rings = DriverLayout::bytes_needed(SIZE, features);
    let pool = stride * u64::from(SIZE);
    let memory = GuestMemory::new("bench", (2 * (rings + pool)).next_multiple_of(4096) as usize).unwrap();
    let table = memory.table();
    let ring = |base: u64| {
        let layout = DriverLayout::at(base, SIZE, features);
        let driver = DriverRing::new(Arc::clone(table), &layout, features).unwrap();
        let setup = RingSetup {
            size: SIZE,
            desc_user: memory.user_addr(layout.desc),
            driver_user: memory.user_addr(layout.driver),
            device_user: memory.user_addr(layout.device),
            features,
            base: if features & RING_PACKED != 0 { 0x8000_8000 } else { 0 },
            used_log: None,
        };
        (driver, DeviceRing::new(Arc::clone(table), &setup).unwrap())
    };
    let (mut tx, tx_device) = ring(GUEST_BASE);
    let (mut rx, rx_device) = ring(GUEST_BASE + rings);
    tx.disable_interrupts();
    rx.disable_interrupts();
    let tx_at = GUEST_BASE + 2 * rings;
    let rx_at = tx_at + pool;
    let mut bytes = vec![0; 12];
    bytes.extend(to.0);
    bytes.extend(mac.0);
    bytes.extend([8, 0]);
    bytes.resize(12 + frame_len as usize, 0x5a);
    for i in 0..u64::from(SIZE) {
        table.slice(&mut RegionHint::default(), tx_at + i * stride, bytes.len()).unwrap().copy_from(&bytes);
    }
    let rx_len = (stride - 64) as u32;
    let mut held = vec![0; usize::from(SIZE)];
    for i in 0..SIZE {
        let token = rx.add(&[], &[(rx_at + u64::from(i) * stride, rx_len)]).unwrap();
        held[usize::from(token)] = i;
    }
    rx.publish();
    let queue = TxQueue::new(tx_device, PortIndex(index), 0, features, None, None);
    let port = GuestPort { rx: vec![Some(RxQueue::new(rx_device, features, None))] };
    Guest { tx, rx, queue, port, tx_at, rx_at, held, rx_len }
}

fn spec(mac: MacAddr) -> PortSpec {
    PortSpec {
        guest: "bench".into(),
        number: 1,
        mac,
        vlan: None,
        trunk: vec![],
        ips: vec![],
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

fn measure(name: &str, features: u64, frame_len: u32, ports: u32) {
    let macs: Vec<MacAddr> = (0..ports).map(|i| MacAddr([0x1e, 0, 0, 0, (i >> 8) as u8, i as u8])).collect();
    let mut a = guest(0, macs[0], macs[1], features, frame_len);
    let mut b = guest(1, macs[1], macs[0], features, frame_len);
    let (events, _receiver) = Events::new(ControlWaker::new().unwrap());
    let mut forwarder = Forwarder::new(0, events);
    let mut builder = TableBuilder::new(Instant::now());
    let states: Vec<_> = (0..ports).map(|_| Arc::new(PortState::new(1, 1))).collect();
    for i in 0..ports {
        let port = match i {
            0 => a.port.clone(),
            1 => b.port.clone(),
            _ => GuestPort::default(),
        };
        builder
            .port(
                PortIndex(i),
                0,
                Arc::new(spec(macs[i as usize])),
                Arc::clone(&states[i as usize]),
                PortKind::Guest(port),
            )
            .unwrap();
    }
    forwarder.publish(Arc::new(builder.build()));
    let stride = u64::from(a.rx_len) + 64;
    let mut used = [Used::default(); SIZE as usize];
    let (mut inside, mut frames) = (Duration::ZERO, 0u64);
    let mut best = f64::MAX;
    let mut slot = 0u64;
    let rounds = if frame_len > 2000 { 60_000 } else { 200_000 };
    for round in 0..rounds {
        for _ in 0..BATCH {
            a.tx.add(&[(a.tx_at + slot % u64::from(SIZE) * stride, frame_len + 12)], &[]).unwrap();
            slot += 1;
        }
        a.tx.publish();
        let start = Instant::now();
        // Long frames come in more than one batch, which is capped by what it copies.
        let mut count = 0;
        while count < BATCH {
            count += forwarder.forward(&mut a.queue, 64).unwrap().0;
        }
        inside += start.elapsed();
        frames += count as u64;
        assert_eq!(a.tx.poll_used(&mut used), BATCH);
        let got = b.rx.poll_used(&mut used);
        for used in &used[..got] {
            let buffer = b.held[usize::from(used.token)];
            let token = b.rx.add(&[], &[(b.rx_at + u64::from(buffer) * stride, b.rx_len)]).unwrap();
            b.held[usize::from(token)] = buffer;
        }
        b.rx.publish();
        // Short windows: on a busy machine a long one always contains somebody else's turn.
        if round % WINDOW == WINDOW - 1 {
            best = best.min(inside.as_nanos() as f64 / frames as f64);
            (inside, frames) = (Duration::ZERO, 0);
        }
    }
    let delivered = states[1].stats.snapshot().counters.inbound_unicast_local;
    assert_eq!(delivered, rounds as u64 * BATCH as u64);
    println!(
        "{name:<24} {frame_len:>5} B {ports:>5} ports: {best:6.1} ns/frame (best window of {WINDOW} batches of {BATCH})"
    );
}

fn main() {
    let split = VERSION_1 | NET_MRG_RXBUF;
    for len in [64, 1518 - 4, 9000] {
        measure("split, mergeable", split, len, 2);
    }
    measure("split, mergeable", split, 64, 64);
    measure("split, mergeable", split, 64, 4096);
    measure("split", VERSION_1, 64, 2);
    measure("packed, mergeable", split | RING_PACKED, 64, 2);
    measure("packed, in-order", VERSION_1 | RING_PACKED | IN_ORDER, 64, 2);
}
