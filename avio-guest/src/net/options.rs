//! What a network guest asks for.
//!
//! Owns the mapping from plain choices to feature bits, and the check that the back-end gave what cannot be done without.

use crate::session::{PROTOCOL_FEATURES, Session, SessionError};
use avio_proto::virtio::features as f;
use std::time::Duration;

/// Offloads to ask for, in steps that guests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Whole frames with finished checksums only.
    None,
    /// Partial checksums both ways.
    Checksum,
    /// Partial checksums and TCP segmentation both ways.
    Tso,
    /// All of these, and UDP segmentation.
    All,
}

impl Offloads {
    /// Feature bits.
    #[must_use]
    pub fn features(self) -> u64 {
        let csum = f::NET_CSUM | f::NET_GUEST_CSUM;
        let tso = f::NET_HOST_TSO4
            | f::NET_HOST_TSO6
            | f::NET_HOST_ECN
            | f::NET_GUEST_TSO4
            | f::NET_GUEST_TSO6
            | f::NET_GUEST_ECN;
        let uso = f::NET_HOST_USO | f::NET_GUEST_USO4 | f::NET_GUEST_USO6;
        match self {
            Self::None => 0,
            Self::Checksum => csum,
            Self::Tso => csum | tso,
            Self::All => csum | tso | uso,
        }
    }
}

/// Rings, features and buffers of a network guest.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Packed rings; refused if the back-end has none.
    pub packed: bool,
    /// In-order use; refused if the back-end does not offer it.
    pub in_order: bool,
    /// Merge receive buffers, if offered.
    pub mergeable: bool,
    /// Transmit through indirect tables, if offered.
    pub indirect: bool,
    /// Suppress notifications by index, if offered.
    pub event_idx: bool,
    /// Queue pairs, 1..=128.
    pub queue_pairs: u16,
    /// Entries of each ring.
    pub ring_size: u16,
    /// Offloads, as far as offered.
    pub offloads: Offloads,
    /// Guest memory in pages of 2 MiB, which the system must have set aside.
    pub huge_pages: bool,
    /// Longest frame that is sent or, without segmentation, received, in bytes without FCS.
    pub frame_len_max: usize,
    /// Receive buffer length in bytes; `None`: chosen from the above.
    pub rx_buffer_len: Option<usize>,
    /// Longest piece of a transmitted frame per descriptor, in bytes: drivers send long frames in pages or page groups.
    pub tx_piece_len: usize,
    /// The guest listens instead of connecting; callers make the [`crate::Endpoint`] by it.
    pub listen: bool,
    /// vhost-user protocol features to ask for.
    pub protocol_features: u64,
    /// How long to wait for the socket.
    pub connect_timeout: Duration,
    /// How long to wait for a reply.
    pub reply_timeout: Duration,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self {
            packed: false,
            in_order: false,
            mergeable: true,
            indirect: false,
            event_idx: true,
            queue_pairs: 1,
            ring_size: 256,
            offloads: Offloads::None,
            huge_pages: false,
            frame_len_max: 1518,
            rx_buffer_len: None,
            tx_piece_len: 32_768,
            listen: false,
            protocol_features: PROTOCOL_FEATURES,
            connect_timeout: Duration::from_secs(5),
            reply_timeout: Duration::from_secs(5),
        }
    }
}

impl NetOptions {
    /// Feature bits to ask for.
    #[must_use]
    pub fn wanted_features(&self) -> u64 {
        let mut wanted = f::VERSION_1 | f::NET_MAC | f::NET_STATUS | self.offloads.features();
        for (want, bits) in [
            (self.packed, f::RING_PACKED),
            (self.in_order, f::IN_ORDER),
            (self.mergeable, f::NET_MRG_RXBUF),
            (self.indirect, f::RING_INDIRECT_DESC),
            (self.event_idx, f::RING_EVENT_IDX),
            // A Linux guest has control queue and announcements along with several pairs; the bits pass to the back-end.
            (self.queue_pairs > 1, f::NET_MQ | f::NET_CTRL_VQ),
        ] {
            if want {
                wanted |= bits;
            }
        }
        wanted
    }

    /// Refuses a back-end that lacks what was asked for explicitly.
    pub(super) fn check(&self, features: u64, session: &Session) -> Result<(), SessionError> {
        for (want, bit, what) in [
            (true, f::VERSION_1, "VERSION_1"),
            (self.packed, f::RING_PACKED, "packed rings"),
            (self.in_order, f::IN_ORDER, "in-order rings"),
        ] {
            if want && features & bit == 0 {
                return Err(SessionError::Missing { path: session.path().to_owned(), what });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_become_feature_bits() {
        let plain = NetOptions { mergeable: false, event_idx: false, ..NetOptions::default() };
        assert_eq!(plain.wanted_features(), f::VERSION_1 | f::NET_MAC | f::NET_STATUS);
        let rich =
            NetOptions { packed: true, in_order: true, offloads: Offloads::Tso, ..NetOptions::default() };
        let bits = rich.wanted_features();
        for bit in
            [f::RING_PACKED, f::IN_ORDER, f::NET_MRG_RXBUF, f::NET_HOST_TSO4, f::NET_GUEST_TSO6, f::NET_CSUM]
        {
            assert_ne!(bits & bit, 0, "{bit:#x}");
        }
        assert_eq!(bits & f::NET_HOST_USO, 0);
    }
}
