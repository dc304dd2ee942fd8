//! The control thread of `avio-stord`: start, what happens in its event loop, stop.
//!
//! It does no I/O of guests and blocks on nothing while it runs; start-up opens the backings itself.

mod adapter;
mod device;
mod journal;
mod lun;
mod served;
mod show;
mod storage;
mod varlink;

use std::io;
use std::time::Instant;

use avio_host::blocking::{DEFAULT_THREADS, Helpers, Mailbox};
use avio_host::config::{check, load, surroundings};
use avio_host::daemon::EventLoop;
use avio_host::facility::Facilities;
use avio_host::inject;
use avio_host::options::DaemonOptions;
use avio_host::service::Service;
use avio_host::session::Sessions;
use avio_proto::control::STORD_SOCKET_FILE_NAME;

use crate::backing::Io;
use crate::serve::{self, Engine};
use crate::uring::{Capabilities, FACILITIES};
use storage::{Parts, Storage, wanted};
use varlink::{CAPABILITIES, Daemon};

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What was wrong, a line each: what, where, what would be right.
pub fn run(options: &DaemonOptions) -> Result<(), String> {
    let mut facilities = Facilities::from_env(FACILITIES).map_err(|e| e.to_string())?;
    let around = surroundings(CAPABILITIES);
    if options.check {
        let text = check(&options.config, &around).map_err(|e| e.to_string())?;
        let config = load(&options.config, &around).map_err(|e| e.to_string())?;
        wanted(&config).map_err(|lines| lines.join("\n"))?;
        print!("{text}");
        return Ok(());
    }
    avio_host::log::init().map_err(|e| e.to_string())?;
    inject::arm_from_environment().map_err(|part| format!("AVIO_TEST_PANIC: `{part}` is not step:nth"))?;
    let config = load(&options.config, &around).map_err(|e| e.to_string())?;
    let capabilities = Capabilities::probe(&mut facilities)?;

    let event_loop = EventLoop::open(options, STORD_SOCKET_FILE_NAME)?;
    let (events_in, events) = serve::Events::new(event_loop.waker().clone());
    let started_with = config.storage.workers.clone();
    let (count, epoch) = (started_with.placement().len(), Instant::now());
    let workers = event_loop.start_workers(&started_with, |number| {
        Engine::new(number, count, events_in.clone(), Io::new(capabilities), epoch)
    })?;
    let system = |e: io::Error| format!("cannot start: {e}");
    let helpers = Helpers::new(DEFAULT_THREADS).map_err(system)?;
    // Opening and journalling wait for disks; mapping must not wait for them.
    let sessions = Sessions::new(Helpers::new(DEFAULT_THREADS).map_err(system)?).map_err(system)?;
    let mut storage = Storage::new(Parts {
        run_dir: options.run_dir.clone(),
        state_dir: options.state_dir.clone(),
        started_with,
        sessions,
        workers,
        events,
        helpers,
        journal: Helpers::new(1).map_err(system)?,
        mailbox: Mailbox::new(event_loop.helper_waker()),
    });
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    storage.start(config).map_err(|reasons| reasons.join("\n"))?;
    storage.turn(Instant::now());
    let daemon = Daemon::new(storage, Service::new("avio-stord"), options.config.clone());
    event_loop.run(daemon)?.storage.stop();
    Ok(())
}
