//! The guest's interrupt for one ring, as a worker writes it.
//!
//! Made by control with the descriptor of SET_VRING_CALL; written by whichever worker publishes to the ring.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::wait::tell;

/// The guest's interrupt for one ring.
#[derive(Debug)]
pub struct Notifier {
    call: Option<OwnedFd>,
    /// It held a writer: it is not written again.
    held: AtomicBool,
}

/// What a notification came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notified {
    /// The guest is interrupted.
    Yes,
    /// There is nobody to interrupt.
    Nobody,
    /// The guest's VMM held the writer until it was interrupted. Said once; its session is to be ended.
    Held,
}

impl Notifier {
    /// Writes to `call` (vhost-user SET_VRING_CALL); `None`: the guest polls.
    #[must_use]
    pub fn new(call: Option<OwnedFd>) -> Self {
        Self { call, held: AtomicBool::new(false) }
    }

    /// Interrupts the guest. One system call; a full eventfd counter means that the guest has been notified already. A VMM that
    /// makes the call block does so once, for a fraction of a second ([`tell()`](tell())).
    pub fn notify(&self) -> Notified {
        match &self.call {
            Some(call) if !self.held.load(Ordering::Relaxed) => {
                if tell(call) {
                    return Notified::Yes;
                }
                self.held.store(true, Ordering::Relaxed);
                Notified::Held
            }
            _ => Notified::Nobody,
        }
    }
}
