//! A guest in a process.
