//! Requests of a virtio-blk disk (virtio 1.3 §5.2.6).
//!
//! Reads a request's header and segments, makes a job of it, and writes its status byte. What happens on the medium is in
//! `medium`.

use std::sync::Arc;

use avio_host::wait::Token;
use avio_proto::ring::{HeldId, Side};
use avio_proto::scsi::sense::NOT_READY;
use avio_proto::virtio::blk::{self, DiscardSegment, RequestHeader, SECTOR_LEN};

use super::engine::Serving;
use super::job::{Job, Place, Stage, Work};
use super::medium::Ending;
use crate::adapter::Target;
use crate::backing::Access;
use crate::lun::Class;
use crate::scsi::AccessKind;

/// Segments of one discard or write-zeroes request; what the configuration space says.
pub const SEGMENTS_MAX: usize = 16;
/// Unit attentions that a disk without sense data passes over: there are never more kinds of them.
const ATTENTIONS_MAX: usize = 64;

impl Serving {
    /// Takes one request up.
    pub(super) fn blk_request(&mut self, token: Token, held: HeldId) {
        let Some(queue) = self.queue(token) else { return };
        let mut bytes = [0; RequestHeader::LEN];
        let chain = queue.held.chain(held);
        let (readable, writable) = (chain.readable_len, chain.writable_len);
        // Without a status byte there is nothing to answer with (§5.2.6.1).
        if queue.read_front(held, &mut bytes) < bytes.len() || writable == 0 {
            return self.complete(token, held, 0);
        }
        let target = queue.view.as_ref().and_then(|view| view.target(0)).cloned();
        let Some(target) = target else { return self.blk_status(token, held, blk::S_IOERR, 0) };
        let header = RequestHeader::from_bytes(&bytes);
        let (out, within) = (readable - RequestHeader::LEN, writable - 1);
        match self.blk_parse(token, held, &target, header, out, within) {
            Ok(Parsed::Job(request)) => self.blk_begin(token, held, target, request),
            Ok(Parsed::Answered(written)) => self.blk_status(token, held, blk::S_OK, written),
            Err(status) => self.blk_status(token, held, status, 0),
        }
    }

    fn blk_parse(
        &mut self,
        token: Token,
        held: HeldId,
        target: &Target,
        header: RequestHeader,
        out: usize,
        within: usize,
    ) -> Result<Parsed, u8> {
        match header.kind {
            blk::T_IN | blk::T_OUT => {
                let write = header.kind == blk::T_OUT;
                let len = if write { out } else { within } as u64;
                let offset = in_range(target, header.sector, len).ok_or(blk::S_IOERR)?;
                if write && target.readonly {
                    return Err(blk::S_IOERR);
                }
                let (access, side, skip, class, kind) = if write {
                    let durable = self.queue(token).is_some_and(|queue| queue.durable);
                    let access = Access::Write { durable };
                    (access, Side::Readable, RequestHeader::LEN, Class::Write, AccessKind::Write)
                } else {
                    (Access::Read, Side::Writable, 0, Class::Read, AccessKind::Read)
                };
                let work = Work::Access { access, offset, len, place: Some(Place { side, skip }) };
                Ok(Parsed::Job(Request { work, class, bytes: len, kind }))
            }
            blk::T_FLUSH => {
                let work = Work::Access { access: Access::Flush, offset: 0, len: 0, place: None };
                Ok(Parsed::Job(Request { work, class: Class::Flush, bytes: 0, kind: AccessKind::Write }))
            }
            blk::T_GET_ID => {
                let count = within.min(target.serial.len());
                if let Some(queue) = self.queue(token) {
                    queue.write_at(held, 0, &target.serial[..count]);
                }
                Ok(Parsed::Answered(count))
            }
            blk::T_DISCARD | blk::T_WRITE_ZEROES => {
                let zeroes = header.kind == blk::T_WRITE_ZEROES;
                let Segments { ranges, unmap, bytes } = self.blk_ranges(token, held, target, out, zeroes)?;
                let access = if zeroes { Access::WriteZeroes { unmap } } else { Access::Discard };
                let work = Work::Ranges { access, ranges };
                Ok(Parsed::Job(Request { work, class: Class::Discard, bytes, kind: AccessKind::Write }))
            }
            _ => Err(blk::S_UNSUPP),
        }
    }

