//! The rules for the sender's header, one by one, and what receivers get.

use super::super::{BadHeader, MAX_SEGMENTS, MIN_TCP_SEGMENT_SIZE, Mode, Validated, validate};
use super::{ALL, Shape, build, check, head_of, honest};
use crate::packet::{Ethernet, TAG_LEN, vlan};
use avio_proto::control::DiscardReason;
use avio_proto::virtio::features::*;
use avio_proto::virtio::net::NetHeader;
use proptest::prelude::*;

const TCP4: Shape = Shape {
    v6: false,
    udp: false,
    tagged: false,
    ip_options: false,
    tcp_options: false,
    cwr: false,
    fin: false,
};
const TCP6: Shape = Shape { v6: true, ..TCP4 };
const UDP4: Shape = Shape { udp: true, ..TCP4 };
const UDP6: Shape = Shape { v6: true, ..UDP4 };

/// What `validate` says of an honest segmentation frame after `spoil`.
fn spoilt(
    shape: Shape,
    gso_size: u16,
    acked: u64,
    spoil: impl FnOnce(&mut NetHeader, &mut Vec<u8>),
) -> Result<Validated, BadHeader> {
    let mut frame = build(shape, &[7; 5000]);
    let mut header = honest(shape, &frame, gso_size);
    assert!(check(&header, &frame, ALL).is_ok(), "good before it is spoilt");
    spoil(&mut header, &mut frame);
    check(&header, &frame, acked)
}

#[test]
fn plain_frames_need_no_parsing() {
    // Not even an IP packet, and nothing negotiated.
    let got = check(&NetHeader::default(), &[0; 14], 0).unwrap();
    assert!(got.is_plain());
    assert_eq!((got.segment_count(1500), got.wire_len(1500)), (1, 1500));
    for acked in [0, ALL] {
        assert_eq!(got.mode_for(acked), Mode::PassThrough);
        assert_eq!(got.header_for(Mode::PassThrough), NetHeader::default());
    }
}

#[test]
fn unknown_flags_and_data_valid_are_ignored_and_never_passed_on() {
    let frame = build(TCP4, &[0; 100]);
    let flags = |flags| check(&NetHeader { flags, ..honest(TCP4, &frame, 0) }, &frame, ALL);
    assert!(flags(0xfe).unwrap().is_plain());
    let partial = flags(0xff).unwrap();
    assert_eq!(partial, flags(1).unwrap());
    assert_eq!(partial.header_for(Mode::PassThrough).flags, 1);
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let without = |shape, feature: u64| spoilt(shape, 1000, !feature, |_, _| {});
    assert_eq!(without(TCP4, NET_HOST_TSO4), Err(BadHeader::GsoNotNegotiated));
    assert_eq!(without(TCP6, NET_HOST_TSO6), Err(BadHeader::GsoNotNegotiated));
    assert_eq!(without(UDP4, NET_HOST_USO), Err(BadHeader::GsoNotNegotiated));
    assert_eq!(without(UDP6, NET_HOST_USO), Err(BadHeader::GsoNotNegotiated));
    assert_eq!(without(Shape { cwr: true, ..TCP4 }, NET_HOST_ECN), Err(BadHeader::Ecn));
    assert_eq!(without(TCP4, NET_CSUM), Err(BadHeader::ChecksumNotNegotiated));
    assert_eq!(spoilt(TCP4, 0, !NET_CSUM, |_, _| {}), Err(BadHeader::ChecksumNotNegotiated));
    assert!(without(TCP4, NET_HOST_TSO6 | NET_HOST_USO | NET_HOST_ECN).is_ok());
}

