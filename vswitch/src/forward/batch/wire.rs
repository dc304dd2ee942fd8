//! Batches from intakes: the wire, and ports behind a TAP.
//!
//! What comes from a TAP is judged as a guest's. What comes from the wire may be from anybody but our own guests: there is no source to hold
//! it to, but the VLAN of its tag (in the frame, or taken out of it by the kernel) decides the domain, and what is for the host's link
//! stays there.

use std::io;
use std::time::Instant;

use avio_host::inject;
use avio_proto::config::{MacAddr, VlanId};
use avio_proto::control::DiscardReason;
use avio_proto::ring::Batch;
use avio_proto::virtio::net::HEADER_LEN;

use super::{BATCH_COST_MAX, FRAME_COST, Forwarder, LEARNED_PER_S, Run, Source, Tally, Towards};
use crate::forward::Event;
use crate::forward::guard::{GROUP_BIT, is_control, is_link_local};
use crate::forward::scratch::{BATCH_MAX, FRAME_AT, Frame, Front, SNAPSHOT_LEN};
use crate::offload::{Validated, validate};
use crate::packet::{ETHERNET_LEN, Ethernet, TAG_LEN, ethertype, vlan};
use crate::port::guest::LastDestination;
use crate::port::wire::{Origin, WireSource};
use crate::table::{DomainIndex, MacNumber, key};

/// IEEE 802.1ad service tag: no vswitch has those.
const SERVICE_TAG: u16 = 0x88a8;
/// VLAN identifier in tag control information.
const VID_MASK: u16 = 0xfff;

impl Forwarder {
    /// Forwards up to `budget` frames of an intake. Returns how many were taken and whether there may be more at once.
    ///
    /// # Errors
    /// What the intake says; it must not be polled again.
    pub fn forward_intake(&mut self, wire: &mut WireSource, budget: usize) -> io::Result<(usize, bool)> {
        let table = &*self.table;
        let Some(port) = table.port(wire.port) else { return Ok((0, false)) };
        let cell = port.state.stats.cell(self.worker);
        let worth = BATCH_COST_MAX / wire.cost_len.max(1);
        let max = BATCH_MAX.min(budget).min(worth as usize).max(1);
        inject::point("forward::take");
        let batch = wire.intake.take(&mut self.arena, max)?;
        let count = batch.len();
        if count == 0 {
            return Ok((0, false));
        }
        let from_wire = wire.origin == Origin::Wire;
        let source = Source {
            index: wire.port,
            pair: wire.lane,
            port,
            features: wire.features,
            header_len: wire.header_len,
            from_wire,
        };
        let mut run = Run {
            table,
            worker: self.worker,
            events: &self.events,
            scratch: &mut self.scratch,
            source,
            last: if wire.last.table == table.id { wire.last } else { LastDestination::NOTHING },
            reports: wire.reports,
            tally: Tally::new(),
        };
        run.scratch.begin();
        if from_wire {
            run.sort_wire(&batch);
            run.merge(&batch);
        } else {
            run.sort(&batch)
        }
        let copied_len = run.deliver(&batch, &self.stats);
        let Run { last, reports, tally, .. } = run;
        wire.counters.frames.add(count as u64);
        wire.counters.octets.add(tally.octets_in);
        (wire.last, wire.reports) = (last, reports);
        let cost_len = (copied_len + count as u64 * FRAME_COST) / count as u64;
        wire.cost_len = (wire.cost_len * 3 + cost_len) / 4;
        inject::point("forward::complete");
        wire.intake.done();
        cell.taken.add(count as u64);
        tally.add_to(cell);
        Ok((count, count == max))
    }
}

