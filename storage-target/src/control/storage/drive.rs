//! Media of DVD drives: out, in, and another one, by the guest, by an operator, by the definition.
//!
//! Called on the control thread; opening a medium is a helper's.

use std::sync::Arc;

use avio_proto::config::BackingSpec;

use super::{Done, Drained, Storage};
use crate::adapter::AdapterId;
use crate::control::lun::{self, LunKey, Opened, Wanted};
use crate::scsi::Media;
use crate::serve::Notice;

impl Storage {
    /// Takes a drive's medium out; `by_guest`: it lies in the open tray, and the guest may load it again.
    pub fn eject(&mut self, id: AdapterId, target: u8, by_guest: bool) {
        let Some(entry) = self.entry_mut(id, target) else {
            return;
        };
        entry.lun.unit.set_media(Media::Empty);
        (entry.backing, entry.absent) = (None, None);
        if !by_guest {
            entry.config.backing = BackingSpec::Empty.to_string();
        }
        let lun = Arc::clone(&entry.lun);
        let version = lun.unit.set_tray(Some(BackingSpec::Empty.to_string()));
        self.save(lun.id, version, lun.unit.save(), None);
        self.publish(id);
        self.drain(lun.id, Some(id), Drained::Ejected);
        self.notify(id, Notice::Medium(target));
    }

    /// Puts the medium in again that the guest has ejected.
    pub fn load(&mut self, id: AdapterId, target: u8) {
        let Some(adapter) = self.adapters.get(&id) else { return };
        let Some(entry) = adapter.luns.get(&target) else { return };
        let config = entry.config.clone();
        match BackingSpec::parse(&config.backing) {
            Ok(spec) if spec != BackingSpec::Empty && entry.lun.unit.media() == Media::Empty => {
                let key = LunKey { nexus: adapter.nexus.clone(), target };
                self.open_medium(Wanted { key, config, spec, inserted: true }, false);
            }
            _ => {}
        }
    }

    /// The definition of a drive names another medium.
    pub fn swap_medium(&mut self, id: AdapterId, target: u8, opened: Opened) {
        self.eject(id, target, false);
        // It has just been opened.
        let _ = self.inserted(Ok(opened));
    }

    /// Opens a medium for a drive on a helper thread; `asked`: an operator waits for it.
    pub fn open_medium(&self, wanted: Wanted, asked: bool) {
        let (state_dir, boot) = (self.state_dir.clone(), self.boot.clone());
        let reply = self.mailbox.reply();
        self.helpers.run(move || {
            let opened = lun::open(&wanted, &state_dir, &boot).map_err(|refused| refused.line);
            reply.send(Done::Inserted(wanted.key, Box::new(opened), asked));
        });
    }

    /// A medium for a drive has been opened, or not.
    ///
    /// # Errors
    /// One line.
    pub fn inserted(&mut self, opened: Result<Opened, String>) -> Result<(), String> {
        let opened = opened?;
        let gone = || format!("{}: the LUN has been removed", opened.key.name());
        let id = self.find(&opened.key).ok_or_else(gone)?;
        let target = opened.key.target;
        let Some(entry) = self.entry_mut(id, target) else {
            return Err(gone());
        };
        let tray = (opened.config.backing != entry.defined).then(|| opened.config.backing.clone());
        if opened.spec == BackingSpec::Empty {
            // Emptied by its definition.
            entry.lun.unit.set_backing(&entry.defined);
            let version = entry.lun.unit.set_tray(None);
            let lun = Arc::clone(&entry.lun);
            self.save(lun.id, version, lun.unit.save(), None);
            return Ok(());
        }
        let size = opened.backing.as_ref().map_or(0, |backing| backing.size_bytes());
        entry.lun.unit.set_blocks(size / u64::from(entry.lun.unit.block_size()));
        (entry.backing, entry.absent) = (opened.backing, None);
        entry.config.backing = opened.config.backing;
        let lun = Arc::clone(&entry.lun);
        lun.unit.set_backing(&entry.defined);
        let version = lun.unit.set_tray(tray);
        self.save(lun.id, version, lun.unit.save(), None);
        self.publish(id);
        lun.unit.set_media(Media::Ready);
        self.notify(id, Notice::Medium(target));
        Ok(())
    }
}
