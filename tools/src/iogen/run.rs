//! Threads, windows, and the end of a run.
//!
//! Owns who runs where and when what is counted: ramp, window, drain, reading back. Connections stay; each call of [`Bench::run`]
//! is one window on them.

use super::command::KINDS;
use super::device::{Device, DiskInfo};
use super::lane::{Lane, Live, Load, Tally};
use super::load::JobSpec;
use super::options::Rings;
use crate::latency::now_ns;
use avio_guest::storage::StorageGuest;
use avio_guest::wait_readable;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Requests in flight get this long when a window ends.
const DRAIN_MAX: Duration = Duration::from_secs(40);
/// How often the director looks at its lanes.
const LOOK: Duration = Duration::from_millis(5);
/// A sleeping guest looks whether its window is over this often.
const WAIT_MAX: Duration = Duration::from_millis(2);

/// Connections and what is to be done on them.
#[derive(Debug)]
pub struct Bench {
    /// In order of their first mention.
    pub devices: Vec<Device>,
    jobs: Vec<JobSpec>,
    places: Vec<TaskPlace>,
    cores: Vec<usize>,
    wait: bool,
}

/// Which queue serves which job.
#[derive(Clone, Copy, Debug)]
struct TaskPlace {
    job: usize,
    device: usize,
    queue: usize,
    number: u16,
}

/// Rates of the last progress interval.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Since the start of the window, in seconds.
    pub elapsed_s: f64,
    /// Requests per second, by operation.
    pub per_s: [f64; KINDS],
    /// Bytes per second, reads and writes.
    pub bytes_per_s: [f64; 2],
}

/// Counts inside a window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Its length in seconds.
    pub seconds: f64,
    /// Requests that ended, by operation.
    pub done: [u64; KINDS],
    /// Kicks sent.
    pub kicks: u64,
    /// Signals received.
    pub signals: u64,
    /// Turns of the generator.
    pub polls: u64,
    /// Turns that found nothing.
    pub empty_polls: u64,
}

/// What one job yielded, all of its queues together.
#[derive(Clone, Debug)]
pub struct JobResult {
    /// Number of its [`JobSpec`].
    pub job: usize,
    /// Counts; the seconds are those of its longest queue.
    pub window: Window,
    /// Latencies and verdicts.
    pub tally: Tally,
    /// Requests that were never answered.
    pub unanswered: u64,
}

/// What a run yielded.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// By job.
    pub jobs: Vec<JobResult>,
    /// Time that threads ran, ms.
    pub ran_ms: f64,
    /// Time that threads were ready but did not run, ms: another load on this machine.
    pub waited_ms: f64,
}

struct Flags {
    measuring: AtomicBool,
    stop: AtomicBool,
}

