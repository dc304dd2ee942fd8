//! `avio`: see `avio_tools::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    avio_tools::cli::avio()
}
