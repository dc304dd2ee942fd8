//! From a definition to an open LUN: what is opened, as whom it presents itself, what was left by a predecessor.
//!
//! [`open`] runs on helper threads and at start-up; everything else is a pure function.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avio_proto::config::{BackingCache, BackingSpec, LunConfig, LunDevice};

use super::adapter::AdapterLun;
use super::journal;
use super::storage::Absent;
use crate::backing::{Backing, Limits, OpenError, OpenOptions};
use crate::scsi::{DeviceKind, LogicalUnit, NexusName, Profile, SavedState};

/// Whose LUN, and at which target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LunKey {
    pub nexus: NexusName,
    pub target: u8,
}

impl LunKey {
    /// For operators: `guest1 0/4 target 7`.
    pub fn name(&self) -> String {
        format!("{} {}/{} target {}", self.nexus.guest, self.nexus.bus, self.nexus.device, self.target)
    }
}

/// What [`open`] found.
pub(super) struct Opened {
    pub key: LunKey,
    pub config: LunConfig,
    pub spec: BackingSpec,
    /// The backing as the definition names it: in a drive there may be another medium.
    pub defined: String,
    /// `None`: a drive without a medium, or the same backing as another LUN that is open already.
    pub backing: Option<Arc<Backing>>,
    pub saved: Result<SavedState, String>,
    pub journal: PathBuf,
    /// The backing is not there, and the LUN is to be without it until it is.
    pub absent: Option<Absent>,
}

/// Why a LUN could not be opened.
pub(super) struct Unopened {
    /// Which guest, which LUN, what would be right.
    pub line: String,
    /// Another process has its backing, or requests of one that is gone are under way.
    pub is_taken: bool,
}

/// A LUN to be opened.
#[derive(Clone)]
pub(super) struct Wanted {
    pub key: LunKey,
    pub config: LunConfig,
    pub spec: BackingSpec,
    /// A medium that somebody puts into the drive now, whatever was in it before.
    pub inserted: bool,
}

/// The name under which the state of a LUN is kept: shared ones by their backing, others by their place.
pub(super) fn journal_name(key: &LunKey, config: &LunConfig) -> String {
    if config.share {
        format!("shared:{}", config.backing)
    } else {
        format!("{}.{}.{}.{}", key.nexus.guest, key.nexus.bus, key.nexus.device, key.target)
    }
}

/// Opens what a LUN names and reads what a predecessor left of it. May block.
///
/// # Errors
/// [`Unopened`].
pub(super) fn open(wanted: &Wanted, state_dir: &Path, boot: &str) -> Result<Opened, Unopened> {
    let mut opened = prepare(wanted, state_dir, boot);
    let Opened { config, spec, .. } = &opened;
    let options = OpenOptions {
        readonly: config.readonly,
        block_size: config.block_size,
        writes_through: config.cache.map(|cache| cache == BackingCache::Writethrough),
        dvd: config.device == LunDevice::Dvd,
    };
    if *spec != BackingSpec::Empty {
        let refused =
            |e: OpenError| Unopened { line: format!("{}: {e}", wanted.key.name()), is_taken: e.is_taken() };
        opened.backing = Some(Backing::open(spec, &options).map_err(refused)?);
    }
    Ok(opened)
}

/// A LUN without its backing, and what a predecessor left of it. Reads files.
pub(super) fn prepare(wanted: &Wanted, state_dir: &Path, boot: &str) -> Opened {
    let Wanted { key, config, spec, inserted } = wanted;
    let journal = journal::path_of(state_dir, &journal_name(key, config));
    let saved = journal::read(&journal, boot);
    let (defined, mut config, mut spec) = (config.backing.clone(), config.clone(), spec.clone());
    // What is in a drive outlives the process, until the definition names something else.
    let tray = saved.as_ref().ok().filter(|saved| !inserted && saved.backing == defined);
    if let Some(text) = tray.and_then(|saved| saved.tray.as_deref())
        && config.device == LunDevice::Dvd
        && let Ok(now) = BackingSpec::parse(text)
    {
        (config.backing, spec) = (text.to_owned(), now);
    }
    Opened { key: key.clone(), config, spec, defined, backing: None, saved, journal, absent: None }
}

/// Serial number of a LUN that does not say: stable over restarts, another after a replacement.
pub(super) fn serial(key: &LunKey, config: &LunConfig, generation: u64) -> String {
    let base = config.serial.clone().unwrap_or_else(|| {
        let name = if config.share { config.backing.clone() } else { journal_name(key, config) };
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        format!("AVIO{:012X}", hash >> 16)
    });
    if generation == 0 { base } else { format!("{base}-{generation}") }
}

/// The logical unit of a LUN.
pub(super) fn unit(
    config: &LunConfig,
    serial: &str,
    limits: &Limits,
    size_bytes: u64,
    saved: SavedState,
) -> LogicalUnit {
    let dvd = config.device == LunDevice::Dvd;
    let profile = Profile {
        kind: if dvd { DeviceKind::Dvd } else { DeviceKind::Disk },
        serial: serial.to_owned(),
        identity: serial.to_owned(),
        block_size: limits.block_size,
        physical_block_size: limits.physical_block_size,
        // A guest that may not write is told by its own adapter; others may.
        readonly: limits.readonly,
        volatile_cache: limits.volatile_cache,
        rotational: limits.rotational,
        unmaps: limits.discards && !limits.readonly,
        unmapped_is_zero: limits.discards_read_zeroes,
    };
    LogicalUnit::new(profile, size_bytes / u64::from(limits.block_size), saved)
}

/// Limits of a drive without a medium.
pub(super) const EMPTY_DRIVE: Limits = Limits {
    block_size: 2048,
    physical_block_size: 2048,
    memory_align: 1,
    readonly: true,
    volatile_cache: false,
    rotational: false,
    discards: false,
    discards_read_zeroes: false,
};

/// Takes over what a changed definition can change while the LUN is there; with another backing that is all of it. Lines about
/// what changed, and about what did not.
pub(super) fn follow(name: &str, entry: &mut AdapterLun, to: &LunConfig, replaced: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if entry.config.timeout_s != to.timeout_s {
        entry.config.timeout_s = to.timeout_s;
        lines.push(format!("{name}: timeout_s changed"));
    }
    let is_opened_readonly = entry.backing.as_ref().is_some_and(|backing| backing.limits().readonly);
    let mut later = Vec::new();
    if replaced {
        let backing = std::mem::take(&mut entry.config.backing);
        entry.config = LunConfig { backing, ..to.clone() };
        return lines;
    }
    match (entry.config.readonly, to.readonly) {
        (true, false) if is_opened_readonly => later.push("readonly"),
        (from, now) if from != now => {
            entry.config.readonly = now;
            lines.push(format!("{name}: {}", if now { "read-only now" } else { "may be written now" }));
        }
        _ => {}
    }
    let is = &entry.config;
    later.extend(
        [
            ("block_size", is.block_size != to.block_size),
            ("cache", is.cache != to.cache),
            ("device", is.device != to.device),
            ("serial", is.serial != to.serial),
            ("share", is.share != to.share),
        ]
        .iter()
        .filter(|(_, changed)| *changed)
        .map(|(key, _)| *key),
    );
    if !later.is_empty() {
        let (keys, s) = (later.join(", "), if later.len() == 1 { "s" } else { "" });
        lines.push(format!("{name}: {keys} take{s} effect when the daemon starts the next time"));
    }
    lines
}
