//! What is attached to a port through the kernel instead of a guest's ring: a network device, a TAP.
//!
//! Two halves that control makes and attaches independently: an [`Intake`] is a *source*, owned by exactly one worker; an [`Outlet`] is an
//! *egress*, shared by all behind the lock of its [`Lane`]. Forwarding knows only these two traits; what the kernel's end is stays in its folder
//! (`port/xdp`, ...). How they are attached: `docs/decisions/0007-uplink-seam.md`.

mod intake;
mod lane;

pub(crate) use intake::Origin;
pub use intake::{Intake, IntakeStopped, WireSource};
pub(crate) use lane::LaneState;
pub use lane::{Counters, Lane, OUT_PIECES_MAX, OutFrame, Outlet, Refused, Target};
