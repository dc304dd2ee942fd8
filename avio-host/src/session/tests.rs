//! Tests of sessions over real sockets.
