//! Who may use a logical unit: RESERVE and RELEASE (SPC-2 7.21) and persistent reservations (SPC-5 5.14).
//!
//! Keyed by initiator name, so a registration survives a reconnect, and this process. Whether a state change is durable
//! before it is answered is the caller's business.

use avio_proto::scsi::sense::{ILLEGAL_REQUEST, Sense};
use serde::{Deserialize, Serialize};

use super::{AccessKind, NexusName};

/// Most registrations of a logical unit: two adapters of sixty-four guests.
const REGISTRATIONS_MAX: usize = 128;
/// Bytes of PERSISTENT RESERVE OUT's parameter list (SPC-5 6.17.3).
pub(super) const OUT_LEN: usize = 24;
/// Relative port of every initiator: a target of ours has one.
const RELATIVE_PORT: u16 = 1;

/// Persistent reservation types (SPC-5 table 66).
const WRITE_EXCLUSIVE: u8 = 1;
const EXCLUSIVE_ACCESS: u8 = 3;
const WRITE_EXCLUSIVE_REGISTRANTS: u8 = 5;
const EXCLUSIVE_ACCESS_REGISTRANTS: u8 = 6;
const WRITE_EXCLUSIVE_ALL: u8 = 7;
const EXCLUSIVE_ACCESS_ALL: u8 = 8;

/// PERSISTENT RESERVE OUT service actions (SPC-5 table 217).
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;

/// Reservations and registrations, for the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedReservations {
    registrations: Vec<(NexusName, u64)>,
    holder: Option<(NexusName, u64, u8)>,
    aptpl: bool,
    generation: u32,
    reserved_by: Option<NexusName>,
}

impl SavedReservations {
    /// What is left after the host was off (SPC-5 5.14.4): everything, if the last registration asked for that (APTPL), else
    /// nothing; never what SPC-2's RESERVE did.
    #[must_use]
    pub fn after_power_loss(self) -> Self {
        if self.aptpl { Self { reserved_by: None, ..self } } else { Self::default() }
    }
}

/// The state.
#[derive(Clone, Debug, Default)]
pub struct Reservations(SavedReservations);

/// Why a PERSISTENT RESERVE OUT is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Conflict,
    Check(Sense),
}

/// What a PERSISTENT RESERVE OUT did to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Consequences {
    /// Initiators and what they are to be told: additional sense code 2Ah and this qualifier.
    pub attentions: Vec<(NexusName, u8)>,
    /// Initiators whose commands are to be aborted.
    pub aborts: Vec<NexusName>,
}

const INVALID_FIELD: Sense = Sense::new(ILLEGAL_REQUEST, 0x24, 0x00);
const INVALID_PARAMETER: Sense = Sense::new(ILLEGAL_REQUEST, 0x26, 0x00);
/// Qualifiers of 2Ah.
const PREEMPTED: u8 = 0x03;
const RELEASED: u8 = 0x04;
const REGISTRATIONS_PREEMPTED: u8 = 0x05;

impl Reservations {
    pub(super) fn restore(saved: SavedReservations) -> Self {
        Self(saved)
    }

    pub(super) fn save(&self) -> SavedReservations {
        self.0.clone()
    }

    /// Whether nobody is kept from anything.
    pub(super) fn is_free(&self) -> bool {
        self.0.holder.is_none() && self.0.reserved_by.is_none()
    }

    fn key_of(&self, name: &NexusName) -> Option<u64> {
        self.0.registrations.iter().find(|(of, _)| of == name).map(|(_, key)| *key)
    }

    fn is_all_registrants(&self) -> bool {
        self.0.holder.as_ref().is_some_and(|(_, _, kind)| *kind >= WRITE_EXCLUSIVE_ALL)
    }

    fn holds(&self, name: &NexusName) -> bool {
        match &self.0.holder {
            Some(_) if self.is_all_registrants() => self.key_of(name).is_some(),
            Some((holder, _, _)) => holder == name,
            None => false,
        }
    }

