//! The state of the wire as guests see it: their link status.
//!
//! vhost-user has no message for it, so the VMM is told through its control socket (QMP `set_link`), where it has one:
//! `RUN/guests/NAME/qmp.sock`, with a network device called `net-BUS-DEVICE`. Owns what each VMM was told and what it is to be told; one
//! helper thread at a time does the telling. Called by the switch in its turns; nothing here blocks, and no frame depends on it.

mod arrivals;
mod qmp;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use avio_host::blocking::{Helpers, Mailbox};
use avio_proto::control::GuestLink;

use self::arrivals::Arrivals;
use self::qmp::{PATIENCE, Refused, Vmm};
use super::interface::InterfaceKey;

/// Where a VMM listens, in its guest's folder of the run directory.
const SOCKET: &str = "qmp.sock";
/// A loss that is over before this is not told: a device that is opened anew, an aggregate that changes over.
const SETTLE: Duration = Duration::from_millis(500);
/// After this a VMM that could not be told is told again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// So often a VMM is tried on whose socket nobody listens, or whose folder cannot be watched. Then it has none.
const ABSENT_MAX: u8 = 3;
/// After this a VMM is told whose socket has just appeared: a moment later it listens.
const ARRIVED_AFTER: Duration = Duration::from_millis(100);
/// VMMs told by one job: as many as may keep a helper thread for [`PATIENCE`] each.
const PER_JOB: usize = 8;

/// What one interface is to be told.
struct Errand {
    key: InterfaceKey,
    era: u64,
    up: bool,
}

/// What has become of an [`Errand`].
pub(super) struct Told {
    key: InterfaceKey,
    era: u64,
    up: bool,
    result: Result<(), Refused>,
}

#[derive(Default)]
struct Guest {
    /// What its VMM was told since it connected.
    shown: Option<bool>,
    /// How often it had no such socket; [`ABSENT_MAX`]: it has none until one appears.
    absent: u8,
    /// Which start of the guest this is about: an answer from before it does not hold.
    era: u64,
    retry: Option<Instant>,
    /// What was logged last: the same trouble is told once.
    said: String,
}

/// See the module.
pub(super) struct LinkStatus {
    run_dir: PathBuf,
    helpers: Helpers,
    mailbox: Mailbox<Vec<Told>>,
    arrivals: Option<Arrivals>,
    guests: BTreeMap<InterfaceKey, Guest>,
    /// Since when each vswitch's wire has been down.
    lost: BTreeMap<String, Instant>,
    eras: u64,
    is_telling: bool,
    is_stale: bool,
    due: Option<Instant>,
}

impl LinkStatus {
    /// Nobody yet. Helpers' answers arrive through `mailbox`.
    pub(super) fn new(run_dir: PathBuf, helpers: Helpers, mailbox: Mailbox<Vec<Told>>) -> Self {
        Self {
            run_dir,
            helpers,
            mailbox,
            arrivals: Arrivals::new(),
            guests: BTreeMap::new(),
            lost: BTreeMap::new(),
            eras: 0,
            is_telling: false,
            is_stale: true,
            due: None,
        }
    }

    /// Readable when a VMM may have opened its socket; [`Self::is_due`] then says so. `None`: there is nothing to wait for.
    pub(super) fn arrivals_fd(&self) -> Option<RawFd> {
        self.arrivals.as_ref().map(Arrivals::fd)
    }

    /// A wire, a guest or the configuration has changed: the next turn looks.
    pub(super) fn touch(&mut self) {
        self.is_stale = true;
    }

    /// A guest's rings start: QEMU sets the link up itself when its back-end has come back, so what it was told no longer holds.
    pub(super) fn started(&mut self, key: &InterfaceKey) {
        self.guests.remove(key);
        if let Some(arrivals) = &mut self.arrivals {
            // Its folder may be another one by now.
            arrivals.retain(|guest| guest != key.guest);
        }
        self.touch();
    }

    /// What the VMM of an interface was told; `None`: nothing, for it cannot be.
    pub(super) fn shown(&self, key: &InterfaceKey) -> Option<GuestLink> {
        let up = self.guests.get(key)?.shown?;
        Some(if up { GuestLink::Up } else { GuestLink::Down })
    }

    /// When [`Self::turn`] is due even if nothing happens.
    pub(super) fn next_turn(&self) -> Option<Instant> {
        self.due
    }

