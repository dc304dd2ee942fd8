//! A guest in a process: what a virtual machine is to the daemons, without the machine.
//!
//! Owns guest memory, the front-end's end of the vhost-user socket and driver rings. `avio-pktgen`, `avio demo`, tests and
//! benchmarks drive daemons with it. [`Session`] serves any device; [`net`] is the network device,
//! [`storage`] disks and host adapters. It never starts a thread, and no data path allocates.

mod eventfd;
mod mapping;
mod memory;
pub mod net;
mod rings;
mod session;
mod socket;
pub mod storage;

pub use eventfd::{EventFd, wait_readable};
pub use mapping::MemfdMapping;
pub use memory::{GUEST_BASE, GuestMemory, MemoryError};
pub use rings::RingPlace;
pub use session::{PROTOCOL_FEATURES, Session, SessionError, SessionOptions};
pub use socket::Endpoint;
