//! What a daemon serves, written down for its successor: which store each LUN has, and which process is its guest's VMM.
//!
//! The control thread writes it whenever that changes, through the journal's thread; a start reads it. From it a start knows
//! a backing that was there before from one that never was, and whether a guest is there that knows another store.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::journal;
use super::lun::LunKey;
use crate::scsi::NexusName;

/// The format of [`Served`].
const FORMAT: u32 = 1;

/// A guest's VMM: a process, and when it was started, because numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FrontEnd {
    /// 0: not known.
    pid: i32,
    /// In clock ticks after the host's start (proc_pid_stat(5)).
    started: u64,
}

impl FrontEnd {
    /// The process of this number, if that is known.
    pub fn of(pid: Option<i32>) -> Self {
        let found = pid.and_then(|pid| Some(Self { pid, started: started(pid)? }));
        found.unwrap_or(Self { pid: 0, started: 0 })
    }

    /// Whether it still runs; one that is not known is taken for one that does.
    pub fn is_there(self) -> bool {
        self.pid == 0 || started(self.pid) == Some(self.started)
    }
}

/// When a process was started; `None` if there is none, or nothing is left of it but its number.
fn started(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold any of them; the state is the third field, the start the twenty-second.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
    let is_over = matches!(*fields.first()?, "Z" | "X");
    (!is_over).then(|| fields.get(19)?.parse().ok())?
}

/// A store as a guest knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Store {
    /// As its definition names it.
    pub backing: String,
    pub serial: String,
    pub size_bytes: u64,
    pub block_size: u32,
}

/// An adapter as it was served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServedAdapter {
    pub nexus: NexusName,
    /// `None`: no guest was there.
    pub front_end: Option<FrontEnd>,
    /// By target.
    pub luns: BTreeMap<u8, Store>,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Served {
    pub format: u32,
    /// At which start of the host.
    pub boot: String,
    pub adapters: Vec<ServedAdapter>,
}

impl Served {
    pub fn new(boot: &str, adapters: Vec<ServedAdapter>) -> Self {
        Self { format: FORMAT, boot: boot.to_owned(), adapters }
    }

    /// Where it is kept.
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("stord").join("served.json")
    }

    /// Replaces the file; on return it is durable.
    ///
    /// # Errors
    /// What the file system said.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        journal::replace(path, &serde_json::to_vec(self)?)
    }
}

/// What a start knows of the daemon before it.
pub(super) struct Before {
    /// `None`: it left nothing, or nothing that can be read.
    served: Option<Served>,
    /// It ran since the host started.
    pub follows: bool,
}

impl Before {
    /// Reads what a predecessor left.
    pub fn read(state_dir: &Path, boot: &str) -> Self {
        let path = Served::path(state_dir);
        let parsed = |bytes: Vec<u8>| {
            let served: Served = serde_json::from_slice(&bytes)?;
            Ok(Some(served).filter(|served| served.format <= FORMAT))
        };
        let served = match fs::read(&path) {
            Ok(bytes) => parsed(bytes).unwrap_or_else(|error: serde_json::Error| {
                tracing::error!(
                    "{}: {error}; replacements while the daemon was down go unnoticed",
                    path.display()
                );
                None
            }),
            Err(_) => None,
        };
        let same_boot = |of: &str| !boot.is_empty() && of == boot;
        let follows = match &served {
            Some(served) => same_boot(&served.boot),
            None => journal::noted_boot(state_dir).is_some_and(|of| same_boot(&of)),
        };
        Self { served, follows }
    }

    /// The store that a LUN had.
    pub fn store(&self, key: &LunKey) -> Option<&Store> {
        self.adapter(&key.nexus)?.luns.get(&key.target)
    }

    /// Whether a LUN's backing was open before. A release that wrote nothing down had all that it started with.
    pub fn had(&self, key: &LunKey, backing: &str) -> bool {
        match &self.served {
            Some(_) => self.store(key).is_some_and(|store| store.backing == backing),
            None => self.follows,
        }
    }

    /// The guest that was there and still is.
    pub fn guest(&self, nexus: &NexusName) -> Option<FrontEnd> {
        let front_end = self.adapter(nexus)?.front_end?;
        (self.follows && front_end.is_there()).then_some(front_end)
    }

    fn adapter(&self, nexus: &NexusName) -> Option<&ServedAdapter> {
        self.served.as_ref()?.adapters.iter().find(|adapter| adapter.nexus == *nexus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_there_until_it_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let front_end = FrontEnd::of(Some(child.id() as i32));
        assert!(front_end.pid != 0 && front_end.is_there());
        assert!(
            !FrontEnd { started: front_end.started + 1, ..front_end }.is_there(),
            "another of that number"
        );
        child.kill().unwrap();
        // Dead and not waited for: nothing is left but the number.
        while front_end.is_there() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!front_end.is_there());
        assert!(FrontEnd::of(None).is_there(), "who is not known may be there");
    }

    #[test]
    fn what_was_served_is_read_by_the_next() {
        let folder = std::env::temp_dir().join(format!("avio-served-{}", std::process::id()));
        let nexus = NexusName { guest: "g1".into(), bus: 0, device: 4 };
        let key = LunKey { nexus: nexus.clone(), target: 3 };
        let nothing = Before::read(&folder, "b1");
        assert!(!nothing.follows && !nothing.had(&key, "file:/a") && nothing.guest(&nexus).is_none());
        let store = Store { backing: "file:/a".into(), serial: "S".into(), size_bytes: 512, block_size: 512 };
        let own = FrontEnd::of(Some(std::process::id() as i32));
        let adapter = ServedAdapter {
            nexus: nexus.clone(),
            front_end: Some(own),
            luns: BTreeMap::from([(3, store.clone())]),
        };
        Served::new("b1", vec![adapter]).write(&Served::path(&folder)).unwrap();
        let before = Before::read(&folder, "b1");
        assert!(before.follows && before.had(&key, "file:/a") && !before.had(&key, "file:/b"));
        assert_eq!((before.store(&key), before.guest(&nexus)), (Some(&store), Some(own)));
        let after_boot = Before::read(&folder, "b2");
        assert!(!after_boot.follows && after_boot.had(&key, "file:/a") && after_boot.guest(&nexus).is_none());
        fs::write(Served::path(&folder), "{").unwrap();
        assert!(!Before::read(&folder, "b1").had(&key, "file:/a"));
        fs::remove_dir_all(folder).unwrap();
    }
}
