//! The virtio block device: request header, configuration space, numbers (virtio 1.3 §5.2).
//!
//! Owns layouts only, little-endian as the standard has them. `avio-stord` serves requests by it, `avio-guest` makes them.
//! Whether a request is believable (range, alignment, length) is decided by the daemon, never here.

use super::field;

/// Bytes that sectors are counted in, whatever the device's block size (§5.2.4).
pub const SECTOR_LEN: u64 = 512;

/// The configuration space names the longest segment (§5.2.3, bit 1).
pub const F_SIZE_MAX: u64 = 1 << 1;
/// The configuration space names the most segments of a request (bit 2).
pub const F_SEG_MAX: u64 = 1 << 2;
/// Read-only (bit 5).
pub const F_RO: u64 = 1 << 5;
/// The configuration space names the block size (bit 6).
pub const F_BLK_SIZE: u64 = 1 << 6;
/// Flush requests are served: the cache may be volatile (bit 9).
pub const F_FLUSH: u64 = 1 << 9;
/// The configuration space holds the topology (bit 10).
pub const F_TOPOLOGY: u64 = 1 << 10;
/// The driver may switch between write-back and write-through (bit 11).
pub const F_CONFIG_WCE: u64 = 1 << 11;
/// More than one request queue (bit 12).
pub const F_MQ: u64 = 1 << 12;
/// Discard requests are served (bit 13).
pub const F_DISCARD: u64 = 1 << 13;
/// Write-zeroes requests are served (bit 14).
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// Request type: read (§5.2.6).
pub const T_IN: u32 = 0;
/// Request type: write.
pub const T_OUT: u32 = 1;
/// Request type: flush; `sector` is 0, there is no data.
pub const T_FLUSH: u32 = 4;
/// Request type: the serial number, [`SERIAL_LEN`] bytes.
pub const T_GET_ID: u32 = 8;
/// Request type: lifetime of an eMMC; AVIO never offers it.
pub const T_GET_LIFETIME: u32 = 10;
/// Request type: discard; the data are [`DiscardSegment`]s.
pub const T_DISCARD: u32 = 11;
/// Request type: write zeroes; the data are [`DiscardSegment`]s.
pub const T_WRITE_ZEROES: u32 = 13;
/// Request type: secure erase; AVIO never offers it.
pub const T_SECURE_ERASE: u32 = 14;

/// Status byte: done (§5.2.6).
pub const S_OK: u8 = 0;
/// Status byte: device or driver error.
pub const S_IOERR: u8 = 1;
/// Status byte: the device does not know this request.
pub const S_UNSUPP: u8 = 2;

/// Bytes of the serial number: not terminated when it fills them, padded with zeroes otherwise (§5.2.6).
pub const SERIAL_LEN: usize = 20;

/// The first 16 bytes of every request, device-readable. Data and one status byte follow (§5.2.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestHeader {
    /// `T_*`.
    pub kind: u32,
    /// First sector, in units of [`SECTOR_LEN`]; only reads and writes use it.
    pub sector: u64,
}

impl RequestHeader {
    /// Length in bytes.
    pub const LEN: usize = 16;

    /// Reads a header. The reserved word has no meaning.
    #[inline]
    #[must_use]
    pub fn from_bytes(b: &[u8; Self::LEN]) -> Self {
        let word = u128::from_le_bytes(*b);
        Self { kind: word as u32, sector: (word >> 64) as u64 }
    }

    /// The wire bytes.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        (u128::from(self.kind) | u128::from(self.sector) << 64).to_le_bytes()
    }
}

/// One range of a discard or write-zeroes request (`struct virtio_blk_discard_write_zeroes`, §5.2.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscardSegment {
    /// First sector, in units of [`SECTOR_LEN`].
    pub sector: u64,
    /// Sectors.
    pub sectors: u32,
    /// [`DiscardSegment::UNMAP`]; every other bit must be 0, and with a discard all of them (§5.2.6.2).
    pub flags: u32,
}

impl DiscardSegment {
    /// Length in bytes.
    pub const LEN: usize = 16;
    /// Write zeroes only: the device may unmap the range.
    pub const UNMAP: u32 = 1;

    /// Reads a segment.
    #[inline]
    #[must_use]
    pub fn from_bytes(b: &[u8; Self::LEN]) -> Self {
        let word = u128::from_le_bytes(*b);
        Self { sector: word as u64, sectors: (word >> 64) as u32, flags: (word >> 96) as u32 }
    }

