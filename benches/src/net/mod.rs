//! `make bench-net`: this daemon, OVS-DPDK and DPDK testpmd measured in one run, guest to guest.
//!
//! Measures as [`crate::beside`] has it, in windows of about a second; frames count when the receiver has them. Owns the order
//! of things; its parts know one subject each.

mod avio;
mod idle;
mod options;
pub(crate) mod ovs;
mod report;
mod rows;
mod stand;
pub(crate) mod target;
pub(crate) mod testpmd;
mod window;

use std::process::ExitCode;
use std::time::Instant;

use avio_tests::{Failure, Result, scratch};
use clap::Parser;

use options::Options;
use report::Report;
use rows::{Row, rows};
use stand::Stand;

use crate::beside::machine::Machine;
use crate::beside::{GUEST_CORE, TARGET_CORE as SWITCH_CORE};

/// Runs `bench-net` with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    let result = run(&options);
    // The folder holds sockets and transcripts of processes that are gone by now; a failure's transcripts are kept.
    match result {
        Ok(()) => {
            drop(std::fs::remove_dir_all(scratch::folder()));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("bench-net: ERROR: {failure}");
            eprintln!("bench-net: transcripts are in {}", scratch::folder().display());
            ExitCode::from(1)
        }
    }
}

fn run(options: &Options) -> Result {
    let begin = Instant::now();
    let rows = rows(options.quick, options.against.is_some());
    let figures = idle::FIGURES.iter().filter(|(name, _)| !options.quick && options.wants(name));
    if options.list {
        let names = rows.iter().map(|row| (row.name, row.title.as_str()));
        for (name, title) in names.chain(idle::FIGURES.iter().map(|(name, _)| (*name, "ours only"))) {
            println!("{name:<28} {title}");
        }
        return Ok(());
    }
    let wanted: Vec<&Row> = rows.iter().filter(|row| options.wants(row.name)).collect();
    let has_peers = options.wants_target("ovs")
        || options.wants_target("testpmd")
        || wanted.iter().any(|row| row.needs_huge_pages());
    let machine = Machine::prepare("bench-net", has_peers && !wanted.is_empty())?;
    let mut report = Report::new(options, &machine)?;
    let mut stand = Stand::empty(options);
    for row in wanted {
        machine.ensure_wanted()?;
        eprintln!("== {} ({:.0} s since the start)", row.title, begin.elapsed().as_secs_f64());
        match measure(&mut stand, &machine, options, row) {
            Ok(results) => print!("{}", report.add(row, Ok(results))?),
            Err(failure) if machine.ensure_wanted().is_ok() => {
                eprintln!("   {} could not be measured: {failure}", row.title);
                report.add(row, Err(&failure))?;
                // Whatever is left of the processes is of no use for the next row.
                stand = Stand::empty(options);
            }
            Err(failure) => return Err(failure),
        }
    }
    drop(stand);
    for (name, take) in figures {
        machine.ensure_wanted()?;
        let figure = take()?;
        println!("{}: {}", figure.what, figure.value);
        report.add_figure(name, figure)?;
    }
    println!("{}", report.summary(&rows, begin.elapsed()));
    Ok(())
}

fn measure(
    stand: &mut Stand,
    machine: &Machine,
    options: &Options,
    row: &Row,
) -> Result<Vec<window::Results>> {
    stand.fit(row)?;
    window::measure(stand, machine, options, row).map_err(|f: Failure| f.while_doing(row.name))
}
