//! Measuring ourselves beside peers, whatever is measured: who runs, how far apart the cores are, which windows count.
//!
//! The method is that of PEERS: two cores, the target's thread on core 1 and the guests on core 0; windows in turn; the
//! distance of the two cores probed around each; everything but the target that is being measured is stopped; windows in
//! which somebody waited for a processor are repeated. [`crate::net`] and [`crate::stor`] bring their targets and figures.

pub mod machine;
pub mod probe;
pub mod process;
pub mod record;
pub mod spread;
pub mod svg;
pub mod window;

/// Core of the daemon under test.
pub const TARGET_CORE: usize = 1;
/// Core of the guests.
pub const GUEST_CORE: usize = 0;