    /// Takes up what helpers have said. Returns whether [`Self::turn`] has something to do.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        while let Some(told) = self.mailbox.take() {
            self.is_telling = false;
            self.is_stale = true;
            self.take(told, now);
        }
        for name in self.arrivals.as_mut().map(Arrivals::take).unwrap_or_default() {
            for (_, guest) in self.guests.iter_mut().filter(|(key, _)| key.guest == name) {
                if guest.shown.is_none() {
                    *guest = Guest { era: guest.era, retry: Some(now + ARRIVED_AFTER), ..Guest::default() };
                    self.is_stale = true;
                }
            }
        }
        self.is_stale || self.due.is_some_and(|at| at <= now)
    }

    /// Tells whom it concerns. `lost`: the vswitches whose wire is down. `guests`: the running guests' interfaces, and where they are.
    pub(super) fn turn(
        &mut self,
        lost: &BTreeSet<String>,
        guests: &BTreeMap<InterfaceKey, String>,
        now: Instant,
    ) {
        self.is_stale = false;
        self.lost.retain(|vswitch, _| lost.contains(vswitch));
        for vswitch in lost {
            self.lost.entry(vswitch.clone()).or_insert(now);
        }
        self.due = self.lost.values().map(|since| *since + SETTLE).filter(|settled| *settled > now).min();
        self.guests.retain(|key, _| guests.contains_key(key));
        if let Some(arrivals) = &mut self.arrivals {
            // Guests' interfaces are next to each other in the map.
            let first = |name: &str| InterfaceKey { guest: name.to_owned(), bus: 0, device: 0 };
            let is_here =
                |name: &str| guests.range(first(name)..).next().is_some_and(|(key, _)| key.guest == name);
            arrivals.retain(is_here);
        }
        let mut errands = Vec::new();
        for (key, vswitch) in guests {
            let up = self.lost.get(vswitch).is_none_or(|since| now < *since + SETTLE);
            let eras = &mut self.eras;
            let guest = self.guests.entry(key.clone()).or_insert_with(|| {
                *eras += 1;
                Guest { era: *eras, ..Guest::default() }
            });
            if guest.absent >= ABSENT_MAX || guest.shown == Some(up) {
                continue;
            }
            match guest.retry.filter(|at| *at > now) {
                Some(at) => self.due = Some(self.due.map_or(at, |due| due.min(at))),
                None => {
                    // Before it is looked for, so that it cannot appear in between.
                    if let Some(arrivals) = &mut self.arrivals {
                        arrivals.watch(&key.guest, &self.run_dir.join("guests").join(&key.guest));
                    }
                    errands.push(Errand { key: key.clone(), era: guest.era, up });
                }
            }
        }
        if !self.is_telling && !errands.is_empty() {
            self.tell(errands);
        }
    }

    fn tell(&mut self, mut errands: Vec<Errand>) {
        let mut vmms = 0;
        let mut last = "";
        let others = errands.iter().position(|errand| {
            vmms += usize::from(errand.key.guest != last);
            last = &errand.key.guest;
            vmms > PER_JOB
        });
        // The others' turn comes when these have answered.
        errands.truncate(others.unwrap_or(errands.len()));
        self.is_telling = true;
        let (reply, run_dir) = (self.mailbox.reply(), self.run_dir.clone());
        self.helpers.run(move || {
            let told =
                errands.chunk_by(|a, b| a.key.guest == b.key.guest).flat_map(|of_one| tell(&run_dir, of_one));
            reply.send(told.collect());
        });
    }

    fn take(&mut self, told: Vec<Told>, now: Instant) {
        let mut changed = BTreeMap::new();
        for Told { key, era, up, result } in told {
            let Some(guest) = self.guests.get_mut(&key).filter(|guest| guest.era == era) else { continue };
            match result {
                Ok(()) => {
                    // That a new guest's link is up is no news.
                    if guest.shown.is_some() || !up {
                        *changed.entry(up).or_insert(0) += 1;
                    }
                    *guest = Guest { era, shown: Some(up), ..Guest::default() };
                }
                // When it opens one, the kernel says so.
                Err(Refused::Missing) if self.arrivals.as_ref().is_some_and(|a| a.watches(&key.guest)) => {
                    guest.absent = ABSENT_MAX;
                }
                Err(Refused::Missing | Refused::Deaf) => {
                    guest.absent += 1;
                    guest.retry = Some(now + RETRY_AFTER);
                }
                Err(Refused::Failed(why)) => {
                    guest.retry = Some(now + RETRY_AFTER);
                    if guest.said != why {
                        let device = device(&key);
                        tracing::warn!(
                            "{key}: its VMM cannot be told its link's state: {why}; {SOCKET} is for the switch, and the device has to have id={device}"
                        );
                        guest.said = why;
                    }
                }
            }
        }
        for (up, interfaces) in changed {
            tracing::info!(
                "link {}: told to {interfaces} interfaces of guests",
                if up { "up" } else { "down" }
            );
        }
    }
}

/// Tells one VMM about its interfaces. Blocks.
fn tell(run_dir: &Path, errands: &[Errand]) -> Vec<Told> {
    let path = run_dir.join("guests").join(&errands[0].key.guest).join(SOCKET);
    let mut vmm = Vmm::connect(&path, PATIENCE);
    let mut one = |errand: &Errand| {
        let result = match &mut vmm {
            Ok(vmm) => vmm.set_link(&device(&errand.key), errand.up),
            Err(refused) => Err(refused.clone()),
        };
        Told { key: errand.key.clone(), era: errand.era, up: errand.up, result }
    };
    errands.iter().map(&mut one).collect()
}

/// What its VMM calls an interface.
fn device(key: &InterfaceKey) -> String {
    format!("net-{}-{}", key.bus, key.device)
}

#[cfg(test)]
mod tests;
