//! The table of commands.
//!
//! Everything that is known of a command stands in its row: `dispatch` looks a command up here, and REPORT SUPPORTED OPERATION CODES reads the same
//! table. An operation code without a row is refused (05h/20h/00h).

use avio_proto::scsi::opcode::*;
use avio_proto::scsi::vendor::{self, Approval};

use super::{DeviceKind, Profile};

/// Most parameter data that a command may bring: UNMAP's list and WRITE SAME's block fit many times.
const PARAMETERS_MAX: usize = 64 << 10;

/// What stands in a command's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Nothing: answered whatever the state, and unit attentions stay (SPC-5 5.15).
    Always,
    /// A unit attention only.
    Attention,
    /// A unit attention and the medium's state.
    Ready,
    /// As a read of the medium: reservations as well.
    Read,
    /// As a write of the medium.
    Write,
}

/// What does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    Inquiry,
    RequestSense,
    ReportLuns,
    TestUnitReady,
    ModeSense,
    ModeSelect,
    StartStop,
    Prevent,
    Capacity10,
    Capacity16,
    LbaStatus,
    LogSense,
    ReportOpcodes,
    ReportTmfs,
    Reserve,
    Release,
    PersistentIn,
    PersistentOut,
    Medium,
    Vendor,
    Toc,
    Configuration,
    EventStatus,
    DiscInformation,
    Mechanism,
}

/// Which devices have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Both,
    Disk,
    Dvd,
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub opcode: u8,
    pub service_action: Option<u8>,
    pub gate: Gate,
    pub does: Does,
    on: On,
    /// The bits of the CDB that are looked at, of its bytes between operation code and CONTROL, apart from the service action
    /// (SPC-5 6.35.3). DPO and FUA count: what they ask for is always so.
    pub usage: &'static [u8],
}

const fn row(opcode: u8, gate: Gate, does: Does, on: On, usage: &'static [u8]) -> Row {
    assert!(usage.len() + 2 == cdb_len(opcode), "a usage map is as long as the CDB");
    Row { opcode, service_action: None, gate, does, on, usage }
}

const fn action(opcode: u8, service_action: u8, gate: Gate, does: Does, on: On, usage: &'static [u8]) -> Row {
    assert!(usage[0] & 0x1f == 0, "the service action stands there");
    Row { service_action: Some(service_action), ..row(opcode, gate, does, on, usage) }
}

/// PERSISTENT RESERVE IN.
const fn reserve_in(service_action: u8) -> Row {
    let usage = &[0, 0, 0, 0, 0, 0, F, F];
    action(PERSISTENT_RESERVE_IN, service_action, Gate::Attention, Does::PersistentIn, On::Disk, usage)
}

/// PERSISTENT RESERVE OUT; some of its service actions have a scope and a type.
const fn reserve_out(service_action: u8, usage: &'static [u8]) -> Row {
    action(PERSISTENT_RESERVE_OUT, service_action, Gate::Attention, Does::PersistentOut, On::Disk, usage)
}

/// CONTROL: NACA is looked at, and refused (SAM-5 5.2).
pub(super) const NACA: u8 = 0x04;
/// A byte of a usage map that counts whole.
const F: u8 = 0xff;

