//! Parameter data of GET REPLACEMENT STATE and APPROVE REPLACEMENT: a store was replaced under a running guest, and the
//! guest's administrator says that it is the right one (SEMANTICS section 2.4).

use super::text::{self, TextTooLong};
use super::{DataError, HEADER_LEN, TargetState, body, header, number};

/// Longest serial number and identity, in bytes.
const IDENTITY_LEN: usize = 64;
/// Longest name of a backing that the guest gets to see, in bytes.
const BACKING_LEN: usize = 128;
/// Bytes of one [`StoreIdentity`]: size, serial, identity, backing.
const STORE_LEN: usize = 8 + 2 * IDENTITY_LEN + BACKING_LEN;

/// No replacement waits for approval. A nonce of a real one is never this.
pub const NONCE_NONE: u64 = 0;

/// What tells one store from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreIdentity {
    /// Capacity in bytes.
    pub size_bytes: u64,
    /// Unit serial number as in VPD page 80h, up to 64 bytes.
    pub serial: String,
    /// Designator as in VPD page 83h, printable (`naa.3...`), up to 64 bytes.
    pub identity: String,
    /// What the operator calls it (`disk:/dev/...`); cut at 128 bytes.
    pub backing: String,
}

/// Data-in of GET REPLACEMENT STATE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplacementState {
    /// State of the logical unit.
    pub state: TargetState,
    /// Names this replacement; [`NONCE_NONE`] when none waits.
    pub nonce: u64,
    /// The store that is there now.
    pub new: StoreIdentity,
    /// The store that the guest knew before; empty when none was replaced.
    pub old: StoreIdentity,
}

impl ReplacementState {
    /// Length in bytes.
    pub const LEN: usize = HEADER_LEN + 8 + 2 * STORE_LEN;

    /// The parameter data; the caller cuts it at the allocation length.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut data = [0; Self::LEN];
        header(&mut data);
        data[5] = self.state.to_byte();
        data[8..16].copy_from_slice(&self.nonce.to_be_bytes());
        let (new, old) = data[16..].split_at_mut(STORE_LEN);
        self.new.put(new);
        self.old.put(old);
        data
    }

    /// Reads parameter data.
    ///
    /// # Errors
    /// When it is too short or of another format.
    pub fn from_bytes(data: &[u8]) -> Result<Self, DataError> {
        let data = body::<{ Self::LEN }>(data)?;
        let (new, old) = data[16..].split_at(STORE_LEN);
        Ok(Self {
            state: TargetState::from_byte(data[5]).ok_or(DataError::Format { byte: 5 })?,
            nonce: number(data, 8),
            new: StoreIdentity::take(new),
            old: StoreIdentity::take(old),
        })
    }
}

impl StoreIdentity {
    fn put(&self, field: &mut [u8]) {
        field[..8].copy_from_slice(&self.size_bytes.to_be_bytes());
        text::put(&mut field[8..8 + IDENTITY_LEN], &self.serial);
        text::put(&mut field[8 + IDENTITY_LEN..8 + 2 * IDENTITY_LEN], &self.identity);
        text::put(&mut field[8 + 2 * IDENTITY_LEN..], &self.backing);
    }

    fn take(field: &[u8]) -> Self {
        Self {
            size_bytes: number(field, 0),
            serial: text::take(&field[8..8 + IDENTITY_LEN]),
            identity: text::take(&field[8 + IDENTITY_LEN..8 + 2 * IDENTITY_LEN]),
            backing: text::take(&field[8 + 2 * IDENTITY_LEN..]),
        }
    }
}

/// Parameter list of APPROVE REPLACEMENT. It names one replacement: should the operator replace the store again between
/// question and answer, the nonce differs and the target refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// As GET REPLACEMENT STATE gave it.
    pub nonce: u64,
    /// The serial number that the administrator has seen and expects, up to 64 bytes.
    pub serial: String,
}

impl Approval {
    /// Length in bytes.
    pub const LEN: usize = HEADER_LEN + 8 + IDENTITY_LEN;

