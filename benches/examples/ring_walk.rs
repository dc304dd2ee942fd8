//! What a ring costs by itself, on one core with warm caches: walk, translate, publish, copy.
//!
//! `cargo run --release -p avio-benches --example ring_walk`. DESIGN section 11 holds the first figure to 10 ns per
//! one-descriptor chain in batches of 32. Prints the best of several runs: on a shared machine the rest is noise.

#![expect(unsafe_code, reason = "a mapping over memory of its own")]

use avio_proto::mem::{Mapping, MemoryTable, Region, Tail};
use avio_proto::ring::{ChainArena, DeviceRing, DriverLayout, DriverRing, GuestBuffer, RingSetup, Used};
use avio_proto::virtio::features::{IN_ORDER, NET_MRG_RXBUF, RING_EVENT_IDX, RING_PACKED, VERSION_1};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MEMORY_LEN: usize = 8 << 20;
const BUFFERS_AT: u64 = 1 << 20;
const USER: u64 = 1 << 40;
const SIZE: u16 = 256;
/// Buffers in a guest's pool. Small, and packed closely: what is measured is the ring, not the caches behind it.
const POOL: u64 = 64;
const BATCH: usize = 32;
const ROUNDS: usize = 300;
const RUNS: usize = 60;

struct Memory(*mut u8);
// SAFETY: leaked memory that is only touched by raw copies and atomics.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}
// SAFETY: leaked, so it stays mapped.
unsafe impl Mapping for Memory {
    fn base(&self) -> *mut u8 {
        self.0
    }
    fn len(&self) -> usize {
        MEMORY_LEN
    }
}

/// One ring with its driver, in memory cut into `regions` regions.
struct Pair {
    driver: DriverRing,
    device: DeviceRing,
    next: u64,
}

impl Pair {
    fn new(features: u64, regions: u64) -> Self {
        let features = features | VERSION_1;
        let memory = vec![1u8; MEMORY_LEN + 4096].leak();
        let base = memory.as_mut_ptr().wrapping_add(memory.as_ptr().align_offset(4096));
        let mapping = Arc::new(Memory(base));
        let len = MEMORY_LEN as u64 / regions;
        let regions = (0..regions)
            .map(|i| Region {
                guest_base: i * len,
                user_base: i * len + USER,
                len,
                mapping: mapping.clone(),
                mapping_offset: i * len,
            })
            .collect();
        let table = Arc::new(MemoryTable::new(regions, None).expect("a valid table"));
        let layout = DriverLayout::at(0, SIZE, features);
        let driver = DriverRing::new(table.clone(), &layout, features).expect("a driver ring");
        let setup = RingSetup {
            size: SIZE,
            desc_user: layout.desc + USER,
            driver_user: layout.driver + USER,
            device_user: layout.device + USER,
            features,
            base: if features & RING_PACKED != 0 { 0x8000_8000 } else { 0 },
            used_log: None,
        };
        let mut device = DeviceRing::new(table, &setup).expect("a device ring");
        device.disable_notifications();
        Self { driver, device, next: 0 }
    }

    fn buffer(&mut self, len: u32) -> GuestBuffer {
        self.next = (self.next + 1) % POOL;
        (BUFFERS_AT + self.next * u64::from(len).next_multiple_of(64), len)
    }

    fn give(&mut self, descriptors: usize, len: u32, write: bool) {
        for _ in 0..BATCH {
            let all: Vec<GuestBuffer> = (0..descriptors).map(|_| self.buffer(len)).collect();
            let (r, w): (&[_], &[_]) = if write { (&[], &all) } else { (&all, &[]) };
            self.driver.add(r, w).expect("room");
        }
        self.driver.publish();
    }

    fn take_back(&mut self) {
        let mut used = [Used::default(); 2 * BATCH];
        assert!(self.driver.poll_used(&mut used) > 0);
    }
}

/// Best time per chain over several runs of `round`, which returns the time of one batch.
fn best(mut round: impl FnMut() -> Duration) -> f64 {
    let clock = (0..1000).map(|_| Instant::now().elapsed()).min().unwrap_or_default();
    (0..RUNS)
        .map(|_| {
            let total: Duration = (0..ROUNDS).map(|_| round().saturating_sub(clock)).sum();
            total.as_nanos() as f64 / (ROUNDS * BATCH) as f64
        })
        .fold(f64::MAX, f64::min)
}

