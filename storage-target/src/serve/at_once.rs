//! Reads and writes that need no waiting: answered while their batch is being taken, without a job.
//!
//! `null:` and `memory:` media, plain READ and WRITE, nothing in the way. Whatever is not so is left alone, untouched, and goes
//! the long way (`blk`, `scsi`), which says why. The same checks, limits, numbers and dirty pages as there; called by
//! `queue` on a worker.

use avio_proto::mem::{GuestSlice, MemoryTable};
use avio_proto::ring::Chain;
use avio_proto::virtio::blk::{self, RequestHeader};
use avio_proto::virtio::scsi::{self, CommandRequest, CommandResponse};

use super::blk::in_range;
use super::message::Role;
use super::queue::gather;
use crate::adapter::{AdapterView, Target};
use crate::backing::{AtOnce, Backing};
use crate::scsi::{MediumOp, fast};

/// Who serves a batch, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Number of the worker.
    pub worker: usize,
    /// Time of this turn, ns.
    pub now_ns: u64,
}

/// Requests of one kind on one target that were answered one after the other and are not counted yet.
#[derive(Clone, Copy, Debug)]
struct Run<'v> {
    target: &'v Target,
    write: bool,
    count: u64,
    bytes: u64,
}

/// Counts what a batch answers. Whoever answers ends it with [`Tally::end`].
#[derive(Debug, Default)]
pub(super) struct Tally<'v>(Option<Run<'v>>);

impl<'v> Tally<'v> {
    /// A request has ended well.
    #[inline]
    fn add(&mut self, target: &'v Target, write: bool, bytes: u64, worker: usize) {
        if let Some(run) = &mut self.0
            && std::ptr::eq(run.target, target)
            && run.write == write
        {
            run.count += 1;
            run.bytes += bytes;
            return;
        }
        self.end(worker);
        self.0 = Some(Run { target, write, count: 1, bytes });
    }

    /// All of them are counted.
    #[inline]
    pub fn end(&mut self, worker: usize) {
        if let Some(run) = self.0.take() {
            run.target.stats.cell(worker).good_at_once(run.write, run.count, run.bytes);
        }
    }
}

/// The data of a request.
struct Data<'a> {
    write: bool,
    offset: u64,
    pieces: &'a [GuestSlice<'a>],
    skip: usize,
    len: usize,
}

/// Answers a request if that needs no waiting; returns the bytes written to the guest. `None`: nothing has happened.
#[inline]
pub(super) fn answer<'v>(
    role: Role,
    view: &'v AdapterView,
    memory: &MemoryTable,
    chain: &Chain<'_>,
    moment: Moment,
    tally: &mut Tally<'v>,
) -> Option<u32> {
    match role {
        Role::BlkRequest => blk_request(view, memory, chain, moment, tally),
        Role::ScsiRequest => scsi_request(view, memory, chain, moment, tally),
        Role::ScsiControl | Role::ScsiEvent => None,
    }
}

/// So many requests ahead is a read's range fetched in a batch that begins with `first`; 0: nothing is copied, as a rule.
#[inline]
pub(super) fn turns_ahead(role: Role, view: &AdapterView, first: &Chain<'_>) -> usize {
    let number = match role {
        Role::BlkRequest => Some(0),
        Role::ScsiRequest => target_of(first),
        Role::ScsiControl | Role::ScsiEvent => None,
    };
    if number.and_then(|number| copied(view, number)).is_some() { 2 } else { 0 }
}

/// The target that a SCSI command is for.
#[inline]
fn target_of(chain: &Chain<'_>) -> Option<u8> {
    let lun = chain.readable.first()?.read(0)?;
    scsi::Lun::decode(&lun).map(|address| address.target)
}

