//! One network device of an uplink: whether it may be one, and how it is opened.
//!
//! Opening runs on a helper thread, because drivers reset their rings for it. It goes down the ladder AF_XDP zero-copy, copy, generic, packet
//! socket until something works; what was negotiated is told to the operator.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use avio_host::links::Link;
use avio_proto::config::{MacAddr, UplinkAccess, UplinkConfig};
use avio_proto::virtio::features as f;
use avio_proto::virtio::net::LEGACY_HEADER_LEN;

use super::guardian::Guardian;
use super::watchdog::Watchdog;
use crate::port::wire::{Intake, Lane};
use crate::port::xdp::{
    AttachError, AttachMode, Attached, Capture, Promiscuous, Wanted, XskError, driver_info,
    interface_speed_mbps, open_packet, open_xsk,
};

/// Slowest device that is an uplink without being asked for, in Mbit/s (SEMANTICS 3.4: no 100 Mbit/s cards).
const SPEED_MIN: u32 = 1000;
/// How often, and after how long, a busy queue is tried again.
const BUSY_TRIES: u32 = 10;
const BUSY_WAIT: std::time::Duration = std::time::Duration::from_millis(10);
/// Ethernet header and one tag, in bytes.
const HEADER_MAX: usize = 18;
/// Drivers whose devices cannot be an uplink, and what to do instead.
const DENIED: &[(&str, &str)] = &[
    ("bonding", "name its members in an [[aggregate]]"),
    ("team", "name its members in an [[aggregate]]"),
    ("bridge", "name the device behind the bridge"),
    ("openvswitch", "name the device behind the switch"),
    ("802.1Q VLAN Support", "name the device that it sits on, and give ports a `vlan`"),
    ("8139too", "it is a 100 Mbit/s card"),
    ("8139cp", "it is a 100 Mbit/s card"),
    ("e100", "it is a 100 Mbit/s card"),
];
/// What the kernel's side of a packet socket does by itself, either way.
const OFFLOADS_IN: u64 =
    f::NET_CSUM | f::NET_HOST_TSO4 | f::NET_HOST_TSO6 | f::NET_HOST_ECN | f::NET_HOST_USO;
const OFFLOADS_OUT: u64 = f::NET_GUEST_CSUM
    | f::NET_GUEST_TSO4
    | f::NET_GUEST_TSO6
    | f::NET_GUEST_ECN
    | f::NET_GUEST_USO4
    | f::NET_GUEST_USO6;

/// Whether `link` may be an uplink. One line: what is wrong, what would be right.
pub(super) fn check(link: &Link, config: &UplinkConfig) -> Result<(), String> {
    let name = &link.name;
    if !link.is_ethernet {
        return Err(format!("`{name}` is no Ethernet device; name one that is"));
    }
    let driver = driver_info(name).map(|info| info.driver).unwrap_or_default();
    if let Some((_, instead)) = DENIED.iter().find(|(denied, _)| *denied == driver) {
        return Err(format!("`{name}` has driver {driver} and cannot be an uplink; {instead}"));
    }
    if driver == "tun" && !config.allow_slow {
        return Err(format!(
            "`{name}` is a TAP; guests with one get a port of adaptor lan, and as a wire it needs `allow_slow = true` in its [[uplink]]"
        ));
    }
    match interface_speed_mbps(name) {
        Some(speed) if speed < SPEED_MIN && !config.allow_slow => Err(format!(
            "`{name}` has {speed} Mbit/s, an uplink needs {SPEED_MIN}; use a faster one, or set `allow_slow = true` in its [[uplink]]"
        )),
        _ => Ok(()),
    }
}

/// What a device was found to be able to do, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Negotiated {
    /// `zero-copy`, `copy`, `generic` or `packet`.
    pub access: &'static str,
    pub queues: usize,
    pub multi_buffer: bool,
    pub busy_poll: bool,
    /// Why it is not something better.
    pub remarks: Vec<String>,
}

