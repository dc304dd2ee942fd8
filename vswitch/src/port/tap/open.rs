//! Finding, making and setting up the network device of a TAP port.
//!
//! Called on a helper thread, again whenever the device was lost. A device that is there already is used as it is, with its
//! addresses, and is put back when its definition goes (`former`); what is made here stays when the daemon ends, so that guests and the host's configuration
//! survive a restart. It goes with its definition (`remove` of `link`).

#![expect(unsafe_code, reason = "ioctl on TAP devices (DESIGN section 6, docs/decisions/0008)")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use avio_host::session::{gid_of, uid_of};
use avio_proto::config::MacAddr;
use avio_proto::virtio::features as virtio;
use avio_proto::virtio::net::HEADER_LEN;

use super::former::Former;
use super::link::{self, Setting};

/// Where TAPs are made.
const TUN: &str = "/dev/net/tun";
/// What the kernel is told that we take (linux/if_tun.h); the later two came with Linux 6.2.
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;
const OFFLOADS: libc::c_ulong = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// The host, with this address on its device.
    Host(MacAddr),
    /// A VMM, which opens the TAP itself as this user and group.
    Guest {
        /// User name or number; `None`: root.
        owner: Option<String>,
        /// Group name or number; `None`: none.
        group: Option<String>,
    },
}

/// The network device of a TAP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapSpec {
    /// Its name.
    pub name: String,
    /// Who is at the other end.
    pub side: Side,
    /// Bytes of Ethernet payload.
    pub mtu: u16,
    /// Checksum and segmentation offloads.
    pub offloads: bool,
}

/// A TAP that was opened.
#[derive(Debug)]
pub struct Opened {
    /// Reads and writes frames behind a virtio-net header, never waits.
    pub file: OwnedFd,
    /// The number of the device named in the definition.
    pub device: u32,
    /// What its frames may be, in virtio's bits.
    pub features: u64,
    /// As defined.
    pub mtu: u16,
}

/// Opens the device, making it if it is not there.
///
/// # Errors
/// One line: what, where, what would be right.
pub fn open(spec: &TapSpec) -> Result<Opened, String> {
    match &spec.side {
        Side::Host(mac) => open_host(spec, *mac),
        Side::Guest { owner, group } => {
            let about = |error| format!("{}: {error}", spec.name);
            let owner = owner.as_deref().map(uid_of).transpose().map_err(about)?;
            let group = group.as_deref().map(gid_of).transpose().map_err(about)?;
            open_guest(spec, owner, group)
        }
    }
}

/// Removes what [`open`] made for a definition that is gone: never a device that was there before.
///
/// # Errors
/// One line.
pub fn forget(spec: &TapSpec) -> Result<(), String> {
    let name = &spec.name;
    let Some(device) = link::index_of(name) else { return Ok(()) };
    if matches!(spec.side, Side::Guest { .. }) {
        let former = Former::from_alias(&link::alias(&switch_end(device)));
        link::remove(&switch_end(device))
            .and_then(|()| former.map_or(Ok(()), |former| former.put_back(name)))
            .map_err(|e| cannot(name, "given back to the host", &e))?;
    }
    if link::is_ours(name) {
        link::remove(name).map_err(|e| cannot(name, "removed", &e))?;
    }
    Ok(())
}

/// The macvtap on a lan port's device: named after the device's number, which is short and nobody else's.
fn switch_end(device: u32) -> String {
    format!("avio{device}")
}

fn open_host(spec: &TapSpec, mac: MacAddr) -> Result<Opened, String> {
    let name = &spec.name;
    let is_new = link::index_of(name).is_none();
    let file = attach(name).map_err(|e| cannot(name, "attached to", &e))?;
    let features = negotiate(&file, spec.offloads).map_err(|e| cannot(name, "set up", &e))?;
    tun_set(&file, libc::TUNSETPERSIST, 1).map_err(|e| cannot(name, "kept", &e))?;
    let device = link::index_of(name).ok_or_else(|| format!("{name}: vanished while it was opened"))?;
    let mtu = is_new.then_some(spec.mtu);
    // The address is what the switch delivers to; MTU and state are the administrator's once the device exists.
    link::set(device, Setting { mac: Some(mac), ..Setting::default() })
        .and_then(|()| link::set(device, Setting { mtu, ours: is_new, up: is_new, ..Setting::default() }))
        .map_err(|e| cannot(name, "set up", &e))?;
    Ok(Opened { file, device, features, mtu: spec.mtu })
}

