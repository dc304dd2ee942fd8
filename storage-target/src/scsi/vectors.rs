//! Requests and answers byte by byte, as the tables of the standards print them: SPC-4 (T10/BSR INCITS 513 r37), SBC-3
//! (INCITS 514 r36), SPC-5 and SBC-4 where they say more. Each test names the table its bytes follow; the second opinion on
//! them is sg3-utils, in the system tests.

use avio_proto::scsi::sense::*;
use avio_proto::scsi::vendor;

use super::tests::{Rig, cdb, profile};
use super::*;

/// What a CDB asks of the medium; the device has 2^33 blocks, so that long addresses count.
fn asks(bytes: &[u8]) -> MediumOp {
    let unit = LogicalUnit::new(profile(), 1 << 33, SavedState::default());
    let rig = Rig { unit, ..Rig::new(profile()) };
    match rig.run(bytes) {
        Outcome::Medium(op) => {
            // The short way for reads and writes understands the same.
            let fast = fast(&cdb(bytes));
            assert!(fast.is_none_or(|fast| fast == op), "{bytes:02x?}: the short way");
            op
        }
        other => panic!("{bytes:02x?}: {other:?}"),
    }
}

/// SBC-3 tables 61 (READ (12)), 62 (READ (16)); 4.2.5.1 for where CONTROL is.
#[test]
fn read_12_and_16() {
    let read = |lba, blocks| MediumOp::Read { lba, blocks };
    assert_eq!(asks(&[0xa8, 0, 0x01, 0x02, 0x03, 0x04, 0, 0, 0x01, 0x02, 0, 0]), read(0x0102_0304, 0x102));
    // DPO and FUA, group number 1Fh: hints, and what is so anyhow.
    assert_eq!(asks(&[0xa8, 0x18, 0, 0, 0, 9, 0, 0, 0, 1, 0x1f, 0]), read(9, 1));
    let long = [0x88, 0, 0, 0, 0, 1, 0x02, 0x03, 0x04, 0x05, 0, 0, 0x01, 0x02, 0, 0];
    assert_eq!(asks(&long), read(0x1_0203_0405, 0x102));
    assert_eq!(asks(&[0x88, 0x18, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0x1f, 0]), read(9, 1));
}

/// SBC-3 tables 117 (WRITE (12)), 118 (WRITE (16)).
#[test]
fn write_12_and_16() {
    let write = |lba, blocks, fua| MediumOp::Write { lba, blocks, fua };
    assert_eq!(
        asks(&[0xaa, 0, 0x01, 0x02, 0x03, 0x04, 0, 0, 0x01, 0x02, 0, 0]),
        write(0x0102_0304, 0x102, false)
    );
    assert_eq!(asks(&[0xaa, 0x08, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0]), write(9, 1, true));
    assert_eq!(asks(&[0xaa, 0x10, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0]), write(9, 1, false), "DPO");
    let long = [0x8a, 0x08, 0, 0, 0, 1, 0x02, 0x03, 0x04, 0x05, 0, 0, 0x01, 0x02, 0, 0];
    assert_eq!(asks(&long), write(0x1_0203_0405, 0x102, true));
}

/// SBC-3 tables 110 (VERIFY (10)), 113 (VERIFY (12)), 114 (VERIFY (16)); table 111 for BYTCHK.
#[test]
fn verify_10_12_and_16() {
    let verify = |lba, blocks, period| MediumOp::Verify { lba, blocks, period };
    assert_eq!(asks(&[0x2f, 0, 0x01, 0x02, 0x03, 0x04, 0, 0x01, 0x02, 0]), verify(0x0102_0304, 0x102, 0));
    assert_eq!(asks(&[0xaf, 0x02, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0]), verify(9, 7, 7), "01b: all of it");
    assert_eq!(asks(&[0xaf, 0x06, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0]), verify(9, 7, 1), "11b: one block for each");
    let long = [0x8f, 0x10, 0, 0, 0, 1, 0x02, 0x03, 0x04, 0x05, 0, 0, 0x01, 0x02, 0, 0];
    assert_eq!(asks(&long), verify(0x1_0203_0405, 0x102, 0));
    let rig = Rig::new(profile());
    for opcode in [0x2f, 0xaf, 0x8f] {
        assert_eq!(rig.sense(&[opcode, 0x04]), (5, 0x24, 0), "10b is reserved");
        assert_eq!(rig.sense(&[opcode, 0x20]), (5, 0x24, 0), "VRPROTECT");
    }
}

