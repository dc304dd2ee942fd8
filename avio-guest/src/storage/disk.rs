//! A virtio-blk disk, one request at a time (virtio 1.3 §5.2.6).
//!
//! Owns a guest and its queues; for tests and control steps, not for load. Every call waits for its answer.

use super::{Done, Kind, RequestQueue, StorageError, StorageGuest, StorageOptions, Transfer};
use crate::socket::Endpoint;
use avio_proto::virtio::blk::{self, Config, DiscardSegment, RequestHeader};
use std::time::{Duration, Instant};

/// A connected disk.
#[derive(Debug)]
pub struct Disk {
    guest: StorageGuest,
    queues: Vec<RequestQueue>,
    timeout: Duration,
}

impl Disk {
    /// Connects as a disk, whatever kind `options` name. `options.reply_timeout` bounds each request, too.
    ///
    /// # Errors
    /// As [`StorageGuest::connect`].
    pub fn connect(endpoint: Endpoint, options: &StorageOptions) -> Result<Self, StorageError> {
        let options = StorageOptions { kind: Kind::Blk, ..options.clone() };
        let (guest, queues) = StorageGuest::connect(endpoint, &options)?;
        Ok(Self { guest, queues, timeout: options.reply_timeout })
    }

    /// The configuration space.
    #[must_use]
    pub fn config(&self) -> Config {
        Config::decode(self.guest.config())
    }

    /// The session behind it.
    pub fn guest(&mut self) -> &mut StorageGuest {
        &mut self.guest
    }

    /// Gives the session and the request queues away. For generators, which drive queues themselves.
    #[must_use]
    pub fn into_parts(self) -> (StorageGuest, Vec<RequestQueue>) {
        (self.guest, self.queues)
    }

    /// The request queues, for requests that are not waited for.
    pub fn queues(&mut self) -> &mut [RequestQueue] {
        &mut self.queues
    }

    /// After the back-end went away: see [`StorageGuest::reconnect`].
    ///
    /// # Errors
    /// As [`StorageGuest::reconnect`].
    pub fn reconnect(&mut self) -> Result<(), StorageError> {
        self.guest.reconnect(&mut self.queues)
    }

    /// Reads into `to` from `sector` (512 bytes each) on, through queue `queue`.
    ///
    /// # Errors
    /// [`StorageError::Status`] if the disk refuses, [`StorageError::NoRoom`] if `to` is longer than a slot's buffer.
    pub fn read(&mut self, queue: usize, sector: u64, to: &mut [u8]) -> Result<(), StorageError> {
        self.request(queue, blk::T_IN, sector, &[], to)
    }

    /// Writes `from` at `sector`.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn write(&mut self, queue: usize, sector: u64, from: &[u8]) -> Result<(), StorageError> {
        self.request(queue, blk::T_OUT, sector, from, &mut [])
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn flush(&mut self, queue: usize) -> Result<(), StorageError> {
        self.request(queue, blk::T_FLUSH, 0, &[], &mut [])
    }

    /// The serial number, padded with zeroes.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn serial(&mut self, queue: usize) -> Result<[u8; blk::SERIAL_LEN], StorageError> {
        let mut serial = [0; blk::SERIAL_LEN];
        self.request(queue, blk::T_GET_ID, 0, &[], &mut serial)?;
        Ok(serial)
    }

    /// Discards `sectors` sectors from `sector` on.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn discard(&mut self, queue: usize, sector: u64, sectors: u32) -> Result<(), StorageError> {
        let segment = DiscardSegment { sector, sectors, flags: 0 };
        self.request(queue, blk::T_DISCARD, 0, &segment.to_bytes(), &mut [])
    }

    /// Zeroes `sectors` sectors from `sector` on; with `unmap` the disk may give up their space.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn write_zeroes(
        &mut self,
        queue: usize,
        sector: u64,
        sectors: u32,
        unmap: bool,
    ) -> Result<(), StorageError> {
        let flags = if unmap { DiscardSegment::UNMAP } else { 0 };
        let segment = DiscardSegment { sector, sectors, flags };
        self.request(queue, blk::T_WRITE_ZEROES, 0, &segment.to_bytes(), &mut [])
    }

    /// One request of any kind with data to (`out`) or from (`into`) the disk, not both.
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn request(
        &mut self,
        queue: usize,
        kind: u32,
        sector: u64,
        out: &[u8],
        into: &mut [u8],
    ) -> Result<(), StorageError> {
        let head = RequestHeader { kind, sector }.to_bytes();
        let q = &mut self.queues[queue];
        let slot = roundtrip(q, &head, 1, out, into.len(), self.timeout)?;
        let status = q.response(slot).read::<1>(0).map_or(0xff, |b| b[0]);
        q.data(slot).copy_to(into);
        q.give(slot);
        if status == blk::S_OK { Ok(()) } else { Err(StorageError::Status(status)) }
    }
}

/// One request from an idle queue and back; the slot is the caller's then. A slot whose answer did not come stays the
/// device's.
pub(super) fn roundtrip(
    queue: &mut RequestQueue,
    head: &[u8],
    response_len: u32,
    out: &[u8],
    in_len: usize,
    timeout: Duration,
) -> Result<u16, StorageError> {
    let data_len = out.len().max(in_len);
    let slot = queue.take().ok_or(StorageError::NoRoom(data_len))?;
    // Never a status that a device uses: one that was not written is noticed.
    queue.response(slot).copy_from(&[0xff; 128]);
    queue.head(slot).copy_from(head);
    let transfer = match (out.len(), in_len) {
        (0, 0) => Transfer::None,
        (n, 0) => Transfer::Out(n as u32),
        (_, n) => Transfer::In(n as u32),
    };
    let fits = queue.data(slot).copy_from(out) == out.len();
    if !fits || !queue.submit(slot, head.len() as u32, response_len, transfer) {
        queue.give(slot);
        return Err(StorageError::NoRoom(data_len));
    }
    queue.flush();
    let deadline = Instant::now() + timeout;
    let mut done = [Done::default()];
    loop {
        if queue.poll(&mut done)? > 0 {
            if done[0].slot == slot {
                return Ok(slot);
            }
            // Left over from a request that was given up.
            queue.give(done[0].slot);
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(StorageError::Timeout(timeout));
        }
        queue.wait(left);
    }
}
