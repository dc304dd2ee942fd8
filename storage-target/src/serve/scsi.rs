//! Commands of a virtio-scsi adapter (virtio 1.3 §5.6.6.1).
//!
//! Reads a command's head, asks the logical unit what it comes to, makes a job of what touches the medium, and writes the
//! response. What commands mean is in `crate::scsi`; what happens on the medium is in `medium`.

use std::sync::Arc;

use avio_host::wait::Token;
use avio_proto::ring::{HeldId, Side};
use avio_proto::scsi::sense::NOT_READY;
use avio_proto::scsi::vendor;
use avio_proto::virtio::scsi::{self, CommandRequest, CommandResponse};

use super::engine::Serving;
use super::job::{Expected, Job, JobId, Place, Stage, Work};
use super::medium::Ending;
use super::message::{Event, Scope};
use crate::adapter::{AdapterView, Target};
use crate::backing::Access;
use crate::lun::Class;
use crate::scsi::{
    Answered, Env, Media, MediumOp, NexusName, Outcome, Reply, Statistics, fast, no_unit, parameter_len,
};

/// SAM status GOOD.
const GOOD: u8 = 0;

/// What a command's answer needs to know of its buffers.
#[derive(Clone, Copy)]
struct Buffers {
    /// Bytes of data that the driver brought.
    out: usize,
    /// Bytes that it has room for.
    within: usize,
}

impl Serving {
    /// Takes one command up.
    pub(super) fn scsi_request(&mut self, token: Token, held: HeldId) {
        let Some(queue) = self.queue(token) else { return };
        let mut bytes = [0; CommandRequest::LEN];
        let chain = queue.held.chain(held);
        let (readable, writable) = (chain.readable_len, chain.writable_len);
        if queue.read_front(held, &mut bytes) < bytes.len() || writable < CommandResponse::LEN {
            // No room for a response: nothing to answer with.
            return self.complete(token, held, 0);
        }
        let request = CommandRequest::from_bytes(&bytes);
        let buffers =
            Buffers { out: readable - CommandRequest::LEN, within: writable - CommandResponse::LEN };
        let address = scsi::Lun::decode(&request.lun);
        let target = address.and_then(|address| queue.view.as_ref()?.target(address.target)).cloned();
        // An absent target is said to be one at once: a guest that scans asks for all 256.
        let Some(target) = target else { return self.scsi_response(token, held, scsi::S_BAD_TARGET) };
        if address.is_some_and(|address| address.lun != 0) {
            return self.scsi_reply(token, held, &no_unit(&request.cdb));
        }
        match fast(&request.cdb) {
            Some(op) => self.scsi_fast(token, held, &target, &request, op, buffers),
            None => self.scsi_execute(token, held, &target, &request, buffers),
        }
    }

    /// READ and WRITE: one look at the logical unit's state word.
    fn scsi_fast(
        &mut self,
        token: Token,
        held: HeldId,
        target: &Arc<Target>,
        request: &CommandRequest,
        op: MediumOp,
        buffers: Buffers,
    ) {
        let kind = op.kind();
        let admitted = target
            .lun
            .unit
            .admit(&target.nexus, kind)
            .and_then(|()| target.lun.unit.check(&op, target.readonly));
        match admitted {
            Ok(()) => self.scsi_medium(token, held, target, request, op, buffers),
            Err(reply) => self.scsi_refuse(token, held, target, &reply),
        }
    }