/// Fetches from a medium in memory what a request will read, `turns` requests before it is copied. Looks at the request, decides
/// nothing.
#[inline]
pub(super) fn prefetch(role: Role, view: &AdapterView, chain: &Chain<'_>, turns: usize) {
    match role {
        Role::BlkRequest => {
            let Some(backing) = copied(view, 0) else { return };
            let mut head = [0; RequestHeader::LEN];
            if gather(chain.readable, &mut head) < head.len() {
                return;
            }
            let header = RequestHeader::from_bytes(&head);
            if header.kind == blk::T_IN {
                let offset = header.sector.saturating_mul(blk::SECTOR_LEN);
                backing.prefetch(offset, chain.writable_len.saturating_sub(1), turns);
            }
        }
        Role::ScsiRequest => {
            // Which logical unit it is stands first; only if that one is copied from is the rest looked at.
            let Some(number) = target_of(chain) else { return };
            let Some(backing) = copied(view, number) else { return };
            let Some(target) = view.target(number) else { return };
            let Some(head) = chain.readable.first().and_then(|first| first.read(0)) else { return };
            if let Some(MediumOp::Read { lba, blocks }) = fast(&CommandRequest::from_bytes(&head).cdb) {
                let block = u64::from(target.lun.unit.block_size());
                backing.prefetch(lba.saturating_mul(block), (u64::from(blocks) * block) as usize, turns);
            }
        }
        Role::ScsiControl | Role::ScsiEvent => {}
    }
}

/// The medium of a target, if its reads are copies.
#[inline]
fn copied(view: &AdapterView, number: u8) -> Option<&Backing> {
    let target = view.target(number)?;
    if target.at_once == Some(AtOnce::Copies) { target.backing.as_deref() } else { None }
}

#[inline]
fn blk_request<'v>(
    view: &'v AdapterView,
    memory: &MemoryTable,
    chain: &Chain<'_>,
    moment: Moment,
    tally: &mut Tally<'v>,
) -> Option<u32> {
    let target = immediate(view, 0)?;
    let mut head = [0; RequestHeader::LEN];
    if chain.writable_len == 0 || gather(chain.readable, &mut head) < head.len() {
        return None;
    }
    let header = RequestHeader::from_bytes(&head);
    let (write, pieces, skip, len) = match header.kind {
        blk::T_IN => (false, chain.writable, 0, chain.writable_len - 1),
        blk::T_OUT => (true, chain.readable, head.len(), chain.readable_len - head.len()),
        _ => return None,
    };
    if write && target.readonly {
        return None;
    }
    let offset = in_range(target, header.sector, len as u64)?;
    transfer(target, memory, &Data { write, offset, pieces, skip, len }, moment, tally)?;
    put_status(memory, chain);
    Some(if write { 1 } else { len as u32 + 1 })
}

#[inline]
fn scsi_request<'v>(
    view: &'v AdapterView,
    memory: &MemoryTable,
    chain: &Chain<'_>,
    moment: Moment,
    tally: &mut Tally<'v>,
) -> Option<u32> {
    let mut head = [0; CommandRequest::LEN];
    if chain.writable_len < CommandResponse::LEN || gather(chain.readable, &mut head) < head.len() {
        return None;
    }
    let request = CommandRequest::from_bytes(&head);
    let address = scsi::Lun::decode(&request.lun).filter(|address| address.lun == 0)?;
    let target = immediate(view, address.target)?;
    let op = fast(&request.cdb)?;
    let (write, lba, blocks) = match op {
        MediumOp::Read { lba, blocks } => (false, lba, blocks),
        MediumOp::Write { lba, blocks, .. } => (true, lba, blocks),
        _ => return None,
    };
    if !target.lun.unit.allows(&op, target.readonly) {
        return None;
    }
    let block = u64::from(target.lun.unit.block_size());
    // Checked: the range is inside the medium.
    let (offset, len) = (lba * block, (u64::from(blocks) * block) as usize);
    let (out, within) = (chain.readable_len - CommandRequest::LEN, chain.writable_len - CommandResponse::LEN);
    // Too short a buffer has an answer of its own (§5.6.6.1, VIRTIO_SCSI_S_OVERRUN).
    if len > if write { out } else { within } {
        return None;
    }
    let (pieces, skip) = match write {
        true => (chain.readable, CommandRequest::LEN),
        false => (chain.writable, CommandResponse::LEN),
    };
    transfer(target, memory, &Data { write, offset, pieces, skip, len }, moment, tally)?;
    // The data buffer that there is: the driver's data in, or else its data out.
    let room = if within > 0 { within } else { out };
    let response = CommandResponse {
        residual: room.saturating_sub(len) as u32,
        response: scsi::S_OK,
        ..CommandResponse::default()
    };
    put_response(memory, chain, &response.head());
    Some((CommandResponse::LEN + if write { 0 } else { len }) as u32)
}

