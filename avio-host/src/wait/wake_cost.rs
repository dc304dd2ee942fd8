//! What it costs on this machine to wake a thread that sleeps in epoll: measured once, the yardstick for spinning.
//!
//! Called when the first worker starts (about a millisecond, on the control thread). Never called on the data path.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::wait::EventFd;

/// Round trips measured: the median of this few is stable to some ten per cent, which is all that is needed.
const ROUNDS: usize = 31;
/// Below this no kernel wakes a thread; a smaller figure is a measurement on a spinning idle loop.
const FLOOR: Duration = Duration::from_micros(2);
/// Above this the machine was disturbed while we measured; believing it would make workers spin for too long.
const CEILING: Duration = Duration::from_micros(50);

/// The time from writing an eventfd to running in the thread that slept on it, bounded to 2..=50 us.
pub fn wake_cost() -> Duration {
    static COST: OnceLock<Duration> = OnceLock::new();
    *COST.get_or_init(|| measure().unwrap_or(FLOOR).clamp(FLOOR, CEILING))
}

/// Half the median round trip between two threads that wake each other. `None` without descriptors or threads to spare.
fn measure() -> Option<Duration> {
    let (there, back) = (EventFd::new().ok()?, EventFd::new().ok()?);
    thread::scope(|scope| {
        thread::Builder::new()
            .name("avio-wake-cost".into())
            .spawn_scoped(scope, || {
                for _ in 0..ROUNDS {
                    sleep_on(&there);
                    back.signal();
                }
            })
            .ok()?;
        let mut trips: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                there.signal();
                sleep_on(&back);
                start.elapsed()
            })
            .collect();
        trips.sort_unstable();
        Some(trips[ROUNDS / 2] / 2)
    })
}

/// Waits until `fd` was signalled and resets it.
fn sleep_on(fd: &EventFd) {
    while !fd.drain() {
        let _ = poll(&mut [PollFd::new(fd, PollFlags::IN)], None);
    }
}
