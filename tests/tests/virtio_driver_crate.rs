//! `avio_blk` under the `virtio-driver` crate, a virtio-blk driver and vhost-user front-end that nobody here wrote: its message
//! order, its memory added region by region, split and packed rings, several queues.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use avio_tests::case::{self, Case};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::storage::{Adapter, Storage, file_backing, image};
use avio_tests::{Failure, Result};
use virtio_driver::virtqueue::VirtqueueLayout;
use virtio_driver::{
    QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf,
    VirtioFeatureFlags, VirtioTransport, virtio_blk_max_queues,
};

const QUEUES: usize = 2;
/// A request takes three descriptors, and 32 are under way.
const DEPTH: u16 = 128;
const BLOCK: usize = 4096;

fn main() -> ExitCode {
    case::main(&[
        Case::new("a_foreign_driver_split", 60, || drive(false)).data_path(),
        Case::new("a_foreign_driver_packed", 60, || drive(true)).data_path(),
    ])
}

type Transport = VhostUser<VirtioBlkConfig, VirtioBlkReqBuf>;

/// Waits until `count` requests of a queue have ended well.
fn completed(queue: &mut VirtioBlkQueue<'_, usize>, count: usize) -> Result<Vec<usize>> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut ended = Vec::new();
    while ended.len() < count {
        ensure(Instant::now() < deadline, || format!("{} of {count} requests have ended", ended.len()))?;
        for completion in queue.completions() {
            ensure(completion.ret == 0, || {
                format!("request {} ended with {}", completion.context, completion.ret)
            })?;
            ended.push(completion.context);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(ended)
}

fn drive(packed: bool) -> Result {
    let path = image("disk.img", 8 << 20)?;
    let disk =
        |guest: &str, backing: &str| Adapter::new(guest, "avio_blk").lines("queues = 2").disk(0, backing, "");
    let config = Storage::default().adapter(disk("g1", &file_backing(&path))).adapter(disk("g2", "null:1M"));
    let mut daemon = Daemon::start(config)?;
    let rings = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
    let packed = if packed { VirtioFeatureFlags::RING_PACKED } else { VirtioFeatureFlags::empty() };
    let disk = VirtioBlkFeatureFlags::FLUSH
        | VirtioBlkFeatureFlags::DISCARD
        | VirtioBlkFeatureFlags::WRITE_ZEROES
        | VirtioBlkFeatureFlags::MQ;
    let features = (rings | packed).bits() | disk.bits();
    let connect = |guest: &str| -> Result<Transport> {
        Ok(VhostUser::new(&daemon.stor_socket(guest)?.display().to_string(), features)?)
    };
    let mut transport = connect("g1")?;
    ensure(transport.get_features() & features == features, || format!("{:#x}", transport.get_features()))?;
    ensure(virtio_blk_max_queues(&transport)? == QUEUES, || "another number of queues".into())?;

    // Data buffers: the crate maps shared memory only for its rings, so it is asked for the rings of a second disk, which are
    // never started, large enough for all data.
    let mut second = connect("g2")?;
    let layout = VirtqueueLayout::new::<[u8; 2 * BLOCK]>(1, 128, rings)?;
    let memory = second.alloc_queue_mem(&layout)?;
    let file = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter(|entry| {
            fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains("virtio-ring"))
        })
        .find(|entry| fs::metadata(entry.path()).is_ok_and(|of| of.len() == memory.len() as u64))
        .ok_or_else(|| Failure::new("the crate's shared memory is not among the open files"))?;
    let file = fs::OpenOptions::new().read(true).write(true).open(file.path())?;
    let mut queues = VirtioBlkQueue::<usize>::setup_queues(&mut transport, QUEUES, DEPTH)?;
    // After the rings have started.
    transport.map_mem_region(memory.as_ptr() as usize, memory.len(), file.as_raw_fd(), 0)?;
    let notify: Vec<Box<dyn QueueNotifier>> =
        (0..QUEUES).map(|i| transport.get_submission_notifier(i)).collect();

    // A multiple of a page, wherever the rings begin.
    let skip = memory.as_ptr().align_offset(BLOCK);
    let (out, back) = memory[skip..].split_at_mut(32 * BLOCK);
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = (at / 7 + at / BLOCK) as u8;
    }
    for round in 0..8u64 {
        let place = |i: usize| (round * 32 + i as u64) * BLOCK as u64;
        for (queue, other) in [(0, 1), (1, 0)] {
            for (i, block) in out.chunks(BLOCK).take(32).enumerate() {
                queues[queue].write(place(i), block, i)?;
            }
            notify[queue].notify()?;
            let mut ended = completed(&mut queues[queue], 32)?;
            ended.sort_unstable();
            ensure(ended == (0..32).collect::<Vec<_>>(), || format!("{ended:?}"))?;
            back[..32 * BLOCK].fill(0xee);
            for (i, block) in back.chunks_mut(BLOCK).take(32).enumerate() {
                queues[other].read(place(i), block, i)?;
            }
            notify[other].notify()?;
            completed(&mut queues[other], 32)?;
            ensure(back[..32 * BLOCK] == *out, || format!("round {round}: read back something else"))?;
            out[..BLOCK].rotate_left(1);
        }
    }
    queues[0].discard(0, BLOCK as u64, 1)?;
    queues[0].write_zeroes(BLOCK as u64, BLOCK as u64, true, 2)?;
    queues[0].flush(3)?;
    notify[0].notify()?;
    completed(&mut queues[0], 3)?;
    let image = fs::read(&path)?;
    ensure(image[..2 * BLOCK].iter().all(|byte| *byte == 0), || "discarded and zeroed".into())?;
    ensure(image[7 * 32 * BLOCK + BLOCK..][..31 * BLOCK] == out[BLOCK..], || {
        "the image holds something else".into()
    })?;
    drop(queues);
    drop(transport);
    let lun = daemon.lun("g1", 0)?;
    ensure(lun["stats"]["writes"] == 512 && lun["stats"]["errors"] == 0, || format!("{lun:#}"))?;
    daemon.ensure_healthy()
}
