//! The AVIO virtual switch.

pub mod offload;
pub mod packet;
