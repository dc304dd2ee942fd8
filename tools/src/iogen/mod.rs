//! `avio-iogen`: a guest in a process that drives disks at full speed and verifies what they hold.
//!
//! Owns the order of things: options and job files, connections, run, report, exit status. `make bench-stor` uses its parts. It
//! reaches the daemon only as a guest does, through vhost-user sockets.

pub mod command;
pub mod content;
pub mod device;
pub mod jobfile;
pub mod lane;
pub mod load;
pub mod options;
pub mod report;
pub mod run;
pub mod sequence;

use clap::Parser;
use options::{Options, Plan};
use report::{Report, progress_line};
use run::Bench;
use std::process::ExitCode;

/// Runs `avio-iogen` with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    let cores: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|c| c.id).collect();
    let plan = match options.plan(&cores) {
        Ok(plan) => plan,
        Err(line) => {
            eprintln!("avio-iogen: ERROR: {line}");
            return ExitCode::from(2);
        }
    };
    let complaint = match generate(&plan) {
        Ok(report) => {
            if plan.json {
                println!("{:#}", report.json());
            } else {
                print!("{}", report.table());
            }
            report.complaint()
        }
        Err(line) => Some(line),
    };
    match complaint {
        None => ExitCode::SUCCESS,
        Some(line) => {
            eprintln!("avio-iogen: ERROR: {line}");
            ExitCode::from(1)
        }
    }
}

/// Connects and runs.
///
/// # Errors
/// One line, naming the socket or the option.
pub fn generate(plan: &Plan) -> Result<Report, String> {
    let mut bench = Bench::connect(plan.jobs.clone(), &plan.rings, plan.cores.clone())?;
    let measured = bench.run(|p| {
        if !plan.quiet {
            eprintln!("avio-iogen: {}", progress_line(p));
        }
    })?;
    Ok(Report::new(bench.jobs(), measured))
}
