//! The virtio SCSI host device: commands, task management, events, configuration space (virtio 1.3 §5.6).
//!
//! Owns layouts and numbers only, little-endian as the standard has them. `avio-stord` serves adapters by it, `avio-guest`
//! drives them. CDBs and sense data are SCSI's own and not looked into here.

use super::field;

/// A command may have data in both directions (§5.6.3, bit 0).
pub const F_INOUT: u64 = 1 << 0;
/// The device reports hot-plug of targets and LUNs (bit 1).
pub const F_HOTPLUG: u64 = 1 << 1;
/// The device reports changed parameters of a LUN (bit 2).
pub const F_CHANGE: u64 = 1 << 2;
/// Protection information; never offered by AVIO: the command's layout would change (bit 3).
pub const F_T10_PI: u64 = 1 << 3;

/// Index of the control queue (§5.6.2).
pub const CONTROL_QUEUE: u32 = 0;
/// Index of the event queue.
pub const EVENT_QUEUE: u32 = 1;
/// Index of the first request queue.
pub const REQUEST_QUEUE: u32 = 2;

/// Bytes of a CDB in a command: `cdb_size` as devices reset it (§5.6.4).
pub const CDB_LEN: usize = 32;
/// Bytes of sense data in a response: `sense_size` as devices reset it.
pub const SENSE_LEN: usize = 96;

/// Response: done, see the SCSI status; also a task management function that completed (§5.6.6.1, §5.6.6.2).
pub const S_OK: u8 = 0;
/// Response to task management: the same as [`S_OK`].
pub const S_FUNCTION_COMPLETE: u8 = 0;
/// Response: the command wanted more data than the buffers hold.
pub const S_OVERRUN: u8 = 1;
/// Response: aborted by task management.
pub const S_ABORTED: u8 = 2;
/// Response: there is no such target.
pub const S_BAD_TARGET: u8 = 3;
/// Response: ended by a reset.
pub const S_RESET: u8 = 4;
/// Response: the host or transport is busy.
pub const S_BUSY: u8 = 5;
/// Response: the transport failed; retrying elsewhere may help.
pub const S_TRANSPORT_FAILURE: u8 = 6;
/// Response: the target failed; retrying elsewhere does not help.
pub const S_TARGET_FAILURE: u8 = 7;
/// Response: this nexus failed; retrying through another may help.
pub const S_NEXUS_FAILURE: u8 = 8;
/// Response: any other failure; retrying may help.
pub const S_FAILURE: u8 = 9;
/// Response to task management: the function succeeded (QUERY TASK: the task is there).
pub const S_FUNCTION_SUCCEEDED: u8 = 10;
/// Response to task management: not supported.
pub const S_FUNCTION_REJECTED: u8 = 11;
/// Response to task management and notification requests: no such LUN.
pub const S_INCORRECT_LUN: u8 = 12;

/// Task attribute: simple (§5.6.6.1).
pub const ATTR_SIMPLE: u8 = 0;
/// Task attribute: ordered.
pub const ATTR_ORDERED: u8 = 1;
/// Task attribute: head of queue.
pub const ATTR_HEAD: u8 = 2;
/// Task attribute: ACA.
pub const ATTR_ACA: u8 = 3;

/// Control request: task management (§5.6.6.2).
pub const T_TMF: u32 = 0;
/// Control request: which asynchronous notifications are there.
pub const T_AN_QUERY: u32 = 1;
/// Control request: asynchronous notifications, please.
pub const T_AN_SUBSCRIBE: u32 = 2;

/// Task management function: ABORT TASK.
pub const T_TMF_ABORT_TASK: u32 = 0;
/// Task management function: ABORT TASK SET.
pub const T_TMF_ABORT_TASK_SET: u32 = 1;
/// Task management function: CLEAR ACA.
pub const T_TMF_CLEAR_ACA: u32 = 2;
/// Task management function: CLEAR TASK SET.
pub const T_TMF_CLEAR_TASK_SET: u32 = 3;
/// Task management function: I_T NEXUS RESET.
pub const T_TMF_I_T_NEXUS_RESET: u32 = 4;
/// Task management function: LOGICAL UNIT RESET.
pub const T_TMF_LOGICAL_UNIT_RESET: u32 = 5;
/// Task management function: QUERY TASK.
pub const T_TMF_QUERY_TASK: u32 = 6;
/// Task management function: QUERY TASK SET.
pub const T_TMF_QUERY_TASK_SET: u32 = 7;

