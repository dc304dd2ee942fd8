//! What workers report and give back: released rings, addresses learned, refused frames, what is broken.
//!
//! Called on the control thread, a bounded number of times a turn. A guest can cause most of it as often as it likes, so every line is limited.

use std::time::Instant;

use avio_proto::ring::RingError;

use super::Switch;
use crate::control::fabric::Released;
use crate::control::uplink::Half;
use crate::forward::Event as WorkerEvent;
use crate::table::PortIndex;

impl Switch {
    pub(super) fn take_released(&mut self) {
        for released in self.fabric.released() {
            if self.taps.released(&released) {
                continue;
            }
            let (port, index, base) = match released {
                Released::Rx { port, pair, base } => (port, 2 * pair, Some(base)),
                Released::Tx(stopped) => (stopped.port, 2 * stopped.pair + 1, stopped.base),
                Released::Intake(stopped) => {
                    self.uplinks.on_stopped(stopped);
                    continue;
                }
                Released::Lane(lane) => {
                    self.uplinks.on_lane(lane);
                    continue;
                }
            };
            let Some(endpoint) = self.endpoint_of(port) else { continue };
            let Some(interface) = self.interface_of(endpoint) else { continue };
            let base = interface.ring_released(index, base);
            self.sessions.ring_stopped(endpoint, index, base);
        }
    }

    pub(super) fn on_worker_event(&mut self, event: WorkerEvent, now: Instant) {
        match event {
            WorkerEvent::Learn { port, vlan, mac } => {
                let table = self.fabric.table_arc();
                self.fabric.learner.learn(&table, port, vlan, mac, now);
            }
            WorkerEvent::Refused(refusal) => {
                let name = format!("{} port {}", refusal.spec.guest, refusal.spec.number);
                self.log_as_is(now, &name, &refusal.to_string());
            }
            WorkerEvent::TxBroken { port, pair, error } => {
                self.on_ring_broken(port, 2 * pair + 1, error, now)
            }
            WorkerEvent::RxBroken { port, pair, error } => self.on_ring_broken(port, 2 * pair, error, now),
            WorkerEvent::IntakeBroken { port, lane, error } => {
                let why = error.map_or_else(|| "an internal error".to_owned(), |error| error.to_string());
                self.on_wire_broken(port, Half::Source(lane), &format!("source {lane}: {why}"), now);
            }
            WorkerEvent::LaneBroken { port, lane, error } => {
                self.on_wire_broken(port, Half::Lane(lane), &format!("lane {lane}: {error}"), now);
            }
            WorkerEvent::Held { port } => {
                if let Some(endpoint) = self.endpoint_of(port) {
                    self.sessions.hold(endpoint);
                }
            }
        }
    }

    fn on_wire_broken(&mut self, port: PortIndex, half: Half, why: &str, now: Instant) {
        if let Some(line) = self.uplinks.on_broken(port, half, why, now, &mut self.fabric) {
            self.log_as_is(now, &format!("port index {}", port.0), &line);
        }
    }

    fn on_ring_broken(&mut self, port: PortIndex, index: u16, error: Option<RingError>, now: Instant) {
        let why = error.map_or_else(|| "an internal error".to_owned(), |error| error.to_string());
        if self.taps.ring_broken(port, &why, &mut self.fabric, now) {
            return;
        }
        let Some(endpoint) = self.endpoint_of(port) else { return };
        let Some(interface) = self.interface_of(endpoint) else { return };
        interface.ring_broken(index);
        let name = interface.key.to_string();
        self.log(now, &name, &format!("ring {index} stopped: {why}"));
        self.end_if_held(endpoint);
    }
}
