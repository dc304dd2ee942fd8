//! AVIO contract.
