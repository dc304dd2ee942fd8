//! Our storage guest against qemu-storage-daemon: a virtio-blk device that nobody here wrote.
//!
//! Covers what the driver side and `avio-iogen` must get right before our own daemon is measured with them: data, flush, discard, write zeroes,
//! serial, refusals, several queues, direct and indirect chains, and many requests in flight at once.

use avio_guest::Endpoint;
use avio_guest::storage::{Disk, Done, Kind, StorageError, StorageOptions, Transfer};
use avio_proto::virtio::blk;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running qemu-storage-daemon over a scratch file; ended when dropped.
struct Qsd {
    child: Child,
    dir: PathBuf,
}

const SIZE: u64 = 16 << 20;

impl Qsd {
    fn start(name: &str, queues: u16) -> Self {
        let dir = std::env::temp_dir().join(format!("avio-qsd-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let image = dir.join("disk.raw");
        std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=f,filename={},discard=unmap", image.display()))
            .arg("--blockdev")
            .arg("driver=raw,node-name=disk,file=f,discard=unmap")
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={},writable=on,num-queues={queues}",
                dir.join("s").display()
            ))
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon (Debian: qemu-system-common)");
        Self { child, dir }
    }

    fn disk(&self, options: &StorageOptions) -> Disk {
        Disk::connect(Endpoint::connect(self.dir.join("s")), options).unwrap()
    }

    /// What the image file holds, read past every layer under test.
    fn image(&self) -> Vec<u8> {
        std::fs::read(self.dir.join("disk.raw")).unwrap()
    }
}

impl Drop for Qsd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| ((i / 512).wrapping_mul(31) ^ i ^ seed) as u8).collect()
}

fn all_requests(name: &str, indirect: bool) {
    let qsd = Qsd::start(name, 2);
    let options = StorageOptions {
        queues: 2,
        indirect,
        data_len: 1 << 20,
        depth: 16,
        ..StorageOptions::new(Kind::Blk)
    };
    let mut disk = qsd.disk(&options);
    let config = disk.config();
    assert_eq!(config.capacity * blk::SECTOR_LEN, SIZE);
    assert_eq!(config.num_queues, 2);
    for (queue, len) in [(0, 4096), (1, 1 << 20)] {
        let sector = 2048 * (queue as u64 + 1);
        let data = pattern(7 + queue as u64, len);
        disk.write(queue, sector, &data).unwrap();
        disk.flush(queue).unwrap();
        let at = (sector * blk::SECTOR_LEN) as usize;
        assert_eq!(qsd.image()[at..at + len], data, "queue {queue}: the image holds something else");
        // The other queue sees the same disk.
        let mut got = vec![0; len];
        disk.read(1 - queue, sector, &mut got).unwrap();
        assert!(got == data, "queue {queue}: read back something else");
    }
    disk.write_zeroes(0, 2048, 4, false).unwrap();
    let mut got = vec![1; 4096];
    disk.read(0, 2048, &mut got).unwrap();
    assert_eq!(got[..2048], [0; 2048]);
    assert_eq!(got[2048..], pattern(7, 4096)[2048..]);
    disk.discard(1, 4096, 2048).unwrap();
    assert!(!disk.serial(0).unwrap().is_empty());
    let past_end = disk.read(0, SIZE / blk::SECTOR_LEN, &mut got);
    assert!(matches!(past_end, Err(StorageError::Status(blk::S_IOERR))), "{past_end:?}");
    let unknown = disk.request(0, 99, 0, &[], &mut got);
    assert!(matches!(unknown, Err(StorageError::Status(blk::S_UNSUPP))), "{unknown:?}");
    // Still alive after the refusals.
    disk.read(0, 2048, &mut got).unwrap();
}

#[test]
fn every_request_through_indirect_tables() {
    all_requests("indirect", true);
}

#[test]
fn every_request_through_chains() {
    all_requests("chains", false);
}