#[test]
fn segmentation_types_are_known_and_agree_with_the_packet() {
    let kind = |shape, gso_type| spoilt(shape, 1000, ALL, |h, _| h.gso_type = gso_type);
    for unknown in [2, 3, 6, 0x40, 0x7f, 0x80, 0x83] {
        assert_eq!(kind(TCP4, unknown), Err(BadHeader::GsoUnknown), "{unknown:#x}");
    }
    assert_eq!(kind(TCP4, 4), Err(BadHeader::GsoDisagrees), "TSOv6 of an IPv4 packet");
    assert_eq!(kind(TCP6, 1), Err(BadHeader::GsoDisagrees), "TSOv4 of an IPv6 packet");
    assert_eq!(kind(TCP4, 5), Err(BadHeader::GsoDisagrees), "USO of TCP");
    assert_eq!(kind(UDP4, 1), Err(BadHeader::GsoDisagrees), "TSO of UDP");
    assert_eq!(kind(UDP4, 0x85), Err(BadHeader::Ecn), "UDP has no ECN flags");
    assert_eq!(spoilt(TCP4, 1000, ALL, |h, _| h.flags = 0), Err(BadHeader::GsoWithoutChecksum));
}

#[test]
fn segment_sizes_and_counts_are_bounded() {
    let size = |shape, size| spoilt(shape, 1000, ALL, |h, _| h.gso_size = size);
    assert_eq!(size(TCP4, 0), Err(BadHeader::GsoSize));
    assert_eq!(size(UDP4, 0), Err(BadHeader::GsoSize));
    assert_eq!(size(TCP4, MIN_TCP_SEGMENT_SIZE - 1), Err(BadHeader::GsoSize));
    assert!(size(TCP4, MIN_TCP_SEGMENT_SIZE).is_ok());
    // 5,000 bytes of payload: at 20 per segment 250, at 19 264.
    assert_eq!(size(UDP4, 20).unwrap().segment_count(5042), 250);
    assert_eq!(size(UDP4, 19), Err(BadHeader::TooManySegments));
    assert_eq!(size(UDP4, 1), Err(BadHeader::TooManySegments));
    const { assert!(MAX_SEGMENTS == 256) };
    // One segment is no segmentation: nobody downstream ever sees it as one.
    let single = size(TCP4, 5000).unwrap();
    assert!(!single.is_segmented() && !single.is_plain());
    assert_eq!(single, size(TCP4, 0xffff).unwrap());
    assert_eq!(single.header_for(Mode::PassThrough).gso_size, 0);
    assert!(size(TCP4, 4999).unwrap().is_segmented());
}

#[test]
fn the_checksum_is_where_the_packet_has_one() {
    let place = |shape, start: u16, offset: u16| {
        spoilt(shape, 0, ALL, |h, _| (h.csum_start, h.csum_offset) = (start, offset))
    };
    assert!(place(TCP4, 34, 16).is_ok());
    // On the source address, which the guard has judged: from the IP header, from the Ethernet header, from byte 0.
    assert_eq!(place(TCP4, 14, 12), Err(BadHeader::ChecksumPlace));
    assert_eq!(place(TCP4, 6, 0), Err(BadHeader::ChecksumPlace));
    assert_eq!(place(TCP4, 0, 26), Err(BadHeader::ChecksumPlace));
    assert_eq!(place(TCP4, 33, 17), Err(BadHeader::ChecksumPlace));
    assert_eq!(place(UDP4, 14, 12), Err(BadHeader::ChecksumPlace), "what a tunnel carries is behind");
    // In the transport header, but not its checksum.
    assert_eq!(place(TCP4, 34, 4), Err(BadHeader::ChecksumPlace));
    assert_eq!(place(TCP4, 34, 6), Err(BadHeader::ChecksumPlace), "UDP's place in TCP");
    assert_eq!(place(UDP4, 34, 16), Err(BadHeader::ChecksumPlace), "TCP's place in UDP");
    assert_eq!(place(TCP4, 54, 16), Err(BadHeader::ChecksumPlace), "TCP carries no tunnels");
    assert!(place(UDP4, 92, 16).is_ok(), "UDP does");
    // Segmentation needs the packet's own checksum.
    let tunnelled = spoilt(UDP4, 1000, ALL, |h, _| (h.csum_start, h.csum_offset) = (92, 6));
    assert_eq!(tunnelled, Err(BadHeader::GsoDisagrees));
    // Outside the frame, and inside the frame but outside what is looked at.
    assert_eq!(place(UDP4, 5040, 1), Err(BadHeader::ChecksumOutside));
    assert_eq!(place(UDP4, 0xffff, 0xffff), Err(BadHeader::ChecksumOutside));
    assert_eq!(place(UDP4, 180, 11), Err(BadHeader::HeaderTooLong));
    assert!(place(UDP4, 180, 10).is_ok());
    assert_eq!(BadHeader::HeaderTooLong.reason(), DiscardReason::HeaderTooLong);
    assert_eq!(BadHeader::ChecksumPlace.reason(), DiscardReason::BadHeader);
}

