//! Marker and Marker Response PDUs (IEEE 802.1AX-2014 §6.5.3).

use super::{SUBTYPE_MARKER, VERSION, bytes_at, number_at};
use crate::config::MacAddr;

/// Where the only TLV stands behind subtype and version, and its length.
const AT: usize = 2;
const LEN: u8 = 16;

/// Whether it asks or answers: the TLV's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkerKind {
    /// A Marker Information TLV: answer when everything that came before it has been delivered.
    Marker,
    /// A Marker Response Information TLV.
    Response,
}

impl MarkerKind {
    const fn tlv_type(self) -> u8 {
        match self {
            MarkerKind::Marker => 1,
            MarkerKind::Response => 2,
        }
    }
}

/// A Marker PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkerPdu {
    /// Which of the two.
    pub kind: MarkerKind,
    /// Port number of who asked.
    pub requester_port: u16,
    /// System of who asked.
    pub requester_system: MacAddr,
    /// Chosen by who asked.
    pub transaction: u32,
}

impl MarkerPdu {
    /// The answer to it.
    #[must_use]
    pub const fn response(self) -> MarkerPdu {
        MarkerPdu { kind: MarkerKind::Response, ..self }
    }

    /// Reads what follows the Ethernet header.
    pub(super) fn parse(payload: &[u8]) -> Option<MarkerPdu> {
        let [subtype, version] = bytes_at(payload, 0)?;
        let kind = match bytes_at(payload, AT)? {
            [1, LEN] => MarkerKind::Marker,
            [2, LEN] => MarkerKind::Response,
            _ => return None,
        };
        if subtype != SUBTYPE_MARKER || version == 0 {
            return None;
        }
        Some(MarkerPdu {
            kind,
            requester_port: number_at(payload, AT + 2)?,
            requester_system: MacAddr(bytes_at(payload, AT + 4)?),
            transaction: u32::from_be_bytes(bytes_at(payload, AT + 10)?),
        })
    }

    /// Writes it over `payload`, which is all zero.
    pub(super) fn write(&self, payload: &mut [u8]) {
        payload[..2].copy_from_slice(&[SUBTYPE_MARKER, VERSION]);
        payload[AT..AT + 2].copy_from_slice(&[self.kind.tlv_type(), LEN]);
        payload[AT + 2..AT + 4].copy_from_slice(&self.requester_port.to_be_bytes());
        payload[AT + 4..AT + 10].copy_from_slice(&self.requester_system.0);
        payload[AT + 10..AT + 14].copy_from_slice(&self.transaction.to_be_bytes());
    }
}
