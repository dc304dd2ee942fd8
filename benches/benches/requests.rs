//! Time per request of a disk's worker, on one thread: `cargo bench -p avio-benches --bench requests`.
//!
//! The guest runs on the same thread, so no cache line crosses cores: what remains is the work itself. DESIGN section 11 allows
//! 110 ns for a whole null read of 4 KiB through `avio_blk` at depth 128, the crossing included; `make bench-stor` measures that.

use avio_benches::storage_rig::{BATCH, Shape, StorageRig, Store};
use avio_proto::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, VERSION_1};
use avio_storage::adapter::AdapterKind;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const CHAINS: u64 = VERSION_1 | RING_EVENT_IDX;
const TABLES: u64 = CHAINS | RING_INDIRECT_DESC;

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    group.throughput(Throughput::Elements(BATCH as u64));
    let blk =
        Shape { adapter: AdapterKind::Blk, features: TABLES, store: Store::Null, writes: false, luns: 1 };
    let stor = Shape { adapter: AdapterKind::Scsi, ..blk };
    let shapes = [
        ("blk-split", Shape { features: CHAINS, ..blk }),
        ("blk-indirect", blk),
        ("blk-packed", Shape { features: CHAINS | RING_PACKED, ..blk }),
        ("blk-packed-indirect", Shape { features: TABLES | RING_PACKED, ..blk }),
        ("stor-split", Shape { features: CHAINS, ..stor }),
        ("stor-indirect", stor),
        ("stor-128-luns", Shape { luns: 128, ..stor }),
        ("stor-packed", Shape { features: CHAINS | RING_PACKED, ..stor }),
        ("stor-packed-indirect", Shape { features: TABLES | RING_PACKED, ..stor }),
        ("blk-memory-read", Shape { store: Store::Memory, ..blk }),
        ("blk-memory-write", Shape { store: Store::Memory, writes: true, ..blk }),
        ("blk-tmpfs-file-read", Shape { store: Store::File, ..blk }),
        ("blk-tmpfs-file-write", Shape { store: Store::File, writes: true, ..blk }),
    ];
    for (name, shape) in shapes {
        let mut rig = StorageRig::new(shape);
        group.bench_function(name, |b| b.iter_custom(|rounds| rig.time(rounds)));
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
