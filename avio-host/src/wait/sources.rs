//! The sources of one worker: slots, the list of active ones, the epoll set of the kicks.
//!
//! An [`Engine`](crate::worker::Engine) adds and removes sources here when a command tells it to; the worker loop moves them
//! between active and armed. It polls nothing and never calls an engine.
//!
//! Kick fds stay in the epoll set while their source is active, edge-triggered: changing the set would cost a system
//! call per change, and reading the counter one per wake-up, while an edge costs nothing until somebody looks. However
//! often a guest kicks, the set reports it once per look.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::stats::WorkerStats;
use crate::wait::{EventFd, SourceIdle};

/// Sources a worker can hold: 4,096 ports with 16 queue pairs. More is a leak, not a configuration.
pub const SOURCES_MAX: usize = 65_536;
/// Kicks taken up in one look at the epoll set. The rest comes with the next look, so the bound costs nothing.
const EVENTS_MAX: usize = 64;
/// Epoll data of the worker's own eventfd; no token has this generation.
const OWN_EVENT: u64 = u64::MAX;

/// A source of one worker. Tokens of removed sources are recognised and ignored; their index is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    /// A small number, unique among the sources the worker has now: an index into the engine's own table.
    #[inline]
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// As epoll data.
    fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_u64(data: u64) -> Self {
        Self { index: data as u32, generation: (data >> 32) as u32 }
    }
}

/// Why a source was not added.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The worker holds as many sources as it can (65,536).
    #[error("the worker already has {SOURCES_MAX} sources")]
    TooMany,
    /// The kick descriptor cannot be waited for (not an eventfd, pipe or socket), or the kernel is out of memory.
    #[error("the kick descriptor cannot be waited for: {0}")]
    Kick(#[source] std::io::Error),
}

/// Where a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No source in this slot.
    Free,
    /// In the active list.
    Active,
    /// Waits for its kick.
    Armed,
    /// Broken: neither polled nor listened to, until the engine removes it.
    Parked,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: State,
    kick: Option<OwnedFd>,
    idle: SourceIdle,
}

/// The sources of one worker; owned by its thread.
#[derive(Debug)]
pub struct Sources {
    epoll: OwnedFd,
    /// What the last look found kicked and is not yet taken up.
    kicked: Vec<Token>,
    slots: Vec<Slot>,
    /// Free slots, oldest first, so that an index comes back as late as possible.
    free: VecDeque<u32>,
    active: Vec<Token>,
    armed: usize,
    /// Made active since the loop last looked: their notifications are still to be switched off.
    roused: Vec<Token>,
    /// Sources in the active list that have no kick fd and therefore never leave it.
    active_without_kick: usize,
    now_ns: u64,
    stats: Arc<WorkerStats>,
}