#[test]
fn packets_without_a_partial_checksum_are_refused() {
    let change = |at: usize, value: u8| spoilt(TCP4, 0, ALL, move |_, f| f[at] = value);
    assert_eq!(change(13, 0x06), Err(BadHeader::ChecksumPlace), "ARP");
    assert_eq!(change(20, 0x20), Err(BadHeader::ChecksumPlace), "a first fragment");
    assert_eq!(change(21, 0x01), Err(BadHeader::ChecksumPlace), "a later fragment");
    assert_eq!(change(14, 0x35), Err(BadHeader::Malformed), "no IP version");
    assert_eq!(change(23, 1), Err(BadHeader::ChecksumPlace), "ICMP has it at 2");
    assert!(change(23, 47).is_ok(), "GRE may carry one");
    // SCTP's is a CRC.
    assert_eq!(change(23, 132), Err(BadHeader::ChecksumPlace));
    let icmp6 = spoilt(TCP6, 0, ALL, |h, f| (f[20], h.csum_offset) = (58, 24));
    assert_eq!(icmp6, Err(BadHeader::ChecksumPlace), "on a discovery target");
}

#[test]
fn lengths_agree_with_the_frame() {
    // 5,040 = 0x13b0 bytes of IP packet.
    let total_len = |gso_size, low| spoilt(TCP4, gso_size, ALL, move |_, f| f[17] = low);
    assert_eq!(total_len(1000, 0xaf), Err(BadHeader::LengthDisagrees));
    assert_eq!(total_len(1000, 0xb1), Err(BadHeader::LengthDisagrees));
    assert_eq!(total_len(0, 0xb1), Err(BadHeader::LengthDisagrees));
    assert!(total_len(0, 0xaf).is_ok(), "padding behind an ordinary packet");
    let v6 = spoilt(TCP6, 1000, ALL, |_, f| f[19] ^= 1);
    assert_eq!(v6, Err(BadHeader::LengthDisagrees));
    let jumbo = spoilt(TCP6, 1000, ALL, |_, f| f[18..20].fill(0));
    assert_eq!(jumbo, Err(BadHeader::LengthDisagrees));
    // The transport header's own length.
    assert_eq!(spoilt(TCP4, 1000, ALL, |_, f| f[46] = 0x40), Err(BadHeader::Malformed));
    let cut = |len: usize| {
        let frame = build(Shape { tcp_options: true, ..TCP4 }, &[7; 5000]);
        let header = honest(TCP4, &frame, 1000);
        let l2 = Ethernet::parse(&frame).unwrap();
        validate(&header, &frame[..len], frame.len(), &l2, ALL)
    };
    assert_eq!(cut(65), Err(BadHeader::HeaderTooLong), "TCP options behind the snapshot");
    assert!(cut(66).is_ok());
}

#[test]
fn a_pseudo_header_that_is_not_in_the_packet_is_left_to_the_guest() {
    // A routing header: type 43, segments left 1. The checksum covers the final destination, not the one in the IP header.
    let shape = Shape { ip_options: true, ..TCP6 };
    let route = |h: &mut NetHeader, f: &mut Vec<u8>| {
        f[20] = 43;
        f[54 + 2..54 + 4].copy_from_slice(&[4, 1]);
        let field = usize::from(h.csum_start + h.csum_offset);
        f[field..field + 2].copy_from_slice(&[0x12, 0x34]);
    };
    let mut frame = Vec::new();
    let partial = spoilt(shape, 0, ALL, |h, f| {
        route(h, f);
        frame.clone_from(f);
    });
    assert_eq!(partial.unwrap().completion(head_of(&frame)).initial, 0x1234);
    assert_eq!(spoilt(shape, 1000, ALL, route), Err(BadHeader::GsoDisagrees));
}

