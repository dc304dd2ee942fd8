//! The kernel's ends of an uplink: AF_XDP sockets with our own XDP program, and packet sockets where XDP cannot attach.
//!
//! `program` is the program as bytecode and how it is attached, `btf` where it finds the kernel's functions, `socket` an AF_XDP socket as intake and
//! outlet, `burst` the outlet that takes the socket's place where the device copies, `redirect` its way past the making of packets, `packet` the same over a packet
//! socket, `group_ring` the switch's copy of broadcast and multicast, `rings` the memory shared with the kernel, `watch` how a watchdog sees it,
//! `ethtool` what else there is to know of a device, `features` which offloads it has on, `sys` the system calls. This folder and `port/tap` are the only places of the crate with `unsafe`. It decides
//! nothing: what is opened, and what after a failure, is up to `control/uplink`.

mod assembly;
mod btf;
mod burst;
mod control_socket;
mod ethtool;
mod features;
mod group_ring;
mod packet;
mod program;
mod redirect;
mod rings;
mod siblings;
mod socket;
mod sys;
mod watch;

pub use burst::{OpenBurst, open_burst};
pub use control_socket::ControlSocket;
pub use ethtool::{DriverInfo, driver_info, interface_capable_of_less_mbps, interface_speed_mbps};
pub use features::{Changed, FeatureMonitor, FeatureState, LinkFeatures, features, set_features};
pub use packet::{Capture, PacketFilter, Promiscuous, open_packet};
pub use program::{AttachError, AttachMode, Attached, Hook, QUEUES_MAX};
pub use rings::Indices;
pub use siblings::Siblings;
pub use socket::{OpenXsk, Wanted, XskError, XskInfo, open_xsk};
pub use sys::xdp_available;
pub use watch::{CHUNKS_OUT_MAX, Reading, XskWatch};
