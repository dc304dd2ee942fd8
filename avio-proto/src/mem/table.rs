//! The table of memory regions and its address translation.
//!
//! Owns the mappings (through `Arc`) and the only place where a guest address becomes a host pointer.

#![expect(
    unsafe_code,
    reason = "defines the mapping contract and turns offsets into pointers (DESIGN section 6)"
)]

use super::{DirtyLog, GuestSlice};
use std::marker::PhantomData;
use std::sync::Arc;

/// Most regions in a table. QEMU's hot-plug slots end at 509 (KVM's user slots), and a sorted array of 512 fits in L1.
pub const REGIONS_MAX: usize = 512;

/// A piece of this process's address space that guest memory is mapped to.
///
/// # Safety
/// `base()..base()+len()` must be mapped readable and writable, never move, and stay mapped until the value is dropped.
/// The memory may change at any time and may be shared with other processes.
pub unsafe trait Mapping: Send + Sync + 'static {
    /// First byte.
    fn base(&self) -> *mut u8;
    /// Length in bytes, more than 0.
    fn len(&self) -> usize;
    /// Whether the mapping holds nothing; never true for a mapping in a table.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One region as vhost-user describes it ("Memory region description").
#[derive(Clone)]
pub struct Region {
    /// Guest-physical address of the first byte.
    pub guest_base: u64,
    /// The front-end's own address of the same byte; ring addresses are given in this space.
    pub user_base: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where it is mapped.
    pub mapping: Arc<dyn Mapping>,
    /// Offset of the region's first byte inside `mapping`, in bytes.
    pub mapping_offset: u64,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Region {{ guest {:#x}, user {:#x}, len {:#x} }}",
            self.guest_base, self.user_base, self.len
        )
    }
}

/// Why a set of regions is no memory table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TableError {
    /// More than [`REGIONS_MAX`].
    #[error("{0} memory regions, at most {REGIONS_MAX} are supported")]
    TooMany(usize),
    /// Length 0, or an end past 2^64, or past its mapping.
    #[error("memory region at guest address {0:#x} is empty, wraps, or does not fit its mapping")]
    BadExtent(u64),
    /// Two regions share guest addresses, or share user addresses.
    #[error("memory regions overlap at address {0:#x}")]
    Overlap(u64),
}

/// Remembers which region matched last; one per ring, since a ring's buffers lie together.
#[derive(Clone, Copy, Debug, Default)]
pub struct RegionHint(usize);

/// What translation reads: one cache line holds two of them.
#[derive(Clone, Copy)]
struct Entry {
    base: u64,
    len: u64,
    host: *mut u8,
}

/// One region, held while several addresses are translated.
pub(crate) struct Window<'m> {
    entry: Entry,
    table: PhantomData<&'m MemoryTable>,
}

impl<'m> Window<'m> {
    /// `len` bytes at guest address `addr`, if all of them are in this region.
    #[inline(always)]
    pub fn slice(&self, addr: u64, len: u32) -> Option<GuestSlice<'m>> {
        let offset = addr.wrapping_sub(self.entry.base);
        if offset >= self.entry.len || u64::from(len) > self.entry.len - offset {
            return None;
        }
        // SAFETY: `offset + len` bytes are inside the region, which the table keeps mapped for `'m`.
        Some(unsafe { GuestSlice::new(self.entry.host.add(offset as usize), len as usize) })
    }
}

/// All memory of one guest at one moment. Shared between threads; never changes.
pub struct MemoryTable {
    guest: Box<[Entry]>,
    user: Box<[Entry]>,
    regions: Box<[Region]>,
    log: Option<DirtyLog>,
}

// SAFETY: the raw pointers point into mappings that `regions` keeps alive; all access through them is by raw copies that
// are defined for memory that others change meanwhile.
unsafe impl Send for MemoryTable {}
// SAFETY: as above; the table itself is immutable.
unsafe impl Sync for MemoryTable {}

impl MemoryTable {
    /// Builds a table.
    ///
    /// # Errors
    /// [`TableError`] if there are too many regions, one has no valid extent, or two overlap.
    pub fn new(regions: Vec<Region>, log: Option<DirtyLog>) -> Result<Self, TableError> {
        if regions.len() > REGIONS_MAX {
            return Err(TableError::TooMany(regions.len()));
        }
        for r in &regions {
            let fits = r.mapping_offset.checked_add(r.len).is_some_and(|end| end <= r.mapping.len() as u64);
            let wraps = r.guest_base.checked_add(r.len).is_none() || r.user_base.checked_add(r.len).is_none();
            if r.len == 0 || wraps || !fits {
                return Err(TableError::BadExtent(r.guest_base));
            }
        }
        let guest = Self::sorted(&regions, |r| r.guest_base)?;
        let user = Self::sorted(&regions, |r| r.user_base)?;
        Ok(Self { guest, user, regions: regions.into_boxed_slice(), log })
    }

