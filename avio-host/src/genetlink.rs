//! Generic netlink: a family of messages of the kernel, asked, told and listened to.
//!
//! Used by `netdev` (family `netdev`) and by whoever knows another family's messages. A [`Family`] waits for the kernel's answer, which is there at once, or
//! when whoever changes a network device just now has done so: helper threads. Nothing is kept but the family's numbers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

pub use crate::netlink::{Attributes, text};
use crate::netlink::{BUFFER_LEN, HEADER_LEN, Messages, REQUEST};

/// The family whose number is always the same: it tells those of the others.
const CONTROL: u16 = 16;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
const CONTROL_GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
/// `struct genlmsghdr`.
const GENERIC_LEN: usize = 4;
const VERSION: u8 = 1;
/// `NLM_F_ACK`.
const ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

/// A family of messages, and a socket for them.
#[derive(Debug)]
pub struct Family {
    fd: OwnedFd,
    id: u16,
    /// Its multicast groups.
    groups: Vec<(String, u32)>,
}

impl Family {
    /// The family called `name`; its socket blocks.
    ///
    /// # Errors
    /// The kernel has none (`NotFound`).
    pub fn open(name: &str) -> io::Result<Self> {
        let kind = SocketType::RAW;
        let fd = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, Some(netlink::GENERIC))?;
        let mut family = Self { fd, id: CONTROL, groups: Vec::new() };
        let mut wanted = Vec::new();
        put(&mut wanted, CONTROL_FAMILY_NAME, &[name.as_bytes(), &[0]].concat());
        let told = family.ask(CONTROL_GET_FAMILY, &wanted)?;
        family.id = number(&told, CONTROL_FAMILY_ID).ok_or(io::ErrorKind::NotFound)? as u16;
        let groups = Attributes(&told).find(|(kind, _)| *kind == CONTROL_GROUPS);
        let of = |(_, group)| Some((text(value(group, GROUP_NAME)?), number(group, GROUP_ID)? as u32));
        family.groups =
            groups.map_or_else(Vec::new, |(_, groups)| Attributes(groups).filter_map(of).collect());
        Ok(family)
    }

    /// The number of its multicast group called `name`, for `NETLINK_ADD_MEMBERSHIP`.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|(known, _)| known == name).map(|(_, id)| *id)
    }

    /// The attributes of the answer to `command` with `attributes`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn ask(&self, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
        let answer = self.exchange(command, 0, attributes)?;
        let body = answer.and_then(|body| body.get(GENERIC_LEN..).map(<[u8]>::to_vec));
        body.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Has the kernel do `command` with `attributes`, which it answers with whether it did.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn tell(&self, command: u8, attributes: &[u8]) -> io::Result<()> {
        self.exchange(command, ACK, attributes).map(drop)
    }

    /// The body of the answer; `None`: an acknowledgement.
    fn exchange(&self, command: u8, flags: u16, attributes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let request = message(self.id, flags, command, attributes);
        send(&self.fd, &request, SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER_LEN];
        let (_, len) = recv(&self.fd, buffer.as_mut_slice(), RecvFlags::empty())?;
        let answer = &buffer[..len.min(BUFFER_LEN)];
        match errno(answer) {
            Some(0) => Ok(None),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(Messages(answer).next().map(|(_, body)| body.to_vec())),
        }
    }
}

impl AsFd for Family {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Commands and attributes of the messages in a datagram that nobody asked for.
pub fn notifications(datagram: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    Messages(datagram).filter_map(|(_, body)| Some((*body.first()?, body.get(GENERIC_LEN..)?)))
}

/// Appends an attribute.
pub fn put(attributes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    attributes.extend((4 + value.len() as u16).to_ne_bytes());
    attributes.extend(kind.to_ne_bytes());
    attributes.extend(value);
    attributes.resize(attributes.len().next_multiple_of(4), 0);
}

/// Appends an attribute that is made of others.
pub fn put_nested(attributes: &mut Vec<u8>, kind: u16, inner: &[u8]) {
    put(attributes, kind | NESTED, inner);
}

/// The value of the attribute `wanted`.
#[must_use]
pub fn value(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    Attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The number in the attribute `wanted`, in as many bytes as it has.
#[must_use]
pub fn number(attributes: &[u8], wanted: u16) -> Option<u64> {
    let value = value(attributes, wanted)?;
    let mut bytes = [0; 8];
    // Little-endian, as the processors that this is built for.
    bytes.get_mut(..value.len())?.copy_from_slice(value);
    Some(u64::from_le_bytes(bytes))
}

/// A request: `struct nlmsghdr`, `struct genlmsghdr`, attributes.
fn message(kind: u16, flags: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let len = HEADER_LEN + GENERIC_LEN + attributes.len();
    let mut message = Vec::with_capacity(len);
    message.extend((len as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    // Sequence number, port.
    message.extend([0; 8]);
    message.extend([command, VERSION, 0, 0]);
    message.extend(attributes);
    message
}

/// What an acknowledgement or a refusal says; `None`: the datagram is neither.
fn errno(datagram: &[u8]) -> Option<i32> {
    let [_, _, _, _, e, f, ..] = *datagram.first_chunk::<HEADER_LEN>()?;
    let code = datagram.get(HEADER_LEN..)?.first_chunk()?;
    (u16::from_ne_bytes([e, f]) == NLMSG_ERROR).then(|| i32::from_ne_bytes(*code).wrapping_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_of_families_tells_of_itself() {
        let control = Family::open("nlctrl").unwrap();
        assert_eq!(control.id, CONTROL);
        assert!(control.group("notify").is_some() && control.group("no such one").is_none());
        assert_eq!(Family::open("no such one").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// `NLMSG_ERROR` as netlink(7) lays it out: header, an errno below zero or 0, the request's header.
    #[test]
    fn refusals_and_acknowledgements_are_told_apart() {
        let error =
            |errno: i32| [&[36, 0, 0, 0, 2, 0][..], &[0; 10], &errno.to_ne_bytes(), &[0; 16]].concat();
        assert_eq!((errno(&error(0)), errno(&error(-95))), (Some(0), Some(95)));
        assert_eq!(errno(&message(21, 0, 11, &[])), None);
        for cut in 0..20 {
            assert_eq!(errno(&error(-95)[..cut]), None);
        }
    }

    #[test]
    fn attributes_are_padded_and_read_back() {
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        put(&mut inner, 2, b"rx-lro\0");
        put(&mut inner, 3, &[]);
        put_nested(&mut outer, 1, &inner);
        assert_eq!(
            outer,
            [20, 0, 1, 0x80, 11, 0, 2, 0, b'r', b'x', b'-', b'l', b'r', b'o', 0, 0, 4, 0, 3, 0]
        );
        let inside = value(&outer, 1).unwrap();
        assert_eq!((value(inside, 2).map(text), value(inside, 3)), (Some("rx-lro".into()), Some(&[][..])));
        assert_eq!(value(inside, 4), None);
    }
}