pub(super) const TABLE: &[Row] = &[
    row(TEST_UNIT_READY, Gate::Ready, Does::TestUnitReady, On::Both, &[0, 0, 0, 0]),
    row(REQUEST_SENSE, Gate::Always, Does::RequestSense, On::Both, &[0x01, 0, 0, F]),
    row(INQUIRY, Gate::Always, Does::Inquiry, On::Both, &[0x01, F, F, F]),
    row(REPORT_LUNS, Gate::Always, Does::ReportLuns, On::Both, &[0, F, 0, 0, 0, F, F, F, F, 0]),
    row(MODE_SENSE_6, Gate::Read, Does::ModeSense, On::Both, &[0x08, F, F, F]),
    row(MODE_SENSE_10, Gate::Read, Does::ModeSense, On::Both, &[0x08, F, F, 0, 0, 0, F, F]),
    row(MODE_SELECT_6, Gate::Write, Does::ModeSelect, On::Both, &[0x01, 0, 0, F]),
    row(MODE_SELECT_10, Gate::Write, Does::ModeSelect, On::Both, &[0x01, 0, 0, 0, 0, 0, F, F]),
    row(LOG_SENSE, Gate::Attention, Does::LogSense, On::Both, &[0x01, F, F, 0, F, F, F, F]),
    row(START_STOP_UNIT, Gate::Attention, Does::StartStop, On::Both, &[0, 0, 0, 0xf7]),
    row(PREVENT_ALLOW, Gate::Attention, Does::Prevent, On::Both, &[0, 0, 0, 0x01]),
    row(RESERVE_6, Gate::Attention, Does::Reserve, On::Disk, &[0x11, 0, 0, 0]),
    row(RELEASE_6, Gate::Attention, Does::Release, On::Disk, &[0x11, 0, 0, 0]),
    row(RESERVE_10, Gate::Attention, Does::Reserve, On::Disk, &[0x13, 0, 0, 0, 0, 0, 0, 0]),
    row(RELEASE_10, Gate::Attention, Does::Release, On::Disk, &[0x13, 0, 0, 0, 0, 0, 0, 0]),
    row(READ_CAPACITY_10, Gate::Ready, Does::Capacity10, On::Both, &[0, 0, 0, 0, 0, 0, 0, 0]),
    action(
        SERVICE_ACTION_IN_16,
        SA_READ_CAPACITY_16,
        Gate::Ready,
        Does::Capacity16,
        On::Disk,
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0],
    ),
    action(
        SERVICE_ACTION_IN_16,
        SA_GET_LBA_STATUS,
        Gate::Read,
        Does::LbaStatus,
        On::Disk,
        &[0, F, F, F, F, F, F, F, F, F, F, F, F, 0],
    ),
    action(
        MAINTENANCE_IN,
        SA_REPORT_OPCODES,
        Gate::Attention,
        Does::ReportOpcodes,
        On::Both,
        &[0, 0x87, F, F, F, F, F, F, F, 0],
    ),
    action(
        MAINTENANCE_IN,
        SA_REPORT_TMFS,
        Gate::Attention,
        Does::ReportTmfs,
        On::Both,
        &[0, 0x80, 0, 0, 0, F, F, F, F, 0],
    ),
    reserve_in(0),
    reserve_in(1),
    reserve_in(2),
    reserve_in(3),
    reserve_out(0, &[0, 0, 0, 0, F, F, F, F]),
    reserve_out(1, &[0, F, 0, 0, F, F, F, F]),
    reserve_out(2, &[0, F, 0, 0, F, F, F, F]),
    reserve_out(3, &[0, 0, 0, 0, F, F, F, F]),
    reserve_out(4, &[0, F, 0, 0, F, F, F, F]),
    reserve_out(5, &[0, F, 0, 0, F, F, F, F]),
    reserve_out(6, &[0, 0, 0, 0, F, F, F, F]),
    row(READ_6, Gate::Read, Does::Medium, On::Disk, &[0x1f, F, F, F]),
    row(READ_10, Gate::Read, Does::Medium, On::Both, &[0xf8, F, F, F, F, 0, F, F]),
    row(READ_12, Gate::Read, Does::Medium, On::Both, &[0xf8, F, F, F, F, F, F, F, F, 0]),
    row(READ_16, Gate::Read, Does::Medium, On::Disk, &[0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0]),
    row(VERIFY_10, Gate::Read, Does::Medium, On::Disk, &[0xf6, F, F, F, F, 0, F, F]),
    row(VERIFY_12, Gate::Read, Does::Medium, On::Disk, &[0xf6, F, F, F, F, F, F, F, F, 0]),
    row(VERIFY_16, Gate::Read, Does::Medium, On::Disk, &[0xf6, F, F, F, F, F, F, F, F, F, F, F, F, 0]),
    row(WRITE_6, Gate::Write, Does::Medium, On::Disk, &[0x1f, F, F, F]),
    row(WRITE_10, Gate::Write, Does::Medium, On::Disk, &[0xf8, F, F, F, F, 0, F, F]),
    row(WRITE_12, Gate::Write, Does::Medium, On::Disk, &[0xf8, F, F, F, F, F, F, F, F, 0]),
    row(WRITE_16, Gate::Write, Does::Medium, On::Disk, &[0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0]),
    row(WRITE_AND_VERIFY_10, Gate::Write, Does::Medium, On::Disk, &[0xf6, F, F, F, F, 0, F, F]),
    row(WRITE_AND_VERIFY_12, Gate::Write, Does::Medium, On::Disk, &[0xf6, F, F, F, F, F, F, F, F, 0]),
    row(
        WRITE_AND_VERIFY_16,
        Gate::Write,
        Does::Medium,
        On::Disk,
        &[0xf6, F, F, F, F, F, F, F, F, F, F, F, F, 0],
    ),
    row(SYNCHRONIZE_CACHE_10, Gate::Write, Does::Medium, On::Disk, &[0, F, F, F, F, 0, F, F]),
    row(
        SYNCHRONIZE_CACHE_16,
        Gate::Write,
        Does::Medium,
        On::Disk,
        &[0, F, F, F, F, F, F, F, F, F, F, F, F, 0],
    ),
    row(UNMAP, Gate::Write, Does::Medium, On::Disk, &[0x01, 0, 0, 0, 0, 0, F, F]),
    row(WRITE_SAME_10, Gate::Write, Does::Medium, On::Disk, &[0xf8, F, F, F, F, 0, F, F]),
    row(WRITE_SAME_16, Gate::Write, Does::Medium, On::Disk, &[0xf9, F, F, F, F, F, F, F, F, F, F, F, F, 0]),
    row(
        COMPARE_AND_WRITE,
        Gate::Write,
        Does::Medium,
        On::Disk,
        &[0xf8, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0],
    ),
    row(vendor::OPCODE, Gate::Always, Does::Vendor, On::Both, &[F, F, F, F, F, F, 0, 0, 0, F, F, F, F, 0]),
    row(READ_TOC, Gate::Ready, Does::Toc, On::Dvd, &[0x02, 0x0f, 0, 0, 0, F, F, F]),
    row(GET_CONFIGURATION, Gate::Always, Does::Configuration, On::Dvd, &[0x03, F, F, 0, 0, 0, F, F]),
    row(GET_EVENT_STATUS, Gate::Always, Does::EventStatus, On::Dvd, &[0x01, 0, 0, 0x10, 0, 0, F, F]),
    row(READ_DISC_INFORMATION, Gate::Ready, Does::DiscInformation, On::Dvd, &[0x07, 0, 0, 0, 0, 0, F, F]),
    row(MECHANISM_STATUS, Gate::Always, Does::Mechanism, On::Dvd, &[0, 0, 0, 0, 0, 0, 0, F, F, 0]),
];

/// The rows that a device has.
pub(super) fn rows(profile: &Profile) -> impl Iterator<Item = &'static Row> {
    let has = move |row: &&Row| match row.on {
        On::Both => true,
        On::Disk => profile.kind == DeviceKind::Disk && (row.opcode != UNMAP || profile.unmaps),
        On::Dvd => profile.kind == DeviceKind::Dvd,
    };
    TABLE.iter().filter(has)
}

/// Bytes of data that the driver brings and [`LogicalUnit::execute`](super::LogicalUnit::execute) needs; at most 64 KiB.
#[must_use]
pub fn parameter_len(cdb: &[u8; 32]) -> usize {
    let len = match cdb[0] {
        MODE_SELECT_6 => usize::from(cdb[4]),
        MODE_SELECT_10 | UNMAP => usize::from(u16::from_be_bytes([cdb[7], cdb[8]])),
        PERSISTENT_RESERVE_OUT => u32::from_be_bytes([cdb[5], cdb[6], cdb[7], cdb[8]]) as usize,
        // One block; it is no longer than this.
        WRITE_SAME_10 | WRITE_SAME_16 => 4096,
        vendor::OPCODE => Approval::LEN,
        _ => 0,
    };
    len.min(PARAMETERS_MAX)
}
