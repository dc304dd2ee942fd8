//! `avio-pktgen`: see `avio_tools::pktgen`.

use std::process::ExitCode;

fn main() -> ExitCode {
    avio_tools::pktgen::main()
}