    /// The wire bytes.
    #[inline]
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        (u128::from(self.sector) | u128::from(self.sectors) << 64 | u128::from(self.flags) << 96)
            .to_le_bytes()
    }
}

/// The configuration space (`struct virtio_blk_config`, §5.2.4). A field counts only if its feature was negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Size of the disk in units of [`SECTOR_LEN`].
    pub capacity: u64,
    /// Longest segment in bytes ([`F_SIZE_MAX`]).
    pub size_max: u32,
    /// Most data segments of a request ([`F_SEG_MAX`]).
    pub seg_max: u32,
    /// Logical block size in bytes ([`F_BLK_SIZE`]).
    pub blk_size: u32,
    /// Logical blocks per physical block, as a power of two ([`F_TOPOLOGY`]).
    pub physical_block_exp: u8,
    /// Offset of the first aligned logical block, in logical blocks ([`F_TOPOLOGY`]).
    pub alignment_offset: u8,
    /// Suggested least I/O, in logical blocks ([`F_TOPOLOGY`]).
    pub min_io_size: u16,
    /// Suggested best I/O, in logical blocks ([`F_TOPOLOGY`]).
    pub opt_io_size: u32,
    /// 1: write-back, 0: write-through ([`F_CONFIG_WCE`]); the only field that drivers write.
    pub writeback: u8,
    /// Request queues ([`F_MQ`]).
    pub num_queues: u16,
    /// Longest discard segment in sectors ([`F_DISCARD`]).
    pub max_discard_sectors: u32,
    /// Most segments of a discard ([`F_DISCARD`]).
    pub max_discard_seg: u32,
    /// Alignment that discards should have, in sectors ([`F_DISCARD`]).
    pub discard_sector_alignment: u32,
    /// Longest write-zeroes segment in sectors ([`F_WRITE_ZEROES`]).
    pub max_write_zeroes_sectors: u32,
    /// Most segments of a write-zeroes request ([`F_WRITE_ZEROES`]).
    pub max_write_zeroes_seg: u32,
    /// 1: write zeroes may unmap ([`F_WRITE_ZEROES`]).
    pub write_zeroes_may_unmap: u8,
}

impl Config {
    /// Length in bytes of all that virtio 1.3 defines, secure erase and zones included: those stay 0.
    pub const LEN: usize = 96;
    /// Where `writeback` stands, for SET_CONFIG.
    pub const WRITEBACK_OFFSET: usize = 32;

