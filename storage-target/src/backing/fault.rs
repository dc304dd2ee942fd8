//! `fault:RULES:BACKING`: delays and errors on the way to another backing.
//!
//! Without it, aborts, resets, timeouts and recovery could not be tested. A delayed access is not with the kernel, so it can
//! be taken back.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use avio_proto::config::FaultRules;
use rustix::io::Errno;

use super::{Access, IoError};

/// The rules of one backing, and how often they were asked.
#[derive(Debug)]
pub struct Faults {
    rules: FaultRules,
    reads: AtomicU32,
    writes: AtomicU32,
}

impl Faults {
    pub(super) fn new(rules: FaultRules) -> Self {
        Self { rules, reads: AtomicU32::new(0), writes: AtomicU32::new(0) }
    }

    /// How long to hold an access back before it is begun.
    pub(super) fn delay(&self, access: Access) -> Duration {
        let ms = match access {
            Access::Read => self.rules.read_delay_ms,
            Access::Flush => self.rules.flush_delay_ms,
            Access::Write { .. } | Access::Discard | Access::WriteZeroes { .. } => self.rules.write_delay_ms,
        };
        Duration::from_millis(ms.into())
    }

    /// Whether an access is to fail.
    pub(super) fn error(&self, access: Access, offset: u64, len: u64) -> Option<IoError> {
        let (count, every) = match access {
            Access::Read => (&self.reads, self.rules.read_error_every),
            Access::Write { .. } => (&self.writes, self.rules.write_error_every),
            _ => return None,
        };
        let bad = self.rules.bad_byte.is_some_and(|at| at >= offset && at - offset < len);
        let nth = every != 0 && (count.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(every);
        (bad || nth).then_some(IoError::Os(Errno::IO))
    }
}
