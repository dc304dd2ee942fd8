//! The machines of one LACP port: receive, periodic transmission, mux, transmit, churn detection (IEEE 802.1AX-2014 §6.4.12 to
//! §6.4.17). Names of states and variables are the standard's.
//!
//! Called by [`super::Lacp`] only.

use std::time::{Duration, Instant};

use avio_proto::aggregation::{LacpPdu, PortInfo, PortStateBits};

use super::{Group, LacpSettings};

/// Fast_Periodic_Time (§6.4.4).
const FAST_PERIODIC: Duration = Duration::from_secs(1);
/// Slow_Periodic_Time.
const SLOW_PERIODIC: Duration = Duration::from_secs(30);
/// Short_Timeout_Time.
const SHORT_TIMEOUT: Duration = Duration::from_secs(3);
/// Long_Timeout_Time.
const LONG_TIMEOUT: Duration = Duration::from_secs(90);
/// Aggregate_Wait_Time.
const AGGREGATE_WAIT: Duration = Duration::from_secs(2);
/// Churn_Detection_Time.
const CHURN_DETECTION: Duration = Duration::from_secs(60);
/// At most this many PDUs in any Fast_Periodic_Time (§6.4.16).
const SENT_MAX: usize = 3;

/// What is particular about a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSettings {
    /// Port number, not 0.
    pub number: u16,
    /// Port priority: the lower, the sooner it is selected.
    pub priority: u16,
    /// Administrative key: ports of one key may be one aggregate.
    pub key: u16,
}

/// States of the receive machine (figure 6-18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receive {
    /// The link is down.
    PortDisabled,
    /// Nothing heard in time; a last chance of 3 s.
    Expired,
    /// There is no partner.
    Defaulted,
    /// The partner is heard.
    Current,
}

/// States of the mux machine (independent control, figure 6-21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mux {
    /// Belongs to no aggregate.
    Detached,
    /// Waits a moment for others to come along.
    Waiting,
    /// Belongs to the aggregate.
    Attached,
    /// Takes frames.
    Collecting,
    /// Takes and sends frames.
    Distributing,
}

/// Churn detection of one end (§6.4.17): whether it gets in sync within a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Churn {
    /// In sync.
    NoChurn,
    /// Not yet.
    Monitor(Instant),
    /// Not within the time: something is configured wrongly.
    Churn,
}

impl Churn {
    fn run(&mut self, enabled: bool, in_sync: bool, now: Instant) {
        *self = match *self {
            _ if in_sync => Churn::NoChurn,
            _ if !enabled => Churn::Monitor(now),
            Churn::NoChurn => Churn::Monitor(now),
            Churn::Monitor(since) if now.saturating_duration_since(since) >= CHURN_DETECTION => Churn::Churn,
            other => other,
        };
    }
}

/// One port.
#[derive(Debug)]
pub struct LacpPort {
    settings: PortSettings,
    enabled: bool,
    /// Receive machine.
    pub receive: Receive,
    /// Mux machine.
    pub mux: Mux,
    /// Selected: SELECTED or UNSELECTED; this aggregate has no STANDBY.
    selected: bool,
    /// Partner_Oper: what the partner said of itself, or nothing.
    pub partner: PortInfo,
    /// Actor_Churn.
    pub actor_churn: Churn,
    /// Partner_Churn.
    pub partner_churn: Churn,
    /// `current_while_timer`.
    current_until: Option<Instant>,
    /// `wait_while_timer`.
    wait_until: Option<Instant>,
    /// `periodic_timer`.
    periodic_at: Option<Instant>,
    /// The partner's timeout as the periodic machine last saw it.
    was_short: bool,
    /// NTT.
    ntt: bool,
    /// The last times of transmission, oldest first.
    sent_at: Vec<Instant>,
}

impl LacpPort {
    pub(super) fn new(settings: PortSettings) -> Self {
        LacpPort {
            settings,
            enabled: false,
            receive: Receive::PortDisabled,
            mux: Mux::Detached,
            selected: false,
            partner: PortInfo::default(),
            actor_churn: Churn::NoChurn,
            partner_churn: Churn::NoChurn,
            current_until: None,
            wait_until: None,
            periodic_at: None,
            was_short: false,
            ntt: false,
            sent_at: Vec::with_capacity(SENT_MAX),
        }
    }

    /// Changed settings: another key or number makes it another port.
    pub(super) fn set(&mut self, settings: PortSettings) {
        if settings != self.settings {
            self.settings = settings;
            self.selected = false;
            self.ntt = true;
        }
    }

    /// NTT: what is to be sent has changed (802.1AX-2014 §6.4.7).
    pub(super) fn need_to_transmit(&mut self) {
        self.ntt = true;
    }

    /// The partner is asked for a PDU each 30 s from now on, instead of each second. It sends the next one when it likes within that (figure 6-19: from fast to
    /// slow without NTT), so a timer that began for the short time would end before.
    pub(super) fn wait_longer(&mut self, now: Instant) {
        if self.receive == Receive::Current {
            self.current_until = Some(now + LONG_TIMEOUT);
        }
    }