impl Bench {
    /// Connects everything that `jobs` name.
    ///
    /// # Errors
    /// One line, naming the socket or the option.
    pub fn connect(jobs: Vec<JobSpec>, rings: &Rings, cores: Vec<usize>) -> Result<Self, String> {
        let mut needs: Vec<(PathBuf, u16, u16, u64)> = Vec::new();
        let mut places = Vec::new();
        for (job, spec) in jobs.iter().enumerate() {
            for socket in &spec.sockets {
                let device = needs.iter().position(|need| need.0 == *socket).unwrap_or_else(|| {
                    needs.push((socket.clone(), 0, 0, 0));
                    needs.len() - 1
                });
                let need = &mut needs[device];
                for number in 0..spec.count {
                    places.push(TaskPlace { job, device, queue: usize::from(need.1), number });
                    need.1 += 1;
                }
                (need.2, need.3) = (need.2.max(spec.iodepth), need.3.max(spec.block));
            }
        }
        let devices = needs
            .iter()
            .map(|(socket, queues, depth, block)| Device::connect(socket, rings, *queues, *depth, *block))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { devices, jobs, places, cores, wait: rings.wait })
    }

    /// The jobs, as they were given.
    #[must_use]
    pub fn jobs(&self) -> &[JobSpec] {
        &self.jobs
    }

    /// Replaces what the jobs do by what `change` makes of it; queues and disks stay. For windows of several loads on one
    /// connection: depth and block may not grow.
    pub fn change(&mut self, change: impl Fn(&mut JobSpec)) {
        self.jobs.iter_mut().for_each(change);
    }

    /// Runs all groups of jobs, one after the other.
    ///
    /// # Errors
    /// One line: a device that went away or broke its ring, an option that the disk cannot fulfil.
    pub fn run(&mut self, mut progress: impl FnMut(&Progress)) -> Result<Measured, String> {
        let mut all = Measured::default();
        let last = self.jobs.iter().map(|job| job.group).max().unwrap_or(0);
        for group in 0..=last {
            let measured = self.run_group(group, &mut progress)?;
            all.jobs.extend(measured.jobs);
            all.ran_ms += measured.ran_ms;
            all.waited_ms += measured.waited_ms;
        }
        all.jobs.sort_by_key(|result| result.job);
        Ok(all)
    }

    fn run_group(&mut self, group: usize, progress: &mut impl FnMut(&Progress)) -> Result<Measured, String> {
        let places: Vec<TaskPlace> =
            self.places.iter().copied().filter(|place| self.jobs[place.job].group == group).collect();
        let mut loads = Vec::new();
        for place in &places {
            let (spec, device) = (&self.jobs[place.job], &self.devices[place.device]);
            let disks: &[DiskInfo] = &device.disks;
            // The queue's own slots: a job may have been changed to a smaller depth since.
            let load = Load::new(spec, disks, place.number, device.depth);
            loads.push(load.map_err(|e| format!("{}: {}: {e}", spec.name, device.guest.path().display()))?);
        }
        let asking = || Live { asking: AtomicBool::new(true), ..Live::default() };
        let lives: Vec<Live> = places.iter().map(|_| asking()).collect();
        let thread_count = self.cores.len().clamp(1, places.len().max(1));
        let mut hands: Vec<Vec<Lane<'_>>> = (0..thread_count).map(|_| Vec::new()).collect();
        let mut by_place: BTreeMap<(usize, usize), (usize, &mut Load)> = places
            .iter()
            .zip(&mut loads)
            .enumerate()
            .map(|(i, (place, load))| ((place.device, place.queue), (i, load)))
            .collect();
        let mut guests: Vec<&StorageGuest> = Vec::new();
        for (d, device) in self.devices.iter_mut().enumerate() {
            let Device { guest, queues, first, .. } = device;
            guests.push(guest);
            for (q, queue) in queues.iter_mut().skip(*first).enumerate() {
                if let Some((i, load)) = by_place.remove(&(d, q)) {
                    hands[i % thread_count].push(Lane { queue, load, live: &lives[i] });
                }
            }
        }
        let flags = Flags { measuring: AtomicBool::new(false), stop: AtomicBool::new(false) };
        let (flags, wait, cores) = (&flags, self.wait, &self.cores);
        let director = Director { lives: &lives, places: &places, jobs: &self.jobs, guests: &guests, flags };
        let (ends, results) = std::thread::scope(|scope| {
            let threads: Vec<_> = hands
                .into_iter()
                .enumerate()
                .map(|(t, lanes)| {
                    let core = cores.get(t).copied();
                    scope.spawn(move || {
                        let result = drive(lanes, core, flags, wait);
                        // A thread that failed must not leave the others and the director waiting for it.
                        if result.is_err() {
                            flags.stop.store(true, Ordering::Relaxed);
                        }
                        result
                    })
                })
                .collect();
            let ends = director.direct(progress);
            flags.stop.store(true, Ordering::Relaxed);
            let results: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
            (ends, results)
        });
        let (mut ran_ms, mut waited_ms) = (0.0, 0.0);
        for result in results {
            let (ran, waited) = match result {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            ran_ms += ran;
            waited_ms += waited;
        }
        let windows = ends?;
        let jobs = gather(&places, loads, &windows, &lives);
        Ok(Measured { jobs, ran_ms, waited_ms })
    }
}

