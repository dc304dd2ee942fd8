//! Sums against RFC 1071's example, a slow sum and `etherparse`.

use super::super::checksum::{add, at_offset, fold, sum};
use super::super::{Completion, Mode};
use super::{ALL, Shape, build, check, honest, l4_offset, slow_sum, verified};
use avio_proto::virtio::net::NetHeader;
use etherparse::PacketBuilder;
use proptest::prelude::*;

#[test]
fn rfc_1071_section_3() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(sum(&bytes), 0xddf2);
    // "byte order": the sums of its two halves, and of halves that meet at an odd byte.
    assert_eq!(add(sum(&bytes[..4]), sum(&bytes[4..])), 0xddf2);
    assert_eq!(add(sum(&bytes[..3]), at_offset(sum(&bytes[3..]), 3)), 0xddf2);
}

#[test]
fn carries_are_never_lost() {
    assert_eq!(sum(&[0xff; 260]), 0xffff);
    assert_eq!(sum(&[]), 0);
    assert_eq!(sum(&[0x12]), 0x1200);
    assert_eq!(fold(u64::MAX), 0xffff);
    assert_eq!(fold(0xffff_0000_0001), 1);
    assert_eq!(add(0xffff, 0xffff), 0xffff);
    assert_eq!(add(0x8000, 0x8001), 2);
}

#[test]
fn a_udp_checksum_of_zero_is_written_as_ffff() {
    // The last word of the payload is chosen so that the sum is all ones.
    let shape = Shape { udp: true, ..Shape::default() };
    let mut frame = build(shape, &[0; 4]);
    let offload = check(&honest(shape, &frame, 0), &frame, ALL).unwrap();
    let completion = offload.completion(&frame);
    completion.apply(&mut frame, Default::default());
    let field = usize::from(completion.field);
    let checksum = [frame[field], frame[field + 1]];
    let end = frame.len();
    frame[end - 2..].copy_from_slice(&checksum);
    completion.apply(&mut frame, Default::default());
    assert_eq!(frame[field..field + 2], [0xff, 0xff]);
    assert_eq!(verified(&frame)[2..], checksum);
    // The same sum is plain 0 where 0 has no meaning.
    Completion { zero_is_none: false, ..completion }.apply(&mut frame, Default::default());
    assert_eq!(frame[field..field + 2], [0, 0]);
}

#[test]
fn the_checksum_of_a_tunnelled_packet_starts_from_what_the_guest_left() {
    // VXLAN: an inner TCP frame behind UDP and eight bytes of tunnel header.
    let mut inner = build(Shape::default(), b"inside");
    let inner_l4 = l4_offset(&inner);
    let wanted = inner.clone();
    // The guest leaves the pseudo header's sum in the field.
    let mut pseudo = [10, 1, 2, 3, 10, 4, 5, 6, 0, 6, 0, 0];
    pseudo[10..].copy_from_slice(&((inner.len() - inner_l4) as u16).to_be_bytes());
    inner[inner_l4 + 16..inner_l4 + 18].copy_from_slice(&slow_sum(&pseudo).0.to_be_bytes());

    let outer_shape = Shape { udp: true, ..Shape::default() };
    let mut frame = build(outer_shape, &[&[8, 0, 0, 0, 0, 0, 1, 0], inner.as_slice()].concat());
    let start = frame.len() - inner.len() + inner_l4;
    let header = NetHeader { csum_start: start as u16, csum_offset: 16, ..honest(outer_shape, &frame, 0) };
    let offload = check(&header, &frame, ALL).unwrap();
    assert_eq!(offload.mode_for(0), Mode::CompleteChecksum);
    offload.completion(&frame).apply(&mut frame, Default::default());
    assert!(frame.ends_with(&wanted), "the inner packet is as if it had been complete");
}

#[test]
fn icmp_has_a_pseudo_header_over_ipv6_only() {
    let l2 = || PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    l2().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).icmpv4_echo_request(1, 2).write(&mut v4, b"abc").unwrap();
    l2().ipv6([1; 16], [2; 16], 9).icmpv6_echo_request(1, 2).write(&mut v6, b"abc").unwrap();
    for (whole, csum_start) in [(v4, 34u16), (v6, 54)] {
        let header = NetHeader { flags: 1, csum_start, csum_offset: 2, ..NetHeader::default() };
        let mut frame = whole.clone();
        frame[usize::from(csum_start) + 2..usize::from(csum_start) + 4].fill(0x77);
        let offload = check(&header, &frame, ALL).unwrap();
        offload.completion(&frame).apply(&mut frame, Default::default());
        assert_eq!(frame, whole);
    }
}

proptest! {
    #[test]
    fn sum_is_the_slow_sum(bytes in proptest::collection::vec(any::<u8>(), 0..600), cut in 0usize..600) {
        prop_assert_eq!(sum(&bytes), slow_sum(&bytes).0);
        let cut = cut.min(bytes.len());
        prop_assert_eq!(add(sum(&bytes[..cut]), at_offset(sum(&bytes[cut..]), cut)), sum(&bytes));
    }

    /// Whatever the guest left in the field, and wherever the tail starts, odd offsets included, the result is right.
    #[test]
    fn completed_checksums_are_right(
        v6 in any::<bool>(), udp in any::<bool>(), tagged in any::<bool>(),
        ip_options in any::<bool>(), tcp_options in any::<bool>(),
        payload in proptest::collection::vec(any::<u8>(), 0..400),
        garbage in any::<[u8; 2]>(), cut in 0usize..400,
    ) {
        let shape = Shape { v6, udp, tagged, ip_options, tcp_options, ..Shape::default() };
        let mut frame = build(shape, &payload);
        let header = honest(shape, &frame, 0);
        let field = usize::from(header.csum_start + header.csum_offset);
        frame[field..field + 2].copy_from_slice(&garbage);
        let offload = check(&header, &frame, ALL).unwrap();
        let cut = (field + 2 + cut).min(frame.len());
        let completion = offload.completion(&frame[..cut]);
        let (head, tail) = frame.split_at_mut(cut);
        completion.apply(head, slow_sum(tail));
        prop_assert_eq!(verified(&frame), payload);
    }
}
