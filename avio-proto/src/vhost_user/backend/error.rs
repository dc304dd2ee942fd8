//! Why a session ends, or a request is refused.
//!
//! Owns the wording of the one log line that the session writes about it, behind the name of the socket.

use crate::mem::TableError;
use crate::vhost_user::frame::FrameError;
use crate::vhost_user::message::Request;
use crate::vhost_user::payload::Short;

/// What a front-end did, or what could not be done for it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The byte stream is not vhost-user.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A payload shorter than its structure.
    #[error("{request}: {short}")]
    Short {
        /// Which request.
        request: Request,
        /// Sizes.
        short: Short,
    },
    /// The number of descriptors does not fit the request.
    #[error("{request}: {got} descriptors attached, expected {want}")]
    Fds {
        /// Which request.
        request: Request,
        /// Descriptors attached.
        got: usize,
        /// Descriptors expected.
        want: usize,
    },
    /// A ring that the device does not have.
    #[error("{request}: ring {index}, the device has rings 0..={last}")]
    Index {
        /// Which request.
        request: Request,
        /// Ring asked for.
        index: u32,
        /// Last ring there is.
        last: usize,
    },
    /// A value out of range.
    #[error("{request}: {what} is {value:#x}, expected {want}")]
    Value {
        /// Which request.
        request: Request,
        /// Which field.
        what: &'static str,
        /// What it holds.
        value: u64,
        /// What would be right.
        want: &'static str,
    },
    /// Acked features that were not offered: the guest would rely on what the device does not do.
    #[error("SET_FEATURES acks {0:#x}, which is not offered; the guest must be restarted to negotiate again")]
    NotOffered(u64),
    /// A request that this device does not offer, or that nobody knows.
    #[error("{0} is not supported by this device")]
    Unsupported(Request),
    /// A reply where only requests come.
    #[error("{0} came as a reply on the request socket")]
    StrayReply(Request),
    /// The regions are no memory table.
    #[error("{request}: {error}")]
    Table {
        /// Which request.
        request: Request,
        /// What is wrong.
        error: TableError,
    },
    /// REM_MEM_REG of a region that was never added.
    #[error("REM_MEM_REG: no region at guest address {0:#x} with this length and user address")]
    NoRegion(u64),
    /// Mapping or creating memory failed.
    #[error("{request}: {reason}")]
    Memory {
        /// Which request.
        request: Request,
        /// The system's words.
        reason: String,
    },
    /// No descriptors left, or ones that are no eventfd, pipe or socket.
    #[error("ring descriptors: {0}")]
    Descriptors(std::io::Error),
}
