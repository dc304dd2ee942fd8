//! Whole aggregates against each other, and against partners that do not play by the rules.

mod failover;
mod lacp;
mod net;
