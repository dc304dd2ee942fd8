//! The four rings that an AF_XDP socket shares with the kernel (Documentation/networking/af_xdp.rst), each with one producer and one consumer.
//!
//! Owns the mappings and their memory order. The kernel is trusted, so an index from it is masked and not judged. It makes no system call.

#![expect(unsafe_code, reason = "memory that the kernel reads and writes (DESIGN section 6)")]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use super::sys::RingMapping;

/// `XDP_PKT_CONTD`: the frame goes on in the next descriptor (Linux 6.6).
const CONTINUED: u32 = 1;
/// `XDP_TX_METADATA`: there is metadata in front of the frame (Linux 6.8).
const METADATA: u32 = 1 << 1;
/// `XDP_RING_NEED_WAKEUP`.
const NEED_WAKEUP: u32 = 1;

/// One descriptor of a receive or transmit ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Desc {
    /// Offset in the UMEM.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The frame goes on in the next descriptor.
    pub continued: bool,
}

/// Where a ring's parts lie in its mapping (`struct xdp_ring_offset`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Offsets {
    pub producer: usize,
    pub consumer: usize,
    pub desc: usize,
    pub flags: usize,
}

/// A word of a ring's mapping.
#[inline]
pub(super) fn word(mapping: &RingMapping, offset: usize) -> &AtomicU32 {
    // SAFETY: `at` checks that the word is inside the mapping, which lives as long as the borrow; the kernel aligns it, and both sides
    // access it atomically.
    unsafe { AtomicU32::from_ptr(mapping.at(offset, 4).cast()) }
}

/// Writes `bytes` to a mapping, at `offset`.
#[inline]
pub(super) fn fill(mapping: &RingMapping, offset: usize, bytes: &[u8]) {
    // SAFETY: `at` checks that the bytes are inside the mapping, which lives as long as the borrow; nobody else writes them meanwhile, and no
    // reference to them is made.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), mapping.at(offset, bytes.len()), bytes.len()) }
}

/// One ring. Which side is ours is up to who holds it.
#[derive(Debug)]
pub(super) struct Ring {
    mapping: RingMapping,
    offsets: Offsets,
    entry_len: usize,
    mask: u32,
    /// Our index: entries that we have produced or consumed, published or not.
    local: u32,
}

impl Ring {
    /// Maps the ring of `entries` (a power of two) entries of `entry_len` bytes at page offset `at`.
    pub(super) fn new(
        fd: BorrowedFd<'_>,
        at: i64,
        offsets: Offsets,
        entries: u32,
        entry_len: usize,
    ) -> io::Result<Self> {
        let mapping = RingMapping::new(fd, offsets.desc + entries as usize * entry_len, at)?;
        Ok(Self { mapping, offsets, entry_len, mask: entries - 1, local: 0 })
    }

    #[inline]
    fn word(&self, offset: usize) -> &AtomicU32 {
        word(&self.mapping, offset)
    }

    #[inline]
    fn entry(&self, index: u32) -> *mut u8 {
        self.mapping.at(self.offsets.desc + (index & self.mask) as usize * self.entry_len, self.entry_len)
    }

    /// Entries there are in the ring.
    pub(super) fn size(&self) -> u32 {
        self.mask + 1
    }

    // As the producer.

    /// Entries that can be produced.
    #[inline]
    pub(super) fn room(&self) -> u32 {
        self.size() - self.local.wrapping_sub(self.word(self.offsets.consumer).load(Ordering::Acquire))
    }

    /// Puts an address into the next entry (fill ring). There must be room.
    #[inline]
    pub(super) fn put_addr(&mut self, addr: u64) {
        // SAFETY: the entry is inside the mapping, eight bytes long and aligned, and ours until it is published.
        unsafe { self.entry(self.local).cast::<u64>().write_volatile(addr) };
        self.local = self.local.wrapping_add(1);
    }

    /// Puts a descriptor into the next entry (transmit ring). There must be room.
    #[inline]
    pub(super) fn put_desc(&mut self, desc: Desc) {
        let Desc { addr, len, continued } = desc;
        let rest = u64::from(len) | u64::from(if continued { CONTINUED } else { 0 }) << 32;
        // SAFETY: as in `put_addr`; a descriptor is an address, a length and an options word, 16 bytes.
        unsafe { self.entry(self.local).cast::<[u64; 2]>().write_volatile([addr, rest]) };
        self.local = self.local.wrapping_add(1);
    }

