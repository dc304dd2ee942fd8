//! The guest's memory as a session holds it: slots, the dirty log, and the immutable table made of both.
//!
//! Owns the mappings until the last ring that could reach them has stopped. The back-end machine calls it; it maps nothing
//! itself.

use crate::mem::{DirtyLog, Mapping, MemoryTable, Region, TableError};
use crate::vhost_user::payload::MemoryRegion;
use std::sync::Arc;

/// Answer to GET_MAX_MEM_SLOTS: what QEMU uses at most (KVM's user slots), below the table's own limit.
pub(super) const SLOTS_MAX: usize = 509;
/// Most memory of one guest, in bytes. x86-64 gives a process 128 TiB of addresses: 32 guests that lie about their size
/// still leave room to map.
pub(super) const GUEST_LEN_MAX: u64 = 4 << 40;
/// Longest dirty log in bytes: one bit per page of [`GUEST_LEN_MAX`], with room for a hole below hot-plugged memory.
pub(super) const LOG_LEN_MAX: u64 = GUEST_LEN_MAX / 4096 / 8 * 8;

const _: () = assert!(SLOTS_MAX <= crate::mem::REGIONS_MAX);

pub(super) struct Slot {
    pub(super) region: MemoryRegion,
    pub(super) mapping: Arc<dyn Mapping>,
}

#[derive(Default)]
pub(super) struct Memory {
    slots: Vec<Slot>,
    log: Option<Arc<dyn Mapping>>,
    logging: bool,
    table: Option<Arc<MemoryTable>>,
}

impl Memory {
    pub(super) fn table(&self) -> Option<&Arc<MemoryTable>> {
        self.table.as_ref()
    }

    /// Sum of all slots in bytes.
    pub(super) fn len(&self) -> u64 {
        self.slots.iter().fold(0, |sum, slot| sum.saturating_add(slot.region.len))
    }

    pub(super) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Whether writes are being logged.
    pub(super) fn is_logging(&self) -> bool {
        self.logging && self.log.is_some()
    }

    /// Replaces all slots; on error everything stays as it was.
    pub(super) fn set_slots(&mut self, slots: Vec<Slot>) -> Result<(), TableError> {
        let table = self.build(&slots)?;
        self.slots = slots;
        self.table = Some(Arc::new(table));
        Ok(())
    }

    /// Adds a slot; on error everything stays as it was.
    pub(super) fn add(&mut self, slot: Slot) -> Result<(), TableError> {
        self.slots.push(slot);
        match self.build(&self.slots) {
            Ok(table) => {
                self.table = Some(Arc::new(table));
                Ok(())
            }
            Err(error) => {
                self.slots.pop();
                Err(error)
            }
        }
    }

    /// Whether there is such a slot. The offset in the file is not compared: front-ends leave it out.
    pub(super) fn find(&self, region: &MemoryRegion) -> Option<usize> {
        self.slots.iter().position(|s| {
            (s.region.guest_base, s.region.user_base, s.region.len)
                == (region.guest_base, region.user_base, region.len)
        })
    }

    /// Whether exactly this slot is there, the offset in its file included.
    pub(super) fn has(&self, region: &MemoryRegion) -> bool {
        self.slots.iter().any(|s| s.region == *region)
    }

    pub(super) fn remove(&mut self, at: usize) -> Result<(), TableError> {
        self.slots.remove(at);
        self.rebuild()
    }

    pub(super) fn set_log(&mut self, log: Arc<dyn Mapping>) -> Result<(), TableError> {
        self.log = Some(log);
        self.rebuild()
    }

    pub(super) fn set_logging(&mut self, on: bool) -> Result<(), TableError> {
        if self.logging == on {
            return Ok(());
        }
        self.logging = on;
        self.rebuild()
    }

    fn rebuild(&mut self) -> Result<(), TableError> {
        if self.table.is_some() {
            self.table = Some(Arc::new(self.build(&self.slots)?));
        }
        Ok(())
    }

    fn build(&self, slots: &[Slot]) -> Result<MemoryTable, TableError> {
        let regions = slots
            .iter()
            .map(|slot| Region {
                guest_base: slot.region.guest_base,
                user_base: slot.region.user_base,
                len: slot.region.len,
                mapping: Arc::clone(&slot.mapping),
                mapping_offset: 0,
            })
            .collect();
        let log = self.log.as_ref().filter(|_| self.logging).map(|log| DirtyLog::new(Arc::clone(log)));
        MemoryTable::new(regions, log)
    }
}
