//! Operation codes and service actions (SPC-5, SBC-4, MMC-6).

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => { $($(#[$doc])* pub const $name: u8 = $value;)* };
}

codes! {
    /// TEST UNIT READY.
    TEST_UNIT_READY = 0x00;
    /// REQUEST SENSE.
    REQUEST_SENSE = 0x03;
    /// READ (6).
    READ_6 = 0x08;
    /// WRITE (6).
    WRITE_6 = 0x0a;
    /// INQUIRY.
    INQUIRY = 0x12;
    /// MODE SELECT (6).
    MODE_SELECT_6 = 0x15;
    /// RESERVE (6), of SPC-2.
    RESERVE_6 = 0x16;
    /// RELEASE (6), of SPC-2.
    RELEASE_6 = 0x17;
    /// MODE SENSE (6).
    MODE_SENSE_6 = 0x1a;
    /// START STOP UNIT.
    START_STOP_UNIT = 0x1b;
    /// PREVENT ALLOW MEDIUM REMOVAL.
    PREVENT_ALLOW = 0x1e;
    /// READ CAPACITY (10).
    READ_CAPACITY_10 = 0x25;
    /// READ (10).
    READ_10 = 0x28;
    /// WRITE (10).
    WRITE_10 = 0x2a;
    /// WRITE AND VERIFY (10).
    WRITE_AND_VERIFY_10 = 0x2e;
    /// VERIFY (10).
    VERIFY_10 = 0x2f;
    /// SYNCHRONIZE CACHE (10).
    SYNCHRONIZE_CACHE_10 = 0x35;
    /// WRITE SAME (10).
    WRITE_SAME_10 = 0x41;
    /// UNMAP.
    UNMAP = 0x42;
    /// READ TOC/PMA/ATIP.
    READ_TOC = 0x43;
    /// GET CONFIGURATION.
    GET_CONFIGURATION = 0x46;
    /// GET EVENT STATUS NOTIFICATION.
    GET_EVENT_STATUS = 0x4a;
    /// LOG SENSE.
    LOG_SENSE = 0x4d;
    /// READ DISC INFORMATION.
    READ_DISC_INFORMATION = 0x51;
    /// MODE SELECT (10).
    MODE_SELECT_10 = 0x55;
    /// RESERVE (10), of SPC-2.
    RESERVE_10 = 0x56;
    /// RELEASE (10), of SPC-2.
    RELEASE_10 = 0x57;
    /// MODE SENSE (10).
    MODE_SENSE_10 = 0x5a;
    /// PERSISTENT RESERVE IN.
    PERSISTENT_RESERVE_IN = 0x5e;
    /// PERSISTENT RESERVE OUT.
    PERSISTENT_RESERVE_OUT = 0x5f;
    /// READ (16).
    READ_16 = 0x88;
    /// COMPARE AND WRITE.
    COMPARE_AND_WRITE = 0x89;
    /// WRITE (16).
    WRITE_16 = 0x8a;
    /// WRITE AND VERIFY (16).
    WRITE_AND_VERIFY_16 = 0x8e;
    /// VERIFY (16).
    VERIFY_16 = 0x8f;
    /// SYNCHRONIZE CACHE (16).
    SYNCHRONIZE_CACHE_16 = 0x91;
    /// WRITE SAME (16).
    WRITE_SAME_16 = 0x93;
    /// SERVICE ACTION IN (16).
    SERVICE_ACTION_IN_16 = 0x9e;
    /// REPORT LUNS.
    REPORT_LUNS = 0xa0;
    /// MAINTENANCE IN.
    MAINTENANCE_IN = 0xa3;
    /// READ (12).
    READ_12 = 0xa8;
    /// WRITE (12).
    WRITE_12 = 0xaa;
    /// WRITE AND VERIFY (12).
    WRITE_AND_VERIFY_12 = 0xae;
    /// VERIFY (12).
    VERIFY_12 = 0xaf;
    /// MECHANISM STATUS.
    MECHANISM_STATUS = 0xbd;
}

/// SERVICE ACTION IN (16): READ CAPACITY (16).
pub const SA_READ_CAPACITY_16: u8 = 0x10;
/// SERVICE ACTION IN (16): GET LBA STATUS.
pub const SA_GET_LBA_STATUS: u8 = 0x12;
/// MAINTENANCE IN: REPORT SUPPORTED OPERATION CODES.
pub const SA_REPORT_OPCODES: u8 = 0x0c;
/// MAINTENANCE IN: REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
pub const SA_REPORT_TMFS: u8 = 0x0d;

/// Bytes of a CDB by its operation code's group (SPC-5 4.2.5.1); 0: the group says nothing.
#[must_use]
pub const fn cdb_len(opcode: u8) -> usize {
    match opcode >> 5 {
        0 => 6,
        1 | 2 => 10,
        4 => 16,
        5 => 12,
        6 | 7 => 16,
        _ => 0,
    }
}
