//! The rows of the report: which load on which backing, which targets, and what must be reached.

use super::options::Options;
use super::target::Target;

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

/// One load on several targets.
#[derive(Clone, Debug)]
pub struct Row {
    /// For `--only`.
    pub name: &'static str,
    /// For people.
    pub title: String,
    /// What is behind the targets.
    pub backing: Backing,
    /// Pattern, in fio's words.
    pub rw: &'static str,
    /// Reads in percent of a mixed pattern.
    pub mix: u32,
    /// Bytes of a request.
    pub block: u64,
    /// Requests in flight, per queue.
    pub depth: u16,
    /// Queues.
    pub queues: u16,
    /// In this order in each round.
    pub targets: Vec<Target>,
    /// What must be reached.
    pub goals: Vec<Goal>,
    /// What a request of the first target may take, ns (DESIGN section 11).
    pub budget_ns: Option<f64>,
}

use Bound::{Added, AtLeast, AtMost};
use Metric::{Cpu, Kiops, P50};
use Target::{
    Blk, BlkAdaptive, BlkAdaptiveOther, BlkAdaptiveSleeping, BlkOther, BlkPinned, BlkThrough, Fio,
    FioCrowded, FioDeep, FioDsync, FioFixed, FioTwice, Qsd, QsdSleeping, Stor, Stor128All, Stor128One,
};

fn goal(ours: Target, peer: Target, metric: Metric, bound: Bound) -> Goal {
    Goal { ours, peer, metric, bound }
}

fn row(name: &'static str, backing: Backing, rw: &'static str, depth: u16, targets: &[Target]) -> Row {
    let what = match backing {
        Backing::Null => "null".to_owned(),
        Backing::Memory => "memory".to_owned(),
        Backing::File => "file".to_owned(),
        Backing::Loop(block) => format!("loop {block}"),
        Backing::Zram => "zram".to_owned(),
        Backing::ZramFile => "file on zram".to_owned(),
    };
    Row {
        name,
        title: format!("{what}, {rw} 4 KiB, QD{depth}"),
        backing,
        rw,
        mix: 70,
        block: 4096,
        depth,
        queues: 1,
        targets: targets.to_vec(),
        goals: Vec::new(),
        budget_ns: None,
    }
}

/// The same with requests of 8 KiB, seven of ten of them reads.
fn mixed(row: Row) -> Row {
    Row { title: row.title.replace("randrw 4 KiB", "70/30 8 KiB"), block: 8192, ..row }
}

/// The same with requests of 128 KiB.
fn sequential(row: Row) -> Row {
    Row { title: row.title.replace("4 KiB", "128 KiB"), block: 131_072, ..row }
}

/// All rows, or those of the short form; with another build of ours in each if there is one.
pub fn rows(options: &Options) -> Vec<Row> {
    let mut rows = null(options.quick);
    rows.extend(memory(options.quick));
    rows.extend(file(options.quick));
    rows.extend(fast_file(options.quick));
    if !options.quick {
        rows.extend(devices());
    }
    if options.against.is_some() {
        rows.retain(|row| row.targets.contains(&Blk));
        for row in &mut rows {
            for (ours, other) in [(Blk, BlkOther), (BlkAdaptive, BlkAdaptiveOther)] {
                if let Some(place) = row.targets.iter().position(|&target| target == ours) {
                    row.targets.insert(place + 1, other);
                }
            }
        }
    }
    rows
}

