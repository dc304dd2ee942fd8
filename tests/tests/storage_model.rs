//! Random commands of two initiators on one logical unit against a simple model of it: data, reservations, unit attentions.
//!
//! The model follows the standards' text, not the daemon's code. A failing sequence is shrunk to its shortest form.

use std::collections::VecDeque;
use std::process::ExitCode;

use avio_guest::storage::{Kind, StorageOptions};
use avio_proto::virtio::scsi;
use avio_tests::case::{self, Case};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::initiator::{
    CHECK_CONDITION, GOOD, Initiator, RESERVATION_CONFLICT, Reply, cdb10, compare_and_write,
};
use avio_tests::storage::{Adapter, Storage};
use avio_tests::{Failure, Result};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Sequences; `PROPTEST_CASES` says otherwise.
const CASES: u32 = 100;
/// Blocks of the logical unit.
const BLOCKS: usize = 128;

fn main() -> ExitCode {
    case::main(&[Case::new("random_commands_do_what_a_model_does", 240, || random("memory:64K")).data_path()])
}

#[derive(Clone, Debug)]
enum Op {
    Read { lba: usize, blocks: usize },
    Write { lba: usize, blocks: usize, fill: u8, fua: bool, verify: bool },
    WriteSame { lba: usize, blocks: usize, fill: u8, unmap: bool },
    Unmap { lba: usize, blocks: usize },
    CompareAndWrite { lba: usize, blocks: usize, right: bool, fill: u8 },
    Verify { lba: usize, blocks: usize, right: bool },
    Flush,
    Reserve,
    Release,
    Register { wrong: bool, key: u64 },
    RegisterAnyway { key: u64 },
    PersistentReserve { kind: u8 },
    PersistentRelease { kind: u8 },
    Clear,
    Preempt { key: u64, kind: u8, abort: bool },
    Keys,
    Reset,
    Unknown,
}

fn op() -> impl Strategy<Value = Op> {
    // Some of the ranges leave the medium.
    let range = || (0..BLOCKS + 2, 1..9usize);
    let kind = || prop::sample::select(vec![1u8, 3, 5, 6, 7, 8]);
    prop_oneof![
        4 => range().prop_map(|(lba, blocks)| Op::Read { lba, blocks }),
        4 => (range(), any::<u8>(), any::<bool>(), any::<bool>())
            .prop_map(|((lba, blocks), fill, fua, verify)| Op::Write { lba, blocks, fill, fua, verify }),
        2 => (range(), 0..3u8, any::<bool>())
            .prop_map(|((lba, blocks), fill, unmap)| Op::WriteSame { lba, blocks, fill, unmap }),
        2 => range().prop_map(|(lba, blocks)| Op::Unmap { lba, blocks }),
        3 => (range(), any::<bool>(), any::<u8>())
            .prop_map(|((lba, blocks), right, fill)| Op::CompareAndWrite { lba, blocks, right, fill }),
        1 => (range(), any::<bool>()).prop_map(|((lba, blocks), right)| Op::Verify { lba, blocks, right }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reserve),
        1 => Just(Op::Release),
        3 => (prop::bool::weighted(0.2), 0..3u64).prop_map(|(wrong, key)| Op::Register { wrong, key }),
        1 => (0..3u64).prop_map(|key| Op::RegisterAnyway { key }),
        2 => kind().prop_map(|kind| Op::PersistentReserve { kind }),
        2 => kind().prop_map(|kind| Op::PersistentRelease { kind }),
        1 => Just(Op::Clear),
        2 => (0..3u64, kind(), any::<bool>()).prop_map(|(key, kind, abort)| Op::Preempt { key, kind, abort }),
        1 => Just(Op::Keys),
        1 => Just(Op::Reset),
        1 => Just(Op::Unknown),
    ]
}

/// What a command should come to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Want {
    Good(Vec<u8>),
    Check(u8, u8, u8),
    Conflict,
}

