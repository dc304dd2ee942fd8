//! A hostile driver: whatever it writes, nothing panics and nothing outside its memory changes.

use super::*;
use crate::mem::Tail;
use proptest::prelude::*;

/// Where the ring's areas and indirect tables lie; all else is buffers.
const RING_LEN: usize = 0x6000;

/// Random words, with the values that matter made likely.
fn words() -> impl Strategy<Value = Vec<u16>> {
    let word = prop_oneof![
        4 => 0u16..9,
        2 => any::<u16>(),
        1 => Just(0xffffu16),
        1 => Just(0x8000u16),
        2 => prop::sample::select(vec![0x80u16, 0x81, 0x83, 0x84, 0x8000, 0x8001, 0x8080, 4, 5, 2, 3]),
    ];
    prop::collection::vec(word, 64..512)
}

/// A write of some words at some place of the ring.
fn writes() -> impl Strategy<Value = Vec<(usize, u16)>> {
    let place = prop_oneof![3 => 0usize..0x200, 2 => 0x1000usize..0x1080, 1 => 0x2000usize..0x2080, 1 => 0usize..RING_LEN / 2];
    prop::collection::vec((place, any::<u16>()), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 1500 }))]

    #[test]
    fn nothing_panics_and_nothing_outside_is_touched(
        flags in any::<[bool; 5]>(),
        size_step in 0u32..9,
        base in prop_oneof![Just(0u32), Just(0x8000_8000), any::<u32>()],
        fill in words(),
        avail in any::<u16>(),
        steps in prop::collection::vec((0u8..7, writes(), 0usize..3000), 1..12),
    ) {
        let bit = |on: bool, mask: u64| if on { mask } else { 0 };
        let features = bit(flags[0], RING_PACKED) | bit(flags[1], RING_EVENT_IDX) | bit(flags[2], IN_ORDER)
            | bit(flags[3], NET_MRG_RXBUF) | bit(flags[4], VERSION_1);
        // Guest addresses start at 0 so that small random numbers are valid addresses.
        let guest = Guest::build(0, &[RING_LEN, 0x1000, 0x8000], flags[1]);
        let bytes: Vec<u8> = fill.iter().cycle().take(RING_LEN / 2).flat_map(|w| w.to_le_bytes()).collect();
        guest.write(0, &bytes);
        if !flags[0] {
            // A plausible state, so that walks get somewhere: used at base, some chains available.
            guest.write(0x2002, &(base as u16).to_le_bytes());
            guest.write(0x1002, &(base as u16).wrapping_add(avail % 10).to_le_bytes());
        }
        let setup = RingSetup {
            size: 1 << size_step,
            desc_user: USER,
            driver_user: 0x1000 + USER,
            device_user: 0x2000 + USER,
            features,
            base,
            used_log: Some(0x2000),
        };
        let Ok(mut ring) = DeviceRing::new(guest.table.clone(), &setup) else { return Ok(()) };
        let mut arena = ChainArena::new();
        let sender = Guest::new(0, &[0x2000]);
        let slice = sender.table.slice(&mut Default::default(), 0, 0x1fff).unwrap();
        let mut held: Vec<ChainId> = Vec::new();
        for (step, writes, len) in steps {
            for (at, word) in writes {
                guest.write((at * 2).min(RING_LEN - 2) as u64, &word.to_le_bytes());
            }
            match step {
                0 | 1 => {
                    if let Ok(batch) = ring.take(&mut arena, len % 70) {
                        let mut buffer = [0u8; 300];
                        for chain in batch.iter() {
                            let readable: usize = chain.readable.iter().map(|s| s.len()).sum();
                            prop_assert_eq!(readable, chain.readable_len);
                            chain.readable.iter().for_each(|s| { s.copy_to(&mut buffer); });
                            chain.writable.iter().for_each(|s| { s.copy_from(&[0x5a; 300]); });
                        }
                        held = batch.iter().map(|c| c.id).collect();
                    }
                    if step == 0 {
                        held.clear();
                        ring.complete_taken();
                    }
                }
                2 => held.drain(..).for_each(|id| ring.complete(id, len as u32)),
                3 => { ring.publish(); }
                4 => {
                    ring.enable_notifications();
                    ring.disable_notifications();
                }
                _ => {
                    let mut delivery = ring.deliver();
                    for i in 0..4 {
                        let tail = Tail { slices: &[slice], skip: i, len };
                        let _ = delivery.push(&[1; 12], &[2; 100], tail);
                        let _ = delivery.push_summed(&[1; 12], &mut [2; 30], tail, |head, sum| head[0] = sum.0 as u8);
                    }
                    if step == 5 {
                        delivery.commit();
                    }
                }
            }
            let _ = (ring.has_work(), ring.base());
        }
        prop_assert!(guest.canaries_alive());
        prop_assert!(sender.canaries_alive());
        prop_assert!(sender.read(0, 0x2000).iter().all(|&b| b == 0), "the sender is only read");
    }

    /// A hostile device against our driver: wrong indices and IDs end in an error, never in a panic.
    #[test]
    fn the_driver_survives_a_hostile_device(
        flags in any::<[bool; 4]>(),
        rounds in prop::collection::vec((1usize..6, 1usize..4, writes()), 1..12),
    ) {
        let bit = |on: bool, mask: u64| if on { mask } else { 0 };
        let features = bit(flags[0], RING_PACKED) | bit(flags[1], RING_EVENT_IDX) | bit(flags[2], IN_ORDER)
            | bit(flags[3], RING_INDIRECT_DESC);
        let guest = Guest::new(0, &[0x10000]);
        let (mut driver, _, _) = pair(&guest, 8, features);
        let mut used = [Used::default(); 8];
        for (count, parts, writes) in rounds {
            for _ in 0..count {
                driver.add(&vec![(0x8000, 64); parts], &[(0x9000, 64)]);
            }
            driver.publish();
            for (at, word) in writes {
                guest.write((at * 2).min(RING_LEN - 2) as u64, &word.to_le_bytes());
            }
            driver.poll_used(&mut used);
            prop_assert!(driver.free_count() <= 8);
        }
        prop_assert!(guest.canaries_alive());
    }
}

/// Descriptors of length 0 are walked like others, so they must be bounded like others: many heads may name one long chain.
#[test]
fn a_chain_of_nothing_is_as_long_as_any_other() {
    const SIZE: u16 = 4096;
    let guest = Guest::new(0, &[0x20000]);
    let setup = RingSetup {
        size: SIZE,
        desc_user: USER,
        driver_user: 0x10000 + USER,
        device_user: 0x14000 + USER,
        features: VERSION_1,
        base: 0,
        used_log: None,
    };
    // Descriptor i: address 0, length 0, NEXT, i + 1; every head names the first, the last ends the chain.
    for (last, heads, outcome) in
        [(2500, 1, Err(RingError::ChainTooLong)), (1500, 64, Ok(1)), (31, 64, Ok(64))]
    {
        for i in 0..last as u16 {
            let high = 1u64 << 32 | (u64::from(i) + 1) << 48;
            guest.write(u64::from(i) * 16 + 8, &high.to_le_bytes());
        }
        guest.write(last as u64 * 16 + 8, &0u64.to_le_bytes());
        guest.write(0x10002, &(heads as u16).to_le_bytes());
        let mut ring = DeviceRing::new(guest.table.clone(), &setup).unwrap();
        assert_eq!(ring.take(&mut ChainArena::new(), 64).map(|batch| batch.len()), outcome);
    }
}
