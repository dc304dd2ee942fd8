//! One ring in a worker's hands: what is taken from it, and how answers get back.
//!
//! Owned by the engine of one worker. It knows chains and their first and last bytes, not what a request means.

use std::sync::Arc;

use avio_host::wait::{Notified, Notifier, Token};
use avio_proto::mem::GuestSlice;
use avio_proto::ring::{
    Batch, CHAINS_MAX, ChainArena, ChainId, DeviceRing, HeldChains, HeldId, Inflight, RingError,
};

use super::at_once::{self, Moment, Tally};
use super::message::{QueueSpec, Role};
use crate::adapter::{AdapterId, AdapterView};
use crate::backing::Pin;
use crate::lun::QueueStats;

/// A ring that is served.
pub(super) struct Queue {
    pub token: Token,
    pub adapter: AdapterId,
    /// The adapter's LUNs, as last published.
    pub view: Option<Arc<AdapterView>>,
    pub index: u16,
    pub role: Role,
    pub ring: DeviceRing,
    /// What was taken and is not answered.
    pub held: HeldChains,
    /// What a successor of this process would have to do again.
    inflight: Option<Inflight>,
    notifier: Notifier,
    pub stats: Arc<QueueStats>,
    /// No more is taken; control waits for what was.
    pub stopping: bool,
    /// The driver broke a rule, or we did.
    pub broken: bool,
    /// Answers are staged that are not published.
    pub staged: bool,
    /// Its driver cannot flush: see [`QueueSpec::durable`].
    pub durable: bool,
    /// Its entries.
    pub size: u16,
    /// What is taken now was taken by a predecessor of this process before.
    pub recovering: bool,
    /// An event was lost for want of a buffer, and the guest has not been told (virtio 1.3 §5.6.6.3).
    pub events_missed: bool,
    /// It was made active by answers, not by a kick.
    pub roused: bool,
    /// Its memory as it is registered with the kernel.
    pub pin: Option<Pin>,
}

impl Queue {
    pub fn new(spec: QueueSpec, token: Token, view: Option<Arc<AdapterView>>, pin: Option<Pin>) -> Self {
        let held = HeldChains::new(&spec.ring, spec.size);
        Self {
            token,
            adapter: spec.adapter,
            view,
            index: spec.index,
            role: spec.role,
            ring: spec.ring,
            held,
            inflight: spec.inflight,
            notifier: Notifier::new(spec.call),
            stats: spec.stats,
            stopping: false,
            broken: false,
            staged: false,
            durable: spec.durable,
            size: spec.size,
            recovering: false,
            events_missed: spec.events_missed,
            roused: false,
            pin,
        }
    }

    /// Takes at most `budget` chains and answers those that need no waiting; `ids` are the others, in order. Returns how many
    /// were taken.
    ///
    /// The log is written behind the answers: what dies in between was neither marked as taken nor published as used, so a
    /// successor takes it again. What was answered has no mark in a split ring's log at all, for the same reason.
    pub fn take(
        &mut self,
        arena: &mut ChainArena,
        budget: usize,
        ids: &mut Vec<HeldId>,
        moment: Moment,
    ) -> Result<usize, RingError> {
        ids.clear();
        let mut done = [(ChainId::default(), 0); CHAINS_MAX];
        let batch = self.ring.take(arena, budget.min(CHAINS_MAX))?;
        let count = batch.len();
        let memory = self.held.memory();
        let mut answered = 0;
        if let Some(view) = &self.view {
            let mut tally = Tally::default();
            // A driver that has the end of one request beside its header has it so in all.
            let apart = !batch.is_empty() && response_apart(&batch, 0).is_some();
            if apart {
                prefetch(&batch, 0..count.min(AHEAD));
            }
            let ahead = match count {
                0 => 0,
                _ => at_once::turns_ahead(self.role, view, &batch.chain(0)),
            };
            if count > 1 && ahead > 1 {
                at_once::prefetch(self.role, view, &batch.chain(1), ahead);
            }
            while answered < count {
                if apart {
                    let next = answered + AHEAD;
                    prefetch(&batch, next.min(count)..(next + 1).min(count));
                }
                let chain = batch.chain(answered);
                for turns in 1..=ahead.min(count - answered - 1) {
                    at_once::prefetch(self.role, view, &batch.chain(answered + turns), turns);
                }
                let Some(bytes) = at_once::answer(self.role, view, memory, &chain, moment, &mut tally) else {
                    break;
                };
                done[answered] = (chain.id, bytes);
                answered += 1;
            }
            tally.end(moment.worker);
        }
        for (i, place) in done.iter_mut().enumerate().take(count).skip(answered) {
            place.0 = batch.chain(i).id;
            // There are as many places as the ring has entries, so each chain finds one.
            ids.extend(self.held.hold(&batch, i));
        }
        let (done, held) = done[..count].split_at(answered);
        if let Some(log) = &mut self.inflight {
            if !done.is_empty() {
                log.answered(&self.ring, done.iter().map(|&(chain, _)| chain));
            }
            if !held.is_empty() {
                log.taken(&self.ring, held.iter().map(|&(chain, _)| chain));
            }
        }
        self.ring.complete_all(done);
        self.staged |= answered > 0;
        Ok(count)
    }