/// Event flag: events were lost for want of buffers (§5.6.6.3).
pub const EVENTS_MISSED: u32 = 0x8000_0000;
/// Event: none; stands beside [`EVENTS_MISSED`].
pub const T_NO_EVENT: u32 = 0;
/// Event: a target or LUN was reset, added or removed; `reason` says which.
pub const T_TRANSPORT_RESET: u32 = 1;
/// Event: asynchronous notification of a LUN; `reason` has the `AN_*` bits.
pub const T_ASYNC_NOTIFY: u32 = 2;
/// Event: parameters of a LUN changed; `reason` is ASC | ASCQ << 8.
pub const T_PARAM_CHANGE: u32 = 3;
/// Reason of a transport reset: the LUN was reset hard.
pub const RESET_HARD: u32 = 0;
/// Reason of a transport reset: a LUN or target is new.
pub const RESET_RESCAN: u32 = 1;
/// Reason of a transport reset: a LUN or target is gone.
pub const RESET_REMOVED: u32 = 2;

/// Notification: operational change (MMC; §5.6.6.2).
pub const AN_OPERATIONAL_CHANGE: u32 = 2;
/// Notification: power management.
pub const AN_POWER_MGMT: u32 = 4;
/// Notification: external request (an eject button).
pub const AN_EXTERNAL_REQUEST: u32 = 8;
/// Notification: media change.
pub const AN_MEDIA_CHANGE: u32 = 16;
/// Notification: multiple hosts.
pub const AN_MULTI_HOST: u32 = 32;
/// Notification: device busy.
pub const AN_DEVICE_BUSY: u32 = 64;

/// The well-known logical unit for REPORT LUNS, as drivers address it (§5.6.6.1).
pub const REPORT_LUNS: [u8; 8] = [0xc1, 1, 0, 0, 0, 0, 0, 0];

/// Which logical unit: target and LUN as the eight bytes of every request carry them (§5.6.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lun {
    /// Target, 0..=255.
    pub target: u8,
    /// LUN, 0..=16383.
    pub lun: u16,
}

impl Lun {
    /// LUN 0 of a target.
    #[inline]
    #[must_use]
    pub fn target(target: u8) -> Self {
        Self { target, lun: 0 }
    }

    /// 1, target, LUN in flat space addressing, zeroes. Bits of the LUN above 14 are lost.
    #[inline]
    #[must_use]
    pub fn encode(self) -> [u8; 8] {
        let [high, low] = self.lun.to_be_bytes();
        [1, self.target, 0x40 | high & 0x3f, low, 0, 0, 0, 0]
    }

    /// Reads flat space or peripheral device addressing (SAM-5 4.7); `None` for anything else, [`REPORT_LUNS`] among it.
    #[inline]
    #[must_use]
    pub fn decode(b: &[u8; 8]) -> Option<Self> {
        if b[0] != 1 || b[4..] != [0; 4] {
            return None;
        }
        let lun = match b[2] >> 6 {
            0 if b[2] == 0 => u16::from(b[3]),
            1 => u16::from_be_bytes([b[2] & 0x3f, b[3]]),
            _ => return None,
        };
        Some(Self { target: b[1], lun })
    }
}

/// The device-readable head of a command; data out follow (`struct virtio_scsi_req_cmd`, §5.6.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandRequest {
    /// Raw address: [`Lun::decode`] or [`REPORT_LUNS`].
    pub lun: [u8; 8],
    /// The driver's name for the command, for task management.
    pub id: u64,
    /// `ATTR_*`.
    pub task_attr: u8,
    /// Command priority (SAM).
    pub prio: u8,
    /// Command reference number (SAM).
    pub crn: u8,
    /// The CDB, padded with zeroes.
    pub cdb: [u8; CDB_LEN],
}