/// An intake with the header in front of its frames.
pub(super) struct Source {
    pub intake: Box<dyn Intake>,
    pub header_len: usize,
    pub features: u64,
}

/// An open device. Dropping it (after its sources and lanes) leaves the device as it was.
pub(super) struct Device {
    pub sources: Vec<Source>,
    pub lanes: Vec<Arc<Lane>>,
    pub negotiated: Negotiated,
    /// One per queue, with AF_XDP.
    pub watchdogs: Vec<Watchdog>,
    /// For addresses that show up later; `None`: no program.
    pub program: Option<Attached>,
    _promiscuous: Promiscuous,
    _claim: Claim,
}

/// The device's features are off as long as this lives.
struct Claim {
    name: String,
    guardian: Arc<Mutex<Guardian>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        match self.guardian.lock() {
            Ok(mut guardian) => guardian.release(&self.name),
            Err(poisoned) => poisoned.into_inner().release(&self.name),
        }
    }
}

/// What a helper needs to know.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub link: Link,
    /// Addresses whose unicast stays with the kernel.
    pub host_macs: Vec<MacAddr>,
    /// Where on the ladder to begin.
    pub access: UplinkAccess,
    /// Zero-copy may be tried.
    pub zero_copy: bool,
    pub busy_poll: bool,
}

/// Opens it.
///
/// # Errors
/// One line: not even a packet socket works, or frames would arrive changed.
pub(super) fn open(request: &Request, guardian: &Arc<Mutex<Guardian>>) -> Result<Device, String> {
    let name = &request.link.name;
    let fail = |what: &str, error: &dyn std::fmt::Display| format!("{name}: {what}: {error}");
    let left = match guardian.lock() {
        Ok(mut guardian) => guardian.claim(name),
        Err(poisoned) => poisoned.into_inner().claim(name),
    };
    let claim = Claim { name: name.clone(), guardian: Arc::clone(guardian) };
    let left = left.map_err(|error| fail("cannot set its offloads", &error))?;
    let promiscuous =
        Promiscuous::new(request.link.index).map_err(|error| fail("cannot make it promiscuous", &error))?;
    let mut remarks = Vec::new();
    if left.rx_vlan || left.lro {
        let fixed = if left.lro { "merges segments (lro)" } else { "takes VLAN tags out (rx-vlan-offload)" };
        if left.lro {
            return Err(format!(
                "{name}: its hardware {fixed} and that cannot be switched off; use another device"
            ));
        }
        remarks.push(format!("its hardware {fixed} for good, so XDP would not see them"));
    }
    if !left.rx_vlan {
        let steps = [
            (UplinkAccess::Auto, AttachMode::Native, !request.zero_copy),
            (UplinkAccess::Copy, AttachMode::Native, true),
            (UplinkAccess::Generic, AttachMode::Generic, true),
        ];
        for (access, mode, copy) in steps {
            // Without zero-copy the first two are the same.
            if access < request.access || (access == UplinkAccess::Auto && copy) {
                continue;
            }
            match open_xdp(request, mode, copy) {
                Ok((sources, lanes, mut negotiated, watchdogs, program)) => {
                    negotiated.remarks = remarks;
                    let program = Some(program);
                    return Ok(Device {
                        sources,
                        lanes,
                        negotiated,
                        watchdogs,
                        program,
                        _promiscuous: promiscuous,
                        _claim: claim,
                    });
                }
                Err(error) => remarks.push(error),
            }
        }
    }
    let (intake, outlet) =
        open_packet(request.link.index, Capture::All).map_err(|error| fail("no packet socket", &error))?;
    let source = Source { intake, header_len: LEGACY_HEADER_LEN, features: OFFLOADS_IN };
    let lanes = outlet.into_iter().map(|outlet| Lane::new(outlet, LEGACY_HEADER_LEN, OFFLOADS_OUT)).collect();
    let negotiated =
        Negotiated { access: "packet", queues: 1, multi_buffer: true, busy_poll: false, remarks };
    Ok(Device {
        sources: vec![source],
        lanes,
        negotiated,
        watchdogs: Vec::new(),
        program: None,
        _promiscuous: promiscuous,
        _claim: claim,
    })
}

