//! A virtio-scsi host adapter, one command at a time (virtio 1.3 §5.6.6).
//!
//! Owns a guest and its queues; for tests and control steps, not for load. Every call waits for its answer.

use super::disk::roundtrip;
use super::{Done, Kind, RequestQueue, StorageError, StorageGuest, StorageOptions, Transfer};
use crate::socket::Endpoint;
use avio_proto::virtio::scsi::{
    CDB_LEN, CONTROL_QUEUE, CommandRequest, CommandResponse, Config, ControlRequest, EVENT_QUEUE, Event,
    REQUEST_QUEUE, S_FAILURE,
};
use std::time::{Duration, Instant};

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Response and SCSI status, sense data.
    pub response: CommandResponse,
    /// Data from the device, without what it says it did not transfer.
    pub data: Vec<u8>,
}

/// A connected adapter.
#[derive(Debug)]
pub struct Adapter {
    guest: StorageGuest,
    queues: Vec<RequestQueue>,
    timeout: Duration,
    next_id: u64,
}

impl Adapter {
    /// Connects as an adapter, whatever kind `options` name, and posts all event buffers. `options.reply_timeout` bounds each
    /// request, too.
    ///
    /// # Errors
    /// As [`StorageGuest::connect`].
    pub fn connect(endpoint: Endpoint, options: &StorageOptions) -> Result<Self, StorageError> {
        let options = StorageOptions { kind: Kind::Scsi, ..options.clone() };
        let (guest, queues) = StorageGuest::connect(endpoint, &options)?;
        let mut adapter = Self { guest, queues, timeout: options.reply_timeout, next_id: 1 };
        adapter.post_events();
        Ok(adapter)
    }

    /// The configuration space; as devices reset it if the back-end refused to show it.
    #[must_use]
    pub fn config(&self) -> Config {
        self.guest.config().try_into().map_or_else(|_| Config::default(), Config::decode)
    }

    /// The session behind it.
    pub fn guest(&mut self) -> &mut StorageGuest {
        &mut self.guest
    }

    /// Gives the session and all rings away: control, event, requests. For generators, which drive queues themselves.
    #[must_use]
    pub fn into_parts(self) -> (StorageGuest, Vec<RequestQueue>) {
        (self.guest, self.queues)
    }

    /// All rings: control, event, requests.
    pub fn queues(&mut self) -> &mut [RequestQueue] {
        &mut self.queues
    }

    /// After the back-end went away: see [`StorageGuest::reconnect`]. Posted event buffers stay posted.
    ///
    /// # Errors
    /// As [`StorageGuest::reconnect`].
    pub fn reconnect(&mut self) -> Result<(), StorageError> {
        self.guest.reconnect(&mut self.queues)
    }

    /// One command through request queue `queue` (0 = the first): data to (`out`) or from (up to `in_len` bytes) the device,
    /// not both. `lun` is the raw address. A CDB longer than 32 bytes is cut.
    ///
    /// # Errors
    /// [`StorageError`] if there is no answer; what the answer says is the outcome's.
    pub fn command(
        &mut self,
        queue: usize,
        lun: [u8; 8],
        cdb: &[u8],
        out: &[u8],
        in_len: usize,
    ) -> Result<Outcome, StorageError> {
        let mut padded = [0; CDB_LEN];
        let n = cdb.len().min(CDB_LEN);
        padded[..n].copy_from_slice(&cdb[..n]);
        let id = self.next_id;
        self.next_id += 1;
        let head = CommandRequest { lun, id, cdb: padded, ..CommandRequest::default() }.to_bytes();
        let q = &mut self.queues[REQUEST_QUEUE as usize + queue];
        let slot = roundtrip(q, &head, CommandResponse::LEN as u32, out, in_len, self.timeout)?;
        let bytes = q.response(slot).read(0).unwrap_or([0xff; CommandResponse::LEN]);
        let response = CommandResponse::from_bytes(&bytes);
        let mut data = vec![0; in_len.saturating_sub(response.residual as usize)];
        q.data(slot).copy_to(&mut data);
        q.give(slot);
        Ok(Outcome { response, data })
    }

    /// One task management function; returns its response (`S_FUNCTION_*`). `id` is the command that ABORT TASK means.
    ///
    /// # Errors
    /// [`StorageError`] if there is no answer.
    pub fn task_management(&mut self, subtype: u32, lun: [u8; 8], id: u64) -> Result<u8, StorageError> {
        let (head, len) = ControlRequest::Tmf { subtype, lun, id }.encode();
        let q = &mut self.queues[CONTROL_QUEUE as usize];
        let slot = roundtrip(q, &head[..len], 1, &[], 0, self.timeout)?;
        let response = q.response(slot).read::<1>(0).map_or(S_FAILURE, |b| b[0]);
        q.give(slot);
        Ok(response)
    }

    /// Gives the device every event buffer that it does not have.
    pub fn post_events(&mut self) {
        let q = &mut self.queues[EVENT_QUEUE as usize];
        while let Some(slot) = q.take() {
            if !q.submit(slot, 0, Event::LEN as u32, Transfer::None) {
                q.give(slot);
                break;
            }
        }
        q.flush();
    }

    /// The next event within `timeout`, if one comes. Its buffer goes back with [`Adapter::post_events`]: until then the
    /// device has one less, so that tests can make it run out.
    ///
    /// # Errors
    /// [`StorageError::Ring`].
    pub fn event(&mut self, timeout: Duration) -> Result<Option<Event>, StorageError> {
        let q = &mut self.queues[EVENT_QUEUE as usize];
        let deadline = Instant::now() + timeout;
        let mut done = [Done::default()];
        loop {
            if q.poll(&mut done)? > 0 {
                let bytes = q.response(done[0].slot).read(0).unwrap_or_default();
                q.give(done[0].slot);
                return Ok(Some(Event::from_bytes(&bytes)));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            q.wait(left);
        }
    }
}
