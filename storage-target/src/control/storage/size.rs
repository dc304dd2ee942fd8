//! Sizes of backings that change while they are served.
//!
//! Called on the control thread, which asks for them on a helper thread and tells logical units and guests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Done, Storage};
use crate::adapter::AdapterId;
use crate::backing::Backing;
use crate::control::adapter::AdapterLun;
use crate::control::device;
use crate::serve::Notice;

/// How often files and devices are asked for their size.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Storage {
    /// Asks files and devices for their size, now and then, on a helper thread.
    pub fn look_at_sizes(&mut self, now: Instant) {
        if self.looking || now < self.next_look {
            return;
        }
        self.next_look = now + LOOK_EVERY;
        if self.noted.is_none() {
            self.note();
        }
        let backings: Vec<_> = self
            .adapters
            .values()
            .flat_map(|adapter| adapter.luns.values())
            .filter_map(|entry| entry.backing.clone())
            .filter(|backing| backing.identity().is_some())
            .collect();
        if backings.is_empty() {
            return;
        }
        self.looking = true;
        let reply = self.mailbox.reply();
        self.helpers.run(move || {
            let changed = backings
                .into_iter()
                .filter_map(|backing| {
                    let size = backing.refresh_size().ok().flatten()?;
                    Some((backing, size))
                })
                .collect();
            reply.send(Done::Resized(changed));
        });
    }

    /// Backings have another size: logical units and guests are told.
    pub fn resized(&mut self, resized: &[(Arc<Backing>, u64)]) {
        let mut told = Vec::new();
        for (backing, size) in resized {
            for adapter in self.adapters.values() {
                let of =
                    |entry: &&AdapterLun| entry.backing.as_ref().is_some_and(|own| Arc::ptr_eq(own, backing));
                for (target, entry) in adapter.luns.iter().filter(|(_, entry)| of(entry)) {
                    let blocks = size / u64::from(entry.lun.unit.block_size());
                    if entry.lun.unit.blocks() != blocks {
                        tracing::info!("{} target {target}: now {size} bytes", adapter.name());
                        entry.lun.unit.set_blocks(blocks);
                    }
                    told.push((adapter.id, *target));
                }
            }
        }
        for (id, target) in told {
            self.notify(id, Notice::Changed(target, 0x2a, 0x09));
            self.tell_capacity(id, target);
        }
    }

    /// A virtio-blk disk has its size in the configuration space.
    pub fn tell_capacity(&mut self, id: AdapterId, target: u8) {
        let Some(adapter) = self.adapters.get(&id).filter(|adapter| adapter.is_blk()) else { return };
        let Some(entry) = adapter.luns.get(&target) else { return };
        let (Some(endpoint), Some(backing)) = (adapter.endpoint, &entry.backing) else { return };
        let size = entry.lun.unit.capacity_bytes();
        let readonly = entry.config.readonly || backing.limits().readonly;
        let device = device::blk_spec(&adapter.storage, size, backing.limits(), readonly);
        let config = device.config.clone();
        // A store that was replaced, or was not there, may be able to do other things; the next session is told.
        self.sessions.set_device(endpoint, device);
        self.sessions.set_config(endpoint, config);
    }
}
