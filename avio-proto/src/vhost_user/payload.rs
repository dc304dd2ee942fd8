//! Payloads of messages (specification: "Payload").
//!
//! Owns the layout of each structure, in the machine's byte order. Both state machines use it. A payload that is longer
//! than needed is accepted everywhere (UML sends SET_MEM_TABLE with room for two regions, whatever their number); a shorter
//! one never is. It judges no values, only sizes.

/// Most bytes of configuration space in one message (VHOST_USER_MAX_CONFIG_SIZE).
pub const CONFIG_LEN_MAX: usize = 256;
/// Bit of a vring descriptor's index field that says "no descriptor attached".
pub const VRING_NO_FD: u64 = 1 << 8;
/// Bits of a vring descriptor's index field that hold the index.
pub const VRING_INDEX_MASK: u64 = 0xff;
/// Flag of vring addresses: log writes to the used ring (VHOST_VRING_F_LOG).
pub const VRING_F_LOG: u32 = 1;

/// A payload shorter than its structure.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{got} bytes of payload, {want} are needed")]
pub struct Short {
    /// Bytes received.
    pub got: usize,
    /// Bytes needed.
    pub want: usize,
}

fn need(bytes: &[u8], want: usize) -> Result<(), Short> {
    if bytes.len() < want { Err(Short { got: bytes.len(), want }) } else { Ok(()) }
}

/// Callers have checked the length with `need`.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(raw)
}

/// Reads "A 64-bit integer".
///
/// # Errors
/// [`Short`].
pub fn decode_u64(bytes: &[u8]) -> Result<u64, Short> {
    need(bytes, 8)?;
    Ok(u64_at(bytes, 0))
}

/// "A vring state description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    /// Ring index.
    pub index: u32,
    /// Size, base or enable flag, depending on the request.
    pub num: u32,
}

impl VringState {
    /// Reads the structure.
    ///
    /// # Errors
    /// [`Short`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Short> {
        need(bytes, 8)?;
        Ok(Self { index: u32_at(bytes, 0), num: u32_at(bytes, 4) })
    }

    /// Writes the structure.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [self.index.to_ne_bytes(), self.num.to_ne_bytes()].concat()
    }
}

/// "A vring address description". Addresses are the front-end's own, except `log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddr {
    /// Ring index.
    pub index: u32,
    /// [`VRING_F_LOG`].
    pub flags: u32,
    /// Descriptor table or ring.
    pub desc: u64,
    /// Used ring or device event suppression.
    pub used: u64,
    /// Available ring or driver event suppression.
    pub avail: u64,
    /// Guest address to log for writes to the used ring.
    pub log: u64,
}

impl VringAddr {
    /// Reads the structure.
    ///
    /// # Errors
    /// [`Short`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Short> {
        need(bytes, 40)?;
        Ok(Self {
            index: u32_at(bytes, 0),
            flags: u32_at(bytes, 4),
            desc: u64_at(bytes, 8),
            used: u64_at(bytes, 16),
            avail: u64_at(bytes, 24),
            log: u64_at(bytes, 32),
        })
    }

    /// Writes the structure.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        bytes.extend(self.index.to_ne_bytes());
        bytes.extend(self.flags.to_ne_bytes());
        for word in [self.desc, self.used, self.avail, self.log] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }
}

/// "Memory region description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Guest-physical address of the first byte.
    pub guest_base: u64,
    /// Length in bytes.
    pub len: u64,
    /// The front-end's own address of the first byte.
    pub user_base: u64,
    /// Offset of the first byte in the descriptor's file.
    pub mmap_offset: u64,
}

impl MemoryRegion {
    /// Length of the structure in bytes.
    pub const LEN: usize = 32;

    fn read(bytes: &[u8], at: usize) -> Self {
        Self {
            guest_base: u64_at(bytes, at),
            len: u64_at(bytes, at + 8),
            user_base: u64_at(bytes, at + 16),
            mmap_offset: u64_at(bytes, at + 24),
        }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        for word in [self.guest_base, self.len, self.user_base, self.mmap_offset] {
            bytes.extend(word.to_ne_bytes());
        }
    }

