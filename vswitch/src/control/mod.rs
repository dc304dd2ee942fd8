//! The control thread of `avio-vswitchd`: start, what happens in its event loop, stop.
//!
//! It moves no frame and blocks on nothing while it runs; only start-up reads files itself.

mod control_queue;
mod device;
mod fabric;
mod interface;
mod link_status;
mod reload;
mod show;
mod sockets;
mod switch;
mod taps;
#[cfg(test)]
mod tests;
pub mod uplink;
mod varlink;

use std::io;
use std::time::Instant;

use avio_host::blocking::{DEFAULT_THREADS, Helpers, Mailbox};
use avio_host::config::{check, load, surroundings};
use avio_host::control::Reloads;
use avio_host::daemon::EventLoop;
use avio_host::facility::Facilities;
use avio_host::inject;
use avio_host::links::Links;
use avio_host::options::DaemonOptions;
use avio_host::service::Service;
use avio_host::session::Sessions;
use avio_proto::config::PollMode;
use avio_proto::control::SOCKET_FILE_NAME;

use crate::forward;
use crate::port::xdp::xdp_available;
use fabric::Fabric;
use link_status::LinkStatus;
use reload::Reader;
use switch::{Start, Switch};
use taps::Taps;
use uplink::{Allowed, Uplinks};
use varlink::{CAPABILITIES, CONTROL_FRAMES, Daemon, LINKS, OFFLOADS, VMMS};

/// Kernel facilities newer than the floor that this daemon can use; `AVIO_DISABLE` switches them off.
const FACILITIES: &[&str] = &[XDP, ZERO_COPY, BUSY_POLL, BURST, REDIRECT, VLAN_TAGS, TCX];
const XDP: &str = "xdp";
const ZERO_COPY: &str = "xdp_zero_copy";
const BUSY_POLL: &str = "xdp_busy_poll";
const BURST: &str = "xdp_burst";
const REDIRECT: &str = "xdp_redirect";
const VLAN_TAGS: &str = "xdp_vlan_tags";
const TCX: &str = "tcx";

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What was wrong, a line each: what, where, what would be right.
pub fn run(options: &DaemonOptions) -> Result<(), String> {
    let mut facilities = Facilities::from_env(FACILITIES).map_err(|e| e.to_string())?;
    inject::arm_from_environment().map_err(|part| format!("AVIO_TEST_PANIC: `{part}` is not step:nth"))?;
    let around = surroundings(CAPABILITIES);
    if options.check {
        let text = check(&options.config, &around).map_err(|e| e.to_string())?;
        let config = load(&options.config, &around).map_err(|e| e.to_string())?;
        let wrong =
            uplink::check_devices(&config).map_err(|e| format!("cannot look at network devices: {e}"))?;
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        print!("{text}");
        return Ok(());
    }
    avio_host::log::init().map_err(|e| e.to_string())?;
    let config = load(&options.config, &around).map_err(|e| e.to_string())?;
    let event_loop = EventLoop::open(options, SOCKET_FILE_NAME)?;
    let waker = event_loop.waker();
    let (events_in, events) = forward::Events::new(waker.clone());
    // Each has the empty table.
    let workers = event_loop.start_workers(&config.workers, |number| {
        forward::Engine::new(number, events_in.clone(), waker.clone())
    })?;
    let system = |e: io::Error| format!("cannot start: {e}");
    let helpers = Helpers::new(DEFAULT_THREADS).map_err(system)?;
    let sessions = Sessions::new(helpers.clone()).map_err(system)?;
    let has_xdp = facilities.probe(XDP, || match xdp_available() {
        Ok(()) => Ok("AF_XDP sockets".to_owned()),
        Err(error) => Err(error.to_string()),
    });
    let if_xdp = |detail: &str| if has_xdp { Ok(detail.to_owned()) } else { Err("needs xdp".to_owned()) };
    let allowed = Allowed {
        xdp: has_xdp,
        zero_copy: facilities.probe(ZERO_COPY, || if_xdp("where the driver has it")),
        busy_poll: facilities.probe(BUSY_POLL, || match config.workers.poll {
            PollMode::Always => if_xdp("where the driver has it"),
            _ => Err("only for workers that never sleep (poll = \"always\")".to_owned()),
        }),
        burst: facilities.probe(BURST, || if_xdp("where the device copies")),
        redirect: facilities
            .probe(REDIRECT, || if_xdp("where the device copies and has no queueing discipline")),
        vlan_tags: facilities
            .probe(VLAN_TAGS, || if_xdp("where kernel (6.8) and driver tell of tags beside frames")),
        siblings: facilities.probe(TCX, || Ok("for aggregates, where the kernel has it (6.6)".to_owned())),
    };
    let links = Links::new().map_err(system)?;
    let uplinks = Uplinks::new(
        links,
        helpers.clone(),
        Mailbox::new(event_loop.helper_waker()),
        allowed,
        config.workers.placement().len(),
    )
    .map_err(system)?;
    event_loop.watches().add(uplinks.links_fd(), LINKS).map_err(system)?;
    event_loop.watches().add(uplinks.control_frames_fd(), CONTROL_FRAMES).map_err(system)?;
    if let Some(fd) = uplinks.offloads_fd() {
        event_loop.watches().add(fd, OFFLOADS).map_err(system)?;
    }
    let started_with = config.workers.clone();
    let taps = Taps::new(waker.clone(), helpers.clone(), Mailbox::new(event_loop.helper_waker()));
    let link_status =
        LinkStatus::new(options.run_dir.clone(), helpers.clone(), Mailbox::new(event_loop.helper_waker()));
    if let Some(fd) = link_status.arrivals_fd() {
        event_loop.watches().add(fd, VMMS).map_err(system)?;
    }
    let start = Start { run_dir: options.run_dir.clone(), workers: started_with };
    let mut switch = Switch::new(start, sessions, Fabric::new(workers), taps, uplinks, link_status, events);
    switch.look_at_host();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    switch.reconcile(config).map_err(|reasons| reasons.join("\n"))?;
    switch.turn(Instant::now());
    let daemon = Daemon {
        switch,
        service: Service::new("avio-vswitchd"),
        reader: Reader::new(options.config.clone(), helpers, Mailbox::new(event_loop.helper_waker())),
        reloads: Reloads::default(),
        facilities: facilities.states().to_vec(),
        started: Instant::now(),
    };
    event_loop.run(daemon)?.switch.stop();
    Ok(())
}
