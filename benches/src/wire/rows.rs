//! The rows of the report: which load, over which kind of uplink, which targets, and what must be reached.

use super::target::Kind;

/// What stands between the guests and how they send. Rows of one shape share their processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// One guest; the wire's far end is the benchmark's.
    Wire,
    /// The same, and the far end receives by XDP.
    Receiving,
    /// As the first through packet sockets: the last step of the ladder.
    Packet,
    /// Two guests on two switches, the wire between those; both guests have TSO.
    Between,
    /// One guest, an aggregate of so many wires as the target's name says.
    Aggregate,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Wire to guest.
    In(Source),
    /// Guest to wire.
    Out,
    /// Guest to guest, 64 KiB TCP frames.
    Across,
}

/// How the far end of the wire sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Through an AF_XDP socket.
    Socket,
    /// Many frames in one system call, past sockets.
    Burst,
}

/// What is read off a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Of the switch's core, for each frame received.
    Cycles,
    /// Percent of what was offered.
    Loss,
    /// Frames received per second, in millions.
    Mpps,
    /// Payload received per second, in thousand million bits.
    Gbit,
    /// How far the member that differs most is from an even share, in percent of that.
    Uneven,
}

impl Metric {
    /// With its unit.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Cycles => "cycles per frame",
            Metric::Loss => "lost %",
            Metric::Mpps => "received Mpps",
            Metric::Gbit => "received Gbit/s",
            Metric::Uneven => "farthest from even, %",
        }
    }

    /// Digits behind the point.
    pub fn digits(self) -> usize {
        match self {
            Metric::Cycles => 0,
            Metric::Mpps => 3,
            Metric::Loss | Metric::Gbit => 2,
            Metric::Uneven => 1,
        }
    }
}

/// What must be reached.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// At least so many times the peer's figure.
    AtLeast(f64),
    /// At most so many times the peer's figure.
    AtMost(f64),
    /// Not more than the peer's figure.
    NotMore,
    /// At most this, whatever a peer's figure is.
    Below(f64),
}

/// A bound on a figure of ours.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Which of ours.
    pub ours: Kind,
    /// With whom it is compared.
    pub peer: Kind,
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
    pub title: &'static str,
    /// What it runs on.
    pub shape: Shape,
    /// Which way.
    pub way: Way,
    /// Frames per second; `None`: as many as there can be.
    pub rate: Option<f64>,
    /// Flows, which differ in their source port.
    pub flows: u16,
    /// In this order in each round.
    pub targets: Vec<Kind>,
    /// What is shown.
    pub metrics: &'static [Metric],
    /// What must be reached.
    pub goals: Vec<Goal>,
}

/// 64 bytes with their check sequence, as the wire counts.
const RATE: f64 = 300e3;
/// What all of them take when it comes in bursts, though another process have their core for 4 ms: each has 2,048 descriptors.
const BURST_RATE: f64 = 500e3;
const FRAMES: &[Metric] = &[Metric::Mpps, Metric::Loss, Metric::Cycles];

fn goal(ours: Kind, peer: Kind, metric: Metric, bound: Bound) -> Goal {
    Goal { ours, peer, metric, bound }
}

fn frames(name: &'static str, title: &'static str, way: Way, rate: Option<f64>) -> Row {
    let cycles = goal(Kind::Avio, Kind::Ovs, Metric::Cycles, Bound::AtMost(0.6));
    let second = match rate {
        Some(_) => goal(Kind::Avio, Kind::Ovs, Metric::Loss, Bound::NotMore),
        None => goal(Kind::Avio, Kind::Testpmd, Metric::Mpps, Bound::AtLeast(1.2)),
    };
    Row {
        name,
        title,
        shape: Shape::Wire,
        way,
        rate,
        flows: 1,
        targets: vec![Kind::Avio, Kind::Ovs, Kind::Testpmd],
        metrics: FRAMES,
        goals: vec![cycles, second],
    }
}