    /// The segments of a discard or write-zeroes request.
    fn blk_ranges(
        &mut self,
        token: Token,
        held: HeldId,
        target: &Target,
        out: usize,
        zeroes: bool,
    ) -> Result<Segments, u8> {
        if target.readonly {
            return Err(blk::S_IOERR);
        }
        let count = out / DiscardSegment::LEN;
        if !out.is_multiple_of(DiscardSegment::LEN) || count == 0 || count > SEGMENTS_MAX {
            return Err(blk::S_IOERR);
        }
        let mut bytes = [0; RequestHeader::LEN + SEGMENTS_MAX * DiscardSegment::LEN];
        let Some(queue) = self.queue(token) else { return Err(blk::S_IOERR) };
        let read = queue.read_front(held, &mut bytes);
        let (segments, _) = bytes[RequestHeader::LEN..read].as_chunks::<{ DiscardSegment::LEN }>();
        let (mut ranges, mut unmap, mut sum) = (Vec::with_capacity(count), true, 0);
        for segment in segments.iter().map(DiscardSegment::from_bytes) {
            // §5.2.6.2: unknown flags, and unmap with a discard, are unsupported.
            let allowed = if zeroes { DiscardSegment::UNMAP } else { 0 };
            if segment.flags & !allowed != 0 {
                return Err(blk::S_UNSUPP);
            }
            unmap &= segment.flags & DiscardSegment::UNMAP != 0;
            let len = u64::from(segment.sectors) * SECTOR_LEN;
            let offset = in_range(target, segment.sector, len).ok_or(blk::S_IOERR)?;
            if len > 0 {
                ranges.push((offset, len));
            }
            sum += len;
        }
        Ok(Segments { ranges, unmap, bytes: sum })
    }

    fn blk_begin(&mut self, token: Token, held: HeldId, target: Arc<Target>, request: Request) {
        let Request { work, class, bytes, kind } = request;
        // A disk without sense data has nowhere to put a unit attention.
        let admitted = (0..ATTENTIONS_MAX).find_map(|_| match target.lun.unit.admit(&target.nexus, kind) {
            Ok(()) => Some(true),
            Err(reply) => (!reply.is_unit_attention()).then_some(false),
        });
        if target.backing.is_none() || admitted != Some(true) {
            target.stats.cell(self.worker).refused(NOT_READY);
            return self.blk_status(token, held, blk::S_IOERR, 0);
        }
        let Some(adapter) = self.queue(token).map(|queue| queue.adapter) else { return };
        let job = Job {
            queue: token,
            held,
            adapter,
            tag: 0,
            target,
            serial: self.jobs.next_serial(),
            class,
            bytes,
            started_ns: self.now_ns,
            work,
            stage: Stage::Begun,
            io_live: false,
            abort: None,
            fence: None,
            buffer: None,
        };
        self.add_job(job);
    }

    pub(super) fn blk_answer(&mut self, job: &Job, ending: Ending) {
        let written = if job.class == Class::Read { job.bytes as usize } else { 0 };
        match ending {
            Ending::Good => self.blk_status(job.queue, job.held, blk::S_OK, written),
            _ => self.blk_status(job.queue, job.held, blk::S_IOERR, 0),
        }
    }

    /// Writes the status byte, the last one of the chain, and gives the chain back.
    fn blk_status(&mut self, token: Token, held: HeldId, status: u8, written: usize) {
        let Some(queue) = self.queue(token) else { return };
        let at = queue.held.chain(held).writable_len - 1;
        queue.write_at(held, at, &[status]);
        self.complete(token, held, written as u32 + 1);
    }
}

/// What a request comes to.
struct Request {
    work: Work,
    class: Class,
    bytes: u64,
    kind: AccessKind,
}

/// The segments of a discard or write-zeroes request, in bytes.
struct Segments {
    ranges: Vec<(u64, u64)>,
    /// All of them may be unmapped.
    unmap: bool,
    bytes: u64,
}

enum Parsed {
    Job(Request),
    /// Done, so many bytes written.
    Answered(usize),
}

/// The byte offset of a range of sectors if it is whole blocks inside the disk.
pub(super) fn in_range(target: &Target, sector: u64, len: u64) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_LEN)?;
    // A power of two: no division.
    let within_block = u64::from(target.lun.unit.block_size()) - 1;
    let aligned = (offset | len) & within_block == 0;
    (aligned && offset.checked_add(len)? <= target.lun.unit.capacity_bytes()).then_some(offset)
}
