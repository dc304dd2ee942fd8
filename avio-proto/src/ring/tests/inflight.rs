//! The in-flight region: a device that dies between any two steps is followed by one that answers each request once.

use super::*;
use crate::mem::Mapping;

const BUFFERS_AT: u64 = 0x20_0000;
const SIZE: u16 = 8;

/// Where the first device dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    Taken,
    Completed,
    Publishing,
    RingPublished,
    Published,
}

const DEATHS: [Death; 5] =
    [Death::Taken, Death::Completed, Death::Publishing, Death::RingPublished, Death::Published];

struct Rig {
    guest: Guest,
    region: Arc<dyn Mapping>,
    driver: DriverRing,
    setup: RingSetup,
    arena: ChainArena,
}

impl Rig {
    fn new(features: u64) -> Self {
        let guest = Guest::new(0x10_0000, &[0x20_0000]);
        let layout = DriverLayout::at(guest.base, SIZE, features);
        let driver = DriverRing::new(guest.table.clone(), &layout, features).unwrap();
        let setup = setup(&layout, features);
        Self { guest, region: Ram::new(4096), driver, setup, arena: ChainArena::new() }
    }

    /// A device and its log, as a daemon makes them when a ring starts; `base` is what a front-end says that knows no
    /// better.
    fn device(&self) -> (DeviceRing, Inflight) {
        let ring = DeviceRing::new(self.guest.table.clone(), &self.setup).unwrap();
        let log = Inflight::new(&self.region, 64, 1024, &self.setup).unwrap();
        (ring, log)
    }

    /// One request with a readable and a writable part, `seed` in its first byte.
    fn send(&mut self, seed: u8) -> u16 {
        let at = BUFFERS_AT + u64::from(seed) * 0x1000;
        self.guest.write(at, &[seed]);
        let token = self.driver.add(&[(at, 16)], &[(at + 0x100, 4)]).expect("room");
        self.driver.publish();
        token
    }

    fn take(&mut self, ring: &mut DeviceRing, log: &mut Inflight) -> Vec<(ChainId, u8)> {
        let batch = ring.take(&mut self.arena, 64).unwrap();
        let chains: Vec<_> = batch.iter().map(|c| (c.id, c.readable[0].read::<1>(0).unwrap()[0])).collect();
        log.taken(ring, chains.iter().map(|(id, _)| *id));
        chains
    }

    fn retake(&mut self, ring: &mut DeviceRing, log: &mut Inflight) -> Vec<(ChainId, u8)> {
        let count = log.recover(ring);
        (0..count)
            .map(|i| {
                let batch = log.retake(ring, &mut self.arena, i).unwrap();
                let chain = batch.chain(0);
                assert_eq!((chain.readable_len, chain.writable_len), (16, 4));
                (chain.id, chain.readable[0].read::<1>(0).unwrap()[0])
            })
            .collect()
    }

    fn used(&mut self) -> Vec<u16> {
        let mut used = [Used::default(); 16];
        let count = self.driver.poll_used(&mut used);
        used[..count].iter().map(|used| used.token).collect()
    }
}

fn publish(ring: &mut DeviceRing, log: &mut Inflight) {
    log.publishing();
    ring.publish();
    log.published(ring);
}

fn layouts() -> [u64; 3] {
    [VERSION_1, VERSION_1 | RING_PACKED, VERSION_1 | RING_PACKED | RING_INDIRECT_DESC]
}

/// Two chains are out, one is marked: the successor finds the mark at the same one, and both under their numbers.
#[test]
fn a_mark_is_the_successors_to_find_and_goes_with_its_chain() {
    for features in layouts() {
        let mut rig = Rig::new(features);
        let (mut ring, mut log) = rig.device();
        log.recover(&mut ring);
        for seed in [1, 2, 3] {
            rig.send(seed);
        }
        let taken = rig.take(&mut ring, &mut log);
        log.mark(taken[1].0, 9);
        let numbers: Vec<u64> = taken.iter().map(|(chain, _)| log.number(*chain)).collect();
        ring.complete(taken[0].0, 4);
        log.completed(taken[0].0);
        publish(&mut ring, &mut log);
        drop((ring, log));
        let (mut ring, mut log) = rig.device();
        let again = rig.retake(&mut ring, &mut log);
        let found: Vec<_> =
            again.iter().map(|(chain, seed)| (*seed, log.marked(*chain), log.number(*chain))).collect();
        assert_eq!(found, [(2, 9, numbers[1]), (3, 0, numbers[2])], "{features:#x}");
        for (chain, _) in again {
            ring.complete(chain, 4);
            log.completed(chain);
        }
        publish(&mut ring, &mut log);
        assert_eq!(rig.used().len(), 3);
        rig.send(4);
        let next = rig.take(&mut ring, &mut log);
        assert_eq!(log.marked(next[0].0), 0, "{features:#x}: the next chain has no mark");
        assert!(log.number(next[0].0) > numbers[2]);
    }
}

