//! The deep depth: where the network and transport headers of an IP packet begin and end.
//!
//! Owns the layouts of RFC 791 and RFC 8200 (extension headers) as far as offsets, addresses and fragments go, and the
//! length of TCP (RFC 9293) and UDP (RFC 768) headers. Called by the offload code, the guard and the flow hash. It never
//! verifies checksums and never follows tunnels.

use super::{Ethernet, ParseError, bytes_at, ethertype};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// At most this many IPv6 extension headers are followed. Real chains have one or two; a bound keeps the walk short, and
/// a longer chain is refused rather than half read.
pub const MAX_EXTENSION_HEADERS: usize = 8;

const IPV4_MIN_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_MIN_LEN: usize = 20;
const UDP_LEN: usize = 8;

/// IP protocol numbers that the switch knows by name (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6, neighbour discovery included.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// Mobility header.
    pub const MOBILITY: u8 = 135;
    /// Host identity protocol.
    pub const HIP: u8 = 139;
    /// Shim6.
    pub const SHIM6: u8 = 140;
}

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// Which part of a datagram the packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first fragment, or an IPv6 packet with a fragment header and no other part: the transport header is here.
    First,
    /// A later fragment: what stands where a transport header would be is payload.
    Later,
}

/// Where the headers of an IP packet are. Offsets are in bytes from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// IPv4 or IPv6.
    pub version: IpVersion,
    /// Where the IP header starts.
    pub l3_offset: usize,
    /// Where the transport header starts (behind options and extension headers).
    pub l4_offset: usize,
    /// Where the packet ends by its own length field; not checked against the frame.
    pub end: usize,
    /// The transport protocol, as the last header before it says.
    pub protocol: u8,
    /// Whole packet or which fragment.
    pub fragment: Fragment,
    /// An IPv6 routing header or an IPv4 source route was seen: the destination in the IP header need not be the one that
    /// transport checksums cover.
    pub has_routing: bool,
}

impl Ip {
    /// Reads the IP headers of a frame of `frame_len` bytes whose first bytes are `head`.
    ///
    /// Errors: `OtherProtocol` when it is not IP; otherwise as [`ParseError`] says.
    // Inlined into its few callers: handed over through memory, the offsets cost more than finding them.
    #[inline(always)]
    pub fn parse(head: &[u8], frame_len: usize, l2: &Ethernet) -> Result<Self, ParseError> {
        match l2.ethertype {
            ethertype::IPV4 => Self::parse_v4(head, frame_len, l2.header_len()),
            ethertype::IPV6 => Self::parse_v6(head, frame_len, l2.header_len()),
            _ => Err(ParseError::OtherProtocol),
        }
    }

