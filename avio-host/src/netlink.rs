//! Messages and attributes of netlink(7), as the kernel lays them out.
//!
//! Used by `links` (rtnetlink) and `genetlink` (generic netlink). Bounds are checked, although the kernel is trusted: a message that is cut ends quietly.

use std::io;

/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER_LEN: usize = 16;
/// The kernel makes no longer datagram for a dump.
pub(crate) const BUFFER_LEN: usize = 32 * 1024;
/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 1;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A request for all there is of a kind (`struct nlmsghdr`, and zeros behind it).
pub(crate) fn dump_request<const LEN: usize>(kind: u16) -> [u8; LEN] {
    let mut request = [0; LEN];
    request[..4].copy_from_slice(&(LEN as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    request
}

/// A text in an attribute, without the zero at its end.
#[must_use]
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// The messages in a datagram, with their types, to its end or that of the dump.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [a, b, c, d, e, f, ..] = *self.0.first_chunk::<HEADER_LEN>()?;
        let len = u32::from_ne_bytes([a, b, c, d]) as usize;
        let kind = u16::from_ne_bytes([e, f]);
        let body = self.0.get(HEADER_LEN..len).filter(|_| kind != NLMSG_DONE && kind != NLMSG_ERROR)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, body))
    }
}

impl Messages<'_> {
    /// Whether a dump is complete with this datagram, once all its messages have been taken.
    ///
    /// # Errors
    /// What the kernel says instead of the rest of it.
    pub(crate) fn is_dump_done(&self) -> io::Result<bool> {
        let Some([_, _, _, _, e, f, ..]) = self.0.first_chunk::<HEADER_LEN>() else { return Ok(false) };
        let kind = u16::from_ne_bytes([*e, *f]);
        if kind != NLMSG_DONE && kind != NLMSG_ERROR {
            return Ok(false);
        }
        // Both have an errno behind their header; the end of a dump that went well has none, or 0.
        let errno =
            self.0.get(HEADER_LEN..).and_then(<[u8]>::first_chunk).map_or(0, |b| i32::from_ne_bytes(*b));
        if errno < 0 { Err(io::Error::from_raw_os_error(-errno)) } else { Ok(kind == NLMSG_DONE) }
    }
}

/// The attributes (`struct nlattr`) in some bytes.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        // The two upper bits are flags.
        let kind = u16::from_ne_bytes([c, d]) & 0x3fff;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}
