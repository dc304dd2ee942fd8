//! The logical unit against the standards' bytes, two initiators against each other, and anything at all against panics.

use std::sync::Arc;

use avio_proto::scsi::opcode::*;
use avio_proto::scsi::sense::*;
use avio_proto::scsi::vendor::{Approval, NONCE_NONE, ReplacementState, TargetState, VendorCommand};
use proptest::prelude::*;

use super::*;

const BLOCKS: u64 = 2048;

pub(super) fn profile() -> Profile {
    Profile {
        kind: DeviceKind::Disk,
        serial: "AVIO-1".into(),
        identity: "AVIO-1".into(),
        block_size: 512,
        physical_block_size: 4096,
        readonly: false,
        volatile_cache: false,
        rotational: false,
        unmaps: true,
        unmapped_is_zero: true,
    }
}

/// A logical unit and two initiators.
pub(super) struct Rig {
    pub unit: LogicalUnit,
    pub nexus: Arc<Nexus>,
    pub other: Arc<Nexus>,
}

fn name(guest: &str) -> NexusName {
    NexusName { guest: guest.into(), bus: 0, device: 4 }
}

impl Rig {
    /// Two initiators that have been told of the power-on.
    pub fn new(profile: Profile) -> Self {
        let unit = LogicalUnit::new(profile, BLOCKS, SavedState::default());
        let (nexus, other) = (unit.attach(&name("one")), unit.attach(&name("two")));
        for nexus in [&nexus, &other] {
            let Outcome::Reply(reply) = unit.execute(nexus, &cdb(&[TEST_UNIT_READY]), &[], &Env::default())
            else {
                panic!("an answer");
            };
            assert_eq!(reply.sense, Some(Sense::new(UNIT_ATTENTION, 0x29, 0x00)), "power on comes first");
        }
        Self { unit, nexus, other }
    }

    pub fn run(&self, bytes: &[u8]) -> Outcome {
        self.unit.execute(&self.nexus, &cdb(bytes), &[], &Env::default())
    }

    pub fn reply(&self, bytes: &[u8]) -> Reply {
        match self.run(bytes) {
            Outcome::Reply(reply) => reply,
            other => panic!("{bytes:02x?}: {other:?}"),
        }
    }

    pub fn sense(&self, bytes: &[u8]) -> (u8, u8, u8) {
        let reply = self.reply(bytes);
        assert_eq!(reply.status, status::CHECK_CONDITION, "{bytes:02x?}");
        reply.sense.map(|s| (s.key, s.asc, s.ascq)).unwrap()
    }

