//! The demo's guest with 128 disks: writes a pattern to each, reads it back, and looks for it in the image files.
//!
//! Owns the guest and what it expects to read. The daemon is the real one; [`super`] prints the result.

use super::daemon::{DISK_GUEST, Daemon};
use crate::client::Client;
use avio_guest::Endpoint;
use avio_guest::storage::{Done, Kind, RequestQueue, StorageGuest, StorageOptions, Transfer};
use avio_proto::control::{LunReport, ShowStorageParams, StorageReply, stord_method};
use avio_proto::virtio::scsi::{CDB_LEN, CommandRequest, CommandResponse, Lun, REQUEST_QUEUE, S_OK};
use serde::Serialize;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// LUNs of the adapter: the most that the original had.
pub const LUNS: u8 = 128;
/// Size of each image file.
pub const IMAGE_LEN: u64 = 1 << 20;
/// Length of one request.
const BLOCK_LEN: usize = 4096;
/// Requests to each LUN: some of its blocks, spread over all of it.
const BLOCKS: u32 = 16;
/// Logical blocks between two of them.
const STRIDE: u32 = (IMAGE_LEN / 512) as u32 / BLOCKS;
/// Requests under way at once.
const DEPTH: u16 = 128;
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// SCSI operation codes (SPC-5, SBC-4).
const TEST_UNIT_READY: u8 = 0x00;
const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2a;
/// CHECK CONDITION (SAM-5 5.3.1), and the sense key of a unit attention (SPC-5 4.5.6).
const CHECK_CONDITION: u8 = 2;
const UNIT_ATTENTION: u8 = 6;

/// What the guest found, and what the daemon counted.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct DiskResult {
    /// LUNs written, read and verified.
    pub luns: u32,
    /// Bytes written, and as many read.
    pub bytes: u64,
    /// Requests a second, writes that are durable when they end.
    pub writes_per_s: f64,
    /// The same of reads.
    pub reads_per_s: f64,
    /// The slowest LUN's median of reads, us.
    pub read_p50_us: f64,
    /// The slowest LUN's median of writes, us.
    pub write_p50_us: f64,
}

/// Writes, reads and verifies; `say` gets progress lines.
///
/// # Errors
/// One line: what the guest read that it had not written, or what broke.
pub fn run(daemon: &Daemon, say: &impl Fn(String)) -> Result<DiskResult, String> {
    let options = StorageOptions { depth: DEPTH, data_len: BLOCK_LEN, ..StorageOptions::new(Kind::Scsi) };
    let (_guest, mut queues) = StorageGuest::connect(Endpoint::connect(daemon.disk_socket()), &options)
        .map_err(|e| e.to_string())?;
    let queue = &mut queues[REQUEST_QUEUE as usize];
    // A LUN tells a new initiator once that power came on; what it says is no answer to a write.
    pass(queue, TEST_UNIT_READY, 1, &|_| {})?;
    let requests = u64::from(LUNS) * u64::from(BLOCKS);
    let mut result = DiskResult { bytes: requests * BLOCK_LEN as u64, ..DiskResult::default() };
    let tell = |word: &'static str| {
        move |done: u64| say(format!("  {word} {:.1} of {:.1} MiB", mib(done), mib(requests)))
    };
    result.writes_per_s = pass(queue, WRITE_10, BLOCKS, &tell("written"))?;
    result.reads_per_s = pass(queue, READ_10, BLOCKS, &tell("read and verified"))?;
    for target in 0..LUNS {
        look_into_image(daemon, target)?;
        result.luns += 1;
    }
    for lun in luns(daemon)? {
        let stats = &lun.stats;
        if (stats.reads, stats.writes, stats.errors) != (BLOCKS.into(), BLOCKS.into(), 0) {
            return Err(format!("the daemon counted {stats:?} at target {}", lun.target));
        }
        result.read_p50_us = result.read_p50_us.max(stats.read_latency_us.p50);
        result.write_p50_us = result.write_p50_us.max(stats.write_latency_us.p50);
    }
    Ok(result)
}

fn mib(requests: u64) -> f64 {
    (requests * BLOCK_LEN as u64) as f64 / f64::from(1 << 20)
}

/// The LUNs as the daemon tells of them.
fn luns(daemon: &Daemon) -> Result<Vec<LunReport>, String> {
    let mut client = Client::stord(&daemon.run_dir()).map_err(|e| e.to_string())?;
    let params = ShowStorageParams { guest: Some(DISK_GUEST.into()) };
    let reply: StorageReply = client.call(stord_method::SHOW, &params).map_err(|e| e.to_string())?;
    Ok(reply.adapters.into_iter().flat_map(|adapter| adapter.luns).collect())
}

/// What block `block` of target `target` holds: no two blocks of all disks are alike.
fn pattern(target: u8, block: u32) -> [u8; BLOCK_LEN] {
    let mut bytes = [0; BLOCK_LEN];
    let seed = (u64::from(target) << 32 | u64::from(block)) + 1;
    for (word, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        // A step of splitmix64: whatever is misplaced by a word or a block differs.
        let mut mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(word as u64);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        chunk.copy_from_slice(&(mixed ^ mixed >> 27).to_le_bytes());
    }
    bytes
}

fn cdb(operation: u8, block: u32) -> [u8; CDB_LEN] {
    let mut cdb = [0; CDB_LEN];
    cdb[0] = operation;
    if operation != TEST_UNIT_READY {
        cdb[2..6].copy_from_slice(&(block * STRIDE).to_be_bytes());
        cdb[8] = (BLOCK_LEN / 512) as u8;
    }
    cdb
}

