//! The AVIO storage target: everything that `avio-stord` is made of.

pub mod adapter;
pub mod backing;
pub mod control;
pub mod lun;
pub mod scsi;
pub mod serve;
pub mod uring;
