//! Our driver against our device, in every combination of features: what goes in comes out, and nothing else.

use super::*;
use crate::mem::Tail;
use crate::virtio::net::HEADER_LEN;
use proptest::prelude::*;
use std::collections::HashMap;

const BUFFERS_AT: u64 = 0x20_0000;

fn features() -> impl Strategy<Value = u64> {
    (any::<[bool; 5]>()).prop_map(|[packed, event, in_order, indirect, merge]| {
        let bit = |on: bool, mask: u64| if on { mask } else { 0 };
        VERSION_1
            | bit(packed, RING_PACKED)
            | bit(event, RING_EVENT_IDX)
            | bit(in_order, IN_ORDER)
            | bit(indirect, RING_INDIRECT_DESC)
            | bit(merge, NET_MRG_RXBUF)
    })
}

fn size(features: u64, step: usize) -> u16 {
    let split = [1, 2, 4, 8, 32, 256];
    let packed = [1, 2, 3, 7, 33, 256];
    if features & RING_PACKED != 0 { packed[step % 6] } else { split[step % 6] }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 400 }))]

    /// Chains with readable and writable parts go to the device and come back, also out of order where that is allowed.
    #[test]
    fn chains_arrive_whole_and_come_back_once(
        features in features(),
        step in 0usize..6,
        rounds in prop::collection::vec((1usize..9, 0usize..4, 0usize..4, any::<u32>()), 1..40),
    ) {
        let guest = Guest::new(0x10_0000, &[0x20_0000, 0x10_0000]);
        let size = size(features, step);
        let (mut driver, mut device, _) = pair(&guest, size, features);
        let mut arena = ChainArena::new();
        let mut out: HashMap<u16, (Vec<u8>, usize)> = HashMap::new();
        let mut held: Vec<(ChainId, u32)> = Vec::new();
        let mut seed = 0;
        for (chains, readable, writable, choice) in rounds {
            for _ in 0..chains {
                seed += 1;
                let base = BUFFERS_AT + (seed as u64 % 256) * 0x800;
                let r: Vec<GuestBuffer> = (0..readable as u64).map(|i| (base + i * 0x100, 1 + (choice % 200))).collect();
                let w: Vec<GuestBuffer> = (0..writable as u64).map(|i| (base + 0x400 + i * 0x100, 1 + (choice % 100))).collect();
                let mut content = Vec::new();
                for &(addr, len) in &r {
                    let bytes = pattern(seed + addr as usize, len as usize);
                    guest.write(addr, &bytes);
                    content.extend(bytes);
                }
                match driver.add(&r, &w) {
                    Some(token) => {
                        let len = w.iter().map(|b| b.1 as usize).sum();
                        prop_assert!(out.insert(token, (content, len)).is_none(), "token handed out twice");
                    }
                    None => break,
                }
            }
            driver.publish();
            let mut numbers = Vec::new();
            {
                let batch = device.take(&mut arena, 64).unwrap();
                for chain in batch.iter() {
                    let (content, len) = &out[&chain.id.number()];
                    prop_assert_eq!(chain.readable_len, content.len());
                    prop_assert_eq!(chain.writable_len, *len);
                    let mut got = vec![0; content.len()];
                    let mut at = 0;
                    for piece in chain.readable {
                        at += piece.copy_to(&mut got[at..]);
                    }
                    prop_assert_eq!(&got, content);
                    numbers.push((chain.id, chain.writable_len as u32));
                }
            }
            let in_order = features & IN_ORDER != 0;
            if choice & 1 == 0 && held.is_empty() {
                device.complete_taken();
            } else {
                held.extend(numbers);
                if !in_order && choice & 2 != 0 {
                    held.reverse();
                }
                let now = if choice & 4 != 0 { held.len() } else { held.len() / 2 };
                for (id, written) in held.drain(..now) {
                    device.complete(id, written);
                }
            }
            device.publish();
            prop_assert_eq!(device.pending(), held.len());
            let mut used = [Used::default(); 7];
            loop {
                let count = driver.poll_used(&mut used);
                for u in &used[..count] {
                    let (_, len) = out.remove(&u.token).expect("came back twice");
                    prop_assert!(u.len == 0 || u.len as usize == len);
                }
                if count == 0 { break }
            }
            prop_assert_eq!(driver.error(), None);
            prop_assert!(!driver.has_used());
        }
        prop_assert!(guest.canaries_alive());
    }

    /// Frames delivered into a receive ring arrive byte for byte with the right `num_buffers`, from a sender whose buffers
    /// are cut anywhere, and with the right sum.
    #[test]
    fn frames_arrive_whole(
        features in features(),
        step in 2usize..6,
        room in 64u32..2048,
        parts in 1usize..4,
        lens in prop::collection::vec((14usize..5000, 0usize..200, any::<bool>()), 1..60),
        cuts in prop::collection::vec(1usize..700, 1..9),
    ) {
        let guest = Guest::new(0x10_0000, &[0x20_0000, 0x10_0000, 0x20_0000]);
        let sender = Guest::new(0, &[0x2000, 0x1000, 0x4000]);
        let merge = features & NET_MRG_RXBUF != 0;
        let size = size(features, step);
        let (mut driver, mut device, _) = pair(&guest, size, features);
        let mut buffers: HashMap<u16, Vec<GuestBuffer>> = HashMap::new();
        let mut next = 0u64;
        let mut expected: std::collections::VecDeque<Vec<u8>> = Default::default();
        let mut arrived = 0;
        let mut delivered = 0;
        for group in lens.chunks(5) {
            loop {
                let w: Vec<GuestBuffer> = (0..parts as u64)
                    .map(|i| (BUFFERS_AT + (next % 400) * 0x1800 + i * 0x800, room))
                    .collect();
                let Some(token) = driver.add(&[], &w) else { break };
                next += 1;
                buffers.insert(token, w);
            }
            driver.publish();
            let mut delivery = device.deliver();
            for (i, &(len, head_len, summed)) in group.iter().enumerate() {
                let frame = pattern(delivered * 13 + i, len);
                let head_len = head_len.min(len);
                sender.write(0x10, &frame);
                // Cut the sender's buffer into pieces; the head is a snapshot of its start.
                let mut pieces = Vec::new();
                let mut at = 0;
                for cut in cuts.iter().cycle() {
                    let take = (*cut).min(len - at);
                    let mut hint = Default::default();
                    let mut done = 0;
                    while done < take {
                        let piece = sender.table.prefix(&mut hint, 0x10 + (at + done) as u64, take - done).unwrap();
                        done += piece.len();
                        pieces.push(piece);
                    }
                    at += take;
                    if at == len { break }
                }
                let tail = Tail { slices: &pieces, skip: head_len, len: len - head_len };
                let header = [0u8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0xaa, 0xaa];
                let mut head = frame[..head_len].to_vec();
                let result = if summed {
                    delivery.push_summed(&header, &mut head, tail, |head, sum| {
                        assert_eq!(sum.0, reference_sum(&frame[head.len()..]));
                        if let Some(first) = head.first_mut() { *first = 0x77 }
                    })
                } else {
                    delivery.push(&header, &head, tail)
                };
                let fits = (parts as u32 * room) as usize >= HEADER_LEN + len;
                match result {
                    Ok(()) => {
                        delivered += 1;
                        let mut frame = frame;
                        if summed && head_len > 0 { frame[0] = 0x77 }
                        expected.push_back(frame);
                    }
                    Err(Undelivered::TooLong) => prop_assert!(!merge && !fits),
                    Err(other) => {
                        prop_assert_eq!(other, Undelivered::NoBuffer);
                        break;
                    }
                }
            }
            delivery.commit();
            let mut used = vec![Used::default(); 400];
            let count = driver.poll_used(&mut used);
            let mut used = used[..count].iter();
            while let Some(first) = used.next() {
                let mut bytes = read_back(&guest, &mut buffers, first);
                let num = u16::from_le_bytes([bytes[10], bytes[11]]);
                prop_assert!(num >= 1 && (merge || num == 1));
                prop_assert_eq!(&bytes[..10], &[0u8, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
                for _ in 1..num {
                    let more = used.next().expect("num_buffers counts buffers that came with the frame");
                    bytes.extend(read_back(&guest, &mut buffers, more));
                }
                prop_assert_eq!(&bytes[12..], &expected.pop_front().expect("a frame nobody sent")[..]);
                arrived += 1;
            }
            prop_assert_eq!(driver.error(), None);
            prop_assert!(expected.is_empty());
        }
        prop_assert_eq!(arrived, delivered);
        prop_assert_eq!(device.pending(), 0);
        prop_assert!(guest.canaries_alive() && sender.canaries_alive());
    }
}

fn read_back(guest: &Guest, buffers: &mut HashMap<u16, Vec<GuestBuffer>>, used: &Used) -> Vec<u8> {
    let mut left = used.len as usize;
    let mut bytes = Vec::new();
    for (addr, len) in buffers.remove(&used.token).expect("came back twice") {
        let count = left.min(len as usize);
        bytes.extend(guest.read(addr, count));
        left -= count;
    }
    assert_eq!(left, 0, "used length is longer than the buffers");
    bytes
}

/// RFC 1071, sixteen bits at a time.
fn reference_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
