//! Media that need no kernel: an access is complete when it has been asked for.
//!
//! Called by [`Io`](super::Io), on its worker.

use super::Started;
use crate::backing::{Access, Memory, MemoryStore};

/// Reads zeroes, forgets the rest.
pub(super) fn null(access: Access, mut memory: Memory) -> Started {
    if matches!(access, Access::Read) {
        match &mut memory {
            // What a guest reads from nothing is nothing: its buffer is not touched.
            Memory::Guest(_) | Memory::None => {}
            Memory::Own(own) => own.fill(0),
        }
    }
    Started::Done(Ok(()), memory)
}

/// Reads, writes or zeroes memory that is the medium; `false` if the range is not all there.
pub(super) fn in_memory(
    store: &MemoryStore,
    access: Access,
    offset: u64,
    len: u64,
    memory: &mut Memory,
) -> bool {
    match (access, memory) {
        (Access::Read, Memory::Own(own)) => store.read_own(offset, &mut own[..len as usize]),
        (Access::Read, Memory::Guest(pieces)) => store.read(offset, pieces),
        (Access::Write { .. }, Memory::Guest(pieces)) => store.write(offset, pieces),
        (Access::Write { .. }, Memory::Own(own)) => store.write_own(offset, &own[..len as usize]),
        (Access::Discard | Access::WriteZeroes { .. }, _) => store.zero(offset, len),
        _ => true,
    }
}
