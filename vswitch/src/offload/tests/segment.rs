//! Segments, put together again and verified by `etherparse`.

use super::super::{HEAD_CAPACITY, Mode, Segmenter};
use super::{
    ALL, FIRST_ID, FIRST_SEQUENCE, Shape, build, check, complete_as_receiver, honest, l4_offset, slow_sum,
    verified,
};
use crate::packet::{TAG_LEN, vlan};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

/// The frames that a receiver gets out of `frame` cut at `gso_size`, with `snapshot_len` bytes of it in the snapshot.
fn cut(shape: Shape, frame: &[u8], gso_size: u16, snapshot_len: usize, mode: Mode) -> Vec<Vec<u8>> {
    let offload = check(&honest(shape, frame, gso_size), frame, ALL).unwrap();
    let (head, tail) = frame.split_at(snapshot_len.min(frame.len()));
    let mut segments = Segmenter::new(&offload, head, frame.len(), mode);
    let mut scratch = [0xee; HEAD_CAPACITY];
    let mut frames = Vec::new();
    while let Some(s) = segments.next_into(&mut scratch) {
        let tail = &tail[s.tail_offset..s.tail_offset + s.tail_len];
        let head = &mut scratch[..s.head_len];
        if let Some(completion) = s.completion {
            completion.apply(head, slow_sum(tail));
        }
        let mut segment = [head, tail].concat();
        if mode == Mode::SegmentPartial {
            complete_as_receiver(&s.header, &mut segment);
        } else {
            assert_eq!(s.header, Default::default());
        }
        frames.push(segment);
        scratch.fill(0xee);
    }
    frames
}

/// Sequence number, FIN, PSH and CWR.
fn tcp_fields(frame: &[u8]) -> (u32, bool, bool, bool) {
    match SlicedPacket::from_ethernet(frame).unwrap().transport {
        Some(TransportSlice::Tcp(t)) => (t.sequence_number(), t.fin(), t.psh(), t.cwr()),
        other => panic!("not TCP: {other:?}"),
    }
}

fn identification(frame: &[u8]) -> u16 {
    match SlicedPacket::from_ethernet(frame).unwrap().net {
        Some(NetSlice::Ipv4(ip)) => ip.header().identification(),
        other => panic!("not IPv4: {other:?}"),
    }
}

#[test]
fn flags_numbers_and_identification_of_three_segments() {
    let shape = Shape { cwr: true, fin: true, ..Shape::default() };
    let payload: Vec<u8> = (0..2500u32).map(|i| i as u8).collect();
    let frame = build(shape, &payload);
    let got = cut(shape, &frame, 1000, 192, Mode::SegmentComplete);
    assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [1054, 1054, 554]);
    // Sequence number, FIN, PSH, CWR: FIN and PSH belong to the last byte, CWR answers once.
    assert_eq!(tcp_fields(&got[0]), (FIRST_SEQUENCE, false, false, true));
    assert_eq!(tcp_fields(&got[1]), (FIRST_SEQUENCE + 1000, false, false, false));
    assert_eq!(tcp_fields(&got[2]), (FIRST_SEQUENCE + 2000, true, true, false));
    assert_eq!(got.iter().map(|f| identification(f)).collect::<Vec<_>>(), [FIRST_ID, 0xffff, 0]);
}

#[test]
fn sequence_numbers_wrap() {
    let frame = build(Shape::default(), &[3; 9000]);
    let got = cut(Shape::default(), &frame, 3000, 192, Mode::SegmentComplete);
    assert_eq!(tcp_fields(&got[2]).0, FIRST_SEQUENCE.wrapping_add(6000));
    assert!(FIRST_SEQUENCE.checked_add(6000).is_none());
}

#[test]
fn the_largest_frame_there_is() {
    for v6 in [false, true] {
        let shape = Shape { v6, tcp_options: true, ..Shape::default() };
        let payload: Vec<u8> =
            (0..65_535 - 20 - 12 - if v6 { 0 } else { 20 }).map(|i: u32| (i % 251) as u8).collect();
        let frame = build(shape, &payload);
        let got = cut(shape, &frame, 1448, 192, Mode::SegmentComplete);
        assert_eq!(got.len(), payload.len().div_ceil(1448));
        assert_eq!(got.iter().flat_map(|f| verified(f)).collect::<Vec<_>>(), payload);
    }
}

#[test]
fn a_tag_for_the_wire_is_in_every_segment() {
    let shape = Shape::default();
    let frame = build(shape, &[5; 4000]);
    let offload = check(&honest(shape, &frame, 1000), &frame, ALL).unwrap().tag_inserted();
    let mut buffer = [&[0; TAG_LEN], &frame[..192]].concat();
    assert_eq!(vlan::insert_tag(&mut buffer, TAG_LEN, 120), Some(0));
    let mut segments = Segmenter::new(&offload, &buffer, frame.len() + TAG_LEN, Mode::SegmentComplete);
    let mut scratch = [0; HEAD_CAPACITY];
    let mut payload_len = 0;
    while let Some(s) = segments.next_into(&mut scratch) {
        let tail = &frame[192 + s.tail_offset..192 + s.tail_offset + s.tail_len];
        s.completion.unwrap().apply(&mut scratch[..s.head_len], slow_sum(tail));
        let segment = [&scratch[..s.head_len], tail].concat();
        assert_eq!(segment[12..16], [0x81, 0, 0, 120]);
        payload_len += verified(&segment).len();
    }
    assert_eq!(payload_len, 4000);
}

proptest! {
    /// Cutting and putting together again gives the payload back; every length and checksum of every segment is right,
    /// wherever the snapshot ends: in the first segment, behind several, at an odd byte.
    #[test]
    fn segments_make_up_the_frame(
        v6 in any::<bool>(), udp in any::<bool>(), tagged in any::<bool>(), ip_options in any::<bool>(),
        tcp_options in any::<bool>(), cwr in any::<bool>(), fin in any::<bool>(), partial in any::<bool>(),
        payload in proptest::collection::vec(any::<u8>(), 50..3000), gso_size in 1u16..1500,
        garbage in any::<[u8; 2]>(), snapshot_len in 118usize..257,
    ) {
        let shape = Shape { v6, udp, tagged, ip_options, tcp_options, cwr: cwr && !udp, fin };
        let smallest = if udp { payload.len().div_ceil(256) as u16 } else { 48 };
        let gso_size = gso_size.max(smallest).min(payload.len() as u16 - 1);
        let mut frame = build(shape, &payload);
        let field = l4_offset(&frame) + if udp { 6 } else { 16 };
        frame[field..field + 2].copy_from_slice(&garbage);

        let mode = if partial { Mode::SegmentPartial } else { Mode::SegmentComplete };
        let got = cut(shape, &frame, gso_size, snapshot_len, mode);
        prop_assert_eq!(got.len(), payload.len().div_ceil(usize::from(gso_size)));
        let mut seen = Vec::new();
        for (i, segment) in got.iter().enumerate() {
            let part = verified(segment);
            if i + 1 < got.len() {
                prop_assert_eq!(part.len(), usize::from(gso_size));
            }
            let header_len = segment.len() - part.len();
            // Everything in front of the IP header is the original's.
            prop_assert_eq!(&segment[..if tagged { 18 } else { 14 }], &frame[..if tagged { 18 } else { 14 }]);
            prop_assert_eq!(header_len, frame.len() - payload.len());
            seen.extend(part);
        }
        prop_assert_eq!(seen, payload);
    }
}
