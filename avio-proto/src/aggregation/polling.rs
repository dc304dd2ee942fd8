//! The polling frame of a failover group (mode `LAN_MONITOR`): how its members find out that they reach each other.
//!
//! The original's format is not published, and nobody but the members of one group on one host ever reads these frames, so
//! this is our own. They go from each member's permanent address to each other's, as ordinary unicast: members may stand on
//! different switches, which must forward them, and no guest ever sees one. A random number that each group draws at its start
//! tells its frames from those of other hosts and from any that a guest makes up.

use super::{ETHERNET_LEN, bytes_at, number_at};
use crate::config::MacAddr;

/// Local Experimental Ethertype 1 (IEEE 802-2014 §9.2.3).
pub const POLLING_ETHERTYPE: u16 = 0x88b5;
/// What tells AVIO's frames from others of that ethertype, with the version of the format.
const MAGIC: [u8; 6] = *b"AVIOp\x01";
/// Length in bytes of the frame without FCS: the shortest that Ethernet has.
const LEN: usize = 60;

/// A polling frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollingFrame {
    /// Permanent address of the member that it is for.
    pub destination: MacAddr,
    /// Permanent address of the member that sends it.
    pub source: MacAddr,
    /// The group's random number.
    pub group: u64,
    /// The sender's place in the group.
    pub member: u16,
    /// Counts the sender's rounds; wraps.
    pub round: u32,
}

impl PollingFrame {
    /// Reads a whole Ethernet frame. `None`: something else.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<PollingFrame> {
        let at = ETHERNET_LEN;
        if number_at(frame, 12)? != POLLING_ETHERTYPE || bytes_at(frame, at)? != MAGIC {
            return None;
        }
        Some(PollingFrame {
            destination: MacAddr(bytes_at(frame, 0)?),
            source: MacAddr(bytes_at(frame, 6)?),
            group: u64::from_be_bytes(bytes_at(frame, at + 6)?),
            member: number_at(frame, at + 14)?,
            round: u32::from_be_bytes(bytes_at(frame, at + 16)?),
        })
    }

    /// The whole Ethernet frame.
    #[must_use]
    pub fn to_frame(&self) -> [u8; LEN] {
        let mut frame = [0; LEN];
        frame[..6].copy_from_slice(&self.destination.0);
        frame[6..12].copy_from_slice(&self.source.0);
        frame[12..14].copy_from_slice(&POLLING_ETHERTYPE.to_be_bytes());
        let at = ETHERNET_LEN;
        frame[at..at + 6].copy_from_slice(&MAGIC);
        frame[at + 6..at + 14].copy_from_slice(&self.group.to_be_bytes());
        frame[at + 14..at + 16].copy_from_slice(&self.member.to_be_bytes());
        frame[at + 16..at + 20].copy_from_slice(&self.round.to_be_bytes());
        frame
    }
}
