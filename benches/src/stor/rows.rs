//! The rows of the report: which load on which backing, which targets, and what must be reached.
//!
//! The grid is every load of [`LOADS`] on every backing of [`GRID`], each with three sets of targets: one queue and one LUN, two
//! queues, 128 LUNs. Loads with a goal and those that ask something else stand among them.

use super::options::Options;
use super::target::{Luns, Target, Way};

/// What is behind the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: `null:`, null-co.
    Null,
    /// Memory: `memory:`, a file on tmpfs.
    Memory,
    /// A file on the disk's file system.
    File,
    /// A loop device over such a file, with this logical block.
    Loop(u32),
    /// A compressed memory disk, native 4 KiB blocks.
    Zram,
    /// A file on ext4 on such a disk, all zeroes, which it keeps without compressing them: a disk that is as fast as memory.
    ZramFile,
}

impl Backing {
    /// Whether the kernel does the I/O.
    pub fn is_kernels(self) -> bool {
        !matches!(self, Backing::Null | Backing::Memory)
    }

    /// For rows' names.
    fn key(self) -> &'static str {
        match self {
            Backing::Null => "null",
            Backing::Memory => "memory",
            Backing::File => "file",
            Backing::Loop(512) => "loop512",
            Backing::Loop(_) => "loop4096",
            Backing::Zram => "zram",
            Backing::ZramFile => "zramfile",
        }
    }

    /// For people.
    pub fn title(self) -> String {
        match self {
            Backing::Loop(block) => format!("loop {block}"),
            Backing::ZramFile => "file on zram".to_owned(),
            other => other.key().to_owned(),
        }
    }

    /// Whether it is a loop device.
    pub fn is_loop(self) -> bool {
        matches!(self, Backing::Loop(_))
    }

    /// Whether it is a file.
    pub fn is_file(self) -> bool {
        matches!(self, Backing::File | Backing::ZramFile)
    }

    /// Whether it holds zeroes, and is to be written nothing else.
    pub fn is_zeroes(self) -> bool {
        matches!(self, Backing::Zram | Backing::ZramFile)
    }
}

/// What is read off a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Thousands of requests a second.
    Kiops,
    /// Median latency, us.
    P50,
    /// CPU seconds of the target per million requests.
    Cpu,
}

impl Metric {
    /// With its unit.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Kiops => "kIOPS",
            Metric::P50 => "p50 us",
            Metric::Cpu => "CPU-s per 1 M",
        }
    }
}

/// A bound on our figure against a peer's.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// At least so many times the peer's.
    AtLeast(f64),
    /// At most so many times the peer's.
    AtMost(f64),
    /// At most so much more than the peer's, in the metric's unit.
    Added(f64),
}

/// One bound.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Ours.
    pub ours: Target,
    /// The peer.
    pub peer: Target,
    /// Which figure.
    pub metric: Metric,
    /// The bound.
    pub bound: Bound,
}

/// What belongs together in the grid, and shares processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// One queue, one LUN.
    One,
    /// Two queues, each with the load's depth; one worker.
    Queues,
    /// 128 LUNs beside one.
    Luns,
    /// Guests that sleep.
    Asleep,
}

impl Set {
    /// All that the grid has.
    pub const GRID: [Set; 3] = [Set::One, Set::Queues, Set::Luns];