    /// Whether an access conflicts (SPC-5 table 67).
    pub(super) fn conflicts(&self, name: &NexusName, kind: AccessKind) -> bool {
        if self.0.reserved_by.as_ref().is_some_and(|by| by != name) {
            return true;
        }
        let Some((_, _, reserved)) = &self.0.holder else { return false };
        if self.holds(name) {
            return false;
        }
        let registered = self.key_of(name).is_some();
        match *reserved {
            WRITE_EXCLUSIVE => kind == AccessKind::Write,
            EXCLUSIVE_ACCESS => true,
            WRITE_EXCLUSIVE_REGISTRANTS | WRITE_EXCLUSIVE_ALL => !registered && kind == AccessKind::Write,
            EXCLUSIVE_ACCESS_REGISTRANTS | EXCLUSIVE_ACCESS_ALL => !registered,
            _ => true,
        }
    }

    /// Whether RESERVE and RELEASE have nothing to add to what the initiator may do (SPC-4 5.9.3).
    fn has_already(&self, name: &NexusName) -> bool {
        let as_registrant =
            self.0.holder.as_ref().is_some_and(|(_, _, kind)| *kind >= WRITE_EXCLUSIVE_REGISTRANTS);
        self.holds(name) || as_registrant && self.key_of(name).is_some()
    }

    /// Whether somebody has the logical unit by SPC-2's RESERVE: persistent reservations conflict with it, for everybody
    /// (SPC-2 5.5.1).
    pub(super) fn is_reserved(&self) -> bool {
        self.0.reserved_by.is_some()
    }

    /// RESERVE of SPC-2; `false`: conflict. With registrations it changes nothing (CRH, SPC-5 5.14.3).
    pub(super) fn reserve(&mut self, name: &NexusName) -> bool {
        if !self.0.registrations.is_empty() {
            return self.has_already(name);
        }
        let free = self.0.reserved_by.as_ref().is_none_or(|by| by == name);
        if free {
            self.0.reserved_by = Some(name.clone());
        }
        free
    }

    /// RELEASE of SPC-2; `false`: conflict. Who holds nothing releases nothing, and that is GOOD.
    pub(super) fn release(&mut self, name: &NexusName) -> bool {
        if !self.0.registrations.is_empty() {
            return self.has_already(name);
        }
        if self.0.reserved_by.as_ref() == Some(name) {
            self.0.reserved_by = None;
        }
        true
    }

    /// A logical unit reset ends RESERVE, not what is persistent (SPC-5 5.14.5).
    pub(super) fn reset(&mut self) {
        self.0.reserved_by = None;
    }

    /// As a reset, if it was this initiator's.
    pub(super) fn nexus_lost(&mut self, name: &NexusName) {
        if self.0.reserved_by.as_ref() == Some(name) {
            self.0.reserved_by = None;
        }
    }

    /// The initiator's definition is gone, and all that it had.
    pub(super) fn release_all_of(&mut self, name: &NexusName) {
        self.nexus_lost(name);
        if self.key_of(name).is_some() {
            self.unregister(name, &mut Consequences::default());
        }
    }

    /// PERSISTENT RESERVE IN (SPC-5 6.16).
    pub(super) fn persistent_in(&self, action: u8) -> Option<Vec<u8>> {
        let mut data = self.0.generation.to_be_bytes().to_vec();
        match action {
            // READ KEYS.
            0 => {
                data.extend((8 * self.0.registrations.len() as u32).to_be_bytes());
                self.0.registrations.iter().for_each(|(_, key)| data.extend(key.to_be_bytes()));
            }
            // READ RESERVATION.
            1 => match &self.0.holder {
                None => data.extend([0; 4]),
                Some((_, key, kind)) => {
                    data.extend(16u32.to_be_bytes());
                    data.extend(if self.is_all_registrants() { 0 } else { *key }.to_be_bytes());
                    // Scope LU is 0.
                    data.extend([0, 0, 0, 0, 0, *kind, 0, 0]);
                }
            },
            // REPORT CAPABILITIES: CRH, ATP_C (a target of ours has one port), PTPL_C; TMV; PTPL_A; all six types.
            2 => {
                let mask = [0b1110_1010, 0b0000_0001];
                data = vec![0, 8, 0b0001_0101, 0x80 | u8::from(self.0.aptpl), mask[0], mask[1], 0, 0];
            }
            // READ FULL STATUS.
            3 => {
                let mut list = Vec::new();
                for (name, key) in &self.0.registrations {
                    let port = transport_id(name);
                    let holds = self.holds(name);
                    let kind = self.0.holder.as_ref().filter(|_| holds).map_or(0, |(_, _, kind)| *kind);
                    list.extend(key.to_be_bytes());
                    list.extend([0, 0, 0, 0, u8::from(holds), kind, 0, 0, 0, 0]);
                    list.extend(RELATIVE_PORT.to_be_bytes());
                    list.extend((port.len() as u32).to_be_bytes());
                    list.extend(port);
                }
                data.extend((list.len() as u32).to_be_bytes());
                data.extend(list);
            }
            _ => return None,
        }
        Some(data)
    }

