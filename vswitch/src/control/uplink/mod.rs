//! Uplinks as control has them: which devices each vswitch's wire is made of, opened, lost and found again.
//!
//! Owns the devices, the ports' entries for the next table, and the watch over the host's interfaces. `Uplinks::turn` is called once per turn of the
//! control loop and says whether the table has to be published anew. Devices are opened by helper threads. `definition` follows the configuration,
//! `check` refuses what cannot be an uplink, `upkeep` opens and loses devices, `report` shows them. What a *distribution* is made of when a device has
//! more than one member is for the aggregate to say (`Uplink::distribution`).

mod aggregate;
mod aggregate_report;
mod check;
mod closing;
mod definition;
mod device;
pub mod guardian;
mod hosts;
mod inspection;
mod offloads;
mod owner;
mod report;
mod traffic;
mod trouble;
mod upkeep;
mod watchdog;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use avio_host::blocking::{Helpers, Mailbox};
use avio_host::links::Links;
use avio_proto::config::{Config, MacAddr, UplinkAccess};

use self::aggregate::Bundle;
pub(super) use self::check::check_devices;
use self::closing::Closings;
use self::guardian::Guardian;
use self::offloads::Looked;
use self::upkeep::{Found, Opened};
pub(super) use self::wire::Half;
use self::wire::Uplink;
use super::fabric::Fabric;
use crate::aggregate::Aggregate;
use crate::port::uplink::Hold;
use crate::port::xdp::FeatureMonitor;
use crate::table::{PortIndex, TableBuilder};
use rustix::event::epoll;

/// A device that is opened anew, after workers have let go of it: they do that between two batches.
const REOPEN_AFTER: Duration = Duration::from_millis(50);
/// Sources of one member are numbered from its number times this.
const SOURCES_MAX: u16 = 256;

/// Which kernel facilities may be used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    pub xdp: bool,
    pub zero_copy: bool,
    pub busy_poll: bool,
    pub burst: bool,
    pub redirect: bool,
    pub vlan_tags: bool,
    /// What comes in on the wrong member of an aggregate for the host.
    pub siblings: bool,
}

impl Allowed {
    /// Where the ladder begins for a device that is to be opened like that.
    fn best(&self, configured: UplinkAccess) -> UplinkAccess {
        if self.xdp { configured } else { UplinkAccess::Packet }
    }
}

/// What a helper sends back.
pub(super) enum Answer {
    /// A device was opened, or not.
    Opened(Box<Opened>),
    /// A device is closed.
    Closed { name: String, port: PortIndex },
    /// Devices were looked at.
    Inspected(Vec<Found>),
    /// Offloads of a device were looked at.
    Offloads(Looked),
    /// Memory for what an aggregate holds.
    Hold { port: PortIndex, hold: io::Result<Hold> },
}

/// See the module.
pub(super) struct Uplinks {
    links: Links,
    /// Hears of offloads that somebody switches; `None`: the kernel does not tell.
    offloads: Option<FeatureMonitor>,
    helpers: Helpers,
    mailbox: Mailbox<Answer>,
    guardian: Arc<Mutex<Guardian>>,
    allowed: Allowed,
    workers: usize,
    /// By vswitch.
    uplinks: BTreeMap<String, Uplink>,
    /// Devices that helpers are opening, whoever wants them.
    opening: BTreeSet<String>,
    /// How often one was begun to be opened: a number for each, so that none is taken for another, of a configuration that is gone.
    attempts: u64,
    /// Devices that are being closed.
    closing: Closings,
    /// A helper looks at devices, and whether it is to once more.
    inspecting: bool,
    inspect_again: bool,
    /// The interfaces may have changed.
    stale: bool,
    /// When the rings are looked at next; `None`: there are none.
    watch_at: Option<Instant>,
    /// Readable when some member's control socket is.
    control_frames: OwnedFd,
    /// Vswitches whose guests are to be announced.
    announce: Vec<String>,
}

impl Uplinks {
    /// No uplinks yet. `workers`: how many there are.
    ///
    /// # Errors
    /// No epoll set for the control sockets of aggregates.
    pub(super) fn new(
        links: Links,
        helpers: Helpers,
        mailbox: Mailbox<Answer>,
        allowed: Allowed,
        workers: usize,
    ) -> io::Result<Self> {
        let offloads = FeatureMonitor::new()
            .inspect_err(|error| {
                tracing::warn!(
                    "nobody will notice when offloads of an uplink's device are switched on: {error}"
                );
            })
            .ok();
        Ok(Self {
            offloads,
            control_frames: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            announce: Vec::new(),
            links,
            helpers,
            mailbox,
            guardian: Arc::default(),
            allowed,
            workers,
            uplinks: BTreeMap::new(),
            opening: BTreeSet::new(),
            attempts: 0,
            closing: Closings::default(),
            inspecting: false,
            inspect_again: false,
            stale: true,
            watch_at: None,
        })
    }

