//! Where frames of a job are written: a guest's receive ring, or a lane to the kernel. One generic path over both; which one it is, is settled
//! once a job.

use avio_proto::mem::Tail;
use avio_proto::ring::{Delivery, Undelivered, place, place_summed};
use avio_proto::virtio::net::{F_NEEDS_CSUM, HEADER_LEN, NetHeader};

use crate::offload::Completion;
use crate::port::wire::Outlet;

/// Takes frames one by one; nothing of them is seen by anybody until the caller commits.
pub(super) trait Put {
    /// As [`Delivery::push_short`].
    fn push_short(&mut self, head: &[u8]) -> bool;

    /// As [`Delivery::push`].
    fn push(&mut self, header: &[u8; HEADER_LEN], head: &[u8], tail: Tail<'_>) -> Result<(), Undelivered>;

    /// As [`Delivery::push_summed`]; `completion` goes into the head.
    fn push_summed(
        &mut self,
        header: &[u8; HEADER_LEN],
        head: &mut [u8],
        tail: Tail<'_>,
        completion: Completion,
    ) -> Result<(), Undelivered>;
}

impl Put for Delivery<'_> {
    #[inline(always)]
    fn push_short(&mut self, head: &[u8]) -> bool {
        Delivery::push_short(self, head)
    }

    #[inline(always)]
    fn push(&mut self, header: &[u8; HEADER_LEN], head: &[u8], tail: Tail<'_>) -> Result<(), Undelivered> {
        Delivery::push(self, header, head, tail)
    }

    #[inline(always)]
    fn push_summed(
        &mut self,
        header: &[u8; HEADER_LEN],
        head: &mut [u8],
        tail: Tail<'_>,
        completion: Completion,
    ) -> Result<(), Undelivered> {
        Delivery::push_summed(self, header, head, tail, |head, sum| completion.apply(head, sum))
    }
}

/// A lane under its lock.
pub(super) struct LanePut<'a> {
    pub outlet: &'a mut dyn Outlet,
    /// Bytes of the virtio-net header that go in front: its first 0, 10 or 12.
    pub header_len: usize,
}

impl Put for LanePut<'_> {
    fn push_short(&mut self, head: &[u8]) -> bool {
        if self.header_len == 0 && self.outlet.put(head) {
            return true;
        }
        self.push(&[0; HEADER_LEN], head, Tail::default()).is_ok()
    }

    fn push(&mut self, header: &[u8; HEADER_LEN], head: &[u8], tail: Tail<'_>) -> Result<(), Undelivered> {
        let frame = self.outlet.reserve(self.header_len + head.len() + tail.len)?;
        place(&frame, &header[..self.header_len], head, tail);
        if self.header_len == 0 && header[0] & F_NEEDS_CSUM != 0 {
            let NetHeader { csum_start, csum_offset, .. } = NetHeader::from_bytes(header);
            self.outlet.sum(csum_start, csum_offset);
        }
        Ok(())
    }

    fn push_summed(
        &mut self,
        header: &[u8; HEADER_LEN],
        head: &mut [u8],
        tail: Tail<'_>,
        completion: Completion,
    ) -> Result<(), Undelivered> {
        let frame = self.outlet.reserve(self.header_len + head.len() + tail.len)?;
        let header = &header[..self.header_len];
        place_summed(&frame, header, head, tail, |head, sum| completion.apply(head, sum));
        Ok(())
    }
}
