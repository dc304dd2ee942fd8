//! Memory for frames that come from, or go to, the kernel: one memfd, mapped once, described by a memory table.
//!
//! Made by control for each socket that needs buffers (the UMEM of an AF_XDP socket, the buffers of a TAP). A memfd from the first day, so that
//! it can be handed to a successor (DESIGN section 7). Addresses in the table are offsets from its start. It never touches the bytes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use avio_proto::mem::{Mapping, MemoryTable, Region};
use avio_proto::vhost_user::backend::{MapPurpose, MapRequest};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::session::SharedMapping;

/// A memfd and where it is mapped.
#[derive(Debug)]
pub struct FrameMemory {
    fd: OwnedFd,
    table: Arc<MemoryTable>,
}

impl FrameMemory {
    /// `len` bytes (a multiple of the page size) of zeros. `name` shows up in `/proc/PID/maps`. Helper thread or start of the daemon: it maps
    /// memory.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(name: &str, len: usize) -> io::Result<Self> {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, len as u64)?;
        // Nobody can take pages away from under the kernel or us.
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let request = MapRequest {
            ticket: 0,
            fd: fd.try_clone()?,
            offset: 0,
            len: len as u64,
            purpose: MapPurpose::Guest,
        };
        let mapping = SharedMapping::map(&request, None).map_err(io::Error::other)?;
        let region = Region {
            guest_base: 0,
            user_base: 0,
            len: len as u64,
            mapping: Arc::new(mapping),
            mapping_offset: 0,
        };
        let table = MemoryTable::new(vec![region], None).map_err(io::Error::other)?;
        Ok(Self { fd, table: Arc::new(table) })
    }

    /// The table; address 0 is the first byte.
    #[must_use]
    pub fn table(&self) -> &Arc<MemoryTable> {
        &self.table
    }

    /// The memfd, for a successor.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Where it is mapped, and how long, for the kernel.
    #[must_use]
    pub fn mapped(&self) -> (*mut u8, usize) {
        let mapping: &dyn Mapping = &*self.table.regions()[0].mapping;
        (mapping.base(), mapping.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use avio_proto::mem::RegionHint;

    #[test]
    fn addresses_are_offsets() {
        let memory = FrameMemory::new("test", 8192).unwrap();
        let mut hint = RegionHint::default();
        assert_eq!(memory.table().slice(&mut hint, 8000, 192).unwrap().copy_from(&[7; 192]), 192);
        assert!(memory.table().slice(&mut hint, 8000, 193).is_none());
        assert_eq!(memory.mapped().1, 8192);
    }
}
