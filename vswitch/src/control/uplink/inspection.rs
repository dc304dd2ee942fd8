//! What others may have done to a device while it is open, without any event that would say so: our program taken from it, more queues. (Offloads have events of their own: `offloads`.)
//!
//! Asked by [`Uplinks`](super::Uplinks) once a second and whenever something is told of interfaces; answered on a helper thread, for the answers wait for
//! whoever changes an interface. Changes nothing: the device is opened anew then, which puts all of it in order.

use avio_host::inject;

use super::device::{QueueCount, queue_count};
use crate::port::xdp::Hook;

/// What is to be as it was when the device was opened.
#[derive(Debug, Clone)]
pub(super) struct Inspection {
    pub name: String,
    /// `None`: a packet socket, which has the frames of all.
    pub queues: Option<QueueCount>,
    pub hooks: Vec<Hook>,
}

impl Inspection {
    /// What is not, in words for the log. A device that is gone has nothing to be told of: its interface's events say so.
    pub(super) fn run(&self) -> Option<String> {
        inject::point("uplink::inspect");
        if !self.hooks.iter().all(Hook::is_in_place) {
            return Some("its program was taken away by somebody else".to_owned());
        }
        let was = self.queues?;
        let now = queue_count(&self.name, was.room);
        (now.used != was.used).then(|| format!("it has {} queues now, not {}", now.used, was.used))
    }
}