#[test]
fn whatever_step_a_device_dies_at_each_request_is_answered_once() {
    for features in layouts() {
        for death in DEATHS {
            // How far round the ring everything lies matters to both layouts.
            for rounds in 0..2 * usize::from(SIZE) {
                survive(features, death, rounds);
            }
        }
    }
}

fn survive(features: u64, death: Death, rounds: usize) {
    let what = format!("{features:#x} {death:?} after {rounds} rounds");
    let mut rig = Rig::new(features);
    let (mut ring, mut log) = rig.device();
    assert_eq!(log.recover(&mut ring), 0, "{what}");
    for round in 0..rounds {
        let token = rig.send(round as u8);
        let chains = rig.take(&mut ring, &mut log);
        assert_eq!(chains.len(), 1);
        ring.complete(chains[0].0, 0);
        log.completed(chains[0].0);
        publish(&mut ring, &mut log);
        assert_eq!(rig.used(), [token], "{what}");
    }
    let tokens: Vec<u16> = (0..3).map(|i| rig.send(100 + i)).collect();
    let chains = rig.take(&mut ring, &mut log);
    assert_eq!(chains.len(), 3, "{what}");
    // The last one and the first one are answered: the one between stays, and in a packed ring its descriptors go.
    if death != Death::Taken {
        for (id, _) in [chains[2], chains[0]] {
            ring.complete(id, 4);
            log.completed(id);
        }
    }
    if matches!(death, Death::Publishing | Death::RingPublished | Death::Published) {
        log.publishing();
    }
    if matches!(death, Death::RingPublished | Death::Published) {
        ring.publish();
    }
    if death == Death::Published {
        log.published(&ring);
    }
    drop((ring, log));

    let answered = matches!(death, Death::RingPublished | Death::Published);
    let mut seen = rig.used();
    assert_eq!(seen.len(), if answered { 2 } else { 0 }, "{what}");
    let (mut ring, mut log) = rig.device();
    let again = rig.retake(&mut ring, &mut log);
    let seeds: Vec<u8> = again.iter().map(|(_, seed)| *seed).collect();
    let wanted: &[u8] = if answered { &[101] } else { &[100, 101, 102] };
    assert_eq!(seeds, wanted, "{what}: in the order taken");
    // New ones come while the old ones are out.
    let late = rig.send(110);
    let new = rig.take(&mut ring, &mut log);
    assert_eq!(new.iter().map(|(_, seed)| *seed).collect::<Vec<_>>(), [110], "{what}");
    for (id, _) in again.into_iter().chain(new) {
        ring.complete(id, 4);
        log.completed(id);
    }
    publish(&mut ring, &mut log);
    seen.extend(rig.used());
    let mut wanted: Vec<u16> = tokens;
    wanted.push(late);
    seen.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(seen, wanted, "{what}: each once");
    assert_eq!(ring.pending(), 0, "{what}");
    // And the ring is whole: it takes a full round more.
    for round in 0..2 * SIZE {
        let token = rig.send(round as u8);
        let chains = rig.take(&mut ring, &mut log);
        ring.complete(chains[0].0, 0);
        log.completed(chains[0].0);
        publish(&mut ring, &mut log);
        assert_eq!(rig.used(), [token], "{what}");
    }
}

/// Chains that are answered at once: alone, behind one that is out, and before one that stays out, in their batch or in the next.
#[test]
fn whatever_step_a_device_dies_at_what_is_answered_at_once_is_answered_once() {
    for features in layouts() {
        for death in DEATHS {
            for (before, behind, later) in
                [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)]
            {
                for rounds in 0..2 * usize::from(SIZE) {
                    survive_at_once(features, death, rounds, [before, behind, later]);
                }
            }
        }
    }
}

