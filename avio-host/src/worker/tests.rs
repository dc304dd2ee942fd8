//! Tests of workers with real threads and eventfds.