    /// The parameter list.
    ///
    /// # Errors
    /// When the serial number is longer than any that a target gives.
    pub fn to_bytes(&self) -> Result<[u8; Self::LEN], TextTooLong> {
        let mut data = [0; Self::LEN];
        header(&mut data);
        data[8..16].copy_from_slice(&self.nonce.to_be_bytes());
        text::put_whole(&mut data[16..], &self.serial)?;
        Ok(data)
    }

    /// Reads a parameter list. Whether nonce and serial number are the right ones is the target's to say.
    ///
    /// # Errors
    /// When it is too short or of another format.
    pub fn from_bytes(data: &[u8]) -> Result<Self, DataError> {
        let data = body::<{ Self::LEN }>(data)?;
        Ok(Self { nonce: number(data, 8), serial: text::take(&data[16..]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ReplacementState {
        ReplacementState {
            state: TargetState::Replaced,
            nonce: 0x0102_0304_0506_0708,
            new: StoreIdentity {
                size_bytes: 1 << 30,
                serial: "NEW".into(),
                identity: "naa.6001".into(),
                backing: "file:/b".into(),
            },
            old: StoreIdentity {
                size_bytes: 512,
                serial: "OLD".into(),
                identity: "naa.6000".into(),
                backing: "x".repeat(200),
            },
        }
    }

    #[test]
    fn the_state_has_the_documented_bytes() {
        assert_eq!(ReplacementState::LEN, 544);
        let bytes = state().to_bytes();
        assert_eq!(bytes[..16], [0, 0, 2, 0x1c, 1, 3, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[16..28], [0, 0, 0, 0, 0x40, 0, 0, 0, b'N', b'E', b'W', 0]);
        assert_eq!(bytes[88..97], *b"naa.6001\0");
        assert_eq!(bytes[152..160], *b"file:/b\0");
        assert_eq!(bytes[280..292], [0, 0, 0, 0, 0, 0, 2, 0, b'O', b'L', b'D', 0]);
        assert_eq!(bytes[416..], [b'x'; 128], "a backing's name is cut at the end of its field");
    }

    #[test]
    fn the_state_is_read_back_as_written() {
        let mut wanted = state();
        wanted.old.backing.truncate(BACKING_LEN);
        assert_eq!(ReplacementState::from_bytes(&state().to_bytes()), Ok(wanted));
    }

    #[test]
    fn half_a_state_is_refused() {
        let bytes = state().to_bytes();
        for len in [0, 4, 543] {
            assert_eq!(
                ReplacementState::from_bytes(&bytes[..len]),
                Err(DataError::Short { have: len, need: 544 })
            );
        }
        let mut bytes = state().to_bytes();
        bytes[3] = 0x1b;
        assert_eq!(ReplacementState::from_bytes(&bytes), Err(DataError::Short { have: 543, need: 544 }));
        let mut bytes = state().to_bytes();
        bytes[5] = 9;
        assert_eq!(ReplacementState::from_bytes(&bytes), Err(DataError::Format { byte: 5 }));
        bytes[4] = 0;
        assert_eq!(ReplacementState::from_bytes(&bytes), Err(DataError::Format { byte: 4 }));
    }

    #[test]
    fn the_approval_has_the_documented_bytes() {
        let approval = Approval { nonce: 0xfedc, serial: "NEW".into() };
        let mut wanted = [0; 80];
        wanted[3] = 76;
        wanted[4] = 1;
        wanted[14..16].copy_from_slice(&[0xfe, 0xdc]);
        wanted[16..19].copy_from_slice(b"NEW");
        assert_eq!(approval.to_bytes(), Ok(wanted));
        assert_eq!(Approval::from_bytes(&wanted), Ok(approval));
        assert_eq!(Approval::from_bytes(&wanted[..79]), Err(DataError::Short { have: 79, need: 80 }));
        let long = Approval { nonce: 1, serial: "s".repeat(65) };
        assert!(long.to_bytes().is_err(), "a serial number that was cut would approve another store");
    }
}
