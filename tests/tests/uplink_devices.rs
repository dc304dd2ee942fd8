//! The devices that uplinks are made of: rings that the kernel does not serve any more.

use std::process::ExitCode;
use std::time::Duration;

use avio_tests::Result;
use avio_tests::case::{self, Case};
use avio_tests::daemon::Daemon;
use avio_tests::failure::ensure;
use avio_tests::uplink::{self, arrived, config, device, frames_out, wait_arrived, wait_device, wait_key};
use avio_tests::wire::{Wire, run};

/// For cases that wait for a watchdog, which takes some four seconds.
const WATCHED_S: u64 = 60;
/// Somebody on the wire.
const NEIGHBOUR: &str = "02:00:00:00:00:63";

fn main() -> ExitCode {
    case::main(&[
        Case::new("stuck_fill_ring_steps_down", WATCHED_S, stuck_fill_ring_steps_down),
        Case::new("stuck_transmit_ring_steps_down", WATCHED_S, stuck_transmit_ring_steps_down),
    ])
}

/// No kernel here loses a fill ring, so the daemon is told that one did, twice: each time the device is opened anew a step lower, the log has one line, the
/// operator sees why, and frames flow. A device that is set up anew begins at the top.
fn stuck_fill_ring_steps_down() -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    let mut daemon = Daemon::start(config(&wire.near, "", ""))?;
    daemon.stop()?;
    daemon.restart_with(&[("AVIO_TEST_PANIC", "uplink::fill_stuck:1,uplink::fill_stuck:3")], 5)?;
    let load = frames_out(&daemon, NEIGHBOUR, 50, 2000)?;
    for (from, to) in [("copy", "generic"), ("generic", "packet")] {
        let line = format!("the fill ring of queue 0 was stuck; opened anew, a step down from {from}");
        daemon.console()?.wait_for(&line, 10)?;
        wait_key(&daemon, "access", to)?;
        let remarks = device(&daemon, "remarks")?;
        let said = remarks.as_array().is_some_and(|all| {
            all.iter().any(|one| one.as_str().is_some_and(|one| one.contains("stepped down from")))
        });
        ensure(said, || format!("the operator is not told: {remarks}"))?;
        let before = arrived(&wire)?;
        wait_arrived(&wire, before, 200)?;
    }
    drop(load);
    run("ip", &["link", "set", &wire.near, "down"])?;
    wait_device(&daemon, "Down")?;
    run("ip", &["link", "set", &wire.near, "up"])?;
    wait_key(&daemon, "access", uplink::best())?;
    let output = daemon.console()?.output();
    ensure(output.matches("was stuck").count() == 2, || format!("other lines: {output}"))?;
    daemon.ensure_healthy()
}

/// A device whose frames lie in a queue of the host for ever: the kernel takes none any more from the transmit ring. While they leave, however slowly,
/// the device is left alone.
fn stuck_transmit_ring_steps_down() -> Result {
    let wire = Wire::new("192.0.2.2/24")?;
    let near = wire.near.as_str();
    let top = format!("{near}m");
    run("ip", &["link", "add", "link", near, "name", &top, "type", "macvlan", "mode", "passthru"])?;
    run("ip", &["link", "set", &top, "up"])?;
    let queue = |how: &str, rate: &str| {
        let parts =
            ["qdisc", how, "dev", near, "root", "tbf", "rate", rate, "burst", "2000", "limit", "100mb"];
        run("tc", &parts).map(drop)
    };
    queue("add", "100kbit")?;
    let mut daemon = Daemon::start(config(&top, "", ""))?;
    wait_key(&daemon, "access", "generic")?;
    // Far more than the queue lets out: the transmit ring is full all the time.
    let before = arrived(&wire)?;
    let load = frames_out(&daemon, NEIGHBOUR, 40, 3000)?;
    std::thread::sleep(Duration::from_secs(7));
    wait_arrived(&wire, before, 100)?;
    let output = daemon.console()?.output();
    ensure(!output.contains("was stuck"), || format!("slow is not stuck: {output}"))?;
    queue("change", "8bit")?;
    let line = "the transmit ring of queue 0 was stuck; opened anew, a step down from generic";
    daemon.console()?.wait_for(line, 15)?;
    wait_key(&daemon, "access", "packet")?;
    run("tc", &["qdisc", "del", "dev", near, "root"])?;
    let before = arrived(&wire)?;
    wait_arrived(&wire, before, 1000)?;
    drop(load);
    daemon.ensure_healthy()
}
