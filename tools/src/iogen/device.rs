//! Connections: which disks are behind a socket, and how large they are.
//!
//! Owns the sessions; request queues go to lanes. Commands before the load (INQUIRY, READ CAPACITY) go through the same
//! rings that the load uses.

use super::options::Rings;
use avio_guest::Endpoint;
use avio_guest::storage::{Adapter, Disk, Kind, RequestQueue, StorageGuest, StorageOptions};
use avio_proto::virtio::blk::{self, SECTOR_LEN};
use avio_proto::virtio::scsi;
use std::path::Path;
use std::time::{Duration, Instant};

/// A guest that has just come is told so by its first commands (UNIT ATTENTION); there are never more kinds of that.
const ATTENTIONS_MAX: usize = 16;
/// A device comes up within this.
const READY_MAX: Duration = Duration::from_secs(10);

/// What a disk is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// virtio-blk: there is one.
    Blk,
    /// virtio-scsi: a target, lun 0.
    Scsi(u8),
}

/// One disk.
#[derive(Clone, Copy, Debug)]
pub struct DiskInfo {
    /// How to ask it.
    pub address: Address,
    /// Its size.
    pub bytes: u64,
    /// Its logical block in bytes.
    pub block: u32,
}

/// One connection.
#[derive(Debug)]
pub struct Device {
    /// The session and memory.
    pub guest: StorageGuest,
    /// All rings in ring order.
    pub queues: Vec<RequestQueue>,
    /// Ring number of the first request queue.
    pub first: usize,
    /// Slots of each request queue.
    pub depth: u16,
    /// Its disks.
    pub disks: Vec<DiskInfo>,
}

impl Device {
    /// Connects to `socket` with `queue_count` request queues of `depth` requests, each of up to `block` bytes.
    ///
    /// # Errors
    /// One line, naming the socket.
    pub fn connect(
        socket: &Path,
        rings: &Rings,
        queue_count: u16,
        depth: u16,
        block: u64,
    ) -> Result<Self, String> {
        let fail = |e: &dyn std::fmt::Display| {
            let text = e.to_string();
            if text.contains(&socket.display().to_string()) {
                text
            } else {
                format!("{}: {text}", socket.display())
            }
        };
        let endpoint = match rings.listen {
            true => Endpoint::listen(socket).map_err(|e| fail(&e))?,
            false => Endpoint::connect(socket),
        };
        let options = StorageOptions {
            packed: rings.packed,
            indirect: !rings.no_indirect,
            event_idx: !rings.no_event_idx,
            inflight: rings.inflight,
            queues: queue_count,
            depth,
            data_len: block.max(4096) as usize,
            connect_timeout: rings.connect_timeout,
            ..StorageOptions::new(rings.kind())
        };
        let first = rings.kind().first_request_queue() as usize;
        match rings.kind() {
            Kind::Blk => {
                let disk = Disk::connect(endpoint, &options).map_err(|e| fail(&e))?;
                let config = disk.config();
                let info = DiskInfo {
                    address: Address::Blk,
                    bytes: config.capacity * SECTOR_LEN,
                    block: if config.blk_size == 0 { SECTOR_LEN as u32 } else { config.blk_size },
                };
                let (guest, queues) = disk.into_parts();
                let most = match guest.features() & blk::F_SIZE_MAX {
                    0 => u64::MAX,
                    _ if config.size_max == 0 => u64::MAX,
                    _ => u64::from(config.size_max),
                };
                if block > most {
                    return Err(fail(&format!("--bs: the disk takes {most} bytes at most")));
                }
                Ok(Self { guest, queues, first, depth, disks: vec![info] })
            }
            Kind::Scsi => {
                let mut adapter = Adapter::connect(endpoint, &options).map_err(|e| fail(&e))?;
                let disks = scan(&mut adapter, &rings.targets).map_err(|e| fail(&e))?;
                let (guest, queues) = adapter.into_parts();
                Ok(Self { guest, queues, first, depth, disks })
            }
        }
    }
}

/// The disks among `wanted`, or all that the adapter reports.
fn scan(adapter: &mut Adapter, wanted: &[u8]) -> Result<Vec<DiskInfo>, String> {
    let targets = if wanted.is_empty() { reported(adapter)? } else { wanted.to_vec() };
    let mut disks = Vec::new();
    for &target in &targets {
        match capacity(adapter, target) {
            Ok(disk) => disks.push(disk),
            // Asked for by name, it must be there; a DVD drive among all of them is passed over.
            Err(why) if !wanted.is_empty() => return Err(format!("--targets: target {target}: {why}")),
            Err(_) => {}
        }
    }
    if disks.is_empty() { Err("no disk with a medium behind this adapter".into()) } else { Ok(disks) }
}

/// Targets behind which there is a disk: each is asked, as Linux does.
fn reported(adapter: &mut Adapter) -> Result<Vec<u8>, String> {
    let config = adapter.config();
    let mut found = Vec::new();
    for target in 0..=config.max_target.min(255) as u8 {
        // INQUIRY, 36 bytes: peripheral qualifier and type 0 is a disk (SPC-4 6.4.2).
        let cdb = [0x12, 0, 0, 0, 36, 0];
        let outcome = command(adapter, target, &cdb, 36)?;
        if outcome.is_some_and(|data| data.first() == Some(&0)) {
            found.push(target);
        }
    }
    Ok(found)
}

/// READ CAPACITY (16) (SBC-4 5.16), repeated while the unit has something else to say first.
fn capacity(adapter: &mut Adapter, target: u8) -> Result<DiskInfo, String> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x10, 32);
    let deadline = Instant::now() + READY_MAX;
    for _ in 0..ATTENTIONS_MAX {
        if let Some(data) = command(adapter, target, &cdb, 32)?
            && let Some((last, rest)) = data.split_first_chunk::<8>()
            && let Some((block, _)) = rest.split_first_chunk::<4>()
        {
            let block = u32::from_be_bytes(*block);
            let bytes = u64::from_be_bytes(*last).saturating_add(1).saturating_mul(u64::from(block));
            return Ok(DiskInfo { address: Address::Scsi(target), bytes, block });
        }
        if Instant::now() > deadline {
            break;
        }
    }
    Err("no such disk, or no medium in it (READ CAPACITY fails)".into())
}

/// One command; its data if it ended with GOOD.
fn command(adapter: &mut Adapter, target: u8, cdb: &[u8], len: usize) -> Result<Option<Vec<u8>>, String> {
    let lun = scsi::Lun::target(target).encode();
    let outcome = adapter.command(0, lun, cdb, &[], len).map_err(|e| e.to_string())?;
    let good = outcome.response.response == scsi::S_OK && outcome.response.status == 0;
    Ok(good.then_some(outcome.data))
}