    #[inline(always)]
    fn parse_v4(head: &[u8], frame_len: usize, l3_offset: usize) -> Result<Self, ParseError> {
        let h: &[u8; IPV4_MIN_LEN] = bytes_at(head, frame_len, l3_offset)?;
        let header_len = usize::from(h[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([h[2], h[3]]));
        if h[0] >> 4 != 4 || header_len < IPV4_MIN_LEN || total_len < header_len {
            return Err(ParseError::Malformed);
        }
        let l4_offset = l3_offset + header_len;
        if l4_offset > head.len() {
            return Err(if l4_offset > frame_len { ParseError::Short } else { ParseError::BeyondSnapshot });
        }
        let fragment_bits = u16::from_be_bytes([h[6], h[7]]);
        let fragment = match (fragment_bits & 0x1fff, fragment_bits & 0x2000) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        Ok(Self {
            version: IpVersion::V4,
            l3_offset,
            l4_offset,
            end: l3_offset + total_len,
            protocol: h[9],
            fragment,
            has_routing: header_len > IPV4_MIN_LEN
                && has_source_route(&head[l3_offset + IPV4_MIN_LEN..l4_offset]),
        })
    }

    fn parse_v6(head: &[u8], frame_len: usize, l3_offset: usize) -> Result<Self, ParseError> {
        let h: &[u8; IPV6_LEN] = bytes_at(head, frame_len, l3_offset)?;
        if h[0] >> 4 != 6 {
            return Err(ParseError::Malformed);
        }
        let payload_len = usize::from(u16::from_be_bytes([h[4], h[5]]));
        let mut ip = Self {
            version: IpVersion::V6,
            l3_offset,
            l4_offset: l3_offset + IPV6_LEN,
            end: l3_offset + IPV6_LEN + payload_len,
            protocol: h[6],
            fragment: Fragment::Whole,
            has_routing: false,
        };
        for _ in 0..MAX_EXTENSION_HEADERS {
            if !ip.skip_extension(head, frame_len)? {
                return Ok(ip);
            }
        }
        // One more extension header than we follow: refuse, instead of taking it for a transport header.
        if is_extension(ip.protocol) && ip.fragment != Fragment::Later {
            return Err(ParseError::Malformed);
        }
        Ok(ip)
    }

    /// Steps over the extension header at `l4_offset` if `protocol` says there is one; whether it did.
    fn skip_extension(&mut self, head: &[u8], frame_len: usize) -> Result<bool, ParseError> {
        if self.fragment == Fragment::Later || !is_extension(self.protocol) {
            return Ok(false);
        }
        let h: &[u8; 8] = bytes_at(head, frame_len, self.l4_offset)?;
        let len = match self.protocol {
            protocol::FRAGMENT => {
                let offset = u16::from_be_bytes([h[2], h[3]]) & 0xfff8;
                self.fragment = if offset == 0 { Fragment::First } else { Fragment::Later };
                8
            }
            // RFC 4302 §2.2: in words of four bytes, minus two.
            protocol::AUTHENTICATION => (usize::from(h[1]) + 2) * 4,
            // RFC 8200 §4: in words of eight bytes, without the first.
            other => {
                self.has_routing |= other == protocol::ROUTING;
                (usize::from(h[1]) + 1) * 8
            }
        };
        self.protocol = h[0];
        self.l4_offset += len;
        if self.l4_offset > self.end {
            return Err(ParseError::Malformed);
        }
        if self.l4_offset > frame_len {
            return Err(ParseError::Short);
        }
        if self.l4_offset > head.len() {
            return Err(ParseError::BeyondSnapshot);
        }
        Ok(true)
    }

    /// Length in bytes of all headers, the transport header included; for anything but TCP and UDP, and for later
    /// fragments, of all headers before it.
    #[inline]
    pub fn header_len(&self, head: &[u8], frame_len: usize) -> Result<usize, ParseError> {
        if self.fragment == Fragment::Later {
            return Ok(self.l4_offset);
        }
        let transport_len = match self.protocol {
            protocol::TCP => {
                let h: &[u8; TCP_MIN_LEN] = bytes_at(head, frame_len, self.l4_offset)?;
                let len = usize::from(h[12] >> 4) * 4;
                if len < TCP_MIN_LEN {
                    return Err(ParseError::Malformed);
                }
                len
            }
            protocol::UDP => UDP_LEN,
            _ => 0,
        };
        let header_len = self.l4_offset + transport_len;
        if header_len > frame_len {
            Err(ParseError::Short)
        } else if header_len > head.len() {
            Err(ParseError::BeyondSnapshot)
        } else {
            Ok(header_len)
        }
    }

    /// Source and destination port, where the packet has them (TCP, UDP, SCTP; not in any fragment, because later
    /// fragments of the same datagram have none and must be treated alike).
    #[inline]
    #[must_use]
    pub fn ports(&self, head: &[u8]) -> Option<(u16, u16)> {
        if self.fragment != Fragment::Whole
            || !matches!(self.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
        {
            return None;
        }
        let p: &[u8; 4] = head.get(self.l4_offset..)?.first_chunk()?;
        Some((u16::from_be_bytes([p[0], p[1]]), u16::from_be_bytes([p[2], p[3]])))
    }

    /// Source and destination address. `head` must be the snapshot that was parsed.
    #[inline]
    #[must_use]
    pub fn addresses(&self, head: &[u8]) -> Option<(IpAddr, IpAddr)> {
        let at = head.get(self.l3_offset..)?;
        Some(match self.version {
            IpVersion::V4 => {
                let a: &[u8; 8] = at.get(12..)?.first_chunk()?;
                (Ipv4Addr::new(a[0], a[1], a[2], a[3]).into(), Ipv4Addr::new(a[4], a[5], a[6], a[7]).into())
            }
            IpVersion::V6 => {
                let source: &[u8; 16] = at.get(8..)?.first_chunk()?;
                let destination: &[u8; 16] = at.get(24..)?.first_chunk()?;
                (Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into())
            }
        })
    }
}

/// Whether IPv4 options (at most 40 bytes) hold a source route (RFC 791 §3.1, types 131 and 137) or cannot be read to their end.
fn has_source_route(mut options: &[u8]) -> bool {
    loop {
        options = match *options {
            [] | [0, ..] => return false,
            [1, ref rest @ ..] => rest,
            [131 | 137, ..] => return true,
            [_, len, ..] if len >= 2 && usize::from(len) <= options.len() => &options[usize::from(len)..],
            _ => return true,
        };
    }
}

#[inline]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
    )
}
