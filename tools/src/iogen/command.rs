//! A request as the ring has it: what is written for a block device or a SCSI target, and what the answer says.
//!
//! Owns the two formats, and nothing of who asks what: [`super::lane`] does.

use super::device::Address;
use avio_guest::storage::{RequestQueue, Transfer};
use avio_proto::virtio::blk::{self, RequestHeader, SECTOR_LEN};
use avio_proto::virtio::scsi::{CDB_LEN, CommandRequest, CommandResponse, Lun};

/// Reads, writes, flushes.
pub const KINDS: usize = 3;

/// What a request does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Reads a block.
    #[default]
    Read,
    /// Writes a block.
    Write,
    /// Flushes the disk's cache.
    Flush,
}

/// Writes a request for `len` bytes at byte `offset` of a disk with blocks of `block_size` bytes into `slot`, and submits it. False: the ring has no room.
#[inline(always)]
pub fn submit(
    queue: &mut RequestQueue,
    slot: u16,
    (address, block_size): (Address, u32),
    op: Op,
    (offset, len): (u64, u32),
) -> bool {
    let transfer = match op {
        Op::Read => Transfer::In(len),
        Op::Write => Transfer::Out(len),
        Op::Flush => Transfer::None,
    };
    match address {
        Address::Blk => {
            let kind = match op {
                Op::Read => blk::T_IN,
                Op::Write => blk::T_OUT,
                Op::Flush => blk::T_FLUSH,
            };
            let sector = if op == Op::Flush { 0 } else { offset / SECTOR_LEN };
            queue.head(slot).copy_from(&RequestHeader { kind, sector }.to_bytes());
            queue.submit(slot, RequestHeader::LEN as u32, 1, transfer)
        }
        Address::Scsi(target) => {
            let cdb = cdb(op, offset / u64::from(block_size), len / block_size);
            let lun = Lun::target(target).encode();
            let request = CommandRequest { lun, id: u64::from(slot), cdb, ..CommandRequest::default() };
            queue.head(slot).copy_from(&request.to_bytes());
            queue.submit(slot, CommandRequest::LEN as u32, CommandResponse::LEN as u32, transfer)
        }
    }
}

/// What the answer in `slot` says; 0: all is well.
#[inline(always)]
pub fn status(queue: &RequestQueue, slot: u16, address: Address) -> u32 {
    match address {
        Address::Blk => u32::from(queue.response(slot).read::<1>(0).map_or(0xff, |b| b[0])),
        Address::Scsi(_) => {
            let head = queue.response(slot).read::<{ CommandResponse::HEAD_LEN }>(0);
            // Residual, status and response are all zero when all is well (virtio 1.3 §5.6.6.1).
            head.map_or(0xff, |b| {
                u32::from(b[10])
                    | u32::from(b[11]) << 8
                    | u32::from_le_bytes([b[4], b[5], b[6], b[7]]).min(1) << 16
            })
        }
    }
}

/// The same in words.
pub fn complaint(status: u32, address: Address) -> String {
    match address {
        Address::Blk => format!("status {status}"),
        Address::Scsi(_) => {
            format!("status {:#x}, response {}, residual {}", status & 0xff, status >> 8 & 0xff, status >> 16)
        }
    }
}

fn cdb(op: Op, lba: u64, blocks: u32) -> [u8; CDB_LEN] {
    let mut cdb = [0; CDB_LEN];
    match (op, u32::try_from(lba)) {
        (Op::Flush, _) => cdb[0] = 0x35,
        // What Linux's sd uses as long as it can: READ (10), WRITE (10) (SBC-4 5.12, 5.40).
        (_, Ok(lba)) if blocks <= 0xffff => {
            cdb[0] = if op == Op::Read { 0x28 } else { 0x2a };
            cdb[2..6].copy_from_slice(&lba.to_be_bytes());
            cdb[7..9].copy_from_slice(&(blocks as u16).to_be_bytes());
        }
        _ => {
            cdb[0] = if op == Op::Read { 0x88 } else { 0x8a };
            cdb[2..10].copy_from_slice(&lba.to_be_bytes());
            cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
        }
    }
    cdb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_disks_take_long_commands() {
        assert_eq!(cdb(Op::Read, 7, 8)[..10], [0x28, 0, 0, 0, 0, 7, 0, 0, 8, 0]);
        assert_eq!(cdb(Op::Write, 1 << 32, 8)[..16], [0x8a, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0]);
    }
}
