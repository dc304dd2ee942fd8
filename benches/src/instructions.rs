//! Instructions per frame and per request: a figure that a noisy machine does not change, so that CI sees a regression.
//!
//! `avio-instructions check` runs each path of [`PATHS`] under callgrind and compares with `benches/instructions.toml`;
//! `avio-instructions update` writes that file. Only what runs inside `measured_part` counts: the work of the switch or of the
//! disk's worker, not the guests' and not the kernel's. Called by that program and by the test of this crate.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use avio_proto::virtio::features::{IN_ORDER, NET_MRG_RXBUF, RING_PACKED, VERSION_1};
use avio_proto::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC};
use avio_storage::adapter::AdapterKind;
use serde::Deserialize;

use crate::ends::Ends;
use crate::rig::{self, Rig, Shape};
use crate::storage_rig::{self, StorageRig, Store};

/// More than this over the baseline fails.
pub const RISE_MAX: f64 = 0.05;
/// Rounds under callgrind: the count is exact, so a few are enough; the first ones warm the caches of look-ups.
const ROUNDS: usize = 64;
/// Rounds before that, not counted.
const WARMUP_ROUNDS: usize = 16;

const SPLIT: u64 = VERSION_1 | NET_MRG_RXBUF;

/// Split rings as Linux's drivers use them, but for indirect tables.
const CHAINS: u64 = VERSION_1 | RING_EVENT_IDX;
/// With them.
const TABLES: u64 = CHAINS | RING_INDIRECT_DESC;

/// What a path carries, and how its rig is built.
#[derive(Clone, Copy, Debug)]
enum Cargo {
    /// Frames through the switch.
    Frames(Shape),
    /// Requests to a disk.
    Requests(storage_rig::Shape),
    /// One step alone, on a ring of these features.
    Step(Step, u64),
}

/// A step of the data path that can be done alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The walk of a ring.
    Walk,
    /// The publication of what was taken from it.
    Publish,
    /// Copies of so many bytes from one buffer to another.
    Copy(usize),
}

/// A path whose instructions are counted.
#[derive(Clone, Copy, Debug)]
pub struct PathCase {
    /// Its key in the baseline.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    cargo: Cargo,
}

const fn frames(name: &'static str, what: &'static str, shape: Shape) -> PathCase {
    PathCase { name, what, cargo: Cargo::Frames(shape) }
}

const fn step(name: &'static str, what: &'static str, step: Step, features: u64) -> PathCase {
    PathCase { name, what, cargo: Cargo::Step(step, features) }
}

const fn reads(name: &'static str, what: &'static str, adapter: AdapterKind, features: u64) -> PathCase {
    let shape = storage_rig::Shape { adapter, features, store: Store::Null, writes: false, luns: 1 };
    PathCase { name, what, cargo: Cargo::Requests(shape) }
}

const fn stored(name: &'static str, what: &'static str, store: Store, writes: bool) -> PathCase {
    let shape = storage_rig::Shape { adapter: AdapterKind::Blk, features: TABLES, store, writes, luns: 1 };
    PathCase { name, what, cargo: Cargo::Requests(shape) }
}

