//! What a network device says of its XDP and AF_XDP abilities (the generic netlink family `netdev`, Linux 6.3).
//!
//! Asked when a device of an uplink is opened, on a helper thread; each call has a socket of its own and waits for the kernel's answer, which is there at
//! once. A kernel without the family says nothing, and then nothing is used that a device would have to promise.

use std::io;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use crate::netlink::{Attributes, BUFFER_LEN, HEADER_LEN, Messages, REQUEST};

/// The family whose number is always the same: it tells those of the others.
const CONTROL: u16 = 16;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
const GET_DEVICE: u8 = 1;
const DEVICE_IFINDEX: u16 = 1;
const DEVICE_XDP_FEATURES: u16 = 3;
const DEVICE_RX_METADATA: u16 = 5;
const DEVICE_XSK_FEATURES: u16 = 6;
/// `NETDEV_XDP_ACT_XSK_ZEROCOPY`, `NETDEV_XDP_RX_METADATA_VLAN_TAG`, `NETDEV_XSK_FLAGS_TX_CHECKSUM`.
const ZERO_COPY: u64 = 1 << 3;
const RX_VLAN_TAG: u64 = 1 << 2;
const TX_CHECKSUM: u64 = 1 << 1;
/// `struct genlmsghdr`.
const GENERIC_LEN: usize = 4;

/// What the driver of a device has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XdpAbilities {
    /// AF_XDP without a copy.
    pub zero_copy: bool,
    /// An XDP program can ask for the VLAN tag that was taken out of a frame (Linux 6.8).
    pub rx_vlan_tag: bool,
    /// It sums what an AF_XDP socket without a copy asks for in the metadata of a frame (Linux 6.8).
    pub tx_checksum: bool,
}

/// Asks for the abilities of interface number `ifindex`.
///
/// # Errors
/// The kernel has no such family (`NotFound`), or there is no such interface.
pub fn xdp_abilities(ifindex: u32) -> io::Result<XdpAbilities> {
    let fd =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::GENERIC))?;
    let ask = |kind: u16, command: u8, attribute: u16, value: &[u8]| -> io::Result<Vec<u8>> {
        let request = request(kind, command, attribute, value);
        send(&fd, &request, SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER_LEN];
        let (_, len) = recv(&fd, buffer.as_mut_slice(), RecvFlags::empty())?;
        buffer.truncate(len);
        // An error has no message of the kind that was asked for.
        Messages(&buffer).next().map(|(_, body)| body.to_vec()).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    let family = ask(CONTROL, CONTROL_GET_FAMILY, CONTROL_FAMILY_NAME, b"netdev\0")?;
    let id = number(&family, CONTROL_FAMILY_ID).ok_or(io::ErrorKind::NotFound)?;
    let device = ask(id as u16, GET_DEVICE, DEVICE_IFINDEX, &ifindex.to_ne_bytes())?;
    Ok(parse(&device))
}

/// A request with one attribute.
fn request(kind: u16, command: u8, attribute: u16, value: &[u8]) -> Vec<u8> {
    const VERSION: u8 = 1;
    let attribute_len = 4 + value.len();
    let len = (HEADER_LEN + GENERIC_LEN + attribute_len).next_multiple_of(4);
    let mut request = Vec::with_capacity(len);
    request.extend((len as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    // Sequence number, port; then `struct genlmsghdr`.
    request.extend([0; 8]);
    request.extend([command, VERSION, 0, 0]);
    request.extend((attribute_len as u16).to_ne_bytes());
    request.extend(attribute.to_ne_bytes());
    request.extend(value);
    request.resize(len, 0);
    request
}

/// The number in the attribute `wanted` of a message, in as many bytes as it has.
fn number(body: &[u8], wanted: u16) -> Option<u64> {
    let value = Attributes(body.get(GENERIC_LEN..)?).find(|(kind, _)| *kind == wanted)?.1;
    let mut bytes = [0; 8];
    // Little-endian, as the processors that this is built for.
    bytes.get_mut(..value.len())?.copy_from_slice(value);
    Some(u64::from_le_bytes(bytes))
}

fn parse(body: &[u8]) -> XdpAbilities {
    let has = |attribute: u16, flag: u64| number(body, attribute).is_some_and(|flags| flags & flag != 0);
    XdpAbilities {
        zero_copy: has(DEVICE_XDP_FEATURES, ZERO_COPY),
        rx_vlan_tag: has(DEVICE_RX_METADATA, RX_VLAN_TAG),
        tx_checksum: has(DEVICE_XSK_FEATURES, TX_CHECKSUM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_no_metadata() {
        // A kernel before 6.3 has no such family; on any other loopback has neither tags nor queues of hardware.
        match xdp_abilities(1) {
            Ok(abilities) => assert_eq!(abilities, XdpAbilities::default()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
        }
        assert!(xdp_abilities(u32::MAX).is_err());
    }

    /// The answer about a veth of Linux 6.18, and what a driver with everything would say; lengths first.
    #[test]
    fn abilities_are_read() {
        let wide = |attribute: u16, value: u64| {
            [&12u16.to_ne_bytes()[..], &attribute.to_ne_bytes(), &value.to_le_bytes()].concat()
        };
        let mut body = vec![1, 1, 0, 0, 8, 0, 1, 0, 7, 0, 0, 0];
        for (attribute, value) in [(3, 0x63), (5, 7), (6, 0)] {
            body.extend(wide(attribute, value));
        }
        let veth = XdpAbilities { zero_copy: false, rx_vlan_tag: true, tx_checksum: false };
        assert_eq!(parse(&body), veth);
        let all = [&body[..4], &wide(3, 0x7f), &wide(5, 4), &wide(6, 3)].concat();
        assert_eq!(parse(&all), XdpAbilities { zero_copy: true, rx_vlan_tag: true, tx_checksum: true });
        for cut in 0..body.len() {
            let _ = parse(&body[..cut]);
        }
    }
}
