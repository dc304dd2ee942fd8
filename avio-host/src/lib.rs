//! What the AVIO daemons share: vhost-user sessions, workers and the waiter, notifications, statistics, service-manager protocol.
//!
//! Called by the daemon crates (`vswitch`, `storage-target`). It knows how to run a data path, never what the
//! data path does: no frame and no SCSI command is understood here.

pub mod blocking;
pub mod config;
pub mod control;
pub mod daemon;
pub mod facility;
pub mod frame_memory;
pub mod genetlink;
pub mod inject;
pub mod links;
pub mod log;
pub mod netdev;
mod netlink;
pub mod notify;
pub mod options;
pub mod ratelimit;
pub mod service;
pub mod session;
pub mod signals;
pub mod stats;
pub mod wait;
pub mod worker;
