//! Network devices of the host, as far as TAP ports make, set up and remove them (rtnetlink(7)).
//!
//! Owns the few messages that takes. Called on helper threads; [`carrier`] and [`exists`] read one small file of sysfs, which never
//! waits for a device, so control calls those itself.

use std::fs;
use std::io;
use std::mem::MaybeUninit;

use avio_proto::config::MacAddr;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_SETLINK: u16 = 19;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// Type of the answer that carries an errno.
const NLMSG_ERROR: u16 = 2;
/// Lengths of `struct nlmsghdr` and `struct ifinfomsg`.
const HEADER_LEN: usize = 16;
const LINK_LEN: usize = 16;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const AF_INET6: u16 = 10;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// IN6_ADDR_GEN_MODE_NONE.
const ADDR_GEN_NONE: u8 = 1;
/// MACVLAN_MODE_PASSTHRU: the only macvtap of its device, which hands it every frame.
const MODE_PASSTHRU: u32 = 8;
const IFF_UP: u32 = 0x1;
const IFF_NOARP: u32 = 0x80;

/// What devices that are made here are marked with.
const ALIAS: &str = "avio-vswitchd";

/// What to change about a device.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Setting {
    pub mac: Option<MacAddr>,
    /// Bytes.
    pub mtu: Option<u16>,
    /// The host does not speak on it: no ARP, no IPv6 address of its own accord.
    pub mute: bool,
    /// Marks it as made here, so that it may be removed.
    pub ours: bool,
    pub up: bool,
}