/// The target, if it is plain and its medium needs no waiting.
#[inline]
fn immediate(view: &AdapterView, number: u8) -> Option<&Target> {
    let target = view.target(number)?;
    let plain = target.lun.unit.is_plain(&target.nexus);
    (plain && target.at_once.is_some()).then_some(&**target)
}

/// Moves the data and counts it; `None`: a fence or a limit is in the way, and nothing has happened.
#[inline(always)]
fn transfer<'v>(
    target: &'v Target,
    memory: &MemoryTable,
    data: &Data<'_>,
    moment: Moment,
    tally: &mut Tally<'v>,
) -> Option<()> {
    let bytes = data.len as u64;
    if target.lun.overlap.is_fenced(data.offset, bytes) {
        return None;
    }
    if target.stats.cell(moment.worker).is_limited() {
        target.qos.admit(moment.now_ns, bytes).ok()?;
    }
    if target.at_once == Some(AtOnce::Copies) {
        let backing = target.backing.as_ref()?;
        if !backing.copy_now(data.write, data.offset, data.pieces, data.skip, data.len) {
            return None;
        }
        if !data.write && memory.log().is_some() {
            log_written(memory, data);
        }
    }
    tally.add(target, data.write, bytes, moment.worker);
    Some(())
}

/// Marks the pages that a read wrote.
#[cold]
fn log_written(memory: &MemoryTable, data: &Data<'_>) {
    let (mut skip, mut left) = (data.skip, data.len);
    for piece in data.pieces {
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        let part = piece.sub(skip, left);
        skip = 0;
        left -= part.len();
        memory.log_slice(&part, part.len());
    }
}

/// Writes the status of a request that is done, the last byte of its chain. Drivers as a rule leave there what was written the last
/// time, and have it in the line of the header: where it says so already, the line stays shared.
#[inline]
fn put_status(memory: &MemoryTable, chain: &Chain<'_>) {
    let last = chain.writable.last().filter(|last| !last.is_empty());
    if last.and_then(|last| last.read(last.len() - 1)) != Some([blk::S_OK]) {
        put(memory, chain.writable, chain.writable_len - 1, &[blk::S_OK]);
    }
}

/// Writes the head of a SCSI response, unless that is what stands there: as in [`put_status`].
#[inline]
fn put_response(memory: &MemoryTable, chain: &Chain<'_>, head: &[u8; CommandResponse::HEAD_LEN]) {
    if chain.writable.first().and_then(|first| first.read(0)).as_ref() != Some(head) {
        put(memory, chain.writable, 0, head);
    }
}

/// Writes `bytes` into what the device may write, `skip` bytes in.
#[inline]
pub(super) fn put(memory: &MemoryTable, pieces: &[GuestSlice<'_>], mut skip: usize, bytes: &[u8]) -> usize {
    let mut done = 0;
    for piece in pieces {
        if done == bytes.len() {
            break;
        }
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        let part = piece.sub(skip, bytes.len() - done);
        skip = 0;
        let count = part.copy_from(&bytes[done..]);
        memory.log_slice(&part, count);
        done += count;
    }
    done
}
