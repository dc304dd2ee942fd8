//! `avio-test`: what `make test` runs. Its last line counts all tests of all parts as `N passed, N failed, N skipped`; exit
//! status 0 only when none failed. `--long` takes much longer and tries much more; a part's name runs that part alone.

use std::process::ExitCode;
use std::time::Instant;

use avio_tests::case::allowed_skips;
use avio_tests::runner::parts::{Extent, parts};
use avio_tests::runner::tally::Tally;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let extent = Extent { long: arguments.iter().any(|a| a == "--long") };
    let named: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let begin = Instant::now();
    let mut total = Tally::default();
    for part in parts(extent) {
        if named.is_empty() || named.iter().any(|name| *name == part.name) {
            total.add(part.run());
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