    /// Reads "Single memory region description": padding, then the region.
    ///
    /// # Errors
    /// [`Short`].
    pub fn decode_single(bytes: &[u8]) -> Result<Self, Short> {
        need(bytes, 8 + Self::LEN)?;
        Ok(Self::read(bytes, 8))
    }

    /// Writes "Single memory region description".
    #[must_use]
    pub fn encode_single(&self) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        self.write(&mut bytes);
        bytes
    }

    /// Reads "Multiple memory regions description": count, padding, regions.
    ///
    /// # Errors
    /// [`Short`] if the payload cannot hold that many.
    pub fn decode_table(bytes: &[u8]) -> Result<Vec<Self>, Short> {
        need(bytes, 8)?;
        let count = u32_at(bytes, 0) as usize;
        need(bytes, count.saturating_mul(Self::LEN).saturating_add(8))?;
        Ok((0..count).map(|i| Self::read(bytes, 8 + i * Self::LEN)).collect())
    }

    /// Writes "Multiple memory regions description".
    #[must_use]
    pub fn encode_table(regions: &[Self]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + regions.len() * Self::LEN);
        bytes.extend((regions.len() as u32).to_ne_bytes());
        bytes.extend([0; 4]);
        for region in regions {
            region.write(&mut bytes);
        }
        bytes
    }
}

/// "Log description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogArea {
    /// Length of the bitmap in bytes.
    pub len: u64,
    /// Offset of the bitmap in the descriptor's file.
    pub mmap_offset: u64,
}

impl LogArea {
    /// Reads the structure.
    ///
    /// # Errors
    /// [`Short`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Short> {
        need(bytes, 16)?;
        Ok(Self { len: u64_at(bytes, 0), mmap_offset: u64_at(bytes, 8) })
    }

    /// Writes the structure.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [self.len.to_ne_bytes(), self.mmap_offset.to_ne_bytes()].concat()
    }
}

/// "Inflight description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightArea {
    /// Length of the region in bytes.
    pub len: u64,
    /// Offset of the region in the descriptor's file.
    pub mmap_offset: u64,
    /// Number of rings.
    pub queues: u16,
    /// Entries of each ring.
    pub queue_size: u16,
}

impl InflightArea {
    /// Reads the structure; 20 bytes are enough, although front-ends send the 24 of the padded C structure.
    ///
    /// # Errors
    /// [`Short`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Short> {
        need(bytes, 20)?;
        Ok(Self {
            len: u64_at(bytes, 0),
            mmap_offset: u64_at(bytes, 8),
            queues: u16_at(bytes, 16),
            queue_size: u16_at(bytes, 18),
        })
    }

    /// Writes the structure with its padding, 24 bytes: QEMU compares the reply's size with that.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend(self.len.to_ne_bytes());
        bytes.extend(self.mmap_offset.to_ne_bytes());
        bytes.extend(self.queues.to_ne_bytes());
        bytes.extend(self.queue_size.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes
    }
}

/// "Virtio device config space".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Offset in configuration space, in bytes.
    pub offset: u32,
    /// Number of bytes asked for or given.
    pub size: u32,
    /// 0: writable by the driver; 1: all, for migration.
    pub flags: u32,
    /// The bytes; empty in a reply means "refused".
    pub bytes: Vec<u8>,
}

impl Config {
    /// Length of the structure before its bytes.
    pub const HEAD_LEN: usize = 12;

    /// Reads the structure; `bytes` is what follows the head, at most `size`.
    ///
    /// # Errors
    /// [`Short`] if even the head is not there.
    pub fn decode(bytes: &[u8]) -> Result<Self, Short> {
        need(bytes, Self::HEAD_LEN)?;
        let (offset, size, flags) = (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8));
        let rest = &bytes[Self::HEAD_LEN..];
        Ok(Self { offset, size, flags, bytes: rest[..rest.len().min(size as usize)].to_vec() })
    }

    /// Writes the structure.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::HEAD_LEN + self.bytes.len());
        for word in [self.offset, self.size, self.flags] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(&self.bytes);
        bytes
    }
}

/// "A vring descriptor index": which ring, and whether a descriptor is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringFd {
    /// Ring index, 0..=255.
    pub index: u32,
    /// False: the peer polls instead.
    pub has_fd: bool,
}

