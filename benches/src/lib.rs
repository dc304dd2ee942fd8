//! What AVIO costs: micro-benchmarks of the data path, instruction counts that CI guards, and peers measured beside us.
//!
//! [`net`] is `make bench-net`: this switch, OVS-DPDK and DPDK testpmd in one run; [`stor`] is `make bench-stor`: this storage
//! daemon, qemu-storage-daemon and fio; [`wire`] is `make bench-wire`: this switch, OVS and testpmd on a veth pair; [`beside`] is what they share. [`rig`] is a switch without threads or
//! sockets, [`storage_rig`] a disk's worker, [`ends`] a ring alone; all are driven by the micro-benchmarks and by [`instructions`]. Nothing here is part of a product.

pub mod beside;
pub mod ends;
pub mod instructions;
pub mod net;
pub mod rig;
pub mod stor;
pub mod storage_rig;
pub mod wire;
