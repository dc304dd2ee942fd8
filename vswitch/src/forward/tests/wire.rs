//! The wire as forwarding sees it, with an intake and an outlet that are memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use avio_guest::{GUEST_BASE, GuestMemory};
use avio_proto::config::{Balance, VlanId};
use avio_proto::control::DiscardReason;
use avio_proto::mem::{GuestSlice, MemoryTable, RegionHint};
use avio_proto::ring::{Batch, ChainArena, Collector, Undelivered};
use avio_proto::virtio::features::{NET_GUEST_CSUM, NET_GUEST_TSO4};
use avio_proto::virtio::net::NetHeader;

use super::offload::{SENDER, all_kinds, check};
use super::rig::{Arrived, Attach, MODERN, Rig, frame, tagged};
use crate::port::uplink::{Distribution, Hold, UplinkPort};
use crate::port::wire::{Intake, Lane, OutFrame, Outlet, WireSource};
use crate::table::tests::{mac, spec};
use crate::table::{PortIndex, PortSpec, PortState, TableBuilder};

const UPLINK: PortIndex = PortIndex(9);
const CHUNK: u64 = 4096;
const CHUNKS: u64 = 128;

/// What came from the wire: frames, with the tag that the kernel took out.
#[derive(Default)]
pub(super) struct Arrivals(VecDeque<(Vec<u8>, Option<u16>)>);

struct MemoryIntake {
    memory: GuestMemory,
    arrivals: Arc<Mutex<Arrivals>>,
    done: Arc<Mutex<usize>>,
}

impl Intake for MemoryIntake {
    fn take<'a>(&'a mut self, arena: &'a mut ChainArena, max: usize) -> io::Result<Batch<'a>> {
        let table: &'a MemoryTable = self.memory.table();
        let mut frames = Collector::new(arena, table);
        let mut arrivals = self.arrivals.lock().unwrap();
        for i in 0..max as u64 {
            let Some((bytes, tag)) = arrivals.0.pop_front() else { break };
            let at = GUEST_BASE + i * CHUNK;
            table.slice(&mut RegionHint::default(), at, bytes.len()).unwrap().copy_from(&bytes);
            // In two pieces, as a driver may give them.
            let cut = (bytes.len() / 2) as u32;
            assert!(frames.push([(at, cut), (at + u64::from(cut), bytes.len() as u32 - cut)], tag));
        }
        Ok(frames.finish())
    }

    fn done(&mut self) {
        *self.done.lock().unwrap() += 1;
    }

    fn wait_fd(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn arm(&mut self) -> bool {
        false
    }
}

struct MemoryOutlet {
    memory: GuestMemory,
    reserved: Vec<usize>,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    room: usize,
}

impl Outlet for MemoryOutlet {
    fn reserve(&mut self, len: usize) -> Result<OutFrame<'_>, Undelivered> {
        if self.reserved.len() == self.room {
            return Err(Undelivered::NoBuffer);
        }
        let at = GUEST_BASE + self.reserved.len() as u64 * CHUNK;
        self.reserved.push(len);
        let whole = self.memory.table().slice(&mut RegionHint::default(), at, len).unwrap();
        let none: GuestSlice<'_> = whole.sub(0, 0);
        Ok([whole.sub(0, 20), whole.sub(20, len), none, none])
    }

    fn commit(&mut self) -> io::Result<()> {
        let mut sent = self.sent.lock().unwrap();
        for (i, len) in self.reserved.drain(..).enumerate() {
            let mut bytes = vec![0; len];
            let at = GUEST_BASE + i as u64 * CHUNK;
            self.memory.table().slice(&mut RegionHint::default(), at, len).unwrap().copy_to(&mut bytes);
            sent.push(bytes);
        }
        Ok(())
    }

    fn rollback(&mut self) {
        self.reserved.clear();
    }
}

fn memory() -> GuestMemory {
    GuestMemory::new("wire", (CHUNK * CHUNKS) as usize).unwrap()
}

