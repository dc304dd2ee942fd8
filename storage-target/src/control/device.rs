//! What an adapter is to a front-end: features, rings and configuration space (virtio 1.3 §5.2, §5.6).
//!
//! Pure functions of the definition and of the disk behind an `avio_blk`.

use avio_proto::config::{StorageAdaptor, StorageConfig};
use avio_proto::vhost_user::backend::DeviceSpec;
use avio_proto::vhost_user::features as protocol;
use avio_proto::virtio::{blk, features as virtio, scsi};

use crate::backing::Limits;
use crate::scsi::TRANSFER_LEN_MAX;
use crate::serve::{BLK_SEGMENTS_MAX, Role};

/// Logical blocks of a disk that does not say, in bytes.
pub(super) const SECTOR_LEN: u32 = blk::SECTOR_LEN as u32;
/// Most data segments of a request: a 1 MiB transfer in pages, with a descriptor for each end.
const SEGMENTS_MAX: u32 = 254;
/// Commands that a guest may have out for one LUN; a hint.
const COMMANDS_PER_LUN: u32 = 128;

const PROTOCOL: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;

const RINGS: u64 =
    virtio::VERSION_1 | virtio::RING_INDIRECT_DESC | virtio::RING_EVENT_IDX | virtio::RING_PACKED;

/// Rings of an adapter with so many request queues.
pub(super) fn ring_count(storage: &StorageConfig) -> u16 {
    match storage.adaptor {
        StorageAdaptor::AvioBlk => storage.queues,
        _ => storage.queues + scsi::REQUEST_QUEUE as u16,
    }
}

/// What ring number `index` is for.
pub(super) fn role(adaptor: StorageAdaptor, index: u16) -> Role {
    match (adaptor, u32::from(index)) {
        (StorageAdaptor::AvioBlk, _) => Role::BlkRequest,
        (_, scsi::CONTROL_QUEUE) => Role::ScsiControl,
        (_, scsi::EVENT_QUEUE) => Role::ScsiEvent,
        _ => Role::ScsiRequest,
    }
}

/// An adapter with LUNs. The configuration space is QEMU's own for virtio-scsi; others read ours.
pub(super) fn scsi_spec(storage: &StorageConfig) -> DeviceSpec {
    let config = scsi::Config {
        num_queues: storage.queues.into(),
        seg_max: SEGMENTS_MAX,
        max_sectors: TRANSFER_LEN_MAX / 512,
        cmd_per_lun: COMMANDS_PER_LUN,
        max_target: 255,
        ..scsi::Config::default()
    };
    DeviceSpec {
        features: RINGS | scsi::F_HOTPLUG | scsi::F_CHANGE,
        features_tolerated: scsi::F_CHANGE,
        protocol_features: PROTOCOL,
        queue_max: ring_count(storage),
        config: config.encode().to_vec(),
        mtu_max: 0,
    }
}

/// A disk: its size in bytes and what it can do.
pub(super) fn blk_spec(
    storage: &StorageConfig,
    size_bytes: u64,
    limits: &Limits,
    readonly: bool,
) -> DeviceSpec {
    let mut features = RINGS | blk::F_SEG_MAX | blk::F_BLK_SIZE | blk::F_FLUSH | blk::F_TOPOLOGY | blk::F_MQ;
    if readonly {
        features |= blk::F_RO;
    } else {
        features |= blk::F_WRITE_ZEROES | if limits.discards { blk::F_DISCARD } else { 0 };
    }
    DeviceSpec {
        features,
        features_tolerated: 0,
        protocol_features: PROTOCOL,
        queue_max: ring_count(storage),
        config: blk_config(storage, size_bytes, limits).encode().to_vec(),
        mtu_max: 0,
    }
}

/// A disk's configuration space.
pub(super) fn blk_config(storage: &StorageConfig, size_bytes: u64, limits: &Limits) -> blk::Config {
    let physical = limits.physical_block_size / limits.block_size;
    blk::Config {
        capacity: size_bytes / blk::SECTOR_LEN,
        seg_max: SEGMENTS_MAX,
        blk_size: limits.block_size,
        physical_block_exp: physical.max(1).trailing_zeros() as u8,
        min_io_size: physical.min(u16::MAX.into()) as u16,
        opt_io_size: TRANSFER_LEN_MAX / limits.block_size,
        writeback: u8::from(limits.volatile_cache),
        num_queues: storage.queues,
        max_discard_sectors: u32::MAX >> 1,
        max_discard_seg: BLK_SEGMENTS_MAX as u32,
        discard_sector_alignment: limits.physical_block_size / blk::SECTOR_LEN as u32,
        max_write_zeroes_sectors: u32::MAX >> 1,
        max_write_zeroes_seg: BLK_SEGMENTS_MAX as u32,
        write_zeroes_may_unmap: 1,
        ..blk::Config::default()
    }
}