const CSUM: u64 = NET_GUEST_CSUM;

#[test]
fn each_receiver_gets_what_it_negotiated() {
    use Mode::*;
    let ecn4 = Shape { cwr: true, ..TCP4 };
    for (shape, gso_size, acked, want) in [
        (TCP4, 0, 0, CompleteChecksum),
        (TCP4, 0, CSUM, PassThrough),
        (TCP4, 1000, 0, SegmentComplete),
        (TCP4, 1000, CSUM, SegmentPartial),
        (TCP4, 1000, CSUM | NET_GUEST_TSO4, PassThrough),
        (TCP4, 1000, CSUM | NET_GUEST_TSO6 | NET_GUEST_USO4 | NET_GUEST_USO6, SegmentPartial),
        // Without GUEST_CSUM nothing else counts.
        (TCP4, 1000, NET_GUEST_TSO4, SegmentComplete),
        (TCP6, 1000, CSUM | NET_GUEST_TSO6, PassThrough),
        (TCP6, 1000, CSUM | NET_GUEST_TSO4, SegmentPartial),
        (UDP4, 1000, CSUM | NET_GUEST_USO4, PassThrough),
        (UDP4, 1000, CSUM | NET_GUEST_USO6, SegmentPartial),
        (UDP6, 1000, CSUM | NET_GUEST_USO6, PassThrough),
        (UDP6, 1000, CSUM | NET_GUEST_USO4, SegmentPartial),
        (ecn4, 1000, CSUM | NET_GUEST_TSO4, SegmentPartial),
        (ecn4, 1000, CSUM | NET_GUEST_TSO4 | NET_GUEST_ECN, PassThrough),
        (ecn4, 0, CSUM, PassThrough),
    ] {
        let frame = build(shape, &[1; 5000]);
        let offload = check(&honest(shape, &frame, gso_size), &frame, ALL).unwrap();
        assert_eq!(offload.mode_for(acked), want, "{shape:?} {gso_size} {acked:#x}");
        assert_eq!(
            offload.wire_len(frame.len()),
            match gso_size {
                0 => frame.len(),
                size => frame.len() - 5000 + usize::from(size),
            }
        );
    }
}

#[test]
fn the_receivers_header_is_rebuilt_from_the_packet() {
    let frame = build(TCP4, &[1; 5000]);
    // Everything that the standard calls a hint is wrong in the guest's header.
    let sent = NetHeader { hdr_len: 9999, num_buffers: 77, flags: 0xff, ..honest(TCP4, &frame, 1448) };
    let offload = check(&sent, &frame, ALL).unwrap();
    let partial = NetHeader { flags: 1, csum_start: 34, csum_offset: 16, ..NetHeader::default() };
    let whole = NetHeader { gso_type: 1, gso_size: 1448, hdr_len: 54, ..partial };
    assert_eq!(offload.header_for(Mode::PassThrough), whole);
    assert_eq!(offload.header_for(Mode::SegmentPartial), partial);
    assert_eq!(offload.header_for(Mode::SegmentComplete), NetHeader::default());
    assert_eq!(offload.header_for(Mode::CompleteChecksum), NetHeader::default());

    for (shape, gso_type, hdr_len) in [(TCP6, 4, 74), (UDP4, 5, 42), (UDP6, 5, 62)] {
        let frame = build(shape, &[1; 5000]);
        let offload = check(&honest(shape, &frame, 1000), &frame, ALL).unwrap();
        let h = offload.header_for(Mode::PassThrough);
        assert_eq!((h.gso_type, h.hdr_len, h.flags), (gso_type, hdr_len, 1), "{shape:?}");
    }
}

