//! The host's network interfaces: what they are now, and when that changes (rtnetlink).
//!
//! Owned by the control thread, which watches the descriptor in its event loop and calls [`Links::refresh`] when it is readable. Reads only; it
//! changes no interface. All of it is about the network namespace that the process was in when it began.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use avio_proto::config::MacAddr;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use crate::netlink::{Attributes, BUFFER_LEN, HEADER_LEN, Messages, dump_request, text};

/// rtnetlink(7): the group that hears of interfaces (`RTMGRP_LINK`).
const GROUP_LINK: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_PERM_ADDRESS: u16 = 54;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 1 << 16;
/// `ifi_type` of Ethernet.
const ARPHRD_ETHER: u16 = 1;
const IFINFO_LEN: usize = 16;
const IFADDR_LEN: usize = 8;
/// `AF_INET` where a family is one byte.
const INET: u8 = 2;
/// Datagrams read in one go: a flood of changes does not keep the control thread.
const READS_MAX: usize = 256;

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// It speaks Ethernet.
    pub is_ethernet: bool,
    /// Its address now.
    pub mac: Option<MacAddr>,
    /// The address that it came with.
    pub permanent_mac: Option<MacAddr>,
    /// Largest payload, in bytes.
    pub mtu: u32,
    /// The operator has set it up.
    pub is_up: bool,
    /// It is set up and has a carrier.
    pub has_carrier: bool,
    /// Kind of a virtual device (`veth`, `macvlan`...).
    pub kind: Option<String>,
    /// The interface that it sits on, in this namespace or another.
    pub parent: Option<u32>,
    /// The interface that it belongs to: a bond, a bridge, a switch.
    pub master: Option<u32>,
    /// Number of the XDP program that is attached to it.
    pub xdp_program: Option<u32>,
    /// Receive queues that it has room for.
    pub rx_queues: u32,
}

/// All interfaces.
#[derive(Debug)]
pub struct Links {
    fd: OwnedFd,
    links: BTreeMap<u32, Link>,
}