fn open_guest(spec: &TapSpec, owner: Option<u32>, group: Option<u32>) -> Result<Opened, String> {
    let name = &spec.name;
    if link::index_of(name).is_none() {
        make(name, owner, group).map_err(|e| cannot(name, "made", &e))?;
        let device = link::index_of(name).ok_or_else(|| format!("{name}: vanished while it was made"))?;
        let setting = Setting { mtu: Some(spec.mtu), ours: true, ..Setting::default() };
        link::set(device, setting).map_err(|e| cannot(name, "set up", &e))?;
    }
    let device = link::index_of(name).ok_or_else(|| format!("{name}: vanished while it was opened"))?;
    let tap = switch_end(device);
    if link::index_of(&tap).is_none() {
        let former = (!link::is_ours(name)).then(|| Former::of(name)).transpose();
        link::make_macvtap(&tap, device).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY | libc::EINVAL) => {
                format!("{name}: is in use by a bridge, bond or macvlan; take it out of there, or give another `tap`")
            }
            _ => cannot(name, "taken over from the host (macvtap)", &e),
        })?;
        let upper = link::index_of(&tap).ok_or_else(|| format!("{tap}: vanished while it was made"))?;
        former
            .and_then(|former| former.map_or(Ok(()), |former| link::set_alias(upper, &former.to_alias())))
            .map_err(|e| {
                // The next try begins anew.
                drop(link::remove(&tap));
                cannot(name, "remembered as it was", &e)
            })?;
    }
    // Before it comes up and announces itself. The macvtap hands the host's stack what goes to all and to groups, too.
    let mute = Setting { mute: true, ..Setting::default() };
    link::set(device, mute).map_err(|e| cannot(name, "silenced", &e))?;
    link::deafen(name)?;
    let upper = link::index_of(&tap).ok_or_else(|| format!("{tap}: vanished while it was made"))?;
    let up = Setting { up: true, ..Setting::default() };
    link::set(upper, mute)
        .and_then(|()| link::set(device, up))
        .and_then(|()| link::set(upper, up))
        .map_err(|e| cannot(name, "brought up", &e))?;
    let node = format!("/dev/tap{upper}");
    let file = open_node(Path::new(&node)).map_err(|e| cannot(&node, "opened", &e))?;
    let features = set_interface(&file, &tap, libc::IFF_VNET_HDR)
        .and_then(|()| negotiate(&file, spec.offloads))
        .map_err(|e| cannot(name, "set up", &e))?;
    Ok(Opened { file, device, features, mtu: spec.mtu })
}

/// Makes a TAP that stays, for somebody else to open.
fn make(name: &str, owner: Option<u32>, group: Option<u32>) -> io::Result<()> {
    let file = attach(name)?;
    if let Some(owner) = owner {
        tun_set(&file, libc::TUNSETOWNER, owner.into())?;
    }
    if let Some(group) = group {
        tun_set(&file, libc::TUNSETGROUP, group.into())?;
    }
    tun_set(&file, libc::TUNSETPERSIST, 1)
}

fn attach(name: &str) -> io::Result<OwnedFd> {
    let file = open_node(Path::new(TUN))?;
    set_interface(&file, name, libc::IFF_VNET_HDR)?;
    Ok(file)
}

/// A new TAP called `name` in this thread's network namespace: frames bare as they are. It goes with the descriptor.
///
/// # Errors
/// What the system says.
pub(crate) fn open_bare(name: &str) -> io::Result<OwnedFd> {
    let file = open_node(Path::new(TUN))?;
    set_interface(&file, name, 0)?;
    Ok(file)
}

fn open_node(path: &Path) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    Ok(options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?.into())
}

/// Frames behind a virtio-net header of the length that AVIO rings have; returns what they may be.
fn negotiate(file: &OwnedFd, offloads: bool) -> io::Result<u64> {
    let header_len = HEADER_LEN as libc::c_int;
    // SAFETY: the call reads an int, which is alive.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_len) })?;
    let mut features = virtio::VERSION_1;
    if !offloads {
        tun_set(file, libc::TUNSETOFFLOAD, 0)?;
        return Ok(features);
    }
    features |= virtio::NET_CSUM
        | virtio::NET_GUEST_CSUM
        | virtio::NET_HOST_TSO4
        | virtio::NET_HOST_TSO6
        | virtio::NET_HOST_ECN
        | virtio::NET_GUEST_TSO4
        | virtio::NET_GUEST_TSO6
        | virtio::NET_GUEST_ECN;
    if tun_set(file, libc::TUNSETOFFLOAD, OFFLOADS | TUN_F_USO).is_ok() {
        features |= virtio::NET_HOST_USO | virtio::NET_GUEST_USO4 | virtio::NET_GUEST_USO6;
    } else {
        tun_set(file, libc::TUNSETOFFLOAD, OFFLOADS)?;
    }
    Ok(features)
}

/// Attaches to the TAP `name`, with what else it is to be (`IFF_*`).
fn set_interface(file: &OwnedFd, name: &str, more: libc::c_int) -> io::Result<()> {
    // SAFETY: all zeros are a valid `struct ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | more;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the call reads and writes a `struct ifreq`, which is alive.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

fn tun_set(file: &OwnedFd, what: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these calls take a number, no address.
    check(unsafe { libc::ioctl(file.as_raw_fd(), what, value) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn cannot(name: &str, verb: &str, error: &io::Error) -> String {
    let right = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; run the daemon as root or with CAP_NET_ADMIN",
        Some(libc::EBUSY) => "; another program has it open",
        Some(libc::EINVAL) => "; there is a device of that name that is no TAP, or one with several queues",
        Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP) => {
            "; the kernel needs the modules tun and macvtap"
        }
        _ => "",
    };
    format!("{name}: cannot be {verb}: {error}{right}")
}
