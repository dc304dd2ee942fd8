//! When a VMM opens its control socket: watches over the guests' folders (inotify), so that one that has none is not looked for again and again.
//!
//! Used by [`super::LinkStatus`] on the control thread; reads only what the kernel has ready. Says that a socket is there, never that somebody listens.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use rustix::io::Errno;

use super::SOCKET;

/// Events that are read per turn: who makes files in a guest's folder without end costs no more than these.
const EVENTS_PER_TURN: usize = 64;
/// Room for some events: sixteen bytes and a name each.
const BUFFER_LEN: usize = 4096;

/// See the module.
pub(super) struct Arrivals {
    inotify: OwnedFd,
    /// Watch descriptor by guest.
    watches: BTreeMap<String, i32>,
}

impl Arrivals {
    /// Nobody is watched yet. `None`: the host has no room for one more watcher; VMMs are then looked for a few times.
    pub(super) fn new() -> Option<Self> {
        match init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) {
            Ok(inotify) => Some(Self { inotify, watches: BTreeMap::new() }),
            Err(error) => {
                tracing::warn!("control sockets of VMMs are looked for, not waited for: inotify: {error}");
                None
            }
        }
    }

    /// Readable when a socket may have appeared.
    pub(super) fn fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }

    /// Watches `folder` of `guest` from now on, if there is such a folder and room for one more watch. It costs a system call once.
    pub(super) fn watch(&mut self, guest: &str, folder: &Path) {
        if !self.watches(guest) {
            let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
            if let Ok(watch) = add_watch(&self.inotify, folder, flags) {
                self.watches.insert(guest.to_owned(), watch);
            }
        }
    }

    /// Whether it is watched.
    pub(super) fn watches(&self, guest: &str) -> bool {
        self.watches.contains_key(guest)
    }

    /// Watches those guests only of which `is_here` holds.
    pub(super) fn retain(&mut self, is_here: impl Fn(&str) -> bool) {
        let inotify = &self.inotify;
        self.watches.retain(|guest, watch| {
            let stays = is_here(guest);
            if !stays {
                // Its folder may be gone, and the watch with it.
                let _ = remove_watch(inotify, *watch);
            }
            stays
        });
    }

    /// The guests in whose folder a socket has appeared since the last call.
    pub(super) fn take(&mut self) -> Vec<String> {
        let mut arrived = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); BUFFER_LEN];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        for _ in 0..EVENTS_PER_TURN {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => break,
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                arrived.extend(self.watches.keys().cloned());
            }
            let named = |watch: i32| self.watches.iter().find(|(_, known)| **known == watch);
            let Some(guest) = named(event.wd()).map(|(guest, _)| guest.clone()) else { continue };
            if event.events().contains(ReadFlags::IGNORED) {
                // The folder is gone.
                self.watches.remove(&guest);
            } else if event.file_name().is_some_and(|name| name.to_bytes() == SOCKET.as_bytes()) {
                arrived.push(guest);
            }
        }
        arrived
    }
}
