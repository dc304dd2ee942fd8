//! The parts of `make test` and how each is run. Every part is a command whose output has libtest's form; a part that fails
//! without naming a failed test counts as one failure itself.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::tally::{Ending, Line, Tally, read};

/// A named command.
pub struct Part {
    /// What the progress lines and failures call it.
    pub name: &'static str,
    command: Command,
}

/// What the whole run is to be.
#[derive(Clone, Copy)]
pub struct Extent {
    /// Many more random cases, and the system tests several times over.
    pub long: bool,
}

/// Every newer kernel facility that the daemons can do without, as `AVIO_DISABLE` names them.
const FACILITIES: &str = "all";

/// The parts, in the order in which they run: what fails fastest comes first.
pub fn parts(extent: Extent) -> Vec<Part> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let run = |name, arguments: &[&str]| {
        let mut command = Command::new(&cargo);
        command.args(arguments);
        Part { name, command }
    };
    let mut lint = Command::new("scripts/lint");
    // House rules are tests of this crate, and counted as such below.
    lint.args(["fmt", "clippy", "doc"]);
    let mut parts = vec![Part { name: "lint", command: lint }];

    let mut crates =
        run("crates", &["test", "--locked", "--workspace", "--exclude", "avio-tests", "--no-fail-fast"]);
    let mut own = run(
        "harness",
        &[
            "test",
            "--locked",
            "-p",
            "avio-tests",
            "--lib",
            "--test",
            "house_rules",
            "--test",
            "vhost_crate",
            "--test",
            "iogen_vs_qsd",
            "--no-fail-fast",
        ],
    );
    if extent.long {
        crates.command.env("PROPTEST_CASES", "20000");
        own.command.env("PROPTEST_CASES", "20000");
    }
    parts.extend([crates, own]);

    // Everything that a loom model compiles differs, so its build has a folder of its own.
    let mut loom = run("loom", &["test", "--locked", "-p", "avio-host", "--lib", "--release", "--", "loom"]);
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    // Optimised, since a model runs its code a million times; but whole-program optimisation is for the product.
    loom.command.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    loom.command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", format!("{target}/loom"));
    parts.push(loom);

    let system = |name, arguments: &[&str]| {
        let mut part = run(name, &["test", "--locked", "-p", "avio-tests", "--no-fail-fast"]);
        for test in SYSTEM {
            part.command.args(["--test", test]);
        }
        part.command.arg("--").args(arguments);
        part
    };
    for _ in 0..if extent.long { 5 } else { 1 } {
        parts.push(system("system", &[]));
        let mut plain = system("system, plain kernel", &["--data-path"]);
        plain.command.env("AVIO_DISABLE", FACILITIES);
        parts.push(plain);
    }
    parts
}

/// The programs with system tests, in `tests/tests`.
const SYSTEM: &[&str] = &[
    "reference",
    "guest_vs_testpmd",
    "pktgen",
    "promises",
    "operator",
    "testpmd",
    "linux_guests",
    "taps",
    "uplinks",
    "wire_vlans",
    "offload_matrix",
    "guest_kernels",
    "uplink_devices",
    "uplink_drivers",
    "packaged",
    "uplink_host",
    "uplink_rules",
    "uplink_changes",
    "link_status",
    "migration",
    "aggregates",
    "aggregate_rules",
    "aggregate_guard",
    "aggregate_traffic",
    "aggregate_load",
    "lacp_partners",
    "storage_operator",
    "storage_target",
    "storage_sharing",
    "storage_reload",
    "storage_pinned",
    "storage_kill",
    "storage_model",
    "virtio_driver_crate",
    "blkio_crate",
    "storage_guests",
    "storage_admin",
];

impl Part {
    /// Runs the part, showing each test as it ends with the seconds since the part began, and the whole output of what fails.
    pub fn run(mut self) -> Tally {
        println!("== {}", self.name);
        let begin = Instant::now();
        let mut tally = Tally::default();
        let status = self.follow(|line| match read(line) {
            Line::Ended(name, ending) => {
                tally.count(name, ending);
                println!("[{:7.1} s] {line}", begin.elapsed().as_secs_f64());
            }
            // Cargo's own progress and the empty lines between programs say nothing here.
            Line::Other if is_noise(line) => {}
            Line::Other => println!("            {line}"),
        });
        match status {
            Ok(true) => {}
            // The failed tests have been counted, and explain the status.
            Ok(false) if !tally.failed.is_empty() => {}
            Ok(false) => tally
                .count(&format!("{}: ended with a failure that is not a test's", self.name), Ending::Failed),
            Err(error) => tally.count(&format!("{}: {error}", self.name), Ending::Failed),
        }
        if tally == Tally::default() {
            tally.count(&format!("{}: ran no test at all", self.name), Ending::Failed);
        }
        println!("== {}: {} in {:.0} s", self.name, tally.closing_line(), begin.elapsed().as_secs_f64());
        tally
    }

    /// Runs the command and hands on each line of either output stream; gives whether it succeeded.
    fn follow(&mut self, mut each: impl FnMut(&str)) -> std::io::Result<bool> {
        let (reader, writer) = std::io::pipe()?;
        let mut child =
            self.command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).spawn()?;
        // Our ends of the pipe must be closed, or reading would never end.
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        for line in BufReader::new(reader).split(b'\n') {
            each(&String::from_utf8_lossy(&line?));
        }
        Ok(child.wait()?.success())
    }
}

fn is_noise(line: &str) -> bool {
    let line = line.trim();
    line.is_empty()
        || [
            "Compiling ",
            "Finished ",
            "Running ",
            "Doc-tests ",
            "running ",
            "Blocking ",
            "test result: ok",
            "Downloaded ",
            "Downloading ",
        ]
        .iter()
        .any(|start| line.starts_with(start))
}
