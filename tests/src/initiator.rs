//! A SCSI initiator in this process: commands to an adapter's targets one by one, or begun now and looked after later.
//!
//! Used by the tests of the storage target. It knows CDBs as the standards print them; what an answer should be is the test's.

use std::path::Path;
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::storage::{Adapter, Done, Kind, StorageOptions, Transfer};
use avio_proto::virtio::scsi::{
    CONTROL_QUEUE, CommandRequest, CommandResponse, ControlRequest, Lun, REQUEST_QUEUE, S_OK,
};

use crate::failure::ensure;
use crate::{Failure, Result};

/// SAM-5 5.3.1: done.
pub const GOOD: u8 = 0x00;
/// See the sense data.
pub const CHECK_CONDITION: u8 = 0x02;
/// A reservation of another initiator forbids it.
pub const RESERVATION_CONFLICT: u8 = 0x18;

/// SBC-4 5.36.
pub const WRITE_10: u8 = 0x2a;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// virtio-scsi's response.
    pub response: u8,
    /// SAM status.
    pub status: u8,
    /// Sense key, additional sense code and qualifier; zeroes without sense data.
    pub sense: (u8, u8, u8),
    /// Data in.
    pub data: Vec<u8>,
}

impl Reply {
    fn of(response: &CommandResponse, data: Vec<u8>) -> Reply {
        let s = &response.sense;
        let sense = match (response.sense_len, s[0] & 0x7f) {
            (0, _) => (0, 0, 0),
            (_, 0x72) => (s[1] & 0xf, s[2], s[3]),
            _ => (s[2] & 0xf, s[12], s[13]),
        };
        Reply { response: response.response, status: response.status, sense, data }
    }

    /// Whether it was done.
    pub fn is_good(&self) -> bool {
        self.response == S_OK && self.status == GOOD
    }

    /// Fails unless it was done.
    ///
    /// # Errors
    /// What it was instead.
    pub fn good(self, what: &str) -> Result<Reply> {
        ensure(self.is_good(), || {
            let Reply { response, status, sense, .. } = &self;
            format!("{what}: response {response}, status {status:#x}, sense {sense:02x?}")
        })?;
        Ok(self)
    }

    /// Fails unless it is CHECK CONDITION with this sense.
    ///
    /// # Errors
    /// What it was instead.
    pub fn check(self, sense: (u8, u8, u8), what: &str) -> Result<Reply> {
        ensure(self.status == CHECK_CONDITION && self.sense == sense, || {
            format!("{what}: {:02x?} instead of sense {sense:02x?}", (self.response, self.status, self.sense))
        })?;
        Ok(self)
    }
}

/// A command that was begun and has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// As it was begun.
    pub tag: u64,
    /// How.
    pub reply: Reply,
}

/// A connected initiator.
pub struct Initiator {
    adapter: Adapter,
    /// Tag of each slot's command, by queue.
    tags: Vec<Vec<u64>>,
    timeout: Duration,
}

/// One queue with 64 requests of up to 16 KiB.
pub fn options() -> StorageOptions {
    StorageOptions { depth: 64, data_len: 16384, ..StorageOptions::new(Kind::Scsi) }
}

/// The same with two queues.
pub fn two_queues() -> StorageOptions {
    StorageOptions { queues: 2, ..options() }
}

/// READ (10) and WRITE (10), VERIFY (10) and the like: opcode, block, blocks.
pub fn cdb10(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let (l, b) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [opcode, 0, l[0], l[1], l[2], l[3], 0, b[0], b[1], 0]
}

/// COMPARE AND WRITE (SBC-4 5.3).
pub fn compare_and_write(lba: u64, blocks: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x89;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[13] = blocks;
    cdb
}

/// PERSISTENT RESERVE OUT (SPC-5 6.17): the CDB and its parameter list.
pub fn reserve_out(action: u8, kind: u8, key: u64, new: u64) -> ([u8; 10], [u8; 24]) {
    let mut list = [0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&new.to_be_bytes());
    ([0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], list)
}

