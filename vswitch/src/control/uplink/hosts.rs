//! Which addresses are the host's, and on which device: what a switch leaves alone there.
//!
//! Computed by [`Uplinks`](super::Uplinks) from the interfaces as they are, each time they change; kept nowhere.

use avio_host::links::{Link, Links};
use avio_proto::config::MacAddr;

/// The host's addresses as one device of an uplink has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostAddresses {
    /// Unicast to these is the kernel's, where it comes in.
    pub own: Vec<MacAddr>,
    /// Unicast to these is the kernel's as if it came in on the interface of that number, which is another of the uplink's devices.
    pub siblings: Vec<(MacAddr, u32)>,
}

impl HostAddresses {
    /// For interface number `index`. `on`: [`host_macs_on`]; `listed`: what the operator leaves to the host on all devices; `devices`: the interface numbers of
    /// all devices of the uplink.
    pub(super) fn new(on: &[(u32, MacAddr)], listed: &[MacAddr], devices: &[u32], index: u32) -> Self {
        let mut own = listed.to_vec();
        own.extend(on.iter().filter(|(on, _)| *on == index).map(|(_, mac)| *mac));
        let mut siblings: Vec<(MacAddr, u32)> = Vec::new();
        for &(other, mac) in on.iter().filter(|(other, _)| *other != index && devices.contains(other)) {
            // Devices may have one address all together: then it is the host's wherever it comes in.
            if !own.contains(&mac) && !siblings.iter().any(|(known, _)| *known == mac) {
                siblings.push((mac, other));
            }
        }
        Self { own, siblings }
    }

    /// What the switch leaves to the kernel on the device; `led`: the kernel is told of the others as well.
    pub(super) fn left(&self, led: bool) -> Vec<MacAddr> {
        let siblings = self.siblings.iter().filter(|_| led).map(|(mac, _)| *mac);
        self.own.iter().copied().chain(siblings).collect()
    }
}

/// Addresses of the host by the interface that frames to them come in through: the interface's own, and those on top of it.
pub(super) fn host_macs_on(links: &Links) -> Vec<(u32, MacAddr)> {
    let of = |link: &Link| {
        let through = if matches!(link.kind.as_deref(), Some("macvlan" | "macvtap" | "vlan" | "ipvlan")) {
            link.parent
        } else {
            None
        };
        [Some(link.index), through].into_iter().flatten().zip([link.mac, link.mac]).collect::<Vec<_>>()
    };
    links.iter().flat_map(of).filter_map(|(index, mac)| mac.map(|mac| (index, mac))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn addresses_on_another_device_of_the_uplink_are_led_there() {
        // Devices 1 and 2 with something on top of each, a third that is no member, and an address that both members have.
        let on =
            [(1, mac(1)), (1, mac(11)), (2, mac(2)), (2, mac(12)), (3, mac(3)), (1, mac(9)), (2, mac(9))];
        let first = HostAddresses::new(&on, &[mac(7)], &[1, 2], 1);
        assert_eq!(first.own, [mac(7), mac(1), mac(11), mac(9)]);
        assert_eq!(first.siblings, [(mac(2), 2), (mac(12), 2)]);
        assert_eq!(first.left(true), [mac(7), mac(1), mac(11), mac(9), mac(2), mac(12)]);
        assert_eq!(first.left(false), first.own);
        // Alone.
        assert_eq!(HostAddresses::new(&on, &[], &[2], 2).siblings, []);
    }
}
