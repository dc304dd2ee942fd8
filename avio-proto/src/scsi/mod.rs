//! SCSI as AVIO's storage target and its tools speak it.
//!
//! Owns names and layouts only; what a logical unit does with them lives in `avio-stord`.

pub mod opcode;
pub mod sense;
pub mod vendor;