impl Initiator {
    /// Connects to an adapter and takes the unit attentions of power-on from the targets.
    ///
    /// # Errors
    /// When it cannot be connected, or a target does not get ready.
    pub fn connect(socket: &Path, options: &StorageOptions, targets: &[u8]) -> Result<Initiator> {
        let options = StorageOptions { kind: Kind::Scsi, ..options.clone() };
        let adapter = Adapter::connect(Endpoint::Connect(socket.to_owned()), &options)?;
        let slots = vec![0; usize::from(options.depth)];
        let tags = vec![slots; usize::from(options.queues)];
        let mut initiator = Initiator { adapter, tags, timeout: options.reply_timeout };
        for target in targets {
            initiator.settle(*target)?;
        }
        Ok(initiator)
    }

    /// The adapter, for what has no method here.
    pub fn adapter(&mut self) -> &mut Adapter {
        &mut self.adapter
    }

    /// After the daemon came back.
    ///
    /// # Errors
    /// When it did not.
    pub fn reconnect(&mut self) -> Result {
        self.adapter.reconnect().map_err(Failure::from)
    }

    /// Takes all unit attentions of a target; returns them.
    ///
    /// # Errors
    /// When it has something else to say than them.
    pub fn settle(&mut self, target: u8) -> Result<Vec<(u8, u8)>> {
        let mut taken = Vec::new();
        loop {
            let reply = self.command(target, &[0; 6], &[], 0)?;
            if reply.is_good() {
                return Ok(taken);
            }
            let attention = reply.sense.0 == 6 && taken.len() < 32;
            ensure(attention, || format!("target {target} is not ready: {reply:?}"))?;
            taken.push((reply.sense.1, reply.sense.2));
        }
    }

    /// One command through the first request queue, and its answer.
    ///
    /// # Errors
    /// When none comes.
    pub fn command(&mut self, target: u8, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Reply> {
        self.command_on(0, target, cdb, out, in_len)
    }

    /// As [`Initiator::command`] through another queue.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn command_on(
        &mut self,
        queue: usize,
        target: u8,
        cdb: &[u8],
        out: &[u8],
        in_len: usize,
    ) -> Result<Reply> {
        let lun = Lun::target(target).encode();
        let outcome = self.adapter.command(queue, lun, cdb, out, in_len)?;
        Ok(Reply::of(&outcome.response, outcome.data))
    }

    /// Reads blocks of 512 bytes.
    ///
    /// # Errors
    /// When the target refuses.
    pub fn read(&mut self, target: u8, lba: u32, blocks: u16) -> Result<Vec<u8>> {
        let reply = self.command(target, &cdb10(0x28, lba, blocks), &[], usize::from(blocks) * 512)?;
        Ok(reply.good("READ (10)")?.data)
    }

    /// Writes blocks of 512 bytes.
    ///
    /// # Errors
    /// When the target refuses.
    pub fn write(&mut self, target: u8, lba: u32, data: &[u8]) -> Result {
        let blocks = (data.len() / 512) as u16;
        self.command(target, &cdb10(0x2a, lba, blocks), data, 0)?.good("WRITE (10)").map(drop)
    }