impl CommandRequest {
    /// Length in bytes.
    pub const LEN: usize = 19 + CDB_LEN;

    /// Reads a command head.
    #[inline]
    #[must_use]
    pub fn from_bytes(b: &[u8; Self::LEN]) -> Self {
        Self {
            lun: field(b, 0),
            id: u64::from_le_bytes(field(b, 8)),
            task_attr: b[16],
            prio: b[17],
            crn: b[18],
            cdb: field(b, 19),
        }
    }

    /// The wire bytes.
    #[inline]
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[..8].copy_from_slice(&self.lun);
        b[8..16].copy_from_slice(&self.id.to_le_bytes());
        b[16] = self.task_attr;
        b[17] = self.prio;
        b[18] = self.crn;
        b[19..].copy_from_slice(&self.cdb);
        b
    }
}

/// The device-writable head of a command; data in follow (`struct virtio_scsi_resp_cmd`, §5.6.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandResponse {
    /// Valid bytes of `sense`.
    pub sense_len: u32,
    /// Data bytes that were not transferred.
    pub residual: u32,
    /// SAM status qualifier.
    pub status_qualifier: u16,
    /// SAM status; meaningful with [`S_OK`].
    pub status: u8,
    /// `S_*`.
    pub response: u8,
    /// Sense data, padded with zeroes.
    pub sense: [u8; SENSE_LEN],
}

impl Default for CommandResponse {
    fn default() -> Self {
        Self { sense_len: 0, residual: 0, status_qualifier: 0, status: 0, response: 0, sense: [0; SENSE_LEN] }
    }
}

impl CommandResponse {
    /// Length in bytes.
    pub const LEN: usize = Self::HEAD_LEN + SENSE_LEN;
    /// Length of what stands before the sense data: all that a command without sense needs written.
    pub const HEAD_LEN: usize = 12;

    /// Reads a response.
    #[must_use]
    pub fn from_bytes(b: &[u8; Self::LEN]) -> Self {
        Self {
            sense_len: u32::from_le_bytes(field(b, 0)),
            residual: u32::from_le_bytes(field(b, 4)),
            status_qualifier: u16::from_le_bytes(field(b, 8)),
            status: b[10],
            response: b[11],
            sense: field(b, Self::HEAD_LEN),
        }
    }

    /// The wire bytes before the sense data.
    #[inline]
    #[must_use]
    pub fn head(&self) -> [u8; Self::HEAD_LEN] {
        let mut b = [0; Self::HEAD_LEN];
        b[..4].copy_from_slice(&self.sense_len.to_le_bytes());
        b[4..8].copy_from_slice(&self.residual.to_le_bytes());
        b[8..10].copy_from_slice(&self.status_qualifier.to_le_bytes());
        b[10] = self.status;
        b[11] = self.response;
        b
    }

    /// The wire bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[..Self::HEAD_LEN].copy_from_slice(&self.head());
        b[Self::HEAD_LEN..].copy_from_slice(&self.sense);
        b
    }
}

/// A request on the control queue (§5.6.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRequest {
    /// A task management function; the response is one byte.
    Tmf {
        /// `T_TMF_*`.
        subtype: u32,
        /// Raw address.
        lun: [u8; 8],
        /// The command that ABORT TASK and QUERY TASK mean.
        id: u64,
    },
    /// Asynchronous notifications, [`T_AN_QUERY`]; the response is [`ControlRequest::an_response`].
    AnQuery {
        /// Raw address.
        lun: [u8; 8],
        /// `AN_*` bits.
        requested: u32,
    },
    /// As the query, and from now on please.
    AnSubscribe {
        /// Raw address.
        lun: [u8; 8],
        /// `AN_*` bits.
        requested: u32,
    },
}

