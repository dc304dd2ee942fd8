//! `avio-test`: what `make test` runs. Its last line counts all tests of all parts as `N passed, N failed, N skipped`; exit
//! status 0 only when none failed. `--long` takes much longer and tries much more; a part's name runs that part alone.
//! `--soak MINUTES` runs the system parts over and over for so long, and stops after the first round with a failure.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use avio_tests::case::allowed_skips;
use avio_tests::runner::parts::{Extent, parts};
use avio_tests::runner::tally::Tally;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let soak = match soak_time(&arguments) {
        Ok(soak) => soak,
        Err(error) => {
            eprintln!("avio-test: {error}");
            return ExitCode::from(2);
        }
    };
    let extent = Extent { long: arguments.iter().any(|a| a == "--long") };
    let named: Vec<&String> = match soak {
        Some(_) => Vec::new(),
        None => arguments.iter().filter(|a| !a.starts_with("--")).collect(),
    };
    let begin = Instant::now();
    let mut total = Tally::default();
    for round in 1.. {
        for part in parts(extent) {
            let wanted = match soak {
                Some(_) => part.name.starts_with("system"),
                None => named.is_empty() || named.iter().any(|name| *name == part.name),
            };
            if wanted {
                total.add(part.run());
            }
        }
        match soak {
            Some(length) if total.failed.is_empty() && begin.elapsed() < length => {
                println!("== round {round} ended after {:.0} s", begin.elapsed().as_secs_f64());
            }
            _ => break,
        }
    }
    total.judge_skips(&allowed_skips());
    println!("\nall parts took {:.0} s", begin.elapsed().as_secs_f64());
    for name in &total.failed {
        println!("failed: {name}");
    }
    println!("{}", total.closing_line());
    if total.failed.is_empty() && total.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How long `--soak MINUTES` asks for, if it is there.
fn soak_time(arguments: &[String]) -> Result<Option<Duration>, String> {
    let Some(at) = arguments.iter().position(|a| a == "--soak") else { return Ok(None) };
    arguments
        .get(at + 1)
        .and_then(|minutes| minutes.parse().ok())
        .filter(|minutes| (1..=10_080).contains(minutes))
        .map(|minutes: u64| Some(Duration::from_secs(minutes * 60)))
        .ok_or_else(|| "--soak wants a number of minutes, 1 to 10080 (a week)".to_owned())
}
