//! Logical units: what several adapters may share, and what is counted and limited per LUN.
//!
//! A [`Lun`] is made by control for each backing and lives as long as a definition names it. Workers reach it through the
//! adapters' views. The SCSI state is in [`LogicalUnit`]; here is what `avio_blk` needs as well.

mod overlap;
mod qos;
mod stats;

pub use overlap::{Fence, Overlap, overlaps};
pub use qos::Qos;
pub use stats::{Class, LunCell, LunStats, Numbers, QueueStats};

use crate::scsi::LogicalUnit;

/// Names a logical unit as long as the daemon runs; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LunId(pub u32);

/// One logical unit. What every read and write looks at stands in its first line: the end of `overlap`, the front of `unit`.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Lun {
    /// Ranges that an atomic command has for itself.
    pub overlap: Overlap,
    /// Its SCSI side: state, reservations, unit attentions, mode pages.
    pub unit: LogicalUnit,
    /// Which.
    pub id: LunId,
    /// For log lines: the backing as the definition names it.
    pub name: String,
}
