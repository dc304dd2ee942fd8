//! `make bench-net`: this daemon, OVS-DPDK and DPDK testpmd measured in one run, guest to guest.
//!
//! The method is that of PEERS: two cores, the switch's thread on core 1 and the guests on core 0; windows of about a second
//! in turn (A B C A B C ...), the distance of the two cores probed around each; everything but the target that is being
//! measured is stopped; frames count when the receiver has them. Owns the order of things; its parts know one subject each.

mod avio;
mod idle;
mod machine;
mod options;
mod ovs;
mod probe;
mod process;
mod report;
mod rows;
mod stand;
mod svg;
mod target;
mod testpmd;
mod window;

use std::process::ExitCode;
use std::time::Instant;

use avio_tests::{Failure, Result, scratch};
use clap::Parser;

use machine::Machine;
use options::Options;
use report::Report;
use rows::{Row, rows};
use stand::Stand;

/// Core of the switch under test.
const SWITCH_CORE: usize = 1;
/// Core of the guests.
const GUEST_CORE: usize = 0;

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
    let machine = Machine::prepare(options)?;
    let mut report = Report::new(options, &machine);
    let mut stand = Stand::empty(options);
    for row in rows(options.quick, options.against.is_some()).iter().filter(|row| options.wants(row.name)) {
        machine.ensure_wanted()?;
        eprintln!("== {} ({:.0} s since the start)", row.title, begin.elapsed().as_secs_f64());
        match measure(&mut stand, &machine, options, row) {
            Ok(results) => {
                print!("{}", report.add(row, results));
                if !options.quick {
                    report.write()?;
                }
            }
            Err(failure) if machine.ensure_wanted().is_ok() => {
                eprintln!("   {} could not be measured: {failure}", row.title);
                report.add_failure(row, &failure);
                // Whatever is left of the processes is of no use for the next row.
                stand = Stand::empty(options);
            }
            Err(failure) => return Err(failure),
        }
    }
    drop(stand);
    if !options.quick {
        if options.wants("idle") {
            for figure in idle::measure(&machine)? {
                println!("{}: {}", figure.what, figure.value);
                report.add_figure(figure);
            }
        }
        report.write()?;
    }
    println!("{}", report.summary(begin.elapsed()));
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