#[test]
fn ecn_is_what_the_packet_says() {
    // CWR set but not announced: announced to the receiver all the same. Announced but not set: not passed on.
    let quiet = spoilt(Shape { cwr: true, ..TCP4 }, 1000, ALL, |h, _| h.gso_type = 1).unwrap();
    assert_eq!(quiet.header_for(Mode::PassThrough).gso_type, 0x81);
    let loud = spoilt(TCP4, 1000, ALL, |h, _| h.gso_type = 0x81).unwrap();
    assert_eq!(loud.header_for(Mode::PassThrough).gso_type, 1);
}

#[test]
fn a_tag_moves_every_offset() {
    let tagged = Shape { tagged: true, ..TCP4 };
    for gso_size in [0, 1000] {
        let bare_frame = build(TCP4, &[1; 5000]);
        let bare = check(&honest(TCP4, &bare_frame, gso_size), &bare_frame, ALL).unwrap();
        let tagged_frame = build(tagged, &[1; 5000]);
        let with_tag = check(&honest(tagged, &tagged_frame, gso_size), &tagged_frame, ALL).unwrap();
        assert_eq!(bare.tag_inserted(), with_tag);
        assert_eq!(with_tag.tag_stripped(), bare);
        let mut buffer = [&[0; TAG_LEN], bare_frame.as_slice()].concat();
        assert_eq!(vlan::insert_tag(&mut buffer, TAG_LEN, 120), Some(0));
        assert_eq!(buffer, tagged_frame);
    }
    assert_eq!(Validated::PLAIN.tag_inserted(), Validated::PLAIN);
}

proptest! {
    /// Any header over any bytes: no panic, and what is accepted stays inside the snapshot and off the guarded headers.
    #[test]
    fn no_header_makes_it_panic(
        h in any::<[u8; 12]>(), spoil in proptest::collection::vec((0usize..120, any::<u8>()), 0..6),
        v6 in any::<bool>(), udp in any::<bool>(), ip_options in any::<bool>(),
        honest_fields in any::<[bool; 5]>(), payload_len in 0usize..3000, acked in prop_oneof![Just(ALL), any::<u64>()],
    ) {
        let shape = Shape { v6, udp, ip_options, ..TCP4 };
        let mut frame = build(shape, &vec![9; payload_len]);
        let good = honest(shape, &frame, 1000);
        let mut header = NetHeader::from_bytes(&h);
        if honest_fields[0] { header.flags = good.flags; }
        if honest_fields[1] { header.gso_type = good.gso_type; }
        if honest_fields[2] { header.gso_size = good.gso_size; }
        if honest_fields[3] { header.csum_start = good.csum_start; }
        if honest_fields[4] { header.csum_offset = good.csum_offset; }
        for (at, value) in spoil {
            if let Some(b) = frame.get_mut(at) { *b = value; }
        }
        let Some(l2) = Ethernet::parse(&frame) else { return Ok(()) };
        let head = head_of(&frame);
        let Ok(offload) = validate(&header, head, frame.len(), &l2, acked) else { return Ok(()) };
        if offload.is_plain() { return Ok(()) }
        let completion = offload.completion(head);
        prop_assert!(usize::from(completion.start) >= l2.header_len() + 20);
        prop_assert!(usize::from(completion.field) + 2 <= head.len());
        prop_assert!(offload.segment_count(frame.len()) <= MAX_SEGMENTS);
        let mut copy = head.to_vec();
        completion.apply(&mut copy, Default::default());
        let field = usize::from(completion.field);
        prop_assert_eq!(&copy[..field], &head[..field]);
        prop_assert_eq!(&copy[field + 2..], &head[field + 2..]);
        for mode in [Mode::SegmentPartial, Mode::SegmentComplete] {
            if !offload.is_segmented() { break; }
            let mut segments = super::super::Segmenter::new(&offload, head, frame.len(), mode);
            let mut scratch = [0; super::super::HEAD_CAPACITY];
            let mut count = 0;
            while segments.next_into(&mut scratch).is_some() { count += 1; }
            prop_assert_eq!(count, offload.segment_count(frame.len()));
        }
    }
}
