//! Guest ports: one virtio-net device of a guest, attached over vhost-user.
//!
//! Control makes a [`GuestPort`] when rings start and stop and publishes it with the next table; workers reach the
//! receive rings through it. Transmit rings are handed to one worker each, as [`TxQueue`]s.
//!
//! VIRTIO_NET_F_GUEST_ANNOUNCE needs nothing here: its control queue is the VMM's. What reaches the switch is the
//! announcement itself, an ordinary broadcast frame, or vhost-user's SEND_RARP, which control answers.

mod queue;
mod stats;

pub(crate) use queue::{LastDestination, Reports, RxRing};
pub use queue::{PAIRS_MAX, RxQueue, TxQueue, TxStopped};
pub use stats::{PortCell, PortStats, Snapshot};

use std::sync::Arc;

/// The receive rings of one guest, as one table has them.
#[derive(Debug, Clone, Default)]
pub struct GuestPort {
    /// By pair number; `None`: stopped or disabled. Empty: no guest is connected. At most [`PAIRS_MAX`].
    pub rx: Vec<Option<Arc<RxQueue>>>,
}
