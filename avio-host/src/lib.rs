//! What the AVIO daemons share.