/// SBC-3 tables 119 (WRITE AND VERIFY (10)), 122 (12), 123 (16).
#[test]
fn write_and_verify_10_12_and_16() {
    let write = |lba, blocks, compare| MediumOp::WriteAndVerify { lba, blocks, compare };
    assert_eq!(asks(&[0x2e, 0, 0x01, 0x02, 0x03, 0x04, 0, 0x01, 0x02, 0]), write(0x0102_0304, 0x102, false));
    assert_eq!(asks(&[0xae, 0x12, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0]), write(9, 7, true), "DPO, BYTCHK 01b");
    let long = [0x8e, 0x02, 0, 0, 0, 1, 0x02, 0x03, 0x04, 0x05, 0, 0, 0x01, 0x02, 0, 0];
    assert_eq!(asks(&long), write(0x1_0203_0405, 0x102, true));
    let rig = Rig::new(profile());
    for opcode in [0x2e, 0xae, 0x8e] {
        assert_eq!(rig.sense(&[opcode, 0x20, 0, 0, 0, 9, 0, 0, 0, 7]), (5, 0x24, 0), "WRPROTECT");
        assert_eq!(rig.sense(&[opcode, 0x06, 0, 0, 0, 9, 0, 0, 0, 7]), (5, 0x24, 0), "BYTCHK 11b");
    }
}

/// SPC-4 7.8.6, tables 589 to 594: NAA locally assigned (3h), and the T10 vendor identification, both of the logical unit.
#[test]
fn vpd_83_device_identification() {
    let rig = Rig::new(profile());
    let page = rig.reply(&[0x12, 0x01, 0x83, 0x01, 0x00, 0]).data;
    let mut expected = vec![0x00, 0x83, 0x00, 0x2e];
    // Code set 1h (binary); PIV 0, association 00b (logical unit), designator type 3h; 64-bit FNV-1a of the serial number.
    expected.extend([0x01, 0x03, 0x00, 0x08]);
    expected.extend(NAA_OF_AVIO_1);
    // Code set 2h (ASCII), designator type 1h.
    expected.extend([0x02, 0x01, 0x00, 0x1e]);
    expected.extend(b"AVIO    AVIO DISK       AVIO-1");
    assert_eq!(page, expected);
    // SPC-4 4.2.5.6: cut at the allocation length, the page length is not.
    assert_eq!(rig.reply(&[0x12, 0x01, 0x83, 0, 8, 0]).data, expected[..8]);
}

/// 3h, then the upper 60 bits of FNV-1a over `AVIO-1`, worked out apart.
const NAA_OF_AVIO_1: [u8; 8] = [0x39, 0xb8, 0x50, 0x91, 0x2c, 0x35, 0x59, 0x7c];

/// SBC-3 6.5.2, table 207 (block device characteristics): 003Ch bytes; rotation rate 0001h is a medium that does not rotate.
#[test]
fn vpd_b1_block_device_characteristics() {
    let still = Rig::new(profile()).reply(&[0x12, 0x01, 0xb1, 0, 64, 0]).data;
    let mut expected = vec![0; 64];
    expected[..6].copy_from_slice(&[0x00, 0xb1, 0x00, 0x3c, 0x00, 0x01]);
    assert_eq!(still, expected);
    let turning = Rig::new(Profile { rotational: true, ..profile() });
    expected[5] = 0;
    assert_eq!(turning.reply(&[0x12, 0x01, 0xb1, 0, 64, 0]).data, expected, "not reported");
}