    /// PERSISTENT RESERVE OUT (SPC-5 6.17). `scope_type` is byte 2 of the CDB.
    pub(super) fn persistent_out(
        &mut self,
        name: &NexusName,
        action: u8,
        scope_type: u8,
        list: &[u8; OUT_LEN],
    ) -> Result<Consequences, Refusal> {
        let key =
            u64::from_be_bytes([list[0], list[1], list[2], list[3], list[4], list[5], list[6], list[7]]);
        let new = u64::from_be_bytes([
            list[8], list[9], list[10], list[11], list[12], list[13], list[14], list[15],
        ]);
        let (spec_i_pt, aptpl) = (list[20] & 8 != 0, list[20] & 1 != 0);
        if self.is_reserved() {
            return Err(Refusal::Conflict);
        }
        // Naming other initiator ports is not among the capabilities that are reported.
        if spec_i_pt {
            return Err(Refusal::Check(INVALID_PARAMETER));
        }
        let kind = scope_type & 0xf;
        let known = matches!(kind, 1 | 3 | 5..=8) && scope_type >> 4 == 0;
        let own = self.key_of(name);
        let mut done = Consequences::default();
        match action {
            REGISTER | REGISTER_AND_IGNORE => {
                match own {
                    Some(own) if action == REGISTER && own != key => return Err(Refusal::Conflict),
                    None if action == REGISTER && key != 0 => return Err(Refusal::Conflict),
                    // Nothing to take away.
                    None if new == 0 => return Ok(done),
                    _ => {}
                }
                self.register(name, own, new, &mut done)?;
                self.0.aptpl = aptpl;
                self.0.generation = self.0.generation.wrapping_add(1);
            }
            _ if own != Some(key) => return Err(Refusal::Conflict),
            RESERVE => {
                if !known {
                    return Err(Refusal::Check(INVALID_FIELD));
                }
                match &self.0.holder {
                    None => self.0.holder = Some((name.clone(), key, kind)),
                    Some((_, _, held)) if self.holds(name) && *held == kind => {}
                    Some(_) => return Err(Refusal::Conflict),
                }
            }
            RELEASE => {
                if !known {
                    return Err(Refusal::Check(INVALID_FIELD));
                }
                if self.holds(name) {
                    let held = self.0.holder.as_ref().map_or(0, |(_, _, held)| *held);
                    if held != kind {
                        // INVALID RELEASE OF PERSISTENT RESERVATION.
                        return Err(Refusal::Check(Sense::new(ILLEGAL_REQUEST, 0x26, 0x04)));
                    }
                    self.0.holder = None;
                    // Those who were let in as registrants are told (SPC-5 5.14.11.2).
                    if held >= WRITE_EXCLUSIVE_REGISTRANTS {
                        self.tell_others(name, RELEASED, &mut done);
                    }
                }
            }
            CLEAR => {
                self.tell_others(name, PREEMPTED, &mut done);
                self.0.holder = None;
                self.0.registrations.clear();
                self.0.generation = self.0.generation.wrapping_add(1);
            }
            PREEMPT | PREEMPT_AND_ABORT => {
                self.preempt(name, key, new, known.then_some(kind), &mut done)?;
                if action == PREEMPT {
                    done.aborts.clear();
                }
                self.0.generation = self.0.generation.wrapping_add(1);
            }
            _ => return Err(Refusal::Check(INVALID_FIELD)),
        }
        Ok(done)
    }

