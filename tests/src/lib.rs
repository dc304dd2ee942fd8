//! The harness of the whole-system tests: it starts the real daemon with a configuration of its own, and real clients on
//! its sockets (DPDK testpmd, QEMU, User-Mode Linux), drives them, and reads the daemon's numbers through `avio`.
//!
//! Called by the system tests in `tests/tests`, by `avio-demo-vm` and by the test runner `avio-test`. It never looks inside
//! the daemon: everything goes through the sockets, files and commands that an operator has.

pub mod aggregate;
pub mod capture;
pub mod case;
pub mod config;
pub mod console;
pub mod counters;
pub mod daemon;
pub mod disk_guest;
pub mod driver;
pub mod failure;
pub mod frames;
pub mod guest_image;
pub mod initiator;
pub mod linux_guest;
pub mod mounted;
pub mod netns;
pub mod ovs;
pub mod qemu;
pub mod qmp;
pub mod runner;
pub mod scratch;
pub mod storage;
pub mod testpmd;
pub mod uml;
pub mod uplink;
pub mod wire;

pub use failure::{Failure, Result};