/// SBC-3 6.5.4, table 211 (logical block provisioning): LBPU, LBPWS, LBPWS10, LBPRZ; provisioning type 2h is thin.
#[test]
fn vpd_b2_logical_block_provisioning() {
    let page = |unmaps, unmapped_is_zero| {
        Rig::new(Profile { unmaps, unmapped_is_zero, ..profile() }).reply(&[0x12, 0x01, 0xb2, 0, 64, 0]).data
    };
    assert_eq!(page(true, true), [0x00, 0xb2, 0x00, 0x04, 0x00, 0xe4, 0x02, 0x00]);
    assert_eq!(page(true, false), [0x00, 0xb2, 0x00, 0x04, 0x00, 0xe0, 0x02, 0x00]);
    assert_eq!(page(false, false), [0x00, 0xb2, 0x00, 0x04, 0x00, 0x00, 0x00, 0x00]);
    // What the page denies is not done, and READ CAPACITY (16) has LBPME and LBPRZ as the page has.
    let full = Rig::new(Profile { unmaps: false, unmapped_is_zero: false, ..profile() });
    assert_eq!(full.sense(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24]), (5, 0x20, 0), "UNMAP");
    assert_eq!(
        full.sense(&[0x93, 0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        (5, 0x24, 0),
        "WRITE SAME, UNMAP"
    );
    assert!(matches!(full.run(&[0x93, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), Outcome::Medium(_)));
    let capacity = |rig: &Rig| rig.reply(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32]).data[14];
    assert_eq!((capacity(&full), capacity(&Rig::new(profile()))), (0, 0xc0));
    assert_eq!(full.reply(&[0xa3, 0x0c, 1, 0x42, 0, 0, 0, 0, 1, 0]).data, [0, 1, 0, 0], "not in the list");
}

/// SBC-3 5.4, tables 36 to 38: parameter data length, and one descriptor.
#[test]
fn get_lba_status() {
    let rig = Rig::new(profile());
    let status =
        |lba: u8, len: u8| rig.reply(&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 7, lba, 0, 0, 0, len, 0, 0]).data;
    // 14h bytes follow the length: four reserved, then the block, how many (256 to the end), provisioning status 0h (mapped).
    let expected = [
        0, 0, 0, 0x14, 0, 0, 0, 0, //
        0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0,
    ];
    assert_eq!(status(0, 24), expected);
    assert_eq!(status(0, 4), expected[..4]);
    assert_eq!(status(0xff, 24)[16..20], [0, 0, 0, 1], "the last block");
    assert_eq!(rig.sense(&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 24, 0, 0]), (5, 0x21, 0));
}

/// Some numbers.
#[derive(Debug)]
struct Counted;

impl Statistics for Counted {
    fn numbers(&self, adapter: bool) -> vendor::Statistics {
        let mut numbers = vendor::Statistics::default();
        numbers.io.reads = 0x0102;
        numbers.rings = adapter.then(vendor::RingStatistics::default);
        numbers
    }

    fn adapter(&self) -> vendor::AdapterInformation {
        unreachable!("not a log page")
    }
}

