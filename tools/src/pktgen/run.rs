//! Threads, windows and the end of a measurement.
//!
//! Owns who runs where and when what is counted: warm-up, window, drain. `avio-pktgen`, its search and `avio demo` call
//! [`measure`]; each call starts with fresh sequence numbers on ports that stay connected.

use super::lane::{Job, Lane, Live, Port};
use crate::latency::now_ns;
use avio_guest::net::{GuestError, NetGuest};
use avio_guest::wait_readable;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// After sending stops and everything has arrived, this long for what should not come any more.
const QUIET: Duration = Duration::from_millis(50);
/// The same if something is missing: a switch that shares its core with others may be away for long.
const QUIET_MISSING: Duration = Duration::from_millis(500);
/// Frames on their way get this long.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// The same while a switch has not taken them: one whose core others have for that long is not told from one that stands.
const TAKE_MAX: Duration = Duration::from_secs(4);
/// A sleeping guest looks at its rate and at the end of the window this often.
const WAIT_MAX: Duration = Duration::from_millis(1);
/// Turns without a frame between two looks at the connection.
const IDLE_TURNS_PER_CHECK: u32 = 65_536;

/// How long to do what.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Not measured.
    pub warmup: Duration,
    /// Measured.
    pub window: Duration,
    /// Sleep on eventfds instead of polling.
    pub wait: bool,
}

/// Rates of the last progress interval, summed over ports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Since the start of the window, in seconds.
    pub elapsed_s: f64,
    /// Frames sent per second.
    pub tx_pps: f64,
    /// Frames received per second.
    pub rx_pps: f64,
    /// Bits received per second, of frames without FCS.
    pub rx_bits: f64,
    /// Sequence numbers missing so far.
    pub missing: u64,
}

/// Counts inside the window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Its length in seconds, as measured.
    pub seconds: f64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_octets: u64,
    /// Frames received.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_octets: u64,
    /// Receive polls.
    pub polls: u64,
    /// Receive polls that found nothing.
    pub empty_polls: u64,
}

/// What a measurement yields.
#[derive(Debug)]
pub struct Measured {
    /// Per port, in order.
    pub jobs: Vec<Job>,
    /// Per port, in order.
    pub windows: Vec<Window>,
    /// Connections that had to be opened anew.
    pub reconnects: u64,
    /// Time that threads were ready but did not run, in milliseconds: another load on this machine.
    pub waited_ms: f64,
}

struct Flags {
    sending: AtomicBool,
    measuring: AtomicBool,
    stop: AtomicBool,
}