    /// Everything else goes through the logical unit.
    fn scsi_execute(
        &mut self,
        token: Token,
        held: HeldId,
        target: &Arc<Target>,
        request: &CommandRequest,
        buffers: Buffers,
    ) {
        let wanted = parameter_len(&request.cdb);
        let parameters = match wanted.min(buffers.out) {
            0 => Vec::new(),
            len => {
                let mut bytes = vec![0; CommandRequest::LEN + len];
                if let Some(queue) = self.queue(token) {
                    queue.read_front(held, &mut bytes);
                }
                bytes.split_off(CommandRequest::LEN)
            }
        };
        if self.was_done(token, held, target, request) {
            return self.scsi_reply(token, held, &Reply::good());
        }
        let view = self.queue(token).and_then(|queue| queue.view.clone());
        let numbers = view.as_deref().map(|view| Numbers { view, target });
        let statistics = numbers.as_ref().map(|numbers| numbers as &dyn Statistics);
        let env = Env { readonly: target.readonly, statistics };
        match target.lun.unit.execute(&target.nexus, &request.cdb, &parameters, &env) {
            Outcome::Reply(reply) => self.scsi_refuse(token, held, target, &reply),
            Outcome::Medium(op) => self.scsi_medium(token, held, target, request, op, buffers),
            Outcome::Persist { reply, version } => {
                self.scsi_persist(token, held, target, request, reply, version);
            }
            Outcome::PersistAndAbort { reply, version, others } => {
                if let Some(job) = self.scsi_persist(token, held, target, request, reply, version) {
                    self.abort_commands_of(job, target, &others);
                }
            }
            Outcome::Event(effect, reply) => {
                if let Some(adapter) = self.queue(token).map(|queue| queue.adapter) {
                    let lun = target.lun.id;
                    self.events.send(Event::Effect { adapter, target: target.number, lun, effect });
                }
                self.scsi_reply(token, held, &reply);
            }
        }
    }

    /// A command whose effect must be durable before it is answered.
    fn scsi_persist(
        &mut self,
        token: Token,
        held: HeldId,
        target: &Arc<Target>,
        request: &CommandRequest,
        reply: Reply,
        version: u64,
    ) -> Option<JobId> {
        // What is repeated after a crash would do something else, or be refused.
        if let Some(done) = self.command_name(token, held, target, request) {
            target.lun.unit.remember(done);
        }
        let state = Box::new(target.lun.unit.save());
        self.events.send(Event::Save { lun: target.lun.id, version, state, worker: self.worker });
        let stage = Stage::Journal { version, durable: false, aborting: 0, reply: Box::new(reply) };
        self.scsi_job(token, held, target, request, None, stage)
    }

    /// How a successor of this process would recognize a command; `None` if there will be none that sees it again.
    fn command_name(
        &mut self,
        token: Token,
        held: HeldId,
        target: &Target,
        request: &CommandRequest,
    ) -> Option<Answered> {
        let queue = self.queue(token)?;
        let (number, index) = (queue.number(held)?, queue.index);
        Some(Answered { nexus: target.nexus.name().clone(), queue: index, number, tag: request.id })
    }

    /// Whether a predecessor has done a command and could not answer it.
    fn was_done(&mut self, token: Token, held: HeldId, target: &Target, request: &CommandRequest) -> bool {
        self.queue(token).is_some_and(|queue| queue.recovering)
            && self
                .command_name(token, held, target, request)
                .is_some_and(|command| target.lun.unit.was_done(&command))
    }

    /// PREEMPT AND ABORT: ends what these initiators have under way at this logical unit, and has `job` wait for it.
    fn abort_commands_of(&mut self, job: JobId, target: &Target, others: &[NexusName]) {
        let lun = Some(target.lun.id);
        let adapters: Vec<_> =
            self.adapters.values().filter(|view| others.contains(&view.nexus)).map(|view| view.id).collect();
        if let Some(job) = self.jobs.get(job)
            && let Stage::Journal { aborting, .. } = &mut job.stage
        {
            *aborting = adapters.len() as u32;
        }
        for adapter in adapters {
            self.end_commands(job, Scope { lun, adapter: Some(adapter), ..Scope::default() });
        }
    }

    /// A command that touches the medium.
    fn scsi_medium(
        &mut self,
        token: Token,
        held: HeldId,
        target: &Arc<Target>,
        request: &CommandRequest,
        op: MediumOp,
        buffers: Buffers,
    ) {
        let planned = plan(op, u64::from(target.lun.unit.block_size()));
        // What the CDB asks for must fit the buffers (§5.6.6.1, VIRTIO_SCSI_S_OVERRUN).
        if planned.out > buffers.out as u64 || planned.within > buffers.within as u64 {
            return self.scsi_response(token, held, scsi::S_OVERRUN);
        }
        self.scsi_job(token, held, target, request, Some(planned), Stage::Begun);
    }

