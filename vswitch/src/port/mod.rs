//! The kinds of ports of a vswitch.
//!
//! One folder and one line below per kind, each with the same parts: `queue.rs` (its worker half) and `stats.rs` (its
//! numbers). Forwarding matches on [`PortKind`] once a batch; what a kind is made of stays in its folder. Kinds that reach the kernel share
//! the two halves of `wire`.

pub mod guest;
pub mod tap;
pub mod uplink;
pub mod wire;
pub mod xdp;

use std::sync::Arc;

use guest::GuestPort;
use uplink::UplinkPort;
use wire::Lane;

/// What is behind a port.
#[derive(Debug, Clone)]
pub enum PortKind {
    /// A guest's virtio-net device, over vhost-user.
    Guest(GuestPort),
    /// The wire.
    Uplink(UplinkPort),
    /// One lane to the kernel: a TAP. `None`: not attached.
    Lan(Option<Arc<Lane>>),
}
