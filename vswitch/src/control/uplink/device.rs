//! One network device of an uplink: how it is opened.
//!
//! Opening runs on a helper thread, because drivers reset their rings for it. It goes down the ladder AF_XDP zero-copy, copy, generic, packet
//! socket until something works; what was negotiated is told to the operator.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use avio_host::inject;
use avio_host::links::Link;
use avio_host::netdev::xdp_abilities;
use avio_proto::config::{MacAddr, UplinkAccess};
use avio_proto::control::{OffloadedTo, SentBy};
use avio_proto::virtio::features as f;
use avio_proto::virtio::net::LEGACY_HEADER_LEN;

use super::check::refusal;
use super::guardian::{Claimed, Guardian};
use super::hosts::HostAddresses;
use super::inspection::Inspection;
use super::owner::Owned;
use super::watchdog::Watchdog;
use crate::port::wire::{Intake, Lane};
use crate::port::xdp::{
    AttachError, AttachMode, Attached, Capture, LinkFeatures, PacketFilter, Promiscuous, QUEUES_MAX,
    Siblings, Wanted, XskError, driver_info, open_burst, open_packet, open_xsk,
};

/// How often, and after how long, a busy queue is tried again.
const BUSY_TRIES: u32 = 10;
const BUSY_WAIT: std::time::Duration = std::time::Duration::from_millis(10);
/// Ethernet header and one tag, in bytes.
const HEADER_MAX: usize = 18;
/// What the kernel's side of a packet socket does by itself, either way.
const OFFLOADS_IN: u64 =
    f::NET_CSUM | f::NET_HOST_TSO4 | f::NET_HOST_TSO6 | f::NET_HOST_ECN | f::NET_HOST_USO;
const OFFLOADS_OUT: u64 = f::NET_GUEST_CSUM
    | f::NET_GUEST_TSO4
    | f::NET_GUEST_TSO6
    | f::NET_GUEST_ECN
    | f::NET_GUEST_USO4
    | f::NET_GUEST_USO6;

/// What a device was found to be able to do, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Negotiated {
    /// `zero-copy`, `copy`, `generic` or `packet`.
    pub access: &'static str,
    pub queues: usize,
    pub multi_buffer: bool,
    pub busy_poll: bool,
    pub need_wakeup: bool,
    /// Entries of each ring.
    pub ring_size: u32,
    /// Tags beside frames are seen.
    pub vlan_metadata: bool,
    pub sent_by: SentBy,
    /// As XDP frames, while nothing is on its egress and the other end takes them.
    pub xdp_frames: bool,
    pub segments_by: OffloadedTo,
    pub checksums_by: OffloadedTo,
    /// Receive offloads that were switched off.
    pub switched_off: LinkFeatures,
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
    /// Queues that it was said to have, where that matters: with AF_XDP, or if there were too many for it.
    queues: Option<QueueCount>,
    name: String,
    taking: Taking,
    egress_is_free: Arc<AtomicBool>,
    /// Hands over what comes in for the host's addresses on its siblings; `None`: no aggregate, or the kernel has no place for it.
    siblings: Option<Siblings>,
    _promiscuous: Promiscuous,
    _claim: Claim,
    _owned: Owned,
}

/// The device's features are off as long as this lives.
struct Claim {
    index: u32,
    guardian: Arc<Mutex<Guardian>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.guardian.lock().unwrap_or_else(PoisonError::into_inner).release(self.index);
    }
}

/// What decides which frames the switch takes; addresses show up later.
enum Taking {
    Program(Attached),
    Filter(PacketFilter),
}

impl Taking {
    /// Unicast to `macs` is not taken: those of the device itself, and others.
    fn leave(&mut self, macs: &[MacAddr]) -> Result<(), String> {
        match self {
            Taking::Program(program) => program
                .leave(macs)
                .map_err(|(mac, error)| format!("{mac} does not stay with the host: {error}")),
            Taking::Filter(filter) => {
                filter.except(macs).map_err(|error| format!("its filter cannot be changed: {error}"))
            }
        }
    }
}

