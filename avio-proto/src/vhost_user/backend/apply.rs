//! The third step of a job: its change, made while every ring that it concerns is stopped.
//!
//! Owns what each request does to the session's state. Called by `Backend::advance` only; it never waits and starts no
//! ring.

use super::memory::Slot;
use super::requests::{Job, Work};
use super::vring::{Base, Kick};
use super::{Action, Backend, Event, InflightRing, SessionError};
use crate::mem::{Mapping, TableError};
use crate::vhost_user::message::Request;
use crate::vhost_user::payload::VringState;
use crate::virtio::features::VHOST_LOG_ALL;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// How a request that succeeded is answered.
pub(super) enum Reply {
    /// By an acknowledgement, if one was asked for.
    Ack,
    /// By its own reply.
    Own(Vec<u8>, Vec<OwnedFd>),
}

impl Backend {
    pub(super) fn apply(&mut self, job: Job) -> Result<Reply, SessionError> {
        let request = job.request;
        let table = |error: TableError| SessionError::Table { request, error };
        if let Some(reason) = job.failure {
            return Err(SessionError::Memory { request, reason });
        }
        let mut mappings = job.mappings.into_iter().flatten();
        match job.work {
            Work::Features(acked) => {
                let first = self.features != Some(acked);
                self.features = Some(acked);
                self.memory.set_logging(acked & VHOST_LOG_ALL != 0).map_err(table)?;
                if first {
                    self.actions.push_back(Action::Event(Event::Features(acked)));
                }
            }
            Work::MemTable(regions) => {
                let slots = regions
                    .into_iter()
                    .zip(mappings)
                    .map(|(region, mapping)| Slot { region, mapping })
                    .collect();
                self.memory.set_slots(slots).map_err(table)?;
            }
            Work::AddRegion(region) => {
                let mapping = one(request, &mut mappings)?;
                self.memory.add(Slot { region, mapping }).map_err(table)?;
            }
            Work::RemRegion(region) => {
                let at = self.memory.find(&region).ok_or(SessionError::NoRegion(region.guest_base))?;
                self.memory.remove(at).map_err(table)?;
            }
            Work::LogBase(area) => {
                let mapping = one(request, &mut mappings)?;
                self.memory.set_log(mapping).map_err(table)?;
                // The specification leaves the payload open; rust-vmm reads the description back, QEMU only the header.
                return Ok(Reply::Own(area.encode(), Vec::new()));
            }
            Work::RingSize(index, size) => self.rings[index].size = size,
            Work::RingAddr(index, addr) => self.rings[index].addr = Some(addr),
            Work::RingBase(index, base) => self.rings[index].base = Base::Given(base),
            Work::GetBase(index) => {
                // Stopped until the next kick descriptor; everything else stays, firmware's successor relies on it.
                let ring = &mut self.rings[index];
                ring.kick = None;
                let num = ring.base_for_reply(self.features.unwrap_or(0));
                return Ok(Reply::Own(VringState { index: index as u32, num }.encode(), Vec::new()));
            }
            Work::RingKick(index, fd) => {
                self.rings[index].kick = Some(fd.map_or(Kick::Poll, Kick::Fd));
            }
            Work::RingCall(index, fd) => self.rings[index].call = fd,
            Work::RingErr(index, fd) => self.rings[index].err = fd,
            Work::RingEnable(index, enable) => self.rings[index].enable = Some(enable),
            Work::GetInflight(area) => {
                let reason = || SessionError::Memory { request, reason: "no file was created".into() };
                let file = job.file.ok_or_else(reason)?;
                return Ok(Reply::Own(area.encode(), vec![file]));
            }
            Work::SetInflight(area) => {
                let mapping = one(request, &mut mappings)?;
                let len = area.len / u64::from(area.queues.max(1));
                self.inflight = Some((InflightRing { mapping, offset: 0, len }, area.queues));
            }
            Work::DisableAll => self.rings.iter_mut().for_each(|ring| ring.disable()),
            Work::Reset => {
                self.features = None;
                self.status = 0;
                self.inflight = None;
                self.rings.iter_mut().for_each(|ring| ring.reset());
                self.memory.set_logging(false).map_err(table)?;
            }
            Work::Status(status) => {
                self.status = status;
                if status == 0 {
                    // Virtio's reset. The front-end sets everything again, but QEMU saves no base it was not told.
                    self.rings.iter_mut().for_each(|ring| ring.disable());
                }
            }
        }
        Ok(Reply::Ack)
    }
}

fn one(
    request: Request,
    mappings: &mut dyn Iterator<Item = Arc<dyn Mapping>>,
) -> Result<Arc<dyn Mapping>, SessionError> {
    mappings.next().ok_or_else(|| SessionError::Memory { request, reason: "nothing was mapped".into() })
}
