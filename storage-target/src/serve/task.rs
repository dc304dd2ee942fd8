//! Task management, and waiting for requests to be gone (virtio 1.3 §5.6.6.2; SAM-5 7).
//!
//! What waits is listed with a scope; whenever a job has ended, the list is looked at. What concerns other workers as well
//! goes to control, which asks them and answers when all have (`relay`). The answer to a task management function is
//! written when the last answer to a command that it ended has been published.

use std::sync::Arc;

use avio_host::wait::Token;
use avio_proto::ring::{ChainArena, HeldId};
use avio_proto::virtio::scsi::{self, ControlRequest};

use super::engine::Serving;
use super::job::{JobId, Waiter, Waiting};
use super::message::{Action, Event, Notice, Role, Scope, Ticket};
use crate::adapter::{AdapterId, Target};
use crate::scsi::ResetKind;

impl Serving {
    /// Takes one request of the control queue up.
    pub(super) fn control_request(&mut self, token: Token, held: HeldId) {
        let Some(queue) = self.queue(token) else { return };
        let mut bytes = [0; ControlRequest::TMF_LEN];
        let count = queue.read_front(held, &mut bytes);
        let adapter = queue.adapter;
        match ControlRequest::decode(&bytes[..count]) {
            Some(ControlRequest::Tmf { subtype, lun, id }) => {
                self.task_management(token, held, adapter, subtype, lun, id);
            }
            // Media changes are reported whoever asks (MMC events have no other way to sr).
            Some(
                ControlRequest::AnQuery { requested, .. } | ControlRequest::AnSubscribe { requested, .. },
            ) => {
                let response = ControlRequest::an_response(requested & scsi::AN_MEDIA_CHANGE, scsi::S_OK);
                let written = queue.write_at(held, 0, &response);
                self.complete(token, held, written as u32);
            }
            None => self.task_response(token, held, scsi::S_FAILURE),
        }
    }

    fn task_management(
        &mut self,
        token: Token,
        held: HeldId,
        adapter: AdapterId,
        subtype: u32,
        lun: [u8; 8],
        tag: u64,
    ) {
        let address = scsi::Lun::decode(&lun);
        let target = address.and_then(|address| self.adapters.get(&adapter)?.target(address.target)).cloned();
        let Some(target) = target else { return self.task_response(token, held, scsi::S_BAD_TARGET) };
        if address.is_some_and(|address| address.lun != 0) {
            return self.task_response(token, held, scsi::S_INCORRECT_LUN);
        }
        let mine = Scope { adapter: Some(adapter), target: Some(target.number), ..Scope::default() };
        let all = Scope { lun: Some(target.lun.id), ..Scope::default() };
        let complete = scsi::S_FUNCTION_COMPLETE;
        let abort = Action::Abort(scsi::S_ABORTED);
        match subtype {
            scsi::T_TMF_ABORT_TASK => {
                let scope = Scope { tag: Some(tag), ..mine };
                self.task_begin(token, held, scope, abort, complete);
            }
            scsi::T_TMF_ABORT_TASK_SET => self.task_begin(token, held, mine, abort, complete),
            scsi::T_TMF_CLEAR_TASK_SET => {
                target.lun.unit.task_set_cleared(&target.nexus);
                self.task_begin(token, held, all, abort, complete);
            }
            scsi::T_TMF_LOGICAL_UNIT_RESET => self.reset(token, held, &target, all, ResetKind::LogicalUnit),
            scsi::T_TMF_I_T_NEXUS_RESET => self.reset(token, held, &target, mine, ResetKind::NexusLoss),
            scsi::T_TMF_QUERY_TASK => self.query(token, held, Scope { tag: Some(tag), ..mine }),
            scsi::T_TMF_QUERY_TASK_SET => self.query(token, held, mine),
            // No ACA here: SAM-5 5.9 makes it optional, and INQUIRY says so.
            _ => self.task_response(token, held, scsi::S_FUNCTION_REJECTED),
        }
    }

    fn reset(&mut self, token: Token, held: HeldId, target: &Arc<Target>, scope: Scope, kind: ResetKind) {
        target.lun.unit.reset(kind, Some(&target.nexus));
        target.stats.cell(self.worker).reset();
        // A reservation that the reset ended must not come back with the next process.
        let (lun, version) = (target.lun.id, target.lun.unit.version());
        let state = Box::new(target.lun.unit.save());
        self.events.send(Event::Save { lun, version, state, worker: self.worker });
        self.task_begin(token, held, scope, Action::Abort(scsi::S_RESET), scsi::S_FUNCTION_COMPLETE);
    }

    /// Whether a command is there, in this worker or another.
    fn query(&mut self, token: Token, held: HeldId, scope: Scope) {
        let (ticket, remote) = self.ask_others(scope, Action::Look);
        self.wait_for(ticket, scope, Action::Look, None, Waiter::Query { queue: token, held, remote });
    }

    fn task_begin(&mut self, token: Token, held: HeldId, scope: Scope, action: Action, response: u8) {
        let (ticket, remote) = self.ask_others(scope, action);
        self.wait_for(ticket, scope, action, None, Waiter::Task { queue: token, held, response, remote });
    }

    /// Asks all other workers, if there are any; returns whether there are.
    fn ask_others(&mut self, scope: Scope, action: Action) -> (Ticket, bool) {
        let ticket = self.new_ticket();
        let remote = self.workers > 1;
        if remote {
            self.events.send(Event::Quiesce { ticket, scope, action });
        }
        (ticket, remote)
    }

