//! A frame of the switch's own making in a port's name: the announcement of a guest that has moved here.
//!
//! Control asks for it when a front-end sends SEND_RARP; any worker carries it out, between batches. It goes the way of a
//! frame that the guest sent itself: the port's guard judges it, the port's VLAN bounds it, the port's numbers count it.

use std::sync::Arc;

use avio_proto::config::MacAddr;

use super::{Forwarder, Run, Source};
use crate::forward::guard::mac as number;
use crate::forward::scratch::FRAME_AT;
use crate::packet::ethertype;
use crate::port::guest::Reports;
use crate::table::PortIndex;
use avio_proto::virtio::net::HEADER_LEN;

/// The shortest frame that Ethernet carries, without its check sequence (IEEE 802.3 clause 4A.4.2).
const FRAME_LEN: usize = 60;

impl Forwarder {
    /// Broadcasts, from port `index` into its VLAN, that `mac` is there. Dropped, counted and told as any frame that the
    /// port may not send; nothing happens if the port is in no table.
    pub fn announce(&mut self, index: PortIndex, mac: MacAddr) {
        let table = Arc::clone(&self.table);
        let Some(port) = table.port(index) else { return };
        let cell = port.state.stats.cell(self.worker);
        let batch = self.arena.take_nothing();
        let source = Source { index, pair: 0, port, features: 0, header_len: HEADER_LEN, from_wire: false };
        let mut run = Run {
            table: &table,
            worker: self.worker,
            events: &self.events,
            scratch: &mut self.scratch,
            source,
            last: crate::port::guest::LastDestination::NOTHING,
            reports: Reports::default(),
            tally: super::Tally::new(),
        };
        run.scratch.begin();
        let bytes = run.scratch.snaps[0].bytes_mut();
        bytes[..FRAME_AT].fill(0);
        bytes[FRAME_AT..FRAME_AT + FRAME_LEN].copy_from_slice(&reverse_arp(mac));
        match run.inspect(0, FRAME_LEN, FRAME_LEN) {
            Ok(()) => {
                let domain = run.scratch.frames[0].domain;
                run.send_to_group(0, number(MacAddr::BROADCAST.0), domain, FRAME_LEN);
            }
            Err(reason) => run.refuse(reason, number(mac.0), ethertype::RARP),
        }
        run.deliver(&batch, &self.stats);
        cell.taken.add(1);
        run.tally.add_to(cell);
    }
}

/// A request "which IP address has `mac`?" that nobody has to answer (RFC 903): the form in which VMMs announce a guest that has
/// moved, because it needs no IP address. Every switch on the way learns where `mac` is now.
fn reverse_arp(mac: MacAddr) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&MacAddr::BROADCAST.0);
    frame[6..12].copy_from_slice(&mac.0);
    frame[12..14].copy_from_slice(&ethertype::RARP.to_be_bytes());
    // Ethernet, IPv4, six and four bytes of address, operation 3: request reverse.
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac.0);
    frame[32..38].copy_from_slice(&mac.0);
    frame
}