impl ControlRequest {
    /// Length of a task management request in bytes; the longest of all.
    pub const TMF_LEN: usize = 24;
    /// Length of a notification request in bytes.
    pub const AN_LEN: usize = 16;
    /// Length of the response to a notification request in bytes.
    pub const AN_RESPONSE_LEN: usize = 5;

    /// Reads a request; `None` if the type is unknown or `bytes` end too early. More bytes than needed do no harm.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < Self::AN_LEN {
            return None;
        }
        match u32::from_le_bytes(field(bytes, 0)) {
            T_TMF if bytes.len() >= Self::TMF_LEN => Some(Self::Tmf {
                subtype: u32::from_le_bytes(field(bytes, 4)),
                lun: field(bytes, 8),
                id: u64::from_le_bytes(field(bytes, 16)),
            }),
            T_AN_QUERY => {
                Some(Self::AnQuery { lun: field(bytes, 4), requested: u32::from_le_bytes(field(bytes, 12)) })
            }
            T_AN_SUBSCRIBE => Some(Self::AnSubscribe {
                lun: field(bytes, 4),
                requested: u32::from_le_bytes(field(bytes, 12)),
            }),
            _ => None,
        }
    }

    /// The wire bytes and how many of them count.
    #[must_use]
    pub fn encode(&self) -> ([u8; Self::TMF_LEN], usize) {
        let mut b = [0; Self::TMF_LEN];
        match self {
            Self::Tmf { subtype, lun, id } => {
                b[..4].copy_from_slice(&T_TMF.to_le_bytes());
                b[4..8].copy_from_slice(&subtype.to_le_bytes());
                b[8..16].copy_from_slice(lun);
                b[16..24].copy_from_slice(&id.to_le_bytes());
                (b, Self::TMF_LEN)
            }
            Self::AnQuery { lun, requested } | Self::AnSubscribe { lun, requested } => {
                let kind = if matches!(self, Self::AnQuery { .. }) { T_AN_QUERY } else { T_AN_SUBSCRIBE };
                b[..4].copy_from_slice(&kind.to_le_bytes());
                b[4..12].copy_from_slice(lun);
                b[12..16].copy_from_slice(&requested.to_le_bytes());
                (b, Self::AN_LEN)
            }
        }
    }

    /// The response to a notification request: le32 `actual` bits, then the response byte.
    #[must_use]
    pub fn an_response(actual: u32, response: u8) -> [u8; Self::AN_RESPONSE_LEN] {
        let a = actual.to_le_bytes();
        [a[0], a[1], a[2], a[3], response]
    }
}

/// What the device writes into a buffer of the event queue (§5.6.6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `T_*` of events, with [`EVENTS_MISSED`].
    pub event: u32,
    /// Raw address.
    pub lun: [u8; 8],
    /// By event.
    pub reason: u32,
}

impl Event {
    /// Length in bytes: `event_info_size`.
    pub const LEN: usize = 16;

    /// Reads an event.
    #[must_use]
    pub fn from_bytes(b: &[u8; Self::LEN]) -> Self {
        Self {
            event: u32::from_le_bytes(field(b, 0)),
            lun: field(b, 4),
            reason: u32::from_le_bytes(field(b, 12)),
        }
    }

    /// The wire bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[..4].copy_from_slice(&self.event.to_le_bytes());
        b[4..12].copy_from_slice(&self.lun);
        b[12..].copy_from_slice(&self.reason.to_le_bytes());
        b
    }
}

/// The configuration space (`struct virtio_scsi_config`, §5.6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Request queues.
    pub num_queues: u32,
    /// Most data segments of a command.
    pub seg_max: u32,
    /// Longest command in units of 512 bytes; a hint.
    pub max_sectors: u32,
    /// Most commands outstanding per LUN; a hint.
    pub cmd_per_lun: u32,
    /// Bytes of an event: [`Event::LEN`].
    pub event_info_size: u32,
    /// Bytes of sense in a response; the driver may write it.
    pub sense_size: u32,
    /// Bytes of CDB in a command; the driver may write it.
    pub cdb_size: u32,
    /// Highest channel: 0.
    pub max_channel: u16,
    /// Highest target.
    pub max_target: u16,
    /// Highest LUN.
    pub max_lun: u32,
}

