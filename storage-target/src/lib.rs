//! The AVIO storage target: everything that `avio-stord` is made of.
