//! The host's network interfaces: what they are now, and when that changes (rtnetlink).
//!
//! Owned by the control thread, which watches the descriptor in its event loop and calls [`Links::refresh`] when it is readable. Reads only; it
//! changes no interface. All of it is about the network namespace that the process was in when it began.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use avio_proto::config::MacAddr;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use crate::netlink::{Attributes, BUFFER_LEN, HEADER_LEN, Messages, dump_request, text};

/// rtnetlink(7): the groups that hear of interfaces (`RTMGRP_LINK`), and of their queueing disciplines (`RTMGRP_TC`).
const GROUP_LINK: u32 = 1;
const GROUP_TC: u32 = 8;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const TCA_KIND: u16 = 1;
/// `TC_H_ROOT`: the parent of what all frames go through that leave.
const ROOT: u32 = u32::MAX;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_WIRELESS: u16 = 11;
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
const TCMSG_LEN: usize = 20;
/// `AF_UNSPEC` and `AF_INET` where a family is one byte.
const UNSPECIFIED: u8 = 0;
const INET: u8 = 2;
/// Datagrams read in one go: a flood of changes does not keep the control thread.
const READS_MAX: usize = 256;
/// Datagrams of all interfaces, of which each has a dozen at least.
const DUMP_READS_MAX: usize = 8192;
/// How often all interfaces are read at the start, if changes are lost meanwhile.
const FIRST_TRIES: usize = 10;

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
    /// Changes were lost, and since then not all interfaces could be read: what is known is what was.
    is_stale: bool,
    /// Those with a queueing discipline or filters on their egress, and whether that is to be asked for again.
    guarded: BTreeSet<u32>,
    ask_guarded: bool,
}

