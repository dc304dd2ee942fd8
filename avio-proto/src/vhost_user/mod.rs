//! vhost-user: the messages, and both ends of a session as state machines (bytes and descriptors in, actions out).
//!
//! Owns the wire format ("Vhost-user Protocol" of the QEMU documentation, called "the specification" in here) and what
//! either side must do with each message. `avio_host::session` drives [`backend::Backend`], `avio-guest` drives
//! [`frontend::Frontend`]. Nothing here reads a socket, maps memory or starts a thread.

pub mod backend;
pub mod features;
pub mod frame;
pub mod frontend;
pub mod message;
pub mod payload;

pub use frame::{FrameError, FrameReader};
pub use message::{ChannelRequest, Header, Message, Outgoing, Request};
