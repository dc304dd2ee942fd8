//! Front-ends come and go, and their rings go to workers and come back.
//!
//! Called on the control thread with what happens at sessions. A ring belongs to its worker from its start until the worker says that it has
//! stopped; only then is the front-end answered.

use std::fs;
use std::sync::Arc;

use avio_host::session::{EndpointId, EndpointSpec, Event as SessionEvent, RingStart, Role as SocketSide};
use avio_proto::ring::{DeviceRing, Inflight};
use avio_proto::virtio::blk::F_FLUSH;

use super::Storage;
use crate::adapter::AdapterId;
use crate::control::adapter::{Adapter, Ring};
use crate::control::device;
use crate::serve::{Command, QueueSpec, Role};

impl Storage {
    fn by_endpoint(&mut self, endpoint: EndpointId) -> Option<&mut Adapter> {
        self.adapters
            .values_mut()
            .chain(self.leaving.values_mut())
            .find(|adapter| adapter.endpoint == Some(endpoint))
    }

    pub fn on_session_event(&mut self, endpoint: EndpointId, event: SessionEvent) {
        match event {
            SessionEvent::Connected => {
                let guest = self.by_endpoint(endpoint).map(|adapter| adapter.nexus.guest.clone());
                let pin_memory =
                    guest.and_then(|guest| self.config.guests.get(&guest)).is_some_and(|g| g.pin_memory);
                if let Some(adapter) = self.by_endpoint(endpoint) {
                    (adapter.pin_memory, adapter.pin_failed) = (pin_memory, false);
                    adapter.connected = true;
                    adapter.seen = true;
                    tracing::info!("{}: front-end connected", adapter.name());
                    let id = adapter.id;
                    self.arrived(id);
                }
            }
            SessionEvent::Disconnected => {
                if let Some(adapter) = self.by_endpoint(endpoint) {
                    adapter.connected = false;
                    adapter.front_end = None;
                    adapter.rings.clear();
                    tracing::info!("{}: front-end gone", adapter.name());
                    let id = adapter.id;
                    if self.leaving.remove(&id).is_some() {
                        self.broadcast(|| Command::RemoveAdapter(id));
                    }
                    self.note();
                }
            }
            SessionEvent::RingStart(start) => self.on_ring_start(endpoint, *start),
            SessionEvent::RingStop { index } => self.on_ring_stop(endpoint, index),
            _ => {}
        }
    }

    fn on_ring_start(&mut self, endpoint: EndpointId, start: RingStart) {
        let worker = self.next_worker % self.workers.len().max(1);
        let Some(adapter) = self.by_endpoint(endpoint) else { return };
        let (id, name, index) = (adapter.id, adapter.name(), start.index);
        let role = device::role(adapter.storage.adaptor, index);
        let made = DeviceRing::new(Arc::clone(&start.memory), &start.setup).map_err(|e| e.to_string());
        let inflight = start.inflight.as_ref().map(|region| {
            Inflight::new(&region.mapping, region.offset, region.len, &start.setup).map_err(|e| e.to_string())
        });
        let stats = adapter.queues.get(usize::from(index)).cloned();
        let (ring, inflight, stats) = match (made, inflight.transpose(), stats) {
            (Ok(ring), Ok(inflight), Some(stats)) => (ring, inflight, stats),
            (Err(error), ..) | (_, Err(error), _) => {
                // Nothing runs; the front-end's stop is answered at once, because no ring is listed.
                return self.log(&name, &format!("ring {index} not started: {error}"));
            }
            (_, _, None) => return self.log(&name, &format!("ring {index}: the adapter has no such ring")),
        };
        adapter.rings.insert(index, Ring { worker, err: start.err });
        let events_missed = role == Role::ScsiEvent && std::mem::take(&mut adapter.events_missed);
        let pin = adapter.pin_memory && matches!(role, Role::BlkRequest | Role::ScsiRequest);
        self.next_worker += 1;
        let spec = QueueSpec {
            adapter: id,
            index,
            role,
            ring,
            size: start.setup.size,
            kick: start.kick,
            call: start.call,
            inflight,
            // Without flushes there is no volatile cache (§5.2.6.2).
            durable: role == Role::BlkRequest && start.setup.features & F_FLUSH == 0,
            events_missed,
            pin,
            stats,
        };
        let _ = self.workers[worker].send(Command::AddQueue(Box::new(spec)));
    }

    fn on_ring_stop(&mut self, endpoint: EndpointId, index: u16) {
        let Some(adapter) = self.by_endpoint(endpoint) else { return };
        let id = adapter.id;
        match adapter.rings.get(&index) {
            Some(ring) => {
                let worker = ring.worker;
                let _ = self.workers[worker].send(Command::RemoveQueue { adapter: id, index });
            }
            None => self.sessions.ring_stopped(endpoint, index, 0),
        }
    }

    /// Opens an adapter's socket, if it has none and waits for nothing.
    pub fn open_socket(&mut self, id: AdapterId) -> Result<(), String> {
        let closed = |adapter: &&Adapter| adapter.endpoint.is_none() && !adapter.is_waiting();
        let Some(adapter) = self.adapters.get(&id).filter(closed) else { return Ok(()) };
        let storage = &adapter.storage;
        let path = adapter.socket_path(&self.run_dir);
        if storage.socket.is_none()
            && let Some(folder) = path.parent()
        {
            fs::create_dir_all(folder)
                .map_err(|e| format!("--run-dir: {}: cannot be made: {e}", folder.display()))?;
        }
        let (owner, group) = (storage.socket_owner.as_deref(), storage.socket_group.as_deref());
        let role = SocketSide::configured(storage.socket_role, owner, group, storage.socket_perm)
            .map_err(|e| format!("{}: {e}", adapter.name()))?;
        let device = match adapter.luns.values().next().filter(|_| adapter.is_blk()) {
            Some(entry) => {
                let limits = entry.limits();
                let readonly = entry.config.readonly || limits.readonly;
                device::blk_spec(storage, entry.lun.unit.capacity_bytes(), &limits, readonly)
            }
            None => device::scsi_spec(storage),
        };
        let spec = EndpointSpec { name: adapter.name(), path, role, device };
        let endpoint = self.sessions.add(spec).map_err(|e| e.to_string())?;
        if let Some(adapter) = self.adapters.get_mut(&id) {
            adapter.endpoint = Some(endpoint);
        }
        Ok(())
    }
}