/// As [`open_xsk`]; a queue whose last socket was closed just now is free a moment later, for the kernel lets go of it in its own time.
fn open_patiently(index: u32, queue: u32, wanted: Wanted) -> Result<crate::port::xdp::OpenXsk, XskError> {
    let is_busy = |error: &XskError| matches!(error, XskError::Io(error) if error.kind() == io::ErrorKind::ResourceBusy);
    for _ in 0..BUSY_TRIES {
        match open_xsk(index, queue, wanted) {
            Err(error) if is_busy(&error) => std::thread::sleep(BUSY_WAIT),
            outcome => return outcome,
        }
    }
    open_xsk(index, queue, wanted)
}

type OpenXdp = (Vec<Source>, Vec<Arc<Lane>>, Negotiated, Vec<Watchdog>, Attached);

/// The program, a socket on each queue, and the packet socket for what goes to many.
fn open_xdp(request: &Request, mode: AttachMode, copy: bool) -> Result<OpenXdp, String> {
    let (name, index) = (&request.link.name, request.link.index);
    let step = match (mode, copy) {
        (AttachMode::Native, false) => "zero-copy or copy",
        (AttachMode::Native, true) => "copy",
        (AttachMode::Generic, _) => "generic",
    };
    let program = Attached::new(index, mode).map_err(|error| match error {
        AttachError::Taken => format!("{step}: {}", error.to_string().replace("NAME", name)),
        AttachError::Refused(error) => format!("{step}: {error}"),
    })?;
    let io = |error: io::Error| format!("{step}: {error}");
    for &mac in &request.host_macs {
        program.leave(mac).map_err(io)?;
    }
    let wanted =
        Wanted { copy, frame_len_max: request.link.mtu as usize + HEADER_MAX, busy_poll: request.busy_poll };
    let told = driver_info(name).map_or(0, |info| info.queues);
    let queues = if told > 0 { told.min(request.link.rx_queues) } else { request.link.rx_queues };
    let (mut sources, mut lanes, mut watchdogs) = (Vec::new(), Vec::new(), Vec::new());
    let mut all: Option<crate::port::xdp::XskInfo> = None;
    for queue in 0..queues.min(crate::port::xdp::QUEUES_MAX) {
        let (intake, outlet, info, watch) = match open_patiently(index, queue, wanted) {
            Ok(open) => open,
            // The device has room for more queues than it uses.
            Err(XskError::NoQueue) if queue > 0 => break,
            Err(error) => return Err(format!("{step}: queue {queue}: {error}")),
        };
        program.add(queue, watch.as_fd()).map_err(io)?;
        watchdogs.push(Watchdog::new(watch));
        sources.push(Source { intake, header_len: 0, features: 0 });
        lanes.push(Lane::new(outlet, 0, 0));
        all.get_or_insert(info).zero_copy &= info.zero_copy;
    }
    let info = all.ok_or_else(|| format!("{step}: it has no queue"))?;
    let (groups, _) = open_packet(index, Capture::Groups).map_err(io)?;
    let header_len = LEGACY_HEADER_LEN;
    sources.push(Source { intake: groups, header_len, features: OFFLOADS_IN });
    let access = match (mode, info.zero_copy) {
        (AttachMode::Native, true) => "zero-copy",
        (AttachMode::Native, false) => "copy",
        (AttachMode::Generic, _) => "generic",
    };
    let negotiated = Negotiated {
        access,
        queues: lanes.len(),
        multi_buffer: info.multi_buffer,
        busy_poll: info.busy_poll,
        remarks: Vec::new(),
    };
    Ok((sources, lanes, negotiated, watchdogs, program))
}