fn null(quick: bool) -> Vec<Row> {
    let n = |name, rw, depth, targets: &[Target]| row(name, Backing::Null, rw, depth, targets);
    let us = [Blk, Stor, Qsd];
    let mut rows = vec![
        Row { goals: vec![goal(Blk, Qsd, Kiops, AtLeast(7.5))], ..n("null-read-1", "randread", 1, &us) },
        Row {
            goals: vec![goal(Blk, Qsd, Kiops, AtLeast(5.6)), goal(Stor, Blk, Kiops, AtLeast(0.7))],
            ..n("null-read-32", "randread", 32, &us)
        },
        Row {
            goals: vec![goal(Blk, Qsd, Kiops, AtLeast(9.0))],
            budget_ns: Some(110.0),
            ..n("null-read-128", "randread", 128, &us)
        },
    ];
    if !quick {
        rows.extend([
            n("null-write-32", "randwrite", 32, &us),
            mixed(n("null-mix-32", "randrw", 32, &us)),
            sequential(n("null-seq-32", "read", 32, &us)),
            Row {
                title: "null, randread 4 KiB, two queues of QD32, one worker".into(),
                queues: 2,
                ..n("null-queues-2", "randread", 32, &[Blk, Stor, Qsd])
            },
            n("null-adaptive-32", "randread", 32, &[Blk, BlkAdaptive]),
        ]);
        for (name, depth) in [("sleep-1", 1), ("sleep-8", 8), ("sleep-32", 32), ("sleep-128", 128)] {
            let title = format!("null, randread 4 KiB, QD{depth}, guest sleeps");
            rows.push(Row { title, ..n(name, "randread", depth, &[BlkAdaptiveSleeping, QsdSleeping]) });
        }
    }
    rows.push(Row {
        title: "null, randread 4 KiB, QD32, 1 and 128 LUNs".into(),
        goals: vec![goal(Stor128One, Stor, Kiops, AtLeast(0.95)), goal(Stor128All, Stor, Cpu, AtMost(1.05))],
        ..n("null-luns", "randread", 32, &[Stor, Stor128One, Stor128All])
    });
    rows
}

fn memory(quick: bool) -> Vec<Row> {
    let m = |name, rw, depth| row(name, Backing::Memory, rw, depth, &[Blk, Stor, Qsd]);
    let tenfold = || vec![goal(Blk, Qsd, Kiops, AtLeast(10.0))];
    let mut rows = vec![Row { goals: tenfold(), ..m("memory-read-32", "randread", 32) }];
    if !quick {
        rows.extend([
            m("memory-read-1", "randread", 1),
            Row { goals: tenfold(), ..m("memory-write-32", "randwrite", 32) },
            m("memory-read-128", "randread", 128),
            mixed(m("memory-mix-32", "randrw", 32)),
            sequential(m("memory-seq-32", "read", 32)),
            row("memory-adaptive-32", Backing::Memory, "randread", 32, &[Blk, BlkAdaptive]),
        ]);
    }
    rows
}

/// What rates and costs on a file must reach; `qsd`: the rate against qemu-storage-daemon's.
fn file_goals(qsd: f64) -> Vec<Goal> {
    vec![
        goal(Blk, Fio, Kiops, AtLeast(0.97)),
        goal(BlkPinned, FioFixed, Kiops, AtLeast(0.97)),
        goal(Blk, Qsd, Kiops, AtLeast(qsd)),
        goal(BlkAdaptive, Fio, Cpu, AtMost(1.15)),
        goal(BlkAdaptive, Qsd, Cpu, AtMost(0.7)),
    ]
}

const FILE_TARGETS: [Target; 6] = [Blk, BlkAdaptive, BlkPinned, Fio, FioFixed, Qsd];

fn file(quick: bool) -> Vec<Row> {
    let f = |name, rw, depth, targets: &[Target]| row(name, Backing::File, rw, depth, targets);
    // The last two say what this disk gives at most: nobody can be faster than that.
    let all = [Blk, BlkAdaptive, BlkPinned, Fio, FioFixed, Qsd, FioTwice, FioDeep];
    let few = [Blk, BlkAdaptive, Fio, Qsd];
    let mut rows = vec![
        Row {
            goals: vec![goal(Blk, Fio, P50, Added(3.0)), goal(BlkAdaptive, Fio, P50, Added(25.0))],
            ..f("file-read-1", "randread", 1, &few)
        },
        Row { goals: file_goals(1.05), ..f("file-read-32", "randread", 32, if quick { &few } else { &all }) },
        Row {
            goals: file_goals(1.8),
            ..f("file-write-32", "randwrite", 32, if quick { &few } else { &all })
        },
        Row {
            goals: vec![goal(BlkThrough, FioDsync, Kiops, AtLeast(0.97))],
            ..f("file-through-32", "randwrite", 32, &[BlkThrough, FioDsync])
        },
    ];
    if !quick {
        rows.extend([
            Row {
                title: "file, read 128 KiB, QD32".into(),
                block: 131_072,
                goals: file_goals(1.3).into_iter().filter(|goal| goal.metric == Kiops).collect(),
                ..f("file-seq-32", "read", 32, &all)
            },
            mixed(f("file-mix-32", "randrw", 32, &few)),
            Row {
                title: "file, randread 4 KiB, two queues of QD32, one worker".into(),
                queues: 2,
                ..f("file-queues-2", "randread", 32, &[Blk, BlkAdaptive, Qsd])
            },
            f("file-read-128", "randread", 128, &all),
            f("file-stor-32", "randread", 32, &[Blk, Stor, Fio]),
        ]);
    }
    rows
}

