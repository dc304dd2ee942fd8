//! What a worker tells control about frames and rings.
//!
//! Events go through a bounded channel and are dropped when it is full: none of them is needed for correct forwarding,
//! and a guest can cause as many as it likes. A broken ring is also visible to the worker loop, so it is never lost.

use std::fmt;
use std::io;
use std::sync::Arc;

use avio_host::wait::{Notified, Notifier};
use avio_host::worker::ControlWaker;
use avio_proto::config::{MacAddr, VlanId};
use avio_proto::control::DiscardReason;
use avio_proto::ring::RingError;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::port::guest::PortCell;
use crate::table::{PortIndex, PortSpec};

/// Events that wait for control. A worker makes few: learning and refusals are limited per ring, a ring breaks once.
pub const EVENTS_MAX: usize = 1024;

/// Something for control.
#[derive(Debug, Clone)]
pub enum Event {
    /// A source that no table entry has, on a trusted port.
    Learn {
        /// The port.
        port: PortIndex,
        /// VLAN by which the guest tagged the frame.
        vlan: Option<VlanId>,
        /// The source.
        mac: MacAddr,
    },
    /// The guard refused a frame; one a second and ring at most. Log it as it prints.
    Refused(Refusal),
    /// A transmit ring is broken and no longer polled. Control signals the guest (vhost-user SET_VRING_ERR).
    TxBroken {
        /// The port.
        port: PortIndex,
        /// The pair.
        pair: u16,
        /// What was wrong with it; `None`: a panic in our code, which the worker has logged.
        error: Option<RingError>,
    },
    /// A receive ring is broken and gets nothing any more. As above.
    RxBroken {
        /// The port.
        port: PortIndex,
        /// The pair.
        pair: u16,
        /// What was wrong with it; `None`: a panic while it was being published.
        error: Option<RingError>,
    },
    /// An intake cannot go on and is no longer polled.
    IntakeBroken {
        /// The port.
        port: PortIndex,
        /// Its number.
        lane: u16,
        /// What the system said; `None`: a panic in our code, which the worker has logged.
        error: Option<io::ErrorKind>,
    },
    /// A lane to the kernel is broken and takes nothing any more.
    LaneBroken {
        /// The port.
        port: PortIndex,
        /// Its number among the lanes of the port.
        lane: u16,
        /// What the system said.
        error: io::ErrorKind,
    },
    /// A VMM made a notification block the worker. Control ends its session.
    Held {
        /// The port.
        port: PortIndex,
    },
}

/// A frame that the guard refused; prints as one line.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Who sent it.
    pub spec: Arc<PortSpec>,
    /// Why it was refused.
    pub reason: DiscardReason,
    /// Its source.
    pub source: MacAddr,
    /// Its ethertype, or outer tag.
    pub ethertype: u16,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PortSpec { guest, number, mac, .. } = &*self.spec;
        match self.reason {
            DiscardReason::SpoofedSource
            | DiscardReason::ProtectedMac
            | DiscardReason::MulticastSource
            | DiscardReason::ZeroSource => {
                write!(f, "{guest} port {number} sends as {}, its definition says {mac}", self.source)
            }
            reason => {
                let ethertype = self.ethertype;
                write!(f, "{guest} port {number}: frame with ethertype {ethertype:#06x} refused: {reason}")
            }
        }
    }
}

/// A worker's end of the channel.
#[derive(Debug, Clone)]
pub struct Events {
    sender: Sender<Event>,
    control: ControlWaker,
}

impl Events {
    /// A channel to the control thread that `control` wakes; clone it for each worker.
    #[must_use]
    pub fn new(control: ControlWaker) -> (Self, Receiver<Event>) {
        let (sender, receiver) = bounded(EVENTS_MAX);
        (Self { sender, control }, receiver)
    }

    /// Notifies the guest of `port` and counts it in `cell`.
    pub(crate) fn notify(&self, notifier: &Notifier, cell: &PortCell, port: PortIndex) {
        match notifier.notify() {
            Notified::Yes => cell.notifications.add(1),
            Notified::Nobody => {}
            Notified::Held => self.send(Event::Held { port }),
        }
    }

    /// Sends without waiting; drops the event when control is that far behind.
    pub(crate) fn send(&self, event: Event) {
        match self.sender.try_send(event) {
            Ok(()) => self.control.wake(),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }
}