impl Default for Config {
    /// As devices reset it: no queues, no targets, the sizes of the standard.
    fn default() -> Self {
        Self {
            num_queues: 0,
            seg_max: 0,
            max_sectors: 0,
            cmd_per_lun: 0,
            event_info_size: Event::LEN as u32,
            sense_size: SENSE_LEN as u32,
            cdb_size: CDB_LEN as u32,
            max_channel: 0,
            max_target: 0,
            max_lun: 0,
        }
    }
}

impl Config {
    /// Length in bytes.
    pub const LEN: usize = 36;
    /// Where `sense_size` stands, for SET_CONFIG.
    pub const SENSE_SIZE_OFFSET: usize = 20;
    /// Where `cdb_size` stands, for SET_CONFIG.
    pub const CDB_SIZE_OFFSET: usize = 24;

    /// The wire bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        let words = [
            self.num_queues,
            self.seg_max,
            self.max_sectors,
            self.cmd_per_lun,
            self.event_info_size,
            self.sense_size,
            self.cdb_size,
            u32::from(self.max_channel) | u32::from(self.max_target) << 16,
            self.max_lun,
        ];
        for (place, word) in b.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        b
    }

    /// Reads the configuration space.
    #[must_use]
    pub fn decode(b: &[u8; Self::LEN]) -> Self {
        let u32_at = |at| u32::from_le_bytes(field(b, at));
        Self {
            num_queues: u32_at(0),
            seg_max: u32_at(4),
            max_sectors: u32_at(8),
            cmd_per_lun: u32_at(12),
            event_info_size: u32_at(16),
            sense_size: u32_at(Self::SENSE_SIZE_OFFSET),
            cdb_size: u32_at(Self::CDB_SIZE_OFFSET),
            max_channel: u16::from_le_bytes(field(b, 28)),
            max_target: u16::from_le_bytes(field(b, 30)),
            max_lun: u32_at(32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lun_bytes_are_those_of_the_standard() {
        // "first byte set to 1, second byte set to target, third and fourth byte representing a single level LUN structure,
        // followed by four zero bytes" (§5.6.6.1); flat space has 01b in the two top bits (SAM-5 4.7.7.3).
        let flat = [1, 200, 0x41, 0x02, 0, 0, 0, 0];
        assert_eq!(Lun { target: 200, lun: 0x102 }.encode(), flat);
        assert_eq!(Lun::decode(&flat), Some(Lun { target: 200, lun: 0x102 }));
        // Peripheral device addressing, bus 0.
        assert_eq!(Lun::decode(&[1, 3, 0, 7, 0, 0, 0, 0]), Some(Lun { target: 3, lun: 7 }));
        for bad in
            [REPORT_LUNS, [0, 3, 0, 0, 0, 0, 0, 0], [1, 3, 0x80, 0, 0, 0, 0, 0], [1, 3, 0x40, 0, 0, 0, 0, 1]]
        {
            assert_eq!(Lun::decode(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn command_bytes_are_those_of_the_standard() {
        let mut bytes = vec![1, 5, 0x40, 0, 0, 0, 0, 0]; // lun
        bytes.extend([8, 7, 6, 5, 4, 3, 2, 1]); // id
        bytes.extend([2, 9, 4]); // task_attr, prio, crn
        bytes.extend([0x28, 0, 0, 0, 0, 0x10, 0, 0, 8, 0]); // READ (10)
        bytes.extend([0; 22]);
        let bytes: [u8; 51] = bytes.try_into().unwrap();
        let mut cdb = [0; 32];
        cdb[0] = 0x28;
        cdb[5] = 0x10;
        cdb[8] = 8;
        let command = CommandRequest {
            lun: Lun::target(5).encode(),
            id: 0x0102_0304_0506_0708,
            task_attr: ATTR_HEAD,
            prio: 9,
            crn: 4,
            cdb,
        };
        assert_eq!(CommandRequest::from_bytes(&bytes), command);
        assert_eq!(command.to_bytes(), bytes);
    }

    #[test]
    fn response_bytes_are_those_of_the_standard() {
        let mut bytes = vec![18, 0, 0, 0]; // sense_len
        bytes.extend([0, 2, 0, 0]); // residual
        bytes.extend([0x34, 0x12, 2, 0]); // status_qualifier, status, response
        bytes.extend([0x70, 0, 5]);
        bytes.extend([0; 93]);
        let bytes: [u8; 108] = bytes.try_into().unwrap();
        let mut sense = [0; 96];
        (sense[0], sense[2]) = (0x70, 5);
        let response = CommandResponse {
            sense_len: 18,
            residual: 512,
            status_qualifier: 0x1234,
            status: 2,
            response: S_OK,
            sense,
        };
        assert_eq!(CommandResponse::from_bytes(&bytes), response);
        assert_eq!(response.to_bytes(), bytes);
        assert_eq!(response.head(), bytes[..12]);
    }

    #[test]
    fn control_bytes_are_those_of_the_standard() {
        // le32 type, le32 subtype, u8 lun[8], le64 id.
        let tmf = [0, 0, 0, 0, 5, 0, 0, 0, 1, 9, 0x40, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0];
        let want =
            ControlRequest::Tmf { subtype: T_TMF_LOGICAL_UNIT_RESET, lun: Lun::target(9).encode(), id: 16 };
        assert_eq!(ControlRequest::decode(&tmf), Some(want));
        assert_eq!(want.encode(), (tmf, 24));
        assert_eq!(ControlRequest::decode(&tmf[..23]), None);
        // le32 type, u8 lun[8], le32 event_requested.
        let an = [2, 0, 0, 0, 1, 9, 0x40, 0, 0, 0, 0, 0, 16, 0, 0, 0];
        let want = ControlRequest::AnSubscribe { lun: Lun::target(9).encode(), requested: AN_MEDIA_CHANGE };
        assert_eq!(ControlRequest::decode(&an), Some(want));
        let (bytes, len) = want.encode();
        assert_eq!(bytes[..len], an);
        assert_eq!(ControlRequest::an_response(16, S_OK), [16, 0, 0, 0, 0]);
        assert_eq!(ControlRequest::decode(&[3; 24]), None);
    }

    #[test]
    fn event_bytes_are_those_of_the_standard() {
        // Capacity data has changed: ASC 2Ah, ASCQ 09h in `reason` (§5.6.6.3).
        let bytes = [3, 0, 0, 0x80, 1, 7, 0x40, 0, 0, 0, 0, 0, 0x2a, 9, 0, 0];
        let event = Event {
            event: T_PARAM_CHANGE | EVENTS_MISSED,
            lun: Lun::target(7).encode(),
            reason: 0x2a | 0x09 << 8,
        };
        assert_eq!(Event::from_bytes(&bytes), event);
        assert_eq!(event.to_bytes(), bytes);
    }

    #[test]
    fn config_bytes_are_those_of_the_standard() {
        let mut bytes = vec![2, 0, 0, 0, 126, 0, 0, 0]; // num_queues, seg_max
        bytes.extend([0xff, 0xff, 0, 0, 128, 0, 0, 0]); // max_sectors, cmd_per_lun
        bytes.extend([16, 0, 0, 0, 96, 0, 0, 0, 32, 0, 0, 0]); // event_info_size, sense_size, cdb_size
        bytes.extend([0, 0, 255, 0, 0xff, 0x3f, 0, 0]); // max_channel, max_target, max_lun
        let bytes: [u8; 36] = bytes.try_into().unwrap();
        let config = Config {
            num_queues: 2,
            seg_max: 126,
            max_sectors: 0xffff,
            cmd_per_lun: 128,
            max_target: 255,
            max_lun: 16383,
            ..Config::default()
        };
        assert_eq!(config.encode(), bytes);
        assert_eq!(Config::decode(&bytes), config);
    }
}
