//! The control queue of a guest whose VMM has none (User-Mode Linux): virtio 1.3 §5.1.6.5.
//!
//! Served by the control thread when its kick is readable; commands are rare and change nothing in the data path, because
//! what a guest may receive and send is decided by its definition. So the switch confirms what it does anyway (receive
//! filtering is the driver's, queue pairs start by themselves), and refuses what the definition does not allow: another
//! MAC address.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use avio_host::notify::CallFd;
use avio_proto::mem::MemoryTable;
use avio_proto::ring::{Chain, ChainArena, DeviceRing, RingError};

/// Commands taken at a time: more than a driver has under way.
const COMMANDS_MAX: usize = 16;
/// Times per wake-up: a guest that refills the queue for ever does not keep the control thread.
const ROUNDS_MAX: usize = 4;

/// Acknowledgement bytes (§5.1.6.5).
const OK: u8 = 0;
const ERR: u8 = 1;

/// Command classes (§5.1.6.5.1 and following).
const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_VLAN: u8 = 2;
const CLASS_ANNOUNCE: u8 = 3;
const CLASS_MQ: u8 = 4;
/// CLASS_MAC: the filter table; the other command of the class sets the address.
const MAC_TABLE_SET: u8 = 0;
/// CLASS_MQ: how many pairs the driver uses.
const MQ_PAIRS_SET: u8 = 0;

/// What serving came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    /// Nothing is left.
    All,
    /// Come back at once: there is more than one turn may take.
    Some,
    /// The front-end made the notification block; its session is to be ended.
    Held,
}

/// A running control queue.
pub(super) struct ControlQueue {
    ring: DeviceRing,
    arena: ChainArena,
    kick: Option<OwnedFd>,
    call: CallFd,
    queue_pairs: u16,
}

impl ControlQueue {
    /// Serves `ring`; the guest is asked to kick. `queue_pairs` is what the definition allows.
    pub(super) fn new(
        ring: DeviceRing,
        kick: Option<OwnedFd>,
        call: Option<OwnedFd>,
        queue_pairs: u16,
    ) -> Self {
        let mut queue = Self { ring, arena: ChainArena::new(), kick, call: CallFd::new(call), queue_pairs };
        // Work that is already there has been kicked for, so its event is still to come.
        let _ = queue.ring.enable_notifications();
        queue
    }

    /// What to watch for reading; `None`: nobody will ever tell, and no command is served.
    pub(super) fn kick(&self) -> Option<RawFd> {
        self.kick.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Ends service: the index that GET_VRING_BASE answers, and the kick, to be taken out of the event loop before it is closed
    /// (the guest's VMM has a duplicate, so closing alone does not take it out).
    pub(super) fn stop(self) -> (u32, Option<OwnedFd>) {
        (self.ring.base(), self.kick)
    }

    /// The guest has kicked: serves what there is, as far as one turn may. The kick is listened to by its edges and never read.
    ///
    /// # Errors
    /// [`RingError`]: the ring is broken and is not to be looked at again.
    pub(super) fn serve(&mut self) -> Result<Served, RingError> {
        let memory = Arc::clone(self.ring.memory());
        for _ in 0..ROUNDS_MAX {
            let mut done = [None; COMMANDS_MAX];
            {
                let batch = self.ring.take(&mut self.arena, COMMANDS_MAX)?;
                for (i, done) in done.iter_mut().enumerate().take(batch.len()) {
                    let chain = batch.chain(i);
                    *done = Some((chain.id, acknowledge(&memory, &chain, self.queue_pairs)));
                }
            }
            for (id, written) in done.into_iter().flatten() {
                self.ring.complete(id, written);
            }
            let wanted = self.ring.publish();
            if !self.call.call(wanted) {
                return Ok(Served::Held);
            }
            if !self.ring.enable_notifications() {
                return Ok(Served::All);
            }
        }
        Ok(Served::Some)
    }
}

/// Executes one command and writes its acknowledgement, the only writable byte; returns how many bytes were written.
fn acknowledge(memory: &MemoryTable, chain: &Chain<'_>, queue_pairs: u16) -> u32 {
    let mut command = [0; 4];
    let mut len = 0;
    for piece in chain.readable {
        len += piece.copy_to(&mut command[len..]);
    }
    let answer = if len < 2 { ERR } else { answer(command, len, queue_pairs) };
    let Some(to) = chain.writable.first() else { return 0 };
    let written = to.copy_from(&[answer]);
    memory.log_slice(to, written);
    written as u32
}

/// The answer to a command whose first `len` bytes are `command`.
fn answer(command: [u8; 4], len: usize, queue_pairs: u16) -> u8 {
    let [class, kind, a, b] = command;
    let good = match class {
        CLASS_RX | CLASS_VLAN | CLASS_ANNOUNCE => true,
        CLASS_MAC => kind == MAC_TABLE_SET,
        CLASS_MQ => {
            kind == MQ_PAIRS_SET && len == 4 && (1..=queue_pairs).contains(&u16::from_le_bytes([a, b]))
        }
        _ => false,
    };
    if good { OK } else { ERR }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_definition_allows_is_confirmed() {
        assert_eq!(answer([CLASS_RX, 0, 1, 0], 3, 1), OK);
        assert_eq!(answer([CLASS_ANNOUNCE, 0, 0, 0], 2, 1), OK);
        assert_eq!(answer([CLASS_MQ, 0, 4, 0], 4, 4), OK);
        assert_eq!(answer([CLASS_MAC, MAC_TABLE_SET, 0, 0], 4, 1), OK);
    }

    #[test]
    fn another_address_and_more_pairs_are_refused() {
        assert_eq!(answer([CLASS_MAC, 1, 0x1e, 0], 4, 1), ERR);
        assert_eq!(answer([CLASS_MQ, 0, 5, 0], 4, 4), ERR);
        assert_eq!(answer([CLASS_MQ, 0, 0, 0], 4, 4), ERR);
        assert_eq!(answer([CLASS_MQ, 0, 1, 0], 3, 4), ERR);
        assert_eq!(answer([9, 0, 0, 0], 4, 4), ERR);
    }
}