    fn register(
        &mut self,
        name: &NexusName,
        own: Option<u64>,
        new: u64,
        done: &mut Consequences,
    ) -> Result<(), Refusal> {
        match (own, new) {
            (None, 0) => {}
            (None, _) => {
                if self.0.registrations.len() >= REGISTRATIONS_MAX {
                    // INSUFFICIENT REGISTRATION RESOURCES.
                    return Err(Refusal::Check(Sense::new(ILLEGAL_REQUEST, 0x55, 0x04)));
                }
                self.0.registrations.push((name.clone(), new));
            }
            (Some(_), 0) => self.unregister(name, done),
            (Some(_), _) => {
                for (_, key) in self.0.registrations.iter_mut().filter(|(of, _)| of == name) {
                    *key = new;
                }
                if let Some((_, key, _)) = self.0.holder.as_mut().filter(|(of, _, _)| of == name) {
                    *key = new;
                }
            }
        }
        Ok(())
    }

    /// Takes a registration away, and the reservation with it if it was this one's (SPC-5 5.14.11.3).
    fn unregister(&mut self, name: &NexusName, done: &mut Consequences) {
        let held = self.holds(name);
        self.0.registrations.retain(|(of, _)| of != name);
        let Some((_, _, kind)) = &self.0.holder else { return };
        let kind = *kind;
        if self.is_all_registrants() {
            if self.0.registrations.is_empty() {
                self.0.holder = None;
            }
        } else if held {
            self.0.holder = None;
            if kind >= WRITE_EXCLUSIVE_REGISTRANTS {
                self.tell_others(name, RELEASED, done);
            }
        }
    }

    /// PREEMPT (SPC-5 5.14.11.4): takes registrations with the key `victim` away, and the reservation if it is theirs.
    fn preempt(
        &mut self,
        name: &NexusName,
        key: u64,
        victim: u64,
        kind: Option<u8>,
        done: &mut Consequences,
    ) -> Result<(), Refusal> {
        let all = self.is_all_registrants();
        let holder_key = self.0.holder.as_ref().map(|(_, key, _)| *key);
        // Of all registrants: key 0 means all the others, and only then is the reservation taken over.
        let takes_over = if all { victim == 0 } else { holder_key == Some(victim) };
        if victim == 0 && !all {
            return Err(Refusal::Check(INVALID_PARAMETER));
        }
        if takes_over && kind.is_none() {
            return Err(Refusal::Check(INVALID_FIELD));
        }
        let is_victim =
            |(of, other): &(NexusName, u64)| of != name && (*other == victim || all && victim == 0);
        let victims: Vec<NexusName> =
            self.0.registrations.iter().filter(|r| is_victim(r)).map(|(of, _)| of.clone()).collect();
        let own_key_named = !takes_over && victims.is_empty() && key != victim;
        if own_key_named {
            // Nobody has that key.
            return Err(Refusal::Conflict);
        }
        let before = self.0.holder.as_ref().map(|(_, _, kind)| *kind);
        self.0.registrations.retain(|r| !is_victim(r));
        if takes_over {
            let kind = kind.unwrap_or(WRITE_EXCLUSIVE);
            self.0.holder = Some((name.clone(), key, kind));
            if before != Some(kind) {
                // Those who stay registered are told that the reservation is another.
                self.tell_others(name, RELEASED, done);
            }
        }
        for victim in victims {
            done.attentions.push((victim.clone(), REGISTRATIONS_PREEMPTED));
            done.aborts.push(victim);
        }
        Ok(())
    }

    fn tell_others(&self, name: &NexusName, ascq: u8, done: &mut Consequences) {
        let others = self.0.registrations.iter().map(|(of, _)| of).filter(|of| *of != name);
        done.attentions.extend(others.map(|of| (of.clone(), ascq)));
    }
}

/// An initiator port as PERSISTENT RESERVE IN names it (SPC-5 7.6.4.6): iSCSI, format 00b, padded to a multiple of four.
fn transport_id(name: &NexusName) -> Vec<u8> {
    let mut port = name.port().into_bytes();
    port.push(0);
    port.resize(port.len().next_multiple_of(4).max(20), 0);
    let mut id = vec![0x05, 0];
    id.extend((port.len() as u16).to_be_bytes());
    id.extend(port);
    id
}