    /// PERSISTENT RESERVE OUT; `Ok`: done, else the status.
    fn out(&self, nexus: &Nexus, action: u8, kind: u8, key: u64, new: u64) -> Result<(), u8> {
        let mut list = key.to_be_bytes().to_vec();
        list.extend(new.to_be_bytes());
        list.extend([0; 8]);
        let bytes = [PERSISTENT_RESERVE_OUT, action, kind, 0, 0, 0, 0, 0, 24, 0];
        match self.unit.execute(nexus, &cdb(&bytes), &list, &Env::default()) {
            Outcome::Persist { .. } | Outcome::PersistAndAbort { .. } => Ok(()),
            Outcome::Reply(reply) => Err(reply.status),
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn cdb(bytes: &[u8]) -> [u8; 32] {
    let mut cdb = [0; 32];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

#[test]
fn identity_and_capacity_are_told_as_the_standards_say() {
    let rig = Rig::new(profile());
    let data = rig.reply(&[INQUIRY, 0, 0, 0, 96, 0]).data;
    assert_eq!(data[..8], [0, 0, 6, 0x12, 91, 0, 0, 2]);
    assert_eq!(&data[8..36], b"AVIO    AVIO DISK       0001");
    assert_eq!(rig.reply(&[INQUIRY, 1, 0x80, 0, 255, 0]).data, b"\x00\x80\x00\x06AVIO-1");
    let pages = rig.reply(&[INQUIRY, 1, 0, 0, 255, 0]).data;
    assert_eq!(pages, [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    for page in &pages[4..] {
        let data = rig.reply(&[INQUIRY, 1, *page, 1, 0, 0]).data;
        assert_eq!((data[1], usize::from(u16::from_be_bytes([data[2], data[3]]))), (*page, data.len() - 4));
    }
    let limits = rig.reply(&[INQUIRY, 1, 0xb0, 0, 64, 0]).data;
    assert_eq!(
        limits[4..16],
        [1, 64, 0, 8, 0, 0, 8, 0, 0, 0, 8, 0],
        "WSNZ, compare and write, granularity, 1 MiB twice"
    );
    assert_eq!(
        limits[20..32],
        [255, 255, 255, 255, 0, 0, 1, 0, 0, 0, 0, 8],
        "unmap: blocks, ranges, granularity"
    );
    assert_eq!(limits[36..44], [0, 0, 0, 0, 0, 0x40, 0, 0], "WRITE SAME");
    assert_eq!(rig.sense(&[INQUIRY, 1, 0x42, 0, 255, 0]), (5, 0x24, 0));
    assert_eq!(rig.reply(&[READ_CAPACITY_10]).data, [0, 0, 7, 255, 0, 0, 2, 0]);
    let long = rig.reply(&[SERVICE_ACTION_IN_16, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32]).data;
    assert_eq!(long[..16], [0, 0, 0, 0, 0, 0, 7, 255, 0, 0, 2, 0, 0, 3, 0xc0, 0]);
    assert_eq!(
        rig.reply(&[REPORT_LUNS, 0, 0, 0, 0, 0, 0, 0, 0, 16]).data,
        [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn what_is_wrong_is_named_as_the_standards_name_it() {
    let rig = Rig::new(profile());
    assert_eq!(rig.sense(&[0xee]), (5, 0x20, 0), "an opcode that nobody has");
    assert_eq!(rig.sense(&[SERVICE_ACTION_IN_16, 0x1f]), (5, 0x24, 0), "a service action that nobody has");
    assert_eq!(rig.sense(&[READ_10, 0, 0, 0, 8, 0, 0, 0, 1]), (5, 0x21, 0), "block 2,048 of 2,048");
    assert_eq!(rig.sense(&[READ_16, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 2]), (5, 0x21, 0));
    assert_eq!(rig.sense(&[WRITE_SAME_10, 0, 0, 0, 0, 0, 0, 0, 0]), (5, 0x24, 0), "no blocks");
    let long =
        Rig { unit: LogicalUnit::new(profile(), 1 << 20, SavedState::default()), ..Rig::new(profile()) };
    assert_eq!(long.sense(&[READ_10, 0, 0, 0, 0, 0, 0, 8, 1]), (5, 0x24, 0), "more than the transfer limit");
    assert!(matches!(long.run(&[READ_10, 0, 0, 0, 0, 0, 0, 8, 0]), Outcome::Medium(_)), "1 MiB");
    assert_eq!(rig.sense(&[READ_10, 0x20, 0, 0, 0, 0, 0, 0, 1]), (5, 0x24, 0), "protection information");
    let readonly = Rig::new(Profile { readonly: true, ..profile() });
    assert_eq!(readonly.sense(&[WRITE_10, 0, 0, 0, 0, 0, 0, 0, 1]), (7, 0x27, 0));
    assert!(matches!(
        rig.run(&[READ_10, 0, 0, 0, 7, 255, 0, 0, 1]),
        Outcome::Medium(MediumOp::Read { lba: 2047, blocks: 1 })
    ));
    assert_eq!(rig.reply(&[READ_10]), Reply::good(), "no blocks are read at once");
    assert_eq!(fast(&cdb(&[READ_10])), None, "and not by the short way");
    assert_eq!(rig.sense(&[SYNCHRONIZE_CACHE_10, 0, 0, 0, 8, 1]), (5, 0x21, 0), "a range behind the end");
    assert!(matches!(rig.run(&[SYNCHRONIZE_CACHE_10]), Outcome::Medium(MediumOp::Flush { .. })));
}

/// MMC-6 6.6 (RT and starting feature) and 6.25 (starting track), 6.7, 6.22.
/// SBC-3 5.25: cached data is written before a stop, unless NO_FLUSH.
#[test]
fn a_disk_that_stops_flushes_first() {
    let rig = Rig::new(profile());
    let (stop, start) = ([START_STOP_UNIT], [START_STOP_UNIT, 0, 0, 0, 1]);
    assert!(matches!(rig.run(&stop), Outcome::Medium(MediumOp::Flush { lba: 0, blocks: 0 })));
    assert_eq!(rig.sense(&[TEST_UNIT_READY]), (2, 4, 2), "stopped");
    assert!(
        matches!(rig.run(&stop), Outcome::Reply(reply) if reply.status == status::GOOD),
        "is stopped already"
    );
    assert!(matches!(rig.run(&start), Outcome::Reply(reply) if reply.status == status::GOOD));
    let without_flush = [START_STOP_UNIT, 0, 0, 0, 4];
    assert!(matches!(rig.run(&without_flush), Outcome::Reply(reply) if reply.status == status::GOOD));
    assert_eq!(rig.sense(&[TEST_UNIT_READY]), (2, 4, 2));
}

#[test]
fn a_drive_answers_what_it_is_asked_for() {
    let rig = Rig::new(Profile { kind: DeviceKind::Dvd, block_size: 2048, readonly: true, ..profile() });
    let configuration = |rt, from| rig.reply(&[GET_CONFIGURATION, rt, 0, from, 0, 0, 0, 1, 0, 0]).data;
    let features = |data: &[u8]| -> Vec<u8> {
        let (mut at, mut codes) = (8, Vec::new());
        while at < data.len() {
            codes.push(data[at + 1]);
            at += 4 + usize::from(data[at + 3]);
        }
        codes
    };
    let all = configuration(0, 0);
    assert_eq!(
        (u32::from_be_bytes([all[0], all[1], all[2], all[3]]) as usize, all[7]),
        (all.len() - 4, 0x10)
    );
    assert_eq!(features(&all), [0x00, 0x01, 0x03, 0x10, 0x1f]);
    assert_eq!(features(&configuration(0, 0x10)), [0x10, 0x1f], "from a feature on");
    assert_eq!(features(&configuration(2, 0x03)), [0x03], "one");
    assert_eq!(features(&configuration(2, 0x04)), [0u8; 0], "one that is not there");
    assert_eq!(rig.sense(&[GET_CONFIGURATION, 3, 0, 0, 0, 0, 0, 1, 0, 0]), (5, 0x24, 0), "reserved");
    let toc = |msf, track| rig.reply(&[READ_TOC, msf, 0, 0, 0, 0, track, 1, 0, 0]).data;
    let first = [0, 0x14, 1, 0, 0, 0, 0, 0];
    let end = [0, 0x14, 0xaa, 0, 0, 0, 8, 0];
    assert_eq!(toc(0, 0), [&[0, 18, 1, 1][..], &first, &end].concat());
    assert_eq!(toc(0, 0xaa), [&[0, 10, 1, 1][..], &end].concat(), "the lead-out alone");
    assert_eq!(toc(2, 1)[4..12], [0, 0x14, 1, 0, 0, 0, 2, 0], "block 0 is at 00:02:00");
    assert_eq!(rig.sense(&[READ_TOC, 0, 0, 0, 0, 0, 2, 1, 0, 0]), (5, 0x24, 0), "no track 2");
    let events = rig.reply(&[GET_EVENT_STATUS, 1, 0, 0, 0x10, 0, 0, 0, 8, 0]).data;
    assert_eq!(events, [0, 6, 4, 0x10, 0, 2, 0, 0], "a medium is present");
    let disc = rig.reply(&[READ_DISC_INFORMATION, 0, 0, 0, 0, 0, 0, 0, 34, 0]).data;
    assert_eq!(disc[..7], [0, 32, 0x0e, 1, 1, 1, 1], "complete, finalized, one session of one track");
    assert_eq!(rig.reply(&[MECHANISM_STATUS, 0, 0, 0, 0, 0, 0, 0, 0, 8]).data, [0; 8]);
    assert!(matches!(rig.run(&[START_STOP_UNIT, 0, 0, 0, 2]), Outcome::Event(Effect::Eject, _)));
    assert!(matches!(rig.run(&[START_STOP_UNIT, 0, 0, 0, 3]), Outcome::Event(Effect::Load, _)));
    rig.reply(&[PREVENT_ALLOW, 0, 0, 0, 1]);
    assert_eq!(rig.sense(&[START_STOP_UNIT, 0, 0, 0, 2]), (5, 0x53, 2), "medium removal prevented");
    for not_of_a_drive in [WRITE_10, UNMAP, PERSISTENT_RESERVE_OUT] {
        assert_eq!(rig.sense(&[not_of_a_drive]), (5, 0x20, 0));
    }
    rig.unit.set_media(Media::Empty);
    assert_eq!(rig.sense(&[TEST_UNIT_READY]), (2, 0x3a, 0), "medium not present");
}

/// SPC-5 4.6.4: LUN 1 of a target that has LUN 0 only.
#[test]
fn a_logical_unit_that_is_not_there_says_so() {
    let inquiry = no_unit(&cdb(&[INQUIRY, 0, 0, 0, 36, 0]));
    assert_eq!((inquiry.status, inquiry.data.len(), inquiry.data[0]), (status::GOOD, 36, 0x7f));
    assert_eq!(no_unit(&cdb(&[TEST_UNIT_READY])).sense, Some(Sense::new(ILLEGAL_REQUEST, 0x25, 0)));
    assert_eq!(no_unit(&cdb(&[REPORT_LUNS, 0, 0, 0, 0, 0, 0, 0, 0, 16])).data[..4], [0, 0, 0, 8]);
    let sense = no_unit(&cdb(&[REQUEST_SENSE, 0, 0, 0, 18])).data;
    assert_eq!((sense[2], sense[12], sense[13]), (ILLEGAL_REQUEST, 0x25, 0));
}

/// SPC-5 5.14.4: what persists without power is what APTPL asked for, and never RESERVE.
#[test]
fn a_power_loss_ends_reservations_without_aptpl() {
    for aptpl in [false, true] {
        let rig = Rig::new(profile());
        let mut list = [0; 24];
        list[15] = 0xa;
        list[20] = u8::from(aptpl);
        let register = cdb(&[PERSISTENT_RESERVE_OUT, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
        let done = rig.unit.execute(&rig.nexus, &register, &list, &Env::default());
        assert!(matches!(done, Outcome::Persist { .. }));
        rig.out(&rig.nexus, 1, 1, 0xa, 0).unwrap();
        for (saved, lost) in [(rig.unit.save(), false), (rig.unit.save().after_power_loss(), true)] {
            let unit = LogicalUnit::new(profile(), BLOCKS, saved);
            let (nexus, other) = (unit.attach(&name("one")), unit.attach(&name("two")));
            if lost {
                let told = unit.admit(&nexus, AccessKind::Read).unwrap_err();
                assert_eq!(told.sense, Some(Sense::new(UNIT_ATTENTION, 0x29, 0)), "power on");
                unit.admit(&other, AccessKind::Read).unwrap_err();
            }
            let kept = unit.admit(&other, AccessKind::Write).is_err();
            assert_eq!(kept, !lost || aptpl, "APTPL {aptpl}, power lost {lost}");
        }
    }
    let rig = Rig::new(profile());
    assert!(matches!(rig.run(&[RESERVE_6]), Outcome::Persist { .. }));
    let unit = LogicalUnit::new(profile(), BLOCKS, rig.unit.save().after_power_loss());
    let other = unit.attach(&name("two"));
    unit.admit(&other, AccessKind::Read).unwrap_err();
    assert!(unit.admit(&other, AccessKind::Write).is_ok());
}

#[test]
fn a_successor_knows_what_was_done_and_whom_it_has_met() {
    let rig = Rig::new(profile());
    let done = Answered { nexus: name("one"), queue: 2, number: 77, tag: 5 };
    rig.unit.remember(done.clone());
    let saved = SavedState { succeeds: true, ..rig.unit.save() };
    let unit = LogicalUnit::new(profile(), BLOCKS, saved);
    assert!(unit.was_done(&done) && !unit.was_done(&Answered { number: 78, ..done }));
    let third = unit.attach(&name("three"));
    assert!(unit.admit(&third, AccessKind::Write).is_ok(), "the process was new, not the power");
}

#[test]
fn every_command_in_the_table_is_reported_one_by_one() {
    let rig = Rig::new(profile());
    let all = rig.reply(&[MAINTENANCE_IN, SA_REPORT_OPCODES, 0, 0, 0, 0, 0, 1, 0, 0]).data;
    assert_eq!(u32::from_be_bytes([all[0], all[1], all[2], all[3]]) as usize, all.len() - 4);
    for row in all[4..].chunks(8) {
        let with_action = row[5] & 1 != 0;
        let one = [
            MAINTENANCE_IN,
            SA_REPORT_OPCODES,
            1 + u8::from(with_action),
            row[0],
            row[2],
            row[3],
            0,
            0,
            1,
            0,
        ];
        let data = rig.reply(&one).data;
        assert_eq!((data[1], data[3], data[4]), (3, row[7], row[0]), "{row:02x?}");
    }
    let none = rig.reply(&[MAINTENANCE_IN, SA_REPORT_OPCODES, 1, 0xee, 0, 0, 0, 0, 1, 0]).data;
    assert_eq!(none[1], 1, "not supported");
    assert_eq!(rig.reply(&[MAINTENANCE_IN, SA_REPORT_TMFS, 0, 0, 0, 0, 0, 0, 0, 4]).data, [0xdc, 3, 0, 0]);
}

#[test]
fn a_selected_mode_page_changes_sense_data_and_the_others_are_told() {
    let rig = Rig::new(profile());
    let sensed = rig.reply(&[MODE_SENSE_6, 8, 0x0a, 0, 255, 0]).data;
    assert_eq!(sensed, [15, 0, 0x10, 0, 0x0a, 10, 0, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0]);
    let list = [0, 0, 0, 0, 0x0a, 10, 4, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0];
    let select = cdb(&[MODE_SELECT_6, 0x10, 0, 0, 16, 0]);
    let outcome = rig.unit.execute(&rig.nexus, &select, &list, &Env::default());
    assert_eq!(outcome, Outcome::Persist { reply: Reply::good(), version: 1 }, "outlives the process");
    assert_eq!(rig.reply(&[0xee]).sense_bytes(), [0x72, 5, 0x20, 0, 0, 0, 0, 0], "descriptor format");
    let told = rig.unit.execute(&rig.other, &cdb(&[TEST_UNIT_READY]), &[], &Env::default());
    let Outcome::Reply(told) = told else { panic!("{told:?}") };
    assert_eq!(told.sense, Some(Sense::new(UNIT_ATTENTION, 0x2a, 0x01)));
    let mut wrong = list;
    wrong[7] = 0;
    let outcome = rig.unit.execute(&rig.nexus, &select, &wrong, &Env::default());
    let Outcome::Reply(reply) = outcome else { panic!("{outcome:?}") };
    assert_eq!(reply.sense, Some(Sense::new(ILLEGAL_REQUEST, 0x26, 0)), "what cannot be changed");
}

#[test]
fn inquiry_leaves_a_unit_attention_and_request_sense_takes_it() {
    let rig = Rig::new(profile());
    rig.unit.set_blocks(4096);
    assert_eq!(rig.reply(&[INQUIRY, 0, 0, 0, 36, 0]).status, status::GOOD);
    assert!(rig.unit.admit(&rig.nexus, AccessKind::Read).unwrap_err().is_unit_attention());
    assert!(rig.unit.admit(&rig.nexus, AccessKind::Read).is_ok(), "told once");
    rig.unit.reset(ResetKind::LogicalUnit, Some(&rig.other));
    let data = rig.reply(&[REQUEST_SENSE, 0, 0, 0, 18, 0]).data;
    assert_eq!((data[2], data[12], data[13]), (UNIT_ATTENTION, 0x29, 0x03));
    assert!(rig.unit.admit(&rig.nexus, AccessKind::Read).is_ok());
}

/// What is answered at once looks at the logical unit's word first, whoever asks.
#[test]
fn whoever_is_owed_a_unit_attention_is_not_plain_and_the_others_are() {
    let rig = Rig::new(profile());
    let plain = || (rig.unit.is_plain(&rig.nexus), rig.unit.is_plain(&rig.other));
    assert_eq!(plain(), (true, true));
    rig.unit.task_set_cleared(&rig.nexus);
    assert_eq!(plain(), (true, false), "only the others are told");
    assert!(rig.unit.admit(&rig.other, AccessKind::Read).unwrap_err().is_unit_attention());
    assert_eq!(plain(), (true, true));
    rig.out(&rig.nexus, 0, 0, 0, 0xa).unwrap();
    rig.out(&rig.other, 0, 0, 0, 0xb).unwrap();
    rig.out(&rig.nexus, 1, 7, 0xa, 0).unwrap();
    // Of the release those are told who are registered (SPC-5 5.14.11.2.2), and only they are kept waiting.
    rig.out(&rig.nexus, 2, 7, 0xa, 0).unwrap();
    assert!(rig.unit.admit(&rig.other, AccessKind::Read).unwrap_err().is_unit_attention());
    rig.out(&rig.nexus, 3, 0, 0xa, 0).unwrap();
    rig.unit.admit(&rig.other, AccessKind::Read).unwrap_err();
    assert_eq!(plain(), (true, true));
    let changes: [fn(&LogicalUnit); 3] = [
        |unit| unit.reset(ResetKind::LogicalUnit, None),
        |unit| unit.set_blocks(4096),
        |unit| {
            unit.set_media(Media::Empty);
            unit.set_media(Media::Ready);
        },
    ];
    for change in changes {
        change(&rig.unit);
        assert_eq!(plain(), (false, false));
        assert!(rig.reply(&[TEST_UNIT_READY]).is_unit_attention());
        assert_eq!(plain(), (true, false));
        let sense =
            rig.unit.execute(&rig.other, &cdb(&[REQUEST_SENSE, 0, 0, 0, 18, 0]), &[], &Env::default());
        assert!(matches!(sense, Outcome::Reply(reply) if reply.data[2] == UNIT_ATTENTION));
        assert_eq!(plain(), (true, true));
    }
    let third = rig.unit.attach(&name("three"));
    assert_eq!((plain(), rig.unit.is_plain(&third)), ((true, true), false), "power on");
    rig.unit.detach(&name("three"));
    assert_eq!(plain(), (true, true));
}

/// SPC-5 table 67, for a holder, a registrant and a stranger.
#[test]
fn reservations_keep_out_whom_their_type_keeps_out() {
    for (kind, stranger_reads, registrant_writes) in [
        (1, true, false),
        (3, false, false),
        (5, true, true),
        (6, false, true),
        (7, true, true),
        (8, false, true),
    ] {
        let rig = Rig::new(profile());
        let third = rig.unit.attach(&name("three"));
        rig.unit.admit(&third, AccessKind::Read).unwrap_err();
        rig.out(&rig.nexus, 0, 0, 0, 0xa).unwrap();
        rig.out(&rig.other, 0, 0, 0, 0xb).unwrap();
        rig.out(&rig.nexus, 1, kind, 0xa, 0).unwrap();
        let may = |nexus: &Nexus, kind| rig.unit.admit(nexus, kind).is_ok();
        assert!(
            may(&rig.nexus, AccessKind::Write) && may(&rig.nexus, AccessKind::Read),
            "holder, type {kind}"
        );
        assert_eq!(may(&third, AccessKind::Read), stranger_reads, "stranger reads, type {kind}");
        assert!(!may(&third, AccessKind::Write), "stranger writes, type {kind}");
        assert_eq!(may(&rig.other, AccessKind::Write), registrant_writes, "registrant writes, type {kind}");
        assert_eq!(
            rig.out(&rig.other, 1, kind, 0xb, 0).is_ok(),
            kind >= 7,
            "all registrants hold it, type {kind}"
        );
        assert_eq!(rig.out(&rig.other, 2, kind, 0xbad, 0), Err(status::RESERVATION_CONFLICT), "a wrong key");
        rig.out(&rig.nexus, 2, kind, 0xa, 0).unwrap();
        assert!(may(&third, AccessKind::Write), "released");
    }
}

#[test]
fn reserve_of_spc_2_and_persistent_reservations_exclude_each_other() {
    let rig = Rig::new(profile());
    let third = rig.unit.attach(&name("three"));
    rig.unit.admit(&third, AccessKind::Read).unwrap_err();
    assert!(matches!(rig.run(&[RESERVE_6]), Outcome::Persist { .. }));
    assert!(rig.unit.admit(&rig.other, AccessKind::Read).is_err());
    for nexus in [&rig.nexus, &rig.other] {
        assert_eq!(rig.out(nexus, 0, 0, 0, 0xa), Err(status::RESERVATION_CONFLICT), "SPC-2 5.5.1");
    }
    assert!(matches!(rig.run(&[RELEASE_6]), Outcome::Persist { .. }));
    rig.out(&rig.nexus, 0, 0, 0, 0xa).unwrap();
    assert_eq!(rig.reply(&[RESERVE_6]).status, status::RESERVATION_CONFLICT, "registered, nothing held");
    rig.out(&rig.nexus, 1, 1, 0xa, 0).unwrap();
    assert!(matches!(rig.run(&[RESERVE_6]), Outcome::Persist { .. }), "the holder has it already");
    let stop = rig.unit.execute(&third, &cdb(&[START_STOP_UNIT, 0, 0, 0, 0]), &[], &Env::default());
    assert!(
        matches!(stop, Outcome::Reply(reply) if reply.status == status::RESERVATION_CONFLICT),
        "stops others' disk"
    );
    let ready = rig.unit.execute(&third, &cdb(&[TEST_UNIT_READY]), &[], &Env::default());
    assert_eq!(ready, Outcome::Reply(Reply::good()), "asking is allowed");
}

#[test]
fn what_absent_initiators_are_owed_is_bounded() {
    let rig = Rig::new(profile());
    rig.out(&rig.nexus, 0, 0, 0, 0xa).unwrap();
    rig.out(&rig.other, 0, 0, 0, 0xb).unwrap();
    let unit = LogicalUnit::new(profile(), BLOCKS, rig.unit.save());
    let rig = Rig { nexus: unit.attach(&name("one")), other: rig.other.clone(), unit };
    for _ in 0..100 {
        rig.out(&rig.nexus, 1, 5, 0xa, 0).unwrap_or_default();
        rig.out(&rig.nexus, 2, 5, 0xa, 0).unwrap_or_default();
    }
    let owed = rig.unit.save().attentions;
    assert_eq!(
        owed.iter().filter(|(of, _)| *of == name("two")).map(|(_, list)| list.len()).sum::<usize>(),
        1
    );
}

#[test]
fn a_preempted_initiator_is_told_and_everything_outlives_the_process() {
    let rig = Rig::new(profile());
    rig.out(&rig.nexus, 0, 0, 0, 0xa).unwrap();
    rig.out(&rig.other, 0, 0, 0, 0xb).unwrap();
    rig.out(&rig.nexus, 1, 1, 0xa, 0).unwrap();
    rig.out(&rig.other, 4, 1, 0xb, 0xa).unwrap();
    let unit = LogicalUnit::new(profile(), BLOCKS, rig.unit.save());
    let (nexus, other) = (unit.attach(&name("one")), unit.attach(&name("two")));
    let told = unit.admit(&nexus, AccessKind::Read).unwrap_err();
    assert_eq!(told.sense, Some(Sense::new(UNIT_ATTENTION, 0x2a, 0x05)), "registrations preempted");
    assert_eq!(unit.admit(&nexus, AccessKind::Write).unwrap_err().status, status::RESERVATION_CONFLICT);
    assert!(unit.admit(&other, AccessKind::Write).is_ok(), "a new process, the same holder");
    let data =
        unit.execute(&other, &cdb(&[PERSISTENT_RESERVE_IN, 0, 0, 0, 0, 0, 0, 1, 0, 0]), &[], &Env::default());
    let Outcome::Reply(reply) = data else { panic!("{data:?}") };
    assert_eq!(reply.data, [0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0xb], "READ KEYS: generation, keys");
}

#[test]
fn a_replaced_backing_waits_for_the_guest_also_through_a_restart() {
    let rig = Rig::new(profile());
    let of = |serial: &str| (serial.to_owned(), "file:/b".to_owned(), 1 << 20);
    rig.unit.set_replaced(Replacement { nonce: 77, old: of("AVIO-1"), new: of("AVIO-1-1") });
    let rig = Rig {
        unit: LogicalUnit::new(profile(), BLOCKS, rig.unit.save()),
        nexus: rig.nexus.clone(),
        other: rig.other.clone(),
    };
    let nexus = rig.unit.attach(&name("one"));
    let rig = Rig { nexus: Arc::clone(&nexus), ..rig };
    assert!(rig.unit.admit(&nexus, AccessKind::Read).unwrap_err().is_unit_attention());
    let refused = rig.unit.admit(&nexus, AccessKind::Read).unwrap_err();
    assert_eq!(refused.sense, Some(Sense::new(NOT_READY, 0x04, 0x03)));
    assert_eq!(rig.reply(&[INQUIRY, 0, 0, 0, 36, 0]).status, status::GOOD);
    for refused in [START_STOP_UNIT, RESERVE_6, PERSISTENT_RESERVE_IN, LOG_SENSE] {
        assert_eq!(rig.sense(&[refused, 0, 0, 0, 1]), (2, 4, 3), "{refused:02x}");
    }
    let ask = VendorCommand::GetReplacementState { allocation_length: 4096 }.to_cdb();
    let state = ReplacementState::from_bytes(&rig.reply(&ask).data).unwrap();
    assert_eq!(
        (state.state, state.nonce, state.new.serial.as_str()),
        (TargetState::Replaced, 77, "AVIO-1-1")
    );
    let approve = VendorCommand::ApproveReplacement { parameter_list_length: Approval::LEN as u32 }.to_cdb();
    let send = |nonce, serial: &str| {
        let list = Approval { nonce, serial: serial.into() }.to_bytes().unwrap();
        rig.unit.execute(&nexus, &cdb(&approve), &list, &Env::default())
    };
    assert!(
        matches!(send(76, "AVIO-1-1"), Outcome::Reply(reply) if reply.sense == Some(Sense::new(5, 0x26, 0)))
    );
    assert!(matches!(send(77, "AVIO-1"), Outcome::Reply(_)), "another store than the one that waits");
    assert!(matches!(send(77, "AVIO-1-1"), Outcome::Persist { .. }));
    assert!(rig.unit.admit(&nexus, AccessKind::Read).unwrap_err().is_unit_attention());
    assert!(rig.unit.admit(&nexus, AccessKind::Read).is_ok());
    let state = ReplacementState::from_bytes(&rig.reply(&ask).data).unwrap();
    assert_eq!((state.state, state.nonce), (TargetState::Online, NONCE_NONE));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever a guest sends, there is an answer, and what reaches the medium is on the medium.
    #[test]
    fn no_command_panics_and_none_leaves_the_medium(
        row in 0usize..60,
        mut bytes in prop::array::uniform32(any::<u8>()),
        parameters in prop::collection::vec(any::<u8>(), 0..128),
        dvd in any::<bool>(),
    ) {
        let kind = if dvd { DeviceKind::Dvd } else { DeviceKind::Disk };
        let rig = Rig::new(Profile { kind, ..profile() });
        if let Some(row) = super::table::TABLE.get(row) {
            bytes[0] = row.opcode;
            if let Some(action) = row.service_action {
                bytes[1] = bytes[1] & 0xe0 | action;
            }
        }
        let wanted = parameter_len(&bytes);
        let given = &parameters[..parameters.len().min(wanted)];
        match rig.unit.execute(&rig.nexus, &bytes, given, &Env::default()) {
            Outcome::Medium(MediumOp::Unmap(ranges)) => {
                prop_assert!(ranges.iter().all(|&(lba, n)| lba + u64::from(n) <= BLOCKS));
            }
            Outcome::Medium(op) => {
                prop_assert!(op.range().is_none_or(|(lba, n)| lba + n <= BLOCKS));
            }
            Outcome::Reply(reply) => prop_assert_eq!(reply.sense.is_some(), reply.status == status::CHECK_CONDITION),
            _ => {}
        }
    }
}
