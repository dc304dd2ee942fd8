//! The counters are exact: identities under random traffic among random ports.

use avio_proto::config::{MacAddr, VlanId};
use proptest::prelude::*;

use super::rig::{Attach, Rig, frame, tagged};
use crate::table::tests::mac;
use avio_proto::virtio::net::NetHeader;

/// One frame to be sent.
#[derive(Debug, Clone)]
struct Sent {
    from: usize,
    to: u16,
    source_off: u16,
    kind: u8,
    len: usize,
    flags: u8,
}

fn sent() -> impl Strategy<Value = Sent> {
    (
        0..6usize,
        0..10u16,
        prop_oneof![9 => Just(0u16), 1 => Just(1)],
        0..12u8,
        0..1700usize,
        prop_oneof![9 => Just(0u8), 1 => 0..4u8],
    )
        .prop_map(|(from, to, source_off, kind, len, flags)| Sent {
            from,
            to,
            source_off,
            kind,
            len,
            flags,
        })
}

impl Sent {
    fn bytes(&self) -> Vec<u8> {
        let to = match self.to {
            8 => MacAddr::BROADCAST,
            9 => MacAddr([1, 0x80, 0xc2, 0, 0, 2]),
            n => mac(n),
        };
        let from = mac(self.from as u16 + self.source_off);
        let mut bytes = match self.kind {
            0 => tagged(to, from, 10, 0x0800, self.len),
            1 => frame(to, from, 0x88cc, self.len),
            2 => frame(to, from, 0x1234, self.len),
            _ => frame(to, from, 0x0800, self.len),
        };
        bytes.truncate(self.len);
        bytes
    }
}

fn attach() -> Vec<Attach> {
    (0..6u16)
        .map(|i| {
            let mut attach = Attach::new(&format!("guest{i}"), mac(i));
            match i {
                1 => attach.rx_count = 5,
                2 => attach.spec.trunk = vec![VlanId::new(10).unwrap()],
                3 => (attach.spec.vlan, attach.spec.strict) = (VlanId::new(10), false),
                4 => (attach.spec.flood, attach.spec.isolated) = (true, true),
                5 => (attach.spec.isolated, attach.up, attach.spec.trusted) = (true, false, true),
                _ => {}
            }
            attach
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn taken_is_delivered_plus_discarded(traffic in proptest::collection::vec(sent(), 1..300)) {
        let mut rig = Rig::new(attach());
        let (mut sent, mut received) = ([0u64; 6], [0u64; 6]);
        let mut octets = [0u64; 6];
        for lot in traffic.chunks(20) {
            for one in lot {
                let header = NetHeader { flags: one.flags & 1, gso_type: one.flags >> 1, ..NetHeader::default() };
                let tx = &mut rig.guests[one.from].tx[0];
                if tx.put(&header, &one.bytes(), &[]).is_some() {
                    sent[one.from] += 1;
                }
            }
            rig.guests.iter_mut().for_each(|guest| { guest.tx[0].driver.publish(); });
            rig.run();
            for guest in 0..6 {
                for arrived in rig.guests[guest].rx[0].receive(guest == 1) {
                    received[guest] += 1;
                    octets[guest] += arrived.frame.len() as u64;
                }
            }
        }
        let mut copies = 0;
        let (mut forwarded, mut offered) = (0, 0);
        for guest in 0..6 {
            let stats = rig.stats(guest);
            prop_assert!(stats.is_consistent(), "guest{}: {:?}", guest, stats);
            prop_assert_eq!(stats.taken, sent[guest]);
            let c = stats.counters;
            prop_assert_eq!(c.inbound_unicast_local + c.inbound_nonunicast_local, received[guest]);
            prop_assert_eq!(c.inbound_octets, octets[guest]);
            prop_assert_eq!(c.inbound_unicast_wire + c.inbound_nonunicast_wire + c.outbound_unicast_wire, 0);
            forwarded += c.outbound_unicast_local;
            copies += c.inbound_nonunicast_local;
            offered += stats.offered;
        }
        // Group frames that met a full receiver are offered copies too; unicast ones are offered once each.
        prop_assert!(offered >= forwarded + copies);
        let dropped: u64 = (0..6).map(|guest| rig.stats(guest).counters.inbound_discards).sum();
        prop_assert!(offered <= forwarded + copies + dropped);
    }
}