/// All paths.
pub const PATHS: &[PathCase] = &[
    frames("split-64", "64 B, split, mergeable", Shape::new(SPLIT, 64)),
    frames("split-1518", "1518 B, split, mergeable: a tail is copied", Shape::new(SPLIT, 1518)),
    frames("split-9000", "9000 B, split, mergeable: five buffers a frame", Shape::new(SPLIT, 9000)),
    frames("split-nomrg-64", "64 B, split", Shape::new(VERSION_1, 64)),
    frames("packed-64", "64 B, packed, mergeable", Shape::new(SPLIT | RING_PACKED, 64)),
    frames("packed-inorder-64", "64 B, packed, in-order", Shape::new(VERSION_1 | RING_PACKED | IN_ORDER, 64)),
    frames("ports-4096-64", "64 B, 4,096 addresses", Shape { port_count: 4096, ..Shape::new(SPLIT, 64) }),
    frames(
        "decision-64",
        "64 B for an address that nobody has: ring walk, snapshot, guard, look-up",
        Shape { is_known: false, ..Shape::new(SPLIT, 64) },
    ),
    frames(
        "guard-ips-64",
        "64 B, ports name their addresses: the whole guard instead of the short one",
        Shape { names_ips: true, ..Shape::new(SPLIT, 64) },
    ),
    step("walk-split", "Walk of a split ring alone, chains of one descriptor", Step::Walk, SPLIT),
    step("walk-packed", "The same, packed", Step::Walk, SPLIT | RING_PACKED),
    step("publish-split", "Publication of what was taken from a split ring", Step::Publish, SPLIT),
    step("publish-packed", "The same, packed", Step::Publish, SPLIT | RING_PACKED),
    step("copy-64", "Copy of 64 bytes from guest memory to guest memory", Step::Copy(64), SPLIT),
    step("copy-256", "The same, 256 bytes: the longest that is copied inline", Step::Copy(256), SPLIT),
    frames(
        "pairs-4-64",
        "64 B, four queue pairs, one worker",
        Shape { pair_count: 4, ..Shape::new(SPLIT, 64) },
    ),
    frames(
        "pairs-4-workers-2-64",
        "64 B, four queue pairs, two workers",
        Shape { pair_count: 4, worker_count: 2, ..Shape::new(SPLIT, 64) },
    ),
    reads("blk-split", "avio_blk, null, read 4 KiB, split, chains", AdapterKind::Blk, CHAINS),
    reads("blk-indirect", "avio_blk, null, read 4 KiB, split, indirect", AdapterKind::Blk, TABLES),
    reads("blk-packed", "avio_blk, null, read 4 KiB, packed, chains", AdapterKind::Blk, CHAINS | RING_PACKED),
    reads(
        "blk-packed-indirect",
        "avio_blk, null, read 4 KiB, packed, indirect",
        AdapterKind::Blk,
        TABLES | RING_PACKED,
    ),
    reads("stor-split", "avio_stor, null, READ(10) of 4 KiB, split, chains", AdapterKind::Scsi, CHAINS),
    reads("stor-indirect", "avio_stor, null, READ(10) of 4 KiB, split, indirect", AdapterKind::Scsi, TABLES),
    reads(
        "stor-packed",
        "avio_stor, null, READ(10) of 4 KiB, packed, chains",
        AdapterKind::Scsi,
        CHAINS | RING_PACKED,
    ),
    reads(
        "stor-packed-indirect",
        "avio_stor, null, READ(10) of 4 KiB, packed, indirect",
        AdapterKind::Scsi,
        TABLES | RING_PACKED,
    ),
    PathCase {
        name: "stor-128-luns",
        what: "The same as stor-indirect, to 128 LUNs in turn",
        cargo: Cargo::Requests(storage_rig::Shape {
            adapter: AdapterKind::Scsi,
            features: TABLES,
            store: Store::Null,
            writes: false,
            luns: 128,
        }),
    },
    stored("blk-memory-read", "avio_blk, memory, read 4 KiB, indirect, its copy too", Store::Memory, false),
    stored("blk-memory-write", "avio_blk, memory, write 4 KiB, indirect, its copy too", Store::Memory, true),
    stored(
        "blk-file-read",
        "avio_blk, file on tmpfs, read 4 KiB, indirect, without the kernel",
        Store::File,
        false,
    ),
];

/// What is driven round by round.
trait Rounds {
    fn offer(&mut self);
    fn work(&mut self) -> usize;
    fn collect(&mut self);
}

impl Rounds for Rig {
    fn offer(&mut self) {
        self.offer();
    }

    fn work(&mut self) -> usize {
        self.forward()
    }

    fn collect(&mut self) {
        self.collect();
    }
}

impl Rounds for StorageRig {
    fn offer(&mut self) {
        self.offer();
    }

    fn work(&mut self) -> usize {
        self.serve()
    }

    fn collect(&mut self) {
        self.collect();
    }
}

/// A ring on which one step counts.
struct Alone {
    ends: Ends,
    step: Step,
}

impl Rounds for Alone {
    fn offer(&mut self) {
        self.ends.offer(false);
        if self.step != Step::Walk {
            self.ends.walk();
        }
    }

    fn work(&mut self) -> usize {
        match self.step {
            Step::Walk => self.ends.walk(),
            Step::Publish => {
                self.ends.publish();
                rig::BATCH
            }
            Step::Copy(len) => {
                let (from, to) = self.ends.pieces(len);
                let copy = |_: &usize| black_box(to).copy_from_guest(&black_box(from)) == len;
                (0..rig::BATCH).filter(copy).count()
            }
        }
    }

    fn collect(&mut self) {
        if self.step != Step::Publish {
            self.ends.publish();
        }
        self.ends.collect();
    }
}

impl PathCase {
    fn rig(&self) -> Box<dyn Rounds> {
        match self.cargo {
            Cargo::Frames(shape) => Box::new(Rig::new(shape)),
            Cargo::Requests(shape) => Box::new(StorageRig::new(shape)),
            Cargo::Step(step, features) => Box::new(Alone { ends: Ends::new(features), step }),
        }
    }

    /// Frames or requests in the counted rounds.
    fn count(&self) -> usize {
        let round = match self.cargo {
            Cargo::Frames(shape) => rig::BATCH * usize::from(shape.pair_count),
            Cargo::Requests(_) => storage_rig::BATCH,
            Cargo::Step(..) => rig::BATCH,
        };
        round * ROUNDS
    }

    fn unit(&self) -> &'static str {
        match self.cargo {
            Cargo::Frames(_) => "frame",
            Cargo::Requests(_) => "request",
            Cargo::Step(Step::Copy(_), _) => "copy",
            Cargo::Step(..) => "chain",
        }
    }
}

/// What is counted of the path called `name`.
#[must_use]
pub fn unit(name: &str) -> &'static str {
    PATHS.iter().find(|case| case.name == name).map_or("frame", PathCase::unit)
}