/// Every block holds one byte over and over.
#[derive(Debug)]
struct Model {
    blocks: [u8; BLOCKS],
    /// SPC-2's RESERVE.
    reserved: Option<usize>,
    keys: [Option<u64>; 2],
    /// Persistent reservation: who made it, and its type.
    holder: Option<(usize, u8)>,
    attentions: [VecDeque<(u8, u8)>; 2],
}

impl Model {
    fn new() -> Model {
        Model {
            blocks: [0; BLOCKS],
            reserved: None,
            keys: [None; 2],
            holder: None,
            attentions: [VecDeque::new(), VecDeque::new()],
        }
    }

    fn owe(&mut self, who: usize, asc: u8, ascq: u8) {
        if !self.attentions[who].contains(&(asc, ascq)) {
            self.attentions[who].push_back((asc, ascq));
        }
    }

    fn is_all(&self) -> bool {
        self.holder.is_some_and(|(_, kind)| kind >= 7)
    }

    fn holds(&self, who: usize) -> bool {
        match self.holder {
            Some((_, kind)) if kind >= 7 => self.keys[who].is_some(),
            Some((holder, _)) => holder == who,
            None => false,
        }
    }

    /// SPC-5 table 67 for commands that read or write the medium; SPC-2 table 10.
    fn conflicts(&self, who: usize, writes: bool) -> bool {
        if self.reserved.is_some_and(|by| by != who) {
            return true;
        }
        match self.holder {
            Some((_, kind)) if !self.holds(who) => match kind {
                1 => writes,
                3 => true,
                5 | 7 => writes && self.keys[who].is_none(),
                _ => self.keys[who].is_none(),
            },
            _ => false,
        }
    }

    fn in_range(lba: usize, blocks: usize) -> bool {
        lba + blocks <= BLOCKS
    }

    fn tell_other(&mut self, who: usize, ascq: u8) {
        if self.keys[1 - who].is_some() {
            self.owe(1 - who, 0x2a, ascq);
        }
    }

    fn apply(&mut self, who: usize, op: &Op) -> Want {
        if let Op::Reset = op {
            self.reserved = None;
            self.attentions = [VecDeque::from([(0x29, 0x03)]), VecDeque::from([(0x29, 0x03)])];
            return Want::Good(Vec::new());
        }
        if let Op::Unknown = op {
            return Want::Check(5, 0x20, 0);
        }
        if let Some((asc, ascq)) = self.attentions[who].pop_front() {
            return Want::Check(6, asc, ascq);
        }
        match *op {
            Op::Read { lba, blocks } => self.medium(who, false, lba, blocks, |model, place| {
                Want::Good(model.blocks[place].iter().flat_map(|fill| [*fill; 512]).collect())
            }),
            Op::Write { lba, blocks, fill, .. } => self.medium(who, true, lba, blocks, |model, place| {
                model.blocks[place].fill(fill);
                Want::Good(Vec::new())
            }),
            Op::WriteSame { lba, blocks, fill, .. } => self.medium(who, true, lba, blocks, |model, place| {
                model.blocks[place].fill(fill);
                Want::Good(Vec::new())
            }),
            Op::Unmap { lba, blocks } => self.medium(who, true, lba, blocks, |model, place| {
                model.blocks[place].fill(0);
                Want::Good(Vec::new())
            }),
            Op::CompareAndWrite { lba, blocks, right, fill } => {
                self.medium(who, true, lba, blocks, |model, place| {
                    if !right {
                        return Want::Check(0xe, 0x1d, 0);
                    }
                    model.blocks[place].fill(fill);
                    Want::Good(Vec::new())
                })
            }
            Op::Verify { lba, blocks, right } => self.medium(who, false, lba, blocks, |_, _| {
                if right { Want::Good(Vec::new()) } else { Want::Check(0xe, 0x1d, 0) }
            }),
            Op::Flush => self.medium(who, true, 0, 0, |_, _| Want::Good(Vec::new())),
            Op::Reserve | Op::Release => self.reserve(who, matches!(op, Op::Reserve)),
            Op::Keys if self.reserved.is_some() => Want::Conflict,
            Op::Keys => {
                // In the order in which they registered, which the model does not know: a multiset.
                let mut keys: Vec<u64> = self.keys.iter().flatten().copied().collect();
                keys.sort_unstable();
                Want::Good(keys.iter().flat_map(|key| key.to_be_bytes()).collect())
            }
            _ if self.reserved.is_some() => Want::Conflict,
            _ => self.persistent_out(who, op),
        }
    }

