//! What the daemon costs when nothing happens: connected idle LUNs. Figures of ours only.

use std::time::{Duration, Instant};

use avio_guest::Endpoint;
use avio_guest::storage::{Adapter as Guest, Kind, StorageOptions};
use avio_tests::daemon::Daemon;
use avio_tests::storage::{Adapter, Storage};
use avio_tests::{Result, scratch};

use super::options::Options;
use super::peers::SIZE;
use crate::beside::machine::Machine;
use crate::beside::{TARGET_CORE, process};

/// Time in which idle costs are counted.
const WINDOW: Duration = Duration::from_secs(5);

/// What was measured, and its value.
///
/// # Errors
/// When the daemon does not start.
pub fn measure(machine: &Machine, _: &Options) -> Result<Vec<(String, String)>> {
    machine.ensure_wanted()?;
    let backing = format!("null:{SIZE}");
    let adapter = (0..128).fold(Adapter::new("g", "avio_stor"), |adapter, i| adapter.disk(i, &backing, ""));
    let head = format!("[workers]\ncores = [{TARGET_CORE}]\n");
    let mut daemon = Daemon::start_in(scratch::folder().join("idle"), Storage::one(adapter).head(&head))?;
    let endpoint = Endpoint::connect(daemon.stor_socket("g")?);
    let guest = Guest::connect(endpoint, &StorageOptions::new(Kind::Scsi))?;
    std::thread::sleep(Duration::from_millis(500));
    let pid = daemon.console()?.pid();
    let (before, start) = (process::by_thread(pid)?, Instant::now());
    std::thread::sleep(WINDOW);
    let used = process::sum_since(&before, &process::by_thread(pid)?);
    let seconds = start.elapsed().as_secs_f64();
    drop(guest);
    Ok(vec![(
        "128 LUNs attached to an idle guest, poll = \"adaptive\"".into(),
        format!(
            "{:.3} % of a core, {:.1} wake-ups/s (goal: less than 1 %)",
            used.ran_ns as f64 / 1e9 / seconds * 100.0,
            used.wakeups as f64 / seconds
        ),
    )])
}