impl Run<'_> {
    /// Snapshot, judgement and look-up of frames from the wire.
    fn sort_wire(&mut self, batch: &Batch<'_>) {
        let header_len = self.source.header_len;
        let mut group_of: Option<(u64, Towards<'_>)> = None;
        let mut source_of: Option<u64> = None;
        for i in 0..batch.len().min(BATCH_MAX) {
            inject::point("forward::frame");
            let (_, chain_len) = batch.front(i);
            if chain_len < header_len + ETHERNET_LEN {
                self.tally.discard(DiscardReason::TooShort);
                continue;
            }
            let len = chain_len - header_len;
            self.tally.octets_in += len as u64;
            let head_len = len.min(SNAPSHOT_LEN);
            let snap = &mut self.scratch.snaps[i];
            if header_len == 0 {
                snap.fill_bare(batch, i, head_len)
            } else {
                snap.fill(batch, i, header_len, head_len)
            }
            let front = snap.front(if header_len == 0 { HEADER_LEN } else { header_len });
            if let Err(reason) = self.inspect_wire(i, front, len, head_len, batch) {
                self.tally.discard(reason);
                continue;
            }
            let Frame { domain, len, .. } = self.scratch.frames[i];
            let from = key(domain, front.source);
            if source_of != Some(from) {
                if let Err(reason) = self.check_wire_source(from, front.source, domain) {
                    self.tally.discard(reason);
                    continue;
                }
                source_of = Some(from);
            }
            if front.destination & GROUP_BIT != 0 {
                self.send_to_group(i, front.destination, domain, len as usize);
                continue;
            }
            let key = key(domain, front.destination);
            let group = match group_of {
                Some((of, Towards::Group(group))) if of == key => Some(group),
                _ => self.resolve(i, key, &mut group_of),
            };
            let Some(group) = group else { continue };
            self.tally.unicast += 1;
            self.tally.octets += u64::from(len);
            self.scratch.append(group, i);
        }
    }

    /// VLAN and offloads of frame `i`. On success everything but its destination is known.
    #[inline]
    fn inspect_wire(
        &mut self,
        i: usize,
        front: Front,
        len: usize,
        head_len: usize,
        batch: &Batch<'_>,
    ) -> Result<(), DiscardReason> {
        let Source { port, header_len, features, .. } = self.source;
        if is_link_local(front.destination) {
            return Err(DiscardReason::LinkLocalDestination);
        }
        if front.source & GROUP_BIT != 0 {
            return Err(DiscardReason::MulticastSource);
        }
        if front.source == 0 {
            return Err(DiscardReason::ZeroSource);
        }
        let snap = &mut self.scratch.snaps[i];
        let mut frame = Frame {
            len: len as u32,
            skip: (header_len + head_len) as u16,
            head_len: head_len as u16,
            start: FRAME_AT as u8,
            plain: front.asks_nothing,
            domain: port.domain,
            ..Frame::default()
        };
        if !front.asks_nothing {
            let header = snap.header(header_len);
            let head = snap.head(FRAME_AT, head_len);
            let l2 = Ethernet::parse(head).ok_or(DiscardReason::TooShort)?;
            let offload =
                validate(&header, head, len, &l2, features).map_err(|_| DiscardReason::BadHeader)?;
            frame.plain = offload.is_plain();
            self.scratch.offloads[i] = offload;
        }
        let outside = batch.chain(i).id.collected_tag();
        let mut kind = front.kind;
        let mut tci = outside;
        if kind == ethertype::VLAN && outside.is_none() {
            let snap = &mut self.scratch.snaps[i];
            let [.., a, b, c, d] =
                *snap.head(FRAME_AT, ETHERNET_LEN + TAG_LEN).last_chunk().unwrap_or(&[0; 4]);
            if head_len < ETHERNET_LEN + TAG_LEN {
                return Err(DiscardReason::TooShort);
            }
            (tci, kind) = (Some(u16::from_be_bytes([a, b])), u16::from_be_bytes([c, d]));
            if let Some(start) = vlan::strip_tag(snap.bytes_mut(), FRAME_AT) {
                frame.start = start as u8;
                frame.head_len -= TAG_LEN as u16;
                frame.len -= TAG_LEN as u32;
                if !frame.plain {
                    let offload: &mut Validated = &mut self.scratch.offloads[i];
                    *offload = offload.tag_stripped();
                }
            }
        }
        if kind == ethertype::VLAN || kind == SERVICE_TAG {
            return Err(DiscardReason::WrongVlan);
        }
        if is_control(kind) {
            return Err(DiscardReason::ControlEthertype);
        }
        // VLAN 0 is a priority tag: the frame is untagged (IEEE 802.1Q clause 6.9.1).
        if let Some(vid) = tci.map(|tci| tci & VID_MASK).filter(|&vid| vid != 0) {
            let native = self.table.domains[usize::from(port.domain.0)].vid;
            frame.domain = if vid == native {
                port.domain
            } else {
                port.trunk_domain(vid).ok_or(DiscardReason::WrongVlan)?
            };
        }
        self.scratch.frames[i] = frame;
        Ok(())
    }

    /// Who sends: one of ours comes back, or one that was learned elsewhere has moved to the wire.
    #[inline]
    fn check_wire_source(
        &mut self,
        key: u64,
        source: MacNumber,
        domain: DomainIndex,
    ) -> Result<(), DiscardReason> {
        let Some(found) = self.table.macs.find(key) else { return Ok(()) };
        if !found.is_learned() {
            return Err(DiscardReason::Reflected);
        }
        self.tell_moved(key, source, domain);
        Ok(())
    }

    #[cold]
    fn tell_moved(&mut self, key: u64, source: MacNumber, domain: DomainIndex) {
        let now: Instant = self.tally.now();
        self.new_window(now);
        if self.reports.learned_key != key && self.reports.learned_count < LEARNED_PER_S {
            self.reports.learned_key = key;
            self.reports.learned_count += 1;
            let [_, _, mac @ ..] = source.to_be_bytes();
            let vid = self.table.domains[usize::from(domain.0)].vid;
            let vlan = if domain == self.source.port.domain { None } else { VlanId::new(vid) };
            self.events.send(Event::Learn { port: self.source.index, vlan, mac: MacAddr(mac) });
        }
    }
}
