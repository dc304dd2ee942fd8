//! The control socket: a Varlink server (varlink.org) in the control thread's event loop.
//!
//! Owns the socket, its connections and their framing. Called by a daemon's control thread, which gives it readiness events
//! and an [`Interface`] that does the work. Never blocks, never holds more than bounded memory per client, and never
//! knows what a method means.

mod connection;
mod dispatch;
mod reload;
mod server;

pub use dispatch::{Interface, VarlinkError, parameters};
pub use reload::{Called, ReloadOutcome, Reloads};
pub use server::{Access, BindError, CONNECTIONS_MAX, Peer, Server, TOKENS};

#[cfg(test)]
mod tests;