fn survive_at_once(features: u64, death: Death, rounds: usize, [before, behind, later]: [u8; 3]) {
    let what =
        format!("{features:#x} {death:?}, {before} before, {behind} behind, {later} later, {rounds} rounds");
    let mut rig = Rig::new(features);
    let (mut ring, mut log) = rig.device();
    assert_eq!(log.recover(&mut ring), 0, "{what}");
    // Entries and links of earlier lives, in another order than they were taken.
    for round in 0..rounds {
        let mut tokens = [rig.send(round as u8), rig.send(round as u8 + 50)];
        let chains = rig.take(&mut ring, &mut log);
        for (id, _) in chains.iter().rev() {
            ring.complete(*id, 0);
            log.completed(*id);
        }
        publish(&mut ring, &mut log);
        let mut used = rig.used();
        used.sort_unstable();
        tokens.sort_unstable();
        assert_eq!(used, tokens, "{what}");
    }
    let mut tokens: Vec<u16> = (0..before).map(|i| rig.send(100 + i)).collect();
    assert_eq!(rig.take(&mut ring, &mut log).len(), usize::from(before), "{what}");
    tokens.extend((0..2 + behind).map(|i| rig.send(110 + i)));
    let ids: Vec<ChainId> = ring.take(&mut rig.arena, 64).unwrap().iter().map(|chain| chain.id).collect();
    assert_eq!(ids.len(), 2 + usize::from(behind), "{what}");
    log.answered(&ring, ids[..2].iter().copied());
    if behind > 0 {
        log.taken(&ring, ids[2..].iter().copied());
    }
    if death != Death::Taken {
        ids[..2].iter().for_each(|&id| ring.complete(id, 4));
    }
    // A batch may be taken before the one in front of it is published.
    tokens.extend((0..later).map(|i| rig.send(120 + i)));
    if later > 0 {
        rig.take(&mut ring, &mut log);
    }
    if matches!(death, Death::Publishing | Death::RingPublished | Death::Published) {
        log.publishing();
    }
    if matches!(death, Death::RingPublished | Death::Published) {
        ring.publish();
    }
    if death == Death::Published {
        log.published(&ring);
    }
    drop((ring, log));

    let mut seen = rig.used();
    let answered = matches!(death, Death::RingPublished | Death::Published);
    assert_eq!(seen.len(), if answered { 2 } else { 0 }, "{what}");
    let (mut ring, mut log) = rig.device();
    let again = rig.retake(&mut ring, &mut log);
    let new = rig.take(&mut ring, &mut log);
    for (id, _) in again.into_iter().chain(new) {
        ring.complete(id, 4);
        log.completed(id);
    }
    publish(&mut ring, &mut log);
    seen.extend(rig.used());
    seen.sort_unstable();
    tokens.sort_unstable();
    assert_eq!(seen, tokens, "{what}: each once");
    assert_eq!(ring.pending(), 0, "{what}");
    for round in 0..2 * SIZE {
        let token = rig.send(round as u8);
        let chains = rig.take(&mut ring, &mut log);
        ring.complete(chains[0].0, 0);
        log.completed(chains[0].0);
        publish(&mut ring, &mut log);
        assert_eq!(rig.used(), [token], "{what}");
    }
}

#[test]
fn a_region_that_is_not_ours_or_too_short_is_refused() {
    let rig = Rig::new(VERSION_1);
    let new = |len| Inflight::new(&rig.region, 64, len, &rig.setup).map(|_| ());
    assert_eq!(new(143), Err(InflightError::TooShort { len: 143, needed: 144 }));
    assert_eq!(new(144), Ok(()));
    assert_eq!(new(1 << 40), Err(InflightError::TooShort { len: 1 << 40, needed: 144 }));
    let foreign = Ram::new(4096);
    foreign.write(8, &[1, 0, 16, 0]);
    let region: Arc<dyn Mapping> = foreign;
    let error = Inflight::new(&region, 0, 1024, &rig.setup).map(|_| ());
    assert_eq!(error, Err(InflightError::Foreign { version: 1, size: 16, expected: 8 }));
}

/// Bytes as the specification lays them out.
#[test]
fn split_bytes_are_those_of_the_specification() {
    let mut rig = Rig::new(VERSION_1);
    let ram = Ram::new(4096);
    rig.region = ram.clone();
    let (mut ring, mut log) = rig.device();
    log.recover(&mut ring);
    rig.send(1);
    rig.send(2);
    let chains = rig.take(&mut ring, &mut log);
    let head = |i: usize| 64 + 16 + 16 * usize::from(chains[i].0.number());
    assert_eq!(ram.read(64, 16), [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0, 0, 0, 0]);
    assert_eq!(
        ram.read(head(1), 16),
        [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        "the second, counter 1"
    );
    ring.complete(chains[1].0, 0);
    log.completed(chains[1].0);
    publish(&mut ring, &mut log);
    let [low, high] = chains[1].0.number().to_le_bytes();
    assert_eq!(ram.read(64 + 12, 4), [low, high, 1, 0], "last_batch_head, used_idx");
    assert_eq!((ram.read(head(0), 1), ram.read(head(1), 1)), (vec![1], vec![0]));
}

/// A front-end may write anything there.
#[test]
fn garbage_in_the_region_ends_in_an_error_or_in_requests_but_never_in_a_panic() {
    for features in layouts() {
        for seed in 0..200 {
            let mut rig = Rig::new(features);
            let ram = Ram::new(4096);
            ram.write(0, &pattern(seed, 2048));
            ram.write(64 + 8, &[1, 0, 8, 0]);
            for entry in 0..8 {
                ram.write(64 + 32 + 32 * entry, &[(seed >> (entry % 3)) as u8 & 1]);
            }
            rig.region = ram.clone();
            let (mut ring, mut log) = rig.device();
            let count = log.recover(&mut ring).min(64);
            for i in 0..count {
                let Ok(batch) = log.retake(&mut ring, &mut rig.arena, i) else { break };
                let id = batch.chain(0).id;
                ring.complete(id, 0);
                log.completed(id);
            }
            publish(&mut ring, &mut log);
            assert!(ram.canaries_alive() && rig.guest.canaries_alive());
        }
    }
}
