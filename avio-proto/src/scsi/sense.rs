//! Sense data: why a command ended as it did (SPC-5 4.4).
//!
//! Values and their two wire formats. Which one a logical unit answers with is its control mode page's D_SENSE bit.

/// Sense key: nothing to say.
pub const NO_SENSE: u8 = 0x0;
/// Sense key: the logical unit cannot be used now.
pub const NOT_READY: u8 = 0x2;
/// Sense key: the medium failed.
pub const MEDIUM_ERROR: u8 = 0x3;
/// Sense key: the device failed.
pub const HARDWARE_ERROR: u8 = 0x4;
/// Sense key: the command or its parameters are wrong.
pub const ILLEGAL_REQUEST: u8 = 0x5;
/// Sense key: something happened that this initiator must know of.
pub const UNIT_ATTENTION: u8 = 0x6;
/// Sense key: writes are not allowed.
pub const DATA_PROTECT: u8 = 0x7;
/// Sense key: given up.
pub const ABORTED_COMMAND: u8 = 0xb;
/// Sense key: the data are others.
pub const MISCOMPARE: u8 = 0xe;

/// Bytes of fixed format sense data.
pub const FIXED_LEN: usize = 18;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Its qualifier.
    pub ascq: u8,
    /// INFORMATION: the block, or the byte that differs.
    pub information: Option<u64>,
}

impl Sense {
    /// Key, additional sense code, qualifier.
    #[must_use]
    pub const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq, information: None }
    }

    /// The same with INFORMATION.
    #[must_use]
    pub const fn at(self, information: u64) -> Self {
        Self { information: Some(information), ..self }
    }

    /// Fixed format (SPC-5 4.4.3), current: response code 70h. INFORMATION is said only if it fits 32 bits.
    #[must_use]
    pub fn fixed(&self) -> [u8; FIXED_LEN] {
        let mut b = [0; FIXED_LEN];
        b[0] = 0x70;
        b[2] = self.key;
        b[7] = FIXED_LEN as u8 - 8;
        b[12] = self.asc;
        b[13] = self.ascq;
        if let Some(information) = self.information.and_then(|i| u32::try_from(i).ok()) {
            b[0] |= 0x80;
            b[3..7].copy_from_slice(&information.to_be_bytes());
        }
        b
    }

    /// Descriptor format (SPC-5 4.4.2), current: response code 72h, with an information descriptor if there is one.
    #[must_use]
    pub fn descriptor(&self) -> Vec<u8> {
        let mut b = vec![0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0];
        if let Some(information) = self.information {
            b[7] = 12;
            b.extend([0, 10, 0x80, 0]);
            b.extend(information.to_be_bytes());
        }
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_those_of_the_standard() {
        let sense = Sense::new(ILLEGAL_REQUEST, 0x21, 0);
        assert_eq!(sense.fixed(), [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0]);
        assert_eq!(sense.descriptor(), [0x72, 5, 0x21, 0, 0, 0, 0, 0]);
        let at = Sense::new(MISCOMPARE, 0x1d, 0).at(0x1234);
        assert_eq!(at.fixed()[..8], [0xf0, 0, 0xe, 0, 0, 0x12, 0x34, 10]);
        assert_eq!(
            at.descriptor(),
            [0x72, 0xe, 0x1d, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34]
        );
        assert_eq!(at.at(1 << 32).fixed()[0], 0x70, "what does not fit is not said");
    }
}
