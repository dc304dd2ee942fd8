//! The waiter: which sources a worker polls, which it only listens to, and when it sleeps.
//!
//! Used by `worker` (the loop) and, through [`Sources`], by engines. Each source is *active* (polled, its guest asked not to
//! notify) or *armed* (notifications on, its kick fd in the worker's one epoll set); DESIGN section 5. Nothing here knows
//! what a source is, and nothing here polls one.

pub mod arm;
mod eventfd;
mod handoff;
mod idle;
mod notifier;
mod sources;
pub(crate) mod sync;
mod tell;
mod wake_cost;

pub use eventfd::EventFd;
pub use handoff::{Announced, Handoff};
pub use idle::IdlePolicy;
pub use notifier::{Notified, Notifier};
pub use sources::{SourceError, Sources, Token};
pub use tell::tell;
pub use wake_cost::wake_cost;

pub(crate) use idle::SourceIdle;

#[cfg(all(loom, test))]
mod loom_tests;
