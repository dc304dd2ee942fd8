//! AVIO's contract: everything two parts of AVIO, or AVIO and a guest, must agree on.
//!
//! Owns the frames of link aggregation, guest memory tables, virtqueues (split and packed, device and driver side), the vhost-user messages and both
//! session state machines, virtio structures, configuration types and control-interface types. Both daemons, the
//! guest-in-a-process and the tools use it. It never does I/O and never starts a thread.

pub mod aggregation;
pub mod config;
pub mod control;
pub mod mem;
pub mod ring;
pub mod scsi;
pub mod vhost_user;
pub mod virtio;
