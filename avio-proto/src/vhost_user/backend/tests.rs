//! Tests of the backend machine.
