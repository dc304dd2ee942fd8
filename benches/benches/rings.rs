//! Time per chain of the ring alone: walking a batch, publishing it, delivering into buffers, copying.

use std::sync::Arc;
use std::time::{Duration, Instant};

use avio_guest::{GUEST_BASE, GuestMemory};
use avio_proto::mem::{RegionHint, Tail};
use avio_proto::ring::{ChainArena, DeviceRing, DriverLayout, DriverRing, RingSetup, Used};
use avio_proto::virtio::features::{NET_MRG_RXBUF, RING_PACKED, VERSION_1};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SIZE: u16 = 256;
const BATCH: usize = 32;
const BUFFER_LEN: u32 = 2048;
const HEADER: [u8; 12] = [0; 12];

struct Ends {
    memory: GuestMemory,
    driver: DriverRing,
    device: DeviceRing,
    buffers_at: u64,
}

fn ends(features: u64) -> Ends {
    let rings = DriverLayout::bytes_needed(SIZE, features).next_multiple_of(4096);
    let len = rings + u64::from(SIZE) * u64::from(BUFFER_LEN);
    let memory = GuestMemory::new("bench", len as usize).expect("guest memory");
    let layout = DriverLayout::at(GUEST_BASE, SIZE, features);
    let mut driver = DriverRing::new(Arc::clone(memory.table()), &layout, features).expect("driver ring");
    driver.disable_interrupts();
    let setup = RingSetup {
        size: SIZE,
        desc_user: memory.user_addr(layout.desc),
        driver_user: memory.user_addr(layout.driver),
        device_user: memory.user_addr(layout.device),
        features,
        base: if features & RING_PACKED != 0 { 0x8000_8000 } else { 0 },
        used_log: None,
    };
    let device = DeviceRing::new(Arc::clone(memory.table()), &setup).expect("device ring");
    Ends { memory, driver, device, buffers_at: GUEST_BASE + rings }
}

impl Ends {
    fn offer(&mut self, writable: bool) {
        for i in 0..BATCH as u64 {
            let buffer = [(self.buffers_at + i * u64::from(BUFFER_LEN), BUFFER_LEN)];
            let (readable, writable): (&[_], &[_]) = if writable { (&[], &buffer) } else { (&buffer, &[]) };
            self.driver.add(readable, writable).expect("room");
        }
        self.driver.publish();
    }

    fn collect(&mut self) {
        let mut used = [Used::default(); SIZE as usize];
        assert_eq!(self.driver.poll_used(&mut used), BATCH);
    }
}

/// Times `inside` between the driver's two halves.
fn timed(ends: &mut Ends, rounds: u64, writable: bool, mut inside: impl FnMut(&mut Ends)) -> Duration {
    let mut sum = Duration::ZERO;
    for _ in 0..rounds {
        ends.offer(writable);
        let start = Instant::now();
        inside(ends);
        sum += start.elapsed();
        ends.collect();
    }
    sum
}

fn rings(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, features) in
        [("split", VERSION_1 | NET_MRG_RXBUF), ("packed", VERSION_1 | NET_MRG_RXBUF | RING_PACKED)]
    {
        let (mut e, mut arena) = (ends(features), ChainArena::new());
        group.bench_function(format!("walk-and-publish-{name}"), |b| {
            b.iter_custom(|rounds| {
                timed(&mut e, rounds, false, |e| {
                    let batch = e.device.take(&mut arena, BATCH).expect("sound ring");
                    assert_eq!(batch.len(), BATCH);
                    e.device.complete_taken();
                    e.device.publish();
                })
            });
        });
        let mut e = ends(features);
        let head = [0x5a; 64];
        group.bench_function(format!("deliver-64-{name}"), |b| {
            b.iter_custom(|rounds| {
                timed(&mut e, rounds, true, |e| {
                    let mut delivery = e.device.deliver();
                    for _ in 0..BATCH {
                        delivery.push(&HEADER, &head, Tail::default()).expect("a buffer");
                    }
                    delivery.commit();
                })
            });
        });
    }
    group.finish();
}

fn copies(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy");
    let e = ends(VERSION_1);
    let table = e.memory.table();
    for len in [64, 192, 1518] {
        let slice = |at| table.slice(&mut RegionHint::default(), at, len).expect("guest memory");
        let (from, to) = (slice(e.buffers_at), slice(e.buffers_at + 64 * 1024));
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("guest-to-guest-{len}"), |b| b.iter(|| to.copy_from_guest(&from)));
    }
    group.finish();
}

criterion_group!(benches, rings, copies);
criterion_main!(benches);
