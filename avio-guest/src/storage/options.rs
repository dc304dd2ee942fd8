//! What a storage guest asks for.
//!
//! Owns the mapping from plain choices to feature bits, ring sizes and memory.

use crate::session::PROTOCOL_FEATURES;
use avio_proto::ring::DriverLayout;
use avio_proto::vhost_user::features as protocol;
use avio_proto::virtio::{blk, features as f, scsi};
use std::time::Duration;

/// Descriptors of a request that is not indirect: head, data, response.
const CHAIN_LEN: u16 = 3;

/// Which device the guest drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One disk (virtio-blk).
    Blk,
    /// A host adapter (virtio-scsi): rings 0 and 1 are control and event queue.
    Scsi,
}

impl Kind {
    /// Ring index of the first request queue.
    #[must_use]
    pub fn first_request_queue(self) -> u32 {
        match self {
            Self::Blk => 0,
            Self::Scsi => scsi::REQUEST_QUEUE,
        }
    }

    /// Bytes of configuration space to read. Of a disk's, those that every back-end of virtio 1.1 has: some refuse more.
    pub(super) fn config_len(self) -> u32 {
        match self {
            Self::Blk => 60,
            Self::Scsi => scsi::Config::LEN as u32,
        }
    }
}

/// Rings, features and buffers.
#[derive(Clone, Debug)]
pub struct StorageOptions {
    /// The device.
    pub kind: Kind,
    /// Packed rings; refused if the back-end has none.
    pub packed: bool,
    /// Requests through indirect tables, if offered.
    pub indirect: bool,
    /// Suppress notifications by index, if offered.
    pub event_idx: bool,
    /// Request queues, 1..=254.
    pub queues: u16,
    /// Requests in flight per queue, 1..=1024.
    pub depth: u16,
    /// Longest data of a request in bytes.
    pub data_len: usize,
    /// Use an in-flight region, so that a reconnect loses nothing; refused if not offered.
    pub inflight: bool,
    /// How long to wait for the socket.
    pub connect_timeout: Duration,
    /// How long to wait for a reply.
    pub reply_timeout: Duration,
}

impl StorageOptions {
    /// One queue, 128 requests of 4 KiB.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            packed: false,
            indirect: true,
            event_idx: true,
            queues: 1,
            depth: 128,
            data_len: 4096,
            inflight: false,
            connect_timeout: Duration::from_secs(5),
            reply_timeout: Duration::from_secs(5),
        }
    }

    pub(super) fn wanted_features(&self) -> u64 {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        let rings = f::VERSION_1
            | bit(self.packed, f::RING_PACKED)
            | bit(self.indirect, f::RING_INDIRECT_DESC)
            | bit(self.event_idx, f::RING_EVENT_IDX);
        rings
            | match self.kind {
                Kind::Blk => {
                    blk::F_SIZE_MAX
                        | blk::F_SEG_MAX
                        | blk::F_RO
                        | blk::F_BLK_SIZE
                        | blk::F_FLUSH
                        | blk::F_TOPOLOGY
                        | blk::F_MQ
                        | blk::F_DISCARD
                        | blk::F_WRITE_ZEROES
                }
                Kind::Scsi => scsi::F_HOTPLUG | scsi::F_CHANGE,
            }
    }

    pub(super) fn wanted_protocol_features(&self) -> u64 {
        PROTOCOL_FEATURES | if self.inflight { protocol::INFLIGHT_SHMFD } else { 0 }
    }

    /// Entries of every ring.
    pub(super) fn ring_size(&self, features: u64) -> u16 {
        let slots = self.depth.clamp(1, 1024);
        let each = if features & f::RING_INDIRECT_DESC != 0 { 1 } else { CHAIN_LEN };
        // qemu-storage-daemon takes rings of 2 entries at least; small ones save nothing.
        (slots * each).next_power_of_two().max(16)
    }

    /// Slots and data bytes per slot of ring `index`: control and event requests carry none.
    pub(super) fn shape(&self, index: u32) -> (u16, usize) {
        if index < self.kind.first_request_queue() {
            (4, 0)
        } else {
            (self.depth.clamp(1, 1024), self.data_len)
        }
    }

    pub(super) fn memory_len(&self, features: u64) -> usize {
        let ring = DriverLayout::bytes_needed(self.ring_size(features), features) as usize + 4096;
        let rings = self.kind.first_request_queue() as usize + usize::from(self.queues);
        let slots = usize::from(self.depth.clamp(1, 1024)).max(4);
        let buffers =
            slots * (super::queue::data_stride(self.data_len) + super::queue::HEAD_STRIDE) + 2 * 4096;
        (rings * (ring + buffers)).next_multiple_of(4096)
    }
}