impl Device {
    /// What is to be looked at, as it is now.
    pub(super) fn inspection(&self) -> Inspection {
        let program = if let Taking::Program(program) = &self.taking { Some(program.hook()) } else { None };
        let siblings = self.siblings.as_ref().map(Siblings::hook);
        Inspection {
            name: self.name.clone(),
            queues: self.queues,
            hooks: program.into_iter().chain(siblings).cloned().collect(),
        }
    }

    /// Leaves to the kernel what is the host's, as it is now; what fails is logged in the name of `name`.
    pub(super) fn leave(&mut self, hosts: &HostAddresses, name: &str) {
        let siblings = self.siblings.as_mut().map_or(Ok(()), |siblings| siblings.set(&hosts.siblings));
        if let Err((mac, error)) = siblings {
            tracing::warn!("{name}: {mac} of another member is not led there: {error}");
        }
        if let Err(why) = self.taking.leave(&hosts.left(self.siblings.is_some())) {
            tracing::warn!("{name}: {why}");
        }
    }

    /// Whether frames may leave past the device's egress: nothing is on that now.
    pub(super) fn set_egress(&self, is_free: bool) {
        self.egress_is_free.store(is_free, Ordering::Relaxed);
    }
}

/// What a helper needs to know.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub link: Link,
    pub hosts: HostAddresses,
    /// Where on the ladder to begin.
    pub access: UplinkAccess,
    /// Zero-copy may be tried.
    pub zero_copy: bool,
    pub busy_poll: bool,
    /// Where the device copies, frames may go out by the burst.
    pub burst: bool,
    /// And by the burst as XDP frames, past the device's egress, as long as nothing is on that.
    pub redirect: bool,
    pub egress_is_free: Arc<AtomicBool>,
    /// The XDP program may ask for tags beside frames.
    pub vlan_tags: bool,
    /// It has siblings, and what comes in for the host's addresses there may be handed over.
    pub siblings: bool,
}

/// Opens it.
///
/// # Errors
/// One line: not even a packet socket works, or frames would arrive changed.
pub(super) fn open(request: &Request, guardian: &Arc<Mutex<Guardian>>) -> Result<Device, String> {
    let name = &request.link.name;
    let fail = |what: &str, error: &dyn std::fmt::Display| format!("{name}: {what}: {error}");
    let owned = Owned::take(request.link.index, name)?;
    let claimed = guardian.lock().unwrap_or_else(PoisonError::into_inner).claim(request.link.index);
    let claim = Claim { index: request.link.index, guardian: Arc::clone(guardian) };
    let Claimed { left, switched_off } = claimed.map_err(|error| fail("cannot set its offloads", &error))?;
    let promiscuous =
        Promiscuous::new(request.link.index).map_err(|error| fail("cannot make it promiscuous", &error))?;
    let siblings = request.siblings.then(|| open_siblings(request)).flatten();
    let (mut remarks, mut queues) = (Vec::new(), None);
    // As the check did: it may have changed since.
    if let Some(why) = refusal(left, request.access) {
        return Err(format!("{name}: {why}"));
    }
    if left.is_none() {
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
            match open_xdp(request, siblings.is_some(), mode, copy) {
                Ok((sources, lanes, mut negotiated, watchdogs, program, queues)) => {
                    negotiated.remarks = remarks;
                    negotiated.switched_off = switched_off;
                    return Ok(Device {
                        sources,
                        lanes,
                        negotiated,
                        watchdogs,
                        queues: Some(queues),
                        name: name.clone(),
                        taking: Taking::Program(program),
                        egress_is_free: Arc::clone(&request.egress_is_free),
                        siblings,
                        _promiscuous: promiscuous,
                        _claim: claim,
                        _owned: owned,
                    });
                }
                Err(Refused::Step(error)) => remarks.push(error),
                Err(Refused::All(error)) => {
                    remarks = vec![error];
                    break;
                }
                Err(Refused::Queues(error, count)) => {
                    remarks = vec![error];
                    queues = Some(count);
                    break;
                }
            }
        }
    }
    let (intake, outlet, filter) =
        open_packet(request.link.index, Capture::All).map_err(|error| fail("no packet socket", &error))?;
    let source = Source { intake, header_len: LEGACY_HEADER_LEN, features: OFFLOADS_IN };
    let lanes = outlet.into_iter().map(|outlet| Lane::new(outlet, LEGACY_HEADER_LEN, OFFLOADS_OUT)).collect();
    let negotiated = Negotiated {
        access: "packet",
        queues: 1,
        multi_buffer: true,
        busy_poll: false,
        need_wakeup: false,
        ring_size: 0,
        vlan_metadata: true,
        sent_by: SentBy::Socket,
        xdp_frames: false,
        segments_by: OffloadedTo::Kernel,
        checksums_by: OffloadedTo::Kernel,
        switched_off,
        remarks,
    };
    let mut device = Device {
        sources: vec![source],
        lanes,
        negotiated,
        watchdogs: Vec::new(),
        queues,
        name: name.clone(),
        taking: Taking::Filter(filter),
        egress_is_free: Arc::clone(&request.egress_is_free),
        siblings,
        _promiscuous: promiscuous,
        _claim: claim,
        _owned: owned,
    };
    device.leave(&request.hosts, name);
    Ok(device)
}

