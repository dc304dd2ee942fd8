//! Whole-system tests: real clients, real daemons.