    fn sorted(regions: &[Region], base: impl Fn(&Region) -> u64) -> Result<Box<[Entry]>, TableError> {
        let mut entries: Vec<Entry> = regions
            .iter()
            .map(|r| {
                // SAFETY: `new` checked that offset + len lies inside the mapping.
                let host = unsafe { r.mapping.base().add(r.mapping_offset as usize) };
                Entry { base: base(r), len: r.len, host }
            })
            .collect();
        entries.sort_by_key(|e| e.base);
        for pair in entries.windows(2) {
            if pair[0].base + pair[0].len > pair[1].base {
                return Err(TableError::Overlap(pair[1].base));
            }
        }
        Ok(entries.into_boxed_slice())
    }

    /// The regions as they were given.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The dirty log, while the guest is being migrated.
    #[inline]
    #[must_use]
    pub fn log(&self) -> Option<&DirtyLog> {
        self.log.as_ref()
    }

    /// Marks `len` bytes at guest address `addr` as written, if the guest is being migrated.
    #[inline]
    pub fn log_write(&self, addr: u64, len: u64) {
        if let Some(log) = &self.log {
            log.mark(addr, len);
        }
    }

    /// Marks the first `len` bytes of `slice` as written, if the guest is being migrated. The slice must come from this
    /// table; it is found by where it is mapped, so that data paths need not carry guest addresses along.
    #[inline]
    pub fn log_slice(&self, slice: &GuestSlice<'_>, len: usize) {
        if let Some(log) = &self.log {
            self.log_mapped(log, slice.as_ptr() as u64, len.min(slice.len()));
        }
    }

    #[cold]
    fn log_mapped(&self, log: &DirtyLog, at: u64, len: usize) {
        let found = self.guest.iter().find(|e| at.wrapping_sub(e.host as u64) < e.len);
        if let Some(entry) = found {
            log.mark(entry.base + (at - entry.host as u64), len as u64);
        }
    }

    /// `len` bytes at guest address `addr` as one piece; `None` unless one region holds all of them.
    #[inline]
    #[must_use]
    pub fn slice(&self, hint: &mut RegionHint, addr: u64, len: usize) -> Option<GuestSlice<'_>> {
        let found = self.prefix(hint, addr, len)?;
        if found.len() == len { Some(found) } else { None }
    }

    /// The longest piece of `len` bytes at guest address `addr` that lies in one region; `None` if not even the first
    /// byte is mapped. A buffer may span regions that are neighbours in guest address space only.
    #[inline]
    #[must_use]
    pub fn prefix(&self, hint: &mut RegionHint, addr: u64, len: usize) -> Option<GuestSlice<'_>> {
        if let Some(entry) = self.guest.get(hint.0)
            && addr.wrapping_sub(entry.base) < entry.len
        {
            return Some(Self::within(entry, addr, len));
        }
        let i = Self::find(&self.guest, addr)?;
        hint.0 = i;
        Some(Self::within(&self.guest[i], addr, len))
    }

    /// The region that `hint` names, for who translates several addresses in a row.
    #[inline(always)]
    pub(crate) fn window(&self, hint: &RegionHint) -> Option<Window<'_>> {
        self.guest.get(hint.0).map(|&entry| Window { entry, table: PhantomData })
    }

    /// `len` bytes at the front-end's address `addr`: how vhost-user gives ring addresses. Control thread.
    #[must_use]
    pub fn user_slice(&self, addr: u64, len: usize) -> Option<GuestSlice<'_>> {
        let entry = &self.user[Self::find(&self.user, addr)?];
        Some(Self::within(entry, addr, len)).filter(|s| s.len() == len)
    }

    /// The guest address that the front-end's address `addr` stands for. Control thread.
    #[must_use]
    pub fn user_to_guest(&self, addr: u64) -> Option<u64> {
        self.regions
            .iter()
            .find(|r| addr.wrapping_sub(r.user_base) < r.len)
            .map(|r| r.guest_base + (addr - r.user_base))
    }

    #[inline]
    fn find(entries: &[Entry], addr: u64) -> Option<usize> {
        let i = entries.partition_point(|e| e.base <= addr).checked_sub(1)?;
        (addr - entries[i].base < entries[i].len).then_some(i)
    }

    #[inline]
    fn within(entry: &Entry, addr: u64, len: usize) -> GuestSlice<'_> {
        let offset = addr - entry.base;
        let room = (entry.len - offset) as usize;
        // SAFETY: `offset < entry.len`, so the pointer is inside the region and `room` bytes follow it; the table keeps
        // the mapping alive for the lifetime of the slice.
        unsafe { GuestSlice::new(entry.host.add(offset as usize), len.min(room)) }
    }
}

impl std::fmt::Debug for MemoryTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryTable").field("regions", &self.regions).field("log", &self.log).finish()
    }
}
