//! Time per frame of the switch's part, from one guest's ring to another's, on one thread: `cargo bench -p avio-benches`.
//!
//! Both guests and the switch run on the same thread, so no cache line crosses cores: what remains is the work itself.

use std::time::{Duration, Instant};

use avio_benches::rig::{BATCH, Rig, Shape};
use avio_proto::virtio::features::{IN_ORDER, NET_MRG_RXBUF, RING_PACKED, VERSION_1};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SPLIT: u64 = VERSION_1 | NET_MRG_RXBUF;

/// Times only the switch's part; two clock readings (50 ns) per round of [`BATCH`] frames are in it.
fn timed(rig: &mut Rig, rounds: u64) -> Duration {
    let mut inside = Duration::ZERO;
    for _ in 0..rounds {
        rig.offer();
        let start = Instant::now();
        rig.forward();
        inside += start.elapsed();
        rig.collect();
    }
    inside
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Elements(BATCH as u64));
    let shape = Shape::new(SPLIT, 64);
    let shapes = [
        ("split-64", shape),
        ("split-1518", Shape::new(SPLIT, 1518)),
        ("split-9000", Shape::new(SPLIT, 9000)),
        ("split-64-of-64-ports", Shape { port_count: 64, ..shape }),
        ("split-64-of-4096-ports", Shape { port_count: 4096, ..shape }),
        ("split-nomrg-64", Shape::new(VERSION_1, 64)),
        ("packed-64", Shape::new(SPLIT | RING_PACKED, 64)),
        ("packed-inorder-64", Shape::new(VERSION_1 | RING_PACKED | IN_ORDER, 64)),
        // Ring walk, snapshot, guard and look-up, no delivery.
        ("decision-64", Shape { is_known: false, ..shape }),
    ];
    for (name, shape) in shapes {
        let mut rig = Rig::new(shape);
        group.bench_function(name, |b| b.iter_custom(|rounds| timed(&mut rig, rounds)));
    }
    group.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
