//! The rows of the report: which load, which guests, which targets, and what must be reached.

use super::target::Target;
use super::testpmd::Rings;

/// What is read off a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Frames received per second, in millions.
    Mpps,
    /// Bits received per second, in thousand millions.
    Gbit,
    /// Median of the one-way latency in microseconds.
    P50,
    /// Its 99th percentile.
    P99,
}

impl Metric {
    /// With its unit.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Mpps => "Mpps",
            Metric::Gbit => "Gbit/s",
            Metric::P50 => "p50 us",
            Metric::P99 => "p99 us",
        }
    }

    /// Whether less is better.
    pub fn is_time(self) -> bool {
        matches!(self, Metric::P50 | Metric::P99)
    }
}

/// Who sends and receives.
#[derive(Clone, Debug)]
pub enum Client {
    /// Guests in this process, with these options of `avio-pktgen`.
    Own(String),
    /// Two DPDK testpmd guests in a closed loop, frames of so many bytes.
    Testpmd(Rings, u16),
}

/// A bound on the ratio of our figure to a peer's: at least, or for times at most.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// The peer.
    pub target: Target,
    /// Which figure.
    pub metric: Metric,
    /// The bound.
    pub ratio: f64,
}

/// One load on several targets.
#[derive(Clone, Debug)]
pub struct Row {
    /// For `--only`.
    pub name: &'static str,
    /// For people.
    pub title: String,
    /// Ports of each target.
    pub port_count: u16,
    /// Targets and guests with TSO.
    pub tso: bool,
    /// Longest frames, where a target wants to know.
    pub mtu: u16,
    /// The guests.
    pub client: Client,
    /// In this order in each round.
    pub targets: Vec<Target>,
    /// What is shown.
    pub metrics: &'static [Metric],
    /// Percent of a target's own full rate at which it is measured; empty: at full rate.
    pub loads: &'static [u32],
    /// What must be reached.
    pub goals: Vec<Goal>,
}

impl Row {
    /// Whether its guests take huge pages.
    pub fn needs_huge_pages(&self) -> bool {
        match &self.client {
            Client::Own(options) => options.contains("--huge-pages"),
            Client::Testpmd(..) => true,
        }
    }
}

const RATE: &[Metric] = &[Metric::Mpps, Metric::Gbit];
const LATENCY: &[Metric] = &[Metric::P50, Metric::P99];
const ALL: [Target; 5] = [Target::Avio, Target::OvsMac, Target::Testpmd, Target::OvsNormal, Target::OvsFlow];
const LIKE_US: [Target; 3] = [Target::Avio, Target::OvsMac, Target::Testpmd];

fn goal(target: Target, metric: Metric, ratio: f64) -> Goal {
    Goal { target, metric, ratio }
}

/// A row with guests of ours.
fn own(name: &'static str, title: &str, options: &str, goals: Vec<Goal>) -> Row {
    Row {
        name,
        title: title.to_owned(),
        port_count: 2,
        tso: false,
        mtu: 1500,
        client: Client::Own(options.to_owned()),
        targets: LIKE_US.to_vec(),
        metrics: RATE,
        loads: &[],
        goals,
    }
}

fn both(metric: Metric, ovs: f64, testpmd: f64) -> Vec<Goal> {
    vec![goal(Target::OvsMac, metric, ovs), goal(Target::Testpmd, metric, testpmd)]
}

/// All rows, or those of the short form; with another build of ours in each if there is one.
pub fn rows(quick: bool, against: bool) -> Vec<Row> {
    let mut rows = peers(quick);
    // Neighbours share their processes where they can.
    rows.sort_by_key(|row| (row.port_count, row.mtu, row.tso));
    if against {
        rows.iter_mut().for_each(|row| row.targets.insert(1, Target::AvioOther));
    }
    rows
}

fn peers(quick: bool) -> Vec<Row> {
    let mut rows = sizes(quick);
    rows.extend(variants(quick));
    if !quick {
        rows.extend(testpmd_guests());
        rows.extend(crowds());
    }
    rows.push(Row {
        port_count: 2,
        tso: true,
        metrics: &[Metric::Gbit],
        ..own("tso", "64 KiB TSO frames", "--pattern tso", both(Metric::Gbit, 1.6, 3.0))
    });
    rows
}