    /// Behind a backing's name, for people.
    pub fn title(self) -> &'static str {
        match self {
            Set::One => "",
            Set::Queues => ", two queues",
            Set::Luns => ", 1 and 128 LUNs",
            Set::Asleep => ", guest sleeps",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Set::One => "",
            Set::Queues => "-queues",
            Set::Luns => "-luns",
            Set::Asleep => "-asleep",
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// For names, with the depth behind it.
    key: &'static str,
    /// Pattern, in fio's words.
    pub rw: &'static str,
    /// Bytes of a request.
    pub block: u64,
    /// Requests in flight, per queue.
    pub depth: u16,
}

/// Reads in percent of a mixed pattern.
pub const MIX: u32 = 70;

const fn load(key: &'static str, rw: &'static str, block: u64, depth: u16) -> Load {
    Load { key, rw, block, depth }
}

const READ_1: Load = load("read", "randread", 4096, 1);
const READ_32: Load = load("read", "randread", 4096, 32);
const READ_128: Load = load("read", "randread", 4096, 128);
const WRITE_1: Load = load("write", "randwrite", 4096, 1);
const WRITE_32: Load = load("write", "randwrite", 4096, 32);
const WRITE_128: Load = load("write", "randwrite", 4096, 128);
const MIX_32: Load = load("mix", "randrw", 8192, 32);
const SEQ_32: Load = load("seq", "read", 131_072, 32);

/// The loads of the grid.
pub const LOADS: [Load; 8] = [READ_1, READ_32, READ_128, WRITE_1, WRITE_32, WRITE_128, MIX_32, SEQ_32];

/// Its backings.
pub const GRID: [Backing; 6] =
    [Backing::Null, Backing::Memory, Backing::File, Backing::Loop(512), Backing::Loop(4096), Backing::Zram];

impl Load {
    /// For people.
    pub fn title(self) -> String {
        let what = match self.rw {
            "randrw" => format!("{MIX}/{}", 100 - MIX),
            rw => rw.to_owned(),
        };
        format!("{what} {} KiB, QD{}", self.block >> 10, self.depth)
    }
}

/// One load on several targets.
#[derive(Clone, Debug)]
pub struct Row {
    /// For `--only`.
    pub name: String,
    /// For people.
    pub title: String,
    /// What is behind the targets.
    pub backing: Backing,
    /// Who shares processes with it.
    pub set: Set,
    /// What is asked for.
    pub load: Load,
    /// In this order in each round.
    pub targets: Vec<Target>,
    /// What must be reached.
    pub goals: Vec<Goal>,
    /// What a request of the first target may take, ns (DESIGN section 11).
    pub budget_ns: Option<f64>,
    /// Whether the short form has it.
    is_quick: bool,
    /// Whether each write is on the disk before it is answered.
    is_durable: bool,
}

impl Row {
    /// Whether something must be reached.
    pub fn has_goal(&self) -> bool {
        !self.goals.is_empty()
    }

    /// What is asked for, and how durable it is; for people.
    pub fn load_title(&self) -> String {
        format!("{}{}", self.load.title(), if self.is_durable { ", durable" } else { "" })
    }

    /// Adds targets behind the others.
    fn and(mut self, targets: &[Target]) -> Self {
        self.targets.extend_from_slice(targets);
        self
    }

    /// Adds bounds.
    fn must(mut self, goals: Vec<Goal>) -> Self {
        self.goals.extend(goals);
        self
    }