/// A rig with an uplink of some members.
pub(super) struct Wired {
    pub rig: Rig,
    arrivals: Arc<Mutex<Arrivals>>,
    done: Arc<Mutex<usize>>,
    source: WireSource,
    lanes: Vec<Vec<Arc<Lane>>>,
    sent: Vec<Arc<Mutex<Vec<Vec<u8>>>>>,
    hold: Option<Arc<Lane>>,
    state: Arc<PortState>,
    spec: PortSpec,
    pub gro: bool,
}

impl Wired {
    pub(super) fn new(guests: impl IntoIterator<Item = Attach>, members: usize) -> Self {
        let arrivals = Arc::<Mutex<Arrivals>>::default();
        let done = Arc::<Mutex<usize>>::default();
        let intake =
            MemoryIntake { memory: memory(), arrivals: Arc::clone(&arrivals), done: Arc::clone(&done) };
        let (mut lanes, mut sent) = (Vec::new(), Vec::new());
        for _ in 0..members {
            let out = Arc::<Mutex<Vec<Vec<u8>>>>::default();
            let outlet =
                MemoryOutlet { memory: memory(), reserved: Vec::new(), sent: Arc::clone(&out), room: 128 };
            lanes.push(vec![Lane::new(Box::new(outlet), 0, 0)]);
            sent.push(out);
        }
        let mut wired = Self {
            rig: Rig::new(guests),
            arrivals,
            done,
            source: WireSource::of_uplink(Box::new(intake), UPLINK, 0, 0, 0),
            lanes,
            sent,
            hold: None,
            state: Arc::new(PortState::new(2, 1)),
            spec: spec("uplink", mac(900)),
            gro: true,
        };
        wired.publish(&Distribution::all_to(0), Balance::LbMac);
        wired
    }

    pub(super) fn publish(&mut self, distribution: &Distribution, balance: Balance) {
        let mut builder = TableBuilder::new(self.rig.epoch);
        let uplink =
            UplinkPort::new(&self.lanes, distribution, balance, self.hold.clone()).with_gro(self.gro);
        builder.uplink(UPLINK, 0, Arc::new(self.spec.clone()), Arc::clone(&self.state), uplink).unwrap();
        self.rig.fill(&mut builder);
        self.rig.forwarder.publish(Arc::new(builder.build()));
    }

    pub(super) fn arrive(&mut self, bytes: &[u8], tag: Option<u16>) {
        self.arrive_all([(bytes.to_vec(), tag)]);
    }

    /// Up to 64 frames, in one batch.
    pub(super) fn arrive_all(&mut self, frames: impl IntoIterator<Item = (Vec<u8>, Option<u16>)>) {
        self.arrivals.lock().unwrap().0.extend(frames);
        while self.rig.forwarder.forward_intake(&mut self.source, 64).unwrap().0 > 0 {}
    }

    fn sent(&self, member: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.sent[member].lock().unwrap())
    }

    pub(super) fn consistent(&self) {
        assert!(self.state.stats.snapshot().is_consistent(), "{:?}", self.state.stats.snapshot());
        for guest in 0..self.rig.guests.len() {
            assert!(self.rig.stats(guest).is_consistent(), "{:?}", self.rig.stats(guest));
        }
    }
}

pub(super) fn guest(n: u16) -> Attach {
    Attach::new(&format!("g{n}"), mac(n))
}

fn in_vlan(n: u16, vlan: u16) -> Attach {
    let mut attach = guest(n);
    attach.spec.vlan = VlanId::new(vlan);
    attach
}

#[test]
fn what_no_guest_has_goes_to_the_wire_and_not_to_guests() {
    let mut wired = Wired::new([guest(1), guest(2)], 1);
    let out = frame(mac(77), mac(1), 0x0800, 300);
    wired.rig.send(0, &out);
    assert_eq!(wired.sent(0), [out]);
    assert_eq!(wired.rig.counts(), [0, 0]);
    wired.rig.send(0, &frame(mac(2), mac(1), 0x0800, 60));
    assert_eq!((wired.sent(0).len(), wired.rig.counts()), (0, vec![0, 1]));
    let counters = wired.rig.stats(0).counters;
    assert_eq!((counters.outbound_unicast_wire, counters.outbound_unicast_local), (1, 1));
    wired.consistent();
}