    fn scsi_job(
        &mut self,
        token: Token,
        held: HeldId,
        target: &Arc<Target>,
        request: &CommandRequest,
        planned: Option<Planned>,
        stage: Stage,
    ) -> Option<JobId> {
        let adapter = self.queue(token)?.adapter;
        let waits = planned.is_none();
        let planned = planned.unwrap_or_default();
        if target.backing.is_none() && !waits {
            let reply = target.lun.unit.not_ready();
            self.scsi_reply(token, held, &reply);
            return None;
        }
        let job = Job {
            queue: token,
            held,
            adapter,
            tag: request.id,
            target: Arc::clone(target),
            serial: self.jobs.next_serial(),
            class: planned.class,
            bytes: planned.bytes,
            started_ns: self.now_ns,
            work: planned.work,
            stage,
            io_live: false,
            abort: None,
            fence: None,
            buffer: None,
        };
        if waits {
            job.target.stats.cell(self.worker).began();
            return Some(self.jobs.add(job));
        }
        self.add_job(job);
        None
    }

    pub(super) fn scsi_answer(&mut self, job: &Job, ending: Ending) {
        match ending {
            Ending::Good => {
                let done = if job.class == Class::Read { job.bytes as usize } else { 0 };
                self.scsi_good(job, done);
            }
            Ending::Failed(access, error) => {
                let reply = job.target.lun.unit.failed(access, error);
                self.scsi_reply(job.queue, job.held, &reply);
            }
            Ending::Miscompare(at) => {
                let reply = job.target.lun.unit.miscompare(at);
                self.scsi_reply(job.queue, job.held, &reply);
            }
            Ending::Reply(reply) => self.scsi_reply(job.queue, job.held, &reply),
            Ending::Aborted(response) => self.scsi_response(job.queue, job.held, response),
        }
    }

    /// GOOD, `done` bytes of data in.
    fn scsi_good(&mut self, job: &Job, done: usize) {
        let Some(queue) = self.queue(job.queue) else { return };
        let chain = queue.held.chain(job.held);
        let room = if chain.writable_len > CommandResponse::LEN {
            chain.writable_len - CommandResponse::LEN
        } else {
            chain.readable_len - CommandRequest::LEN
        };
        let transferred = if done > 0 { done } else { room.min(job.bytes as usize) };
        let head = CommandResponse {
            residual: (room - transferred.min(room)) as u32,
            status: GOOD,
            response: scsi::S_OK,
            ..CommandResponse::default()
        };
        queue.write_at(job.held, 0, &head.head());
        self.complete(job.queue, job.held, (CommandResponse::LEN + done) as u32);
    }

    /// The logical unit's refusal of a command that had not begun.
    fn scsi_refuse(&mut self, token: Token, held: HeldId, target: &Target, reply: &Reply) {
        let cell = target.stats.cell(self.worker);
        if reply.is_unit_attention() && target.lun.unit.has_saved_attentions() {
            let (lun, version) = (target.lun.id, target.lun.unit.version());
            let state = Box::new(target.lun.unit.save());
            self.events.send(Event::Save { lun, version, state, worker: self.worker });
        }
        if let Some(sense) = &reply.sense {
            cell.refused(sense.key);
            if sense.key == NOT_READY && target.lun.unit.media() == Media::Replaced {
                cell.replaced();
            }
        }
        self.scsi_reply(token, held, reply);
    }

    /// The logical unit's own answer.
    fn scsi_reply(&mut self, token: Token, held: HeldId, reply: &Reply) {
        let Some(queue) = self.queue(token) else { return };
        let room = queue.held.chain(held).writable_len - CommandResponse::LEN;
        let done = queue.write_at(held, CommandResponse::LEN, &reply.data[..reply.data.len().min(room)]);
        let mut response = CommandResponse {
            residual: (room - done) as u32,
            status: reply.status,
            response: scsi::S_OK,
            ..CommandResponse::default()
        };
        let sense = reply.sense_bytes();
        let count = sense.len().min(response.sense.len());
        response.sense[..count].copy_from_slice(&sense[..count]);
        response.sense_len = count as u32;
        queue.write_at(held, 0, &response.to_bytes());
        self.complete(token, held, (CommandResponse::LEN + done) as u32);
    }

    /// An answer of the adapter's, not of the logical unit's.
    fn scsi_response(&mut self, token: Token, held: HeldId, response: u8) {
        let Some(queue) = self.queue(token) else { return };
        let head = CommandResponse { response, ..CommandResponse::default() };
        queue.write_at(held, 0, &head.to_bytes());
        self.complete(token, held, CommandResponse::LEN as u32);
    }
}

