//! `avio-iogen`: see `avio_tools::iogen`.

use std::process::ExitCode;

fn main() -> ExitCode {
    avio_tools::iogen::main()
}