    /// Takes again what a predecessor had taken and not answered, in the order in which it had.
    pub fn recover(&mut self, arena: &mut ChainArena, ids: &mut Vec<HeldId>) -> Result<(), RingError> {
        ids.clear();
        let Some(log) = &mut self.inflight else { return Ok(()) };
        for i in 0..log.recover(&mut self.ring) {
            let batch = log.retake(&mut self.ring, arena, i)?;
            ids.extend(self.held.hold(&batch, 0));
        }
        Ok(())
    }

    /// Notes beside a chain's entry of the in-flight region what a successor must know of it to do it again.
    pub fn mark(&mut self, id: HeldId, mark: u8) {
        let chain = self.held.chain(id).id;
        if let Some(log) = &mut self.inflight {
            log.mark(chain, mark);
        }
    }

    /// What was noted of a chain, by this process or a predecessor; 0: nothing.
    pub fn marked(&self, id: HeldId) -> u8 {
        let chain = self.held.chain(id).id;
        self.inflight.as_ref().map_or(0, |log| log.marked(chain))
    }

    /// The number under which a chain was taken, the same for a successor; `None` without an in-flight region.
    pub fn number(&self, id: HeldId) -> Option<u64> {
        self.inflight.as_ref().map(|log| log.number(self.held.chain(id).id))
    }

    /// The first bytes of what the driver wrote; returns how many there are, at most `to.len()`.
    #[inline]
    pub fn read_front(&self, id: HeldId, to: &mut [u8]) -> usize {
        gather(self.held.chain(id).readable, to)
    }

    /// Writes `bytes` into what the device may write, `skip` bytes in; returns how many fit.
    pub fn write_at(&self, id: HeldId, skip: usize, bytes: &[u8]) -> usize {
        at_once::put(self.held.memory(), self.held.chain(id).writable, skip, bytes)
    }

    /// Gives a chain back, `written` bytes written. It is published at the end of the turn.
    #[inline]
    pub fn complete(&mut self, id: HeldId, written: u32) {
        let Some(chain) = self.held.release(id) else { return };
        self.ring.complete(chain, written);
        if let Some(log) = &mut self.inflight {
            log.completed(chain);
        }
        self.staged = true;
    }

    /// Publishes what was completed, and notifies the guest if it wants to know. `false`: its VMM held the notification.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        self.staged = false;
        if let Some(log) = &mut self.inflight {
            log.publishing();
        }
        let wanted = self.ring.publish();
        if let Some(log) = &mut self.inflight {
            log.published(&self.ring);
        }
        if !wanted {
            self.stats.suppressed();
            return true;
        }
        match self.notifier.notify() {
            Notified::Yes => self.stats.notified(),
            Notified::Nobody => {}
            Notified::Held => return false,
        }
        true
    }

    /// Whether control may have it back.
    pub fn is_quiet(&self) -> bool {
        self.held.count() == 0 && !self.staged
    }
}

/// How many chains ahead the line that gets the status is fetched: the driver's core may have it.
const AHEAD: usize = 8;

/// Fetches the lines of some chains that say how they ended.
#[inline]
fn prefetch(batch: &Batch<'_>, chains: std::ops::Range<usize>) {
    for response in chains.filter_map(|i| response_apart(batch, i)) {
        // To be read: as a rule it says already what it should, see `at_once::put_status`.
        response.prefetch_read();
    }
}

/// Where a chain says how it ended, unless that is in the line of its header, which is fetched anyway.
#[inline]
fn response_apart<'a>(batch: &Batch<'a>, i: usize) -> Option<&'a GuestSlice<'a>> {
    let chain = batch.chain(i);
    // A disk's status stands last, an adapter's response first, in front of the data.
    let response = first_or_last(chain.writable.first()?, chain.writable.last()?);
    chain.readable.first().is_none_or(|header| !header.shares_line(response)).then_some(response)
}

/// The one that is no data: the shorter.
#[inline]
fn first_or_last<'a>(first: &'a GuestSlice<'a>, last: &'a GuestSlice<'a>) -> &'a GuestSlice<'a> {
    if first.len() <= last.len() { first } else { last }
}

/// Copies the front of a list of pieces; returns how many bytes.
#[inline]
pub(super) fn gather(pieces: &[GuestSlice<'_>], to: &mut [u8]) -> usize {
    let mut done = 0;
    for piece in pieces {
        if done == to.len() {
            break;
        }
        done += piece.copy_to(&mut to[done..]);
    }
    done
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({:?} {} {:?}, {} held)", self.adapter, self.index, self.role, self.held.count())
    }
}