/// Adds up what the queues of each job yielded.
fn gather(places: &[TaskPlace], loads: Vec<Load>, windows: &[Window], lives: &[Live]) -> Vec<JobResult> {
    let mut jobs: BTreeMap<usize, JobResult> = BTreeMap::new();
    for (i, (place, load)) in places.iter().zip(loads).enumerate() {
        let entry = jobs.entry(place.job).or_insert_with(|| JobResult {
            job: place.job,
            window: Window::default(),
            tally: Tally::default(),
            unanswered: 0,
        });
        entry.window.add(&windows[i]);
        entry.unanswered += lives[i].in_flight.load(Ordering::Relaxed);
        let tally = load.tally;
        for (sum, latency) in entry.tally.latency.iter_mut().zip(&tally.latency) {
            sum.merge(latency);
        }
        entry.tally.errors += tally.errors;
        entry.tally.verified += tally.verified;
        entry.tally.corrupt += tally.corrupt;
        if entry.tally.complaint.is_none() {
            entry.tally.complaint = tally.complaint;
        }
    }
    jobs.into_values().collect()
}

impl Window {
    /// The counts until now.
    fn of(live: &Live) -> Self {
        let get = |cell: &std::sync::atomic::AtomicU64| cell.load(Ordering::Relaxed);
        Self {
            seconds: 0.0,
            done: [get(&live.done[0]), get(&live.done[1]), get(&live.done[2])],
            kicks: get(&live.kicks),
            signals: get(&live.signals),
            polls: get(&live.polls),
            empty_polls: get(&live.empty_polls),
        }
    }

    fn since(self, before: &Self, seconds: f64) -> Self {
        Self {
            seconds,
            done: std::array::from_fn(|i| self.done[i] - before.done[i]),
            kicks: self.kicks - before.kicks,
            signals: self.signals - before.signals,
            polls: self.polls - before.polls,
            empty_polls: self.empty_polls - before.empty_polls,
        }
    }

    /// Adds another queue's counts; the longer time counts.
    pub fn add(&mut self, other: &Self) {
        self.seconds = self.seconds.max(other.seconds);
        self.done.iter_mut().zip(other.done).for_each(|(sum, done)| *sum += done);
        self.kicks += other.kicks;
        self.signals += other.signals;
        self.polls += other.polls;
        self.empty_polls += other.empty_polls;
    }
}

/// The caller's side of a window.
struct Director<'a> {
    lives: &'a [Live],
    places: &'a [TaskPlace],
    jobs: &'a [JobSpec],
    guests: &'a [&'a StorageGuest],
    flags: &'a Flags,
}

