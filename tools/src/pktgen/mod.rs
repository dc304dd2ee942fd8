//! `avio-pktgen`: a guest in a process that drives network ports at full speed and verifies what arrives.
//!
//! Owns the order of things: options, connections, one measurement or a search, report, exit status. `avio demo` uses its
//! parts. It reaches the switch only as a guest does, through vhost-user sockets.

pub mod frame;
pub mod lane;
pub mod options;
pub mod pattern;
pub mod receiver;
pub mod report;
pub mod run;
pub mod search;
pub mod sender;
pub mod tracker;

use avio_guest::Endpoint;
use clap::Parser;
use lane::{Job, Port, Requests};
use options::{Notify, Options, Plan, Role, Traffic};
use pattern::{Pattern, PatternSpec};
use receiver::{Receiver, Timing};
use report::{Report, progress_line};
use run::Schedule;
use search::Search;
use sender::{Rate, Sender};
use std::process::ExitCode;

/// Runs `avio-pktgen` with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    let cores: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|c| c.id).collect();
    let plan = match options.plan(&cores) {
        Ok(plan) => plan,
        Err(line) => {
            eprintln!("avio-pktgen: ERROR: {line}");
            return ExitCode::from(2);
        }
    };
    match generate(&plan) {
        Ok(report) => {
            if plan.options.json {
                println!("{}", serde_json::to_string(&report).unwrap_or_default());
            } else {
                print!("{}", report.table());
            }
            match report.complaint() {
                None => ExitCode::SUCCESS,
                Some(line) => {
                    eprintln!("avio-pktgen: ERROR: {line}");
                    ExitCode::from(1)
                }
            }
        }
        Err(line) => {
            eprintln!("avio-pktgen: ERROR: {line}");
            ExitCode::from(1)
        }
    }
}

/// Connects, measures or searches.
///
/// # Errors
/// One line, naming the socket.
pub fn generate(plan: &Plan) -> Result<Report, String> {
    let endpoints = plan
        .ports
        .iter()
        .map(|p| {
            if plan.options.listen {
                Endpoint::listen(&p.socket).map_err(|e| format!("{}: {e}", p.socket.display()))
            } else {
                Ok(Endpoint::connect(&p.socket))
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut ports = run::connect(endpoints, &plan.net).map_err(|e| e.to_string())?;
    if plan.options.search {
        let mut search =
            Search::new(plan.options.search_loss / 100.0, plan.options.search_resolution / 100.0);
        loop {
            let mut report = once(plan, &mut ports, search.rate())?;
            let go_on = search.take(report.mpps * 1e6, report.lost_ratio.unwrap_or(1.0));
            if !go_on || report.corrupt > 0 {
                report.search = Some(search.into_report());
                return Ok(report);
            }
        }
    }
    once(plan, &mut ports, plan.options.rate)
}

/// One measurement on ports that stay connected, at `rate` frames per second, over all transmitters of a search, per
/// transmitter otherwise. `make bench-net` measures its windows with it.
///
/// # Errors
/// One line: a connection that broke and could not be opened again.
pub fn once(plan: &Plan, ports: &mut [Port], rate: Option<f64>) -> Result<Report, String> {
    let senders = plan.ports.iter().filter(|p| p.to.is_some()).count().max(1) as f64;
    let per_port = if plan.options.search { rate.map(|r| r / senders) } else { rate };
    let jobs = plan.ports.iter().enumerate().map(|(i, _)| job(plan, i, per_port)).collect();
    let schedule = Schedule {
        warmup: plan.options.warmup,
        window: plan.options.duration,
        wait: plan.options.notify == Notify::Wait,
    };
    let measured = run::measure(ports, jobs, &plan.cores, &schedule, |p| {
        if !plan.options.quiet {
            eprintln!("avio-pktgen: {}", progress_line(p));
        }
    })
    .map_err(|e| e.to_string())?;
    let features: Vec<u64> = ports.iter().map(|p| p.guest.features()).collect();
    Ok(Report::new(plan, &measured, &features))
}

/// What port `index` does.
fn job(plan: &Plan, index: usize, rate: Option<f64>) -> Job {
    let (port, o) = (&plan.ports[index], &plan.options);
    let queue_count = plan.net.queue_pairs;
    let rr = o.pattern == Traffic::Rr;
    let timing = if rr { Timing::Every } else { Timing::Sampled };
    let senders = port.to.map_or_else(Vec::new, |to| {
        let spec = PatternSpec {
            lens: plan.lens.clone(),
            transport: plan.transport,
            flow_count: o.flows,
            source_mac_count: o.source_mac_count,
            peer_mac_count: o.peer_mac_count,
            broadcast_permille: (o.broadcast * 10.0).round() as u32,
            to,
            from: port.mac,
            source: index as u8,
        };
        // Answers go out on the first queue; so do requests: one is on its way at a time.
        let queues = if rr || port.answers { 1 } else { queue_count };
        let per_queue = if port.answers { None } else { rate.map(|r| r / f64::from(queues)) };
        (0..queues)
            .map(|q| {
                Sender::new(
                    Pattern::new(spec.clone(), q, queues),
                    index as u8,
                    Rate::new(per_queue, crate::latency::now_ns()),
                    timing,
                )
            })
            .collect()
    });
    // Only a process that also sends knows that numbers start at zero.
    let from_zero = o.role == Role::Pair;
    Job {
        senders,
        receiver: Receiver::new(o.verify, plan.mss, from_zero, timing),
        answers: port.answers,
        requests: (rr && !port.answers && port.to.is_some()).then(Requests::default),
    }
}