fn walk(features: u64, descriptors: usize, regions: u64) -> f64 {
    let mut pair = Pair::new(features, regions);
    let mut arena = ChainArena::new();
    best(|| {
        pair.give(descriptors, 128, false);
        let start = Instant::now();
        let batch = pair.device.take(&mut arena, BATCH).expect("an honest driver");
        for chain in batch.iter() {
            let mut first = [0u8; 8];
            for piece in chain.readable {
                piece.copy_to(&mut first);
                black_box(&first);
            }
        }
        pair.device.complete_taken();
        black_box(pair.device.publish());
        let took = start.elapsed();
        pair.take_back();
        took
    })
}

fn driver(features: u64) -> f64 {
    let mut pair = Pair::new(features, 1);
    let mut arena = ChainArena::new();
    let mut used = [Used::default(); BATCH];
    best(|| {
        let buffers: [GuestBuffer; BATCH] = std::array::from_fn(|_| pair.buffer(64));
        let start = Instant::now();
        for buffer in &buffers {
            black_box(pair.driver.add(&[*buffer], &[]));
        }
        black_box(pair.driver.publish());
        let took = start.elapsed();
        pair.device.take(&mut arena, BATCH).expect("an honest driver");
        pair.device.complete_taken();
        pair.device.publish();
        let start = Instant::now();
        black_box(pair.driver.poll_used(&mut used));
        took + start.elapsed()
    })
}

/// Guest to guest: take from one ring, deliver into the other, complete; snapshot of 192 bytes as the switch makes it.
fn forward(features: u64, len: usize, summed: bool) -> f64 {
    let mut from = Pair::new(features & !NET_MRG_RXBUF, 1);
    let mut to = Pair::new(features, 1);
    let mut arena = ChainArena::new();
    best(|| {
        from.give(1, len as u32 + 12, false);
        if len < 10_000 {
            to.give(1, 12_000.min(len as u32 + 12 + 64), true);
        }
        let start = Instant::now();
        let batch = from.device.take(&mut arena, BATCH).expect("an honest driver");
        let mut delivery = to.device.deliver();
        for chain in batch.iter() {
            let mut snapshot = [0u8; 12 + 192];
            let got = chain.readable[0].copy_to(&mut snapshot);
            let header: &[u8; 12] = snapshot[..12].try_into().expect("twelve bytes");
            let tail = Tail { slices: chain.readable, skip: got, len: chain.readable_len - got };
            let done = if summed {
                let mut head = [0u8; 192];
                head[..got - 12].copy_from_slice(&snapshot[12..got]);
                delivery.push_summed(header, &mut head[..got - 12], tail, |head, sum| head[0] = sum.0 as u8)
            } else {
                delivery.push(header, &snapshot[12..got], tail)
            };
            done.expect("room");
        }
        black_box(delivery.commit());
        from.device.complete_taken();
        black_box(from.device.publish());
        let took = start.elapsed();
        from.take_back();
        to.take_back();
        took
    })
}

fn main() {
    let kinds = [
        ("split", 0),
        ("split event_idx", RING_EVENT_IDX),
        ("split in_order", IN_ORDER),
        ("packed", RING_PACKED),
        ("packed in_order", RING_PACKED | IN_ORDER),
    ];
    println!("ns per chain, batch of {BATCH}, best of {RUNS}");
    for (name, features) in kinds {
        println!(
            "{name:16} walk 1 desc {:5.1}  2 desc {:5.1}  4 desc {:5.1}  1 desc of 8 regions {:5.1}  driver {:5.1}",
            walk(features, 1, 1),
            walk(features, 2, 1),
            walk(features, 4, 1),
            walk(features, 1, 8),
            driver(features),
        );
        print!("{name:16} guest to guest");
        for len in [64, 256, 1518, 4000] {
            print!("  {len} B {:6.1}", forward(features | NET_MRG_RXBUF, len, false));
        }
        println!("  1518 B summed {:6.1}", forward(features | NET_MRG_RXBUF, 1518, true));
    }
}
