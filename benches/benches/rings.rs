//! Time per chain of the ring alone: walking a batch, publishing it, delivering into buffers, copying.

use std::time::{Duration, Instant};

use avio_benches::ends::Ends;
use avio_benches::rig::BATCH;
use avio_proto::virtio::features::{NET_MRG_RXBUF, RING_PACKED, VERSION_1};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

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

/// Times the device's two halves apart: `walk` of a batch, or its publication.
fn timed_half(ends: &mut Ends, rounds: u64, walk: bool) -> Duration {
    let mut sum = Duration::ZERO;
    for _ in 0..rounds {
        ends.offer(false);
        let start = Instant::now();
        assert_eq!(ends.walk(), BATCH);
        let walked = start.elapsed();
        ends.publish();
        sum += if walk { walked } else { start.elapsed() - walked };
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
        let mut e = Ends::new(features);
        for (half, walk) in [("walk", true), ("publish", false)] {
            group.bench_function(format!("{half}-{name}"), |b| {
                b.iter_custom(|rounds| timed_half(&mut e, rounds, walk))
            });
        }
        let mut e = Ends::new(features);
        let head = [0x5a; 64];
        group.bench_function(format!("deliver-64-{name}"), |b| {
            b.iter_custom(|rounds| timed(&mut e, rounds, true, |e| e.deliver(&head)))
        });
    }
    group.finish();
}

fn copies(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy");
    let e = Ends::new(VERSION_1);
    for len in [64, 192, 1518] {
        let (from, to) = e.pieces(len);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("guest-to-guest-{len}"), |b| b.iter(|| to.copy_from_guest(&from)));
    }
    group.finish();
}

criterion_group!(benches, rings, copies);
criterion_main!(benches);