    fn task_response(&mut self, token: Token, held: HeldId, response: u8) {
        let Some(queue) = self.queue(token) else { return };
        let written = queue.write_at(held, 0, &[response]);
        self.complete(token, held, written as u32);
    }

    /// A COMPARE AND WRITE has its fence and waits for what began before.
    pub(super) fn wait_for_fence(&mut self, job: JobId, scope: Scope) {
        let (ticket, remote) = self.ask_others(scope, Action::Wait);
        self.wait_for(ticket, scope, Action::Wait, Some(job), Waiter::Fence { job, remote });
    }

    /// Ends commands; the PREEMPT AND ABORT `job` is answered when they are gone: until then they may still change the medium.
    pub(super) fn end_commands(&mut self, job: JobId, scope: Scope) {
        let action = Action::Abort(scsi::S_ABORTED);
        let (ticket, remote) = self.ask_others(scope, action);
        self.wait_for(ticket, scope, action, Some(job), Waiter::Preempt { job, remote });
    }

    /// Control, or another worker through it, wants requests gone.
    pub(super) fn quiesce(&mut self, ticket: Ticket, scope: Scope, action: Action) {
        self.wait_for(ticket, scope, action, None, Waiter::Control);
    }

    fn wait_for(&mut self, ticket: Ticket, scope: Scope, action: Action, except: Option<JobId>, who: Waiter) {
        // Who only looks waits for none.
        let serial = if action == Action::Look { 0 } else { self.jobs.last_serial() };
        let meant: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(id, job)| Some(*id) != except && job.is_in(&scope))
            .map(|(id, _)| id)
            .collect();
        let matched = meant.len() as u32;
        self.waiting.push(Waiting { ticket, scope, serial, except, matched, who });
        for id in meant {
            self.act(id, action);
        }
        self.look_at_waiting = true;
    }

    /// All other workers have answered.
    pub(super) fn others_quiesced(&mut self, ticket: Ticket, matched: u32) {
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.ticket == ticket) {
            waiting.matched += matched;
            if let Some(remote) = waiting.who.remote() {
                *remote = false;
            }
        }
        self.look_at_waiting = true;
    }

    /// Answers everybody whose requests are gone.
    pub(super) fn check_waiting(&mut self) {
        self.look_at_waiting = false;
        let mut i = 0;
        while i < self.waiting.len() {
            let remote = self.waiting[i].who.remote().is_some_and(|remote| *remote);
            let waiting = &self.waiting[i];
            if remote || self.jobs.iter().any(|(id, job)| waiting.still_waits_for(id, job)) {
                i += 1;
                continue;
            }
            let waiting = self.waiting.remove(i);
            match waiting.who {
                Waiter::Control => {
                    let Waiting { ticket, matched, .. } = waiting;
                    self.events.send(Event::Quiesced { ticket, worker: self.worker, matched });
                }
                Waiter::Task { queue, held, response, .. } => self.task_response(queue, held, response),
                Waiter::Query { queue, held, .. } => {
                    let found = waiting.matched > 0;
                    let response = if found { scsi::S_FUNCTION_SUCCEEDED } else { scsi::S_FUNCTION_COMPLETE };
                    self.task_response(queue, held, response);
                }
                Waiter::Preempt { job, .. } => {
                    self.preempted(job);
                    i = 0;
                }
                Waiter::Fence { job, .. } => {
                    self.fence_is_clear(job);
                    i = 0;
                }
            }
        }
    }

    /// Puts an event into the guest's next buffer for one.
    pub(super) fn notify_guest(&mut self, arena: &mut ChainArena, adapter: AdapterId, notice: Notice) {
        let moment = self.moment();
        let Some(queue) = self.queue_of(adapter, Role::ScsiEvent) else { return };
        let token = queue.token;
        let mut ids = Vec::with_capacity(1);
        if queue.take(arena, 1, &mut ids, moment).is_err() || ids.is_empty() {
            // The guest is told as soon as it makes a buffer available, so its doing that must wake us.
            queue.events_missed = true;
            if !queue.ring.enable_notifications() {
                return;
            }
            if queue.take(arena, 1, &mut ids, moment).is_err() || ids.is_empty() {
                return;
            }
        }
        self.put_event(token, ids[0], notice.event());
    }

    /// The guest has made a buffer available after events were lost for want of one: it is told that (T_NO_EVENT).
    pub(super) fn tell_missed(&mut self, arena: &mut ChainArena, token: Token) -> bool {
        let moment = self.moment();
        let Some(queue) = self.queue(token) else { return false };
        let mut ids = Vec::with_capacity(1);
        if queue.take(arena, 1, &mut ids, moment).is_err() || ids.is_empty() {
            return false;
        }
        self.put_event(token, ids[0], scsi::Event { event: scsi::T_NO_EVENT, ..scsi::Event::default() });
        true
    }

    fn put_event(&mut self, token: Token, held: HeldId, mut event: scsi::Event) {
        let Some(queue) = self.queue(token) else { return };
        if std::mem::take(&mut queue.events_missed) {
            event.event |= scsi::EVENTS_MISSED;
        }
        let written = queue.write_at(held, 0, &event.to_bytes());
        self.complete(token, held, written as u32);
    }
}