#[test]
fn broadcasts_go_both_ways_and_never_back() {
    let mut wired = Wired::new([guest(1), guest(2)], 1);
    wired.rig.send(0, &frame(mac(0xfff), mac(1), 0x0806, 60));
    let all = avio_proto::config::MacAddr::BROADCAST;
    wired.rig.send(0, &frame(all, mac(1), 0x0806, 60));
    assert_eq!((wired.sent(0).len(), wired.rig.counts()), (2, vec![0, 1]));
    wired.arrive(&frame(all, mac(77), 0x0806, 60), None);
    assert_eq!((wired.sent(0).len(), wired.rig.counts()), (0, vec![1, 1]));
    let counters = wired.rig.stats(1).counters;
    assert_eq!((counters.inbound_nonunicast_wire, counters.inbound_nonunicast_local), (1, 1));
    assert_eq!(*wired.done.lock().unwrap(), 1);
    wired.consistent();
}

#[test]
fn frames_from_the_wire_reach_the_guest_they_are_for() {
    let mut wired = Wired::new([guest(1)], 1);
    let long = frame(mac(1), mac(77), 0x0800, 1514);
    wired.arrive(&long, None);
    assert_eq!(wired.rig.received(0)[0].frame, long);
    wired.arrive(&frame(mac(50), mac(77), 0x0800, 60), None);
    wired.arrive(&long[..13], None);
    wired.arrive(&frame(mac(1), mac(1), 0x0800, 60), None);
    let lacp = avio_proto::config::MacAddr([1, 0x80, 0xc2, 0, 0, 2]);
    wired.arrive(&frame(lacp, mac(77), 0x8809, 124), None);
    wired.arrive(&frame(mac(1), mac(77), 0x8809, 124), None);
    assert_eq!(wired.rig.received(0).len(), 0);
    let discards = wired.state.stats.snapshot().discards;
    for reason in [
        DiscardReason::NoDestination,
        DiscardReason::TooShort,
        DiscardReason::Reflected,
        DiscardReason::LinkLocalDestination,
        DiscardReason::ControlEthertype,
    ] {
        assert_eq!(discards[reason], 1, "{reason}");
    }
    wired.consistent();
}

#[test]
fn vlans_are_tagged_on_the_wire_and_untagged_towards_access_ports() {
    let mut trunk = guest(3);
    trunk.spec.trunk = vec![VlanId::new(10).unwrap(), VlanId::new(20).unwrap()];
    let mut wired = Wired::new([guest(1), in_vlan(2, 10), trunk], 1);
    wired.rig.send(1, &frame(mac(77), mac(2), 0x0800, 100));
    assert_eq!(wired.sent(0), [tagged(mac(77), mac(2), 10, 0x0800, 100)]);
    wired.rig.send(2, &tagged(mac(77), mac(3), 20, 0x0800, 100));
    assert_eq!(wired.sent(0), [tagged(mac(77), mac(3), 20, 0x0800, 100)]);
    let all = avio_proto::config::MacAddr::BROADCAST;
    // In the frame, with priority bits, and taken out of it by the kernel.
    wired.arrive(&tagged(all, mac(77), 10 | 5 << 13, 0x0800, 100), None);
    wired.arrive(&frame(all, mac(77), 0x0800, 100), Some(10));
    let access = wired.rig.received(1);
    assert_eq!(access.len(), 2);
    assert!(access.iter().all(|got| got.frame == frame(all, mac(77), 0x0800, 100)));
    let seen = wired.rig.received(2);
    assert!(seen.iter().all(|got| got.frame == tagged(all, mac(77), 10, 0x0800, 100)), "{seen:?}");
    assert_eq!(wired.rig.received(0).len(), 0);
    // A priority tag is none; a VLAN of nobody and two tags are refused.
    wired.arrive(&tagged(mac(1), mac(77), 0, 0x0800, 100), None);
    assert_eq!(wired.rig.received(0)[0].frame, frame(mac(1), mac(77), 0x0800, 100));
    wired.arrive(&tagged(mac(1), mac(77), 30, 0x0800, 100), None);
    wired.arrive(&tagged(mac(1), mac(77), 10, 0x8100, 100), None);
    wired.arrive(&tagged(mac(1), mac(77), 10, 0x0800, 100), Some(10));
    wired.arrive(&frame(mac(1), mac(77), 0x88a8, 100), None);
    wired.arrive(&frame(mac(1), mac(77), 0x8100, 14), None);
    let discards = wired.state.stats.snapshot().discards;
    assert_eq!((discards[DiscardReason::WrongVlan], discards[DiscardReason::TooShort]), (4, 1));
    wired.consistent();
}

