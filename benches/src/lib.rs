//! What AVIO costs: micro-benchmarks of the data path, instruction counts that CI guards, and peers measured beside us.
//!
//! [`net`] is `make bench-net`: this daemon, OVS-DPDK and DPDK testpmd in one run. [`rig`] is a switch without threads or
//! sockets, driven by the micro-benchmarks and by [`instructions`]. Nothing here is part of a product.

pub mod instructions;
pub mod net;
pub mod rig;
