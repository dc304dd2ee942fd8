//! Which member of an uplink a frame goes out through: a hash to one of 256 buckets, and a table from bucket to member (SEMANTICS 4.2).
//!
//! Control changes the table, workers hash. A bucket's frames stay in order because they stay on one member.

use avio_proto::config::Balance;

use crate::packet::{Ethernet, flow_hash};

/// Number of buckets (the original's hash table).
pub const BUCKETS: usize = 256;

const NOBODY: u8 = u8::MAX;

/// Bucket to member number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution(Box<[u8; BUCKETS]>);

impl Distribution {
    /// Nothing goes out.
    #[must_use]
    pub fn nobody() -> Self {
        Self(Box::new([NOBODY; BUCKETS]))
    }

    /// Everything goes to `member`.
    #[must_use]
    pub fn all_to(member: u8) -> Self {
        Self(Box::new([member; BUCKETS]))
    }

    /// The member of `bucket`; `None`: its frames are discarded (nobody can carry them, or they are held).
    #[must_use]
    pub fn member(&self, bucket: u8) -> Option<u8> {
        Some(self.0[usize::from(bucket)]).filter(|&member| member != NOBODY)
    }

    /// Gives `bucket` to `member` (below 255), or to nobody.
    pub fn set(&mut self, bucket: u8, member: Option<u8>) {
        self.0[usize::from(bucket)] = member.unwrap_or(NOBODY);
    }
}

/// The bucket of a frame of `frame_len` bytes that begins with `head`, without a VLAN tag.
///
/// `LB_MAC` takes the last byte of the destination address, as the original does. `LB_HOT_STANDBY` has one member at a time, so any will do.
#[must_use]
pub fn bucket_of(balance: Balance, head: &[u8], frame_len: usize) -> u8 {
    match balance {
        Balance::LbMac | Balance::LbHotStandby => head.get(5).copied().unwrap_or(0),
        Balance::LbIp | Balance::LbPort | Balance::LbFlow => {
            Ethernet::parse(head).map_or(0, |l2| (flow_hash(head, frame_len, &l2) >> 24) as u8)
        }
    }
}
