//! The numbers of one port: written by workers, one cell per worker, summed by control.
//!
//! Each worker writes its own [`PortCell`] only, with plain loads and stores. What each number means, so that two
//! identities hold exactly at any quiet moment:
//!
//! - Sending side: `taken` = `outbound_unicast_local` + `outbound_unicast_wire` + `outbound_nonunicast` + outbound
//!   discards. Every frame taken from a transmit ring is in exactly one of them, once, however many receivers it has; a
//!   frame that was switched counts as forwarded even if the receiver then has no buffer for it, which is the receiver's
//!   discard.
//! - Receiving side: `offered` = the four inbound packet counters + inbound discards. Every copy that was switched to the
//!   port is in exactly one of them. A frame that had to be segmented for this receiver counts as its segments, because
//!   those are the frames on this port.
//!
//! Without segmentation the two sides meet: the sum of `offered` over all ports = unicast frames forwarded + copies made of
//! broadcast, multicast and flooded frames. Unknown unicast that is flooded is one unicast frame at its sender.

use avio_host::stats::{CacheLine, Cell64};
use avio_proto::control::{Counters, Direction, DiscardReason, Discards};

/// What one worker counted at one port.
#[derive(Debug, Default)]
pub struct PortCell {
    /// Frames taken from the port's transmit rings.
    pub taken: Cell64,
    /// Octets of the frames forwarded.
    pub outbound_octets: Cell64,
    /// Unicast frames forwarded to ports of this vswitch.
    pub outbound_unicast_local: Cell64,
    /// Unicast frames forwarded to the uplink.
    pub outbound_unicast_wire: Cell64,
    /// Broadcast and multicast frames forwarded.
    pub outbound_nonunicast: Cell64,
    /// Copies switched to this port.
    pub offered: Cell64,
    /// Octets of the copies delivered.
    pub inbound_octets: Cell64,
    /// Unicast copies delivered from ports of this vswitch.
    pub inbound_unicast_local: Cell64,
    /// Broadcast and multicast copies delivered from ports of this vswitch.
    pub inbound_nonunicast_local: Cell64,
    /// Unicast copies delivered from the uplink.
    pub inbound_unicast_wire: Cell64,
    /// Broadcast and multicast copies delivered from the uplink.
    pub inbound_nonunicast_wire: Cell64,
    /// Interrupts written to the guest, both directions.
    pub notifications: Cell64,
    discards: [Cell64; DiscardReason::COUNT],
}

impl PortCell {
    /// Counts frames that did not arrive. Writer only.
    #[inline]
    pub fn discard(&self, reason: DiscardReason, count: u64) {
        self.discards[reason.index()].add(count);
    }
}

/// All workers' cells of one port. Lives as long as the port is configured.
#[derive(Debug)]
pub struct PortStats(Box<[CacheLine<PortCell>]>);

impl PortStats {
    /// Cells for `workers` workers, all 0.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| CacheLine::default()).collect())
    }

    /// The cell of worker `worker`; only that worker may write it. Panics when there are fewer workers.
    #[inline]
    #[must_use]
    pub fn cell(&self, worker: usize) -> &PortCell {
        &self.0[worker]
    }

    /// The sums over all workers now. Each value is exact; they are not read at the same instant. Any thread.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut sum = Snapshot::default();
        for cell in &self.0 {
            sum.taken = sum.taken.wrapping_add(cell.taken.get());
            sum.offered = sum.offered.wrapping_add(cell.offered.get());
            sum.notifications = sum.notifications.wrapping_add(cell.notifications.get());
            let c = &mut sum.counters;
            c.outbound_octets = c.outbound_octets.wrapping_add(cell.outbound_octets.get());
            c.outbound_unicast_local =
                c.outbound_unicast_local.wrapping_add(cell.outbound_unicast_local.get());
            c.outbound_unicast_wire = c.outbound_unicast_wire.wrapping_add(cell.outbound_unicast_wire.get());
            c.inbound_unicast_wire = c.inbound_unicast_wire.wrapping_add(cell.inbound_unicast_wire.get());
            c.inbound_nonunicast_wire =
                c.inbound_nonunicast_wire.wrapping_add(cell.inbound_nonunicast_wire.get());
            c.outbound_nonunicast = c.outbound_nonunicast.wrapping_add(cell.outbound_nonunicast.get());
            c.inbound_octets = c.inbound_octets.wrapping_add(cell.inbound_octets.get());
            c.inbound_unicast_local = c.inbound_unicast_local.wrapping_add(cell.inbound_unicast_local.get());
            c.inbound_nonunicast_local =
                c.inbound_nonunicast_local.wrapping_add(cell.inbound_nonunicast_local.get());
            for reason in DiscardReason::ALL {
                let count = cell.discards[reason.index()].get();
                sum.discards[reason] = sum.discards[reason].wrapping_add(count);
            }
        }
        sum.counters.inbound_discards = sum.discards.total(Direction::Inbound);
        sum.counters.outbound_discards = sum.discards.total(Direction::Outbound);
        sum
    }
}

/// A port's numbers at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The eleven of SEMANTICS 1.3.
    pub counters: Counters,
    /// Frames that did not arrive, by reason.
    pub discards: Discards,
    /// Frames taken from the port.
    pub taken: u64,
    /// Copies switched to the port.
    pub offered: u64,
    /// Interrupts written to the guest.
    pub notifications: u64,
}

impl Snapshot {
    /// What was counted since `baseline`, which is how counters are cleared.
    #[must_use]
    pub fn since(&self, baseline: &Self) -> Self {
        let (a, b) = (&self.counters, &baseline.counters);
        let mut discards = self.discards;
        for reason in DiscardReason::ALL {
            discards[reason] = discards[reason].wrapping_sub(baseline.discards[reason]);
        }
        Self {
            counters: Counters {
                inbound_octets: a.inbound_octets.wrapping_sub(b.inbound_octets),
                inbound_unicast_wire: a.inbound_unicast_wire.wrapping_sub(b.inbound_unicast_wire),
                inbound_unicast_local: a.inbound_unicast_local.wrapping_sub(b.inbound_unicast_local),
                inbound_nonunicast_wire: a.inbound_nonunicast_wire.wrapping_sub(b.inbound_nonunicast_wire),
                inbound_nonunicast_local: a.inbound_nonunicast_local.wrapping_sub(b.inbound_nonunicast_local),
                inbound_discards: discards.total(Direction::Inbound),
                outbound_octets: a.outbound_octets.wrapping_sub(b.outbound_octets),
                outbound_unicast_wire: a.outbound_unicast_wire.wrapping_sub(b.outbound_unicast_wire),
                outbound_unicast_local: a.outbound_unicast_local.wrapping_sub(b.outbound_unicast_local),
                outbound_nonunicast: a.outbound_nonunicast.wrapping_sub(b.outbound_nonunicast),
                outbound_discards: discards.total(Direction::Outbound),
            },
            discards,
            taken: self.taken.wrapping_sub(baseline.taken),
            offered: self.offered.wrapping_sub(baseline.offered),
            notifications: self.notifications.wrapping_sub(baseline.notifications),
        }
    }

    /// Whether both identities of this file hold. False only while workers are in the middle of a batch.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let c = &self.counters;
        let sent =
            c.outbound_unicast_local + c.outbound_unicast_wire + c.outbound_nonunicast + c.outbound_discards;
        let received = c.inbound_unicast_local
            + c.inbound_unicast_wire
            + c.inbound_nonunicast_local
            + c.inbound_nonunicast_wire
            + c.inbound_discards;
        self.taken == sent && self.offered == received
    }
}
