//! Virtio feature bits (virtio 1.3 §6 for the reserved ones, §5.1.3 for the network device).
//!
//! Each constant is a mask, not a bit number, so that sets are built with `|`.

/// Driver may use indirect descriptors (§6, bit 28).
pub const RING_INDIRECT_DESC: u64 = 1 << 28;
/// Both sides suppress notifications by index (§2.7.10, bit 29).
pub const RING_EVENT_IDX: u64 = 1 << 29;
/// vhost-user: the back-end speaks protocol features ("Feature negotiation", bit 30). Never shown to a driver.
pub const VHOST_USER_PROTOCOL_FEATURES: u64 = 1 << 30;
/// vhost: log writes into guest memory ("Migration", bit 26). Never shown to a driver.
pub const VHOST_LOG_ALL: u64 = 1 << 26;
/// The device follows virtio 1.0 or later (§6, bit 32).
pub const VERSION_1: u64 = 1 << 32;
/// Packed virtqueue layout (§2.8, bit 34).
pub const RING_PACKED: u64 = 1 << 34;
/// The device uses buffers in the order in which they were made available (§2.7.9, bit 35).
pub const IN_ORDER: u64 = 1 << 35;

/// Network: the device takes packets with a partial checksum (§5.1.3, bit 0).
pub const NET_CSUM: u64 = 1 << 0;
/// Network: the driver takes packets with a partial checksum (bit 1).
pub const NET_GUEST_CSUM: u64 = 1 << 1;
/// Network: the configuration space holds an MTU (bit 3).
pub const NET_MTU: u64 = 1 << 3;
/// Network: the configuration space holds a MAC address (bit 5).
pub const NET_MAC: u64 = 1 << 5;
/// Network: the driver takes TSOv4 frames (bit 7).
pub const NET_GUEST_TSO4: u64 = 1 << 7;
/// Network: the driver takes TSOv6 frames (bit 8).
pub const NET_GUEST_TSO6: u64 = 1 << 8;
/// Network: the driver takes TSO frames with ECN (bit 9).
pub const NET_GUEST_ECN: u64 = 1 << 9;
/// Network: the device takes TSOv4 frames (bit 11).
pub const NET_HOST_TSO4: u64 = 1 << 11;
/// Network: the device takes TSOv6 frames (bit 12).
pub const NET_HOST_TSO6: u64 = 1 << 12;
/// Network: the device takes TSO frames with ECN (bit 13).
pub const NET_HOST_ECN: u64 = 1 << 13;
/// Network: the driver can merge receive buffers (bit 15).
pub const NET_MRG_RXBUF: u64 = 1 << 15;
/// Network: the configuration space holds a link status (bit 16).
pub const NET_STATUS: u64 = 1 << 16;
/// Network: a control queue exists (bit 17).
pub const NET_CTRL_VQ: u64 = 1 << 17;
/// Network: the driver can announce itself (bit 21).
pub const NET_GUEST_ANNOUNCE: u64 = 1 << 21;
/// Network: several queue pairs (bit 22).
pub const NET_MQ: u64 = 1 << 22;
/// Network: the driver takes UDP segmentation frames over IPv4 (bit 54).
pub const NET_GUEST_USO4: u64 = 1 << 54;
/// Network: the driver takes UDP segmentation frames over IPv6 (bit 55).
pub const NET_GUEST_USO6: u64 = 1 << 55;
/// Network: the device takes UDP segmentation frames (bit 56).
pub const NET_HOST_USO: u64 = 1 << 56;