/// What callgrind counts: nothing of the guests, nothing of the set-up.
#[inline(never)]
fn measured_part(rig: &mut dyn Rounds) -> usize {
    // Not the last thing this function does, so that it stays a call with a return.
    black_box(rig.work())
}

/// Runs one path; the program does it under callgrind. Returns the frames or requests that were done in the counted rounds.
#[must_use]
pub fn run(case: &PathCase) -> usize {
    let mut rig = case.rig();
    let mut done = 0;
    for round in 0..WARMUP_ROUNDS + ROUNDS {
        rig.offer();
        if round < WARMUP_ROUNDS {
            rig.work();
        } else {
            done += measured_part(&mut *rig);
        }
        rig.collect();
    }
    done
}

/// The committed figures.
#[derive(Clone, Debug, Deserialize)]
pub struct Baseline {
    /// Compiler that they were taken with.
    pub rustc: String,
    /// Instructions per frame or request, by path.
    pub instructions: BTreeMap<String, f64>,
}

impl Baseline {
    /// Where it stands.
    #[must_use]
    pub fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.toml")
    }

    /// Reads it.
    ///
    /// # Errors
    /// One line.
    pub fn read() -> Result<Self, String> {
        let path = Self::path();
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// Counts one path with `program`, which is `avio-instructions`, under callgrind.
///
/// # Errors
/// One line: valgrind is missing, or says something unexpected.
pub fn count(program: &Path, case: &PathCase) -> Result<f64, String> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*measured_part*"])
        .arg(program)
        .args(["run", case.name])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| {
            format!("valgrind: {e}: run 'scripts/install-test-deps' or 'apt-get install valgrind'")
        })?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{} under valgrind: {}: {said}", case.name, output.status));
    }
    let total = said
        .lines()
        .find_map(|line| line.split("Collected :").nth(1))
        .and_then(|n| n.trim().parse::<f64>().ok())
        .filter(|&n| n > 0.0)
        .ok_or_else(|| format!("{}: callgrind counted nothing: {said}", case.name))?;
    Ok(total / case.count() as f64)
}

/// Counts all paths.
///
/// # Errors
/// As [`count`].
pub fn count_all(program: &Path) -> Result<BTreeMap<String, f64>, String> {
    PATHS.iter().map(|case| Ok((case.name.to_owned(), count(program, case)?))).collect()
}

/// What rose too far, one line each; what the baseline lacks, too. Empty: all is well.
#[must_use]
pub fn compare(baseline: &Baseline, now: &BTreeMap<String, f64>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, &count) in now {
        let unit = unit(name);
        match baseline.instructions.get(name) {
            None => lines.push(format!("{name}: {count:.1} instructions per {unit}, not in the baseline")),
            Some(&before) if count > before * (1.0 + RISE_MAX) => lines.push(format!(
                "{name}: {count:.1} instructions per {unit}, {:+.1} % over the baseline of {before:.1} ({})",
                (count / before - 1.0) * 100.0,
                baseline.rustc
            )),
            Some(_) => {}
        }
    }
    let gone = baseline.instructions.keys().filter(|name| !now.contains_key(*name));
    lines.extend(gone.map(|name| format!("{name}: in the baseline, but no such path is measured")));
    lines
}

/// The baseline file for these figures.
#[must_use]
pub fn to_toml(rustc: &str, now: &BTreeMap<String, f64>) -> String {
    let mut text = format!(
        "# Instructions per frame of the switch's part of each path, and per request of a disk's worker's, counted by callgrind.\n\
         # `make test` fails when one rises by more than {:.0} %. Written by `make instructions-update`; commit it with the change that explains it.\n\
         rustc = \"{rustc}\"\n\n[instructions]\n",
        RISE_MAX * 100.0
    );
    for case in PATHS {
        if let Some(count) = now.get(case.name) {
            let _ = writeln!(text, "# {}\n{} = {count:.1}", case.what, case.name);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(list: &[(&str, f64)]) -> BTreeMap<String, f64> {
        list.iter().map(|&(name, n)| (name.to_owned(), n)).collect()
    }

    #[test]
    fn a_rise_of_more_than_five_percent_is_told_and_a_fall_is_not() {
        let baseline = Baseline {
            rustc: "1.0".into(),
            instructions: figures(&[("a", 100.0), ("b", 100.0), ("c", 100.0)]),
        };
        assert!(compare(&baseline, &figures(&[("a", 104.9), ("b", 50.0), ("c", 100.0)])).is_empty());
        let told = compare(&baseline, &figures(&[("a", 105.1), ("b", 100.0), ("d", 1.0)]));
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("+5.1 %"), "{told:?}");
    }

    #[test]
    fn the_file_says_what_was_counted() {
        let now: BTreeMap<String, f64> = PATHS.iter().map(|c| (c.name.to_owned(), 123.4)).collect();
        let back: Baseline = toml::from_str(&to_toml("rustc 1.88", &now)).unwrap();
        assert_eq!((back.rustc.as_str(), back.instructions), ("rustc 1.88", now));
    }

    #[test]
    fn every_path_runs_and_delivers_what_it_should() {
        for case in PATHS {
            assert_eq!(run(case), case.count(), "{}", case.name);
        }
    }
}
