//! The kinds of ports of a vswitch.
//!
//! One folder and one line below per kind, each with the same parts: `queue.rs` (its worker half) and `stats.rs` (its
//! numbers). Forwarding matches on [`PortKind`]; what a kind is made of stays in its folder.

pub mod guest;

use guest::GuestPort;

/// What is behind a port.
#[derive(Debug, Clone)]
pub enum PortKind {
    /// A guest's virtio-net device, over vhost-user.
    Guest(GuestPort),
}