#[test]
fn the_native_vlan_is_the_untagged_network_and_goes_without_a_tag() {
    let mut wired = Wired::new([guest(1), in_vlan(2, 10), in_vlan(3, 20)], 1);
    wired.spec.vlan = VlanId::new(10);
    wired.publish(&Distribution::all_to(0), Balance::LbMac);
    let all = avio_proto::config::MacAddr::BROADCAST;
    wired.rig.send(1, &frame(all, mac(2), 0x0800, 100));
    assert_eq!(wired.sent(0), [frame(all, mac(2), 0x0800, 100)]);
    assert_eq!(wired.rig.counts(), [1, 0, 0]);
    wired.arrive(&frame(all, mac(77), 0x0800, 100), None);
    wired.arrive(&tagged(all, mac(77), 10, 0x0800, 100), None);
    assert_eq!(wired.rig.counts(), [2, 2, 0]);
    wired.rig.send(2, &frame(all, mac(3), 0x0800, 100));
    assert_eq!(wired.sent(0), [tagged(all, mac(3), 20, 0x0800, 100)]);
}

#[test]
fn a_trunk_that_names_the_native_vlan_has_it_with_its_tag() {
    let mut trunk = guest(4);
    trunk.spec.trunk = [10, 20].into_iter().filter_map(VlanId::new).collect();
    let mut wired = Wired::new([guest(1), in_vlan(2, 10), trunk], 1);
    wired.spec.vlan = VlanId::new(10);
    wired.publish(&Distribution::all_to(0), Balance::LbMac);
    let frames = |wired: &mut Wired, port: usize| -> Vec<Vec<u8>> {
        wired.rig.received(port).into_iter().map(|arrived| arrived.frame).collect()
    };
    // From the wire without a tag, and from a port without one.
    for to in [mac(4), avio_proto::config::MacAddr::BROADCAST] {
        wired.arrive(&frame(to, mac(77), 0x0800, 100), None);
        assert_eq!(frames(&mut wired, 2), [tagged(to, mac(77), 10, 0x0800, 100)]);
        wired.rig.send(1, &frame(to, mac(2), 0x0800, 100));
        assert_eq!(frames(&mut wired, 2), [tagged(to, mac(2), 10, 0x0800, 100)]);
    }
    wired.sent(0);
    wired.rig.send(2, &tagged(mac(77), mac(4), 10, 0x0800, 100));
    assert_eq!(wired.sent(0), [frame(mac(77), mac(4), 0x0800, 100)]);
    wired.rig.send(2, &tagged(mac(2), mac(4), 10, 0x0800, 100));
    assert_eq!(frames(&mut wired, 1).last(), Some(&frame(mac(2), mac(4), 0x0800, 100)));
}

#[test]
fn a_distribution_chooses_the_member_and_may_hold_a_bucket() {
    let mut wired = Wired::new([guest(1)], 2);
    let mut distribution = Distribution::all_to(0);
    distribution.set(5, Some(1));
    distribution.set(6, None);
    wired.publish(&distribution, Balance::LbMac);
    for to in [4, 5, 6, 5] {
        wired.rig.send(0, &frame(mac(to), mac(1), 0x0800, 60));
    }
    assert_eq!((wired.sent(0).len(), wired.sent(1).len()), (1, 2));
    assert_eq!(wired.state.stats.snapshot().discards[DiscardReason::ReceiverDown], 1);
    // A frame for all goes out once.
    wired.rig.send(0, &frame(avio_proto::config::MacAddr::BROADCAST, mac(1), 0x0800, 60));
    assert_eq!((wired.sent(0).len(), wired.sent(1).len()), (1, 0));
    wired.publish(&Distribution::nobody(), Balance::LbMac);
    wired.rig.send(0, &frame(mac(4), mac(1), 0x0800, 60));
    assert_eq!(wired.state.stats.snapshot().discards[DiscardReason::ReceiverDown], 2);
    let counters = wired.rig.stats(0).counters;
    assert_eq!((counters.outbound_unicast_wire, counters.outbound_nonunicast), (5, 1));
    wired.consistent();
}