    fn medium(
        &mut self,
        who: usize,
        writes: bool,
        lba: usize,
        blocks: usize,
        done: impl FnOnce(&mut Model, std::ops::Range<usize>) -> Want,
    ) -> Want {
        if self.conflicts(who, writes) {
            Want::Conflict
        } else if !Model::in_range(lba, blocks) {
            Want::Check(5, 0x21, 0)
        } else {
            done(self, lba..lba + blocks)
        }
    }

    /// SPC-2 7.21; SPC-4 5.9.3 when there are registrations.
    fn reserve(&mut self, who: usize, reserve: bool) -> Want {
        if self.keys.iter().any(Option::is_some) {
            let registrants = self.holder.is_some_and(|(_, kind)| kind >= 5) && self.keys[who].is_some();
            return if self.holds(who) || registrants { Want::Good(Vec::new()) } else { Want::Conflict };
        }
        match self.reserved {
            Some(by) if by != who && reserve => return Want::Conflict,
            Some(by) if by != who => {}
            _ => self.reserved = reserve.then_some(who),
        }
        Want::Good(Vec::new())
    }

    fn unregister(&mut self, who: usize) {
        let held = self.holds(who);
        self.keys[who] = None;
        let Some((_, kind)) = self.holder else { return };
        if kind >= 7 {
            if self.keys == [None; 2] {
                self.holder = None;
            }
        } else if held {
            self.holder = None;
            if kind >= 5 {
                self.tell_other(who, 0x04);
            }
        }
    }

    fn persistent_out(&mut self, who: usize, op: &Op) -> Want {
        let done = Want::Good(Vec::new());
        match *op {
            Op::Register { wrong, key } => {
                if wrong {
                    return Want::Conflict;
                }
                self.set_key(who, key);
                return done;
            }
            Op::RegisterAnyway { key } => {
                self.set_key(who, key);
                return done;
            }
            _ => {}
        }
        let Some(own) = self.keys[who] else { return Want::Conflict };
        match *op {
            Op::PersistentReserve { kind } => match self.holder {
                None => self.holder = Some((who, kind)),
                Some((_, held)) if self.holds(who) && held == kind => {}
                Some(_) => return Want::Conflict,
            },
            Op::PersistentRelease { kind } if self.holds(who) => {
                if self.holder.is_some_and(|(_, held)| held != kind) {
                    return Want::Check(5, 0x26, 0x04);
                }
                self.holder = None;
                if kind >= 5 {
                    self.tell_other(who, 0x04);
                }
            }
            Op::Clear => {
                self.tell_other(who, 0x03);
                (self.keys, self.holder) = ([None; 2], None);
            }
            Op::Preempt { key, kind, .. } => {
                let all = self.is_all();
                if key == 0 && !all {
                    return Want::Check(5, 0x26, 0);
                }
                let of_holder = self.holder.and_then(|(holder, _)| self.keys[holder]);
                let takes_over = if all { key == 0 } else { of_holder == Some(key) };
                let other = self.keys[1 - who];
                let falls = other.is_some() && (other == Some(key) || all && key == 0);
                if !takes_over && !falls && key != own {
                    return Want::Conflict;
                }
                if falls {
                    self.keys[1 - who] = None;
                    self.owe(1 - who, 0x2a, 0x05);
                }
                if takes_over {
                    let before = self.holder.replace((who, kind));
                    if before.is_some_and(|(_, before)| before != kind) {
                        self.tell_other(who, 0x04);
                    }
                }
            }
            _ => {}
        }
        done
    }

    fn set_key(&mut self, who: usize, key: u64) {
        match (self.keys[who], key) {
            (None, 0) => {}
            (Some(_), 0) => self.unregister(who),
            _ => self.keys[who] = Some(key),
        }
    }
}