impl Links {
    /// Reads all interfaces and listens from then on.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&fd, &SocketAddrNetlink::new(0, GROUP_LINK | GROUP_TC))?;
        let guarded = guarded()?;
        let mut links = Self { fd, links: BTreeMap::new(), is_stale: true, guarded, ask_guarded: false };
        let mut outcome = links.read_all();
        for _ in 1..FIRST_TRIES {
            if outcome.is_ok() {
                break;
            }
            outcome = links.read_all();
        }
        outcome.map(|()| links)
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
        let before = (self.links.clone(), self.guarded.clone());
        self.is_stale |= self.read().is_err();
        if self.is_stale {
            self.ask_guarded = true;
            // Changes were lost (ENOBUFS): all of them again. Until that works, at some later call, what was known stays.
            let _ = self.read_all();
        }
        if self.ask_guarded {
            // What is in the place of one that went, nobody says: all of them again. What was known stays until that works.
            if let Ok(guarded) = guarded() {
                (self.guarded, self.ask_guarded) = (guarded, false);
            }
        }
        self.guarded.retain(|index| self.links.contains_key(index));
        (&self.links, &self.guarded) != (&before.0, &before.1)
    }

    /// Whether frames that leave interface number `index` pass neither a queueing discipline nor filters (clsact). Filters that were attached without a discipline
    /// (tcx, Linux 6.6) are not seen.
    #[must_use]
    pub fn egress_is_free(&self, index: u32) -> bool {
        !self.guarded.contains(&index)
    }

    /// Replaces what is known by all interfaces as they are.
    fn read_all(&mut self) -> io::Result<()> {
        // What was told before is not to be taken for what comes after the answer.
        self.read()?;
        send(&self.fd, &dump_request::<{ HEADER_LEN + IFINFO_LEN }>(RTM_GETLINK), SendFlags::empty())?;
        let mut links = BTreeMap::new();
        let mut buffer = vec![0; BUFFER_LEN];
        for _ in 0..DUMP_READS_MAX {
            // The kernel makes a dump while it is read, so it is there at once; changes come in between.
            let len = match recv(&self.fd, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((_, len)) => len.min(BUFFER_LEN),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.ask_guarded |= tells_of_disciplines(&buffer[..len]);
            if take(&mut links, &buffer[..len])? {
                self.links = links;
                self.is_stale = false;
                return Ok(());
            }
        }
        Err(io::ErrorKind::QuotaExceeded.into())
    }

    /// Takes up what was told, until there is no more.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_LEN];
        for _ in 0..READS_MAX {
            match recv(&self.fd, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((_, len)) => {
                    let bytes = &buffer[..len.min(BUFFER_LEN)];
                    self.ask_guarded |= tells_of_disciplines(bytes);
                    drop(take(&mut self.links, bytes));
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Whether a datagram says that a queueing discipline came or went.
fn tells_of_disciplines(bytes: &[u8]) -> bool {
    Messages(bytes).any(|(kind, _)| matches!(kind, RTM_NEWQDISC | RTM_DELQDISC))
}

/// The interfaces with a queueing discipline or filters on their egress. Asked of the kernel at each call; never blocks.
fn guarded() -> io::Result<BTreeSet<u32>> {
    let mut guarded = BTreeSet::new();
    dump(&dump_request::<{ HEADER_LEN + TCMSG_LEN }>(RTM_GETQDISC), RTM_NEWQDISC, |body| {
        guarded.extend(parse_guard(body));
    })?;
    Ok(guarded)
}

/// Shows `each` the bodies of the messages of type `kind` that answer `request`, which asks for all there is. A socket of its own; never blocks.
fn dump(request: &[u8], kind: u16, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    send(&fd, request, SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER_LEN];
    // The kernel makes a dump while it is read, so it is there at once.
    for _ in 0..DUMP_READS_MAX {
        let len = match recv(&fd, buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((_, len)) => len.min(BUFFER_LEN),
            Err(rustix::io::Errno::AGAIN) => break,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        Messages(&buffer[..len]).filter(|(of, _)| *of == kind).for_each(|(_, body)| each(body));
    }
    Ok(())
}

/// The interface whose egress a discipline guards, out of `struct tcmsg` and its attributes: what is at the root and is not the absence of one, or has filters for
/// frames that leave.
fn parse_guard(body: &[u8]) -> Option<u32> {
    let info = body.first_chunk::<TCMSG_LEN>()?;
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let kind =
        Attributes(&body[TCMSG_LEN..]).find(|(kind, _)| *kind == TCA_KIND).map(|(_, kind)| text(kind))?;
    let guards = word(12) == ROOT && !matches!(kind.as_str(), "noqueue" | "noop") || kind == "clsact";
    guards.then(|| word(4))
}

/// Takes up the messages of one datagram; whether it ends an answer.
///
/// # Errors
/// The kernel says that there is no more of its answer.
fn take(links: &mut BTreeMap<u32, Link>, bytes: &[u8]) -> io::Result<bool> {
    let mut messages = Messages(bytes);
    for (kind, body) in messages.by_ref() {
        match (kind, parse(body)) {
            (RTM_NEWLINK, Some(link)) => {
                links.insert(link.index, link);
            }
            (RTM_DELLINK, Some(link)) => {
                links.remove(&link.index);
            }
            _ => {}
        }
    }
    messages.is_dump_done()
}

/// The first IPv4 address of each interface that has one, by the interface's number, as `ip address` lists them. Asked of the
/// kernel at each call; never blocks.
///
/// # Errors
/// What the system says.
pub fn ipv4_addresses() -> io::Result<BTreeMap<u32, Ipv4Addr>> {
    let mut request = dump_request::<{ HEADER_LEN + IFADDR_LEN }>(RTM_GETADDR);
    request[HEADER_LEN] = INET;
    let mut addresses = BTreeMap::new();
    dump(&request, RTM_NEWADDR, |body| {
        if let Some((index, address)) = parse_address(body) {
            addresses.entry(index).or_insert(address);
        }
    })?;
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

/// An interface out of `struct ifinfomsg` and its attributes. `None` for what is told in the words of another family: a bridge tells of its ports that way, of
/// their names and states alone, and of one that leaves it as of one that is deleted.
fn parse(body: &[u8]) -> Option<Link> {
    let info = body.first_chunk::<IFINFO_LEN>().filter(|info| info[0] == UNSPECIFIED)?;
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
            // A driver's event, with the name alone.
            IFLA_WIRELESS => return None,
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
    fn what_guards_an_egress_is_told_from_what_does_not() {
        // `struct tcmsg`: family, interface, handle, parent, info; then TCA_KIND.
        let message = |parent: u32, kind: &[u8]| {
            let mut bytes = [[0; 4], 7u32.to_ne_bytes(), [0; 4], parent.to_ne_bytes(), [0; 4]].concat();
            bytes.extend((4 + kind.len() as u16).to_ne_bytes());
            bytes.extend(1u16.to_ne_bytes());
            bytes.extend(kind);
            bytes
        };
        let (root, ingress) = (u32::MAX, 0xffff_fff1);
        assert_eq!(parse_guard(&message(root, b"tbf\0")), Some(7));
        assert_eq!(parse_guard(&message(ingress, b"clsact\0")), Some(7));
        for (parent, kind) in [(root, &b"noqueue\0"[..]), (ingress, b"ingress\0"), (1 << 16, b"fq_codel\0")] {
            assert_eq!(parse_guard(&message(parent, kind)), None);
        }
        assert_eq!(parse_guard(&[0; 19]), None);
    }

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
        // The same told by a bridge, of its port (AF_BRIDGE); and a wireless driver's event.
        body[0] = 7;
        assert_eq!(parse(&body), None);
        body[0] = 0;
        body.extend([8, 0, 11, 0, 1, 0, 0, 0]);
        assert_eq!(parse(&body), None);
    }

    /// A message as `kind`, of interface `index`, called `x`.
    fn message(kind: u16, index: u8) -> Vec<u8> {
        let mut bytes = vec![40, 0, 0, 0];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([0, 0, 1, 0, index, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([6, 0, 3, 0, b'x', 0, 0, 0]);
        bytes
    }

    fn done(errno: i32) -> Vec<u8> {
        [&[20, 0, 0, 0, 3, 0][..], &[0; 10], &errno.to_ne_bytes()].concat()
    }

    /// Links that a test plays the kernel for.
    fn played() -> (Links, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (fd, kernel) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let (guarded, ask_guarded) = (BTreeSet::new(), false);
        (Links { fd, links: BTreeMap::new(), is_stale: false, guarded, ask_guarded }, kernel)
    }

    #[test]
    fn what_is_known_stays_until_all_could_be_read_again() {
        let (mut links, kernel) = played();
        let tell = |bytes: &[u8]| assert_eq!(send(&kernel, bytes, SendFlags::empty()).unwrap(), bytes.len());
        let numbers = |links: &Links| links.iter().map(|link| link.index).collect::<Vec<_>>();
        let asked = || recv(&kernel, &mut [0; 64][..], RecvFlags::empty()).is_ok();
        tell(&[message(RTM_NEWLINK, 1), message(RTM_NEWLINK, 2)].concat());
        assert!(links.refresh());
        assert_eq!(numbers(&links), [1, 2]);
        // Changes were lost, and the answer to the question for all of them is cut short, or ends with an error: twice.
        links.is_stale = true;
        assert!(!links.refresh());
        assert!(asked() && !asked(), "asked once");
        assert_eq!(numbers(&links), [1, 2]);
        // It comes late, with a change in between.
        tell(&[message(RTM_NEWLINK, 2), done(-105)].concat());
        assert!(!links.refresh());
        assert!(asked());
        assert_eq!(numbers(&links), [1, 2]);
        assert!(links.is_stale);
    }

    #[test]
    fn an_answer_in_parts_with_changes_in_between_replaces_what_was_known() {
        let mut links = BTreeMap::new();
        assert!(!take(&mut links, &[message(RTM_NEWLINK, 1), message(RTM_NEWLINK, 2)].concat()).unwrap());
        assert!(!take(&mut links, &message(RTM_DELLINK, 1)).unwrap());
        assert!(take(&mut links, &[message(RTM_NEWLINK, 3), done(0)].concat()).unwrap());
        assert_eq!(links.into_keys().collect::<Vec<_>>(), [2, 3]);
        assert!(take(&mut BTreeMap::new(), &done(-105)).is_err());
    }
}
