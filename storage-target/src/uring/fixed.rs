//! Which memory of guests a ring has registered with the kernel (fixed buffers, io_uring_register_buffers(3)).
//!
//! Owned by a worker's ring, which does the system calls; this keeps the books: places in the kernel's table, shared by all
//! rings of a guest that have the same memory, and where an address lies. What is not in here is served without.

use std::io;
use std::sync::Arc;

use avio_proto::mem::{Mapping, MemoryTable};

/// Places in the kernel's table.
pub(super) const SLOTS: usize = 1024;
/// Longest buffer that the kernel registers, in bytes; a longer region has several.
const LEN_MAX: usize = 1 << 30;

/// Why memory is not, or not all, registered.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The kernel has no fixed buffers, or `AVIO_DISABLE` says so.
    #[error("kernel facility uring_fixed_buffers is not there or switched off (AVIO_DISABLE)")]
    Facility,
    /// All places are taken.
    #[error("all {SLOTS} places of a worker are taken; give the daemon more workers")]
    Full,
    /// The kernel may not lock more memory for the daemon.
    #[error("{0}; the daemon needs LimitMEMLOCK=infinity in its unit, or CAP_IPC_LOCK")]
    Limit(io::Error),
    /// The kernel refused.
    #[error("{0}; the guest's memory must be a memfd, or a file in tmpfs or hugetlbfs")]
    Refused(io::Error),
}

impl PinError {
    fn of(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN) => Self::Limit(error),
            _ => Self::Refused(error),
        }
    }

    /// Whether the next region fares no better.
    fn is_final(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// What one ring of a guest has registered; to be given back with [`Ring::unpin`](super::Ring::unpin).
#[derive(Debug, Default)]
#[must_use]
pub struct Pin(Vec<u16>);

/// What came of registering.
#[derive(Debug, Default)]
pub struct Pinned {
    /// To be given back.
    pub pin: Pin,
    /// Regions that were registered now; others were before.
    pub regions: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Why some are not.
    pub error: Option<PinError>,
}

/// What giving back has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpinned {
    /// Regions that nobody has any more.
    pub regions: usize,
    /// Operations that used them.
    pub used: u64,
}

struct Slot {
    start: usize,
    len: usize,
    /// Rings that have it; 0: the kernel would not let go of it, and is asked again.
    users: u32,
    used: u64,
    /// While it is here the addresses are nobody else's.
    _mapping: Arc<dyn Mapping>,
}

/// See the module.
#[derive(Default)]
pub(super) struct FixedTable {
    slots: Vec<Option<Slot>>,
    /// Where those begin that rings have, sorted.
    starts: Vec<(usize, u16)>,
}

impl FixedTable {
    /// Where `len` bytes at address `at` are registered, all in one; counts the use.
    #[inline]
    pub fn find(&mut self, at: usize, len: usize) -> Option<u16> {
        let (_, index) = self.starts[self.before(at)?];
        let slot = self.slots[usize::from(index)].as_mut()?;
        // `before` says that it begins no later.
        if (at - slot.start).checked_add(len).is_none_or(|end| end > slot.len) {
            return None;
        }
        slot.used += 1;
        Some(index)
    }

    /// The last entry of `starts` that begins at `at` or before.
    #[inline]
    fn before(&self, at: usize) -> Option<usize> {
        self.starts.partition_point(|&(start, _)| start <= at).checked_sub(1)
    }

    /// Shares or registers all of `memory`; `register` puts an address and a length at a place in the kernel's table.
    pub fn pin(
        &mut self,
        memory: &MemoryTable,
        mut register: impl FnMut(u16, usize, usize) -> io::Result<()>,
    ) -> Pinned {
        let mut all = Pinned::default();
        for region in memory.regions() {
            let base = region.mapping.base() as usize + region.mapping_offset as usize;
            for at in (0..region.len as usize).step_by(LEN_MAX) {
                let (start, len) = (base + at, LEN_MAX.min(region.len as usize - at));
                match self.pin_one(start, len, &region.mapping, &mut register) {
                    Ok((index, is_new)) => {
                        all.pin.0.push(index);
                        all.regions += usize::from(is_new);
                        all.bytes += if is_new { len as u64 } else { 0 };
                    }
                    Err(error) => {
                        let is_final = error.is_final();
                        all.error = Some(error);
                        if is_final {
                            return all;
                        }
                    }
                }
            }
        }
        all
    }

    fn pin_one(
        &mut self,
        start: usize,
        len: usize,
        mapping: &Arc<dyn Mapping>,
        register: &mut impl FnMut(u16, usize, usize) -> io::Result<()>,
    ) -> Result<(u16, bool), PinError> {
        let next = self.starts.partition_point(|&(other, _)| other <= start);
        if let Some(&(_, index)) = next.checked_sub(1).and_then(|i| self.starts.get(i))
            && let Some(slot) = &mut self.slots[usize::from(index)]
            && slot.start == start
            && slot.len == len
        {
            slot.users += 1;
            return Ok((index, false));
        }
        let index = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if index >= SLOTS {
            return Err(PinError::Full);
        }
        register(index as u16, start, len).map_err(PinError::of)?;
        let slot = Slot { start, len, users: 1, used: 0, _mapping: Arc::clone(mapping) };
        if index == self.slots.len() {
            self.slots.push(Some(slot));
        } else {
            self.slots[index] = Some(slot);
        }
        self.starts.insert(next, (start, index as u16));
        Ok((index as u16, true))
    }

    /// Gives back what one ring had; `unregister` empties a place in the kernel's table.
    pub fn unpin(&mut self, pin: Pin, mut unregister: impl FnMut(u16) -> io::Result<()>) -> Unpinned {
        let mut ended = Unpinned::default();
        for index in pin.0 {
            let Some(slot) = &mut self.slots[usize::from(index)] else { continue };
            slot.users -= 1;
            if slot.users == 0 {
                ended.regions += 1;
                ended.used += slot.used;
                self.starts.retain(|&(_, other)| other != index);
            }
        }
        // Those included that the kernel did not let go of before: emptying a place takes some memory of its own.
        for (index, place) in self.slots.iter_mut().enumerate() {
            if place.as_ref().is_some_and(|slot| slot.users == 0) && unregister(index as u16).is_ok() {
                *place = None;
            }
        }
        ended
    }
}

#[cfg(test)]
#[path = "fixed_tests.rs"]
mod tests;
