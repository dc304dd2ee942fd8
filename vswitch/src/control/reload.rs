//! Reading the configuration again while the daemon runs: files on a helper thread, reconciling on the control thread.
//!
//! One reading at a time. A call of `Reload` that comes while one is under way has its own afterwards, because the files may
//! have changed since; a SIGHUP likewise.

use avio_host::blocking::{Helpers, Mailbox, Reply};
use avio_host::config::{Config, ConfigErrors, Surroundings, load, surroundings};
use avio_proto::control::ReloadReply;
use std::path::PathBuf;

use super::varlink::CAPABILITIES;

/// What a helper thread found in the files.
pub(super) type Found = (Surroundings, Result<Config, ConfigErrors>);
/// What came of it: changes, or what was refused.
pub(super) type Outcome = Result<ReloadReply, Vec<String>>;

enum State {
    Idle,
    /// A helper reads; `again`: SIGHUP came meanwhile.
    Reading {
        again: bool,
    },
    /// For the client that asked.
    Done(Outcome),
}

/// See the module.
pub(super) struct Reload {
    dir: PathBuf,
    helpers: Helpers,
    mailbox: Mailbox<Found>,
    state: State,
}

impl Reload {
    /// Of the directory `dir`; results arrive in `mailbox`, whose waker turns the control loop.
    pub(super) fn new(dir: PathBuf, helpers: Helpers, mailbox: Mailbox<Found>) -> Self {
        Self { dir, helpers, mailbox, state: State::Idle }
    }

    /// Starts reading, or again after the reading that is under way. Returns whether a reading has begun now.
    pub(super) fn start(&mut self) -> bool {
        if let State::Reading { again } = &mut self.state {
            *again = true;
            return false;
        }
        self.state = State::Reading { again: false };
        let (dir, reply): (PathBuf, Reply<Found>) = (self.dir.clone(), self.mailbox.reply());
        self.helpers.run(move || {
            let around = surroundings(CAPABILITIES);
            let config = load(&dir, &around);
            reply.send((around, config));
        });
        true
    }

    /// What a helper has found, if it has finished.
    pub(super) fn found(&self) -> Option<Found> {
        self.mailbox.take()
    }

    /// The finding has been dealt with. Returns whether a SIGHUP asks for another reading.
    pub(super) fn finish(&mut self, outcome: Outcome) -> bool {
        let again = matches!(self.state, State::Reading { again: true });
        self.state = State::Done(outcome);
        again
    }

    /// The outcome for a client's call; `None`: not yet, a reading is under way or has just begun.
    pub(super) fn outcome(&mut self) -> Option<Outcome> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Done(outcome) => Some(outcome),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Nobody waited for the outcome.
    pub(super) fn forget(&mut self) {
        if matches!(self.state, State::Done(_)) {
            self.state = State::Idle;
        }
    }

    /// Whether a reading is under way.
    pub(super) fn is_reading(&self) -> bool {
        matches!(self.state, State::Reading { .. })
    }
}
