//! Uplinks: the port of a vswitch behind which the wire is; one network device, or an aggregate of several.
//!
//! Control makes an [`UplinkPort`] of the lanes (transmit queues) of all members and a [`Distribution`], and publishes it with the next table:
//! that is the whole of a failover or rebalance as workers see it. LACP and failover machines never come here.

mod distribution;
mod hold;
#[cfg(test)]
mod tests;

pub use distribution::{BUCKETS, Distribution, bucket_of};
pub use hold::Hold;

use std::sync::Arc;

use avio_proto::config::Balance;

use crate::port::wire::Lane;

/// No lane: what goes to that bucket is discarded.
pub(crate) const NO_LANE: u16 = u16::MAX;

/// The sending side of an uplink, as one table has it.
#[derive(Debug, Clone)]
pub struct UplinkPort {
    /// Lanes of all members, one member after the other; then the one that holds frames, if it does that.
    pub(crate) lanes: Vec<Arc<Lane>>,
    /// Where the frames of held buckets wait.
    pub(crate) hold: Option<Arc<Lane>>,
    /// Lane by bucket.
    pub(crate) by_bucket: Box<[u16; BUCKETS]>,
    pub(crate) balance: Balance,
    /// Frames of one TCP flow from the wire are put together for guests that take them so.
    pub(crate) gro: bool,
}

impl UplinkPort {
    /// An uplink without a way out: link down.
    #[must_use]
    pub fn down() -> Self {
        Self {
            lanes: Vec::new(),
            hold: None,
            by_bucket: Box::new([NO_LANE; BUCKETS]),
            balance: Balance::default(),
            gro: true,
        }
    }

    /// `members`: the lanes of each member, by member number; a member that is down may have none. A member with several lanes (one for each
    /// queue of its device) has its buckets dealt to them, each always to the same, whatever other buckets come and go: a flow has one lane.
    /// `hold`: a lane made by [`Lane::holding`] for the buckets that are held; without one their frames are discarded.
    #[must_use]
    pub fn new(
        members: &[Vec<Arc<Lane>>],
        distribution: &Distribution,
        balance: Balance,
        hold: Option<Arc<Lane>>,
    ) -> Self {
        let mut firsts = Vec::new();
        let mut lanes: Vec<Arc<Lane>> = Vec::new();
        for member in members {
            firsts.push(lanes.len());
            lanes.extend(member.iter().map(Arc::clone));
        }
        let held = hold.as_ref().map(|hold| {
            lanes.push(Arc::clone(hold));
            (lanes.len() - 1) as u16
        });
        let mut by_bucket = Box::new([NO_LANE; BUCKETS]);
        for (bucket, lane) in by_bucket.iter_mut().enumerate() {
            if distribution.is_held(bucket as u8) {
                *lane = held.unwrap_or(NO_LANE);
                continue;
            }
            let Some(member) = distribution.member(bucket as u8).map(usize::from) else { continue };
            let Some(count) = members.get(member).map(Vec::len).filter(|&count| count > 0) else { continue };
            *lane = (firsts[member] + lane_of(bucket, count)) as u16;
        }
        Self { lanes, hold, by_bucket, balance, gro: true }
    }

    /// The same with `gro` as configured.
    #[must_use]
    pub fn with_gro(self, gro: bool) -> Self {
        Self { gro, ..self }
    }

    /// Whether frames of some bucket have to wait.
    pub(crate) fn holds_some(&self) -> bool {
        // The lane that holds is the last.
        self.hold.is_some() && self.by_bucket.contains(&((self.lanes.len() - 1) as u16))
    }
}

/// Which of `count` lanes of its member a bucket has. Scattered, because members have every second or every fourth bucket.
fn lane_of(bucket: usize, count: usize) -> usize {
    let scattered = (bucket as u32).wrapping_mul(0x9e37_79b1) >> 16;
    (scattered as usize * count) >> 16
}
