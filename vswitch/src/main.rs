//! `avio-vswitchd`.
fn main() {}
