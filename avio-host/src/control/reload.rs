//! Who waits for which reading of the configuration.
//!
//! Owned by a daemon's control thread; both daemons use it for SIGHUP and for `Reload`. It reads nothing itself. One reading
//! at a time: whoever asks while one is under way gets another behind it, because the files may have changed since it began,
//! and is answered by that one only.

use avio_proto::control::ReloadReply;

/// What came of a reading: what changed, or what was refused.
pub type ReloadOutcome = Result<ReloadReply, Vec<String>>;

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    /// `again`: somebody asked meanwhile.
    Running { again: bool },
    /// For the calls that wait.
    Done(ReloadOutcome),
}

/// What a call of `Reload` comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Called {
    /// A reading begins with it: start it, then call again as a call that is made again.
    Begin,
    /// There is no answer yet.
    Wait,
    /// Its answer.
    Answer(ReloadOutcome),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Reloads {
    state: State,
    /// What readings changed whose callers wait for a later one.
    earlier: ReloadReply,
}

impl Reloads {
    /// Somebody asks who wants no answer (SIGHUP). Returns whether a reading is to begin now; else one will, see [`Reloads::done`].
    pub fn ask(&mut self) -> bool {
        if let State::Running { again } = &mut self.state {
            *again = true;
            return false;
        }
        self.state = State::Running { again: false };
        true
    }

    /// A client calls; `again`: as [`Peer::again`](super::Peer::again).
    pub fn call(&mut self, again: bool) -> Called {
        match &self.state {
            State::Done(outcome) if again => Called::Answer(outcome.clone()),
            State::Running { .. } if again => Called::Wait,
            _ => match self.ask() {
                true => Called::Begin,
                false => Called::Wait,
            },
        }
    }

    /// The reading has come to its end. Returns whether another is asked for: then [`Reloads::ask`] begins it, and who waits
    /// gets the changes of both.
    pub fn done(&mut self, mut outcome: ReloadOutcome) -> bool {
        if matches!(self.state, State::Running { again: true }) {
            self.earlier.changes.extend(outcome.into_iter().flat_map(|reply| reply.changes));
            self.state = State::Idle;
            return true;
        }
        let earlier = std::mem::take(&mut self.earlier);
        if let Ok(reply) = &mut outcome {
            reply.changes.splice(0..0, earlier.changes);
        }
        self.state = State::Done(outcome);
        false
    }

    /// Everybody who waited has been answered.
    pub fn forget(&mut self) {
        if matches!(self.state, State::Done(_)) {
            self.state = State::Idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(lines: &[&str]) -> ReloadOutcome {
        Ok(ReloadReply { changes: lines.iter().map(|&line| line.into()).collect(), ..ReloadReply::default() })
    }

    #[test]
    fn a_call_begins_a_reading_and_gets_its_outcome() {
        let mut reloads = Reloads::default();
        assert_eq!(reloads.call(false), Called::Begin);
        assert_eq!(reloads.call(true), Called::Wait);
        assert!(!reloads.done(changed(&["a"])));
        assert_eq!(reloads.call(true), Called::Answer(changed(&["a"])));
        reloads.forget();
        assert_eq!(reloads.call(false), Called::Begin);
    }

    #[test]
    fn who_asks_during_a_reading_gets_another_and_its_outcome() {
        for signal in [false, true] {
            let mut reloads = Reloads::default();
            assert!(reloads.ask());
            if signal {
                assert!(!reloads.ask());
            } else {
                assert_eq!(reloads.call(false), Called::Wait);
            }
            // Being made again asks for nothing new.
            assert_eq!(reloads.call(true), Called::Wait);
            assert!(reloads.done(changed(&["a"])));
            assert!(reloads.ask());
            assert_eq!(reloads.call(true), Called::Wait);
            assert!(!reloads.done(changed(&["b"])));
            assert_eq!(reloads.call(true), Called::Answer(changed(&["a", "b"])));
        }
    }

    #[test]
    fn the_last_reading_decides_whether_it_is_refused() {
        let mut reloads = Reloads::default();
        assert_eq!(reloads.call(false), Called::Begin);
        assert!(!reloads.ask());
        assert!(reloads.done(Err(vec!["half written".into()])));
        assert!(reloads.ask());
        assert!(!reloads.done(changed(&["b"])));
        assert_eq!(reloads.call(true), Called::Answer(changed(&["b"])));
        // An outcome that is there is none for who comes later.
        assert_eq!(reloads.call(false), Called::Begin);
        assert!(!reloads.done(Err(vec!["wrong".into()])));
        assert_eq!(reloads.call(true), Called::Answer(Err(vec!["wrong".into()])));
    }
}