impl Director<'_> {
    fn direct(&self, progress: &mut impl FnMut(&Progress)) -> Result<Vec<Window>, String> {
        let ramp = self.places.iter().map(|place| self.jobs[place.job].ramp).max().unwrap_or_default();
        let begin = Instant::now();
        while begin.elapsed() < ramp && !self.is_over() {
            std::thread::sleep((ramp.saturating_sub(begin.elapsed())).min(LOOK));
        }
        self.flags.measuring.store(true, Ordering::Relaxed);
        let (start, start_ns) = (Instant::now(), now_ns());
        let first: Vec<Window> = self.lives.iter().map(Window::of).collect();
        let mut ends: Vec<Option<Window>> = self.lives.iter().map(|_| None).collect();
        let (mut shown, mut shown_at) = (first.clone(), start);
        while ends.iter().any(Option::is_none) && !self.flags.stop.load(Ordering::Relaxed) {
            let mut sleep = LOOK;
            for (i, end) in ends.iter_mut().enumerate().filter(|(_, end)| end.is_none()) {
                let live = &self.lives[i];
                let finished_ns = live.finished_ns.load(Ordering::Acquire);
                if finished_ns != 0 {
                    let seconds = finished_ns.saturating_sub(start_ns) as f64 / 1e9;
                    *end = Some(Window::of(live).since(&first[i], seconds));
                } else if let Some(runtime) = self.jobs[self.places[i].job].runtime {
                    let elapsed = start.elapsed();
                    if elapsed >= runtime {
                        let window = Window::of(live).since(&first[i], elapsed.as_secs_f64());
                        live.asking.store(false, Ordering::Relaxed);
                        *end = Some(window);
                    } else {
                        sleep = sleep.min(runtime - elapsed);
                    }
                }
            }
            if shown_at.elapsed() >= Duration::from_secs(1) {
                self.ensure_open()?;
                let now: Vec<Window> = self.lives.iter().map(Window::of).collect();
                progress(&self.rates(&shown, &now, start.elapsed(), shown_at.elapsed()));
                (shown, shown_at) = (now, Instant::now());
            }
            std::thread::sleep(sleep);
        }
        self.drain()?;
        Ok(ends.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Waits until nothing is in flight, and what was written has been read back where that was asked for.
    fn drain(&self) -> Result<(), String> {
        let (mut last, mut progress_at) = (Vec::new(), Instant::now());
        while !self.flags.stop.load(Ordering::Relaxed) {
            if self.lives.iter().all(|live| live.settled.load(Ordering::Acquire)) {
                break;
            }
            let ended = |live: &Live| {
                Window::of(live).done.iter().sum::<u64>() + live.read_back.load(Ordering::Relaxed)
            };
            let now: Vec<u64> = self.lives.iter().map(ended).collect();
            if now != last {
                (last, progress_at) = (now, Instant::now());
            } else if progress_at.elapsed() > DRAIN_MAX {
                break;
            }
            self.ensure_open()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.flags.stop.load(Ordering::Relaxed)
            || self.lives.iter().all(|live| live.finished_ns.load(Ordering::Relaxed) != 0)
    }

    fn ensure_open(&self) -> Result<(), String> {
        match self.guests.iter().find(|guest| !guest.is_open()) {
            Some(guest) => Err(format!("{}: the device has gone", guest.path().display())),
            None => Ok(()),
        }
    }

    fn rates(&self, before: &[Window], now: &[Window], elapsed: Duration, interval: Duration) -> Progress {
        let mut result = Progress { elapsed_s: elapsed.as_secs_f64(), ..Progress::default() };
        let seconds = interval.as_secs_f64();
        for (i, place) in self.places.iter().enumerate() {
            for kind in 0..KINDS {
                let rate = (now[i].done[kind] - before[i].done[kind]) as f64 / seconds;
                result.per_s[kind] += rate;
                if let Some(bytes) = result.bytes_per_s.get_mut(kind) {
                    *bytes += rate * self.jobs[place.job].block as f64;
                }
            }
        }
        result
    }
}

/// One thread's lanes, until told to stop; returns how long it ran and how long it waited for a processor, ms.
fn drive(
    mut lanes: Vec<Lane<'_>>,
    core: Option<usize>,
    flags: &Flags,
    wait: bool,
) -> Result<(f64, f64), String> {
    if let Some(id) = core {
        core_affinity::set_for_current(core_affinity::CoreId { id });
    }
    let before = schedstat_ms();
    let mut measuring = false;
    while !flags.stop.load(Ordering::Relaxed) {
        if !measuring && flags.measuring.load(Ordering::Relaxed) {
            measuring = true;
            lanes.iter_mut().for_each(|lane| lane.load.clear_latency());
        }
        let mut moved = 0;
        for lane in &mut lanes {
            moved += lane.turn().map_err(|e| format!("the device broke its ring: {e}"))?;
        }
        if moved == 0 && wait {
            sleep(&mut lanes);
        }
    }
    let after = schedstat_ms();
    Ok((after.0 - before.0, after.1 - before.1))
}

/// Sleeps until a ring signals.
fn sleep(lanes: &mut [Lane<'_>]) {
    // Every ring must be armed, also behind one that has something already.
    let mut pending = false;
    for lane in lanes.iter_mut() {
        pending |= lane.queue.arm();
    }
    if !pending {
        let fds: Vec<_> = lanes.iter().map(|lane| lane.queue.call().as_fd()).collect();
        wait_readable(&fds, WAIT_MAX);
    }
    for lane in lanes.iter_mut() {
        let signals = lane.queue.disarm();
        lane.live.signals.fetch_add(signals, Ordering::Relaxed);
    }
}

/// Time this thread ran, and was ready but did not run, ms (schedstat); 0 where there is none.
fn schedstat_ms() -> (f64, f64) {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let mut fields = text.split_whitespace().map(|n| n.parse::<f64>().unwrap_or(0.0) / 1e6);
    (fields.next().unwrap_or(0.0), fields.next().unwrap_or(0.0))
}