impl Sources {
    /// An empty set whose epoll also listens to `own`, the eventfd by which control wakes the worker. The worker's; whoever drives
    /// an engine without one makes it himself.
    ///
    /// # Errors
    /// What epoll_create1 or epoll_ctl say.
    pub fn new(own: &EventFd, stats: Arc<WorkerStats>) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            own,
            epoll::EventData::new_u64(OWN_EVENT),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        Ok(Self {
            epoll,
            kicked: Vec::with_capacity(EVENTS_MAX),
            slots: Vec::new(),
            free: VecDeque::new(),
            active: Vec::new(),
            armed: 0,
            roused: Vec::new(),
            active_without_kick: 0,
            now_ns: 0,
            stats,
        })
    }

    /// Adds a source and makes it active: it is polled from this turn on, and the engine's `disarm` is called for it first.
    ///
    /// `kick` is what the guest writes to notify (vhost-user SET_VRING_KICK); `None` (VHOST_USER_VRING_NOFD) means that the
    /// source is polled for ever, with short sleeps between when it is idle.
    pub fn add(&mut self, kick: Option<OwnedFd>) -> Result<Token, SourceError> {
        let index = match self.free.pop_front() {
            Some(index) => index,
            None if self.slots.len() == SOURCES_MAX => return Err(SourceError::TooMany),
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    state: State::Free,
                    kick: None,
                    idle: SourceIdle::new(0),
                });
                self.slots.len() as u32 - 1
            }
        };
        let token = Token { index, generation: self.slots[index as usize].generation };
        if let Some(fd) = &kick {
            let data = epoll::EventData::new_u64(token.to_u64());
            if let Err(error) =
                epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN | epoll::EventFlags::ET)
            {
                self.free.push_front(index);
                return Err(SourceError::Kick(error.into()));
            }
        }
        self.active_without_kick += usize::from(kick.is_none());
        // Room for every source in each list now, so that moving between them never allocates.
        let count = self.slots.len();
        self.active.reserve(count - self.active.len());
        self.roused.reserve(count);
        let slot = &mut self.slots[index as usize];
        (slot.state, slot.kick, slot.idle) = (State::Active, kick, SourceIdle::new(self.now_ns));
        self.active.push(token);
        self.roused.push(token);
        Ok(token)
    }

    /// Takes a source away, whatever its state; it is not polled again and no event of it is taken up. Returns its kick fd.
    /// A token that is no longer known changes nothing.
    pub fn remove(&mut self, token: Token) -> Option<OwnedFd> {
        self.leave(token, State::Free)?;
        let slot = &mut self.slots[token.index()];
        slot.generation = slot.generation.wrapping_add(1) & (u32::MAX >> 1);
        self.free.push_back(token.index);
        // Closing would not do: while the guest holds the eventfd it would stay in the epoll set.
        let kick = slot.kick.take()?;
        let _ = epoll::delete(&self.epoll, &kick);
        Some(kick)
    }

    /// Makes an armed source active without a kick, because the engine knows that there is work for it, or soon will be. Returns
    /// whether it was armed.
    pub fn activate(&mut self, token: Token) -> bool {
        let armed = self.slot(token).is_some_and(|slot| slot.state == State::Armed);
        if armed {
            let slot = &mut self.slots[token.index()];
            slot.state = State::Active;
            slot.idle.activated(self.now_ns);
            self.armed -= 1;
            self.active.push(token);
            self.roused.push(token);
        }
        armed
    }

    /// Whether `token` still names a source of this worker.
    pub fn contains(&self, token: Token) -> bool {
        self.slot(token).is_some()
    }

    /// The worker's counters, for what only the engine can count (lock waits). Written by the worker's thread alone.
    pub fn stats(&self) -> &Arc<WorkerStats> {
        &self.stats
    }

    /// Sources that are polled now, in no particular order.
    #[inline]
    #[must_use]
    pub fn active(&self) -> &[Token] {
        &self.active
    }

    /// How many sources wait for their kick.
    pub(crate) fn armed(&self) -> usize {
        self.armed
    }

    /// Whether every active source is one that has no kick fd.
    pub(crate) fn only_kickless_active(&self) -> bool {
        self.active.len() == self.active_without_kick
    }

    /// Whether the source can be armed at all.
    pub(crate) fn has_kick(&self, token: Token) -> bool {
        self.slot(token).is_some_and(|slot| slot.kick.is_some())
    }

    /// Idle bookkeeping of an active source.
    #[inline]
    pub(crate) fn idle(&mut self, token: Token) -> &mut SourceIdle {
        &mut self.slots[token.index()].idle
    }

    /// The loop's coarse clock, for sources that become active.
    pub(crate) fn set_now(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// The engine has armed the source and found it empty.
    pub(crate) fn set_armed(&mut self, token: Token) {
        if self.leave(token, State::Armed).is_some() {
            self.armed += 1;
        }
    }

    /// The source is broken: it is not polled and its kicks wake nobody until the engine removes it.
    pub(crate) fn park(&mut self, token: Token) {
        if self.leave(token, State::Parked).is_some()
            && let Some(kick) = &self.slots[token.index()].kick
        {
            let _ = epoll::delete(&self.epoll, kick);
        }
    }

    /// Next source made active since the last call, if it still is.
    pub(crate) fn next_roused(&mut self) -> Option<Token> {
        while let Some(token) = self.roused.pop() {
            if self.slot(token).is_some_and(|slot| slot.state == State::Active) {
                return Some(token);
            }
        }
        None
    }

    /// Waits for events up to `timeout` (`None`: until something happens); returns how many there are, the worker's own
    /// included.
    pub fn wait(&mut self, timeout: Option<Duration>) -> usize {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut buffer = [const { MaybeUninit::uninit() }; EVENTS_MAX];
        let events = match epoll::wait(&self.epoll, &mut buffer, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return 0,
            Err(error) => panic!("epoll_wait on the worker's own set: {error}"),
        };
        let kicks = events.iter().map(|event| event.data.u64()).filter(|&data| data != OWN_EVENT);
        self.kicked.extend(kicks.map(Token::from_u64));
        events.len()
    }

    /// Makes the sources active that [`wait`](Self::wait) found kicked. Apart from it, so that the clock can be set between.
    pub(crate) fn take_kicks(&mut self) {
        while let Some(token) = self.kicked.pop() {
            self.activate(token);
        }
    }

    fn slot(&self, token: Token) -> Option<&Slot> {
        self.slots
            .get(token.index())
            .filter(|slot| slot.generation == token.generation && slot.state != State::Free)
    }

    /// Takes the source out of the list of its state and gives it `state`. `None` when the token is not known.
    fn leave(&mut self, token: Token, state: State) -> Option<()> {
        let slot = self.slot(token)?;
        let kickless = slot.kick.is_none();
        match slot.state {
            State::Active => {
                self.active.retain(|&other| other != token);
                self.active_without_kick -= usize::from(kickless);
            }
            State::Armed => self.armed -= 1,
            State::Parked | State::Free => {}
        }
        self.slots[token.index()].state = state;
        Some(())
    }
}