fn sizes(quick: bool) -> Vec<Row> {
    let targets = if quick { LIKE_US.to_vec() } else { ALL.to_vec() };
    let small = both(Metric::Mpps, 1.5, 1.2);
    let long = both(Metric::Gbit, 1.5, 1.3);
    let mut rows = vec![
        Row { targets: targets.clone(), ..own("size-64", "64 B", "--size 64", small.clone()) },
        Row { targets: targets.clone(), ..own("size-1518", "1518 B", "--size 1518", long.clone()) },
        Row { mtu: 9000, targets, ..own("size-9000", "9000 B", "--size 9000", long) },
        Row {
            metrics: LATENCY,
            goals: vec![goal(Target::Testpmd, Metric::P50, 1.0), goal(Target::Testpmd, Metric::P99, 1.5)],
            ..own("latency-rr", "64 B request/response, one way", "--pattern rr", vec![])
        },
    ];
    if !quick {
        rows.insert(1, own("size-512", "512 B", "--size 512", vec![]));
        rows.push(own("imix", "IMIX (7 x 60, 4 x 590, 1 x 1,514 B)", "--pattern imix", vec![]));
        rows.push(own("flows-10000", "64 B, 10,000 flows", "--size 64 --flows 10000", vec![]));
        rows.push(Row {
            metrics: LATENCY,
            loads: &[10, 50, 90],
            ..own("latency-load", "64 B, one-way latency under load", "--size 64", vec![])
        });
    }
    rows
}

/// Ring variants, guests of ours. OVS is left out of the short form: its variants differ from testpmd's by a constant.
fn variants(quick: bool) -> Vec<Row> {
    let named = [
        ("rings-split-nomrg", "split, mergeable off", "--no-mergeable"),
        ("rings-split-inorder", "split, in-order", "--in-order"),
        ("rings-packed", "packed", "--packed"),
        ("rings-packed-inorder", "packed, in-order", "--packed --in-order"),
        (
            "rings-packed-inorder-nomrg",
            "packed, in-order, mergeable off",
            "--packed --in-order --no-mergeable",
        ),
    ];
    let row = |(name, title, options): (&'static str, &str, &str)| Row {
        targets: if quick { vec![Target::Avio, Target::Testpmd] } else { LIKE_US.to_vec() },
        ..own(
            name,
            &format!("64 B, {title}"),
            &format!("--size 64 {options}"),
            vec![goal(Target::Testpmd, Metric::Mpps, 1.2)],
        )
    };
    named.into_iter().filter(|(name, ..)| !quick || *name == "rings-packed-inorder-nomrg").map(row).collect()
}

/// The second opinion: guests that are not ours.
fn testpmd_guests() -> Vec<Row> {
    let split = Rings { packed: false, in_order: false, mergeable: true, vectorized: false };
    let row = |name, title: &str, rings, len, ratio| Row {
        client: Client::Testpmd(rings, len),
        ..own(
            name,
            &format!("{len} B, testpmd guests, {title}"),
            "",
            vec![goal(Target::Testpmd, if len > 64 { Metric::Gbit } else { Metric::Mpps }, ratio)],
        )
    };
    vec![
        row("testpmd-split", "split", split, 64, 1.2),
        row("testpmd-split-1518", "split", split, 1518, 1.3),
        row("testpmd-packed", "packed", Rings { packed: true, ..split }, 64, 1.2),
        row(
            "testpmd-packed-inorder",
            "packed, in-order",
            Rings { packed: true, in_order: true, ..split },
            64,
            1.2,
        ),
        row(
            "testpmd-vectorized",
            "packed, in-order, mergeable off, vectorised",
            Rings { packed: true, in_order: true, mergeable: false, vectorized: true },
            64,
            1.2,
        ),
        row(
            "testpmd-split-vectorized",
            "split, mergeable off, vectorised",
            Rings { mergeable: false, vectorized: true, ..split },
            64,
            1.2,
        ),
    ]
}

/// Many active ports.
fn crowds() -> Vec<Row> {
    vec![
        Row {
            targets: vec![Target::Avio],
            ..own(
                "ports-2-long-rings",
                "64 B, 2 active ports with rings of 8,192: as many buffers as 64 ports have",
                "--size 64 --ring-size 8192",
                vec![],
            )
        },
        Row { port_count: 16, ..own("ports-16", "64 B, 16 active ports", "--size 64", vec![]) },
        Row {
            port_count: 64,
            // testpmd has no more than 32 ports.
            targets: vec![Target::Avio, Target::OvsMac],
            ..own("ports-64", "64 B, 64 active ports", "--size 64", vec![])
        },
        // The same without the guests' page tables in the way: 64 guests have more small pages than a processor remembers.
        Row {
            targets: vec![Target::Avio],
            ..own("ports-2-huge", "64 B, 2 active ports, pages of 2 MiB", "--size 64 --huge-pages", vec![])
        },
        Row {
            targets: vec![Target::Avio],
            ..own(
                "ports-2-long-rings-huge",
                "64 B, 2 active ports with rings of 8,192, pages of 2 MiB",
                "--size 64 --ring-size 8192 --huge-pages",
                vec![],
            )
        },
        Row {
            port_count: 64,
            targets: vec![Target::Avio, Target::OvsMac],
            ..own("ports-64-huge", "64 B, 64 active ports, pages of 2 MiB", "--size 64 --huge-pages", vec![])
        },
    ]
}
