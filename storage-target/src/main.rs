//! `avio-stord`: the AVIO storage target as a program.

fn main() {}
