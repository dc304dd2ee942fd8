//! Tests of the frontend machine.