/// Runs `jobs[i]` on `ports[i]`, dealt out to `cores` (empty: one thread, not pinned).
///
/// # Errors
/// A connection that broke and could not be opened again.
pub fn measure(
    ports: &mut [Port],
    jobs: Vec<Job>,
    cores: &[usize],
    schedule: &Schedule,
    mut progress: impl FnMut(&Progress),
) -> Result<Measured, GuestError> {
    let lives: Vec<Live> = jobs.iter().map(|_| Live::default()).collect();
    let count = jobs.len();
    let thread_count = cores.len().clamp(1, count.max(1));
    let mut hands: Vec<Vec<(usize, Lane<'_>)>> = (0..thread_count).map(|_| Vec::new()).collect();
    for (i, ((port, job), live)) in ports.iter_mut().zip(jobs).zip(&lives).enumerate() {
        hands[i % thread_count].push((i, Lane { port, job, live }));
    }
    let flags = Flags {
        sending: AtomicBool::new(true),
        measuring: AtomicBool::new(false),
        stop: AtomicBool::new(false),
    };
    let flags = &flags;
    let (results, windows) = std::thread::scope(|scope| {
        let threads: Vec<_> = hands
            .into_iter()
            .enumerate()
            .map(|(t, lanes)| {
                let core = cores.get(t).copied();
                scope.spawn(move || {
                    let result = drive(lanes, core, flags, schedule);
                    // A thread that failed must not leave the others and the caller waiting for it.
                    if result.is_err() {
                        flags.stop.store(true, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        let windows = direct(&lives, flags, schedule, &mut progress);
        let results: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
        (results, windows)
    });
    let mut done: Vec<Option<Job>> = (0..count).map(|_| None).collect();
    let (mut reconnects, mut waited_ms) = (0, 0.0);
    for result in results {
        let hand = match result {
            Ok(hand) => hand?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        reconnects += hand.reconnects;
        waited_ms += hand.waited_ms;
        for (i, job) in hand.jobs {
            done[i] = Some(job);
        }
    }
    Ok(Measured { jobs: done.into_iter().flatten().collect(), windows, reconnects, waited_ms })
}

/// What a thread brings back.
struct Hand {
    jobs: Vec<(usize, Job)>,
    reconnects: u64,
    waited_ms: f64,
}

fn drive(
    mut lanes: Vec<(usize, Lane<'_>)>,
    core: Option<usize>,
    flags: &Flags,
    schedule: &Schedule,
) -> Result<Hand, GuestError> {
    if let Some(id) = core {
        core_affinity::set_for_current(core_affinity::CoreId { id });
    }
    let waited_before = waited_ms();
    let mut reconnects = 0;
    let mut measuring = false;
    let mut idle_turns = 0u32;
    while !flags.stop.load(Ordering::Relaxed) {
        if !measuring && flags.measuring.load(Ordering::Relaxed) {
            measuring = true;
            for (_, lane) in &mut lanes {
                lane.job.receiver.clear_latency();
                if let Some(requests) = &mut lane.job.requests {
                    requests.rtt = Default::default();
                }
            }
        }
        let sending = flags.sending.load(Ordering::Relaxed);
        let now = now_ns();
        let mut moved = 0;
        for (_, lane) in &mut lanes {
            match lane.turn(now, sending) {
                Ok(n) => moved += n,
                Err(e) if lane.port.guest.is_open() => return Err(e.into()),
                Err(_) => {
                    lane.port.guest.reconnect(&mut lane.port.queues)?;
                    reconnects += 1;
                }
            }
        }
        if moved > 0 {
            idle_turns = 0;
            continue;
        }
        idle_turns += 1;
        if schedule.wait {
            sleep(&mut lanes);
        }
        if idle_turns.is_multiple_of(IDLE_TURNS_PER_CHECK) || (schedule.wait && idle_turns.is_multiple_of(64))
        {
            for (_, lane) in &mut lanes {
                if !lane.port.guest.is_open() {
                    lane.port.guest.reconnect(&mut lane.port.queues)?;
                    reconnects += 1;
                }
            }
        }
    }
    let waited_ms = waited_ms() - waited_before;
    Ok(Hand { jobs: lanes.into_iter().map(|(i, lane)| (i, lane.job)).collect(), reconnects, waited_ms })
}

/// Sleeps until a receive ring has something or a millisecond is over.
fn sleep(lanes: &mut [(usize, Lane<'_>)]) {
    // Every ring must be armed, also behind one that has something already.
    let mut pending = false;
    for queue in lanes.iter_mut().flat_map(|(_, lane)| &mut lane.port.queues) {
        pending |= queue.rx.arm();
    }
    if !pending {
        let fds: Vec<_> = lanes
            .iter()
            .flat_map(|(_, lane)| &lane.port.queues)
            .map(|queue| queue.rx.call().as_fd())
            .collect();
        wait_readable(&fds, WAIT_MAX);
    }
    for queue in lanes.iter_mut().flat_map(|(_, lane)| &mut lane.port.queues) {
        queue.rx.disarm();
    }
}

/// The caller's side: flags, progress, windows.
fn direct(
    lives: &[Live],
    flags: &Flags,
    schedule: &Schedule,
    progress: &mut impl FnMut(&Progress),
) -> Vec<Window> {
    let stopped = || flags.stop.load(Ordering::Relaxed);
    pause(schedule.warmup, &stopped);
    flags.measuring.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let first = snapshot(lives);
    let (mut last, mut last_at) = (sum(&first), start);
    while start.elapsed() < schedule.window && !stopped() {
        let left = schedule.window.saturating_sub(start.elapsed());
        pause(left.min(Duration::from_secs(1)), &stopped);
        let (here, at) = (sum(&snapshot(lives)), Instant::now());
        let seconds = (at - last_at).as_secs_f64();
        progress(&Progress {
            elapsed_s: (at - start).as_secs_f64(),
            tx_pps: (here.tx_frames - last.tx_frames) as f64 / seconds,
            rx_pps: (here.rx_frames - last.rx_frames) as f64 / seconds,
            rx_bits: (here.rx_octets - last.rx_octets) as f64 * 8.0 / seconds,
            missing: lives.iter().map(|l| l.missing.load(Ordering::Relaxed)).sum(),
        });
        (last, last_at) = (here, at);
    }
    let seconds = start.elapsed().as_secs_f64();
    let mut windows = snapshot(lives);
    for (w, before) in windows.iter_mut().zip(&first) {
        w.seconds = seconds;
        w.tx_frames -= before.tx_frames;
        w.tx_octets -= before.tx_octets;
        w.rx_frames -= before.rx_frames;
        w.rx_octets -= before.rx_octets;
        w.polls -= before.polls;
        w.empty_polls -= before.empty_polls;
    }
    flags.sending.store(false, Ordering::Relaxed);
    let begun = Instant::now();
    let (mut drain, mut quiet_since, mut seen) = (begun, begun, 0);
    let mut quiet = QUIET_MISSING;
    while drain.elapsed() < DRAIN_MAX && quiet_since.elapsed() < quiet && !stopped() {
        std::thread::sleep(Duration::from_millis(2));
        if lives.iter().any(|live| live.in_flight.load(Ordering::Relaxed) > 0) && begun.elapsed() < TAKE_MAX {
            (drain, quiet_since) = (Instant::now(), Instant::now());
        }
        let total = sum(&snapshot(lives));
        quiet = if total.rx_frames >= total.tx_frames { QUIET } else { QUIET_MISSING };
        if total.rx_frames != seen {
            (seen, quiet_since) = (total.rx_frames, Instant::now());
        }
    }
    flags.stop.store(true, Ordering::Relaxed);
    windows
}

/// Sleeps, but not past a thread's failure by more than 50 ms.
fn pause(time: Duration, stopped: &impl Fn() -> bool) {
    let end = Instant::now() + time;
    while !stopped() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

fn snapshot(lives: &[Live]) -> Vec<Window> {
    let get = |cell: &std::sync::atomic::AtomicU64| cell.load(Ordering::Relaxed);
    lives
        .iter()
        .map(|l| Window {
            seconds: 0.0,
            tx_frames: get(&l.tx_frames),
            tx_octets: get(&l.tx_octets),
            rx_frames: get(&l.rx_frames),
            rx_octets: get(&l.rx_octets),
            polls: get(&l.polls),
            empty_polls: get(&l.empty_polls),
        })
        .collect()
}

/// All ports' windows as one.
#[must_use]
pub fn sum(windows: &[Window]) -> Window {
    windows.iter().fold(Window::default(), |a, w| Window {
        seconds: w.seconds,
        tx_frames: a.tx_frames + w.tx_frames,
        tx_octets: a.tx_octets + w.tx_octets,
        rx_frames: a.rx_frames + w.rx_frames,
        rx_octets: a.rx_octets + w.rx_octets,
        polls: a.polls + w.polls,
        empty_polls: a.empty_polls + w.empty_polls,
    })
}

/// Time this thread was runnable but not running, in milliseconds (second field of schedstat); 0 where there is none.
fn waited_ms() -> f64 {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<f64>().ok())
        .map_or(0.0, |ns| ns / 1e6)
}

/// Connects every endpoint in turn. Listening sockets all exist before the first is waited for.
///
/// # Errors
/// The first guest that could not be connected.
pub fn connect(
    endpoints: Vec<avio_guest::Endpoint>,
    options: &avio_guest::net::NetOptions,
) -> Result<Vec<Port>, GuestError> {
    endpoints
        .into_iter()
        .map(|endpoint| NetGuest::connect(endpoint, options).map(|(guest, queues)| Port { guest, queues }))
        .collect()
}