    /// Readable when a control protocol of an aggregate has something; call [`Self::turn`] then.
    pub(super) fn control_frames_fd(&self) -> RawFd {
        self.control_frames.as_raw_fd()
    }

    /// The vswitches whose guests are to be announced on the wire, since the last call.
    pub(super) fn take_announce(&mut self) -> Vec<String> {
        std::mem::take(&mut self.announce)
    }

    /// All workers have been sent a new table.
    pub(super) fn published(&mut self, fabric: &Fabric) {
        for bundle in self.uplinks.values_mut().filter_map(|uplink| uplink.bundle.as_mut()) {
            bundle.published(|| fabric.workers().barrier());
        }
    }

    /// The aggregate called `name`.
    pub(super) fn aggregate_mut(&mut self, name: &str) -> Option<&mut Aggregate> {
        let uplink = self.uplinks.values_mut().find(|uplink| uplink.name == name)?;
        uplink.bundle.as_mut().map(Bundle::aggregate_mut)
    }

    /// The number of the host's interface called `name`.
    pub(super) fn index_of(&self, name: &str) -> Option<u32> {
        self.links.named(name).map(|link| link.index)
    }

    /// The vswitches whose wire is down, where guests are to see that.
    pub(super) fn lost_to_guests(&self) -> BTreeSet<String> {
        let lost = self.uplinks.values().filter(|uplink| uplink.config.link_status && !uplink.is_up());
        lost.map(|uplink| uplink.vswitch.clone()).collect()
    }

    /// Readable when the host's interfaces change; call [`Self::on_links`] then.
    pub(super) fn links_fd(&self) -> RawFd {
        self.links.as_raw_fd()
    }

    /// The host's interfaces have changed. Returns whether anything that we know of them has.
    pub(super) fn on_links(&mut self) -> bool {
        let changed = self.links.refresh();
        self.stale |= changed;
        // Also of what is not known here of an interface, its offloads among it.
        self.inspect();
        changed
    }

    /// Addresses of the host's interfaces, which no guest may have.
    pub(super) fn host_macs(&self) -> Vec<MacAddr> {
        self.links.macs().into_iter().map(|(_, mac)| mac).collect()
    }

    /// Puts the uplinks into the next table; before the ports of their vswitches.
    pub(super) fn fill(&self, config: &Config, builder: &mut TableBuilder) {
        for (vswitch, uplink) in &self.uplinks {
            let Some(vswitch) = config.vswitch(vswitch).filter(|vswitch| vswitch.settings.enabled) else {
                continue;
            };
            let (spec, state) = (Arc::clone(&uplink.spec), Arc::clone(&uplink.state));
            if let Err(error) = builder.uplink(uplink.index, vswitch.number, spec, state, uplink.port()) {
                tracing::error!("uplink {}: not on the switch: {error}", uplink.name);
            }
        }
    }

    /// Opens what is to be opened, closes what is gone, takes up what helpers have opened. Returns whether the table has changed.
    pub(super) fn turn(&mut self, now: Instant, fabric: &mut Fabric) -> bool {
        let mut changed = false;
        while let Some(answer) = self.mailbox.take() {
            changed |= match answer {
                Answer::Opened(opened) => {
                    self.on_opened(*opened, now, fabric);
                    true
                }
                Answer::Closed { name, port } => {
                    self.closing.closed(&name, port);
                    true
                }
                Answer::Inspected(found) => self.on_inspected(found, now, fabric),
                Answer::Offloads(looked) => self.on_looked(looked, now, fabric),
                Answer::Hold { port, hold } => {
                    self.on_hold(port, hold);
                    true
                }
            };
        }
        self.closing.turn(&self.helpers, &self.mailbox.reply());
        self.look_at_offloads();
        changed |= self.watch(now, fabric);
        let due = self.retry_at().is_some_and(|at| at <= now);
        if std::mem::take(&mut self.stale) || due {
            changed |= self.look(now, fabric);
        }
        for uplink in self.uplinks.values_mut() {
            let Some(bundle) = &mut uplink.bundle else { continue };
            let wishes = bundle.turn(now);
            changed |= wishes.publish;
            if wishes.announce {
                self.announce.push(uplink.vswitch.clone());
            }
            if wishes.publish {
                uplink.respecify();
            }
        }
        changed
    }

    /// When [`Self::turn`] is due even if nothing happens.
    pub(super) fn next_at(&self) -> Option<Instant> {
        [self.retry_at(), self.watch_at].into_iter().flatten().min()
    }

    /// When an aggregate has something to do even if nothing happens.
    pub(super) fn next_of_aggregates(&self) -> Option<Instant> {
        self.uplinks.values().filter_map(|uplink| uplink.bundle.as_ref()?.next_at()).min()
    }
}
