//! The `avio` command line and the traffic generator.
