//! What the daemon costs when little happens: idle guests, the first frame after a silence, memory, and two workers that
//! share receive rings. Figures of ours only; polling peers take a whole core, idle or not.

use std::fmt::Write;
use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::net::{NetGuest, NetOptions, NetQueue};
use avio_proto::control::WorkersReply;
use avio_proto::virtio::features::{NET_MRG_RXBUF, VERSION_1};
use avio_tests::config::mac_of;
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::{Failure, Result};
use avio_tools::client::Client;
use avio_tools::pktgen::frame::{FrameSpec, Template, Transport};
use avio_tools::pktgen::options::Options as PktgenOptions;

use super::{GUEST_CORE, SWITCH_CORE, avio};
use crate::beside::process;
use crate::beside::record::Figure;
use crate::beside::spread::spread;
use crate::rig::{BATCH, Rig, Shape};

/// Time in which idle costs are counted.
const IDLE_WINDOW: Duration = Duration::from_secs(5);
/// First frames that are timed.
const FIRST_FRAMES: usize = 300;
/// Silence before each: far above the spin time of any mode.
const SILENCE: Duration = Duration::from_millis(10);
/// Time of the run with two workers.
const PAIRS_RUN_S: f64 = 5.0;

/// A figure's name for `--only`, and how it is taken.
type Taker = (&'static str, fn() -> Result<Figure>);

/// All of them, in the order in which they are shown. A name begins with `idle`, so that one word takes them all.
pub const FIGURES: [Taker; 6] = [
    ("idle-16", || idle(16)),
    ("idle-64", || idle(64)),
    // In a thread of its own, which it pins: what is started later inherits this thread's cores.
    ("idle-first-frame", || {
        std::thread::spawn(first_frame).join().unwrap_or_else(|_| Err(Failure::new("the guest panicked")))
    }),
    ("idle-memory", || memory(100)),
    ("idle-two-workers", two_workers),
    ("idle-addresses", || Ok(addresses())),
];

/// Time per frame with few and many ports and addresses, on one thread: what the look-up costs, without the cores' distance.
fn addresses() -> Figure {
    const COUNTS: [u32; 4] = [2, 16, 64, 4096];
    const ROUNDS: u32 = 4_000;
    const TURNS: usize = 15;
    let features = VERSION_1 | NET_MRG_RXBUF;
    let mut rigs = COUNTS.map(|port_count| Rig::new(Shape { port_count, ..Shape::new(features, 64) }));
    let mut ns_per_frame = COUNTS.map(|_| Vec::with_capacity(TURNS));
    for _ in 0..TURNS {
        for (rig, times) in rigs.iter_mut().zip(&mut ns_per_frame) {
            let mut inside = Duration::ZERO;
            for _ in 0..ROUNDS {
                rig.offer();
                let start = Instant::now();
                rig.forward();
                inside += start.elapsed();
                rig.collect();
            }
            times.push(inside.as_nanos() as f64 / f64::from(ROUNDS * BATCH as u32));
        }
    }
    let cells: Vec<String> = COUNTS
        .iter()
        .zip(ns_per_frame)
        .filter_map(|(count, times)| {
            spread(times.into_iter()).map(|s| format!("{count}: {:.1} ns", s.median))
        })
        .collect();
    Figure {
        what: "64 B frame on one thread, by ports and addresses configured (two of them active)".into(),
        value: format!("{} (medians of {TURNS} turns; goal: within 10 %)", cells.join(", ")),
    }
}

fn guests(daemon: &Daemon, count: u16) -> Result<Vec<(NetGuest, Vec<NetQueue>)>> {
    let options = NetOptions { frame_len_max: 64, ..NetOptions::default() };
    (0..count)
        .map(|i| {
            let endpoint = Endpoint::connect(daemon.socket(usize::from(i)));
            Ok(NetGuest::connect(endpoint, &options)?)
        })
        .collect()
}

fn idle(port_count: u16) -> Result<Figure> {
    let mut daemon = avio::with_workers(port_count, &format!("cores = [{SWITCH_CORE}]"), "")?;
    let connected = guests(&daemon, port_count)?;
    std::thread::sleep(Duration::from_millis(500));
    let pid = daemon.console()?.pid();
    let (before, start) = (process::by_thread(pid)?, Instant::now());
    std::thread::sleep(IDLE_WINDOW);
    let used = process::sum_since(&before, &process::by_thread(pid)?);
    let seconds = start.elapsed().as_secs_f64();
    drop(connected);
    Ok(Figure {
        what: format!("{port_count} connected idle ports, poll = \"adaptive\""),
        value: format!(
            "{:.3} % of a core, {:.1} wake-ups/s (goal: less than 1 %)",
            used.ran_ns as f64 / 1e9 / seconds * 100.0,
            used.wakeups as f64 / seconds
        ),
    })
}

fn first_frame() -> Result<Figure> {
    let daemon = avio::with_workers(2, &format!("cores = [{SWITCH_CORE}]"), "")?;
    let mut guests = guests(&daemon, 2)?;
    core_affinity::set_for_current(core_affinity::CoreId { id: GUEST_CORE });
    let mac = |n| mac_of(n).parse::<avio_proto::config::MacAddr>().map(|m| m.0);
    let template = Template::new(&FrameSpec {
        to: mac(2)?,
        from: mac(1)?,
        len: 64,
        transport: Transport::Udp,
        source: 0,
        seed: 0,
    });
    let (from, to) = guests.split_at_mut(1);
    let (tx, rx) = (&mut from[0].1[0].tx, &mut to[0].1[0].rx);
    let mut times_us = Vec::with_capacity(FIRST_FRAMES);
    for _ in 0..FIRST_FRAMES {
        std::thread::sleep(SILENCE);
        ensure(tx.room(1)? > 0, || "the transmit ring is full".to_owned())?;
        tx.push_burst(1, |slot| {
            slot.set_header(&template.header);
            slot.write(0, &template.bytes);
            template.bytes.len()
        });
        let start = Instant::now();
        tx.flush();
        while rx.poll(1, |_| {})? == 0 {
            if start.elapsed() > Duration::from_secs(1) {
                return Err(Failure::new("the first frame after a silence did not arrive"));
            }
            std::hint::spin_loop();
        }
        times_us.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times_us.sort_by(f64::total_cmp);
    let p99 = times_us[FIRST_FRAMES * 99 / 100];
    let s = spread(times_us.into_iter()).ok_or_else(|| Failure::new("no frames"))?;
    Ok(Figure {
        what: "First frame after 10 ms of silence, poll = \"adaptive\"".into(),
        value: format!(
            "median {:.1} us, p99 {p99:.1} us, {:.1} to {:.1} us (goal: median below 100 us)",
            s.median, s.min, s.max
        ),
    })
}

fn memory(port_count: u16) -> Result<Figure> {
    let mut daemon = avio::with_workers(port_count, &format!("cores = [{SWITCH_CORE}]"), "")?;
    let connected = guests(&daemon, port_count)?;
    std::thread::sleep(Duration::from_millis(300));
    let mib = daemon.own_memory_kib()? as f64 / 1024.0;
    drop(connected);
    Ok(Figure {
        what: format!("Memory of its own with {port_count} connected single-queue ports"),
        value: format!("{mib:.1} MiB, anonymous and private file pages (goal: below 64 MiB)"),
    })
}

/// Two workers on as many cores as there are, four queue pairs, both directions at once. Two guest threads share the two
/// cores with them, so all four sleep when they have nothing to do: a worker that polls always would take the guests' time,
/// and the frames that come meanwhile would be lost by a guest that does not run, not by the switch.
fn two_workers() -> Result<Figure> {
    let cores = format!("cores = [{GUEST_CORE}, {SWITCH_CORE}]");
    let daemon = avio::with_workers(2, &cores, "queue_pairs = 4")?;
    let mut line = format!(
        "--quiet --bidirectional --queues 4 --flows 64 --size 64 --cores {GUEST_CORE},{SWITCH_CORE} --duration {PAIRS_RUN_S}"
    );
    for n in 0..2 {
        let _ = write!(line, " --socket {} --guest-mac {}", daemon.socket(n).display(), mac_of(n as u16 + 1));
    }
    // Below what four threads on two cores reach: what is lost is then lost by the switch.
    line += " --notify wait --rate 100k";
    let options: PktgenOptions = line.parse()?;
    let plan = options.plan(&[GUEST_CORE, SWITCH_CORE]).map_err(Failure::new)?;
    let report = avio_tools::pktgen::generate(&plan).map_err(Failure::new)?;
    let mut client = Client::vswitchd(&daemon.run_folder())?;
    let reply: WorkersReply = client.call("Workers", &())?;
    let polls: u64 = reply.workers.iter().map(|w| w.polls - w.empty_polls).sum();
    let waits: u64 = reply.workers.iter().map(|w| w.lock_waits).sum();
    let frames: Vec<u64> = reply.workers.iter().map(|w| w.frames).collect();
    Ok(Figure {
        what: "Two workers, four queue pairs, 64 flows both ways, paced, poll = \"adaptive\"".into(),
        value: format!(
            "{} frames, by worker {frames:?}: {} lost, {} doubled, {} reordered, {} corrupt; a lock waited for in {:.3} % of {polls} \
             polls with work (goal: none, below 1 %)",
            report.received,
            report.lost.unwrap_or(0),
            report.duplicated,
            report.reordered,
            report.corrupt,
            waits as f64 / polls.max(1) as f64 * 100.0
        ),
    })
}