/// A command as the medium sees it.
struct Planned {
    work: Work,
    class: Class,
    /// Data, for the numbers.
    bytes: u64,
    /// Bytes that must have been brought.
    out: u64,
    /// Bytes that there must be room for.
    within: u64,
}

impl Default for Planned {
    fn default() -> Self {
        let work = Work::Ranges { access: Access::Flush, ranges: Vec::new() };
        Self { work, class: Class::Other, bytes: 0, out: 0, within: 0 }
    }
}

/// Blocks to bytes. The logical unit has checked the range, so nothing here overflows.
fn plan(op: MediumOp, block: u64) -> Planned {
    const HEAD: usize = CommandRequest::LEN;
    let after_response = Some(Place { side: Side::Writable, skip: CommandResponse::LEN });
    let after_request = Some(Place { side: Side::Readable, skip: HEAD });
    match op {
        MediumOp::Read { lba, blocks } => {
            let (offset, len) = (lba * block, u64::from(blocks) * block);
            let work = Work::Access { access: Access::Read, offset, len, place: after_response };
            Planned { work, class: Class::Read, bytes: len, within: len, out: 0 }
        }
        MediumOp::Write { lba, blocks, fua } => {
            let (offset, len) = (lba * block, u64::from(blocks) * block);
            let access = Access::Write { durable: fua };
            let work = Work::Access { access, offset, len, place: after_request };
            Planned { work, class: Class::Write, bytes: len, out: len, within: 0 }
        }
        MediumOp::WriteAndVerify { lba, blocks, compare } => {
            let (offset, len) = (lba * block, u64::from(blocks) * block);
            let work = Work::WriteAndVerify { offset, len, skip: HEAD, compare };
            Planned { work, class: Class::Write, bytes: len, out: len, within: 0 }
        }
        MediumOp::Verify { lba, blocks, period } => {
            let (offset, len) = (lba * block, u64::from(blocks) * block);
            let period = u64::from(period) * block;
            let expected = (period > 0).then_some(Expected { skip: HEAD, period });
            let work = Work::Verify { offset, len, expected };
            Planned { work, class: Class::Other, bytes: 0, out: period, within: 0 }
        }
        MediumOp::Flush { .. } => {
            let work = Work::Access { access: Access::Flush, offset: 0, len: 0, place: None };
            Planned { work, class: Class::Flush, ..Planned::default() }
        }
        MediumOp::Unmap(ranges) => {
            let ranges: Vec<_> =
                ranges.iter().map(|&(lba, blocks)| (lba * block, u64::from(blocks) * block)).collect();
            let bytes = ranges.iter().map(|(_, len)| len).sum();
            let work = Work::Ranges { access: Access::Discard, ranges };
            Planned { work, class: Class::Discard, bytes, ..Planned::default() }
        }
        MediumOp::WriteSame { lba, blocks, pattern, unmap } => {
            let (offset, len) = (lba * block, blocks * block);
            let zero = pattern.iter().all(|&byte| byte == 0);
            let work = if zero {
                Work::Ranges { access: Access::WriteZeroes { unmap }, ranges: vec![(offset, len)] }
            } else {
                Work::Fill { offset, len, pattern, durable: false }
            };
            Planned { work, class: Class::Write, bytes: len, ..Planned::default() }
        }
        MediumOp::CompareAndWrite { lba, blocks, fua } => {
            let (offset, len) = (lba * block, u64::from(blocks) * block);
            let work = Work::CompareAndWrite { offset, len, skip: HEAD, durable: fua };
            Planned { work, class: Class::Write, bytes: len, out: 2 * len, within: 0 }
        }
    }
}

/// An adapter's numbers, for commands that ask for them.
#[derive(Debug)]
struct Numbers<'a> {
    view: &'a AdapterView,
    target: &'a Target,
}

impl Statistics for Numbers<'_> {
    fn numbers(&self, adapter: bool) -> vendor::Statistics {
        if !adapter {
            let numbers = self.target.stats.numbers().since(&self.target.baseline());
            return vendor::Statistics { io: numbers.statistics(), rings: None };
        }
        let mut sum = crate::lun::Numbers::default();
        for target in self.view.targets.iter().flatten() {
            sum.add(&target.stats.numbers().since(&target.baseline()));
        }
        vendor::Statistics { io: sum.statistics(), rings: Some(self.view.ring_statistics()) }
    }

    fn adapter(&self) -> vendor::AdapterInformation {
        self.view.information()
    }
}
