//! Forwarding: what a worker does with each frame, from a guest's transmit ring to other guests' receive rings.
//!
//! One batch at a time, run to completion (DESIGN section 3): take, snapshot, guard, look up, deliver, complete. Control
//! drives an [`Engine`] with [`Command`]s and hears from it by [`Event`]s; it never waits for one.

mod batch;
mod deliver;
mod engine;
mod event;
mod guard;
mod patience;
mod put;
mod release;
mod scratch;
#[cfg(test)]
mod tests;

pub use batch::Forwarder;
pub use engine::{Command, Engine};
pub use event::{EVENTS_MAX, Event, Events, Refusal};
