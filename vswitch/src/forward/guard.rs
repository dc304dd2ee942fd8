//! What a guest may send: anti-spoofing and the rest of a port's rules.
//!
//! The engine calls [`inspect`] for each frame that the short check of a plain port does not settle. It reads the snapshot
//! only, and the snapshot is what gets delivered, so a guest that rewrites its buffers meanwhile gains nothing. Each refusal has
//! its own reason; nothing here counts or logs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use avio_proto::control::DiscardReason;

use crate::offload::{BadHeader, Validated, validate};
use crate::packet::neighbour::{Arp, Discovery, DiscoveryKind};
use crate::packet::{Ethernet, Fragment, Ip, IpVersion, ParseError, ethertype, protocol};
use crate::table::{DomainIndex, MacNumber, Port, Table};
use avio_proto::virtio::net::NetHeader;

/// The group bit of an address as a number.
pub(super) const GROUP_BIT: MacNumber = 1 << 40;
/// 01-80-C2-00-00-0x without its last digit: what a bridge never forwards (IEEE 802.1Q table 8-1).
const LINK_LOCAL: MacNumber = 0x0180_c200_0000;
/// LLC and SNAP headers in front of an ethertype (IEEE 802, clause 10.5).
const SNAP: [u8; 3] = [0xaa, 0xaa, 0x03];
/// Smallest ethertype; below, the field is a length (IEEE 802.3 clause 3.2.6).
const ETHERTYPE_MIN: u16 = 0x0600;

/// Ethertypes of protocols between switches and what is attached to them. A guest that speaks one would speak for the host:
const CONTROL_ETHERTYPES: [u16; 6] = [
    0x8808, // MAC control: a pause frame stops the host's link
    0x8809, // slow protocols: LACP takes the host's link into or out of an aggregate
    0x888e, // 802.1X: authenticates, or logs off, the host's port
    0x88cc, // LLDP: the host's neighbours would believe it
    0x88f5, // MVRP: registers VLANs for the host's port
    0x88f6, // MMRP: registers groups for the host's port
];

/// Whether `destination` is one of 01-80-C2-00-00-00 to 0F.
#[inline]
pub(super) fn is_link_local(destination: MacNumber) -> bool {
    destination & !0xf == LINK_LOCAL
}

/// Whether frames of this type stay on their link.
#[inline]
pub(super) fn is_control(kind: u16) -> bool {
    CONTROL_ETHERTYPES.contains(&kind)
}

/// Whether frames of this type need no further look on a port without `ips`: not a tag, not a control protocol.
#[inline]
pub(super) fn is_common(kind: u16) -> bool {
    matches!(kind, ethertype::IPV4 | ethertype::IPV6 | ethertype::ARP)
}

/// A frame that may pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passed {
    pub l2: Ethernet,
    /// VLAN of its tag, which is to be taken out.
    pub vid: Option<u16>,
    pub domain: DomainIndex,
    /// Judged with the tag still in.
    pub offload: Validated,
}

/// Judges a frame of `len` bytes with these first bytes and this virtio-net header, sent on `port` under `features`.
pub(super) fn inspect(
    table: &Table,
    port: &Port,
    features: u64,
    header: &NetHeader,
    head: &[u8],
    len: usize,
) -> Result<Passed, DiscardReason> {
    let l2 = Ethernet::parse(head).ok_or(DiscardReason::TooShort)?;
    check_source(table, port, mac(l2.source))?;
    let (vid, domain) = vlan(port, &l2)?;
    if is_control(l2.ethertype) {
        return Err(DiscardReason::ControlEthertype);
    }
    if is_link_local(mac(l2.destination)) {
        return Err(DiscardReason::LinkLocalDestination);
    }
    let offload = validate(header, head, len, &l2, features).map_err(|bad| match bad {
        BadHeader::HeaderTooLong => DiscardReason::HeaderTooLong,
        _ => DiscardReason::BadHeader,
    })?;
    let tag_len = l2.header_len() - crate::packet::ETHERNET_LEN;
    if offload.wire_len(len) > port.frame_len_max + tag_len {
        return Err(DiscardReason::TooLong);
    }
    if !port.spec.ips.is_empty() {
        check_addresses(port, head, len, &l2)?;
    }
    Ok(Passed { l2, vid, domain, offload })
}

/// The source address: the port's own, or with less strictness anybody's who is not protected.
fn check_source(table: &Table, port: &Port, source: MacNumber) -> Result<(), DiscardReason> {
    if source == port.mac {
        Ok(())
    } else if source == 0 {
        Err(DiscardReason::ZeroSource)
    } else if source & GROUP_BIT != 0 {
        Err(DiscardReason::MulticastSource)
    } else if port.spec.strict && !port.spec.trusted {
        Err(DiscardReason::SpoofedSource)
    } else if table.macs.is_protected(source) {
        Err(DiscardReason::ProtectedMac)
    } else {
        Ok(())
    }
}

/// The domain that a frame belongs to, and the VLAN of its tag. A second tag would take effect once the first is gone, so
/// no port may send one.
fn vlan(port: &Port, l2: &Ethernet) -> Result<(Option<u16>, DomainIndex), DiscardReason> {
    if l2.hides_inner_tag() {
        return Err(DiscardReason::GuestTagged);
    }
    let Some(vid) = l2.vlan_id() else { return Ok((None, port.domain)) };
    // A priority tag (VLAN 0) is a tag all the same (SEMANTICS 3.2).
    port.trunk_domain(vid).map(|domain| (Some(vid), domain)).ok_or(DiscardReason::GuestTagged)
}