impl VringFd {
    /// Reads the structure.
    ///
    /// # Errors
    /// [`Short`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Short> {
        let word = decode_u64(bytes)?;
        Ok(Self { index: (word & VRING_INDEX_MASK) as u32, has_fd: word & VRING_NO_FD == 0 })
    }

    /// Writes the structure.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let word = u64::from(self.index) & VRING_INDEX_MASK | if self.has_fd { 0 } else { VRING_NO_FD };
        word.to_ne_bytes().to_vec()
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    /// The vectors are laid out by hand from the figures under "Payload".
    #[test]
    fn vring_addr_bytes() {
        let mut bytes = vec![3, 0, 0, 0, 1, 0, 0, 0];
        bytes.extend([0x11, 0, 0, 0, 0, 0, 0, 0]); // descriptor
        bytes.extend([0x22, 0, 0, 0, 0, 0, 0, 0]); // used
        bytes.extend([0x33, 0, 0, 0, 0, 0, 0, 0]); // available
        bytes.extend([0x44, 0, 0, 0, 0, 0, 0, 0x80]); // log
        let addr = VringAddr {
            index: 3,
            flags: VRING_F_LOG,
            desc: 0x11,
            used: 0x22,
            avail: 0x33,
            log: 0x8000_0000_0000_0044,
        };
        assert_eq!(VringAddr::decode(&bytes), Ok(addr));
        assert_eq!(addr.encode(), bytes);
        assert_eq!(VringAddr::decode(&bytes[..39]), Err(Short { got: 39, want: 40 }));
    }

    #[test]
    fn memory_table_bytes() {
        let mut bytes = vec![1, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([0, 0, 0x10, 0, 0, 0, 0, 0]); // guest address
        bytes.extend([0, 0x20, 0, 0, 0, 0, 0, 0]); // size
        bytes.extend([0, 0, 0, 0, 1, 0, 0, 0]); // user address
        bytes.extend([0, 0x10, 0, 0, 0, 0, 0, 0]); // mmap offset
        let region =
            MemoryRegion { guest_base: 0x10_0000, len: 0x2000, user_base: 1 << 32, mmap_offset: 0x1000 };
        assert_eq!(MemoryRegion::decode_table(&bytes), Ok(vec![region]));
        assert_eq!(MemoryRegion::encode_table(&[region]), bytes);
        assert!(MemoryRegion::decode_table(&bytes[..39]).is_err());
        // A count that would overflow the multiplication is only a short payload.
        bytes[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(MemoryRegion::decode_table(&bytes).is_err());
    }

    #[test]
    fn single_region_has_eight_bytes_of_padding() {
        let region = MemoryRegion { guest_base: 1, len: 2, user_base: 3, mmap_offset: 4 };
        let bytes = region.encode_single();
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[8], 1);
        assert_eq!(MemoryRegion::decode_single(&bytes), Ok(region));
    }

    #[test]
    fn config_bytes() {
        let bytes = [4, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0xaa, 0xbb, 0xcc];
        let config = Config::decode(&bytes).unwrap();
        assert_eq!(config, Config { offset: 4, size: 2, flags: 1, bytes: vec![0xaa, 0xbb] });
        assert_eq!(config.encode(), bytes[..14]);
    }

    #[test]
    fn inflight_is_24_bytes_out_and_20_in() {
        let area = InflightArea { len: 0x1000, mmap_offset: 0, queues: 2, queue_size: 256 };
        let bytes = area.encode();
        assert_eq!(bytes.len(), 24);
        assert_eq!(bytes[16..20], [2, 0, 0, 1]);
        assert_eq!(InflightArea::decode(&bytes[..20]), Ok(area));
    }

    #[test]
    fn vring_fd_bits() {
        assert_eq!(VringFd::decode(&[5, 1, 0, 0, 0, 0, 0, 0]), Ok(VringFd { index: 5, has_fd: false }));
        assert_eq!(VringFd { index: 7, has_fd: true }.encode(), [7, 0, 0, 0, 0, 0, 0, 0]);
        assert!(VringFd::decode(&[0; 7]).is_err());
    }
}