/// The same on a disk whose rate nobody limits.
fn fast_file(quick: bool) -> Vec<Row> {
    let f = |name, rw, depth, targets: &[Target]| row(name, Backing::ZramFile, rw, depth, targets);
    let all = FILE_TARGETS;
    let few = [Blk, BlkAdaptive, Fio, Qsd];
    let mut rows = vec![
        Row {
            goals: file_goals(1.05),
            ..f("zramfile-read-32", "randread", 32, if quick { &few } else { &all })
        },
        Row {
            goals: file_goals(1.8),
            ..f("zramfile-write-32", "randwrite", 32, if quick { &few } else { &all })
        },
    ];
    if !quick {
        rows.extend([
            Row {
                title: "file on zram, read 128 KiB, QD32".into(),
                block: 131_072,
                goals: file_goals(1.3).into_iter().filter(|goal| goal.metric == Kiops).collect(),
                ..f("zramfile-seq-32", "read", 32, &all)
            },
            Row {
                goals: vec![goal(Blk, Fio, P50, Added(3.0)), goal(BlkAdaptive, Fio, P50, Added(25.0))],
                ..f("zramfile-read-1", "randread", 1, &few)
            },
            Row { goals: file_goals(1.05), ..f("zramfile-read-128", "randread", 128, &all) },
            Row {
                goals: vec![goal(BlkThrough, FioDsync, Kiops, AtLeast(0.97))],
                ..f("zramfile-through-32", "randwrite", 32, &[BlkThrough, FioDsync])
            },
        ]);
    }
    rows
}

/// Block devices that the kernel can make here. The I/O of loop devices is done by threads, which need a core: so fio also with the other
/// core taken, and ours also with a guest that sleeps.
fn devices() -> Vec<Row> {
    let direct = [Blk, BlkAdaptive, Fio, Qsd];
    let by_threads = [Blk, BlkAdaptive, Fio, FioCrowded, Qsd];
    let sleeping = [BlkAdaptiveSleeping, Fio, QsdSleeping];
    let mut rows = Vec::new();
    for (backing, [read, write, mix, seq]) in [
        (Backing::Loop(512), ["loop512-read-32", "loop512-write-32", "loop512-mix-32", "loop512-seq-32"]),
        (
            Backing::Loop(4096),
            ["loop4096-read-32", "loop4096-write-32", "loop4096-mix-32", "loop4096-seq-32"],
        ),
        (Backing::Zram, ["zram-read-32", "zram-write-32", "zram-mix-32", "zram-seq-32"]),
    ] {
        let targets: &[Target] = if backing.is_loop() { &by_threads } else { &direct };
        rows.push(row(read, backing, "randread", 32, targets));
        rows.push(row(write, backing, "randwrite", 32, targets));
        rows.push(mixed(row(mix, backing, "randrw", 32, targets)));
        rows.push(sequential(row(seq, backing, "read", 32, targets)));
    }
    for (name, depth) in [("zram-read-1", 1), ("zram-read-128", 128)] {
        rows.push(row(name, Backing::Zram, "randread", depth, &direct));
    }
    for (backing, read, write) in [
        (Backing::Loop(512), "loop512-read-32-asleep", "loop512-write-32-asleep"),
        (Backing::Loop(4096), "loop4096-read-32-asleep", "loop4096-write-32-asleep"),
    ] {
        for (name, rw) in [(read, "randread"), (write, "randwrite")] {
            let one = row(name, backing, rw, 32, &sleeping);
            rows.push(Row { title: format!("{}, guest sleeps", one.title), ..one });
        }
    }
    rows
}
