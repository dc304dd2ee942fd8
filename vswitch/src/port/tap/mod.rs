//! TAP ports: an emulated NIC of a guest (`adaptor = "lan"`), and the host itself on one of its vswitches.
//!
//! To workers a TAP port is a guest port: two AVIO rings in memory of ours, whose driver side a thread of its own, the
//! [`pump`](Pump), runs. It moves frames between those rings and the kernel in batches, one `io_uring_enter` each, so no
//! worker ever makes a system call that runs the host's network stack (`docs/decisions/0008`).
//!
//! - [`open()`] finds or makes the network device, on a helper thread. The *host port* is the descriptor of a TAP whose network
//!   device is the host's. A *lan* port is the other way round: the VMM has the TAP's descriptor, the switch the network
//!   device, through a macvtap in passthru mode, which takes every frame before the host's own stack sees it.
//! - [`Pump`] moves frames; [`make_rings`] makes what it and the workers need.
//!
//! Control decides when each exists (`control/taps.rs`).

mod former;
mod link;
mod memory;
mod open;
mod pump;
mod queue;
mod uring;

pub use link::{carrier, exists};
pub(crate) use open::open_bare;
pub use open::{Opened, Side, TapSpec, forget, open};
pub use pump::{Pump, PumpEvent};
pub use queue::{Duct, Rings, make_rings};