    /// The wire bytes. Whoever asks for fewer takes the first ones.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[0..8].copy_from_slice(&self.capacity.to_le_bytes());
        b[8..12].copy_from_slice(&self.size_max.to_le_bytes());
        b[12..16].copy_from_slice(&self.seg_max.to_le_bytes());
        // 16..20 is the CHS geometry: never offered.
        b[20..24].copy_from_slice(&self.blk_size.to_le_bytes());
        b[24] = self.physical_block_exp;
        b[25] = self.alignment_offset;
        b[26..28].copy_from_slice(&self.min_io_size.to_le_bytes());
        b[28..32].copy_from_slice(&self.opt_io_size.to_le_bytes());
        b[Self::WRITEBACK_OFFSET] = self.writeback;
        b[34..36].copy_from_slice(&self.num_queues.to_le_bytes());
        b[36..40].copy_from_slice(&self.max_discard_sectors.to_le_bytes());
        b[40..44].copy_from_slice(&self.max_discard_seg.to_le_bytes());
        b[44..48].copy_from_slice(&self.discard_sector_alignment.to_le_bytes());
        b[48..52].copy_from_slice(&self.max_write_zeroes_sectors.to_le_bytes());
        b[52..56].copy_from_slice(&self.max_write_zeroes_seg.to_le_bytes());
        b[56] = self.write_zeroes_may_unmap;
        b
    }

    /// Reads what there is: fields behind the end of `bytes` are 0, as devices before their feature have it.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let mut b = [0; Self::LEN];
        let n = bytes.len().min(Self::LEN);
        b[..n].copy_from_slice(&bytes[..n]);
        let u32_at = |at| u32::from_le_bytes(field(&b, at));
        Self {
            capacity: u64::from_le_bytes(field(&b, 0)),
            size_max: u32_at(8),
            seg_max: u32_at(12),
            blk_size: u32_at(20),
            physical_block_exp: b[24],
            alignment_offset: b[25],
            min_io_size: u16::from_le_bytes(field(&b, 26)),
            opt_io_size: u32_at(28),
            writeback: b[Self::WRITEBACK_OFFSET],
            num_queues: u16::from_le_bytes(field(&b, 34)),
            max_discard_sectors: u32_at(36),
            max_discard_seg: u32_at(40),
            discard_sector_alignment: u32_at(44),
            max_write_zeroes_sectors: u32_at(48),
            max_write_zeroes_seg: u32_at(52),
            write_zeroes_may_unmap: b[56],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_header_bytes_are_those_of_the_standard() {
        // le32 type, le32 reserved, le64 sector: §5.2.6.
        let bytes = [1, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
        let header = RequestHeader { kind: T_OUT, sector: 0x1122_3344_5566_7788 };
        assert_eq!(RequestHeader::from_bytes(&bytes), header);
        assert_eq!(header.to_bytes(), bytes);
        let mut reserved = bytes;
        reserved[4..8].fill(0xff);
        assert_eq!(RequestHeader::from_bytes(&reserved), header);
    }

    #[test]
    fn discard_segment_bytes_are_those_of_the_standard() {
        // le64 sector, le32 num_sectors, le32 flags with unmap as bit 0: §5.2.6.
        let bytes = [8, 0, 0, 0, 1, 0, 0, 0, 0x10, 0x20, 0, 0, 1, 0, 0, 0];
        let segment = DiscardSegment { sector: 0x1_0000_0008, sectors: 0x2010, flags: DiscardSegment::UNMAP };
        assert_eq!(DiscardSegment::from_bytes(&bytes), segment);
        assert_eq!(segment.to_bytes(), bytes);
    }

    /// Laid out by hand from `struct virtio_blk_config` in §5.2.4.
    #[test]
    fn config_bytes_are_those_of_the_standard() {
        let mut bytes = vec![0, 0, 0x20, 0, 0, 0, 0, 0]; // capacity
        bytes.extend([0, 0, 0x10, 0]); // size_max
        bytes.extend([0x7e, 0, 0, 0]); // seg_max
        bytes.extend([0, 0, 0, 0]); // geometry
        bytes.extend([0, 0x10, 0, 0]); // blk_size
        bytes.extend([3, 1, 8, 0, 0, 1, 0, 0]); // topology
        bytes.extend([1, 0]); // writeback, unused0
        bytes.extend([4, 0]); // num_queues
        bytes.extend([0xff, 0xff, 0x3f, 0, 1, 0, 0, 0, 8, 0, 0, 0]); // discard: sectors, segments, alignment
        bytes.extend([0, 0, 0x40, 0, 2, 0, 0, 0]); // write zeroes: sectors, segments
        bytes.extend([1, 0, 0, 0]); // may unmap, unused1
        assert_eq!(bytes.len(), 60);
        bytes.extend([0; 12]); // secure erase
        bytes.extend([0; 24]); // zoned characteristics
        let config = Config {
            capacity: 0x20_0000,
            size_max: 0x10_0000,
            seg_max: 126,
            blk_size: 4096,
            physical_block_exp: 3,
            alignment_offset: 1,
            min_io_size: 8,
            opt_io_size: 256,
            writeback: 1,
            num_queues: 4,
            max_discard_sectors: 0x3f_ffff,
            max_discard_seg: 1,
            discard_sector_alignment: 8,
            max_write_zeroes_sectors: 0x40_0000,
            max_write_zeroes_seg: 2,
            write_zeroes_may_unmap: 1,
        };
        assert_eq!(config.encode()[..], bytes);
        assert_eq!(Config::decode(&bytes), config);
        // A device of virtio 1.0 ends behind `writeback`.
        let old = Config::decode(&bytes[..33]);
        assert_eq!((old.capacity, old.writeback, old.num_queues), (0x20_0000, 1, 0));
    }

    #[test]
    fn numbers_are_those_of_the_standard() {
        let types =
            [T_IN, T_OUT, T_FLUSH, T_GET_ID, T_GET_LIFETIME, T_DISCARD, T_WRITE_ZEROES, T_SECURE_ERASE];
        assert_eq!(types, [0, 1, 4, 8, 10, 11, 13, 14]);
        assert_eq!([S_OK, S_IOERR, S_UNSUPP], [0, 1, 2]);
        let all = F_SIZE_MAX
            | F_SEG_MAX
            | F_RO
            | F_BLK_SIZE
            | F_FLUSH
            | F_TOPOLOGY
            | F_CONFIG_WCE
            | F_MQ
            | F_DISCARD
            | F_WRITE_ZEROES;
        assert_eq!(all, 0b0111_1110_0110_0110);
    }
}