    /// `port_enabled` has changed.
    pub(super) fn link(&mut self, up: bool, now: Instant) {
        if up == self.enabled {
            return;
        }
        self.enabled = up;
        if up {
            self.expire(now);
            self.ntt = true;
        } else {
            self.receive = Receive::PortDisabled;
            self.partner.state.set(PortStateBits::SYNCHRONIZATION, false);
            self.current_until = None;
            self.periodic_at = None;
            self.selected = false;
        }
    }

    /// EXPIRED: asks for quick answers, and waits for one shortly.
    fn expire(&mut self, now: Instant) {
        self.receive = Receive::Expired;
        self.partner.state.set(PortStateBits::SYNCHRONIZATION, false);
        self.partner.state.set(PortStateBits::SHORT_TIMEOUT, true);
        self.current_until = Some(now + SHORT_TIMEOUT);
    }

    /// CURRENT: a PDU has arrived.
    pub(super) fn receive(&mut self, settings: &LacpSettings, pdu: &LacpPdu, now: Instant) {
        if !self.enabled {
            return;
        }
        let actor = self.actor(settings);
        // update_Selected: the partner has become another one.
        if !same_port(&pdu.actor, &self.partner) {
            self.selected = false;
        }
        // update_NTT: the partner has us wrong.
        let about = PortStateBits::ACTIVE
            .with(PortStateBits::SHORT_TIMEOUT)
            .with(PortStateBits::SYNCHRONIZATION)
            .with(PortStateBits::AGGREGATION);
        if !same_identity(&pdu.partner, &actor) || pdu.partner.state.0 & about.0 != actor.state.0 & about.0 {
            self.ntt = true;
        }
        // recordPDU: the partner is in sync if it says so and means us, and if one of the two keeps the protocol going.
        let kept_up = pdu.actor.state.has(PortStateBits::ACTIVE)
            || (actor.state.has(PortStateBits::ACTIVE) && pdu.partner.state.has(PortStateBits::ACTIVE));
        let means_us = same_port(&pdu.partner, &actor) || !pdu.actor.state.has(PortStateBits::AGGREGATION);
        let in_sync = pdu.actor.state.has(PortStateBits::SYNCHRONIZATION) && means_us && kept_up;
        self.partner = pdu.actor;
        self.partner.state.set(PortStateBits::SYNCHRONIZATION, in_sync);
        self.receive = Receive::Current;
        let timeout = if settings.fast { SHORT_TIMEOUT } else { LONG_TIMEOUT };
        self.current_until = Some(now + timeout);
    }

    /// What has become due.
    pub(super) fn run_timers(&mut self, settings: &LacpSettings, now: Instant) {
        if self.current_until.is_some_and(|at| at <= now) {
            match self.receive {
                Receive::Current => self.expire(now),
                _ => {
                    // DEFAULTED: update_Default_Selected, recordDefault.
                    if !same_port(&self.partner, &PortInfo::default()) {
                        self.selected = false;
                    }
                    self.receive = Receive::Defaulted;
                    self.partner = PortInfo::default();
                    self.current_until = None;
                }
            }
        }
        // Periodic transmission (figure 6-19).
        let both_passive = settings.passive && !self.partner.state.has(PortStateBits::ACTIVE);
        if !self.enabled || both_passive {
            self.periodic_at = None;
        } else {
            let short = self.partner.state.has(PortStateBits::SHORT_TIMEOUT);
            let period = if short { FAST_PERIODIC } else { SLOW_PERIODIC };
            match self.periodic_at {
                None => self.periodic_at = Some(now + period),
                Some(at) if at <= now || (short && !self.was_short) => {
                    self.ntt = true;
                    self.periodic_at = Some(now + period);
                }
                Some(_) if !short && self.was_short => self.periodic_at = Some(now + period),
                Some(_) => {}
            }
            self.was_short = short;
        }
        let in_sync = self.mux >= Mux::Attached;
        self.actor_churn.run(self.enabled, in_sync, now);
        let partner_in_sync = self.partner.state.has(PortStateBits::SYNCHRONIZATION);
        self.partner_churn.run(self.enabled, partner_in_sync, now);
    }

    /// The group that it could be in. `None`: its link is down, there is no partner, the partner does not aggregate, or the
    /// partner is this system: two of our ports cabled together.
    pub(super) fn group(&self, settings: &LacpSettings) -> Option<Group> {
        let heard = matches!(self.receive, Receive::Current | Receive::Expired);
        let usable = self.enabled
            && heard
            && self.partner.port != 0
            && self.partner.state.has(PortStateBits::AGGREGATION)
            && self.partner.system.mac != settings.system.mac;
        usable.then_some(Group {
            partner: self.partner.system,
            partner_key: self.partner.key,
            key: self.settings.key,
        })
    }

    /// The selection logic's decision. A port that was unselected is selected again only once it is detached.
    pub(super) fn select(&mut self, wanted: bool) {
        self.selected = wanted && (self.selected || self.mux == Mux::Detached);
    }

