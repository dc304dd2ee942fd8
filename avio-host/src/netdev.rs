//! What a network device says of its XDP and AF_XDP abilities (the generic netlink family `netdev`, Linux 6.3).
//!
//! Asked when a device of an uplink is opened, on a helper thread; each call has a socket of its own and waits for the kernel's answer, which is there at
//! once. A kernel without the family says nothing, and then nothing is used that a device would have to promise.

use std::io;

use crate::genetlink::{Family, number, put};

const GET_DEVICE: u8 = 1;
const DEVICE_IFINDEX: u16 = 1;
const DEVICE_XDP_FEATURES: u16 = 3;
const DEVICE_RX_METADATA: u16 = 5;
const DEVICE_XSK_FEATURES: u16 = 6;
/// `NETDEV_XDP_ACT_XSK_ZEROCOPY`, `NETDEV_XDP_RX_METADATA_VLAN_TAG`, `NETDEV_XSK_FLAGS_TX_CHECKSUM`.
const ZERO_COPY: u64 = 1 << 3;
const RX_VLAN_TAG: u64 = 1 << 2;
const TX_CHECKSUM: u64 = 1 << 1;

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
    let family = Family::open("netdev")?;
    let mut wanted = Vec::new();
    put(&mut wanted, DEVICE_IFINDEX, &ifindex.to_ne_bytes());
    Ok(parse(&family.ask(GET_DEVICE, &wanted)?))
}

fn parse(attributes: &[u8]) -> XdpAbilities {
    let has =
        |attribute: u16, flag: u64| number(attributes, attribute).is_some_and(|flags| flags & flag != 0);
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
        let mut body = vec![8, 0, 1, 0, 7, 0, 0, 0];
        for (attribute, value) in [(3, 0x63), (5, 7), (6, 0)] {
            body.extend(wide(attribute, value));
        }
        let veth = XdpAbilities { zero_copy: false, rx_vlan_tag: true, tx_checksum: false };
        assert_eq!(parse(&body), veth);
        let all = [wide(3, 0x7f), wide(5, 4), wide(6, 3)].concat();
        assert_eq!(parse(&all), XdpAbilities { zero_copy: true, rx_vlan_tag: true, tx_checksum: true });
        for cut in 0..body.len() {
            let _ = parse(&body[..cut]);
        }
    }
}
