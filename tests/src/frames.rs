//! Raw Ethernet frames that tests send out of a guest, built byte by byte, so that no library's idea of a valid frame stands
//! between the test and the switch.

/// Broadcast.
pub const BROADCAST: &str = "ff:ff:ff:ff:ff:ff";

/// An ethertype for experiments (IEEE 802 local experimental).
pub const EXPERIMENT: u16 = 0x88b5;

/// The six bytes of a MAC address in text.
///
/// # Panics
/// When the text is no MAC address: a mistake in the test.
pub fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> =
        text.split(':').map(|b| u8::from_str_radix(b, 16).expect("hexadecimal MAC address")).collect();
    bytes.try_into().expect("six bytes")
}

/// A frame of 60 bytes, the least that Ethernet carries without its check sequence.
pub fn ethernet(destination: &str, source: &str, ethertype: u16) -> Vec<u8> {
    let mut frame = [mac(destination), mac(source)].concat();
    frame.extend(ethertype.to_be_bytes());
    frame.resize(60, 0x5a);
    frame
}

/// The same with an 802.1Q tag of VLAN `vlan`.
pub fn tagged(destination: &str, source: &str, vlan: u16) -> Vec<u8> {
    let mut frame = ethernet(destination, source, 0x8100);
    frame[14..16].copy_from_slice(&vlan.to_be_bytes());
    frame[16..18].copy_from_slice(&EXPERIMENT.to_be_bytes());
    frame
}

/// An ARP request that claims `sender_mac` has the IPv4 address `sender`, asking for `target` (RFC 826).
pub fn arp_request(source: &str, sender_mac: &str, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, source, 0x0806);
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(mac(sender_mac));
    arp.extend(sender);
    arp.extend([0; 6]);
    arp.extend(target);
    frame[14..14 + arp.len()].copy_from_slice(&arp);
    frame
}
