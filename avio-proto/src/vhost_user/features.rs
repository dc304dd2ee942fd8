//! Protocol feature bits (specification: "Protocol features").
//!
//! Owns the numbers; the state machines decide with them. Virtio feature bits are in `crate::virtio::features`.

/// More than one queue (GET_QUEUE_NUM).
pub const MQ: u64 = 1 << 0;
/// Dirty log in shared memory (SET_LOG_BASE with a descriptor).
pub const LOG_SHMFD: u64 = 1 << 1;
/// SEND_RARP.
pub const RARP: u64 = 1 << 2;
/// Any message may ask for an acknowledgement.
pub const REPLY_ACK: u64 = 1 << 3;
/// NET_SET_MTU.
pub const NET_MTU: u64 = 1 << 4;
/// SET_BACKEND_REQ_FD.
pub const BACKEND_REQ: u64 = 1 << 5;
/// GET_CONFIG and SET_CONFIG.
pub const CONFIG: u64 = 1 << 9;
/// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
pub const INFLIGHT_SHMFD: u64 = 1 << 12;
/// RESET_DEVICE.
pub const RESET_DEVICE: u64 = 1 << 13;
/// GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG.
pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
/// GET_STATUS and SET_STATUS.
pub const STATUS: u64 = 1 << 16;

/// Every protocol feature that the back-end machine implements. QEMU acks whatever it is offered, whether it implements it
/// or not, so nothing outside this set is ever offered.
pub const IMPLEMENTED: u64 = MQ
    | LOG_SHMFD
    | RARP
    | REPLY_ACK
    | NET_MTU
    | BACKEND_REQ
    | CONFIG
    | INFLIGHT_SHMFD
    | RESET_DEVICE
    | CONFIGURE_MEM_SLOTS
    | STATUS;