#[test]
fn held_frames_go_out_in_order_before_any_that_came_later() {
    let mut wired = Wired::new([guest(1), in_vlan(2, 10)], 3);
    wired.hold = Some(Lane::holding(Hold::new().unwrap()));
    let to = |n: u16, number: u8| {
        let mut frame = frame(mac(n), mac(1), 0x0800, 100);
        frame[99] = number;
        frame
    };
    // Buckets 5 and 6 wait; the others do not.
    let mut distribution = Distribution::all_to(0);
    distribution.hold(5);
    distribution.hold(6);
    wired.publish(&distribution, Balance::LbMac);
    for number in 0..100 {
        wired.rig.send(0, &to(5 + u16::from(number) % 3, number));
    }
    wired.rig.send(1, &frame(mac(5), mac(2), 0x0800, 100));
    assert_eq!(wired.sent(0).len(), 33);
    assert_eq!((wired.sent(1).len(), wired.sent(2).len()), (0, 0));
    wired.consistent();
    let before = wired.state.stats.snapshot().counters;
    assert_eq!((before.inbound_unicast_local, before.inbound_octets), (33, 3300));
    // Another table that lets nothing go.
    wired.publish(&distribution, Balance::LbMac);
    assert_eq!(wired.sent(1).len(), 0);
    distribution.set(5, Some(1));
    distribution.set(6, Some(2));
    wired.publish(&distribution, Balance::LbMac);
    let (five, six) = (wired.sent(1), wired.sent(2));
    let numbers = |sent: &[Vec<u8>]| sent.iter().map(|frame| frame[99]).collect::<Vec<_>>();
    assert_eq!(numbers(&five[..34]), (0..100).step_by(3).collect::<Vec<_>>());
    assert_eq!(five[34..], [tagged(mac(5), mac(2), 10, 0x0800, 100)]);
    assert_eq!(numbers(&six), (1..100).step_by(3).collect::<Vec<_>>());
    wired.rig.send(0, &to(5, 200));
    assert_eq!(numbers(&wired.sent(1)), [200]);
    let after = wired.state.stats.snapshot().counters;
    assert_eq!((after.inbound_unicast_local, after.inbound_octets), (102, 10_204));
    // What waits for nobody any more is counted, too.
    distribution.hold(5);
    wired.publish(&distribution, Balance::LbMac);
    wired.rig.send(0, &to(5, 1));
    wired.publish(&Distribution::nobody(), Balance::LbMac);
    assert_eq!(wired.state.stats.snapshot().discards[DiscardReason::ReceiverDown], 1);
    wired.consistent();
}

#[test]
fn held_frames_are_complete_whatever_the_guest_left_to_do() {
    let mut attach = guest(0);
    attach.features = MODERN | SENDER;
    attach.spec.mtu = 9000;
    let mut wired = Wired::new([attach], 1);
    wired.hold = Some(Lane::holding(Hold::new().unwrap()));
    let mut held = Distribution::nobody();
    (0..=255).for_each(|bucket| held.hold(bucket));
    for sent in all_kinds() {
        wired.publish(&held, Balance::LbFlow);
        wired.rig.guests[0].tx[0].put(&sent.header, &sent.frame, &[]).unwrap();
        wired.rig.guests[0].tx[0].driver.publish();
        wired.rig.run();
        assert!(wired.sent(0).is_empty());
        wired.publish(&Distribution::all_to(0), Balance::LbFlow);
        let frames = wired.sent(0).into_iter();
        let payload =
            frames.flat_map(|frame| check(&Arrived { header: NetHeader::default(), frame }, sent.name));
        assert!(payload.collect::<Vec<u8>>() == sent.payload, "{}", sent.name);
    }
    wired.consistent();
}

