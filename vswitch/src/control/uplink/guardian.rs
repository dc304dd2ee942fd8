//! Puts the features of network devices back, however this process ends.
//!
//! What ethtool changes stays when the one who changed it is killed, so a process of its own remembers it: it is told what a device was like
//! before we change it, and when our end of the pipe closes (we ended, or were killed) it sets that again. It does nothing else, and ends then.

use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::offloads::SwitchedOn;
use crate::port::xdp::{LinkFeatures, features, set_features};

/// What the log calls it.
const WHO: &str = "the process that puts offloads of network devices back";
/// The hidden argument that makes the program a guardian.
pub const ARGUMENT: &str = "--guard-devices";

/// What [`Guardian::claim`] has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claimed {
    /// In force for good.
    pub left: LinkFeatures,
    /// Off now, and on again later.
    pub switched_off: LinkFeatures,
}

/// Our end. Dropping it restores everything and waits until that is done. Somebody may kill the guardian (a memory shortage, an operator): it is started
/// again, and told anew what it knew.
#[derive(Debug, Default)]
pub struct Guardian {
    child: Option<Child>,
    /// How devices were that are ours now.
    told: Vec<(u32, LinkFeatures)>,
}

impl Guardian {
    /// Switches off what changes frames of interface number `device` on their way to us, after the guardian was told how to undo it.
    /// Returns what became of it. Helper thread.
    ///
    /// # Errors
    /// What the system says.
    pub fn claim(&mut self, device: u32) -> io::Result<Claimed> {
        let before = features(device)?;
        if self.told.iter().all(|(known, _)| *known != device) {
            self.told.push((device, before.requested));
        }
        // Also where there is nothing to switch off: somebody may switch it on.
        self.tell(&line_of((device, before.requested)))?;
        if before.active.is_none() && before.requested.is_none() {
            return Ok(Claimed::default());
        }
        let left = set_features(device, LinkFeatures::NONE)?;
        Ok(Claimed { left, switched_off: before.active.without(left) })
    }

    /// Switches off again what of `minded` somebody has switched on since the device was claimed. `None`: there is none, or the device is not ours any more.
    /// Helper thread.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn insist(&mut self, device: u32, minded: LinkFeatures) -> io::Result<Option<SwitchedOn>> {
        if self.told.iter().all(|(known, _)| *known != device) {
            return Ok(None);
        }
        let active = features(device)?.active;
        let on = active.within(minded);
        if on.is_none() {
            return Ok(None);
        }
        let left = set_features(device, active.without(minded))?.within(minded);
        Ok(Some(SwitchedOn { on, left }))
    }

    /// The device is not ours any more: it is as it was when this returns, for whoever claims it next asks how it is. Helper thread.
    pub fn release(&mut self, device: u32) {
        let Some(at) = self.told.iter().position(|(known, _)| *known == device) else { return };
        let (_, before) = self.told[at];
        // A device that is gone needs nothing.
        let _ = set_features(device, before);
        self.told.remove(at);
        if let Err(error) = self.tell(&format!("{device}\n")) {
            tracing::error!("interface {device}: its guardian does not know that it is nobody's: {error}");
        }
    }

    /// Starts a guardian that has died again. Once a second; helper thread.
    pub fn look_after(&mut self) {
        let died = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        let Some(status) = died else { return };
        match self.start() {
            Ok(()) => tracing::warn!("{WHO} has ended ({status}); another one knows what it knew"),
            Err(error) => tracing::error!("{WHO} has ended ({status}), and none can be started: {error}"),
        }
    }

    fn tell(&mut self, line: &str) -> io::Result<()> {
        if self.child.is_some() && self.write(line).is_ok() {
            return Ok(());
        }
        self.start()?;
        self.write(line)
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let pipe = self.child.as_mut().and_then(|child| child.stdin.as_mut());
        pipe.ok_or(io::ErrorKind::BrokenPipe)?.write_all(line.as_bytes())
    }

    /// A guardian that knows what we know, in the place of one that has died.
    fn start(&mut self) -> io::Result<()> {
        if let Some(mut dead) = self.child.take() {
            drop(dead.stdin.take());
            let _ = dead.wait();
        }
        let child = Command::new("/proc/self/exe")
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Not of our group, so that what the terminal sends us does not reach it.
            .process_group(0)
            .spawn()?;
        self.child = Some(child);
        let all: String = self.told.iter().copied().map(line_of).collect();
        self.write(&all)
    }
}

/// What a guardian is told of a device.
fn line_of((device, before): (u32, LinkFeatures)) -> String {
    format!("{device} {}\n", before.bits())
}

impl Drop for Guardian {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

/// The guardian's whole life. A line has a device's number and how it was (the first word about a device counts), or
/// its number alone: it has been restored. Numbers, because a device can be renamed; one that was moved to another namespace is out of reach.
pub fn run() {
    let mut known: Vec<(u32, LinkFeatures)> = Vec::new();
    // The service manager ends a service by signals to all its processes; ours ends by the pipe.
    let _ = avio_host::signals::Signals::install();
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let mut words = line.split(' ').map(str::parse::<u32>);
        let Some(Ok(device)) = words.next() else { continue };
        let Some(Ok(bits)) = words.next() else {
            known.retain(|(number, _)| *number != device);
            continue;
        };
        if known.iter().all(|(number, _)| *number != device) {
            known.push((device, LinkFeatures::from_bits(bits as u8)));
        }
    }
    for (device, before) in known {
        // A device that is gone needs nothing.
        let _ = set_features(device, before);
    }
}
