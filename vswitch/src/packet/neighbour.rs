//! What ARP and IPv6 neighbour discovery claim about addresses.
//!
//! Owns the layouts of RFC 826 and RFC 4861 §4. Called by the guard of ports that name their addresses. It reads claims; it
//! never judges them.

use super::{Ethernet, Fragment, Ip, IpVersion, ParseError, bytes_at, ethertype, protocol};
use std::net::{Ipv4Addr, Ipv6Addr};

/// An ARP or RARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 request, 2 reply, 3 and 4 for RARP.
    pub operation: u16,
    /// Who it claims to be, by MAC address.
    pub sender_mac: [u8; 6],
    /// Who it claims to be, by IP address (0.0.0.0 in a probe, RFC 5227).
    pub sender_ip: Ipv4Addr,
    /// MAC address of the other side.
    pub target_mac: [u8; 6],
    /// IP address of the other side.
    pub target_ip: Ipv4Addr,
}

impl Arp {
    /// Reads an ARP or RARP packet. `Malformed` when it is for anything but IPv4 over Ethernet.
    pub fn parse(head: &[u8], frame_len: usize, l2: &Ethernet) -> Result<Self, ParseError> {
        if !matches!(l2.ethertype, ethertype::ARP | ethertype::RARP) {
            return Err(ParseError::OtherProtocol);
        }
        let a: &[u8; 28] = bytes_at(head, frame_len, l2.header_len())?;
        // Hardware type 1, protocol type IPv4, address lengths 6 and 4.
        if a[..6] != [0, 1, 8, 0, 6, 4] {
            return Err(ParseError::Malformed);
        }
        Ok(Self {
            operation: u16::from_be_bytes([a[6], a[7]]),
            sender_mac: [a[8], a[9], a[10], a[11], a[12], a[13]],
            sender_ip: Ipv4Addr::new(a[14], a[15], a[16], a[17]),
            target_mac: [a[18], a[19], a[20], a[21], a[22], a[23]],
            target_ip: Ipv4Addr::new(a[24], a[25], a[26], a[27]),
        })
    }
}

/// Which neighbour discovery message (ICMPv6 type, RFC 4861 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscoveryKind {
    /// 133.
    RouterSolicitation,
    /// 134.
    RouterAdvertisement,
    /// 135.
    NeighbourSolicitation,
    /// 136.
    NeighbourAdvertisement,
    /// 137.
    Redirect,
}

/// A neighbour discovery message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Which message.
    pub kind: DiscoveryKind,
    /// Source in the IP header (unspecified while a guest checks for a duplicate address).
    pub source: Ipv6Addr,
    /// Target address, where the message has one. An advertisement *claims* it; a solicitation from the unspecified
    /// address wants to claim it.
    pub target: Option<Ipv6Addr>,
    /// Source link-layer address option.
    pub source_mac: Option<[u8; 6]>,
    /// Target link-layer address option.
    pub target_mac: Option<[u8; 6]>,
}

impl Discovery {
    /// Reads a neighbour discovery message out of an IPv6 packet.
    ///
    /// `OtherProtocol` when the packet is none. `Malformed` for bad options, for two options of the same kind (receivers differ in
    /// which one they believe) and for fragments (RFC 6980: receivers ignore those, so nobody honest sends one).
    pub fn parse(head: &[u8], frame_len: usize, ip: &Ip) -> Result<Self, ParseError> {
        if ip.version != IpVersion::V6 || ip.protocol != protocol::ICMPV6 {
            return Err(ParseError::OtherProtocol);
        }
        if ip.fragment == Fragment::Later {
            // Whatever it continues cannot be read here; its first part is refused below if it is discovery.
            return Err(ParseError::OtherProtocol);
        }
        let at = ip.l4_offset;
        // Behind the packet's own end there may be padding, which must not be taken for the message type.
        if at >= ip.end {
            return Err(ParseError::Malformed);
        }
        let [icmp_type]: [u8; 1] = *bytes_at(head, frame_len, at)?;
        let (kind, has_target, options_at) = match icmp_type {
            133 => (DiscoveryKind::RouterSolicitation, false, 8),
            134 => (DiscoveryKind::RouterAdvertisement, false, 16),
            135 => (DiscoveryKind::NeighbourSolicitation, true, 24),
            136 => (DiscoveryKind::NeighbourAdvertisement, true, 24),
            137 => (DiscoveryKind::Redirect, true, 40),
            _ => return Err(ParseError::OtherProtocol),
        };
        if ip.fragment != Fragment::Whole || ip.end > frame_len || at + options_at > ip.end {
            return Err(ParseError::Malformed);
        }
        let source: &[u8; 16] = bytes_at(head, frame_len, ip.l3_offset + 8)?;
        let target =
            if has_target { Some(Ipv6Addr::from(*bytes_at::<16>(head, frame_len, at + 8)?)) } else { None };
        let mut message =
            Self { kind, source: Ipv6Addr::from(*source), target, source_mac: None, target_mac: None };
        message.read_options(head, frame_len, at + options_at, ip.end)?;
        Ok(message)
    }

    /// Reads the options between `at` and `end`. Each is at least eight bytes long and must lie in the snapshot, which bounds the walk.
    fn read_options(
        &mut self,
        head: &[u8],
        frame_len: usize,
        mut at: usize,
        end: usize,
    ) -> Result<(), ParseError> {
        while at < end {
            let o: &[u8; 8] = bytes_at(head, frame_len, at)?;
            let len = usize::from(o[1]) * 8;
            if len == 0 || at + len > end {
                return Err(ParseError::Malformed);
            }
            let slot = match o[0] {
                1 => Some(&mut self.source_mac),
                2 => Some(&mut self.target_mac),
                _ => None,
            };
            if let Some(slot) = slot {
                if slot.is_some() || len != 8 {
                    return Err(ParseError::Malformed);
                }
                *slot = Some([o[2], o[3], o[4], o[5], o[6], o[7]]);
            }
            at += len;
        }
        Ok(())
    }
}