#[test]
fn held_frames_for_which_there_is_no_room_are_counted() {
    let mut wired = Wired::new([guest(1)], 1);
    wired.hold = Some(Lane::holding(Hold::new().unwrap()));
    let mut held = Distribution::nobody();
    (0..=255).for_each(|bucket| held.hold(bucket));
    wired.publish(&held, Balance::LbMac);
    // A queue that is full is no worse than a ring that is.
    let most = 32 * 1024;
    for _ in 0..most / 64 + 1 {
        (0..64).for_each(|_| wired.rig.guests[0].tx[0].send(&frame(mac(77), mac(1), 0x0800, 60)));
        wired.rig.run();
    }
    assert_eq!(wired.state.stats.snapshot().discards[DiscardReason::NoBuffer], 64);
    let counters = wired.hold.as_ref().unwrap().counters();
    assert_eq!((counters.frames.get(), counters.no_buffer.get()), (most, 64));
    wired.consistent();
    wired.publish(&Distribution::all_to(0), Balance::LbMac);
    assert_eq!(wired.sent(0).len() as u64, most);
    // A ring that never has room: waited for, but not for ever.
    let outlet =
        MemoryOutlet { memory: memory(), reserved: Vec::new(), sent: Arc::clone(&wired.sent[0]), room: 0 };
    wired.lanes[0] = vec![Lane::new(Box::new(outlet), 0, 0)];
    wired.publish(&held, Balance::LbMac);
    wired.rig.send(0, &frame(mac(77), mac(1), 0x0800, 60));
    wired.publish(&Distribution::all_to(0), Balance::LbMac);
    assert_eq!(wired.state.stats.snapshot().discards[DiscardReason::NoBuffer], 65);
    wired.consistent();
}

#[test]
fn flooded_frames_also_reach_the_wire() {
    let mut sniffer = guest(2);
    sniffer.spec.flood = true;
    let mut wired = Wired::new([guest(1), sniffer], 1);
    wired.rig.send(0, &frame(mac(77), mac(1), 0x0800, 60));
    assert_eq!((wired.sent(0).len(), wired.rig.counts()), (1, vec![0, 1]));
    wired.arrive(&frame(mac(78), mac(77), 0x0800, 60), None);
    assert_eq!((wired.sent(0).len(), wired.rig.counts()), (0, vec![0, 1]));
    wired.consistent();
}

#[test]
fn offloaded_frames_leave_cut_and_with_checksums() {
    for vlan in [None, VlanId::new(10)] {
        let mut attach = guest(0);
        attach.features = MODERN | SENDER;
        attach.spec.mtu = 9000;
        attach.spec.vlan = vlan;
        let mut wired = Wired::new([attach], 1);
        for sent in all_kinds() {
            wired.rig.guests[0].tx[0].put(&sent.header, &sent.frame, &[]).unwrap();
            wired.rig.guests[0].tx[0].driver.publish();
            wired.rig.run();
            let mut payload = Vec::new();
            for mut frame in wired.sent(0) {
                if vlan.is_some() {
                    assert_eq!(frame[12..16], [0x81, 0, 0, 10], "{}", sent.name);
                    frame.drain(12..16);
                }
                payload.extend(check(&Arrived { header: NetHeader::default(), frame }, sent.name));
            }
            assert!(payload == sent.payload, "{}", sent.name);
        }
        wired.consistent();
    }
}

#[test]
fn a_batch_that_is_cut_for_the_wire_makes_no_more_frames_than_one_from_it() {
    let mut attach = guest(1);
    attach.features = MODERN | SENDER;
    let mut wired = Wired::new([attach], 1);
    let long = &all_kinds()[3];
    for round in 0..8 {
        let mine = &mut wired.rig.guests[0];
        for _ in 0..8 {
            mine.tx[0].put(&long.header, &long.frame, &[]).unwrap();
        }
        mine.tx[0].driver.publish();
        while wired.rig.forwarder.forward(&mut wired.rig.guests[0].queues[0], 64).unwrap().0 > 0 {
            let count = wired.sent(0).len();
            // It goes by the batches before.
            assert!(round < 2 || count <= 64, "round {round}: {count}");
        }
        wired.rig.guests[0].tx[0].reclaim();
    }
    wired.consistent();
}