/// Changes a device.
///
/// # Errors
/// What the kernel says.
pub(super) fn set(index: u32, setting: Setting) -> io::Result<()> {
    let flags = if setting.up { IFF_UP } else { 0 } | if setting.mute { IFF_NOARP } else { 0 };
    let mut message = Message::new(RTM_SETLINK, 0, index, (flags, flags));
    if let Some(mac) = setting.mac {
        message.attribute(IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = setting.mtu {
        message.attribute(IFLA_MTU, &u32::from(mtu).to_ne_bytes());
    }
    if setting.ours {
        message.attribute(IFLA_IFALIAS, ALIAS.as_bytes());
    }
    if setting.mute {
        message.nest(IFLA_AF_SPEC, |message| {
            message.nest(AF_INET6, |message| message.attribute(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_NONE]));
        });
    }
    message.send()
}

/// Whether the device is set up, and whether the host speaks ARP on it. `None`: there is none.
pub(super) fn up_and_arp(name: &str) -> Option<(bool, bool)> {
    let flags: String = attribute(name, "flags")?;
    let flags = u32::from_str_radix(flags.strip_prefix("0x")?, 16).ok()?;
    Some((flags & IFF_UP != 0, flags & IFF_NOARP == 0))
}

/// Makes both what [`up_and_arp`] tells.
///
/// # Errors
/// What the kernel says.
pub(super) fn set_up_and_arp(index: u32, up: bool, arp: bool) -> io::Result<()> {
    let flags = if up { IFF_UP } else { 0 } | if arp { 0 } else { IFF_NOARP };
    Message::new(RTM_SETLINK, 0, index, (flags, IFF_UP | IFF_NOARP)).send()
}

/// Gives the device another alias.
///
/// # Errors
/// What the kernel says.
pub(super) fn set_alias(index: u32, alias: &str) -> io::Result<()> {
    let mut message = Message::new(RTM_SETLINK, 0, index, (0, 0));
    message.attribute(IFLA_IFALIAS, alias.as_bytes());
    message.send()
}

/// The device's alias; empty without one.
pub(super) fn alias(name: &str) -> String {
    // What is in a line of its own can have spaces.
    attribute(name, "ifalias").unwrap_or_default()
}

/// Makes a macvtap in passthru mode on the device `lower`.
///
/// # Errors
/// What the kernel says; EBUSY if something else has the device (a bridge, another macvtap).
pub(super) fn make_macvtap(name: &str, lower: u32) -> io::Result<()> {
    let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0, (0, 0));
    message.attribute(IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
    message.attribute(IFLA_LINK, &lower.to_ne_bytes());
    message.nest(IFLA_LINKINFO, |message| {
        message.attribute(IFLA_INFO_KIND, b"macvtap\0");
        message.nest(IFLA_INFO_DATA, |message| {
            message.attribute(IFLA_MACVLAN_MODE, &MODE_PASSTHRU.to_ne_bytes());
        });
    });
    message.send()
}

/// Keeps the host's IP off what it hears on the device: no IPv6 at all, and IPv4 from nowhere, since no route leads there.
///
/// # Errors
/// One line: the file that could not be written.
pub(super) fn deafen(name: &str) -> Result<(), String> {
    for (file, value) in [("ipv6/conf/{}/disable_ipv6", "1"), ("ipv4/conf/{}/rp_filter", "1")] {
        let path = format!("/proc/sys/net/{}", file.replace("{}", name));
        match fs::write(&path, value) {
            Ok(()) => {}
            // A kernel without the protocol hears nothing of it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) => {}
            Err(error) => {
                return Err(format!(
                    "{path}: cannot be set to {value}: {error}; the host would answer the guest. Set it, or let the daemon write there"
                ));
            }
        }
    }
    Ok(())
}

/// Removes a device and what is on it. One that does not exist is fine.
///
/// # Errors
/// What the kernel says.
pub(super) fn remove(name: &str) -> io::Result<()> {
    match index_of(name) {
        Some(index) => Message::new(RTM_DELLINK, 0, index, (0, 0)).send(),
        None => Ok(()),
    }
}

/// Whether the device was made here ([`Setting::ours`]).
pub(super) fn is_ours(name: &str) -> bool {
    alias(name) == ALIAS
}

/// The device's number, if there is one of that name.
pub(super) fn index_of(name: &str) -> Option<u32> {
    attribute(name, "ifindex")
}

/// Whether there is a device of that name and number.
#[must_use]
pub fn exists(name: &str, index: u32) -> bool {
    index_of(name) == Some(index)
}

/// Whether the device is up and somebody is at its other end.
#[must_use]
pub fn carrier(name: &str) -> bool {
    attribute::<u32>(name, "carrier") == Some(1)
}

fn attribute<T: std::str::FromStr>(name: &str, attribute: &str) -> Option<T> {
    fs::read_to_string(format!("/sys/class/net/{name}/{attribute}")).ok()?.trim().parse().ok()
}

/// A message under construction.
struct Message(Vec<u8>);

impl Message {
    /// About the device `index`; `state` are its flags as they are to be, and those of them that are meant.
    fn new(kind: u16, flags: u16, index: u32, state: (u32, u32)) -> Self {
        let mut bytes = vec![0; HEADER_LEN + LINK_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        bytes[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&index.to_ne_bytes());
        bytes[HEADER_LEN + 8..HEADER_LEN + 12].copy_from_slice(&state.0.to_ne_bytes());
        bytes[HEADER_LEN + 12..HEADER_LEN + 16].copy_from_slice(&state.1.to_ne_bytes());
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |message| message.0.extend_from_slice(value));
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        fill(self);
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Sends it and waits for the answer.
    fn send(mut self) -> io::Result<()> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        sendto(&socket, &self.0, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [MaybeUninit::uninit(); 4096];
        let ((answer, _), _) = recv(&socket, &mut answer, RecvFlags::empty())?;
        match answer.get(4..6).zip(answer.get(HEADER_LEN..).and_then(<[u8]>::first_chunk)) {
            Some((kind, errno)) if kind == NLMSG_ERROR.to_ne_bytes() => match i32::from_ne_bytes(*errno) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(-errno)),
            },
            _ => Err(io::Error::other("the kernel's answer is none")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As rtnetlink(7) lays attributes out: length with header, type, value, padded to four bytes.
    #[test]
    fn nested_attributes_are_laid_out_as_rtnetlink_has_them() {
        let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0, (0, 0));
        message.nest(IFLA_LINKINFO, |message| {
            message.attribute(IFLA_INFO_KIND, b"macvtap\0");
            message.nest(IFLA_INFO_DATA, |message| message.attribute(IFLA_MACVLAN_MODE, &8u32.to_ne_bytes()));
        });
        let want =
            [[28, 0, 18, 0, 12, 0, 1, 0], *b"macvtap\0", [12, 0, 2, 0, 8, 0, 1, 0], [8, 0, 0, 0, 0, 0, 0, 0]];
        assert_eq!(message.0[HEADER_LEN + LINK_LEN..], want.concat()[..28]);
        assert_eq!(message.0[4..8], [16, 0, 5, 6]);
    }

    #[test]
    fn the_loopback_device_is_there_and_nothing_else_of_its_number() {
        let index = index_of("lo").unwrap();
        assert!(exists("lo", index) && !exists("lo", index + 1_000_000) && index_of("no such").is_none());
    }
}