    /// Ready_N, or nothing to wait for.
    pub(super) fn has_waited(&self, now: Instant) -> bool {
        self.mux != Mux::Waiting || !self.selected || self.wait_until.is_none_or(|at| at <= now)
    }

    /// The mux machine, until it stands still.
    pub(super) fn run_mux(&mut self, ready: bool, now: Instant) {
        loop {
            let in_sync = self.partner.state.has(PortStateBits::SYNCHRONIZATION);
            let collects = self.partner.state.has(PortStateBits::COLLECTING);
            let next = match self.mux {
                Mux::Detached if self.selected => Mux::Waiting,
                Mux::Waiting if !self.selected => Mux::Detached,
                Mux::Waiting if ready && self.has_waited(now) => Mux::Attached,
                Mux::Attached if !self.selected => Mux::Detached,
                Mux::Attached if in_sync => Mux::Collecting,
                Mux::Collecting if !self.selected || !in_sync => Mux::Attached,
                Mux::Collecting if collects => Mux::Distributing,
                Mux::Distributing if !self.selected || !in_sync || !collects => Mux::Collecting,
                stays => stays,
            };
            if next == self.mux {
                return;
            }
            if next == Mux::Waiting {
                self.wait_until = Some(now + AGGREGATE_WAIT);
            }
            // NTT is set on entry to these (figure 6-21). One PDU then says all that has happened at once.
            self.ntt |= matches!(next, Mux::Detached | Mux::Attached | Mux::Collecting);
            self.mux = next;
        }
    }

    /// The PDU to send now, if one is needed and the rate allows it.
    pub(super) fn transmit(&mut self, settings: &LacpSettings, now: Instant) -> Option<LacpPdu> {
        if !self.enabled || (settings.passive && !self.partner.state.has(PortStateBits::ACTIVE)) {
            self.ntt = false;
            return None;
        }
        if !self.ntt || self.held_until(now).is_some() {
            return None;
        }
        self.ntt = false;
        if self.sent_at.len() == SENT_MAX {
            self.sent_at.remove(0);
        }
        self.sent_at.push(now);
        Some(LacpPdu { actor: self.actor(settings), partner: self.partner, collector_max_delay: 0 })
    }

    /// Until when the rate limit forbids another PDU.
    fn held_until(&self, now: Instant) -> Option<Instant> {
        let oldest = self.sent_at.first().filter(|_| self.sent_at.len() == SENT_MAX)?;
        Some(*oldest + FAST_PERIODIC).filter(|until| *until > now)
    }

    /// What this end says of the port: Actor_Oper.
    pub(super) fn actor(&self, settings: &LacpSettings) -> PortInfo {
        let mut state = PortStateBits::AGGREGATION;
        state.set(PortStateBits::ACTIVE, !settings.passive);
        state.set(PortStateBits::SHORT_TIMEOUT, settings.fast);
        state.set(PortStateBits::SYNCHRONIZATION, self.mux >= Mux::Attached);
        state.set(PortStateBits::COLLECTING, self.mux >= Mux::Collecting);
        state.set(PortStateBits::DISTRIBUTING, self.mux == Mux::Distributing);
        state.set(PortStateBits::DEFAULTED, self.receive == Receive::Defaulted);
        state.set(PortStateBits::EXPIRED, self.receive == Receive::Expired);
        PortInfo {
            system: settings.system,
            key: self.settings.key,
            port_priority: self.settings.priority,
            port: self.settings.number,
            state,
        }
    }

    /// Until when it waits for others to come along, if it does.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        self.wait_until.filter(|_| self.mux == Mux::Waiting)
    }

    /// When something is due by itself, [`Self::waits_until`] apart.
    pub(super) fn next_at(&self, settings: &LacpSettings) -> Option<Instant> {
        let sends = !settings.passive || self.partner.state.has(PortStateBits::ACTIVE);
        let held = self.sent_at.first().filter(|_| self.ntt && sends && self.sent_at.len() == SENT_MAX);
        let held = held.map(|oldest| *oldest + FAST_PERIODIC);
        let churn = |churn: Churn| match churn {
            Churn::Monitor(since) if self.enabled => Some(since + CHURN_DETECTION),
            _ => None,
        };
        [self.current_until, self.periodic_at, held, churn(self.actor_churn), churn(self.partner_churn)]
            .into_iter()
            .flatten()
            .min()
    }
}

/// Whether both name the same port of the same system.
fn same_identity(a: &PortInfo, b: &PortInfo) -> bool {
    (a.port, a.port_priority, a.system, a.key) == (b.port, b.port_priority, b.system, b.key)
}

/// Whether both name the same port and agree on whether it may be aggregated.
fn same_port(a: &PortInfo, b: &PortInfo) -> bool {
    let aggregates = |info: &PortInfo| info.state.has(PortStateBits::AGGREGATION);
    same_identity(a, b) && aggregates(a) == aggregates(b)
}
