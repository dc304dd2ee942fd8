//! VLAN identifiers.
//!
//! Used by the configuration, the control interface and the data path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// A VLAN identifier, 1 to 4094 (IEEE 802.1Q clause 9.6: 0 means priority-tagged, 4095 is reserved).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct VlanId(u16);

/// Why something is no VLAN identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a VLAN id; give a number from 1 to 4094")]
pub struct VlanError(String);

impl VlanId {
    /// The largest identifier that a port can have.
    pub const MAX: u16 = 4094;

    /// The identifier `id`, if it is 1 to 4094.
    #[must_use]
    pub const fn new(id: u16) -> Option<VlanId> {
        if id >= 1 && id <= Self::MAX { Some(VlanId(id)) } else { None }
    }

    /// The identifier as it stands in the lower 12 bits of a tag.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VlanId {
    type Err = VlanError;

    fn from_str(text: &str) -> Result<Self, VlanError> {
        text.parse().ok().and_then(VlanId::new).ok_or_else(|| VlanError(text.chars().take(40).collect()))
    }
}

impl<'de> Deserialize<'de> for VlanId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = i64::deserialize(deserializer)?;
        u16::try_from(id)
            .ok()
            .and_then(VlanId::new)
            .ok_or_else(|| serde::de::Error::custom(VlanError(id.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range() {
        assert_eq!(VlanId::new(0), None);
        assert_eq!(VlanId::new(4095), None);
        assert_eq!(VlanId::new(4094).map(VlanId::get), Some(4094));
        assert_eq!("120".parse::<VlanId>().map(VlanId::get), Ok(120));
        assert_eq!(
            "4095".parse::<VlanId>().unwrap_err().to_string(),
            "`4095` is not a VLAN id; give a number from 1 to 4094"
        );
    }
}
