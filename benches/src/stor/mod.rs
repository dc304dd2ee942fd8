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
mod target;
mod window;

use std::process::ExitCode;
use std::time::Instant;

use avio_tests::failure::ensure;
use avio_tests::{Result, scratch};
use clap::Parser;

use crate::beside::machine::Machine;
use options::Options;
use report::Report;
use rows::{Row, rows};
use stand::Stand;
use target::Target;

/// Runs `bench-stor` with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
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

const FIGURES: [(&str, Figures); 3] =
    [("generator", generator::measure), ("idle", idle::measure), ("emulation", emulation::measure)];

/// A row or a kind of single figures.
enum Part {
    Row(Row),
    Figures(&'static str, Figures),
}

impl Part {
    fn name(&self) -> &str {
        match self {
            Part::Row(row) => &row.name,
            Part::Figures(name, _) => name,
        }
    }
}

/// What these options ask for, in order.
///
/// # Errors
/// When that is nothing.
fn parts(options: &Options) -> Result<Vec<Part>> {
    // Single figures are ours alone: there is no peer to compare them with, and no other build.
    let figures = FIGURES.iter().filter(|_| options.writes());
    let parts = rows(options).into_iter().map(Part::Row);
    let parts = parts.chain(figures.map(|&(name, measure)| Part::Figures(name, measure)));
    let wanted: Vec<Part> = parts.filter(|part| options.wants(part.name())).collect();
    ensure(!wanted.is_empty(), || {
        format!("no row of this form is called {}; --list names them", options.only.join(" or "))
    })?;
    Ok(wanted)
}

fn run(options: &Options) -> Result {
    let begin = Instant::now();
    let parts = parts(options)?;
    if options.list {
        parts.iter().for_each(|part| println!("{}", part.name()));
        return Ok(());
    }
    let machine = Machine::prepare("bench-stor", false)?;
    let mut report = Report::open(options, &machine.facts)?;
    let parts: Vec<Part> =
        parts.into_iter().filter(|part| !(options.missing && report.has(part.name()))).collect();
    let mut stand: Option<Stand> = None;
    for (at, part) in parts.iter().enumerate() {
        machine.ensure_wanted()?;
        if options.seconds.is_some_and(|limit| begin.elapsed().as_secs_f64() > limit) {
            eprintln!("bench-stor: time is up; go on with --missing");
            break;
        }
        eprintln!("== {} ({:.0} s since the start)", part.name(), begin.elapsed().as_secs_f64());
        match part {
            Part::Row(row) => {
                machine.prioritise(!row.backing.is_kernels());
                // Neighbours share their processes: those of the rows that follow are started with it.
                if stand.as_ref().is_none_or(|stand| !stand.fits(options, row)) {
                    drop(stand.take());
                }
                let found = match &mut stand {
                    Some(stand) => window::measure(stand, &machine, options, row),
                    none => Stand::start(options, row.backing, &shared(&parts[at..], row))
                        .and_then(|started| window::measure(none.insert(started), &machine, options, row)),
                };
                if let Err(failure) = &found {
                    machine.ensure_wanted()?;
                    eprintln!("   {} could not be measured: {failure}", row.title);
                    stand = None;
                }
                print!("{}", report.add(row, found)?);
            }
            Part::Figures(name, measure) => {
                drop(stand.take());
                machine.prioritise(*name != "emulation");
                let found = measure(&machine, options)?;
                found.iter().for_each(|(what, value)| println!("{what}: {value}"));
                report.add_figures(name, found)?;
            }
        }
    }
    drop(stand);
    report.write()?;
    println!("{}", report.summary(begin.elapsed()));
    Ok(())
}

/// Targets of `row` and of those right behind it that belong to its set.
fn shared(parts: &[Part], row: &Row) -> Vec<Target> {
    let mut targets = Vec::new();
    let rows = parts.iter().map_while(|part| match part {
        Part::Row(next) if (next.backing, next.set) == (row.backing, row.set) => Some(next),
        _ => None,
    });
    for target in rows.flat_map(|row| &row.targets) {
        if !targets.contains(target) {
            targets.push(*target);
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts_of(arguments: &[&str]) -> Result<Vec<Part>> {
        parts(&Options::parse_from(["bench-stor"].iter().chain(arguments)))
    }

    #[test]
    fn what_is_asked_for_is_measured_or_refused() {
        assert_eq!(parts_of(&["--only", "idle"]).unwrap().len(), 1);
        assert_eq!(parts_of(&["--only", "null-luns", "--against", "x"]).unwrap().len(), 8);
        let refused = parts_of(&["--only", "nul-luns"]).err().unwrap().to_string();
        assert!(refused.contains("nul-luns") && refused.contains("--list"), "{refused}");
        assert!(parts_of(&["--quick", "--only", "generator"]).is_err());
    }

    #[test]
    fn processes_are_shared_inside_a_set_only() {
        let parts = parts_of(&["--only", "file-read,file-write,file-queues-read"]).unwrap();
        let Part::Row(first) = &parts[0] else { unreachable!("a row") };
        let targets = shared(&parts, first);
        assert!(targets.contains(&Target::FIO.way(target::Way::Deep)), "of a later row");
        assert!(!targets.contains(&Target::BLK.queues(2)), "of another set");
    }
}
