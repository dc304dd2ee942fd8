//! Parameter data of GET ADAPTER INFORMATION: what the guest's administrator may know about the adapter (HBA) and which
//! targets behind it are there, in one answer.

use super::text;
use super::{DataError, HEADER_LEN, body, header};

/// Targets of one adapter: 0 to 255, each with logical unit 0 (INTERFACE, `target`).
pub const TARGETS_MAX: usize = 256;

/// Bytes of the names of adapter and guest.
const NAME_LEN: usize = 64;
/// Bytes of the daemon's version.
const VERSION_LEN: usize = 32;

/// What a target's logical unit is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// It takes commands.
    Online,
    /// Its backing does not answer or is gone.
    Offline,
    /// Its store was replaced; the guest's administrator has not approved it yet.
    Replaced,
    /// A drive without medium.
    NoMedia,
}

impl TargetState {
    /// The byte on the wire; 0 is for a target that does not exist.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            TargetState::Online => 1,
            TargetState::Offline => 2,
            TargetState::Replaced => 3,
            TargetState::NoMedia => 4,
        }
    }

    /// The state that `byte` stands for.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(TargetState::Online),
            2 => Some(TargetState::Offline),
            3 => Some(TargetState::Replaced),
            4 => Some(TargetState::NoMedia),
            _ => None,
        }
    }

    /// The word that INTERFACE uses for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            TargetState::Online => "Online",
            TargetState::Offline => "Offline",
            TargetState::Replaced => "Replaced",
            TargetState::NoMedia => "NoMedia",
        }
    }
}

/// Data-in of GET ADAPTER INFORMATION.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInformation {
    /// Bus of the adapter in the guest's definition.
    pub bus: u8,
    /// Device of the adapter in the guest's definition.
    pub device: u8,
    /// Longest transfer of one command in bytes.
    pub max_io_bytes: u32,
    /// Request queues.
    pub queues: u16,
    /// The adapter's name (`avio_stor 0:4`); cut at 64 bytes.
    pub adapter: String,
    /// The guest's name; up to 64 bytes.
    pub guest: String,
    /// Version of `avio-stord`; cut at 32 bytes.
    pub version: String,
    /// State of logical unit 0 of target *n*; `None` where there is no target.
    pub targets: [Option<TargetState>; TARGETS_MAX],
}

impl AdapterInformation {
    /// Length in bytes.
    pub const LEN: usize = HEADER_LEN + 12 + 2 * NAME_LEN + VERSION_LEN + TARGETS_MAX;

    /// How many targets there are.
    #[must_use]
    pub fn luns(&self) -> usize {
        self.targets.iter().flatten().count()
    }

    /// The parameter data; the caller cuts it at the allocation length.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut data = [0; Self::LEN];
        header(&mut data);
        data[6] = self.bus;
        data[7] = self.device;
        data[8..12].copy_from_slice(&self.max_io_bytes.to_be_bytes());
        data[12..14].copy_from_slice(&self.queues.to_be_bytes());
        let luns = u16::try_from(self.luns()).expect("at most TARGETS_MAX");
        data[14..16].copy_from_slice(&luns.to_be_bytes());
        text::put(&mut data[20..84], &self.adapter);
        text::put(&mut data[84..148], &self.guest);
        text::put(&mut data[148..180], &self.version);
        for (byte, target) in data[180..].iter_mut().zip(self.targets) {
            *byte = target.map_or(0, TargetState::to_byte);
        }
        data
    }

    /// Reads parameter data. A state that this version does not know reads as offline: the target is there, nothing more is
    /// known.
    ///
    /// # Errors
    /// When it is too short or of another format.
    pub fn from_bytes(data: &[u8]) -> Result<Self, DataError> {
        let data = body::<{ Self::LEN }>(data)?;
        let mut targets = [None; TARGETS_MAX];
        for (target, byte) in targets.iter_mut().zip(&data[180..]) {
            *target = (*byte != 0).then(|| TargetState::from_byte(*byte).unwrap_or(TargetState::Offline));
        }
        Ok(Self {
            bus: data[6],
            device: data[7],
            max_io_bytes: u32::from_be_bytes([data[8], data[9], data[10], data[11]]),
            queues: u16::from_be_bytes([data[12], data[13]]),
            adapter: text::take(&data[20..84]),
            guest: text::take(&data[84..148]),
            version: text::take(&data[148..180]),
            targets,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn information() -> AdapterInformation {
        let mut targets = [None; TARGETS_MAX];
        targets[0] = Some(TargetState::Online);
        targets[7] = Some(TargetState::Replaced);
        targets[255] = Some(TargetState::NoMedia);
        AdapterInformation {
            bus: 0,
            device: 4,
            max_io_bytes: 1 << 20,
            queues: 2,
            adapter: "avio_stor 0:4".into(),
            guest: "guest1".into(),
            version: "0.1.0".into(),
            targets,
        }
    }

    #[test]
    fn the_information_has_the_documented_bytes() {
        assert_eq!(AdapterInformation::LEN, 436);
        let bytes = information().to_bytes();
        assert_eq!(bytes[..20], [0, 0, 1, 0xb0, 1, 0, 0, 4, 0, 0x10, 0, 0, 0, 2, 0, 3, 0, 0, 0, 0]);
        assert_eq!(bytes[20..34], *b"avio_stor 0:4\0");
        assert_eq!(bytes[84..91], *b"guest1\0");
        assert_eq!(bytes[148..154], *b"0.1.0\0");
        assert_eq!((bytes[180], bytes[181], bytes[187], bytes[435]), (1, 0, 3, 4));
    }

    #[test]
    fn the_information_is_read_back_as_written() {
        let mut bytes = information().to_bytes().to_vec();
        assert_eq!(AdapterInformation::from_bytes(&bytes), Ok(information()));
        bytes.extend([1, 2, 3]);
        bytes[4] = 2;
        assert_eq!(AdapterInformation::from_bytes(&bytes), Ok(information()), "a later format appends");
        bytes[180] = 200;
        let read = AdapterInformation::from_bytes(&bytes).unwrap();
        assert_eq!(read.targets[0], Some(TargetState::Offline), "there, and in no state that we know");
        assert_eq!(
            AdapterInformation::from_bytes(&bytes[..435]),
            Err(DataError::Short { have: 435, need: 436 })
        );
    }
}
