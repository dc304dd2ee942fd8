//! Reading the configuration again while the daemon runs: files on a helper thread, reconciling on the control thread.

use avio_host::blocking::{Helpers, Mailbox, Reply};
use avio_host::config::{Config, ConfigErrors, Surroundings, load, surroundings};
use std::path::PathBuf;

use super::varlink::CAPABILITIES;

/// What a helper thread found in the files.
pub(super) type Found = (Surroundings, Result<Config, ConfigErrors>);

/// See the module.
pub(super) struct Reader {
    dir: PathBuf,
    helpers: Helpers,
    mailbox: Mailbox<Found>,
}

impl Reader {
    /// Of the directory `dir`; results arrive in `mailbox`, whose waker turns the control loop.
    pub(super) fn new(dir: PathBuf, helpers: Helpers, mailbox: Mailbox<Found>) -> Self {
        Self { dir, helpers, mailbox }
    }

    /// Starts reading.
    pub(super) fn start(&self) {
        let (dir, reply): (PathBuf, Reply<Found>) = (self.dir.clone(), self.mailbox.reply());
        self.helpers.run(move || {
            let around = surroundings(CAPABILITIES);
            let config = load(&dir, &around);
            reply.send((around, config));
        });
    }

    /// What a helper has found, if it has finished.
    pub(super) fn found(&self) -> Option<Found> {
        self.mailbox.take()
    }
}
