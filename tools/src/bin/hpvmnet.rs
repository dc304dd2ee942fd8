//! Placeholder replaced within the same change.
fn main() {}