    /// PERSISTENT RESERVE OUT.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn reserve_out(&mut self, target: u8, action: u8, kind: u8, key: u64, new: u64) -> Result<Reply> {
        let (cdb, list) = reserve_out(action, kind, key, new);
        self.command(target, &cdb, &list, 0)
    }

    /// Begins a command with data out, or none.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn begin(&mut self, queue: usize, target: u8, tag: u64, cdb: &[u8], out: &[u8]) -> Result {
        self.stage(queue, target, tag, cdb, out)?;
        self.adapter.queues()[REQUEST_QUEUE as usize + queue].flush();
        Ok(())
    }

    /// As [`Initiator::begin`], not published yet.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn stage(&mut self, queue: usize, target: u8, tag: u64, cdb: &[u8], out: &[u8]) -> Result {
        let mut padded = [0; 32];
        padded[..cdb.len()].copy_from_slice(cdb);
        let lun = Lun::target(target).encode();
        let head = CommandRequest { lun, id: tag, cdb: padded, ..CommandRequest::default() }.to_bytes();
        let q = &mut self.adapter.queues()[REQUEST_QUEUE as usize + queue];
        let slot = q.take().ok_or_else(|| Failure::new("no slot is free"))?;
        q.head(slot).copy_from(&head);
        q.response(slot).copy_from(&[0xff; CommandResponse::LEN]);
        q.data(slot).copy_from(out);
        let transfer = if out.is_empty() { Transfer::None } else { Transfer::Out(out.len() as u32) };
        let taken = q.submit(slot, head.len() as u32, CommandResponse::LEN as u32, transfer);
        ensure(taken, || "the ring has no room".to_owned())?;
        self.tags[queue][usize::from(slot)] = tag;
        Ok(())
    }

    /// Commands that were begun through a queue and have ended since this was asked; does not wait.
    ///
    /// # Errors
    /// When the daemon broke the ring.
    pub fn ended(&mut self, queue: usize) -> Result<Vec<Ended>> {
        let q = &mut self.adapter.queues()[REQUEST_QUEUE as usize + queue];
        let mut done = [Done::default(); 64];
        let mut ended = Vec::new();
        loop {
            let count = q.poll(&mut done).map_err(|e| Failure::new(e.to_string()))?;
            for one in &done[..count] {
                let bytes = q.response(one.slot).read(0).unwrap_or([0xff; CommandResponse::LEN]);
                let reply = Reply::of(&CommandResponse::from_bytes(&bytes), Vec::new());
                ended.push(Ended { tag: self.tags[queue][usize::from(one.slot)], reply });
                q.give(one.slot);
            }
            if count == 0 {
                return Ok(ended);
            }
        }
    }

    /// Waits until so many commands of a queue have ended.
    ///
    /// # Errors
    /// When they have not within `seconds`.
    pub fn await_ended(&mut self, queue: usize, count: usize, seconds: u64) -> Result<Vec<Ended>> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut ended = self.ended(queue)?;
        while ended.len() < count {
            ensure(Instant::now() < deadline, || {
                format!("{} of {count} commands have ended after {seconds} s", ended.len())
            })?;
            self.adapter.queues()[REQUEST_QUEUE as usize + queue].wait(Duration::from_millis(20));
            ended.extend(self.ended(queue)?);
        }
        Ok(ended)
    }

    /// One task management function, and its response.
    ///
    /// # Errors
    /// When none comes.
    pub fn task_management(&mut self, target: u8, subtype: u32, tag: u64) -> Result<u8> {
        self.adapter.task_management(subtype, Lun::target(target).encode(), tag).map_err(Failure::from)
    }

    /// Makes a command and a task management function available at once: the function's response, when it has come.
    ///
    /// # Errors
    /// When none comes.
    pub fn race_task_management(&mut self, queue: usize, target: u8, subtype: u32, tag: u64) -> Result<u8> {
        let lun = Lun::target(target).encode();
        let (head, len) = ControlRequest::Tmf { subtype, lun, id: tag }.encode();
        let q = &mut self.adapter.queues()[CONTROL_QUEUE as usize];
        let slot = q.take().ok_or_else(|| Failure::new("no slot is free"))?;
        q.head(slot).copy_from(&head[..len]);
        q.response(slot).copy_from(&[0xff]);
        ensure(q.submit(slot, len as u32, 1, Transfer::None), || "the ring has no room".to_owned())?;
        self.adapter.queues()[REQUEST_QUEUE as usize + queue].flush();
        let q = &mut self.adapter.queues()[CONTROL_QUEUE as usize];
        q.flush();
        let deadline = Instant::now() + self.timeout;
        let mut done = [Done::default()];
        while q.poll(&mut done).map_err(|e| Failure::new(e.to_string()))? == 0 {
            ensure(Instant::now() < deadline, || "task management is not answered".to_owned())?;
            q.wait(Duration::from_millis(20));
        }
        let response = q.response(slot).read::<1>(0).map_or(0xff, |b| b[0]);
        q.give(slot);
        Ok(response)
    }
}