/// IP source, ARP sender and neighbour discovery against the addresses in the definition.
fn check_addresses(port: &Port, head: &[u8], len: usize, l2: &Ethernet) -> Result<(), DiscardReason> {
    match l2.ethertype {
        ethertype::IPV4 => check_ip(port, head, len, l2),
        ethertype::IPV6 => {
            check_ip(port, head, len, l2)?;
            check_discovery(port, head, len, l2)
        }
        ethertype::ARP | ethertype::RARP => {
            let arp = Arp::parse(head, len, l2).map_err(|e| unreadable(e, DiscardReason::ArpGuard))?;
            // 0.0.0.0 is a probe (RFC 5227), which claims nothing.
            let ip_is_own = arp.sender_ip.is_unspecified() || owns(port, arp.sender_ip.into());
            if arp.sender_mac == l2.source && ip_is_own { Ok(()) } else { Err(DiscardReason::ArpGuard) }
        }
        // IP in SNAP would pass by the rules above, and there are stacks that take it.
        kind if kind < ETHERTYPE_MIN
            && head.get(l2.header_len()..).is_some_and(|llc| llc.starts_with(&SNAP)) =>
        {
            Err(DiscardReason::IpGuard)
        }
        _ => Ok(()),
    }
}

fn check_ip(port: &Port, head: &[u8], len: usize, l2: &Ethernet) -> Result<(), DiscardReason> {
    let ip = Ip::parse(head, len, l2).map_err(|e| unreadable(e, DiscardReason::IpGuard))?;
    let (source, destination) = ip.addresses(head).ok_or(DiscardReason::HeaderTooLong)?;
    let passes = owns(port, source)
        || match (source, destination) {
            // A guest that asks for its address has none yet (RFC 2131 §4.1).
            (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::BROADCAST)) => {
                ip.ports(head) == Some((68, 67)) && ip.protocol == protocol::UDP
            }
            // Duplicate address detection and the reports around it (RFC 4862 §5.4.2, RFC 3590): to groups, ICMPv6 only.
            (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(to)) => {
                to.is_multicast() && ip.protocol == protocol::ICMPV6
            }
            _ => false,
        };
    if passes { Ok(()) } else { Err(DiscardReason::IpGuard) }
}

fn check_discovery(port: &Port, head: &[u8], len: usize, l2: &Ethernet) -> Result<(), DiscardReason> {
    let ip = Ip::parse(head, len, l2).map_err(|e| unreadable(e, DiscardReason::NdGuard))?;
    if ip.version == IpVersion::V6 && ip.fragment == Fragment::First && ip.protocol == protocol::ICMPV6 {
        // Not out of padding: the type may come with the next fragment.
        let echo =
            ip.l4_offset < ip.end && head.get(ip.l4_offset).is_some_and(|kind| matches!(kind, 128 | 129));
        return if echo { Ok(()) } else { Err(DiscardReason::NdGuard) };
    }
    let message = match Discovery::parse(head, len, &ip) {
        Ok(message) => message,
        Err(ParseError::OtherProtocol) => return Ok(()),
        Err(e) => return Err(unreadable(e, DiscardReason::NdGuard)),
    };
    // Who names its addresses is a host: what only routers say (RFC 4861 §4.2, §4.5; RFC 6105) would make it everybody's way
    // out, unless the operator trusts it.
    if matches!(message.kind, DiscoveryKind::RouterAdvertisement | DiscoveryKind::Redirect)
        && !port.spec.trusted
    {
        return Err(DiscardReason::NdGuard);
    }
    // What the message binds to its sender: an advertisement its target, a solicitation for itself the address it wants.
    let claimed = match message.kind {
        DiscoveryKind::NeighbourAdvertisement => message.target,
        DiscoveryKind::NeighbourSolicitation if message.source.is_unspecified() => message.target,
        _ => None,
    };
    let is_redirect = message.kind == DiscoveryKind::Redirect;
    let options = [message.source_mac, message.target_mac.filter(|_| !is_redirect)];
    let macs_are_own = options.into_iter().flatten().all(|mac| mac == l2.source);
    if macs_are_own && claimed.is_none_or(|address| owns(port, address.into())) {
        Ok(())
    } else {
        Err(DiscardReason::NdGuard)
    }
}

/// Whether the definition gives the port this address. An IPv6 stack cannot do without a link-local address; the one that
/// is made of the port's MAC (RFC 4291 appendix A) is its own without saying.
fn owns(port: &Port, address: IpAddr) -> bool {
    port.spec.ips.contains(&address) || address == IpAddr::V6(link_local(port.spec.mac.0))
}

fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// A header that cannot be read cannot be judged: refused, under the limit's reason if it is ours.
fn unreadable(error: ParseError, reason: DiscardReason) -> DiscardReason {
    if error == ParseError::BeyondSnapshot { DiscardReason::HeaderTooLong } else { reason }
}

/// An address as a number.
pub(super) fn mac([a, b, c, d, e, f]: [u8; 6]) -> MacNumber {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}
