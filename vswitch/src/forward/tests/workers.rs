//! Two workers that share receive rings: nothing lost, doubled or reordered inside a flow, and every frame counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use avio_host::worker::ControlWaker;
use avio_proto::config::MacAddr;
use avio_proto::virtio::net::NetHeader;

use super::rig::{Attach, Guest, Rig, frame};
use crate::forward::{Events, Forwarder};
use crate::table::tests::mac;

/// Frames per sender.
const FRAMES: u32 = 40_000;

/// Sends numbered frames to both receivers in turn, now and then a broadcast; as many as fit each time.
fn generate(guest: &mut Guest, index: u16, next: &mut u32) {
    let tx = &mut guest.tx[0];
    tx.reclaim();
    while *next < FRAMES {
        let to = match *next % 64 {
            63 => MacAddr::BROADCAST,
            n => mac(2 + (n % 2) as u16),
        };
        let mut bytes = frame(to, mac(index), 0x0800, 60);
        bytes[20..24].copy_from_slice(&next.to_be_bytes());
        if tx.put(&NetHeader::default(), &bytes, &[]).is_none() {
            break;
        }
        *next += 1;
    }
    tx.driver.publish();
}

#[test]
fn two_workers_deliver_to_the_same_rings() {
    // Guests 0 and 1 send, one worker each; 2 and 3 receive from both.
    let mut rig = Rig::new((0..4).map(|i| Attach::new(&format!("guest{i}"), mac(i))));
    let table = rig.table();
    let (events, _receiver) = Events::new(ControlWaker::new().unwrap());
    let mut receivers = rig.guests.split_off(2);
    let done = AtomicBool::new(false);
    // Last number seen, by receiver and sender; unicast numbers of one receiver are every other one.
    let mut last = [[None::<u32>; 2]; 2];
    let mut counts = [[0u64; 2]; 2];
    let workers: Vec<_> = thread::scope(|scope| {
        let done = &done;
        let handles: Vec<_> = rig
            .guests
            .iter_mut()
            .enumerate()
            .map(|(i, guest)| {
                let (table, events) = (std::sync::Arc::clone(&table), events.clone());
                scope.spawn(move || {
                    let mut forwarder = Forwarder::new(i, events);
                    let stats = std::sync::Arc::new(avio_host::stats::WorkerStats::default());
                    forwarder.set_stats(std::sync::Arc::clone(&stats));
                    forwarder.publish(table);
                    let mut next = 0;
                    while next < FRAMES || guest.tx[0].driver.has_used() {
                        // Never more on the way than the receivers have buffers for, so that nothing may be lost.
                        generate(guest, i as u16, &mut next);
                        forwarder.forward(&mut guest.queues[0], 64).unwrap();
                        thread::yield_now();
                    }
                    while forwarder.forward(&mut guest.queues[0], 64).unwrap().0 > 0 {}
                    stats
                })
            })
            .collect();
        let receiver = scope.spawn(|| {
            let mut look = |receivers: &mut Vec<Guest>| {
                let mut got = 0;
                for (r, guest) in receivers.iter_mut().enumerate() {
                    for arrived in guest.rx[0].receive(false) {
                        let sender = usize::from(arrived.frame[11]);
                        let number = u32::from_be_bytes(*arrived.frame[20..].first_chunk().unwrap());
                        assert!(last[r][sender].is_none_or(|before| before < number), "reordered or doubled");
                        last[r][sender] = Some(number);
                        counts[r][sender] += 1;
                        got += 1;
                    }
                }
                got
            };
            loop {
                let ended = done.load(Ordering::Acquire);
                if look(&mut receivers) == 0 {
                    if ended {
                        break;
                    }
                    thread::yield_now();
                }
            }
        });
        let workers = handles.into_iter().map(|handle| handle.join().unwrap()).collect();
        done.store(true, Ordering::Release);
        receiver.join().unwrap();
        workers
    });
    for (r, guest) in receivers.iter().enumerate() {
        let stats = guest.state.stats.snapshot();
        assert!(stats.is_consistent(), "{stats:?}");
        let delivered = stats.counters.inbound_unicast_local + stats.counters.inbound_nonunicast_local;
        assert_eq!(delivered, counts[r].iter().sum::<u64>(), "counted is what arrived");
        // Per sender 31 or 32 of 64 to each receiver, and one broadcast to both.
        let addressed = u64::from(FRAMES) / 64 * if r == 0 { 32 + 1 } else { 31 + 1 };
        assert_eq!(stats.offered, 2 * addressed, "every copy was offered, once");
    }
    for guest in &rig.guests {
        let stats = guest.state.stats.snapshot();
        assert_eq!((stats.taken, stats.counters.outbound_discards), (u64::from(FRAMES), 0));
        assert!(stats.is_consistent());
    }
    let waits: u64 = workers.iter().map(|stats| stats.totals().lock_waits).sum();
    println!("{waits} lock waits");
}