impl Links {
    /// Reads all interfaces and listens from then on.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&fd, &SocketAddrNetlink::new(0, GROUP_LINK))?;
        let mut links = Self { fd, links: BTreeMap::new() };
        links.dump()?;
        Ok(links)
    }

    /// The interfaces by number.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// Interface number `index`.
    #[must_use]
    pub fn numbered(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// The interface called `name`.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// Interfaces with their addresses, the permanent ones too, by name.
    #[must_use]
    pub fn macs(&self) -> Vec<(String, MacAddr)> {
        let both =
            |link: &Link| [link.mac, link.permanent_mac].map(|mac| mac.map(|mac| (link.name.clone(), mac)));
        let mut macs: Vec<_> = self
            .iter()
            .flat_map(both)
            .flatten()
            .filter(|(_, mac)| !mac.is_zero() && !mac.is_multicast())
            .collect();
        macs.sort();
        macs.dedup();
        macs
    }

    /// Takes up what has changed; returns whether something has. Never blocks.
    pub fn refresh(&mut self) -> bool {
        let before = self.links.clone();
        if self.read().is_err() {
            // Changes were lost (ENOBUFS): all of them again. If even that fails, the next change brings another try.
            let _ = self.dump();
        }
        self.links != before
    }

    fn dump(&mut self) -> io::Result<()> {
        self.links.clear();
        send(&self.fd, &dump_request::<{ HEADER_LEN + IFINFO_LEN }>(RTM_GETLINK), SendFlags::empty())?;
        // The kernel makes a dump while it is read, so it is there at once.
        self.read()
    }

    fn read(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_LEN];
        for _ in 0..READS_MAX {
            match recv(&self.fd, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((_, len)) => self.take(&buffer[..len.min(BUFFER_LEN)]),
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Takes up the messages of one datagram.
    fn take(&mut self, bytes: &[u8]) {
        for (kind, body) in Messages(bytes) {
            match (kind, parse(body)) {
                (RTM_NEWLINK, Some(link)) => {
                    self.links.insert(link.index, link);
                }
                (RTM_DELLINK, Some(link)) => {
                    self.links.remove(&link.index);
                }
                _ => {}
            }
        }
    }
}

/// The first IPv4 address of each interface that has one, by the interface's number, as `ip address` lists them. Asked of the
/// kernel at each call; never blocks.
///
/// # Errors
/// What the system says.
pub fn ipv4_addresses() -> io::Result<BTreeMap<u32, Ipv4Addr>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    let mut request = dump_request::<{ HEADER_LEN + IFADDR_LEN }>(RTM_GETADDR);
    request[HEADER_LEN] = INET;
    send(&fd, &request, SendFlags::empty())?;
    let mut addresses = BTreeMap::new();
    let mut buffer = vec![0; BUFFER_LEN];
    // The kernel makes a dump while it is read, so it is there at once.
    for _ in 0..READS_MAX {
        let len = match recv(&fd, buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((_, len)) => len.min(BUFFER_LEN),
            Err(rustix::io::Errno::AGAIN) => break,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for (_, body) in Messages(&buffer[..len]).filter(|(kind, _)| *kind == RTM_NEWADDR) {
            if let Some((index, address)) = parse_address(body) {
                addresses.entry(index).or_insert(address);
            }
        }
    }
    Ok(addresses)
}

/// An interface's number and IPv4 address out of `struct ifaddrmsg` and its attributes. On a point-to-point link
/// `IFA_ADDRESS` is the other end's.
fn parse_address(body: &[u8]) -> Option<(u32, Ipv4Addr)> {
    let [family, _, _, _, a, b, c, d] = *body.first_chunk::<IFADDR_LEN>()?;
    let of = |wanted: u16| {
        let value = Attributes(&body[IFADDR_LEN..]).find(|(kind, _)| *kind == wanted)?.1;
        value.first_chunk::<4>().map(|&bytes| Ipv4Addr::from(bytes))
    };
    let address = of(IFA_LOCAL).or_else(|| of(IFA_ADDRESS)).filter(|_| family == INET)?;
    Some((u32::from_ne_bytes([a, b, c, d]), address))
}

impl AsRawFd for Links {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Links {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An interface out of `struct ifinfomsg` and its attributes.
fn parse(body: &[u8]) -> Option<Link> {
    let info = body.first_chunk::<IFINFO_LEN>()?;
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let flags = word(8);
    let mut link = Link {
        index: word(4),
        name: String::new(),
        is_ethernet: u16::from_ne_bytes([info[2], info[3]]) == ARPHRD_ETHER,
        mac: None,
        permanent_mac: None,
        mtu: 0,
        is_up: flags & IFF_UP != 0,
        has_carrier: flags & IFF_UP != 0 && flags & IFF_LOWER_UP != 0,
        kind: None,
        parent: None,
        master: None,
        xdp_program: None,
        rx_queues: 1,
    };
    for (kind, value) in Attributes(&body[IFINFO_LEN..]) {
        let number = || value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let mac = || value.first_chunk::<6>().filter(|_| value.len() == 6).map(|bytes| MacAddr(*bytes));
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = mac(),
            IFLA_PERM_ADDRESS => link.permanent_mac = mac(),
            IFLA_MTU => link.mtu = number()?,
            IFLA_LINK => link.parent = number(),
            IFLA_MASTER => link.master = number(),
            IFLA_XDP => {
                let mut parts = Attributes(value);
                let id =
                    parts.find(|(kind, _)| *kind == IFLA_XDP_PROG_ID).and_then(|(_, id)| id.first_chunk());
                link.xdp_program = id.map(|id| u32::from_ne_bytes(*id)).filter(|&id| id != 0);
            }
            IFLA_NUM_RX_QUEUES => link.rx_queues = number()?.max(1),
            IFLA_LINKINFO => {
                link.kind =
                    Attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND).map(|(_, value)| text(value));
            }
            _ => {}
        }
    }
    Some(link).filter(|link| !link.name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_there_and_is_no_ethernet() {
        let mut links = Links::new().unwrap();
        let lo = links.named("lo").unwrap();
        assert!(lo.index >= 1 && !lo.is_ethernet && lo.mtu >= 1500);
        assert!(links.named("no such one").is_none());
        links.refresh();
        assert!(links.macs().iter().all(|(_, mac)| !mac.is_zero()));
    }

    #[test]
    fn loopback_has_its_address() {
        let lo = Links::new().unwrap().named("lo").unwrap().index;
        assert_eq!(ipv4_addresses().unwrap().get(&lo), Some(&Ipv4Addr::LOCALHOST));
    }

    /// As the kernel tells of `ip address add 192.0.2.1 peer 192.0.2.9 dev`, interface 7.
    #[test]
    fn the_own_address_of_a_point_to_point_link_counts() {
        let mut body = vec![INET, 32, 0x80, 0, 7, 0, 0, 0];
        body.extend([8, 0, 1, 0, 192, 0, 2, 9, 8, 0, 2, 0, 192, 0, 2, 1]);
        assert_eq!(parse_address(&body), Some((7, Ipv4Addr::new(192, 0, 2, 1))));
        for cut in 0..body.len() {
            assert!(cut >= 16 || parse_address(&body[..cut]).is_none());
        }
        body[0] = 10;
        assert_eq!(parse_address(&body), None);
    }

    /// As `ip monitor` was told of a veth, in hexadecimal from strace; lengths first.
    #[test]
    fn a_message_is_read_and_a_broken_one_ends_quietly() {
        let mut body = vec![0, 0, 1, 0, 7, 0, 0, 0, 3, 0, 1, 0, 0, 0, 0, 0];
        body.extend([9, 0, 3, 0, b'v', b'e', b't', b'h', 0, 0, 0, 0]);
        body.extend([10, 0, 1, 0, 2, 0, 0, 0, 0, 9, 0, 0]);
        body.extend([8, 0, 4, 0, 0x28, 0x23, 0, 0]);
        body.extend([16, 0, 18, 0, 9, 0, 1, 0, b'v', b'e', b't', b'h', 0, 0, 0, 0]);
        // Attached in the driver, program 12; member of interface 5.
        body.extend([20, 0, 43, 0x80, 5, 0, 2, 0, 1, 0, 0, 0, 8, 0, 4, 0, 12, 0, 0, 0]);
        body.extend([8, 0, 10, 0, 5, 0, 0, 0]);
        let link = parse(&body).unwrap();
        assert_eq!((link.index, link.name.as_str(), link.mtu), (7, "veth", 9000));
        assert!(link.is_up && link.has_carrier && link.is_ethernet);
        assert_eq!((link.mac, link.kind.as_deref()), (Some(MacAddr([2, 0, 0, 0, 0, 9])), Some("veth")));
        assert_eq!((link.xdp_program, link.master), (Some(12), Some(5)));
        for cut in 0..body.len() {
            let _ = parse(&body[..cut]);
        }
    }
}
