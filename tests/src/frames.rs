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

/// `frame` with an 802.1Q tag behind its addresses: priority bits, drop bit and VLAN id.
pub fn with_tag(frame: &[u8], tci: u16) -> Vec<u8> {
    let [tag_high, tag_low] = tci.to_be_bytes();
    [&frame[..12], &[0x81, 0, tag_high, tag_low], &frame[12..]].concat()
}

/// A TCP segment over IPv4 with `payload_len` bytes, as a driver leaves it to a device that fills in checksums (virtio 1.3 section 5.1.6.2.1): the
/// IPv4 checksum is right, and TCP's is that of the pseudo header alone.
pub fn tcp_unfinished(destination: &str, source: &str, payload_len: u16) -> Vec<u8> {
    let mut frame = ethernet(destination, source, 0x0800);
    frame.truncate(14);
    let tcp_len = 20 + payload_len;
    let addresses = [192, 0, 2, 1, 192, 0, 2, 2];
    let mut ip = vec![0x45, 0];
    ip.extend((20 + tcp_len).to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    ip.extend(addresses);
    let checksum = !ones_sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(ip);
    let pseudo = [&addresses[..], &[0, 6], &tcp_len.to_be_bytes()].concat();
    // Ports 4000 to 5000, numbers, header of 20 bytes, ACK and PSH.
    frame.extend([0x0f, 0xa0, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0]);
    frame.extend(ones_sum(&pseudo).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..payload_len).map(|n| n as u8));
    frame
}

/// The same with its TCP checksum.
pub fn tcp(destination: &str, source: &str, payload_len: u16) -> Vec<u8> {
    let mut frame = tcp_unfinished(destination, source, payload_len);
    finish(&mut frame);
    frame
}

/// Fills in the checksum of what [`tcp_unfinished`] made.
pub fn finish(frame: &mut [u8]) {
    let checksum = !ones_sum(&frame[34..]);
    frame[50..52].copy_from_slice(&checksum.to_be_bytes());
}

/// Whether the checksums of a TCP segment over IPv4, without options, are right.
pub fn is_right(frame: &[u8]) -> bool {
    let (ip, segment) = frame[14..].split_at(20);
    let pseudo = [&ip[12..20], &[0, 6], &(segment.len() as u16).to_be_bytes()].concat();
    ones_sum(ip) == 0xffff && ones_sum(&[&pseudo, segment].concat()) == 0xffff
}

/// The sum of RFC 1071, not complemented.
fn ones_sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + sum) as u16
}

/// As [`ethernet`] with an 802.1Q tag of VLAN `vlan`.
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