    /// Puts it into the short form.
    fn quick(self) -> Self {
        Self { is_quick: true, ..self }
    }
}

use Bound::{Added, AtLeast, AtMost};
use Metric::{Cpu, Kiops, P50};

const BLK: Target = Target::BLK;
const ADAPTIVE: Target = Target::BLK.adaptive();
const PINNED: Target = Target::BLK.way(Way::Pinned);
const STOR: Target = Target::STOR;
const STOR_ONE: Target = Target::STOR.luns(Luns::OneOfMany);
const STOR_ALL: Target = Target::STOR.luns(Luns::AllOfMany);
const QSD: Target = Target::QSD;
const FIO: Target = Target::FIO;
const FIO_FIXED: Target = Target::FIO.way(Way::Pinned);

fn goal(ours: Target, peer: Target, metric: Metric, bound: Bound) -> Goal {
    Goal { ours, peer, metric, bound }
}

fn row(backing: Backing, set: Set, load: Load, targets: &[Target]) -> Row {
    Row {
        name: format!("{}{}-{}-{}", backing.key(), set.key(), load.key, load.depth),
        title: format!("{}, {}{}", backing.title(), load.title(), set.title()),
        backing,
        set,
        load,
        targets: targets.to_vec(),
        goals: Vec::new(),
        budget_ns: None,
        is_quick: false,
        is_durable: false,
    }
}

/// A load of the grid.
fn grid(backing: Backing, set: Set, load: Load) -> Row {
    let mut targets = match set {
        Set::One => vec![BLK, ADAPTIVE, STOR, STOR.adaptive(), QSD],
        Set::Queues => [BLK, ADAPTIVE, STOR, STOR.adaptive(), QSD].map(|target| target.queues(2)).to_vec(),
        // Making and removing 128 block devices for each target takes longer than measuring.
        Set::Luns if backing.is_kernels() => vec![STOR, STOR_ALL, STOR_ALL.adaptive()],
        Set::Luns => {
            let both = STOR_ALL.queues(2);
            vec![STOR, STOR_ONE, STOR_ALL, STOR_ALL.adaptive(), both, both.adaptive()]
        }
        Set::Asleep => vec![ADAPTIVE.guest_sleeps(), QSD.guest_sleeps()],
    };
    if set == Set::One && backing != Backing::Null {
        targets.push(FIO);
    }
    row(backing, set, load, &targets)
}

/// All rows, or those of the short form; with another build of ours in each if there is one.
pub fn rows(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for backing in GRID {
        for set in Set::GRID {
            rows.extend(LOADS.map(|load| with_goals(grid(backing, set, load))));
            if set == Set::One && backing == Backing::File {
                rows.push(through(backing).quick());
            }
        }
        match backing {
            Backing::Null => {
                for depth in [1, 8, 32, 128] {
                    rows.push(grid(backing, Set::Asleep, Load { depth, ..READ_1 }));
                }
            }
            Backing::File => rows.extend(fast_file()),
            // The I/O of loop devices is done by threads, which need a core.
            Backing::Loop(_) => {
                for load in [READ_32, WRITE_32] {
                    rows.push(grid(backing, Set::Asleep, load).and(&[FIO]));
                }
            }
            _ => {}
        }
    }
    if options.quick {
        rows.retain(|row| row.is_quick);
        for row in &mut rows {
            row.goals.retain(|goal| goal.ours.way != Way::Pinned);
            let goals = &row.goals;
            row.targets.retain(|&one| goals.iter().any(|goal| goal.ours == one || goal.peer == one));
        }
    }
    if options.against.is_some() {
        rows.retain(|row| row.targets.iter().any(|target| target.family() == "avio"));
        for row in &mut rows {
            let both = |target: &Target| {
                let other = (target.family() == "avio").then(|| target.other());
                std::iter::once(*target).chain(other)
            };
            row.targets = row.targets.iter().flat_map(both).collect();
        }
    }
    rows
}

/// A row of the grid with the goals of issue 5, and whom they need beside it.
fn with_goals(row: Row) -> Row {
    let rate = |peer, ratio| vec![goal(BLK, peer, Kiops, AtLeast(ratio))];
    // The last two say what this disk gives at most: nobody can be faster than that.
    let limits = [PINNED, FIO_FIXED, FIO.way(Way::Twice), FIO.way(Way::Deep)];
    match (row.backing, row.set, row.load) {
        (Backing::Null, Set::One, READ_1) => row.must(rate(QSD, 7.5)).quick(),
        (Backing::Null, Set::One, READ_32) => {
            row.must(rate(QSD, 5.6)).must(vec![goal(STOR, BLK, Kiops, AtLeast(0.7))]).quick()
        }
        (Backing::Null, Set::One, READ_128) => {
            Row { budget_ns: Some(110.0), ..row.must(rate(QSD, 9.0)).quick() }
        }
        (Backing::Null, Set::Luns, READ_32) => row
            .must(vec![goal(STOR_ONE, STOR, Kiops, AtLeast(0.95)), goal(STOR_ALL, STOR, Cpu, AtMost(1.05))])
            .quick(),
        (Backing::Memory, Set::One, READ_32) => row.must(rate(QSD, 10.0)).quick(),
        (Backing::Memory, Set::One, WRITE_32) => row.must(rate(QSD, 10.0)),
        (Backing::File, Set::One, READ_1) => row.must(added_goals()).quick(),
        (Backing::File, Set::One, READ_32) => row.and(&limits).must(file_goals(1.05)).quick(),
        (Backing::File, Set::One, WRITE_32) => row.and(&limits).must(file_goals(1.8)).quick(),
        (Backing::File, Set::One, SEQ_32) => row.and(&limits).must(sequential_goals()),
        (Backing::File, Set::One, READ_128) => row.and(&limits),
        (Backing::Loop(_), Set::One, READ_32 | WRITE_32) => row.and(&[FIO.way(Way::Crowded)]),
        _ => row,
    }
}

/// What rates and costs on a file must reach; `qsd`: the rate against qemu-storage-daemon's.
fn file_goals(qsd: f64) -> Vec<Goal> {
    vec![
        goal(BLK, FIO, Kiops, AtLeast(0.97)),
        goal(PINNED, FIO_FIXED, Kiops, AtLeast(0.97)),
        goal(BLK, QSD, Kiops, AtLeast(qsd)),
        // It has no such option, and pins the pages of each request.
        goal(PINNED, QSD, Kiops, AtLeast(qsd)),
        goal(ADAPTIVE, FIO, Cpu, AtMost(1.15)),
        goal(ADAPTIVE, QSD, Cpu, AtMost(0.7)),
    ]
}

fn sequential_goals() -> Vec<Goal> {
    file_goals(1.3).into_iter().filter(|goal| goal.metric == Kiops).collect()
}

/// What the median of single requests may have on top of the disk's.
fn added_goals() -> Vec<Goal> {
    vec![goal(BLK, FIO, P50, Added(3.0)), goal(ADAPTIVE, FIO, P50, Added(25.0))]
}

/// Durable writes.
fn through(backing: Backing) -> Row {
    let (ours, fio) = (BLK.way(Way::Through), FIO.way(Way::Through));
    let row =
        row(backing, Set::One, WRITE_32, &[ours, fio]).must(vec![goal(ours, fio, Kiops, AtLeast(0.97))]);
    Row {
        name: format!("{}-through-32", backing.key()),
        title: format!("{}, durable", row.title),
        is_durable: true,
        ..row
    }
}

/// The rows with goals of a file once more, on a disk whose rate nobody limits.
fn fast_file() -> Vec<Row> {
    let on = |load| row(Backing::ZramFile, Set::One, load, &[BLK, ADAPTIVE, PINNED, FIO, FIO_FIXED, QSD]);
    vec![
        on(READ_32).must(file_goals(1.05)).quick(),
        on(WRITE_32).must(file_goals(1.8)).quick(),
        on(SEQ_32).must(sequential_goals()),
        on(READ_128).must(file_goals(1.05)),
        on(READ_1).must(added_goals()),
        through(Backing::ZramFile),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn rows_of(arguments: &[&str]) -> Vec<Row> {
        rows(&Options::parse_from(["bench-stor"].iter().chain(arguments)))
    }

    #[test]
    fn every_load_stands_on_every_backing_with_each_set_once() {
        let rows = rows_of(&[]);
        let mut names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        for backing in GRID {
            for set in Set::GRID {
                let of = rows.iter().filter(|row| row.backing == backing && row.set == set);
                let of = of.filter(|row| !row.is_durable);
                let loads: Vec<Load> = of.map(|row| row.load).collect();
                assert_eq!(loads, LOADS, "{backing:?} {set:?}");
            }
        }
    }

    #[test]
    fn goals_are_between_targets_that_are_measured() {
        for arguments in [&[][..], &["--quick"], &["--against", "x"]] {
            for row in rows_of(arguments) {
                for goal in &row.goals {
                    assert!(
                        row.targets.contains(&goal.ours) && row.targets.contains(&goal.peer),
                        "{}",
                        row.name
                    );
                }
            }
        }
        assert!(rows_of(&["--quick"]).iter().all(|row| !row.goals.is_empty()));
    }

    #[test]
    fn another_build_stands_behind_each_target_of_ours() {
        let rows = rows_of(&["--against", "x"]);
        let luns = rows.iter().find(|row| row.name == "null-luns-read-32").unwrap();
        assert_eq!(luns.targets[..4], [STOR, STOR.other(), STOR_ONE, STOR_ONE.other()]);
        let file = rows.iter().find(|row| row.name == "file-through-32").unwrap();
        assert_eq!(file.targets.len(), 3, "fio has no other build");
    }
}
