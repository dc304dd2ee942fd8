//! The machine during a run: huge pages for the peers, the priority of our session, the wish to stop.
//!
//! Owns what has to be put back. Dropping it restores the number of huge pages.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use avio_tests::failure::ensure;
use avio_tests::{Failure, Result};
use rustix::process::Signal;

/// Huge pages of 2 MiB that the peers need: OVS begins with 512 MiB and takes 760 more for its buffers if it can, 768 for testpmd as a
/// switch, 192 for each of three testpmd guests.
const HUGE_PAGES: u64 = 1400;
const HUGE_PAGES_FILE: &str = "/proc/sys/vm/nr_hugepages";
/// What wins against other sessions of this machine; plain nice only orders processes inside a session.
const SESSION_PRIORITY: &str = "-20";
/// What every session has.
const SESSION_EVEN: &str = "0";

/// See the module.
pub struct Machine {
    program: &'static str,
    /// What to put back; `None`: nothing was changed.
    huge_pages: Option<u64>,
    stop: Arc<AtomicBool>,
    /// One line about processor, kernel, cores.
    pub facts: String,
}

impl Machine {
    /// Sets everything up, with huge pages for peers that need them. `program` is who says what cannot be had.
    ///
    /// # Errors
    /// Fewer than two cores, or no right to have huge pages.
    pub fn prepare(program: &'static str, needs_huge_pages: bool) -> Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        ensure(cores >= 2, || format!("{cores} core: a daemon and its guests need one each"))?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        // Session and process group of our own, so Ctrl-C reaches only make; its end then reaches us.
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        if rustix::process::setsid().is_err() {
            eprintln!("{program}: this process leads a group already: priority goes to its whole session");
        }
        let mut machine = Self { program, huge_pages: None, stop, facts: facts(cores) };
        machine.prioritise(true);
        if needs_huge_pages {
            machine.take_huge_pages()?;
        }
        Ok(machine)
    }

    fn take_huge_pages(&mut self) -> Result {
        let read = || -> Result<u64> { Ok(fs::read_to_string(HUGE_PAGES_FILE)?.trim().parse()?) };
        let free = free_huge_pages()?;
        if free >= HUGE_PAGES {
            return Ok(());
        }
        let before = read()?;
        let wanted = before + HUGE_PAGES - free;
        fs::write(HUGE_PAGES_FILE, wanted.to_string()).map_err(|e| {
            Failure::new(format!("{HUGE_PAGES_FILE}: {e}: the peers need huge pages, so run this as root"))
        })?;
        self.huge_pages = Some(before);
        let free = free_huge_pages()?;
        ensure(free >= HUGE_PAGES, || format!("only {free} of {HUGE_PAGES} huge pages of 2 MiB could be had"))
    }

    /// Gives our session, targets included, priority over other sessions, or the same as they have. Without it rows whose I/O is
    /// finished by threads of the kernel's: a session with priority keeps those from the core as well.
    pub fn prioritise(&self, wanted: bool) {
        if let Err(e) =
            fs::write("/proc/self/autogroup", if wanted { SESSION_PRIORITY } else { SESSION_EVEN })
        {
            eprintln!("{}: no priority over other sessions (/proc/self/autogroup: {e})", self.program);
        }
    }

    /// Fails once somebody asked this run to end.
    ///
    /// # Errors
    /// Then.
    pub fn ensure_wanted(&self) -> Result {
        ensure(!self.stop.load(Ordering::Relaxed), || "stopped by a signal".to_owned())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(before) = self.huge_pages
            && let Err(e) = fs::write(HUGE_PAGES_FILE, before.to_string())
        {
            eprintln!("{}: {HUGE_PAGES_FILE} could not be set back to {before}: {e}", self.program);
        }
    }
}

fn free_huge_pages() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    Ok(line.unwrap_or("0").trim().parse()?)
}

fn facts(cores: usize) -> String {
    let model = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split(':').nth(1)?.trim().to_owned())
    });
    let mhz = mhz().map_or_else(String::new, |mhz| format!(" at {mhz:.0} MHz"));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} x {}{mhz}, Linux {}", model.unwrap_or_else(|| "unknown processor".into()), kernel.trim())
}

/// Rate at which the processor's cycle counter runs, in MHz; in a guest that is what the kernel shows.
pub fn mhz() -> Option<f64> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
    line.split(':').nth(1)?.trim().parse().ok()
}
