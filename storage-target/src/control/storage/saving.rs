//! What must outlive the process is on disk before whoever asked for it is told.
//!
//! Called on the control thread; writing is the journal thread's, one thread that works in order. Knows which file is whose (`Journal`); what a file
//! holds is for [`journal`].

use std::path::PathBuf;

use super::{Done, Storage};
use crate::control::adapter::Adapter;
use crate::control::journal;
use crate::control::lun::LunKey;
use crate::lun::LunId;
use crate::scsi::SavedState;

/// A logical unit's journal.
pub(super) struct Journal {
    pub path: PathBuf,
}

impl Storage {
    /// Writes a logical unit's state on a helper thread.
    pub fn save(&self, lun: LunId, version: u64, state: SavedState, worker: Option<usize>) {
        let Some(journal) = self.journals.get(&lun) else { return };
        self.save_at(journal.path.clone(), lun, version, state, worker);
    }

    /// As [`Storage::save`], to where the state will be looked for.
    pub fn save_at(
        &self,
        path: PathBuf,
        lun: LunId,
        version: u64,
        mut state: SavedState,
        worker: Option<usize>,
    ) {
        state.boot.clone_from(&self.boot);
        let reply = self.mailbox.reply();
        self.journal.run(move || {
            let result = journal::write(&path, &state).map_err(|e| format!("{}: {e}", path.display()));
            reply.send(Done::Written { lun, version, worker, result });
        });
    }

    /// Ends a reconciliation once what it had written down is durable: whoever is told that a backing is replaced may rely
    /// on it, even if the daemon dies in the next moment.
    pub fn after_journal(&self, outcome: Result<Vec<String>, Vec<String>>) {
        let reply = self.mailbox.reply();
        // The journal's one thread works in order, so everything before this has been written.
        self.journal.run(move || reply.send(Done::Durable(outcome)));
    }

    /// Remembers whether a logical unit's last state is on disk.
    pub fn written(&mut self, lun: LunId, result: &Result<(), String>) {
        let Err(error) = result else {
            self.not_saved.remove(&lun);
            return;
        };
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.push(format!("state of a LUN is not saved: {error}"));
        }
        // A guest can have it said as often as it likes.
        self.log("state of a LUN is not saved", error);
        self.not_saved.insert(lun, error.clone());
    }

    /// Tells who waits what became of an operator's change of a LUN, once what it had written down is durable.
    pub fn settle(&self, key: LunKey, outcome: Result<(), String>) {
        let reply = self.mailbox.reply();
        self.journal.run(move || reply.send(Done::Settled(key, outcome)));
    }

    pub fn was_saved(&self, key: &LunKey) -> Result<(), String> {
        let entry = self.find(key).and_then(|id| self.entry(id, key.target));
        match entry.and_then(|entry| self.not_saved.get(&entry.lun.id)) {
            Some(error) => Err(format!(
                "{}: done, but not saved: {error}; the daemon's next start undoes it, unless the state folder can be \
                 written and it is done again",
                key.name()
            )),
            None => Ok(()),
        }
    }

    /// Forgets a logical unit that no adapter has any more, and what was written down of it.
    pub fn forget(&mut self, lun: LunId) {
        let has = |adapter: &Adapter| adapter.luns.values().any(|entry| entry.lun.id == lun);
        if self.adapters.values().any(has) {
            return;
        }
        let Some(Journal { path }) = self.journals.remove(&lun) else { return };
        self.journal.run(move || {
            if let Err(error) = journal::remove(&path) {
                tracing::error!("{}: {error}", path.display());
            }
        });
    }
}
