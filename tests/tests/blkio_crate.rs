//! `avio_blk` under `blkio`, libblkio's implementation in Rust: its properties, one queue that waits for completions and one
//! that polls, and memory that it allocates, maps and unmaps while the device runs.

use std::fs::{self, File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::Duration;

use avio_tests::case::{self, Case};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::storage::{Adapter, Storage, file_backing, image};
use avio_tests::{Failure, Result};
use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

const BLOCK: usize = 4096;
/// Requests under way.
const DEPTH: usize = 32;
const HALF: usize = DEPTH * BLOCK;

fn main() -> ExitCode {
    case::main(&[
        Case::new("a_foreign_library", 60, library).data_path(),
        Case::new("a_foreign_library_on_a_disk_that_may_only_be_read", 30, read_only),
    ])
}

fn connect(daemon: &Daemon<Storage>, read_only: bool) -> Result<Blkio> {
    let mut device = Blkio::new("virtio-blk-vhost-user")?;
    device.set_str("path", &daemon.stor_socket("g1")?.display().to_string())?;
    device.set_bool("read-only", read_only)?;
    device.connect()?;
    Ok(device)
}

/// Submits what was enqueued and waits until `count` requests have ended. How each ended is behind a pointer of C's: content
/// and the daemon's counters tell.
fn completed(queue: &mut Blkioq, count: usize) -> Result {
    let mut completions = [const { MaybeUninit::<Completion>::uninit() }; DEPTH];
    // A queue that polls takes no timeout; the case has one.
    let mut seconds = Duration::from_secs(10);
    let timeout = queue.get_completion_fd().is_some().then_some(&mut seconds);
    let ended = queue.do_io(&mut completions[..count], count, timeout, None)?;
    ensure(ended == count, || format!("{ended} of {count} requests have ended"))
}

/// A region of the library's and the file behind it, through which it is filled and looked at.
struct Memory {
    region: MemoryRegion,
    file: File,
}

impl Memory {
    fn new(device: &mut Blkio) -> Result<Memory> {
        let region = device.alloc_mem_region(2 * HALF)?;
        let file = OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", region.fd))?;
        device.map_mem_region(&region)?;
        Ok(Memory { region, file })
    }

    fn at(&self, offset: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.region.addr + offset)
    }

    fn fill(&self, bytes: &[u8]) -> Result {
        Ok(self.file.write_all_at(bytes, self.region.fd_offset as u64)?)
    }

    fn second_half(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; HALF];
        self.file.read_exact_at(&mut bytes, self.region.fd_offset as u64 + HALF as u64)?;
        Ok(bytes)
    }
}

fn library() -> Result {
    let path = image("disk.img", 8 << 20)?;
    let adapter = Adapter::new("g1", "avio_blk").lines("queues = 2");
    let adapter = adapter.disk(0, &file_backing(&path), "cache = \"writeback\"");
    let mut daemon = Daemon::start(Storage::one(adapter))?;
    let mut device = connect(&daemon, false)?;
    let number = |device: &Blkio, name: &str| device.get_i32(name).map_err(Failure::from);
    ensure(device.get_u64("capacity")? == 8 << 20, || "another capacity".into())?;
    ensure(number(&device, "max-queues")? == 2, || "another number of queues".into())?;
    ensure(number(&device, "request-alignment")? == 512, || "another block size".into())?;
    let flush = device.get_bool("flush-needed")?;
    ensure(flush, || "writeback and no flush needed".into())?;
    device.set_i32("num-queues", 1)?;
    device.set_i32("num-poll-queues", 1)?;
    let mut started = device.start()?;
    // One that waits, one that polls.
    let mut queues = [started.queues.remove(0), started.poll_queues.remove(0)];
    let mut expected = vec![0u8; HALF];
    for round in 0..4u64 {
        // Memory comes and goes while the rings run.
        let memory = Memory::new(&mut device)?;
        for (at, byte) in expected.iter_mut().enumerate() {
            *byte = (at / 7 + at / BLOCK) as u8 ^ round as u8;
        }
        memory.fill(&expected)?;
        for (writer, reader) in [(0, 1), (1, 0)] {
            let place = |i: usize| round * HALF as u64 + (i * BLOCK) as u64;
            for i in 0..DEPTH {
                queues[writer].write(place(i), memory.at(i * BLOCK), BLOCK, i, ReqFlags::empty());
            }
            completed(&mut queues[writer], DEPTH)?;
            for i in 0..DEPTH {
                queues[reader].read(place(i), memory.at(HALF + i * BLOCK), BLOCK, i, ReqFlags::empty());
            }
            completed(&mut queues[reader], DEPTH)?;
            ensure(memory.second_half()? == expected, || format!("round {round}: read back something else"))?;
            memory.fill(&[[0; HALF], [0xee; HALF]].concat())?;
            memory.fill(&expected)?;
        }
        device.unmap_mem_region(&memory.region);
        device.free_mem_region(&memory.region);
    }
    let [waits, polls] = &mut queues;
    waits.discard(0, BLOCK as u64, 1, ReqFlags::empty());
    waits.write_zeroes(BLOCK as u64, BLOCK as u64, 2, ReqFlags::NO_UNMAP);
    completed(waits, 2)?;
    polls.flush(3, ReqFlags::empty());
    completed(polls, 1)?;
    let held = fs::read(&path)?;
    ensure(held[..2 * BLOCK].iter().all(|byte| *byte == 0), || "discarded and zeroed".into())?;
    ensure(held[3 * HALF..4 * HALF] == expected, || "the image holds something else".into())?;
    drop(queues);
    drop(started);
    drop(device);
    let lun = daemon.lun_when("g1", 0, 5, |lun| lun["stats"]["in_flight"] == 0)?;
    let stats = &lun["stats"];
    ensure(stats["writes"] == 256 && stats["reads"] == 256 && stats["errors"] == 0, || format!("{lun:#}"))?;
    ensure(stats["flushes"].as_u64() >= Some(1) && stats["discards"] == 2, || format!("{lun:#}"))?;
    daemon.ensure_healthy()
}

fn read_only() -> Result {
    let path = image("disk.img", 1 << 20)?;
    fs::write(&path, vec![7; 1 << 20])?;
    let adapter = Adapter::new("g1", "avio_blk");
    let adapter = adapter.disk(0, &file_backing(&path), "readonly = true");
    let mut daemon = Daemon::start(Storage::one(adapter))?;
    let mut device = connect(&daemon, false)?;
    ensure(device.start().is_err(), || "the library was not told that it may only read".into())?;
    drop(device);
    let mut device = connect(&daemon, true)?;
    let mut started = device.start()?;
    let memory = Memory::new(&mut device)?;
    started.queues[0].read(0, memory.at(HALF), HALF, 0, ReqFlags::empty());
    completed(&mut started.queues[0], 1)?;
    ensure(memory.second_half()? == vec![7; HALF], || "read something else".into())?;
    daemon.ensure_healthy()
}