/// Guest to wire, where the far end is an AF_XDP socket with its program.
fn receiving(name: &'static str, title: &'static str, rate: Option<f64>) -> Row {
    Row { shape: Shape::Receiving, ..frames(name, title, Way::Out, rate) }
}

/// Wire to guest, from a generator that does not hold all of them up.
fn burst(name: &'static str, title: &'static str, rate: Option<f64>) -> Row {
    let mut row = frames(name, title, Way::In(Source::Burst), rate);
    row.targets.push(Kind::TestpmdSoftirq);
    row
}

fn packet(name: &'static str, title: &'static str, way: Way) -> Row {
    Row {
        shape: Shape::Packet,
        targets: vec![Kind::AvioPacket, Kind::OvsPacket],
        goals: vec![goal(Kind::AvioPacket, Kind::OvsPacket, Metric::Mpps, Bound::AtLeast(1.0))],
        ..frames(name, title, way, None)
    }
}

fn aggregate(name: &'static str, title: &'static str, rate: Option<f64>) -> Row {
    let members = [Kind::TwoMembers, Kind::FourMembers];
    let mut goals = Vec::new();
    for ours in members {
        goals.push(goal(ours, Kind::OneMember, Metric::Cycles, Bound::AtMost(1.05)));
        goals.push(goal(ours, Kind::OneMember, Metric::Uneven, Bound::Below(10.0)));
    }
    Row {
        shape: Shape::Aggregate,
        flows: 1000,
        targets: vec![Kind::OneMember, Kind::TwoMembers, Kind::FourMembers],
        metrics: &[Metric::Mpps, Metric::Loss, Metric::Cycles, Metric::Uneven],
        goals,
        ..frames(name, title, Way::Out, rate)
    }
}

/// All rows, neighbours of one shape.
pub fn rows() -> Vec<Row> {
    let between = Row {
        shape: Shape::Between,
        targets: vec![Kind::Avio, Kind::AvioPacket, Kind::OvsPacket],
        metrics: &[Metric::Gbit],
        goals: vec![
            goal(Kind::AvioPacket, Kind::OvsPacket, Metric::Gbit, Bound::AtLeast(1.5)),
            goal(Kind::Avio, Kind::OvsPacket, Metric::Gbit, Bound::AtLeast(1.5)),
        ],
        ..frames("tso", "TCP with TSO, guest to wire to guest", Way::Across, None)
    };
    vec![
        frames("in", "64 B, wire to guest, 300,000 a second", Way::In(Source::Socket), Some(RATE)),
        frames("in-full", "64 B, wire to guest, all the generator gives", Way::In(Source::Socket), None),
        frames("out", "64 B, guest to wire, 300,000 a second", Way::Out, Some(RATE)),
        frames("out-full", "64 B, guest to wire, all the switch takes", Way::Out, None),
        burst("in-burst", "64 B, wire to guest, 500,000 a second in bursts", Some(BURST_RATE)),
        burst("in-burst-full", "64 B, wire to guest, all that bursts give", None),
        receiving("out-xdp", "64 B, guest to wire that ends in XDP, 300,000 a second", Some(RATE)),
        receiving("out-xdp-full", "64 B, guest to wire that ends in XDP, all the switch takes", None),
        packet(
            "packet-in",
            "64 B, wire to guest through packet sockets, all the generator gives",
            Way::In(Source::Socket),
        ),
        packet("packet-out", "64 B, guest to wire through packet sockets, all the switch takes", Way::Out),
        between,
        aggregate("aggregate", "64 B, aggregate with LB_FLOW, 1,000 flows, 300,000 a second", Some(RATE)),
        aggregate("aggregate-full", "64 B, aggregate with LB_FLOW, 1,000 flows, all the switch takes", None),
    ]
}

/// The row without a load, for `--only`.
pub const IDLE: &str = "idle";