#[test]
fn a_full_transmit_ring_is_counted_at_the_uplink() {
    let mut wired = Wired::new([guest(1)], 1);
    {
        let out = Arc::clone(&wired.sent[0]);
        let outlet = MemoryOutlet { memory: memory(), reserved: Vec::new(), sent: out, room: 2 };
        wired.lanes[0] = vec![Lane::new(Box::new(outlet), 0, 0)];
    }
    wired.publish(&Distribution::all_to(0), Balance::LbMac);
    for _ in 0..5 {
        wired.rig.guests[0].tx[0].send(&frame(mac(77), mac(1), 0x0800, 60));
    }
    wired.rig.run();
    assert_eq!(wired.sent(0).len(), 2);
    assert_eq!(wired.state.stats.snapshot().discards[DiscardReason::NoBuffer], 3);
    wired.consistent();
}

#[test]
fn an_address_that_moves_to_the_wire_is_forgotten_where_it_was() {
    let mut trusted = guest(1);
    trusted.spec.trusted = true;
    let mut wired = Wired::new([trusted, guest(2)], 1);
    let now = std::time::Instant::now();
    let table = wired.rig.table();
    wired.rig.learner.learn(&table, PortIndex(0), None, mac(60), now);
    wired.publish(&Distribution::all_to(0), Balance::LbMac);
    wired.rig.send(1, &frame(mac(60), mac(2), 0x0800, 60));
    assert_eq!((wired.sent(0).len(), wired.rig.counts()), (0, vec![1, 0]));
    wired.arrive(&frame(mac(2), mac(60), 0x0800, 60), None);
    let Ok(crate::forward::Event::Learn { port, vlan, mac: moved }) = wired.rig.events.try_recv() else {
        panic!("nothing was reported")
    };
    assert_eq!((port, vlan, moved), (UPLINK, None, mac(60)));
    let table = {
        let mut builder = TableBuilder::new(wired.rig.epoch);
        let spec = Arc::new(wired.spec.clone());
        builder.uplink(UPLINK, 0, spec, Arc::clone(&wired.state), UplinkPort::down()).unwrap();
        wired.rig.fill(&mut builder);
        builder.build()
    };
    wired.rig.learner.learn(&table, port, vlan, moved, now);
    assert!(wired.rig.learner.is_empty());
}

#[test]
fn a_packet_socket_s_header_is_checked_and_passed_on() {
    let mut attach = guest(1);
    attach.features = MODERN | NET_GUEST_CSUM | NET_GUEST_TSO4;
    let mut wired = Wired::new([attach], 1);
    let intake = MemoryIntake {
        memory: memory(),
        arrivals: Arc::clone(&wired.arrivals),
        done: Arc::clone(&wired.done),
    };
    wired.source = WireSource::of_uplink(Box::new(intake), UPLINK, 0, 10, SENDER);
    let sent = &all_kinds()[0];
    let mut bytes = sent.header.to_bytes()[..10].to_vec();
    bytes.extend(&sent.frame);
    wired.arrive(&bytes, None);
    let got = wired.rig.received(0);
    assert_eq!(check(&got[0], sent.name), sent.payload);
    // A checksum that lies beyond the frame.
    wired.arrive(&bytes[..40], None);
    assert_eq!(wired.state.stats.snapshot().discards[DiscardReason::BadHeader], 1);
    let mut plain = NetHeader::default().to_bytes()[..10].to_vec();
    plain.extend(frame(mac(1), mac(77), 0x0800, 200));
    wired.arrive(&plain, None);
    assert_eq!(wired.rig.received(0)[0].frame, frame(mac(1), mac(77), 0x0800, 200));
    wired.consistent();
}