/// SPC-4 6.8 (LOG SENSE), 7.3.2 (log pages and parameters), 7.3.18 (supported log pages).
#[test]
fn log_sense() {
    let rig = Rig::new(profile());
    let env = Env { statistics: Some(&Counted), ..Env::default() };
    let sense = |bytes: [u8; 10]| match rig.unit.execute(&rig.nexus, &cdb(&bytes), &[], &env) {
        Outcome::Reply(reply) => reply.sense.map_or(Ok(reply.data), |s| Err((s.key, s.asc, s.ascq))),
        other => panic!("{other:?}"),
    };
    const INVALID: Result<Vec<u8>, (u8, u8, u8)> = Err((ILLEGAL_REQUEST, 0x24, 0x00));
    assert_eq!(sense([0x4d, 0, 0x40, 0, 0, 0, 0, 1, 0, 0]), Ok(vec![0, 0, 0, 3, 0x00, 0x30, 0x31]));
    assert_eq!(sense([0x4d, 0, 0x00, 0, 0, 0, 0, 0, 4, 0]), Ok(vec![0, 0, 0, 3]), "PC means nothing there");
    for page in [0x30, 0x31] {
        let data = sense([0x4d, 0, 0x40 | page, 0, 0, 0, 0, 0xff, 0xff, 0]).unwrap();
        // DS 1 (not saved), SPF 0, the page; subpage; length of what follows.
        assert_eq!(data[..2], [0x80 | page, 0]);
        assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])), data.len() - 4);
        // The first parameter: code, control, length, and the number of reads.
        assert_eq!(data[7], 8);
        assert_eq!(data[8..16], [0, 0, 0, 0, 0, 0, 1, 2]);
        let codes: Vec<u16> = parameters(&data);
        assert!(codes.is_sorted_by(|a, b| a < b), "ascending: {codes:04x?}");
        let last = codes[codes.len() - 1].to_be_bytes();
        let from_last = sense([0x4d, 0, 0x40 | page, 0, 0, last[0], last[1], 1, 0, 0]).unwrap();
        assert_eq!(parameters(&from_last), [u16::from_be_bytes(last)]);
        let behind = (u16::from_be_bytes(last) + 1).to_be_bytes();
        assert_eq!(
            sense([0x4d, 0, 0x40 | page, 0, 0, behind[0], behind[1], 1, 0, 0]),
            INVALID,
            "no such code"
        );
        for control in [0x00, 0x80, 0xc0] {
            assert_eq!(
                sense([0x4d, 0, control | page, 0, 0, 0, 0, 1, 0, 0]),
                INVALID,
                "thresholds, defaults"
            );
        }
        assert_eq!(sense([0x4d, 0x01, 0x40 | page, 0, 0, 0, 0, 1, 0, 0]), INVALID, "SP");
        assert_eq!(sense([0x4d, 0, 0x40 | page, 1, 0, 0, 0, 1, 0, 0]), INVALID, "a subpage");
    }
    assert_eq!(sense([0x4d, 0, 0x42, 0, 0, 0, 0, 1, 0, 0]), INVALID, "a page that is not in the list");
    assert_eq!(rig.reply(&[0x4d, 0, 0x40, 0, 0, 0, 0, 1, 0, 0]).data, [0, 0, 0, 1, 0], "nothing to tell");
}

/// The parameter codes of a log page, which ends with the last of them.
fn parameters(page: &[u8]) -> Vec<u16> {
    let (mut at, mut codes) = (4, Vec::new());
    while at < page.len() {
        codes.push(u16::from_be_bytes([page[at], page[at + 1]]));
        at += 4 + usize::from(page[at + 3]);
    }
    assert_eq!(at, page.len());
    codes
}