/// One command to each of `blocks` blocks of every LUN, all LUNs side by side. Returns commands a second.
fn pass(queue: &mut RequestQueue, operation: u8, blocks: u32, tell: &impl Fn(u64)) -> Result<f64, String> {
    // Block by block over all LUNs: as many LUNs are busy at once as requests are under way.
    let mut places = (0..blocks).flat_map(|block| (0..LUNS).map(move |target| (target, block)));
    let total = u64::from(blocks) * u64::from(LUNS);
    let mut under_way = vec![(0, 0); usize::from(DEPTH)];
    let mut done = [Done::default(); DEPTH as usize];
    let (begin, mut ended, mut told, mut heard) = (Instant::now(), 0, Instant::now(), Instant::now());
    while ended < total {
        while let Some(slot) = queue.take() {
            let Some((target, block)) = places.next() else {
                queue.give(slot);
                break;
            };
            under_way[usize::from(slot)] = (target, block);
            submit(queue, slot, operation, target, block)?;
        }
        queue.flush();
        let count = queue.poll(&mut done).map_err(|e| e.to_string())?;
        for finished in &done[..count] {
            let (target, block) = under_way[usize::from(finished.slot)];
            judge(queue, finished.slot, operation, target, block)?;
            queue.give(finished.slot);
        }
        ended += count as u64;
        if count > 0 {
            heard = Instant::now();
        } else if heard.elapsed() > ANSWER_TIMEOUT {
            return Err(format!("{} of {total} requests unanswered for {ANSWER_TIMEOUT:?}", total - ended));
        } else {
            queue.wait(Duration::from_millis(100));
        }
        if told.elapsed() >= PROGRESS_EVERY {
            tell(ended);
            told = Instant::now();
        }
    }
    Ok(total as f64 / begin.elapsed().as_secs_f64())
}

fn submit(queue: &mut RequestQueue, slot: u16, operation: u8, target: u8, block: u32) -> Result<(), String> {
    let id = u64::from(slot) + 1;
    let request = CommandRequest {
        lun: Lun::target(target).encode(),
        id,
        cdb: cdb(operation, block),
        ..CommandRequest::default()
    };
    let head = request.to_bytes();
    queue.head(slot).copy_from(&head);
    // Never a status that a device uses: one that was not written is noticed.
    queue.response(slot).copy_from(&[0xff; CommandResponse::LEN]);
    let transfer = match operation {
        WRITE_10 => {
            queue.data(slot).copy_from(&pattern(target, block));
            Transfer::Out(BLOCK_LEN as u32)
        }
        READ_10 => {
            queue.data(slot).copy_from(&[0; BLOCK_LEN]);
            Transfer::In(BLOCK_LEN as u32)
        }
        _ => Transfer::None,
    };
    if queue.submit(slot, head.len() as u32, CommandResponse::LEN as u32, transfer) {
        Ok(())
    } else {
        Err("the ring has no room for a request that has a slot".into())
    }
}

/// What came back must be what was asked for, and what was read what was written.
fn judge(queue: &RequestQueue, slot: u16, operation: u8, target: u8, block: u32) -> Result<(), String> {
    let bytes = queue.response(slot).read(0).unwrap_or([0xff; CommandResponse::LEN]);
    let response = CommandResponse::from_bytes(&bytes);
    let attention = response.status == CHECK_CONDITION && response.sense[2] & 0xf == UNIT_ATTENTION;
    let fine =
        response.response == S_OK && (response.status == 0 || operation == TEST_UNIT_READY && attention);
    if !fine {
        return Err(format!(
            "target {target}: command {operation:02x}h ended with response {}, status {}, sense {:02x?}",
            response.response,
            response.status,
            &response.sense[..14]
        ));
    }
    if operation == READ_10 {
        let mut read = [0; BLOCK_LEN];
        queue.data(slot).copy_to(&mut read);
        if read != pattern(target, block) {
            return Err(format!("target {target}: block {block} holds something else than was written"));
        }
    }
    Ok(())
}

/// The file on the host holds what the guest wrote to its disk, block for block.
fn look_into_image(daemon: &Daemon, target: u8) -> Result<(), String> {
    let path = daemon.image(target);
    let file = File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    for block in 0..BLOCKS {
        let mut bytes = [0; BLOCK_LEN];
        file.read_exact_at(&mut bytes, u64::from(block * STRIDE) * 512)
            .map_err(|e| format!("{}: {e}", path.display()))?;
        if bytes != pattern(target, block) {
            return Err(format!("{}: block {block} is not what the guest wrote", path.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_blocks_are_alike_and_commands_are_those_of_the_standard() {
        let blocks: std::collections::BTreeSet<Vec<u8>> = (0..LUNS)
            .flat_map(|target| (0..BLOCKS).map(move |block| pattern(target, block).to_vec()))
            .collect();
        assert_eq!(blocks.len(), usize::from(LUNS) * BLOCKS as usize);
        // SBC-4 5.35: LOGICAL BLOCK ADDRESS in bytes 2 to 5, TRANSFER LENGTH in 7 and 8.
        assert_eq!(cdb(WRITE_10, 3)[..10], [0x2a, 0, 0, 0, 1, 0x80, 0, 0, 8, 0]);
        assert_eq!(cdb(TEST_UNIT_READY, 3)[..6], [0; 6]);
    }
}
