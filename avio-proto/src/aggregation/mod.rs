//! The frames of link aggregation: LACPDUs and Marker PDUs (IEEE 802.1AX-2014 §6.4, §6.5) and the polling frames of a
//! failover group (AVIO's own).
//!
//! Owns their layouts: bytes in, values out, and back. `vswitch/src/aggregate` has the state machines that speak them. Nothing
//! here opens a socket or keeps state, and nothing panics on any bytes.

mod lacpdu;
mod marker;
mod polling;
#[cfg(test)]
mod tests;

pub use lacpdu::{LacpPdu, PortInfo, PortStateBits, SystemId};
pub use marker::{MarkerKind, MarkerPdu};
pub use polling::{POLLING_ETHERTYPE, PollingFrame};

use crate::config::MacAddr;

/// Where slow protocol frames go: 01-80-C2-00-00-02, which no bridge forwards (802.1AX-2014 §6.2.10.2, 802.3 §57A.3).
pub const SLOW_PROTOCOLS_GROUP: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0x00, 0x00, 0x02]);
/// Ethertype of slow protocols (802.3 §57A.4).
pub const SLOW_PROTOCOLS_ETHERTYPE: u16 = 0x8809;
/// Length in bytes of every slow protocol frame that is sent from here, Ethernet header included, without FCS: the 128 bytes
/// of a LACPDU (802.1AX-2014 figure 6-7) less 4.
pub const SLOW_FRAME_LEN: usize = 124;

/// Subtype of LACP (802.3 table 57A-3).
const SUBTYPE_LACP: u8 = 1;
/// Subtype of the Marker protocol.
const SUBTYPE_MARKER: u8 = 2;
/// The only version of both.
const VERSION: u8 = 1;
/// Length in bytes of an Ethernet header.
const ETHERNET_LEN: usize = 14;

/// A slow protocol frame that is ours to handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowFrame {
    /// LACP.
    Lacp(LacpPdu),
    /// Marker protocol.
    Marker(MarkerPdu),
}

impl SlowFrame {
    /// Reads a whole Ethernet frame. `None`: not a slow protocol frame, of another subtype (such as OAM), or malformed.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<SlowFrame> {
        let header: &[u8; ETHERNET_LEN] = frame.first_chunk()?;
        let payload = &frame[ETHERNET_LEN..];
        if header[..6] != SLOW_PROTOCOLS_GROUP.0
            || u16::from_be_bytes([header[12], header[13]]) != SLOW_PROTOCOLS_ETHERTYPE
        {
            return None;
        }
        match *payload.first()? {
            SUBTYPE_LACP => LacpPdu::parse(payload).map(SlowFrame::Lacp),
            SUBTYPE_MARKER => MarkerPdu::parse(payload).map(SlowFrame::Marker),
            _ => None,
        }
    }

    /// The whole Ethernet frame, sent from `source`.
    #[must_use]
    pub fn to_frame(&self, source: MacAddr) -> [u8; SLOW_FRAME_LEN] {
        let mut frame = [0; SLOW_FRAME_LEN];
        frame[..6].copy_from_slice(&SLOW_PROTOCOLS_GROUP.0);
        frame[6..12].copy_from_slice(&source.0);
        frame[12..14].copy_from_slice(&SLOW_PROTOCOLS_ETHERTYPE.to_be_bytes());
        let payload = &mut frame[ETHERNET_LEN..];
        match self {
            SlowFrame::Lacp(pdu) => pdu.write(payload),
            SlowFrame::Marker(pdu) => pdu.write(payload),
        }
        frame
    }
}

/// The `N` bytes at `at`.
fn bytes_at<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..)?.first_chunk().copied()
}

/// The big-endian number at `at`.
fn number_at(from: &[u8], at: usize) -> Option<u16> {
    bytes_at(from, at).map(u16::from_be_bytes)
}
