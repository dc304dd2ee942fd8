//! Tests of sessions over real sockets: recorded front-ends, their quirks, front-ends that vanish or lie, memory that fails.

mod fronts;
mod hostile;
mod memory;
mod quirks;
mod replay;
mod rig;
mod sockets;
