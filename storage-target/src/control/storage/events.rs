//! What workers report: rings that are back or broken, memory pinned, states to be saved, effects of commands on the adapter.
//!
//! Called on the control thread. A guest can cause any of it as often as it likes, so every line is limited.

use std::time::Instant;

use avio_host::wait::tell;

use super::Storage;
use crate::adapter::AdapterId;
use crate::control::adapter::Adapter;
use crate::scsi::Effect;
use crate::serve::Event;

impl Storage {
    pub fn on_worker_event(&mut self, event: Event) {
        match event {
            Event::QueueStopped { adapter, index, base } => {
                let adapter = match self.adapters.get_mut(&adapter) {
                    Some(adapter) => adapter,
                    None => match self.leaving.get_mut(&adapter) {
                        Some(adapter) => adapter,
                        None => return,
                    },
                };
                adapter.rings.remove(&index);
                if let Some(endpoint) = adapter.endpoint {
                    self.sessions.ring_stopped(endpoint, index, base.unwrap_or(0));
                }
            }
            Event::RingBroken { adapter, index, error } => {
                let Some(adapter) = self.adapters.get(&adapter) else { return };
                if let Some(err) = adapter.rings.get(&index).and_then(|ring| ring.err.as_ref()) {
                    // Said once; a VMM that holds even this has no ring to lose.
                    let _ = tell(err);
                }
                let why = error.map_or("a fault of ours".to_owned(), |error| error.to_string());
                let name = adapter.name();
                self.log(&name, &format!("ring {index} is broken and stopped: {why}"));
            }
            Event::NotStarted { adapter, index, reason } => {
                let Some(name) = self.adapters.get(&adapter).map(Adapter::name) else { return };
                self.log(&name, &format!("ring {index} not started: {reason}"));
            }
            Event::Pinned { adapter, worker, regions, bytes, error } => {
                self.pinned(adapter, worker, (regions, bytes), error);
            }
            Event::Unpinned { adapter, worker, regions, used } => {
                let line = format!(
                    "fixed buffers: {} let go by worker {worker}; {used} operations used them",
                    counted(regions)
                );
                self.tell_of_pins(adapter, &line);
            }
            Event::Held(adapter) => {
                if let Some(endpoint) = self.adapters.get(&adapter).and_then(|adapter| adapter.endpoint) {
                    self.sessions.hold(endpoint);
                }
            }
            Event::Save { lun, version, state, worker } => self.save(lun, version, *state, Some(worker)),
            Event::Effect { adapter, target, effect, .. } => self.on_effect(adapter, target, &effect),
            Event::Quiesced { .. } | Event::Quiesce { .. } | Event::FenceLowered { .. } => {}
        }
    }

    /// What a worker has done with the memory of a guest that keeps it in place.
    fn pinned(
        &mut self,
        adapter: AdapterId,
        worker: usize,
        (regions, bytes): (usize, u64),
        error: Option<String>,
    ) {
        if regions > 0 {
            let line =
                format!("fixed buffers: {}, {} MiB, on worker {worker}", counted(regions), bytes >> 20);
            self.tell_of_pins(adapter, &line);
        }
        let Some(error) = error else { return };
        let Some(adapter) = self.adapters.get_mut(&adapter) else { return };
        // The rings of a guest all fare the same.
        if std::mem::replace(&mut adapter.pin_failed, true) {
            return;
        }
        let name = format!("{}: pin_memory", adapter.name());
        self.log(&name, &format!("plain buffers serve where memory cannot be registered: {error}"));
    }

    /// As [`Storage::log`], of something that is well.
    fn tell_of_pins(&mut self, adapter: AdapterId, line: &str) {
        let found = self.adapters.get(&adapter).or_else(|| self.leaving.get(&adapter));
        let Some(name) = found.map(Adapter::name) else { return };
        if let Some(suppressed) = self.limit.check(format!("{name} fixed buffers"), Instant::now()) {
            tracing::info!("{name}: {line}{suppressed}");
        }
    }

    fn on_effect(&mut self, adapter: AdapterId, target: u8, effect: &Effect) {
        match effect {
            Effect::Eject => self.eject(adapter, target, true),
            Effect::Load => self.load(adapter, target),
            Effect::ClearStatistics { adapter: all } => {
                let Some(adapter) = self.adapters.get(&adapter) else { return };
                let chosen = adapter.luns.iter().filter(|(number, _)| *all || **number == target);
                chosen.for_each(|(_, entry)| entry.clear());
                // A virtio-blk disk has the rings to itself.
                if *all || adapter.is_blk() {
                    adapter.queues.iter().for_each(|ring| ring.clear());
                }
            }
            Effect::Approved => {}
        }
    }
}

/// Regions, for a line.
fn counted(regions: usize) -> String {
    if regions == 1 { "1 region".to_owned() } else { format!("{regions} regions") }
}
