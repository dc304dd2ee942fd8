//! The AVIO virtual switch.