impl AsFd for Sources {
    /// The epoll set itself: readable when a source was kicked. `avio-stord` watches it from its io_uring (DESIGN section 5).
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> (EventFd, Sources) {
        let own = EventFd::new().unwrap();
        let sources = Sources::new(&own, Arc::default()).unwrap();
        (own, sources)
    }

    fn add(sources: &mut Sources) -> (EventFd, Token) {
        let kick = EventFd::new().unwrap();
        let token = sources.add(Some(kick.try_clone().unwrap())).unwrap();
        (kick, token)
    }

    /// One look: how many events, and their effect.
    fn look(sources: &mut Sources) -> usize {
        let events = sources.wait(Some(Duration::ZERO));
        sources.take_kicks();
        events
    }

    #[test]
    fn a_storm_of_kicks_is_one_event() {
        let (_own, mut sources) = set();
        let (kick, token) = add(&mut sources);
        sources.set_armed(token);
        assert_eq!((sources.active().len(), sources.armed()), (0, 1));
        (0..1_000).for_each(|_| kick.signal());
        assert_eq!(look(&mut sources), 1);
        assert_eq!(sources.active(), [token]);
        assert_eq!(look(&mut sources), 0, "nothing new: no event although nobody read the eventfd");
        sources.set_armed(token);
        kick.signal();
        assert_eq!(look(&mut sources), 1, "the next kick is an edge again");
    }

    #[test]
    fn a_kick_before_the_source_was_added_counts() {
        let (_own, mut sources) = set();
        let kick = EventFd::new().unwrap();
        kick.signal();
        let token = sources.add(Some(kick.try_clone().unwrap())).unwrap();
        sources.set_armed(token);
        assert_eq!(look(&mut sources), 1);
        assert_eq!(sources.active(), [token]);
    }

    #[test]
    fn events_of_a_removed_source_do_not_reach_its_successor() {
        let (_own, mut sources) = set();
        let (kick, old) = add(&mut sources);
        sources.set_armed(old);
        assert!(sources.remove(old).is_some());
        assert!(sources.remove(old).is_none(), "a stale token is ignored");
        let (_kick2, new) = add(&mut sources);
        assert_eq!(new.index(), old.index());
        sources.set_armed(new);
        kick.signal();
        assert_eq!(look(&mut sources), 0, "the guest still holds its end, the set does not");
        sources.activate(old);
        assert!(sources.active().is_empty());
    }

    #[test]
    fn a_parked_source_is_deaf_and_removable() {
        let (_own, mut sources) = set();
        let (kick, token) = add(&mut sources);
        sources.park(token);
        kick.signal();
        assert_eq!(look(&mut sources), 0);
        assert!(sources.active().is_empty() && sources.contains(token));
        assert!(sources.remove(token).is_some());
        assert!(!sources.contains(token));
    }

    #[test]
    fn a_descriptor_that_cannot_be_waited_for_is_refused_and_leaves_nothing() {
        let (_own, mut sources) = set();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(matches!(sources.add(Some(file.into())), Err(SourceError::Kick(_))));
        assert!(sources.active().is_empty() && sources.next_roused().is_none());
        let (_kick, token) = add(&mut sources);
        assert_eq!(token.index(), 0);
    }

    #[test]
    fn kickless_sources_are_told_apart() {
        let (_own, mut sources) = set();
        let token = sources.add(None).unwrap();
        assert!(sources.only_kickless_active() && !sources.has_kick(token));
        let (_kick, other) = add(&mut sources);
        assert!(!sources.only_kickless_active());
        sources.remove(other);
        sources.remove(token);
        assert!(sources.active().is_empty());
    }
}