/// Keeps 32 requests in flight until each of 2048 blocks has been written with its own number, then compares the image.
#[test]
fn deep_queue_writes_what_it_was_told() {
    let qsd = Qsd::start("deep", 1);
    let mut disk = qsd.disk(&StorageOptions { depth: 32, ..StorageOptions::new(Kind::Blk) });
    let blocks = 2048u64;
    let (mut next, mut finished) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut done = [Done::default(); 32];
    while finished < blocks {
        assert!(Instant::now() < deadline, "{finished} of {blocks} after a minute");
        let queue = &mut disk.queues()[0];
        while next < blocks
            && let Some(slot) = queue.take()
        {
            let header = blk::RequestHeader { kind: blk::T_OUT, sector: next * 8 };
            queue.head(slot).copy_from(&header.to_bytes());
            queue.data(slot).copy_from(&pattern(next, 4096));
            queue.response(slot).copy_from(&[0xff]);
            assert!(queue.submit(slot, 16, 1, Transfer::Out(4096)));
            next += 1;
        }
        queue.flush();
        let count = queue.poll(&mut done).unwrap();
        for one in &done[..count] {
            assert_eq!((queue.response(one.slot).read::<1>(0), one.written), (Some([blk::S_OK]), 1));
            queue.give(one.slot);
        }
        finished += count as u64;
        if count == 0 {
            queue.wait(Duration::from_secs(1));
        }
    }
    disk.flush(0).unwrap();
    let image = qsd.image();
    for block in 0..blocks {
        let at = block as usize * 4096;
        assert!(image[at..at + 4096] == pattern(block, 4096), "block {block}");
    }
}

/// A feature that cannot be had is an error that names it, not a ring that never answers.
#[test]
fn packed_rings_are_refused_where_there_are_none() {
    let qsd = Qsd::start("packed", 1);
    let options = StorageOptions { packed: true, ..StorageOptions::new(Kind::Blk) };
    match Disk::connect(Endpoint::connect(qsd.dir.join("s")), &options) {
        Err(e) => assert!(e.to_string().contains("packed rings"), "{e}"),
        // A daemon that has them must serve them.
        Ok(mut disk) => disk.write(0, 0, &[1; 512]).unwrap(),
    }
}

fn iogen(line: &str) -> avio_tools::iogen::report::Report {
    let options: avio_tools::iogen::options::Options = line.parse().unwrap();
    avio_tools::iogen::generate(&options.plan(&[0]).unwrap()).unwrap()
}

/// The generator's own marks, written, overwritten and read back through a device that nobody here wrote, in every ring
/// layout that it serves.
#[test]
fn the_generator_verifies_what_it_wrote() {
    let qsd = Qsd::start("verify", 2);
    let socket = qsd.dir.join("s");
    let base = format!("--socket {} --quiet --verify --iodepth 16", socket.display());
    for rings in ["", "--no-indirect", "--no-event-idx", "--no-indirect --notify wait --fsync 8"] {
        let report = iogen(&format!(
            "{base} {rings} --rw randrw --bs 4k --size 4m --numjobs 2 --runtime 1 --time-based"
        ));
        assert_eq!(report.complaint(), None, "{rings}");
        assert!(report.json()["jobs"][0]["avio"]["verified"].as_u64() > Some(100), "{rings}");
    }
    // All of it by one writer, checked by a run that only reads; then one byte of it is changed behind everybody's back.
    let small = format!("{base} --bs 8k --size 2m");
    assert_eq!(iogen(&format!("{small} --rw write")).complaint(), None);
    let report = iogen(&format!("{small} --rw read"));
    assert_eq!(report.complaint(), None);
    assert_eq!(report.json()["jobs"][0]["avio"]["verified"], 256);
    let image = qsd.dir.join("disk.raw");
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[8192 * 7 + 4096] ^= 1;
    std::fs::write(&image, &bytes).unwrap();
    let complaint = iogen(&format!("{small} --rw randread --runtime 1 --time-based")).complaint().unwrap();
    assert!(complaint.contains("block at byte 57344") && complaint.contains("byte 4096"), "{complaint}");
}
