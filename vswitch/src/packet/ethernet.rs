//! The cheap depth: Ethernet addresses, type and at most one 802.1Q tag.
//!
//! Owns the layout of IEEE 802.3 §3.1 frames and 802.1Q §9 tags. Called for every frame by the forwarding engine. It never
//! looks behind the first 18 bytes.

/// Length in bytes of an untagged Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// Length in bytes of an 802.1Q tag.
pub const TAG_LEN: usize = 4;

/// Ethernet types that the switch knows by name.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// Address resolution (RFC 826).
    pub const ARP: u16 = 0x0806;
    /// Reverse address resolution: what a guest announces itself with after a migration (RFC 903).
    pub const RARP: u16 = 0x8035;
    /// Customer tag (802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// Service tag (802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// Tag type of older double-tagging switches.
    pub const OLD_SERVICE_VLAN: u16 = 0x9100;
}

/// Whether this type announces a VLAN tag of any kind.
#[inline]
#[must_use]
pub fn is_tag_type(ethertype: u16) -> bool {
    matches!(ethertype, ethertype::VLAN | ethertype::SERVICE_VLAN | ethertype::OLD_SERVICE_VLAN)
}

/// The Ethernet header of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
    /// Type behind the tag if there is one, else the only type; below 1536 it is an 802.3 length.
    pub ethertype: u16,
    /// Priority, drop and VLAN id bits of an 802.1Q (0x8100) tag.
    pub tag: Option<u16>,
}

impl Ethernet {
    /// Reads the header. `None` when the frame ends inside it.
    ///
    /// Only one tag of type 0x8100 is taken off; any further or other tag stays visible as `ethertype`, so that
    /// [`Self::is_tagged`] and [`Self::hides_inner_tag`] see it.
    #[inline]
    #[must_use]
    pub fn parse(head: &[u8]) -> Option<Self> {
        let h: &[u8; ETHERNET_LEN] = head.first_chunk()?;
        let mut frame = Self {
            destination: [h[0], h[1], h[2], h[3], h[4], h[5]],
            source: [h[6], h[7], h[8], h[9], h[10], h[11]],
            ethertype: u16::from_be_bytes([h[12], h[13]]),
            tag: None,
        };
        if frame.ethertype == ethertype::VLAN {
            let t: &[u8; TAG_LEN] = head[ETHERNET_LEN..].first_chunk()?;
            frame.tag = Some(u16::from_be_bytes([t[0], t[1]]));
            frame.ethertype = u16::from_be_bytes([t[2], t[3]]);
        }
        Some(frame)
    }

    /// Length in bytes of this header with its tag; what follows is the network header.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        if self.tag.is_some() { ETHERNET_LEN + TAG_LEN } else { ETHERNET_LEN }
    }

    /// VLAN id of the tag, 0..=4095 (0 is a priority tag without a VLAN).
    #[inline]
    #[must_use]
    pub fn vlan_id(&self) -> Option<u16> {
        self.tag.map(|tci| tci & 0x0fff)
    }

    /// Whether the frame carries a VLAN tag of any kind; an access port refuses such frames from its guest.
    #[inline]
    #[must_use]
    pub fn is_tagged(&self) -> bool {
        self.tag.is_some() || is_tag_type(self.ethertype)
    }

    /// Whether there is a tag that was not taken off: a second one, or one of another type. After the outer tag is stripped
    /// it would take effect, so a trunk port refuses these.
    #[inline]
    #[must_use]
    pub fn hides_inner_tag(&self) -> bool {
        is_tag_type(self.ethertype)
    }
}
