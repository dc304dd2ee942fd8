//! `make bench-stor`: this daemon, qemu-storage-daemon and fio on the bare backing, measured in one run.
//!
//! Measures as [`crate::beside`] has it. Our guest (`avio-iogen`'s library) drives our daemon and qemu-storage-daemon; fio does
//! its own I/O on the daemon's core. Owns the order of things; rows that were measured are kept, so that a long run can be
//! taken in slices (`--only`).

mod emulation;
mod generator;
mod idle;
mod options;
mod peers;
mod report;
mod rows;
mod stand;
mod store;
mod target;
mod window;

use std::process::ExitCode;
use std::time::Instant;

use avio_tests::{Result, scratch};
use clap::Parser;

use crate::beside::machine::Machine;
use options::Options;
use rows::rows;
use stand::Stand;
use store::Store;

/// Runs `bench-stor` with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        rows(&options).iter().for_each(|row| println!("{}", row.name));
        ["generator", "idle", "emulation"].iter().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let result = run(&options);
    match result {
        Ok(()) => {
            drop(std::fs::remove_dir_all(scratch::folder()));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("bench-stor: ERROR: {failure}");
            eprintln!("bench-stor: transcripts are in {}", scratch::folder().display());
            ExitCode::from(1)
        }
    }
}

/// What measures single figures: what, and value.
type Figures = fn(&Machine, &Options) -> Result<Vec<(String, String)>>;

fn run(options: &Options) -> Result {
    let begin = Instant::now();
    let machine = Machine::prepare("bench-stor", false)?;
    let mut store = Store::open(options, &machine.facts)?;
    let mut stand: Option<Stand> = None;
    for row in rows(options).iter().filter(|row| options.wants(row.name)) {
        machine.ensure_wanted()?;
        if options.seconds.is_some_and(|limit| begin.elapsed().as_secs_f64() > limit) {
            eprintln!("bench-stor: time is up; go on with --missing");
            break;
        }
        if options.missing && store.has(row.name) {
            continue;
        }
        eprintln!("== {} ({:.0} s since the start)", row.title, begin.elapsed().as_secs_f64());
        machine.prioritise(!row.backing.is_kernels());
        // Neighbours share their processes where they can.
        if stand.as_ref().is_none_or(|stand| !stand.fits(row)) {
            drop(stand.take());
            match Stand::start(options, row) {
                Ok(started) => stand = Some(started),
                Err(failure) => {
                    eprintln!("   {} could not be measured: {failure}", row.title);
                    store.add_failure(row, &failure.to_string());
                    continue;
                }
            }
        }
        let Some(running) = &mut stand else { continue };
        match window::measure(running, &machine, options, row) {
            Ok(results) => {
                store.add(row, results);
                print!("{}", report::row(row, &store));
            }
            Err(failure) if machine.ensure_wanted().is_ok() => {
                eprintln!("   {} could not be measured: {failure}", row.title);
                store.add_failure(row, &failure.to_string());
                stand = None;
            }
            Err(failure) => return Err(failure),
        }
        if !options.quick {
            report::write(options, &store)?;
        }
    }
    drop(stand);
    let kinds: [(&str, Figures); 3] =
        [("generator", generator::measure), ("idle", idle::measure), ("emulation", emulation::measure)];
    for (name, measure) in kinds {
        let wanted = !options.quick && options.wants(name) && !(options.missing && store.has_figures(name));
        let in_time = options.seconds.is_none_or(|limit| begin.elapsed().as_secs_f64() <= limit);
        if wanted && in_time {
            eprintln!("== {name}");
            machine.prioritise(name != "emulation");
            store.forget_figures(name);
            for (what, value) in measure(&machine, options)? {
                println!("{what}: {value}");
                store.add_figure(name, what, value);
            }
        }
    }
    if !options.quick {
        report::write(options, &store)?;
    }
    println!("{}", report::summary(options, &store, begin.elapsed()));
    Ok(())
}