/// SPC-4 6.33, table 305 (SELECT REPORT): without well-known logical units, those alone, all. There are none.
#[test]
fn report_luns() {
    let rig = Rig::new(profile());
    let luns = |select| [0xa0, 0, select, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    for select in [0x00, 0x02] {
        let data = rig.reply(&luns(select)).data;
        assert_eq!(data, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "{select:02x}");
    }
    assert_eq!(rig.reply(&luns(0x01)).data, [0, 0, 0, 0, 0, 0, 0, 0]);
    for select in [0x03, 0x10, 0x11, 0x12, 0xff] {
        assert_eq!(rig.sense(&luns(select)), (5, 0x24, 0), "{select:02x}");
    }
    // A logical unit that is not there answers the same (SPC-4 6.33).
    assert_eq!(no_unit(&cdb(&luns(0x01))).data, [0; 8]);
    assert_eq!(no_unit(&cdb(&luns(0x03))).sense, Some(Sense::new(ILLEGAL_REQUEST, 0x24, 0x00)));
}

/// One command's answer to REPORT SUPPORTED OPERATION CODES, reporting option 011b.
fn supported(rig: &Rig, opcode: u8, action: u8) -> Vec<u8> {
    rig.reply(&[0xa3, 0x0c, 3, opcode, 0, action, 0, 0, 1, 0, 0, 0]).data
}

/// SPC-4 6.35.3, table 315 (one command), with the CDBs of SPC-4 6 and SBC-3 5 for which bits there are.
#[test]
fn report_supported_operation_codes_tells_which_bits_count() {
    let rig = Rig::new(profile());
    const F: u8 = 0xff;
    let maps: &[(u8, &[u8])] = &[
        // TEST UNIT READY, REQUEST SENSE (DESC), INQUIRY (EVPD): of CONTROL, NACA.
        (0, &[0x00, 0, 0, 0, 0, 4]),
        (0, &[0x03, 0x01, 0, 0, F, 4]),
        (0, &[0x12, 0x01, F, F, F, 4]),
        // MODE SENSE (6) (DBD), START STOP UNIT (POWER CONDITION, NO_FLUSH, LOEJ, START).
        (0, &[0x1a, 0x08, F, F, F, 4]),
        (0, &[0x1b, 0, 0, 0, 0xf7, 4]),
        // READ (6): 21 bits of address.
        (0, &[0x08, 0x1f, F, F, F, 4]),
        // READ (10), WRITE (12), READ (16): RDPROTECT or WRPROTECT, DPO, FUA; no group number.
        (0, &[0x28, 0xf8, F, F, F, F, 0, F, F, 4]),
        (0, &[0xaa, 0xf8, F, F, F, F, F, F, F, F, 0, 4]),
        (0, &[0x88, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
        // VERIFY (10), WRITE AND VERIFY (16): protection, DPO, BYTCHK.
        (0, &[0x2f, 0xf6, F, F, F, F, 0, F, F, 4]),
        (0, &[0x8e, 0xf6, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
        // READ CAPACITY (10): nothing; (16): the allocation length; GET LBA STATUS: the block as well.
        (0, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
        (0x10, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 4]),
        (0x12, &[0x9e, 0x12, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
        // UNMAP (ANCHOR), WRITE SAME (16) (WRPROTECT, ANCHOR, UNMAP, NDOB), COMPARE AND WRITE.
        (0, &[0x42, 0x01, 0, 0, 0, 0, 0, F, F, 4]),
        (0, &[0x93, 0xf9, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4]),
        (0, &[0x89, 0xf8, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, 4]),
        // LOG SENSE (SP; PC and page; subpage; pointer), REPORT LUNS (SELECT REPORT).
        (0, &[0x4d, 0x01, F, F, 0, F, F, F, F, 4]),
        (0, &[0xa0, 0, F, 0, 0, 0, F, F, F, F, 0, 4]),
        // REPORT SUPPORTED OPERATION CODES (RCTD, options), PERSISTENT RESERVE IN and OUT (RESERVE has scope and type, CLEAR
        // has neither).
        (0x0c, &[0xa3, 0x0c, 0x87, F, F, F, F, F, F, F, 0, 4]),
        (0x01, &[0x5e, 0x01, 0, 0, 0, 0, 0, F, F, 4]),
        (0x01, &[0x5f, 0x01, F, 0, 0, F, F, F, F, 4]),
        (0x03, &[0x5f, 0x03, 0, 0, 0, F, F, F, F, 4]),
    ];
    for (action, map) in maps {
        // SUPPORT 011b: as the standard says; CDB SIZE.
        let expected = [&[0, 3, 0, map.len() as u8], *map].concat();
        assert_eq!(supported(&rig, map[0], *action), expected, "{:02x}/{action:02x}", map[0]);
    }
}

/// SPC-4 6.35.1, table 311 (REPORTING OPTIONS), and 6.35.4 (timeouts descriptor).
#[test]
fn report_supported_operation_codes_takes_each_option_as_it_is_meant() {
    let rig = Rig::new(profile());
    let ask = |options, opcode, action| [0xa3, 0x0c, options, opcode, 0, action, 0, 0, 1, 0, 0, 0];
    assert_eq!(rig.reply(&ask(1, 0x28, 9)).data[1], 3, "001b: the service action means nothing");
    assert_eq!(rig.sense(&ask(1, 0x9e, 0x10)), (5, 0x24, 0), "001b of a code with service actions");
    assert_eq!(rig.reply(&ask(2, 0x9e, 0x10)).data[1], 3);
    assert_eq!(rig.sense(&ask(2, 0x28, 0)), (5, 0x24, 0), "010b of a code without");
    assert_eq!(rig.reply(&ask(2, 0x9e, 0x1f)).data, [0, 1, 0, 0], "no such service action");
    assert_eq!(rig.reply(&ask(3, 0x28, 0)).data[1], 3, "011b takes both");
    assert_eq!(rig.reply(&ask(3, 0x28, 1)).data, [0, 1, 0, 0]);
    assert_eq!(rig.reply(&ask(1, 0xee, 0)).data, [0, 1, 0, 0]);
    assert_eq!(rig.sense(&ask(4, 0x28, 0)), (5, 0x24, 0), "reserved");
    // RCTD: CTDP, and behind the usage data 000Ah bytes, no timeout given.
    let timed = rig.reply(&ask(0x81, 0x00, 0)).data;
    assert_eq!(timed, [0, 0x83, 0, 6, 0, 0, 0, 0, 0, 4, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let all = rig.reply(&[0xa3, 0x0c, 0x80, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0]).data;
    assert_eq!(all[4..12], [0x00, 0, 0, 0, 0, 0x02, 0, 6], "TEST UNIT READY: no service action, CTDP");
    assert_eq!((all.len() - 4) % 20, 0);
}

/// The map is what the commands do: a bit outside it changes nothing, whatever the rest of the CDB is.
#[test]
fn bits_outside_the_map_change_nothing() {
    for kind in [DeviceKind::Disk, DeviceKind::Dvd] {
        let rig = Rig::new(Profile { kind, ..profile() });
        for row in super::table::rows(&rig.unit.profile) {
            let action = row.service_action.unwrap_or(0);
            let map = supported(&rig, row.opcode, action)[4..].to_vec();
            let mut plain = vec![0; map.len()];
            (plain[0], plain[1]) = (row.opcode, action);
            let answer = |bytes: &[u8]| format!("{:?}", Rig::new(Profile { kind, ..profile() }).run(bytes));
            let expected = answer(&plain);
            for byte in 1..map.len() {
                for bit in (0..8).filter(|bit| map[byte] >> bit & 1 == 0) {
                    let mut changed = plain.clone();
                    changed[byte] |= 1 << bit;
                    // Within the service action's field it is another command.
                    if byte == 1 && bit < 5 && row.service_action.is_some() {
                        continue;
                    }
                    assert_eq!(answer(&changed), expected, "{map:02x?}: byte {byte}, bit {bit}");
                }
            }
        }
    }
}

/// SAM-5 5.2 and SPC-4 6.6.2 (NORMACA is 0): NACA asks for what is not offered, in every command, by whichever way.
#[test]
fn naca_is_refused() {
    let rig = Rig::new(profile());
    assert_eq!(rig.reply(&[0x12, 0, 0, 0, 36, 0]).data[3] & 0x20, 0, "NORMACA");
    for (opcode, control) in [(0x00, 5), (0x12, 5), (0x28, 9), (0xa8, 11), (0x88, 15), (0x8a, 15)] {
        let mut bytes = [0; 16];
        (bytes[0], bytes[control]) = (opcode, 0x04);
        assert_eq!(rig.sense(&bytes), (5, 0x24, 0), "{opcode:02x}");
        bytes[control - 1] = 1;
        assert_eq!(fast(&cdb(&bytes)), None, "{opcode:02x}");
    }
}

/// SPC-2 7.21.2 (RESERVE (10)): for a third party or of an extent there is no reservation.
#[test]
fn reserve_for_others_is_refused() {
    let rig = Rig::new(profile());
    for bits in [0x10, 0x02, 0x01] {
        assert_eq!(rig.sense(&[0x56, bits, 0, 0, 0, 0, 0, 0, 0, 0]), (5, 0x24, 0), "{bits:02x}");
    }
    assert_eq!(rig.sense(&[0x16, 0x10, 0, 0, 0, 0]), (5, 0x24, 0));
    assert!(rig.unit.admit(&rig.other, AccessKind::Write).is_ok(), "nothing was reserved");
}
