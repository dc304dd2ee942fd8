//! Serving requests: what a worker of `avio-stord` does.
//!
//! `message` is what control and workers say to each other, `relay` carries what workers want of each other. `engine` is
//! the worker's data path: it takes requests from rings (`queue`), makes jobs of them (`job`), runs their steps (`medium`)
//! and answers them (`blk`, `scsi`, `task`); what needs no waiting is answered without a job (`at_once`). Nothing here blocks, opens or parses a file.

mod at_once;
mod blk;
mod engine;
mod job;
mod medium;
mod message;
mod queue;
mod relay;
mod scsi;
mod task;

pub use blk::SEGMENTS_MAX as BLK_SEGMENTS_MAX;
pub use engine::Engine;
pub use message::{Action, Command, Event, Events, Notice, QueueSpec, Role, Scope, Ticket};
pub use relay::Relay;
