//! The test runner behind `make test`: runs every part (lint, the crates' own tests, loom models, system tests, system tests
//! without newer kernel facilities), shows a line for each test as it ends, and counts them all. Called by the program
//! `avio-test` only. It never decides what may be left out; `tests/allowed-skips` does.

pub mod parts;
pub mod tally;