    /// The frame that begins in the last but `back` (from 1 on) of the entries that are not published has metadata in front of it.
    pub(super) fn mark_metadata(&mut self, back: u32) {
        let entry = self.entry(self.local.wrapping_sub(back)).cast::<[u64; 2]>();
        // SAFETY: as in `put_addr`.
        unsafe {
            let [addr, rest] = entry.read_volatile();
            entry.write_volatile([addr, rest | u64::from(METADATA) << 32]);
        }
    }

    /// Takes back the last `count` entries that are not published.
    pub(super) fn take_back(&mut self, count: u32) {
        self.local = self.local.wrapping_sub(count);
    }

    /// Publishes what was put.
    #[inline]
    pub(super) fn publish(&self) {
        self.word(self.offsets.producer).store(self.local, Ordering::Release);
    }

    /// Whether the kernel has consumed all that was published.
    #[inline]
    pub(super) fn is_drained(&self) -> bool {
        self.word(self.offsets.consumer).load(Ordering::Acquire) == self.local
    }

    /// Whether the kernel wants a system call to look at the ring.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.word(self.offsets.flags).load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }

    // As the consumer.

    /// Entries that can be consumed.
    #[inline]
    pub(super) fn ready(&self) -> u32 {
        self.word(self.offsets.producer).load(Ordering::Acquire).wrapping_sub(self.local)
    }

    /// The address in entry number `ahead` of those that are ready (completion ring).
    #[inline]
    pub(super) fn addr(&self, ahead: u32) -> u64 {
        // SAFETY: as in `put_addr`; the kernel has published the entry.
        unsafe { self.entry(self.local.wrapping_add(ahead)).cast::<u64>().read_volatile() }
    }

    /// The descriptor in entry number `ahead` of those that are ready (receive ring).
    #[inline]
    pub(super) fn desc(&self, ahead: u32) -> Desc {
        // SAFETY: as in `addr`.
        let [addr, rest] =
            unsafe { self.entry(self.local.wrapping_add(ahead)).cast::<[u64; 2]>().read_volatile() };
        Desc { addr, len: rest as u32, continued: (rest >> 32) as u32 & CONTINUED != 0 }
    }

    /// `count` entries have been consumed.
    #[inline]
    pub(super) fn consume(&mut self, count: u32) {
        self.local = self.local.wrapping_add(count);
        self.word(self.offsets.consumer).store(self.local, Ordering::Release);
    }
}

/// A ring as somebody sees it who neither produces nor consumes: what both sides have published. A mapping of its own, so that its owner's ring stays
/// in one place.
#[derive(Debug)]
pub(super) struct Gauge {
    mapping: RingMapping,
    offsets: Offsets,
}

impl Gauge {
    /// Maps the indices of the ring at page offset `at` once more.
    pub(super) fn new(fd: BorrowedFd<'_>, at: i64, offsets: Offsets) -> io::Result<Self> {
        Ok(Self { mapping: RingMapping::new(fd, offsets.desc, at)?, offsets })
    }

    /// How far its producer and its consumer are.
    pub(super) fn indices(&self) -> Indices {
        let of = |offset| word(&self.mapping, offset).load(Ordering::Acquire);
        // The consumer first: it is then never ahead of the producer.
        let consumer = of(self.offsets.consumer);
        Indices { producer: of(self.offsets.producer), consumer }
    }

    /// Whether the kernel wants a system call to look at the ring.
    pub(super) fn needs_wakeup(&self) -> bool {
        word(&self.mapping, self.offsets.flags).load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }
}

/// How far the two sides of a ring are: numbers that grow, and wrap around.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Indices {
    /// Entries that were put in.
    pub producer: u32,
    /// Entries that were taken out.
    pub consumer: u32,
}

impl Indices {
    /// Entries that are in the ring.
    #[must_use]
    pub fn waiting(self) -> u32 {
        self.producer.wrapping_sub(self.consumer)
    }
}
