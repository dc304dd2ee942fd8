//! What a backing can do, as virtio-blk and SCSI tell it to guests.

/// Properties that do not change while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Logical block, in bytes: 512, 2,048 (DVD) or 4,096.
    pub block_size: u32,
    /// Block that the medium writes at once, in bytes; a multiple of the logical one.
    pub physical_block_size: u32,
    /// Alignment of memory that it reads and writes directly, in bytes; other memory is copied.
    pub memory_align: u32,
    /// Writes are refused.
    pub readonly: bool,
    /// A write may be lost in a power failure until it is flushed.
    pub volatile_cache: bool,
    /// It spins, as far as the kernel knows.
    pub rotational: bool,
    /// Discards give space back.
    pub discards: bool,
    /// Discarded ranges read as zeroes.
    pub discards_read_zeroes: bool,
}