/// The program for what comes in for the host's addresses on other members, with those as they are.
fn open_siblings(request: &Request) -> Option<Siblings> {
    let name = &request.link.name;
    let lost = |error: io::Error| {
        tracing::warn!(
            "{name}: what comes in here for the host's address on another member is lost: {error}"
        );
    };
    let mut siblings = Siblings::new(request.link.index).map_err(lost).ok()?;
    siblings.set(&request.hosts.siblings).map_err(|(_, error)| lost(error)).ok()?;
    Some(siblings)
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

/// How many receive queues a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueCount {
    /// In use now.
    pub used: u32,
    /// That there is room for.
    pub room: u32,
}

/// Asks how many queues the device `name` uses, which has room for so many.
pub(super) fn queue_count(name: &str, room: u32) -> QueueCount {
    let told = driver_info(name).map_or(0, |info| info.queues);
    QueueCount { used: if told > 0 { told.min(room) } else { room }, room }
}

/// Why a device is not opened by XDP.
enum Refused {
    /// Not that way; a lower step may do.
    Step(String),
    /// In no way.
    All(String),
    /// It has too many queues.
    Queues(String, QueueCount),
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Refused::Step(why)
    }
}

type OpenXdp = (Vec<Source>, Vec<Arc<Lane>>, Negotiated, Vec<Watchdog>, Attached, QueueCount);

