//! The AVIO virtual switch: everything that `avio-vswitchd` is made of.
//!
//! `aggregate` is how several network devices become one uplink, `table` what workers read, `port` the kinds of ports, `packet` how frames are read, `offload` the virtio-net header
//! and what software does in place of it, `forward` what a worker does with each frame. `control` publishes tables and
//! hands rings over; it never touches a frame.

pub mod aggregate;
pub mod control;
pub mod forward;
pub mod offload;
pub mod packet;
pub mod port;
pub mod table;
