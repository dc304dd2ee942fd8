//! Stopping and continuing processes of ours, and what they waited for the processor.
//!
//! Only processes that this run started are ever signalled, by their pid.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use avio_tests::console::Console;
use avio_tests::{Failure, Result};
use rustix::process::Signal;

/// How long a process may take to stop.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Stops a process and returns when none of its threads runs.
///
/// # Errors
/// When it is gone.
pub fn stop(console: &Console) -> Result {
    console.signal(Signal::STOP)?;
    let deadline = Instant::now() + STOP_MAX;
    while !is_stopped(console.pid())? {
        if Instant::now() > deadline {
            return Err(Failure::new(format!("process {} does not stop", console.pid())));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Lets it run again.
///
/// # Errors
/// When it is gone.
pub fn resume(console: &Console) -> Result {
    console.signal(Signal::CONT)
}

fn is_stopped(pid: u32) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(stat) = fs::read_to_string(task?.path().join("stat")) else { continue };
        // The name in brackets may hold anything; the state follows the last bracket.
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
        if state != Some('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Time that all threads of a process ran, and time that they were ready but did not run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scheduled {
    /// Running, in nanoseconds.
    pub ran_ns: u64,
    /// Waiting for a processor, in nanoseconds.
    pub waited_ns: u64,
    /// Times that a thread gave up the processor by itself: wake-ups.
    pub wakeups: u64,
}

/// Numbers of one thread each, by thread id.
pub type ByThread = BTreeMap<String, Scheduled>;

/// The numbers of all threads of `pid` until now.
///
/// # Errors
/// When it is gone.
pub fn by_thread(pid: u32) -> Result<ByThread> {
    let mut threads = ByThread::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let mut fields = text.split_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
        let (ran_ns, waited_ns) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let wakeups = line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
        let id = task.file_name().to_string_lossy().into_owned();
        threads.insert(id, Scheduled { ran_ns, waited_ns, wakeups });
    }
    Ok(threads)
}

/// The same of `pid` and its children, which have no children of their own: fio does its work in one.
///
/// # Errors
/// When it is gone.
pub fn by_family(pid: u32) -> Result<ByThread> {
    let mut threads = by_thread(pid)?;
    for child in children(pid)? {
        // One that has just ended has nothing to tell.
        if let Ok(more) = by_thread(child) {
            threads.extend(more);
        }
    }
    Ok(threads)
}

/// The children of `pid`'s first thread.
///
/// # Errors
/// When it is gone.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_whitespace().filter_map(|child| child.parse().ok()).collect())
}

/// What the busiest thread did between two looks: the one that polls. Others may wait behind the guests, and do no harm.
pub fn busiest_since(before: &ByThread, after: &ByThread) -> Scheduled {
    let since = |(id, now): (&String, &Scheduled)| now.since(before.get(id).copied().unwrap_or_default());
    after.iter().map(since).max_by_key(|s| s.ran_ns).unwrap_or_default()
}

/// What all threads did together between two looks.
pub fn sum_since(before: &ByThread, after: &ByThread) -> Scheduled {
    let since = |(id, now): (&String, &Scheduled)| now.since(before.get(id).copied().unwrap_or_default());
    after.iter().map(since).fold(Scheduled::default(), |a, b| Scheduled {
        ran_ns: a.ran_ns + b.ran_ns,
        waited_ns: a.waited_ns + b.waited_ns,
        wakeups: a.wakeups + b.wakeups,
    })
}

impl Scheduled {
    /// What came since `earlier`.
    fn since(self, earlier: Self) -> Self {
        Self {
            ran_ns: self.ran_ns.saturating_sub(earlier.ran_ns),
            waited_ns: self.waited_ns.saturating_sub(earlier.waited_ns),
            wakeups: self.wakeups.saturating_sub(earlier.wakeups),
        }
    }
}