/// The program, a socket on each queue, and the packet socket for what goes to many.
fn open_xdp(request: &Request, led: bool, mode: AttachMode, copy: bool) -> Result<OpenXdp, Refused> {
    let (name, index) = (&request.link.name, request.link.index);
    let step = match (mode, copy) {
        (AttachMode::Native, false) => "zero-copy or copy",
        (AttachMode::Native, true) => "copy",
        (AttachMode::Generic, _) => "generic",
    };
    let count = queue_count(name, request.link.rx_queues);
    let queues = count.used;
    if queues > QUEUES_MAX {
        // Frames of those beyond would be nobody's.
        let why = format!(
            "it has {queues} queues, and {QUEUES_MAX} at most can have a socket; let it have fewer (`ethtool -L {name}`)"
        );
        return Err(Refused::Queues(why, count));
    }
    let abilities = xdp_abilities(index).unwrap_or_default();
    let vlan_tags = request.vlan_tags && abilities.rx_vlan_tag;
    let mut program = Attached::new(index, mode, vlan_tags).map_err(|error| match error {
        AttachError::Taken => format!("{step}: {}", error.to_string().replace("NAME", name)),
        AttachError::Refused(error) => format!("{step}: {error}"),
    })?;
    let io = |error: io::Error| format!("{step}: {error}");
    program.leave(&request.hosts.left(led)).map_err(|(mac, error)| format!("{step}: {mac}: {error}"))?;
    // No device that tests have sums what a socket asks for; the kernel does in its place where it copies.
    let checksums_copied = inject::happens("uplink::tx_checksum");
    let wanted = Wanted {
        copy,
        frame_len_max: request.link.mtu as usize + HEADER_MAX,
        busy_poll: request.busy_poll,
        checksums: checksums_copied || !copy && abilities.zero_copy && abilities.tx_checksum,
        checksums_copied,
    };
    let (mut sources, mut lanes, mut watchdogs) = (Vec::new(), Vec::new(), Vec::new());
    let mut all: Option<crate::port::xdp::XskInfo> = None;
    let (mut bursts, mut summing, mut xdp_frames) = (0, 0, false);
    let direct = request.redirect.then(|| Arc::clone(&request.egress_is_free));
    for queue in 0..queues {
        let (intake, outlet, info, watch) = match open_patiently(index, queue, wanted) {
            Ok(open) => open,
            // The device has room for more queues than it uses.
            Err(XskError::NoQueue) if queue > 0 => break,
            Err(error @ XskError::Locked(_)) => return Err(Refused::All(format!("queue {queue}: {error}"))),
            Err(error) => return Err(format!("{step}: queue {queue}: {error}").into()),
        };
        program.add(queue, watch.as_fd()).map_err(io)?;
        watchdogs.push(Watchdog::new(watch));
        sources.push(Source { intake, header_len: 0, features: 0 });
        let burst = (!info.zero_copy && request.burst)
            .then(|| open_burst(index, queue, queues, wanted.frame_len_max, direct.clone()));
        let (outlet, is_burst) = match burst {
            None => (outlet, false),
            Some(Ok((burst, as_xdp))) => {
                xdp_frames |= matches!(as_xdp, Some(Ok(())));
                if let (Some(Err(error)), 0) = (as_xdp, queue) {
                    tracing::warn!("{name}: its frames leave as packets, not as XDP frames: {error}");
                }
                (burst, true)
            }
            Some(Err(error)) => {
                tracing::warn!(
                    "{name}: sends frame by frame through its AF_XDP socket: no burst program: {error}"
                );
                (outlet, false)
            }
        };
        bursts += usize::from(is_burst);
        // A burst's frames are complete.
        let takes_partial = info.checksums && !is_burst;
        summing += usize::from(takes_partial);
        lanes.push(Lane::new(outlet, 0, if takes_partial { f::NET_GUEST_CSUM } else { 0 }));
        all.get_or_insert(info).zero_copy &= info.zero_copy;
    }
    let info = all.ok_or_else(|| format!("{step}: it has no queue"))?;
    let sent_by = if bursts == lanes.len() { SentBy::Burst } else { SentBy::Ring };
    let (groups, ..) = open_packet(index, Capture::Groups).map_err(io)?;
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
        need_wakeup: info.need_wakeup,
        ring_size: info.ring_size,
        vlan_metadata: program.sees_vlan_tags(),
        sent_by,
        xdp_frames,
        segments_by: OffloadedTo::Switch,
        checksums_by: match (summing == lanes.len(), info.zero_copy) {
            (true, true) => OffloadedTo::Device,
            (true, false) => OffloadedTo::Kernel,
            (false, _) => OffloadedTo::Switch,
        },
        switched_off: LinkFeatures::NONE,
        remarks: Vec::new(),
    };
    Ok((sources, lanes, negotiated, watchdogs, program, count))
}
