//! The `avio` command line and the generators of traffic and of disk I/O.
//!
//! Owns what operators type and read. Programs in `bin/` call [`cli`]; each subcommand is one module. Reaches daemons only
//! through their control sockets and their configuration files, never through their memory or processes.

pub mod apa;
pub mod cli;
pub mod client;
pub mod demo;
pub mod iogen;
pub mod latency;
pub mod net;
pub mod pktgen;
pub mod staged;
pub mod stor;