/// Sends it; what `model` holds before says which data are the right ones.
fn send(guest: &mut Initiator, who: usize, op: &Op, model: &Model) -> Result<Reply> {
    let held = |lba: usize, blocks: usize, right: bool| -> Vec<u8> {
        let flip = if right { 0 } else { 0xff };
        let fill = |at: usize| model.blocks.get(at).copied().unwrap_or(0) ^ flip;
        (lba..lba + blocks).flat_map(|at| [fill(at); 512]).collect()
    };
    let ten = |opcode, lba: usize, blocks: usize| cdb10(opcode, lba as u32, blocks as u16);
    match *op {
        Op::Read { lba, blocks } => guest.command(0, &ten(0x28, lba, blocks), &[], blocks * 512),
        Op::Write { lba, blocks, fill, fua, verify } => {
            let mut cdb = ten(if verify { 0x2e } else { 0x2a }, lba, blocks);
            cdb[1] = if verify { 2 } else { u8::from(fua) << 3 };
            guest.command(0, &cdb, &vec![fill; blocks * 512], 0)
        }
        Op::WriteSame { lba, blocks, fill, unmap } => {
            let mut cdb = ten(0x41, lba, blocks);
            cdb[1] = u8::from(unmap) << 3;
            guest.command(0, &cdb, &[fill; 512], 0)
        }
        Op::Unmap { lba, blocks } => {
            let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
            list.extend((lba as u64).to_be_bytes());
            list.extend((blocks as u32).to_be_bytes());
            list.extend([0; 4]);
            guest.command(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0)
        }
        Op::CompareAndWrite { lba, blocks, right, fill } => {
            let both = [held(lba, blocks, right), vec![fill; blocks * 512]].concat();
            guest.command(0, &compare_and_write(lba as u64, blocks as u8), &both, 0)
        }
        Op::Verify { lba, blocks, right } => {
            let mut cdb = ten(0x2f, lba, blocks);
            cdb[1] = 2;
            guest.command(0, &cdb, &held(lba, blocks, right), 0)
        }
        Op::Flush => guest.command(0, &ten(0x35, 0, 0), &[], 0),
        Op::Reserve => guest.command(0, &[0x16, 0, 0, 0, 0, 0], &[], 0),
        Op::Release => guest.command(0, &[0x17, 0, 0, 0, 0, 0], &[], 0),
        Op::Register { wrong, key } => {
            let now = if wrong { 0xdead } else { model.keys[who].unwrap_or(0) };
            guest.reserve_out(0, 0, 0, now, key)
        }
        Op::RegisterAnyway { key } => guest.reserve_out(0, 6, 0, 0xdead, key),
        Op::PersistentReserve { kind } => guest.reserve_out(0, 1, kind, model.keys[who].unwrap_or(9), 0),
        Op::PersistentRelease { kind } => guest.reserve_out(0, 2, kind, model.keys[who].unwrap_or(9), 0),
        Op::Clear => guest.reserve_out(0, 3, 0, model.keys[who].unwrap_or(9), 0),
        Op::Preempt { key, kind, abort } => {
            guest.reserve_out(0, 4 + u8::from(abort), kind, model.keys[who].unwrap_or(9), key)
        }
        Op::Keys => guest.command(0, &[0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[], 256),
        Op::Reset => {
            let response = guest.task_management(0, scsi::T_TMF_LOGICAL_UNIT_RESET, 0)?;
            Ok(Reply { response, status: GOOD, sense: (0, 0, 0), data: Vec::new() })
        }
        Op::Unknown => guest.command(0, &[0xee; 16], &[], 0),
    }
}

fn came_to(op: &Op, reply: &Reply) -> std::result::Result<Want, String> {
    match (reply.response, reply.status) {
        (0, GOOD) if matches!(op, Op::Keys) => {
            let mut keys: Vec<&[u8]> = reply.data.get(8..).unwrap_or_default().chunks(8).collect();
            keys.sort_unstable();
            Ok(Want::Good(keys.concat()))
        }
        (0, GOOD) => Ok(Want::Good(reply.data.clone())),
        (0, CHECK_CONDITION) => Ok(Want::Check(reply.sense.0, reply.sense.1, reply.sense.2)),
        (0, RESERVATION_CONFLICT) => Ok(Want::Conflict),
        (response, status) => Err(format!("response {response}, status {status:#x}")),
    }
}

/// As the model begins: nothing reserved, nothing registered, nothing owed, zeroes.
fn cleanse(guests: &mut [Initiator; 2]) -> Result {
    guests[0].task_management(0, scsi::T_TMF_LOGICAL_UNIT_RESET, 0)?;
    for _ in 0..2 {
        for guest in guests.iter_mut() {
            guest.settle(0)?;
            guest.reserve_out(0, 6, 0, 0, 0)?.good("unregistering")?;
        }
    }
    guests.iter_mut().try_for_each(|guest| guest.settle(0).map(drop))?;
    let zeroes = cdb10(0x41, 0, BLOCKS as u16);
    guests[0].command(0, &zeroes, &[0; 512], 0)?.good("WRITE SAME").map(drop)
}

fn sequence(guests: &mut [Initiator; 2], steps: &[(usize, Op)]) -> std::result::Result<(), TestCaseError> {
    let fail = |failure: Failure| TestCaseError::fail(failure.to_string());
    cleanse(guests).map_err(fail)?;
    let mut model = Model::new();
    for (at, (who, op)) in steps.iter().enumerate() {
        let reply = send(&mut guests[*who], *who, op, &model).map_err(fail)?;
        let found = came_to(op, &reply).map_err(TestCaseError::fail)?;
        let want = model.apply(*who, op);
        prop_assert!(found == want, "step {}, {:?} of {}: {}", at, op, who, differs(&found, &want));
    }
    // Whatever is reserved: the medium holds what the model does.
    cleanse_reservations(guests).map_err(fail)?;
    let medium = guests[1].read(0, 0, BLOCKS as u16).map_err(fail)?;
    let held: Vec<u8> = model.blocks.iter().flat_map(|fill| [*fill; 512]).collect();
    prop_assert!(medium == held, "the medium holds something else at the end");
    Ok(())
}

fn cleanse_reservations(guests: &mut [Initiator; 2]) -> Result {
    guests[0].task_management(0, scsi::T_TMF_LOGICAL_UNIT_RESET, 0)?;
    for guest in guests.iter_mut() {
        guest.settle(0)?;
        guest.reserve_out(0, 6, 0, 0, 0)?.good("unregistering")?;
    }
    guests.iter_mut().try_for_each(|guest| guest.settle(0).map(drop))
}

fn differs(found: &Want, want: &Want) -> String {
    match (found, want) {
        (Want::Good(found), Want::Good(want)) => {
            let at = found.iter().zip(want).position(|(a, b)| a != b);
            format!("{} and {} bytes that differ at {at:?}", found.len(), want.len())
        }
        _ => format!("{found:02x?} instead of {want:02x?}"),
    }
}

fn random(backing: &str) -> Result {
    let lun = |guest: &str| Adapter::new(guest, "avio_stor").disk(0, backing, "share = true");
    let mut daemon = Daemon::start(Storage::default().adapter(lun("g1")).adapter(lun("g2")))?;
    let options = StorageOptions { data_len: BLOCKS * 512, depth: 16, ..StorageOptions::new(Kind::Scsi) };
    let mut guests = [
        Initiator::connect(&daemon.stor_socket("g1")?, &options, &[0])?,
        Initiator::connect(&daemon.stor_socket("g2")?, &options, &[0])?,
    ];
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES);
    let config = Config { cases: cases.min(2000), failure_persistence: None, ..Config::default() };
    let steps = prop::collection::vec((0..2usize, op()), 1..60);
    let guests = std::cell::RefCell::new(&mut guests);
    let outcome = TestRunner::new(config).run(&steps, |steps| sequence(*guests.borrow_mut(), &steps));
    outcome.map_err(|error| Failure::new(error.to_string()))?;
    let lun = daemon.lun("g1", 0)?;
    ensure(lun["stats"]["in_flight"] == 0, || format!("{lun:#}"))?;
    daemon.ensure_healthy()
}
